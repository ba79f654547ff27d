//! One object that cannot be read or written, on a real API server: all other objects are written (P9). Needs root and
//! a built Kubernetes.

use crate::small::{ACCEPTED, TIMEOUT, controller, pod, said, start, wait_for, writes};
use egret_cluster::Kubectl;
use egret_cluster::programs::skipped;
use egret_tests::kubernetes::{requests, until};
use egret_tests::steps::Group;
use egret_tests::tests;

pub fn groups() -> Vec<Group> {
    tests![
        records_that_cannot_be_read_stay_and_all_others_are_written,
        statuses_that_are_refused_or_too_large_stop_nothing,
        a_policy_in_a_namespace_that_terminates_stops_nothing
    ]
}

const ADDRESS: &str = "v4-192-168-122-222";

/// Record of the address of the policy `fixed`: a range with valid syntax, but not of whole blocks.
const UNREADABLE_ADDRESS: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressAddress
metadata: {name: v4-192-168-122-222}
spec:
  address: 192.168.122.222
  gateway: main
  epoch: 3
  leases:
  - {node: worker1, ranges: [1024-1279], epoch: 2, state: Active, since: '2026-01-01T00:00:00Z'}
  - {node: worker2, ranges: [2048-2100], epoch: 3, state: Active, since: '2026-01-01T00:00:00Z'}
";

const RECORDS: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: gateway1}
spec: {tunnelIndex: 1}
---
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: worker1}
spec: {tunnelIndex: 2, grants: [{address: 192.168.122.222, gateway: main, ranges: [1024-1100], epoch: 2}]}
---
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: worker2}
spec: {tunnelIndex: 3}
";

/// Writes a status that no Egret of this version writes.
fn patch_status(kubectl: &Kubectl, object: &[&str], status: &str) {
    let patch = ["--subresource=status", "--type=merge", "-p", status];
    kubectl
        .run(&[&["patch"], object, &patch[..]].concat())
        .unwrap();
}

fn spec_of(kubectl: &Kubectl, object: &[&str]) -> String {
    said(kubectl, object, ".spec")
}

/// Unreadable records exist when the controller starts: there is no last good version.
fn records_that_cannot_be_read_stay_and_all_others_are_written() {
    if skipped("records_that_cannot_be_read_stay_and_all_others_are_written") {
        return;
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    kubectl.apply(UNREADABLE_ADDRESS).unwrap();
    kubectl.apply(RECORDS).unwrap();
    // Valid syntax, and no addresses.
    let reported = r#"{"status":{"underlayAddresses":["1.2.3","192.168.122.21"],"demand":[{"address":"1:2","ports":1}]}}"#;
    patch_status(kubectl, &["egrnode", "gateway1"], reported);
    let address = spec_of(kubectl, &["egraddr", ADDRESS]);
    let node = spec_of(kubectl, &["egrnode", "worker1"]);

    let own = server.kubectl_as("controller").unwrap();
    let mut daemon = controller(&server, "controller", own.kubeconfig());
    // A pod of the other policy on another node than the unreadable one's.
    pod(kubectl, "w2", "worker2", "web", "10.244.2.6");
    let granted = ".spec.grants[?(@.address==\"192.168.122.220\")].gateway";
    wait_for(kubectl, &["egrnode", "worker2"], granted, "main");
    wait_for(kubectl, &["egress", "pooled"], ".status.pods.selected", "2");
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    wait_for(kubectl, &["egrpool", "partners"], ".status.used", "2");
    let reason = r#".status.conditions[?(@.type=="Degraded")].reason"#;
    wait_for(kubectl, &["egress", "fixed"], reason, "RecordUnreadable");
    wait_for(kubectl, &["egraddr", ADDRESS], reason, "RecordUnreadable");
    assert_eq!(spec_of(kubectl, &["egraddr", ADDRESS]), address);
    assert_eq!(spec_of(kubectl, &["egrnode", "worker1"]), node);
    let index = |node: &str| said(kubectl, &["egrnode", node], ".spec.tunnelIndex");
    assert_eq!(
        (index("gateway1"), index("worker1")),
        ("1".into(), "2".into())
    );
    assert_eq!(index("worker2"), "3");
    let label = r#".metadata.labels.egret\.dev/gateway"#;
    wait_for(kubectl, &["egrnode", "gateway1"], label, "true");

    // No object is created again and again.
    let (all, _) = requests(&server.audit_log(), "controller", 0).unwrap();
    let refused = all.iter().filter(|r| r["responseStatus"]["code"] == 409);
    assert!(refused.count() <= 3, "{:?}", writes(&all));

    // Once repaired, it is planned again.
    let mended = UNREADABLE_ADDRESS.replace("2048-2100", "2048-2111");
    kubectl.apply(&mended).unwrap();
    let granted = ".spec.grants[?(@.address==\"192.168.122.222\")].gateway";
    wait_for(kubectl, &["egrnode", "worker2"], granted, "main");
    daemon.end().unwrap();
}

/// An administrator's admission policy that refuses the status of policies in one namespace.
const REFUSAL: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-status}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [egret.dev], apiVersions: ['*'], operations: [UPDATE], resources: [egresses/status]}
  validations:
  - {expression: \"object.metadata.namespace != 'shop'\", message: 'not here'}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-status}
spec: {policyName: no-status, validationActions: [Deny]}
";

/// A tenant's policy whose status is refused, and one with more findings than fit into an object of etcd.
fn statuses_that_are_refused_or_too_large_stop_nothing() {
    if skipped("statuses_that_are_refused_or_too_large_stop_nothing") {
        return;
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    let hole = "300.1.2.3/99,".repeat(250);
    let destination = format!("  - {{cidr: 203.0.113.0/24, except: [{hole}]}}\n");
    let tenant = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n\
         apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: a, namespace: shop}}\n\
         spec: {{selector: {{app: a}}, pool: partners}}\n---\n\
         apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: huge, namespace: default}}\n\
         spec:\n  selector: {{app: huge}}\n  ip: 192.168.122.223\n  destinations:\n{}",
        destination.repeat(43)
    );
    // Larger than what `kubectl apply` can store in an annotation.
    kubectl.run_with(&["create", "-f", "-"], &tenant).unwrap();
    kubectl.apply(REFUSAL).unwrap();
    until("the policy of admission is in force", TIMEOUT, || {
        let patch = r#"{"status":{"pods":{"selected":7,"programmed":0}}}"#;
        let arguments = [
            "patch",
            "egress",
            "a",
            "-n",
            "shop",
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ];
        Ok(kubectl.try_run(&arguments, "")?.out.is_empty())
    })
    .unwrap();

    let own = server.kubectl_as("controller").unwrap();
    let mut daemon = controller(&server, "controller", own.kubeconfig());
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    wait_for(kubectl, &["egress", "pooled"], ".status.pods.selected", "1");
    wait_for(kubectl, &["egrpool", "partners"], ".status.used", "3");
    wait_for(kubectl, &["egraddr", ADDRESS], ".spec.gateway", "main");
    let granted = ".spec.grants[?(@.address==\"192.168.122.222\")].gateway";
    for node in ["worker1", "worker2"] {
        wait_for(kubectl, &["egrnode", node], granted, "main");
    }
    wait_for(kubectl, &["egress", "huge"], ACCEPTED, "False");
    let message = r#".status.conditions[?(@.type=="Accepted")].message"#;
    let message = said(kubectl, &["egress", "huge"], message);
    assert!(
        message.contains("more") && message.len() <= 32_768,
        "{}",
        message.len()
    );
    until("the refusal is logged", TIMEOUT, || {
        Ok(daemon.log().contains("not here"))
    })
    .unwrap();

    // The address of the refused one is stored nowhere, so it has no record.
    let given = ["egraddr", "v4-192-168-122-221"];
    assert_eq!(said(kubectl, &given, ".spec.gateway"), "");

    // A refused write is retried at growing intervals.
    let (all, _) = requests(&server.audit_log(), "controller", 0).unwrap();
    let refused = all.iter().filter(|r| r["objectRef"]["namespace"] == "shop");
    assert!(refused.count() <= 8, "{:?}", writes(&all));

    // And written once it is no longer refused.
    kubectl
        .run(&["delete", "validatingadmissionpolicybinding", "no-status"])
        .unwrap();
    wait_for(kubectl, &["egress", "a", "-n", "shop"], ACCEPTED, "True");
    wait_for(kubectl, &given, ".spec.gateway", "main");
    daemon.end().unwrap();
}

