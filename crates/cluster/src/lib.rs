//! A real Kubernetes on one machine, for tests and for trying out. Starts programs, links none of our crates but the
//! lab.
//!
//! ```text
//! programs     the programs: built by tests/kubernetes/build, unpacked by tests/kubernetes/unpack
//! credentials  an authority, certificates, tokens, kubeconfigs
//! server       command lines of etcd and kube-apiserver, and the audit policy
//! api_server   etcd and kube-apiserver on loopback, for tests of the API: up in seconds, gone with the value
//! kubectl      running kubectl, and its output
//! cluster      control plane and nodes as hosts of the lab: kubelets, containerd, pods, power cuts
//! topology     its hosts: the lab's addresses, and one for the control plane
//! node         programs of a node, and their configuration
//! groups       control groups of nodes
//! ```

pub mod api_server;
pub mod cluster;
pub mod credentials;
pub mod error;
mod groups;
pub mod kubectl;
mod node;
pub mod programs;
mod server;
pub mod topology;

pub use api_server::ApiServer;
pub use cluster::{Cluster, OwnedCluster};
pub use error::ClusterError;
pub use kubectl::{Kubectl, Said};
pub use programs::Programs;
