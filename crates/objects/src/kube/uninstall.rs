//! Uninstalls from every node: the pods of the agents' DaemonSet are replaced by pods that clean up and then wait. A
//! ready pod of that kind proves that its node is clean, since its init container does the cleanup.

use super::{api, connect};
use crate::SourceError;
use egret_core::error::with_causes;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Annotation of pods that clean up instead of serving.
const CLEANING: &str = "egret.dev/cleanup";
/// Name of the agent's container, as the chart has it.
const AGENT: &str = "agent";
/// Flags of an agent that the cleanup needs, too.
const KEPT: [&str; 9] = [
    "--log-format",
    "--sysctl-directory",
    "--state-directory",
    "--pin-directory",
    "--socket",
    "--cni-socket",
    "--cni-conf-directory",
    "--cni-bin-directory",
    "--cni-plugin",
];
/// Poll interval of the API server.
const EVERY: Duration = Duration::from_secs(1);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Result of an uninstallation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uninstalled {
    /// The DaemonSet does not exist, so there are no agents to replace.
    NoAgents,
    /// Number of clean nodes; no other node had an agent.
    Clean(usize),
    /// The timeout has expired.
    Left(Left),
}

/// Remaining work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Number of clean nodes.
    pub clean: usize,
    /// Nodes that are not clean, with their state, by name.
    pub nodes: BTreeMap<String, String>,
    /// Number of further nodes that should have a pod and have none.
    pub without_pod: usize,
    /// Last error of the API server.
    pub trouble: Option<String>,
}

/// Replaces the agents of this DaemonSet by pods that remove Egret from their nodes' kernels, and waits for all of
/// them. A second call resumes. `told` receives every change of the remaining work.
///
/// # Errors
/// There is no valid client configuration, or the DaemonSet contains no agent.
pub fn uninstall(
    kubeconfig: Option<&Path>,
    namespace: &str,
    daemonset: &str,
    timeout: Duration,
    mut told: impl FnMut(&Left),
) -> Result<Uninstalled, SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| api("starting the client", &error))?;
    runtime.block_on(async {
        let client = connect(kubeconfig).await?;
        let deadline = Instant::now() + timeout;
        let mut last = Left::default();
        loop {
            let round = tokio::time::timeout(ANSWER, round(&client, namespace, daemonset)).await;
            let left = match round {
                Ok(Ok(Round::NoAgents)) => return Ok(Uninstalled::NoAgents),
                Ok(Ok(Round::Clean(nodes))) => return Ok(Uninstalled::Clean(nodes)),
                Ok(Ok(Round::Left(left))) => left,
                Ok(Err(Trouble::Wrong(error))) => return Err(error),
                Ok(Err(Trouble::Api(error))) => last.but(with_causes(&error)),
                Err(_) => last.but("no answer".to_owned()),
            };
            if left != last {
                told(&left);
                last = left;
            }
            if Instant::now() >= deadline {
                return Ok(Uninstalled::Left(last));
            }
            tokio::time::sleep(EVERY).await;
        }
    })
}

impl Left {
    /// The same, after an error of the API server.
    fn but(&self, trouble: String) -> Self {
        Self {
            trouble: Some(trouble),
            ..self.clone()
        }
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} nodes are clean", self.clean)?;
        for (node, why) in &self.nodes {
            write!(f, "; {node}: {why}")?;
        }
        if self.without_pod > 0 {
            write!(
                f,
                "; nodes without a pod that cleans up: {}",
                self.without_pod
            )?;
        }
        match &self.trouble {
            Some(trouble) => write!(f, "; the API server: {trouble}"),
            None => Ok(()),
        }
    }
}

enum Round {
    NoAgents,
    Clean(usize),
    Left(Left),
}

