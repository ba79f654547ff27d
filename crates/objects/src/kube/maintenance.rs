//! Requests for maintenance with the rights of a user: the annotation of a Node that drains a gateway, and the node that an
//! `EgressGateway` names to announce an address. Each waits until agents report that it is so.

use super::annotate::patch_annotation;
use super::{api, connect};
use crate::SourceError;
use crate::convert::cluster::DRAIN_ANNOTATION;
use crate::convert::gateway::gateway;
use egret_api::{AnnouncerSpec, EgressAddress, EgressGateway, EgressNode, address_object_name};
use egret_core::condition::{ConditionType, Reason};
use egret_core::error::with_causes;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Poll interval of the API server.
const EVERY: Duration = Duration::from_millis(500);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Writes that another writer may get ahead of.
const TRIES: usize = 5;

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Done(String),
    /// The timeout has expired; what is left.
    Left(String),
}

/// Asks that the gateway of this node hands over its traffic, and waits until it is empty. `told` receives every change
/// of what is left.
///
/// # Errors
/// There is no such Node, or the API server cannot be found or refuses.
pub fn drain(
    kubeconfig: Option<&Path>,
    node: &str,
    timeout: Duration,
    told: impl FnMut(&str),
) -> Result<Outcome, SourceError> {
    run(kubeconfig, async |client| {
        let object = node_of(&client, node).await?;
        if selecting(&client, &object).await?.is_empty() {
            let text = format!("no EgressGateway selects Node {node}: there is nothing to drain");
            return Ok(Outcome::Done(text));
        }
        let deadline = Instant::now() + timeout;
        let mut wait = Wait { deadline, told };
        if !is_asked(&object) {
            // A drain that has just been taken back may still be in the status.
            let gone = async || {
                Ok(draining(&client, node)
                    .await?
                    .map_or(Step::Done, Step::left))
            };
            if let Some(left) = wait.until(gone).await? {
                return Ok(Outcome::Left(left));
            }
        }
        annotate(&client, node, Some("")).await?;
        let empty = async || {
            Ok(match draining(&client, node).await? {
                Some((Reason::Drained, _)) => Step::Done,
                Some(found) => Step::left(found),
                None => Step::Left(format!(
                    "EgressNode {node} says nothing about it yet; see its agent"
                )),
            })
        };
        Ok(match wait.until(empty).await? {
            None => Outcome::Done(format!(
                "{node} carries nothing: its machine may be stopped. `egret undrain {node}` brings it back."
            )),
            Some(left) => Outcome::Left(left),
        })
    })
}

/// Takes the request back, and waits until the gateway serves again.
///
/// # Errors
/// As [`drain`].
pub fn undrain(
    kubeconfig: Option<&Path>,
    node: &str,
    timeout: Duration,
    told: impl FnMut(&str),
) -> Result<Outcome, SourceError> {
    run(kubeconfig, async |client| {
        let object = node_of(&client, node).await?;
        if has_annotation(&object) {
            annotate(&client, node, None).await?;
        }
        if is_cordoned(&object) {
            return Ok(Outcome::Left(format!(
                "{node} is cordoned, which drains a gateway too: `kubectl uncordon {node}`"
            )));
        }
        let deadline = Instant::now() + timeout;
        let mut wait = Wait { deadline, told };
        let serves = async || {
            Ok(draining(&client, node)
                .await?
                .map_or(Step::Done, Step::left))
        };
        Ok(match wait.until(serves).await? {
            None => Outcome::Done(format!("{node} is not drained")),
            Some(left) => Outcome::Left(left),
        })
    })
}

/// Has this node announce the address, or with `None` the one that Egret chooses; waits until it does.
///
/// # Errors
/// There is no such address or Node, the address's gateway does not select the node, or as [`drain`].
pub fn move_address(
    kubeconfig: Option<&Path>,
    address: IpAddr,
    to: Option<&str>,
    timeout: Duration,
    told: impl FnMut(&str),
) -> Result<Outcome, SourceError> {
    run(kubeconfig, async |client| {
        let group = name_announcer(&client, address, to).await?;
        let Some(to) = to else {
            return Ok(Outcome::Done(format!(
                "the gateways of EgressGateway {group} decide again who announces {address}"
            )));
        };
        let deadline = Instant::now() + timeout;
        let mut wait = Wait { deadline, told };
        let announced = async || {
            let nodes: Api<EgressNode> = Api::all(client.clone());
            let nodes = answered("reading EgressNodes", nodes.list(&ListParams::default())).await?;
            let text = address.to_string();
            let announcing = nodes.items.into_iter().filter(|node| {
                let status = node.status.as_ref();
                status.is_some_and(|status| status.announcing.contains(&text))
            });
            let names: Vec<String> = announcing.filter_map(|node| node.metadata.name).collect();
            Ok(match names.as_slice() {
                [only] if only == to => Step::Done,
                [] => Step::Left(format!("no gateway announces {address}")),
                some => Step::Left(format!("{address} is announced by {}", some.join(" and "))),
            })
        };
        Ok(match wait.until(announced).await? {
            None => Outcome::Done(format!("{to} announces {address}")),
            Some(left) => Outcome::Left(left),
        })
    })
}

