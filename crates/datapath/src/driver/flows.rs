//! The clean end of flows that a policy change takes away from their source (design section 4).
//!
//! The pod is told (the ruleset refuses such flows by itself, see `worker`), and what the other end still sends is
//! dropped by its tuple, so that neither the pod nor the node's stack answers it from a wrong address. Only then are the
//! entries deleted: a pod's long-lived UDP socket gets a new flow at once.

use super::{Datapath, DatapathError};
use crate::conntrack::{Flow, Tuple};
use crate::nft::{Element, ElementKey};
use crate::worker::{ENDED_SETS, LATE_SETS};
use egret_core::node::{Fate, NodeState};
use egret_core::numbers::{ENDED_FLOW_SECS, ENDED_FLOWS_MAX};
use std::collections::BTreeSet;
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

impl Datapath {
    /// Puts the flows that `state` will end into the run-time sets.
    pub(super) fn remember_ended(
        &mut self,
        state: &NodeState,
        known: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Flow>, DatapathError> {
        let mut flows = self.conntrack.flows().map_err(DatapathError::Conntrack)?;
        let before = self.applied.as_ref();
        flows.retain(|flow| ends(flow, before, state, known));
        for (number, v4) in [true, false].into_iter().enumerate() {
            let family = || {
                flows
                    .iter()
                    .filter(|flow| flow.original.source.is_ipv4() == v4)
            };
            let late: Vec<Element> = family()
                .filter(|flow| matches!(flow.reply.protocol, TCP | UDP | SCTP))
                .map(|flow| element(&flow.reply))
                .take(ENDED_FLOWS_MAX as usize)
                .collect();
            // A flow that stays selected meets the reset of mid-stream packets, but only for as long as its pod does.
            let ended: Vec<Element> = family()
                .filter(|flow| flow.original.protocol == TCP)
                .map(|flow| {
                    let destination = flow.reply.source;
                    let destination_port = flow.reply.source_port;
                    element(&Tuple {
                        destination,
                        destination_port,
                        ..flow.original
                    })
                })
                .take(ENDED_FLOWS_MAX as usize)
                .collect();
            let missing = self.nft.remember(LATE_SETS[number], &late)?
                + self.nft.remember(ENDED_SETS[number], &ended)?;
            if missing > 0 {
                // The guard still keeps their packets from leaving with a wrong source.
                tracing::warn!(missing, "too many ended flows to remember them all");
            }
        }
        Ok(flows)
    }

    /// Remembers once more, now that no new flow can take the old way, and deletes the entries.
    pub(super) fn end_flows(
        &mut self,
        state: &NodeState,
        known: &BTreeSet<IpAddr>,
    ) -> Result<usize, DatapathError> {
        let flows = self.remember_ended(state, known)?;
        for flow in &flows {
            self.conntrack
                .delete(flow)
                .map_err(DatapathError::Conntrack)?;
        }
        Ok(flows.len())
    }
}

/// What the state makes of a flow's destination after translation, which is where its answers come from.
fn fate(flow: &Flow, state: &NodeState) -> Fate {
    let (destination, port) = (flow.reply.source, flow.reply.source_port);
    state.worker.fate(
        flow.original.source,
        destination,
        flow.original.protocol,
        port,
    )
}

fn ends(
    flow: &Flow,
    before: Option<&NodeState>,
    state: &NodeState,
    known: &BTreeSet<IpAddr>,
) -> bool {
    let source = flow.reply.destination;
    let now = fate(flow, state);
    // A flow to a next hop has the pod's own source, or the node's: only what was wanted of it tells it from others. Left
    // as it is, it would go on untranslated, or be translated by a gateway that knows nothing of it.
    let was = before.map(|before| fate(flow, before));
    if matches!(was, Some(Fate::NextHop { .. })) && was != Some(now) {
        return true;
    }
    match now {
        Fate::Untouched => known.contains(&source) && source != flow.original.source,
        Fate::NextHop { source: wanted, .. } => source != wanted,
        Fate::Egress(address) => source != address,
        Fate::Refused => true,
    }
}

fn element(tuple: &Tuple) -> Element {
    let source = ElementKey::address(tuple.source).first;
    let destination = ElementKey::address(tuple.destination).first;
    let key = ElementKey::single(&[
        &source,
        &destination,
        &[tuple.protocol],
        &tuple.source_port.to_be_bytes(),
        &tuple.destination_port.to_be_bytes(),
    ]);
    Element {
        key,
        timeout_secs: ENDED_FLOW_SECS,
    }
}
