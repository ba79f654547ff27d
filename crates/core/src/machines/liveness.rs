//! Liveness of gateways, measured by probes through the tunnel (design section 6).
//!
//! ```text
//!               first reply                 `failures` probes in a row unanswered
//!    Unknown ----------------> Alive ---------------------------------> Dead
//!       |                        ^                                        |
//!       |  `failures` unanswered |  enough replies in a row               |
//!       +---------> Dead         +----------------------------------------+
//! ```
//!
//! Only probes count, never time alone: a node that was suspended for a second has sent no probes in it and declares
//! nobody dead. Process arrived replies before calling `handle_deadline`.

use crate::hash::StableHash;
use crate::model::NodeName;
use crate::numbers::{
    FLAP_WINDOW_MS, PROBE_FAILURES, PROBE_INTERVAL_MS, PROBE_PEERS_FULL_RATE,
    PROBE_RECOVER_DOUBLINGS_MAX, PROBE_RECOVER_REPLIES,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Probe settings of one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Milliseconds between probes.
    pub interval_ms: u64,
    /// Probes without answer until it counts as dead.
    pub failures: u32,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            interval_ms: PROBE_INTERVAL_MS,
            failures: PROBE_FAILURES,
        }
    }
}

/// Command to the agent, or event for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LivenessCommand {
    /// Send a probe with this nonce.
    SendProbe {
        /// To this gateway.
        peer: NodeName,
        /// Nonce that the reply must carry.
        nonce: u64,
    },
    /// The gateway answers (again).
    Alive {
        /// The gateway.
        peer: NodeName,
    },
    /// The gateway stopped answering, or never answered.
    Dead {
        /// The gateway.
        peer: NodeName,
    },
    /// The gateway had begun to answer again, was not trusted yet, and stopped answering. It may have announced
    /// meanwhile.
    Lapsed {
        /// The gateway.
        peer: NodeName,
    },
    /// The gateway's steering version changed.
    Version {
        /// The gateway.
        peer: NodeName,
        /// Steering version in the reply of its eBPF program.
        version: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Unknown,
    Alive,
    /// With the number of consecutive replies since then.
    Dead {
        replies: u32,
    },
}

#[derive(Debug)]
struct Peer {
    settings: ProbeSettings,
    health: Health,
    /// It existed when this node began, so no decision is made before its state is known: see [`Liveness::settled`].
    awaited: bool,
    /// Nonces of the last probes, oldest first, at most `failures`: older ones already count as lost.
    outstanding: VecDeque<u64>,
    /// Number of probes sent since the newest answered one.
    missed: u32,
    next_probe_ms: u64,
    version: Option<u64>,
    /// Times of deaths within the last `FLAP_WINDOW_MS`, at most `PROBE_RECOVER_DOUBLINGS_MAX + 1`.
    deaths: VecDeque<u64>,
    sent: u64,
}

/// Probes of one node to every gateway.
#[derive(Debug)]
pub struct Liveness {
    seed: u64,
    peers: BTreeMap<NodeName, Peer>,
    /// Peers have been set at least once.
    begun: bool,
    commands: Vec<LivenessCommand>,
}

