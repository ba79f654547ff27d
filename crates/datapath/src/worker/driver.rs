//! The worker's part of one node's data path: applies a state in the order that leaves no gap, verifies it, removes it.

mod drain_next_hops;
mod flow_cleanup;
mod flow_plan;
mod full;
mod refused;
pub(crate) mod settings;

pub use full::port_of;
pub use refused::RefusedProtocol;

use super::Traffic;
use crate::conntrack::Conntrack;
use crate::drift::{Drift, DriftReport};
use crate::netlink::NetlinkError;
use crate::nft::{Forwarding, NftError, Nftables};
use crate::obstacle::Lookout;
use crate::route::{RouteError, Routing};
use crate::sysctl::{HASH_SETTINGS, SysctlError, Sysctls};
use egret_core::machines::Destination;
use egret_core::node::{Ending, Idle, NextHopWay, NodeState, TrafficKeyId, is_canary_destination};
use egret_core::numbers::NFT_TABLE;
use egret_core::obstacle::{Obstacle, Samples};
use flow_cleanup::FlowCleanup;
use flow_plan::FlowPlan;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// Why the data path is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Links, routes, rules.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// nftables.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Connection tracking.
    #[error("connection tracking")]
    Conntrack(#[source] NetlinkError),
    /// Firewalls of others.
    #[error("reading everybody's firewalls")]
    Firewalls(#[source] NetlinkError),
    /// Node-wide settings.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// What one [`WorkerDriver::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Flows that the change ended.
    pub ended_flows: usize,
    /// Node-wide settings that were changed.
    pub sysctls: Vec<String>,
}

/// Packets by reason, and traffic by account.
pub type Counted = (BTreeMap<String, u64>, BTreeMap<TrafficKeyId, Traffic>);

/// The worker of the network namespace of the thread that opened it.
pub struct WorkerDriver {
    nft: Nftables,
    forwarding: Forwarding,
    lookout: Lookout,
    routing: Routing,
    conntrack: Conntrack,
    sysctls: Sysctls,
    /// Devices may have come that hear no router advertisements.
    come: bool,
    /// The settings for several gateways are as we want them, and stay so.
    hashes: bool,
    applied: Option<NodeState>,
    /// A change was begun and has failed: the kernel has something between `applied` and what was asked for.
    unfinished: bool,
    cleanup: FlowCleanup,
    /// Destinations that are refused now.
    full: BTreeSet<Destination>,
}

impl WorkerDriver {
    /// Opens the sockets; nothing is changed yet. `state_directory` keeps what must outlive the process.
    pub fn open(state_directory: &Path) -> Result<Self, DatapathError> {
        Ok(WorkerDriver {
            nft: Nftables::open(NFT_TABLE)?,
            forwarding: Forwarding::open()?,
            lookout: Lookout::open().map_err(DatapathError::Firewalls)?,
            routing: Routing::open()?,
            conntrack: Conntrack::open().map_err(DatapathError::Conntrack)?,
            sysctls: Sysctls::new(state_directory),
            come: true,
            hashes: false,
            applied: None,
            unfinished: false,
            cleanup: FlowCleanup::default(),
            full: BTreeSet::new(),
        })
    }

    /// Links and routes, for what the agent wants to know about its node.
    pub fn routing(&mut self) -> &mut Routing {
        &mut self.routing
    }

    /// Makes the kernel equal to the state: ways first, then the ruleset in one transaction, then what is left over.
    /// Flows that the change takes away from their source are ended cleanly; where only addresses of pods come or go that
    /// do not run (`idle`), the caller has them ended afterwards ([`Self::pending_flow_cleanup`]).
    pub fn apply(&mut self, state: &NodeState, idle: &Idle) -> Result<Applied, DatapathError> {
        let failed_before = std::mem::replace(&mut self.unfinished, true);
        if !failed_before {
            self.flush_before_address_reuse(&state.worker)?;
        }
        let plan = FlowPlan::of(self.applied.as_ref(), state, idle, failed_before);
        let mut sysctls = settings::forward(&self.sysctls, &mut self.routing, self.come)?;
        self.come = false;
        if self.sysctls.differ(HASH_SETTINGS)? && !self.routing.foreign_multipath()? {
            sysctls.extend(self.sysctls.ensure(HASH_SETTINGS)?);
        }
        self.hashes = !self.sysctls.differ(HASH_SETTINGS)?;
        for next_hop in state.worker.next_hops.values() {
            if let NextHopWay::Attached(here) = &next_hop.way {
                sysctls.extend(self.sysctls.loosen(&here.device)?);
            }
        }
        self.routing.prepare(state)?;
        let known = self.known_addresses(state);
        let mut ended_flows = 0;
        if let Some(intermediate) = &plan.intermediate {
            self.nft.apply(&super::table(intermediate))?;
            ended_flows += self.end_flows(state, &known)?;
        } else if plan.mark_first {
            self.remember_ended(state, &known)?;
        }
        if self.nft.apply(&super::table(state))? {
            self.refuse()?;
        }
        self.open_forwarding(state)?;
        match plan.ending {
            Ending::AtOnce => ended_flows += self.end_flows(state, &known)?,
            Ending::Afterwards => self.defer_flow_cleanup(&state.worker, known),
            Ending::Nothing => {}
        }
        self.routing.settle()?;
        self.applied = Some(state.clone());
        self.unfinished = false;
        Ok(Applied {
            ended_flows,
            sysctls,
        })
    }

    /// What of the things applied others have changed or removed; the next [`Self::apply`] repairs it.
    pub fn verify(&mut self) -> Result<DriftReport, DatapathError> {
        let mut drift = self.routing.verify()?;
        drift.extend(self.verify_quick()?);
        if self.applied.is_some() {
            let come = settings::come(&self.sysctls, &mut self.routing)?;
            self.come |= come.is_some();
            drift.extend(come.map(|what| (Drift::Sysctls, what)));
        }
        Ok(drift)
    }

    /// The same, and the content of the ruleset's sets where others may have changed it.
    pub fn verify_full(&mut self) -> Result<DriftReport, DatapathError> {
        let elements = self.nft.verify_full()?;
        let mut drift = self.verify()?;
        drift.extend(elements.map(|what| (Drift::Ruleset, what)));
        Ok(drift)
    }

    /// The same without what the kernel tells by itself when it changes (links, routes, rules, next hops, neighbours):
    /// a few small reads while nobody changed anything.
    pub fn verify_quick(&mut self) -> Result<DriftReport, DatapathError> {
        if self.applied.is_none() {
            return Ok(DriftReport::new());
        }
        let forwarding = match self.forwarding.verify()? {
            true => None,
            false => Some("an accept of ours in a forward chain of others is gone".to_owned()),
        };
        let mut sysctls = settings::changed(&self.sysctls)?;
        if sysctls.is_none() && self.hashes {
            sysctls = self.sysctls.first_other(HASH_SETTINGS)?;
        }
        let parts = [
            (Drift::Ruleset, self.nft.verify_quick()?),
            (Drift::Forwarding, forwarding),
            (Drift::Sysctls, sysctls),
        ];
        let drifted = parts.into_iter();
        Ok(drifted
            .filter_map(|(kind, what)| Some((kind, what?)))
            .collect())
    }

    /// Source ports in use, by egress address.
    pub fn ports_in_use(&mut self) -> Result<BTreeMap<IpAddr, u32>, DatapathError> {
        let mut ports: BTreeMap<IpAddr, BTreeSet<(u8, u16)>> = BTreeMap::new();
        let Some(state) = &self.applied else {
            return Ok(BTreeMap::new());
        };
        let egress = &state.worker.egress_addresses;
        for flow in self.conntrack.flows().map_err(DatapathError::Conntrack)? {
            // Canaries end with the lease that they measure; they must not keep it.
            if egress.contains(&flow.reply.destination)
                && flow.reply.destination != flow.original.source
                && !is_canary_destination(flow.original.destination)
            {
                let port = (flow.reply.protocol, flow.reply.destination_port);
                ports
                    .entry(flow.reply.destination)
                    .or_default()
                    .insert(port);
            }
        }
        Ok(ports
            .into_iter()
            .map(|(address, ports)| (address, ports.len() as u32))
            .collect())
    }

    /// See [`Conntrack::insert_failed`].
    pub fn insert_failed(&mut self) -> Result<u64, DatapathError> {
        self.conntrack
            .insert_failed()
            .map_err(DatapathError::Conntrack)
    }

    /// Packets dropped or refused, by reason, and traffic, by account.
    pub fn counters(&mut self) -> Result<Counted, DatapathError> {
        Ok(super::parted(self.nft.counts()?))
    }

    /// Removes everything of ours and puts settings back. Goes on after errors and returns them all.
    pub fn remove(&mut self) -> Vec<DatapathError> {
        self.applied = None;
        self.cleanup = FlowCleanup::default();
        let mut errors = Vec::new();
        errors.extend(self.nft.remove().err().map(DatapathError::from));
        errors.extend(self.forwarding.remove().err().map(DatapathError::from));
        errors.extend(self.routing.remove().err().map(DatapathError::from));
        errors.extend(self.sysctls.restore().err().map(DatapathError::from));
        errors
    }

    /// Opens others' forward chains to the tunnel, which only a worker that sends through it needs. What cannot be
    /// opened is among [`Self::obstacles`].
    pub fn open_forwarding(&mut self, state: &NodeState) -> Result<(), DatapathError> {
        match state.worker.targets.is_empty() && state.worker.next_hops.is_empty() {
            true => self.forwarding.remove()?,
            false => self.forwarding.ensure(!state.worker.lift.is_empty())?,
        }
        Ok(())
    }

    /// What of everybody's firewalls refuses what this state sends through the tunnel; a few small messages while nobody
    /// changes them.
    pub fn obstacles(&mut self, state: &NodeState) -> Result<&[Obstacle], DatapathError> {
        let found = self.lookout.look(&Samples::of(state));
        found.map_err(DatapathError::Firewalls)
    }

    /// Egress addresses of the state before, of this one, and of those whose flows are still to be ended: flows of all are ours.
    fn known_addresses(&self, state: &NodeState) -> BTreeSet<IpAddr> {
        let mut known = state.worker.egress_addresses.clone();
        known.extend(&self.cleanup.known);
        if let Some(old) = &self.applied {
            known.extend(&old.worker.egress_addresses);
        }
        known
    }
}
