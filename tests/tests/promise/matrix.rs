//! The main use case in every environment: each pair of settings of CNI, forward policy, filters, marks, network and
//! policy occurs in some pod (`EGRET_FULL=1`: the full cross), and no packet leaves with a wrong source during
//! disturbances.

use anyhow::{Context, bail, ensure};
use egret_lab::process::wait_for;
use egret_lab::traffic::source::udp_echo;
use egret_lab::traffic::tcp_source;
use egret_tests::cluster::{DEADLINE, echo};
use egret_tests::matrix::paths::wait_whole;
use egret_tests::matrix::scene::{Scene, Traffic, condition, policy_name};
use egret_tests::matrix::{cells, is_full, labs, marks};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Outcome, steps};
use std::io::ErrorKind;
use std::time::Instant;

pub fn groups() -> Vec<Group> {
    let cells = match is_full() {
        true => cells::all(),
        false => cells::pairwise(),
    };
    let labs = labs::of(&cells).into_iter().enumerate();
    let groups = labs.map(|(number, plan)| {
        // Names of groups live as long as the program.
        let name: &'static str = plan.name().leak();
        let up = move || {
            plan.describe()
                .iter()
                .for_each(|line| println!("     {line}"));
            Scene::up(&format!("m{number}"), plan)
        };
        Group::new(
            name,
            up,
            steps![
                what_only_the_operator_can_open_is_reported_and_leaks_nothing,
                every_pod_leaves_with_the_address_of_its_policy,
                neighbours_find_the_egress_addresses_anew,
                a_family_without_address_is_refused_with_a_condition,
                marks_of_others_are_kept,
                nothing_leaves_wrong_whatever_happens,
                nobody_has_said_that_a_path_is_broken,
            ],
        )
    });
    groups.collect()
}

fn what_only_the_operator_can_open_is_reported_and_leaks_nothing(scene: &Scene) -> Outcome {
    let nodes = &scene.plan.nodes;
    let (closed, open): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| scene.is_closed(node));
    let watch = scene.watch()?;
    for node in &closed {
        let what = format!("ForwardBlocked of {}", node.name);
        wait_for(&what, DEADLINE, || scene.blocked(&node.name).is_some())?;
        // Whether they get out (others' rules may accept them) or not, they have no other source.
        for (server, _) in scene.covered(&node.pods[0]) {
            drop(tcp_source(
                &scene.cluster.pod(&node.pods[0].name)?,
                echo(server),
            ));
        }
    }
    ensure!(watch.count()? == 0, "a packet left with another source");
    // Also nodes whose chains are closed are whole from here on.
    scene.paths_stayed_whole(&closed)?;
    for node in &closed {
        scene.unblock(&node.name)?;
    }
    if !closed.is_empty() {
        scene.wait_whole()?;
    }
    for node in open {
        let said = scene.blocked(&node.name);
        ensure!(said.is_none(), "{}: {said:?}", node.name);
    }
    // Policies with pods behind a closed chain were not.
    scene.cluster.wait_ready()
}

/// Cases: N14, N15, N18, S6.
fn every_pod_leaves_with_the_address_of_its_policy(scene: &Scene) -> Outcome {
    let watch = scene.watch()?;
    for (_, pod) in scene.plan.pods() {
        let place = scene.cluster.pod(&pod.name)?;
        for (server, address) in scene.covered(pod) {
            expect_source(&place, server, address)?;
        }
    }
    watch.clean()
}

/// Where a segment filters multicast, a solicitation reaches a gateway only because it joined the group of the address.
fn neighbours_find_the_egress_addresses_anew(scene: &Scene) -> Outcome {
    for policy in scene.plan.policies() {
        let mut pods = scene.plan.pods().map(|(_, pod)| pod);
        let pod = pods.find(|pod| pod.policy == policy).context("a pod")?;
        let place = scene.cluster.pod(&pod.name)?;
        for (server, address) in scene.covered(pod) {
            scene.forget_neighbour(address)?;
            expect_source(&place, server, address)?;
            let known = scene.neighbour(address)?;
            ensure!(!known.is_empty(), "nobody asked for {address}");
        }
    }
    Ok(())
}

