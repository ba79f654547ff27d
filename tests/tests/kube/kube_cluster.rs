//! The program on a real cluster: kubelets, pods, agents on their nodes, a controller, and packets that leave with the
//! egress address, also without the control plane. Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_cluster::topology::topology;
use egret_cluster::{Cluster, Kubectl};
use egret_lab::traffic::Server;
use egret_tests::kubernetes::{CRDS, Daemon, pods, start_on, until};
use egret_tests::steps::{Group, lab_name};
use egret_tests::tests;
use std::path::Path;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![pods_of_a_real_cluster_leave_by_the_egress_address_also_while_the_control_plane_is_away]
}

const TIMEOUT: Duration = Duration::from_secs(180);
const EGRESS_ADDRESS: &str = "192.168.122.222";

/// A pod on each worker that continuously asks the server for its source address, and writes the answers down.
const OBJECTS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: asker}
spec:
  selector: {matchLabels: {app: asker}}
  template:
    metadata: {labels: {app: asker}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: egret.dev/gateway, operator: DoesNotExist}]}]}}}
      containers:
      - name: asker
        image: egret.dev/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, 'while true; do echo | nc -w 2 203.0.113.10 80 | head -n 1 >>/tmp/answers; sleep 0.2; done']
---
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: main}
spec: {nodeSelector: {matchLabels: {egret.dev/gateway: "true"}}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: asker, namespace: default}
spec: {selector: {app: asker}, ip: 192.168.122.222}
"#;

/// A policy of a namespace that will be deleted.
const TENANT: &str = r#"
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: own, namespace: tenant}
spec: {selector: {}, ip: 192.168.122.223}
"#;

/// The source addresses of a pod, in order.
fn answers(kubectl: &Kubectl, pod: &str) -> Vec<String> {
    let said = kubectl.run(&["exec", pod, "--", "cat", "/tmp/answers"]);
    let said = said.unwrap_or_default();
    let source = |line: &str| line.rsplit_once(':').map(|(source, _)| source.to_owned());
    said.lines().filter_map(source).collect()
}

fn pods_of_a_real_cluster_leave_by_the_egress_address_also_while_the_control_plane_is_away() {
    let own =
        "pods_of_a_real_cluster_leave_by_the_egress_address_also_while_the_control_plane_is_away";
    if skipped(own) {
        return;
    }
    let name = lab_name("kube");
    let cluster = Cluster::up(&name, &topology(2, 2), None).unwrap().owned();
    let kubectl = cluster.kubectl().unwrap();
    let server = Server::start(&cluster.lab().place("server").unwrap()).unwrap();
    kubectl.define(Path::new(CRDS)).unwrap();
    // The controller's host stays up while the control plane's processes are stopped.
    let controller = start_on(&cluster, "gateway1", &["controller"]).unwrap();
    let agents: Vec<Daemon> = ["worker1", "worker2", "gateway1", "gateway2"]
        .iter()
        .map(|node| start_on(&cluster, node, &["agent", "--node", node]).unwrap())
        .collect();
    kubectl.apply(OBJECTS).unwrap();
    let ready = [
        "wait",
        "--for=condition=Ready",
        "egress/asker",
        "--timeout=180s",
    ];
    kubectl.run(&ready).unwrap();
    let rollout = ["rollout", "status", "daemonset/asker", "--timeout=180s"];
    kubectl.run(&rollout).unwrap();
    let programmed = [
        "get",
        "egress",
        "asker",
        "-o",
        "jsonpath={.status.pods.programmed}",
    ];
    kubectl
        .wait_until("both programmed", TIMEOUT, &programmed, |said| {
            said.out == "2"
        })
        .unwrap();
    let all = pods(&kubectl, "app=asker").unwrap();
    assert_eq!(all.len(), 2);
    let mut counts = Vec::new();
    for pod in &all {
        until("it leaves by the egress address", TIMEOUT, || {
            Ok(answers(&kubectl, pod)
                .last()
                .is_some_and(|a| a == EGRESS_ADDRESS))
        })
        .unwrap();
        counts.push(answers(&kubectl, pod).len());
    }

    // Without the control plane connections are still made, with the same address.
    cluster.stop_control_plane().unwrap();
    std::thread::sleep(Duration::from_secs(15));
    for agent in &agents {
        let alive = Path::new("/proc").join(agent.pid().to_string());
        assert!(alive.exists(), "an agent ended: {}", agent.log());
    }
    cluster.start_control_plane().unwrap();
    let names = ["worker1", "worker2", "gateway1", "gateway2"];
    cluster.wait_ready(&names).unwrap();
    for (pod, before) in all.iter().zip(counts) {
        until("pods can be asked again", TIMEOUT, || {
            Ok(answers(&kubectl, pod).len() > before + 20)
        })
        .unwrap();
        let since = answers(&kubectl, pod).split_off(before);
        assert!(since.iter().all(|a| a == EGRESS_ADDRESS), "{since:?}");
    }

    // With the control plane back a new pod gets the address, too.
    kubectl.run(&["delete", "pod", &all[0]]).unwrap();
    kubectl.run(&rollout).unwrap();
    // The rollout may be reported as complete before the DaemonSet's controller knows that a pod is deleted.
    let mut fresh = None;
    until("the DaemonSet made another pod", TIMEOUT, || {
        fresh = pods(&kubectl, "app=asker")
            .unwrap()
            .into_iter()
            .find(|pod| !all.contains(pod));
        Ok(fresh.is_some())
    })
    .unwrap();
    let fresh = fresh.unwrap();
    until("the new pod leaves by the egress address", TIMEOUT, || {
        Ok(answers(&kubectl, &fresh)
            .last()
            .is_some_and(|a| a == EGRESS_ADDRESS))
    })
    .unwrap();

    // A namespace with a policy in use is deleted as fast as any other.
    kubectl.run(&["create", "namespace", "tenant"]).unwrap();
    kubectl.apply(TENANT).unwrap();
    let accepted = [
        "wait",
        "--for=condition=Accepted",
        "egress/own",
        "-n",
        "tenant",
        "--timeout=60s",
    ];
    kubectl.run(&accepted).unwrap();
    kubectl
        .run(&["delete", "namespace", "tenant", "--timeout=60s"])
        .unwrap();
    drop((controller, agents, server));
    drop(cluster);
}
