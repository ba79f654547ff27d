//! Obstacles of a node to Egret's packets, with remedies: firewall rules, settings, others' policy routing. Pure: the
//! data path reads the kernel, this module interprets it.
//!
//! Firewalls are not searched for patterns. The relevant packets (out of a pod into the tunnel, out of the tunnel, and
//! of the tunnel itself) are evaluated against their chains ([`firewall`]), and every rule that refuses them is
//! reported. A refusal that matches an address or a port is intended and no obstacle.

pub mod firewall;
mod remedy;
mod samples;
mod settings;
#[cfg(test)]
mod tests;

pub use settings::{RoutingRule, Settings, of_settings};

use crate::model::ObjectRef;
use crate::node::{Group, NodeOutcome, Target};
use crate::numbers::{REINJECT_DEVICE, TUNNEL_DEVICE, TUNNEL_PORT};
use firewall::{Chains, Device, Fate, Packet, Refusal, state, walk};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Kind of obstacle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ObstacleKind {
    /// The policy of a forward chain.
    ForwardPolicy,
    /// A rule of a forward chain that refuses the remaining packets.
    ForwardRule,
    /// A rule that drops packets without a route back to their source.
    ReversePathRule,
    /// Another rule that drops before routing.
    PreroutingRule,
    /// An input chain that does not accept tunnel packets.
    TunnelPort,
    /// The kernel's own reverse path filter.
    ReversePathSetting,
    /// Bridges pass their frames to the firewall.
    BridgeNetfilter,
    /// Others use bits of our mark.
    MarkOverlap,
    /// A policy routing rule of others precedes ours.
    RoutingRule,
    /// The kernel lacks a build option.
    KernelOption,
    /// Tunnel packets of full size exceed the MTU.
    Mtu,
    /// Services are translated by IPVS.
    Ipvs,
}

/// One obstacle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// Its kind.
    pub kind: ObstacleKind,
    /// Its place: a chain, a setting or a rule, in the syntax of its tool.
    pub place: String,
    /// Its effect, as a sentence.
    pub text: String,
    /// Remedy, as an instruction.
    pub remedy: String,
    /// It affects IPv4.
    pub v4: bool,
    /// It affects IPv6.
    pub v6: bool,
    /// It certainly stops our packets; otherwise it may.
    pub certain: bool,
}

impl Obstacle {
    /// Whether it stops all packets of this family.
    pub fn stops(&self, is_v4: bool) -> bool {
        use ObstacleKind::{ForwardPolicy, ForwardRule, PreroutingRule, ReversePathRule};
        let of_way = matches!(
            self.kind,
            ForwardPolicy | ForwardRule | PreroutingRule | ReversePathRule
        );
        of_way && self.certain && if is_v4 { self.v4 } else { self.v6 }
    }

    /// Text for a condition: effect and remedy.
    pub fn told(&self) -> String {
        format!("{}: {}", self.text, self.remedy)
    }
}

/// Tool that wrote a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// `nft`.
    Nft,
    /// `iptables-nft` or `ip6tables-nft`.
    IptablesNft,
    /// `iptables-legacy` or `ip6tables-legacy`.
    IptablesLegacy,
}

/// Hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Every arriving packet.
    Prerouting,
    /// Packets for the node itself.
    Input,
    /// Forwarded packets.
    Forward,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub chain: String,
    /// Its hook.
    pub hook: Hook,
    /// Its priority at the hook.
    pub priority: i32,
    /// Its policy is drop.
    pub policy_drops: bool,
}

/// A table of a firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The tool that wrote it.
    pub tool: Tool,
    /// It sees IPv4.
    pub v4: bool,
    /// It sees IPv6.
    pub v6: bool,
    /// Its name.
    pub name: String,
    /// A process owns it, and nobody else can change it.
    pub owned: bool,
    /// Its base chains.
    pub bases: Vec<Base>,
    /// Rules of those chains that have been read.
    pub chains: Chains,
}

/// Known properties of the packets of one family.
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
    /// Destination port that it is selected for.
    pub port: Option<u16>,
    /// Packets of the pod are reinjected, so they arrive by the device `egret-lift`.
    pub reinjected: bool,
    /// Its packets leave by the node's own device; only answers that another gateway received arrive by the tunnel.
    pub leaves_here: bool,
}

/// Packets to evaluate, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// IPv4; `None`: nothing of this family is sent through the tunnel.
    pub v4: Option<Sample>,
    /// IPv6.
    pub v6: Option<Sample>,
    /// The node takes part in the tunnel.
    pub tunnel: bool,
}

impl Samples {
    /// Whether there are packets of IPv4 and of IPv6, and whether the node takes part in the tunnel.
    pub fn families(&self) -> (bool, bool, bool) {
        (self.v4.is_some(), self.v6.is_some(), self.tunnel)
    }
}

/// Corrects the programmed counts by obstacles: policies with an egress address of a family that is stopped count as
/// not programmed.
pub fn discount(outcome: &mut NodeOutcome, obstacles: &[Obstacle]) {
    let worker = &outcome.state.worker;
    let is_stopped = |target: &&Target| {
        let is_v4 = target.address.is_ipv4();
        !target.is_of_canaries()
            && matches!(worker.groups.get(&target.group), Some(Group::Tunnel(_)))
            && obstacles.iter().any(|obstacle| obstacle.stops(is_v4))
    };
    let stopped = worker.targets.values().filter(is_stopped);
    let mut policies = BTreeSet::new();
    let mut unknown = false;
    for target in stopped {
        match outcome.traffic_keys.get(&target.traffic_key) {
            Some(Some(account)) => drop(policies.insert(&account.policy)),
            // Its policy shares a traffic key with others.
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

/// A chain that must be read before the result is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Position of its table.
    pub table: usize,
    /// Its name.
    pub chain: String,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Priority of destination translation in prerouting (`NF_IP_PRI_NAT_DST`): from here on an answer has the pod's
/// address.
const TRANSLATION: i32 = -100;

/// One packet at one hook.
struct Probe {
    hook: Hook,
    packet: Packet,
    /// Its destination before the translation is undone.
    untranslated: Option<IpAddr>,
}

impl Sample {
    /// Packets into the tunnel and back out of it.
    fn probes(&self, is_v4: bool) -> Vec<Probe> {
        let outside = Some(self.outside.unwrap_or(samples::nobody(is_v4)));
        let out = Packet {
            is_v4,
            input: match self.reinjected {
                true => Device::Named(REINJECT_DEVICE),
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

/// A tunnel packet as it arrives at a node.
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

/// Obstacles in these tables.
///
/// # Errors
/// A chain must be read first.
pub fn of_firewalls(tables: &[Table], samples: &Samples) -> Result<Vec<Obstacle>, Unread> {
    let mut found: BTreeMap<(ObstacleKind, String), Obstacle> = BTreeMap::new();
    for is_v4 in [true, false] {
        let sample = if is_v4 { &samples.v4 } else { &samples.v6 };
        let mut probes = sample.as_ref().map_or_else(Vec::new, |s| s.probes(is_v4));
        probes.extend(samples.tunnel.then(|| tunnel_probe(is_v4)));
        let reinjected = sample.as_ref().is_some_and(|sample| sample.reinjected);
        for probe in probes {
            for (table, base, refusal) in refused(tables, &probe)? {
                let mut obstacle = remedy::obstacle(table, base, &refusal, (is_v4, reinjected));
                if probe.hook == Hook::Input {
                    // Rules of the input hook match by addresses, and those of peers are not known here: a rule that
                    // may accept them counts, and no result is certain.
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

/// Places where the packet is refused, at most one per base chain.
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
