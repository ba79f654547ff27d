//! How pods' packets leave a node, derived from what the kernel shows.

use crate::scene::*;
use egret_core::node::{CniPath, NodeOutcome, PathFacts, PodForwarding, UplinkRoute, Verdict};
use std::collections::BTreeSet;

fn route(device: &str, to: &str) -> UplinkRoute {
    UplinkRoute {
        device: device.into(),
        ethernet: device != "tun0",
        to: to.parse().unwrap(),
    }
}

fn names(devices: &[&str]) -> BTreeSet<String> {
    devices.iter().map(|name| (*name).to_owned()).collect()
}

/// A node with two uplinks, the pod's device and a bridge for other pods.
fn plain() -> PathFacts {
    let routes = [
        ("eth0", "0.0.0.0/0"),
        ("eth0", "192.168.122.0/24"),
        ("eth1", "198.51.100.0/24"),
        ("veth1", "10.244.1.10/32"),
        ("veth1", "fe80::/64"),
        ("cni0", "10.244.1.0/24"),
    ];
    PathFacts {
        routes: routes.map(|(device, to)| route(device, to)).into(),
        delivered: [Some("veth1".to_owned())].into(),
        ..PathFacts::default()
    }
}

fn outcome(path: PathFacts) -> NodeOutcome {
    let mut scene = kep_scene();
    scene.settle();
    scene.facts.entry(node_name("worker1")).or_default().path = path;
    scene.outcome("worker1")
}

fn programmed(outcome: &NodeOutcome) -> u32 {
    outcome.programmed.iter().map(|one| one.pods).sum()
}

fn is_refused(outcome: &NodeOutcome, because: &str) {
    let PodForwarding::Unsupported(text) = &outcome.pod_forwarding else {
        panic!("{because}: {:?}", outcome.pod_forwarding);
    };
    assert!(text.contains(because), "{text}");
    let worker = &outcome.state.worker;
    assert!(worker.reinject.is_empty());
    assert!(worker.keep_uplinks, "what is attached drops what it sees");
    assert!(!outcome.programmed.is_empty(), "a policy is reported");
    assert_eq!(programmed(outcome), 0);
    let boxes: Vec<_> = worker.profiles.values().flat_map(|p| &p.ranges).collect();
    assert!(!boxes.is_empty());
    assert!(boxes.iter().all(|b| b.verdict == Verdict::Unavailable));
}

#[test]
fn without_programs_at_pods_devices_packets_pass_the_stack() {
    for path in [
        PathFacts::default(),
        plain(),
        // Programs at the uplinks alone redirect no pod's packets.
        PathFacts {
            programs: names(&["eth0", "eth1"]),
            express: names(&["eth0"]),
            ..plain()
        },
        // Unneeded programs are no problem.
        PathFacts {
            refused: Some("no".into()),
            ..plain()
        },
    ] {
        let outcome = outcome(path);
        assert_eq!(outcome.pod_forwarding, PodForwarding::Netfilter);
        let worker = &outcome.state.worker;
        assert!(worker.reinject.is_empty() && !worker.keep_uplinks);
        assert!(programmed(&outcome) > 0);
    }
}

#[test]
fn a_program_at_any_other_device_has_all_uplinks_watched() {
    for device in ["veth1", "cni0", "unknown"] {
        let outcome = outcome(PathFacts {
            programs: names(&[device, "eth0"]),
            ..plain()
        });
        assert_eq!(outcome.pod_forwarding, PodForwarding::Bpf, "{device}");
        assert_eq!(outcome.state.worker.reinject, names(&["eth0", "eth1"]));
        assert!(programmed(&outcome) > 0);
    }
}

#[test]
fn what_the_agent_was_told_overrules_what_it_sees() {
    let told = |choice, programs: &[&str]| PathFacts {
        choice,
        programs: names(programs),
        ..plain()
    };
    let forced = outcome(told(CniPath::Bpf, &[]));
    assert_eq!(forced.pod_forwarding, PodForwarding::Bpf);
    assert_eq!(forced.state.worker.reinject, names(&["eth0", "eth1"]));
    let calm = outcome(PathFacts {
        express: names(&["veth1"]),
        ..told(CniPath::Netfilter, &["veth1"])
    });
    assert_eq!(calm.pod_forwarding, PodForwarding::Netfilter);
    assert!(calm.state.worker.reinject.is_empty());
}

#[test]
fn a_way_that_cannot_be_followed_is_refused_as_a_whole() {
    let express = PathFacts {
        express: names(&["veth1"]),
        ..plain()
    };
    is_refused(&outcome(express), "XDP");
    let switched = PathFacts {
        switched: names(&["eth0", "pod7"]),
        ..plain()
    };
    is_refused(&outcome(switched), "Open vSwitch");
    let bpf = PathFacts {
        programs: names(&["veth1"]),
        ..plain()
    };
    let refused = PathFacts {
        refused: Some("no BPF file system".into()),
        ..bpf.clone()
    };
    is_refused(&outcome(refused), "no BPF file system");
    let mut headless = bpf;
    headless.routes.insert(route("tun0", "203.0.113.0/24"));
    is_refused(&outcome(headless), "tun0");
    for away in [Some("eth0".to_owned()), None] {
        let apart = PathFacts {
            delivered: [away].into(),
            ..plain()
        };
        is_refused(&outcome(apart), "SR-IOV");
    }
}

#[test]
fn what_concerns_no_selected_destination_or_not_every_pod_refuses_nothing() {
    let mut path = PathFacts {
        programs: names(&["veth1"]),
        // A switch without an uplink sends through the stack.
        switched: names(&["pod7", "pod8"]),
        ..plain()
    };
    // Somebody else's tunnel, inside the cluster.
    path.routes.insert(route("tun0", "10.244.2.0/24"));
    path.delivered.insert(Some("eth0".to_owned()));
    let outcome = outcome(path);
    assert_eq!(outcome.pod_forwarding, PodForwarding::Bpf);
    assert_eq!(outcome.state.worker.reinject, names(&["eth0", "eth1"]));
}
