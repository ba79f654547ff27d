//! Election of announcers (design section 6). Per address, the gateway nodes have a rendezvous order. A gateway
//! announces iff it is the first in it that it sees alive; it counts itself only while it is fit. Two announcers at
//! once are harmless: every gateway can take every packet.
//!
//! So an announcer that gives way goes on to answer until the next one is seen to announce. It sends nothing
//! unasked meanwhile, or neighbours would come back to it.

use crate::model::NodeName;
use crate::numbers::{GRATUITOUS_AFTER_MS, GRATUITOUS_REFRESH_MS};
use crate::rendezvous::announcer_order;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Command to the agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnouncerCommand {
    /// Begin to announce this address.
    Announce(IpAddr),
    /// Stop announcing this address.
    Withdraw(IpAddr),
    /// Send a gratuitous ARP (IPv4) or an unsolicited NA with the override flag (IPv6).
    SendGratuitous(IpAddr),
}

#[derive(Debug)]
struct Announced {
    /// Time of the takeover, or of the last reason to repeat it.
    since_ms: u64,
    /// Number of gratuitous messages sent since.
    sent: usize,
    /// Time of the next one; `None`: another node is to announce the address, and this one only answers.
    next_ms: Option<u64>,
}

impl Announced {
    fn fresh(now_ms: u64) -> Self {
        Self {
            since_ms: now_ms,
            sent: 0,
            next_ms: Some(now_ms),
        }
    }
}

/// The announcer of one gateway node.
#[derive(Debug)]
pub struct Announcer {
    me: NodeName,
    announced: BTreeMap<IpAddr, Announced>,
    live: BTreeSet<NodeName>,
    commands: Vec<AnnouncerCommand>,
}

impl Announcer {
    /// The announcer of this node.
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            announced: BTreeMap::new(),
            live: BTreeSet::new(),
            commands: Vec::new(),
        }
    }

    /// Decides again. `addresses`: addresses of this node's groups, each with the gateway nodes of its group. `live`:
    /// the other gateways that answer and have loaded a table (version above 0). Do not call before liveness is
    /// settled, or this node takes over everything for a moment. `fit`: the external link has carrier and the own
    /// steering table is applied (R2: load before announcing). `handed_over`: whether the node that is to announce an
    /// address instead of this one does so; false keeps this one answering, if it announced the address before.
    pub fn update(
        &mut self,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
        live: &BTreeSet<NodeName>,
        fit: bool,
        handed_over: impl Fn(IpAddr) -> bool,
        now_ms: u64,
    ) {
        let wanted = self.chosen(addresses, live, fit);
        let given_up = self.announced.keys().filter(|a| !wanted.contains(a));
        let given_up: Vec<IpAddr> = given_up.copied().collect();
        for address in given_up {
            match self.announced.get_mut(&address) {
                Some(announced) if !handed_over(address) => announced.next_ms = None,
                _ => {
                    self.announced.remove(&address);
                    self.commands.push(AnnouncerCommand::Withdraw(address));
                }
            }
        }
        // A gateway that was away may have been dead for this node only, or this node for it; one that is gone may have
        // answered until now: announce again.
        let others_changed = *live != self.live;
        for address in wanted {
            let known = self.announced.get(&address);
            if known.is_none() {
                self.commands.push(AnnouncerCommand::Announce(address));
            }
            let announces = known.is_some_and(|announced| announced.next_ms.is_some());
            if !announces || others_changed {
                self.announced.insert(address, Announced::fresh(now_ms));
            }
        }
        self.live = live.clone();
        self.handle_deadline(now_ms);
    }

    /// Addresses that [`Self::update`] with the same inputs would have this node announce.
    pub fn chosen(
        &self,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
        live: &BTreeSet<NodeName>,
        fit: bool,
    ) -> BTreeSet<IpAddr> {
        let mine = |address: &IpAddr, nodes: &BTreeSet<NodeName>| {
            let alive = |n: &&&NodeName| {
                if **n == &self.me {
                    fit
                } else {
                    live.contains(**n)
                }
            };
            announcer_order(*address, nodes)
                .iter()
                .find(alive)
                .is_some_and(|n| **n == self.me)
        };
        let mine = addresses.iter().filter(|(a, nodes)| mine(a, nodes));
        mine.map(|(address, _)| *address).collect()
    }

    /// Repeats all announcements as after a takeover: a gateway that is gone may have announced this node's addresses,
    /// so neighbours may have learned its hardware address.
    pub fn repeat(&mut self, now_ms: u64) {
        let announced = self.announced.values_mut();
        for announced in announced.filter(|announced| announced.next_ms.is_some()) {
            *announced = Announced::fresh(now_ms);
        }
    }

    /// Sends the gratuitous messages that are due.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        for (address, announced) in &mut self.announced {
            if announced.next_ms.is_none_or(|next_ms| now_ms < next_ms) {
                continue;
            }
            self.commands
                .push(AnnouncerCommand::SendGratuitous(*address));
            announced.sent = announced.sent.saturating_add(1);
            // A late call skips missed messages and never sends two at once.
            let due = GRATUITOUS_AFTER_MS
                .iter()
                .map(|after| announced.since_ms.saturating_add(*after))
                .skip(announced.sent)
                .find(|at| *at > now_ms);
            let refresh = now_ms.saturating_add(GRATUITOUS_REFRESH_MS);
            announced.next_ms = Some(due.unwrap_or(refresh));
        }
    }

    /// Latest time of the next call of `handle_deadline`.
    pub fn next_deadline(&self) -> Option<u64> {
        self.announced
            .values()
            .filter_map(|announced| announced.next_ms)
            .min()
    }

    /// Pending commands, in order.
    pub fn drain(&mut self) -> Vec<AnnouncerCommand> {
        std::mem::take(&mut self.commands)
    }

    /// Addresses for which this node only answers, until the next announcer is seen.
    pub fn handing_over(&self) -> BTreeSet<IpAddr> {
        let held = self.announced.iter();
        let held = held.filter(|(_, announced)| announced.next_ms.is_none());
        held.map(|(address, _)| *address).collect()
    }

    /// Addresses that this node announces, those that it hands over included.
    pub fn announcing(&self) -> BTreeSet<IpAddr> {
        self.announced.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests;