/// What one look has found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Done,
    Left(String),
}

impl Step {
    fn left((_, text): (Reason, String)) -> Self {
        Step::Left(text)
    }
}

struct Wait<T> {
    deadline: Instant,
    told: T,
}

impl<T: FnMut(&str)> Wait<T> {
    /// Looks until it is done, or the time is over: then what is left. An error of the API server is what is left, too.
    async fn until(
        &mut self,
        mut look: impl AsyncFnMut() -> Result<Step, SourceError>,
    ) -> Result<Option<String>, SourceError> {
        let mut last = String::new();
        loop {
            let left = match look().await {
                Ok(Step::Done) => return Ok(None),
                Ok(Step::Left(left)) => left,
                Err(error) => with_causes(&error),
            };
            if left != last {
                (self.told)(&left);
                last = left;
            }
            if Instant::now() >= self.deadline {
                return Ok(Some(last));
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

fn run<T>(
    kubeconfig: Option<&Path>,
    work: impl AsyncFnOnce(Client) -> Result<T, SourceError>,
) -> Result<T, SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| api("starting the client", &error))?;
    runtime.block_on(async { work(connect(kubeconfig).await?).await })
}

async fn answered<T>(
    doing: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, SourceError> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(|error| api(doing, &error)),
        Err(error) => Err(api(doing, &error)),
    }
}

fn refused(doing: String, why: String) -> SourceError {
    SourceError::Api { doing, why }
}

async fn node_of(client: &Client, name: &str) -> Result<Node, SourceError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let found = answered("reading the Node", nodes.get_opt(name)).await?;
    found.ok_or_else(|| SourceError::NotFound {
        object: format!("Node {name}"),
    })
}

async fn annotate(client: &Client, name: &str, value: Option<&str>) -> Result<(), SourceError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let request = patch_annotation(&nodes, name, DRAIN_ANNOTATION, value);
    answered("annotating the Node", request).await
}

fn has_annotation(node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(DRAIN_ANNOTATION))
}

fn is_cordoned(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.and_then(|spec| spec.unschedulable) == Some(true)
}

/// Whether the Node asks for a drain already.
fn is_asked(node: &Node) -> bool {
    has_annotation(node) || is_cordoned(node) || node.metadata.deletion_timestamp.is_some()
}

/// Names of the gateways that select this node. One that cannot be read selects nobody.
async fn selecting(client: &Client, node: &Node) -> Result<Vec<String>, SourceError> {
    let gateways: Api<EgressGateway> = Api::all(client.clone());
    let every = ListParams::default();
    let all = answered("reading EgressGateways", gateways.list(&every)).await?;
    let selects = |object: &EgressGateway| selects(object, node);
    let selecting = all.items.into_iter().filter(selects);
    Ok(selecting.filter_map(|one| one.metadata.name).collect())
}

fn selects(object: &EgressGateway, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    gateway(object).is_ok_and(|gateway| gateway.nodes.matches(&labels))
}

/// Reason and message of the condition `Draining` of a node.
async fn draining(client: &Client, name: &str) -> Result<Option<(Reason, String)>, SourceError> {
    let nodes: Api<EgressNode> = Api::all(client.clone());
    let node = answered("reading the EgressNode", nodes.get_opt(name)).await?;
    Ok(node.as_ref().and_then(condition))
}

fn condition(node: &EgressNode) -> Option<(Reason, String)> {
    let kind = ConditionType::Draining.to_string();
    let conditions = &node.status.as_ref()?.conditions;
    let found = conditions
        .iter()
        .find(|one| one.type_ == kind && one.status == "True")?;
    let mut reasons = Reason::ALL.iter().copied();
    // A reason of a later version says that it is not empty.
    let reason = reasons.find(|reason| reason.to_string() == found.reason);
    Some((
        reason.unwrap_or(Reason::PacketsArrive),
        found.message.clone(),
    ))
}

