//! Destinations of the policies that one pod has, compiled to disjoint boxes of address, protocol and port, with the
//! overlap rule and `except` already resolved: the kernel refuses overlapping intervals and chooses nothing.
//!
//! A sweep over the address line keeps the set of claims that cover the current piece; within a piece the ports of each
//! protocol are cut in the same way. Cost: claims times the depth at which they nest.

mod ports;
mod sweep;

pub(crate) use ports::Class;

use crate::model::Destination;
use crate::resolve::Precedence;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What one policy claims. `V` is the verdict; `None` is a claim that shadows those it wins over and yields no box.
pub(crate) struct Claim<'a, V> {
    /// Compares this claim with another, given the prefix lengths by which they cover a packet.
    pub precedence: Box<dyn Fn(u8) -> Precedence + 'a>,
    /// `None`: everything.
    pub destinations: Option<&'a [Destination]>,
    /// For IPv4 and IPv6.
    pub verdicts: [Option<V>; 2],
}

/// One box.
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
    /// Where protocols without ports are claimed. Disjoint, sorted.
    pub portless: Vec<(IpAddr, IpAddr)>,
    /// (winner, loser) by position in the claims, wherever two meet.
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
