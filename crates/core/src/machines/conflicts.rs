//! Address conflict detection for egress addresses (RFC 5227 for IPv4; the same with duplicate address detection of RFC
//! 4862 for IPv6), by a gateway for the addresses that it would announce.
//!
//! ```text
//!  no gateway has announced it yet --probes--> nobody answers: may be announced
//!                                      \-----> a machine that is no gateway answers: not announced, probed again
//!  a gateway has announced it: may be announced at once (takeover without delay); probed now and then
//!                                      \-----> a machine that is no gateway answers: reported, defended, announced on
//! ```
//!
//! An address in use stays in use, as RFC 5227 section 2.4 (c) permits for hosts that depend on it: connections exist.
//! Gateways may announce one address at once for moments; they know each other by their hardware addresses.

use crate::model::MacAddress;
use crate::numbers::{
    CONFLICT_AGAIN_MS, CONFLICT_DECIDED_MS, CONFLICT_DEFEND_MS, CONFLICT_FORGET_MS,
    CONFLICT_PROBES_AFTER_MS, CONFLICT_REFRESH_MS,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Command to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConflictCommand {
    /// Send an ARP probe or neighbour solicitation for the address, without claiming it.
    Probe(IpAddr),
    /// Announce once more that this node has it.
    Defend(IpAddr),
}

/// Facts of a gateway about the addresses that it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictInputs {
    /// Addresses that gateways answer for on the segment.
    pub served: BTreeSet<IpAddr>,
    /// Served addresses that this node would announce.
    pub chosen: BTreeSet<IpAddr>,
    /// Served addresses that some gateway has announced, as far as is known; the last report of a dead gateway counts.
    pub used: BTreeSet<IpAddr>,
    /// Served addresses that a gateway's own kernel has: answers for them come from that kernel, possibly with a VRRP
    /// hardware address.
    pub held: BTreeSet<IpAddr>,
    /// Hardware addresses of gateways, this one included.
    pub gateways: BTreeSet<MacAddress>,
}

/// A machine that answers for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    mac: MacAddress,
    last_ms: u64,
}

/// Detection state of one address.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// Gateways use it, or nobody answered the probes.
    usable: bool,
    /// Time since which this node would announce it.
    chosen_ms: Option<u64>,
    /// Number of probes sent since then.
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
    /// Decides again. An address that was used stays usable while it is served: a gateway that withdraws an address for
    /// another must not make that one wait.
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
                    // A node that does not probe gets no answers, and must not report old ones.
                    watched.chosen_ms = None;
                    watched.heard = None;
                }
                (true, Some(_)) => {}
            }
            // The machine has turned out to be a gateway.
            let is_foreign = |heard: &Heard| !inputs.gateways.contains(&heard.mac);
            watched.heard = watched.heard.filter(is_foreign);
            watched.decide(now_ms);
        }
        self.inputs = inputs;
        self.handle_deadline(now_ms);
    }

    /// Records that a machine claims this address. Returns true if that is news: the machine is no gateway, and not the
    /// one that is known already.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddress, now_ms: u64) -> bool {
        let Some(watched) = self.watched.get_mut(&address) else {
            return false;
        };
        if self.inputs.gateways.contains(&mac) {
            // A gateway announces it, even if the objects do not show it yet.
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

    /// Sends due probes. Decisions wait for [`Self::update`]: what is decided here would be announced by nobody.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        for (address, watched) in &mut self.watched {
            let Some(chosen_ms) = watched.chosen_ms else {
                continue;
            };
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

    /// Latest time of the next call of [`Self::handle_deadline`].
    pub fn next_deadline(&self) -> Option<u64> {
        self.chosen()
            .map(|(_, watched)| watched.next_probe_ms)
            .min()
    }

    /// Time at which [`Self::update`] may permit an announcement or forget a machine, although nothing else has
    /// changed.
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

    /// Pending commands, in order.
    pub fn drain(&mut self) -> Vec<ConflictCommand> {
        std::mem::take(&mut self.commands)
    }

    /// Other machines that have addresses which this node would announce.
    pub fn conflicts(&self) -> BTreeMap<IpAddr, MacAddress> {
        let all = self.watched.iter();
        all.filter_map(|(address, watched)| Some((*address, watched.heard?.mac)))
            .collect()
    }

    /// Whether this is the hardware address of a gateway, this node included.
    pub fn is_gateway(&self, mac: MacAddress) -> bool {
        self.inputs.gateways.contains(&mac)
    }

    /// Addresses for which claims by other machines matter.
    pub fn served(&self) -> &BTreeSet<IpAddr> {
        &self.inputs.served
    }
}

impl Watched {
    /// Forgets a machine that has been silent, and permits what nobody has claimed in time.
    fn decide(&mut self, now_ms: u64) {
        let gone = |heard: &Heard| now_ms >= heard.last_ms.saturating_add(CONFLICT_FORGET_MS);
        if self.heard.as_ref().is_some_and(gone) {
            self.heard = None;
        }
        let decided = self.chosen_ms.is_some_and(|at| now_ms >= decided_at(at));
        self.usable |= self.heard.is_none() && decided;
    }
}

fn decided_at(chosen_ms: u64) -> u64 {
    chosen_ms.saturating_add(CONFLICT_DECIDED_MS)
}

#[cfg(test)]
mod tests;
