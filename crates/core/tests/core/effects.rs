//! Statuses of policies and pods match what happens to their traffic.

use crate::scene::*;
use egret_core::condition::{ConditionType, Reason};
use egret_core::explain::{Leaves, explain};
use egret_core::model::*;
use egret_core::plan::ClusterPlan;

fn ready(plan: &ClusterPlan, name: &str) -> (bool, Reason, String) {
    let mut policies = plan.policies.iter();
    let (_, policy) = policies.find(|(object, _)| object.name == name).unwrap();
    let mut conditions = policy.conditions.iter();
    let found = conditions
        .find(|one| one.kind == ConditionType::Ready)
        .unwrap();
    (found.status, found.reason, found.message.clone())
}

#[test]
fn a_policy_that_wins_nowhere_says_that_nothing_leaves_by_it() {
    let mut scene = kep_scene();
    let mut other = egress("default", "winner", &["192.168.122.223"]);
    other.priority = 7;
    scene.add_policy(other);
    let plan = scene.settle();
    let (_, reason, text) = ready(&plan, "my-app");
    assert_eq!(reason, Reason::OtherPolicyWins);
    assert_eq!(
        text,
        "nothing leaves by it: for every destination of all its 2 pods these win: Egress default/winner"
    );
    assert_eq!(ready(&plan, "winner").1, Reason::Programmed);

    // One destination is enough.
    let winner = scene.snapshot.policies.iter_mut();
    let mut winner = winner.filter(|policy| policy.object.name == "winner");
    winner.next().unwrap().destinations = Some(vec![Destination {
        cidr: "203.0.113.0/24".parse().unwrap(),
        except: Vec::new(),
        ports: Vec::new(),
    }]);
    let plan = scene.settle();
    assert_eq!(ready(&plan, "my-app").1, Reason::Programmed);
}

#[test]
fn a_policy_for_a_namespace_that_is_not_there_is_not_ready() {
    let namespace = |name: &str, pairs: &[(&str, &str)]| Namespace {
        name: name.to_owned(),
        labels: labels(pairs),
    };
    let mut scene = kep_scene();
    scene.add_policy(egress("gone", "lost", &["192.168.122.223"]));
    let mut by_labels = egress("default", "none", &["192.168.122.224"]);
    by_labels.object.kind = Kind::ClusterEgress;
    by_labels.selection = Selection::Labels {
        namespaces: Namespaces::Labels(selector(&[("team", "a")])),
        pods: selector(&[]),
        nodes: None,
    };
    scene.add_policy(by_labels);
    // Where no namespace is known, a missing one is not reported.
    assert_eq!(ready(&scene.settle(), "lost").1, Reason::NoPods);
    let default = namespace("default", &[]);
    scene
        .snapshot
        .namespaces
        .insert("default".to_owned(), default);
    let plan = scene.settle();
    let missing = "there is no namespace gone".to_owned();
    assert_eq!(
        ready(&plan, "lost"),
        (false, Reason::NamespaceNotFound, missing)
    );
    let (status, reason, _) = ready(&plan, "none");
    assert_eq!((status, reason), (false, Reason::NamespaceNotFound));
    assert_eq!(ready(&plan, "my-app").1, Reason::Programmed);
    let gone = namespace("gone", &[("team", "a")]);
    scene.snapshot.namespaces.insert("gone".to_owned(), gone);
    let plan = scene.settle();
    assert_eq!(ready(&plan, "lost").1, Reason::NoPods);
    assert_eq!(ready(&plan, "none").1, Reason::NoPods);
}

#[test]
fn a_pod_is_explained_by_the_state_of_its_own_node_only() {
    let mut scene = kep_scene();
    scene.settle();
    let to = Some(ip("203.0.113.10"));
    let elsewhere = scene.outcome("worker2");
    let said = explain(&scene.snapshot, Some(&elsewhere), ("default", "a1"), to);
    assert_eq!(said.leaves, Leaves::Unknown);
    let last = &said.steps.last().unwrap().text;
    assert_eq!(last, "the state of worker1 is not at hand: ask its agent");
    let said = explain(&scene.snapshot, Some(&elsewhere), ("default", "nobody"), to);
    assert!(
        said.steps[0].text.contains("those of its own node"),
        "{said:?}"
    );

    // The agent's last state stays in force: a newly computed state is not what happens.
    let before = scene.outcome("worker1");
    scene.snapshot.nodes.remove(&node_name("worker1"));
    let said = explain(&scene.snapshot, Some(&before), ("default", "a1"), to);
    assert_eq!(said.leaves, Leaves::Unknown);
    let last = said.steps.last().unwrap();
    assert!(
        !last.ok && last.text.contains("there is no Node worker1"),
        "{said:?}"
    );
    assert!(
        said.steps
            .iter()
            .all(|step| !step.text.contains("leaves from"))
    );
}
