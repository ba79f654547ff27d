//! The worker's part of one node's data path: applies a state without a gap, verifies it, removes it.

mod drain_next_hops;
mod flow_cleanup;
mod flow_plan;
mod full;
mod quotas;
mod refused;
pub mod settings;

pub use full::port_of;
pub use quotas::OverQuota;
pub use refused::RefusedProtocol;

use super::Traffic;
use crate::drift::{Drift, DriftReport};
use crate::forward::Forwarding;
use crate::obstacle::Lookout;
use crate::route::{RouteError, Routing};
use egret_core::machines::Destination;
use egret_core::model::{AddressPorts, PortBlocks};
use egret_core::node::{
    Ending, Idle, NextHopRoute, NodeState, TrafficKeyId, is_canary_destination,
};
use egret_core::numbers::NFT_TABLE;
use egret_core::obstacle::{Obstacle, Samples};
use egret_kernel::conntrack::Conntrack;
use egret_kernel::netlink::NetlinkError;
use egret_kernel::nft::{NftError, Nftables};
use egret_kernel::sysctl::{HASH_SETTINGS, SysctlError, Sysctls};
use flow_cleanup::FlowCleanup;
use flow_plan::FlowPlan;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// Error of the worker driver, by subsystem.
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
    #[error("reading all firewall rules")]
    Firewalls(#[source] NetlinkError),
    /// Node-wide settings.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Result of one [`WorkerDriver::apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Flows that the change ended.
    pub ended_flows: usize,
    /// Node-wide settings that were changed.
    pub sysctls: Vec<String>,
}

/// Source ports that flows use, by egress address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortsInUse {
    /// Number of ports; one that two protocols use counts twice.
    pub counts: BTreeMap<IpAddr, u32>,
    /// Blocks with a port in use.
    pub blocks: AddressPorts,
}

/// Packets by reason, and traffic by traffic key.
pub type Counted = (BTreeMap<String, u64>, BTreeMap<TrafficKeyId, Traffic>);

/// The worker of the network namespace of the thread that opened it.
pub struct WorkerDriver {
    nft: Nftables,
    forwarding: Forwarding,
    lookout: Lookout,
    routing: Routing,
    conntrack: Conntrack,
    sysctls: Sysctls,
    /// Devices that ignore router advertisements may have come.
    come: bool,
    /// The settings for several gateways were verified; nothing resets them.
    hashes: bool,
    applied: Option<NodeState>,
    /// A change has failed halfway: the kernel's state is between `applied` and the requested one.
    unfinished: bool,
    cleanup: FlowCleanup,
    /// Destinations that are refused now because a lease is used up.
    full: BTreeSet<Destination>,
    /// Whether the kernel counts connections, once a quota has asked for it.
    counts_connections: Option<bool>,
}

impl WorkerDriver {
    /// Opens the sockets; changes nothing yet. `state_directory` holds the state that must outlive the process.
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
            counts_connections: None,
        })
    }

    /// Links and routes, for the agent's facts about its node.
    pub fn routing(&mut self) -> &mut Routing {
        &mut self.routing
    }

    /// Makes the kernel equal to the state: routes first, then the ruleset in one transaction, then removals. Flows
    /// that the change takes from their source are ended cleanly. Where only addresses of pods come or go that do not
    /// run (`idle`), the caller has the flows ended afterwards ([`Self::pending_flow_cleanup`]).
    ///
    /// Quotas are left out where the kernel cannot count connections ([`Self::ignores_quotas`]).
    pub fn apply(&mut self, state: &NodeState, idle: &Idle) -> Result<Applied, DatapathError> {
        let without_quotas = self.without_uncounted_quotas(state)?;
        let state = without_quotas.as_ref().unwrap_or(state);
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
            if let NextHopRoute::Attached(here) = &next_hop.route {
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

    /// Detects drift of everything applied; the next [`Self::apply`] repairs it.
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

    /// [`Self::verify`], and the content of the ruleset's sets where others may have changed it.
    pub fn verify_full(&mut self) -> Result<DriftReport, DatapathError> {
        let elements = self.nft.verify_full()?;
        let mut drift = self.verify()?;
        drift.extend(elements.map(|what| (Drift::Ruleset, what)));
        Ok(drift)
    }

    /// [`Self::verify`] without the state that the kernel notifies changes of (links, routes, rules, next hops,
    /// neighbours): a few small reads while nobody changed anything.
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
    pub fn ports_in_use(&mut self) -> Result<PortsInUse, DatapathError> {
        let mut ports: BTreeMap<IpAddr, BTreeSet<(u8, u16)>> = BTreeMap::new();
        let Some(state) = &self.applied else {
            return Ok(PortsInUse::default());
        };
        let egress = &state.worker.egress_addresses;
        if egress.is_empty() {
            // A dump looks at every bucket of the kernel's table, which takes milliseconds.
            return Ok(PortsInUse::default());
        }
        for flow in self.conntrack.flows().map_err(DatapathError::Conntrack)? {
            // Canaries end with the lease that they measure; they must not keep it in use.
            if egress.contains(&flow.reply.destination)
                && flow.reply.destination != flow.original.source
                && !is_canary_destination(flow.original.destination)
            {
                let port = (flow.reply.protocol, flow.outside_port());
                ports
                    .entry(flow.reply.destination)
                    .or_default()
                    .insert(port);
            }
        }
        let mut in_use = PortsInUse::default();
        for (address, ports) in ports {
            let mut blocks = PortBlocks::default();
            for (_, port) in &ports {
                blocks.insert_port(*port);
            }
            in_use.blocks.add(address, &blocks);
            in_use.counts.insert(address, ports.len() as u32);
        }
        Ok(in_use)
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

    /// Removes everything of ours and restores settings. Continues after errors and returns them all.
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

    /// Opens others' forward chains to the tunnel, which only a worker that sends through it needs. Chains that cannot
    /// be opened appear in [`Self::obstacles`].
    pub fn open_forwarding(&mut self, state: &NodeState) -> Result<(), DatapathError> {
        match state.worker.targets.is_empty() && state.worker.next_hops.is_empty() {
            true => self.forwarding.remove()?,
            false => self.forwarding.ensure(!state.worker.reinject.is_empty())?,
        }
        Ok(())
    }

    /// Firewall rules of all owners that refuse packets of this state through the tunnel. Costs a few small messages
    /// while nobody changes firewalls.
    pub fn obstacles(&mut self, state: &NodeState) -> Result<&[Obstacle], DatapathError> {
        let found = self.lookout.look(&Samples::of(state));
        found.map_err(DatapathError::Firewalls)
    }

    /// Egress addresses of the state before, of this one, and of flows that are still to be ended: flows of all are
    /// ours.
    fn known_addresses(&self, state: &NodeState) -> BTreeSet<IpAddr> {
        let mut known = state.worker.egress_addresses.clone();
        known.extend(&self.cleanup.known);
        if let Some(old) = &self.applied {
            known.extend(&old.worker.egress_addresses);
        }
        known
    }
}
