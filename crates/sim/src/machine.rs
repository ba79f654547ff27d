//! A machine: a kernel, and an agent that may run on it.

use crate::agent::{Agent, Disk, Host};
use crate::cluster::{node_name, underlay};
use crate::kernel::Kernel;
use crate::sabotage::Sabotage;
use crate::script::Cluster;
use egret_core::model::NodeName;
use std::net::IpAddr;

/// One machine.
pub struct Machine {
    /// Its name as a node.
    pub name: NodeName,
    /// Its number among all machines that ever were.
    pub number: usize,
    /// Its underlay address.
    pub underlay: IpAddr,
    /// Whether its Node has the gateways' label.
    pub is_gateway: bool,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its agent, while it runs.
    pub agent: Option<Agent>,
    /// The agent's state directory.
    pub disk: Disk,
    /// Nothing on it does anything.
    pub is_frozen: bool,
    /// Since its Node object was made, its agent has read all records: see `Checker`.
    pub is_known: bool,
    /// Number of changes of address records that it has to read for that.
    pub known_from: usize,
}

impl Machine {
    /// A new machine for the node of this number.
    pub fn new(cluster: &Cluster, node: usize, number: usize) -> Self {
        Self {
            name: node_name(node),
            number,
            underlay: underlay(number),
            is_gateway: cluster.is_gateway(node),
            kernel: Kernel::default(),
            agent: None,
            disk: Disk::default(),
            is_frozen: false,
            is_known: true,
            known_from: 0,
        }
    }

    /// Runs a round of the agent, or its first parts, if it runs and something is due.
    pub fn round(&mut self, now_ms: u64, parts: usize, sabotage: Option<Sabotage>) -> bool {
        if self.is_frozen {
            return false;
        }
        let Some(agent) = self.agent.as_mut() else {
            return false;
        };
        if !agent.is_due(now_ms) {
            return false;
        }
        let mut host = Host {
            name: &self.name,
            underlay: self.underlay,
            is_gateway: self.is_gateway,
            kernel: &mut self.kernel,
            disk: &mut self.disk,
            now_ms,
            sabotage,
        };
        agent.round(&mut host, parts)
    }
}
