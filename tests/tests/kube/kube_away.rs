//! Two minutes without controller, API server and etcd, with a gateway's power cut in the middle: traffic and new
//! connections continue with the egress address, no connection ends, and afterwards everything is updated without a
//! storm. Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_cluster::topology::topology;
use egret_cluster::{Cluster, Kubectl};
use egret_lab::Hurt;
use egret_lab::capture::{Capture, Direction};
use egret_lab::process::Process;
use egret_lab::traffic::Server;
use egret_tests::kubernetes::{CRDS, Daemon, pods, requests_between, start_on, until};
use egret_tests::matrix::left_to_full;
use egret_tests::steps::{Group, lab_name};
use egret_tests::tests;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

pub fn groups() -> Vec<Group> {
    tests![two_minutes_without_a_control_plane_and_a_gateway_that_dies_meanwhile]
}

const TIMEOUT: Duration = Duration::from_secs(180);
/// Duration without a control plane.
const AWAY: Duration = Duration::from_secs(120);
const EGRESS_ADDRESS: &str = "192.168.122.222";
const SERVER: &str = "203.0.113.10";
const NODES: [&str; 4] = ["worker1", "worker2", "gateway1", "gateway2"];
/// Most requests of one component while it catches up: every watch is restarted, and lists again where the API server
/// has forgotten later events. That is 12 of each, and as many again for watches that end while it starts.
const REQUESTS_MAX: usize = 60;

/// A pod on each worker that makes connections continuously, and has one that never ends.
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
        command:
        - sh
        - -c
        - |
          until [ -e /tmp/go ]; do sleep 0.2; done
          (while true; do echo x; sleep 0.2; done | nc 203.0.113.10 5000 >/tmp/long; echo ended >>/tmp/ended) &
          while true; do echo | nc -w 2 203.0.113.10 80 | head -n 1 >>/tmp/answers; sleep 0.2; done
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

/// Lines of a file in a pod.
fn lines(kubectl: &Kubectl, pod: &str, file: &str) -> Vec<String> {
    let said = kubectl.run(&["exec", pod, "--", "cat", file]);
    let said = said.unwrap_or_default();
    said.lines().map(str::to_owned).collect()
}

fn is_right(answer: &str) -> bool {
    answer
        .rsplit_once(':')
        .is_some_and(|(source, _)| source == EGRESS_ADDRESS)
}

