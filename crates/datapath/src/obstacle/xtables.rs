//! Parses matches and targets of xtables into conditions and actions; old tables and nftables have the same bytes
//! (`linux/netfilter/xt_*.h`).

use egret_core::obstacle::firewall::{Action, Condition, Test, state};
use egret_kernel::bytes::{host_u32, text};

const ANY_PORT: (u16, u16) = (0, u16::MAX);

fn other(name: &str) -> Vec<Condition> {
    vec![Test::Other(format!("-m {name}")).into()]
}

fn condition(test: Test, negated: bool) -> Vec<Condition> {
    vec![Condition { test, negated }]
}

/// Conditions of a match.
pub(super) fn matched(name: &str, revision: u8, data: &[u8]) -> Vec<Condition> {
    let known = match (name, revision) {
        ("comment", _) => Some(Vec::new()),
        ("rpfilter", 0) => rpfilter(data),
        ("conntrack", 1..=3) => conntrack(revision, data),
        ("state", 0) => host_u32(data).map(|states| condition(Test::State(states), false)),
        ("mark", 1) => mark(data),
        ("udp", 0) => ports(data, 8, &[]),
        ("tcp", 0) => ports(data, 11, &[8, 9]),
        _ => None,
    };
    known.unwrap_or_else(|| other(name))
}

/// `struct xt_rpfilter_info`: flags.
fn rpfilter(data: &[u8]) -> Option<Vec<Condition>> {
    const LOOSE: u8 = 1;
    const INVERT: u8 = 8;
    let flags = *data.first()?;
    let test = Test::ReversePath {
        loose: flags & LOOSE != 0,
    };
    Some(condition(test, flags & INVERT != 0))
}

/// `struct xt_conntrack_mtinfo1` to `3`: eight addresses and masks, two times, a protocol, four ports, and which of
/// them are matched.
fn conntrack(revision: u8, data: &[u8]) -> Option<Vec<Condition>> {
    const STATE: u16 = 1;
    /// The rule was written as `-m state` (`XT_CONNTRACK_STATE_ALIAS`).
    const ALIAS: u16 = 1 << 13;
    /// `XT_CONNTRACK_STATE_UNTRACKED`; the bits below include those of translation.
    const UNTRACKED: u16 = 1 << 8;
    const PLAIN: u16 = 0x1f;
    let word = |at: usize| {
        let bytes = data.get(at..at + 2)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (asked, inverted) = (word(146)?, word(148)?);
    let states = match revision {
        1 => u16::from(*data.get(150)?),
        _ => word(150)?,
    };
    if asked & !ALIAS != STATE || states & !(PLAIN | UNTRACKED) != 0 {
        return None;
    }
    let mut bits = u32::from(states & PLAIN);
    if states & UNTRACKED != 0 {
        bits |= state::UNTRACKED;
    }
    Some(condition(Test::State(bits), inverted & STATE != 0))
}

/// `struct xt_mark_mtinfo1`: mark, mask, invert.
fn mark(data: &[u8]) -> Option<Vec<Condition>> {
    let (value, mask) = (host_u32(data)?, host_u32(data.get(4..)?)?);
    Some(condition(Test::Mark { value, mask }, *data.get(8)? != 0))
}

/// `struct xt_udp` and `struct xt_tcp`: first and last source and destination port, further tests, and inversion flags.
fn ports(data: &[u8], inverted_at: usize, more: &[usize]) -> Option<Vec<Condition>> {
    const DESTINATION: u8 = 2;
    let word = |at: usize| {
        let bytes = data.get(at..at + 2)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    };
    let source = (word(0)?, word(2)?);
    let (first, last) = (word(4)?, word(6)?);
    let inverted = *data.get(inverted_at)?;
    let mut found = Vec::new();
    if (first, last) != ANY_PORT {
        let test = Test::DestinationPort(first, last);
        found.extend(condition(test, inverted & DESTINATION != 0));
    }
    let asks_more = more.iter().any(|at| data.get(*at) != Some(&0));
    if source != ANY_PORT || inverted & !DESTINATION != 0 || asks_more {
        found.push(Test::Other("--sport or flags".into()).into());
    }
    Some(found)
}

/// Action of a target.
pub(super) fn target(name: &str, revision: u8, data: &[u8]) -> Action {
    const GO_ON: [&str; 18] = [
        "LOG",
        "NFLOG",
        "ULOG",
        "TRACE",
        "TCPMSS",
        "TCPOPTSTRIP",
        "CT",
        "NOTRACK",
        "DSCP",
        "TOS",
        "TTL",
        "HL",
        "CLASSIFY",
        "CHECKSUM",
        "SET",
        "AUDIT",
        "SECMARK",
        "CONNSECMARK",
    ];
    match (name, revision) {
        ("REJECT", _) => Action::Reject,
        ("MARK", 2) => {
            let bits = host_u32(data).zip(data.get(4..).and_then(host_u32));
            Action::Mark(bits.map_or(u32::MAX, |(mark, mask)| mark | mask))
        }
        ("MARK" | "CONNMARK", _) => Action::Mark(u32::MAX),
        (name, _) if GO_ON.contains(&name) => Action::Continue,
        (name, _) => Action::Other(name.to_owned()),
    }
}

/// Name of a match or target in its head, after its length.
pub(super) fn name(head: &[u8]) -> String {
    text(head)
}
