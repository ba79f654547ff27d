//! Requests from issues of earlier systems, and the stories of the proposal, tested from outside: cases of no other
//! test program. Ids are those of docs/compatibility.md.

use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use egret_lab::topology::Pod;
use egret_lab::traffic::server::ECHO_PORTS;
use egret_lab::traffic::source::tcp_source_within;
use egret_lab::{Snapshot, Topology};
use egret_tests::chaos::without_memory;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, ip, pod};
use egret_tests::foreign::{condition, message, service, static_egress_ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const FORK: &str = "staticegressips.io";
const SERVER: &str = "203.0.113.10/32";
/// The address of the policy with gateways by label.
const LABELLED: &str = "192.168.122.223";
/// An address in no segment of the lab.
const PUBLIC: &str = "198.51.100.7";

pub fn groups() -> Vec<Group> {
    let shared = Group::new(
        "acceptance",
        || up("accept"),
        steps![
            s1_s2_one_manifest_of_the_proposal_serves_all_its_pods,
            s3_two_groups_have_two_addresses,
            s4_a_label_on_a_running_pod_decides,
            s7_a_pod_made_again_elsewhere_keeps_the_address,
            n20_all_pods_of_a_namespace,
            n16_the_address_of_a_load_balancer_is_refused,
            n19_a_drop_in_forward_keeps_its_effect,
            f3_nothing_stays_of_a_pod_that_is_selected_no_longer,
            n9_s8_an_address_of_no_subnet_is_said_and_works_when_it_is_routed,
            n13_agents_that_start_again_change_nothing,
        ],
    );
    let n8 = steps![n8_without_a_gateway_nothing_leaks_and_one_that_comes_is_used];
    vec![shared, Group::new("gateway_comes", || up("accept8"), n8)]
}

/// The built-in lab; one gateway node has the label that the fork's object selects.
fn up(test: &str) -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    for host in &mut topology.hosts {
        if host.name == "gateway1" {
            host.labels.insert("egress".to_owned(), String::new());
        }
    }
    let settings = ["--front-end", "staticegressip"];
    let cluster = Cluster::up_set(test, &topology, &settings)?;
    cluster.apply(&[proposal("my-egress", "MyApp", EGRESS[0])])?;
    Ok(cluster)
}

/// The manifest of the proposal, with only the `apiVersion` changed.
fn proposal(name: &str, app: &str, address: &str) -> String {
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata:\n  name: {name}\n\
         spec:\n  selector:\n    app: {app}\n  ip: {address}\n"
    )
}

/// The server sees a pod of this worker with the node's address.
fn wait_node(cluster: &Cluster, name: &str, worker: &str) -> Outcome {
    let node = cluster.node_address(worker, ip(SERVERS[0]))?;
    wait_source(&cluster.pod(name)?, ip(SERVERS[0]), node)
}

/// Cases: S1, S2.
fn s1_s2_one_manifest_of_the_proposal_serves_all_its_pods(cluster: &Cluster) -> Outcome {
    let address = ip(EGRESS[0]);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    for name in ["a1", "b1", "a2", "b2", "a3", "b3"] {
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), address)?;
    }
    watch.clean()?;
    wait_node(cluster, "other1", "worker1")
}

/// Cases: S3.
fn s3_two_groups_have_two_addresses(cluster: &Cluster) -> Outcome {
    let second = proposal("second", "Other", "192.168.122.224");
    cluster.apply(std::slice::from_ref(&second))?;
    for n in 1..=3 {
        for (name, address) in [("a", EGRESS[0]), ("other", "192.168.122.224")] {
            let pod = cluster.pod(&format!("{name}{n}"))?;
            expect_source(&pod, ip(SERVERS[0]), ip(address))?;
        }
    }
    cluster.delete(&[second])?;
    wait_node(cluster, "other1", "worker1")
}

fn label(cluster: &Cluster, name: &str, app: &str) -> Outcome {
    cluster.edit(&format!("pod.default.{name}.yaml"), |pod| {
        pod["metadata"]["labels"]["app"] = json!(app);
    })
}

