//! Nodes of an autoscaler on a real API server: 300 come and go through one address. No kubelet and no agent runs: the test
//! writes what they would (`churn`; a whole lab with real gateways does the same in `tests/lab/churn.rs`). Needs root and a
//! built Kubernetes.

use crate::small::{TIMEOUT, open, said, start, wait_for};
use anyhow::Context;
use egret_cluster::programs::skipped;
use egret_core::model::{NodeRecord, Snapshot};
use egret_objects::Source;
use egret_objects::kube::{KubeSource, Role};
use egret_tests::bulk::{Bulk, Request};
use egret_tests::churn::{Churn, Objects, Spot, report_request, run};
use egret_tests::kubernetes::{Daemon, until};
use egret_tests::steps::Group;
use egret_tests::tests;
use serde_json::json;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![three_hundred_nodes_come_and_go_through_one_address]
}

const NODES: usize = 300;
const AT_ONCE: usize = 30;
const LIFE: Duration = Duration::from_secs(10);
const ADDRESS: &str = "192.168.122.222";
/// Short, so that ports of the first nodes are needed again within the test: 300 nodes with 4 blocks each want more than
/// an address has.
const HOLD_DOWN: &str = "5";
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Server {
    bulk: Bulk,
    reader: KubeSource,
}

impl Objects for Server {
    fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        Ok(self.reader.snapshot()?.snapshot)
    }

    fn come(&mut self, spots: &[Spot]) -> anyhow::Result<()> {
        let nodes = spots.iter().map(|spot| {
            let node = json!({"metadata": {"name": spot.name()}});
            Request::create("/api/v1/nodes", node.to_string())
        });
        self.bulk.send(nodes)?;
        let pods = spots.iter().map(|spot| {
            let pod = json!({
                "metadata": {"name": spot.name(), "labels": {"app": "MyApp"}},
                "spec": {
                    "nodeName": spot.name(), "automountServiceAccountToken": false,
                    "containers": [{"name": "c", "image": "none"}],
                },
            });
            Request::create(PODS, pod.to_string())
        });
        self.bulk.send(pods)?;
        let statuses = spots.iter().flat_map(|spot| {
            let address = spot.address().to_string();
            let node =
                json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
            let ip = spot.pod_address().to_string();
            let pod = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
            [
                Request::patch(
                    format!("/api/v1/nodes/{}/status", spot.name()),
                    node.to_string(),
                ),
                Request::patch(format!("{PODS}/{}/status", spot.name()), pod.to_string()),
            ]
        });
        self.bulk.send(statuses)
    }

    fn go(&mut self, spots: &[Spot]) -> anyhow::Result<()> {
        let delete = |path: String| Request {
            method: "DELETE",
            path,
            body: r#"{"gracePeriodSeconds": 0}"#.to_owned(),
        };
        let nodes = spots
            .iter()
            .map(|spot| delete(format!("/api/v1/nodes/{}", spot.name())));
        let pods = spots
            .iter()
            .map(|spot| delete(format!("{PODS}/{}", spot.name())));
        self.bulk.send(nodes.chain(pods))
    }

    fn report(&mut self, records: &[NodeRecord]) -> anyhow::Result<()> {
        self.bulk.send(records.iter().map(report_request))
    }
}

fn three_hundred_nodes_come_and_go_through_one_address() -> anyhow::Result<()> {
    if skipped("three_hundred_nodes_come_and_go_through_one_address") {
        return Ok(());
    }
    let server = start(&[("Controller", "controller"), ("Agent", "reader")]);
    let kubectl = server.kubectl();
    let gateway = r#"{"spec":{"leases":{"initialPorts":256}}}"#;
    kubectl.run(&["patch", "egrgw", "main", "--type=merge", "-p", gateway])?;
    let own = server.kubectl_as("controller")?;
    let source = format!("kube:{}", own.kubeconfig().display());
    let settings = ["--http-port", "0", "--hold-down-secs", HOLD_DOWN];
    let arguments = [&["controller", "--source", &source], &settings[..]].concat();
    let mut daemon = Daemon::start(&server.folder().join("controller.log"), &arguments)?;
    wait_for(
        kubectl,
        &["egress", "fixed"],
        ".status.addresses[0]",
        ADDRESS,
    );

    let mut objects = Server {
        bulk: Bulk::start(kubectl, server.folder())?,
        reader: open(kubectl.kubeconfig(), Role::Reader),
    };
    until("the reader has everything", TIMEOUT, || {
        objects.reader.wait(Duration::from_millis(200))?;
        Ok(objects.reader.snapshot().is_ok())
    })?;
    let churn = Churn {
        nodes: NODES,
        at_once: AT_ONCE,
        life: LIFE,
        address: ADDRESS.parse()?,
        gateways_too: true,
    };
    let seen = run(&mut objects, churn).with_context(|| daemon.log())?;
    println!("{seen:?}");
    // More than one address has at a time: ports were used again.
    anyhow::ensure!(seen.blocks > 1008, "{seen:?}");
    until("the records of nodes that are gone to go", TIMEOUT, || {
        let records = kubectl.run(&["get", "egrnode", "-o", "name"])?;
        Ok(records.lines().count() == 3)
    })?;
    let leases = said(
        kubectl,
        &["egraddr", "v4-192-168-122-222"],
        ".spec.leases[*].node",
    );
    anyhow::ensure!(leases == "worker1 worker2", "{leases}");
    daemon.end()
}
