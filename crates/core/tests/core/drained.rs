//! Drain of a gateway, and named announcers: others take over first, and an address always has somebody.

use crate::gateway_role::{E, Gateway1, START_MS, announces};
use crate::scene::*;
use egret_core::machines::{DrainPhase, GatewayCommand, GroupNodes};
use egret_core::model::*;
use egret_core::node::Group;
use egret_core::numbers::{DRAIN_HANDOVER_MS, DRAIN_QUIET_MS, ENTRANCE_MS};
use egret_core::rendezvous::announcer_order;

const JOINED_MS: u64 = START_MS + ENTRANCE_MS;
const LATER_MS: u64 = JOINED_MS + 60_000;

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

/// gateway1, which the `EgressGateway` names as announcer and which announces; gateway2 and gateway3 serve too.
fn announcing() -> Gateway1 {
    let mut gateway = Gateway1::new(&["gateway2", "gateway3"]).in_use();
    for (name, last) in [("gateway2", 2), ("gateway3", 3)] {
        record(&mut gateway, name).external_mac = Some(mac(last));
    }
    name_announcer(&mut gateway, Some("gateway1"));
    gateway.round(START_MS);
    assert!(announces(&gateway.round(JOINED_MS)));
    record(&mut gateway, "gateway2").announcing.clear();
    gateway.role.drain();
    gateway
}

fn record<'a>(gateway: &'a mut Gateway1, name: &str) -> &'a mut NodeRecord {
    let records = &mut gateway.scene.snapshot.node_records;
    records.get_mut(&node_name(name)).unwrap()
}

fn name_announcer(gateway: &mut Gateway1, node: Option<&str>) {
    let gateways = &mut gateway.scene.snapshot.gateways;
    let main = gateways.get_mut(&GatewayName("main".into())).unwrap();
    main.announcers = node
        .map(|node| (ip(E), node_name(node)))
        .into_iter()
        .collect();
}

fn ask(gateway: &mut Gateway1, names: &[&str]) {
    for name in ["gateway1", "gateway2", "gateway3"] {
        let node = gateway.scene.snapshot.nodes.get_mut(&node_name(name));
        let asked = names.contains(&name).then_some(DrainCause::Requested);
        node.unwrap().maintenance.drain = asked;
    }
}

/// The next announcer once gateway1 gives way, and the last one.
fn next_and_last() -> [&'static str; 2] {
    let names = ["gateway2", "gateway3"];
    let [first, last] = names.map(node_name);
    match announcer_order(ip(E), [&first, &last])[0] == &first {
        true => names,
        false => [names[1], names[0]],
    }
}

fn phase(gateway: &Gateway1, now_ms: u64) -> Option<DrainPhase> {
    Some(gateway.role.drain_report(now_ms)?.phase)
}

#[test]
fn a_drained_gateway_answers_until_the_next_one_announces_then_workers_leave_then_it_is_empty() {
    let mut gateway = announcing();
    let version = gateway.planned().version;
    assert_eq!(phase(&gateway, JOINED_MS), None);
    ask(&mut gateway, &["gateway1"]);
    let asked = gateway.round(LATER_MS);
    assert!(announces(&asked));
    assert_eq!(asked.state.version, version, "workers stay");
    assert_eq!(phase(&gateway, LATER_MS), Some(DrainPhase::HandingOver));
    let commands = gateway.role.drain();
    assert!(
        !commands.contains(&GatewayCommand::SendGratuitous(ip(E))),
        "{commands:?}"
    );

    let [next, last] = next_and_last();
    record(&mut gateway, last).announcing.insert(ip(E));
    assert!(
        announces(&gateway.round(LATER_MS + 1)),
        "that one is to give way, too"
    );
    record(&mut gateway, next).announcing.insert(ip(E));
    let left = gateway.round(LATER_MS + 2);
    assert!(!announces(&left));
    assert_eq!((left.state.version, left.steering_version), (0, version));
    assert!(
        gateway
            .role
            .drain()
            .contains(&GatewayCommand::Withdraw(ip(E)))
    );
    let now_ms = LATER_MS + 3;
    gateway.role.counted(7, now_ms);
    assert_eq!(phase(&gateway, now_ms), Some(DrainPhase::Leaving));
    let quiet_ms = now_ms + DRAIN_QUIET_MS;
    gateway.role.counted(7, quiet_ms);
    assert_eq!(phase(&gateway, quiet_ms), Some(DrainPhase::Empty));

    ask(&mut gateway, &[]);
    let back = gateway.round(quiet_ms + 1);
    assert!(announces(&back));
    assert_eq!(back.state.version, version);
    assert_eq!(phase(&gateway, quiet_ms + 1), None);
}

#[test]
fn the_next_announcer_is_heard_before_the_api_says_so() {
    let mut gateway = announcing();
    ask(&mut gateway, &["gateway1"]);
    gateway.round(LATER_MS);
    let [next, last] = next_and_last();
    let number = |name: &str| name.as_bytes()[name.len() - 1] - b'0';
    gateway.role.heard(ip(E), mac(1), LATER_MS + 1);
    gateway.role.heard(ip(E), mac(number(last)), LATER_MS + 1);
    assert!(announces(&gateway.round(LATER_MS + 2)));
    let news = gateway.role.heard(ip(E), mac(number(next)), LATER_MS + 3);
    assert!(news, "it decides at once");
    assert!(!announces(&gateway.round(LATER_MS + 3)));
}