/// A policy whose namespace terminates and does not end, as one with a finalizer of others does not: the API server
/// refuses every new object in it, events among them, also while the controller starts.
fn a_policy_in_a_namespace_that_terminates_stops_nothing() {
    if skipped("a_policy_in_a_namespace_that_terminates_stops_nothing") {
        return;
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    let tenant = "apiVersion: v1\nkind: Namespace\nmetadata: {name: leaving}\n---\n\
                  apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: a, namespace: leaving}\n\
                  spec: {selector: {app: a}, pool: partners}\n";
    kubectl.apply(tenant).unwrap();
    // There is no controller of namespaces here that would end it.
    kubectl
        .run(&["delete", "namespace", "leaving", "--wait=false"])
        .unwrap();
    wait_for(
        kubectl,
        &["namespace", "leaving"],
        ".status.phase",
        "Terminating",
    );

    let own = server.kubectl_as("controller").unwrap();
    let mut daemon = controller(&server, "controller", own.kubeconfig());
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    wait_for(kubectl, &["egress", "pooled"], ".status.pods.selected", "1");
    wait_for(kubectl, &["egraddr", ADDRESS], ".spec.gateway", "main");
    let refused = |all: &[serde_json::Value]| -> Vec<String> {
        let refused = all.iter().filter(|r| r["responseStatus"]["code"] == 403);
        let refused = refused.filter(|r| r["objectRef"]["namespace"] == "leaving");
        refused.map(|r| r["requestURI"].to_string()).collect()
    };
    let requested = || requests(&server.audit_log(), "controller", 0).unwrap().0;
    until(
        "the API server has refused something there",
        TIMEOUT,
        || Ok(!refused(&requested()).is_empty()),
    )
    .unwrap();

    // Others go on: a new pod, on a node that has no lease of this address yet.
    pod(kubectl, "w2", "worker2", "web", "10.244.2.6");
    wait_for(kubectl, &["egress", "pooled"], ".status.pods.selected", "2");
    let granted = ".spec.grants[?(@.gateway==\"main\")].gateway";
    wait_for(kubectl, &["egrnode", "worker2"], granted, "main main");
    let refused = refused(&requested());
    assert!(refused.len() <= 8, "again and again: {refused:?}");
    daemon.end().unwrap();
}
