//! One object that cannot be read or written affects no other object (P9). The controller runs on a directory of
//! manifests; a wrapper around that source refuses writes as the API server would.

use crate::running::{DEADLINE, Guard, Guarded, Running, open};
use egret_core::model::NodeName;
use egret_objects::{Source, SourceError, View};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The address of the bad record.
const TAKEN: &str = "192.0.2.222";
/// The address of an unrelated policy.
const OTHER: &str = "192.0.2.223";

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: a-worker}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: z-worker}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}
---
apiVersion: v1
kind: Node
metadata: {name: gateway, labels: {egress: 'yes'}}
status: {addresses: [{type: InternalIP, address: 192.0.2.21}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, labels: {app: Bad}}
spec: {nodeName: a-worker, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: z, namespace: default, labels: {app: Good}}
spec: {nodeName: z-worker, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.244.2.5}]}
---
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: default}
spec: {default: true, nodeSelector: {matchLabels: {egress: 'yes'}}}
---
apiVersion: egret.dev/v1alpha1
kind: EgressPool
metadata: {name: partners}
spec: {ranges: [{start: 192.0.2.230, end: 192.0.2.239}], namespaces: {all: true}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: a-bad, namespace: default}
spec: {selector: {app: Bad}, ip: 192.0.2.222}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: a-pooled, namespace: default}
spec: {selector: {app: Bad}, pool: partners, priority: -1}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: z-good, namespace: default}
spec: {selector: {app: Good}, ip: 192.0.2.223}
";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Way in which a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// 403, admission, too large, a terminating namespace.
    Refused,
    /// 409, repeatedly.
    Conflict,
    /// No answer in time.
    Unanswered,
}

/// A source that refuses some writes, as an API server would.
struct Refusing {
    /// Faults by write: `spec EgressAddress ...`, `status Egress ...`.
    faults: BTreeMap<String, Fault>,
    /// Refused attempts.
    tried: Arc<Mutex<Vec<String>>>,
}

impl Guard for Refusing {
    fn admit(&mut self, write: &str, object: &str) -> Result<(), SourceError> {
        let write = format!("{write} {object}");
        let Some(fault) = self.faults.get(&write) else {
            return Ok(());
        };
        self.tried.lock().unwrap().push(write);
        let object = object.to_owned();
        let why = "refused by a test".to_owned();
        Err(match fault {
            Fault::Refused => SourceError::Refused { object, why },
            Fault::Unanswered => SourceError::Unanswered { object },
            Fault::Conflict => SourceError::Conflict {
                object,
                expected: 1,
                found: 2,
            },
        })
    }
}

/// A running controller whose source refuses some writes.
struct Controller {
    running: Running,
    tried: Arc<Mutex<Vec<String>>>,
    started: Instant,
}

impl Controller {
    fn start(path: &Path, faults: &[(&str, Fault)]) -> Self {
        let tried = Arc::new(Mutex::new(Vec::new()));
        let faults = faults
            .iter()
            .map(|(what, fault)| ((*what).to_owned(), *fault));
        let guard = Refusing {
            faults: faults.collect(),
            tried: tried.clone(),
        };
        let source = open(path);
        Self {
            running: Running::start_with(path, Box::new(Guarded { source, guard })),
            tried,
            started: Instant::now(),
        }
    }

    fn wait(&mut self, what: &str, condition: impl Fn(&View) -> bool) -> View {
        self.running.wait(what, condition)
    }

