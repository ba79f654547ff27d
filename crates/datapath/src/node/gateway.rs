//! The gateway part of one node's data path, while the node is a gateway.

use crate::drift::DriftReport;
use crate::gateway::netdev::NetdevGateway;
use crate::gateway::{BackendChoice, BackendError, GatewayBackend, GatewayConfig, GatewayDriver};
use crate::presence::{ExternalDevice, Presences};
use crate::route::Device;
use egret_core::error::with_causes;
use egret_core::machines::GatewayCommand;
use egret_core::node::{GatewayState, Tunnel, TunnelIndex};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// The external device of a gateway, and the addresses that its ICMP errors come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalInterface {
    /// The device.
    pub device: Device,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

/// A backend that the current call opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayOpened {
    /// It was open before; only devices have changed.
    pub again: bool,
    /// It still forwards with the tables of an earlier agent, so that other nodes rely on it.
    pub forwards: bool,
}

/// The backend in use.
struct Attached {
    config: GatewayConfig,
    backend: GatewayBackend,
    presences: Presences,
    /// Its tables hold this agent's state, not only an earlier agent's.
    loaded: bool,
}

/// The gateway part of one node's data path. An error is logged, stored for the node's condition
/// ([`NodeGateway::last_error`]) and retried by the next call; the worker part does not wait for it.
pub struct NodeGateway {
    pin_directory: PathBuf,
    choice: BackendChoice,
    attached: Option<Attached>,
    /// This node is no gateway, and nothing of one is left to remove.
    clean: bool,
    last_error: Option<String>,
}

impl NodeGateway {
    /// Creates the part without opening anything.
    pub(super) fn new(pin_directory: &Path, choice: BackendChoice) -> Self {
        NodeGateway {
            pin_directory: pin_directory.into(),
            choice,
            attached: None,
            clean: false,
            last_error: None,
        }
    }

    /// Opens the backend, or adopts an earlier agent's; a change of devices opens it anew. Tables are not touched.
    /// Returns the backend that was opened, if any.
    pub(super) fn attach(
        &mut self,
        tunnel: &Tunnel,
        device: &Device,
        external: Option<&ExternalInterface>,
    ) -> Option<GatewayOpened> {
        self.clean = false;
        let Some(external) = external else {
            self.last_error = Some(BackendError::NoExternalDevice.to_string());
            return None;
        };
        let config = config(tunnel, device, external);
        let attached = self.attached.as_ref();
        if attached.is_some_and(|attached| attached.config == config) {
            return None;
        }
        let before = self.attached.take();
        match GatewayBackend::open(self.choice, &self.pin_directory, &config) {
            Ok(mut backend) => {
                let device = ExternalDevice {
                    index: config.external_ifindex,
                    name: external.device.name.clone(),
                    mac: config.external_mac,
                };
                let opened = GatewayOpened {
                    again: before.is_some(),
                    forwards: backend.forwards(),
                };
                self.attached = Some(Attached {
                    config,
                    presences: Presences::open(&device, &backend.addresses()),
                    backend,
                    loaded: before.is_some_and(|before| before.loaded),
                });
                self.last_error = None;
                Some(opened)
            }
            Err(error) => {
                let text = with_causes(&error);
                if self.last_error.as_ref() != Some(&text) {
                    tracing::error!(error = text, "the gateway's data path cannot be set up");
                }
                self.last_error = Some(text);
                None
            }
        }
    }

