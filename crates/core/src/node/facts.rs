//! What only the node itself knows, and what comes out beside the state.

use super::CanaryPath;
use super::accounts::Account;
use super::next_hops;
use super::path::{PathFacts, PodsPath};
use super::state::*;
use crate::canary::{CanaryKind, Lost};
use crate::condition::Reason;
use crate::model::*;
use crate::numbers::{FOREIGN_MARK_BIT, MARK_MASK, MARK_SHIFT};
use crate::resolve::{assigned, resolve};
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
    /// Of the addresses of [`wanted_next_hops`], those that its kernel reaches without a router between, and that its
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
    /// Of [`NodeOutcome::uncovered`], those that have been in it for `POD_UNCOVERED_SECS`.
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

/// What a node must tell about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReportKind {
    /// No gateway of a group answers: the last ones are kept, the guard holds.
    FailStatic,
    /// No gateway of a group has ever answered.
    NoGateway,
    /// Traffic leaves by the node's address, as `whenUnavailable: NodeAddress` asks.
    NodeAddress,
    /// Gateways do not know this node's ranges yet.
    AwaitingGateways,
    /// A gateway node without an external device.
    NoExternalDevice,
    /// A gateway node does not have a next hop on any network of its own.
    NextHopNotAttached,
    /// Packets to a next hop cannot be followed here.
    NextHopPath,
    /// Gateways of this node ask for different external devices.
    ExternalDeviceConflict,
    /// A limit was reached.
    Limit,
    /// Two pods have one address.
    PodAddressConflict,
    /// Nothing says which addresses are pods', to other nodes or to this one.
    NoPodCidr,
    /// Canaries do not come back.
    PathBroken(Lost),
}

impl ReportKind {
    /// The reason of the node's condition that says so.
    pub fn reason(self) -> Reason {
        match self {
            ReportKind::FailStatic => Reason::FailStatic,
            ReportKind::NoGateway => Reason::NoGateway,
            ReportKind::NodeAddress => Reason::NodeAddress,
            ReportKind::AwaitingGateways => Reason::AwaitingGateways,
            ReportKind::NoExternalDevice => Reason::NoExternalDevice,
            ReportKind::NextHopNotAttached => Reason::NextHopNotAttached,
            ReportKind::NextHopPath => Reason::NextHopPath,
            ReportKind::ExternalDeviceConflict => Reason::ExternalDeviceConflict,
            ReportKind::Limit => Reason::Limit,
            ReportKind::PodAddressConflict => Reason::PodAddressConflict,
            ReportKind::NoPodCidr => Reason::NoPodCidr,
            ReportKind::PathBroken(lost) => lost.reason(),
        }
    }
}

/// One line of a node's condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeReport {
    /// What kind.
    pub kind: ReportKind,
    /// What about: a gateway, a policy, an address.
    pub subject: String,
    /// A sentence.
    pub text: String,
}

/// Everything that comes out for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOutcome {
    /// What the kernel must contain.
    pub state: NodeState,
    /// Other gateway nodes that do not answer this node's probes.
    pub silent: BTreeSet<NodeName>,
    /// Objects to mend that only this node can see.
    pub findings: Vec<Finding>,
    /// What to report as programmed once the state is applied.
    pub programmed: Vec<Programmed>,
    /// How packets of the node's pods leave it.
    pub pods_path: PodsPath,
    /// What to report about the node.
    pub reports: Vec<NodeReport>,
    /// Numbers of the groups: the next `NodeFacts::previous_groups`.
    #[serde(with = "crate::pairs")]
    pub groups: BTreeMap<GroupKey, GroupNumber>,
    /// Members of the tunnel groups in use: the next `NodeFacts::last_group_members`.
    #[serde(with = "crate::pairs")]
    pub group_members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    /// The group of each target, for people.
    pub target_groups: BTreeMap<TargetId, GroupKey>,
    /// The paths that canaries are to measure.
    #[serde(default)]
    pub canaries: Vec<CanaryPath>,
    /// Those whose canaries are lost.
    #[serde(default)]
    pub broken_paths: BTreeSet<BrokenPath>,
    /// Whose traffic each account counts, for people; `None`: all that has no account of its own.
    pub accounts: BTreeMap<AccountId, Option<Account>>,
    /// Addresses of own pods that other nodes cannot know to be pods': their policies may take traffic to them to a gateway.
    #[serde(default)]
    pub uncovered: BTreeSet<IpAddr>,
    /// Addresses that are granted. `NodeRecord::demand` must list these (with 0 if no port is in use) *before* the
    /// state is applied, written with compare-and-swap against the version that the grant was read in, and keep listing
    /// every address that still has a connection: the controller takes a range back when its address is not listed,
    /// and the compare-and-swap settles who was first.
    pub granted: BTreeSet<IpAddr>,
}

/// Next hops that this node must look for: those of the policies that it is a gateway of.
pub fn wanted_next_hops(snapshot: &Snapshot, node: &NodeName) -> BTreeSet<IpAddr> {
    // Most clusters have none; resolving everything for that would cost every agent.
    if snapshot.policies.iter().all(|p| p.next_hop().is_none()) {
        return BTreeSet::new();
    }
    let (resolved, _) = resolve(snapshot, &assigned(snapshot), &snapshot.pods);
    next_hops::of_gateway(snapshot, &resolved, node)
        .map(|(_, next_hop)| next_hop)
        .collect()
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
