//! Tests of the whole product in the lab: real packets, captured where they would leave the cluster.
//!
//! ```text
//! chaos     many flows during faults of the cluster, and captures that check their sources
//! churn     nodes that come and go through one address, with stand-ins for their agents
//! steps     named behaviours that share one lab, run one after the other (the `main` of every program in tests/)
//! chart     installation on Kubernetes: helm, and the granted rights
//! installed a real cluster with the chart installed
//! previous  the version before this one, built from the repository's history
//! matrix    environments of users: factors, pairs of them, labs for all pairs
//! emulated  other kernels, emulated by QEMU
//! foreign   objects of earlier systems
//! classic   the driver `classic`: `egret kube-egress` on every node
//! keepalived   VRRP on the nodes of a lab
//! cluster   a lab with agents, a controller, policies and an answering server
//! kubernetes   the program against a real API server: roles, audit log, a connection that can be cut
//! bulk      many requests to an API server in short time
//! scale     a large cluster of objects on a real API server, and the cost of controller and agents
//! openings  new connections of a pod at a fixed rate
//! held      many idle connections of a pod
//! watch     captures: seen and forbidden sources
//! packet    hand-made packets
//! standin   programs that let pods' packets bypass the host stack, as some network plugins do
//! runtime   a container runtime's calls of the CNI plugin
//! socket    socket options that the standard library lacks: path MTU, don't fragment
//! ```

pub mod bulk;
pub mod chaos;
pub mod chart;
pub mod churn;
pub mod classic;
pub mod cluster;
pub mod crowded;
pub mod earlier;
pub mod emulated;
pub mod foreign;
pub mod held;
pub mod installed;
pub mod keepalived;
pub mod kubernetes;
pub mod matrix;
pub mod openings;
pub mod packet;
pub mod previous;
pub mod runtime;
pub mod scale;
pub mod seccomp;
pub mod socket;
pub mod standin;
pub mod steps;
pub mod watch;

pub use cluster::Cluster;
pub use steps::{Outcome, Step, run};

use std::path::PathBuf;

/// The program under test: `EGRET_BIN`, else `egret` beside the folder of the test program.
///
/// # Errors
/// It is not built.
pub fn egret() -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os("EGRET_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()?;
            // target/debug/deps/test -> target/debug/egret
            let built = own.ancestors().nth(2).map(|folder| folder.join("egret"));
            built.unwrap_or_default()
        }
    };
    anyhow::ensure!(
        path.is_file(),
        "{} is not there: build it with `cargo build --bin egret`, or name another one in EGRET_BIN",
        path.display()
    );
    Ok(path)
}