/// Cases: S4.
fn s4_a_label_on_a_running_pod_decides(cluster: &Cluster) -> Outcome {
    label(cluster, "other2", "MyApp")?;
    cluster.wait_selected("my-egress", 7)?;
    expect_source(&cluster.pod("other2")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    label(cluster, "other2", "Other")?;
    cluster.wait_selected("my-egress", 6)?;
    wait_node(cluster, "other2", "worker2")
}

/// Cases: S7. The recreated pod differs in everything but its label.
fn s7_a_pod_made_again_elsewhere_keeps_the_address(cluster: &Cluster) -> Outcome {
    cluster.apply(&[proposal("walker", "Walker", "192.168.122.225")])?;
    for (name, worker) in [("b1", "worker1"), ("b3", "worker3")] {
        label(cluster, name, "Walker")?;
        cluster.wait_selected("walker", 1)?;
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), ip("192.168.122.225"))?;
        label(cluster, name, "Nobody")?;
        cluster.wait_selected("walker", 0)?;
        wait_node(cluster, name, worker)?;
    }
    cluster.delete(&[proposal("walker", "Walker", "192.168.122.225")])?;
    for name in ["b1", "b3"] {
        label(cluster, name, "MyApp")?;
    }
    cluster.wait_selected("my-egress", 6)
}

/// Cases: N20.
fn n20_all_pods_of_a_namespace(cluster: &Cluster) -> Outcome {
    let address = "192.168.122.226";
    let mut places = Vec::new();
    for (name, worker, app) in [("t1", "worker1", "MyApp"), ("t2", "worker2", "Whatever")] {
        let pod = Pod {
            namespace: "team".to_owned(),
            ..pod(name, app)
        };
        places.push(cluster.lab().add_pod(worker, pod)?);
    }
    let all =
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: all, namespace: team}\n";
    let all = format!("{all}spec: {{selector: {{}}, ip: {address}}}\n");
    cluster.apply(std::slice::from_ref(&all))?;
    cluster.wait_selected("all", 2)?;
    for place in &places {
        expect_source(place, ip(SERVERS[0]), ip(address))?;
    }
    // Pods of other namespaces are unchanged.
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    wait_node(cluster, "other1", "worker1")?;
    cluster.delete(&[all])
}

/// Cases: N16. Two nodes would answer for it, and packets to the Service's ports belong to no lease.
fn n16_the_address_of_a_load_balancer_is_refused(cluster: &Cluster) -> Outcome {
    let taken = "192.168.122.227";
    let balancer = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: shop, namespace: default}}\n\
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.60, ports: [{{port: 80}}]}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: {taken}}}]}}}}\n"
    );
    let object = proposal("shared", "Other", taken);
    let path = cluster.lab().dir().path().join("shared.yaml");
    std::fs::write(&path, [balancer, object].join("---\n"))?;
    cluster.lab().apply(&path)?;
    wait_for("it is refused", DEADLINE, || {
        condition(&egress_status(cluster, "shared"), "Accepted") == "False/AddressInCluster"
    })?;
    let status = egress_status(cluster, "shared");
    ensure!(message(&status, "Accepted").contains("shop"), "{status:#}");
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    cluster.lab().delete(&path)?;
    cluster.wait_ready()?;
    wait_node(cluster, "other1", "worker1")
}

/// Cases: N19. As network plugins implement NetworkPolicy: at the pod's node, before Egret's translation, so by the
/// pod's own address.
fn n19_a_drop_in_forward_keeps_its_effect(cluster: &Cluster) -> Outcome {
    let [open, blocked] =
        [ECHO_PORTS[1], ECHO_PORTS[2]].map(|port| SocketAddr::new(ip(SERVERS[0]), port));
    let pod = cluster.pod("a1")?;
    let reached = tcp_source_within(&pod, blocked, DEADLINE)?;
    ensure!(reached.ip() == ip(EGRESS[0]), "{reached}");
    let rules = format!(
        "nft 'add table ip deny; add chain ip deny forward {{ type filter hook forward priority 0; }}; \
         add rule ip deny forward ip saddr {} tcp dport {} drop'",
        cluster.pod_address("a1", ip(EGRESS[0]))?,
        blocked.port()
    );
    let worker = cluster.host("worker1")?;
    cluster.exec(&worker, &["sh", "-c", &rules])?;
    let refused = tcp_source_within(&pod, blocked, Duration::from_secs(2));
    let allowed = tcp_source_within(&pod, open, DEADLINE);
    let neighbour = tcp_source_within(&cluster.pod("b1")?, blocked, DEADLINE);
    cluster.exec(&worker, &["nft", "delete", "table", "ip", "deny"])?;
    ensure!(refused.is_err(), "not dropped: {refused:?}");
    ensure!(allowed?.ip() == ip(EGRESS[0]));
    ensure!(neighbour?.ip() == ip(EGRESS[0]));
    Ok(())
}

