//! A rule, built match by match in the order in which the kernel evaluates it.

use super::names::Family;
use crate::nft::{Expression, FibResult, Key, MetaKey, Rule};
use std::net::IpAddr;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// Bits of `ct state` (`NF_CT_STATE_BIT`).
pub(super) const STATE_INVALID: u32 = 1;
pub(super) const STATE_ESTABLISHED: u32 = 2;
pub(super) const STATE_RELATED: u32 = 4;
pub(super) const STATE_NEW: u32 = 8;
pub(super) const STATE_UNTRACKED: u32 = 64;

/// Which device a packet came by or leaves by.
#[derive(Clone, Copy)]
pub(super) enum Way {
    In,
    Out,
}

/// Which end of a packet.
#[derive(Clone, Copy)]
pub(super) enum End {
    Source,
    Destination,
}

#[derive(Default)]
pub(super) struct Builder(Rule);

pub(super) fn rule() -> Builder {
    Builder::default()
}

impl Builder {
    fn push(mut self, expression: Expression) -> Self {
        self.0.push(expression);
        self
    }

    fn equals(self, register: u32, bytes: &[u8]) -> Self {
        self.push(Expression::Compare {
            register,
            negated: false,
            bytes: bytes.to_vec(),
        })
    }

    fn differs(self, register: u32, bytes: &[u8]) -> Self {
        self.push(Expression::Compare {
            register,
            negated: true,
            bytes: bytes.to_vec(),
        })
    }

    pub(super) fn family(self, family: Family) -> Self {
        let number = match family {
            Family::V4 => libc::NFPROTO_IPV4,
            Family::V6 => libc::NFPROTO_IPV6,
        };
        self.push(Expression::Meta(MetaKey::NfProto, 0))
            .equals(0, &[number as u8])
    }

