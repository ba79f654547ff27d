//! The whole data path of one node: worker, gateway and uplink programs.
//!
//! Only this module orders the parts:
//!
//! ```text
//!  prepare   tunnel device -> gateway programs (tables untouched)
//!  apply     gateway tables and presence -> uplink tables -> worker (routes, ruleset, flows) -> uplink programs
//!  remove    gateway -> uplink -> canaries -> worker
//! ```
//!
//! The gateway comes before the worker because the worker's own port ranges need the steering tables of this node.
//! Uplink tables come before the ruleset: a reinjected packet that no rule selects passes unchanged, while a selected
//! packet that is not reinjected would leave with its pod's source.
//! Documentation for other implementations: `docs/writing-a-datapath.md`.

mod error;
mod gateway;
mod uplink;

pub use error::NodeDatapathError;
pub use gateway::{ExternalInterface, GatewayOpened, NodeGateway};
pub use uplink::NodeUplink;

use crate::canary;
use crate::drift::DriftReport;
use crate::gateway::{BackendChoice, Carried, GatewayBackend};
use crate::route::Device;
use crate::uplink::{UplinkDriver, UplinkError};
use crate::worker::driver::{Counted, DatapathError, WorkerDriver};
use egret_core::error::with_causes;
use egret_core::node::{GatewayState, Idle, NodeState, TunnelIndex};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How much [`NodeDatapath::verify`] compares with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// State without change notifications: a few small reads while nobody changed anything.
    Unnotified,
    /// `Unnotified`, and what rtnetlink has notified a change of: links, routes, rules, next hops, neighbours.
    Notified,
    /// Everything, including the content of tables and sets.
    Full,
}

/// Result of one [`NodeDatapath::apply`].
#[derive(Debug, Default)]
pub struct Applied {
    /// Flows that the change ended.
    pub ended_flows: usize,
    /// Names of the node-wide settings that were changed.
    pub sysctls: Vec<String>,
    /// How long the worker part took.
    pub worker_time: Duration,
    /// Error of the uplink programs, which do not follow the ruleset yet; everything else is applied.
    pub uplink_error: Option<UplinkError>,
}

/// Counters read from the kernel.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Packets that the worker dropped or refused, by reason, and traffic by traffic key. `None`: they could not be
    /// read, usually because somebody changed a table meanwhile.
    pub worker: Option<Counted>,
    /// Packets at the gateway, by outcome.
    pub gateway: BTreeMap<&'static str, u64>,
    /// Traffic and drops of the gateway, by egress address.
    pub carried: BTreeMap<IpAddr, Carried>,
    /// Packets at the uplinks, by outcome.
    pub uplink: BTreeMap<&'static str, u64>,
}

/// The data path of one node, in the network namespace of the thread that opened it.
pub struct NodeDatapath {
    worker: WorkerDriver,
    gateway: NodeGateway,
    uplink: NodeUplink,
    /// The tunnel device; `None` before it is prepared and after an error or drift.
    tunnel: Option<Device>,
}

impl NodeDatapath {
    /// Opens the kernel's interfaces; changes nothing yet. `state_directory` holds the state that must outlive the
    /// process, `pin_directory` the pinned eBPF objects.
    ///
    /// # Errors
    /// [`DatapathError`]: the kernel's interfaces cannot be opened.
    pub fn open(
        state_directory: &Path,
        pin_directory: &Path,
        choice: BackendChoice,
    ) -> Result<Self, DatapathError> {
        Ok(NodeDatapath {
            worker: WorkerDriver::open(state_directory)?,
            gateway: NodeGateway::new(pin_directory, choice),
            uplink: NodeUplink::new(pin_directory, choice == BackendChoice::Clsact),
            tunnel: None,
        })
    }

    /// Makes what probes of gateways need: the tunnel device, and on a gateway its programs, with the tables that an
    /// earlier process left. `devices_changed`: the tunnel device may have been replaced. Returns the gateway backend
    /// that was opened, if any.
    ///
    /// # Errors
    /// [`DatapathError::Route`]: there is no tunnel device. An error of the gateway is stored
    /// ([`NodeGateway::last_error`]).
    pub fn prepare(
        &mut self,
        state: &NodeState,
        external: Option<&ExternalInterface>,
        devices_changed: bool,
    ) -> Result<Option<GatewayOpened>, DatapathError> {
        if self.tunnel.is_none() || devices_changed {
            self.tunnel = Some(self.worker.routing().ensure_tunnel(&state.tunnel)?);
        }
        let (Some(_), Some(device)) = (&state.gateway, &self.tunnel) else {
            return Ok(None);
        };
        Ok(self.gateway.attach(&state.tunnel, device, external))
    }

