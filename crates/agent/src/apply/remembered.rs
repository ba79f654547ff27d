//! State file that lets a restarted agent adopt its predecessor's kernel state: number and members of each gateway
//! group, the grants that were applied, pods with another address than by hash, and the steering version.

use egret_core::machines::GrantMemory;
use egret_core::model::{GroupKey, PairedPod};
use egret_core::node::{GroupNumber, TunnelIndex};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::{fs, io};

const FILE: &str = "groups.json";

/// Group numbers (they are in packet marks, rules and next hop ids) and members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) groups: BTreeMap<GroupKey, GroupNumber>,
    pub(crate) members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    /// Newest grants that were applied.
    pub(crate) grants: GrantMemory,
    /// Pods that are paired to another address than the hash selects.
    pub(crate) paired: BTreeSet<PairedPod>,
    /// The highest steering version of the node's own tables.
    pub(crate) steering_version: u64,
    /// Epochs of the node's own tables.
    pub(crate) steering_epochs: BTreeMap<IpAddr, u64>,
}

/// The form on disk: JSON has no maps with structured keys.
#[derive(Default, Serialize, Deserialize)]
struct OnDisk {
    groups: Vec<(GroupKey, GroupNumber)>,
    members: Vec<(GroupKey, BTreeSet<TunnelIndex>)>,
    #[serde(default)]
    grants: GrantMemory,
    #[serde(default)]
    paired: BTreeSet<PairedPod>,
    #[serde(default)]
    steering_version: u64,
    #[serde(default)]
    steering_epochs: BTreeMap<IpAddr, u64>,
}

impl Remembered {
    /// Reads the file; empty if it is absent or unreadable (group numbers are then allocated anew).
    pub(crate) fn load(directory: &Path) -> Self {
        let on_disk: OnDisk = fs::read(directory.join(FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Remembered {
            groups: on_disk.groups.into_iter().collect(),
            members: on_disk.members.into_iter().collect(),
            grants: on_disk.grants,
            paired: on_disk.paired,
            steering_version: on_disk.steering_version,
            steering_epochs: on_disk.steering_epochs,
        }
    }

    /// Writes the file, by rename. An empty record removes the file: a node without policies has none.
    pub(crate) fn save(&self, directory: &Path) -> io::Result<()> {
        if *self == Self::default() {
            return Self::forget(directory);
        }
        let on_disk = OnDisk {
            groups: self
                .groups
                .iter()
                .map(|(key, number)| (key.clone(), *number))
                .collect(),
            members: self
                .members
                .iter()
                .map(|(key, all)| (key.clone(), all.clone()))
                .collect(),
            grants: self.grants.clone(),
            paired: self.paired.clone(),
            steering_version: self.steering_version,
            steering_epochs: self.steering_epochs.clone(),
        };
        fs::create_dir_all(directory)?;
        let temporary = directory.join("groups.tmp");
        fs::write(&temporary, serde_json::to_vec(&on_disk)?)?;
        fs::rename(temporary, directory.join(FILE))
    }

    /// Removes the file.
    pub(crate) fn forget(directory: &Path) -> io::Result<()> {
        match fs::remove_file(directory.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::model::{Kind, ObjectRef};

    #[test]
    fn what_is_saved_is_loaded_and_nothing_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let key = GroupKey {
            next_hop: None,
            gateway: egret_core::model::GatewayName("default".into()),
            only: None,
        };
        let some = Remembered {
            groups: [(key.clone(), 7)].into(),
            members: [(key, [1].into())].into(),
            grants: GrantMemory {
                epoch: 9,
                grants: Vec::new(),
            },
            paired: [PairedPod {
                policy: ObjectRef::of_cluster(Kind::ClusterEgress, "p"),
                pod: "uid".into(),
                address: "192.0.2.1".parse().unwrap(),
            }]
            .into(),
            steering_version: 11,
            steering_epochs: [("192.0.2.1".parse().unwrap(), 7)].into(),
        };
        some.save(directory.path()).unwrap();
        assert_eq!(Remembered::load(directory.path()), some);
        Remembered::default().save(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(Remembered::load(directory.path()), Remembered::default());
        // Saving an empty record works without a file, too.
        Remembered::default().save(directory.path()).unwrap();
    }
}
