//! An incremental planner always has the same plan as one from nothing.

use crate::histories::{self, Step};
use crate::scene::*;
use egret_core::model::*;
use egret_core::plan::plan;
use egret_core::plan::planner::{Change, Planner, changes};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Changes that histories lack: everything else that a policy's pods can depend on.
#[derive(Clone, Debug)]
enum Edit {
    Step(Step),
    Pod {
        number: u8,
        worker: u8,
        namespace: bool,
        addresses: u8,
        host: bool,
        label: u8,
    },
    Select {
        number: u8,
        selection: u8,
        narrow: bool,
    },
    Service {
        number: u8,
        content: u8,
    },
    Namespace {
        other: bool,
        labels: u8,
    },
    NodeLabels {
        node: u8,
        labels: u8,
    },
    NodeAddress {
        node: u8,
        address: u8,
    },
    Report {
        node: u8,
        address: u8,
        full: bool,
        announces: bool,
        version: u8,
    },
    Surroundings {
        node: u8,
        address: u8,
        what: u8,
    },
    Corrupt {
        address: u8,
        how: u8,
    },
    Lose {
        node: u8,
    },
    /// Records become unreadable, or readable again.
    Unread {
        address: u8,
        node: u8,
        what: u8,
    },
    Pool(u8),
    Shuffle,
    PodCidrs {
        node: u8,
        kind: u8,
    },
    Published(u8),
    NoNamespace {
        other: bool,
    },
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        12 => histories::step().prop_map(Edit::Step),
        4 => (0u8..12, 1u8..5, any::<bool>(), 0u8..5, any::<bool>(), 0u8..3).prop_map(
            |(number, worker, namespace, addresses, host, label)| Edit::Pod {
                number, worker, namespace, addresses, host, label
            }
        ),
        3 => (0u8..9, 0u8..8, any::<bool>()).prop_map(|(number, selection, narrow)| Edit::Select {
            number, selection, narrow
        }),
        2 => (0u8..2, 0u8..6).prop_map(|(number, content)| Edit::Service { number, content }),
        1 => (any::<bool>(), 0u8..3).prop_map(|(other, labels)| Edit::Namespace { other, labels }),
        1 => (0u8..8, 0u8..3).prop_map(|(node, labels)| Edit::NodeLabels { node, labels }),
        1 => (0u8..8, 0u8..6).prop_map(|(node, address)| Edit::NodeAddress { node, address }),
        2 => (0u8..8, 0u8..4, any::<bool>(), any::<bool>(), 0u8..30).prop_map(
            |(node, address, full, announces, version)| Edit::Report {
                node, address, full, announces, version
            }
        ),
        4 => (0u8..8, 0u8..6, 0u8..13).prop_map(|(node, address, what)| Edit::Surroundings {
            node, address, what
        }),
        1 => (0u8..4, 0u8..5).prop_map(|(address, how)| Edit::Corrupt { address, how }),
        1 => (0u8..8).prop_map(|node| Edit::Lose { node }),
        2 => (0u8..4, 0u8..8, 0u8..5).prop_map(|(address, node, what)| Edit::Unread {
            address, node, what
        }),
        1 => (0u8..4).prop_map(Edit::Pool),
        1 => Just(Edit::Shuffle),
        2 => (0u8..8, 0u8..3).prop_map(|(node, kind)| Edit::PodCidrs { node, kind }),
        1 => (0u8..3).prop_map(Edit::Published),
        1 => any::<bool>().prop_map(|other| Edit::NoNamespace { other }),
    ]
}

fn egress_address(number: u8) -> std::net::IpAddr {
    ip(&format!("192.0.2.{}", 10 + number))
}

fn some_labels(number: u8) -> Labels {
    let pairs: [&[(&str, &str)]; 3] = [&[], &[("team", "a")], &[("team", "b"), ("zone", "1")]];
    labels(pairs[usize::from(number)])
}

fn node_at(scene: &Scene, number: u8) -> Option<NodeName> {
    let nodes: Vec<&NodeName> = scene.snapshot.nodes.keys().collect();
    (!nodes.is_empty()).then(|| nodes[usize::from(number) % nodes.len()].clone())
}