    /// Applies the state to tables and presence. After a change of backend, the objects of the other kind are removed
    /// once this one forwards.
    pub(super) fn load(&mut self, state: &GatewayState, own: TunnelIndex) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        match attached.backend.apply(state, own) {
            Ok(()) => {
                if !attached.loaded {
                    match attached.backend.remove_other(&self.pin_directory) {
                        Ok(false) => {}
                        Ok(true) => tracing::info!("the other kind of gateway data path removed"),
                        Err(error) => {
                            tracing::warn!(error = %with_causes(&error), "removing the other data path")
                        }
                    }
                }
                attached.loaded = true;
                self.last_error = None;
            }
            Err(error) => {
                let text = with_causes(&error);
                tracing::error!(error = text, "the steering tables cannot be written");
                self.last_error = Some(text);
            }
        }
        for error in attached.presences.serve(state).err().unwrap_or_default() {
            tracing::warn!(error = %with_causes(&error), "a solicited-node group cannot be joined");
        }
    }

    /// Removes everything of a gateway: this node is none (any more).
    pub(super) fn detach(&mut self) {
        if self.clean {
            return;
        }
        self.attached = None;
        self.last_error = None;
        let removed = remove(&self.pin_directory);
        self.clean = removed.iter().all(|(_, result)| result.is_ok());
        for (what, result) in removed {
            match result {
                Ok(true) => tracing::info!("{what} removed: this node is no gateway any more"),
                Ok(false) => {}
                Err(error) => tracing::warn!(error = with_causes(&error), "removing {what}"),
            }
        }
    }

    /// Makes the next [`Self::detach`] search for leftovers again.
    pub(super) fn look_again(&mut self) {
        self.clean = false;
    }

    /// Detects drift; the next [`Self::attach`] and [`Self::load`] repair it. `deep` compares large tables too.
    pub(super) fn verify(&mut self, deep: bool) -> DriftReport {
        let Some(attached) = &mut self.attached else {
            return DriftReport::new();
        };
        let (pins, config) = (&self.pin_directory, &attached.config);
        let (drift, must_open) = attached.backend.verify(deep, pins, config);
        if must_open {
            self.attached = None;
        }
        drift
    }

    /// Carries out a command of the gateway role by its address's kind of presence. Does nothing while no backend is
    /// open.
    pub fn carry_out(&self, command: &GatewayCommand) {
        let Some(attached) = &self.attached else {
            return;
        };
        if let Err(error) = attached.presences.carry_out(command) {
            let (address, error) = (command.address(), with_causes(&error));
            match command {
                GatewayCommand::Probe(_) => {
                    tracing::debug!(%address, error, "cannot send an address probe")
                }
                _ => tracing::warn!(%address, error, "the take-over could not be announced"),
            }
        }
    }

    /// Last error of the gateway, for the node's condition.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// A backend is open.
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// The tables have held this process's state at some time since the backend was opened.
    pub fn has_loaded(&self) -> bool {
        let attached = self.attached.as_ref();
        attached.is_some_and(|attached| attached.loaded)
    }

    /// The tables hold the state that this process applied last.
    pub fn is_loaded(&self) -> bool {
        self.last_error.is_none() && self.has_loaded()
    }

    /// Index and hardware address of the external device, while a backend is open.
    pub fn external(&self) -> Option<(u32, [u8; 6])> {
        let config = &self.attached.as_ref()?.config;
        Some((config.external_ifindex, config.external_mac))
    }

    /// The open backend.
    pub fn backend(&self) -> Option<&GatewayBackend> {
        Some(&self.attached.as_ref()?.backend)
    }

    pub(super) fn backend_mut(&mut self) -> Option<&mut GatewayBackend> {
        Some(&mut self.attached.as_mut()?.backend)
    }

    /// Whether the gateway sends packets from the tunnel for a next hop up the stack: only the eBPF programs recognise
    /// them. While no backend is open, the answer is for eBPF, which is tried first.
    pub fn carries_next_hops(&self) -> bool {
        let backend = self.backend();
        backend.is_none_or(|backend| matches!(backend, GatewayBackend::Ebpf(_)))
    }

    /// Steering version for the agent's answers to probes; `None` where the eBPF programs answer.
    pub fn probe_version(&self) -> Option<u64> {
        let backend = self.backend()?;
        matches!(backend, GatewayBackend::Nftables { .. }).then(|| backend.version())
    }

    /// Directory of the pinned counters, if there are any.
    pub fn pins(&self) -> Option<&Path> {
        let backend = self.backend()?;
        matches!(backend, GatewayBackend::Ebpf(_)).then_some(self.pin_directory.as_path())
    }
}

fn config(tunnel: &Tunnel, device: &Device, external: &ExternalInterface) -> GatewayConfig {
    GatewayConfig {
        tunnel_ifindex: device.index,
        external_ifindex: external.device.index,
        own_index: tunnel.index,
        tunnel_mtu: tunnel.mtu,
        external_mac: external
            .device
            .mac
            .as_slice()
            .try_into()
            .unwrap_or_default(),
        external_v4: external.v4,
        external_v6: external.v6,
    }
}

/// Removes both kinds of backend, each regardless of the other's result. Returns for each whether there was anything.
pub(super) fn remove(pins: &Path) -> [(&'static str, Result<bool, BackendError>); 2] {
    let programs = GatewayDriver::remove(pins).map_err(BackendError::from);
    let tables = NetdevGateway::remove().map_err(BackendError::from);
    [("gateway programs", programs), ("nftables gateway", tables)]
}
