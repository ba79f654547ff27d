//! Clean end of flows that a policy change takes from their source, or whose source port the node has no more (design
//! section 4).
//!
//! The ruleset refuses the pod's packets of such flows by itself (see `worker`). Later packets of the other end are
//! dropped by their tuple, so that neither the pod nor the node's stack answers from a wrong address. Only then are the
//! entries deleted: a pod's long-lived UDP socket gets a new flow at once.
//!
//! A dump of the flows takes 13 ms where the kernel has 262,144 buckets for them, whatever is in them. Where only pods
//! that do not run are concerned, nothing waits for it: the change is in force, the guard drops packets with another
//! source, and the flows are ended after a separate reader has dumped them (decision 99).

use super::{DatapathError, WorkerDriver};
use crate::worker::names::{ENDED_SETS, LATE_SETS};
use egret_core::node::{Fate, NodeState, WorkerState};
use egret_core::numbers::{ENDED_FLOW_SECS, ENDED_FLOWS_MAX};
use egret_kernel::conntrack::{Flow, Tuple};
use egret_kernel::nft::{Element, ElementKey};
use std::collections::BTreeSet;
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Flows that are still to be ended, once they have been read.
#[derive(Debug, Default)]
pub(super) struct FlowCleanup {
    /// Number of changes so far that left flows to be ended; also the number of the last one.
    requested: u64,
    /// Number of the last change whose flows have all ended.
    finished: u64,
    /// Egress addresses of the states before and after the changes that are not finished.
    pub(super) known: BTreeSet<IpAddr>,
    /// Addresses that those changes removed from their pods.
    released: BTreeSet<IpAddr>,
}

impl FlowCleanup {
    fn finish(&mut self, change: u64) {
        self.finished = self.finished.max(change);
        if self.finished == self.requested {
            self.known.clear();
            self.released.clear();
        }
    }
}

impl WorkerDriver {
    /// The last change whose flows have not ended yet. A caller that dumps all flows from now on hands them to
    /// [`Self::finish_flow_cleanup`] with this number.
    pub fn pending_flow_cleanup(&self) -> Option<u64> {
        let FlowCleanup {
            requested,
            finished,
            ..
        } = self.cleanup;
        (finished < requested).then_some(requested)
    }

    /// Ends the flows that are still to be ended. `flows` are all flows, read after [`Self::pending_flow_cleanup`] had
    /// returned this change. Returns how many ended. Ends nothing while a change has failed, because the valid state is
    /// known only once it is applied.
    pub fn finish_flow_cleanup(
        &mut self,
        change: u64,
        flows: Vec<Flow>,
    ) -> Result<usize, DatapathError> {
        match self.unfinished {
            true => Ok(0),
            false => self.end_read(change, flows),
        }
    }

    /// Ends those of these flows that the state in force ends.
    fn end_read(&mut self, change: u64, flows: Vec<Flow>) -> Result<usize, DatapathError> {
        let Some(state) = self.applied.clone() else {
            return Ok(0);
        };
        let known = self.known_addresses(&state);
        // Flows of pods that leave a next hop are never deferred: the driver ends them with the change.
        let flows = self.remember(flows, (None, &state), &known)?;
        let ended = self.delete(&flows)?;
        self.cleanup.finish(change);
        Ok(ended)
    }

    /// Notes that the flows of this change are to be ended.
    pub(super) fn defer_flow_cleanup(&mut self, worker: &WorkerState, known: BTreeSet<IpAddr>) {
        if let Some(before) = &self.applied {
            let changes = worker.pods.changes_since(&before.worker.pods);
            let gone = changes.iter().filter(|change| change.after.is_none());
            self.cleanup
                .released
                .extend(gone.map(|change| change.address));
        }
        self.cleanup.known.extend(known);
        self.cleanup.requested += 1;
    }

    /// Ends pending flows of an address before another pod gets it. Afterwards they would be indistinguishable from the
    /// new pod's where both have the same egress address.
    pub(super) fn flush_before_address_reuse(
        &mut self,
        worker: &WorkerState,
    ) -> Result<(), DatapathError> {
        let returns = |address: &IpAddr| worker.pods.contains_key(address);
        if self.cleanup.released.iter().any(returns) {
            let flows = self.conntrack.flows().map_err(DatapathError::Conntrack)?;
            self.end_read(self.cleanup.requested, flows)?;
        }
        Ok(())
    }

    /// Puts the flows that `state` will end into the run-time sets.
    pub(super) fn remember_ended(
        &mut self,
        state: &NodeState,
        known: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Flow>, DatapathError> {
        let flows = self.conntrack.flows().map_err(DatapathError::Conntrack)?;
        let before = self.applied.clone();
        self.remember(flows, (before.as_ref(), state), known)
    }

    fn remember(
        &mut self,
        mut flows: Vec<Flow>,
        (before, state): (Option<&NodeState>, &NodeState),
        known: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Flow>, DatapathError> {
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
            // A flow that stays selected gets the reset for mid-stream packets, but only while its pod lives.
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
                // The guard still drops their packets with a wrong source.
                tracing::warn!(missing, "too many ended flows to remember them all");
            }
        }
        Ok(flows)
    }

    /// Remembers the flows again, now that no new flow can take the old route, and deletes the entries.
    pub(super) fn end_flows(
        &mut self,
        state: &NodeState,
        known: &BTreeSet<IpAddr>,
    ) -> Result<usize, DatapathError> {
        let flows = self.remember_ended(state, known)?;
        let ended = self.delete(&flows)?;
        self.cleanup.finish(self.cleanup.requested);
        Ok(ended)
    }

    fn delete(&mut self, flows: &[Flow]) -> Result<usize, DatapathError> {
        for flow in flows {
            self.conntrack
                .delete(flow)
                .map_err(DatapathError::Conntrack)?;
        }
        Ok(flows.len())
    }
}

/// Fate of a flow in this state, by its destination after translation, which is where its answers come from.
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
    // A flow to a next hop has the pod's own source, or the node's: only its intended route distinguishes it. If it
    // stayed, it would continue untranslated, or be translated by a gateway that does not know it.
    let was = before.map(|before| fate(flow, before));
    if matches!(was, Some(Fate::NextHop { .. })) && was != Some(now) {
        return true;
    }
    match now {
        Fate::Untouched => known.contains(&source) && source != flow.original.source,
        Fate::NextHop { source: wanted, .. } => source != wanted,
        Fate::Egress(address) => source != address || !has_port(flow, &state.worker),
        Fate::Refused => true,
    }
}

/// Whether this node may have the flow with its outside port. Another node may use a port that was withdrawn.
fn has_port(flow: &Flow, worker: &WorkerState) -> bool {
    let ports = worker.flow_ports.as_ref();
    ports.is_none_or(|ports| {
        let own = ports.of(flow.reply.destination);
        own.contains_port(flow.outside_port())
    })
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
