//! Gateways and node records.

use super::messages::MessageSource;
use super::{Dirty, Planner};
use crate::model::*;
use crate::plan::{GatewayNode, NodeRecordSpec, lease, nodes, status, unreadable};
use crate::resolve::{gateway_nodes, occupies};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

impl Planner {
    /// Finds the nodes of every gateway.
    pub(super) fn assign_roles(&mut self, dirty: &mut Dirty) {
        let gateways = self.snapshot.gateways.values();
        let roles = gateways.map(|gateway| {
            let nodes = gateway_nodes(gateway, &self.snapshot.nodes);
            (gateway.name.clone(), nodes.into_iter().cloned().collect())
        });
        let roles: BTreeMap<GatewayName, BTreeSet<NodeName>> = roles.collect();
        for (gateway, nodes) in &roles {
            if self.leases.roles.get(gateway) != Some(nodes) {
                dirty.gateways.insert(gateway.clone());
            }
        }
        self.leases.roles = roles;
    }

    /// Plans a gateway, and marks what depends on it.
    pub(super) fn plan_gateway(&mut self, name: &GatewayName, dirty: &mut Dirty) {
        let records = &self.snapshot.node_records;
        let (Some(gateway), Some(nodes)) = (
            self.snapshot.gateways.get(name),
            self.leases.roles.get(name),
        ) else {
            return;
        };
        let plan = status::gateway(gateway, nodes, records);
        if self.leases.reports.set(name, nodes, records) {
            dirty.addresses.extend(self.leases.waiting_for(name));
        }
        // Every field but the version, which changes with every lease, can affect a policy's status.
        let serving = |nodes: &[GatewayNode]| -> Vec<GatewayNode> {
            let nodes = nodes.iter().cloned();
            nodes
                .map(|node| GatewayNode { version: 0, ..node })
                .collect()
        };
        let before = self.plan.gateways.get(name);
        if before.map(|plan| serving(&plan.nodes)) != Some(serving(&plan.nodes)) {
            dirty.policies.extend(self.policies.of_gateway(name));
        }
        self.plan.gateways.insert(name.clone(), plan);
    }

    /// Applies a change of a node record by an agent or another controller.
    pub(super) fn take_node_record(
        &mut self,
        name: NodeName,
        new: Option<NodeRecord>,
        dirty: &mut Dirty,
    ) {
        let records = &mut self.snapshot.node_records;
        if records.get(&name) == new.as_ref() {
            return;
        }
        let old = match new {
            Some(new) => records.insert(name.clone(), new),
            None => records.remove(&name),
        };
        let new = self.snapshot.node_records.get(&name);
        if let Some(old) = &old {
            self.names.remove(old);
            self.leases.remove_node(old);
        }
        if let Some(new) = new {
            self.names.add(new);
            self.leases.add_node(new);
        }
        if old.as_deref().map(|r| &r.node_addresses) != new.map(|r| &r.node_addresses) {
            self.look_at_devices(&name, dirty);
        }
        let new = self.snapshot.node_records.get(&name);
        let (was, is) = (old.as_deref(), new);
        if was.map(|r| &r.announcing) != is.map(|r| &r.announcing) {
            let both = was.into_iter().chain(is);
            dirty.statuses.extend(both.flat_map(|r| &r.announcing));
        }
        let both = || was.into_iter().chain(is);
        dirty.resolve |= self.occupies_otherwise(was, is);
        let outside = |r: &NodeRecord| (r.conflicts.clone(), r.announcing.clone());
        if was.map(outside) != is.map(outside) {
            // The announcer's report of a conflict takes precedence, so a change of announcer matters too, whoever
            // reports the conflict.
            let heard = both().flat_map(|r| r.conflicts.keys());
            let announced = both().flat_map(|r| &r.announcing);
            let contested = announced.filter(|address| self.names.is_contested(**address));
            let addresses: BTreeSet<IpAddr> = heard.chain(contested).copied().collect();
            let users = addresses.iter().flat_map(|a| self.leases.users(*a));
            let users = users.filter_map(|policy| self.policies.reference(policy));
            dirty.policies.extend(users);
            dirty.statuses.extend(addresses);
        }
        if was.map(|r| &r.programmed) != is.map(|r| &r.programmed) {
            let named = both().flat_map(|r| &r.programmed);
            let named = named.filter_map(|one| self.policies.reference(&one.policy));
            dirty.policies.extend(named);
        }
        if was.map(|r| &r.full_destinations) != is.map(|r| &r.full_destinations) {
            let full = both().flat_map(|r| r.full_destinations.keys());
            let users = full.flat_map(|address| self.leases.users(*address));
            let users = users.filter_map(|policy| self.policies.reference(policy));
            dirty.policies.extend(users);
        }
        if was.map(|r| r.tunnel_index) != is.map(|r| r.tunnel_index) {
            dirty.numbers = true;
        }
        self.leases_otherwise(&name, was, dirty);
        if self.leases.is_restored() {
            dirty.addresses.extend(self.leases.restored());
        }
        let reports = |record| {
            (
                status::gateway_node(&name, record),
                lease::has_unknown_tables(record),
            )
        };
        if reports(was) != reports(is) {
            dirty.gateways.extend(self.leases.gateways_of(&name));
        }
        if was.map(|r| &r.paired) != is.map(|r| &r.paired) {
            for pod in self.pods.on(&name) {
                self.unbind(&pod, dirty);
                dirty.pods.insert(pod);
            }
        }
        dirty.nodes.insert(name);
    }

