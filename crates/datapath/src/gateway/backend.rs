//! What carries a gateway's packets: eBPF programs, or nftables where the kernel refuses those (decision 40).

use super::netdev::{LIMITATIONS, NetdevError, NetdevGateway};
use super::{Attachment, Carried, GatewayConfig, GatewayDriver, GatewayError};
use crate::drift::{Drift, DriftReport};
use egret_core::error::with_causes;
use egret_core::node::{GatewayState, TunnelIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// Which backend a gateway node uses.
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

/// Why a backend could not be set up or changed.
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

/// What carries packets on this gateway.
pub enum GatewayBackend {
    /// The eBPF programs.
    Ebpf(Box<GatewayDriver>),
    /// The netdev table.
    Nftables {
        /// Its driver.
        driver: Box<NetdevGateway>,
        /// Why it is not eBPF.
        reason: String,
    },
}

impl GatewayBackend {
    /// Opens the chosen backend, or the fallback. Which one it is does not change before the next call.
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

    /// Brings the tables to the state; equal states twice change nothing. `own` is this node.
    ///
    /// # Errors
    /// [`BackendError`]; the next call goes on from there.
    pub fn apply(&mut self, state: &GatewayState, own: TunnelIndex) -> Result<(), BackendError> {
        match self {
            GatewayBackend::Ebpf(driver) => drop(driver.apply(state, own)?),
            GatewayBackend::Nftables { driver, .. } => drop(driver.apply(state, own)?),
        }
        Ok(())
    }

    /// Removes what an earlier agent set up of the other kind. Whether there was anything.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn remove_other(&self, pins: &Path) -> Result<bool, BackendError> {
        Ok(match self {
            GatewayBackend::Ebpf(_) => NetdevGateway::remove()?,
            GatewayBackend::Nftables { .. } => GatewayDriver::remove(pins)?,
        })
    }

    /// Whether, just opened, it goes on forwarding what an earlier agent left, so that others count on it.
    pub fn forwards(&mut self) -> bool {
        match self {
            GatewayBackend::Ebpf(driver) => driver.version() > 0,
            GatewayBackend::Nftables { .. } => !self.addresses().is_empty(),
        }
    }

    /// The addresses that it steers, also those that an earlier agent left.
    pub fn addresses(&mut self) -> BTreeSet<IpAddr> {
        match self {
            GatewayBackend::Ebpf(driver) => driver.addresses(),
            GatewayBackend::Nftables { driver, .. } => driver.addresses().unwrap_or_default(),
        }
    }

    /// The steering version that answers to probes carry.
    pub fn version(&self) -> u64 {
        match self {
            GatewayBackend::Ebpf(driver) => driver.version(),
            GatewayBackend::Nftables { driver, .. } => driver.version(),
        }
    }

    /// Packets by what became of them; none where they cannot be read.
    pub fn counters(&mut self) -> BTreeMap<&'static str, u64> {
        match self {
            GatewayBackend::Ebpf(driver) => driver.counters().unwrap_or_default(),
            GatewayBackend::Nftables { driver, .. } => driver.counters().unwrap_or_default(),
        }
    }

    /// What was carried and dropped, by egress address; nothing where it cannot be read.
    pub fn traffic(&mut self) -> BTreeMap<IpAddr, Carried> {
        match self {
            GatewayBackend::Ebpf(driver) => driver.traffic().unwrap_or_default(),
            GatewayBackend::Nftables { driver, .. } => driver.traffic().unwrap_or_default(),
        }
    }

    /// Name of the kind, as the node's status has it.
    pub fn name(&self) -> &'static str {
        match self {
            GatewayBackend::Ebpf(_) => "ebpf",
            GatewayBackend::Nftables { .. } => "nftables",
        }
    }

    /// What it does not do, for people.
    pub fn limitations(&self) -> Option<String> {
        match self {
            GatewayBackend::Ebpf(_) => None,
            GatewayBackend::Nftables { reason, .. } => Some(format!(
                "this gateway forwards by nftables ({reason}), so: {LIMITATIONS}"
            )),
        }
    }

    /// What others have changed, and whether it must be opened anew to be repaired. `deep` compares whole tables.
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

/// The reason to use nftables instead: the kernel refuses BPF. Anything else stays an error.
fn refusal(error: GatewayError) -> Result<Result<GatewayDriver, String>, GatewayError> {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    match error {
        // Looking for an earlier agent's pins is the first that asks for bpf(2).
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
