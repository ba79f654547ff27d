//! `egret drain`, `undrain` and `move` on a real API server, with this test in place of the agents. Needs root and a built
//! Kubernetes.

use crate::small::{said, start, wait_for};
use egret_cluster::programs::skipped;
use egret_cluster::{ApiServer, Kubectl};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::process::{Child, Command, Output, Stdio};

pub fn groups() -> Vec<Group> {
    tests![requests_of_an_operator_are_written_and_waited_for]
}

const RECORDS: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: gateway1}
spec: {tunnelIndex: 1}
---
apiVersion: egret.dev/v1alpha1
kind: EgressAddress
metadata: {name: v4-192-168-122-222}
spec: {address: 192.168.122.222, gateway: main, epoch: 0, leases: []}
";

fn egret(server: &ApiServer, words: &[&str]) -> Child {
    let source = format!("--source=kube:{}", server.kubectl().kubeconfig().display());
    let mut command = Command::new(egret_tests::egret().unwrap());
    command.args(words).arg(source).arg("--timeout=60");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Exit code and everything that was printed.
fn ended(child: Child) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (status.code().unwrap(), text.concat())
}

/// Reports as the agent of gateway1 would.
fn report(kubectl: &Kubectl, status: &str) {
    let patch = [
        "patch",
        "egrnode",
        "gateway1",
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    kubectl.run(&[&patch[..], &[status]].concat()).unwrap();
}

fn draining(reason: &str) -> String {
    format!(
        r#"{{"status":{{"conditions":[{{"type":"Draining","status":"True","reason":"{reason}",
            "message":"as {reason}","lastTransitionTime":"2026-01-01T00:00:00Z"}}]}}}}"#
    )
}

fn requests_of_an_operator_are_written_and_waited_for() {
    if skipped("requests_of_an_operator_are_written_and_waited_for") {
        return;
    }
    let server = start(&[]);
    let kubectl = server.kubectl();
    kubectl.apply(RECORDS).unwrap();

    let (code, text) = ended(egret(&server, &["drain", "worker1"]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing to drain"), "{text}");
    let (code, text) = ended(egret(&server, &["drain", "nobody"]));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("Node nobody does not exist"), "{text}");

    let drain = egret(&server, &["drain", "gateway1"]);
    wait_for(
        kubectl,
        &["node", "gateway1"],
        ".metadata.annotations",
        r#"{"egret.dev/drain":""}"#,
    );
    report(kubectl, &draining("HandingOver"));
    report(kubectl, &draining("Drained"));
    let (code, text) = ended(drain);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("gateway1 carries nothing"), "{text}");

    let undrain = egret(&server, &["undrain", "gateway1"]);
    wait_for(kubectl, &["node", "gateway1"], ".metadata.annotations", "");
    report(kubectl, r#"{"status":{"conditions":[]}}"#);
    let (code, text) = ended(undrain);
    assert_eq!(code, 0, "{text}");

    kubectl.run(&["cordon", "gateway1"]).unwrap();
    let (code, text) = ended(egret(&server, &["undrain", "gateway1"]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("kubectl uncordon gateway1"), "{text}");
    kubectl.run(&["uncordon", "gateway1"]).unwrap();

    let moves = egret(&server, &["move", "192.168.122.222", "gateway1"]);
    let named = r#"[{"address":"192.168.122.222","node":"gateway1"}]"#;
    wait_for(kubectl, &["egrgw", "main"], ".spec.announcers", named);
    report(kubectl, r#"{"status":{"announcing":["192.168.122.222"]}}"#);
    let (code, text) = ended(moves);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("gateway1 announces 192.168.122.222"),
        "{text}"
    );
    let (code, text) = ended(egret(&server, &["move", "192.168.122.222", "worker1"]));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("does not select Node worker1"), "{text}");
    let (code, text) = ended(egret(&server, &["move", "192.168.122.222", "--release"]));
    assert_eq!(code, 0, "{text}");
    let left = said(kubectl, &["egrgw", "main"], ".spec.announcers");
    assert!(matches!(left.as_str(), "" | "[]"), "{left}");
}
