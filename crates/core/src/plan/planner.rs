//! The incremental planner: it stores intermediate results, so that the cost of a change does not grow with the cluster
//! (P10).
//!
//! ```text
//!  Change --> snapshot and indexes --> what it touches: pods, policies, addresses, nodes, gateways
//!                                                |
//!                 resolve (only where policies or what they name changed)
//!                 bind     pods to policies, policies to addresses, addresses to workers
//!                 leases   of addresses whose workers, record, gateways or rests changed, and of those not written yet
//!                 nodes, statuses, policies: those that any of the above touched
//! ```
//!
//! Its plan always equals that of [`super::plan`] for the same snapshot and time; a property test compares them. Both
//! share the code that plans one address, gateway or policy. Only the planner has the code that finds which to plan.
//! Changes of unbounded reach (settings, gateways, pools) are planned from nothing.

mod change;
mod device_addresses;
mod gateways;
mod keys;
mod leases;
mod messages;
mod names;
mod pod_prefixes;
mod pods;
mod policies;

pub use change::{Change, changes};

use super::{ClusterPlan, PlanTime, PolicyPlan, status};
use crate::model::*;
use device_addresses::DeviceAddresses;
use keys::{PodRef, PolicyRef};
use leases::Leases;
use messages::MessagesBySource;
use names::Names;
use pod_prefixes::PodPrefixes;
use pods::Pods;
use policies::Policies;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Incremental planner of one cluster; holds the snapshot and its plan.
#[derive(Debug)]
pub struct Planner {
    snapshot: Snapshot,
    time: PlanTime,
    plan: ClusterPlan,
    pods: Pods,
    pod_prefixes: PodPrefixes,
    device_addresses: DeviceAddresses,
    /// Nodes whose records carry the addresses of pods and devices.
    carriers: BTreeSet<NodeName>,
    policies: Policies,
    leases: Leases,
    names: Names,
    messages: MessagesBySource,
}

/// Objects whose status an update may have changed, removed ones included. Records that must be written are in the plan
/// itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// All statuses: the plan was made from nothing.
    pub all: bool,
    /// These policies.
    pub policies: BTreeSet<ObjectRef>,
    /// These gateways.
    pub gateways: BTreeSet<GatewayName>,
    /// These addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// All pools.
    pub pools: bool,
}

/// Parts to compute again.
#[derive(Debug, Default)]
struct Dirty {
    /// The meaning of policies.
    resolve: bool,
    /// Policies whose pods must be selected again.
    selections: BTreeSet<ObjectRef>,
    /// Pods that are not bound to policies now.
    pods: BTreeSet<PodRef>,
    /// Statuses of policies.
    policies: BTreeSet<PolicyRef>,
    /// Leases of addresses.
    addresses: BTreeSet<IpAddr>,
    /// How much of addresses with enough free ports is needed.
    uses: BTreeSet<IpAddr>,
    /// Statuses of addresses.
    statuses: BTreeSet<IpAddr>,
    /// The nodes of every gateway.
    roles: bool,
    /// Reports of gateways.
    gateways: BTreeSet<GatewayName>,
    /// Pod addresses that no Node names.
    pod_prefixes: bool,
    /// Addresses of nodes' devices that no Node names.
    device_addresses: bool,
    /// The set of node records.
    numbers: bool,
    /// Contents of node records.
    nodes: BTreeSet<NodeName>,
    /// The set of addresses in use.
    pools: bool,
    /// Everything: nothing is computed yet.
    all: bool,
}

