//! `egret convert` on samples of every system: the output in the tree beside the input equals the converter's, and is
//! valid for Egret. `EGRET_BLESS=1` rewrites the outputs.

use egret_migrate::convert;
use egret_objects::Source;
use egret_objects::dir::{DirSource, Settings};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/migrating/samples")
}

fn inputs() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(samples()).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_input = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.ends_with(".yaml") && !name.ends_with(".out.yaml")
    };
    let mut inputs: Vec<PathBuf> = paths.filter(is_input).collect();
    inputs.sort();
    inputs
}

fn said(output: &convert::Output) -> String {
    let lost: String = output
        .losses
        .iter()
        .map(|loss| format!("lost: {loss}\n"))
        .collect();
    let passed: String = output
        .passed_over
        .iter()
        .map(|object| format!("passed over: {object}\n"))
        .collect();
    passed + &lost
}

#[test]
fn samples_convert_to_what_is_in_the_tree() {
    let bless = std::env::var_os("EGRET_BLESS").is_some();
    assert!(inputs().len() >= 8, "{:?}", inputs());
    for path in inputs() {
        let output = convert::convert(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for (suffix, text) in [
            ("out.yaml", output.text.clone()),
            ("lost.txt", said(&output)),
        ] {
            let golden = path.with_extension(suffix);
            if bless {
                std::fs::write(&golden, &text).unwrap();
            }
            let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
            assert_eq!(text, wanted, "{}", golden.display());
        }
    }
}

/// Egret reads the output without a finding, with the expected number of policies.
#[test]
fn what_samples_convert_to_is_good() {
    for path in inputs() {
        let output = convert::convert(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), &output.text).unwrap();
        let settings = Settings {
            record: false,
            ..Settings::default()
        };
        let mut source = DirSource::open(folder.path(), settings).unwrap();
        let view = source.snapshot().unwrap();
        assert!(
            view.findings.is_empty(),
            "{}: {:#?}",
            path.display(),
            view.findings
        );
        let written = output.text.matches("kind: Egress\n").count()
            + output.text.matches("kind: ClusterEgress\n").count();
        assert_eq!(view.snapshot.policies.len(), written, "{}", path.display());
        assert!(written > 0, "{}", path.display());
    }
}

#[test]
fn a_field_that_nobody_knows_is_named_with_its_place() {
    let output = convert::convert(
        "apiVersion: k8s.ovn.org/v1\nkind: EgressIP\nmetadata: {name: e}\n\
         spec: {egressIPs: [192.0.2.1], namespaceSelector: {}, trafficSelector: {matchLabels: {a: b}}}\n",
    )
    .unwrap();
    let lost: Vec<String> = output.losses.iter().map(ToString::to_string).collect();
    assert_eq!(
        lost,
        [
            "EgressIP e: spec.trafficSelector ({\"matchLabels\":{\"a\":\"b\"}}): Egret has no equal for it"
        ]
    );
    assert!(
        output
            .text
            .contains("# lost: EgressIP e: spec.trafficSelector")
    );
}

#[test]
fn nothing_is_lost_where_everything_has_an_equal() {
    let text = std::fs::read_to_string(samples().join("kep.yaml")).unwrap();
    let output = convert::convert(&text).unwrap();
    assert!(output.losses.is_empty(), "{:?}", output.losses);
    let only = output.text.replace("---\n", "");
    assert!(
        only.starts_with("apiVersion: egret.dev/v1alpha1\nkind: Egress\n"),
        "{only}"
    );
}

fn lost(output: &convert::Output) -> Vec<String> {
    output.losses.iter().map(ToString::to_string).collect()
}

/// Whether one of the losses is about this field and contains these words.
fn names(output: &convert::Output, field: &str, words: &str) -> bool {
    let mut losses = output.losses.iter();
    losses.any(|loss| loss.field == field && loss.to_string().contains(words))
}

#[test]
fn host_bits_are_taken_as_the_network_and_what_is_no_prefix_is_named() {
    let rule = |cidr: &str| {
        format!(
            "apiVersion: staticegressips.nirmata.io/v1alpha1\nkind: StaticEgressIP\nmetadata: {{name: s}}\n\
             spec: {{rules: [{{egressip: 192.0.2.1, service-name: web, {cidr}}}]}}\n"
        )
    };
    let output = convert::convert(&rule("cidr: 172.30.1.103/24")).unwrap();
    assert!(
        output.text.contains("cidr: 172.30.1.0/24"),
        "{}",
        output.text
    );
    assert_eq!(lost(&output), [] as [&str; 0]);
    for without in ["cidr: ''", "cidr: 172.30.1", "other: 1"] {
        let output = convert::convert(&rule(without)).unwrap();
        assert!(!output.text.contains("kind: Egress\n"), "{}", output.text);
        assert!(
            names(&output, "spec.rules[0].cidr", "left out"),
            "{without}"
        );
    }
}

