//! What only the node itself knows.

use super::ids::{GroupNumber, TunnelIndex};
use super::path::PathFacts;
use super::report::{NodeReport, ReportKind};
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
    /// It is up and has carrier, and its gateway has not left its place to others because nothing behind it answers.
    pub link_up: bool,
    /// The node sends what is for the rest of the world out of it: IPv4, IPv6.
    #[serde(default)]
    pub leads_out: [bool; 2],
}

/// What only the node itself knows. Everything here is an observation; none of it is a wish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The external device, on gateways that found one.
    pub external: Option<External>,
    /// MTU of the device that carries the tunnel, bytes.
    pub underlay_mtu: u32,
    /// Names of the devices with an address in the network of the own underlay address, its own device among them.
    #[serde(default)]
    pub underlay_devices: BTreeSet<String>,
    /// Other gateways that answer probes (the liveness machine says so).
    pub live: BTreeSet<NodeName>,
    /// Gateways that have answered at least once since this agent started, or in what it adopted.
    pub ever_live: BTreeSet<NodeName>,
    /// Every gateway has had the time to answer: until then, silence means nothing. A fresh agent applies no state
    /// and reports nothing programmed before this: what the kernel has is better than what it knows.
    pub settled: bool,
    /// Steering version of each gateway in its last answer; kept when the gateway dies.
    pub versions: BTreeMap<NodeName, u64>,
    /// Addresses that this node announces (the announcer machine says so).
    pub announcing: BTreeSet<IpAddr>,
    /// `NodeOutcome::groups` of the last time, or what was adopted: groups keep their numbers.
    #[serde(with = "crate::pairs")]
    pub previous_groups: BTreeMap<GroupKey, GroupNumber>,
    /// `NodeOutcome::group_members` of the last time, or what was adopted: for fail static.
    #[serde(with = "crate::pairs")]
    pub last_group_members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    /// Addresses of every device of the node: never egress destinations.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Of the addresses of [`super::wanted_next_hops`], those that its kernel reaches without a router between, and that its
    /// gateway can send tunnel packets to.
    #[serde(default)]
    pub attached: BTreeMap<IpAddr, Attachment>,
    /// How packets of its pods may leave it.
    pub path: PathFacts,
    /// Index of the device that leads to each address of an own pod, by the pod's uid, where it has one of its own.
    #[serde(with = "crate::pairs")]
    pub devices: BTreeMap<(IpAddr, String), u32>,
    /// Addresses of own pods whose device at the node is gone, with the uid of the pod that had it: whatever sends
    /// from them now is not known to be that pod.
    pub detached: BTreeSet<(IpAddr, String)>,
    /// What the agent was told to do with packets of pods that the API has not shown yet.
    pub unknown_pods: UnknownPodsPolicy,
    /// Policy routing rules of others that look at bits of our mark.
    #[serde(default)]
    pub foreign_marks: BTreeSet<ForeignMark>,
    /// Index of the canary device; `None`: nothing is measured.
    #[serde(default)]
    pub canary_device: Option<u32>,
    /// Paths whose canaries did not come back.
    #[serde(default)]
    pub broken_paths: BTreeSet<BrokenPath>,
    /// Prefixes that the node's own routes lead to as pods'.
    #[serde(default)]
    pub pod_routes: BTreeSet<IpNet>,
    /// Of [`super::NodeOutcome::uncovered`], those that have been in it for `POD_UNCOVERED_SECS`.
    #[serde(default)]
    pub uncovered: BTreeSet<IpAddr>,
}

/// A path whose canaries are lost: what goes by it does not count as programmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BrokenPath {
    /// The gateway group.
    pub group: GroupKey,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// What is lost.
    pub kinds: BTreeSet<CanaryKind>,
    /// Where the first of them is lost.
    pub lost: Lost,
}

impl BrokenPath {
    pub(super) fn report(&self) -> NodeReport {
        NodeReport {
            kind: ReportKind::PathBroken(self.lost),
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

/// A policy routing rule of others that looks at bits of our mark.
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
    /// Whether the rule asks for packets with this group number in our bits, or with [`FOREIGN_MARK_BIT`] beside it, as
    /// marks of others have it while the kernel looks for the way. With such a number our packets could take the way of
    /// others, and theirs another one than without us.
    pub fn asks_for(&self, number: GroupNumber) -> bool {
        let ours = u32::from(number) << MARK_SHIFT;
        let matches = |bits: u32| (bits ^ self.mark) & self.mask & MARK_MASK == 0;
        matches(ours) || matches(ours | FOREIGN_MARK_BIT)
    }
}

/// What becomes of a new flow to outside from an address of this node's pod CIDRs that no pod has, as far as the API
/// has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnknownPodsPolicy {
    /// It leaves as the network plugin has it.
    #[default]
    Pass,
    /// It is dropped.
    Drop,
}

/// Which device a gateway node is told to use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalChoice {
    /// The device of the node's default route, or, where none of these addresses is in a network of that device, the
    /// first one by name that has one of them in its networks.
    Auto(BTreeSet<IpAddr>),
    /// This one.
    Named(String),
}

/// A device of the node that could be the external one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// The default route of the node leads to it.
    pub default: bool,
    /// Its addresses with their prefixes.
    pub networks: &'a [IpNet],
}

impl ExternalChoice {
    /// Which of the candidates it is, if any.
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
            // An address alone is no network.
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

/// Why there is no state yet. The agent waits for the next snapshot and leaves the kernel as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// The Node object is missing.
    #[error("there is no Node {0}")]
    NoNode(NodeName),
    /// The controller has not numbered the node.
    #[error("EgressNode {0} does not exist yet: the controller gives the node its tunnel index")]
    NoRecord(NodeName),
    /// The node has no address.
    #[error("Node {0} has no address")]
    NoUnderlay(NodeName),
}

/// Which external device this node must look for; `None` if it is no gateway.
pub fn external_choice(snapshot: &Snapshot, node: &NodeName) -> Option<ExternalChoice> {
    let labels = &snapshot.nodes.get(node)?.labels;
    let mine = || {
        let all = snapshot.gateways.values();
        all.filter(|gateway| gateway.nodes.matches(labels))
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
