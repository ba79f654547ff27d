//! Where the agent runs and keeps things.

use crate::cni::CniConfig;
use egret_core::model::NodeName;
use egret_core::node::{CniPath, UnknownPodsPolicy};
use egret_datapath::gateway::BackendChoice;
use std::path::PathBuf;

/// Where the agent runs and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node: NodeName,
    /// What must outlive the agent.
    pub state_directory: PathBuf,
    /// Pinned eBPF objects.
    pub pin_directory: PathBuf,
    /// Socket for questions of the command line.
    pub socket: PathBuf,
    /// How this node forwards, if it is a gateway.
    pub gateway_datapath: BackendChoice,
    /// What is known of how the network plugin sends pods' packets on.
    pub cni_path: CniPath,
    /// What becomes of packets of pods that the API has not shown yet.
    pub unknown_pods: UnknownPodsPolicy,
    /// The CNI plugin.
    pub cni: CniConfig,
}