#[test]
fn nothing_is_made_of_a_policy_whose_destinations_say_nothing() {
    let coil = |destinations: &str| {
        format!(
            "apiVersion: coil.cybozu.com/v2\nkind: Egress\nmetadata: {{name: nat, namespace: shop}}\n\
             spec: {{{destinations}}}\n"
        )
    };
    for none in [
        "",
        "destinations: []",
        "destinations: ['']",
        "destinations: [x]",
    ] {
        let output = convert::convert(&coil(none)).unwrap();
        assert!(
            !output.text.contains("kind: ClusterEgress"),
            "{}",
            output.text
        );
        assert!(
            names(&output, "spec.destinations", "nothing is made of it"),
            "{none}"
        );
    }
    let output = convert::convert(&coil("destinations: ['', 10.1.2.3/8]")).unwrap();
    assert!(output.text.contains("cidr: 10.0.0.0/8"), "{}", output.text);
    assert!(names(&output, "spec.destinations[0]", "left out"));
}

/// coil's annotation lists several of its objects; a label has one value.
#[test]
fn a_pod_can_have_the_labels_of_two_objects_of_coil() {
    let output = convert::convert(
        "apiVersion: coil.cybozu.com/v2\nkind: Egress\nmetadata: {name: one, namespace: nat}\n\
         spec: {destinations: [198.51.100.0/24]}\n---\n\
         apiVersion: coil.cybozu.com/v2\nkind: Egress\nmetadata: {name: two, namespace: nat}\n\
         spec: {destinations: [203.0.113.0/24]}\n---\n\
         apiVersion: v1\nkind: Pod\n\
         metadata: {name: p, namespace: shop, annotations: {egress.coil.cybozu.com/nat: 'one, two'}}\n",
    )
    .unwrap();
    let labels = [
        "egress.coil.cybozu.com/nat.one",
        "egress.coil.cybozu.com/nat.two",
    ];
    for label in labels {
        assert!(output.text.contains(label), "{}", output.text);
        assert!(names(
            &output,
            "metadata.name",
            &format!("(Pod shop/p) the label {label}=true")
        ));
    }
}

#[test]
fn kinds_that_are_not_converted_are_named_as_such() {
    for (version, kind) in [
        ("k8s.ovn.org/v1", "EgressService"),
        (
            "egressgateway.kubernetes.azure.com/v1alpha1",
            "StaticGatewayConfiguration",
        ),
        ("kubeovn.io/v1", "VpcEgressGateway"),
        ("kubeovn.io/v1", "OvnSnatRule"),
        ("projectcalico.org/v3", "EgressGatewayPolicy"),
    ] {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n");
        let output = convert::convert(&text).unwrap();
        assert!(
            names(&output, "kind", "this kind is not converted"),
            "{:?}",
            lost(&output)
        );
        assert!(output.text.contains("# lost: "), "{}", output.text);
        assert_eq!(output.passed_over, [] as [&str; 0]);
    }
}

/// Typical texts in fields, of people and tools.
fn word() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        " ",
        "x",
        "a b",
        "-",
        "*",
        "MyApp",
        "192.0.2.1",
        "192.0.2.1/32",
        "172.30.1.103/24",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "::/0",
        "fd00::1",
        "fd00::1/64",
        "192.0.2.1-192.0.2.9",
        "192.0.2.9-192.0.2.1",
        "300.1.1.1/99",
        "127.0.0.1",
        "::ffff:1.2.3.4",
        "true",
        "~",
        "a: b",
        "# c",
        "- d",
        "---",
        "{}",
        "ü",
        "line\nbreak",
        "\u{85}next",
        "\u{2028}",
        "web",
        "Deployment",
        "0",
        "65536",
        "In",
        "Exists",
    ])
}

fn leaf() -> impl Strategy<Value = Json> {
    prop_oneof![
        8 => word().prop_map(Json::from),
        1 => Just(Json::Null),
        1 => any::<i32>().prop_map(Json::from),
        1 => any::<bool>().prop_map(Json::from),
        1 => Just(json!({})),
        1 => Just(json!([])),
    ]
}

fn list() -> impl Strategy<Value = Json> {
    prop_oneof![
        6 => prop::collection::vec(leaf(), 0..4).prop_map(Json::from),
        1 => leaf(),
    ]
}

