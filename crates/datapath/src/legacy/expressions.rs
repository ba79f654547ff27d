//! Converts the nftables expressions of `iptables-nft` back into a rule of iptables.

use super::sets::Names;
use super::{extension, host_u32, text};
use egret_core::earlier::{Match, Rule, Target};
use egret_kernel::netlink::attributes;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

type Values<'a> = BTreeMap<u16, &'a [u8]>;

/// Content of the register for the next comparison.
#[derive(Clone, Debug, PartialEq)]
enum Loaded {
    Nothing,
    Input,
    Output,
    Mark,
    Source,
    Destination,
    Protocol,
    Other,
}

/// Parses the list of expressions into the rule.
pub(super) fn read(list: &[u8], sets: &Names, rule: &mut Rule) {
    let mut reader = Reader {
        loaded: Loaded::Nothing,
        mask: None,
        rule,
        sets,
    };
    for (_, expression) in attributes(list) {
        let of: Values<'_> = attributes(expression).collect();
        let name = of.get(&1).map(|name| text(name)).unwrap_or_default();
        let data: Values<'_> = attributes(of.get(&2).copied().unwrap_or(&[])).collect();
        reader.take(&name, &data);
    }
    if reader.loaded != Loaded::Nothing {
        reader.other("nft expression");
    }
}

struct Reader<'a> {
    loaded: Loaded,
    mask: Option<Vec<u8>>,
    rule: &'a mut Rule,
    sets: &'a Names,
}

impl Reader<'_> {
    fn take(&mut self, name: &str, data: &Values<'_>) {
        match name {
            "meta" if data.contains_key(&1) => self.load(meta(be32(data, 2))),
            "payload" if data.contains_key(&1) => self.load(payload(data)),
            "bitwise" if self.loaded != Loaded::Nothing && self.mask.is_none() => {
                let changes = value(data, 5).is_some_and(|xor| xor.iter().any(|byte| *byte != 0));
                match (value(data, 4), changes) {
                    (Some(mask), false) => self.mask = Some(mask),
                    _ => self.loaded = Loaded::Other,
                }
            }
            "cmp" => self.compare(data),
            "counter" => {
                let packets = data
                    .get(&2)
                    .and_then(|bytes| <[u8; 8]>::try_from(*bytes).ok());
                self.rule.packets = packets.map_or(0, u64::from_be_bytes);
            }
            "immediate" => self.rule.target = immediate(data),
            "match" | "target" => {
                let what = data.get(&1).map(|name| text(name)).unwrap_or_default();
                let revision = be32(data, 2) as u8;
                let info = data.get(&3).copied().unwrap_or(&[]);
                match name {
                    "match" => {
                        let found = extension::matched(&what, revision, info, self.sets);
                        self.rule.matches.push(found);
                    }
                    _ => self.rule.target = extension::target(&what, revision, info),
                }
            }
            name => self.other(name),
        }
    }

    fn load(&mut self, what: Loaded) {
        if self.loaded != Loaded::Nothing {
            self.other("nft expression");
        }
        (self.loaded, self.mask) = (what, None);
    }

    fn other(&mut self, name: &str) {
        let text = format!("[{name}]");
        self.rule.matches.push(Match::Other(text));
    }

    fn compare(&mut self, data: &Values<'_>) {
        const EQUAL: u32 = 0;
        let loaded = std::mem::replace(&mut self.loaded, Loaded::Nothing);
        let mask = self.mask.take();
        let Some(bytes) = value(data, 3).filter(|_| be32(data, 2) == EQUAL) else {
            return self.other("not");
        };
        let rule = &mut *self.rule;
        let understood = match loaded {
            Loaded::Input if mask.is_none() => set_once(&mut rule.input, Some(device(&bytes))),
            Loaded::Output if mask.is_none() => set_once(&mut rule.output, Some(device(&bytes))),
            Loaded::Source => set_once(&mut rule.source, net(&bytes, mask.as_deref())),
            Loaded::Destination => set_once(&mut rule.destination, net(&bytes, mask.as_deref())),
            Loaded::Protocol if mask.is_none() => {
                set_once(&mut rule.protocol, bytes.first().copied())
            }
            Loaded::Mark => {
                let under = mask.as_deref().map_or(Some(u32::MAX), host_u32);
                let found = host_u32(&bytes).zip(under);
                rule.matches
                    .extend(found.map(|(mark, mask)| Match::Mark(mark, mask)));
                found.is_some()
            }
            _ => false,
        };
        if !understood {
            self.other("nft comparison");
        }
    }
}

/// Sets a value that was not set before. Returns whether it could.
fn set_once<T>(place: &mut Option<T>, found: Option<T>) -> bool {
    let good = place.is_none() && found.is_some();
    if good {
        *place = found;
    }
    good
}

fn meta(key: u32) -> Loaded {
    match key {
        3 => Loaded::Mark,
        6 => Loaded::Input,
        7 => Loaded::Output,
        16 => Loaded::Protocol,
        _ => Loaded::Other,
    }
}

/// Parses a load from the IPv4 header; an address may be loaded partially.
fn payload(data: &Values<'_>) -> Loaded {
    const NETWORK_HEADER: u32 = 1;
    let (base, offset, length) = (be32(data, 2), be32(data, 3), be32(data, 4));
    match (base, offset, length) {
        (NETWORK_HEADER, 12, 1..=4) => Loaded::Source,
        (NETWORK_HEADER, 16, 1..=4) => Loaded::Destination,
        (NETWORK_HEADER, 9, 1) => Loaded::Protocol,
        _ => Loaded::Other,
    }
}

fn net(bytes: &[u8], mask: Option<&[u8]>) -> Option<Ipv4Net> {
    let mut address = [0; 4];
    address.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let mut whole = [0; 4];
    match mask {
        Some(mask) => whole.get_mut(..mask.len())?.copy_from_slice(mask),
        None => whole.get_mut(..bytes.len())?.fill(0xff),
    }
    Ipv4Net::with_netmask(Ipv4Addr::from(address), Ipv4Addr::from(whole)).ok()
}

/// A name that ends in zero is complete; a prefix is written with `+`.
fn device(bytes: &[u8]) -> String {
    match bytes.contains(&0) || bytes.len() == 16 {
        true => text(bytes),
        false => format!("{}+", text(bytes)),
    }
}

fn immediate(data: &Values<'_>) -> Target {
    const VERDICT: u16 = 2;
    let verdict = data.get(&2).and_then(|data| {
        let (_, verdict) = attributes(data).find(|(kind, _)| *kind == VERDICT)?;
        Some(attributes(verdict).collect::<Values<'_>>())
    });
    let Some(verdict) = verdict else {
        return Target::Other("immediate".into());
    };
    let chain = || verdict.get(&2).map(|name| text(name)).unwrap_or_default();
    match be32(&verdict, 1) as i32 {
        0 => Target::Verdict("DROP"),
        1 => Target::Verdict("ACCEPT"),
        -3 | -4 => Target::Jump(chain()),
        -5 => Target::Verdict("RETURN"),
        code => Target::Other(format!("verdict {code}")),
    }
}

fn be32(values: &Values<'_>, kind: u16) -> u32 {
    let bytes = values
        .get(&kind)
        .and_then(|bytes| <[u8; 4]>::try_from(*bytes).ok());
    bytes.map_or(0, u32::from_be_bytes)
}

/// `NFTA_DATA_VALUE` in an attribute.
fn value(values: &Values<'_>, kind: u16) -> Option<Vec<u8>> {
    let (_, value) = attributes(values.get(&kind)?).find(|(kind, _)| *kind == 1)?;
    Some(value.to_vec())
}
