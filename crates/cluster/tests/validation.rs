//! Validation of our kinds by the real API server: every rule, accepted and rejected objects, with the messages that a
//! person reads. Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_cluster::{ApiServer, Kubectl};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// One rule: objects that it accepts and objects that it rejects, by their `spec`.
struct Rule {
    kind: &'static str,
    message: &'static str,
    taken: &'static [&'static str],
    refused: &'static [&'static str],
}

const PODS: &str = "say which pods: exactly one of selector, podSelector and serviceName";
const CLUSTER_PODS: &str = "say which pods: exactly one of selector and podSelector";
const ADDRESS: &str = "say which address: exactly one of ip, ips and pool";
const ICMP: &str = "ICMP has no ports: leave out port and endPort";
const END_NEEDS_PORT: &str = "endPort needs port, the first port of the range";
const END_IS_LAST: &str = "endPort must not be lower than port";

/// Rules about one object.
const RULES: &[Rule] = &[
    Rule {
        kind: "Egress",
        message: PODS,
        taken: &[
            "{selector: {app: a}, ip: 192.0.2.1}",
            "{selector: {}, ip: 192.0.2.1}",
            "{podSelector: {matchLabels: {app: a}}, ip: 192.0.2.1}",
            "{podSelector: {}, ip: 192.0.2.1}",
            "{serviceName: web, ip: 192.0.2.1}",
        ],
        refused: &[
            "{ip: 192.0.2.1}",
            "{selector: {app: a}, podSelector: {}, ip: 192.0.2.1}",
            "{selector: {}, serviceName: web, ip: 192.0.2.1}",
            "{podSelector: {}, serviceName: web, ip: 192.0.2.1}",
            "{selector: {}, podSelector: {}, serviceName: web, ip: 192.0.2.1}",
        ],
    },
    Rule {
        kind: "Egress",
        message: ADDRESS,
        taken: &[
            "{selector: {}, ip: \"fd00:122::222\"}",
            "{selector: {}, ips: [192.0.2.1, \"fd00:122::222\"]}",
            "{selector: {}, pool: partners}",
        ],
        refused: &[
            "{selector: {}}",
            "{selector: {}, ip: 192.0.2.1, ips: [192.0.2.1]}",
            "{selector: {}, ip: 192.0.2.1, pool: partners}",
            "{selector: {}, ips: [192.0.2.1], pool: partners}",
            "{selector: {}, ip: 192.0.2.1, ips: [192.0.2.1], pool: partners}",
        ],
    },
    Rule {
        kind: "ClusterEgress",
        message: CLUSTER_PODS,
        taken: &[
            "{selector: {app: a}, ip: 192.0.2.1}",
            "{selector: {}, namespaceSelector: {matchLabels: {team: a}}, ip: 192.0.2.1}",
            "{podSelector: {}, nodeSelector: {}, ip: 192.0.2.1}",
        ],
        refused: &[
            "{ip: 192.0.2.1}",
            "{namespaceSelector: {}, ip: 192.0.2.1}",
            "{selector: {}, podSelector: {}, ip: 192.0.2.1}",
        ],
    },
    Rule {
        kind: "ClusterEgress",
        message: ADDRESS,
        taken: &[
            "{selector: {}, ips: [192.0.2.1]}",
            "{selector: {}, pool: partners, overridable: true}",
        ],
        refused: &[
            "{selector: {}}",
            "{selector: {}, ip: 192.0.2.1, ips: [192.0.2.1]}",
            "{selector: {}, ip: 192.0.2.1, pool: partners}",
            "{selector: {}, ips: [192.0.2.1], pool: partners}",
        ],
    },
    Rule {
        kind: "EgressPool",
        message: "say which addresses: cidrs, ranges or both",
        taken: &[
            "{cidrs: [192.0.2.0/24], namespaces: {all: true}}",
            "{ranges: [{start: 192.0.2.1, end: 192.0.2.9}], namespaces: {all: true}}",
            "{cidrs: [192.0.2.0/24], ranges: [{start: \"fd00::1\", end: \"fd00::9\"}], namespaces: {all: true}}",
        ],
        refused: &[
            "{namespaces: {all: true}}",
            "{cidrs: [], ranges: [], namespaces: {all: true}}",
        ],
    },
    Rule {
        kind: "EgressPool",
        message: "say which namespaces: exactly one of all: true, names and selector",
        taken: &[
            "{cidrs: [192.0.2.0/24], namespaces: {names: [payments]}}",
            "{cidrs: [192.0.2.0/24], namespaces: {all: false, names: [payments]}}",
            "{cidrs: [192.0.2.0/24], namespaces: {selector: {}}}",
        ],
        refused: &[
            "{cidrs: [192.0.2.0/24], namespaces: {}}",
            "{cidrs: [192.0.2.0/24], namespaces: {all: false}}",
            "{cidrs: [192.0.2.0/24], namespaces: {all: true, names: [payments]}}",
            "{cidrs: [192.0.2.0/24], namespaces: {all: true, selector: {}}}",
            "{cidrs: [192.0.2.0/24], namespaces: {names: [payments], selector: {}}}",
        ],
    },
];

