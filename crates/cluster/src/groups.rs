//! Control groups of a cluster's nodes, which alone outlive the lab's processes.

use crate::ClusterError;
use egret_lab::process::wait_for;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for the kernel to release groups whose processes were killed.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Name of the group of a cluster below the root of every hierarchy; its nodes' groups are below it.
pub(crate) fn of_cluster(name: &str) -> String {
    format!("egret-cluster.{name}")
}

/// Folders of a cluster's group, one in every hierarchy that has it.
pub(crate) fn folders(name: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then(|| Path::new(folder))
    });
    hierarchies
        .map(|hierarchy| hierarchy.join(of_cluster(name)))
        .filter(|folder| folder.exists())
        .collect()
}

/// Removes the groups of a cluster whose processes were killed.
pub(crate) fn remove(name: &str) -> Result<(), ClusterError> {
    // A group stays busy until the kernel has reaped its last process.
    let gone = wait_for("control groups to be empty", TIMEOUT, || {
        folders(name).iter().for_each(|folder| remove_tree(folder));
        folders(name).is_empty()
    });
    gone.map_err(|_| {
        let left = folders(name);
        let left: Vec<String> = left.iter().map(|left| left.display().to_string()).collect();
        ClusterError::Remains(left.join(", "))
    })
}

/// Removes a tree of groups, children first; their files cannot and need not be deleted.
fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}