fn a_family_without_address_is_refused_with_a_condition(scene: &Scene) -> Outcome {
    let watch = scene.watch()?;
    let mut refused = 0;
    for (_, pod) in scene.plan.pods() {
        let place = scene.cluster.pod(&pod.name)?;
        for server in scene.uncovered(pod) {
            // The errors that the kernel derives from ICMP type 3 code 13 and ICMPv6 type 1 code 1.
            let by = match server.is_ipv4() {
                true => ErrorKind::HostUnreachable,
                false => ErrorKind::PermissionDenied,
            };
            match udp_echo(&place, echo(server), 32, DEADLINE) {
                Err(error) if error.kind() == Some(by) => refused += 1,
                other => bail!(
                    "{} to {server} was not refused by {by}: {other:?}",
                    pod.name
                ),
            }
        }
        let expected = if scene.uncovered(pod).is_empty() {
            "False"
        } else {
            "True"
        };
        let policy = policy_name(pod);
        let mut last = None;
        let waited = wait_for("FamilyNotCovered", DEADLINE, || {
            last = scene.cluster.object("egress", Some("default"), &policy);
            let found = last
                .as_ref()
                .and_then(|one| condition(one, "FamilyNotCovered"));
            // A condition that does not hold may be absent.
            found.map_or("False".into(), |found| found["status"].clone()) == expected
        });
        waited.with_context(|| format!("{policy} should say {expected}: {last:#?}"))?;
    }
    ensure!(watch.count()? == 0, "of {refused} refused packets one left");
    Ok(())
}

fn marks_of_others_are_kept(scene: &Scene) -> Outcome {
    for node in &scene.plan.nodes {
        for pod in marks::marked(node) {
            let [kept, lost] = scene.marks_seen(&node.name, &pod)?;
            ensure!(
                kept > 0 && lost == 0,
                "{pod}: {kept} packets kept their mark, {lost} did not"
            );
        }
        // Also bits of our own mask, on packets that Egret does not select.
        let (pod, _) = node.unselected();
        scene.send(&pod)?;
        let [kept, lost] = scene.marks_seen(&node.name, &pod)?;
        ensure!(
            kept > 0 && lost == 0,
            "{pod}: {kept} packets kept their mark, {lost} did not"
        );
    }
    Ok(())
}

fn nothing_leaves_wrong_whatever_happens(scene: &Scene) -> Outcome {
    let traffic = scene.traffic()?;
    let started = Instant::now();
    let answered = |after: &str| {
        let result = traffic
            .wait_answers()
            .with_context(|| format!("after {after}"));
        println!("     {after}: answered after {:.1?}", started.elapsed());
        result
    };
    answered("the start")?;
    let watch = scene.watch()?;
    scene.restart_agents(&traffic, true)?;
    answered("new agents and rulesets")?;
    scene.restart_agents(&traffic, false)?;
    answered("the death of the agents")?;
    scene.flush()?;
    answered("a foreign flush")?;
    scene.with_broken_paths(|| scene.clear_marks(&traffic))?;
    answered("a foreign rule that clears the mark")?;
    let gateways = scene.plan.gateways();
    if scene.has_spare() {
        scene.lose(&gateways[..1], &traffic)?;
        answered("the loss of a gateway")?;
    }
    scene.with_broken_paths(|| scene.lose(&gateways, &traffic))?;
    answered("the loss of all gateways")?;
    let watch = edit_addresses(scene, &traffic, watch)?;
    answered("other addresses")?;
    watch.clean()?;
    scene.take_policies()?;
    traffic.wait_turns()?;
    scene.put_policies(false)?;
    let watch = scene.watch()?;
    traffic.wait_turns()?;
    answered("the start of the policies")?;
    traffic.stop()?;
    watch.clean()?;
    every_pod_leaves_with_the_address_of_its_policy(scene)
}

/// From the start of the lab, except while it had broken one on purpose.
fn nobody_has_said_that_a_path_is_broken(scene: &Scene) -> Outcome {
    // Two whole rounds more, which judge the last changes.
    wait_whole(&scene.cluster, &scene.plan.agents())?;
    scene.paths_stayed_whole(&[])
}

/// Gives every policy other addresses under its live flows. During the change both are allowed; from then on only the
/// new ones are, which the returned capture checks. One capture begins before the other ends.
fn edit_addresses(scene: &Scene, traffic: &Traffic, before: Leaving) -> anyhow::Result<Leaving> {
    let between = scene.watch_for(&[false, true])?;
    before.clean()?;
    scene.put_policies(true)?;
    let after = scene.watch_for(&[true])?;
    between.clean()?;
    traffic.wait_turns()?;
    Ok(after)
}