/// Writes the announcer of an address into its `EgressGateway`; returns the gateway's name.
async fn name_announcer(
    client: &Client,
    address: IpAddr,
    to: Option<&str>,
) -> Result<String, SourceError> {
    let records: Api<EgressAddress> = Api::all(client.clone());
    let name = address_object_name(address);
    let request = records.get_opt(&name);
    let record = answered("reading the EgressAddress", request).await?;
    let record = record.ok_or_else(|| SourceError::NotFound {
        object: format!("EgressAddress {name}"),
    })?;
    let group = record.spec.gateway;
    let gateways: Api<EgressGateway> = Api::all(client.clone());
    for last in (0..TRIES).rev() {
        let request = gateways.get_opt(&group);
        let object = answered("reading the EgressGateway", request).await?;
        let object = object.ok_or_else(|| SourceError::NotFound {
            object: format!("EgressGateway {group}"),
        })?;
        if let Some(to) = to {
            let node = node_of(client, to).await?;
            if !selects(&object, &node) {
                let why = format!("EgressGateway {group} of {address} does not select Node {to}");
                return Err(refused(format!("moving {address} to {to}"), why));
            }
        }
        let announcers = with_announcer(&object.spec.announcers, address, to);
        if announcers == object.spec.announcers {
            break;
        }
        let patch = json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "spec": {"announcers": announcers},
        });
        let (wanted, patch) = (PatchParams::default(), Patch::Merge(patch));
        let request = gateways.patch(&group, &wanted, &patch);
        match tokio::time::timeout(ANSWER, request).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 409 && last > 0 => {}
            Ok(Err(error)) => return Err(api("writing the EgressGateway", &error)),
            Err(error) => return Err(api("writing the EgressGateway", &error)),
            Ok(Ok(_)) => break,
        }
    }
    Ok(group)
}

/// The list with this node, or without an entry, for the address.
fn with_announcer(
    before: &[AnnouncerSpec],
    address: IpAddr,
    to: Option<&str>,
) -> Vec<AnnouncerSpec> {
    let is_of = |one: &&AnnouncerSpec| one.address.parse() == Ok(address);
    let others = before.iter().filter(|one| !is_of(one)).cloned();
    let named = to.map(|node| AnnouncerSpec {
        address: address.to_string(),
        node: node.to_owned(),
    });
    others.chain(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_announcer_and_others_stay() {
        let entry = |address: &str, node: &str| AnnouncerSpec {
            address: address.into(),
            node: node.into(),
        };
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let one = with_announcer(&[], v4, Some("g1"));
        assert_eq!(one, [entry("192.0.2.1", "g1")]);
        // The same address, written otherwise.
        let both = with_announcer(&[entry("fd00:0::1", "g2"), one[0].clone()], v6, Some("g3"));
        assert_eq!(both, [entry("192.0.2.1", "g1"), entry("fd00::1", "g3")]);
        assert_eq!(with_announcer(&both, v6, None), one);
    }

    #[test]
    fn a_node_asks_for_a_drain_in_three_ways() {
        let node = |value| -> Node { serde_json::from_value(value).unwrap() };
        for asks in [
            json!({"metadata": {"annotations": {DRAIN_ANNOTATION: ""}}}),
            json!({"metadata": {}, "spec": {"unschedulable": true}}),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        ] {
            assert!(is_asked(&node(asks)));
        }
        assert!(!is_asked(&node(json!({"metadata": {}, "spec": {}}))));
    }

    #[test]
    fn the_condition_of_a_node_says_how_far_its_drain_is() {
        let node = |reason: &str, status: &str| -> EgressNode {
            serde_json::from_value(json!({
                "apiVersion": "egret.dev/v1alpha1", "kind": "EgressNode", "metadata": {"name": "g1"},
                "spec": {"tunnelIndex": 1},
                "status": {"conditions": [{"type": "Draining", "status": status, "reason": reason,
                    "message": "so", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap()
        };
        let said = |reason| Some((reason, "so".to_owned()));
        assert_eq!(condition(&node("Drained", "True")), said(Reason::Drained));
        assert_eq!(condition(&node("Drained", "False")), None);
        let unknown = condition(&node("OfALaterVersion", "True"));
        assert_eq!(unknown, said(Reason::PacketsArrive));
    }
}
