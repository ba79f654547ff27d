//! The whole cluster: up, pods on both workers that reach the outside, a node's power cut, and nothing left of it.
//! Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_cluster::topology::topology;
use egret_cluster::{Cluster, ClusterError, Kubectl, Said};
use egret_lab::Hurt;
use egret_lab::traffic::Server;
use std::collections::BTreeSet;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(120);

/// One pod on each worker, and a Service in front of both.
const PODS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: egret.dev/gateway, operator: DoesNotExist}]}]}}}
      containers:
      - name: web
        image: egret.dev/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp]
";

#[test]
fn pods_of_both_workers_reach_the_outside_and_nothing_is_left_after_down() {
    if skipped("pods_of_both_workers_reach_the_outside_and_nothing_is_left_after_down") {
        return;
    }
    let name = format!("test-{}", std::process::id());
    let before = machine_state(&name);
    let cluster = Cluster::up(&name, &topology(2, 2), None).unwrap().owned();
    let again = Cluster::up(&name, &topology(2, 2), None).unwrap_err();
    assert!(again.to_string().contains("up already"), "{again}");
    let kubectl = cluster.kubectl().unwrap();
    let nodes = kubectl.run(&["get", "nodes", "-o", "name"]).unwrap();
    assert_eq!(nodes.lines().count(), 4, "{nodes}");
    kubectl.apply(PODS).unwrap();
    let rollout = ["rollout", "status", "daemonset/web", "--timeout=120s"];
    kubectl.run(&rollout).unwrap();

    let pods = pods_by_node(&kubectl);
    let on: Vec<&str> = pods.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!(on, ["worker1", "worker2"]);
    let server = Server::start(&cluster.lab().place("server").unwrap()).unwrap();
    for (node, pod) in &pods {
        let number = node.trim_start_matches("worker");
        // The node's own address in both families, which Egret would replace.
        let seen = ask(&kubectl, pod, "203.0.113.10");
        assert!(
            seen.starts_with(&format!("192.168.122.1{number}:")),
            "{seen}"
        );
        let seen = ask(&kubectl, pod, "2001:db8:1::10");
        assert!(
            seen.starts_with(&format!("[fd00:122::1{number}]:")),
            "{seen}"
        );
    }
    drop(server);
    assert_eq!(
        services_answer(&kubectl, &pods),
        2,
        "both pods answer behind their Service"
    );

    // A power cut ends kubelet, containerd and pods; the node comes back and its pod runs again.
    let last = pods[1].1.as_str();
    let container = [
        "get",
        "pod",
        last,
        "-o",
        "jsonpath={.status.containerStatuses[0].containerID}",
    ];
    let first = kubectl.run(&container).unwrap();
    cluster.lab().kill("worker2", Hurt::Power).unwrap();
    cluster.lab().start("worker2").unwrap();
    cluster.start_node("worker2").unwrap();
    let what = "another container of the same pod";
    let runs = |said: &Said| said.success && !said.out.is_empty() && said.out != first;
    kubectl.wait_until(what, TIMEOUT, &container, runs).unwrap();
    let ready = [
        "wait",
        "--for=condition=Ready",
        "--timeout=120s",
        "pod",
        last,
    ];
    kubectl.run(&ready).unwrap();
    assert_eq!(
        services_answer(&kubectl, &pods),
        2,
        "both pods answer again"
    );

    control_plane_goes_and_comes(&cluster, &kubectl, last);

    drop(cluster);
    assert_eq!(machine_state(&name), before);
    assert!(matches!(Cluster::open(&name), Err(ClusterError::NotUp(_))));
    assert!(matches!(Cluster::down(&name), Err(ClusterError::NotUp(_))));
}

/// etcd keeps its data, and running pods are not affected.
fn control_plane_goes_and_comes(cluster: &Cluster, kubectl: &Kubectl, pod: &str) {
    let started = [
        "get",
        "pod",
        pod,
        "-o",
        "jsonpath={.status.containerStatuses[0].state.running.startedAt}",
    ];
    let before = kubectl.run(&started).unwrap();
    cluster.stop_control_plane().unwrap();
    let refused = kubectl.run(&["get", "nodes"]).unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
    cluster.start_control_plane().unwrap();
    cluster
        .wait_ready(&["worker1", "worker2", "gateway1", "gateway2"])
        .unwrap();
    assert_eq!(kubectl.run(&started).unwrap(), before);
}

/// Node and name of every pod of the namespace `default`, by node.
fn pods_by_node(kubectl: &Kubectl) -> Vec<(String, String)> {
    let form = "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{\"\\n\"}{end}";
    let said = kubectl.run(&["get", "pods", "-o", form]).unwrap();
    let pairs = said.lines().filter_map(|line| line.split_once(' '));
    let mut pods: Vec<_> = pairs
        .map(|(node, pod)| (node.to_owned(), pod.to_owned()))
        .collect();
    pods.sort();
    pods
}

/// Source by which a server sees a pod: the server sends the address and port of its client.
fn ask(kubectl: &Kubectl, pod: &str, server: &str) -> String {
    let script = format!("echo | nc -w 5 {server} 80 | head -n 1");
    kubectl
        .run(&["exec", pod, "--", "sh", "-c", &script])
        .unwrap()
}

/// Number of different pods that answer through the Service, asked from the first of them.
fn services_answer(kubectl: &Kubectl, pods: &[(String, String)]) -> usize {
    let service = ["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"];
    let address = kubectl.run(&service).unwrap();
    let ask = format!("wget -qO- http://{address}:8080/");
    let mut answers = BTreeSet::new();
    let exec = ["exec", &pods[0].1, "--", "sh", "-c", &ask];
    let result = kubectl.wait_until("answers of all pods", TIMEOUT, &exec, |said| {
        answers.extend(
            said.success
                .then(|| said.out.trim().to_owned())
                .filter(|out| !out.is_empty()),
        );
        answers.len() == pods.len()
    });
    result.unwrap();
    answers.len()
}

/// State that must be the same before and after: mounts, devices, control groups, folders and processes of this
/// cluster.
fn machine_state(name: &str) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    // Other tests come and go at the same time; they mount nothing in the root namespace.
    let mut state: Vec<String> = read("/proc/self/mounts")
        .lines()
        .map(str::to_owned)
        .collect();
    let devices = read("/proc/net/dev");
    state.extend(
        devices
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(device, _)| device.trim().to_owned()),
    );
    for setting in [
        "vm/overcommit_memory",
        "kernel/panic",
        "kernel/panic_on_oops",
        "net/netfilter/nf_conntrack_max",
    ] {
        let value = std::fs::read_to_string(format!("/proc/sys/{setting}")).unwrap_or_default();
        state.push(format!("{setting} {value}"));
    }
    let groups = state
        .iter()
        .filter(|line| line.contains(" cgroup"))
        .filter_map(|line| line.split(' ').nth(1));
    let mut folders: Vec<String> = groups.map(str::to_owned).collect();
    folders.extend(
        [
            "/run",
            "/run/netns",
            "/run/egret-lab",
            "/var/lib",
            "/etc/cni",
            "/opt",
            "/var/log",
        ]
        .map(str::to_owned),
    );
    for folder in folders {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.path().display().to_string());
        state.extend(names.filter(|path| !path.contains("egret") || path.contains(name)));
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let told = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let ours = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(name);
        if ours(told("environ")) || ours(told("cgroup")) {
            state.push(format!(
                "process {}",
                String::from_utf8_lossy(&told("cmdline"))
            ));
        }
    }
    state
}
