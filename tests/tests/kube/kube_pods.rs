//! The life cycle of pods, nodes and namespaces, and invalid objects, on a real API server without kubelets: the
//! controller's plans and statuses, and an agent's view. Needs root and a built Kubernetes.

use crate::small::{ACCEPTED, TIMEOUT, controller, open, pod, said, start, wait_for};
use egret_cluster::programs::skipped;
use egret_cluster::{ApiServer, Kubectl};
use egret_core::model::NodeName;
use egret_objects::kube::{KubeSource, Role};
use egret_objects::{ConditionStatus, Source};
use egret_tests::kubernetes::{Daemon, until};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![
        pods_nodes_and_namespaces_as_they_live,
        what_cannot_be_understood_keeps_its_last_good_version_and_says_so,
        conditions_of_records_say_what_they_are_about,
        every_field_is_explained_and_columns_say_whether_it_works
    ]
}

const FIXED: [&str; 2] = ["egress", "fixed"];
const SELECTED: &str = ".status.pods.selected";

fn up() -> (ApiServer, Daemon, KubeSource) {
    let server = start(&[("Controller", "controller"), ("Agent", "agent")]);
    let own = server.kubectl_as("controller").unwrap();
    let daemon = controller(&server, "controller", own.kubeconfig());
    let own = server.kubectl_as("agent").unwrap();
    let agent = open(
        own.kubeconfig(),
        Role::Agent(NodeName("worker1".to_owned())),
    );
    wait_for(server.kubectl(), &FIXED, SELECTED, "2");
    (server, daemon, agent)
}

fn selected(kubectl: &Kubectl, wanted: &str) {
    wait_for(kubectl, &FIXED, SELECTED, wanted);
}

/// Addresses of the pods that the agent of worker1 sees and that have not ended, by namespace and name.
fn seen(agent: &mut KubeSource) -> BTreeSet<(String, Vec<IpAddr>)> {
    let view = agent.snapshot().unwrap();
    let pods = view.snapshot.pods.values().filter(|pod| !pod.finished);
    let name = |namespace: &str, name: &str| format!("{namespace}/{name}");
    pods.map(|pod| (name(&pod.namespace, &pod.name), pod.addresses.clone()))
        .collect()
}

fn wait_seen(agent: &mut KubeSource, what: &str, pod: &str, addresses: Option<&[&str]>) {
    let wanted: Option<Vec<IpAddr>> =
        addresses.map(|all| all.iter().map(|a| a.parse().unwrap()).collect());
    until(what, TIMEOUT, || {
        agent.wait(Duration::from_millis(200))?;
        let found = seen(agent).into_iter().find(|(name, _)| name == pod);
        Ok(found.map(|(_, addresses)| addresses) == wanted)
    })
    .unwrap();
}

fn patch_status(kubectl: &Kubectl, pod: &str, status: &str) {
    let patch = ["--subresource=status", "--type=merge", "-p", status];
    kubectl
        .run(&[&["patch", "pod", pod], &patch[..]].concat())
        .unwrap();
}

