//! Hosts can be entered, killed and started again. Needs root.

#[path = "fixture/raw_lab.rs"]
mod fixture;

use egret_lab::layout::CONTROL;
use egret_lab::process::wait_for;
use egret_lab::topology::Pod;
use egret_lab::traffic::ping::ping;
use egret_lab::traffic::{
    BusyFlows, IdleFlows, PingOptions, Server, UdpProbe, ping_source, tcp_source,
};
use egret_lab::{Hurt, LabError, Snapshot, Topology, UpOptions};
use fixture::*;
use std::time::Duration;

#[test]
fn a_host_that_loses_power_comes_back_as_the_same_machine() {
    let lab = raw("power", &Topology::built_in());
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = lab.place("pod/default/a1").unwrap();
    let worker = lab.place("worker1").unwrap();
    let before = Snapshot::take(&worker).unwrap();
    lab.kill("worker1", Hurt::Power).unwrap();
    lab.kill("worker1", Hurt::Power).unwrap();
    assert!(matches!(pod.run(|| ()), Err(LabError::Off(host)) if host == "worker1"));
    assert!(!lab.status().unwrap()[0].on);
    lab.start("worker1").unwrap();
    assert_eq!(
        before.diff(&Snapshot::take(&worker).unwrap()),
        Vec::<String>::new()
    );
    assert_eq!(
        tcp_source(&pod, echo(servers()[0])).unwrap().ip(),
        ip("192.168.122.11")
    );
}

#[test]
fn power_off_silences_a_host_even_while_a_test_holds_its_namespace() {
    let lab = raw("silence", &Topology::built_in());
    let gateway = lab.place("gateway1").unwrap();
    // The server's threads keep the namespace of the dead host alive.
    let _held = Server::start(&gateway).unwrap();
    let worker = lab.place("worker1").unwrap();
    tcp_source(&worker, echo(ip("192.168.122.21"))).unwrap();
    lab.kill("gateway1", Hurt::Power).unwrap();
    let options = PingOptions {
        timeout: Duration::from_millis(200),
        ..PingOptions::default()
    };
    ping(&worker, ip("192.168.122.21"), &options).unwrap_err();
}

#[test]
fn pulled_cables_break_traffic_until_they_are_plugged_in_again() {
    let lab = raw("links", &Topology::built_in());
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = lab.place("pod/default/a1").unwrap();
    let flows = IdleFlows::start(&pod, echo(servers()[0]), 5).unwrap();
    let busy = BusyFlows::start(&pod, servers()[1], 2, 2).unwrap();
    let probe = UdpProbe::start(&pod, echo(servers()[0])).unwrap();
    lab.kill("worker1", Hurt::Links).unwrap();
    assert!(!lab.status().unwrap()[0].carrier);
    let options = PingOptions {
        timeout: Duration::from_millis(100),
        ..PingOptions::default()
    };
    ping(&pod, servers()[0], &options).unwrap_err();
    lab.start("worker1").unwrap();
    wait_for("the pod to reach the server again", DEADLINE, || {
        ping(&pod, servers()[0], &options).is_ok()
    })
    .unwrap();
    let sofar = busy.bytes();
    wait_for("transfers to go on", DEADLINE, || {
        busy.bytes() > sofar + 100_000
    })
    .unwrap();
    let probe = probe.stop();
    // Packets may wait for the answer of ARP and not be lost, so only the gap is certain.
    assert!(probe.longest_gap > Duration::from_millis(50), "{probe:?}");
    assert_eq!(probe.source_ips(), [ip("192.168.122.11")].into());
    assert_eq!(probe.duplicates, 0);
    let idle = flows.stop();
    assert_eq!(
        (idle.flows, idle.broken.clone()),
        (5, Vec::new()),
        "{idle:?}"
    );
    let busy = busy.stop();
    assert_eq!(
        (busy.flows, busy.broken.clone()),
        (4, Vec::new()),
        "{busy:?}"
    );
    assert!(busy.uploaded > 0 && busy.downloaded > 0, "{busy:?}");
    assert!(busy.longest_stall > Duration::from_millis(50), "{busy:?}");
}

