//! Tables of the old ip_tables, which `iptables-legacy` reads and writes by socket options
//! (`linux/netfilter_ipv4/ip_tables.h`). The kernel only exchanges whole tables: one is read, and written again without
//! the removed entries, with its counters.

use super::extension;
use super::sets::Names;
use crate::earlier::{Action, Backend, Chain, Node, Rule, Target};
use egret_kernel::bytes::{host_u32, text};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// File that lists the existing tables; a request for any other table would create it.
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";
/// `IPT_SO_GET_INFO` and `IPT_SO_SET_REPLACE`; `IPT_SO_GET_ENTRIES` and `IPT_SO_SET_ADD_COUNTERS`.
const INFO_OR_REPLACE: libc::c_int = 64;
const ENTRIES_OR_COUNTERS: libc::c_int = 65;
const NAME_BYTES: usize = 32;
const HOOKS: usize = 5;
/// Largest table that is read.
const ENTRIES_MAX: usize = 64 << 20;
/// Offset of the entries in `struct ipt_get_entries`, and of the counters in `struct xt_counters_info`.
const LIST_OFFSET: usize = 40;
/// Offsets in `struct ipt_entry`.
const TARGET_OFFSET: usize = 88;
const COUNTERS_OFFSET: usize = 96;
const MATCHES_OFFSET: usize = 112;
/// Bytes of `struct xt_entry_match` and `struct xt_entry_target` before their data.
const HEAD_BYTES: usize = 32;
const COUNTER_BYTES: usize = 16;
/// Names of the built-in chains, by the number of their hook.
const BUILT_IN: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Error of reading or writing a table.
#[derive(Debug, thiserror::Error)]
pub enum OldTableError {
    /// The kernel refused it.
    #[error("{what}")]
    Io {
        /// Operation that was attempted.
        what: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The kernel's data is inconsistent.
    #[error("table {0} of iptables-legacy cannot be read")]
    Malformed(String),
    /// Another program changed the table meanwhile.
    #[error("table {0} of iptables-legacy was changed meanwhile: try again")]
    Changed(String),
}

fn failed(what: &str) -> OldTableError {
    OldTableError::Io {
        what: what.to_owned(),
        source: io::Error::last_os_error(),
    }
}

/// A table as the kernel returned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldTable {
    valid_hooks: u32,
    hooks: [u32; HOOKS],
    underflows: [u32; HOOKS],
    entries: Vec<Entry>,
}

/// One entry: a rule, the head of a chain, or a chain's end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    offset: u32,
    chain: String,
    part: Part,
    counters: [u64; 2],
    /// Bytes of the entry, with zero counters.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Head of a user-defined chain.
    Head,
    Rule,
    /// Policy, or the return at the end of a user-defined chain.
    End,
    /// End of the table, after the last chain.
    Last,
}

/// Excludes other programs that write old tables, until the file is dropped.
pub(super) fn lock(path: &Path) -> Result<Option<File>, OldTableError> {
    let open = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let Ok(file) = open else {
        // Without the directory no other program here takes the lock either.
        return Ok(None);
    };
    file.lock().map_err(|source| OldTableError::Io {
        what: format!("waiting for {}", path.display()),
        source,
    })?;
    Ok(Some(file))
}

/// Reads all existing tables.
pub(super) fn read_all() -> Result<BTreeMap<String, OldTable>, OldTableError> {
    let names = match std::fs::read_to_string(NAMES) {
        Ok(names) => names,
        // The kernel has no old ip_tables.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => {
            let what = format!("reading {NAMES}");
            return Err(OldTableError::Io { what, source });
        }
    };
    let mut tables = BTreeMap::new();
    for name in names.lines() {
        tables.insert(name.to_owned(), OldTable::read(name)?);
    }
    Ok(tables)
}

fn socket() -> Result<OwnedFd, OldTableError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(failed("opening a raw socket"));
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn get(socket: &OwnedFd, option: libc::c_int, buffer: &mut [u8]) -> Result<(), OldTableError> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes into the buffer of that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0)
        .then_some(())
        .ok_or_else(|| failed("reading a table of iptables-legacy"))
}

