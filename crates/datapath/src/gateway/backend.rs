//! Backends of a gateway: eBPF programs, or nftables where the kernel refuses those (decision 40).

use super::netdev::{LIMITATIONS, NetdevError, NetdevGateway};
use super::{Attachment, Carried, GatewayConfig, GatewayDriver, GatewayError};
use crate::drift::{Drift, DriftReport};
use egret_core::error::with_causes;
use egret_core::node::{GatewayState, TunnelIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// Choice of a gateway node's backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// eBPF; nftables where the kernel refuses it.
    #[default]
    Auto,
    /// eBPF by clsact filters also where the kernel has tcx.
    Clsact,
    /// nftables also where the kernel has eBPF.
    Nftables,
}

/// Error of setting up or changing a backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The eBPF programs, their maps or pins.
    #[error(transparent)]
    Ebpf(#[from] GatewayError),
    /// The netdev table.
    #[error(transparent)]
    Nftables(#[from] NetdevError),
    /// The node is a gateway without the device that gateways need.
    #[error("this gateway node has no external device")]
    NoExternalDevice,
}

/// The backend that forwards packets on this gateway.
pub enum GatewayBackend {
    /// The eBPF programs.
    Ebpf(Box<GatewayDriver>),
    /// The netdev table.
    Nftables {
        /// Its driver.
        driver: Box<NetdevGateway>,
        /// Reason why eBPF is not used.
        reason: String,
    },
}

impl GatewayBackend {
    /// Opens the chosen backend, or the fallback. The kind stays the same until the next call.
    ///
    /// # Errors
    /// [`BackendError`]: a missing device, pins of others, or a refusal by the kernel that nftables would meet too.
    pub fn open(
        choice: BackendChoice,
        pins: &Path,
        config: &GatewayConfig,
    ) -> Result<Self, BackendError> {
        let opened = match choice {
            BackendChoice::Nftables => Err("asked for by --gateway-datapath".to_owned()),
            BackendChoice::Auto => GatewayDriver::open(pins, config).map(Ok).or_else(refusal)?,
            BackendChoice::Clsact => GatewayDriver::open_with(pins, config, Attachment::Clsact)
                .map(Ok)
                .or_else(refusal)?,
        };
        match opened {
            Ok(driver) => Ok(GatewayBackend::Ebpf(Box::new(driver))),
            Err(reason) => {
                tracing::warn!(reason, "this gateway forwards by nftables");
                let driver = Box::new(NetdevGateway::open(config)?);
                Ok(GatewayBackend::Nftables { driver, reason })
            }
        }
    }

    /// Brings the tables to the state; applying equal states twice changes nothing. `own` is this node.
    ///
    /// # Errors
    /// [`BackendError`]; the next call continues from there.
    pub fn apply(&mut self, state: &GatewayState, own: TunnelIndex) -> Result<(), BackendError> {
        match self {
            GatewayBackend::Ebpf(driver) => drop(driver.apply(state, own)?),
            GatewayBackend::Nftables { driver, .. } => drop(driver.apply(state, own)?),
        }
        Ok(())
    }

    /// Removes the other kind of backend that an earlier agent set up. Returns whether there was anything.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn remove_other(&self, pins: &Path) -> Result<bool, BackendError> {
        Ok(match self {
            GatewayBackend::Ebpf(_) => NetdevGateway::remove()?,
            GatewayBackend::Nftables { .. } => GatewayDriver::remove(pins)?,
        })
    }

    /// Whether the backend, just opened, still forwards with an earlier agent's tables, so that other nodes rely on it.
    pub fn forwards(&mut self) -> bool {
        match self {
            GatewayBackend::Ebpf(driver) => driver.version() > 0,
            GatewayBackend::Nftables { .. } => !self.addresses().is_empty(),
        }
    }

    /// Addresses that it steers, including those of an earlier agent.
    pub fn addresses(&mut self) -> BTreeSet<IpAddr> {
        match self {
            GatewayBackend::Ebpf(driver) => driver.addresses(),
            GatewayBackend::Nftables { driver, .. } => driver.addresses().unwrap_or_default(),
        }
    }

    /// Steering version in answers to probes.
    pub fn version(&self) -> u64 {
        match self {
            GatewayBackend::Ebpf(driver) => driver.version(),
            GatewayBackend::Nftables { driver, .. } => driver.version(),
        }
    }

    /// Packets by outcome; empty where they cannot be read.
    pub fn counters(&mut self) -> BTreeMap<&'static str, u64> {
        match self {
            GatewayBackend::Ebpf(driver) => driver.counters().unwrap_or_default(),
            GatewayBackend::Nftables { driver, .. } => driver.counters().unwrap_or_default(),
        }
    }

    /// Traffic and drops by egress address; empty where they cannot be read.
    pub fn traffic(&mut self) -> BTreeMap<IpAddr, Carried> {
        match self {
            GatewayBackend::Ebpf(driver) => driver.traffic().unwrap_or_default(),
            GatewayBackend::Nftables { driver, .. } => driver.traffic().unwrap_or_default(),
        }
    }

    /// Name of the kind, as in the node's status.
    pub fn name(&self) -> &'static str {
        match self {
            GatewayBackend::Ebpf(_) => "ebpf",
            GatewayBackend::Nftables { .. } => "nftables",
        }
    }

    /// Limitations of the backend, as text for people.
    pub fn limitations(&self) -> Option<String> {
        match self {
            GatewayBackend::Ebpf(_) => None,
            GatewayBackend::Nftables { reason, .. } => Some(format!(
                "this gateway forwards by nftables ({reason}), so: {LIMITATIONS}"
            )),
        }
    }

    /// Detects drift, and whether repairing it needs a new [`Self::open`]. `deep` compares whole tables.
    pub fn verify(
        &mut self,
        deep: bool,
        pins: &Path,
        config: &GatewayConfig,
    ) -> (DriftReport, bool) {
        let mut drift = DriftReport::new();
        let driver = match self {
            GatewayBackend::Ebpf(driver) => driver,
            GatewayBackend::Nftables { driver, .. } => {
                match driver.verify(deep) {
                    Ok(found) => drift.extend(found.map(|what| (Drift::Ruleset, what))),
                    Err(error) => {
                        tracing::warn!(error = %with_causes(&error), "reading the netdev table")
                    }
                }
                return (drift, false);
            }
        };
        match driver.verify_tables(deep) {
            Ok(found) => drift.extend(found.map(|what| (Drift::Tables, what))),
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "reading the steering tables")
            }
        }
        let detached = driver.detached(pins, config);
        let must_open = detached.is_some();
        drift.extend(detached.map(|what| (Drift::Programs, what)));
        (drift, must_open)
    }
}

/// Reason for nftables instead: the kernel refuses BPF. Any other error stays an error.
fn refusal(error: GatewayError) -> Result<Result<GatewayDriver, String>, GatewayError> {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    match error {
        // The search for an earlier agent's pins is the first call of bpf(2).
        GatewayError::Pin { ref source, .. }
            if matches!(source.kind(), PermissionDenied | Unsupported) =>
        {
            Ok(Err(with_causes(&error)))
        }
        GatewayError::NotBpffs { .. }
        | GatewayError::Load { .. }
        | GatewayError::Attach { .. }
        | GatewayError::Map { .. } => Ok(Err(with_causes(&error))),
        GatewayError::NoDevice { .. }
        | GatewayError::Pin { .. }
        | GatewayError::ForeignPin { .. } => Err(error),
    }
}
