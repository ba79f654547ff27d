//! Expressions of nftables rules (`include/uapi/linux/netfilter/nf_tables.h`), limited to those that we use.

use crate::netlink::Attrs;
use std::net::IpAddr;

/// A 32-bit register, 0..=15. A longer key occupies the following registers too.
pub type Register = u32;

/// Register for the verdict of [`Expression::Verdict`] and verdict maps.
pub const VERDICT: u32 = 0;

const NFT_REG32_00: u32 = 8;

/// Key of `meta` (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum MetaKey {
    Mark = 3,
    Iif = 4,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
    PacketType = 19,
    IifKind = 26,
}

/// Key of `ct` (`enum nft_ct_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum Key {
    State = 0,
    Direction = 1,
    Status = 2,
    SourceV4 = 19,
    DestinationV4 = 20,
    SourceV6 = 21,
    DestinationV6 = 22,
}

/// Result of `fib` (`enum nft_fib_result`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FibResult {
    /// Index of the device.
    Oif = 1,
    /// Type of the address (`RTN_LOCAL`, ...).
    AddressType = 3,
}

/// Header that an offset counts from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// Checksum that changes with the bytes that [`Expression::Store`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing.
    None,
    /// The Internet checksum at this offset of the same header.
    At(u32),
    /// The transport's checksum, whose pseudo header contains the bytes.
    Pseudo,
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads metadata of the packet.
    Meta(MetaKey, Register),
    /// Sets the packet's mark from a register.
    SetMark(Register),
    /// Loads bytes of the network header (`true`: of the transport header).
    Payload {
        /// Transport instead of network header.
        transport: bool,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Destination.
        register: Register,
    },
    /// Loads bytes of the Ethernet header.
    LoadLink {
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Destination.
        register: Register,
    },
    /// Writes a register into the packet.
    Store {
        /// Header.
        base: Base,
        /// Offset in it, bytes.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Source.
        register: Register,
        /// Checksum to update.
        checksum: Checksum,
    },
    /// Family `netdev`: sends by the device whose index is in the register, with an unchanged Ethernet header.
    Redirect(Register),
    /// Family `netdev`: sends by a device to a neighbour that the kernel resolves. Lowers the hop limit and drops
    /// packets whose hop limit is used up.
    Forward {
        /// Register of the device's index.
        device: Register,
        /// Register of the neighbour's address.
        address: Register,
        /// `NFPROTO_IPV4` or `NFPROTO_IPV6`; packets of another family do not match.
        family: u32,
    },
    /// Family `netdev`: gives the packet the tunnel key of this object.
    Tunnel(String),
    /// Continues only if the register equals (or, negated, differs from) the bytes.
    Compare {
        /// Register.
        register: Register,
        /// Must differ instead.
        negated: bool,
        /// Bytes.
        bytes: Vec<u8>,
    },
    /// Continues only if the register is less than the bytes, compared byte by byte.
    Less {
        /// Register.
        register: Register,
        /// Bytes.
        bytes: Vec<u8>,
    },
    /// Changes a 32-bit number in the register from the host's byte order to that of the network.
    ToNetworkOrder(Register),
    /// register = (register & mask) ^ xor.
    Bitwise {
        /// Register, in and out.
        register: Register,
        /// Mask.
        mask: Vec<u8>,
        /// Xor.
        xor: Vec<u8>,
    },
    /// Continues only if the key is in the set (not in it: negated).
    InSet {
        /// Name of the set.
        set: String,
        /// Register of the key.
        register: Register,
        /// Must not be in the set.
        negated: bool,
    },
    /// Takes the verdict of the key in the map, if any.
    VerdictMap {
        /// Name of the map.
        set: String,
        /// Register of the key.
        register: Register,
    },
    /// Adds the key to a run-time set, or renews its timeout; continues only if there is room.
    Remember {
        /// Name of the set.
        set: String,
        /// Register of the key.
        register: Register,
        /// Timeout in seconds.
        secs: u64,
    },
    /// Counts the packet's connection under the key of a set that packets fill; continues only if the key has more than
    /// `over` connections that have not ended (`connlimit`), and if there is room in the set.
    CountConnections {
        /// Name of the set.
        set: String,
        /// Register of the key.
        register: Register,
        /// Most connections of one key that do not match.
        over: u32,
    },
    /// Loads constant bytes.
    Load(Register, Vec<u8>),
    /// Ends the rule: accept (1), drop (0), return (-5), jump (-3) and goto (-4) to a chain.
    Verdict(i32, Option<String>),
    /// Loads a value from conntrack; the flag selects the reply direction of tuple keys (`None`: no direction).
    Conntrack(Key, Option<bool>, Register),
    /// Counts packets and bytes in the named counter.
    Count(String),
    /// Counts packets and bytes in the key's counter in the map; continues only if there is one.
    CountBy {
        /// Name of the map.
        set: String,
        /// Register of the key.
        register: Register,
    },
    /// Refuses towards the sender, by a TCP reset.
    RejectReset,
    /// Refuses towards the sender, by ICMP administratively prohibited.
    RejectProhibited,
    /// Disables tracking of the packet.
    Notrack,
    /// Source translation to one address.
    Snat {
        /// Family (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
        family: u32,
        /// Register of the address.
        address: Register,
        /// Registers of the first and last port; without them the port stays the same where possible.
        ports: Option<(Register, Register)>,
    },
    /// Loads the address of the packet's next hop (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
    NextHop(u32, Register),
    /// Lowers the MSS option of TCP to the 16 bits in the register.
    ClampMss(Register),
    /// Loads a random number below the modulus.
    Random(u32, Register),
    /// Looks up the packet's addresses in the routing table.
    Fib {
        /// `NFTA_FIB_F_*`: 1 source, 2 destination, 8 input device.
        flags: u32,
        /// Result of the lookup; with `present`, 0 or 1 only.
        result: FibResult,
        /// Load only whether there is a result.
        present: bool,
        /// Destination.
        register: Register,
    },
}

