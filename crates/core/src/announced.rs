//! Overlay of pod addresses from the CNI plugin, which reports and releases them before the API shows it.
//!
//! A pod has its addresses when the runtime calls the plugin, but the API shows them only once its containers run. When
//! the pod ends, the address is free for the next pod while the API still shows the old one. So for pods of this node
//! the plugin's reports take precedence, where it is called at all:
//!
//! - a pod that the plugin has reported has the reported addresses, whatever the API shows;
//! - a reported address belongs to no other pod;
//! - an address that the plugin has released no longer belongs to its pod.

use crate::model::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Maximum number of stored attachments. A node has some hundred pods; an attachment that the runtime never releases is
/// removed with its pod.
pub const ATTACHMENTS_MAX: usize = 8192;

/// Identifies an attachment of a container to the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    /// Id of the container.
    pub container: String,
    /// Name of the device inside it.
    pub interface: String,
}

/// A pod as a container runtime identifies it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where the runtime passes it.
    pub uid: Option<String>,
}

impl PodId {
    /// Whether this is the given pod, and not an earlier or later one of the same name.
    pub fn is(&self, pod: &Pod) -> bool {
        self.namespace == pod.namespace
            && self.name == pod.name
            && self.uid.as_ref().is_none_or(|uid| *uid == pod.uid)
    }

    /// Finds the pod in this map.
    pub fn find<'a>(&self, pods: &'a SharedMap<(String, String), Pod>) -> Option<&'a Pod> {
        let pod = pods.get(&(self.namespace.clone(), self.name.clone()))?;
        self.is(pod).then_some(pod)
    }
}

/// Report of the CNI plugin about one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Pod of the container; `None` for containers that are no pods.
    pub pod: Option<PodId>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The objects have contained the pod: once they no longer do, the attachment is removed.
    seen: bool,
}

/// All reports of this node's CNI plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    #[serde(with = "crate::pairs")]
    attachments: BTreeMap<AttachmentId, Attachment>,
    /// Addresses that were released and that the API still shows.
    #[serde(with = "crate::pairs")]
    released: BTreeMap<PodId, BTreeSet<IpAddr>>,
}

/// Pod addresses as the API shows them, replaced by [`Announced::lay_over`].
pub type Replaced = BTreeMap<(String, String), Vec<IpAddr>>;

impl Announced {
    /// Adds an attachment and takes its addresses from all others. Returns false if the limit is reached.
    pub fn add(
        &mut self,
        id: AttachmentId,
        pod: Option<PodId>,
        addresses: BTreeSet<IpAddr>,
    ) -> bool {
        if self.attachments.len() >= ATTACHMENTS_MAX && !self.attachments.contains_key(&id) {
            return false;
        }
        // Also if the runtime has not released them from the last container: the agent was not running.
        for (_, other) in self
            .attachments
            .iter_mut()
            .filter(|(other, _)| **other != id)
        {
            let taken: BTreeSet<IpAddr> = &other.addresses & &addresses;
            other.addresses.retain(|address| !taken.contains(address));
            if let Some(pod) = other.pod.clone().filter(|_| !taken.is_empty()) {
                self.released.entry(pod).or_default().extend(taken);
            }
        }
        self.attachments
            .retain(|_, other| !other.addresses.is_empty());
        if let Some(released) = pod.as_ref().and_then(|pod| self.released.get_mut(pod)) {
            released.retain(|address| !addresses.contains(address));
        }
        self.released.retain(|_, addresses| !addresses.is_empty());
        let seen = false;
        self.attachments.insert(
            id,
            Attachment {
                pod,
                addresses,
                seen,
            },
        );
        true
    }

    /// Removes an attachment. `pod` and `addresses` describe it in case it was never reported. Returns false if nothing
    /// changes.
    pub fn remove(
        &mut self,
        id: &AttachmentId,
        pod: Option<PodId>,
        addresses: BTreeSet<IpAddr>,
    ) -> bool {
        let before = self.clone();
        let (pod, addresses) = match self.attachments.remove(id) {
            Some(told) => (told.pod, told.addresses),
            None => (pod, addresses),
        };
        if let Some(pod) = pod {
            let free = addresses.into_iter().filter(|a| !self.is_told(a));
            let free: BTreeSet<IpAddr> = free.collect();
            self.released.entry(pod).or_default().extend(free);
        }
        self.released.retain(|_, addresses| !addresses.is_empty());
        *self != before
    }

    /// Removes every attachment but these. Returns false if nothing changes.
    pub fn keep(&mut self, valid: &BTreeSet<AttachmentId>) -> bool {
        let all = self.attachments.keys();
        let gone: Vec<AttachmentId> = all.filter(|id| !valid.contains(id)).cloned().collect();
        let mut changed = false;
        for id in gone {
            changed |= self.remove(&id, None, BTreeSet::new());
        }
        changed
    }

    fn is_told(&self, address: &IpAddr) -> bool {
        let mut all = self.attachments.values();
        all.any(|attachment| attachment.addresses.contains(address))
    }

    /// Reported owner of an address; the inner `None`: a container that is no pod.
    pub fn owner(&self, address: &IpAddr) -> Option<Option<&PodId>> {
        let mut all = self.attachments.values();
        let found = all.find(|attachment| attachment.addresses.contains(address))?;
        Some(found.pod.as_ref())
    }

