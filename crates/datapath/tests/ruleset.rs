//! The worker's ruleset in a real kernel, compared with the `nft` program's listing.

#[path = "ruleset/damage.rs"]
mod damage;
#[path = "ruleset/tunnel.rs"]
mod tunnel;

use egret_core::model::{PortRange, Protocol, Quotas};
use egret_core::node::*;
use egret_datapath::requirements::TABLE_OWNERS;
use egret_datapath::worker;
use egret_kernel::nft::{Count, Nftables};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs `f` on a thread of its own in a new network namespace, which ends with the thread.
fn in_new_namespace<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            f()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run(command: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn state() -> NodeState {
    let (v4, v6) = (TargetId(1), TargetId(2));
    let profile = Profile {
        ranges: vec![
            DestinationRange {
                first: ip("198.51.100.0"),
                last: ip("198.51.100.127"),
                protocol: Some(Protocol::Tcp),
                port_first: 443,
                port_last: 500,
                verdict: Verdict::Target(v4),
            },
            DestinationRange {
                first: ip("203.0.113.0"),
                last: ip("203.0.113.255"),
                protocol: None,
                port_first: 0,
                port_last: 65535,
                verdict: Verdict::Target(v4),
            },
            DestinationRange {
                first: ip("2001:db8::"),
                last: ip("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
                protocol: None,
                port_first: 0,
                port_last: 65535,
                verdict: Verdict::Target(v6),
            },
        ],
        portless: vec![(ip("203.0.113.0"), ip("203.0.113.255"))],
    };
    let ranges = vec![
        PortRange {
            first: 1024,
            last: 1279,
        },
        PortRange {
            first: 4096,
            last: 4351,
        },
    ];
    NodeState {
        tunnel: Tunnel {
            devices: BTreeSet::from(["eth0".to_owned(), "eth1".to_owned()]),
            ..Tunnel::new(1, ip("192.168.122.11"), 1450)
        },
        peers: BTreeMap::from([(
            7,
            Peer {
                gateway: true,
                ..Peer::new("gateway1", ip("192.168.122.21"))
            },
        )]),
        node_addresses: BTreeSet::from([
            ip("192.168.122.11"),
            ip("192.168.122.21"),
            ip("fd00:122::11"),
        ]),
        worker: WorkerState {
            never: ["10.244.0.0/16", "127.0.0.0/8", "fe80::/10"]
                .iter()
                .map(|net| net.parse().expect("a prefix"))
                .collect(),
            throw: BTreeSet::from(["10.244.1.0/24".parse().expect("a prefix")]),
            canary: Some(CanaryState {
                end_here: BTreeSet::new(),
                device: 1,
                sources: BTreeSet::from([ip("10.244.1.0")]),
            }),
            namespaces: BTreeMap::from([(ip("10.244.1.5"), NamespaceId(7))]),
            flow_ports: None,
            unknown: Some(UnknownPods {
                cidrs: BTreeSet::from(["10.244.1.0/24".parse().expect("a prefix")]),
                known: BTreeSet::from([ip("10.244.1.5"), ip("10.244.1.9")]),
            }),
            next_hops: BTreeMap::new(),
            groups: BTreeMap::from([(1, Group::Tunnel(BTreeSet::from([7])))]),
            targets: BTreeMap::from([
                (
                    v4,
                    Target {
                        address: ip("192.168.122.222"),
                        group: 1,
                        ranges: ranges.clone(),
                        traffic_key: TrafficKeyId(0xa),
                        quotas: Quotas {
                            pod: NonZeroU32::new(100),
                            namespace: NonZeroU32::new(250),
                        },
                    },
                ),
                (
                    v6,
                    Target {
                        address: ip("fd00:122::222"),
                        group: 1,
                        ranges,
                        traffic_key: TrafficKeyId(0xb),
                        quotas: Default::default(),
                    },
                ),
            ]),
            profiles: BTreeMap::from([(ProfileId(9), profile)]),
            pods: [
                (ip("10.244.1.5"), ProfileId(9)),
                (ip("fd00:244:1::5"), ProfileId(9)),
            ]
            .into_iter()
            .collect(),
            devices: BTreeMap::from([(ip("10.244.1.5"), 5), (ip("fd00:244:1::5"), 5)]),
            egress_addresses: BTreeSet::from([ip("192.168.122.222"), ip("fd00:122::222")]),
            keep_uplinks: false,
            reinject: BTreeSet::new(),
        },
        gateway: None,
    }
}

#[test]
fn the_kernel_holds_the_ruleset_that_the_golden_file_shows() {
    let listed = in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state())).expect("apply");
        assert!(nft.is_intact().expect("verify"));
        let listed = run("nft list table inet egret");
        // The first line names this test program; newer kernels have a line of owner flags and an empty one after it.
        let lines = listed.lines().skip(1);
        let lines =
            lines.skip_while(|line| line.is_empty() || line.trim_start().starts_with("flags "));
        let lines = std::iter::once("").chain(lines);
        lines.map(|line| format!("{line}\n")).collect::<String>()
    });
    expect_test::expect_file!["golden/worker.nft"].assert_eq(&listed);
}

