//! A policy without an address of one family refuses that family at once, so that programs fall back.

use anyhow::{Context, bail, ensure};
use egret_lab::Topology;
use egret_lab::capture::{Capture, Packet};
use egret_lab::process::wait_for;
use egret_lab::traffic::ping::PingError;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_lab::traffic::{PingOptions, TrafficError, ping};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use std::io::ErrorKind;

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "one_family_policy",
        || {
            let cluster = Cluster::up("family", &Topology::built_in())?;
            let destinations = format!("destinations: [{{cidr: {}/32}}]", SERVERS[0]);
            cluster.apply(&[
                egress("four", "MyApp", &EGRESS[..1], ""),
                egress("six", "Other", &EGRESS[1..], ""),
                // A policy with destinations of one family does not affect the other one.
                egress("listed", "Listed", &["192.168.122.223"], &destinations),
            ])?;
            Ok(cluster)
        },
        steps![
            the_family_with_an_address_leaves_by_it,
            the_other_family_is_administratively_prohibited_at_once,
            a_tcp_connection_of_the_other_family_ends_with_its_first_packet,
            nothing_of_the_other_family_leaves,
            the_refusals_are_counted,
            the_condition_names_what_is_not_covered,
        ],
    )]
}

/// Pods with their missing family.
const CASES: [(&str, usize); 2] = [("a1", 1), ("other2", 0)];

fn the_family_with_an_address_leaves_by_it(cluster: &Cluster) -> Outcome {
    for (pod, missing) in CASES {
        let covered = 1 - missing;
        expect_source(
            &cluster.pod(pod)?,
            ip(SERVERS[covered]),
            ip(EGRESS[covered]),
        )?;
    }
    Ok(())
}

/// The error that the kernel derives from ICMP type 3 code 13 (`EHOSTUNREACH`) and ICMPv6 type 1 code 1 (`EACCES`).
fn prohibited(missing: usize) -> ErrorKind {
    [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied][missing]
}

fn refused(
    what: &str,
    result: Result<impl std::fmt::Debug, TrafficError>,
    by: ErrorKind,
) -> Outcome {
    match result {
        Err(error) if error.kind() == Some(by) => Ok(()),
        other => bail!("{what} was not refused by {by}, but: {other:?}"),
    }
}

fn the_other_family_is_administratively_prohibited_at_once(cluster: &Cluster) -> Outcome {
    for (name, missing) in CASES {
        let (pod, server) = (cluster.pod(name)?, ip(SERVERS[missing]));
        let by = prohibited(missing);
        refused("UDP", udp_echo(&pod, echo(server), 32, DEADLINE), by)?;
        let options = PingOptions {
            timeout: DEADLINE,
            ..PingOptions::default()
        };
        let expected = [(3, 13), (1, 1)][missing];
        match ping(&pod, server, &options) {
            Err(PingError::Icmp { kind, code, .. }) if (kind, code) == expected => {}
            other => bail!("ping of {name} was not prohibited, but: {other:?}"),
        }
    }
    Ok(())
}

/// A second packet would be a retransmission: programs that try one address after the other would wait for it.
fn a_tcp_connection_of_the_other_family_ends_with_its_first_packet(cluster: &Cluster) -> Outcome {
    for (name, missing) in CASES {
        let (pod, server) = (cluster.pod(name)?, ip(SERVERS[missing]));
        let is_syn = move |packet: &Packet| packet.destination == server && packet.protocol == 6;
        let capture = Capture::start(&pod, "eth0", is_syn)?;
        let connected = tcp_source_within(&pod, echo(server), DEADLINE);
        refused("TCP", connected, ErrorKind::ConnectionRefused)?;
        let packets = capture.stop()?.offending_count;
        ensure!(packets == 1, "{name} sent {packets} packets");
    }
    Ok(())
}

fn nothing_of_the_other_family_leaves(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    the_other_family_is_administratively_prohibited_at_once(cluster)?;
    a_tcp_connection_of_the_other_family_ends_with_its_first_packet(cluster)?;
    the_family_with_an_address_leaves_by_it(cluster)?;
    watch.clean()
}

fn the_refusals_are_counted(cluster: &Cluster) -> Outcome {
    for (host, pod, missing) in [("worker1", "a1", 1), ("worker2", "other2", 0)] {
        let before = cluster.worker_counter(host, "family_not_covered")?;
        let result = udp_echo(&cluster.pod(pod)?, echo(ip(SERVERS[missing])), 32, DEADLINE);
        refused("UDP", result, prohibited(missing))?;
        let after = cluster.worker_counter(host, "family_not_covered")?;
        ensure!(after > before, "{host} counted {before}, then {after}");
    }
    Ok(())
}

fn condition(object: &Value, kind: &str) -> Option<Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .cloned()
}

fn the_condition_names_what_is_not_covered(cluster: &Cluster) -> Outcome {
    for (policy, expected) in [("four", "True"), ("six", "True"), ("listed", "False")] {
        let mut last = None;
        let waited = wait_for("the condition", DEADLINE, || {
            last = cluster.object("egress", Some("default"), policy);
            let found = last
                .as_ref()
                .and_then(|object| condition(object, "FamilyNotCovered"));
            let status = found.map(|found| found["status"].clone());
            // A condition that does not hold may be absent.
            status.unwrap_or("False".into()) == expected
        });
        waited.with_context(|| format!("{policy} should say {expected}: {last:#?}"))?;
    }
    Ok(())
}