fn set(socket: &OwnedFd, option: libc::c_int, buffer: &[u8]) -> Result<(), OldTableError> {
    // SAFETY: the descriptor is open, and the kernel reads `buffer.len()` bytes of the buffer; a pointer inside it (to
    // counters) points to memory that its owner holds through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            buffer.as_ptr().cast(),
            buffer.len() as libc::socklen_t,
        )
    };
    (result == 0)
        .then_some(())
        .ok_or_else(|| failed("writing a table of iptables-legacy"))
}

fn words<const N: usize>(bytes: &[u8], at: usize) -> Option<[u32; N]> {
    let mut words = [0; N];
    for (number, word) in words.iter_mut().enumerate() {
        *word = host_u32(bytes.get(at + 4 * number..)?)?;
    }
    Some(words)
}

fn named_buffer(name: &str, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    let name = &name.as_bytes()[..name.len().min(NAME_BYTES - 1)];
    buffer[..name.len()].copy_from_slice(name);
    buffer
}

impl OldTable {
    fn read(name: &str) -> Result<Self, OldTableError> {
        let malformed = || OldTableError::Malformed(name.to_owned());
        let socket = socket()?;
        // name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
        let mut info = named_buffer(name, NAME_BYTES + 4 * (3 + 2 * HOOKS));
        get(&socket, INFO_OR_REPLACE, &mut info)?;
        let [valid_hooks] = words(&info, NAME_BYTES).ok_or_else(malformed)?;
        let hooks = words(&info, NAME_BYTES + 4).ok_or_else(malformed)?;
        let underflows = words(&info, NAME_BYTES + 4 * (1 + HOOKS)).ok_or_else(malformed)?;
        let [_, size] = words(&info, NAME_BYTES + 4 * (1 + 2 * HOOKS)).ok_or_else(malformed)?;
        if size as usize > ENTRIES_MAX {
            return Err(malformed());
        }
        let mut list = named_buffer(name, LIST_OFFSET + size as usize);
        list[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&size.to_ne_bytes());
        get(&socket, ENTRIES_OR_COUNTERS, &mut list)?;
        let mut table = OldTable {
            valid_hooks,
            hooks,
            underflows,
            entries: Vec::new(),
        };
        table
            .take_apart(&list[LIST_OFFSET..])
            .ok_or_else(malformed)?;
        Ok(table)
    }

    fn take_apart(&mut self, list: &[u8]) -> Option<()> {
        let (mut offset, mut chain) = (0, String::new());
        while offset < list.len() {
            let next = list.get(offset + TARGET_OFFSET + 2..offset + TARGET_OFFSET + 4)?;
            let length = usize::from(u16::from_ne_bytes(next.try_into().ok()?));
            let mut bytes = list.get(offset..offset + length)?.to_vec();
            let target = target_of(&bytes)?;
            let is_error = text(target.get(2..HEAD_BYTES - 1)?) == "ERROR";
            let at = offset as u32;
            let hook = |of: &[u32; HOOKS]| {
                (0..HOOKS).find(|number| self.valid_hooks >> number & 1 == 1 && of[*number] == at)
            };
            if let Some(number) = hook(&self.hooks) {
                chain = BUILT_IN[number].to_owned();
            }
            let part = match () {
                () if is_error && offset + length == list.len() => Part::Last,
                () if is_error => {
                    chain = text(target.get(HEAD_BYTES..)?);
                    Part::Head
                }
                () if hook(&self.underflows).is_some() => Part::End,
                () => Part::Rule,
            };
            let number = |at: usize| {
                let bytes = bytes
                    .get(at..at + 8)
                    .and_then(|bytes| bytes.try_into().ok());
                bytes.map(u64::from_ne_bytes)
            };
            let counters = [number(COUNTERS_OFFSET)?, number(COUNTERS_OFFSET + 8)?];
            bytes[COUNTERS_OFFSET..MATCHES_OFFSET].fill(0);
            self.entries.push(Entry {
                offset: at,
                chain: chain.clone(),
                part,
                counters,
                bytes,
            });
            offset += length;
        }
        self.mark_ends();
        Some(())
    }

    /// Marks the last entry of each user-defined chain as its end: the kernel's tables always have one there.
    fn mark_ends(&mut self) {
        for at in 1..self.entries.len() {
            let starts = matches!(self.entries[at].part, Part::Head | Part::Last);
            if starts && self.entries[at - 1].part == Part::Rule {
                self.entries[at - 1].part = Part::End;
            }
        }
    }

