//! Facts that only the node itself can observe.

use super::grants::NodeGrants;
use super::ids::{GroupNumber, TunnelIndex};
use super::issue::{IssueKind, NodeIssue};
use super::pairings::PodPairings;
use super::pod_forwarding::PathFacts;
use super::state::Attachment;
use crate::canary::{CanaryKind, Lost};
use crate::model::*;
use crate::numbers::{FOREIGN_MARK_BIT, MARK_MASK, MARK_SHIFT};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// The external device of a gateway, found by its agent (see [`external_choice`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Name of the device.
    pub device: String,
    /// The device is up and has carrier, and its gateway has not withdrawn because nothing behind it answers.
    pub link_up: bool,
    /// Whether the default route of the node uses it: IPv4, IPv6.
    #[serde(default)]
    pub leads_out: [bool; 2],
}

/// Facts that only the node itself can observe, and settings of its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The external device, on gateways that found one.
    pub external: Option<External>,
    /// MTU of the device that carries the tunnel, bytes.
    pub underlay_mtu: u32,
    /// Devices with an address in the network of the node's own underlay address, the device of that address included.
    #[serde(default)]
    pub underlay_devices: BTreeSet<String>,
    /// Other gateways that answer probes, from the liveness machine.
    pub live: BTreeSet<NodeName>,
    /// Gateways that have answered at least once since this agent started, or in adopted state.
    pub ever_live: BTreeSet<NodeName>,
    /// Every gateway has had time to answer a probe. Before that, missing answers mean nothing: a fresh agent applies
    /// no state and reports nothing programmed, since the kernel's state is better than its knowledge.
    pub settled: bool,
    /// Steering version in the last answer of each gateway; stays when the gateway dies.
    pub versions: BTreeMap<NodeName, u64>,
    /// Live gateways whose version stays behind their group's, from [`crate::machines::GatewayLag`].
    #[serde(default)]
    pub lagging: BTreeMap<GatewayName, BTreeSet<NodeName>>,
    /// The highest steering version that this node's own tables ever had, from [`crate::machines::SteeringMemory`].
    #[serde(default)]
    pub steering_version: u64,
    /// Grants of this node that count; `None`: exactly those of its record.
    #[serde(default)]
    pub grants: Option<NodeGrants>,
    /// Addresses that this node announces, from the announcer machine.
    pub announcing: BTreeSet<IpAddr>,
    /// `NodeOutcome::groups` of the last round, or adopted: groups keep their numbers.
    #[serde(with = "crate::pairs")]
    pub previous_groups: BTreeMap<GroupKey, GroupNumber>,
    /// `NodeOutcome::group_members` of the last round, or adopted: for fail static.
    #[serde(with = "crate::pairs")]
    pub last_group_members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    /// `NodeOutcome::pairings` of the last round, or adopted: pods stay with their addresses.
    #[serde(default)]
    pub pairings: PodPairings,
    /// Egress addresses that have no free port on this node towards some destination: new pods are paired to others.
    #[serde(default)]
    pub full_addresses: BTreeSet<IpAddr>,
    /// Addresses of every device of the node: never egress destinations.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Addresses of [`super::Policies::next_hops`] that this node's kernel reaches without a router between, and that its
    /// gateway can send tunnel packets to.
    #[serde(default)]
    pub attached: BTreeMap<IpAddr, Attachment>,
    /// How packets of its pods can leave the node.
    pub path: PathFacts,
    /// Index of the device of each own pod's address, where it has a device of its own. The key has the pod's uid.
    #[serde(with = "crate::pairs")]
    pub devices: BTreeMap<(IpAddr, String), u32>,
    /// Addresses of own pods whose device at the node is gone, with the uid of that pod: packets from such an address
    /// cannot be attributed to the pod any more.
    pub detached: BTreeSet<(IpAddr, String)>,
    /// Setting: handling of packets of pods that the API has not shown yet.
    pub unknown_pods: UnknownPodsPolicy,
    /// Policy routing rules of others that match bits of our mark.
    #[serde(default)]
    pub foreign_marks: BTreeSet<ForeignMark>,
    /// Index of the canary device; `None`: canaries are off.
    #[serde(default)]
    pub canary_device: Option<u32>,
    /// Paths whose canaries do not come back.
    #[serde(default)]
    pub broken_paths: BTreeSet<BrokenPath>,
    /// Prefixes that the node's own routes show to be pods'.
    #[serde(default)]
    pub pod_routes: BTreeSet<IpNet>,
    /// Addresses that have been in [`super::NodeOutcome::uncovered`] for `POD_UNCOVERED_SECS`.
    #[serde(default)]
    pub uncovered: BTreeSet<IpAddr>,
}

