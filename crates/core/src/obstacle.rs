//! What of a node stands in the way of Egret's packets, and what a person can do about it: rules of firewalls, settings,
//! other people's policy routing. Pure: the data path reads, this says what it means.
//!
//! A firewall is not searched for patterns: the packets that matter (out of a pod into the tunnel, out of the tunnel,
//! and of the tunnel itself) are led through its chains ([`firewall`]), and whatever refuses them is told. A refusal
//! that asks for an address or a port is somebody's wish and no obstacle.

pub mod firewall;
mod remedy;
mod samples;
mod settings;
#[cfg(test)]
mod tests;

pub use settings::{RoutingRule, Settings, of_settings};

use crate::model::ObjectRef;
use crate::node::{Group, NodeOutcome, Target};
use crate::numbers::{LIFT_DEVICE, TUNNEL_DEVICE, TUNNEL_PORT};
use firewall::{Chains, Device, Fate, Packet, Refusal, state, walk};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What kind of thing stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ObstacleKind {
    /// The policy of a forward chain.
    ForwardPolicy,
    /// A rule of a forward chain that refuses what came through to it.
    ForwardRule,
    /// A rule that drops what has no route back to its source.
    ReversePathRule,
    /// Another rule that drops before routing.
    PreroutingRule,
    /// An input chain that does not let the tunnel in.
    TunnelPort,
    /// The kernel's own reverse path filter.
    ReversePathSetting,
    /// Bridges hand their frames to the firewall.
    BridgeNetfilter,
    /// Somebody else uses bits of our mark.
    MarkOverlap,
    /// A policy routing rule of somebody else comes before ours.
    RoutingRule,
    /// The kernel is built without something.
    KernelOption,
    /// Packets of a tunnel's full size do not fit.
    Mtu,
}

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// What kind.
    pub kind: ObstacleKind,
    /// Where: a chain, a setting, a rule, as its tool writes it.
    pub place: String,
    /// What it does, in a sentence.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
    /// IPv4 is concerned.
    pub v4: bool,
    /// IPv6 is concerned.
    pub v6: bool,
    /// It does stop our packets; otherwise it may.
    pub certain: bool,
}

impl Obstacle {
    /// Whether nothing of this family gets through.
    pub fn stops(&self, is_v4: bool) -> bool {
        use ObstacleKind::{ForwardPolicy, ForwardRule, PreroutingRule, ReversePathRule};
        let of_way = matches!(
            self.kind,
            ForwardPolicy | ForwardRule | PreroutingRule | ReversePathRule
        );
        of_way && self.certain && if is_v4 { self.v4 } else { self.v6 }
    }

    /// For a condition: what, and what to do.
    pub fn told(&self) -> String {
        format!("{}: {}", self.text, self.remedy)
    }
}

/// Who wrote a table, and how it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// `nft`.
    Nft,
    /// `iptables-nft` or `ip6tables-nft`.
    IptablesNft,
    /// `iptables-legacy` or `ip6tables-legacy`.
    IptablesLegacy,
}

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Everything that comes in.
    Prerouting,
    /// What is for the node itself.
    Input,
    /// What passes through.
    Forward,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub chain: String,
    /// Its hook.
    pub hook: Hook,
    /// Its priority there.
    pub priority: i32,
    /// What it does not accept is dropped.
    pub policy_drops: bool,
}

/// A table of a firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Who wrote it.
    pub tool: Tool,
    /// It sees IPv4.
    pub v4: bool,
    /// It sees IPv6.
    pub v6: bool,
    /// Its name.
    pub name: String,
    /// A process owns it, and lets nobody else change it.
    pub owned: bool,
    /// Where its chains hook in.
    pub bases: Vec<Base>,
    /// Rules of the chains that have been read.
    pub chains: Chains,
}

/// What is known of the packets of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// A selected pod of this node.
    pub pod: Option<IpAddr>,
    /// Its egress address.
    pub egress: Option<IpAddr>,
    /// A selected destination.
    pub outside: Option<IpAddr>,
    /// The protocol that it is selected for; `None`: any.
    pub protocol: Option<u8>,
    /// Its port.
    pub port: Option<u16>,
    /// What the pod sends comes out of the device for what is lifted.
    pub lifted: bool,
    /// It leaves by the node's own device; only answers that another gateway got come out of the tunnel.
    pub leaves_here: bool,
}

/// Packets to look for, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// IPv4; `None`: nothing of this family is sent through the tunnel.
    pub v4: Option<Sample>,
    /// IPv6.
    pub v6: Option<Sample>,
    /// The node takes part in the tunnel at all.
    pub tunnel: bool,
}

impl Samples {
    /// Which families there are packets of, and whether the node takes part at all.
    pub fn families(&self) -> (bool, bool, bool) {
        (self.v4.is_some(), self.v6.is_some(), self.tunnel)
    }
}

/// Takes from what is reported as programmed what obstacles stop: policies with an egress address of a family of which
/// nothing gets through the tunnel.
pub fn discount(outcome: &mut NodeOutcome, obstacles: &[Obstacle]) {
    let worker = &outcome.state.worker;
    let is_stopped = |target: &&Target| {
        let is_v4 = target.address.is_ipv4();
        matches!(worker.groups.get(&target.group), Some(Group::Tunnel(_)))
            && obstacles.iter().any(|obstacle| obstacle.stops(is_v4))
    };
    let stopped = worker.targets.values().filter(is_stopped);
    let mut policies = BTreeSet::new();
    let mut unknown = false;
    for target in stopped {
        match outcome.traffic_keys.get(&target.traffic_key) {
            Some(Some(account)) => drop(policies.insert(&account.policy)),
            // Of a policy that is counted with others.
            _ => unknown = true,
        }
    }
    let counted = outcome.traffic_keys.values().flatten();
    let counted: BTreeSet<&ObjectRef> = counted.map(|account| &account.policy).collect();
    for one in &mut outcome.programmed {
        if policies.contains(&one.policy) || (unknown && !counted.contains(&one.policy)) {
            one.pods = 0;
        }
    }
}