    /// Removes attachments of pods that the objects contained and no longer do, and released addresses that the API no
    /// longer shows. Returns false if nothing changes. `pods`: as the API shows them.
    pub fn forget(&mut self, pods: &SharedMap<(String, String), Pod>) -> bool {
        let before = self.clone();
        self.attachments.retain(|_, attachment| {
            let there = attachment.pod.as_ref().map(|pod| pod.find(pods).is_some());
            attachment.seen |= there == Some(true);
            there != Some(false) || !attachment.seen
        });
        self.released.retain(|pod, addresses| {
            let shown = pod.find(pods).map(|pod| pod.addresses.as_slice());
            addresses.retain(|address| shown.unwrap_or_default().contains(address));
            !addresses.is_empty()
        });
        *self != before
    }

    /// Replaces the addresses of this node's pods by the reported ones; returns the replaced addresses.
    pub fn lay_over(
        &self,
        pods: &mut SharedMap<(String, String), Pod>,
        node: &NodeName,
    ) -> Replaced {
        let mut replaced = Replaced::new();
        if self.attachments.is_empty() && self.released.is_empty() {
            return replaced;
        }
        let mut told_of: BTreeSet<IpAddr> = BTreeSet::new();
        let mut by_pod: BTreeMap<(&str, &str), Vec<&Attachment>> = BTreeMap::new();
        for attachment in self.attachments.values() {
            told_of.extend(&attachment.addresses);
            if let Some(pod) = &attachment.pod {
                let entry = by_pod.entry((&pod.namespace, &pod.name)).or_default();
                entry.push(attachment);
            }
        }
        let own = pods
            .iter()
            .filter(|(_, pod)| pod.node == *node && !pod.host_network);
        let mut new: Vec<((String, String), Vec<IpAddr>)> = Vec::new();
        for (key, pod) in own {
            let told = by_pod.get(&(pod.namespace.as_str(), pod.name.as_str()));
            let told = told.into_iter().flatten();
            let told = told.filter(|attachment| attachment.pod.as_ref().is_some_and(|p| p.is(pod)));
            let mut addresses: Vec<IpAddr> = told.flat_map(|a| &a.addresses).copied().collect();
            if addresses.is_empty() {
                let released = self.released.iter().filter(|(id, _)| id.is(pod));
                let released: BTreeSet<&IpAddr> = released.flat_map(|(_, gone)| gone).collect();
                addresses.clone_from(&pod.addresses);
                addresses.retain(|a| !told_of.contains(a) && !released.contains(a));
            }
            if addresses != pod.addresses {
                new.push((key.clone(), addresses));
            }
        }
        for (key, addresses) in new {
            if let Some(pod) = pods.get_mut(&key) {
                let before = std::mem::replace(&mut pod.addresses, addresses);
                replaced.insert(key, before);
            }
        }
        replaced
    }
}

/// Undoes [`Announced::lay_over`].
pub fn take_off(pods: &mut SharedMap<(String, String), Pod>, replaced: Replaced) {
    for (key, addresses) in replaced {
        if let Some(pod) = pods.get_mut(&key) {
            pod.addresses = addresses;
        }
    }
}

/// Namespaces in which policies may select pods of one node: all that can be derived for a pod with unknown labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaySelect {
    /// Namespaces with pods that may be selected.
    pub named: BTreeSet<String>,
    /// Pods of namespaces in neither list may be selected.
    pub others: bool,
    /// Namespaces without selected pods, although `others` is set.
    pub free: BTreeSet<String>,
}

impl MaySelect {
    /// Considers every policy, refused ones included: they may become valid at any time.
    pub fn of(snapshot: &Snapshot, node: &NodeName) -> Self {
        let labels = snapshot.nodes.get(node).map(|node| &node.labels);
        let here = |nodes: &Option<LabelSelector>| {
            let nodes = nodes.as_ref().zip(labels);
            nodes.is_none_or(|(nodes, labels)| nodes.matches(labels))
        };
        let mut all = Self::default();
        let mut selectors: Vec<&LabelSelector> = Vec::new();
        for policy in &snapshot.policies {
            match &policy.selection {
                Selection::Labels { nodes, .. } if !here(nodes) => {}
                Selection::Labels { namespaces, .. } => match namespaces {
                    Namespaces::All => {
                        all.others = true;
                        all.free.clear();
                        return all;
                    }
                    Namespaces::Names(names) => all.named.extend(names.iter().cloned()),
                    Namespaces::Labels(selector) => selectors.push(selector),
                },
                Selection::Service { namespace, .. } | Selection::Workload { namespace, .. } => {
                    all.named.insert(namespace.clone());
                }
                // Selection by address is checked separately.
                Selection::Addresses(_) => {
                    all.others = true;
                    return all;
                }
            }
        }
        if !selectors.is_empty() {
            all.others = true;
            let free = snapshot.namespaces.values().filter(|namespace| {
                let mut selectors = selectors.iter();
                !selectors.any(|selector| selector.matches(&namespace.labels))
            });
            let free = free.map(|namespace| namespace.name.clone());
            all.free = free.filter(|name| !all.named.contains(name)).collect();
        }
        all
    }

    /// Whether pods of this namespace may be selected.
    pub fn contains(&self, namespace: &str) -> bool {
        self.named.contains(namespace) || (self.others && !self.free.contains(namespace))
    }
}
