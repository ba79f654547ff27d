//! The controller on a directory of manifests; the test takes the place of the agents.

use crate::running::{Guard, Guarded, Running, open};
use egret_controller::Health;
use egret_core::model::{LeaseState, NodeName, NodeRecord, ObjectRef, Programmed};
use egret_objects::{ConditionStatus, NodeReport, Source, SourceError, View};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const EGRESS: &str = "192.0.2.222";

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: worker1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: gateway1, labels: {egress: 'yes'}}
status: {addresses: [{type: InternalIP, address: 192.0.2.21}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, labels: {app: MyApp}}
spec: {nodeName: worker1, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: default}
spec: {default: true, nodeSelector: {matchLabels: {egress: 'yes'}}}
";

const POLICY: &str = "
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: my-egress, namespace: default}
spec: {selector: {app: MyApp}, ip: 192.0.2.222}
";

/// Writes a node's status as its agent would.
fn report(running: &mut Running, view: &View, node: &str, change: impl Fn(&mut NodeRecord)) {
    let name = NodeName(node.into());
    let mut record = view.snapshot.node_records[&name].clone();
    change(&mut record);
    let report = NodeReport::default();
    running
        .source
        .write_node_status(&record, &report, 1)
        .expect("writable");
}

fn lease_state(view: &View) -> Option<LeaseState> {
    let address = EGRESS.parse().expect("an address");
    Some(view.snapshot.addresses.get(&address)?.leases.first()?.state)
}

fn ready(view: &View) -> Option<ConditionStatus> {
    let (_, status) = view.policies.iter().next()?;
    status
        .conditions
        .iter()
        .find(|c| c.kind == "Ready")
        .map(|c| c.status)
}

#[test]
fn a_lease_is_granted_activated_drained_and_forgotten() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    std::fs::write(path.join("cluster.yaml"), CLUSTER).expect("written");
    std::fs::write(path.join("policy.yaml"), POLICY).expect("written");
    let mut running = Running::start(path);

    let worker = NodeName("worker1".into());
    let granted = |view: &View| {
        let record = view.snapshot.node_records.get(&worker);
        record.is_some_and(|record| record.grants.len() == 1)
    };
    let view = running.wait("a grant", granted);
    let grant = view.snapshot.node_records[&worker].grants[0].clone();
    assert_eq!(
        lease_state(&view),
        Some(LeaseState::Granted),
        "no gateway has it yet"
    );
    assert_ne!(
        ready(&view),
        Some(ConditionStatus::True),
        "nothing is programmed yet"
    );

    report(&mut running, &view, "gateway1", |record| {
        record.steering_version = grant.epoch;
        record.datapath = Some("ebpf".into());
        record.underlay_addresses = vec!["192.0.2.21".parse().expect("an address")];
    });
    let view = running.wait("the lease active", |v| {
        lease_state(v) == Some(LeaseState::Active)
    });
    report(&mut running, &view, "worker1", |record| {
        record.demand.insert(grant.address, 3);
        record.held.insert(grant.address, grant.ranges.clone());
        record.acknowledged = record.grants_epoch;
        record.programmed = view
            .snapshot
            .policies
            .iter()
            .map(|policy| Programmed {
                policy: ObjectRef {
                    ..policy.object.clone()
                },
                generation: policy.generation,
                pods: 1,
            })
            .collect();
    });
    let view = running.wait("ready", |view| ready(view) == Some(ConditionStatus::True));
    let address = view.snapshot.addresses[&grant.address].clone();
    assert_eq!(
        address.leases[0].ranges, grant.ranges,
        "activation moves nothing"
    );

    std::fs::remove_file(path.join("policy.yaml")).expect("removed");
    // The worker's record is written after that of the address.
    let drained = |v: &View| {
        let record = &v.snapshot.node_records[&worker];
        lease_state(v) == Some(LeaseState::Draining)
            && record.grants.is_empty()
            && record.draining.len() == 1
    };
    let view = running.wait("draining", drained);
    report(&mut running, &view, "worker1", |record| {
        record.demand.clear();
        record.held.clear();
        // About this withdrawal: about an earlier epoch it would prove nothing.
        record.acknowledged = record.grants_epoch;
    });
    // Without a hold-down time the lease may be gone before the test reads it; the address stays until gateways know.
    let held = |v: &View| matches!(lease_state(v), Some(LeaseState::HoldDown) | None);
    let view = running.wait("hold-down or its end", held);
    let epoch = view.snapshot.addresses[&grant.address].epoch;
    assert!(
        epoch > grant.epoch,
        "gateways must learn that the blocks are nobody's"
    );
    report(&mut running, &view, "gateway1", |record| {
        record.steering_version = epoch
    });
    running.wait("the address forgotten", |view| {
        view.snapshot.addresses.is_empty()
    });
}

#[test]
fn a_bad_policy_is_told_and_stops_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    std::fs::write(path.join("cluster.yaml"), CLUSTER).expect("written");
    let bad = POLICY
        .replace("my-egress", "bad")
        .replace(EGRESS, "not-an-address");
    std::fs::write(path.join("bad.yaml"), bad).expect("written");
    std::fs::write(path.join("policy.yaml"), POLICY).expect("written");
    let mut running = Running::start(path);
    let view = running.wait("a lease", |view| lease_state(view).is_some());
    let finding = view
        .findings
        .iter()
        .find(|finding| finding.object.name == "bad");
    let finding = finding.expect("the bad one is told");
    assert_eq!(
        (finding.field.as_str(), finding.value.as_str()),
        ("spec.ip", "not-an-address")
    );
}