/// Rules about one entry of a destination's ports, the same for `Egress` and `ClusterEgress`: message, accepted
/// entries, rejected entries.
const PORT_RULES: &[(&str, &[&str], &[&str])] = &[
    (
        ICMP,
        &[
            "{protocol: ICMP}",
            "{protocol: UDP, port: 53}",
            "{protocol: SCTP}",
        ],
        &[
            "{protocol: ICMP, port: 8}",
            "{protocol: ICMP, endPort: 8}",
            "{protocol: ICMP, port: 1, endPort: 8}",
        ],
    ),
    (
        END_NEEDS_PORT,
        &["{port: 80, endPort: 90}", "{protocol: TCP}"],
        &["{endPort: 90}", "{protocol: UDP, endPort: 90}"],
    ),
    (
        END_IS_LAST,
        &["{port: 80, endPort: 80}", "{port: 80, endPort: 81}"],
        &["{port: 80, endPort: 79}"],
    ),
];

/// A rule about changes of an existing object.
struct Change {
    rule: Rule,
    before: &'static str,
}

const CHANGES: &[Change] = &[
    Change {
        before: "{address: 192.0.2.1, gateway: default, epoch: 3}",
        rule: Rule {
            kind: "EgressAddress",
            message: "the address of an EgressAddress never changes: leases on its ports depend on it",
            taken: &["{address: 192.0.2.1, gateway: other, epoch: 3}"],
            refused: &["{address: 192.0.2.2, gateway: default, epoch: 3}"],
        },
    },
    Change {
        before: "{address: 192.0.2.1, gateway: default, epoch: 3}",
        rule: Rule {
            kind: "EgressAddress",
            message: "the epoch never goes back: gateways would take old leases for new ones",
            taken: &["{address: 192.0.2.1, gateway: default, epoch: 4}"],
            refused: &["{address: 192.0.2.1, gateway: default, epoch: 2}"],
        },
    },
    Change {
        before: "{tunnelIndex: 7}",
        rule: Rule {
            kind: "EgressNode",
            message: "the tunnel index of a node never changes: other nodes send tunnel packets by it",
            taken: &[
                "{tunnelIndex: 7, grants: [{address: 192.0.2.1, gateway: default, ranges: [1024-1279], epoch: 1}]}",
            ],
            refused: &["{tunnelIndex: 8}"],
        },
    },
];

fn object(kind: &str, spec: &str) -> String {
    let namespace = if kind == "Egress" {
        ", namespace: default"
    } else {
        ""
    };
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: tried{namespace}}}\nspec: {spec}\n"
    )
}

/// The API server with our kinds; `None` if Kubernetes is not built and need not be.
fn server(test: &str) -> Option<ApiServer> {
    if skipped(test) {
        return None;
    }
    let server = ApiServer::start().unwrap();
    let crds = Path::new(ROOT).join("deploy/crds");
    server.kubectl().define(&crds).unwrap();
    Some(server)
}

/// Difference between the expected and the actual verdict on an object.
fn wrong(kubectl: &Kubectl, verb: &str, object: &str, refusal: Option<&str>) -> Option<String> {
    let arguments = [verb, "--dry-run=server", "--validate=strict", "-f", "-"];
    let said = kubectl.try_run(&arguments, object).unwrap();
    let good = match refusal {
        None => said.success,
        Some(message) => !said.success && said.err.contains(message),
    };
    let wanted = refusal.map_or("taken".to_owned(), |message| format!("refused: {message}"));
    (!good).then(|| format!("{object}wanted {wanted}\ngot {}{}\n", said.out, said.err))
}

