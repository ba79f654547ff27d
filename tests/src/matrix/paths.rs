//! What the agents of a lab say about their canaries, from the start of the lab to its end: a condition that holds for a
//! moment is missed by whoever polls, the log has it.

use crate::Cluster;
use crate::cluster::DEADLINE;
use anyhow::Context;
use egret_lab::process::wait_for_every;
use std::collections::BTreeMap;
use std::time::Duration;

/// Logged by an agent whose canaries are lost, before its `EgressNode` gets the condition `PathBroken`.
const LOST: &str = "canaries of a path are lost";
/// Rounds of canaries after the end of a fault until none of them has met it.
const ROUNDS: u64 = 2;

/// Pause between two requests for a round.
const NUDGE: Duration = Duration::from_millis(500);

/// How far the logs of a lab's agents have been read.
#[derive(Default)]
pub struct PathLog {
    read: BTreeMap<String, usize>,
}

impl PathLog {
    /// Every path that an agent found broken since the last call: its host and what it logged.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn lost(&mut self, cluster: &Cluster, agents: &[String]) -> anyhow::Result<Vec<String>> {
        let mut lost = Vec::new();
        for agent in agents {
            let path = cluster.lab().dir().log().join(format!("{agent}.log"));
            let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
            let read = self.read.entry(agent.clone()).or_default();
            // A line that is being written is read the next time.
            let end = bytes.iter().rposition(|byte| *byte == b'\n');
            let end = end.map_or(*read, |end| end + 1);
            let text = String::from_utf8_lossy(&bytes[*read..end]);
            *read = end;
            let lines = text.lines().filter(|line| line.contains(LOST));
            lost.extend(lines.map(|line| format!("{agent}: {line}")));
        }
        Ok(lost)
    }
}

/// Waits until every path of these nodes is whole after a fault, as measured by rounds that began when it had ended.
///
/// # Errors
/// A path stays broken.
pub fn wait_whole(cluster: &Cluster, agents: &[String]) -> anyhow::Result<()> {
    let before: Vec<u64> = agents.iter().map(|agent| rounds(cluster, agent)).collect();
    let mut last = Vec::new();
    let waited = wait_for_every("the paths to be whole", DEADLINE, NUDGE, || {
        let metrics = agents.iter().map(|agent| nudge(cluster, agent));
        let metrics: anyhow::Result<Vec<String>> = metrics.collect();
        last = metrics.unwrap_or_default();
        let is_whole = |(metrics, before): (&String, &u64)| {
            is_idle(metrics) || (rounds_in(metrics) >= before + ROUNDS && !is_broken(metrics))
        };
        !last.is_empty() && last.iter().zip(&before).all(is_whole)
    });
    let broken = || {
        let broken = agents.iter().zip(&last);
        let broken = broken.filter(|(_, metrics)| is_broken(metrics));
        let lines = broken.map(|(agent, metrics)| format!("{agent}: {}", path_lines(metrics)));
        lines.collect::<Vec<_>>().join("; ")
    };
    waited.with_context(broken)
}

/// Asks an agent for a round, which follows any change of anybody's rules, and returns its metrics.
fn nudge(cluster: &Cluster, agent: &str) -> anyhow::Result<String> {
    let line = "nft add table inet harmless; nft delete table inet harmless";
    cluster.exec(&cluster.host(agent)?, &["sh", "-c", line])?;
    cluster.metrics(agent)
}

fn rounds(cluster: &Cluster, agent: &str) -> u64 {
    rounds_in(&cluster.metrics(agent).unwrap_or_default())
}

fn rounds_in(metrics: &str) -> u64 {
    let name = "egret_agent_canary_rounds_total ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn paths(metrics: &str) -> impl Iterator<Item = &str> {
    let name = "egret_agent_path_broken{";
    metrics.lines().filter(move |line| line.starts_with(name))
}

fn is_broken(metrics: &str) -> bool {
    paths(metrics).any(|line| line.ends_with(" 1"))
}

/// Whether a node has no path to measure.
fn is_idle(metrics: &str) -> bool {
    !metrics.is_empty() && paths(metrics).next().is_none()
}

fn path_lines(metrics: &str) -> String {
    let lines: Vec<&str> = paths(metrics).collect();
    lines.join(", ")
}
