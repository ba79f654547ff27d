//! The lab leaves nothing behind, and detects leftovers of others. Needs root.

#[path = "fixture/raw_lab.rs"]
mod fixture;

use egret_lab::process::Process;
use egret_lab::{Lab, LabError, Snapshot, Topology, UpOptions};
use fixture::*;
use std::path::PathBuf;

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

/// State that must be the same before and after: devices, mounts, namespaces and our processes in the root.
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
        // Labs of other tests start and end concurrently.
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
    // An agent that ends at once is the agent's failure; the lab stays for inspection.
    drop(Lab::up(&name("fail"), &Topology::built_in(), &options).map(Lab::owned));
    assert_eq!(root_state(&name("fail")), before);
}
