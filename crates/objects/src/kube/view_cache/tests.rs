//! The cache gives the same view as a computation of everything, whatever the watches report. That computation is
//! written here a second time, without a cache.

use super::*;
use crate::convert::cluster::Slice;
use crate::kube::entry::Observed;
use crate::kube::store::{State, Store};
use crate::kube::watch::{Pods, Records, Which};
use crate::kube::watched::{News, Watched};
use egret_api as api;
use egret_core::model::UnpooledAddresses;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::PartialObjectMeta;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

const KINDS: u8 = 13;

#[derive(Clone, Debug)]
enum Step {
    /// Put an object of this kind and number, with this content.
    Put(u8, u8, u8),
    Gone(u8, u8),
    /// The watch lists again: objects with these numbers, with this content.
    List(u8, Vec<u8>, u8),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    let (kind, name, content) = (0..KINDS, 0u8..4, 0u8..4);
    prop_oneof![
        12 => (kind.clone(), name.clone(), content.clone()).prop_map(|(k, n, c)| Step::Put(k, n, c)),
        4 => (kind.clone(), name.clone()).prop_map(|(k, n)| Step::Gone(k, n)),
        1 => (kind, prop::collection::vec(name, 0..4), content).prop_map(|(k, n, c)| Step::List(k, n, c)),
        6 => Just(Step::Look),
    ]
}

fn watch(kind: u8) -> Watch {
    let which = || Which::One("default".into(), "s0".into());
    match kind {
        0 => Watch::Pods(Pods::All),
        1 => Watch::Nodes,
        2 => Watch::Egresses,
        3 => Watch::Addresses,
        4 => Watch::Records(Records::All),
        5 => Watch::Records(Records::OfGateways),
        6 => Watch::Services(which()),
        7 => Watch::Slices(which()),
        8 => Watch::ServiceCidrs,
        9 => Watch::Namespaces,
        10 => Watch::Gateways,
        11 => Watch::Plugin(Kind::CalicoIPPool),
        _ => Watch::Pools,
    }
}

fn observed<K: Observed + DeserializeOwned>(object: Json) -> (ObjectRef, Entry) {
    serde_json::from_value::<K>(object).unwrap().observe()
}

/// A manifest of this kind.
fn manifest(
    (kind, name): (&str, String),
    namespace: Option<&str>,
    labels: &Json,
    rest: &[(&str, Json)],
) -> Json {
    let mut object = json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "uid": name},
    });
    // Objects of the cluster's kinds have their types already.
    if !kind.is_empty() {
        object["apiVersion"] = json!(api::API_VERSION);
        object["kind"] = json!(kind);
    }
    for (field, value) in rest {
        object[*field] = value.clone();
    }
    object
}

/// An object of one of the cluster's kinds.
fn of_cluster(kind: u8, number: u8, content: u8) -> Json {
    let some = Some("default");
    let labels = json!({"app": content.to_string()});
    let named = |letter: &str| ("", format!("{letter}{number}"));
    let address = format!("10.0.{content}.{number}");
    match kind {
        0 => {
            // One in four is not bound to a node yet.
            let spec = match content {
                0 => json!({"containers": []}),
                _ => json!({"containers": [], "nodeName": "n1"}),
            };
            let status = json!({"podIPs": [{"ip": address}]});
            manifest(
                named("p"),
                some,
                &labels,
                &[("spec", spec), ("status", status)],
            )
        }
        1 => manifest(named("n"), None, &labels, &[]),
        6 => {
            let spec = json!({"clusterIPs": [format!("10.96.0.{content}")], "selector": labels});
            manifest(named("s"), some, &labels, &[("spec", spec)])
        }
        7 => {
            let service = if content == 3 { "kubernetes" } else { "s0" };
            let labels = json!({"kubernetes.io/service-name": service});
            let endpoints = ("endpoints", json!([{"addresses": [address]}]));
            let family = ("addressType", json!("IPv4"));
            manifest(named("x"), some, &labels, &[family, endpoints])
        }
        8 => {
            let spec = json!({"cidrs": [format!("10.{}.0.0/16", 100 + content)]});
            manifest(named("c"), None, &labels, &[("spec", spec)])
        }
        11 => {
            let spec = json!({"cidr": format!("10.{}.0.0/16", 200 + content)});
            manifest(named("i"), None, &labels, &[("spec", spec)])
        }
        _ => manifest(named("d"), None, &labels, &[]),
    }
}

