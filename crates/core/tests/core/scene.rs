//! A small cluster as a value, with a controller and agents that apply core's decisions.

use egret_core::model::*;
use egret_core::node::{Attachment, External, NodeFacts, NodeOutcome, UnknownPodsPolicy};
use egret_core::node::{Policies, node_state};
use egret_core::plan::{ClusterPlan, NodeRecordSpec, PlanTime, PolicyPlan, plan};
use proptest::prelude::ProptestConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn node_name(name: &str) -> NodeName {
    NodeName(name.to_owned())
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    let one = |(k, v): &(&str, &str)| Requirement::In((*k).into(), [(*v).to_owned()].into());
    LabelSelector(pairs.iter().map(one).collect())
}

pub fn egress(namespace: &str, name: &str, addresses: &[&str]) -> Policy {
    let object = ObjectRef {
        kind: Kind::Egress,
        namespace: namespace.into(),
        name: name.into(),
    };
    let selection = Selection::Labels {
        namespaces: Namespaces::Names([namespace.to_owned()].into()),
        pods: selector(&[("app", "MyApp")]),
        nodes: None,
    };
    let addresses = AddressRequest::Fixed(addresses.iter().map(|a| ip(a)).collect());
    Policy {
        uid: format!("uid-{namespace}-{name}"),
        generation: 1,
        created_secs: 100,
        ..Policy::new(object, selection, addresses)
    }
}

pub fn gateway(name: &str) -> Gateway {
    Gateway {
        generation: 1,
        ..Gateway::new(GatewayName(name.into()), selector(&[("role", "gateway")]))
    }
}

pub fn pool(name: &str, first: &str, last: &str) -> Pool {
    Pool {
        name: PoolName(name.into()),
        generation: 1,
        ranges: vec![(ip(first), ip(last))],
        gateway: None,
        namespaces: Namespaces::All,
        allow_node_address: false,
        quotas: Quotas::default(),
    }
}