    /// Name of the chain whose first rule is at an offset.
    fn chain_at(&self, offset: u32) -> Option<&str> {
        let at = self
            .entries
            .iter()
            .position(|entry| entry.offset == offset)?;
        let head = self.entries.get(at.checked_sub(1)?)?;
        (head.part == Part::Head).then_some(head.chain.as_str())
    }

    /// Adds the chains and rules of this table to the node.
    pub(super) fn describe(&self, table: &str, sets: &Names, node: &mut Node) {
        for (position, entry) in self.entries.iter().enumerate() {
            match entry.part {
                Part::Head => node.chains.push(Chain {
                    backend: Backend::Legacy,
                    table: table.to_owned(),
                    name: entry.chain.clone(),
                }),
                Part::Rule => {
                    let handle = position as u64;
                    let mut rule = Rule::empty(Backend::Legacy, table, &entry.chain, handle);
                    if self.decode(entry, sets, &mut rule).is_none() {
                        rule.target = Target::Other("unreadable".into());
                    }
                    node.rules.push(rule);
                }
                Part::End | Part::Last => {}
            }
        }
    }

    fn decode(&self, entry: &Entry, sets: &Names, rule: &mut Rule) -> Option<()> {
        let bytes = &entry.bytes;
        rule.packets = entry.counters[0];
        let head = bytes.get(..84)?;
        let net = |address: usize, mask: usize| {
            let of = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(&head[at..at + 4]).ok()?));
            Ipv4Net::with_netmask(of(address)?, of(mask)?).ok()
        };
        let whole = |net: Ipv4Net| (net.prefix_len() > 0).then_some(net);
        rule.source = whole(net(0, 8)?);
        rule.destination = whole(net(4, 12)?);
        rule.input = device(&head[16..32], &head[48..64]);
        rule.output = device(&head[32..48], &head[64..80]);
        let protocol = u16::from_ne_bytes([head[80], head[81]]);
        rule.protocol = (protocol != 0).then_some(protocol as u8);
        let (flags, inverted) = (head[82], head[83]);
        if flags & 1 != 0 || inverted != 0 {
            let text = "[fragment or inverted]".to_owned();
            rule.matches.push(crate::earlier::Match::Other(text));
        }
        let end = usize::from(u16::from_ne_bytes(bytes.get(88..90)?.try_into().ok()?));
        let mut at = MATCHES_OFFSET;
        while at < end {
            let length = usize::from(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
            let one = bytes.get(at..at + length.max(HEAD_BYTES))?;
            let name = text(&one[2..HEAD_BYTES - 1]);
            let found = extension::matched(&name, one[HEAD_BYTES - 1], &one[HEAD_BYTES..], sets);
            rule.matches.push(found);
            at += length.max(HEAD_BYTES);
        }
        let target = target_of(bytes)?;
        let name = text(&target[2..HEAD_BYTES - 1]);
        rule.target = match name.is_empty() {
            true => self.standard(entry, host_u32(target.get(HEAD_BYTES..)?)? as i32),
            false => extension::target(&name, target[HEAD_BYTES - 1], &target[HEAD_BYTES..]),
        };
        Some(())
    }

    /// Parses a standard target: a verdict, or the offset to jump to.
    fn standard(&self, entry: &Entry, verdict: i32) -> Target {
        let next = entry.offset as i32 + entry.bytes.len() as i32;
        match verdict {
            -1 => Target::Verdict("DROP"),
            -2 => Target::Verdict("ACCEPT"),
            -5 => Target::Verdict("RETURN"),
            to if to == next => Target::None,
            to => match self.chain_at(to as u32) {
                Some(chain) if to >= 0 => Target::Jump(chain.to_owned()),
                _ => Target::Other(format!("verdict {to}")),
            },
        }
    }

    /// Writes the table without the actions' objects, if it has not changed since it was read.
    pub(super) fn remove(&self, table: &str, actions: &[&Action]) -> Result<(), OldTableError> {
        let mut gone: BTreeSet<usize> = BTreeSet::new();
        for action in actions {
            match action {
                Action::Rule(Backend::Legacy, of, id) if of == table => {
                    gone.insert(id.handle as usize);
                }
                Action::Chain(Backend::Legacy, of, name) if of == table => {
                    let of_chain = |entry: &Entry| {
                        entry.chain == *name && matches!(entry.part, Part::Head | Part::End)
                    };
                    let own = self
                        .entries
                        .iter()
                        .enumerate()
                        .filter(|(_, one)| of_chain(one));
                    gone.extend(own.map(|(position, _)| position));
                }
                _ => {}
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        let now = OldTable::read(table)?;
        let same = now.entries.len() == self.entries.len()
            && now
                .entries
                .iter()
                .zip(&self.entries)
                .all(|(now, then)| now.bytes == then.bytes);
        // A rule that remains in a removed chain would belong to no chain.
        let stranded = self.entries.iter().enumerate().any(|(position, entry)| {
            let headless = |head: &usize| {
                let head = &self.entries[*head];
                head.part == Part::Head && head.chain == entry.chain
            };
            entry.part == Part::Rule && !gone.contains(&position) && gone.iter().any(headless)
        });
        if !same || stranded {
            return Err(OldTableError::Changed(table.to_owned()));
        }
        now.write_without(table, &gone)
    }

    fn write_without(&self, table: &str, gone: &BTreeSet<usize>) -> Result<(), OldTableError> {
        let malformed = || OldTableError::Malformed(table.to_owned());
        // New offset of each entry; the offset of a removed entry is that of its successor.
        let (mut places, mut length) = (BTreeMap::new(), 0);
        for (position, entry) in self.entries.iter().enumerate() {
            places.insert(entry.offset, length);
            if !gone.contains(&position) {
                length += entry.bytes.len() as u32;
            }
        }
        let place = |offset: u32| places.get(&offset).copied().ok_or_else(malformed);
        let kept = || {
            let all = self.entries.iter().enumerate();
            all.filter(|(position, _)| !gone.contains(position))
                .map(|(_, entry)| entry)
        };
        let mut list = Vec::with_capacity(length as usize);
        for entry in kept() {
            let mut bytes = entry.bytes.clone();
            let at = bytes.len() - target_of(&bytes).ok_or_else(malformed)?.len() + HEAD_BYTES;
            let is_standard = bytes[at - HEAD_BYTES + 2] == 0;
            let verdict = host_u32(&bytes[at..]).ok_or_else(malformed)? as i32;
            if is_standard && verdict >= 0 {
                let moved = place(verdict as u32)?;
                bytes[at..at + 4].copy_from_slice(&moved.to_ne_bytes());
            }
            list.extend(bytes);
        }
        let count = kept().count() as u32;
        let mut old = vec![0u64; 2 * self.entries.len()];
        let mut request = named_buffer(table, NAME_BYTES);
        request.extend(
            [self.valid_hooks, count, length]
                .iter()
                .flat_map(|word| word.to_ne_bytes()),
        );
        for (number, offset) in self.hooks.iter().chain(&self.underflows).enumerate() {
            let is_valid = self.valid_hooks >> (number % HOOKS) & 1 == 1;
            let moved = if is_valid { place(*offset)? } else { *offset };
            request.extend(moved.to_ne_bytes());
        }
        request.extend((self.entries.len() as u32).to_ne_bytes());
        request.extend((old.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
        request.extend(list);
        let socket = socket()?;
        set(&socket, INFO_OR_REPLACE, &request)?;
        // The kernel has returned the old counters in this buffer.
        let counters: Vec<u64> = old
            .chunks(2)
            .enumerate()
            .filter(|(position, _)| !gone.contains(position))
            .flat_map(|(_, pair)| pair.to_vec())
            .collect();
        let mut request = named_buffer(table, LIST_OFFSET);
        request[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&count.to_ne_bytes());
        request.extend(counters.iter().flat_map(|number| number.to_ne_bytes()));
        debug_assert_eq!(request.len(), LIST_OFFSET + COUNTER_BYTES * count as usize);
        set(&socket, ENTRIES_OR_COUNTERS, &request)
    }
}

fn target_of(entry: &[u8]) -> Option<&[u8]> {
    let offset = entry.get(TARGET_OFFSET..TARGET_OFFSET + 2)?;
    let target = entry.get(usize::from(u16::from_ne_bytes(offset.try_into().ok()?))..)?;
    (target.len() >= HEAD_BYTES + 4).then_some(target)
}

/// A device's name; one whose mask does not cover its terminating zero is a prefix.
fn device(name: &[u8], mask: &[u8]) -> Option<String> {
    let looked_at = mask.iter().take_while(|byte| **byte != 0).count();
    if looked_at == 0 {
        return None;
    }
    let found = text(name);
    Some(match looked_at > found.len() {
        true => found,
        false => format!("{found}+"),
    })
}