enum Trouble {
    /// A permanent error.
    Wrong(SourceError),
    /// A temporary error.
    Api(kube::Error),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

async fn round(client: &Client, namespace: &str, name: &str) -> Result<Round, Trouble> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let Some(set) = sets.get_opt(name).await? else {
        return Ok(Round::NoAgents);
    };
    if !is_cleaning(&set) {
        let patch = patch(&set).ok_or_else(|| {
            Trouble::Wrong(SourceError::Api {
                doing: format!("reading DaemonSet {namespace}/{name}"),
                why: format!("it has no container {AGENT:?}"),
            })
        })?;
        let wanted = PatchParams::default();
        sets.patch(name, &wanted, &Patch::Merge(patch)).await?;
        return Ok(Round::Left(left(&set, &[])));
    }
    let labels = set.spec.selector.match_labels.clone();
    let pairs = labels.into_iter().flatten();
    let selector: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods
        .list(&ListParams::default().labels(&selector.join(",")))
        .await?;
    let left = left(&set, &pods.items);
    let seen = set
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    let is_done = left.nodes.is_empty() && left.without_pod == 0 && seen >= set.metadata.generation;
    Ok(match is_done {
        true => Round::Clean(left.clean),
        false => Round::Left(left),
    })
}

fn is_cleaning(set: &DaemonSet) -> bool {
    let template = set.spec.template.metadata.as_ref();
    template.is_some_and(|metadata| {
        metadata
            .annotations
            .iter()
            .flatten()
            .any(|(key, _)| key == CLEANING)
    })
}

/// Patch that turns serving pods into cleanup pods, on all nodes at once. The rights of the agents' pods stay.
fn patch(set: &DaemonSet) -> Option<serde_json::Value> {
    let pod = set.spec.template.spec.as_ref()?;
    let agent = pod
        .containers
        .iter()
        .find(|container| container.name == AGENT)?;
    let kept = kept(agent.args.as_deref().unwrap_or_default());
    let with = |name: &str, more: &[&str]| {
        let words = ["agent", "--cleanup"]
            .iter()
            .chain(more)
            .map(ToString::to_string);
        Container {
            name: name.to_owned(),
            args: Some(words.chain(kept.iter().cloned()).collect()),
            ports: None,
            liveness_probe: None,
            readiness_probe: None,
            startup_probe: None,
            ..agent.clone()
        }
    };
    Some(json!({"spec": {
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0}},
        "template": {
            "metadata": {"annotations": {CLEANING: "true"}},
            "spec": {"initContainers": [with("cleanup", &[])], "containers": [with(AGENT, &["--stay"])]},
        },
    }}))
}

/// The flags of [`KEPT`], with their values in the same word or in the next one.
fn kept(args: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let flag = word.split_once('=').map_or(word.as_str(), |(flag, _)| flag);
        if KEPT.contains(&flag) {
            kept.push(word.clone());
            if flag == word {
                kept.extend(words.next().cloned());
            }
        }
    }
    kept
}

/// Remaining work, from the pods of the DaemonSet.
fn left(set: &DaemonSet, pods: &[Pod]) -> Left {
    let mut clean = std::collections::BTreeSet::new();
    let mut nodes = BTreeMap::new();
    for pod in pods {
        let spec = pod.spec.as_ref();
        let Some(node) = spec.and_then(|spec| spec.node_name.clone()) else {
            continue;
        };
        match state(pod) {
            None => drop(clean.insert(node)),
            Some(why) => drop(nodes.insert(node, why)),
        }
    }
    // An old pod that is still terminating takes precedence: the new one has not started.
    clean.retain(|node| !nodes.contains_key(node));
    let status = set.status.as_ref();
    let desired = status.map_or(0, |status| status.desired_number_scheduled);
    let wanted = usize::try_from(desired).unwrap_or(0);
    Left {
        clean: clean.len(),
        without_pod: wanted.saturating_sub(clean.len() + nodes.len()),
        nodes,
        trouble: None,
    }
}

