//! Matches and statements of rules, and the differences between the families.

use egret_kernel::nft::{Base, Checksum, Expression as E, MetaKey, Rule, SetType};
use nix::libc;
use std::net::IpAddr;

pub(super) const ACCEPT: i32 = 1;
pub(super) const DROP: i32 = 0;
pub(super) const GOTO: i32 = -4;

/// Differences between the families. Offsets in bytes; those of quotes count from the ICMP header.
pub(super) struct Family {
    pub suffix: char,
    pub ethertype: [u8; 2],
    pub protocol: i32,
    pub address: SetType,
    pub source: u32,
    pub destination: u32,
    pub length: u32,
    pub icmp: u8,
    pub quoted_protocol: u32,
    pub quoted_source: u32,
    pub quoted_destination: u32,
    pub quoted_transport: u32,
    pub errors: &'static [u8],
    pub queries: &'static [u8],
    pub replies: &'static [u8],
}

pub(super) const V4: Family = Family {
    suffix: '4',
    ethertype: [0x08, 0x00],
    protocol: libc::NFPROTO_IPV4,
    address: SetType::Ipv4,
    source: 12,
    destination: 16,
    length: 4,
    icmp: 1,
    quoted_protocol: 17,
    quoted_source: 20,
    quoted_destination: 24,
    quoted_transport: 28,
    errors: &[3, 4, 11, 12],
    queries: &[8, 13],
    replies: &[0, 14],
};
pub(super) const V6: Family = Family {
    suffix: '6',
    ethertype: [0x86, 0xdd],
    protocol: libc::NFPROTO_IPV6,
    address: SetType::Ipv6,
    source: 8,
    destination: 24,
    length: 16,
    icmp: 58,
    quoted_protocol: 14,
    quoted_source: 16,
    quoted_destination: 32,
    quoted_transport: 48,
    errors: &[1, 2, 3, 4],
    queries: &[128],
    replies: &[129],
};

impl Family {
    pub fn named(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    pub fn is(&self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self.suffix == '4')
    }

    /// Number of registers that an address occupies.
    pub fn width(&self) -> u32 {
        self.length / 4
    }

    pub fn load(&self, offset: u32, register: u32) -> E {
        network(offset, self.length, register)
    }
}

pub(super) fn network(offset: u32, length: u32, register: u32) -> E {
    E::Payload {
        transport: false,
        offset,
        length,
        register,
    }
}

pub(super) fn transport(offset: u32, length: u32, register: u32) -> E {
    E::Payload {
        transport: true,
        offset,
        length,
        register,
    }
}

pub(super) fn link(offset: u32, length: u32, register: u32) -> E {
    E::LoadLink {
        offset,
        length,
        register,
    }
}

pub(super) fn equals(register: u32, bytes: &[u8]) -> E {
    E::Compare {
        register,
        negated: false,
        bytes: bytes.to_vec(),
    }
}

pub(super) fn differs(register: u32, bytes: &[u8]) -> E {
    E::Compare {
        register,
        negated: true,
        bytes: bytes.to_vec(),
    }
}

pub(super) fn masked(register: u32, mask: &[u8]) -> E {
    E::Bitwise {
        register,
        mask: mask.to_vec(),
        xor: vec![0; mask.len()],
    }
}

pub(super) fn inside(set: String, register: u32) -> E {
    E::InSet {
        set,
        register,
        negated: false,
    }
}

pub(super) fn store(base: Base, offset: u32, length: u32, register: u32, checksum: Checksum) -> E {
    E::Store {
        base,
        offset,
        length,
        register,
        checksum,
    }
}

pub(super) fn ends(mut rule: Rule, counter: &str, verdict: i32) -> Rule {
    rule.push(E::Count(counter.into()));
    rule.push(E::Verdict(verdict, None));
    rule
}

pub(super) fn goes(mut rule: Rule, chain: &str) -> Rule {
    rule.push(E::Verdict(GOTO, Some(chain.into())));
    rule
}

/// Matches the frame's own type; frames of other VLANs have that of their tag.
pub(super) fn ethertype(bytes: &[u8; 2]) -> Rule {
    vec![link(12, 2, 0), equals(0, bytes)]
}

pub(super) fn protocol(number: u8) -> Rule {
    vec![E::Meta(MetaKey::L4Proto, 0), equals(0, &[number])]
}

pub(super) fn has_ports(family: &Family) -> Rule {
    vec![
        E::Meta(MetaKey::L4Proto, 0),
        inside(family.named("transport"), 0),
    ]
}

/// Matches a fragment that is not its datagram's first; in IPv6 only where the fragment header comes first.
pub(super) fn later_fragment(family: &Family) -> Rule {
    match family.suffix {
        '4' => vec![
            network(6, 2, 0),
            masked(0, &[0x1f, 0xff]),
            differs(0, &[0, 0]),
        ],
        _ => vec![
            network(6, 1, 0),
            equals(0, &[44]),
            network(42, 2, 0),
            masked(0, &[0xff, 0xf8]),
            differs(0, &[0, 0]),
        ],
    }
}

/// Matches an ICMP error that quotes the first fragment of a packet without options, of a protocol in `set`.
pub(super) fn quote(family: &Family, mut rule: Rule, set: &str) -> Rule {
    rule.extend(unfragmented_quote(family));
    rule.extend([
        transport(family.quoted_protocol, 1, 0),
        inside(family.named(set), 0),
    ]);
    rule
}

pub(super) fn quote_echo(family: &Family, mut rule: Rule, types: &str) -> Rule {
    rule.extend(unfragmented_quote(family));
    rule.extend([
        transport(family.quoted_protocol, 1, 0),
        equals(0, &[family.icmp]),
        transport(family.quoted_transport, 1, 0),
        inside(family.named(types), 0),
    ]);
    rule
}

pub(super) fn unfragmented_quote(family: &Family) -> Rule {
    match family.suffix {
        '4' => vec![
            transport(8, 1, 0),
            equals(0, &[0x45]),
            transport(14, 2, 0),
            masked(0, &[0x1f, 0xff]),
            equals(0, &[0, 0]),
        ],
        // An extension header is another protocol number, which is not in the sets.
        _ => vec![],
    }
}