/// A path whose canaries are lost. Pods that use it do not count as programmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BrokenPath {
    /// The gateway group.
    pub group: GroupKey,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Kinds of canaries that are lost.
    pub kinds: BTreeSet<CanaryKind>,
    /// Where the first of them is lost.
    pub lost: Lost,
}

impl BrokenPath {
    pub(super) fn issue(&self) -> NodeIssue {
        NodeIssue {
            kind: IssueKind::PathBroken(self.lost),
            subject: self.group.gateway.0.clone(),
            text: self.to_string(),
        }
    }
}

impl fmt::Display for BrokenPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let kinds: Vec<String> = self.kinds.iter().map(ToString::to_string).collect();
        write!(f, "{family} {}: {}", kinds.join(", "), self.lost)
    }
}

/// A policy routing rule of others that matches bits of our mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignMark {
    /// Priority of the rule.
    pub priority: u32,
    /// Its mark.
    pub mark: u32,
    /// Its mask.
    pub mask: u32,
}

impl ForeignMark {
    /// Whether the rule matches packets with this group number in our bits, alone or together with
    /// [`FOREIGN_MARK_BIT`], as packets with others' marks have it during the route look-up. With such a number, our
    /// packets could take others' routes, and others' packets a different route than without Egret.
    pub fn asks_for(&self, number: GroupNumber) -> bool {
        let ours = u32::from(number) << MARK_SHIFT;
        let matches = |bits: u32| (bits ^ self.mark) & self.mask & MARK_MASK == 0;
        matches(ours) || matches(ours | FOREIGN_MARK_BIT)
    }
}

/// Handling of a new flow to outside from an address in this node's pod CIDRs that no pod has, as far as the API shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnknownPodsPolicy {
    /// The flow leaves as the network plugin routes it.
    #[default]
    Pass,
    /// The flow is dropped.
    Drop,
}

/// Setting: the external device of a gateway node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalChoice {
    /// The device of the node's default route. If none of these addresses is in a network of that device: the first
    /// device by name with one of them in its networks.
    Auto(BTreeSet<IpAddr>),
    /// The device of this name.
    Named(String),
}

/// A device of the node that could be the external device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// The default route of the node uses it.
    pub default: bool,
    /// Its addresses with their prefixes.
    pub networks: &'a [IpNet],
}

impl ExternalChoice {
    /// The chosen candidate, if there is one.
    pub fn among<'a>(&self, candidates: &[Candidate<'a>]) -> Option<&'a str> {
        let addresses = match self {
            ExternalChoice::Named(name) => {
                let named = candidates.iter().find(|one| one.name == name);
                return named.map(|one| one.name);
            }
            ExternalChoice::Auto(addresses) => addresses,
        };
        let holds = |one: &&Candidate<'_>| {
            let mut pairs = one
                .networks
                .iter()
                .flat_map(|net| addresses.iter().map(move |a| (net, a)));
            // A prefix of a single address is no network.
            pairs.any(|(net, address)| {
                net.prefix_len() < net.max_prefix_len() && net.contains(address)
            })
        };
        let default = candidates.iter().find(|one| one.default);
        let holding = || candidates.iter().filter(holds).min_by_key(|one| one.name);
        let chosen = default.filter(holds).or_else(holding).or(default);
        chosen.map(|one| one.name)
    }
}

/// Why no state can be made yet. The agent waits for the next snapshot and does not change the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// The Node object is missing.
    #[error("there is no Node {0}")]
    NoNode(NodeName),
    /// The controller has not assigned a tunnel index to the node.
    #[error("EgressNode {0} does not exist yet: the controller gives the node its tunnel index")]
    NoRecord(NodeName),
    /// The node has no underlay address.
    #[error("Node {0} has no address")]
    NoUnderlay(NodeName),
}

/// Setting by which this node finds its external device; `None` if it is no gateway.
pub fn external_choice(snapshot: &Snapshot, node: &NodeName) -> Option<ExternalChoice> {
    let node = snapshot.nodes.get(node)?;
    let mine = || {
        let all = snapshot.gateways.values();
        all.filter(|gateway| gateway.selects(node))
    };
    mine()
        .next()
        .map(|gateway| match &gateway.external_interface {
            None => {
                let names: BTreeSet<&GatewayName> = mine().map(|gateway| &gateway.name).collect();
                let served = snapshot.addresses.values();
                let served = served.filter(|record| names.contains(&record.gateway));
                ExternalChoice::Auto(served.map(|record| record.address).collect())
            }
            Some(name) => ExternalChoice::Named(name.clone()),
        })
}