impl Planner {
    /// Plans from nothing.
    pub fn new(snapshot: Snapshot, time: PlanTime) -> Self {
        let mut planner = Self {
            pod_prefixes: PodPrefixes::of(&snapshot),
            snapshot,
            time,
            plan: empty(),
            device_addresses: DeviceAddresses::default(),
            carriers: BTreeSet::new(),
            pods: Pods::default(),
            policies: Policies::default(),
            leases: Leases::default(),
            names: Names::default(),
            messages: MessagesBySource::default(),
        };
        let mut dirty = Dirty {
            resolve: true,
            roles: true,
            numbers: true,
            pools: true,
            all: true,
            ..Dirty::default()
        };
        for (key, pod) in &planner.snapshot.pods {
            dirty.pods.extend(planner.pods.add(key, pod));
        }
        for record in planner.snapshot.node_records.values() {
            planner.names.add(record);
            planner.leases.add_node(record);
        }
        for name in planner.snapshot.nodes.keys().cloned().collect::<Vec<_>>() {
            planner.look_at_devices(&name, &mut dirty);
        }
        for record in planner.snapshot.addresses.values() {
            planner.leases.add_record(record);
            dirty.addresses.insert(record.address);
        }
        planner.plan_again(dirty);
        planner
    }

    /// The current plan.
    pub fn plan(&self) -> &ClusterPlan {
        &self.plan
    }

    /// The snapshot that the plan was made for.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Applies these changes and plans again, also if only time has passed. Returns the objects whose status may
    /// differ.
    pub fn update(&mut self, changes: impl IntoIterator<Item = Change>, time: PlanTime) -> Touched {
        // Another term counts all times anew.
        let mut from_nothing = time.term != self.time.term;
        self.time = time;
        let mut dirty = Dirty::default();
        for change in changes {
            from_nothing |= self.take(change, &mut dirty);
        }
        if from_nothing {
            let nothing = Snapshot::empty(self.snapshot.settings.clone());
            *self = Self::new(std::mem::replace(&mut self.snapshot, nothing), time);
            return Touched {
                all: true,
                ..Touched::default()
            };
        }
        self.plan_again(dirty)
    }

    /// Plans again for a newer snapshot and stores it: parts that it shares with the next snapshot are not compared
    /// again.
    pub fn follow(&mut self, newer: Snapshot, time: PlanTime) -> Touched {
        let changes = changes(&self.snapshot, &newer);
        let touched = self.update(changes, time);
        // Equal values, but shared with the source's copy.
        self.snapshot = newer;
        touched
    }

    fn plan_again(&mut self, mut dirty: Dirty) -> Touched {
        if dirty.resolve {
            self.resolve(&mut dirty);
        }
        for pod in std::mem::take(&mut dirty.pods) {
            self.bind(&pod, &mut dirty);
        }
        if dirty.roles {
            self.assign_roles(&mut dirty);
        }
        for gateway in dirty.gateways.clone() {
            self.plan_gateway(&gateway, &mut dirty);
        }
        self.plan_leases(&mut dirty);
        self.plan_nodes(&mut dirty);
        let mut touched = Touched {
            pools: dirty.pools,
            gateways: dirty.gateways,
            ..Touched::default()
        };
        for address in dirty.statuses {
            self.tell_address(address);
            touched.addresses.insert(address);
        }
        for policy in dirty.policies {
            self.tell_policy(&policy);
            touched.policies.insert((*policy).clone());
        }
        if dirty.pools {
            self.plan.pools = status::pools(&self.snapshot, &self.plan.addresses);
        }
        touched
    }

    /// The plan of a known policy.
    fn policy_plan(&mut self, policy: &ObjectRef) -> &mut PolicyPlan {
        let plan = self.plan.policies.get_mut(policy);
        plan.expect("every policy that is resolved has a plan, made when it was resolved")
    }
}

/// A plan without objects.
fn empty() -> ClusterPlan {
    ClusterPlan {
        findings: BTreeSet::new(),
        policies: BTreeMap::new(),
        gateways: BTreeMap::new(),
        pools: BTreeMap::new(),
        addresses: BTreeMap::new(),
        address_status: BTreeMap::new(),
        address_writes: Vec::new(),
        address_deletions: Vec::new(),
        node_records: BTreeMap::new(),
        node_writes: Vec::new(),
        node_deletions: Vec::new(),
        reasons: BTreeSet::new(),
        next_change_secs: None,
    }
}