/// Cases: F3. Substring tests of the original took 10.0.0.1 for current while 10.0.0.12 was.
fn f3_nothing_stays_of_a_pod_that_is_selected_no_longer(cluster: &Cluster) -> Outcome {
    let own = |name: &str| cluster.pod_address(name, ip(EGRESS[0]));
    let alike = Pod {
        number: Some(100),
        ..pod("alike", "MyApp")
    };
    cluster.lab().add_pod("worker3", alike)?;
    cluster.wait_selected("my-egress", 7)?;
    let (gone, stays) = (own("a3")?, own("alike")?);
    // The fork searched addresses as substrings of a text.
    ensure!(stays.to_string().starts_with(&gone.to_string()));
    // Except for the tuples of flows that ended with it: those are remembered for a while.
    let ruleset = || -> anyhow::Result<String> {
        let all = without_memory(Snapshot::take(&cluster.host("worker3")?)?);
        let lines = all.sections.get("nft").context("the ruleset")?;
        Ok(lines.join("\n"))
    };
    let names = |text: &str, address: &str| {
        let mut words = text.split(|c: char| !c.is_ascii_digit() && c != '.');
        words.any(|word| word == address)
    };
    let (gone, stays) = (gone.to_string(), stays.to_string());
    ensure!(names(&ruleset()?, &gone) && names(&ruleset()?, &stays));
    label(cluster, "a3", "Nobody")?;
    wait_for("nothing of the pod is in the ruleset", DEADLINE, || {
        ruleset().is_ok_and(|text| !names(&text, &gone) && names(&text, &stays))
    })?;
    wait_node(cluster, "a3", "worker3")?;
    expect_source(&cluster.pod("alike")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    label(cluster, "a3", "MyApp")?;
    label(cluster, "alike", "Nobody")?;
    cluster.wait_selected("my-egress", 6)
}

fn gateway_label(cluster: &Cluster, node: &str, is_gateway: bool) -> Outcome {
    cluster.edit(&format!("node.{node}.yaml"), |object| {
        let labels = object["metadata"]["labels"].as_object_mut();
        labels.map(|labels| match is_gateway {
            true => labels.insert("egress".to_owned(), json!("")),
            false => labels.remove("egress"),
        });
    })
}

/// Cases: N8. The last node with the label loses it, and another one gets it.
fn n8_without_a_gateway_nothing_leaks_and_one_that_comes_is_used(cluster: &Cluster) -> Outcome {
    let object = static_egress_ip(FORK, "labelled", &[(LABELLED, "backend", SERVER)]);
    let object = object.replace("spec:\n", "spec:\n  gateway-label: egress\n");
    cluster.apply(&[service("backend", "Other"), object.clone()])?;
    let ready = |wanted: &'static str| {
        cluster.wait_foreign("StaticEgressIP", "labelled", wanted, move |status| {
            condition(status, "Ready") == wanted
        })
    };
    ready("True/Programmed")?;
    let pod = cluster.pod("other1")?;
    expect_source(&pod, ip(SERVERS[0]), ip(LABELLED))?;
    let (own, node) = (
        cluster.pod_address("other1", ip(LABELLED))?,
        cluster.node_address("worker1", ip(LABELLED))?,
    );
    let watch = Leaving::watch(cluster, move |packet| {
        packet.source == own || packet.source == node
    })?;
    gateway_label(cluster, "gateway1", false)?;
    ready("False/NoGateway")?;
    // Whatever its state, it never leaves with another address; and the other pods are served as before.
    let reached = tcp_source_within(
        &pod,
        SocketAddr::new(ip(SERVERS[0]), ECHO_PORTS[1]),
        Duration::from_secs(1),
    );
    ensure!(
        !matches!(&reached, Ok(source) if source.ip() != ip(LABELLED)),
        "it left by {reached:?}"
    );
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    gateway_label(cluster, "gateway2", true)?;
    let status = ready("True/Programmed")?;
    wait_source(&pod, ip(SERVERS[0]), ip(LABELLED))?;
    let gateways = status["gateways"].as_array().cloned().unwrap_or_default();
    ensure!(gateways.len() == 1, "{status:#}");
    watch.clean()?;
    gateway_label(cluster, "gateway2", false)?;
    gateway_label(cluster, "gateway1", true)?;
    cluster.delete(&[object])?;
    wait_node(cluster, "other1", "worker1")
}