#[test]
fn whether_the_kernel_counts_connections_is_tried_without_a_trace() {
    let counts = in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open");
        let counts = nft.counts_connections().expect("tried");
        assert_eq!(run("nft list ruleset"), "");
        counts
    });
    assert!(counts, "the lab's kernel does");
}

/// State of a worker, or of a gateway that is attached to one of two routers itself.
fn with_next_hops(attached: bool) -> NodeState {
    let mut state = state();
    let here = Attachment {
        device: "vlan100".into(),
        index: 4,
        source: ip("10.9.0.21"),
    };
    let tunnel = NextHopRoute::Tunnel([7].into());
    let next_hop = |address, network_identifier, route| NextHop {
        address: ip(address),
        network_identifier,
        route,
    };
    let near = match attached {
        true => NextHopRoute::Attached(here),
        false => tunnel.clone(),
    };
    state.worker.next_hops = BTreeMap::from([
        (2, next_hop("10.9.0.1", 0x80_0001, near)),
        (3, next_hop("fd00:9::1", 0x80_0002, tunnel)),
        (4, next_hop("10.66.0.1", 0x80_0003, NextHopRoute::Nowhere)),
    ]);
    let profile = state.worker.profiles.get_mut(&ProfileId(9));
    let boxes = &mut profile.expect("there").ranges;
    boxes[1].verdict = Verdict::NextHop(2);
    boxes[2].verdict = Verdict::NextHop(3);
    if attached {
        state.gateway = Some(GatewayState {
            external_device: "eth0".into(),
            addresses: BTreeMap::new(),
            workers: BTreeMap::new(),
            next_hops: BTreeMap::from([(0x80_0001, 2)]),
            peers: GatewayPeers::default(),
            version: 1,
        });
    }
    state
}

#[test]
fn the_kernel_holds_the_rules_of_next_hops_that_the_golden_files_show() {
    let listed = |attached| {
        in_new_namespace(|| {
            let mut nft = Nftables::open("egret").expect("open");
            nft.apply(&worker::table(&with_next_hops(attached)))
                .expect("apply");
            assert!(nft.is_intact().expect("verify"));
            // The other golden file has the rest.
            let chain = |name: &str| run(&format!("nft list chain inet egret {name}"));
            let mut names = vec!["from_tunnel", "nat", "guard"];
            names.extend([
                "classify_next_hop_2",
                "nat_next_hop_2",
                "guard_next_hop_2",
                "classify_next_hop_3",
                "nat_next_hop_3",
                "guard_next_hop_3",
                "nat_next_hop_4",
                "guard_next_hop_4",
            ]);
            names.extend(attached.then_some("guard_from_tunnel"));
            let lines = |text: String| {
                let lines = text.lines().map(str::to_owned).collect::<Vec<_>>();
                let ours = lines.iter().filter(|l| l.starts_with('\t'));
                ours.map(|line| format!("{line}\n")).collect::<String>()
            };
            names
                .into_iter()
                .map(|name| lines(chain(name)))
                .collect::<String>()
        })
    };
    expect_test::expect_file!["golden/next_hops_worker.nft"].assert_eq(&listed(false));
    expect_test::expect_file!["golden/next_hops_gateway.nft"].assert_eq(&listed(true));
}

#[test]
fn a_change_ends_where_a_fresh_start_would() {
    let mut changed = state();
    changed.worker.pods.remove(&ip("fd00:244:1::5"));
    changed.worker.pods.insert(ip("10.244.1.6"), ProfileId(9));
    let profile = changed
        .worker
        .profiles
        .get_mut(&ProfileId(9))
        .expect("there");
    profile.ranges[0].port_last = 600;
    profile.portless.clear();
    changed
        .worker
        .targets
        .get_mut(&TargetId(1))
        .expect("there")
        .ranges
        .pop();
    let fresh = in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&changed)).expect("apply");
        run("nft list table inet egret")
    });
    let edited = in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open");
        let mut without = changed.clone();
        without.worker.pods.clear();
        without.worker.profiles.clear();
        without.worker.targets.clear();
        for step in [&state(), &without, &state(), &changed] {
            nft.apply(&worker::table(step)).expect("apply");
        }
        run("nft list table inet egret")
    });
    assert_eq!(content(&fresh), content(&edited));
}