fn labels() -> impl Strategy<Value = Json> {
    let pairs = prop::collection::vec((word(), leaf()), 0..3);
    let map = |pairs: Vec<(&str, Json)>| -> Json {
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let expression = (word(), word(), list()).prop_map(
        |(key, operator, values)| json!({"key": key, "operator": operator, "values": values}),
    );
    let expressions = prop::collection::vec(expression, 0..2);
    prop_oneof![
        4 => (pairs.prop_map(map), expressions)
            .prop_map(|(labels, all)| json!({"matchLabels": labels, "matchExpressions": all})),
        1 => leaf(),
    ]
}

/// Objects of all kinds that are converted, with any value in any field.
fn object() -> impl Strategy<Value = Json> {
    let kinds = prop::sample::select(vec![
        ("v1", "Egress"),
        ("staticegressips.nirmata.io/v1alpha1", "StaticEgressIP"),
        ("staticegressips.io/v1", "StaticEgressIP"),
        ("egress.mapper.com/v1", "Egress"),
        ("egress.mapper.com/v1", "Vip"),
        ("egress.mapper.com/v1", "EgressMapper"),
        ("cilium.io/v2", "CiliumEgressGatewayPolicy"),
        ("k8s.ovn.org/v1", "EgressIP"),
        ("crd.antrea.io/v1beta1", "Egress"),
        ("crd.antrea.io/v1beta1", "ExternalIPPool"),
        ("egressgateway.spidernet.io/v1beta1", "EgressGateway"),
        ("egressgateway.spidernet.io/v1beta1", "EgressPolicy"),
        ("egressgateway.spidernet.io/v1beta1", "EgressClusterPolicy"),
        ("coil.cybozu.com/v2", "Egress"),
        ("egret.dev/v1alpha1", "Egress"),
        ("v1", "ConfigMap"),
        ("k8s.ovn.org/v1", "EgressService"),
    ]);
    let name = prop_oneof![3 => Just("a"), 3 => Just("b"), 1 => word()];
    let fields = (
        (list(), list(), list(), labels(), labels()),
        (leaf(), leaf(), leaf(), leaf(), labels()),
        (word(), word(), leaf(), leaf(), leaf()),
    );
    (kinds, name, leaf(), fields).prop_map(
        |((version, kind), name, other, ((l1, l2, l3, s1, s2), (a, b, c, d, s3), (key, value, e, f, g)))| {
            json!({
                "apiVersion": version, "kind": kind,
                "metadata": {"name": name, "namespace": "default", "labels": {"l": other}},
                "data": {key: value},
                "spec": {
                    "ip": a, "ips": l1, "pool": b, "selector": e, "routeid": c, "kind": "deploy", "name": d,
                    "podSelector": s1, "namespaceSelector": s2,
                    "gateway-label": f, "rules": [
                        {"egressip": a, "service-name": b, "cidr": key}, {"egressip": c, "service-name": d, "cidr": value},
                    ],
                    "destinationCIDRs": l1, "excludedCIDRs": l2,
                    "selectors": [{"podSelector": s1}, {"namespaceSelector": s2, "podSelector": s3}],
                    "egressGateway": {"nodeSelector": s3, "egressIP": a, "interface": g},
                    "egressGateways": [],
                    "egressIPs": l3, "egressIP": e, "externalIPPool": f,
                    "appliedTo": {"podSelector": s1, "namespaceSelector": s2, "podSubnet": l2},
                    "ipRanges": [{"cidr": key}, {"start": a, "end": b}], "nodeSelector": {"selector": s3},
                    "ippools": {"ipv4": l1, "ipv6": l2}, "clusterDefault": true,
                    "egressGatewayName": g, "destSubnet": l3, "destinations": l1, "replicas": 1,
                },
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// `egret plan` accepts the output for any input.
    #[test]
    fn what_is_printed_is_taken(objects in prop::collection::vec(object(), 1..4)) {
        let input = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let output = convert::convert(&input).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), &output.text).unwrap();
        let settings = Settings { record: false, ..Settings::default() };
        let view = DirSource::open(folder.path(), settings).unwrap().snapshot().unwrap();
        prop_assert!(view.findings.is_empty(), "{}\n{:#?}", output.text, view.findings);
        let objects = output.text.lines().filter(|line| line.starts_with("kind: ") || line.contains("\"kind\": \"E"));
        let read = view.snapshot.policies.len() + view.snapshot.pools.len() + view.snapshot.gateways.len();
        prop_assert!(read <= objects.count(), "{}", output.text);
    }
}

#[test]
fn rubbish_is_an_error_with_its_line() {
    let error = convert::convert("apiVersion: v1\nkind: [\n").unwrap_err();
    assert!(error.starts_with("line "), "{error}");
    let output = convert::convert("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n").unwrap();
    assert_eq!(output.passed_over, ["v1 Secret s"]);
}