fn pod(number: u8, worker: u8, namespace: bool, addresses: u8, host: bool, label: u8) -> Pod {
    let namespace = if namespace { "default" } else { "other" };
    let addresses = match addresses {
        0 => vec![],
        1 => vec![ip(&format!("10.244.{worker}.{}", 10 + number))],
        2 => vec![ip(&format!("fd00:244:{worker}::{number}"))],
        // One that a policy names, and one from the pool.
        3 => vec![egress_address(number % 4)],
        _ => vec![ip("192.0.2.100")],
    };
    let app = ["MyApp", "Other", "Third"][usize::from(label)];
    Pod {
        namespace: namespace.into(),
        name: format!("pod{number}"),
        uid: format!("uid-{namespace}-pod{number}"),
        labels: labels(&[
            ("app", app),
            ("tier", ["x", "y"][usize::from(number % 2)]),
            ("pod-template-hash", ["7", "8"][usize::from(number / 3 % 2)]),
        ]),
        node: node_name(&format!("worker{worker}")),
        addresses,
        owner: [
            None,
            Some(Owner {
                kind: "ReplicaSet".into(),
                name: "x-7".into(),
            }),
            Some(Owner {
                kind: "StatefulSet".into(),
                name: "x".into(),
            }),
        ][usize::from(number % 3)]
        .clone(),
        host_network: host,
        finished: false,
    }
}

fn selection(number: u8, narrow: bool) -> Selection {
    let by_labels = |namespaces, pods: &[(&str, &str)]| Selection::Labels {
        namespaces,
        pods: selector(pods),
        nodes: narrow.then(|| selector(&[("team", "a")])),
    };
    let default = || Namespaces::Names(["default".to_owned()].into());
    match number {
        0 => by_labels(Namespaces::All, &[]),
        1 => by_labels(
            Namespaces::Labels(selector(&[("team", "a")])),
            &[("app", "MyApp")],
        ),
        2 => by_labels(default(), &[("tier", "x"), ("app", "Other")]),
        3 => Selection::Labels {
            namespaces: default(),
            pods: LabelSelector(vec![
                Requirement::NotIn("app".into(), ["Third".to_owned()].into()),
                Requirement::In("tier".into(), ["x".to_owned(), "y".to_owned()].into()),
            ]),
            nodes: None,
        },
        4 | 5 => Selection::Service {
            namespace: "default".into(),
            name: format!("service{}", number - 4),
        },
        6 => Selection::Addresses(vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00::/16".parse().unwrap(),
        ]),
        _ => Selection::Workload {
            namespace: "default".into(),
            kind: match narrow {
                true => WorkloadKind::StatefulSet,
                false => WorkloadKind::Deployment,
            },
            name: "x".into(),
        },
    }
}

fn service(number: u8, content: u8) -> Option<Service> {
    let mut service = Service {
        balancer_addresses: (content == 5)
            .then(|| egress_address(number))
            .into_iter()
            .collect(),
        namespace: "default".into(),
        name: format!("service{number}"),
        cluster_addresses: vec![ip(&format!("10.96.0.{}", 10 + number))],
        selector: None,
        endpoints: BTreeSet::new(),
    };
    match content {
        0 => return None,
        1 => service.selector = Some(labels(&[("app", "MyApp"), ("tier", "x")])),
        2 => service.selector = Some(Labels::new()),
        3 => {
            service.endpoints = ["10.244.1.12", "10.244.2.13", "fd00:244:1::14"]
                .map(ip)
                .into()
        }
        4 => service.cluster_addresses = vec![egress_address(1)],
        _ => service.endpoints = [ip("10.244.1.12")].into(),
    }
    Some(service)
}

fn change(scene: &mut Scene, edit: &Edit) {
    let snapshot = &mut scene.snapshot;
    match edit {
        Edit::Step(step) => histories::take(scene, step),
        Edit::Pod {
            number,
            worker,
            namespace,
            addresses,
            host,
            label,
        } => {
            let pod = pod(*number, *worker, *namespace, *addresses, *host, *label);
            snapshot
                .pods
                .insert((pod.namespace.clone(), pod.name.clone()), pod);
        }
        Edit::Select {
            number,
            selection: kind,
            narrow,
        } => {
            let name = format!("p{number}");
            for policy in snapshot
                .policies
                .iter_mut()
                .filter(|p| p.object.name == name)
            {
                policy.selection = selection(*kind, *narrow);
                policy.destinations = narrow.then(|| {
                    vec![Destination {
                        cidr: "203.0.113.0/24".parse().unwrap(),
                        except: vec![],
                        ports: vec![],
                    }]
                });
            }
        }
        Edit::Service { number, content } => {
            let key = ("default".to_owned(), format!("service{number}"));
            match service(*number, *content) {
                Some(service) => drop(snapshot.services.insert(key, service)),
                None => drop(snapshot.services.remove(&key)),
            }
        }
        Edit::Namespace { other, labels } => {
            let name = if *other { "other" } else { "default" }.to_owned();
            let namespace = Namespace {
                name: name.clone(),
                labels: some_labels(*labels),
            };
            snapshot.namespaces.insert(name, namespace);
        }
        other => change_more(scene, other),
    }
}

