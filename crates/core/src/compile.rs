//! Compiles the destinations of all policies of one pod to disjoint ranges of address, protocol and port. The overlap
//! rule and `except` are resolved here, because the kernel refuses overlapping intervals.
//!
//! A sweep over the address line keeps the set of claims that cover the current piece; within a piece the ports of each
//! protocol are cut in the same way. Cost: claims times their nesting depth.

mod ports;
mod sweep;

pub(crate) use ports::Class;

use crate::model::Destination;
use crate::resolve::Precedence;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Destinations that one policy claims. `V` is the verdict; a claim of `None` shadows those it wins over and yields no
/// range.
pub(crate) struct Claim<'a, V> {
    /// Compares this claim with another, given the prefix lengths by which they cover a packet.
    pub precedence: Box<dyn Fn(u8) -> Precedence + 'a>,
    /// `None`: every destination.
    pub destinations: Option<&'a [Destination]>,
    /// Verdicts for IPv4 and IPv6.
    pub verdicts: [Option<V>; 2],
}

/// One compiled range of address, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CompiledBox<V> {
    pub first: IpAddr,
    pub last: IpAddr,
    /// `None`: TCP, UDP, SCTP and ICMP alike.
    pub class: Option<Class>,
    pub port_first: u16,
    pub port_last: u16,
    pub verdict: V,
}

/// The claims of one profile, compiled.
pub(crate) struct Compiled<V> {
    /// Disjoint, sorted.
    pub boxes: Vec<CompiledBox<V>>,
    /// Addresses for which protocols without ports are claimed. Disjoint, sorted.
    pub portless: Vec<(IpAddr, IpAddr)>,
    /// (winner, loser) by position in the claims, wherever two overlap.
    pub overlaps: BTreeSet<(usize, usize)>,
}

/// Compiles claims for both families.
pub(crate) fn compile<V: Copy + Eq>(claims: &[Claim<'_, V>]) -> Compiled<V> {
    let mut compiled = Compiled {
        boxes: Vec::new(),
        portless: Vec::new(),
        overlaps: BTreeSet::new(),
    };
    for family in 0..2 {
        sweep::family(claims, family, &mut compiled);
    }
    compiled
}
