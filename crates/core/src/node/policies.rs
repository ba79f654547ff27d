//! The policies of a snapshot, resolved once per round: a node's facts are queried by them, then its state is made of
//! them.

use super::next_hops;
use super::{NodeFacts, NodeOutcome, NotYet, state_of};
use crate::model::{NodeName, Snapshot};
use crate::resolve::{Resolved, assigned, resolve};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Policies with their gateways, addresses and refusals.
pub struct Policies<'a> {
    snapshot: &'a Snapshot,
    resolved: Vec<Resolved<'a>>,
}

impl<'a> Policies<'a> {
    /// Resolves all policies of a snapshot. Findings are the controller's to report.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let (resolved, _) = resolve(snapshot, &assigned(snapshot), &snapshot.pods);
        Self { snapshot, resolved }
    }

    /// Next hops that this node must find among its neighbours: those of the policies of its gateways.
    pub fn next_hops(&self, node: &NodeName) -> BTreeSet<IpAddr> {
        next_hops::of_gateway(self.snapshot, &self.resolved, node)
            .map(|(_, next_hop)| next_hop)
            .collect()
    }

    /// Computes what this node's kernel must contain. The gateway's part must be applied before the worker's: the worker
    /// uses its own ranges as soon as the node's own steering table contains them.
    ///
    /// # Errors
    /// The node or its record is missing, or it has no address.
    pub fn node_state(&self, facts: &NodeFacts, node: &NodeName) -> Result<NodeOutcome, NotYet> {
        state_of(self.snapshot, &self.resolved, facts, node)
    }
}
