//! Wishes of an operator about a node, as annotations of its Node object, by the operator's own rights.

use super::{api, connect};
use crate::SourceError;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Longest wait for the API server.
const ANSWER: Duration = Duration::from_secs(30);

/// Result of an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Annotated {
    /// There is no such Node object.
    NoNode,
    /// The annotation had this value before; `None`: it was absent.
    Before(Option<String>),
}

/// Sets an annotation of a Node object, or removes it (`None`).
///
/// # Errors
/// There is no valid client configuration, the API server does not answer within 30 s, or it refuses.
pub fn annotate_node(
    kubeconfig: Option<&Path>,
    node: &str,
    annotation: &str,
    value: Option<&str>,
) -> Result<Annotated, SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| api("starting the client", &error))?;
    let doing = format!("annotating Node {node}");
    let work = async {
        let nodes: Api<Node> = Api::all(connect(kubeconfig).await?);
        let known = nodes.get_metadata_opt(node).await;
        let Some(known) = known.map_err(|error| api(&doing, &error))? else {
            return Ok(Annotated::NoNode);
        };
        let annotations = known.metadata.annotations.unwrap_or_default();
        let before = annotations.get(annotation).cloned();
        if before.as_deref() != value {
            let patched = patch_annotation(&nodes, node, annotation, value).await;
            patched.map_err(|error| api(&doing, &error))?;
        }
        Ok(Annotated::Before(before))
    };
    let answered = runtime.block_on(async { tokio::time::timeout(ANSWER, work).await });
    answered.unwrap_or_else(|_| {
        Err(SourceError::Api {
            doing: doing.clone(),
            why: format!("no answer within {} s", ANSWER.as_secs()),
        })
    })
}

/// Sets an annotation of a Node object, or removes it (`None`), whatever it was.
pub(super) async fn patch_annotation(
    nodes: &Api<Node>,
    node: &str,
    annotation: &str,
    value: Option<&str>,
) -> kube::Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
    let wanted = PatchParams::default();
    let patched = nodes.patch_metadata(node, &wanted, &patch);
    patched.await.map(drop)
}
