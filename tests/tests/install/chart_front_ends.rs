//! Front-ends in the chart: rights only for the enabled ones. Definitions of foreign kinds are created where they are
//! missing, left unchanged where others created them, and never removed. Needs a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_cluster::{ApiServer, Kubectl};
use egret_tests::chart::{
    CHART, DEPLOY, NAMESPACE, helm, rights_in_docs, rights_in_manifests, template,
};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::collections::BTreeSet;

pub fn groups() -> Vec<Group> {
    tests![
        without_a_cluster_to_look_into_no_definition_of_others_is_printed,
        definitions_in_the_chart_are_those_of_the_folder,
        who_enables_a_front_end_grants_its_rights_and_no_others,
        settings_of_front_ends_reach_controller_and_agents,
        definitions_of_others_are_made_where_there_are_none_and_never_taken_away
    ]
}

/// Both front-ends.
const BOTH: &str = "frontEnds.enabled={staticegressip,egressmapper}";
/// The definition that the test creates before Egret is installed.
const FOREIGN: &str = "staticegressips.staticegressips.nirmata.io";
/// The others, with the short form of their names and an object of each.
const OURS: [(&str, &str); 4] = [
    (
        "staticegressips.staticegressips.io",
        "apiVersion: staticegressips.io/v1alpha1\nkind: StaticEgressIP\nmetadata: {name: kept, namespace: default}\n\
         spec: {rules: [{egressip: 192.168.122.222, service-name: a, cidr: 203.0.113.0/24}]}\n",
    ),
    (
        "vips.egress.mapper.com",
        "apiVersion: egress.mapper.com/v1alpha1\nkind: Vip\nmetadata: {name: kept, namespace: default}\n\
         spec: {ip: 192.168.122.222, routeid: 7}\n",
    ),
    ("egresses.egress.mapper.com", ""),
    ("egressmappers.egress.mapper.com", ""),
];
/// Like an original: another version, without our label and status.
const ORIGINAL: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: staticegressips.staticegressips.nirmata.io}
spec:
  group: staticegressips.nirmata.io
  names: {kind: StaticEgressIP, plural: staticegressips, singular: staticegressip}
  scope: Namespaced
  versions:
  - {name: v1alpha1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
"#;

fn without_a_cluster_to_look_into_no_definition_of_others_is_printed() {
    if skipped("without_a_cluster_to_look_into_no_definition_of_others_is_printed") {
        return;
    }
    let defined = |values: &[&str]| -> BTreeSet<String> {
        let words: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        let text = template(&words).unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("  name: "));
        let others = names.filter(|name| name.ends_with(".com") || name.ends_with(".io"));
        others.map(str::to_owned).collect()
    };
    assert_eq!(defined(&[]), BTreeSet::new());
    assert_eq!(defined(&["frontEnds.crds=Always"]), BTreeSet::new());
    assert_eq!(defined(&[BOTH]), BTreeSet::new());
    assert_eq!(defined(&[BOTH, "frontEnds.crds=Never"]), BTreeSet::new());
    let mut all: BTreeSet<String> = OURS.iter().map(|(name, _)| (*name).to_owned()).collect();
    all.insert(FOREIGN.to_owned());
    assert_eq!(defined(&[BOTH, "frontEnds.crds=Always"]), all);
    all.retain(|name| name.ends_with(".io"));
    let one = "frontEnds.enabled={staticegressip}";
    assert_eq!(defined(&[one, "frontEnds.crds=Always"]), all);
}

