//! The outcome for one node: its state, and its issues.

use super::canary::CanaryPath;
use super::facts::BrokenPath;
use super::ids::{GroupNumber, TargetId, TrafficKeyId, TunnelIndex};
use super::issue::NodeIssue;
use super::pairings::PodPairings;
use super::pod_forwarding::PodForwarding;
use super::state::NodeState;
use super::traffic_keys::TrafficKey;
use crate::model::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Complete outcome for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOutcome {
    /// Desired state of the kernel.
    pub state: NodeState,
    /// Other gateway nodes that do not answer this node's probes.
    pub silent: BTreeSet<NodeName>,
    /// Invalid objects that only this node can detect.
    pub findings: Vec<Finding>,
    /// Pods per policy to report as programmed once the state is applied.
    pub programmed: Vec<Programmed>,
    /// How packets of the node's pods leave it.
    pub pod_forwarding: PodForwarding,
    /// Lines for the conditions of the node.
    pub issues: Vec<NodeIssue>,
    /// Numbers of the groups: the next `NodeFacts::previous_groups`.
    #[serde(with = "crate::pairs")]
    pub groups: BTreeMap<GroupKey, GroupNumber>,
    /// Members of the tunnel groups in use: the next `NodeFacts::last_group_members`.
    #[serde(with = "crate::pairs")]
    pub group_members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    /// Addresses that the pods are paired to: the next `NodeFacts::pairings`.
    #[serde(default)]
    pub pairings: PodPairings,
    /// Those of them that the hash would not select, to report in [`NodeRecord::paired`].
    #[serde(default)]
    pub paired: BTreeSet<PairedPod>,
    /// The group of each target, for messages.
    pub target_groups: BTreeMap<TargetId, GroupKey>,
    /// The paths that canaries are to measure.
    #[serde(default)]
    pub canaries: Vec<CanaryPath>,
    /// The paths whose canaries are lost.
    #[serde(default)]
    pub broken_paths: BTreeSet<BrokenPath>,
    /// Policy and address of each traffic key; `None`: all traffic without a key of its own.
    pub traffic_keys: BTreeMap<TrafficKeyId, Option<TrafficKey>>,
    /// Addresses of own pods that other nodes cannot know to be pods': their policies may send traffic to them to a
    /// gateway.
    #[serde(default)]
    pub uncovered: BTreeSet<IpAddr>,
    /// Granted addresses. Their ports are reported in [`NodeRecord::held`] before they are used
    /// ([`crate::machines::HeldPorts`]).
    pub granted: BTreeSet<IpAddr>,
}
