//! `egret fence` and `egret unfence`: an operator states that a machine sends nothing any more, or that it does again.

use crate::args::{EXIT_NOT_GOOD, FenceArguments, UnfenceArguments};
use crate::maintenance::with_api;
use egret_objects::convert::cluster::FENCE_ANNOTATION;
use egret_objects::kube::{self, Annotated};
use std::process::ExitCode;

/// Writes the reason into the Node object.
///
/// # Errors
/// The API server cannot be reached, or refuses.
pub fn fence(arguments: &FenceArguments) -> anyhow::Result<ExitCode> {
    let node = &arguments.node;
    let reason = arguments.reason.trim();
    let edit =
        || format!("give the Node {node} there the annotation {FENCE_ANNOTATION}: {reason:?}");
    with_api(&arguments.source, edit, |kubeconfig| {
        match kube::annotate_node(kubeconfig, node, FENCE_ANNOTATION, Some(reason))? {
            Annotated::NoNode => return Ok(no_node(node)),
            Annotated::Before(Some(before)) if before != reason => {
                println!("Node {node} was fenced already; the reason was: {before}");
            }
            Annotated::Before(_) => println!(
                "Node {node} is fenced. Gateways drop what it sends once they have new tables; its ports are free after \
                 the hold-down. `egret status` shows it; `egret unfence {node}` ends it."
            ),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Removes the reason from the Node object.
///
/// # Errors
/// The API server cannot be reached, or refuses.
pub fn unfence(arguments: &UnfenceArguments) -> anyhow::Result<ExitCode> {
    let node = &arguments.node;
    let edit = || format!("remove the annotation {FENCE_ANNOTATION} from the Node {node} there");
    with_api(&arguments.source, edit, |kubeconfig| {
        match kube::annotate_node(kubeconfig, node, FENCE_ANNOTATION, None)? {
            Annotated::NoNode => return Ok(no_node(node)),
            Annotated::Before(None) => println!("Node {node} was not fenced."),
            Annotated::Before(Some(reason)) => {
                println!("Node {node} is not fenced any more; the reason was: {reason}");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn no_node(node: &str) -> ExitCode {
    eprintln!("egret: there is no Node {node}; `kubectl get nodes` lists the names");
    ExitCode::from(EXIT_NOT_GOOD)
}
