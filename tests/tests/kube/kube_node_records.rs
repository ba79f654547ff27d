//! The controller's part of an `EgressNode` on a real API server: what a record was created with can be taken away again.
//! To the API server, fields of a creation and those of an apply belong to two managers. Needs root and a built Kubernetes.

use crate::small::{TIMEOUT, open, start};
use anyhow::{Context, ensure};
use egret_cluster::Kubectl;
use egret_cluster::programs::skipped;
use egret_core::model::{Fenced, GatewayName, Grant, NodeName, NodeRecord, PortRange};
use egret_objects::Source;
use egret_objects::kube::{KubeSource, Role};
use egret_tests::kubernetes::until;
use egret_tests::steps::Group;
use egret_tests::tests;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![what_a_node_record_was_created_with_can_be_taken_away]
}

/// As the version before this one creates a record.
const OLDER: &str = "
apiVersion: egret.dev/v1alpha1
kind: EgressNode
metadata: {name: worker1}
spec:
  tunnelIndex: 2
  grantsEpoch: 3
  grants: [{address: 192.168.122.222, gateway: main, ranges: [1024-1087], epoch: 1}]
  draining: [{address: 192.168.122.222, gateway: main, ranges: [1088-1151], epoch: 1}]
";

fn grant(first: u16) -> anyhow::Result<Grant> {
    Ok(Grant {
        address: "192.168.122.222".parse()?,
        gateway: GatewayName("main".into()),
        ranges: vec![PortRange {
            first,
            last: first + 63,
        }],
        epoch: 1,
    })
}

/// A record with something in every field that may go away.
fn full(node: &NodeName) -> anyhow::Result<NodeRecord> {
    Ok(NodeRecord {
        tunnel_index: 3,
        grants_epoch: 3,
        grants: vec![grant(1024)?],
        draining: vec![grant(1088)?],
        resting: vec![grant(1152)?],
        fenced: Some(Fenced {
            reason: "no power".into(),
            since_secs: 1_800_000_000,
        }),
        pod_prefixes: ["10.9.0.0/24".parse()?].into(),
        device_addresses: ["192.168.122.77/32".parse()?].into(),
        ..NodeRecord::new(node.clone())
    })
}

fn record(source: &mut KubeSource, node: &NodeName) -> anyhow::Result<NodeRecord> {
    let view = source.snapshot()?;
    let record = view.snapshot.node_records.get(node);
    Ok(record.context("the record")?.clone())
}

/// Takes everything away, and sees that it is gone and that nothing is left to write.
fn empty(source: &mut KubeSource, kubectl: &Kubectl, node: &NodeName) -> anyhow::Result<()> {
    let before = record(source, node)?;
    let bare = NodeRecord {
        tunnel_index: before.tunnel_index,
        grants_epoch: before.grants_epoch,
        resource_version: before.resource_version,
        ..NodeRecord::new(node.clone())
    };
    source.write_node_spec(&bare)?;
    let after = record(source, node)?;
    let expected = NodeRecord {
        resource_version: after.resource_version,
        ..bare
    };
    let told = kubectl.run(&["get", "egrnode", &node.0, "-o", "yaml"])?;
    ensure!(after == expected, "{after:?}\n{told}");
    let again = source.write_node_spec(&after)?;
    ensure!(
        again == after.resource_version,
        "it was written again: {told}"
    );
    Ok(())
}

fn what_a_node_record_was_created_with_can_be_taken_away() -> anyhow::Result<()> {
    if skipped("what_a_node_record_was_created_with_can_be_taken_away") {
        return Ok(());
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    let manifest = server.folder().join("older.yaml");
    std::fs::write(&manifest, OLDER)?;
    let path = manifest.display().to_string();
    kubectl.run(&["create", "--field-manager=egret-controller", "-f", &path])?;
    let own = server.kubectl_as("controller")?;
    let mut source = open(own.kubeconfig(), Role::Controller);
    until("it leads and reads", TIMEOUT, || {
        source.wait(Duration::from_millis(100))?;
        Ok(source.leads() && source.snapshot().is_ok())
    })?;

    let new = NodeName("worker2".into());
    let wanted = full(&new)?;
    source.write_node_spec(&wanted)?;
    let there = record(&mut source, &new)?;
    let expected = NodeRecord {
        resource_version: there.resource_version,
        ..wanted
    };
    ensure!(there == expected, "{there:?}");
    empty(&mut source, kubectl, &new)?;

    let older = NodeName("worker1".into());
    let there = record(&mut source, &older)?;
    ensure!(
        there.grants.len() == 1 && there.draining.len() == 1,
        "{there:?}"
    );
    empty(&mut source, kubectl, &older)
}
