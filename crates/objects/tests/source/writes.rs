//! Status and Egret's own objects: compare-and-swap between processes, merging, and no write without a change.

use crate::scratch::{Ask, Scratch, egress, policy_ref};
use egret_core::model::{
    AddressClaim, AddressRecord, Fenced, GatewayName, Grant, Lease, LeaseState, MacAddress,
    NodeName, NodeRecord, PairedPod, PortRange, Programmed,
};
use egret_objects::{
    AddressStatus, Condition, ConditionStatus, GatewayMember, GatewayStatus, NodeReport,
    PolicyStatus, Source, SourceError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

fn address() -> IpAddr {
    "192.168.122.222".parse().unwrap()
}

fn record(epoch: u64, resource_version: u64) -> AddressRecord {
    let ranges = vec![
        PortRange {
            first: 1024,
            last: 1279,
        },
        PortRange {
            first: 4096,
            last: 4159,
        },
    ];
    AddressRecord {
        epoch,
        leases: vec![Lease {
            node: NodeName("worker1".into()),
            ranges,
            epoch,
            withdrawn: None,
            state: LeaseState::Granted,
            since_secs: 1_700_000_000,
        }],
        resource_version,
        ..AddressRecord::new(address(), GatewayName("default".into()))
    }
}

fn node_record() -> NodeRecord {
    let programmed = Programmed {
        policy: policy_ref("p"),
        generation: 3,
        pods: 2,
    };
    let claim = AddressClaim {
        mac: MacAddress([2, 0, 0, 0, 0, 0x99]),
        since_secs: 1_700_000_000,
    };
    let grant = |first, last, epoch| Grant {
        address: address(),
        gateway: GatewayName("default".into()),
        ranges: vec![PortRange { first, last }],
        epoch,
    };
    NodeRecord {
        node: NodeName("worker1".into()),
        tunnel_index: 7,
        grants: vec![grant(1024, 1279, 4)],
        draining: vec![grant(2048, 2111, 3)],
        resting: vec![grant(4096, 4159, 5)],
        fenced: Some(Fenced {
            reason: "its disk is gone".into(),
            since_secs: 1_700_000_000,
        }),
        grants_epoch: 5,
        acknowledged: 5,
        held: BTreeMap::from([(address(), grant(1024, 1279, 4).ranges)]),
        wanted_ports: BTreeMap::from([(address(), 512)]),
        underlay_addresses: vec!["192.168.122.11".parse().unwrap()],
        next_hops: Default::default(),
        uplink_lost: true,
        external_addresses: BTreeSet::from(["192.168.122.11/24".parse().unwrap()]),
        steering_version: 4,
        newer_tables: BTreeMap::from([(address(), 9)]),
        announcing: BTreeSet::from([address()]),
        demand: BTreeMap::from([(address(), 12)]),
        full_destinations: BTreeMap::from([(address(), 2)]),
        paired: ["1", "2"]
            .map(|pod| PairedPod {
                policy: policy_ref("p"),
                pod: pod.to_owned(),
                address: address(),
            })
            .into(),
        programmed: vec![programmed],
        pod_prefixes: BTreeSet::new(),
        device_addresses: BTreeSet::from(["172.16.0.7/32".parse().unwrap()]),
        capabilities: BTreeSet::from(["tcx".to_owned()]),
        datapath: Some("ebpf".into()),
        node_addresses: BTreeSet::from(["192.168.122.2/24".parse().unwrap()]),
        routers: BTreeSet::from(["192.168.122.1".parse().unwrap()]),
        external_mac: Some(MacAddress([2, 0, 0, 0, 0, 0x11])),
        conflicts: BTreeMap::from([(address(), claim)]),
        resource_version: 0,
    }
}

fn ready(status: ConditionStatus) -> Condition {
    let condition = egret_core::condition::Condition::new(
        egret_core::condition::ConditionType::Ready,
        status == ConditionStatus::True,
        match status {
            ConditionStatus::True => egret_core::condition::Reason::Programmed,
            _ => egret_core::condition::Reason::NotProgrammed,
        },
        "all pods",
    );
    Condition::from(&condition)
}

#[test]
fn an_address_comes_back_as_it_was_written() {
    let scratch = Scratch::new();
    let mut source = scratch.open();
    let version = source.write_address(&record(5, 0)).unwrap();
    assert!(
        scratch
            .path("status/EgressAddress/v4-192-168-122-222.yaml")
            .exists()
    );
    let expected = AddressRecord {
        resource_version: version,
        ..record(5, 0)
    };
    assert_eq!(
        source.snapshot().unwrap().snapshot.addresses[&address()],
        expected
    );
    let view = scratch.view();
    view.assert_clean();
    assert_eq!(view.snapshot.addresses[&address()], expected);
    let v6 = AddressRecord {
        address: "fd00:122::de".parse().unwrap(),
        ..record(6, 0)
    };
    source.write_address(&v6).unwrap();
    let name = "status/EgressAddress/v6-fd00-0122-0000-0000-0000-0000-0000-00de.yaml";
    assert!(scratch.path(name).exists());
}

#[test]
fn of_two_writers_with_one_version_one_fails() {
    let scratch = Scratch::new();
    let (mut a, mut b) = (scratch.open(), scratch.open());
    let first = a.write_address(&record(1, 0)).unwrap();
    assert!(matches!(
        b.write_address(&record(1, 0)),
        Err(SourceError::Conflict { expected: 0, found, .. }) if found == first
    ));
    let second = b.write_address(&record(2, first)).unwrap();
    assert!(second > first);
    assert!(matches!(
        a.write_address(&record(3, first)),
        Err(SourceError::Conflict { .. })
    ));
    assert!(matches!(
        a.delete_address(address(), first),
        Err(SourceError::Conflict { .. })
    ));
    a.delete_address(address(), second).unwrap();
    assert!(matches!(
        b.write_address(&record(3, second)),
        Err(SourceError::Conflict { found: 0, .. })
    ));
    // A version is never reused, so no writer mistakes the new object for the old one.
    let third = b.write_address(&record(4, 0)).unwrap();
    assert!(third > second, "{third} after {second}");
}

#[test]
fn many_writers_lose_no_update_and_no_view_lacks_an_older_write() {
    let scratch = Scratch::new();
    let addresses: Vec<IpAddr> = (1..=4).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    // Each writer increments the epoch of the two addresses in turn: in a view where the second one is newer than the
    // first one by more than its own round, an older write is missing.
    std::thread::scope(|scope| {
        let writers: Vec<_> = addresses
            .chunks(2)
            .map(|pair| {
                let mut source = scratch.open();
                scope.spawn(move || {
                    let mut versions = [0, 0];
                    for epoch in 1..=60 {
                        for (address, version) in pair.iter().zip(&mut versions) {
                            let record = AddressRecord {
                                address: *address,
                                ..record(epoch, *version)
                            };
                            *version = source.write_address(&record).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut reader = scratch.open();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let view = reader.snapshot().unwrap();
            for pair in addresses.chunks(2) {
                let epoch = |at: usize| {
                    view.snapshot
                        .addresses
                        .get(&pair[at])
                        .map_or(0, |r| r.epoch)
                };
                let (first, second) = (epoch(0), epoch(1));
                assert!(
                    first == second || first == second + 1,
                    "{first} then {second}"
                );
            }
        }
    });
    let view = scratch.view();
    assert!(
        addresses
            .iter()
            .all(|address| view.snapshot.addresses[address].epoch == 60)
    );
}

#[test]
fn controller_and_agent_write_their_own_halves_of_a_node() {
    let scratch = Scratch::new();
    let (mut controller, mut agent) = (scratch.open(), scratch.open());
    let record = node_record();
    let report = NodeReport {
        tunnel_mac: Some("02:00:00:00:00:07".into()),
        external_interface: None,
        capabilities: vec!["tcx".into()],
        conditions: vec![ready(ConditionStatus::True)],
    };
    let early = agent.write_node_status(&record, &report, 100);
    assert!(matches!(early, Err(SourceError::NotFound { .. })));
    let blank = NodeRecord {
        grants: Vec::new(),
        ..node_record()
    };
    controller.write_node_spec(&blank).unwrap();
    // The grants in the agent's record and the status in the controller's are ignored.
    agent
        .write_node_status(
            &NodeRecord {
                tunnel_index: 9,
                ..blank
            },
            &report,
            100,
        )
        .unwrap();
    let silent = NodeRecord {
        steering_version: 0,
        underlay_addresses: Vec::new(),
        ..node_record()
    };
    let version = controller.write_node_spec(&silent).unwrap();
    let view = agent.snapshot().unwrap();
    view.assert_clean();
    let name = NodeName("worker1".into());
    let expected = NodeRecord {
        resource_version: version,
        ..record.clone()
    };
    assert_eq!(view.snapshot.node_records[&name], expected);
    assert_eq!(
        view.nodes[&name].tunnel_mac.as_deref(),
        Some("02:00:00:00:00:07")
    );
    assert_eq!(view.nodes[&name].conditions[0].since_secs, 100);
    // An unchanged record is not written.
    assert_eq!(controller.write_node_spec(&record).unwrap(), version);
    assert_eq!(
        agent.write_node_status(&record, &report, 200).unwrap(),
        version
    );
    controller.delete_node(&name).unwrap();
    assert!(agent.snapshot().unwrap().snapshot.node_records.is_empty());
}

/// Until the next release, agents of the one before may still run beside a controller of this one.
#[test]
fn what_a_node_can_do_is_read_under_the_name_of_the_release_before_and_written_under_the_new_one() {
    let scratch = Scratch::new();
    let (record, name) = (node_record(), NodeName("worker1".into()));
    let report = NodeReport {
        capabilities: vec!["tcx".into()],
        ..NodeReport::default()
    };
    scratch.open().write_node_spec(&record).unwrap();
    scratch
        .open()
        .write_node_status(&record, &report, 100)
        .unwrap();
    let file = "status/EgressNode/worker1.yaml";
    let new = fs::read_to_string(scratch.path(file)).unwrap();
    let old = new.replace("capabilities:", "abilities:");
    assert_ne!(old, new);
    scratch.put(file, &old);

    let mut agent = scratch.open();
    let view = agent.snapshot().unwrap();
    view.assert_clean();
    let read = &view.snapshot.node_records[&name];
    assert_eq!(read.capabilities, record.capabilities);
    assert_eq!(view.nodes[&name].capabilities, report.capabilities);

    agent.write_node_status(&record, &report, 200).unwrap();
    let again = fs::read_to_string(scratch.path(file)).unwrap();
    assert!(again.contains("capabilities:"), "{again}");
    assert!(!again.contains("  abilities:"), "{again}");
}

#[test]
fn status_keeps_its_times_and_is_written_only_when_it_changes() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("p", "192.0.2.1"));
    let (mut controller, mut other) = (scratch.open(), scratch.open());
    controller.snapshot().unwrap();
    let mut status = PolicyStatus {
        observed_generation: 1,
        addresses: vec!["192.0.2.1".parse().unwrap()],
        crowded: vec!["192.0.2.1".parse().unwrap()],
        selected: 3,
        programmed: 2,
        conditions: vec![ready(ConditionStatus::False)],
    };
    let write = |source: &mut dyn Source, status: &PolicyStatus, now| {
        source
            .write_policy_status(&policy_ref("p"), status, now)
            .unwrap()
    };
    assert!(write(&mut controller, &status, 100));
    assert!(!write(&mut controller, &status, 200));
    assert!(!write(&mut other, &status, 200));
    status.programmed = 3;
    assert!(write(&mut other, &status, 300));
    let seen = |now: i64| {
        let view = scratch.view();
        view.assert_clean();
        assert_eq!(
            view.policies[&policy_ref("p")].conditions[0].since_secs,
            now
        );
        assert_eq!(view.policy("p").unwrap().generation, 1);
        view
    };
    seen(100);
    status.conditions = vec![ready(ConditionStatus::True)];
    assert!(write(&mut controller, &status, 400));
    let view = seen(400);
    status.conditions[0].since_secs = 400;
    assert_eq!(view.policies[&policy_ref("p")], status);
    // The user's edit leaves the status, and the status of another object of the same name is not taken over.
    scratch.put("a.yaml", &egress("p", "192.0.2.7"));
    assert_eq!(scratch.view().policies[&policy_ref("p")], status);
    assert!(
        !controller
            .write_policy_status(&policy_ref("gone"), &status, 500)
            .unwrap()
    );
}

#[test]
fn status_of_gateways_and_addresses_comes_back_too() {
    let scratch = Scratch::new();
    scratch.put(
        "g.yaml",
        include_str!("../../../../deploy/examples/gateway.yaml"),
    );
    let mut source = scratch.open();
    source.snapshot().unwrap();
    let gateway = GatewayName("default".into());
    let status = GatewayStatus {
        observed_generation: 1,
        gateways: vec![GatewayMember {
            node: NodeName("gateway1".into()),
            live: true,
            steering_version: 9,
            datapath: Some("nftables".into()),
        }],
        conditions: Vec::new(),
    };
    assert!(source.write_gateway_status(&gateway, &status, 1).unwrap());
    assert_eq!(scratch.view().gateways[&gateway], status);
    source.write_address(&record(1, 0)).unwrap();
    let status = AddressStatus {
        announcer: Some(NodeName("gateway1".into())),
        users: vec!["Egress/default/p".into()],
        ports_leased: 320,
        ports_free: 64192,
        conditions: Vec::new(),
    };
    assert!(source.write_address_status(address(), &status, 1).unwrap());
    assert!(!source.write_address_status(address(), &status, 2).unwrap());
    assert_eq!(source.snapshot().unwrap().addresses[&address()], status);
}

#[test]
fn removed_status_files_are_made_again_and_counting_goes_on() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("p", "192.0.2.1"));
    let mut source = scratch.open();
    source.snapshot().unwrap();
    let before = source.write_address(&record(1, 0)).unwrap();
    fs::remove_file(scratch.path("status/Egress/default.p.yaml")).unwrap();
    fs::remove_file(scratch.path("status/.lock")).unwrap();
    let status = PolicyStatus {
        observed_generation: 1,
        ..PolicyStatus::default()
    };
    assert!(
        source
            .write_policy_status(&policy_ref("p"), &status, 1)
            .unwrap()
    );
    assert_eq!(scratch.view().policies[&policy_ref("p")], status);
    assert!(source.write_address(&record(2, before)).unwrap() > before);
    fs::remove_dir_all(scratch.path("status")).unwrap();
    let view = source.snapshot().unwrap();
    view.assert_clean();
    assert_eq!(view.names(), ["p"]);
    assert!(scratch.path("status/Egress/default.p.yaml").exists());
    assert!(view.snapshot.addresses.is_empty());
}

#[test]
fn an_object_with_a_name_too_long_for_a_file_costs_no_other() {
    let scratch = Scratch::new();
    let long = "a".repeat(250);
    scratch.put("a.yaml", &egress(&long, "192.0.2.1"));
    scratch.put("b.yaml", &egress("p", "192.0.2.2"));
    let view = scratch.open().snapshot().unwrap();
    assert_eq!(view.names(), [long.as_str(), "p"]);
    assert!(scratch.path("status/Egress/default.p.yaml").exists());
    assert_eq!(view.findings.len(), 1, "{:?}", view.findings);
}

#[test]
fn an_unreadable_address_is_reported_and_never_overwritten() {
    let scratch = Scratch::new();
    let mut source = scratch.open();
    source.write_address(&record(1, 0)).unwrap();
    let path = scratch.path("status/EgressAddress/v4-192-168-122-222.yaml");
    fs::write(&path, "kind: [").unwrap();
    let view = source.snapshot().unwrap();
    // A reader that has read it before continues with that; no reader treats it as free.
    assert!(view.snapshot.unreadable.addresses.contains(&address()));
    assert_eq!(
        view.snapshot.addresses[&address()].leases,
        record(1, 0).leases
    );
    assert_eq!(view.findings.len(), 1, "{:?}", view.findings);
    let fresh = scratch.open().snapshot().unwrap().snapshot;
    assert!(fresh.unreadable.addresses.contains(&address()));
    assert_eq!(fresh.addresses[&address()].leases, []);
    // Its leases are unknown: granting its ports anew could give one block to two workers (P4).
    assert!(matches!(
        source.write_address(&record(1, 0)),
        Err(SourceError::Unreadable { .. })
    ));
    assert_eq!(fs::read_to_string(path).unwrap(), "kind: [");
}
