//! The user stories of the proposal (KEP), and the life cycle of pods: each pod leaves with the address of its policy.
//!
//! Steps of `install.rs`, in its order:
//! - [`stories_of_the_proposal`]
//! - [`a_label_added_to_and_removed_from_a_running_pod`]
//! - [`a_pod_recreated_on_another_node_keeps_its_address`]

use super::{FIXED, PATIENCE, SERVERS, Scene, WORKER1, ip, servers};
use anyhow::{Context, ensure};
use egret_lab::capture::Packet;
use egret_lab::traffic::server::ECHO_PORTS;
use egret_lab::traffic::source::tcp_source_within;
use egret_tests::Outcome;
use egret_tests::watch::{Leaving, expect_source};

/// Ports used only by the pods of the proposal's stories, each with its policy's addresses.
const STORIES: [(u16, [&str; 2]); 2] = [
    (ECHO_PORTS[0], ["192.168.122.223", "fd00:122::223"]),
    (ECHO_PORTS[2], ["192.168.122.224", "fd00:122::224"]),
];

fn is_no_story(packet: &Packet) -> bool {
    let to = |port| {
        packet
            .ports
            .is_some_and(|(_, destination)| destination == port)
    };
    STORIES
        .iter()
        .any(|(port, sources)| to(*port) && !sources.map(ip).contains(&packet.source))
}

fn policy(name: &str, last: u8) -> String {
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{app: {name}}}, ips: [192.168.122.{last}, \"fd00:122::{last}\"]}}\n---\n"
    )
}

/// Cases: S1, S2, S3.
/// One pod has an address that a database allows; several pods share one; different pods have different ones.
pub fn stories_of_the_proposal(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    installed
        .kubectl
        .apply(&(policy("database", 223) + &policy("partner", 224)))?;
    let database = installed.pod("database", "database", "worker1")?;
    let partners = [
        installed.pod("partner1", "partner", "worker1")?,
        installed.pod("partner2", "partner", "worker2")?,
    ];
    installed.programmed("database", 1)?;
    installed.programmed("partner", 2)?;
    let router = Leaving::of(installed.cluster.lab(), is_no_story)?;
    for family in 0..2 {
        let [of_database, of_partners] =
            STORIES.map(|(port, sources)| (servers(port)[family], ip(sources[family])));
        for (pod, (server, source)) in [
            (&database, of_database),
            (&partners[0], of_partners),
            (&partners[1], of_partners),
        ] {
            let seen = tcp_source_within(pod, server, PATIENCE)?.ip();
            ensure!(seen == source, "the server saw {seen}, not {source}");
        }
    }
    router.clean()?;
    let server = ip(SERVERS[0]);
    let talk = scene.talk.borrow();
    let talk = talk.as_ref().context("the step before failed")?;
    expect_source(&talk.fixed[0], server, ip(FIXED[0]))?;
    expect_source(&talk.plain, server, ip(WORKER1[0]))?;
    installed.delete_pods(&["partner1", "partner2"])
}

/// Cases: S4.
pub fn a_label_added_to_and_removed_from_a_running_pod(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let pod = installed.pod("walker", "none", "worker2")?;
    let [server, _] = servers(ECHO_PORTS[1]);
    installed.leaves_as(&pod, server, ip("192.168.122.12"))?;
    let label = |value: &str| {
        let label = ["label", "pod", "walker", "--overwrite", value];
        installed.kubectl.run(&label)
    };
    label("app=database")?;
    installed.leaves_as(&pod, server, ip("192.168.122.223"))?;
    installed.programmed("database", 2)?;
    expect_source(&pod, ip(SERVERS[1]), ip("fd00:122::223"))?;
    label("app-")?;
    installed.leaves_as(&pod, server, ip("192.168.122.12"))?;
    installed.delete_pods(&["walker"])
}

/// Cases: N10, S7.
pub fn a_pod_recreated_on_another_node_keeps_its_address(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    installed.delete_pods(&["database"])?;
    let pod = installed.pod("database", "database", "worker2")?;
    let [server, _] = servers(ECHO_PORTS[1]);
    installed.leaves_as(&pod, server, ip("192.168.122.223"))?;
    installed.programmed("database", 1)?;
    for (server, source) in [
        (SERVERS[0], "192.168.122.223"),
        (SERVERS[1], "fd00:122::223"),
    ] {
        expect_source(&pod, ip(server), ip(source))?;
    }
    installed.delete_pods(&["database"])
}