#[test]
fn agents_run_on_every_node_and_can_be_killed_frozen_and_started() {
    let (egret, _folder) = stand_in();
    let options = UpOptions {
        egret,
        agent_args: vec!["--extra".to_owned()],
        agents: true,
        standing_server: false,
    };
    let lab = up("agents", &Topology::built_in(), &options);
    let log = |host: &str| {
        std::fs::read_to_string(lab.dir().log().join(format!("{host}.log"))).unwrap_or_default()
    };
    let source = format!("dir:{}", lab.dir().objects().display());
    let expected =
        format!("agent --node gateway2 --source {source} --unpooled-addresses Allow --extra\n");
    wait_for("the agent's log", DEADLINE, || log("gateway2") == expected).unwrap();
    let expected = format!("controller --source {source} --unpooled-addresses Allow\n");
    wait_for("the controller's log", DEADLINE, || {
        log(CONTROL) == expected
    })
    .unwrap();
    assert!(lab.controller().unwrap().is_some());
    assert!(matches!(
        lab.kill("router", Hurt::Agent),
        Err(LabError::NoAgent(_))
    ));

    let agent_is = |host: usize, state: &str| lab.status().unwrap()[host].agent == state;
    let first = lab.agent("worker1").unwrap().unwrap();
    lab.kill("worker1", Hurt::Agent).unwrap();
    assert!(agent_is(0, "dead") && lab.agent("worker1").unwrap().is_none());
    lab.start("worker1").unwrap();
    assert!(agent_is(0, "running"));
    assert_ne!(lab.agent("worker1").unwrap().unwrap(), first);

    let frozen = lab.agent("worker2").unwrap().unwrap();
    lab.kill("worker2", Hurt::Freeze).unwrap();
    wait_for("the agent to freeze", DEADLINE, || agent_is(1, "frozen")).unwrap();
    lab.start("worker2").unwrap();
    wait_for("the agent to go on", DEADLINE, || agent_is(1, "running")).unwrap();
    assert_eq!(lab.agent("worker2").unwrap().unwrap(), frozen);
    // Its host loses power, whether it runs again or is frozen: its launcher outside may be frozen as well.
    lab.kill("worker2", Hurt::Power).unwrap();
    lab.start("worker2").unwrap();
    lab.kill("worker2", Hurt::Freeze).unwrap();
    lab.kill("worker2", Hurt::Power).unwrap();
    lab.start("worker2").unwrap();

    lab.kill("worker3", Hurt::Power).unwrap();
    assert!(agent_is(2, "none"));
    lab.start("worker3").unwrap();
    assert!(agent_is(2, "running"));
    // The killed ones left no zombie in their hosts.
    let ps = lab
        .exec(&lab.place("worker1").unwrap(), "ps")
        .unwrap()
        .args(["-e"])
        .output()
        .unwrap();
    let ps = String::from_utf8(ps.stdout).unwrap();
    assert!(!ps.contains("defunct"), "{ps}");
}

#[test]
fn a_program_runs_inside_hosts_and_pods_and_sees_only_their_world() {
    let lab = raw("exec", &Topology::built_in());
    let run = |place: &str, script: &str| {
        let place = lab.place(place).unwrap();
        let output = lab
            .exec(&place, "sh")
            .unwrap()
            .args(["-c", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run("worker2", "hostname").trim(), "worker2");
    assert!(run("pod/default/a3", "ip addr").contains("10.244.3.10/32"));
    let objects = run("worker1", &format!("ls {}", lab.dir().objects().display()));
    assert!(objects.contains("node.gateway3.yaml"), "{objects}");
    assert_eq!(
        run("worker1", "ls /sys/class/net")
            .split_whitespace()
            .count(),
        5
    );
    run(
        "worker1",
        "touch /var/lib/egret/mine /run/mine && bpftool map create /sys/fs/bpf/mine type array key 4 value 4 entries 1 name mine",
    );
    assert!(!run("worker2", "ls /var/lib/egret /run /sys/fs/bpf").contains("mine"));
    let error = lab.place("nobody").unwrap_err().to_string();
    assert!(
        error.contains("nobody") && error.contains("gateway1"),
        "{error}"
    );
    assert!(lab.place("pod/default/nobody").is_err());
}
#[test]
fn a_pod_that_comes_later_is_described_and_reachable() {
    let lab = raw("later", &Topology::built_in());
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = Pod {
        name: "late".to_owned(),
        namespace: "default".to_owned(),
        labels: [("app".to_owned(), "MyApp".to_owned())].into(),
        number: None,
    };
    let place = lab.add_pod("worker2", pod.clone()).unwrap();
    assert_eq!(
        tcp_source(&place, echo(servers()[0])).unwrap().ip(),
        ip("192.168.122.12")
    );
    let file = lab.dir().objects().join("pod.default.late.yaml");
    assert!(
        std::fs::read_to_string(file)
            .unwrap()
            .contains("10.244.2.13")
    );
    assert!(
        lab.add_pod("worker1", pod).is_err(),
        "a second pod of this name"
    );
    lab.kill("worker2", Hurt::Power).unwrap();
    lab.start("worker2").unwrap();
    assert_eq!(
        ping_source(&place, servers()[1]).unwrap(),
        ip("fd00:122::12")
    );
}

#[test]
fn the_controller_is_killed_and_started_like_an_agent() {
    let (egret, _folder) = stand_in();
    let options = UpOptions {
        egret,
        agents: true,
        ..options_without_agents()
    };
    let lab = up("controller", &Topology::built_in(), &options);
    lab.kill(CONTROL, Hurt::Agent).unwrap();
    assert!(lab.controller().unwrap().is_none());
    lab.start(CONTROL).unwrap();
    assert!(lab.controller().unwrap().is_some());
    assert!(matches!(
        lab.kill(CONTROL, Hurt::Power),
        Err(LabError::NotControl)
    ));
}