/// An object of one of our kinds. One in four has no status yet.
fn of_ours(kind: u8, number: u8, content: u8) -> Json {
    let named = |letter: &str| format!("{letter}{number}");
    let labels = json!({"app": content.to_string()});
    let mut status = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "Fine", "message": content.to_string(),
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]});
    let (kind, namespace, name, spec) = match kind {
        2 => {
            status["addresses"] = json!(["192.0.2.1"]);
            let spec = json!({"selector": {"app": "a"}, "pool": "many"});
            ("Egress", Some("default"), named("e"), spec)
        }
        3 => {
            let address: IpAddr = format!("192.0.2.{number}").parse().unwrap();
            // One in four cannot be read.
            let leases = match content {
                3 => {
                    json!([{"node": "n", "ranges": ["x"], "epoch": 1, "state": "Active", "since": "2026-01-01T00:00:00Z"}])
                }
                _ => json!([]),
            };
            let spec = json!({"address": address.to_string(), "gateway": "main", "epoch": content, "leases": leases});
            (
                "EgressAddress",
                None,
                api::address_object_name(address),
                spec,
            )
        }
        4 | 5 => {
            status["steeringVersion"] = json!(content);
            if content == 2 {
                status["demand"] = json!([{"address": "x", "ports": 1}]);
            }
            let grants = match content {
                3 => json!([{"address": "x", "gateway": "main", "ranges": [], "epoch": 1}]),
                _ => json!([]),
            };
            let spec = json!({"tunnelIndex": number + 1, "grants": grants});
            ("EgressNode", None, named("n"), spec)
        }
        10 => {
            let spec = json!({"nodeSelector": {"matchLabels": labels}});
            ("EgressGateway", None, named("g"), spec)
        }
        _ => {
            let cidrs = json!([format!("192.0.{content}.0/24")]);
            let spec = json!({"cidrs": cidrs, "gateway": "g0", "namespaces": {"all": true}});
            ("EgressPool", None, named("l"), spec)
        }
    };
    let mut object = manifest((kind, name), namespace, &labels, &[("spec", spec)]);
    if content > 0 {
        object["status"] = status;
    }
    object
}

fn object(kind: u8, number: u8, content: u8, version: u64) -> (ObjectRef, Entry) {
    let mut whole = match kind {
        2..=5 | 10 | 12.. => of_ours(kind, number, content),
        _ => of_cluster(kind, number, content),
    };
    whole["metadata"]["resourceVersion"] = json!(version.to_string());
    let (name, mut entry) = match kind {
        0 => observed::<core::Pod>(whole),
        1 => observed::<core::Node>(whole),
        2 => observed::<api::Egress>(whole),
        3 => observed::<api::EgressAddress>(whole),
        4 | 5 => observed::<api::EgressNode>(whole),
        6 => observed::<core::Service>(whole),
        7 => observed::<EndpointSlice>(whole),
        8 => observed::<ServiceCIDR>(whole),
        9 => observed::<PartialObjectMeta<core::Namespace>>(whole),
        10 => observed::<api::EgressGateway>(whole),
        11 => {
            let object = serde_json::from_value(whole).unwrap();
            crate::kube::entry::of_plugin(Kind::CalicoIPPool, object)
        }
        _ => observed::<api::EgressPool>(whole),
    };
    if content == 2 && number == 1 {
        entry.value = Value::Nothing;
        entry.findings = vec![Finding {
            object: name.clone(),
            field: "spec".into(),
            value: content.to_string(),
            remedy: "write something else".into(),
        }];
    }
    (name, entry)
}

fn settings() -> Settings {
    Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        hold_down_secs: 120,
    }
}

/// The view, computed from everything.
fn whole(state: &State) -> View {
    let mut view = View::empty(&settings());
    let mut slices: Vec<Slice> = Vec::new();
    let mut newest: BTreeMap<(&ObjectRef, bool), &Entry> = BTreeMap::new();
    for (object, entry) in state.watches.values().flat_map(|watched| &watched.objects) {
        let is_cidr = matches!(entry.value, Value::ServiceCidrs(_));
        let known = newest.entry((object, is_cidr)).or_insert(entry);
        if known.version < entry.version {
            *known = entry;
        }
    }
    for ((object, _), entry) in newest {
        view.findings.extend(entry.findings.iter().cloned());
        let snapshot = &mut view.snapshot;
        let unreadable = &mut snapshot.unreadable;
        if let (Value::Address(record), true) = (&entry.value, entry.gaps.spec) {
            unreadable.addresses.insert(record.address);
        }
        if object.kind == Kind::EgressNode {
            let name = NodeName(object.name.clone());
            let gaps = [
                (entry.gaps.spec, &mut unreadable.nodes),
                (entry.gaps.demand, &mut unreadable.demand),
            ];
            for (gap, names) in gaps {
                if gap {
                    names.insert(name.clone());
                }
            }
        }
        match &entry.value {
            Value::Nothing | Value::Foreign(_) => continue,
            Value::PodPrefixes(prefixes) => snapshot.pod_prefixes.extend(prefixes),
            Value::Policy(one) => snapshot.policies.push(one.as_ref().clone()),
            Value::Gateway(one) => drop(snapshot.gateways.insert(one.name.clone(), *one.clone())),
            Value::Pool(one) => drop(snapshot.pools.insert(one.name.clone(), *one.clone())),
            Value::Address(one) => drop(snapshot.addresses.insert(one.address, one.clone())),
            Value::Record(one) => drop(snapshot.node_records.insert(one.node.clone(), one.clone())),
            Value::Namespace(one) => {
                drop(snapshot.namespaces.insert(one.name.clone(), one.clone()))
            }
            Value::Node(one) => drop(snapshot.nodes.insert(one.name.clone(), one.clone())),
            Value::Pod(one) => {
                let key = (one.namespace.clone(), one.name.clone());
                snapshot.pods.insert(key, one.clone());
            }
            Value::Service(one) => {
                let key = (one.namespace.clone(), one.name.clone());
                snapshot.services.insert(key, one.as_ref().clone());
            }
            Value::Slice(slice) => slices.push(slice.clone()),
            Value::ServiceCidrs(ranges) => snapshot.settings.service_cidrs.extend(ranges),
        }
        add_status(&mut view, object, entry);
    }
    cluster::add_endpoints(&mut view.snapshot, slices);
    view.findings.sort();
    view.findings.dedup();
    view.snapshot.settings.service_cidrs.sort();
    view.snapshot.settings.service_cidrs.dedup();
    view
}