/// Cases: N10, N16.
fn pods_nodes_and_namespaces_as_they_live() {
    if skipped("pods_nodes_and_namespaces_as_they_live") {
        return;
    }
    let (server, daemon, mut agent) = up();
    let kubectl = server.kubectl();
    let run = |arguments: &[&str]| kubectl.run(arguments).unwrap();

    // A label is added to and removed from a pod that runs.
    run(&["label", "pod", "w", "app=MyApp", "--overwrite"]);
    selected(kubectl, "3");
    run(&["label", "pod", "w", "app=web", "--overwrite"]);
    selected(kubectl, "2");

    // A completed pod has no address any more, for any reader.
    patch_status(kubectl, "a", r#"{"status":{"phase":"Succeeded"}}"#);
    selected(kubectl, "1");
    wait_seen(&mut agent, "the ended pod is out", "default/a", None);

    // Its address is assigned to a pod of another namespace, which no policy selects, while the first still exists.
    run(&["create", "namespace", "other"]);
    let reused = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: other}\n---\n\
                  apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: other, labels: {app: MyApp}}\n\
                  spec: {nodeName: worker1, automountServiceAccountToken: false, containers: [{name: c, image: none}]}\n";
    kubectl.apply(reused).unwrap();
    let status =
        r#"{"status":{"phase":"Running","podIP":"10.244.1.5","podIPs":[{"ip":"10.244.1.5"}]}}"#;
    run(&[
        "patch",
        "pod",
        "a",
        "-n",
        "other",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    let own = Some(&["10.244.1.5"][..]);
    wait_seen(&mut agent, "the address's new pod", "other/a", own);
    assert!(seen(&mut agent).iter().all(|(name, _)| name != "default/a"));
    selected(kubectl, "1");

    // A pod on its node's network is never selected, and the policy says so.
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: h, namespace: default, labels: {app: MyApp}}\n\
                spec: {nodeName: worker1, hostNetwork: true, automountServiceAccountToken: false, containers: [{name: c, image: none}]}\n";
    kubectl.apply(host).unwrap();
    let reason = r#".status.conditions[?(@.type=="Accepted")].reason"#;
    wait_for(kubectl, &FIXED, reason, "HostNetworkPods");
    selected(kubectl, "1");
    run(&["delete", "pod", "h", "--force"]);
    wait_for(kubectl, &FIXED, reason, "Accepted");

    // Several addresses, of both families.
    pod(kubectl, "both", "worker1", "MyApp", "10.244.1.9");
    let status = r#"{"status":{"podIPs":[{"ip":"10.244.1.9"},{"ip":"fd00:244:1::9"}],"podIP":"10.244.1.9"}}"#;
    patch_status(kubectl, "both", status);
    let both = Some(&["10.244.1.9", "fd00:244:1::9"][..]);
    wait_seen(&mut agent, "both addresses", "default/both", both);
    selected(kubectl, "2");

    namespaces_change_their_labels(kubectl);
    endpoints_of_a_service_change(kubectl);
    the_address_of_a_load_balancer_is_refused(kubectl);
    nodes_come_and_go(kubectl);
    drop(daemon);
}

fn namespaces_change_their_labels(kubectl: &Kubectl) {
    let everywhere = "apiVersion: egret.dev/v1alpha1\nkind: ClusterEgress\nmetadata: {name: teams}\n\
                      spec: {selector: {app: MyApp}, pool: partners, namespaceSelector: {matchLabels: {team: red}}}\n";
    kubectl.apply(everywhere).unwrap();
    let teams = ["clusteregress", "teams"];
    wait_for(kubectl, &teams, ACCEPTED, "True");
    let none = said(kubectl, &teams, SELECTED);
    assert!(none.is_empty() || none == "0", "{none}");
    kubectl
        .run(&["label", "namespace", "other", "team=red"])
        .unwrap();
    wait_for(kubectl, &teams, SELECTED, "1");
    kubectl
        .run(&["label", "namespace", "other", "team=blue", "--overwrite"])
        .unwrap();
    until("nobody is selected", TIMEOUT, || {
        let now = said(kubectl, &teams, SELECTED);
        Ok(now.is_empty() || now == "0")
    })
    .unwrap();
    kubectl.run(&["delete", "clusteregress", "teams"]).unwrap();
}

/// A Service without a selector has the pods that its slices name.
fn endpoints_of_a_service_change(kubectl: &Kubectl) {
    let slice = |addresses: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: bare-1, namespace: default, labels: {{kubernetes.io/service-name: bare}}}}\n\
             addressType: IPv4\nendpoints: [{{addresses: [{addresses}]}}]\nports: [{{port: 80}}]\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: bare, namespace: default}\nspec: {ports: [{port: 80}]}\n---\n\
                   apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: bare, namespace: default}\n\
                   spec: {serviceName: bare, pool: partners}\n---\n";
    kubectl
        .apply(&format!("{service}{}", slice("10.244.2.5")))
        .unwrap();
    wait_for(kubectl, &["egress", "bare"], SELECTED, "1");
    kubectl.run(&["delete", "endpointslice", "bare-1"]).unwrap();
    kubectl.apply(&slice("10.244.2.5, 10.244.1.6")).unwrap();
    wait_for(kubectl, &["egress", "bare"], SELECTED, "2");
    kubectl.run(&["delete", "egress", "bare"]).unwrap();
}

/// No policy names the Service: its kind alone makes the controller watch it.
fn the_address_of_a_load_balancer_is_refused(kubectl: &Kubectl) {
    let objects = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: default}\n\
                   spec: {type: LoadBalancer, ports: [{port: 80}]}\n---\n\
                   apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: shared, namespace: default}\n\
                   spec: {selector: {app: nobody}, ip: 192.168.122.223}\n";
    kubectl.apply(objects).unwrap();
    let accepted = r#".status.conditions[?(@.type=="Accepted")].reason"#;
    wait_for(kubectl, &["egress", "shared"], accepted, "Accepted");
    let status = |ingress: &str| {
        let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{ingress}]}}}}}}"#);
        let patch = ["--subresource=status", "--type=merge", "-p", &status];
        let words = [&["patch", "service", "shop"], &patch[..]].concat();
        kubectl.run(&words).unwrap();
    };
    status(r#"{"ip":"192.168.122.223"}"#);
    wait_for(kubectl, &["egress", "shared"], accepted, "AddressInCluster");
    status("");
    wait_for(kubectl, &["egress", "shared"], accepted, "Accepted");
    kubectl.run(&["delete", "egress", "shared"]).unwrap();
    kubectl.run(&["delete", "service", "shop"]).unwrap();
}

