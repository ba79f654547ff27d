//! Effects of obstacles on a node's reports.

use crate::scene::*;
use egret_core::node::NodeOutcome;
use egret_core::obstacle::{Obstacle, ObstacleKind, Samples, discount};

fn outcome() -> NodeOutcome {
    let mut scene = kep_scene();
    scene.settle();
    scene.outcome("worker1")
}

fn obstacle(kind: ObstacleKind, (v4, v6): (bool, bool), certain: bool) -> Obstacle {
    Obstacle {
        kind,
        place: String::new(),
        text: String::new(),
        remedy: String::new(),
        v4,
        v6,
        certain,
    }
}

fn programmed(outcome: &NodeOutcome) -> u32 {
    outcome.programmed.iter().map(|one| one.pods).sum()
}

#[test]
fn the_packets_to_look_for_are_those_of_a_selected_pod() {
    let samples = Samples::of(&outcome().state);
    let v4 = samples.v4.expect("the policy has an IPv4 address");
    assert_eq!(v4.pod, Some(ip("10.244.1.10")));
    assert_eq!(v4.egress, Some(ip("192.168.122.222")));
    assert!(v4.outside.is_some() && v4.port.is_some() && !v4.reinjected && !v4.leaves_here);
    assert_eq!(samples.v6, None, "nothing of IPv6 leaves");
    assert!(samples.tunnel);
    let mut scene = kep_scene();
    scene.settle();
    let idle = Samples::of(&scene.outcome("worker3").state);
    assert_eq!((idle.v4, idle.v6), (None, None));
}

#[test]
fn pods_behind_an_obstacle_are_not_programmed() {
    let before = programmed(&outcome());
    assert!(before > 0);
    let after = |kind, families, certain| {
        let mut outcome = outcome();
        discount(&mut outcome, &[obstacle(kind, families, certain)]);
        programmed(&outcome)
    };
    use ObstacleKind::{ForwardRule, Mtu, ReversePathRule};
    assert_eq!(after(ReversePathRule, (true, false), true), 0);
    assert_eq!(after(ForwardRule, (true, true), true), 0);
    assert_eq!(after(ForwardRule, (false, true), true), before);
    assert_eq!(after(ForwardRule, (true, true), false), before);
    assert_eq!(after(Mtu, (true, true), true), before);
}
