//! The policy of the old ip_tables' forward chain, which no rule of nftables can undo.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `SO_GET_INFO` and `SO_GET_ENTRIES` of both families (`IPT_BASE_CTL`, `IP6T_BASE_CTL`).
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of a table's name.
const NAME_BYTES: usize = 32;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// A verdict is stored as its negation less one; `NF_DROP` is 0.
const VERDICT_DROP: i32 = -1;
/// Largest table that is read; longer ones are not judged.
const ENTRIES_MAX: usize = 64 << 20;
/// Offset of the entries in `struct ipt_get_entries`: name, size, alignment to eight.
const ENTRIES_OFFSET: usize = 40;
/// Bytes of `struct xt_entry_target`, before a standard target's verdict.
const TARGET_BYTES: usize = 32;

struct Family {
    program: &'static str,
    /// Lists the tables that exist; asking for one that does not would make it.
    names: &'static str,
    domain: libc::c_int,
    level: libc::c_int,
    /// Offset of `target_offset` in `struct ipt_entry` / `struct ip6t_entry`.
    target_offset: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        program: "iptables-legacy",
        names: "/proc/thread-self/net/ip_tables_names",
        domain: libc::AF_INET,
        level: libc::IPPROTO_IP,
        target_offset: 88,
    },
    Family {
        program: "ip6tables-legacy",
        names: "/proc/thread-self/net/ip6_tables_names",
        domain: libc::AF_INET6,
        level: libc::IPPROTO_IPV6,
        target_offset: 140,
    },
];

/// Programs whose table `filter` drops what its forward chain does not accept, and that say nothing of our device.
/// What cannot be read is not reported.
pub(super) fn dropping_policies() -> Vec<&'static str> {
    let drops = |family: &&Family| drops(family) == Some(true);
    FAMILIES
        .iter()
        .filter(drops)
        .map(|family| family.program)
        .collect()
}

fn drops(family: &Family) -> Option<bool> {
    let names = std::fs::read_to_string(family.names).ok()?;
    if !names.lines().any(|name| name == "filter") {
        return Some(false);
    }
    // SAFETY: no pointers are passed.
    let fd = unsafe {
        libc::socket(
            family.domain,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_RAW,
        )
    };
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
    let mut info = vec![0; NAME_BYTES + 4 * 13];
    info[..6].copy_from_slice(b"filter");
    get(&socket, family.level, GET_INFO, &mut info)?;
    let word = |index: usize| -> Option<u32> {
        let at = NAME_BYTES + 4 * index;
        Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?))
    };
    let (underflow, size) = (word(1 + 5 + FORWARD)? as usize, word(12)? as usize);
    if size > ENTRIES_MAX {
        return None;
    }
    let mut table = vec![0; ENTRIES_OFFSET + size];
    table[..6].copy_from_slice(b"filter");
    table[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(size as u32).to_ne_bytes());
    get(&socket, family.level, GET_ENTRIES, &mut table)?;
    let entries = table.get(ENTRIES_OFFSET..)?;
    Some(
        policy(entries, underflow, family.target_offset)? == VERDICT_DROP && !names_tunnel(entries),
    )
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

/// Verdict of the entry at the end of the chain, which is its policy.
fn policy(entries: &[u8], underflow: usize, target_offset: usize) -> Option<i32> {
    let entry = entries.get(underflow..)?;
    let offset = entry.get(target_offset..target_offset + 2)?;
    let at = usize::from(u16::from_ne_bytes(offset.try_into().ok()?)) + TARGET_BYTES;
    Some(i32::from_ne_bytes(entry.get(at..at + 4)?.try_into().ok()?))
}

/// Somebody has followed the remedy: the table knows our device.
fn names_tunnel(entries: &[u8]) -> bool {
    let name = egret_core::numbers::TUNNEL_DEVICE.as_bytes();
    entries.windows(name.len()).any(|window| window == name)
}
