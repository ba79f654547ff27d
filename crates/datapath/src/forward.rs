//! Accept rules in foreign forward chains that refuse all packets no rule accepts, by their policy or by a last rule
//! that refuses everything. One rule of ours per device and direction comes after all foreign rules and before that
//! refusal. So packets that the CNI's own rules refuse stay refused, and the tunnel device also works where it came
//! later than those rules.
//!
//! An accept in our own table could not undo another chain's drop. Rules carry our name as comment; nothing else in a
//! foreign table is ever changed. Chains that cannot be opened (the old ip_tables, a table with an owner, a refusal in
//! a chain that is jumped to) stay as they are, and [`crate::obstacle`] reports them.

use crate::obstacle::nft::{self, Found};
use egret_core::numbers::{LIFT_DEVICE, NFT_TABLE, TUNNEL_DEVICE};
use egret_kernel::netlink::{Attrs, NetlinkError, NetlinkSocket, Request, attributes, flags};
use egret_kernel::nft::attributes::{named, number, text};
use egret_kernel::nft::message as m;
use egret_kernel::nft::{Expression, MetaKey, NftError, Rule};
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

/// A foreign chain.
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

/// Set of our rules that foreign forward chains need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    None,
    /// Packets into the tunnel and out of it.
    Tunnel,
    /// `Tunnel`, and packets reinjected into the stack.
    TunnelAndLift,
}

/// Refusal of the packets that no rule of a chain accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The chain's policy.
    Policy,
    /// The last foreign rule, by its handle.
    Rule(u64),
}

/// Content of a foreign chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    /// Handles of our rules.
    ours: Vec<u64>,
    /// Position of our rules; `None`: they do not belong into this chain.
    end: Option<End>,
    /// Our rules come after every rule that could refuse packets, except the end.
    is_last: bool,
}

impl Content {
    fn of(found: &[Found], drops: bool) -> Self {
        let is_ours = |one: &&Found| one.user_data == comment();
        let others: Vec<&Found> = found.iter().filter(|one| !is_ours(one)).collect();
        let first = others.iter().position(|one| one.rule.refuses_all());
        let end = match first {
            Some(at) if at + 1 == others.len() => Some(End::Rule(others[at].rule.handle)),
            // Rules after it are unreachable, so the chain is misconfigured; its owner must correct it.
            Some(_) => None,
            None => drops.then_some(End::Policy),
        };
        let is_end = |one: &Found| end == Some(End::Rule(one.rule.handle));
        let behind = found.iter().skip_while(|one| !is_ours(one));
        let mut others_behind = behind.filter(|one| !is_ours(one));
        let ours_first = others_behind.all(|one| is_end(one) || one.rule.only_lets_go());
        let reached = found.iter().rposition(|one| is_ours(&one)) < found.iter().position(is_end);
        let is_last = ours_first && (reached || !matches!(end, Some(End::Rule(_))));
        Content {
            ours: found
                .iter()
                .filter(is_ours)
                .map(|one| one.rule.handle)
                .collect(),
            end,
            is_last,
        }
    }

    /// Whether our rules are as wanted; `count`: how many the end of a chain needs.
    fn is_as_wanted(&self, count: usize) -> bool {
        match self.end {
            None => self.ours.is_empty(),
            Some(_) => self.ours.len() == count && (count == 0 || self.is_last),
        }
    }
}

/// Our rules in foreign forward chains.
pub struct Forwarding {
    socket: NetlinkSocket,
    /// State and time of the last edit; `None` before the first.
    done: Option<Done>,
}

struct Done {
    wanted: Wanted,
    generation: u32,
    /// Chains whose owner does not let us edit them.
    refused: BTreeSet<Place>,
}

impl Forwarding {
    /// Opens the socket; changes nothing yet.
    pub fn open() -> Result<Self, NftError> {
        let socket = NetlinkSocket::open(libc::NETLINK_NETFILTER).map_err(error)?;
        Ok(Forwarding { socket, done: None })
    }

    /// Adds our rules to every chain that refuses unaccepted packets and lacks them, and removes them from all others.
    /// `lift`: also for packets reinjected into the stack.
    pub fn ensure(&mut self, lift: bool) -> Result<(), NftError> {
        let wanted = match lift {
            true => Wanted::TunnelAndLift,
            false => Wanted::Tunnel,
        };
        self.edit(wanted).map_err(error)
    }

