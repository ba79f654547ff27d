//! Builder of a rule, match by match in the order in which the kernel evaluates it.

mod connections;

use super::expression::address_bytes;
use super::{Expression, FibResult, Key, MetaKey, Rule, SetType};
use std::net::IpAddr;

/// Protocol number.
pub const TCP: u8 = 6;
/// Protocol number.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const TCP_FIN_SYN_RST_ACK: u8 = 0x17;
/// `IPS_DST_NAT` (`linux/netfilter/nf_conntrack_common.h`).
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// Bit of the TCP flags.
pub const TCP_SYN: u8 = 0x02;
/// `invalid`, a bit of `ct state` (`NF_CT_STATE_BIT`), like the following.
pub const STATE_INVALID: u32 = 1;
/// `established`.
pub const STATE_ESTABLISHED: u32 = 2;
/// `related`.
pub const STATE_RELATED: u32 = 4;
/// `new`.
pub const STATE_NEW: u32 = 8;
/// `untracked`.
pub const STATE_UNTRACKED: u32 = 64;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// Family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// `'4'` or `'6'`.
    pub fn digit(self) -> char {
        match self {
            Family::V4 => '4',
            Family::V6 => '6',
        }
    }

    /// `NFPROTO_*`.
    pub fn number(self) -> u32 {
        match self {
            Family::V4 => libc::NFPROTO_IPV4 as u32,
            Family::V6 => libc::NFPROTO_IPV6 as u32,
        }
    }

    /// Name of one of two sets or chains that differ only in the family.
    pub fn named(self, name: &str) -> String {
        format!("{name}{}", self.digit())
    }

    /// Type of this family's addresses in the key of a set.
    pub fn address_type(self) -> SetType {
        match self {
            Family::V4 => SetType::Ipv4,
            Family::V6 => SetType::Ipv6,
        }
    }
}

/// Input or output device of a packet.
#[derive(Clone, Copy)]
pub enum Interface {
    /// Input device.
    In,
    /// Output device.
    Out,
}

