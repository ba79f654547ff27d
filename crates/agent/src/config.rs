//! Configuration of the agent: paths and modes.

use crate::cni::CniConfig;
use egret_core::model::NodeName;
use egret_core::node::{CniPath, UnknownPodsPolicy};
use egret_datapath::gateway::BackendChoice;
use std::path::PathBuf;

/// Configuration of the agent: paths and modes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node: NodeName,
    /// Directory for state that outlives the agent.
    pub state_directory: PathBuf,
    /// Directory of pinned eBPF objects.
    pub pin_directory: PathBuf,
    /// Socket for questions of the command line.
    pub socket: PathBuf,
    /// Data path of the gateway role, if this node is a gateway.
    pub gateway_datapath: BackendChoice,
    /// Path of pods' packets through this node, as configured for the network plugin.
    pub cni_path: CniPath,
    /// Treatment of packets from pods that the API has not shown yet.
    pub unknown_pods: UnknownPodsPolicy,
    /// Configuration of the CNI plugin.
    pub cni: CniConfig,
}
