//! Whether an egress address is another machine's: address conflict detection (RFC 5227 for IPv4; the same with duplicate
//! address detection of RFC 4862 for IPv6), by a gateway for the addresses that it would announce.
//!
//! ```text
//!  no gateway has announced it yet --probes--> nobody answers: may be announced
//!                                      \-----> a machine that is no gateway answers: not announced, asked again
//!  a gateway has announced it: may be announced at once (take-over waits for nobody); probed now and then
//!                                      \-----> a machine that is no gateway answers: told, defended, announced on
//! ```
//!
//! An address in use is kept, as RFC 5227 section 2.4 (c) has it for those who rely on one: connections exist. Gateways
//! may announce one address at once for moments; they know each other by their hardware addresses.

use crate::model::MacAddress;
use crate::numbers::{
    CONFLICT_AGAIN_MS, CONFLICT_DECIDED_MS, CONFLICT_DEFEND_MS, CONFLICT_FORGET_MS,
    CONFLICT_PROBES_AFTER_MS, CONFLICT_REFRESH_MS,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConflictCommand {
    /// Ask the segment who has the address, without saying that this node does.
    Probe(IpAddr),
    /// Say once more that this node has it.
    Defend(IpAddr),
}

/// What a gateway knows of the addresses that it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictInputs {
    /// Addresses that gateways answer for on the segment.
    pub served: BTreeSet<IpAddr>,
    /// Those of them that this node would announce.
    pub chosen: BTreeSet<IpAddr>,
    /// Those that some gateway has announced, as far as is known: what it said last counts also when it is dead.
    pub used: BTreeSet<IpAddr>,
    /// Those that a gateway's own kernel has: whoever answers for them is that kernel, maybe by an address of VRRP.
    pub held: BTreeSet<IpAddr>,
    /// Hardware addresses of gateways, this one among them.
    pub gateways: BTreeSet<MacAddress>,
}

/// A machine that answers for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    mac: MacAddress,
    last_ms: u64,
}

/// What is known of one address.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// Gateways use it, or nobody answered for it.
    usable: bool,
    /// Since when this node would announce it.
    chosen_ms: Option<u64>,
    /// Probes sent since.
    probes: usize,
    next_probe_ms: u64,
    heard: Option<Heard>,
    defended_ms: Option<u64>,
}

/// Conflict detection of one gateway node.
#[derive(Debug, Default)]
pub struct Conflicts {
    watched: BTreeMap<IpAddr, Watched>,
    inputs: ConflictInputs,
    commands: Vec<ConflictCommand>,
}

impl Conflicts {
    /// Decides anew. What was once used stays so while it is served: a gateway that withdraws an address so that another
    /// takes it over must not make that one wait.
    pub fn update(&mut self, inputs: ConflictInputs, now_ms: u64) {
        self.watched
            .retain(|address, _| inputs.served.contains(address));
        for address in &inputs.served {
            let watched = self.watched.entry(*address).or_default();
            watched.usable |= inputs.used.contains(address) || inputs.held.contains(address);
            let is_chosen = inputs.chosen.contains(address) && !inputs.held.contains(address);
            match (is_chosen, watched.chosen_ms) {
                (true, None) => {
                    watched.chosen_ms = Some(now_ms);
                    watched.probes = 0;
                    watched.next_probe_ms = now_ms;
                }
                (false, _) => {
                    // Who does not ask hears no answers, and must not go on telling what it heard once.
                    watched.chosen_ms = None;
                    watched.heard = None;
                }
                (true, Some(_)) => {}
            }
            // It has turned out to be a gateway.
            let is_foreign = |heard: &Heard| !inputs.gateways.contains(&heard.mac);
            watched.heard = watched.heard.filter(is_foreign);
        }
        self.inputs = inputs;
        self.handle_deadline(now_ms);
    }