fn egress_status(cluster: &Cluster, name: &str) -> Value {
    let object = cluster.object("Egress", Some("default"), name);
    object.unwrap_or_default()["status"].clone()
}

/// Cases: N9, S8. No router sends ARP for such an address. With a route to a gateway it is the public variant of the
/// proposal.
fn n9_s8_an_address_of_no_subnet_is_said_and_works_when_it_is_routed(cluster: &Cluster) -> Outcome {
    let object = proposal("public", "Other", PUBLIC);
    cluster.apply(std::slice::from_ref(&object))?;
    let said = || condition(&egress_status(cluster, "public"), "Degraded") == "True/NotOnLink";
    wait_for("the condition", DEADLINE, said)?;
    let text = message(&egress_status(cluster, "public"), "Degraded");
    ensure!(text.contains(PUBLIC), "{text}");
    // Only the policy concerned has the condition.
    let other = egress_status(cluster, "my-egress");
    ensure!(condition(&other, "Degraded").is_empty(), "{other:#}");
    let gateway = cluster.node_address("gateway3", ip(PUBLIC))?.to_string();
    let route = [PUBLIC, "via", &gateway];
    let router = cluster.host("router")?;
    let words: Vec<&str> = ["ip", "route", "add"].into_iter().chain(route).collect();
    cluster.exec(&router, &words)?;
    for n in 1..=3 {
        expect_source(
            &cluster.pod(&format!("other{n}"))?,
            ip(SERVERS[0]),
            ip(PUBLIC),
        )?;
    }
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    cluster.exec(&router, &["ip", "route", "del", PUBLIC])?;
    cluster.delete(&[object])?;
    wait_node(cluster, "other1", "worker1")
}

/// Cases: N13. The agents of a worker and of a gateway are killed: the kernel state stays the same, and packets still
/// flow.
fn n13_agents_that_start_again_change_nothing(cluster: &Cluster) -> Outcome {
    let look = |host: &str| -> anyhow::Result<Snapshot> {
        Ok(without_memory(Snapshot::take(&cluster.host(host)?)?))
    };
    let address = ip(EGRESS[0]);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    for host in ["worker1", "gateway1"] {
        wait_for("the agent is done", DEADLINE, || cluster.agent_ready(host))?;
        let before = look(host)?;
        let flows = egret_lab::traffic::IdleFlows::start(
            &cluster.pod("a1")?,
            egret_tests::cluster::echo(ip(SERVERS[0])),
            5,
        )?;
        cluster.lab().kill(host, egret_lab::Hurt::Agent)?;
        expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), address)?;
        cluster.lab().start(host)?;
        wait_for("the new agent is done", DEADLINE, || {
            cluster.agent_ready(host)
        })?;
        expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), address)?;
        let report = flows.stop();
        ensure!(report.broken.is_empty(), "{:?}", report.broken);
        let mut last = Vec::new();
        let same = wait_for("everything is as before", DEADLINE, || {
            last = look(host).map_or_else(|error| vec![error.to_string()], |now| before.diff(&now));
            last.is_empty()
        });
        same.with_context(|| format!("{host}: {last:#?}"))?;
    }
    watch.clean()
}
