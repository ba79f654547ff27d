//! Command lines of etcd and kube-apiserver, and the audit policy.

use crate::credentials::Credentials;
use std::net::IpAddr;
use std::path::Path;

/// Ranges of Services' addresses.
pub(crate) const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:96::/112";
/// First address of each range: the API server's address for pods.
pub(crate) const SERVICE_ADDRESSES: [&str; 2] = ["10.96.0.1", "fd00:96::1"];

/// Audit policy: metadata without bodies, enough to compare granted verbs with used ones.
pub(crate) const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n\
     omitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";

/// Address, ports and folder of an API server.
pub(crate) struct Endpoint<'a> {
    /// Address that it listens on and is reached at.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Ports of etcd: for clients and for members.
    pub etcd: [u16; 2],
    /// Folder of data and logs.
    pub folder: &'a Path,
    pub credentials: &'a Credentials,
    /// Nodes exist that reach it, so that it maintains the endpoints of the Service `kubernetes`. Those cannot be on
    /// loopback.
    pub has_nodes: bool,
}

impl Endpoint<'_> {
    /// URL of the API server.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    /// Arguments of etcd, on loopback in either case.
    pub fn etcd(&self) -> Vec<String> {
        let [clients, members] = self.etcd.map(|port| format!("http://127.0.0.1:{port}"));
        let data = self.folder.join("etcd").display().to_string();
        [
            ("name", "test"),
            ("data-dir", &data),
            ("listen-client-urls", &clients),
            ("advertise-client-urls", &clients),
            ("listen-peer-urls", &members),
            ("initial-advertise-peer-urls", &members),
            ("initial-cluster", &format!("test={members}")),
            // Temporary data needs no fsync, but 3.4 always does it: the folder is in memory.
            ("logger", "zap"),
        ]
        .map(|(flag, value)| format!("--{flag}={value}"))
        .to_vec()
    }

    /// Arguments of kube-apiserver.
    pub fn api_server(&self) -> Vec<String> {
        let file = |name: &str| self.credentials.path(name).display().to_string();
        let own = |name: &str| self.folder.join(name).display().to_string();
        let mut arguments: Vec<String> = [
            ("etcd-servers", format!("http://127.0.0.1:{}", self.etcd[0])),
            ("bind-address", self.address.to_string()),
            ("advertise-address", self.address.to_string()),
            ("secure-port", self.port.to_string()),
            ("tls-cert-file", file("apiserver.crt")),
            ("tls-private-key-file", file("apiserver.key")),
            ("client-ca-file", file("ca.crt")),
            ("token-auth-file", file("tokens.csv")),
            ("kubelet-client-certificate", file("kubelet-client.crt")),
            ("kubelet-client-key", file("kubelet-client.key")),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc".to_owned(),
            ),
            ("service-account-signing-key-file", file("accounts.key")),
            ("service-account-key-file", file("accounts.key")),
            ("service-cluster-ip-range", SERVICE_CIDRS.to_owned()),
            ("allow-privileged", "true".to_owned()),
            ("audit-policy-file", own("audit-policy.yaml")),
            ("audit-log-path", own("audit.log")),
            ("profiling", "false".to_owned()),
        ]
        .map(|(flag, value)| format!("--{flag}={value}"))
        .to_vec();
        arguments.push(if self.has_nodes {
            // The nodes' names are not resolvable.
            "--kubelet-preferred-address-types=InternalIP".to_owned()
        } else {
            "--endpoint-reconciler-type=none".to_owned()
        });
        arguments
    }
}
