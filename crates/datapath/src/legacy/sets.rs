//! ipset, by its own netlink protocol (`linux/netfilter/ipset/ip_set.h`).

use super::{LegacyError, dump, text};
use egret_core::earlier::{IpSet, Node};
use egret_kernel::netlink::{Attrs, NetlinkSocket, Request, attributes};
use std::collections::BTreeMap;
use std::time::Duration;

const SUBSYSTEM: u16 = 6 << 8;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
const GET_BY_NAME: u16 = 14;
/// `IPSET_PROTOCOL`; kernels before 4.20 support 6 only.
const PROTOCOL: u8 = 7;
const PROTOCOL_BEFORE: u8 = 6;
/// `IPSET_FLAG_LIST_HEADER`: sets without their elements.
const HEADERS_ONLY: u32 = 1 << 2;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_NAME: u16 = 2;
const ATTR_TYPE: u16 = 3;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_INDEX: u16 = 11;
const DATA_ELEMENTS: u16 = 24;
const DATA_REFERENCES: u16 = 25;

/// `IPSET_ERR_BUSY`: the set is still referenced.
const BUSY: i32 = 4100;
/// Attempts to destroy a set that is still referenced, and the pause between them: two seconds in all.
const BUSY_TRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// Names of sets by the number that rules refer to them with.
pub(super) type Names = BTreeMap<u16, String>;

/// Reads all sets and returns their names by number. A kernel without ipset has none.
pub(super) fn read(
    socket: &mut NetlinkSocket,
    node: &mut Node,
    unseen: &mut Vec<String>,
) -> Result<Names, LegacyError> {
    let list = |protocol| {
        let attrs = Attrs::default()
            .u8(ATTR_PROTOCOL, protocol)
            .be32(ATTR_FLAGS, HEADERS_ONLY);
        request(LIST, attrs, "the sets of ipset")
    };
    let mut protocol = PROTOCOL;
    let found = dump(socket, &list(protocol)).or_else(|_| {
        protocol = PROTOCOL_BEFORE;
        dump(socket, &list(protocol))
    });
    let found = match found {
        Ok(found) => found,
        // ipset is not loaded: nfnetlink has no such subsystem.
        Err(error) if error.errno() == Some(libc::EINVAL) => return Ok(Names::new()),
        Err(error) => return Err(error.into()),
    };
    node.sets = found.iter().filter_map(|reply| set(&reply.body)).collect();
    let mut names = Names::new();
    for one in &node.sets {
        let attrs = Attrs::default()
            .u8(ATTR_PROTOCOL, protocol)
            .text(ATTR_NAME, &one.name);
        let answer = socket.query(&request(GET_BY_NAME, attrs, &format!("set {}", one.name)));
        let index = answer.ok().and_then(|reply| index(&reply.body));
        match index {
            Some(index) => drop(names.insert(index, one.name.clone())),
            None => unseen.push(format!("which rules refer to the set {}", one.name)),
        }
    }
    Ok(names)
}

/// Destroys a set; one that is already gone is no error. The kernel releases deleted nftables rules only some time
/// after acknowledging the deletion, and until then they reference the set.
pub(super) fn destroy(socket: &mut NetlinkSocket, name: &str) -> Result<(), LegacyError> {
    let attrs = Attrs::default().u8(ATTR_PROTOCOL, PROTOCOL_BEFORE);
    let attrs = attrs.text(ATTR_NAME, name);
    let request = request(DESTROY, attrs, &format!("destruction of set {name}"));
    for _ in 0..BUSY_TRIES {
        match socket.execute(&request) {
            Err(error) if error.errno() == Some(BUSY) => std::thread::sleep(BUSY_WAIT),
            result => return super::absent_is_fine(result),
        }
    }
    Err(LegacyError::SetInUse(name.to_owned()))
}

fn request(command: u16, attrs: Attrs, what: &str) -> Request {
    Request {
        kind: SUBSYSTEM | command,
        flags: 0,
        body: Attrs::after(&[libc::AF_INET as u8, 0, 0, 0])
            .extend(attrs)
            .finish(),
        what: what.into(),
    }
}

fn set(body: &[u8]) -> Option<IpSet> {
    let mut set = IpSet {
        name: String::new(),
        kind: String::new(),
        is_v4: false,
        entries: 0,
        references: 0,
    };
    let number = |value: &[u8]| value.try_into().map_or(0, u32::from_be_bytes);
    for (kind, value) in attributes(body.get(4..)?) {
        match kind {
            ATTR_NAME => set.name = text(value),
            ATTR_TYPE => set.kind = text(value),
            ATTR_FAMILY => set.is_v4 = value.first() == Some(&(libc::AF_INET as u8)),
            ATTR_DATA => {
                for (kind, value) in attributes(value) {
                    match kind {
                        DATA_ELEMENTS => set.entries = number(value),
                        DATA_REFERENCES => set.references = number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (!set.name.is_empty()).then_some(set)
}

fn index(body: &[u8]) -> Option<u16> {
    let mut found = attributes(body.get(4..)?).filter(|(kind, _)| *kind == ATTR_INDEX);
    found.next()?.1.try_into().ok().map(u16::from_be_bytes)
}
