//! State of a lab's hosts.

use crate::layout::HostLayout;
use crate::process::Process;
use crate::state::{Daemon, State};
use crate::{Lab, LabError};

/// State of one host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HostStatus {
    /// Name.
    pub name: String,
    /// Whether it has power.
    pub on: bool,
    /// Whether all its links have carrier.
    pub carrier: bool,
    /// Its agent: `none`, `running`, `frozen` or `dead`.
    pub agent: &'static str,
    /// Addresses on its links.
    pub addresses: Vec<std::net::IpAddr>,
    /// Pods as namespace/name with addresses.
    pub pods: Vec<(String, Vec<std::net::IpAddr>)>,
}

impl Lab {
    /// State of every host.
    ///
    /// # Errors
    /// It is not up.
    pub fn status(&self) -> Result<Vec<HostStatus>, LabError> {
        let state = self.dir.read()?;
        let layout = state.layout();
        Ok(layout
            .hosts
            .iter()
            .map(|host| host_status(&state, host))
            .collect())
    }

    /// The controller, if it runs.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn controller(&self) -> Result<Option<Process>, LabError> {
        let controller = self.dir.read()?.controller.map(|daemon| daemon.process);
        Ok(controller.filter(|process| process.is_alive()))
    }

    /// The agent of a host, if it runs.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn agent(&self, host: &str) -> Result<Option<Process>, LabError> {
        let agent = self.dir.read()?.hosts.get(host).and_then(|host| host.agent);
        Ok(agent
            .map(|daemon| daemon.process)
            .filter(|process| process.is_alive()))
    }
}

fn host_status(state: &State, host: &HostLayout) -> HostStatus {
    let init = state.init_of(&host.name).ok();
    let agent = state.hosts.get(&host.name).and_then(|host| host.agent);
    let carrier = init.is_some_and(|init| crate::ready::has_carrier(host, init));
    HostStatus {
        name: host.name.clone(),
        on: init.is_some(),
        carrier,
        agent: init
            .and(agent)
            .map_or("none", |Daemon { process, .. }| match process {
                process if process.is_stopped() => "frozen",
                process if process.is_alive() => "running",
                _ => "dead",
            }),
        addresses: host.addresses().collect(),
        pods: host
            .pods
            .iter()
            .map(|pod| {
                (
                    format!("{}/{}", pod.namespace, pod.name),
                    pod.addresses.clone(),
                )
            })
            .collect(),
    }
}