fn change_more(scene: &mut Scene, edit: &Edit) {
    match edit {
        Edit::NodeLabels { node, labels } => {
            if let Some(name) = node_at(scene, *node) {
                let node = scene.snapshot.nodes.get_mut(&name).unwrap();
                node.labels.retain(|key, _| key == "role");
                node.labels.extend(some_labels(*labels));
            }
        }
        Edit::NodeAddress { node, address } => {
            if let Some(name) = node_at(scene, *node) {
                let node = scene.snapshot.nodes.get_mut(&name).unwrap();
                node.addresses.truncate(2);
                node.addresses.push(egress_address(*address));
            }
        }
        Edit::Report {
            node,
            address,
            full,
            announces,
            version,
        } => {
            let names: Vec<NodeName> = scene.snapshot.node_records.keys().cloned().collect();
            if names.is_empty() {
                return;
            }
            let name = &names[usize::from(*node) % names.len()];
            let records = &mut scene.snapshot.node_records;
            let record = records.get_mut(name).unwrap();
            let address = egress_address(*address);
            match full {
                true => drop(record.full_destinations.insert(address, 2)),
                false => drop(record.full_destinations.remove(&address)),
            }
            match announces {
                true => drop(record.announcing.insert(address)),
                false => drop(record.announcing.remove(&address)),
            }
            let wanted = [0, 64, 40_000, 50_000, 64_512][usize::from(*version % 5)];
            record.wanted_ports.insert(address, wanted);
            let pods = scene.snapshot.pods.values().filter(|pod| pod.node == *name);
            let policies = scene.snapshot.policies.iter();
            record.paired = pods
                .zip(policies.cycle())
                .take(usize::from(*version % 4))
                .map(|(pod, policy)| PairedPod {
                    policy: policy.object.clone(),
                    pod: pod.uid.clone(),
                    address,
                })
                .collect();
            record.steering_version = u64::from(*version);
            record.uplink_lost = *version % 3 > 0;
            record.datapath = Some(["ebpf", "nftables"][usize::from(*version % 2)].into());
            let subnets = ["192.168.122.21/24", "198.51.100.1/24", "fd00:122::21/64"];
            record.external_addresses = subnets
                .iter()
                .take(usize::from(*version % 4))
                .map(|text| text.parse().unwrap())
                .collect();
        }
        Edit::Surroundings {
            node,
            address,
            what,
        } => surround(scene, *node, egress_address(*address), *what),
        Edit::Corrupt { address, how } => corrupt(scene, *address, *how),
        Edit::Unread {
            address,
            node,
            what,
        } => unread(scene, *address, *node, *what),
        Edit::Lose { node } => {
            let names: Vec<NodeName> = scene.snapshot.node_records.keys().cloned().collect();
            if !names.is_empty() {
                let name = &names[usize::from(*node) % names.len()];
                scene.snapshot.node_records.remove(name);
            }
        }
        Edit::Pool(kind) => {
            let pool = scene
                .snapshot
                .pools
                .get_mut(&PoolName("pool".into()))
                .unwrap();
            match kind {
                0 => pool.namespaces = Namespaces::All,
                1 => pool.namespaces = Namespaces::Labels(selector(&[("team", "a")])),
                2 => pool.gateway = Some(GatewayName("other".into())),
                _ => pool.gateway = None,
            }
        }
        Edit::Shuffle => scene.snapshot.policies.reverse(),
        Edit::PodCidrs { node, kind } => {
            if let Some(name) = node_at(scene, *node) {
                let node = scene.snapshot.nodes.get_mut(&name).unwrap();
                let cidrs: &[&str] = match kind {
                    0 => &[],
                    1 => &["10.244.1.0/24", "fd00:244:1::/64"],
                    _ => &["10.244.0.0/16"],
                };
                node.pod_cidrs = cidrs.iter().map(|text| text.parse().unwrap()).collect();
            }
        }
        Edit::Published(kind) => {
            let prefixes: &[&str] = match kind {
                0 => &[],
                1 => &["10.244.2.0/24", "fd00:244::/32"],
                _ => &["10.244.1.0/28", "10.244.1.0/24"],
            };
            let prefixes = prefixes.iter().map(|text| text.parse().unwrap());
            scene.snapshot.pod_prefixes = prefixes.collect();
        }
        Edit::NoNamespace { other } => {
            let name = if *other { "other" } else { "default" };
            scene.snapshot.namespaces.remove(name);
        }
        _ => unreachable!("handled before"),
    }
}