    /// Whether every chain is as the last edit left it. Costs one small message while nobody changes any table.
    pub fn verify(&mut self) -> Result<bool, NftError> {
        let generation = self.read_generation().map_err(error)?;
        let Some(mut done) = self.done.take() else {
            return Ok(true);
        };
        if done.generation != generation && done.wanted != Wanted::None {
            let count = rules(done.wanted).len();
            for (place, drops) in self.chains().map_err(error)? {
                let content = self.content(&place, drops).map_err(error)?;
                if !done.refused.contains(&place) && !content.is_as_wanted(count) {
                    return Ok(false);
                }
            }
        }
        done.generation = generation;
        self.done = Some(done);
        Ok(true)
    }

    /// Removes our rules from every foreign chain.
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
            let content = self.content(&place, drops)?;
            let mut requests: Vec<Request> = Vec::new();
            let rules = rules(wanted);
            if !content.is_as_wanted(rules.len()) {
                requests.extend(content.ours.iter().map(|handle| delete(&place, *handle)));
                let added = rules
                    .iter()
                    .filter_map(|rule| add(&place, rule, content.end?));
                requests.extend(added);
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

    /// Foreign base chains of the forward hook, and whether their policy is drop.
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

    fn content(&mut self, place: &Place, drops: bool) -> Result<Content, NetlinkError> {
        let found = nft::rules(&mut self.socket, place.family, &place.table, &place.chain)?;
        Ok(Content::of(&found, drops))
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

/// Accepts by device only: our own table decides who may use the tunnel, and only packets that were leaving are
/// reinjected.
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

/// Request that adds the rule at the end of a chain.
fn add(place: &Place, rule: &Rule, end: End) -> Option<Request> {
    const POSITION: u16 = 6;
    let list = rule.iter().fold(Attrs::default(), |list, expression| {
        list.extend(expression.encode())
    });
    let mut attrs = Attrs::default()
        .text(1, &place.table)
        .text(2, &place.chain)
        .nest(4, list)
        .bytes(7, &comment());
    let how = match end {
        End::Policy => flags::CREATE | flags::APPEND,
        // Without APPEND a rule goes before the one at the position.
        End::Rule(handle) => {
            attrs = attrs.be64(POSITION, handle);
            flags::CREATE
        }
    };
    let what = format!("an accept in the nftables chain {}", place.named());
    let mut request = m::request(NEWRULE, how, attrs, what);
    request.body[0] = place.family;
    Some(request)
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

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::obstacle::firewall::{Action, Rule as Judged, Test};

    /// Chain from letters: our rule (`o`), a jump (`j`), an accept (`a`), a rule that refuses all (`r`) or some (`d`).
    fn content(rules: &str, drops: bool) -> Content {
        let found = |(handle, letter): (usize, char)| Found {
            rule: Judged {
                conditions: match letter {
                    'd' => vec![Test::Protocol(1).into()],
                    _ => Vec::new(),
                },
                action: match letter {
                    'j' => Action::Jump("other".into()),
                    'r' | 'd' => Action::Drop,
                    _ => Action::Accept,
                },
                handle: handle as u64,
            },
            user_data: match letter {
                'o' => comment(),
                _ => Vec::new(),
            },
        };
        let all: Vec<Found> = rules.chars().enumerate().map(found).collect();
        Content::of(&all, drops)
    }

    #[test]
    fn ours_belong_before_what_refuses_all_and_behind_everything_that_may_refuse() {
        for (rules, drops, end) in [
            ("jad", true, Some(End::Policy)),
            ("jad", false, None),
            ("jar", false, Some(End::Rule(2))),
            ("jar", true, Some(End::Rule(2))),
            ("joor", true, Some(End::Rule(3))),
            ("jrj", true, None),
            ("rr", false, None),
            ("", true, Some(End::Policy)),
        ] {
            assert_eq!(content(rules, drops).end, end, "{rules} {drops}");
        }
        for (rules, drops, wanted) in [
            ("jaoo", true, true),
            ("jao", true, false),
            ("joor", false, true),
            ("jrooo", false, false),
            ("jroo", false, false),
            ("joro", false, false),
            ("ooa", true, true),
            ("ooj", true, false),
            ("oodr", false, false),
            ("jaoo", false, false),
            ("ja", false, true),
            ("oorj", true, false),
        ] {
            assert_eq!(
                content(rules, drops).is_as_wanted(2),
                wanted,
                "{rules} {drops}"
            );
        }
        assert!(content("jar", true).is_as_wanted(0) && !content("joor", true).is_as_wanted(0));
    }
}
