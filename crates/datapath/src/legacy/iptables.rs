//! Tables of `iptables-nft`: nftables of family ip with iptables' names. Tables of any other name or family are
//! ignored.

use super::sets::Names;
use super::{LegacyError, dump, expressions, text};
use egret_core::earlier::{Action, Backend, Chain, Node, Rule};
use egret_kernel::netlink::{Attrs, NetlinkSocket, Reply, Request, attributes, flags};
use std::collections::BTreeMap;

const SUBSYSTEM: u16 = 10 << 8;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const FAMILY_IP: u8 = 2;
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

pub(super) fn read(
    socket: &mut NetlinkSocket,
    sets: &Names,
    node: &mut Node,
) -> Result<(), LegacyError> {
    const HOOK: u16 = 4;
    for reply in dump(socket, &request(GETCHAIN, Attrs::default(), "the chains"))? {
        let chain = named(&reply);
        let table = string(&chain, 1);
        if TABLES.contains(&table.as_str()) && !chain.contains_key(&HOOK) {
            node.chains.push(Chain {
                backend: Backend::Nft,
                table,
                name: string(&chain, 3),
            });
        }
    }
    for reply in dump(socket, &request(GETRULE, Attrs::default(), "the rules"))? {
        let rule = named(&reply);
        let (table, chain) = (string(&rule, 1), string(&rule, 2));
        let handle = rule
            .get(&3)
            .and_then(|bytes| <[u8; 8]>::try_from(&bytes[..]).ok());
        let (Some(handle), Some(list)) = (handle, rule.get(&4)) else {
            continue;
        };
        if TABLES.contains(&table.as_str()) {
            let mut found = Rule::empty(Backend::Nft, &table, &chain, u64::from_be_bytes(handle));
            expressions::read(list, sets, &mut found);
            node.rules.push(found);
        }
    }
    Ok(())
}

/// Applies all actions or none: a chain that is still jumped to prevents all of them.
pub(super) fn remove(socket: &mut NetlinkSocket, actions: &[&Action]) -> Result<(), LegacyError> {
    let deletion = |action: &&Action| match action {
        Action::Rule(_, table, id) => {
            let attrs = Attrs::default().text(1, table).text(2, &id.chain);
            let what = format!("deletion of a rule in {table} {}", id.chain);
            Some(request(DELRULE, attrs.be64(3, id.handle), &what))
        }
        Action::Chain(_, table, name) => {
            let attrs = Attrs::default().text(1, table).text(3, name);
            Some(request(
                DELCHAIN,
                attrs,
                &format!("deletion of the chain {table} {name}"),
            ))
        }
        _ => None,
    };
    // NLM_F_NONREC: the kernel refuses to delete a chain with rules instead of emptying it.
    let mut requests: Vec<Request> = actions.iter().filter_map(deletion).collect();
    for request in &mut requests {
        if request.kind == SUBSYSTEM | DELCHAIN {
            request.flags |= flags::REPLACE;
        }
    }
    Ok(socket.batch(&requests)?)
}

fn request(kind: u16, attrs: Attrs, what: &str) -> Request {
    Request {
        kind: SUBSYSTEM | kind,
        flags: 0,
        body: Attrs::after(&[FAMILY_IP, 0, 0, 0]).extend(attrs).finish(),
        what: what.into(),
    }
}

fn named(reply: &Reply) -> BTreeMap<u16, Vec<u8>> {
    attributes(reply.body.get(4..).unwrap_or(&[]))
        .map(|(kind, value)| (kind, value.to_vec()))
        .collect()
}

fn string(object: &BTreeMap<u16, Vec<u8>>, kind: u16) -> String {
    object
        .get(&kind)
        .map(|value| text(value))
        .unwrap_or_default()
}
