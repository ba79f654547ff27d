//! Parses expressions of nftables into conditions and an action (`linux/netfilter/nf_tables.h`).

use super::nft::{IP, IP6, Values, be32, string, values};
use super::xtables;
use crate::legacy::{host_u32, text};
use egret_core::obstacle::firewall::{Action, Condition, Rule, Test};
use egret_kernel::netlink::attributes;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Content of a register.
#[derive(Clone, Debug, PartialEq)]
enum Loaded {
    Input,
    Output,
    InputIndex,
    OutputIndex,
    Family,
    Protocol,
    Source {
        is_v4: bool,
    },
    Destination {
        is_v4: bool,
    },
    Port,
    State,
    /// Status bits of a connection: translated at its destination, and so on.
    Status,
    Mark,
    /// The route to the source, by any device or by the input device.
    Route {
        loose: bool,
        /// The register contains only whether there is a route, as 0 or 1.
        is_flag: bool,
    },
    Other(String),
}

/// A mask, and the bits that are inverted after it.
type Bits = (Vec<u8>, Vec<u8>);

struct Reader {
    registers: BTreeMap<u32, (Loaded, Option<Bits>)>,
    conditions: Vec<Condition>,
    action: Action,
}

/// Parses a rule from its list of expressions.
pub(super) fn read(list: &[u8], handle: u64) -> Rule {
    let mut reader = Reader {
        registers: BTreeMap::new(),
        conditions: Vec::new(),
        action: Action::Continue,
    };
    for (_, expression) in attributes(list) {
        let of = values(expression);
        let data = values(of.get(&2).copied().unwrap_or(&[]));
        if reader.take(&string(&of, 1), &data).is_none() {
            reader.other(&string(&of, 1));
        }
    }
    Rule {
        conditions: reader.conditions,
        action: reader.action,
        handle,
    }
}

impl Reader {
    fn other(&mut self, what: &str) {
        self.conditions
            .push(Test::Other(format!("[{what}]")).into());
    }

    /// Parses one expression; `None`: it is not understood and may end the rule.
    fn take(&mut self, name: &str, data: &Values<'_>) -> Option<()> {
        match name {
            "meta" => self.meta(data)?,
            "payload" if data.contains_key(&1) => self.load(data, 1, payload(data))?,
            "ct" if data.contains_key(&1) => self.load(data, 1, conntrack(data))?,
            "fib" => self.load(data, 1, route(data))?,
            "bitwise" => self.bitwise(data)?,
            "cmp" => self.compare(data)?,
            "range" => self.range(data)?,
            "lookup" => {
                let loaded = self.registers.get(&register(be32(data, 2)?));
                let what = loaded.map_or("?".into(), |(loaded, _)| format!("{loaded:?}"));
                let set = string(data, 1);
                match data.contains_key(&3) {
                    // A verdict map, or a map of other values.
                    true if be32(data, 3) == Some(0) => {
                        self.action = Action::Other(format!("vmap @{set}"))
                    }
                    true => self.load(data, 3, Loaded::Other(format!("@{set}")))?,
                    false => self.other(&format!("{what} @{set}").to_lowercase()),
                }
            }
            "immediate" => match be32(data, 1)? {
                0 => self.action = verdict(data)?,
                _ => self.load(data, 1, Loaded::Other("constant".into()))?,
            },
            "reject" => self.action = Action::Reject,
            "queue" | "tproxy" | "synproxy" | "fwd" => self.action = Action::Other(name.into()),
            // The rule continues after these, whatever they do.
            "counter" | "log" | "objref" | "notrack" | "payload" | "ct" | "dynset" | "last"
            | "flow_offload" | "dup" => {}
            "exthdr" if !data.contains_key(&1) => {}
            "match" => {
                let (what, revision) = (string(data, 1), be32(data, 2)? as u8);
                let info = data.get(&3).copied().unwrap_or(&[]);
                self.conditions
                    .extend(xtables::matched(&what, revision, info));
            }
            "target" => {
                let (what, revision) = (string(data, 1), be32(data, 2)? as u8);
                let info = data.get(&3).copied().unwrap_or(&[]);
                self.action = xtables::target(&what, revision, info);
            }
            // These load other values; comparing one is a condition that is not understood.
            "rt" | "exthdr" | "hash" | "numgen" | "socket" | "osf" | "tunnel" | "xfrm"
            | "inner" => {
                self.load(data, 1, Loaded::Other(name.into()))?;
            }
            _ => return None,
        }
        Some(())
    }

    fn load(&mut self, data: &Values<'_>, attribute: u16, what: Loaded) -> Option<()> {
        let to = register(be32(data, attribute)?);
        self.registers.insert(to, (what, None));
        Some(())
    }