fn add_status(view: &mut View, object: &ObjectRef, entry: &Entry) {
    match (&entry.value, &entry.status) {
        (Value::Policy(_), Status::Policy(status)) => {
            view.policies
                .insert(object.clone(), convert::policy_status(status));
        }
        (Value::Gateway(gateway), Status::Gateway(status)) => {
            view.gateways
                .insert(gateway.name.clone(), convert::gateway_status(status));
        }
        (Value::Pool(pool), Status::Pool(status)) => {
            view.pools
                .insert(pool.name.clone(), convert::pool_status(status));
        }
        (Value::Address(record), Status::Address(status)) => {
            view.addresses
                .insert(record.address, convert::address_status(status));
        }
        (Value::Record(record), Status::Node(status)) => {
            view.nodes
                .insert(record.node.clone(), convert::node_report(status));
        }
        _ => {}
    }
}

fn carry_out(store: &Store, step: &Step, version: u64) {
    match step {
        Step::Put(kind, number, content) => {
            let (name, entry) = object(*kind, *number, *content, version);
            store.take(&watch(*kind), News::Put(name, entry));
        }
        Step::Gone(kind, number) => {
            let (name, _) = object(*kind, *number, 0, version);
            store.take(&watch(*kind), News::Gone(name, version));
        }
        Step::List(kind, numbers, content) => {
            let watch = watch(*kind);
            store.take(&watch, News::Begin);
            for number in numbers {
                let (name, entry) = object(*kind, *number, *content, version);
                store.take(&watch, News::Listed(name, entry));
            }
            store.take(&watch, News::End);
        }
        Step::Look => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_a_look_at_everything_gives(steps in prop::collection::vec(step(), 1..120)) {
        let store = Store::default();
        for kind in 0..KINDS {
            store.lock().watches.insert(watch(kind), Watched::default());
        }
        for (version, step) in (1u64..).zip(&steps) {
            carry_out(&store, step, version);
            if matches!(step, Step::Look) {
                let mut state = store.lock();
                let kept = state.view(&settings());
                prop_assert_eq!(&kept, &whole(&state));
            }
        }
        let mut state = store.lock();
        let kept = state.view(&settings());
        prop_assert_eq!(kept, whole(&state));
    }
}

/// A watch repeats an event after another watch has reported another one.
#[test]
fn what_one_watch_tells_again_counts_if_it_is_newer_than_what_another_told() {
    let store = Store::default();
    for kind in [4, 5] {
        store.lock().watches.insert(watch(kind), Watched::default());
    }
    carry_out(&store, &Step::Put(5, 1, 2), 1);
    carry_out(&store, &Step::Put(4, 1, 0), 2);
    let look = |store: &Store| {
        let mut state = store.lock();
        let kept = state.view(&settings());
        assert_eq!(kept, whole(&state));
    };
    look(&store);
    carry_out(&store, &Step::Put(5, 1, 2), 3);
    look(&store);
    carry_out(&store, &Step::Put(4, 1, 0), 4);
    look(&store);
    carry_out(&store, &Step::List(5, vec![1], 2), 5);
    look(&store);
}

#[test]
fn a_view_shares_with_the_one_before_what_did_not_change() {
    let store = Store::default();
    store.lock().watches.insert(watch(0), Watched::default());
    store.lock().watches.insert(watch(2), Watched::default());
    let put = |kind: u8, number: u8, content: u8, version: u64| {
        let (name, entry) = object(kind, number, content, version);
        store.take(&watch(kind), News::Put(name, entry));
        store.lock().view(&settings())
    };
    put(0, 0, 1, 1);
    let before = put(2, 0, 1, 2);
    // A heartbeat, and a policy of which only the status changed.
    put(0, 0, 1, 3);
    let after = put(2, 0, 3, 4);
    let key = ("default".to_owned(), "p0".to_owned());
    let pod = |view: &View| Arc::as_ptr(view.snapshot.pods.get_shared(&key).unwrap());
    assert_eq!(pod(&before), pod(&after));
    assert!(std::ptr::eq(
        &*before.snapshot.policies,
        &*after.snapshot.policies
    ));
    assert_ne!(before.policies, after.policies);
}