/// Source or destination of a packet.
#[derive(Clone, Copy)]
pub enum End {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

#[derive(Default)]
/// A rule under construction: matches in the order of the calls, then one statement that ends it.
pub struct Builder(Rule);

/// Starts a rule.
pub fn rule() -> Builder {
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

    /// Matches packets of this family.
    pub fn family(self, family: Family) -> Self {
        self.push(Expression::Meta(MetaKey::NfProto, 0))
            .equals(0, &[family.number() as u8])
    }

    /// Matches packets whose device has (has not) this name, at most 15 bytes.
    pub fn device(self, interface: Interface, name: &str, is: bool) -> Self {
        let key = match interface {
            Interface::In => MetaKey::IifName,
            Interface::Out => MetaKey::OifName,
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

    /// Matches packets that came by a bridge. Input devices without a kind do not match.
    pub fn comes_by_bridge(self) -> Self {
        let mut kind = [0u8; 16];
        kind[..6].copy_from_slice(b"bridge");
        self.push(Expression::Meta(MetaKey::IifKind, 0))
            .equals(0, &kind)
    }

    /// Matches packets whose input device is not in the set.
    pub fn comes_by_none_of(self, set: &str) -> Self {
        self.push(Expression::Meta(MetaKey::IifName, 0))
            .in_set(set, 0, true)
    }

    /// Matches packets whose output device is not in the set.
    pub fn leaves_by_other_than(self, set: &str) -> Self {
        self.push(Expression::Meta(MetaKey::OifName, 0))
            .in_set(set, 0, true)
    }

    /// Matches packets whose output device is in the set.
    pub fn leaves_by(self, set: &str) -> Self {
        self.push(Expression::Meta(MetaKey::OifName, 0))
            .in_set(set, 0, false)
    }

    /// Matches packets that were forwarded (`true`) or made by this node.
    pub fn forwarded(self, forwarded: bool) -> Self {
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

    /// Matches packets of this family whose address is in the set.
    pub fn address_in(self, family: Family, end: End, set: &str) -> Self {
        self.family(family)
            .address(family, end, 0)
            .in_set(set, 0, false)
    }

    /// Matches packets of this family whose address is not in the set.
    pub fn address_not_in(self, family: Family, end: End, set: &str) -> Self {
        self.family(family)
            .address(family, end, 0)
            .in_set(set, 0, true)
    }

    /// Matches packets of this address's family that have (do not have) it.
    pub fn address_is(self, end: End, address: IpAddr, is: bool) -> Self {
        let family = Family::of(address);
        let bytes = address_bytes(address);
        let this = self.family(family).address(family, end, 0);
        if is {
            this.equals(0, &bytes)
        } else {
            this.differs(0, &bytes)
        }
    }

    /// Matches an address inside a prefix whose first bytes are `bytes`.
    pub fn address_starts(self, family: Family, end: End, bytes: &[u8]) -> Self {
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

    /// Matches packets of this transport protocol.
    pub fn protocol(self, number: u8) -> Self {
        self.push(Expression::Meta(MetaKey::L4Proto, 0))
            .equals(0, &[number])
    }

    /// Matches packets whose transport protocol is (is not) in the set.
    pub fn protocol_in(self, set: &str, inside: bool) -> Self {
        self.push(Expression::Meta(MetaKey::L4Proto, 0))
            .in_set(set, 0, !inside)
    }

    /// Matches this port; the protocol must have ports.
    pub fn port(self, end: End, port: u16) -> Self {
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

    /// Matches these bytes at this offset after the start of the transport header.
    pub fn payload_is(self, offset: u32, bytes: &[u8]) -> Self {
        let length = bytes.len() as u32;
        let load = Expression::Payload {
            transport: true,
            offset,
            length,
            register: 0,
        };
        self.push(load).equals(0, bytes)
    }

    /// Matches if the TCP flags under the mask are (or are not) these.
    pub fn tcp_flags(self, mask: u8, flags: u8, are: bool) -> Self {
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

    /// Matches TCP packets other than the first of a connection.
    pub fn tcp_not_first(self) -> Self {
        self.tcp_flags(TCP_FIN_SYN_RST_ACK, TCP_SYN, false)
    }

    /// Matches if conntrack's state is one of the bits.
    pub fn state(self, bits: u32) -> Self {
        self.push(Expression::Conntrack(Key::State, None, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: bits.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .differs(0, &[0; 4])
    }

    /// Matches packets in their flow's reply (`true`) or original direction. Untracked packets match neither.
    pub fn direction(self, reply: bool) -> Self {
        self.push(Expression::Conntrack(Key::Direction, None, 0))
            .equals(0, &[u8::from(reply)])
    }

    /// Matches if the flow's source after translation is (is not) this address.
    pub fn translated_source_is(self, address: IpAddr, is: bool) -> Self {
        let family = Family::of(address);
        let this = self.translated_source(family);
        let bytes = address_bytes(address);
        if is {
            this.equals(0, &bytes)
        } else {
            this.differs(0, &bytes)
        }
    }

    /// Matches if the flow's source after translation is in the set.
    pub fn translated_source_in(self, family: Family, set: &str) -> Self {
        self.translated_source(family).in_set(set, 0, false)
    }

    /// Takes the verdict of the flow's source after translation.
    pub fn by_translated_source(self, family: Family, map: String) -> Rule {
        self.translated_source(family).map(map)
    }

    /// Matches an ICMP error about a tracked flow.
    pub fn icmp_error(self, family: Family) -> Self {
        let protocol = match family {
            Family::V4 => ICMP,
            Family::V6 => ICMP_V6,
        };
        self.family(family).protocol(protocol).state(STATE_RELATED)
    }

    /// Loads the flow's source after translation: the reply tuple's destination.
    fn translated_source(self, family: Family) -> Self {
        let key = match family {
            Family::V4 => Key::DestinationV4,
            Family::V6 => Key::DestinationV6,
        };
        self.family(family)
            .push(Expression::Conntrack(key, Some(true), 0))
    }

    /// Takes the verdict of the packet's source address.
    pub fn by_source(self, family: Family, map: String) -> Rule {
        self.family(family).address(family, End::Source, 0).map(map)
    }

    /// Takes the verdict of the flow's original source address.
    pub fn by_original_source(self, family: Family, map: String) -> Rule {
        let key = match family {
            Family::V4 => Key::SourceV4,
            Family::V6 => Key::SourceV6,
        };
        self.family(family)
            .push(Expression::Conntrack(key, Some(false), 0))
            .map(map)
    }

    /// Takes the verdict of destination, protocol and destination port.
    pub fn by_box(self, family: Family, map: String) -> Rule {
        let next = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Destination, 0)
            .push(Expression::Meta(MetaKey::L4Proto, next))
            .load_port(End::Destination, next + 1)
            .map(map)
    }

    /// Matches if source and input device together are not in the set.
    pub fn comes_by_other_than(self, family: Family, set: &str) -> Self {
        let next = if family == Family::V4 { 1 } else { 4 };
        self.address(family, End::Source, 0)
            .push(Expression::Meta(MetaKey::Iif, next))
            .in_set(set, 0, true)
    }

    /// Takes the verdict of the destination alone.
    pub fn by_destination(self, family: Family, map: String) -> Rule {
        self.family(family)
            .address(family, End::Destination, 0)
            .map(map)
    }

    /// Matches if the whole tuple is in a run-time set.
    pub fn tuple_in(self, family: Family, set: &str) -> Self {
        let width = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Source, 0)
            .address(family, End::Destination, width)
            .push(Expression::Meta(MetaKey::L4Proto, 2 * width))
            .load_port(End::Source, 2 * width + 1)
            .load_port(End::Destination, 2 * width + 2)
            .in_set(set, 0, false)
    }

    /// Adds source, destination and protocol to a run-time set that packets fill.
    pub fn remember(self, family: Family, set: String, secs: u64) -> Rule {
        let width = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Source, 0)
            .address(family, End::Destination, width)
            .push(Expression::Meta(MetaKey::L4Proto, 2 * width))
            .push(Expression::Remember {
                set,
                register: 0,
                secs,
            })
            .0
    }

    /// Matches if this egress address with the packet's destination, protocol and destination port is in a run-time
    /// set.
    pub fn destination_in(self, egress: IpAddr, set: &str) -> Self {
        let family = Family::of(egress);
        let width = if family == Family::V4 { 1 } else { 4 };
        self.push(Expression::load_address(0, egress))
            .address(family, End::Destination, width)
            .push(Expression::Meta(MetaKey::L4Proto, 2 * width))
            .load_port(End::Destination, 2 * width + 1)
            .in_set(set, 0, false)
    }

    /// Matches packets to an address of this node: `fib daddr type local`.
    pub fn destination_is_local(self) -> Self {
        self.destination_type()
            .equals(0, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// Matches packets that are not for this node itself.
    pub fn destination_is_elsewhere(self) -> Self {
        self.destination_type()
            .differs(0, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    fn destination_type(self) -> Self {
        const DESTINATION: u32 = 2;
        let result = FibResult::AddressType;
        self.push(Expression::Fib {
            flags: DESTINATION,
            result,
            present: false,
            register: 0,
        })
    }

    /// Matches if the route to the source does not use the input device.
    pub fn source_is_implausible(self) -> Self {
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

    /// Matches `part` of `whole` packets, at random. `part` is above 0 and at most `whole`.
    pub fn share(self, part: u32, whole: u32) -> Self {
        let divisor = greatest_common_divisor(part, whole);
        let (part, whole) = (part / divisor, whole / divisor);
        match (part, whole) {
            (1, 1) => self,
            (1, _) => self.push(Expression::Random(whole, 0)).equals(0, &[0; 4]),
            _ => self
                .push(Expression::Random(whole, 0))
                .push(Expression::ToNetworkOrder(0))
                .push(Expression::Less {
                    register: 0,
                    bytes: part.to_be_bytes().to_vec(),
                }),
        }
    }

    /// Adds to a named counter.
    pub fn count(self, counter: &str) -> Self {
        self.push(Expression::Count(counter.into()))
    }

    fn map(self, set: String) -> Rule {
        self.push(Expression::VerdictMap { set, register: 0 }).0
    }

    /// Matches if these bits of the mark have this value.
    pub fn mark_is(self, mask: u32, mark: u32) -> Self {
        self.push(Expression::Meta(MetaKey::Mark, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: mask.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .equals(0, &mark.to_ne_bytes())
    }

    /// Matches if these bits of the mark are in the set.
    pub fn mark_in(self, mask: u32, set: &str) -> Self {
        self.push(Expression::Meta(MetaKey::Mark, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: mask.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            // Nearly every packet has none of these bits and needs no lookup.
            .differs(0, &[0; 4])
            .in_set(set, 0, false)
    }

    /// Sets the bits of the mark under the mask.
    pub fn set_mark(self, mask: u32, mark: u32) -> Self {
        self.push(Expression::Meta(MetaKey::Mark, 0))
            .push(Expression::Bitwise {
                register: 0,
                mask: (!mask).to_ne_bytes().to_vec(),
                xor: mark.to_ne_bytes().to_vec(),
            })
            .push(Expression::SetMark(0))
    }

    /// Lowers the maximum segment size of a TCP SYN to this many bytes.
    pub fn mss_at_most(self, bytes: u16) -> Rule {
        self.push(Expression::Load(0, bytes.to_be_bytes().to_vec()))
            .push(Expression::ClampMss(0))
            .0
    }

    /// Translates the source to this address and a port of the range.
    pub fn snat(self, address: IpAddr, first: u16, last: u16) -> Rule {
        let next = 4;
        self.push(Expression::load_address(0, address))
            .push(Expression::Load(next, first.to_be_bytes().to_vec()))
            .push(Expression::Load(next + 1, last.to_be_bytes().to_vec()))
            .push(Expression::Snat {
                family: Family::of(address).number(),
                address: 0,
                ports: Some((next, next + 1)),
            })
            .0
    }

    /// Translates the source, with the same port where it is free.
    pub fn snat_to(self, address: IpAddr) -> Rule {
        self.push(Expression::load_address(0, address))
            .snat_to_register(Family::of(address))
    }

    /// Translates the source to the packet's own source, so that no later rule translates it.
    pub fn snat_to_itself(self, family: Family) -> Rule {
        self.address(family, End::Source, 0)
            .snat_to_register(family)
    }

    fn snat_to_register(self, family: Family) -> Rule {
        let snat = Expression::Snat {
            family: family.number(),
            address: 0,
            ports: None,
        };
        self.push(snat).0
    }

    /// Matches packets whose next hop is this neighbour.
    pub fn next_hop_is(self, address: IpAddr) -> Self {
        let family = Family::of(address);
        let this = self.family(family);
        this.push(Expression::NextHop(family.number(), 0))
            .equals(0, &address_bytes(address))
    }

    /// Matches if the flow's source is (is not) translated to another.
    pub fn source_is_translated(self, is: bool) -> Self {
        /// `IPS_SRC_NAT`, which a translation to the same source does not set.
        const SOURCE_TRANSLATED: u32 = 1 << 4;
        self.status(SOURCE_TRANSLATED, is)
    }

    /// Matches if the flow's destination is translated to another. Untracked packets do not match.
    pub fn destination_is_translated(self) -> Self {
        self.status(DESTINATION_TRANSLATED, true)
    }

    /// Matches if the flow began towards an address in the set and no NAT has translated its destination. A packet that
    /// goes elsewhere all the same was sent there by IPVS, whose translation conntrack does not know as one.
    pub fn began_towards(self, family: Family, set: &str) -> Self {
        let key = match family {
            Family::V4 => Key::DestinationV4,
            Family::V6 => Key::DestinationV6,
        };
        let this = self.family(family).status(DESTINATION_TRANSLATED, false);
        this.push(Expression::Conntrack(key, Some(false), 0))
            .in_set(set, 0, false)
    }

    /// Matches if a bit of the flow's status is (is not) set.
    fn status(self, bit: u32, is: bool) -> Self {
        let this =
            self.push(Expression::Conntrack(Key::Status, None, 0))
                .push(Expression::Bitwise {
                    register: 0,
                    mask: bit.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                });
        if is {
            this.differs(0, &[0; 4])
        } else {
            this.equals(0, &[0; 4])
        }
    }

    /// Ends with `notrack`.
    pub fn notrack(self) -> Rule {
        self.push(Expression::Notrack).0
    }

    /// Rejects with a TCP reset.
    pub fn reset(self) -> Rule {
        self.push(Expression::RejectReset).0
    }

    /// Rejects with ICMP(v6) administratively prohibited.
    pub fn prohibit(self) -> Rule {
        self.push(Expression::RejectProhibited).0
    }

    /// Ends with `drop`.
    pub fn drop(self) -> Rule {
        self.push(Expression::Verdict(0, None)).0
    }

    /// Ends with `accept`.
    pub fn accept(self) -> Rule {
        self.push(Expression::Verdict(1, None)).0
    }

    /// Ends with `return`.
    pub fn give_back(self) -> Rule {
        self.push(Expression::Verdict(-5, None)).0
    }

    /// Ends with `goto`.
    pub fn goto(self, chain: &str) -> Rule {
        self.push(Expression::Verdict(-4, Some(chain.into()))).0
    }

    /// Finishes a rule without a further statement.
    pub fn done(self) -> Rule {
        self.0
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}