    fn meta(&mut self, data: &Values<'_>) -> Option<()> {
        const MARK: u32 = 3;
        let key = be32(data, 2)?;
        if data.contains_key(&1) {
            let what = match key {
                MARK => Loaded::Mark,
                4 => Loaded::InputIndex,
                5 => Loaded::OutputIndex,
                6 => Loaded::Input,
                7 => Loaded::Output,
                15 => Loaded::Family,
                16 => Loaded::Protocol,
                other => Loaded::Other(format!("meta {other}")),
            };
            return self.load(data, 1, what);
        }
        if key == MARK {
            // mark = (mark & mask) ^ bits, or another operation.
            let from = self.registers.get(&register(be32(data, 3)?));
            let bits = match from {
                Some((Loaded::Mark, Some((mask, xor)))) => host_u32(mask)
                    .zip(host_u32(xor))
                    .map(|(mask, xor)| !mask | xor),
                _ => None,
            };
            self.action = Action::Mark(bits.unwrap_or(u32::MAX));
        }
        Some(())
    }

    fn bitwise(&mut self, data: &Values<'_>) -> Option<()> {
        let (from, to) = (register(be32(data, 1)?), register(be32(data, 2)?));
        let (loaded, before) = self.registers.get(&from).cloned()?;
        let changed = match (before, constant(data, 4), constant(data, 5)) {
            (None, Some(mask), Some(xor)) => (loaded, Some((mask, xor))),
            _ => (Loaded::Other("bits".into()), None),
        };
        self.registers.insert(to, changed);
        Some(())
    }

    fn compare(&mut self, data: &Values<'_>) -> Option<()> {
        let (operation, bytes) = (be32(data, 2)?, constant(data, 3)?);
        let (loaded, masked) = self.registers.get(&register(be32(data, 1)?)).cloned()?;
        if masked
            .as_ref()
            .is_some_and(|(_, xor)| xor.iter().any(|byte| *byte != 0))
        {
            self.other(&format!("{loaded:?}").to_lowercase());
            return Some(());
        }
        let mask = masked.map(|(mask, _)| mask);
        let test = match operation {
            EQUAL | UNEQUAL => test(&loaded, &bytes, mask.as_deref(), operation == UNEQUAL),
            _ if loaded == Loaded::Port && mask.is_none() => bound(operation, &bytes),
            _ => None,
        };
        match test {
            Some(condition) => self.conditions.push(condition),
            None => self.other(&format!("{loaded:?}").to_lowercase()),
        }
        Some(())
    }

    fn range(&mut self, data: &Values<'_>) -> Option<()> {
        let negated = be32(data, 2)? == UNEQUAL;
        let (loaded, mask) = self.registers.get(&register(be32(data, 1)?)).cloned()?;
        let (first, last) = (be16(&constant(data, 3)?), be16(&constant(data, 4)?));
        match (loaded, mask, first.zip(last)) {
            (Loaded::Port, None, Some((first, last))) => self.conditions.push(Condition {
                test: Test::DestinationPort(first, last),
                negated,
            }),
            (loaded, ..) => self.other(&format!("{loaded:?}").to_lowercase()),
        }
        Some(())
    }
}