/// Content without the parts that may differ between equal tables: order, owner and the program's layout of elements.
fn content(listing: &str) -> Vec<String> {
    let mut chain = String::new();
    let mut lines = Vec::new();
    for line in listing.lines().map(str::trim) {
        let owner = line == "flags" || line.starts_with("flags owner");
        if line.is_empty() || line == "}" || line.starts_with("table ") || owner {
            continue;
        }
        if line.ends_with('{') {
            chain = line.to_string();
        }
        let element = line
            .trim_start_matches("elements = {")
            .trim_end_matches(['}', ',', ' ']);
        for part in element.split(", ") {
            lines.push(format!("{chain} {}", part.trim()));
        }
    }
    lines.sort();
    lines
}

#[test]
fn traffic_is_counted_on_by_the_table_that_replaces_another() {
    in_new_namespace(|| {
        // The table of an earlier agent.
        run("nft 'add table inet egret; \
            add counter inet egret sent_000000000000000a { packets 5 bytes 500; }; \
            add counter inet egret sent_00000000000000ff { packets 7 bytes 700; }; \
            add counter inet egret no_lease { packets 3 bytes 300; }'");
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state())).expect("apply");
        let counts = nft.counts().expect("counts");
        let five = Count {
            packets: 5,
            bytes: 500,
        };
        assert_eq!(counts["sent_000000000000000a"], five);
        assert_eq!(counts["opened_000000000000000a"], Count::default());
        assert_eq!(counts["no_lease"], Count::default());
        assert!(!counts.contains_key("sent_00000000000000ff"));
    });
}

#[test]
fn accounts_come_and_go_with_their_targets_and_a_changed_target_keeps_its_counters() {
    in_new_namespace(|| {
        let accounts = |nft: &mut Nftables| -> Vec<String> {
            let counts = nft.counts().expect("counts");
            let names = counts.into_keys();
            names.filter(|name| name.starts_with("sent_")).collect()
        };
        run("nft 'add table inet egret; \
            add counter inet egret sent_000000000000000a { packets 5 bytes 500; }'");
        let mut nft = Nftables::open("egret").expect("open");
        let mut state = state();
        nft.apply(&worker::table(&state)).expect("apply");
        // Another gateway group of the same policy and address is another target.
        let target = state.worker.targets.remove(&TargetId(1)).expect("there");
        state.worker.targets.insert(TargetId(3), target);
        let profile = state.worker.profiles.get_mut(&ProfileId(9)).expect("there");
        for one in profile.ranges.iter_mut().filter(|one| one.first.is_ipv4()) {
            one.verdict = Verdict::Target(TargetId(3));
        }
        nft.apply(&worker::table(&state)).expect("apply");
        let counts = nft.counts().expect("counts");
        assert_eq!(counts["sent_000000000000000a"].bytes, 500);
        state.worker.profiles.clear();
        state.worker.pods.clear();
        state.worker.targets.remove(&TargetId(2));
        nft.apply(&worker::table(&state)).expect("apply");
        assert_eq!(accounts(&mut nft), ["sent_000000000000000a"]);
        state.worker.targets.clear();
        nft.apply(&worker::table(&state)).expect("apply");
        assert_eq!(accounts(&mut nft), [""; 0]);
    });
}

#[test]
fn a_thousand_accounts_are_read_by_one_dump() {
    in_new_namespace(|| {
        let mut state = state();
        let target = state.worker.targets[&TargetId(1)].clone();
        for number in 100..1100 {
            let traffic_key = TrafficKeyId(number);
            let target = Target {
                traffic_key,
                ..target.clone()
            };
            state.worker.targets.insert(TargetId(number), target);
        }
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state)).expect("apply");
        let mut counts = nft.counts().expect("counts");
        let started = std::time::Instant::now();
        for _ in 0..5 {
            counts = nft.counts().expect("counts");
        }
        println!(
            "{} counters read in {:?}",
            counts.len(),
            started.elapsed() / 5
        );
        let hooks = egret_core::canary::CanaryHook::ALL.len();
        assert_eq!(counts.len(), worker::COUNTERS.len() + hooks + 2 * 1002);
    });
}
