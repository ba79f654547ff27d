//! `egret drain`, `egret undrain` and `egret move`: requests to the API, and waits until agents report that it is so.

use crate::args::{DrainArguments, EXIT_NOT_GOOD, EXIT_USAGE, MoveArguments, SourceArgument};
use egret_objects::kube::{self, Outcome};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Drains a gateway.
///
/// # Errors
/// See [`kube::drain`].
pub fn drain(arguments: &DrainArguments) -> anyhow::Result<ExitCode> {
    let node = &arguments.node;
    let edit = || format!("give the Node {node} there the annotation egret.dev/drain: \"\"");
    with_api(&arguments.source, edit, |kubeconfig| {
        let timeout = Duration::from_secs(arguments.timeout);
        let outcome = kube::drain(kubeconfig, node, timeout, progress)?;
        Ok(told(outcome))
    })
}

/// Takes a drain back.
///
/// # Errors
/// See [`kube::undrain`].
pub fn undrain(arguments: &DrainArguments) -> anyhow::Result<ExitCode> {
    let node = &arguments.node;
    let edit = || format!("remove the annotation egret.dev/drain from the Node {node} there");
    with_api(&arguments.source, edit, |kubeconfig| {
        let timeout = Duration::from_secs(arguments.timeout);
        let outcome = kube::undrain(kubeconfig, node, timeout, progress)?;
        Ok(told(outcome))
    })
}

/// Moves an address to another announcer.
///
/// # Errors
/// See [`kube::move_address`].
pub fn move_address(arguments: &MoveArguments) -> anyhow::Result<ExitCode> {
    let MoveArguments { address, node, .. } = arguments;
    let edit = || match node {
        Some(node) => format!(
            "add {{address: \"{address}\", node: {node}}} to spec.announcers of the address's EgressGateway there"
        ),
        None => format!(
            "remove the entry for {address} from spec.announcers of the address's EgressGateway there"
        ),
    };
    with_api(&arguments.source, edit, |kubeconfig| {
        let (to, timeout) = (node.as_deref(), Duration::from_secs(arguments.timeout));
        let outcome = kube::move_address(kubeconfig, *address, to, timeout, progress)?;
        Ok(told(outcome))
    })
}

/// Files of a directory are the user's own: Egret never writes them. `edit`: what to write there.
pub(crate) fn with_api(
    source: &SourceArgument,
    edit: impl Fn() -> String,
    request: impl Fn(Option<&Path>) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    match source {
        SourceArgument::Kube(kubeconfig) => request(kubeconfig.as_ref().map(PathBuf::as_path)),
        SourceArgument::Directory(path) => {
            eprintln!(
                "egret: objects of dir:{} are your files, which Egret does not write: {}",
                path.display(),
                edit()
            );
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

fn progress(left: &str) {
    println!("{left}");
}

fn told(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Done(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Outcome::Left(left) => {
            eprintln!("egret: not done: {left}");
            ExitCode::from(EXIT_NOT_GOOD)
        }
    }
}
