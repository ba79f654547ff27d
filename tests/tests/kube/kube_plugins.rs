//! Kinds of network plugins on a real API server: only those that are served are read. The definitions are ours, the
//! minimum for such objects; the plugins themselves run in no test yet. Needs root and a built Kubernetes.

use crate::small::{ACCEPTED, controller, start, wait_for};
use egret_cluster::Kubectl;
use egret_cluster::programs::skipped;
use egret_core::model::Kind;
use egret_objects::plugin::{KINDS, PluginKind, plugin_kind};
use egret_tests::kubernetes::{requests, role_named};
use egret_tests::steps::Group;
use egret_tests::tests;

pub fn groups() -> Vec<Group> {
    tests![kinds_of_plugins_are_read_once_they_are_served_and_allowed]
}

const POOL: &str = "
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: default-ipv4-ippool}
spec: {cidr: 10.48.0.0/16, blockSize: 26, natOutgoing: true}
";

const CILIUM_NODE: &str = "
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: worker1}
spec: {ipam: {podCIDRs: [10.49.1.0/24]}}
";

fn define(kubectl: &Kubectl, kind: Kind) {
    let PluginKind {
        api_version,
        name,
        plural,
        ..
    } = plugin_kind(kind).unwrap();
    let (group, version) = api_version.split_once('/').unwrap();
    let folder = tempfile::tempdir().unwrap();
    let definition = format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.{group}}}\n\
         spec:\n  group: {group}\n  names: {{kind: {name}, plural: {plural}}}\n  scope: Cluster\n  versions:\n  \
         - name: {version}\n    served: true\n    storage: true\n    \
         schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}\n"
    );
    std::fs::write(folder.path().join("definition.yaml"), definition).unwrap();
    kubectl.define(folder.path()).unwrap();
}

fn kinds_of_plugins_are_read_once_they_are_served_and_allowed() {
    if skipped("kinds_of_plugins_are_read_once_they_are_served_and_allowed") {
        return;
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    define(kubectl, Kind::CalicoIPPool);
    kubectl.apply(POOL).unwrap();
    let own = server.kubectl_as("controller").unwrap();
    let mut daemon = controller(&server, "controller", own.kubeconfig());

    // An unreadable kind delays nothing.
    wait_for(kubectl, &["egress", "fixed"], ACCEPTED, "True");
    let prefixes = ".spec.podPrefixes";
    let told = |wanted: &str| wait_for(kubectl, &["egrnode", "gateway1"], prefixes, wanted);
    told("");
    let role = role_named("plugins", "Controller with network plugins", "controller");
    kubectl.apply(&role).unwrap();
    told(r#"["10.48.0.0/16"]"#);

    // A plugin that is installed later, and one that is removed.
    define(kubectl, Kind::CiliumNode);
    kubectl.apply(CILIUM_NODE).unwrap();
    told(r#"["10.48.0.0/16","10.49.1.0/24"]"#);
    kubectl.run(&["delete", "ippools", "--all"]).unwrap();
    told(r#"["10.49.1.0/24"]"#);

    let (all, _) = requests(&server.audit_log(), "controller", 0).unwrap();
    for known in KINDS.iter().map(|known| known.plural) {
        let served = matches!(known, "ippools" | "ciliumnodes");
        let lists = all
            .iter()
            .filter(|request| request["objectRef"]["resource"] == known);
        assert_eq!(lists.count() > 0, served, "{known}");
    }
    daemon.end().unwrap();
}