fn nodes_come_and_go(kubectl: &Kubectl) {
    let before = said(kubectl, &FIXED, SELECTED);
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: worker3}\n\
                spec: {podCIDRs: [10.244.3.0/24], podCIDR: 10.244.3.0/24}\n";
    kubectl.apply(node).unwrap();
    pod(kubectl, "new", "worker3", "MyApp", "10.244.3.5");
    selected(kubectl, "3");
    let grants = ".spec.grants[*].address";
    let record = ["egrnode", "worker3"];
    wait_for(kubectl, &record, grants, "192.168.122.222");
    // Cordoned: running pods continue, with their leases.
    kubectl.run(&["cordon", "worker3"]).unwrap();
    pod(kubectl, "more", "worker1", "MyApp", "10.244.1.30");
    selected(kubectl, "4");
    assert_eq!(said(kubectl, &record, grants), "192.168.122.222");
    kubectl.run(&["delete", "pod", "more", "--force"]).unwrap();
    // Drained: its pods are deleted, the node stays.
    kubectl.run(&["delete", "pod", "new", "--force"]).unwrap();
    selected(kubectl, &before);
    // Deleted: no other worker gets its ports before every gateway has released them, and no gateway runs here.
    kubectl.run(&["delete", "node", "worker3"]).unwrap();
    pod(kubectl, "last", "worker2", "MyApp", "10.244.2.30");
    selected(kubectl, "3");
    let state = r#".spec.leases[?(@.node=="worker3")].state"#;
    let address = ["egraddr", "v4-192-168-122-222"];
    until(
        "the ports of the node that is gone are held back",
        TIMEOUT,
        || {
            let now = said(kubectl, &address, state);
            Ok(["Draining", "HoldDown"].contains(&now.as_str()))
        },
    )
    .unwrap();
}

fn what_cannot_be_understood_keeps_its_last_good_version_and_says_so() {
    if skipped("what_cannot_be_understood_keeps_its_last_good_version_and_says_so") {
        return;
    }
    let (server, daemon, mut agent) = up();
    let kubectl = server.kubectl();
    let policy = |operator: &str| {
        format!(
            "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: odd, namespace: default}}\n\
             spec: {{podSelector: {{matchExpressions: [{{key: app, operator: {operator}, values: [web]}}]}}, ip: 192.168.122.223}}\n"
        )
    };
    let odd = ["egress", "odd"];
    kubectl.apply(&policy("In")).unwrap();
    wait_for(kubectl, &odd, SELECTED, "1");
    wait_for(kubectl, &odd, ACCEPTED, "True");

    // The schema accepts the value; this version does not know it.
    kubectl.apply(&policy("Resembles")).unwrap();
    wait_for(kubectl, &odd, ACCEPTED, "False");
    wait_for(kubectl, &odd, ".status.observedGeneration", "2");
    let message = r#".status.conditions[?(@.type=="Accepted")].message"#;
    let message = said(kubectl, &odd, message);
    assert!(
        message.contains("Resembles") && message.contains("stays in force"),
        "{message}"
    );
    assert_eq!(said(kubectl, &odd, SELECTED), "1");
    assert_eq!(
        said(kubectl, &odd, ".status.addresses[0]"),
        "192.168.122.223"
    );
    kubectl
        .run(&["get", "egraddr", "v4-192-168-122-223"])
        .unwrap();
    // The last good version stays in force: new pods are selected, other policies are planned.
    pod(kubectl, "w2", "worker1", "web", "10.244.1.40");
    wait_for(kubectl, &odd, SELECTED, "2");
    let holds = |agent: &mut KubeSource| {
        let view = agent.snapshot().unwrap();
        let mut policies = view.snapshot.policies.iter();
        policies.any(|policy| policy.object.name == "odd")
    };
    until("the agent reads the policy", TIMEOUT, || {
        agent.wait(Duration::from_millis(200))?;
        Ok(holds(&mut agent))
    })
    .unwrap();
    let generations = said(kubectl, &odd, ".status.conditions[*].observedGeneration");
    assert!(generations.split(' ').all(|g| g == "2"), "{generations}");

    // A deleted one is removed, and one that was never valid is never in force.
    kubectl.run(&["delete", "egress", "odd"]).unwrap();
    kubectl.apply(&policy("Resembles")).unwrap();
    wait_for(kubectl, &odd, ACCEPTED, "False");
    let none = said(kubectl, &odd, SELECTED);
    assert!(none.is_empty() || none == "0", "{none}");
    kubectl.apply(&policy("In")).unwrap();
    wait_for(kubectl, &odd, ACCEPTED, "True");
    wait_for(kubectl, &odd, SELECTED, "2");
    drop(daemon);
}