/// An agent reports addresses around its node.
fn surround(scene: &mut Scene, node: u8, address: std::net::IpAddr, what: u8) {
    let names: Vec<NodeName> = scene.snapshot.node_records.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = &names[usize::from(node) % names.len()];
    let record = scene.snapshot.node_records.get_mut(name).unwrap();
    let claim = AddressClaim {
        mac: MacAddress([2, 0, 0, 0, 0, what]),
        since_secs: i64::from(node),
    };
    let range = PortRange {
        first: 1024 + u16::from(node) * 640,
        last: 1024 + u16::from(node) * 640 + 127,
    };
    match what {
        6 => drop(record.wanted_ports.insert(address, 4096)),
        7 => record.wanted_ports.clear(),
        8 => drop(record.demand.insert(address, u32::from(node) * 100)),
        9 => record.acknowledged = u64::from(node) * 3,
        10 => drop(record.held.insert(address, vec![range])),
        11 => record.held.clear(),
        12 => scene.term += 1,
        0 => record.node_addresses.clear(),
        1 => drop(record.node_addresses.insert(address.into())),
        2 => drop(record.routers.insert(address)),
        3 => {
            let held = format!("{address}/28").parse().unwrap();
            record.node_addresses.insert(held);
            record.external_addresses.insert(held);
        }
        4 => drop(record.conflicts.insert(address, claim)),
        _ => {
            record.conflicts.clear();
            record.routers.clear();
        }
    }
}

/// Somebody else edits our records.
fn corrupt(scene: &mut Scene, address: u8, how: u8) {
    let address = egress_address(address);
    let Some(record) = scene.snapshot.addresses.get_mut(&address) else {
        return;
    };
    match how {
        0 => {
            scene.snapshot.addresses.remove(&address);
            scene.snapshot.unreadable.addresses.remove(&address);
        }
        1 => record.epoch += 7,
        2 => drop(record.leases.pop()),
        3 => {
            if let Some(lease) = record.leases.first().cloned() {
                record.leases.push(lease);
            }
        }
        _ => record.resource_version += 1,
    }
}

/// Records become unreadable in the source's view: an address still has a record, a node may have none.
fn unread(scene: &mut Scene, address: u8, node: u8, what: u8) {
    let address = egress_address(address);
    let node = node_at(scene, node);
    let snapshot = &mut scene.snapshot;
    let unreadable = &mut snapshot.unreadable;
    match (what, node) {
        (0 | 1, _) if snapshot.addresses.contains_key(&address) => {
            unreadable.addresses.insert(address);
            if let Some(record) = snapshot.addresses.get_mut(&address) {
                record.leases.truncate(usize::from(what));
            }
        }
        (2, Some(node)) => drop(unreadable.nodes.insert(node)),
        (3, Some(node)) => drop(unreadable.demand.insert(node)),
        _ => *unreadable = Unreadable::default(),
    }
}