const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// Registers of 16 bytes have numbers of their own, 1 to 4.
fn register(number: u32) -> u32 {
    match number {
        1..=4 => 4 + 4 * number,
        number => number,
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// `NFTA_DATA_VALUE` in an attribute.
fn constant(data: &Values<'_>, kind: u16) -> Option<Vec<u8>> {
    let (_, value) = attributes(data.get(&kind)?).find(|(kind, _)| *kind == 1)?;
    Some(value.to_vec())
}

fn verdict(data: &Values<'_>) -> Option<Action> {
    let (_, verdict) = attributes(data.get(&2)?).find(|(kind, _)| *kind == 2)?;
    let verdict = values(verdict);
    let chain = || string(&verdict, 2);
    Some(match be32(&verdict, 1)? as i32 {
        0 => Action::Drop,
        1 => Action::Accept,
        -1 | -2 => Action::Continue,
        -3 => Action::Jump(chain()),
        -4 => Action::Goto(chain()),
        -5 => Action::Return,
        code => Action::Other(format!("verdict {code}")),
    })
}

/// Parses a load from the network and transport headers; an address may be loaded partially.
fn payload(data: &Values<'_>) -> Loaded {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let field = |kind| be32(data, kind).unwrap_or(u32::MAX);
    match (field(2), field(3), field(4)) {
        (NETWORK, 9, 1) => Loaded::Protocol,
        (NETWORK, 12, 1..=4) => Loaded::Source { is_v4: true },
        (NETWORK, 8, 1..=16) => Loaded::Source { is_v4: false },
        (NETWORK, 16, 1..=4) => Loaded::Destination { is_v4: true },
        (NETWORK, 24, 1..=16) => Loaded::Destination { is_v4: false },
        (TRANSPORT, 2, 2) => Loaded::Port,
        (base, offset, length) => Loaded::Other(format!("header {base} {offset} {length}")),
    }
}

fn conntrack(data: &Values<'_>) -> Loaded {
    match be32(data, 2) {
        Some(0) => Loaded::State,
        Some(2) => Loaded::Status,
        key => Loaded::Other(format!("ct {}", key.unwrap_or(u32::MAX))),
    }
}

/// `enum nft_fib_flags`: address of the lookup, and its further keys.
fn route(data: &Values<'_>) -> Loaded {
    const SOURCE: u32 = 1;
    const MARK: u32 = 4;
    const INPUT: u32 = 8;
    const PRESENT: u32 = 32;
    /// The device of the route, by index or name.
    const DEVICE: [u32; 2] = [1, 2];
    let (result, flags) = (be32(data, 2), be32(data, 3).unwrap_or(0));
    let is_reverse = flags & SOURCE != 0 && flags & !(SOURCE | MARK | INPUT | PRESENT) == 0;
    match result {
        Some(result) if is_reverse && DEVICE.contains(&result) => Loaded::Route {
            loose: flags & INPUT == 0,
            is_flag: flags & PRESENT != 0,
        },
        _ => Loaded::Other("fib".into()),
    }
}

/// Condition of an (in)equality comparison; `None`: not understood.
fn test(loaded: &Loaded, bytes: &[u8], mask: Option<&[u8]>, negated: bool) -> Option<Condition> {
    /// `IPS_DST_NAT`.
    const TRANSLATED: u32 = 1 << 5;
    let plain = |test| mask.is_none().then_some(Condition { test, negated });
    match loaded {
        Loaded::Input => plain(Test::Input(device(bytes))),
        Loaded::Output => plain(Test::Output(device(bytes))),
        Loaded::InputIndex => plain(Test::Input(by_index(bytes)?)),
        Loaded::OutputIndex => plain(Test::Output(by_index(bytes)?)),
        Loaded::Family => match bytes {
            [IP] => plain(Test::IsV4),
            [IP6] => mask.is_none().then_some(Condition {
                test: Test::IsV4,
                negated: !negated,
            }),
            _ => None,
        },
        Loaded::Protocol => plain(Test::Protocol(*bytes.first()?)),
        Loaded::Port => {
            let port = be16(bytes)?;
            plain(Test::DestinationPort(port, port))
        }
        Loaded::Source { is_v4 } => network(*is_v4, bytes, mask).map(|net| Condition {
            test: Test::Source(net),
            negated,
        }),
        Loaded::Destination { is_v4 } => network(*is_v4, bytes, mask).map(|net| Condition {
            test: Test::Destination(net),
            negated,
        }),
        Loaded::State | Loaded::Status => {
            let bits = match mask {
                // (state & mask) != 0
                Some(mask) if host_u32(bytes)? == 0 => (host_u32(mask)?, !negated),
                None => (host_u32(bytes)?, negated),
                Some(_) => return None,
            };
            let test = match (loaded, bits.0) {
                (Loaded::State, bits) => Test::State(bits),
                (_, TRANSLATED) => Test::Never("ct status dnat".into()),
                _ => return None,
            };
            Some(Condition {
                test,
                negated: bits.1,
            })
        }
        Loaded::Mark => {
            let mask = mask.map_or(Some(u32::MAX), host_u32)?;
            Some(Condition {
                test: Test::Mark {
                    value: host_u32(bytes)?,
                    mask,
                },
                negated,
            })
        }
        Loaded::Route { loose, is_flag } => {
            let missing = bytes.iter().all(|byte| *byte == 0);
            let test = Test::ReversePath { loose: *loose };
            (mask.is_none() && (missing || *is_flag)).then_some(Condition {
                test,
                negated: missing != negated,
            })
        }
        Loaded::Other(_) => None,
    }
}

/// Condition that a port is smaller or greater.
fn bound(operation: u32, bytes: &[u8]) -> Option<Condition> {
    let port = be16(bytes)?;
    let (first, last) = match operation {
        2 => (0, port.checked_sub(1)?),
        3 => (0, port),
        4 => (port.checked_add(1)?, u16::MAX),
        5 => (port, u16::MAX),
        _ => return None,
    };
    Some(Test::DestinationPort(first, last).into())
}

/// A name that ends in zero is complete; otherwise it is a prefix.
fn device(bytes: &[u8]) -> String {
    match bytes.contains(&0) || bytes.len() == 16 {
        true => text(bytes),
        false => format!("{}*", text(bytes)),
    }
}

fn by_index(bytes: &[u8]) -> Option<String> {
    let name = nix::net::if_::if_indextoname(host_u32(bytes)?).ok()?;
    Some(name.to_string_lossy().into_owned())
}

fn network(is_v4: bool, bytes: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let whole = vec![0xff; bytes.len()];
    let mask = mask.unwrap_or(&whole);
    let padded = |from: &[u8]| {
        let mut address = [0; 16];
        address.get_mut(..from.len())?.copy_from_slice(from);
        Some(match is_v4 {
            true => IpAddr::from(Ipv4Addr::new(
                address[0], address[1], address[2], address[3],
            )),
            false => IpAddr::from(Ipv6Addr::from(address)),
        })
    };
    IpNet::with_netmask(padded(bytes)?, padded(mask)?).ok()
}
