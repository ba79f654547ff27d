//! Explanations: the text that users get.

use crate::scene::*;
use egret_core::explain::{Explanation, Leaves, Stage, explain};
use egret_core::model::*;
use expect_test::expect;

const E: &str = "192.168.122.222";

fn of(scene: &Scene, pod: &str, to: Option<&str>) -> Explanation {
    let node = scene
        .snapshot
        .pods
        .values()
        .find(|p| p.name == pod)
        .map(|p| p.node.0.clone());
    let outcome = node.map(|node| scene.outcome(&node));
    explain(
        &scene.snapshot,
        outcome.as_ref(),
        ("default", pod),
        to.map(ip),
    )
}

fn text(explanation: &Explanation) -> String {
    let line = |s: &egret_core::explain::Step| {
        format!(
            "{} {:?}: {}\n",
            if s.ok { "+" } else { "-" },
            s.stage,
            s.text
        )
    };
    explanation.steps.iter().map(line).collect()
}

#[test]
fn a_selected_pod_is_explained_from_pod_to_verdict() {
    let mut scene = kep_scene();
    scene.settle();
    scene
        .snapshot
        .node_records
        .get_mut(&node_name("gateway2"))
        .unwrap()
        .announcing = [ip(E)].into();
    let explanation = of(&scene, "a1", Some("203.0.113.10"));
    assert_eq!(explanation.leaves, Leaves::From([ip(E)].into()));
    expect![[r#"
        + Pod: default/a1 on worker1, 10.244.1.10, fd00:244:1::10
        + Policy: Egress default/my-app selects it
        + Address: 192.168.122.222
        + Lease: worker1 has 6656-6911 7168-7423 28160-28415 32768-33023 (epoch 1, Active)
        + Gateway: EgressGateway main; 192.168.122.222 is announced by gateway2
        + Verdict: leaves from 192.168.122.222 by gateway1 or gateway2 or gateway3
    "#]]
    .assert_eq(&text(&explanation));
}

#[test]
fn every_way_to_end_is_told() {
    let mut scene = kep_scene();
    scene.settle();
    let leaves = |scene: &Scene, pod: &str, to: &str| of(scene, pod, Some(to)).leaves;
    assert_eq!(leaves(&scene, "b1", "203.0.113.10"), Leaves::Untouched);
    assert_eq!(leaves(&scene, "a1", "10.244.2.10"), Leaves::Untouched);
    assert_eq!(leaves(&scene, "a1", "2001:db8::1"), Leaves::Stopped);
    assert_eq!(of(&scene, "nobody", None).leaves, Leaves::Unknown);
    let whole = of(&scene, "a1", None);
    assert_eq!(whole.leaves, Leaves::From([ip(E)].into()));

    let elsewhere = explain(&scene.snapshot, None, ("default", "a1"), None);
    assert_eq!(elsewhere.leaves, Leaves::Unknown);
    assert_eq!(elsewhere.steps.last().unwrap().stage, Stage::Verdict);

    let net = Destination {
        cidr: "203.0.113.0/24".parse().unwrap(),
        except: Vec::new(),
        ports: vec![PortMatch {
            protocol: Protocol::Tcp,
            first: 443,
            last: 443,
        }],
    };
    scene.snapshot.policies[0].destinations = Some(vec![net]);
    assert_eq!(leaves(&scene, "a1", "8.8.8.8"), Leaves::Untouched);
    assert!(
        text(&of(&scene, "a1", Some("203.0.113.10")))
            .contains("other protocols and ports untouched")
    );

    scene.snapshot.policies[0].gateway = Some(GatewayName("none".into()));
    assert_eq!(leaves(&scene, "a1", "203.0.113.10"), Leaves::Stopped);
    scene
        .snapshot
        .pods
        .values_mut()
        .for_each(|pod| pod.host_network = true);
    assert_eq!(leaves(&scene, "a1", "203.0.113.10"), Leaves::Untouched);
}

#[test]
fn a_pod_without_usable_ports_is_told_why() {
    let mut scene = kep_scene();
    scene.settle();
    scene.add_pod("a3", "worker3", 10, &[("app", "MyApp")]);
    scene.control();
    let explanation = of(&scene, "a3", Some("203.0.113.10"));
    assert_eq!(explanation.leaves, Leaves::Stopped);
    assert!(text(&explanation).contains("no port of 192.168.122.222 can be used yet"));
}

#[test]
fn nothing_leaves_by_gateways_without_a_way_out() {
    let mut scene = kep_scene();
    scene.settle();
    let lose = |scene: &mut Scene, gateway: &str| {
        let record = scene.snapshot.node_records.get_mut(&node_name(gateway));
        record.unwrap().uplink_lost = true;
    };
    for gateway in ["gateway1", "gateway2"] {
        lose(&mut scene, gateway);
        let explanation = of(&scene, "a1", Some("203.0.113.10"));
        assert_eq!(explanation.leaves, Leaves::From([ip(E)].into()));
    }
    lose(&mut scene, "gateway3");
    let explanation = of(&scene, "a1", Some("203.0.113.10"));
    assert_eq!(explanation.leaves, Leaves::Stopped);
    assert!(
        text(&explanation).contains("has a way out"),
        "{explanation:?}"
    );
}

#[test]
fn nothing_leaves_by_gateways_that_do_not_answer() {
    let mut scene = kep_scene();
    scene.settle();
    for gateway in ["gateway2", "gateway3"] {
        let record = scene.snapshot.node_records.get_mut(&node_name(gateway));
        record.unwrap().announcing = [ip(E)].into();
    }
    scene.dead.insert(node_name("gateway2"));
    let one = text(&of(&scene, "a1", None));
    assert!(one.contains("is announced by gateway3\n"), "{one}");
    scene.dead = scene.gateway_nodes();
    let explanation = of(&scene, "a1", None);
    assert_eq!(explanation.leaves, Leaves::Stopped);
    expect![[r#"
        + Pod: default/a1 on worker1, 10.244.1.10, fd00:244:1::10
        + Policy: Egress default/my-app selects it
        + Address: 192.168.122.222
        + Lease: worker1 has 6656-6911 7168-7423 28160-28415 32768-33023 (epoch 1, Active)
        - Gateway: EgressGateway main; no gateway that answers this node announces 192.168.122.222; last said to by gateway2, gateway3
        - Verdict: no gateway of 192.168.122.222 answers this node's probes: what it sends goes to the last ones, gateway1 or gateway2 or gateway3, and nothing comes back; see that their agents run, and that host firewalls have UDP 14789 open in both directions, there and here; rejected: the policy has no address of this family
    "#]]
    .assert_eq(&text(&explanation));
}
