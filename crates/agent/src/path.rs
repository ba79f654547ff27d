//! The ways in which a gateway can forward: eBPF, or nftables where the kernel refuses that.

use crate::error::chain;
use egret_core::node::GatewayState;
use egret_datapath::damage::{Damage, Found};
use egret_datapath::gateway::netdev::{LACKS, NetdevError, NetdevGateway};
use egret_datapath::gateway::{Attachment, Carried, GatewayConfig, GatewayDriver, GatewayError};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path as FilePath;

/// Which data path a gateway node uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GatewayDatapath {
    /// eBPF; nftables where the kernel refuses it.
    #[default]
    Auto,
    /// eBPF by clsact filters also where the kernel has tcx.
    Clsact,
    /// nftables also where the kernel has eBPF.
    Nftables,
}

/// Why a data path could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error(transparent)]
    Ebpf(#[from] GatewayError),
    #[error(transparent)]
    Nftables(#[from] NetdevError),
}

/// What forwards on this gateway.
pub(crate) enum Path {
    Ebpf(Box<GatewayDriver>),
    Nftables {
        driver: Box<NetdevGateway>,
        /// Why it is not eBPF.
        why: String,
    },
}

impl Path {
    /// Opens the chosen data path, or the fallback. Which one it is does not change before the next call.
    pub(crate) fn open(
        choice: GatewayDatapath,
        pins: &FilePath,
        config: &GatewayConfig,
    ) -> Result<Self, PathError> {
        let opened = match choice {
            GatewayDatapath::Nftables => Err("asked for by --gateway-datapath".to_owned()),
            GatewayDatapath::Auto => GatewayDriver::open(pins, config).map(Ok).or_else(refusal)?,
            GatewayDatapath::Clsact => GatewayDriver::open_with(pins, config, Attachment::Clsact)
                .map(Ok)
                .or_else(refusal)?,
        };
        match opened {
            Ok(driver) => Ok(Path::Ebpf(Box::new(driver))),
            Err(why) => {
                tracing::warn!(why, "this gateway forwards by nftables");
                let driver = Box::new(NetdevGateway::open(config)?);
                Ok(Path::Nftables { driver, why })
            }
        }
    }

    /// As the drivers' own; the other data path's leftovers go once this one forwards.
    pub(crate) fn apply(&mut self, state: &GatewayState, own: u16) -> Result<(), PathError> {
        match self {
            Path::Ebpf(driver) => drop(driver.apply(state, own)?),
            Path::Nftables { driver, .. } => drop(driver.apply(state, own)?),
        }
        Ok(())
    }

    /// Removes what an earlier agent set up of the other kind.
    pub(crate) fn remove_other(&self, pins: &FilePath) -> Result<bool, PathError> {
        Ok(match self {
            Path::Ebpf(_) => NetdevGateway::remove()?,
            Path::Nftables { .. } => GatewayDriver::remove(pins)?,
        })
    }

    /// Whether, just opened, it goes on forwarding what an earlier agent left, so that others count on it.
    pub(crate) fn forwards(&mut self) -> bool {
        match self {
            Path::Ebpf(driver) => driver.version() > 0,
            Path::Nftables { .. } => !self.addresses().is_empty(),
        }
    }

    /// The addresses that it steers, also those that an earlier agent left.
    pub(crate) fn addresses(&mut self) -> BTreeSet<IpAddr> {
        match self {
            Path::Ebpf(driver) => driver.addresses(),
            Path::Nftables { driver, .. } => driver.addresses().unwrap_or_default(),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        match self {
            Path::Ebpf(driver) => driver.version(),
            Path::Nftables { driver, .. } => driver.version(),
        }
    }

    pub(crate) fn counters(&mut self) -> BTreeMap<&'static str, u64> {
        match self {
            Path::Ebpf(driver) => driver.counters().unwrap_or_default(),
            Path::Nftables { driver, .. } => driver.counters().unwrap_or_default(),
        }
    }

    /// What was carried and dropped, by egress address.
    pub(crate) fn traffic(&mut self) -> BTreeMap<IpAddr, Carried> {
        match self {
            Path::Ebpf(driver) => driver.traffic().unwrap_or_default(),
            Path::Nftables { driver, .. } => driver.traffic().unwrap_or_default(),
        }
    }

    /// As the status calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Path::Ebpf(_) => "ebpf",
            Path::Nftables { .. } => "nftables",
        }
    }

    /// What it does not do, for people.
    pub(crate) fn lacks(&self) -> Option<String> {
        match self {
            Path::Ebpf(_) => None,
            Path::Nftables { why, .. } => Some(format!(
                "this gateway forwards by nftables ({why}), so: {LACKS}"
            )),
        }
    }

    /// What others have done to it; `true`: it must be opened anew.
    pub(crate) fn verify(
        &mut self,
        deep: bool,
        pins: &FilePath,
        config: &GatewayConfig,
    ) -> (Found, bool) {
        let mut damage = Found::new();
        let driver = match self {
            Path::Ebpf(driver) => driver,
            Path::Nftables { driver, .. } => {
                match driver.verify(deep) {
                    Ok(found) => damage.extend(found.map(|what| (Damage::Ruleset, what))),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "reading the netdev table")
                    }
                }
                return (damage, false);
            }
        };
        match driver.verify_tables(deep) {
            Ok(found) => damage.extend(found.map(|what| (Damage::Tables, what))),
            Err(error) => tracing::warn!(error = %chain(&error), "reading the steering tables"),
        }
        let detached = driver.detached(pins, config);
        let must_open = detached.is_some();
        damage.extend(detached.map(|what| (Damage::Programs, what)));
        (damage, must_open)
    }
}

/// What another data path could do instead: the kernel refuses BPF. Anything else stays an error.
fn refusal(error: GatewayError) -> Result<Result<GatewayDriver, String>, GatewayError> {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    match error {
        // Looking for an earlier agent's pins is the first that asks for bpf(2).
        GatewayError::Pin { ref source, .. }
            if matches!(source.kind(), PermissionDenied | Unsupported) =>
        {
            Ok(Err(chain(&error)))
        }
        GatewayError::NotBpffs { .. }
        | GatewayError::Load { .. }
        | GatewayError::Attach { .. }
        | GatewayError::Map { .. } => Ok(Err(chain(&error))),
        GatewayError::NoDevice { .. }
        | GatewayError::Pin { .. }
        | GatewayError::ForeignPin { .. } => Err(error),
    }
}