    /// Applies the state to the gateway's tables alone, so that their content is known before announcements are
    /// decided.
    pub fn load_tables(&mut self, state: &GatewayState, own: TunnelIndex) {
        self.gateway.load(state, own);
    }

    /// Makes the node equal to the state; applying equal states twice changes nothing. See [`WorkerDriver::apply`] for
    /// `idle`.
    ///
    /// # Errors
    /// [`NodeDatapathError::Worker`] or [`NodeDatapathError::Uplink`]: changes made so far stay, and the next call
    /// continues from there. An error of the gateway delays nothing else and is stored ([`NodeGateway::last_error`]).
    pub fn apply(&mut self, state: &NodeState, idle: &Idle) -> Result<Applied, NodeDatapathError> {
        match &state.gateway {
            Some(gateway) => self.gateway.load(gateway, state.tunnel.index),
            None => self.gateway.detach(),
        }
        self.uplink.prepare(&state.worker)?;
        let started = Instant::now();
        let applied = self.worker.apply(state, idle)?;
        let worker_time = started.elapsed();
        Ok(Applied {
            ended_flows: applied.ended_flows,
            sysctls: applied.sysctls,
            worker_time,
            uplink_error: self.uplink.settle(&state.worker).err(),
        })
    }

    /// Detects drift without changing anything; the next [`Self::prepare`] and [`Self::apply`] repair it. A part that
    /// cannot be read is logged and counts as no drift. Empty before the first [`Self::prepare`].
    pub fn verify(&mut self, depth: Depth) -> DriftReport {
        if depth == Depth::Full {
            self.gateway.look_again();
        }
        if self.tunnel.is_none() {
            return DriftReport::new();
        }
        let found = match depth {
            Depth::Full => self.worker.verify_full(),
            Depth::Notified => self.worker.verify(),
            Depth::Unnotified => self.worker.verify_quick(),
        };
        let mut drift = found.unwrap_or_else(|error| {
            tracing::warn!(error = %with_causes(&error), "cannot verify the data path");
            DriftReport::new()
        });
        drift.extend(self.gateway.verify(depth == Depth::Full));
        drift.extend(self.uplink.verify(depth == Depth::Full));
        if !drift.is_empty() {
            self.tunnel = None;
        }
        drift
    }

    /// Reads all counters from the kernel.
    pub fn counters(&mut self) -> Counters {
        let worker = self.worker.counters();
        let worker = worker.inspect_err(
            |error| tracing::debug!(error = %with_causes(error), "reading the ruleset's counters"),
        );
        let mut backend = self.gateway.backend_mut();
        let gateway = backend.as_deref_mut().map(GatewayBackend::counters);
        let carried = backend.map(GatewayBackend::traffic);
        Counters {
            worker: worker.ok(),
            gateway: gateway.unwrap_or_default(),
            carried: carried.unwrap_or_default(),
            uplink: self.uplink.counters(),
        }
    }

    /// Packets at the gateway, by outcome, read from the kernel; empty on a node that is none.
    pub fn gateway_counters(&mut self) -> BTreeMap<&'static str, u64> {
        let backend = self.gateway.backend_mut();
        backend.map(GatewayBackend::counters).unwrap_or_default()
    }

    /// Removes the whole data path of a node, whichever process made it. Continues after errors and returns them all.
    pub fn remove(state_directory: &Path, pin_directory: &Path) -> Vec<NodeDatapathError> {
        let mut errors: Vec<NodeDatapathError> = Vec::new();
        let gateway = gateway::remove(pin_directory).into_iter();
        errors.extend(gateway.filter_map(|(_, result)| Some(result.err()?.into())));
        errors.extend(UplinkDriver::remove(pin_directory).err().map(Into::into));
        let canary = canary::remove().err();
        errors.extend(canary.map(|error| canary::CanaryError::from(error).into()));
        match WorkerDriver::open(state_directory) {
            Ok(mut worker) => errors.extend(worker.remove().into_iter().map(Into::into)),
            Err(error) => errors.push(error.into()),
        }
        errors
    }

    /// The worker part, for facts about the node and for flows.
    pub fn worker(&mut self) -> &mut WorkerDriver {
        &mut self.worker
    }

    /// The gateway part.
    pub fn gateway(&self) -> &NodeGateway {
        &self.gateway
    }

    /// The uplink part, for facts about how pods' packets leave.
    pub fn uplink(&mut self) -> &mut NodeUplink {
        &mut self.uplink
    }

    /// The tunnel device; `None` before it is prepared and after an error or drift.
    pub fn tunnel(&self) -> Option<&Device> {
        self.tunnel.as_ref()
    }
}
