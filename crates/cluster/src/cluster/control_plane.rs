//! The control plane's host: etcd, API server, controller manager and scheduler, which can be stopped and started.

use super::{Cluster, TIMEOUT};
use crate::ClusterError;
use crate::api_server::tail;
use crate::credentials::{ADMIN, Credentials};
use crate::error::io;
use crate::node::HERE;
use crate::server::{AUDIT_POLICY, Endpoint};
use crate::topology::CONTROL_PLANE;
use egret_lab::process::run;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Port of the API server.
const PORT: u16 = 6443;
/// Ports of etcd, on the control plane's loopback.
const ETCD_PORTS: [u16; 2] = [2379, 2380];
/// Files that the API server and the controller manager read.
const FILES: [&str; 7] = [
    "ca.crt",
    "apiserver.crt",
    "apiserver.key",
    "accounts.key",
    "tokens.csv",
    "kubelet-client.crt",
    "kubelet-client.key",
];

impl Cluster {
    /// Kills etcd, API server, controller manager and scheduler. etcd's data stays.
    ///
    /// # Errors
    /// The control plane's host is off.
    pub fn stop_control_plane(&self) -> Result<(), ClusterError> {
        let place = self.place(CONTROL_PLANE)?;
        // All processes in the host's process namespace except its first one and the shell itself.
        run(self.lab.exec(&place, "sh")?.args(["-c", "kill -9 -1"]), "")?;
        Ok(())
    }

    /// Starts them and waits until the API server is ready.
    ///
    /// # Errors
    /// The control plane's host is off, or the API server is not ready in time.
    pub fn start_control_plane(&self) -> Result<(), ClusterError> {
        let inside = self.inside();
        let endpoint = Endpoint {
            address: self.address()?,
            port: PORT,
            etcd: ETCD_PORTS,
            folder: Path::new(HERE),
            credentials: &inside,
            has_nodes: true,
        };
        let url = endpoint.url();
        self.credentials.write_kubeconfig(ADMIN, &url)?;
        let place = self.place(CONTROL_PLANE)?;
        for name in FILES {
            let text = std::fs::read_to_string(self.credentials.path(name));
            self.put(&place, name, &text.map_err(io(format!("reading {name}")))?)?;
        }
        self.put(&place, "audit-policy.yaml", AUDIT_POLICY)?;
        for user in ["kube-controller-manager", "kube-scheduler"] {
            let text = self
                .credentials
                .kubeconfig(&format!("system:{user}"), &url)?;
            self.put(&place, &format!("{user}.kubeconfig"), &text)?;
        }
        let start = |name: &str, program: PathBuf, arguments: &[String]| {
            self.start(CONTROL_PLANE, name, &program, arguments)
        };
        let kubernetes = |name: &str| self.programs.kubernetes(name);
        start("etcd", self.programs.etcd(), &endpoint.etcd())?;
        let server = "kube-apiserver";
        start(server, kubernetes(server), &endpoint.api_server())?;
        self.wait_for_api_server()?;
        let manager = "kube-controller-manager";
        start(manager, kubernetes(manager), &manager_arguments())?;
        let scheduler = "kube-scheduler";
        start(
            scheduler,
            kubernetes(scheduler),
            &client_arguments(scheduler),
        )
    }

    fn wait_for_api_server(&self) -> Result<(), ClusterError> {
        let ask = ["get", "--raw", "/readyz"];
        let kubectl = self.kubectl()?;
        let ready = kubectl.wait_until("the API server", TIMEOUT, &ask, |said| said.success);
        match ready {
            Err(ClusterError::Timeout {
                what,
                seconds,
                said,
            }) => Err(ClusterError::Timeout {
                what,
                seconds,
                said: format!(
                    "{said}\n{}",
                    tail(&self.log(CONTROL_PLANE, "kube-apiserver"))
                ),
            }),
            result => result.map(drop),
        }
    }

    /// The credentials with paths inside a host.
    fn inside(&self) -> Credentials {
        self.credentials.seen_in(Path::new(HERE))
    }

    fn address(&self) -> Result<IpAddr, ClusterError> {
        let layout = self.lab.layout()?;
        let control = layout.host(CONTROL_PLANE);
        let address = control.and_then(|host| host.node_addresses().find(IpAddr::is_ipv4));
        address.ok_or_else(|| ClusterError::NotUp(self.lab.name().to_owned()))
    }

    pub(super) fn url(&self) -> Result<String, ClusterError> {
        Ok(format!("https://{}:{PORT}", self.address()?))
    }
}

fn client_arguments(name: &str) -> Vec<String> {
    let kubeconfig = format!("{HERE}/{name}.kubeconfig");
    let mut arguments: Vec<String> = [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ]
    .map(|flag| format!("--{flag}={kubeconfig}"))
    .to_vec();
    arguments.extend(["--leader-elect=false", "--profiling=false"].map(str::to_owned));
    arguments
}

fn manager_arguments() -> Vec<String> {
    let mut arguments = client_arguments("kube-controller-manager");
    arguments.push(format!("--root-ca-file={HERE}/ca.crt"));
    arguments.push(format!(
        "--service-account-private-key-file={HERE}/accounts.key"
    ));
    arguments.extend(
        [
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=false",
            // Time until a node that lost power is NotReady; the default is 50 s.
            "--node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
        ]
        .map(str::to_owned),
    );
    arguments
}
