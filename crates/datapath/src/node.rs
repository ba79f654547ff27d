//! The whole data path of one node: worker, gateway and uplink programs.
//!
//! The order between them is here and nowhere else:
//!
//! ```text
//!  prepare   tunnel device -> gateway programs (tables untouched)
//!  apply     gateway tables and presence -> uplink tables -> worker (routes, ruleset, flows) -> uplink programs
//!  remove    gateway -> uplink -> canaries -> worker
//! ```
//!
//! A gateway comes before the worker because own ranges count on own tables. Uplink tables come before the ruleset: what
//! they take back and no rule selects is left alone, while what is selected and not taken back would leave as it likes.
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
    /// What sends no change notification: a few small reads while nobody changed anything.
    Unnotified,
    /// That, and what rtnetlink has notified a change of: links, routes, rules, next hops, neighbours.
    Notified,
    /// Everything, with the content of tables and sets.
    Full,
}

/// What one [`NodeDatapath::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Flows that the change ended.
    pub ended_flows: usize,
    /// Names of the node-wide settings that were changed.
    pub sysctls: Vec<String>,
    /// How long the worker part took.
    pub worker_time: Duration,
    /// Why the uplink programs do not follow the ruleset yet: everything else is applied.
    pub uplink_error: Option<UplinkError>,
}

/// What the kernel has counted.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Packets that the worker dropped or refused by reason, and traffic by account. `None`: they could not be read, as a
    /// rule because somebody changed a table meanwhile.
    pub worker: Option<Counted>,
    /// Packets at the gateway, by what became of them.
    pub gateway: BTreeMap<&'static str, u64>,
    /// What the gateway carried and dropped, by egress address.
    pub carried: BTreeMap<IpAddr, Carried>,
    /// Packets at the uplinks, by what became of them.
    pub uplink: BTreeMap<&'static str, u64>,
}

/// The data path of one node, in the network namespace of the thread that opened it.
pub struct NodeDatapath {
    worker: WorkerDriver,
    gateway: NodeGateway,
    uplink: NodeUplink,
    /// The tunnel device, while nothing is known against it.
    tunnel: Option<Device>,
}

impl NodeDatapath {
    /// Opens the kernel's interfaces; nothing is changed yet. `state_directory` keeps what must outlive the process,
    /// `pin_directory` is where eBPF objects are pinned.
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

    /// Makes what must be there before gateways can be probed: the tunnel device, and on a gateway its programs, with the
    /// tables that an earlier process left. `devices_changed`: the tunnel device may be another one than before. What was
    /// opened of the gateway, if anything was.
    ///
    /// # Errors
    /// [`DatapathError::Route`]: there is no tunnel device. An error of the gateway is kept
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

    /// Brings the gateway's tables alone to the state: what they hold is known before anybody decides what to announce.
    pub fn load_tables(&mut self, state: &GatewayState, own: TunnelIndex) {
        self.gateway.load(state, own);
    }

    /// Makes the node equal to the state; equal states twice change nothing. See [`WorkerDriver::apply`] for `idle`.
    ///
    /// # Errors
    /// [`NodeDatapathError::Worker`] or [`NodeDatapathError::Uplink`]: what was reached stays, and the next call goes on
    /// from there. An error of the gateway holds up nothing else and is kept ([`NodeGateway::last_error`]).
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

    /// What others have changed, without changing anything; the next [`Self::prepare`] and [`Self::apply`] repair it. What
    /// cannot be read is logged and no drift. Nothing before the first [`Self::prepare`].
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
            tracing::warn!(error = %with_causes(&error), "looking the data path over");
            DriftReport::new()
        });
        drift.extend(self.gateway.verify(depth == Depth::Full));
        drift.extend(self.uplink.verify(depth == Depth::Full));
        if !drift.is_empty() {
            self.tunnel = None;
        }
        drift
    }

    /// What the kernel has counted.
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

    /// Removes everything of a node's data path, whoever made it. Goes on after errors and returns them all.
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

    /// The worker part: what it can tell of the node, and flows.
    pub fn worker(&mut self) -> &mut WorkerDriver {
        &mut self.worker
    }

    /// The gateway part.
    pub fn gateway(&self) -> &NodeGateway {
        &self.gateway
    }

    /// The uplink part: how pods' packets leave.
    pub fn uplink(&mut self) -> &mut NodeUplink {
        &mut self.uplink
    }

    /// The tunnel device, while nothing is known against it.
    pub fn tunnel(&self) -> Option<&Device> {
        self.tunnel.as_ref()
    }
}
