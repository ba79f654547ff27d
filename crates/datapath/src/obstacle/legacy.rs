//! Tables of the old ip_tables, read by the socket options that `iptables-legacy` uses
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`). The kernel does not notify their changes.

use super::xtables;
use egret_core::obstacle::firewall::{Action, Chains, Condition, Rule, Test};
use egret_core::obstacle::{Base, Hook, Table, Tool};
use egret_kernel::bytes::text;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `SO_GET_INFO` and `SO_GET_ENTRIES` of both families (`IPT_BASE_CTL`, `IP6T_BASE_CTL`).
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of a table's name.
const NAME_BYTES: usize = 32;
const HOOKS: usize = 5;
const HOOK_NAMES: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Largest table that is read; larger ones are not evaluated.
const ENTRIES_MAX: usize = 64 << 20;
/// Offset of the entries in `struct ipt_get_entries`: name, size, alignment to eight.
const ENTRIES_OFFSET: usize = 40;
/// Bytes of `struct xt_entry_match` and `struct xt_entry_target` before their data.
const HEAD_BYTES: usize = 32;
/// A verdict is stored as its negation less one; `NF_DROP` is 0.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;

/// Tables that may block our packets, with their priority.
const TABLES: [(&str, i32); 3] = [("raw", -300), ("mangle", -150), ("filter", 0)];

/// Offsets in `struct ipt_entry` and `struct ip6t_entry`, bytes.
struct Layout {
    is_v4: bool,
    /// File that lists the existing tables; a request for any other table would create it.
    names: &'static str,
    domain: libc::c_int,
    level: libc::c_int,
    /// Length of an address; source, destination and their masks come first.
    address: usize,
    protocol: usize,
    flags: usize,
    /// Flag of a jump without return (`IPT_F_GOTO`, `IP6T_F_GOTO`).
    goto: u8,
    /// Flags with a meaning that is not evaluated.
    unknown: u8,
    target: usize,
    matches: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        is_v4: true,
        names: "/proc/thread-self/net/ip_tables_names",
        domain: libc::AF_INET,
        level: libc::IPPROTO_IP,
        address: 4,
        protocol: 80,
        flags: 82,
        goto: 2,
        unknown: 1,
        target: 88,
        matches: 112,
    },
    Layout {
        is_v4: false,
        names: "/proc/thread-self/net/ip6_tables_names",
        domain: libc::AF_INET6,
        level: libc::IPPROTO_IPV6,
        address: 16,
        protocol: 128,
        flags: 131,
        goto: 4,
        unknown: 2,
        target: 140,
        matches: 168,
    },
];

/// Number and bytes of the entries of each existing table: a cheap indicator of changes.
pub(super) type Sizes = BTreeMap<(bool, &'static str), (u32, u32)>;

/// Reads which tables exist, and their sizes.
pub(super) fn sizes() -> Sizes {
    let mut sizes = Sizes::new();
    for layout in &LAYOUTS {
        for (name, _) in there(layout) {
            let info = socket(layout).and_then(|socket| Info::of(&socket, layout, name));
            sizes.extend(info.map(|info| ((layout.is_v4, name), (info.count, info.size))));
        }
    }
    sizes
}

/// Reads all tables that can be read, with all their rules.
pub(super) fn tables() -> Vec<Table> {
    let mut tables = Vec::new();
    for layout in &LAYOUTS {
        for (name, priority) in there(layout) {
            tables.extend(table(layout, name, priority));
        }
    }
    tables
}

fn there(layout: &Layout) -> Vec<(&'static str, i32)> {
    let names = std::fs::read_to_string(layout.names).unwrap_or_default();
    let is_there = |(name, _): &&(&str, i32)| names.lines().any(|line| line == *name);
    TABLES.iter().filter(is_there).copied().collect()
}

fn socket(layout: &Layout) -> Option<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(layout.domain, kind, libc::IPPROTO_RAW) };
    // SAFETY: the descriptor was just made and has no other owner.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn get(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, buffer: &mut [u8]) -> Option<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes into the buffer of that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_ne_bytes(bytes.try_into().ok()?)))
}

fn named(name: &str, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    buffer[..name.len()].copy_from_slice(name.as_bytes());
    buffer
}

/// `struct ipt_getinfo`: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
struct Info {
    valid: u32,
    starts: [u32; HOOKS],
    ends: [u32; HOOKS],
    count: u32,
    size: u32,
}

impl Info {
    fn of(socket: &OwnedFd, layout: &Layout, name: &str) -> Option<Self> {
        let mut info = named(name, NAME_BYTES + 4 * (3 + 2 * HOOKS));
        get(socket, layout.level, GET_INFO, &mut info)?;
        let field = |index: usize| word(&info, NAME_BYTES + 4 * index);
        let (mut starts, mut ends) = ([0; HOOKS], [0; HOOKS]);
        for hook in 0..HOOKS {
            (starts[hook], ends[hook]) = (field(1 + hook)?, field(1 + HOOKS + hook)?);
        }
        Some(Info {
            valid: field(0)?,
            starts,
            ends,
            count: field(1 + 2 * HOOKS)?,
            size: field(2 + 2 * HOOKS)?,
        })
    }
}

fn table(layout: &Layout, name: &str, priority: i32) -> Option<Table> {
    let socket = socket(layout)?;
    let info = Info::of(&socket, layout, name)?;
    if info.size as usize > ENTRIES_MAX {
        return None;
    }
    let mut list = named(name, ENTRIES_OFFSET + info.size as usize);
    list[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&info.size.to_ne_bytes());
    get(&socket, layout.level, GET_ENTRIES, &mut list)?;
    let (chains, bases) = take_apart(layout, &info, list.get(ENTRIES_OFFSET..)?, priority)?;
    Some(Table {
        tool: Tool::IptablesLegacy,
        v4: layout.is_v4,
        v6: !layout.is_v4,
        name: name.to_owned(),
        owned: false,
        bases,
        chains,
    })
}

/// Splits a table into its chains, and the base chains among them.
fn take_apart(
    layout: &Layout,
    info: &Info,
    list: &[u8],
    priority: i32,
) -> Option<(Chains, Vec<Base>)> {
    let hook_at = |of: &[u32; HOOKS], at: usize| {
        (0..HOOKS).find(|hook| info.valid >> hook & 1 == 1 && of[*hook] as usize == at)
    };
    let entries = split(layout, list)?;
    let names = names_of(layout, &entries)?;
    let (mut chains, mut bases) = (Chains::new(), Vec::new());
    let mut chain = String::new();
    for (number, (at, entry)) in entries.iter().enumerate() {
        if let Some(hook) = hook_at(&info.starts, *at) {
            HOOK_NAMES[hook].clone_into(&mut chain);
        }
        let target = entry.get(half(entry, layout.target)?..)?;
        if is_head(target) {
            chain = text(target.get(HEAD_BYTES..)?);
            continue;
        }
        if let Some(hook) = hook_at(&info.ends, *at) {
            chains.entry(chain.clone()).or_default();
            let hook = match hook {
                0 => Hook::Prerouting,
                1 => Hook::Input,
                2 => Hook::Forward,
                _ => continue,
            };
            bases.push(Base {
                chain: chain.clone(),
                hook,
                priority,
                policy_drops: word(target, HEAD_BYTES)? as i32 == DROP,
            });
            continue;
        }
        let next = entries.get(number + 1);
        let ends_chain = next.is_some_and(|(_, next)| {
            let target = half(next, layout.target).and_then(|at| next.get(at..));
            target.is_some_and(is_head)
        });
        let rules = chains.entry(chain.clone()).or_default();
        // The kernel's tables have a return at the end of each user-defined chain.
        if !ends_chain {
            rules.push(rule(layout, entry, at + entry.len(), &names)?);
        }
    }
    Some((chains, bases))
}

/// Splits the list into entries, with their offsets.
fn split<'a>(layout: &Layout, list: &'a [u8]) -> Option<Vec<(usize, &'a [u8])>> {
    let (mut entries, mut at) = (Vec::new(), 0);
    while at < list.len() {
        let length = half(list, at + layout.target + 2)?;
        if length < layout.matches {
            return None;
        }
        entries.push((at, list.get(at..at + length)?));
        at += length;
    }
    Some(entries)
}

/// Names of chains, by the offset at which they begin.
fn names_of(layout: &Layout, entries: &[(usize, &[u8])]) -> Option<BTreeMap<usize, String>> {
    let mut names = BTreeMap::new();
    for (at, entry) in entries {
        let target = entry.get(half(entry, layout.target)?..)?;
        if is_head(target) {
            names.insert(at + entry.len(), text(target.get(HEAD_BYTES..)?));
        }
    }
    Some(names)
}

/// Whether the entry is an error target: user-defined chains begin with one that contains their name, and the table
/// ends with one.
fn is_head(target: &[u8]) -> bool {
    target.get(2..HEAD_BYTES - 1).map(xtables::name).as_deref() == Some("ERROR")
}

fn rule(
    layout: &Layout,
    entry: &[u8],
    next: usize,
    names: &BTreeMap<usize, String>,
) -> Option<Rule> {
    let mut conditions = head(layout, entry)?;
    let target_at = half(entry, layout.target)?;
    let mut at = layout.matches;
    while at < target_at {
        let length = half(entry, at)?.max(HEAD_BYTES);
        let one = entry.get(at..at + length)?;
        let name = xtables::name(&one[2..HEAD_BYTES - 1]);
        conditions.extend(xtables::matched(
            &name,
            one[HEAD_BYTES - 1],
            &one[HEAD_BYTES..],
        ));
        at += length;
    }
    let target = entry.get(target_at..)?;
    let name = xtables::name(target.get(2..HEAD_BYTES - 1)?);
    let is_goto = entry.get(layout.flags)? & layout.goto != 0;
    let action = match name.as_str() {
        "" => match (word(target, HEAD_BYTES)? as i32, is_goto) {
            (DROP, _) => Action::Drop,
            (ACCEPT, _) => Action::Accept,
            (RETURN, _) => Action::Return,
            (to, _) if usize::try_from(to) == Ok(next) => Action::Continue,
            (to, is_goto) => match names.get(&usize::try_from(to).unwrap_or(usize::MAX)) {
                Some(chain) if is_goto => Action::Goto(chain.clone()),
                Some(chain) => Action::Jump(chain.clone()),
                None => Action::Other(format!("verdict {to}")),
            },
        },
        name => xtables::target(name, target[HEAD_BYTES - 1], &target[HEAD_BYTES..]),
    };
    Some(Rule {
        conditions,
        action,
        handle: 0,
    })
}

/// Conditions of an entry itself: addresses, devices, protocol.
fn head(layout: &Layout, entry: &[u8]) -> Option<Vec<Condition>> {
    const INPUT: u8 = 1;
    const OUTPUT: u8 = 2;
    const SOURCE: u8 = 8;
    const DESTINATION: u8 = 16;
    const PROTOCOL: u8 = 64;
    const KNOWN: u8 = INPUT | OUTPUT | SOURCE | DESTINATION | PROTOCOL;
    let length = layout.address;
    let inverted = *entry.get(layout.flags + 1)?;
    let mut found = Vec::new();
    let mut add = |test: Test, bit: u8| {
        found.push(Condition {
            test,
            negated: inverted & bit != 0,
        });
    };
    for (number, bit) in [SOURCE, DESTINATION].into_iter().enumerate() {
        let of = |at: usize| address(entry.get(at..at + length)?);
        let (value, mask) = (of(number * length)?, of((number + 2) * length)?);
        match IpNet::with_netmask(value, mask) {
            Ok(net) if net.prefix_len() == 0 => {}
            Ok(net) if number == 0 => add(Test::Source(net), bit),
            Ok(net) => add(Test::Destination(net), bit),
            Err(_) => add(Test::Other(format!("{value}/{mask}")), bit),
        }
    }
    let names = 4 * length;
    for (number, bit) in [INPUT, OUTPUT].into_iter().enumerate() {
        let name = entry.get(names + 16 * number..names + 16 * (number + 1))?;
        let mask = entry.get(names + 32 + 16 * number..names + 32 + 16 * (number + 1))?;
        let Some(name) = device(name, mask) else {
            continue;
        };
        let is_input = number == 0;
        add(
            if is_input {
                Test::Input(name)
            } else {
                Test::Output(name)
            },
            bit,
        );
    }
    let protocol = half(entry, layout.protocol)?;
    if protocol != 0 {
        add(Test::Protocol(protocol as u8), PROTOCOL);
    }
    if entry.get(layout.flags)? & layout.unknown != 0 || inverted & !KNOWN != 0 {
        found.push(Test::Other("[fragment or service]".into()).into());
    }
    Some(found)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
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
        false => format!("{found}*"),
    })
}