/// A chain that has to be read before anything can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Position of its table.
    pub table: usize,
    /// Its name.
    pub chain: String,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Priority of a packet's translation in prerouting (`NF_IP_PRI_NAT_DST`): from here on an answer is for the pod.
const TRANSLATION: i32 = -100;

/// One packet at one hook.
struct Probe {
    hook: Hook,
    packet: Packet,
    /// Its destination before it is translated back.
    untranslated: Option<IpAddr>,
}

impl Sample {
    /// Out into the tunnel, and back out of it.
    fn probes(&self, is_v4: bool) -> Vec<Probe> {
        let outside = Some(self.outside.unwrap_or(samples::nobody(is_v4)));
        let out = Packet {
            is_v4,
            input: match self.lifted {
                true => Device::Named(LIFT_DEVICE),
                false => Device::Other,
            },
            output: Device::Named(TUNNEL_DEVICE),
            source: self.pod,
            destination: outside,
            protocol: self.protocol.unwrap_or(TCP),
            port: Some(self.port.unwrap_or(443)),
            state: state::NEW,
            mark: 0,
        };
        let back = Packet {
            input: Device::Named(TUNNEL_DEVICE),
            output: Device::Other,
            source: outside,
            destination: self.pod,
            port: None,
            state: state::ESTABLISHED,
            ..out.clone()
        };
        let arrives = Packet {
            output: Device::None,
            ..back.clone()
        };
        let probe = |hook, packet| Probe {
            hook,
            packet,
            untranslated: self.egress,
        };
        let mut probes = vec![probe(Hook::Prerouting, arrives), probe(Hook::Forward, back)];
        if !self.leaves_here {
            probes.push(probe(Hook::Forward, out));
        }
        probes
    }
}

/// A packet of the tunnel as it arrives at a node.
fn tunnel_probe(is_v4: bool) -> Probe {
    Probe {
        hook: Hook::Input,
        packet: Packet {
            is_v4,
            input: Device::Other,
            output: Device::None,
            source: None,
            destination: None,
            protocol: UDP,
            port: Some(TUNNEL_PORT),
            state: state::UNTRACKED,
            mark: 0,
        },
        untranslated: None,
    }
}

/// What of these tables refuses the packets.
///
/// # Errors
/// A chain must be read first.
pub fn of_firewalls(tables: &[Table], samples: &Samples) -> Result<Vec<Obstacle>, Unread> {
    let mut found: BTreeMap<(ObstacleKind, String), Obstacle> = BTreeMap::new();
    for is_v4 in [true, false] {
        let sample = if is_v4 { &samples.v4 } else { &samples.v6 };
        let mut probes = sample.as_ref().map_or_else(Vec::new, |s| s.probes(is_v4));
        probes.extend(samples.tunnel.then(|| tunnel_probe(is_v4)));
        let lifted = sample.as_ref().is_some_and(|sample| sample.lifted);
        for probe in probes {
            for (table, base, refusal) in refused(tables, &probe)? {
                let mut obstacle = remedy::obstacle(table, base, &refusal, (is_v4, lifted));
                if probe.hook == Hook::Input {
                    // Who may reach the node is asked for by address, and those of peers are not known here: a rule
                    // that may let them in counts, and nothing is certain.
                    if !refusal.is_certain {
                        continue;
                    }
                    obstacle.certain = false;
                }
                let known = found.entry((obstacle.kind, obstacle.place.clone()));
                known
                    .and_modify(|known| {
                        known.v4 |= obstacle.v4;
                        known.v6 |= obstacle.v6;
                        known.certain |= obstacle.certain;
                    })
                    .or_insert(obstacle);
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Where the packet is refused, at most once in each base chain.
fn refused<'a>(
    tables: &'a [Table],
    probe: &Probe,
) -> Result<Vec<(&'a Table, &'a Base, Refusal)>, Unread> {
    let mut bases: Vec<(usize, &Table, &Base)> = Vec::new();
    for (number, table) in tables.iter().enumerate() {
        let sees = if probe.packet.is_v4 {
            table.v4
        } else {
            table.v6
        };
        if sees {
            let here = table.bases.iter().filter(|base| base.hook == probe.hook);
            bases.extend(here.map(|base| (number, table, base)));
        }
    }
    bases.sort_by_key(|(number, _, base)| (base.priority, *number));
    let mut packet = probe.packet.clone();
    let translated = packet.destination;
    let mut found = Vec::new();
    for (number, table, base) in bases {
        if probe.hook == Hook::Prerouting && base.priority < TRANSLATION {
            packet.destination = probe.untranslated;
        } else {
            packet.destination = translated;
        }
        match walk(&table.chains, &base.chain, base.policy_drops, &mut packet) {
            Fate::Unread(chain) => {
                return Err(Unread {
                    table: number,
                    chain,
                });
            }
            Fate::Passes => {}
            Fate::Refused(refusal) if refusal.is_meant => {}
            Fate::Refused(refusal) => found.push((table, base, refusal)),
        }
    }
    Ok(found)
}
