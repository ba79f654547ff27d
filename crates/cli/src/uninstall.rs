//! `egret uninstall`: the chart runs it before it deletes anything.

use crate::args::{EXIT_NOT_GOOD, UninstallArguments};
use egret_objects::kube::{self, Uninstalled};
use std::process::ExitCode;
use std::time::Duration;

/// Waits until every node is clean, and prints the remaining ones.
///
/// # Errors
/// The API server cannot be found, or the DaemonSet contains no agent.
pub fn run(arguments: &UninstallArguments) -> anyhow::Result<ExitCode> {
    let (namespace, name) = (&arguments.namespace, &arguments.daemonset);
    let timeout = Duration::from_secs(arguments.timeout_secs);
    let ended = kube::uninstall(
        arguments.kubeconfig.as_deref(),
        namespace,
        name,
        timeout,
        |left| println!("{left}"),
    )?;
    match ended {
        Uninstalled::NoAgents => {
            println!("There is no DaemonSet {namespace}/{name}: nothing to clean up.")
        }
        Uninstalled::Clean(nodes) => {
            println!("{nodes} nodes are clean, and no others had an agent.")
        }
        Uninstalled::Left(left) => {
            eprintln!(
                "egret: not all nodes are clean after {} s: {left}",
                arguments.timeout_secs
            );
            return Ok(ExitCode::from(EXIT_NOT_GOOD));
        }
    }
    Ok(ExitCode::SUCCESS)
}
