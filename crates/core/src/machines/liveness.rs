//! Which gateways are alive, as seen by probes through the tunnel (design section 6).
//!
//! ```text
//!               first reply                 `failures` probes in a row unanswered
//!    Unknown ----------------> Alive ---------------------------------> Dead
//!       |                        ^                                        |
//!       |  `failures` unanswered |  enough replies in a row               |
//!       +---------> Dead         +----------------------------------------+
//! ```
//! Only probes count, never time alone: a node that was itself held up for a second has sent no probes in it and
//! declares nobody dead. Read what has arrived before calling `handle_deadline`.

use crate::hash::StableHash;
use crate::model::NodeName;
use crate::numbers::{
    FLAP_WINDOW_MS, PROBE_FAILURES, PROBE_INTERVAL_MS, PROBE_PEERS_FULL_RATE,
    PROBE_RECOVER_DOUBLINGS_MAX, PROBE_RECOVER_REPLIES,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How one gateway is probed.
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

/// What the agent is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LivenessCommand {
    /// Send a probe with this nonce.
    SendProbe {
        /// To this gateway.
        peer: NodeName,
        /// The reply must carry it.
        nonce: u64,
    },
    /// It answers (again).
    Alive {
        /// The gateway.
        peer: NodeName,
    },
    /// It answers no more, or never did.
    Dead {
        /// The gateway.
        peer: NodeName,
    },
    /// It had begun to answer again, was not yet trusted, and answers no more. It may have announced meanwhile.
    Lapsed {
        /// The gateway.
        peer: NodeName,
    },
    /// Its steering version is another than before.
    Version {
        /// The gateway.
        peer: NodeName,
        /// What its eBPF program answered.
        version: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Unknown,
    Alive,
    /// With the replies in a row since.
    Dead {
        replies: u32,
    },
}

#[derive(Debug)]
struct Peer {
    settings: ProbeSettings,
    health: Health,
    /// It was there when this node began, so that nothing is decided before it is known: see [`Liveness::settled`].
    awaited: bool,
    /// Nonces of the last probes, oldest first, at most `failures`: an older one has already counted as lost.
    outstanding: VecDeque<u64>,
    /// Probes sent since the newest one that was answered.
    missed: u32,
    next_probe_ms: u64,
    version: Option<u64>,
    /// Deaths of the last `FLAP_WINDOW_MS`, at most `PROBE_RECOVER_DOUBLINGS_MAX + 1`.
    deaths: VecDeque<u64>,
    sent: u64,
}

/// Probes of every gateway that one node looks at.
#[derive(Debug)]
pub struct Liveness {
    seed: u64,
    peers: BTreeMap<NodeName, Peer>,
    /// Peers have been set before.
    begun: bool,
    commands: Vec<LivenessCommand>,
}

impl Liveness {
    /// `seed` must be random and secret: nonces follow from it, and whoever can guess them can keep a dead gateway
    /// alive.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            peers: BTreeMap::new(),
            begun: false,
            commands: Vec::new(),
        }
    }

    /// Sets whom to probe. Peers that stay keep their state; new ones are probed at once.
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

    /// This node could not send or receive for a while, as it knows of itself (no carrier): what was not answered until
    /// now counts for nothing, and probes go on.
    pub fn resume(&mut self, now_ms: u64) {
        for peer in self.peers.values_mut() {
            peer.outstanding.clear();
            peer.missed = 0;
            peer.next_probe_ms = now_ms;
        }
    }

    /// A reply has arrived. Unknown nonces are ignored: late, forged or from before a restart.
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

    /// Milliseconds after its last answer at which a peer is not dead yet, whichever it is; halfway to its last probe.
    pub fn patience_ms(&self) -> u64 {
        let stretch = self.stretch();
        let patience = |peer: &Peer| {
            let interval_ms = peer.settings.interval_ms.saturating_mul(stretch);
            let until_last = interval_ms.saturating_mul(u64::from(peer.settings.failures));
            // With a single failure there is hardly a probe in that time.
            (until_last - interval_ms / 2).max(interval_ms + interval_ms / 4)
        };
        self.peers.values().map(patience).max().unwrap_or(0)
    }

    fn stretch(&self) -> u64 {
        self.peers.len().div_ceil(PROBE_PEERS_FULL_RATE).max(1) as u64
    }

    /// Sends what is due and counts what is lost.
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
            // The first gap differs from peer to peer, so that probes do not leave in one burst for ever.
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

    /// When to call `handle_deadline` next.
    pub fn next_deadline(&self) -> Option<u64> {
        self.peers.values().map(|peer| peer.next_probe_ms).min()
    }

    /// What is to be done, in order.
    pub fn drain(&mut self) -> Vec<LivenessCommand> {
        std::mem::take(&mut self.commands)
    }

    /// Who is alive.
    pub fn live(&self) -> BTreeSet<NodeName> {
        let alive = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.health == Health::Alive);
        alive.map(|(name, _)| name.clone()).collect()
    }

    /// Whether anybody is alive.
    pub fn any_live(&self) -> bool {
        let mut peers = self.peers.values();
        peers.any(|peer| peer.health == Health::Alive)
    }

    /// The last steering version of every peer that ever answered.
    pub fn versions(&self) -> BTreeMap<NodeName, u64> {
        let known = |(name, peer): (&NodeName, &Peer)| Some((name.clone(), peer.version?));
        self.peers.iter().filter_map(known).collect()
    }

    /// Every peer that was there when this node began is known to be alive or dead. One that comes later is not alive
    /// before it has answered, and nothing waits for it.
    pub fn settled(&self) -> bool {
        self.peers
            .values()
            .all(|peer| peer.health != Health::Unknown || !peer.awaited)
    }
}

/// Replies in a row that a dead peer needs: more for one that dies often.
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
