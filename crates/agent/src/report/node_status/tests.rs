use super::*;
use crate::observe::surroundings::Routers;
use crate::report::LocalFindings;
use egret_core::condition::Reason;
use egret_core::machines::{Destination, LeaseReport};
use egret_core::model::{
    AddressClaim, Kind, MacAddress, Node, NodeName, ObjectRef, PortRange, Programmed, Settings,
    Snapshot, UnpooledAddresses,
};
use egret_core::node::{ForeignMark, NodeFacts, node_state};
use egret_objects::{Condition, ConditionStatus};
use std::collections::BTreeMap;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with only the facts that a test adds.
struct Scene {
    record: NodeRecord,
    snapshot: Snapshot,
    gateway: GatewayReport,
    routers: Routers,
    leases: LeaseReport,
    full: BTreeSet<Destination>,
    findings: LocalFindings,
    last_error: Option<String>,
    outcome: Option<NodeOutcome>,
}

impl Scene {
    fn new() -> Self {
        let snapshot = Snapshot::empty(Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: Vec::new(),
            hold_down_secs: 120,
        });
        Scene {
            record: NodeRecord::new(NodeName("a".into())),
            snapshot,
            gateway: GatewayReport::default(),
            routers: Routers::default(),
            leases: LeaseReport::default(),
            full: BTreeSet::new(),
            findings: LocalFindings::default(),
            last_error: None,
            outcome: None,
        }
    }

    fn status(&self) -> NodeStatus {
        node_status(&StatusInputs {
            record: &self.record,
            snapshot: &self.snapshot,
            outcome: self.outcome.as_ref(),
            gateway: &self.gateway,
            links: None,
            routers: &self.routers,
            leases: &self.leases,
            full: &self.full,
            findings: &self.findings,
            last_error: self.last_error.as_deref(),
            obstacles: &[],
        })
    }

    fn condition(&self, kind: &str) -> Option<Condition> {
        let all = self.status().report.conditions;
        all.into_iter().find(|condition| condition.kind == kind)
    }
}

#[test]
fn without_an_outcome_nothing_is_programmed_and_what_is_held_is_reported() {
    let mut scene = Scene::new();
    scene.record.steering_version = 5;
    let ports = PortRange {
        first: 1024,
        last: 1151,
    };
    let held = BTreeMap::from([(ip("192.0.2.1"), vec![ports])]);
    scene.leases = LeaseReport {
        acknowledged: 9,
        held: held.clone().into(),
        in_use: [(ip("192.0.2.1"), 64)].into(),
        wanted: [(ip("192.0.2.1"), 512)].into(),
    };
    let status = scene.status();
    assert_eq!(status.record.programmed, []);
    assert_eq!(status.record.acknowledged, 9);
    assert_eq!(status.record.held, held);
    assert_eq!(status.record.demand, scene.leases.in_use);
    assert_eq!(status.record.wanted_ports, scene.leases.wanted);
    assert_eq!(status.record.steering_version, 0);
    assert_eq!(status.record.datapath, None);
    assert_eq!(scene.condition("Degraded"), None);
}

#[test]
fn an_error_of_the_round_comes_before_one_of_the_gateway() {
    let mut scene = Scene::new();
    let ready = scene.condition("Ready").unwrap();
    assert_eq!(ready.status, ConditionStatus::True);
    scene.gateway.last_error = Some("no external device".into());
    let ready = scene.condition("Ready").unwrap();
    assert_eq!(ready.status, ConditionStatus::False);
    assert_eq!(ready.message, "no external device");
    scene.last_error = Some("no such device".into());
    assert_eq!(scene.condition("Ready").unwrap().message, "no such device");
}

#[test]
fn the_first_reason_of_several_is_the_condition_and_all_are_told() {
    let mut scene = Scene::new();
    scene.gateway.limitations = Some("no canaries".into());
    scene.gateway.degraded = vec![(Reason::CutOff, "nobody answers".into())];
    let rule = ForeignMark {
        priority: 100,
        mark: 0x1,
        mask: 0xff,
    };
    scene.findings.foreign_marks = [rule].into();
    let degraded = scene.condition("Degraded").unwrap();
    for text in ["no canaries", "nobody answers", "priority 100"] {
        assert!(degraded.message.contains(text), "{}", degraded.message);
    }
    let reasons = [
        Reason::NftablesDatapath,
        Reason::CutOff,
        Reason::MarkOverlap,
    ];
    let first = reasons.into_iter().min().unwrap();
    scene.gateway = GatewayReport::default();
    assert_eq!(degraded.reason, format!("{first:?}"));
    let only = scene.condition("Degraded").unwrap();
    assert_eq!(only.reason, "MarkOverlap");
}

