//! Objects of earlier systems in a directory: their translations, statuses and findings.

use crate::scratch::{Scratch, settings};
use egret_core::model::{AddressRequest, Policy, Selection, Translation, WorkloadKind};
use egret_objects::dir::{DirSource, Settings};
use egret_objects::front_end::{self, FrontEnd};
use egret_objects::{Source, View};

fn serving(change: impl FnOnce(&mut front_end::Settings)) -> Settings {
    let mut front_ends = front_end::Settings {
        enabled: FrontEnd::ALL.into(),
        adopt_all: true,
        ..Default::default()
    };
    change(&mut front_ends);
    Settings {
        front_ends,
        ..settings()
    }
}

fn view_with(text: &str, settings: Settings) -> View {
    let scratch = Scratch::new();
    scratch.put("all.yaml", text);
    let mut source = DirSource::open(scratch.path(""), settings).unwrap();
    source.snapshot().unwrap()
}

fn view(text: &str) -> View {
    view_with(text, serving(|_| {}))
}

fn names(view: &View) -> Vec<String> {
    let policies = view.snapshot.policies.iter();
    policies.map(|policy| policy.object.to_string()).collect()
}

fn policy<'v>(view: &'v View, name: &str) -> &'v Policy {
    let mut found = view.snapshot.policies.iter();
    let found = found.find(|policy| policy.object.name == name);
    found.unwrap_or_else(|| panic!("{name} is not among {:?}", names(view)))
}

const RULE: &str = "{egressip: 192.0.2.1, service-name: web, cidr: 203.0.113.0/24}";

fn static_egress_ip(group: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {group}/v1alpha1\nkind: StaticEgressIP\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn mapper(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: egress.mapper.com/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn nothing_is_read_while_no_front_end_serves() {
    let text = static_egress_ip("staticegressips.io", "eip", "{rules: rubbish}");
    let view = view_with(&text, settings());
    assert!(view.snapshot.policies.is_empty() && view.findings.is_empty());
    assert!(view.front_ends.objects.is_empty());
    // Nor is an object of another front-end.
    let only = serving(|front_ends| front_ends.enabled = [FrontEnd::EgressMapper].into());
    let view = view_with(&text, only);
    assert!(view.snapshot.policies.is_empty() && view.findings.is_empty());
}

#[test]
fn the_same_name_in_three_systems_is_three_objects() {
    let spec = format!("{{rules: [{RULE}]}}");
    let text = [
        static_egress_ip("staticegressips.io", "same", &spec),
        static_egress_ip("staticegressips.nirmata.io", "same", &spec),
        mapper("Vip", "same", "{ip: 192.0.2.1}"),
        mapper("Egress", "same", "{ip: 192.0.2.1, kind: pod, name: a}"),
        "---\napiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: same}\nspec: {selector: {}, ip: 192.0.2.1}\n"
            .to_owned(),
    ];
    let view = view(&text.concat());
    assert!(view.findings.is_empty(), "{:#?}", view.findings);
    assert_eq!(
        names(&view),
        [
            "Egress default/same",
            "NirmataStaticEgressIP default/same:web:192.0.2.1",
            "StaticEgressIP default/same:web:192.0.2.1",
            "MapperVip default/same",
            "MapperEgress default/same",
        ]
    );
}

/// The original identified rules by the concatenation of namespace, name and index, without a separator.
#[test]
fn names_that_the_original_confused_are_different_policies() {
    let spec = format!("{{rules: [{RULE}]}}");
    let text = ["a", "b"].map(|namespace| {
        let name = if namespace == "a" { "bc" } else { "c" };
        let text = static_egress_ip("staticegressips.nirmata.io", name, &spec);
        let namespace = if namespace == "a" { "a" } else { "ab" };
        text.replace(
            "metadata: {",
            &format!("metadata: {{namespace: {namespace}, "),
        )
    });
    assert_eq!(names(&view(&text.concat())).len(), 2);
}

#[test]
fn order_of_rules_means_nothing_and_rules_of_one_pair_are_one_policy() {
    let other = "{egressip: 192.0.2.1, service-name: web, cidr: 198.51.100.7}";
    let third = "{egressip: 192.0.2.2, service-name: db, cidr: 0.0.0.0/0}";
    let policies = |rules: &[&str]| {
        let spec = format!("{{rules: [{}]}}", rules.join(", "));
        let view = view(&static_egress_ip(
            "staticegressips.nirmata.io",
            "eip",
            &spec,
        ));
        assert!(view.findings.is_empty(), "{:#?}", view.findings);
        let mut policies = view.snapshot.policies.clone();
        policies
            .iter_mut()
            .for_each(|policy| policy.created_secs = 0);
        policies
    };
    let first = policies(&[RULE, other, third]);
    assert_eq!(first, policies(&[third, other, RULE]));
    assert_eq!(first.len(), 2);
    let cidrs: Vec<String> = first[1]
        .destinations
        .iter()
        .flatten()
        .map(|destination| destination.cidr.to_string())
        .collect();
    assert_eq!(cidrs, ["198.51.100.7/32", "203.0.113.0/24"]);
}

#[test]
fn a_bad_rule_is_named_and_the_good_ones_stay() {
    let rules = [
        "{egressip: 192.0.2.300, service-name: web, cidr: 203.0.113.0/24}",
        RULE,
        "{egressip: 192.0.2.1, cidr: 203.0.113.0/24}",
        "{egressip: 192.0.2.1, service-name: web, cidr: 203.0.113.1/24}",
        "{egressip: 192.0.2.9, service-name: web, cidr: 203.0.113.0/24}",
        "{egressip: 192.0.2.1, service-name: web, cidr: '2001:db8::/32'}",
        "7",
    ];
    let spec = format!("{{rules: [{}]}}", rules.join(", "));
    let view = view(&static_egress_ip(
        "staticegressips.nirmata.io",
        "eip",
        &spec,
    ));
    assert_eq!(
        names(&view),
        ["NirmataStaticEgressIP default/eip:web:192.0.2.1"]
    );
    let fields: Vec<&str> = view.findings.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.rules[0].egressip",
            "spec.rules[2].service-name",
            "spec.rules[3].cidr",
            "spec.rules[4].egressip",
            "spec.rules[5].cidr",
            "spec.rules[6].cidr",
            "spec.rules[6].egressip",
            "spec.rules[6].service-name",
        ]
    );
}