impl Liveness {
    /// `seed` must be random and secret: nonces are derived from it, and anyone who can guess them can make a dead
    /// gateway look alive.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            peers: BTreeMap::new(),
            begun: false,
            commands: Vec::new(),
        }
    }

    /// Sets the gateways to probe. Remaining peers keep their state; new ones are probed at once.
    pub fn set_peers(&mut self, peers: &BTreeMap<NodeName, ProbeSettings>, now_ms: u64) {
        let awaited = !(self.begun && self.settled());
        self.begun = true;
        self.peers.retain(|name, _| peers.contains_key(name));
        for (name, settings) in peers {
            let peer = self.peers.entry(name.clone()).or_insert_with(|| Peer {
                settings: *settings,
                health: Health::Unknown,
                awaited,
                outstanding: VecDeque::new(),
                missed: 0,
                next_probe_ms: now_ms,
                version: None,
                deaths: VecDeque::new(),
                sent: 0,
            });
            peer.settings = ProbeSettings {
                interval_ms: settings.interval_ms.max(1),
                failures: settings.failures.max(1),
            };
        }
    }

    /// Resumes after this node could not send or receive for a while, by its own knowledge (no carrier): unanswered
    /// probes are discarded, and probing continues.
    pub fn resume(&mut self, now_ms: u64) {
        for peer in self.peers.values_mut() {
            peer.outstanding.clear();
            peer.missed = 0;
            peer.next_probe_ms = now_ms;
        }
    }

    /// Records a reply. Unknown nonces are ignored: late, forged or from before a restart.
    pub fn reply_received(&mut self, name: &NodeName, nonce: u64, version: u64, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(position) = peer.outstanding.iter().position(|known| *known == nonce) else {
            return;
        };
        peer.outstanding.drain(..=position);
        peer.missed = u32::try_from(peer.outstanding.len()).unwrap_or(u32::MAX);
        if peer.version.replace(version) != Some(version) {
            self.commands.push(LivenessCommand::Version {
                peer: name.clone(),
                version,
            });
        }
        let back = match &mut peer.health {
            Health::Alive => false,
            Health::Unknown => true,
            Health::Dead { replies } => {
                *replies += 1;
                *replies >= needed_replies(&mut peer.deaths, now_ms)
            }
        };
        if back {
            peer.health = Health::Alive;
            self.commands
                .push(LivenessCommand::Alive { peer: name.clone() });
        }
    }

    /// Milliseconds after its last answer at which no peer is dead yet; halfway to its last probe.
    pub fn patience_ms(&self) -> u64 {
        let stretch = self.stretch();
        let patience = |peer: &Peer| {
            let interval_ms = peer.settings.interval_ms.saturating_mul(stretch);
            let until_last = interval_ms.saturating_mul(u64::from(peer.settings.failures));
            // With `failures` 1 there is hardly a probe in that time.
            (until_last - interval_ms / 2).max(interval_ms + interval_ms / 4)
        };
        self.peers.values().map(patience).max().unwrap_or(0)
    }

    fn stretch(&self) -> u64 {
        self.peers.len().div_ceil(PROBE_PEERS_FULL_RATE).max(1) as u64
    }

    /// Sends due probes and counts lost ones.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        let stretch = self.stretch();
        for (name, peer) in &mut self.peers {
            if now_ms < peer.next_probe_ms {
                continue;
            }
            if peer.missed >= peer.settings.failures {
                match &mut peer.health {
                    Health::Dead { replies } => {
                        if std::mem::take(replies) > 0 {
                            self.commands
                                .push(LivenessCommand::Lapsed { peer: name.clone() });
                        }
                    }
                    Health::Unknown | Health::Alive => {
                        peer.health = Health::Dead { replies: 0 };
                        peer.deaths.push_back(now_ms);
                        if peer.deaths.len() > PROBE_RECOVER_DOUBLINGS_MAX as usize + 1 {
                            peer.deaths.pop_front();
                        }
                        self.commands
                            .push(LivenessCommand::Dead { peer: name.clone() });
                    }
                }
            }
            peer.sent += 1;
            let hash = StableHash::new("nonce").number(self.seed).text(&name.0);
            let nonce = hash.number(peer.sent).finish();
            peer.outstanding.push_back(nonce);
            while peer.outstanding.len() > peer.settings.failures as usize {
                peer.outstanding.pop_front();
            }
            peer.missed = peer.missed.saturating_add(1);
            let interval = peer.settings.interval_ms.saturating_mul(stretch);
            // The first interval differs by peer, so that probes are not sent in one burst.
            let wait = if peer.sent == 1 {
                1 + hash.finish() % interval
            } else {
                interval
            };
            peer.next_probe_ms = now_ms.saturating_add(wait);
            self.commands.push(LivenessCommand::SendProbe {
                peer: name.clone(),
                nonce,
            });
        }
    }

    /// Latest time of the next call of `handle_deadline`.
    pub fn next_deadline(&self) -> Option<u64> {
        self.peers.values().map(|peer| peer.next_probe_ms).min()
    }

    /// Pending commands, in order.
    pub fn drain(&mut self) -> Vec<LivenessCommand> {
        std::mem::take(&mut self.commands)
    }

    /// Live gateways.
    pub fn live(&self) -> BTreeSet<NodeName> {
        let alive = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.health == Health::Alive);
        alive.map(|(name, _)| name.clone()).collect()
    }

    /// Whether any gateway is alive.
    pub fn any_live(&self) -> bool {
        let mut peers = self.peers.values();
        peers.any(|peer| peer.health == Health::Alive)
    }

    /// The last steering version of every peer that ever answered.
    pub fn versions(&self) -> BTreeMap<NodeName, u64> {
        let known = |(name, peer): (&NodeName, &Peer)| Some((name.clone(), peer.version?));
        self.peers.iter().filter_map(known).collect()
    }

    /// Whether every peer that existed when this node began is known to be alive or dead. A later peer counts as not
    /// alive until it answers, and nothing waits for it.
    pub fn settled(&self) -> bool {
        self.peers
            .values()
            .all(|peer| peer.health != Health::Unknown || !peer.awaited)
    }
}

/// Consecutive replies that a dead peer needs: more for a peer that dies often.
fn needed_replies(deaths: &mut VecDeque<u64>, now_ms: u64) -> u32 {
    while deaths
        .front()
        .is_some_and(|death| death.saturating_add(FLAP_WINDOW_MS) <= now_ms)
    {
        deaths.pop_front();
    }
    let again = u32::try_from(deaths.len().saturating_sub(1)).unwrap_or(u32::MAX);
    PROBE_RECOVER_REPLIES << again.min(PROBE_RECOVER_DOUBLINGS_MAX)
}

#[cfg(test)]
mod tests;