    /// Waits until a metric has this value or more.
    fn counts(&self, metric: &str, at_least: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = self.running.health.metrics_text();
            let line = text.lines().find(|line| line.starts_with(metric));
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
            if value.unwrap_or(0) >= at_least {
                return;
            }
            assert!(Instant::now() < deadline, "{metric}: {line:?}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Waits until the controller is ready; panics with the reason after the deadline.
    fn is_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        while let Some(why) = self.running.health.unready() {
            assert!(Instant::now() < deadline, "{why}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Number of attempts of this write.
    fn tried(&self, write: &str) -> usize {
        let tried = self.tried.lock().unwrap();
        tried.iter().filter(|one| *one == write).count()
    }
}

fn scratch() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("cluster.yaml"), CLUSTER).expect("written");
    directory
}

fn store(directory: &Path, file: &str, text: &str) {
    let path = directory.join("status").join(file);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, text).expect("written");
}

fn stored(directory: &Path, file: &str) -> String {
    std::fs::read_to_string(directory.join("status").join(file)).expect("it is there")
}

/// Whether the unrelated policy has address, grant and status.
fn good_is_served(view: &View) -> bool {
    let granted = |node: &str, of: &str| {
        let record = view.snapshot.node_records.get(&NodeName(node.into()));
        record.is_some_and(|r| r.grants.iter().any(|grant| grant.address == address(of)))
    };
    let told = |name: &str| view.policies.keys().any(|object| object.name == name);
    granted("z-worker", OTHER) && told("z-good") && view.addresses.get(&address(OTHER)).is_some()
}

/// Whether the policy with a pool address has them too.
fn pooled_is_granted(view: &View) -> bool {
    let record = view.snapshot.node_records.get(&NodeName("a-worker".into()));
    let pooled = address("192.0.2.230");
    record.is_some_and(|r| r.grants.iter().any(|grant| grant.address == pooled))
}

const UNREADABLE_ADDRESS: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressAddress
metadata: {name: v4-192-0-2-222, generation: 1, resourceVersion: '7'}
spec:
  address: 192.0.2.222
  gateway: default
  epoch: 4
  leases:
  - {node: a-worker, ranges: [1024-1279], epoch: 3, state: Active, since: '2026-01-01T00:00:00Z'}
  - {node: z-worker, ranges: [2048-2100], epoch: 4, state: Active, since: '2026-01-01T00:00:00Z'}
";
const ADDRESS_FILE: &str = "EgressAddress/v4-192-0-2-222.yaml";

#[test]
fn an_address_that_cannot_be_read_stays_as_it_is_and_all_others_are_written() {
    for text in [UNREADABLE_ADDRESS, "kind: ["] {
        let directory = scratch();
        store(directory.path(), ADDRESS_FILE, text);
        // A cluster in use has a record of every node; without one, leases may have been forgotten (decision 134).
        for (node, index) in [("a-worker", 2), ("gateway", 3), ("z-worker", 4)] {
            let record = format!(
                "apiVersion: egret.dev/v1alpha1\nkind: EgressNode\n\
                 metadata: {{name: {node}, generation: 1, resourceVersion: '1'}}\nspec: {{tunnelIndex: {index}}}\n"
            );
            store(
                directory.path(),
                &format!("EgressNode/{node}.yaml"),
                &record,
            );
        }
        let mut running = Controller::start(directory.path(), &[]);
        let view = running.wait("the others are written", |view| {
            good_is_served(view) && pooled_is_granted(view)
        });
        assert_eq!(view.snapshot.node_records.len(), 3);
        let of_it = view
            .findings
            .iter()
            .find(|f| f.object.name == "v4-192-0-2-222");
        let remedy = &of_it.expect("the bad one is told").remedy;
        assert!(!remedy.contains("written anew"), "{remedy}");
        assert!(view.snapshot.unreadable.addresses.contains(&address(TAKEN)));
        let now = stored(directory.path(), ADDRESS_FILE);
        let kept = ["1024-1279", "2048-2100"].map(|range| now.contains(range));
        assert!(
            kept == [true; 2] || now == text,
            "its leases are as they were: {now}"
        );
        running.is_ready();
    }
}

#[test]
fn grants_of_an_address_that_cannot_be_read_stay() {
    let directory = scratch();
    let mut running = Controller::start(directory.path(), &[]);
    let granted = |view: &View| {
        let record = view.snapshot.node_records.get(&NodeName("a-worker".into()));
        let grants = record
            .map(|record| record.grants.clone())
            .unwrap_or_default();
        grants
            .into_iter()
            .find(|grant| grant.address == address(TAKEN))
    };
    let before = granted(&running.wait("a grant", |view| granted(view).is_some()));
    drop(running);
    store(directory.path(), ADDRESS_FILE, "kind: [");
    // Something for the controller to write.
    let pod = CLUSTER.replace("labels: {app: Good}", "labels: {app: Bad}");
    std::fs::write(directory.path().join("cluster.yaml"), pod).expect("written");
    let mut running = Controller::start(directory.path(), &[]);
    let view = running.wait("the other pod has no grant of its own any more", |view| {
        let record = &view.snapshot.node_records[&NodeName("z-worker".into())];
        record
            .grants
            .iter()
            .all(|grant| grant.address != address(OTHER))
    });
    assert_eq!(
        granted(&view),
        before,
        "the worker goes on with what it has"
    );
    let other = &view.snapshot.node_records[&NodeName("z-worker".into())];
    let new = other
        .grants
        .iter()
        .any(|grant| grant.address == address(TAKEN));
    assert!(!new, "nothing is granted out of what cannot be read");
}

#[test]
fn what_an_agent_reports_wrongly_is_not_said_and_its_node_stays() {
    let directory = scratch();
    store(
        directory.path(),
        "EgressNode/a-worker.yaml",
        "
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: a-worker, generation: 1, resourceVersion: '7'}
spec: {tunnelIndex: 1}
status: {underlayAddresses: [x, 192.0.2.11], steeringVersion: many, demand: [{address: y, ports: 1}]}
",
    );
    let mut running = Controller::start(directory.path(), &[]);
    let view = running.wait("every node has its record", |view| {
        good_is_served(view) && pooled_is_granted(view)
    });
    let indexes = view.snapshot.node_records.values();
    let mut indexes: Vec<u16> = indexes.map(|record| record.tunnel_index).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [1, 2, 3]);
    assert_eq!(
        view.snapshot.node_records[&NodeName("a-worker".into())].tunnel_index,
        1
    );
    assert!(view.findings.iter().any(|f| f.object.name == "a-worker"));
}