/// Why the node of a pod is not clean; `None` if it is.
fn state(pod: &Pod) -> Option<String> {
    let annotations = pod.metadata.annotations.iter().flatten();
    if !annotations.into_iter().any(|(key, _)| key == CLEANING) {
        let is_ending = pod.metadata.deletion_timestamp.is_some();
        let word = if is_ending {
            "still ending"
        } else {
            "not replaced yet"
        };
        return Some(format!("its agent is {word}"));
    }
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten();
    if ready
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    {
        return None;
    }
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let failed = init.into_iter().flatten().find_map(|container| {
        let last = container.last_state.as_ref()?.terminated.as_ref()?;
        Some(format!(
            "cleaning up failed with code {}; its log says why",
            last.exit_code
        ))
    });
    Some(failed.unwrap_or_else(|| "its pod is not ready".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(desired: i32, annotated: bool) -> DaemonSet {
        let annotations = if annotated {
            json!({CLEANING: "true"})
        } else {
            json!({})
        };
        serde_json::from_value(json!({
            "metadata": {"name": "egret-agent", "generation": 2},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"annotations": annotations},
                "spec": {"containers": [{
                    "name": "agent", "image": "egret:1",
                    "args": ["agent", "--node=$(NODE_NAME)", "--source=kube", "--sysctl-directory=/host/sys"],
                    "readinessProbe": {"httpGet": {"port": "http"}},
                    "ports": [{"name": "http", "containerPort": 9791}],
                    "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
                    "volumeMounts": [{"name": "bpf", "mountPath": "/sys/fs/bpf"}],
                }]},
            }},
            "status": {"desiredNumberScheduled": desired, "currentNumberScheduled": desired,
                       "numberMisscheduled": 0, "numberReady": 0, "observedGeneration": 2},
        }))
        .unwrap()
    }

    fn pod(node: &str, annotated: bool, ready: &str) -> Pod {
        let annotations = if annotated {
            json!({CLEANING: "true"})
        } else {
            json!({})
        };
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn pods_clean_up_with_the_agents_rights_and_do_not_serve() {
        let patch = patch(&set(1, false)).unwrap();
        let pod = &patch["spec"]["template"]["spec"];
        let (init, stay) = (&pod["initContainers"][0], &pod["containers"][0]);
        let flags = ["agent", "--cleanup", "--sysctl-directory=/host/sys"];
        assert_eq!(init["args"], json!(flags));
        assert_eq!(
            stay["args"],
            json!([flags[0], flags[1], "--stay", flags[2]])
        );
        assert_eq!(
            (&init["name"], &stay["name"]),
            (&json!("cleanup"), &json!("agent"))
        );
        for container in [init, stay] {
            assert_eq!(container["image"], "egret:1");
            assert_eq!(
                container["securityContext"]["capabilities"]["add"][0],
                "NET_ADMIN"
            );
            assert_eq!(container["volumeMounts"][0]["name"], "bpf");
            assert!(container["readinessProbe"].is_null() && container["ports"].is_null());
        }
        assert!(!is_cleaning(&set(1, false)));
        assert!(is_cleaning(&set(1, true)));
    }

    #[test]
    fn flags_are_kept_with_their_values() {
        let args = "agent --node=a --socket /s --pin-directory=/p --source kube --cni-plugin";
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let wanted = ["--socket", "/s", "--pin-directory=/p", "--cni-plugin"];
        assert_eq!(kept(&args), wanted);
    }

    #[test]
    fn a_daemonset_without_the_agent_is_left_alone() {
        let mut other = set(1, false);
        let spec = other.spec.template.spec.as_mut().unwrap();
        spec.containers[0].name = "other".to_owned();
        assert_eq!(patch(&other), None);
    }

    #[test]
    fn a_node_is_clean_when_its_only_pod_has_cleaned_up_and_is_ready() {
        let pods = [
            pod("a", true, "True"),
            pod("b", true, "False"),
            pod("c", false, "True"),
            // Both exist for a moment: the old one terminates.
            pod("d", true, "True"),
            pod("d", false, "True"),
        ];
        let left = left(&set(5, true), &pods);
        assert_eq!(left.clean, 1);
        assert_eq!(left.without_pod, 1);
        let names: Vec<&str> = left.nodes.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "c", "d"]);
        let text = left.to_string();
        assert!(text.contains("c: its agent is not replaced yet"), "{text}");
        assert!(super::left(&set(1, true), &pods[..1]).nodes.is_empty());
    }
}