/// Differences between expected and actual verdicts on the objects of a rule.
fn verdicts(kubectl: &Kubectl, verb: &str, rule: &Rule) -> Vec<String> {
    let taken = rule.taken.iter().map(|spec| (spec, None));
    let refused = rule.refused.iter().map(|spec| (spec, Some(rule.message)));
    taken
        .chain(refused)
        .filter_map(|(spec, refusal)| wrong(kubectl, verb, &object(rule.kind, spec), refusal))
        .collect()
}

#[test]
fn every_rule_takes_and_refuses_with_its_message() {
    let Some(server) = server("every_rule_takes_and_refuses_with_its_message") else {
        return;
    };
    let kubectl = server.kubectl();
    let mut problems = Vec::new();
    let mut tried = BTreeSet::new();
    for rule in RULES {
        tried.insert((rule.kind.to_owned(), rule.message.to_owned()));
        problems.extend(verdicts(kubectl, "create", rule));
    }
    for kind in ["Egress", "ClusterEgress"] {
        let with = |port: &str| {
            let spec = "{selector: {}, ip: 192.0.2.1, destinations: [{cidr: 203.0.113.0/24, ports: [PORT]}]}";
            object(kind, &spec.replace("PORT", port))
        };
        for (message, taken, refused) in PORT_RULES {
            tried.insert((kind.to_owned(), (*message).to_owned()));
            let taken = taken.iter().map(|port| (port, None));
            let refused = refused.iter().map(|port| (port, Some(*message)));
            for (port, refusal) in taken.chain(refused) {
                problems.extend(wrong(kubectl, "create", &with(port), refusal));
            }
        }
    }
    for Change { rule, before } in CHANGES {
        tried.insert((rule.kind.to_owned(), rule.message.to_owned()));
        kubectl.apply(&object(rule.kind, before)).unwrap();
        problems.extend(verdicts(kubectl, "replace", rule));
        kubectl.run(&["delete", rule.kind, "tried"]).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let rules = rules_of_the_definitions();
    assert_eq!(
        tried, rules,
        "rules of the tables above (left) and of deploy/crds (right)"
    );
}

/// Kind and message of every rule in the definitions.
fn rules_of_the_definitions() -> BTreeSet<(String, String)> {
    fn collect(kind: &str, value: &Value, found: &mut BTreeSet<(String, String)>) {
        let rules = value["x-kubernetes-validations"].as_array();
        for rule in rules.into_iter().flatten() {
            let message = rule["message"].as_str().expect("every rule has a message");
            found.insert((kind.to_owned(), message.to_owned()));
        }
        match value {
            Value::Object(fields) => fields
                .values()
                .for_each(|value| collect(kind, value, found)),
            Value::Array(items) => items.iter().for_each(|value| collect(kind, value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    let mut kinds = 0;
    for path in files_below(&Path::new(ROOT).join("deploy/crds"), "yaml") {
        let text = std::fs::read_to_string(path).unwrap();
        let definition: Value = serde_saphyr::from_str(&text).unwrap();
        kinds += 1;
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        collect(kind, &definition["spec"]["versions"], &mut found);
    }
    assert_eq!(kinds, 6);
    found
}

#[test]
fn every_example_is_taken() {
    let Some(server) = server("every_example_is_taken") else {
        return;
    };
    let mut examples = Vec::new();
    for path in files_below(&Path::new(ROOT).join("deploy/examples"), "yaml") {
        examples.push((path.clone(), std::fs::read_to_string(path).unwrap()));
    }
    let mut pages = files_below(&Path::new(ROOT).join("docs"), "md");
    pages.push(Path::new(ROOT).join("README.md"));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks = text.split("```yaml\n").skip(1);
        let blocks = blocks.filter_map(|rest| rest.split("```").next());
        let manifests = blocks.filter(|block| block.starts_with("apiVersion: egret.dev/"));
        examples.extend(manifests.map(|block| (page.clone(), block.to_owned())));
    }
    assert!(examples.len() >= 7, "{}", examples.len());
    let arguments = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    for (path, text) in examples {
        let said = server.kubectl().try_run(&arguments, &text).unwrap();
        assert!(said.success, "{}: {}\n{text}", path.display(), said.err);
    }
}

fn files_below(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path, suffix));
        } else if path.extension().is_some_and(|own| own == suffix) {
            found.push(path);
        }
    }
    found.sort();
    found
}
