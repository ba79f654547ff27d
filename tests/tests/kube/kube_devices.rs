//! Addresses of nodes' devices with the source `kube`: a worker reads the records of gateways and its own only, and still
//! knows the VIP of another worker. The agent's view and decision are real; its report of worker2 is patched in by hand.
//! What the kernel then does is tested in the lab (`addresses::somebodys`). Needs root and a built Kubernetes.

use crate::small::{TIMEOUT, controller, open, said, start, wait_for};
use egret_cluster::Kubectl;
use egret_cluster::programs::skipped;
use egret_core::model::NodeName;
use egret_core::node::{NodeFacts, node_state};
use egret_objects::Source;
use egret_objects::kube::{KubeSource, Role};
use egret_tests::kubernetes::until;
use egret_tests::steps::Group;
use egret_tests::tests;
use std::net::IpAddr;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![a_vip_of_another_worker_is_no_egress_and_no_egress_address]
}

/// In the pool of the cluster.
const VIP: &str = "192.168.122.221";

const POLICY: &str = "
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: vip, namespace: default}
spec: {selector: {app: vip}, ip: 192.168.122.221}
";

fn report(kubectl: &Kubectl, addresses: &str) {
    let status = format!(r#"{{"status":{{"nodeAddresses":{addresses}}}}}"#);
    let patch = ["--subresource=status", "--type=merge", "-p", &status];
    kubectl
        .run(&[&["patch", "egrnode", "worker2"], &patch[..]].concat())
        .unwrap();
}

/// Whether the worker's agent leaves packets to this address alone, and whether it reads the other worker's record.
fn never(agent: &mut KubeSource, node: &NodeName, address: IpAddr) -> anyhow::Result<(bool, bool)> {
    agent.wait(Duration::from_millis(200))?;
    let view = agent.snapshot()?;
    let records = &view.snapshot.node_records;
    let reads_it = records.contains_key(&NodeName("worker2".into()));
    let facts = NodeFacts {
        underlay_mtu: 1500,
        settled: true,
        ..NodeFacts::default()
    };
    let state = node_state(&view.snapshot, &facts, node)?.state;
    let mut never = state.worker.never.iter();
    Ok((never.any(|net| net.contains(&address)), reads_it))
}

fn a_vip_of_another_worker_is_no_egress_and_no_egress_address() {
    if skipped("a_vip_of_another_worker_is_no_egress_and_no_egress_address") {
        return;
    }
    let server = start(&[("Controller", "controller"), ("Agent", "agent")]);
    let kubectl = server.kubectl();
    let own = server.kubectl_as("controller").unwrap();
    let mut daemon = controller(&server, "controller", own.kubeconfig());
    let told = ".spec.deviceAddresses";
    wait_for(kubectl, &["egrnode", "worker2"], ".spec.tunnelIndex", "3");
    let node = NodeName("worker1".into());
    let own = server.kubectl_as("agent").unwrap();
    let mut agent = open(own.kubeconfig(), Role::Agent(node.clone()));
    let address: IpAddr = VIP.parse().unwrap();
    until("the agent reads", TIMEOUT, || {
        Ok(never(&mut agent, &node, address).is_ok_and(|(never, _)| !never))
    })
    .unwrap();

    // Its InternalIP, which its Node names, is told by nobody else.
    report(kubectl, r#"["192.168.122.12/24","192.168.122.221/32"]"#);
    wait_for(
        kubectl,
        &["egrnode", "gateway1"],
        told,
        r#"["192.168.122.221/32"]"#,
    );
    assert_eq!(said(kubectl, &["egrnode", "worker1"], told), "");
    until("the worker knows it", TIMEOUT, || {
        let (never, reads_it) = never(&mut agent, &node, address)?;
        assert!(!reads_it, "it reads the other worker's record");
        Ok(never)
    })
    .unwrap();
    kubectl.apply(POLICY).unwrap();
    let accepted = r#".status.conditions[?(@.type=="Accepted")]"#;
    let reason = format!("{accepted}.reason");
    wait_for(kubectl, &["egress", "vip"], &reason, "AddressInCluster");
    let message = said(kubectl, &["egress", "vip"], &format!("{accepted}.message"));
    assert!(message.contains("Node worker2"), "{message}");

    report(kubectl, r#"["192.168.122.12/24"]"#);
    wait_for(kubectl, &["egrnode", "gateway1"], told, "");
    until("the worker forgets it", TIMEOUT, || {
        Ok(!never(&mut agent, &node, address)?.0)
    })
    .unwrap();
    daemon.end().unwrap();
}