    /// Whether the node's report changed for addresses that policies request or could get.
    fn occupies_otherwise(&self, was: Option<&NodeRecord>, is: Option<&NodeRecord>) -> bool {
        let says = |r: &NodeRecord| {
            let (all, routers) = (r.node_addresses.clone(), r.routers.clone());
            (all, routers, r.external_addresses.clone())
        };
        if was.map(says) == is.map(says) {
            return false;
        }
        let occupied = |r: Option<&NodeRecord>| r.map(occupies).unwrap_or_default();
        let (was, is) = (occupied(was), occupied(is));
        let mut others = was.symmetric_difference(&is);
        others.any(|(address, _)| self.matters(address))
    }

    /// Marks addresses whose leases depend on what changed in the node's record.
    fn leases_otherwise(&self, name: &NodeName, was: Option<&NodeRecord>, dirty: &mut Dirty) {
        let is = self.snapshot.node_records.get(name);
        let concerns = |record: Option<&NodeRecord>| record.map(lease::Concerns::of);
        let (was, is) = (concerns(was), concerns(is));
        let (Some(was), Some(is)) = (&was, &is) else {
            let both = was.iter().chain(&is);
            let claimed = both.flat_map(|record| record.addresses().copied());
            dirty.addresses.extend(claimed);
            dirty.addresses.extend(self.leases.of_node(name));
            return;
        };
        dirty.addresses.extend(was.differing(is));
        let used = was.used_otherwise(is).into_iter();
        let (scarce, roomy): (Vec<IpAddr>, Vec<IpAddr>) =
            used.partition(|address| self.leases.is_low(*address));
        dirty.addresses.extend(scarce);
        dirty.uses.extend(roomy);
        if was.epochs != is.epochs {
            dirty.addresses.extend(self.leases.awaiting(name));
        }
    }

    /// Numbers nodes if the set of records may have changed, and updates grants.
    pub(super) fn plan_nodes(&mut self, dirty: &mut Dirty) {
        if dirty.numbers {
            let numbers = nodes::number(&self.snapshot, &|name| self.leases.holds(name));
            let source = MessageSource::Numbers;
            let findings = numbers.findings.into_iter().collect();
            self.messages
                .put(&mut self.plan, source, numbers.reasons, findings);
            self.plan.node_deletions = numbers.deletions;
            let indexes = numbers.indexes;
            let gone = self.plan.node_records.keys();
            let gone: Vec<NodeName> = gone
                .filter(|name| !indexes.contains_key(name))
                .cloned()
                .collect();
            for name in gone {
                self.plan.node_records.remove(&name);
                dirty.nodes.insert(name);
            }
            for (name, tunnel_index) in indexes {
                let known = self.plan.node_records.get(&name);
                if known.is_none_or(|spec| spec.tunnel_index != tunnel_index) {
                    let spec = NodeRecordSpec {
                        tunnel_index,
                        grants: Vec::new(),
                        draining: Vec::new(),
                        resting: Vec::new(),
                        fenced: None,
                        grants_epoch: 0,
                        pod_prefixes: BTreeSet::new(),
                        device_addresses: BTreeSet::new(),
                    };
                    self.plan.node_records.insert(name.clone(), spec);
                    dirty.nodes.insert(name);
                }
            }
        }
        self.tell_pod_prefixes(dirty);
        self.tell_device_addresses(dirty);
        let mut writes: BTreeSet<NodeName> = std::mem::take(&mut self.plan.node_writes)
            .into_iter()
            .collect();
        let believed_max = self.leases.believed_max();
        // A fence that is not written yet begins anew.
        let fenced = |name: &&NodeName| self.plan.node_records[*name].fenced.is_some();
        let written = |name: &&NodeName| self.plan.node_records.contains_key(*name);
        let unwritten = writes.iter().filter(written).filter(fenced);
        dirty.nodes.extend(unwritten.cloned());
        for name in &dirty.nodes {
            let grants = self.leases.grants(name, &self.plan.addresses);
            let least = self.leases.least_epochs.of(&self.snapshot, name);
            let grants = grants.since(least).sorted();
            let grants = unreadable::grants(&self.snapshot, name, grants, believed_max);
            let carried = match self.carriers.contains(name) {
                true => (
                    self.pod_prefixes.told().clone(),
                    self.device_addresses.told().clone(),
                ),
                false => (BTreeSet::new(), BTreeSet::new()),
            };
            let known = self.snapshot.node_records.get(name);
            let fenced = nodes::fenced(&self.snapshot, name, self.time.now_secs);
            let differs = self.plan.node_records.get_mut(name).is_some_and(|spec| {
                spec.grants = grants.usable;
                spec.draining = grants.draining;
                spec.resting = grants.resting;
                spec.fenced = fenced;
                spec.grants_epoch = grants.epoch;
                unreadable::carry(&self.snapshot, name, spec, carried);
                nodes::differs(known, spec)
            });
            match differs {
                true => drop(writes.insert(name.clone())),
                false => drop(writes.remove(name)),
            }
        }
        self.plan.node_writes = writes.into_iter().collect();
    }
}
