//! The lab itself: what it promises to the tests that stand on it. Needs root.

use egret_lab::capture::{Capture, Direction};
use egret_lab::layout::{CONTROL, Layout};
use egret_lab::process::{Process, wait_for};
use egret_lab::topology::{Cni, Forward, Link, Pod, Role, RpFilter, Segment};
use egret_lab::traffic::ping::{PingError, ping};
use egret_lab::traffic::server::ECHO_PORTS;
use egret_lab::traffic::{
    BusyFlows, IdleFlows, PingOptions, Server, UdpProbe, ping_source, source, tcp_source,
    udp_source,
};
use egret_lab::{Hurt, Lab, LabError, OwnedLab, Snapshot, Topology, UpOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);

/// A raw lab whose name says which process made it, so that parallel runs do not meet.
fn raw(test: &str, topology: &Topology) -> OwnedLab {
    let options = UpOptions {
        egret: PathBuf::from("egret"),
        agent_args: Vec::new(),
        agents: false,
        standing_server: false,
    };
    up(test, topology, &options)
}

fn name(test: &str) -> String {
    format!("t-{test}-{}", std::process::id())
}

fn up(test: &str, topology: &Topology, options: &UpOptions) -> OwnedLab {
    Lab::up(&name(test), topology, options).unwrap().owned()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn servers() -> [IpAddr; 2] {
    [ip("203.0.113.10"), ip("2001:db8:1::10")]
}

fn echo(server: IpAddr) -> SocketAddr {
    SocketAddr::new(server, ECHO_PORTS[1])
}

#[test]
fn pods_reach_the_server_with_their_nodes_address_over_all_protocols() {
    let lab = raw("source", &Topology::built_in());
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    for (n, pod) in ["a1", "b2", "other3"].into_iter().enumerate() {
        let place = lab.place(&format!("pod/default/{pod}")).unwrap();
        let worker = lab.layout().unwrap().hosts[n].clone();
        for (server, node) in servers().into_iter().zip(worker.node_addresses()) {
            assert_eq!(tcp_source(&place, echo(server)).unwrap().ip(), node);
            assert_eq!(udp_source(&place, echo(server)).unwrap().ip(), node);
            assert_eq!(ping_source(&place, server).unwrap(), node);
        }
    }
    let place = lab.place("pod/default/a1").unwrap();
    for bytes in [1400, 3000, 20000] {
        for server in servers() {
            let seen = source::udp_echo(&place, echo(server), bytes, DEADLINE).unwrap();
            assert!(
                lab.layout().unwrap().hosts[0]
                    .node_addresses()
                    .any(|node| node == seen.ip())
            );
        }
    }
}

#[test]
fn every_cni_flavour_masquerades_and_a_dropping_forward_policy_lets_pods_through() {
    let mut topology = Topology::built_in();
    let flavours = [Cni::IptablesNft, Cni::IptablesLegacy, Cni::Nft];
    for (host, cni) in topology.hosts.iter_mut().zip(flavours) {
        host.cni = cni;
        host.forward = Forward::Drop;
        host.rp_filter = RpFilter::Strict;
        host.src_valid_mark = true;
    }
    let lab = raw("cni", &topology);
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    for n in 1..=3 {
        let place = lab.place(&format!("pod/default/a{n}")).unwrap();
        let node = format!("192.168.122.1{n}");
        assert_eq!(
            tcp_source(&place, echo(servers()[0])).unwrap().ip(),
            ip(&node)
        );
        let node = format!("fd00:122::1{n}");
        assert_eq!(
            udp_source(&place, echo(servers()[1])).unwrap().ip(),
            ip(&node)
        );
        // Between pods nothing is translated.
        let other = lab.place(&format!("pod/default/b{}", n % 3 + 1)).unwrap();
        let _listener = Server::start(&other).unwrap();
        let layout = lab.layout().unwrap();
        let (_, pod) = layout.pod("default", &format!("b{}", n % 3 + 1)).unwrap();
        let (_, from) = layout.pod("default", &format!("a{n}")).unwrap();
        for (target, own) in pod.addresses.iter().zip(&from.addresses) {
            assert_eq!(tcp_source(&place, echo(*target)).unwrap().ip(), *own);
        }
    }
}

#[test]
fn without_masquerade_the_pods_own_address_is_captured_at_the_router() {
    let mut topology = Topology::built_in();
    topology.hosts[0].cni = Cni::None;
    let lab = raw("capture", &topology);
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let router = lab.place("router").unwrap();
    let pod_net: ipnet::IpNet = "10.244.1.0/24".parse().unwrap();
    let wrong = move |packet: &egret_lab::capture::Packet| pod_net.contains(&packet.source);
    let capture = Capture::start(&router, "eth0", wrong).unwrap();
    let masked = lab.place("pod/default/a2").unwrap();
    tcp_source(&masked, echo(servers()[0])).unwrap();
    assert_eq!(capture.so_far().clean(), Ok(()));
    let bare = lab.place("pod/default/a1").unwrap();
    let options = PingOptions {
        timeout: Duration::from_millis(200),
        ..PingOptions::default()
    };
    ping(&bare, servers()[0], &options).unwrap_err();
    let report = capture.stop().unwrap();
    assert_eq!(report.dropped, 0);
    assert!(report.offending_count >= 1, "{report:?}");
    assert_eq!(report.offending[0].source, ip("10.244.1.10"));
    assert!(report.clean().unwrap_err().contains("10.244.1.10"));
    assert!(
        report.from_source(ip("192.168.122.12"), Direction::In) >= 3,
        "{report:?}"
    );
}

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
    // Packets may wait for the answer of ARP rather than be lost, so only the silence is certain.
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
fn flows_report_when_they_break() {
    let lab = raw("broken", &Topology::built_in());
    let server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = lab.place("pod/default/a1").unwrap();
    let idle = IdleFlows::start(&pod, echo(servers()[0]), 3).unwrap();
    let busy = BusyFlows::start(&pod, servers()[0], 1, 1).unwrap();
    let probe = UdpProbe::start(&pod, echo(servers()[0])).unwrap();
    drop(server);
    let idle = idle.stop();
    assert_eq!(idle.broken.len(), 3, "{idle:?}");
    // The transfers see the end at their next read or write.
    wait_for("a moment", DEADLINE, || probe_is_refused(&pod)).unwrap();
    let probe = probe.stop();
    assert!(!probe.errors.is_empty(), "{probe:?}");
    drop(busy);
    assert!(UdpProbe::start(&pod, echo(servers()[0])).is_err());
    assert!(IdleFlows::start(&pod, echo(servers()[0]), 1).is_err());
}

fn probe_is_refused(pod: &egret_lab::Place) -> bool {
    udp_source(pod, echo(servers()[0]))
        .is_err_and(|error| error.kind() == Some(std::io::ErrorKind::ConnectionRefused))
}

#[test]
fn a_short_link_behind_the_router_is_reported_to_the_pod() {
    let mut topology = Topology::built_in();
    let router = topology
        .hosts
        .iter_mut()
        .find(|host| host.has(Role::Router))
        .unwrap();
    router.links = vec![Link {
        mtu: Some(1300),
        ..Link::to("outside")
    }];
    let lab = raw("mtu", &topology);
    let pod = lab.place("pod/default/a1").unwrap();
    let options = PingOptions {
        payload_bytes: 1400,
        ..PingOptions::default()
    };
    match ping(&pod, servers()[0], &options) {
        Err(PingError::Icmp {
            kind: 3,
            code: 4,
            rest: 1300,
            ..
        }) => {}
        other => panic!("no fragmentation needed: {other:?}"),
    }
    match ping(&pod, servers()[1], &options) {
        Err(PingError::Icmp {
            kind: 2,
            code: 0,
            rest: 1300,
            ..
        }) => {}
        other => panic!("no packet too big: {other:?}"),
    }
}

#[test]
fn one_host_with_both_roles_and_a_second_external_link_work() {
    let mut topology = Topology::built_in();
    topology
        .hosts
        .retain(|host| !host.name.ends_with(['2', '3']) && host.name != "gateway1");
    topology.segments.push(Segment {
        name: "edge".to_owned(),
        cidrs: vec![
            "198.51.100.0/24".parse().unwrap(),
            "2001:db8:2::/64".parse().unwrap(),
        ],
        mld_snooping: true,
    });
    let node = &mut topology.hosts[0];
    node.roles = vec![Role::Worker, Role::Gateway];
    node.links.push(Link {
        external: true,
        ..Link::to("edge")
    });
    node.pods.push(Pod {
        name: "b".to_owned(),
        namespace: "second".to_owned(),
        labels: Default::default(),
    });
    let lab = raw("single", &topology);
    let _server = Server::start(&lab.place("server").unwrap()).unwrap();
    let pod = lab.place("pod/second/b").unwrap();
    assert_eq!(
        tcp_source(&pod, echo(servers()[0])).unwrap().ip(),
        ip("198.51.100.11")
    );
    assert_eq!(
        ping_source(&pod, servers()[1]).unwrap(),
        ip("2001:db8:2::11")
    );
}

/// A stand-in for `egret` that stays, says how it was started and leaves things behind when asked.
fn stand_in() -> (PathBuf, tempdir::Folder) {
    let folder = tempdir::Folder::new();
    let path = folder.0.join("egret");
    std::fs::write(&path, "#!/bin/sh\necho \"$@\"\nexec sleep infinity\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (path, folder)
}

mod tempdir {
    pub struct Folder(pub std::path::PathBuf);
    impl Folder {
        pub fn new() -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("egret-lab-it-{}-{n}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }
    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }
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
    let expected = format!("agent --node gateway2 --source {source} --extra\n");
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

    lab.kill("worker3", Hurt::Power).unwrap();
    assert!(agent_is(2, "none"));
    lab.start("worker3").unwrap();
    assert!(agent_is(2, "running"));
    // No zombie of the killed ones stays in their hosts.
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
fn a_snapshot_names_everything_that_is_left_behind() {
    let lab = raw("snapshot", &Topology::built_in());
    let worker = lab.place("worker1").unwrap();
    let run = |script: &str| {
        let output = lab
            .exec(&worker, "sh")
            .unwrap()
            .args(["-c", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let before = Snapshot::take(&worker).unwrap();
    assert!(before.diff(&Snapshot::take(&worker).unwrap()).is_empty());
    run("ip rule add fwmark 1 lookup 100 && ip route add 192.0.2.0/24 dev eth0 table 100 && ip -6 rule add fwmark 1 lookup 100
        ip addr add 192.0.2.1/32 dev lo && ip link add left type bridge && ip nexthop add id 5 dev eth0
        ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent && ip neigh add proxy 192.0.2.8 dev eth0
        nft add table inet left && sysctl -qw net.ipv4.fib_multipath_hash_policy=1
        tc qdisc add dev eth0 clsact && ip maddr add 33:33:ff:00:00:77 dev eth0
        iptables-legacy -A INPUT -s 192.0.2.7 -j DROP
        bpftool map create /sys/fs/bpf/left type array key 4 value 4 entries 1 name left; touch /run/left");
    let diff = before.diff(&Snapshot::take(&worker).unwrap());
    for section in [
        "rules 4",
        "rules 6",
        "routes 4",
        "addresses",
        "links",
        "nexthops",
        "neighbours 4",
        "neighbour proxies",
        "nft",
        "sysctl",
        "traffic control",
        "multicast",
        "iptables-legacy",
        "bpf pins",
        "files",
    ] {
        let start = format!("+ {section}: ");
        assert!(
            diff.iter().any(|line| line.starts_with(&start)),
            "{section} in\n{}",
            diff.join("\n")
        );
    }
}

/// What must be the same before and after: devices, mounts, namespaces and our processes in the root.
fn root_state(lab: &str) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let mut state: Vec<String> = read("/proc/self/mounts")
        .lines()
        .map(str::to_owned)
        .collect();
    let counters = |line: &str| line.split(':').next().unwrap_or_default().trim().to_owned();
    state.extend(read("/proc/net/dev").lines().map(counters));
    for table in [
        "/proc/net/fib_trie",
        "/proc/net/ipv6_route",
        "/proc/net/if_inet6",
    ] {
        state.extend(read(table).lines().map(str::to_owned));
    }
    for folder in [
        "/run",
        "/run/egret-lab",
        "/run/netns",
        "/var/lib",
        "/sys/fs/bpf",
    ] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.path().display().to_string());
        // Labs of other tests come and go at the same time.
        let ours = names.filter(|name| !name.contains("egret-lab") || name.contains(lab));
        state.extend(ours);
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment)
            .contains(&format!("EGRET_LAB=/run/egret-lab/{lab}\0"))
        {
            state.push(format!("process {}", entry.path().display()));
        }
    }
    state
}

#[test]
fn down_leaves_the_root_namespace_as_it_was() {
    let before = root_state(&name("down"));
    let lab = raw("down", &Topology::built_in());
    let init = lab.place("worker1").unwrap().netns_path().unwrap();
    assert!(init.exists());
    assert!(matches!(
        Lab::up(lab.name(), &Topology::built_in(), &options_without_agents()),
        Err(LabError::IsUp(_))
    ));
    Lab::down(lab.name()).unwrap();
    assert_eq!(root_state(lab.name()), before);
    assert!(matches!(Lab::down(lab.name()), Err(LabError::NotUp(_))));
    assert!(matches!(lab.status(), Err(LabError::NotUp(_))));
}

fn options_without_agents() -> UpOptions {
    UpOptions {
        egret: PathBuf::from("egret"),
        agent_args: Vec::new(),
        agents: false,
        standing_server: false,
    }
}

#[test]
fn down_cleans_up_after_everything_was_killed() {
    let before = root_state(&name("crash"));
    let (egret, folder) = stand_in();
    let options = UpOptions {
        egret,
        agents: true,
        ..options_without_agents()
    };
    let lab = up("crash", &Topology::built_in(), &options);
    let state = std::fs::read_to_string(lab.dir().path().join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    for host in state["hosts"].as_object().unwrap().values() {
        let process: Process = serde_json::from_value(host["init"].clone()).unwrap();
        process.kill().unwrap();
    }
    Lab::down(lab.name()).unwrap();
    drop(folder);
    assert_eq!(root_state(lab.name()), before);
}

#[test]
fn down_finds_processes_that_the_state_does_not_name() {
    let before = root_state(&name("lost"));
    let lab = raw("lost", &Topology::built_in());
    // As if the start had crashed before it wrote its state.
    std::fs::remove_file(lab.dir().path().join("state.json")).unwrap();
    Lab::down(lab.name()).unwrap();
    assert_eq!(root_state(lab.name()), before);
}

#[test]
fn a_failed_start_leaves_nothing() {
    let before = root_state(&name("fail"));
    let options = UpOptions {
        egret: PathBuf::from("/nowhere/egret"),
        agents: true,
        ..options_without_agents()
    };
    let error = Lab::up(&name("fail"), &Topology::built_in(), &options).unwrap_err();
    assert!(error.to_string().contains("/nowhere/egret"), "{error}");
    let options = UpOptions {
        egret: PathBuf::from("/bin/false"),
        ..options
    };
    // An agent that ends at once is the agent's failure; the lab is there to be looked at.
    drop(Lab::up(&name("fail"), &Topology::built_in(), &options).map(Lab::owned));
    assert_eq!(root_state(&name("fail")), before);
}

#[test]
fn two_labs_with_the_same_addresses_do_not_meet() {
    let (one, two) = (
        raw("one", &Topology::built_in()),
        raw("two", &Topology::built_in()),
    );
    let _server = Server::start(&one.place("server").unwrap()).unwrap();
    let target = echo(servers()[0]);
    assert!(tcp_source(&one.place("pod/default/a1").unwrap(), target).is_ok());
    assert!(tcp_source(&two.place("pod/default/a1").unwrap(), target).is_err());
    assert_eq!(one.layout().unwrap(), Layout::of(&Topology::built_in()));
}
