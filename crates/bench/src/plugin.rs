//! Time that the CNI plugin adds to a pod's start: ADD as a runtime calls it, for pods that the agent already knows.

use crate::figure::Report;
use crate::idle;
use anyhow::{Context, Result};
use egret_lab::Topology;
use egret_lab::topology::Pod;
use egret_tests::Cluster;
use egret_tests::chaos::wait;
use egret_tests::cluster::{EGRESS, egress, pod};
use egret_tests::runtime::Sandbox;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const PART: &str = "CNI plugin";
/// Pods of each kind.
const PODS: usize = 50;
const POLICY: &str = "first";
const DIRECTORIES: [&str; 4] = [
    "--cni-conf-directory",
    "/run/cni/net.d",
    "--cni-bin-directory",
    "/run/cni/bin",
];

/// Measures a selected pod, an unselected one, and a program that only reads and writes, in turn.
pub fn measure(report: &mut Report) -> Result<()> {
    let cluster = Cluster::up_with("bench-cni", &Topology::built_in(), &DIRECTORIES)?;
    cluster.apply(&[egress(POLICY, "MyApp", &EGRESS, "")])?;
    let selected = || -> Result<u64> {
        let status = cluster.status()?;
        let policies = status["policies"].as_array().context("policies")?;
        let policy = policies.iter().find(|policy| policy["name"] == POLICY);
        let count = policy.and_then(|policy| policy["pods"]["selected"].as_u64());
        count.context("how many pods the policy selects")
    };
    let before = selected()?;
    idle::wait()?;
    for number in 0..PODS {
        let known = before + 1 + number as u64;
        let ours = begin(&cluster, pod(&format!("new{number}"), "MyApp"))?;
        let other = begin(&cluster, pod(&format!("stranger{number}"), "Other"))?;
        wait("the pod to be heard of", || {
            selected().is_ok_and(|count| count == known)
        })?;
        let mut add = |variant: &str, took: Duration| {
            let ms = took.as_secs_f64() * 1e3;
            report.add(PART, "start and end of the program", variant, "ms", ms);
        };
        let nothing = ours.call(&cluster, Path::new("/bin/cat"), "ADD", &json!({}))?;
        add("cat, started the same way", nothing.took);
        add(
            "a pod of a policy",
            ours.cni(&cluster, "ADD", "1.0.0")?.expect_good()?.took,
        );
        add(
            "another pod",
            other.cni(&cluster, "ADD", "1.0.0")?.expect_good()?.took,
        );
    }
    Ok(())
}

fn begin(cluster: &Cluster, pod: Pod) -> Result<Sandbox> {
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    cluster.lab().begin_pod("worker1", pod)?;
    Sandbox::of(cluster, &namespace, &name)
}