const POOL: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressPool
metadata: {name: partners}
spec: {ranges: [{start: 192.0.2.220, end: 192.0.2.229}], namespaces: {all: true}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: first, namespace: default}
spec: {selector: {app: MyApp}, pool: partners}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: second, namespace: default}
spec: {selector: {app: MyApp}, pool: partners}
";

/// Stops a controller before a given write, or when it is idle.
struct Mortal {
    /// Number of writes that still succeed.
    writes: usize,
    stop: Arc<AtomicBool>,
    died: Arc<AtomicBool>,
}

impl Mortal {
    /// Runs a controller; returns whether it became idle.
    fn control(path: &Path, writes: usize) -> bool {
        let stop = Arc::new(AtomicBool::new(false));
        let died = Arc::new(AtomicBool::new(false));
        let guard = Mortal {
            writes,
            stop: stop.clone(),
            died: died.clone(),
        };
        let source = open(path);
        let source = Box::new(Guarded { source, guard });
        egret_controller::run(source, &Arc::new(Health::default()), &stop);
        !died.load(Ordering::Relaxed)
    }
}

impl Guard for Mortal {
    fn admit(&mut self, _write: &str, _object: &str) -> Result<(), SourceError> {
        if self.writes == 0 {
            self.stop.store(true, Ordering::Relaxed);
            self.died.store(true, Ordering::Relaxed);
            return Err(SourceError::NotLeader);
        }
        self.writes -= 1;
        Ok(())
    }

    fn rests(&mut self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        true
    }
}

/// Addresses of policies, and addresses with records.
fn given(path: &Path) -> (Vec<(String, Vec<IpAddr>)>, Vec<IpAddr>) {
    let view = open(path).snapshot().expect("readable");
    let policies = view.snapshot.policies.iter();
    let policies = policies.map(|policy| (policy.object.name.clone(), policy.assigned.clone()));
    let mut policies: Vec<_> = policies.collect();
    policies.sort();
    (policies, view.snapshot.addresses.keys().copied().collect())
}

#[test]
fn wherever_a_controller_ends_the_next_one_gives_the_same_addresses() {
    let mut writes = 0;
    loop {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        std::fs::write(path.join("cluster.yaml"), CLUSTER).expect("written");
        std::fs::write(path.join("pool.yaml"), POOL).expect("written");
        let rested = Mortal::control(path, writes);
        assert!(Mortal::control(path, usize::MAX), "it comes to rest");
        let address = |last: u8| vec![IpAddr::from([192, 0, 2, last])];
        let expected = [
            ("first".to_owned(), address(220)),
            ("second".to_owned(), address(221)),
        ];
        let (policies, records) = given(path);
        assert_eq!(policies, expected, "after {writes} writes");
        assert_eq!(
            records,
            [address(220), address(221)].concat(),
            "after {writes} writes"
        );
        if rested {
            assert!(writes > 8, "{writes} writes are not all of them");
            return;
        }
        writes += 1;
    }
}

/// Blocks that the controller's audit counts: held by two nodes, and held without a lease.
fn violations(running: &Running) -> [u64; 2] {
    let text = running.health.metrics_text();
    ["held_twice", "without_lease"].map(|kind| {
        let name = format!("egret_controller_lease_violations{{kind=\"{kind}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |value| value.parse().expect("a number"))
    })
}

fn wait_violations(running: &Running, expected: [u64; 2]) {
    let deadline = std::time::Instant::now() + crate::running::DEADLINE;
    while violations(running) != expected {
        let now = violations(running);
        assert!(
            std::time::Instant::now() < deadline,
            "{now:?}, not {expected:?}"
        );
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

#[test]
fn the_audit_counts_blocks_that_a_node_holds_and_the_record_gives_to_another_until_it_gives_them_up()
 {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    std::fs::write(path.join("cluster.yaml"), CLUSTER).expect("written");
    std::fs::write(path.join("policy.yaml"), POLICY).expect("written");
    let mut running = Running::start(path);
    let worker = NodeName("worker1".into());
    let granted = |view: &View| {
        let records = &view.snapshot.node_records;
        records
            .get(&worker)
            .is_some_and(|record| !record.grants.is_empty())
    };
    let view = running.wait("a grant", granted);
    let grant = view.snapshot.node_records[&worker].grants[0].clone();
    let first = egret_core::model::PortRange {
        first: grant.ranges[0].first,
        last: grant.ranges[0].first + 63,
    };
    report(&mut running, &view, "worker1", |record| {
        record.held.insert(grant.address, grant.ranges.clone());
        record.acknowledged = record.grants_epoch;
    });
    wait_violations(&running, [0, 0]);
    report(&mut running, &view, "gateway1", |record| {
        record.held.insert(grant.address, vec![first]);
    });
    wait_violations(&running, [1, 1]);
    report(&mut running, &view, "gateway1", |record| {
        record.held.clear()
    });
    wait_violations(&running, [0, 0]);
}