/// One write of the controller.
enum Write<'a> {
    Policy((&'a ObjectRef, &'a PolicyPlan)),
    Address(&'a AddressRecord),
    Node(&'a NodeName, &'a NodeRecordSpec),
    NoAddress(&'a IpAddr),
    NoNode(&'a NodeName),
}

/// A cluster in motion.
#[derive(Clone)]
pub struct Scene {
    pub snapshot: Snapshot,
    pub now: i64,
    pub term: u64,
    pub dead: BTreeSet<NodeName>,
    /// State of agents from one round to the next.
    pub facts: BTreeMap<NodeName, NodeFacts>,
    /// Egress addresses with which a node still has connections.
    pub busy: BTreeSet<(NodeName, IpAddr)>,
    /// Nodes that are attached to the network of each next hop.
    pub routers: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    /// State of each node's kernel.
    pub applied: BTreeMap<NodeName, NodeOutcome>,
}

impl Scene {
    pub fn new(workers: u8, gateways: u8) -> Self {
        let settings = Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            hold_down_secs: 120,
        };
        let mut scene = Self {
            snapshot: Snapshot {
                api_server: [ip("192.168.122.5")].into(),
                ..Snapshot::empty(settings)
            },
            now: 1_000,
            term: 1,
            dead: BTreeSet::new(),
            facts: BTreeMap::new(),
            busy: BTreeSet::new(),
            routers: BTreeMap::new(),
            applied: BTreeMap::new(),
        };
        for number in 1..=workers {
            scene.add_node(&format!("worker{number}"), number, "worker");
        }
        for number in 1..=gateways {
            scene.add_node(&format!("gateway{number}"), 100 + number, "gateway");
        }
        scene
            .snapshot
            .gateways
            .insert(GatewayName("main".into()), gateway("main"));
        scene
    }

    pub fn add_node(&mut self, name: &str, number: u8, role: &str) {
        let node = Node {
            name: node_name(name),
            labels: labels(&[("role", role)]),
            addresses: vec![
                ip(&format!("192.168.122.{number}")),
                ip(&format!("fd00:122::{number}")),
            ],
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:244:{number}::/64").parse().unwrap(),
            ],
            maintenance: Maintenance::default(),
        };
        self.snapshot.nodes.insert(node.name.clone(), node);
    }

    pub fn add_pod(&mut self, name: &str, node: &str, number: u8, pairs: &[(&str, &str)]) {
        let of_node: u8 = {
            let IpAddr::V4(v4) = self.snapshot.nodes[&node_name(node)].addresses[0] else {
                panic!()
            };
            v4.octets()[3]
        };
        let pod = Pod {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            labels: labels(pairs),
            node: node_name(node),
            addresses: vec![
                ip(&format!("10.244.{of_node}.{number}")),
                ip(&format!("fd00:244:{of_node}::{number}")),
            ],
            owner: None,
            host_network: false,
            finished: false,
        };
        self.snapshot
            .pods
            .insert((pod.namespace.clone(), pod.name.clone()), pod);
    }

    pub fn add_policy(&mut self, policy: Policy) {
        self.snapshot.policies.push(policy);
    }

    pub fn plan(&self) -> ClusterPlan {
        plan(&self.snapshot, self.time())
    }

    /// The leader's time.
    pub fn time(&self) -> PlanTime {
        PlanTime {
            now_secs: self.now,
            term: self.term,
        }
    }

    /// Runs the controller: plans and makes all writes.
    pub fn control(&mut self) -> ClusterPlan {
        self.control_until(usize::MAX)
    }

    /// Runs a controller that stops after this number of writes.
    pub fn control_until(&mut self, writes: usize) -> ClusterPlan {
        let plan = self.plan();
        let (policies, nodes) = (&plan.policies, &plan.node_records);
        let (first, last): (Vec<_>, Vec<_>) = policies.iter().partition(|(_, p)| p.given_anew);
        let first = first.into_iter().map(Write::Policy);
        let all = first
            .chain(
                plan.address_writes
                    .iter()
                    .map(|a| Write::Address(&plan.addresses[a])),
            )
            .chain(plan.node_writes.iter().map(|n| Write::Node(n, &nodes[n])))
            .chain(last.into_iter().map(Write::Policy))
            .chain(plan.address_deletions.iter().map(Write::NoAddress))
            .chain(plan.node_deletions.iter().map(Write::NoNode));
        all.take(writes).for_each(|write| self.write(write));
        plan
    }

    fn write(&mut self, write: Write<'_>) {
        match write {
            Write::Policy((object, planned)) => {
                let all = self.snapshot.policies.iter_mut();
                for policy in all.filter(|policy| policy.object == *object) {
                    policy.assigned =
                        [&planned.addresses[..], &planned.reserved_addresses].concat();
                    policy.crowded = planned.crowded.iter().copied().collect();
                }
            }
            Write::Address(record) => {
                let mut record = record.clone();
                record.resource_version += 1;
                self.snapshot.addresses.insert(record.address, record);
            }
            Write::Node(node, spec) => self.write_node(node, spec),
            Write::NoAddress(address) => drop(self.snapshot.addresses.remove(address)),
            Write::NoNode(node) => drop(self.snapshot.node_records.remove(node)),
        }
    }

    fn write_node(&mut self, node: &NodeName, spec: &NodeRecordSpec) {
        let records = &mut self.snapshot.node_records;
        if !records.contains_key(node) {
            records.insert(node.clone(), NodeRecord::new(node.clone()));
        }
        let record = records.get_mut(node).unwrap();
        record.tunnel_index = spec.tunnel_index;
        record.grants = spec.grants.clone();
        record.draining = spec.draining.clone();
        record.resting = spec.resting.clone();
        record.fenced = spec.fenced.clone();
        record.grants_epoch = spec.grants_epoch;
        record.pod_prefixes = spec.pod_prefixes.clone();
        record.device_addresses = spec.device_addresses.clone();
        record.resource_version += 1;
    }

    /// Facts of this node.
    pub fn facts(&self, node: &NodeName) -> NodeFacts {
        let mut facts = self.facts.get(node).cloned().unwrap_or_default();
        facts.underlay_mtu = 1500;
        facts.settled = true;
        facts.unknown_pods = UnknownPodsPolicy::Drop;
        facts.live.clear();
        facts.attached = self.attached(node);
        for gateway in self.gateway_nodes() {
            if gateway != *node && !self.dead.contains(&gateway) {
                let version = self
                    .snapshot
                    .node_records
                    .get(&gateway)
                    .map_or(0, |r| r.steering_version);
                facts.versions.insert(gateway.clone(), version);
                facts.ever_live.insert(gateway.clone());
                facts.live.insert(gateway);
            }
        }
        if self.gateway_nodes().contains(node) {
            facts.external = Some(External {
                device: "eth1".into(),
                link_up: true,
                leads_out: [true; 2],
            });
        }
        facts
    }

    /// Wanted next hops that this node is attached to.
    fn attached(&self, node: &NodeName) -> BTreeMap<IpAddr, Attachment> {
        let has = |router: &IpAddr| {
            let nodes = self.routers.get(router);
            nodes.is_some_and(|nodes| nodes.contains(node))
        };
        let attachment = |router: IpAddr| {
            let source = if router.is_ipv4() {
                "10.9.0.9"
            } else {
                "fd00:9::9"
            };
            let attachment = Attachment {
                device: "eth2".into(),
                index: 7,
                source: ip(source),
            };
            (router, attachment)
        };
        let wanted = Policies::of(&self.snapshot).next_hops(node).into_iter();
        wanted.filter(has).map(attachment).collect()
    }

    pub fn gateway_nodes(&self) -> BTreeSet<NodeName> {
        let is = |n: &&Node| {
            self.snapshot
                .gateways
                .values()
                .any(|g| g.nodes.matches(&n.labels))
        };
        self.snapshot
            .nodes
            .values()
            .filter(is)
            .map(|n| n.name.clone())
            .collect()
    }

    pub fn outcome(&self, node: &str) -> NodeOutcome {
        let node = node_name(node);
        node_state(&self.snapshot, &self.facts(&node), &node).unwrap()
    }

    /// Runs the agent of one node: applies its state and reports.
    pub fn run_agent(&mut self, node: &NodeName) {
        if self.dead.contains(node) {
            return;
        }
        let facts = self.facts(node);
        let Ok(outcome) = node_state(&self.snapshot, &facts, node) else {
            return;
        };
        let record = self.snapshot.node_records.get_mut(node).unwrap();
        record.underlay_addresses = self.snapshot.nodes[node].addresses.clone();
        record.programmed = outcome.programmed.clone();
        record.paired = outcome.paired.clone();
        let busy = self.busy.iter().filter(|(n, _)| n == node).map(|(_, a)| a);
        let busy: BTreeSet<&IpAddr> = busy.collect();
        let mut held: BTreeMap<IpAddr, Vec<PortRange>> = BTreeMap::new();
        for grant in &record.grants {
            held.entry(grant.address).or_default().extend(&grant.ranges);
        }
        // Flows go on in ranges that are withdrawn, not in others.
        let draining = record.draining.iter();
        for grant in draining.filter(|grant| busy.contains(&grant.address)) {
            held.entry(grant.address).or_default().extend(&grant.ranges);
        }
        held.values_mut().for_each(|ranges| ranges.sort());
        record.held = held;
        record.acknowledged = record.acknowledged.max(record.grants_epoch);
        if let Some(gateway) = &outcome.state.gateway {
            record.steering_version = gateway.version;
            let known = &outcome.state.worker.next_hops;
            let served = gateway.next_hops.values();
            record.next_hops = served.map(|number| known[number].address).collect();
            record.datapath = Some("ebpf".into());
        }
        let kept = self.facts.entry(node.clone()).or_default();
        *kept = facts;
        kept.previous_groups = outcome.groups.clone();
        kept.last_group_members = outcome.group_members.clone();
        kept.pairings = outcome.pairings.clone();
        self.applied.insert(node.clone(), outcome);
    }

    pub fn run_agents(&mut self) {
        let nodes: Vec<NodeName> = self.snapshot.nodes.keys().cloned().collect();
        for node in &nodes {
            self.run_agent(node);
        }
    }

    /// Runs controller and agents until nothing changes.
    pub fn settle(&mut self) -> ClusterPlan {
        for _ in 0..20 {
            let before = self.snapshot.clone();
            let plan = self.control();
            self.run_agents();
            if self.snapshot == before {
                return plan;
            }
        }
        panic!("controller and agents never come to rest");
    }
}

/// The KEP's manifest with a selected and an unselected pod on worker1 and a selected one on worker2.
pub fn kep_scene() -> Scene {
    let mut scene = Scene::new(3, 3);
    scene.add_policy(egress("default", "my-app", &["192.168.122.222"]));
    scene.add_pod("a1", "worker1", 10, &[("app", "MyApp")]);
    scene.add_pod("b1", "worker1", 11, &[("app", "Other")]);
    scene.add_pod("a2", "worker2", 10, &[("app", "MyApp")]);
    scene
}

/// A policy with a next hop on the gateways' network.
pub fn routed(namespace: &str, name: &str, next_hop: &str) -> Policy {
    let next_hop = ip(next_hop);
    Policy {
        translation: Translation::None { next_hop },
        ..egress(namespace, name, &[])
    }
}

/// Proptest's settings with this number of cases, unless PROPTEST_CASES sets another.
pub fn cases(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let untouched = config.cases == 256;
    ProptestConfig {
        cases: if untouched { cases } else { config.cases },
        ..config
    }
}