#[test]
fn without_any_successor_heard_workers_leave_and_the_address_stays_answered() {
    let mut gateway = announcing();
    ask(&mut gateway, &["gateway1"]);
    gateway.round(LATER_MS);
    assert_eq!(
        gateway.role.decides_at(),
        Some(LATER_MS + DRAIN_HANDOVER_MS)
    );
    let late = gateway.round(LATER_MS + DRAIN_HANDOVER_MS);
    assert!(announces(&late));
    assert_eq!(late.state.version, 0);
}

#[test]
fn where_all_are_drained_or_nobody_else_serves_it_goes_on() {
    let mut gateway = announcing();
    let version = gateway.planned().version;
    ask(&mut gateway, &["gateway1", "gateway2", "gateway3"]);
    let all = gateway.round(LATER_MS);
    assert!(announces(&all));
    assert_eq!(all.state.version, version);
    assert_eq!(phase(&gateway, LATER_MS), Some(DrainPhase::Refused));
    let text = gateway.role.drain_report(LATER_MS).unwrap().text();
    assert!(text.contains(E), "{text}");

    ask(&mut gateway, &["gateway1"]);
    let [next, _] = next_and_last();
    record(&mut gateway, next).announcing.insert(ip(E));
    assert_eq!(gateway.round(LATER_MS + 1).state.version, 0);
    gateway.see(&[]);
    gateway.round(LATER_MS + 2);
    let alone = gateway.round(LATER_MS + 3);
    assert!(announces(&alone), "the others died");
    assert_eq!(alone.state.version, version);
    assert_eq!(phase(&gateway, LATER_MS + 3), Some(DrainPhase::Refused));
}

#[test]
fn a_gateway_that_stays_behind_takes_nothing_over() {
    let mut gateway = announcing();
    ask(&mut gateway, &["gateway1"]);
    let behind = ["gateway2", "gateway3"].map(node_name).into();
    gateway.lagging = GroupNodes::from([(GatewayName("main".into()), behind)]);
    assert!(announces(&gateway.round(LATER_MS)));
    assert_eq!(phase(&gateway, LATER_MS), Some(DrainPhase::Refused));
}

#[test]
fn an_address_that_moves_is_answered_until_its_new_announcer_announces_and_no_worker_leaves() {
    let mut gateway = announcing();
    let version = gateway.planned().version;
    name_announcer(&mut gateway, Some("gateway3"));
    assert!(announces(&gateway.round(LATER_MS)));
    record(&mut gateway, "gateway2").announcing.insert(ip(E));
    assert!(
        announces(&gateway.round(LATER_MS + 1)),
        "another one was asked for"
    );
    record(&mut gateway, "gateway3").announcing.insert(ip(E));
    let moved = gateway.round(LATER_MS + 2);
    assert!(!announces(&moved));
    assert_eq!(moved.state.version, version);
    assert_eq!(phase(&gateway, LATER_MS + 2), None);
    // While its new announcer is drained or dead, the order decides.
    ask(&mut gateway, &["gateway3", "gateway2"]);
    assert!(announces(&gateway.round(LATER_MS + 3)));
    ask(&mut gateway, &[]);
    gateway.see(&["gateway2"]);
    name_announcer(&mut gateway, Some("gateway3"));
    let all = ["gateway1", "gateway2"].map(node_name);
    let first = announcer_order(ip(E), &all)[0].0 == "gateway1";
    record(&mut gateway, "gateway2").announcing.insert(ip(E));
    assert_eq!(announces(&gateway.round(LATER_MS + 4)), first);
}

#[test]
fn a_node_that_is_no_gateway_any_more_answers_until_any_gateway_announces() {
    let mut gateway = announcing();
    let planned = gateway.planned();
    record(&mut gateway, "gateway1").announcing.insert(ip(E));
    let snapshot = gateway.scene.snapshot.clone();
    gateway.role.depart(&snapshot, LATER_MS);
    let effective = gateway.role.effective(&planned, true);
    assert!(announces(&effective), "its own record proves nothing");
    assert_eq!(effective.state.version, planned.version);
    record(&mut gateway, "gateway3").announcing.insert(ip(E));
    let snapshot = gateway.scene.snapshot.clone();
    gateway.role.depart(&snapshot, LATER_MS + 1);
    let effective = gateway.role.effective(&planned, true);
    assert!(!announces(&effective));
    assert_eq!(effective.state.version, 0);
}

/// Gateways to which the worker of the KEP's scene sends.
fn members(scene: &Scene) -> Vec<String> {
    let outcome = scene.outcome("worker1");
    let state = outcome.state;
    let groups = state.worker.groups.values();
    let indexes = groups.flat_map(|group| match group {
        Group::Tunnel(members) => members.iter().copied().collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    });
    let mut names: Vec<String> = indexes
        .map(|index| state.peers[&index].node.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn workers_leave_a_drained_gateway_by_its_version_and_not_by_the_request() {
    let mut scene = kep_scene();
    scene.settle();
    let node = scene
        .snapshot
        .nodes
        .get_mut(&node_name("gateway2"))
        .unwrap();
    node.maintenance.drain = Some(DrainCause::Cordoned);
    assert_eq!(members(&scene), ["gateway1", "gateway2", "gateway3"]);
}

#[test]
fn where_only_the_announcer_sends_workers_follow_a_move() {
    let mut scene = kep_scene();
    scene.settle();
    let main = GatewayName("main".into());
    for node in ["gateway1", "gateway2", "gateway3"] {
        let gateway = scene.snapshot.gateways.get_mut(&main).unwrap();
        gateway.outbound = Outbound::Announcer;
        gateway.announcers.insert(ip(E), node_name(node));
        assert_eq!(members(&scene), [node]);
    }
}
