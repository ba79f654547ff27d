//! Foreign forward chains whose policy is drop: one accept of ours per way, appended, so that whatever the CNI's own
//! rules refuse stays refused, and the tunnel device is not lost only because it came later than those rules.
//!
//! An accept in our own table could not undo another chain's drop. Rules carry our name as comment; nothing else in a
//! foreign table is ever touched. The old ip_tables are out of reach of this interface: they are only looked at.

use super::apply::{NftError, named, number, text};
use super::expression::{Expression, MetaKey, Rule};
use super::legacy;
use super::message as m;
use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Request, attributes, flags};
use egret_core::numbers::{LIFT_DEVICE, NFT_TABLE, TUNNEL_DEVICE};
use std::collections::{BTreeMap, BTreeSet};

const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const GETGEN: u16 = 16;
const HOOK_FORWARD: u32 = 2;
const POLICY_DROP: u32 = 0;
const ACCEPT: i32 = 1;
/// A rule's user data is a list of type, length, value; type 0 is the comment that `nft` shows.
const USERDATA_COMMENT: u8 = 0;
/// Families that have a forward hook for IP: inet, ip, ip6.
const FAMILIES: [u8; 3] = [1, 2, 10];

/// A chain of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    family: u8,
    table: String,
    chain: String,
}

impl Place {
    fn named(&self) -> String {
        let family = match self.family {
            2 => "ip",
            10 => "ip6",
            _ => "inet",
        };
        format!("{family} {} {}", self.table, self.chain)
    }
}

/// Which rules of ours foreign forward chains need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    None,
    /// Into the tunnel and out of it.
    Tunnel,
    /// The same, and what is lifted into the stack.
    TunnelAndLift,
}

/// Our rules in foreign forward chains.
pub struct Forwarding {
    socket: NetlinkSocket,
    /// What the last edit was for, and when: `None` before the first.
    done: Option<Done>,
}

struct Done {
    wanted: Wanted,
    generation: u32,
    /// Chains that their owner does not let us edit.
    refused: BTreeSet<Place>,
}

impl Forwarding {
    /// Opens the socket; nothing is changed yet.
    pub fn open() -> Result<Self, NftError> {
        let socket = NetlinkSocket::open(libc::NETLINK_NETFILTER).map_err(error)?;
        Ok(Forwarding { socket, done: None })
    }

    /// Appends our rules to every dropping forward chain that lacks them, and takes them out of all others. `lift`: also
    /// for packets that are lifted into the stack. What cannot be opened is named, with the remedy; it is no error.
    pub fn ensure(&mut self, lift: bool) -> Result<Vec<String>, NftError> {
        let (wanted, lifted) = match lift {
            true => (Wanted::TunnelAndLift, format!(" and {LIFT_DEVICE}")),
            false => (Wanted::Tunnel, String::new()),
        };
        self.edit(wanted).map_err(error)?;
        let refused = self.done.iter().flat_map(|done| &done.refused).map(|place| {
            format!(
                "the policy of the nftables chain {} is drop and its owner lets nobody else add rules: \
                 accept the device {TUNNEL_DEVICE}{lifted} there",
                place.named()
            )
        });
        let legacy = legacy::dropping_policies().into_iter().map(|program| {
            let lifted = match lift {
                true => format!("; {program} -A FORWARD -i {LIFT_DEVICE} -j ACCEPT"),
                false => String::new(),
            };
            format!(
                "the policy of {program}'s FORWARD chain is DROP and cannot be undone from here: \
                 {program} -A FORWARD -i {TUNNEL_DEVICE} -j ACCEPT; {program} -A FORWARD -o {TUNNEL_DEVICE} -j ACCEPT{lifted}"
            )
        });
        Ok(refused.chain(legacy).collect())
    }

    /// Whether every chain still is as the last edit left it. Costs one small message while nobody changed any table.
    pub fn verify(&mut self) -> Result<bool, NftError> {
        let generation = self.read_generation().map_err(error)?;
        let Some(mut done) = self.done.take() else {
            return Ok(true);
        };
        if done.generation != generation && done.wanted != Wanted::None {
            for (place, drops) in self.chains().map_err(error)? {
                if drops
                    && !done.refused.contains(&place)
                    && self.ours(&place).map_err(error)?.len() != rules(done.wanted).len()
                {
                    return Ok(false);
                }
            }
        }
        done.generation = generation;
        self.done = Some(done);
        Ok(true)
    }

    /// Takes our rules out of every foreign chain.
    pub fn remove(&mut self) -> Result<(), NftError> {
        self.edit(Wanted::None).map_err(error)
    }