/// The planner's plan equals a plan from nothing, and what is not reported as touched has not changed.
fn keep_up(planner: &mut Planner, scene: &Scene) -> Result<(), TestCaseError> {
    let before = planner.plan().clone();
    // By changes, or by whole snapshots that share equal values.
    let touched = match before.reasons.len() % 2 {
        0 => planner.follow(scene.snapshot.clone(), scene.time()),
        _ => {
            let all = changes(planner.snapshot(), &scene.snapshot);
            planner.update(all, scene.time())
        }
    };
    prop_assert_eq!(planner.snapshot(), &scene.snapshot);
    let (is, should) = (planner.plan(), plan(&scene.snapshot, scene.time()));
    prop_assert_eq!(&is.addresses, &should.addresses);
    prop_assert_eq!(&is.policies, &should.policies);
    prop_assert_eq!(&is.reasons, &should.reasons);
    prop_assert_eq!(is, &should);
    let violations = egret_core::check::check_plan(&scene.snapshot, is, scene.time());
    prop_assert!(violations.is_empty(), "{:#?}", violations);
    if !touched.all {
        for (object, policy) in &is.policies {
            let named = touched.policies.contains(object);
            prop_assert!(
                named || before.policies.get(object) == Some(policy),
                "{}",
                object
            );
        }
        for (address, status) in &is.address_status {
            let named = touched.addresses.contains(address);
            prop_assert!(
                named || before.address_status.get(address) == Some(status),
                "{}",
                address
            );
        }
        for (name, gateway) in &is.gateways {
            let named = touched.gateways.contains(name);
            prop_assert!(
                named || before.gateways.get(name) == Some(gateway),
                "{:?}",
                name
            );
        }
        prop_assert!(touched.pools || before.pools == is.pools);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn what_is_kept_is_what_a_plan_from_nothing_would_be(
        edits in prop::collection::vec((edit(), any::<bool>()), 1..60)
    ) {
        let mut scene = histories::start();
        let mut planner = Planner::new(scene.snapshot.clone(), scene.time());
        prop_assert_eq!(planner.plan(), &plan(&scene.snapshot, scene.time()));
        for (edit, look) in &edits {
            change(&mut scene, edit);
            // Changes are applied one by one or several at once.
            if *look {
                keep_up(&mut planner, &scene)?;
            }
        }
        keep_up(&mut planner, &scene)?;
        let fresh = Planner::new(scene.snapshot.clone(), scene.time());
        prop_assert_eq!(fresh.plan(), planner.plan());
        // Until nothing changes: all writes and reports are made.
        scene.dead.clear();
        scene.busy.clear();
        for _ in 0..6 {
            scene.control();
            scene.run_agents();
            scene.now += 50;
            keep_up(&mut planner, &scene)?;
        }
    }
}

#[test]
fn one_pod_touches_its_policy_its_address_and_its_node() {
    let mut scene = kep_scene();
    scene.add_policy(egress("other", "elsewhere", &["192.0.2.50"]));
    scene.settle();
    let mut planner = Planner::new(scene.snapshot.clone(), scene.time());
    scene.add_pod("a3", "worker3", 12, &[("app", "MyApp")]);
    let key = ("default".to_owned(), "a3".to_owned());
    let pod = scene.snapshot.pods[&key].clone();
    let touched = planner.update([Change::Pod(key, Some(pod))], scene.time());
    let names: Vec<&str> = touched.policies.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["my-app"]);
    assert_eq!(touched.addresses, [ip("192.168.122.222")].into());
    assert_eq!(
        (touched.all, touched.pools, touched.gateways.len()),
        (false, false, 0)
    );
    assert_eq!(planner.plan().address_writes, [ip("192.168.122.222")]);
    assert_eq!(planner.plan().node_writes, [node_name("worker3")]);
    // Another pod of the policy on the same node needs no new lease.
    scene.control();
    planner.update(changes(planner.snapshot(), &scene.snapshot), scene.time());
    scene.add_pod("a4", "worker3", 13, &[("app", "MyApp")]);
    let touched = planner.update(changes(planner.snapshot(), &scene.snapshot), scene.time());
    assert!(touched.addresses.is_empty(), "{touched:?}");
    assert_eq!(*planner.plan(), plan(&scene.snapshot, scene.time()));
}

/// An agent acknowledges a withdrawal at once, and reports later that no flow is left in the ranges.
#[test]
fn a_lease_ends_when_its_worker_holds_nothing_long_after_its_acknowledgement() {
    let mut scene = kep_scene();
    scene.settle();
    let worker = node_name("worker2");
    scene.busy.insert((worker.clone(), ip("192.168.122.222")));
    let key = ("default".to_owned(), "a2".to_owned());
    scene.snapshot.pods.remove(&key);
    scene.settle();
    let record = &scene.snapshot.node_records[&worker];
    assert_eq!(record.acknowledged, record.grants_epoch);
    assert!(!record.draining.is_empty() && !record.held.is_empty());
    let mut planner = Planner::new(scene.snapshot.clone(), scene.time());
    scene.busy.clear();
    scene.run_agent(&worker);
    assert!(scene.snapshot.node_records[&worker].held.is_empty());
    planner.update(changes(planner.snapshot(), &scene.snapshot), scene.time());
    assert_eq!(planner.plan().address_writes, [ip("192.168.122.222")]);
    assert_eq!(*planner.plan(), plan(&scene.snapshot, scene.time()));
}