/// One rule: expressions in their order.
pub type Rule = Vec<Expression>;

impl Expression {
    /// Loads an address as constant bytes.
    pub fn load_address(register: Register, address: IpAddr) -> Self {
        Expression::Load(register, address_bytes(address))
    }

    /// The expression as an attribute of a rule (`NFTA_RULE_EXPRESSIONS`).
    pub fn encode(&self) -> Attrs {
        let (name, data) = self.data();
        let element = Attrs::default().text(1, name).nest(2, data);
        Attrs::default().nest(1, element)
    }

    fn data(&self) -> (&'static str, Attrs) {
        let a = Attrs::default();
        match self {
            Expression::Meta(key, to) => ("meta", a.be32(1, reg(*to)).be32(2, *key as u32)),
            Expression::SetMark(from) => {
                ("meta", a.be32(2, MetaKey::Mark as u32).be32(3, reg(*from)))
            }
            Expression::Payload {
                transport,
                offset,
                length,
                register,
            } => {
                let base = if *transport { 2 } else { 1 };
                let a = a.be32(1, reg(*register)).be32(2, base);
                ("payload", a.be32(3, *offset).be32(4, *length))
            }
            Expression::LoadLink {
                offset,
                length,
                register,
            } => {
                let a = a.be32(1, reg(*register)).be32(2, Base::Link as u32);
                ("payload", a.be32(3, *offset).be32(4, *length))
            }
            Expression::Store {
                base,
                offset,
                length,
                register,
                checksum,
            } => {
                let a = a.be32(2, *base as u32).be32(3, *offset).be32(4, *length);
                let a = a.be32(5, reg(*register));
                let a = match checksum {
                    Checksum::None => a,
                    Checksum::At(offset) => a.be32(6, 1).be32(7, *offset),
                    Checksum::Pseudo => a.be32(6, 0).be32(7, 0).be32(8, 1),
                };
                ("payload", a)
            }
            Expression::Redirect(device) => ("fwd", a.be32(1, reg(*device))),
            Expression::Forward {
                device,
                address,
                family,
            } => {
                let a = a.be32(1, reg(*device)).be32(2, reg(*address));
                ("fwd", a.be32(3, *family))
            }
            // NFT_OBJECT_TUNNEL
            Expression::Tunnel(name) => ("objref", a.be32(1, 6).text(2, name)),
            Expression::Compare {
                register,
                negated,
                bytes,
            } => {
                let a = a.be32(1, reg(*register)).be32(2, u32::from(*negated));
                ("cmp", a.nest(3, value(bytes)))
            }
            Expression::Less { register, bytes } => {
                const NFT_CMP_LT: u32 = 2;
                let a = a.be32(1, reg(*register)).be32(2, NFT_CMP_LT);
                ("cmp", a.nest(3, value(bytes)))
            }
            Expression::ToNetworkOrder(register) => {
                const NFT_BYTEORDER_HTON: u32 = 1;
                let a = a.be32(1, reg(*register)).be32(2, reg(*register));
                let a = a.be32(3, NFT_BYTEORDER_HTON).be32(4, 4).be32(5, 4);
                ("byteorder", a)
            }
            Expression::Bitwise {
                register,
                mask,
                xor,
            } => {
                let a = a.be32(1, reg(*register)).be32(2, reg(*register));
                let a = a.be32(3, mask.len() as u32);
                ("bitwise", a.nest(4, value(mask)).nest(5, value(xor)))
            }
            Expression::InSet {
                set,
                register,
                negated,
            } => {
                let a = a.text(1, set).be32(2, reg(*register));
                ("lookup", if *negated { a.be32(5, 1) } else { a })
            }
            Expression::VerdictMap { set, register } => (
                "lookup",
                a.text(1, set).be32(2, reg(*register)).be32(3, VERDICT),
            ),
            Expression::Remember {
                set,
                register,
                secs,
            } => {
                const UPDATE: u32 = 1;
                let a = a.text(1, set).be32(3, UPDATE).be32(4, reg(*register));
                ("dynset", a.be64(6, secs * 1000))
            }
            Expression::CountConnections {
                set,
                register,
                over,
            } => {
                const ADD: u32 = 0;
                const NFT_CONNLIMIT_F_INV: u32 = 1;
                let limit = Attrs::default().be32(1, *over).be32(2, NFT_CONNLIMIT_F_INV);
                let counter = Attrs::default().text(1, "connlimit").nest(2, limit);
                let a = a.text(1, set).be32(3, ADD).be32(4, reg(*register));
                ("dynset", a.nest(7, counter))
            }
            Expression::Load(to, bytes) => ("immediate", a.be32(1, reg(*to)).nest(2, value(bytes))),
            Expression::Verdict(code, chain) => {
                let data = Attrs::default().nest(2, verdict(*code, chain.as_deref()));
                ("immediate", a.be32(1, VERDICT).nest(2, data))
            }
            Expression::Conntrack(key, reply, to) => {
                let a = a.be32(1, reg(*to)).be32(2, *key as u32);
                (
                    "ct",
                    reply.map_or(a.clone(), |reply| a.u8(3, u8::from(reply))),
                )
            }
            Expression::Count(name) => ("objref", a.be32(1, 1).text(2, name)),
            Expression::CountBy { set, register } => {
                ("objref", a.be32(3, reg(*register)).text(4, set))
            }
            Expression::RejectReset => ("reject", a.be32(1, 1).u8(2, 0)),
            Expression::RejectProhibited => ("reject", a.be32(1, 2).u8(2, 3)),
            Expression::Notrack => ("notrack", a),
            Expression::Snat {
                family,
                address,
                ports,
            } => {
                let a = a.be32(1, 0).be32(2, *family).be32(3, reg(*address));
                let a = match ports {
                    Some((first, last)) => a.be32(5, reg(*first)).be32(6, reg(*last)),
                    None => a,
                };
                ("nat", a)
            }
            Expression::NextHop(family, to) => {
                // NFT_RT_NEXTHOP4, NFT_RT_NEXTHOP6
                let key = if *family == libc::NFPROTO_IPV4 as u32 {
                    1
                } else {
                    2
                };
                ("rt", a.be32(1, reg(*to)).be32(2, key))
            }
            Expression::ClampMss(from) => {
                // exthdr: type 2 (MSS), offset 2, length 2, operation 1 (TCP options), written from a register.
                let a = a.u8(2, 2).be32(3, 2).be32(4, 2).be32(6, 1);
                ("exthdr", a.be32(7, reg(*from)))
            }
            Expression::Random(modulus, to) => (
                "numgen",
                a.be32(1, reg(*to)).be32(2, *modulus).be32(3, 1).be32(4, 0),
            ),
            Expression::Fib {
                flags,
                result,
                present,
                register,
            } => {
                let flags = flags | if *present { 0x20 } else { 0 };
                (
                    "fib",
                    a.be32(1, reg(*register))
                        .be32(2, *result as u32)
                        .be32(3, flags),
                )
            }
        }
    }
}

/// Bytes of an address in network order.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `NFTA_DATA_VALUE`.
pub(super) fn value(bytes: &[u8]) -> Attrs {
    Attrs::default().bytes(1, bytes)
}

/// Content of `NFTA_DATA_VERDICT`.
pub(super) fn verdict(code: i32, chain: Option<&str>) -> Attrs {
    let attrs = Attrs::default().be32(1, code as u32);
    match chain {
        Some(chain) => attrs.text(2, chain),
        None => attrs,
    }
}

fn reg(register: Register) -> u32 {
    NFT_REG32_00 + register
}