    fn edit(&mut self, wanted: Wanted) -> Result<(), NetlinkError> {
        let done = self.done.take();
        let generation = self.read_generation()?;
        let again = |done: &Done| {
            done.wanted == wanted && (wanted == Wanted::None || done.generation == generation)
        };
        if done.as_ref().is_some_and(again) {
            self.done = done;
            return Ok(());
        }
        let mut refused = BTreeSet::new();
        for (place, drops) in self.chains()? {
            let ours = self.ours(&place)?;
            let mut requests: Vec<Request> = Vec::new();
            let rules = if drops { rules(wanted) } else { Vec::new() };
            if ours.len() != rules.len() {
                requests.extend(ours.iter().map(|handle| delete(&place, *handle)));
                requests.extend(rules.iter().map(|rule| append(&place, rule)));
            }
            if requests.is_empty() {
                continue;
            }
            match self.socket.batch(&requests) {
                Err(error) if error.errno() == Some(libc::EPERM) => drop(refused.insert(place)),
                result => result?,
            }
        }
        let generation = self.read_generation()?;
        self.done = Some(Done {
            wanted,
            generation,
            refused,
        });
        Ok(())
    }

    /// Base chains of the forward hook of everybody but us, and whether their policy is drop.
    fn chains(&mut self) -> Result<BTreeMap<Place, bool>, NetlinkError> {
        let mut places = BTreeMap::new();
        for family in FAMILIES {
            let mut request =
                m::request(m::GETCHAIN, 0, Attrs::default(), "nftables chains".into());
            request.body[0] = family;
            for reply in self.socket.dump(&request)? {
                let chain = named(&reply.body);
                let hook: BTreeMap<u16, Vec<u8>> =
                    attributes(chain.get(&4).map_or(&[], |hook| hook))
                        .map(|(kind, value)| (kind, value.to_vec()))
                        .collect();
                let forwards = hook.contains_key(&1) && number(&hook, 1) == HOOK_FORWARD;
                if forwards && text(&chain, 1) != NFT_TABLE {
                    let place = Place {
                        family,
                        table: text(&chain, 1),
                        chain: text(&chain, 3),
                    };
                    let drops = chain.contains_key(&5) && number(&chain, 5) == POLICY_DROP;
                    places.insert(place, drops);
                }
            }
        }
        Ok(places)
    }

    /// Handles of our rules in a chain.
    fn ours(&mut self, place: &Place) -> Result<Vec<u64>, NetlinkError> {
        let attrs = Attrs::default().text(1, &place.table).text(2, &place.chain);
        let mut request = m::request(m::GETRULE, 0, attrs, format!("rules of {}", place.named()));
        request.body[0] = place.family;
        let mut handles = Vec::new();
        for reply in self.socket.dump(&request)? {
            let rule = named(&reply.body);
            let handle = rule
                .get(&3)
                .and_then(|bytes| <[u8; 8]>::try_from(&bytes[..]).ok());
            let is_ours = rule.get(&7) == Some(&comment()) && text(&rule, 2) == place.chain;
            handles.extend(handle.filter(|_| is_ours).map(u64::from_be_bytes));
        }
        Ok(handles)
    }

    fn read_generation(&mut self) -> Result<u32, NetlinkError> {
        let request = m::request(GETGEN, 0, Attrs::default(), "generation".into());
        Ok(number(&named(&self.socket.query(&request)?.body), 1))
    }
}

fn error(source: NetlinkError) -> NftError {
    NftError::Netlink {
        table: "of others (forward chains)".into(),
        source,
    }
}

fn comment() -> Vec<u8> {
    let mut bytes = vec![USERDATA_COMMENT, NFT_TABLE.len() as u8 + 1];
    bytes.extend(NFT_TABLE.as_bytes());
    bytes.push(0);
    bytes
}

/// Who may use the tunnel is decided by our own table, and nothing is lifted that was not on its way out already.
fn rules(wanted: Wanted) -> Vec<Rule> {
    let tunnel = [
        (MetaKey::IifName, TUNNEL_DEVICE),
        (MetaKey::OifName, TUNNEL_DEVICE),
    ];
    let ways = match wanted {
        Wanted::None => Vec::new(),
        Wanted::Tunnel => tunnel.to_vec(),
        Wanted::TunnelAndLift => [&tunnel[..], &[(MetaKey::IifName, LIFT_DEVICE)]].concat(),
    };
    let accept = |(key, device): (MetaKey, &str)| {
        let mut name = [0; 16];
        name[..device.len()].copy_from_slice(device.as_bytes());
        vec![
            Expression::Meta(key, 0),
            Expression::Compare {
                register: 0,
                negated: false,
                bytes: name.to_vec(),
            },
            Expression::Verdict(ACCEPT, None),
        ]
    };
    ways.into_iter().map(accept).collect()
}

fn append(place: &Place, rule: &Rule) -> Request {
    let list = rule.iter().fold(Attrs::default(), |list, expression| {
        list.extend(expression.encode())
    });
    let attrs = Attrs::default()
        .text(1, &place.table)
        .text(2, &place.chain)
        .nest(4, list)
        .bytes(7, &comment());
    let what = format!("an accept in the nftables chain {}", place.named());
    let mut request = m::request(NEWRULE, flags::CREATE | flags::APPEND, attrs, what);
    request.body[0] = place.family;
    request
}

fn delete(place: &Place, handle: u64) -> Request {
    let attrs = Attrs::default()
        .text(1, &place.table)
        .text(2, &place.chain)
        .be64(3, handle);
    let what = format!(
        "deletion of our accept in the nftables chain {}",
        place.named()
    );
    let mut request = m::request(DELRULE, 0, attrs, what);
    request.body[0] = place.family;
    request
}
