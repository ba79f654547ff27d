//! Addresses that several pods of this node have although different policies select them. One pod is stale, or the
//! network plugin assigned an address twice; their packets cannot be told apart. Such an address gets no egress
//! address, and the destinations of all these pods' policies are blocked.

use super::{Builder, Groups, Me, Member, Selected, is_detached};
use crate::model::*;
use crate::node::{IssueKind, NodeFacts, NodeIssue, ProfileId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pods that share one address.
#[derive(Default)]
pub(super) struct Shared {
    /// Policies of all these pods.
    members: Vec<Member>,
    pods: Vec<String>,
    /// Devices of the address.
    devices: BTreeSet<u32>,
}

/// Addresses that pods with different policies have. `keys`: policies of each pod.
pub(super) fn find(
    selected: &Selected<'_>,
    keys: &[Vec<Member>],
    (me, facts): (&Me<'_>, &NodeFacts),
) -> BTreeMap<IpAddr, Shared> {
    let mut holders: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for (number, pod) in selected.pods.iter().enumerate() {
        let own: BTreeSet<&IpAddr> = pod.own_addresses().iter().collect();
        for address in own {
            if !is_detached(facts, pod, *address) && !me.node.addresses.contains(address) {
                holders.entry(*address).or_default().push(number);
            }
        }
    }
    holders.retain(|_, pods| pods.iter().any(|pod| keys[*pod] != keys[pods[0]]));
    let shared = |(address, pods): (IpAddr, Vec<usize>)| {
        let mut shared = Shared::default();
        for number in pods {
            let pod = selected.pods[number];
            shared.members.extend(&keys[number]);
            shared
                .pods
                .push(format!("Pod {}/{}", pod.namespace, pod.name));
            let device = facts.devices.get(&(address, pod.uid.clone()));
            shared.devices.extend(device);
        }
        shared.members.sort_unstable();
        shared.members.dedup_by_key(|(policy, _)| *policy);
        (address, shared)
    };
    holders.into_iter().map(shared).collect()
}

impl Builder<'_, '_> {
    /// Blocks the destinations of the pods' policies, and reports each pod.
    pub(super) fn shut(
        &mut self,
        shared: BTreeMap<IpAddr, Shared>,
        ids: &BTreeMap<Vec<Member>, ProfileId>,
        groups: &mut Groups<'_>,
        findings: &mut BTreeSet<Finding>,
    ) {
        for (address, one) in shared {
            let known = ids.get(&one.members).copied();
            let id = known.unwrap_or_else(|| self.profile(&one.members, groups, findings));
            self.close(address, id);
            if known.is_none() {
                self.built.profiles.remove(&id);
            }
            if let (Some(device), 1) = (one.devices.first(), one.devices.len()) {
                self.built.devices.insert(address, *device);
            }
            for pod in &one.pods {
                let others: Vec<&str> = one.pods.iter().map(String::as_str).collect();
                let others: Vec<&str> = others.into_iter().filter(|other| other != pod).collect();
                self.built.issues.push(NodeIssue {
                    kind: IssueKind::PodAddressConflict,
                    subject: pod.clone(),
                    text: format!(
                        "{address} is not served: {} has it too, with other policies, and their packets cannot be told \
                         apart; what the policies of either name is refused",
                        others.join(", ")
                    ),
                });
            }
        }
    }
}