    pub(super) fn device(self, way: Way, name: &str, is: bool) -> Self {
        let key = match way {
            Way::In => MetaKey::IifName,
            Way::Out => MetaKey::OifName,
        };
        let mut bytes = [0u8; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let this = self.push(Expression::Meta(key, 0));
        if is {
            this.equals(0, &bytes)
        } else {
            this.differs(0, &bytes)
        }
    }

    /// The packet leaves by a device that is not in the set.
    pub(super) fn leaves_by_other_than(self, set: &str) -> Self {
        self.push(Expression::Meta(MetaKey::OifName, 0))
            .in_set(set, 0, true)
    }

    /// The packet was forwarded (`true`) or made by this node.
    pub(super) fn forwarded(self, forwarded: bool) -> Self {
        let this = self.push(Expression::Meta(MetaKey::Iif, 0));
        if forwarded {
            this.differs(0, &[0; 4])
        } else {
            this.equals(0, &[0; 4])
        }
    }

    fn address(self, family: Family, end: End, register: u32) -> Self {
        let (offset, length) = match (family, end) {
            (Family::V4, End::Source) => (12, 4),
            (Family::V4, End::Destination) => (16, 4),
            (Family::V6, End::Source) => (8, 16),
            (Family::V6, End::Destination) => (24, 16),
        };
        self.push(Expression::Payload {
            transport: false,
            offset,
            length,
            register,
        })
    }

    fn in_set(self, set: &str, register: u32, negated: bool) -> Self {
        self.push(Expression::InSet {
            set: set.into(),
            register,
            negated,
        })
    }

    pub(super) fn address_in(self, family: Family, end: End, set: &str) -> Self {
        self.family(family)
            .address(family, end, 0)
            .in_set(set, 0, false)
    }

    pub(super) fn address_not_in(self, family: Family, end: End, set: &str) -> Self {
        self.family(family)
            .address(family, end, 0)
            .in_set(set, 0, true)
    }

    pub(super) fn address_is(self, end: End, address: IpAddr, is: bool) -> Self {
        let family = Family::of(address);
        let bytes = crate::nft::Expression::load_address(0, address);
        let Expression::Load(_, bytes) = bytes else {
            unreachable!("just built as a load")
        };
        let this = self.family(family).address(family, end, 0);
        if is {
            this.equals(0, &bytes)
        } else {
            this.differs(0, &bytes)
        }
    }

    /// The address is inside a prefix whose first `bytes` are these.
    pub(super) fn address_starts(self, family: Family, end: End, bytes: &[u8]) -> Self {
        let offset = match (family, end) {
            (Family::V4, End::Source) => 12,
            (Family::V4, End::Destination) => 16,
            (Family::V6, End::Source) => 8,
            (Family::V6, End::Destination) => 24,
        };
        let length = bytes.len() as u32;
        let load = Expression::Payload {
            transport: false,
            offset,
            length,
            register: 0,
        };
        self.family(family).push(load).equals(0, bytes)
    }

    pub(super) fn protocol(self, number: u8) -> Self {
        self.push(Expression::Meta(MetaKey::L4Proto, 0))
            .equals(0, &[number])
    }

    pub(super) fn protocol_in(self, set: &str, inside: bool) -> Self {
        self.push(Expression::Meta(MetaKey::L4Proto, 0))
            .in_set(set, 0, !inside)
    }

    pub(super) fn port(self, end: End, port: u16) -> Self {
        self.load_port(end, 0).equals(0, &port.to_be_bytes())
    }

    fn load_port(self, end: End, register: u32) -> Self {
        let offset = match end {
            End::Source => 0,
            End::Destination => 2,
        };
        self.push(Expression::Payload {
            transport: true,
            offset,
            length: 2,
            register,
        })
    }

    /// The TCP flags under the mask are (or are not) these.
    pub(super) fn tcp_flags(self, mask: u8, flags: u8, are: bool) -> Self {
        let load = Expression::Payload {
            transport: true,
            offset: 13,
            length: 1,
            register: 0,
        };
        let this = self.protocol(TCP).push(load).push(Expression::Bitwise {
            register: 0,
            mask: vec![mask],
            xor: vec![0],
        });
        if are {
            this.equals(0, &[flags])
        } else {
            this.differs(0, &[flags])
        }
    }

    /// Conntrack's state is one of the bits.
    pub(super) fn state(self, bits: u32) -> Self {
        self.push(Expression::Conntrack(Key::State, None, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: bits.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .differs(0, &[0; 4])
    }

    /// The packet goes in its flow's reply (`true`) or original direction. Untracked packets match neither.
    pub(super) fn direction(self, reply: bool) -> Self {
        self.push(Expression::Conntrack(Key::Direction, None, 0))
            .equals(0, &[u8::from(reply)])
    }

    /// The source that the flow has after translation is (is not) this address.
    pub(super) fn translated_source_is(self, address: IpAddr, is: bool) -> Self {
        let family = Family::of(address);
        let this = self.translated_source(family);
        let Expression::Load(_, bytes) = Expression::load_address(0, address) else {
            unreachable!("just built as a load")
        };
        if is {
            this.equals(0, &bytes)
        } else {
            this.differs(0, &bytes)
        }
    }

    pub(super) fn translated_source_in(self, family: Family, set: &str) -> Self {
        self.translated_source(family).in_set(set, 0, false)
    }

    /// What the other end answers to: the reply tuple's destination.
    fn translated_source(self, family: Family) -> Self {
        let key = match family {
            Family::V4 => Key::DestinationV4,
            Family::V6 => Key::DestinationV6,
        };
        self.family(family)
            .push(Expression::Conntrack(key, Some(true), 0))
    }

    /// The packet's source address decides.
    pub(super) fn by_source(self, family: Family, map: String) -> Rule {
        self.family(family).address(family, End::Source, 0).map(map)
    }

    /// The flow's original source address decides.
    pub(super) fn by_original_source(self, family: Family, map: String) -> Rule {
        let key = match family {
            Family::V4 => Key::SourceV4,
            Family::V6 => Key::SourceV6,
        };
        self.family(family)
            .push(Expression::Conntrack(key, Some(false), 0))
            .map(map)
    }

    /// Destination, protocol and destination port decide.
    pub(super) fn by_box(self, family: Family, map: String) -> Rule {
        let next = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Destination, 0)
            .push(Expression::Meta(MetaKey::L4Proto, next))
            .load_port(End::Destination, next + 1)
            .map(map)
    }

    /// Destination alone decides.
    pub(super) fn by_destination(self, family: Family, map: String) -> Rule {
        self.family(family)
            .address(family, End::Destination, 0)
            .map(map)
    }

    /// The whole tuple is in a run-time set.
    pub(super) fn tuple_in(self, family: Family, set: &str) -> Self {
        let width = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Source, 0)
            .address(family, End::Destination, width)
            .push(Expression::Meta(MetaKey::L4Proto, 2 * width))
            .load_port(End::Source, 2 * width + 1)
            .load_port(End::Destination, 2 * width + 2)
            .in_set(set, 0, false)
    }

    /// This egress address with the packet's destination, protocol and destination port is in a run-time set.
    pub(super) fn destination_in(self, egress: IpAddr, set: &str) -> Self {
        let family = Family::of(egress);
        let width = if family == Family::V4 { 1 } else { 4 };
        self.push(Expression::load_address(0, egress))
            .address(family, End::Destination, width)
            .push(Expression::Meta(MetaKey::L4Proto, 2 * width))
            .load_port(End::Destination, 2 * width + 1)
            .in_set(set, 0, false)
    }

    /// What the routing table says of an address: `fib daddr type local`.
    pub(super) fn destination_is_local(self) -> Self {
        const DESTINATION: u32 = 2;
        let result = FibResult::AddressType;
        self.push(Expression::Fib {
            flags: DESTINATION,
            result,
            present: false,
            register: 0,
        })
        .equals(0, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// The route back to the source does not lead to the device that the packet came by.
    pub(super) fn source_is_implausible(self) -> Self {
        const SOURCE_AND_INPUT: u32 = 1 | 8;
        let result = FibResult::Oif;
        self.push(Expression::Fib {
            flags: SOURCE_AND_INPUT,
            result,
            present: true,
            register: 0,
        })
        .equals(0, &[0; 4])
    }

    /// One of `modulus` new flows, at random.
    pub(super) fn one_of(self, modulus: u32) -> Self {
        self.push(Expression::Random(modulus, 0)).equals(0, &[0; 4])
    }

    pub(super) fn count(self, counter: &str) -> Self {
        self.push(Expression::Count(counter.into()))
    }

    fn map(self, set: String) -> Rule {
        self.push(Expression::VerdictMap { set, register: 0 }).0
    }

    /// These bits of the mark are exactly so.
    pub(super) fn mark_is(self, mask: u32, mark: u32) -> Self {
        self.push(Expression::Meta(MetaKey::Mark, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: mask.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .equals(0, &mark.to_ne_bytes())
    }

    pub(super) fn set_mark(self, mask: u32, mark: u32) -> Self {
        self.push(Expression::Meta(MetaKey::Mark, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: (!mask).to_ne_bytes().to_vec(),
                xor: mark.to_ne_bytes().to_vec(),
            })
            .push(Expression::SetMark(0))
    }

    pub(super) fn mss_at_most(self, bytes: u16) -> Rule {
        self.push(Expression::Load(0, bytes.to_be_bytes().to_vec()))
            .push(Expression::ClampMss(0))
            .0
    }

    pub(super) fn snat(self, address: IpAddr, first: u16, last: u16) -> Rule {
        let (family, next) = match address {
            IpAddr::V4(_) => (libc::NFPROTO_IPV4, 4),
            IpAddr::V6(_) => (libc::NFPROTO_IPV6, 4),
        };
        self.push(Expression::load_address(0, address))
            .push(Expression::Load(next, first.to_be_bytes().to_vec()))
            .push(Expression::Load(next + 1, last.to_be_bytes().to_vec()))
            .push(Expression::Snat {
                family: family as u32,
                registers: (0, next, next + 1),
            })
            .0
    }

    pub(super) fn notrack(self) -> Rule {
        self.push(Expression::Notrack).0
    }

    pub(super) fn reset(self) -> Rule {
        self.push(Expression::RejectReset).0
    }

    pub(super) fn prohibit(self) -> Rule {
        self.push(Expression::RejectProhibited).0
    }

    pub(super) fn drop(self) -> Rule {
        self.push(Expression::Verdict(0, None)).0
    }

    pub(super) fn accept(self) -> Rule {
        self.push(Expression::Verdict(1, None)).0
    }

    pub(super) fn give_back(self) -> Rule {
        self.push(Expression::Verdict(-5, None)).0
    }

    pub(super) fn goto(self, chain: &str) -> Rule {
        self.push(Expression::Verdict(-4, Some(chain.into()))).0
    }

    /// A rule that only does what was pushed.
    pub(super) fn done(self) -> Rule {
        self.0
    }
}
