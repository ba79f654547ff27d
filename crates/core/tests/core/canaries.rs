//! Paths that canaries measure, and the effects of a broken path.

use crate::scene::*;
use egret_core::canary::{CanaryKind, Lost};
use egret_core::check::check_node;
use egret_core::model::*;
use egret_core::node::{
    BrokenPath, CANARY_CAPABILITY, CanaryEnd, IssueKind, NodeOutcome, TrafficKeyId,
    is_canary_destination, node_state,
};
use std::collections::BTreeSet;

#[test]
fn canaries_measure_each_group_and_family_by_a_few_ports_of_a_lease() {
    let mut scene = kep_scene();
    scene.settle();
    let node = NodeName("worker1".into());
    let able = |scene: &mut Scene, able: bool| {
        let records: Vec<_> = scene.snapshot.node_records.values().cloned().collect();
        for mut record in records {
            record.capabilities = able
                .then(|| CANARY_CAPABILITY.to_owned())
                .into_iter()
                .collect();
            scene
                .snapshot
                .node_records
                .insert(record.node.clone(), record);
        }
    };
    let outcome = |scene: &Scene, broken: bool| {
        let mut facts = scene.facts(&node);
        facts.canary_device = Some(77);
        let before = node_state(&scene.snapshot, &facts, &node).unwrap();
        if broken {
            facts.broken_paths = before
                .canaries
                .iter()
                .map(|path| BrokenPath {
                    group: path.group.clone(),
                    v6: path.egress.is_ipv6(),
                    kinds: BTreeSet::from([CanaryKind::Tcp]),
                    lost: Lost::Forward,
                })
                .collect();
        }
        let outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
        let violations = check_node(&scene.snapshot, &facts, &node, &outcome);
        assert_eq!(violations, [], "the checker");
        outcome
    };
    let ends = |outcome: &NodeOutcome| {
        let paths = outcome.canaries.iter();
        let canary = outcome.state.worker.canary.as_ref();
        let end_here = canary.map_or(0, |canary| canary.end_here.len());
        (paths.map(|path| path.end).collect::<Vec<_>>(), end_here)
    };
    assert_eq!(
        ends(&outcome(&scene, false)),
        (vec![CanaryEnd::Guard], 1),
        "gateways that do not turn them round"
    );
    able(&mut scene, true);
    assert_eq!(ends(&outcome(&scene, false)), (vec![CanaryEnd::Gateway], 0));
    let whole = outcome(&scene, false);
    assert_eq!(
        whole.canaries.len(),
        1,
        "one group, one family: {:?}",
        whole.canaries
    );
    let path = &whole.canaries[0];
    assert!(is_canary_destination(path.destination));
    let worker = &whole.state.worker;
    let canary = worker.canary.as_ref().expect("a canary");
    assert_eq!(
        (canary.device, &canary.sources),
        (77, &BTreeSet::from([path.source]))
    );
    let target = worker
        .targets
        .values()
        .find(|t| t.traffic_key == TrafficKeyId::CANARY);
    let ranges = &target.expect("its target").ranges;
    assert_eq!(ranges.len(), 1);
    assert_eq!(u32::from(ranges[0].last - ranges[0].first) + 1, 16);
    let leased = worker.leased_ports();
    let granted = &leased[&path.egress];
    let ports: u32 = granted
        .iter()
        .map(|range| u32::from(range.last - range.first) + 1)
        .sum();
    assert_eq!(ports, 1024, "pods may use the whole lease: {granted:?}");
    assert_eq!(whole.programmed[0].pods, 1);
    let broken = outcome(&scene, true);
    assert_eq!(
        broken.programmed[0].pods, 0,
        "what does not come back is not programmed"
    );
    assert!(
        broken
            .issues
            .iter()
            .any(|r| matches!(r.kind, IssueKind::PathBroken(_)))
    );
}

#[test]
fn a_node_that_is_its_own_gateway_is_measured_where_its_device_leads_to_the_world() {
    let mut scene = kep_scene();
    scene.add_pod("g", "gateway1", 10, &[("app", "MyApp")]);
    scene.settle();
    let node = NodeName("gateway1".into());
    let paths = |leads_out: [bool; 2]| {
        let mut facts = scene.facts(&node);
        facts.canary_device = Some(77);
        let external = facts.external.as_mut().expect("a gateway");
        external.leads_out = leads_out;
        let outcome = node_state(&scene.snapshot, &facts, &node).unwrap();
        let violations = check_node(&scene.snapshot, &facts, &node, &outcome);
        assert_eq!(violations, [], "the checker");
        outcome.canaries
    };
    assert_eq!(paths([false, true]), [], "IPv4 leads elsewhere");
    let measured = paths([true, false]);
    assert_eq!(measured.len(), 1);
    assert_eq!(measured[0].end, CanaryEnd::Guard);
}