#[test]
fn a_node_record_that_cannot_be_read_keeps_its_tunnel_index() {
    let directory = scratch();
    let bad = "
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: a-worker, generation: 1, resourceVersion: '7'}
spec: {tunnelIndex: 1, grants: [{address: 192.0.2.222, gateway: default, ranges: [all], epoch: 1}]}
";
    store(directory.path(), "EgressNode/a-worker.yaml", bad);
    let mut running = Controller::start(directory.path(), &[]);
    let view = running.wait("the others are written", good_is_served);
    let indexes = view.snapshot.node_records.iter();
    let others = indexes.filter(|(name, _)| name.0 != "a-worker");
    let others: Vec<u16> = others.map(|(_, record)| record.tunnel_index).collect();
    assert!(!others.contains(&1), "{others:?}");
    assert_eq!(stored(directory.path(), "EgressNode/a-worker.yaml"), bad);
}

/// A refused write delays no other write, and is retried at growing intervals.
#[test]
fn a_refused_write_stops_no_other() {
    let writes = [
        "status Egress a-bad",
        "status EgressPool partners",
        "status EgressGateway default",
        "status EgressAddress 192.0.2.222",
        "spec EgressAddress 192.0.2.222",
        "spec EgressNode a-worker",
    ];
    for fault in [Fault::Refused, Fault::Conflict, Fault::Unanswered] {
        for write in writes {
            let directory = scratch();
            let mut running = Controller::start(directory.path(), &[(write, fault)]);
            running.wait(write, good_is_served);
            running.counts("egret_controller_unwritten_objects", 1);
            let (tried, secs) = (running.tried(write), running.started.elapsed().as_secs());
            let bound = 8 + 2 * usize::try_from(secs).unwrap();
            assert!(tried <= bound, "{write}: {tried} times in {secs} s");
            running.is_ready();
        }
    }
}

/// A pool address must be in the policy's status before it has a record; no other policy waits for that.
#[test]
fn a_policy_whose_status_is_refused_gets_no_address_and_the_others_do() {
    let directory = scratch();
    let refused = [("status Egress a-pooled", Fault::Refused)];
    let mut running = Controller::start(directory.path(), &refused);
    let view = running.wait("the others", good_is_served);
    let pooled = address("192.0.2.230");
    assert!(view.snapshot.addresses.get(&pooled).is_none());
}

/// 43 destinations with 250 bad exceptions each are within the limits of the API.
#[test]
fn ten_thousand_findings_in_one_object_are_read_at_once_and_cut() {
    let directory = scratch();
    let hole = "300.1.2.3/99,";
    let destination = format!(
        "  - {{cidr: 203.0.113.0/24, except: [{}]}}\n",
        hole.repeat(250)
    );
    let text = format!(
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: huge, namespace: default}}\n\
         spec:\n  selector: {{app: Bad}}\n  ip: 192.0.2.224\n  destinations:\n{}",
        destination.repeat(43)
    );
    std::fs::write(directory.path().join("huge.yaml"), &text).expect("written");
    let began = Instant::now();
    let view = open(directory.path()).snapshot().expect("readable");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let of_it: Vec<_> = view
        .findings
        .iter()
        .filter(|f| f.object.name == "huge")
        .collect();
    assert!(of_it.len() <= 65, "{} findings", of_it.len());
    assert!(
        of_it.iter().any(|f| f.remedy.contains("10686 more")),
        "{of_it:#?}"
    );
    let mut running = Controller::start(directory.path(), &[]);
    running.wait("the others", good_is_served);
}