/// Conditions of every kind contain the generation that they apply to.
fn conditions_of_records_say_what_they_are_about() {
    if skipped("conditions_of_records_say_what_they_are_about") {
        return;
    }
    let (server, daemon, mut agent) = up();
    let kubectl = server.kubectl();
    let name = NodeName("worker1".to_owned());
    let record = agent.snapshot().unwrap().snapshot.node_records[&name].clone();
    let mut report = egret_objects::NodeReport::default();
    report.conditions.push(egret_objects::Condition {
        kind: "Ready".into(),
        status: ConditionStatus::True,
        reason: "Programmed".into(),
        message: "it is".into(),
        since_secs: 0,
    });
    agent
        .write_node_status(&record, &report, 1_800_000_000)
        .unwrap();
    for (kind, object) in [
        ("egrnode", "worker1"),
        ("egraddr", "v4-192-168-122-222"),
        ("egrgw", "main"),
        ("egrpool", "partners"),
        ("egress", "fixed"),
    ] {
        let one = [kind, object];
        until("every condition has a generation", TIMEOUT, || {
            let types = said(kubectl, &one, ".status.conditions[*].type");
            let seen = said(kubectl, &one, ".status.conditions[*].observedGeneration");
            let (types, seen) = (types.split(' ').count(), seen.split(' ').count());
            Ok(types == seen && !said(kubectl, &one, ".status.conditions[*].type").is_empty())
        })
        .unwrap_or_else(|error| panic!("{one:?}: {error}"));
    }
    drop(daemon);
}

/// `kubectl explain` describes every field, and columns answer: does it work, and with which address?
fn every_field_is_explained_and_columns_say_whether_it_works() {
    if skipped("every_field_is_explained_and_columns_say_whether_it_works") {
        return;
    }
    for file in std::fs::read_dir(egret_tests::kubernetes::CRDS).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let definition: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let mut bare = Vec::new();
            unexplained(&version["schema"]["openAPIV3Schema"], "", &mut bare);
            assert!(bare.is_empty(), "{}: {bare:?}", path.display());
        }
    }
    let (server, daemon, _) = up();
    let kubectl = server.kubectl();
    for field in ["egress.spec.whenUnavailable", "egressgateway.spec.announce"] {
        let text = kubectl
            .run(&["explain", "--api-version=egret.dev/v1alpha1", field])
            .unwrap();
        assert!(
            text.contains("DESCRIPTION") && !text.contains("<empty>"),
            "{text}"
        );
    }
    for (kind, columns) in [
        ("egress", &["READY", "ADDRESSES", "REASON"][..]),
        ("clusteregress", &["READY", "ADDRESSES", "REASON"]),
        ("egrgw", &["READY", "LIVE", "REASON"]),
        ("egrpool", &["READY", "TOTAL", "USED"]),
        ("egraddr", &["ADDRESS", "ANNOUNCER", "LEASED", "FREE"]),
        ("egrnode", &["READY", "UNDERLAY"]),
    ] {
        let one = "apiVersion: egret.dev/v1alpha1\nkind: ClusterEgress\nmetadata: {name: all}\n\
                   spec: {selector: {app: none}, pool: partners, namespaceSelector: {}}\n";
        kubectl.apply(one).unwrap();
        let table = kubectl.run(&["get", kind]).unwrap();
        let head = table.lines().next().unwrap_or_default();
        for column in columns {
            assert!(
                head.split_whitespace().any(|c| c == *column),
                "{kind}: {head}"
            );
        }
    }
    drop(daemon);
}

/// Fields without a description.
fn unexplained(schema: &serde_json::Value, path: &str, bare: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if field["description"].as_str().is_none_or(str::is_empty) {
            bare.push(path.clone());
        }
        unexplained(field, &path, bare);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            unexplained(&schema[inner], path, bare);
        }
    }
}