#[test]
fn the_forks_next_hop_is_a_policy_without_address() {
    for table in [
        "routing-table-id: 100",
        "routing-table-id: '100'",
        "routing-table: vlan",
    ] {
        let rule = RULE.replace('{', &format!("{{{table}, "));
        let spec = format!("{{gateway-label: example.com/gw, rules: [{rule}, {RULE}]}}");
        let view = view(&static_egress_ip("staticegressips.io", "eip", &spec));
        assert!(view.findings.is_empty(), "{:#?}", view.findings);
        let hop = policy(&view, "eip:web:192.0.2.1:next-hop");
        let next_hop = "192.0.2.1".parse().unwrap();
        assert_eq!(hop.translation, Translation::None { next_hop });
        assert_eq!(hop.addresses, AddressRequest::Fixed(Vec::new()));
        assert_eq!(
            policy(&view, "eip:web:192.0.2.1").translation,
            Translation::Leased
        );
        // The original's group has no such fields.
        let again = self::view(&static_egress_ip(
            "staticegressips.nirmata.io",
            "eip",
            &spec,
        ));
        assert_eq!(names(&again).len(), 1);
    }
    let none = RULE.replace('{', "{routing-table-id: 0, routing-table: '', ");
    let view = view(&static_egress_ip(
        "staticegressips.io",
        "eip",
        &format!("{{rules: [{none}]}}"),
    ));
    assert_eq!(
        policy(&view, "eip:web:192.0.2.1").translation,
        Translation::Leased
    );
}