fn two_minutes_without_a_control_plane_and_a_gateway_that_dies_meanwhile() {
    let test = "two_minutes_without_a_control_plane_and_a_gateway_that_dies_meanwhile";
    if left_to_full(test) || skipped(test) {
        return;
    }
    let name = lab_name("away");
    let cluster = Cluster::up(&name, &topology(2, 2), None).unwrap().owned();
    let kubectl = cluster.kubectl().unwrap();
    let server = Server::start(&cluster.lab().place("server").unwrap()).unwrap();
    kubectl.define(Path::new(CRDS)).unwrap();
    let controller = start_on(&cluster, "gateway2", &["controller"]).unwrap();
    let agent = |node: &&str| start_on(&cluster, node, &["agent", "--node", node]).unwrap();
    let agents: Vec<Daemon> = NODES.iter().map(agent).collect();
    kubectl.apply(OBJECTS).unwrap();
    kubectl
        .run(&["rollout", "status", "daemonset/asker", "--timeout=180s"])
        .unwrap();
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

    // From the first packet on, none may have another source.
    let (egress, outside): (IpAddr, IpAddr) =
        (EGRESS_ADDRESS.parse().unwrap(), SERVER.parse().unwrap());
    let layout = cluster.lab().layout().unwrap();
    let router = layout.host("router").unwrap();
    let link = router.links.iter().find(|link| link.bridge == "br-outside");
    let place = cluster.lab().place("router").unwrap();
    let capture = Capture::start(&place, &link.unwrap().device, move |packet| {
        packet.destination == outside && packet.protocol == 6 && packet.source != egress
    })
    .unwrap();
    let seen = || {
        let report = capture.so_far();
        let both = [Direction::In, Direction::Out];
        both.map(|way| report.from_source(egress, way))
            .iter()
            .sum::<u64>()
    };
    let more = |what: &str, count: u64| {
        let before = seen();
        until(what, TIMEOUT, || Ok(seen() >= before + count)).unwrap();
    };
    let all = pods(&kubectl, "app=asker").unwrap();
    for pod in &all {
        kubectl
            .run(&["exec", pod, "--", "touch", "/tmp/go"])
            .unwrap();
        until("both connections are made", TIMEOUT, || {
            let long = lines(&kubectl, pod, "/tmp/long").len();
            Ok(long > 2 && lines(&kubectl, pod, "/tmp/answers").len() > 2)
        })
        .unwrap();
    }
    let counts: Vec<usize> = all
        .iter()
        .map(|pod| lines(&kubectl, pod, "/tmp/answers").len())
        .collect();

    // The gateway that has to be replaced.
    let which = "jsonpath={range .items[*]}{.metadata.name} {.status.announcing}{\"\\n\"}{end}";
    let said = kubectl.run(&["get", "egressnode", "-o", which]).unwrap();
    let announcer = said.lines().find(|line| line.contains(EGRESS_ADDRESS));
    let announcer = announcer.and_then(|line| line.split(' ').next()).unwrap();

    // The control plane is stopped, including the controller.
    let began = Instant::now();
    cluster.stop_control_plane().unwrap();
    Process::of(controller.program().unwrap())
        .unwrap()
        .kill()
        .unwrap();
    drop(controller);
    until("a third of the time", TIMEOUT, || {
        more("traffic goes on", 50);
        Ok(began.elapsed() > AWAY / 3)
    })
    .unwrap();
    cluster.lab().kill(announcer, Hurt::Power).unwrap();
    until("the rest of the time", TIMEOUT, || {
        more("traffic goes on with one gateway", 50);
        Ok(began.elapsed() > AWAY)
    })
    .unwrap();
    for (agent, node) in agents.iter().zip(NODES) {
        assert!(
            node == announcer || agent.program().is_ok(),
            "{}",
            agent.log()
        );
    }

    // The control plane is back.
    let log = cluster.audit_log().unwrap();
    let before = std::fs::metadata(&log).unwrap().len();
    cluster.start_control_plane().unwrap();
    let left = NODES.into_iter().filter(|node| *node != announcer);
    let left: Vec<&str> = left.collect();
    let controller = start_on(&cluster, left[2], &["controller"]).unwrap();
    cluster.wait_ready(&left).unwrap();
    for (pod, before) in all.iter().zip(counts) {
        until("pods can be asked again", TIMEOUT, || {
            Ok(lines(&kubectl, pod, "/tmp/answers").len() > before)
        })
        .unwrap();
        let since = lines(&kubectl, pod, "/tmp/answers").split_off(before);
        assert!(since.len() > 60, "{} new connections", since.len());
        let wrong: Vec<&String> = since.iter().filter(|a| !is_right(a)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let ended = lines(&kubectl, pod, "/tmp/ended");
        assert!(ended.is_empty(), "the long connection ended");
        let long = lines(&kubectl, pod, "/tmp/long").len();
        until("the long connection goes on", TIMEOUT, || {
            Ok(lines(&kubectl, pod, "/tmp/long").len() > long + 5)
        })
        .unwrap();
    }
    // No packet with another source, and no storm: requests are counted until everything is known to be up to date.
    capture.stop().unwrap().clean().unwrap();
    kubectl.run(&["delete", "pod", &all[0]]).unwrap();
    let mut fresh = None;
    until("another pod runs", TIMEOUT, || {
        fresh = pods(&kubectl, "app=asker")
            .unwrap()
            .into_iter()
            .find(|pod| !all.contains(pod));
        let go = |pod: &String| kubectl.run(&["exec", pod, "--", "touch", "/tmp/go"]);
        Ok(fresh.as_ref().is_some_and(|pod| go(pod).is_ok()))
    })
    .unwrap();
    let fresh = fresh.unwrap();
    until("it leaves by the egress address", TIMEOUT, || {
        let answers = lines(&kubectl, &fresh, "/tmp/answers");
        Ok(answers.last().is_some_and(|a| is_right(a)))
    })
    .unwrap();
    let requests = requests_between(&log, before).unwrap();
    let ours = requests.iter().filter(|r| {
        let agent = r["userAgent"].as_str().unwrap_or_default();
        let lease = r["objectRef"]["resource"] == "leases";
        r["user"]["username"] == "admin" && !agent.starts_with("kubectl") && !lease
    });
    // Controller, and three running agents.
    let ours = ours.count();
    println!("{ours} requests after everything was back");
    assert!((20..REQUESTS_MAX * 4).contains(&ours), "{ours} requests");
    drop((controller, agents, server));
    drop(cluster);
}
