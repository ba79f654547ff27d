//! The API server for tests: its answers, and complete removal. Needs root and a built Kubernetes.

use egret_cluster::ApiServer;
use egret_cluster::programs::skipped;
use egret_lab::process::{Process, wait_for};
use std::path::Path;
use std::time::Duration;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");

#[test]
fn users_may_do_what_their_roles_say() {
    if skipped("users_may_do_what_their_roles_say") {
        return;
    }
    let server = ApiServer::start_with(&[("alice", &["team-a", "team-b"])]).unwrap();
    let admin = server.kubectl();
    // Not `view`: the controller manager would aggregate its rules, and there is none here.
    let role = [
        "create",
        "clusterrole",
        "seer",
        "--verb=list",
        "--resource=pods",
    ];
    admin.run(&role).unwrap();
    let binding = [
        "create",
        "clusterrolebinding",
        "b",
        "--clusterrole=seer",
        "--group=team-b",
    ];
    admin.run(&binding).unwrap();
    let alice = server.kubectl_as("alice").unwrap();
    alice.run(&["get", "pods"]).unwrap();
    let refused = alice.run(&["get", "nodes"]).unwrap_err().to_string();
    assert!(
        refused.contains("\"alice\" cannot list resource \"nodes\""),
        "{refused}"
    );
}

#[test]
fn kinds_are_established_a_good_egress_is_taken_and_a_bad_one_is_refused() {
    if skipped("kinds_are_established_a_good_egress_is_taken_and_a_bad_one_is_refused") {
        return;
    }
    let server = ApiServer::start().unwrap();
    let kubectl = server.kubectl();
    kubectl.define(Path::new(CRDS)).unwrap();
    let egress = |pods: &str| {
        format!(
            "apiVersion: egret.dev/v1alpha1\nkind: Egress\n\
             metadata: {{name: my-egress, namespace: default}}\n\
             spec: {{{pods}, ip: 192.168.122.222}}\n"
        )
    };
    kubectl.apply(&egress("selector: {app: MyApp}")).unwrap();
    let said = kubectl
        .run(&["get", "egr", "my-egress", "-o", "name"])
        .unwrap();
    assert_eq!(said, "egress.egret.dev/my-egress\n");
    let both = egress("selector: {app: MyApp}, serviceName: web").replace("my-egress", "bad");
    let error = kubectl.apply(&both).unwrap_err().to_string();
    let rule = "say which pods: exactly one of selector, podSelector and serviceName";
    assert!(error.contains(rule), "{error}");
    let log = std::fs::read_to_string(server.audit_log()).unwrap();
    let patch = |line: &&str| line.contains(r#""verb":"patch""#) && line.contains("my-egress");
    assert!(
        log.lines().any(|line| patch(&line)),
        "the request is in the audit log"
    );
}

#[test]
fn an_api_server_ends_with_its_value_and_leaves_nothing() {
    if skipped("an_api_server_ends_with_its_value_and_leaves_nothing") {
        return;
    }
    let server = ApiServer::start().unwrap();
    let folder = server.folder().to_owned();
    let processes = processes_of(&folder);
    assert!(
        processes.len() >= 4,
        "launcher, shell, etcd, API server: {processes:?}"
    );
    let panicked = std::thread::spawn(move || {
        let _server = server;
        panic!("this panic is part of the test");
    });
    assert!(panicked.join().is_err());
    wait_for("its processes to end", Duration::from_secs(20), || {
        processes.iter().all(|process| !process.is_alive())
    })
    .unwrap();
    assert!(!folder.exists());
}

/// Processes with this working directory.
fn processes_of(folder: &Path) -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)
    })
    .filter_map(Process::of)
    .collect()
}