#[test]
fn a_gateway_reports_its_version_its_addresses_and_who_else_has_them() {
    let mut scene = Scene::new();
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    let since_secs = 1_700_000_000;
    scene.gateway.loaded = true;
    scene.gateway.version = 7;
    scene.gateway.announcing = [ip("192.0.2.1")].into();
    let claim = AddressClaim { mac, since_secs };
    scene.gateway.claims = [(ip("192.0.2.1"), claim)].into();
    let status = scene.status();
    assert_eq!(status.record.steering_version, 7);
    assert_eq!(status.record.announcing, [ip("192.0.2.1")].into());
    assert_eq!(status.record.conflicts, scene.gateway.claims);
    let conflict = scene.condition("AddressConflict").unwrap();
    assert!(
        conflict.message.contains("192.0.2.1"),
        "{}",
        conflict.message
    );
    assert!(status.record.capabilities.contains(CANARY_CAPABILITY));
    scene.gateway.limitations = Some("no canaries".into());
    assert!(
        !scene
            .status()
            .record
            .capabilities
            .contains(CANARY_CAPABILITY)
    );
}

#[test]
fn lists_in_messages_are_cut_after_a_few() {
    let mut scene = Scene::new();
    let destination = |port| Destination {
        egress: ip("192.0.2.1"),
        address: ip("203.0.113.7"),
        protocol: 6,
        port,
    };
    scene.full = (1..=7).map(destination).collect();
    let status = scene.status();
    assert_eq!(
        status.record.full_destinations,
        [(ip("192.0.2.1"), 7)].into()
    );
    let exhausted = scene.condition("PortsExhausted").unwrap();
    assert!(exhausted.message.contains("TCP 203.0.113.7:5 by 192.0.2.1"));
    assert!(exhausted.message.ends_with(" and 2 more"));
}

/// The policies with pods here decide the size of the list, and tenants make policies.
#[test]
fn the_list_of_programmed_policies_is_bounded_and_the_rest_counted() {
    let mut scene = Scene::new();
    let snapshot = &scene.snapshot;
    let name = scene.record.node.clone();
    let mut outcome = outcome_of_nothing(snapshot, &name);
    let policy = |number: usize| Programmed {
        policy: ObjectRef {
            kind: Kind::Egress,
            namespace: "tenant".into(),
            name: format!("p{number:04}"),
        },
        generation: 1,
        pods: 1,
    };
    outcome.programmed = (0..STATUS_PROGRAMMED_MAX).map(policy).collect();
    scene.outcome = Some(outcome);
    let status = scene.status();
    assert_eq!(status.record.programmed.len(), STATUS_PROGRAMMED_MAX);
    assert_eq!(scene.condition("Degraded"), None);

    let outcome = scene.outcome.as_mut().unwrap();
    outcome.programmed.extend((9000..9003).map(policy));
    let status = scene.status();
    assert_eq!(status.record.programmed.len(), STATUS_PROGRAMMED_MAX);
    let degraded = scene.condition("Degraded").unwrap();
    assert_eq!(degraded.reason, "Limit");
    assert!(degraded.message.starts_with("3 policies with pods here"));
}

/// Outcome of a node in an otherwise empty cluster.
fn outcome_of_nothing(snapshot: &Snapshot, name: &NodeName) -> NodeOutcome {
    let mut snapshot = snapshot.clone();
    let node = Node {
        name: name.clone(),
        labels: Default::default(),
        addresses: vec![ip("192.168.122.11")],
        pod_cidrs: Vec::new(),
        maintenance: egret_core::model::Maintenance::default(),
    };
    snapshot.nodes.insert(name.clone(), node);
    let mut record = NodeRecord::new(name.clone());
    record.tunnel_index = 1;
    snapshot.node_records.insert(name.clone(), record);
    let facts = NodeFacts {
        underlay_mtu: 1500,
        settled: true,
        ..NodeFacts::default()
    };
    node_state(&snapshot, &facts, name).unwrap()
}