fn definitions_in_the_chart_are_those_of_the_folder() {
    let files = |folder: &str| {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let copies = files(&format!("{CHART}/files/crds-front-ends"));
    let originals = files(&format!("{DEPLOY}/crds-front-ends"));
    assert!(copies == originals, "run ./dev chart");
    assert_eq!(copies.len(), OURS.len() + 1);
}

fn who_enables_a_front_end_grants_its_rights_and_no_others() {
    if skipped("who_enables_a_front_end_grants_its_rights_and_no_others") {
        return;
    }
    let docs = std::fs::read_to_string(format!("{DEPLOY}/../docs/kubernetes.md")).unwrap();
    for (enabled, groups) in [
        (
            "{staticegressip}",
            &["staticegressips.nirmata.io", "staticegressips.io"][..],
        ),
        ("{egressmapper}", &["egress.mapper.com"]),
    ] {
        let value = format!("frontEnds.enabled={enabled}");
        let manifests = template(&["--set", &value]).unwrap();
        for part in ["Controller", "Agent"] {
            let mut wanted = rights_in_docs(&docs, &format!("{part}:"));
            let more = rights_in_docs(&docs, &format!("{part} with front-ends:"));
            let is_theirs = |right: &&String| {
                let mut groups = groups.iter();
                groups.any(|group| right.starts_with(&format!("{group:?} ")))
            };
            let count = wanted.len();
            wanted.extend(more.iter().filter(is_theirs).cloned());
            assert!(wanted.len() > count, "{part} has a table: {more:?}");
            let account = format!("egret-{}", part.to_lowercase());
            let granted = rights_in_manifests(&manifests, &account);
            assert_eq!(granted, wanted, "{account} with {enabled}");
        }
    }
}

fn settings_of_front_ends_reach_controller_and_agents() {
    if skipped("settings_of_front_ends_reach_controller_and_agents") {
        return;
    }
    let more = "frontEnds.adoptAll=true,frontEnds.adminNamespaces={admin,ops}";
    let text = template(&["--set", BOTH, "--set", more]).unwrap();
    for line in [
        "        - --front-end=staticegressip,egressmapper\n",
        "        - --front-end-adopt-all\n",
        "        - --front-end-admin-namespace=admin,ops\n",
        "        - --unpooled-addresses=Allow\n",
    ] {
        assert_eq!(text.matches(line).count(), 2, "{line}");
    }
    let denied = template(&["--set", BOTH, "--set", "settings.unpooledAddresses=Deny"]).unwrap();
    assert!(!denied.contains("--unpooled-addresses=Allow"));
    let without = template(&["--set", more]).unwrap();
    assert!(!without.contains("--front-end"), "nothing is enabled");
    assert!(!without.contains("--unpooled-addresses=Allow"));
}

fn definitions_of_others_are_made_where_there_are_none_and_never_taken_away() {
    if skipped("definitions_of_others_are_made_where_there_are_none_and_never_taken_away") {
        return;
    }
    let server = ApiServer::start().unwrap();
    let kubectl = server.kubectl();
    kubectl.run(&["create", "namespace", NAMESPACE]).unwrap();
    for crds in ["IfAbsent", "Always"] {
        let crds = format!("frontEnds.crds={crds}");
        let manifests = template(&["--set", BOTH, "--set", &crds]).unwrap();
        let dry = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
        kubectl.run_with(&dry, &manifests).unwrap();
    }
    kubectl.apply(ORIGINAL).unwrap();
    let foreign = definition(kubectl, FOREIGN);
    let helm = |arguments: &[&str]| {
        let output = helm(server.programs(), server.folder())
            .env("KUBECONFIG", kubectl.kubeconfig())
            .args(arguments)
            .args(["-n", NAMESPACE])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    };
    let both = ["--set", BOTH];
    helm(&[&["install", "egret", CHART], &both[..]].concat());
    put_objects(kubectl);
    // A definition that this release has created is also upgraded.
    let label = ["label", "crd", OURS[0].0, "egret.dev/front-end-"];
    kubectl.run(&label).unwrap();
    let upgrade = ["upgrade", "egret", CHART, "--force-conflicts"];
    helm(&[&upgrade[..], &both].concat());
    let mended = definition(kubectl, OURS[0].0);
    assert!(mended.contains("staticegressip\n"), "{mended}");
    // Without front-ends, then without Egret, then with Egret again, also under another name.
    helm(&upgrade);
    objects_are_kept(kubectl, "no front-end is enabled");
    helm(&[&upgrade[..], &both].concat());
    helm(&["uninstall", "egret", "--no-hooks"]);
    objects_are_kept(kubectl, "the release is gone");
    let other = ["install", "other", CHART, "--set", "crds.install=false"];
    helm(&[&other[..], &both].concat());
    helm(&["uninstall", "other", "--no-hooks"]);
    objects_are_kept(kubectl, "another release came and went");
    assert_eq!(definition(kubectl, FOREIGN), foreign);
}

/// How often a definition was written, and its front-end.
fn definition(kubectl: &Kubectl, name: &str) -> String {
    let form = "jsonpath={.metadata.uid} {.metadata.generation} {.metadata.annotations.helm\\.sh/resource-policy} \
                {.metadata.labels.egret\\.dev/front-end}{\"\\n\"}";
    kubectl.run(&["get", "crd", name, "-o", form]).unwrap()
}

fn put_objects(kubectl: &Kubectl) {
    for (name, object) in OURS {
        let crd = format!("crd/{name}");
        let wait = ["wait", "--for=condition=Established", &crd];
        kubectl
            .run(&[&wait[..], &["--timeout=60s"]].concat())
            .unwrap();
        assert!(definition(kubectl, name).contains(" keep "), "{name}");
        if !object.is_empty() {
            kubectl.apply(object).unwrap();
        }
    }
}

fn objects_are_kept(kubectl: &Kubectl, when: &str) {
    for (name, object) in OURS {
        kubectl.run(&["get", "crd", name]).expect(when);
        if !object.is_empty() {
            kubectl.run(&["get", name, "kept"]).expect(when);
        }
    }
}
