//! Reads nftables by dumps: base chains of all tables, and the rules of requested chains.

use super::expressions::read;
use crate::legacy::text;
use egret_core::numbers::{CLASSIC_NFT_TABLE, NFT_TABLE};
use egret_core::obstacle::firewall::Rule;
use egret_core::obstacle::{Base, Hook, Table, Tool};
use egret_kernel::netlink::{Attrs, NetlinkError, NetlinkSocket, Reply, Request, attributes};
use std::collections::{BTreeMap, BTreeSet};

const SUBSYSTEM: u16 = 10 << 8;
const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETGEN: u16 = 16;
const INET: u8 = 1;
pub(super) const IP: u8 = 2;
pub(super) const IP6: u8 = 10;
/// Attempts at a dump that others' changes interrupt.
const TRIES: usize = 10;
/// Names of the tables of `iptables-nft`.
const OF_IPTABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

pub(super) type Values<'a> = BTreeMap<u16, &'a [u8]>;

fn request(kind: u16, family: u8, attrs: Attrs, what: &str) -> Request {
    Request {
        kind: SUBSYSTEM | kind,
        flags: 0,
        body: Attrs::after(&[family, 0, 0, 0]).extend(attrs).finish(),
        what: what.into(),
    }
}

fn dump(socket: &mut NetlinkSocket, request: &Request) -> Result<Vec<Reply>, NetlinkError> {
    for _ in 1..TRIES {
        match socket.dump(request) {
            Err(NetlinkError::Interrupted) => {}
            result => return result,
        }
    }
    socket.dump(request)
}

pub(super) fn values(bytes: &[u8]) -> Values<'_> {
    attributes(bytes).collect()
}

pub(super) fn be32(values: &Values<'_>, kind: u16) -> Option<u32> {
    let bytes = <[u8; 4]>::try_from(*values.get(&kind)?).ok()?;
    Some(u32::from_be_bytes(bytes))
}

pub(super) fn string(values: &Values<'_>, kind: u16) -> String {
    values
        .get(&kind)
        .map(|value| text(value))
        .unwrap_or_default()
}

/// Generation of the ruleset, which changes with every change of any table.
pub(super) fn generation(socket: &mut NetlinkSocket) -> Result<u32, NetlinkError> {
    let reply = socket.query(&request(GETGEN, 0, Attrs::default(), "generation"))?;
    Ok(be32(&values(reply.body.get(4..).unwrap_or(&[])), 1).unwrap_or(0))
}

/// Foreign tables with a base chain at a hook that our packets pass, without rules yet, and their families.
pub(super) fn tables(socket: &mut NetlinkSocket) -> Result<Vec<(u8, Table)>, NetlinkError> {
    const OWNER: u16 = 7;
    let mut owned = BTreeSet::new();
    for reply in dump(socket, &request(GETTABLE, 0, Attrs::default(), "tables"))? {
        let table = values(reply.body.get(4..).unwrap_or(&[]));
        if table.contains_key(&OWNER) {
            owned.insert((reply.body[0], string(&table, 1)));
        }
    }
    let mut found: BTreeMap<(u8, String), Vec<Base>> = BTreeMap::new();
    for reply in dump(socket, &request(GETCHAIN, 0, Attrs::default(), "chains"))? {
        let chain = values(reply.body.get(4..).unwrap_or(&[]));
        let (family, table) = (reply.body[0], string(&chain, 1));
        let ours = [NFT_TABLE, CLASSIC_NFT_TABLE].contains(&table.as_str());
        if ours || ![INET, IP, IP6].contains(&family) {
            continue;
        }
        if let Some(base) = base(&chain) {
            found.entry((family, table)).or_default().push(base);
        }
    }
    let table = |((family, name), bases): ((u8, String), Vec<Base>)| {
        let is_iptables = family != INET && OF_IPTABLES.contains(&name.as_str());
        let table = Table {
            tool: match is_iptables {
                true => Tool::IptablesNft,
                false => Tool::Nft,
            },
            v4: family != IP6,
            v6: family != IP,
            owned: owned.contains(&(family, name.clone())),
            name,
            bases,
            chains: BTreeMap::new(),
        };
        (family, table)
    };
    Ok(found.into_iter().map(table).collect())
}

/// Parses a base chain of type filter at one of the hooks.
fn base(chain: &Values<'_>) -> Option<Base> {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const DROP: u32 = 0;
    let hook = values(chain.get(&HOOK)?);
    let at = match be32(&hook, 1)? {
        0 => Hook::Prerouting,
        1 => Hook::Input,
        2 => Hook::Forward,
        _ => return None,
    };
    // Chains of type nat see only the first packet of a connection.
    (string(chain, TYPE) == "filter").then(|| Base {
        chain: string(chain, NAME),
        hook: at,
        priority: be32(&hook, 2).unwrap_or(0) as i32,
        policy_drops: be32(chain, POLICY) == Some(DROP),
    })
}

/// A rule, with its user data.
pub(crate) struct Found {
    /// The rule.
    pub(crate) rule: Rule,
    /// User data, written by the tool that made the rule.
    pub(crate) user_data: Vec<u8>,
}

/// Reads the rules of one chain.
pub(crate) fn rules(
    socket: &mut NetlinkSocket,
    family: u8,
    table: &str,
    chain: &str,
) -> Result<Vec<Found>, NetlinkError> {
    let attrs = Attrs::default().text(1, table).text(2, chain);
    let mut found = Vec::new();
    for reply in dump(socket, &request(GETRULE, family, attrs, "rules of a chain"))? {
        let rule = values(reply.body.get(4..).unwrap_or(&[]));
        if string(&rule, 2) != chain {
            continue;
        }
        let handle = rule
            .get(&3)
            .and_then(|bytes| <[u8; 8]>::try_from(*bytes).ok());
        found.push(Found {
            rule: read(
                rule.get(&4).copied().unwrap_or(&[]),
                handle.map_or(0, u64::from_be_bytes),
            ),
            user_data: rule.get(&7).map(|bytes| bytes.to_vec()).unwrap_or_default(),
        });
    }
    Ok(found)
}
