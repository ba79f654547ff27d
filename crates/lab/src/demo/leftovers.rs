//! Checks for leftovers: on nodes after their policies, on the machine after the lab.

use crate::process::run;
use crate::{Lab, LabError, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// File in which an agent remembers, for as long as it is installed, the newest grants and steering version that it has
/// applied: so that it recognises a store that goes back to an older state.
const APPLIED_GRANTS: &str = "/var/lib/egret/groups.json";

/// Snapshots of several nodes.
pub(super) struct Nodes(BTreeMap<String, Snapshot>);

impl Nodes {
    /// Takes all snapshots at once.
    pub(super) fn take(lab: &Lab, nodes: &[String]) -> Result<Self, LabError> {
        let take = |node: &String| {
            let mut snapshot = Snapshot::take(&lab.place(node)?)?;
            if let Some(lines) = snapshot.sections.get_mut("nft") {
                *lines = without_expiring(lines);
            }
            if let Some(files) = snapshot.sections.get_mut("files") {
                files.retain(|line| !line.contains(APPLIED_GRANTS));
            }
            Ok((node.clone(), snapshot))
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| take(node)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads
                .into_iter()
                .map(join)
                .collect::<Result<_, _>>()
                .map(Self)
        })
    }

    /// Removed and new lines of a node.
    pub(super) fn diff(&self, after: &Self, node: &str) -> Vec<String> {
        match (self.0.get(node), after.0.get(node)) {
            (Some(before), Some(after)) => before.diff(after),
            _ => vec!["no snapshot".to_owned()],
        }
    }
}

/// A listing of nftables without the elements of sets whose elements expire (`flags timeout`): in such sets Egret
/// remembers for some minutes which connections it has ended.
fn without_expiring(lines: &[String]) -> Vec<String> {
    let (mut kept, mut expires, mut skips) = (Vec::new(), false, false);
    for line in lines {
        let text = line.trim();
        if text.starts_with("set ") || text.starts_with("map ") {
            expires = false;
        }
        expires |= text.starts_with("flags ") && text.contains("timeout");
        skips |= expires && text.starts_with("elements = {");
        if !skips {
            kept.push(line.clone());
        }
        skips &= !text.ends_with('}');
    }
    kept
}

/// State of the machine that the lab must not touch: devices, addresses, routes, mounts, BPF pins and nftables.
#[derive(PartialEq, Eq)]
pub(super) struct Machine(BTreeSet<String>);

impl Machine {
    pub(super) fn look() -> Result<Self, LabError> {
        let mut state = BTreeSet::new();
        let mut add = |what: &str, line: &str| {
            state.insert(format!("{what}: {}", line.trim()));
        };
        for (what, command) in [
            ("address", &["ip", "-o", "address"][..]),
            ("rule", &["ip", "rule"]),
            ("rule", &["ip", "-6", "rule"]),
            ("route", &["ip", "route", "show", "table", "all"]),
            ("route", &["ip", "-6", "route", "show", "table", "all"]),
            ("nftables", &["nft", "-s", "list", "ruleset"]),
        ] {
            for line in run(Command::new(command[0]).args(&command[1..]), "")?.lines() {
                // The lifetimes of addresses and routes from a router count down.
                let line = line.split(" expires ").next().unwrap_or_default();
                let line = line.split("valid_lft").next().unwrap_or_default();
                add(what, line.trim_end_matches('\\'));
            }
        }
        let devices = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
        for line in devices.lines().skip(2) {
            add("device", line.split(':').next().unwrap_or_default());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().for_each(|line| add("mount", line));
        for folder in ["/sys/fs/bpf", "/run/netns", "/var/lib/egret", "/run/egret"] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                add("file", &entry.path().display().to_string());
            }
        }
        Ok(Self(state))
    }

    /// Removed and new lines.
    pub(super) fn diff(&self, after: &Self) -> Vec<String> {
        let gone = self.0.difference(&after.0).map(|line| format!("- {line}"));
        let new = after.0.difference(&self.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_expire_are_left_out_and_others_are_not() {
        let text = "set late4 {\n\tflags timeout\n\telements = { 1 timeout 15m,\n\t\t     2 timeout 15m }\n}\n\
                    set kept {\n\ttype ipv4_addr\n\telements = { 192.0.2.1 }\n}";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let kept = without_expiring(&lines).join("\n");
        assert!(
            kept.contains("192.0.2.1") && !kept.contains("15m"),
            "{kept}"
        );
        assert_eq!(kept.lines().count(), lines.len() - 2);
    }
}
