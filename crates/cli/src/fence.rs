//! `egret fence` and `egret unfence`: an operator states that a machine sends nothing any more, or that it does again.

use crate::args::{EXIT_NOT_GOOD, EXIT_USAGE, FenceArguments, SourceArgument, UnfenceArguments};
use egret_objects::convert::cluster::FENCE_ANNOTATION;
use egret_objects::kube::{self, Annotated};
use std::path::Path;
use std::process::ExitCode;

/// Writes the reason into the Node object.
///
/// # Errors
/// The API server cannot be reached, or refuses.
pub fn fence(arguments: &FenceArguments) -> anyhow::Result<ExitCode> {
    let node = &arguments.node;
    let Some(kubeconfig) = kubeconfig(&arguments.source, node, "add to it") else {
        return Ok(ExitCode::from(EXIT_USAGE));
    };
    let reason = arguments.reason.trim();
    match kube::annotate_node(kubeconfig, node, FENCE_ANNOTATION, Some(reason))? {
        Annotated::NoNode => return Ok(no_node(node)),
        Annotated::Before(Some(before)) if before != reason => {
            println!("Node {node} was fenced already; the reason was: {before}");
        }
        Annotated::Before(_) => println!(
            "Node {node} is fenced. Gateways drop what it sends once they have new tables; its ports are free after the \
             hold-down. `egret status` shows it; `egret unfence {node}` ends it."
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the reason from the Node object.
///
/// # Errors
/// The API server cannot be reached, or refuses.
pub fn unfence(arguments: &UnfenceArguments) -> anyhow::Result<ExitCode> {
    let node = &arguments.node;
    let Some(kubeconfig) = kubeconfig(&arguments.source, node, "remove from it") else {
        return Ok(ExitCode::from(EXIT_USAGE));
    };
    match kube::annotate_node(kubeconfig, node, FENCE_ANNOTATION, None)? {
        Annotated::NoNode => return Ok(no_node(node)),
        Annotated::Before(None) => println!("Node {node} was not fenced."),
        Annotated::Before(Some(reason)) => {
            println!("Node {node} is not fenced any more; the reason was: {reason}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The kubeconfig file of the API; `None`: the source is a directory, which is never written.
fn kubeconfig<'a>(
    source: &'a SourceArgument,
    node: &str,
    change: &str,
) -> Option<Option<&'a Path>> {
    match source {
        SourceArgument::Kube(kubeconfig) => Some(kubeconfig.as_deref()),
        SourceArgument::Directory(path) => {
            eprintln!(
                "egret: manifests in {} are yours and are not written. In that of Node {node}, {change} under \
                 metadata.annotations: {FENCE_ANNOTATION}: \"the reason\"",
                path.display()
            );
            None
        }
    }
}

fn no_node(node: &str) -> ExitCode {
    eprintln!("egret: there is no Node {node}; `kubectl get nodes` lists the names");
    ExitCode::from(EXIT_NOT_GOOD)
}