    /// A machine has said that it has this address. True if that is news: another machine than gateways, and not the one
    /// that is known already.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddress, now_ms: u64) -> bool {
        let Some(watched) = self.watched.get_mut(&address) else {
            return false;
        };
        if self.inputs.gateways.contains(&mac) {
            // Somebody of ours announces it, whatever the objects say yet.
            watched.usable = true;
            return false;
        }
        if watched.chosen_ms.is_none() {
            return false;
        }
        let before = watched.heard.replace(Heard {
            mac,
            last_ms: now_ms,
        });
        let since = watched.defended_ms;
        let may_defend = since.is_none_or(|at| now_ms >= at.saturating_add(CONFLICT_DEFEND_MS));
        if watched.usable && may_defend {
            watched.defended_ms = Some(now_ms);
            self.commands.push(ConflictCommand::Defend(address));
        }
        if before.is_none() {
            let soon = now_ms.saturating_add(CONFLICT_AGAIN_MS);
            watched.next_probe_ms = watched.next_probe_ms.min(soon);
        }
        before.is_none_or(|before| before.mac != mac)
    }

    /// Sends the probes that are due, and decides what is due to be decided.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        for (address, watched) in &mut self.watched {
            let Some(chosen_ms) = watched.chosen_ms else {
                continue;
            };
            let gone = |heard: &Heard| now_ms >= heard.last_ms.saturating_add(CONFLICT_FORGET_MS);
            if watched.heard.as_ref().is_some_and(gone) {
                watched.heard = None;
            }
            if watched.heard.is_none() && now_ms >= decided_at(chosen_ms) {
                watched.usable = true;
            }
            if now_ms < watched.next_probe_ms {
                continue;
            }
            self.commands.push(ConflictCommand::Probe(*address));
            watched.probes += 1;
            let first = CONFLICT_PROBES_AFTER_MS.get(watched.probes);
            let first = first.map(|after| chosen_ms.saturating_add(*after));
            let pause = match watched.heard {
                Some(_) => CONFLICT_AGAIN_MS,
                None => CONFLICT_REFRESH_MS,
            };
            let next = first.filter(|at| *at > now_ms);
            watched.next_probe_ms = next.unwrap_or(now_ms.saturating_add(pause));
        }
    }

    /// Whether this node may announce the address.
    pub fn may_announce(&self, address: &IpAddr) -> bool {
        self.watched
            .get(address)
            .is_some_and(|watched| watched.usable)
    }

    /// When to call [`Self::handle_deadline`] next.
    pub fn next_deadline(&self) -> Option<u64> {
        self.chosen()
            .map(|(_, watched)| watched.next_probe_ms)
            .min()
    }

    /// When [`Self::update`] may let something be announced, or forget a machine, although nothing else has changed.
    pub fn decision_at(&self) -> Option<u64> {
        let due = |(chosen_ms, watched): (u64, &Watched)| match watched.heard {
            Some(heard) => Some(heard.last_ms.saturating_add(CONFLICT_FORGET_MS)),
            None if !watched.usable => Some(decided_at(chosen_ms)),
            None => None,
        };
        self.chosen().filter_map(due).min()
    }

    fn chosen(&self) -> impl Iterator<Item = (u64, &Watched)> {
        let all = self.watched.values();
        all.filter_map(|watched| Some((watched.chosen_ms?, watched)))
    }

    /// What is to be done, in order.
    pub fn drain(&mut self) -> Vec<ConflictCommand> {
        std::mem::take(&mut self.commands)
    }

    /// The machines that have addresses which this node would announce.
    pub fn conflicts(&self) -> BTreeMap<IpAddr, MacAddress> {
        let all = self.watched.iter();
        all.filter_map(|(address, watched)| Some((*address, watched.heard?.mac)))
            .collect()
    }

    /// Addresses that are worth hearing of.
    pub fn served(&self) -> &BTreeSet<IpAddr> {
        &self.inputs.served
    }
}

fn decided_at(chosen_ms: u64) -> u64 {
    chosen_ms.saturating_add(CONFLICT_DECIDED_MS)
}

#[cfg(test)]
mod tests;
