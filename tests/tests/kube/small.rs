//! A small cluster of objects on a real API server, without kubelets, and queries for tests.

use egret_cluster::{ApiServer, Kubectl};
use egret_core::model::{Settings, UnpooledAddresses};
use egret_objects::kube::{KubeSource, Role, Settings as KubeSettings};
use egret_tests::kubernetes::{CRDS, Daemon, Right, right_of, rights, role};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// Longest wait for any condition; usually seconds.
pub const TIMEOUT: Duration = Duration::from_secs(90);

/// Two workers and a gateway, a pool and two policies.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: worker1}
spec: {podCIDRs: [10.244.1.0/24], podCIDR: 10.244.1.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: worker2}
spec: {podCIDRs: [10.244.2.0/24], podCIDR: 10.244.2.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: gateway1, labels: {egret.dev/gateway: "true"}}
spec: {podCIDRs: [10.244.101.0/24], podCIDR: 10.244.101.0/24}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: default}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: default}
spec: {selector: {app: other}, ports: [{port: 80}]}
---
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: main}
spec: {nodeSelector: {matchLabels: {egret.dev/gateway: "true"}}}
---
apiVersion: egret.dev/v1alpha1
kind: EgressPool
metadata: {name: partners}
spec: {cidrs: [192.168.122.220/30], gateway: main, namespaces: {all: true}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: fixed, namespace: default}
spec: {selector: {app: MyApp}, ip: 192.168.122.222}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: pooled, namespace: default}
spec: {serviceName: web, pool: partners}
"#;

const STATUSES: [(&str, &str); 3] = [
    ("worker1", "192.168.122.11"),
    ("worker2", "192.168.122.12"),
    ("gateway1", "192.168.122.21"),
];

/// A pod that runs, with this label `app` and this address.
pub fn pod(kubectl: &Kubectl, name: &str, node: &str, app: &str, address: &str) {
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: {node}, automountServiceAccountToken: false, containers: [{{name: c, image: none}}]}}\n"
    );
    kubectl.apply(&manifest).unwrap();
    let status = format!(
        r#"{{"status":{{"phase":"Running","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]}}}}"#
    );
    patch_status(kubectl, &["pod", name], &status);
}

fn patch_status(kubectl: &Kubectl, object: &[&str], status: &str) {
    let patch = ["--subresource=status", "--type=merge", "-p", status];
    let arguments = [&["patch"], object, &patch[..]].concat();
    kubectl.run(&arguments).unwrap();
}

/// An API server with the cluster above, and users with the rights that the documentation lists.
pub fn start(users: &[(&str, &str)]) -> ApiServer {
    let names: Vec<(&str, &[&str])> = users.iter().map(|(_, user)| (*user, &[][..])).collect();
    let server = ApiServer::start_with(&names).unwrap();
    let kubectl = server.kubectl();
    kubectl.define(Path::new(CRDS)).unwrap();
    kubectl.apply(CLUSTER).unwrap();
    for (node, address) in STATUSES {
        let status = format!(
            r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{address}"}}]}}}}"#
        );
        patch_status(kubectl, &["node", node], &status);
    }
    for (component, user) in users {
        kubectl.apply(&role(component, user)).unwrap();
    }
    pod(kubectl, "a", "worker1", "MyApp", "10.244.1.5");
    pod(kubectl, "b", "worker2", "MyApp", "10.244.2.5");
    pod(kubectl, "w", "worker1", "web", "10.244.1.6");
    server
}

pub fn controller(server: &ApiServer, name: &str, kubeconfig: &Path) -> Daemon {
    let source = format!("kube:{}", kubeconfig.display());
    let log = server.folder().join(format!("{name}.log"));
    let arguments = ["controller", "--source", &source, "--http-port", "0"];
    Daemon::start(&log, &arguments).unwrap()
}

fn settings() -> Settings {
    Settings {
        unpooled_addresses: UnpooledAddresses::Deny,
        never_destinations: Vec::new(),
        service_cidrs: Vec::new(),
        hold_down_secs: 120,
    }
}

pub fn open(kubeconfig: &Path, role: Role) -> KubeSource {
    let settings = KubeSettings {
        kubeconfig: Some(kubeconfig.to_owned()),
        role,
        installation: settings(),
        front_ends: egret_objects::front_end::Settings::default(),
    };
    KubeSource::open(settings).unwrap()
}

/// Value of a jsonpath of an object.
pub fn said(kubectl: &Kubectl, object: &[&str], path: &str) -> String {
    let path = format!("jsonpath={{{path}}}");
    let arguments = [&["get"], object, &["-o", &path]].concat();
    kubectl.try_run(&arguments, "").unwrap().out
}

pub fn wait_for(kubectl: &Kubectl, object: &[&str], path: &str, wanted: &str) {
    let path = format!("jsonpath={{{path}}}");
    let arguments = [&["get"], object, &["-o", &path]].concat();
    let what = format!("{object:?} {path} is {wanted}");
    kubectl
        .wait_until(&what, TIMEOUT, &arguments, |said| said.out == wanted)
        .unwrap();
}

/// Lists the nodes' records with the gateway label.
pub const LABELLED: [&str; 6] = [
    "get",
    "egrnode",
    "-l",
    "egret.dev/gateway=true",
    "-o",
    "name",
];

/// Whether a policy is accepted, as a jsonpath.
pub const ACCEPTED: &str = r#".status.conditions[?(@.type=="Accepted")].status"#;

/// The verbs of requests that write.
pub fn writes(all: &[serde_json::Value]) -> Vec<String> {
    let reading = ["get", "list", "watch"];
    let lease = |r: &serde_json::Value| r["objectRef"]["resource"] == "leases";
    all.iter()
        .filter(|r| !lease(r) && !reading.contains(&r["verb"].as_str().unwrap_or_default()))
        .map(|r| format!("{} {}", r["verb"], r["requestURI"]))
        .collect()
}

pub fn wait_until_says(kubectl: &Kubectl, arguments: &[&str], wanted: &str) {
    let what = format!("{arguments:?} says {wanted}");
    let timeout = TIMEOUT;
    kubectl
        .wait_until(&what, timeout, arguments, |said| said.out == wanted)
        .unwrap();
}

/// Rights that the requests used. Each must be granted to the component, except API discovery, which every client may
/// use.
pub fn used(requests: &[serde_json::Value], component: &str) -> BTreeSet<Right> {
    let discovery = |request: &&serde_json::Value| {
        request.get("objectRef").is_none()
            && request["requestURI"]
                .as_str()
                .is_some_and(|uri| uri.starts_with("/apis"))
    };
    let others = requests.iter().filter(|request| !discovery(request));
    let used: BTreeSet<Right> = others.map(right_of).collect();
    let granted = granted(component);
    let refused: Vec<&Right> = used.difference(&granted).collect();
    assert!(refused.is_empty(), "used and not granted: {refused:?}");
    used
}

/// Rights that the documentation grants to a component.
pub fn granted(component: &str) -> BTreeSet<Right> {
    let rights = rights(component).into_iter();
    rights.map(|(right, _)| right).collect()
}