fn node(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

#[test]
fn gateways_choose_themselves_where_nobody_named_any() {
    let nodes = [
        node("cp-new", "node-role.kubernetes.io/control-plane: ''"),
        node("cp-old", "node-role.kubernetes.io/master: ''"),
        node("w1", ""),
        node("w2", "example.com/gw: ''"),
    ];
    let spec = |more: &str| format!("{{{more}rules: [{RULE}]}}");
    let chosen = |view: &View, name: &str| -> Vec<String> {
        let gateway = policy(view, name).gateway.clone().expect("a gateway");
        let gateway = &view.snapshot.gateways[&gateway];
        let nodes = view.snapshot.nodes.values();
        nodes
            .filter(|node| gateway.nodes.matches(&node.labels))
            .map(|node| node.name.0.clone())
            .collect()
    };
    let name = "eip:web:192.0.2.1";
    let plain = static_egress_ip("staticegressips.io", "eip", &spec(""));
    let found = view(&(nodes.concat() + &plain));
    assert_eq!(chosen(&found, name), ["w1", "w2"]);
    let labelled = static_egress_ip(
        "staticegressips.io",
        "eip",
        &spec("gateway-label: example.com/gw, "),
    );
    let found = view(&(nodes.concat() + &labelled));
    assert_eq!(chosen(&found, name), ["w2"]);
    // A cluster of one node, which is also the control plane.
    let found = view(&(nodes[0].clone() + &plain));
    assert_eq!(chosen(&found, name), ["cp-new"]);
    // An EgressGateway of the cluster is used, and none is generated.
    let own = "---\napiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {name: own}\nspec: {nodeSelector: {}}\n";
    let found = view(&(nodes.concat() + &plain + own));
    assert_eq!(policy(&found, name).gateway, None);
    assert_eq!(found.snapshot.gateways.len(), 1);
}

#[test]
fn an_egress_names_pods_workloads_and_their_short_names() {
    let vip = mapper("Vip", "vip", "{ip: 192.0.2.1}");
    for (text, kind) in [
        ("pod", WorkloadKind::Pod),
        ("Deployment", WorkloadKind::Deployment),
        ("deploy", WorkloadKind::Deployment),
        ("ReplicaSet", WorkloadKind::ReplicaSet),
        ("statefulset", WorkloadKind::StatefulSet),
        ("ds", WorkloadKind::DaemonSet),
        ("rc", WorkloadKind::ReplicationController),
    ] {
        let spec = format!("{{ip: 192.0.2.1, kind: {text}, namespace: shop, name: web}}");
        let view = view(&(vip.clone() + &mapper("Egress", "e", &spec)));
        assert!(view.findings.is_empty(), "{:#?}", view.findings);
        let wanted = Selection::Workload {
            namespace: "shop".into(),
            kind,
            name: "web".into(),
        };
        assert_eq!(policy(&view, "e").selection, wanted);
    }
    let spec = "{ip: 192.0.2.1, kind: planet, name: web}";
    let view = view(&(vip + &mapper("Egress", "e", spec)));
    assert_eq!(view.findings[0].field, "spec.kind");
    assert_eq!(view.snapshot.policies.len(), 1, "the Vip alone");
}

#[test]
fn only_administrators_speak_for_other_namespaces() {
    let vip = mapper("Vip", "vip", "{ip: 192.0.2.1}");
    let of = |own: &str, pods: &str| {
        let spec = format!("{{ip: 192.0.2.1, kind: pod, namespace: {pods}, name: a}}");
        let text = mapper("Egress", "e", &spec);
        text.replace("metadata: {", &format!("metadata: {{namespace: {own}, "))
    };
    for (own, pods, taken) in [
        ("default", "shop", true),
        ("shop", "shop", true),
        ("shop", "default", false),
    ] {
        let view = view(&(vip.clone() + &of(own, pods)));
        assert_eq!(
            view.findings.is_empty(),
            taken,
            "{own} {pods}: {:#?}",
            view.findings
        );
        assert_eq!(names(&view).len(), 1 + usize::from(taken));
    }
    // A Vip of a namespace serves only that namespace.
    let theirs = vip.replace("metadata: {", "metadata: {namespace: shop, ");
    let found = view(&(theirs.clone() + &of("shop", "shop")));
    assert!(found.findings.is_empty());
    let found = view(&(theirs + &of("default", "default")));
    assert_eq!(found.findings[0].field, "spec.ip");
    // Refused, but its pods must not leave with another address.
    assert_eq!(
        policy(&found, "e").addresses,
        AddressRequest::Fixed(Vec::new())
    );
}

#[test]
fn the_older_of_two_mappers_counts_and_others_are_told() {
    let older = mapper(
        "EgressMapper",
        "z",
        "{PodSubnet: '10.244.0.0/16,10.248.0.0/255.255.0.0', ServiceSubnet: '10.96.0.0/12,10.112.0.0/12'}",
    );
    let older = older.replace(
        "metadata: {",
        "metadata: {creationTimestamp: '2020-01-01T00:00:00Z', ",
    );
    let younger = mapper("EgressMapper", "a", "{PodSubnet: 0.0.0.0/0}");
    let found = view(&(younger + &older));
    let never: Vec<String> = found
        .snapshot
        .settings
        .never_destinations
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(never, ["10.244.0.0/16", "10.248.0.0/16"]);
    assert_eq!(found.findings.len(), 1);
    assert_eq!(found.findings[0].object.name, "a");
    // Of a namespace that is not administrating, not even if it is the only one.
    let theirs = older.replace("metadata: {", "metadata: {namespace: shop, ");
    let found = view(&theirs);
    assert!(found.snapshot.settings.never_destinations.is_empty());
    assert_eq!(found.findings[0].field, "metadata.namespace");
}

#[test]
fn what_is_not_adopted_is_named_and_nothing_else_is_done() {
    let text = static_egress_ip("staticegressips.io", "eip", &format!("{{rules: [{RULE}]}}"));
    let asks = || serving(|front_ends| front_ends.adopt_all = false);
    let found = view_with(&text, asks());
    assert!(found.snapshot.policies.is_empty() && found.front_ends.objects.is_empty());
    assert_eq!(
        found.findings[0].field,
        "metadata.annotations[egret.dev/adopt]"
    );
    for (value, taken) in [("\"true\"", true), ("\"yes\"", false), ("true", false)] {
        let annotated = text.replace(
            "metadata: {",
            &format!("metadata: {{annotations: {{egret.dev/adopt: {value}}}, "),
        );
        let found = view_with(&annotated, asks());
        assert_eq!(found.snapshot.policies.len(), usize::from(taken), "{value}");
    }
}
