//! The outcome for one node: its state, and its reports.

use super::canary::CanaryPath;
use super::facts::BrokenPath;
use super::ids::{GroupNumber, TargetId, TrafficKeyId, TunnelIndex};
use super::path::PodsPath;
use super::report::NodeReport;
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
    pub pods_path: PodsPath,
    /// Lines for the conditions of the node.
    pub reports: Vec<NodeReport>,
    /// Numbers of the groups: the next `NodeFacts::previous_groups`.
    #[serde(with = "crate::pairs")]
    pub groups: BTreeMap<GroupKey, GroupNumber>,
    /// Members of the tunnel groups in use: the next `NodeFacts::last_group_members`.
    #[serde(with = "crate::pairs")]
    pub group_members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
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
