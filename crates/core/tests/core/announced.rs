//! The overlay of pod addresses that the CNI plugin reports before the API shows them, and releases before the API
//! does.

use crate::scene::{egress, ip, labels, node_name, selector};
use egret_core::announced::{Announced, AttachmentId, MaySelect, PodId, take_off};
use egret_core::model::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

type Pods = SharedMap<(String, String), Pod>;

fn pod(name: &str, uid: &str, node: &str, addresses: &[&str]) -> Pod {
    Pod {
        namespace: "default".into(),
        name: name.into(),
        uid: uid.into(),
        owner: None,
        labels: labels(&[]),
        node: node_name(node),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        host_network: false,
        finished: false,
    }
}

fn pods(all: &[Pod]) -> Pods {
    let all = all.iter().cloned();
    all.map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod))
        .collect()
}

fn id(container: &str) -> AttachmentId {
    AttachmentId {
        container: container.into(),
        interface: "eth0".into(),
    }
}

fn of(name: &str, uid: Option<&str>) -> Option<PodId> {
    Some(PodId {
        namespace: "default".into(),
        name: name.into(),
        uid: uid.map(str::to_owned),
    })
}

fn some(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|a| ip(a)).collect()
}

/// Addresses of a pod after the overlay.
fn has(announced: &Announced, api: &Pods, name: &str) -> Vec<IpAddr> {
    let mut pods = api.clone();
    let replaced = announced.lay_over(&mut pods, &node_name("w1"));
    let addresses = pods[&("default".into(), name.into())].addresses.clone();
    take_off(&mut pods, replaced);
    assert_eq!(pods, *api, "taking off is the opposite of laying over");
    addresses
}

#[test]
fn a_pod_has_its_address_before_the_api_shows_it() {
    let mut announced = Announced::default();
    let api = pods(&[pod("a", "u1", "w1", &[])]);
    assert!(announced.add(
        id("c1"),
        of("a", Some("u1")),
        some(&["10.0.0.1", "fd00::1"])
    ));
    assert_eq!(has(&announced, &api, "a"), [ip("10.0.0.1"), ip("fd00::1")]);
    // An earlier pod of the same name is another one.
    let earlier = pods(&[pod("a", "u0", "w1", &["10.0.0.1"])]);
    assert!(has(&announced, &earlier, "a").is_empty());
    // Without a uid from the runtime, the name identifies the pod.
    let mut announced = Announced::default();
    announced.add(id("c1"), of("a", None), some(&["10.0.0.1"]));
    assert_eq!(has(&announced, &api, "a"), [ip("10.0.0.1")]);
}

#[test]
fn what_is_told_of_one_pod_is_no_other_pods() {
    let mut announced = Announced::default();
    let api = pods(&[
        pod("old", "u1", "w1", &["10.0.0.1"]),
        pod("new", "u2", "w1", &[]),
        pod("elsewhere", "u3", "w2", &["10.0.0.1"]),
    ]);
    announced.add(id("c2"), of("new", Some("u2")), some(&["10.0.0.1"]));
    assert!(has(&announced, &api, "old").is_empty());
    assert_eq!(has(&announced, &api, "new"), [ip("10.0.0.1")]);
    assert_eq!(
        has(&announced, &api, "elsewhere"),
        [ip("10.0.0.1")],
        "not this node's business"
    );
    assert_eq!(
        announced.owner(&ip("10.0.0.1")),
        Some(of("new", Some("u2")).as_ref())
    );
    // A container that is no pod also takes an address over.
    announced.add(id("c3"), None, some(&["10.0.0.1"]));
    assert!(has(&announced, &api, "new").is_empty());
    assert_eq!(announced.owner(&ip("10.0.0.1")), Some(None));
}

#[test]
fn what_is_taken_back_is_gone_although_the_api_shows_it() {
    let mut announced = Announced::default();
    let api = pods(&[pod("a", "u1", "w1", &["10.0.0.1"])]);
    announced.add(id("c1"), of("a", Some("u1")), some(&["10.0.0.1"]));
    assert!(announced.remove(&id("c1"), None, BTreeSet::new()));
    assert!(has(&announced, &api, "a").is_empty());
    assert!(
        !announced.remove(&id("c1"), None, BTreeSet::new()),
        "a second time changes nothing"
    );
    // Its sandbox is recreated and gets the same address.
    announced.add(id("c2"), of("a", Some("u1")), some(&["10.0.0.1"]));
    assert_eq!(has(&announced, &api, "a"), [ip("10.0.0.1")]);
    // The late end of the first sandbox does not affect the second.
    announced.remove(&id("c1"), of("a", Some("u1")), some(&["10.0.0.1"]));
    assert_eq!(has(&announced, &api, "a"), [ip("10.0.0.1")]);
}

