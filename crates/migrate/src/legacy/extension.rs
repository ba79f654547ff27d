//! Matches and targets of xtables, which have the same bytes in both backends (`linux/netfilter/xt_*.h`).

use super::sets::Names;
use crate::earlier::{Match, Target};
use egret_kernel::bytes::{host_u32, text};
use std::net::Ipv4Addr;

/// Parses a match by its name, revision and data.
pub(super) fn matched(name: &str, revision: u8, data: &[u8], sets: &Names) -> Match {
    let known = match (name, revision) {
        ("mark", 1) => mark(data),
        ("set", 1..=4) => set(data, sets),
        ("comment", 0) => Some(Match::Comment(text(data))),
        _ => None,
    };
    known.unwrap_or_else(|| Match::Other(format!("-m {name}")))
}

/// `struct xt_mark_mtinfo1`: mark, mask, invert.
fn mark(data: &[u8]) -> Option<Match> {
    let (mark, mask) = (host_u32(data)?, host_u32(data.get(4..)?)?);
    (*data.get(8)? == 0).then_some(Match::Mark(mark, mask))
}

/// `struct xt_set_info`: index, dimensions, flags. Bit 0 of the flags inverts, bit N makes dimension N the source.
fn set(data: &[u8], sets: &Names) -> Option<Match> {
    const INVERTED: u8 = 1;
    const KNOWN: u8 = 0b0000_1111;
    let index = u16::from_ne_bytes(data.get(..2)?.try_into().ok()?);
    let (dimensions, flags) = (*data.get(2)?, *data.get(3)?);
    if flags & INVERTED != 0 || flags & !KNOWN != 0 {
        return None;
    }
    let direction = |dimension: u8| match flags >> dimension & 1 {
        1 => "src",
        _ => "dst",
    };
    let directions: Vec<&str> = (1..=dimensions.min(3)).map(direction).collect();
    Some(Match::Set(sets.get(&index)?.clone(), directions.join(",")))
}

/// Parses a target by its name, revision and data.
pub(super) fn target(name: &str, revision: u8, data: &[u8]) -> Target {
    let known = match (name, revision) {
        ("MARK", 2) => host_u32(data)
            .zip(data.get(4..).and_then(host_u32))
            .map(|(mark, mask)| Target::Mark(mark, mask)),
        ("SNAT", 0) => snat(data),
        _ => None,
    };
    known.unwrap_or_else(|| Target::Other(name.to_owned()))
}

/// `struct nf_nat_ipv4_multi_range_compat` with one range: flags, first and last address, ports.
fn snat(data: &[u8]) -> Option<Target> {
    const ONE: u32 = 1;
    const ADDRESSES: u32 = 1;
    let address = |at: usize| {
        let bytes: [u8; 4] = data.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let (count, flags) = (host_u32(data)?, host_u32(data.get(4..)?)?);
    let (first, last) = (address(8)?, address(12)?);
    (count == ONE && flags == ADDRESSES && first == last).then_some(Target::Snat(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inverted_or_of_another_revision_is_not_taken_for_the_plain_thing() {
        let mark = |invert: u8| {
            let mut data = [64u32.to_ne_bytes(), 64u32.to_ne_bytes()].concat();
            data.extend([invert, 0, 0, 0]);
            data
        };
        let none = Names::new();
        assert_eq!(matched("mark", 1, &mark(0), &none), Match::Mark(64, 64));
        assert_eq!(
            matched("mark", 1, &mark(1), &none),
            Match::Other("-m mark".into())
        );
        assert_eq!(
            matched("mark", 0, &mark(0), &none),
            Match::Other("-m mark".into())
        );
        let sets = Names::from([(3, "EGRESS-IP-A".into())]);
        let set = |flags| matched("set", 4, &[3, 0, 1, flags, 0, 0, 0, 0], &sets);
        assert_eq!(set(2), Match::Set("EGRESS-IP-A".into(), "src".into()));
        assert_eq!(set(0), Match::Set("EGRESS-IP-A".into(), "dst".into()));
        assert_eq!(set(3), Match::Other("-m set".into()));
        assert_eq!(
            matched("set", 4, &[9, 0, 1, 2], &sets),
            Match::Other("-m set".into())
        );
    }

    #[test]
    fn a_range_of_sources_is_not_one_address() {
        let range = |last: u8, flags: u32| {
            let mut data = [1u32.to_ne_bytes(), flags.to_ne_bytes()].concat();
            data.extend([192, 0, 2, 1, 192, 0, 2, last, 0, 0, 0, 0]);
            target("SNAT", 0, &data)
        };
        assert_eq!(range(1, 1), Target::Snat(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(range(2, 1), Target::Other("SNAT".into()));
        assert_eq!(range(1, 3), Target::Other("SNAT".into()));
        assert_eq!(target("MARK", 2, &[0; 3]), Target::Other("MARK".into()));
    }
}