#[test]
fn a_pod_that_is_older_than_the_plugin_loses_its_address_too() {
    let mut announced = Announced::default();
    let api = pods(&[pod("a", "u1", "w1", &["10.0.0.1"])]);
    assert!(announced.remove(&id("c1"), of("a", Some("u1")), some(&["10.0.0.1"])));
    assert!(has(&announced, &api, "a").is_empty());
}

#[test]
fn an_address_that_was_never_taken_back_does_not_return_to_the_first_pod() {
    let mut announced = Announced::default();
    let api = pods(&[
        pod("a", "u1", "w1", &["10.0.0.1"]),
        pod("b", "u2", "w1", &[]),
    ]);
    announced.add(id("c1"), of("a", Some("u1")), some(&["10.0.0.1"]));
    announced.add(id("c2"), of("b", Some("u2")), some(&["10.0.0.1"]));
    announced.remove(&id("c2"), None, BTreeSet::new());
    assert!(has(&announced, &api, "a").is_empty());
    assert!(has(&announced, &api, "b").is_empty());
}

#[test]
fn what_is_over_is_forgotten() {
    let mut announced = Announced::default();
    let api = pods(&[pod("a", "u1", "w1", &["10.0.0.1"])]);
    announced.add(id("c1"), of("a", Some("u1")), some(&["10.0.0.1"]));
    let told = announced.clone();
    // The API is late: an attachment is not removed before its pod was shown.
    announced.forget(&Pods::new());
    assert_eq!(announced, told);
    announced.forget(&api);
    announced.forget(&Pods::new());
    assert_eq!(announced, Announced::default());
    // Released, and shown until the pod is gone.
    announced.add(id("c1"), of("a", Some("u1")), some(&["10.0.0.1"]));
    announced.remove(&id("c1"), None, BTreeSet::new());
    announced.forget(&api);
    assert_ne!(announced, Announced::default());
    announced.forget(&pods(&[pod("a", "u1", "w1", &[])]));
    assert_eq!(announced, Announced::default());
}

#[test]
fn garbage_is_whatever_is_not_named_and_it_survives_a_restart() {
    let mut announced = Announced::default();
    announced.add(id("c1"), of("a", Some("u1")), some(&["10.0.0.1"]));
    announced.add(id("c2"), of("b", Some("u2")), some(&["10.0.0.2"]));
    let text = serde_json::to_string(&announced).unwrap();
    assert_eq!(serde_json::from_str::<Announced>(&text).unwrap(), announced);
    assert!(announced.keep(&[id("c2")].into()));
    assert!(!announced.keep(&[id("c2")].into()));
    let api = pods(&[
        pod("a", "u1", "w1", &["10.0.0.1"]),
        pod("b", "u2", "w1", &[]),
    ]);
    assert!(has(&announced, &api, "a").is_empty());
    assert_eq!(has(&announced, &api, "b"), [ip("10.0.0.2")]);
}

#[test]
fn namespaces_that_no_policy_can_select_are_known_without_labels_of_pods() {
    let settings = Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: Vec::new(),
        hold_down_secs: 120,
    };
    let mut snapshot = Snapshot::empty(settings);
    let w1 = node_name("w1");
    let node = |name: &str, zone: &str| Node {
        name: node_name(name),
        labels: labels(&[("zone", zone)]),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        maintenance: Maintenance::default(),
    };
    snapshot.nodes.insert(w1.clone(), node("w1", "a"));
    for (name, team) in [("default", "x"), ("blue", "blue"), ("red", "red")] {
        let namespace = Namespace {
            name: name.into(),
            labels: labels(&[("team", team)]),
        };
        snapshot.namespaces.insert(name.into(), namespace);
    }
    assert!(!MaySelect::of(&snapshot, &w1).contains("default"));
    snapshot
        .policies
        .push(egress("default", "one", &["192.0.2.1"]));
    let found = MaySelect::of(&snapshot, &w1);
    assert!(found.contains("default") && !found.contains("blue") && !found.contains("unheard-of"));
    let by_label = |wanted: Namespaces, nodes: Option<LabelSelector>| {
        let mut policy = egress("", "cluster", &["192.0.2.1"]);
        policy.selection = Selection::Labels {
            namespaces: wanted,
            pods: selector(&[]),
            nodes,
        };
        policy
    };
    let blue = Namespaces::Labels(selector(&[("team", "blue")]));
    snapshot.policies.push(by_label(blue, None));
    let found = MaySelect::of(&snapshot, &w1);
    assert!(found.contains("blue") && found.contains("default") && !found.contains("red"));
    assert!(found.contains("unheard-of"), "its labels may match");
    // Pods of other nodes only.
    snapshot
        .policies
        .push(by_label(Namespaces::All, Some(selector(&[("zone", "b")]))));
    assert!(!MaySelect::of(&snapshot, &w1).contains("red"));
    snapshot.policies.push(by_label(Namespaces::All, None));
    assert!(MaySelect::of(&snapshot, &w1).contains("red"));
}
