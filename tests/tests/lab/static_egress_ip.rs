//! `StaticEgressIP` tested from outside, as its users know it: no object of Egret's own, real packets, captures at the
//! router. Ids are those of the acceptance cases from earlier systems.

use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use egret_lab::topology::{Host, Link, Role, Segment};
use egret_lab::traffic::{Server, UdpProbe};
use egret_lab::{Hurt, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::foreign::{condition, message, service, static_egress_ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;

const NIRMATA: &str = "staticegressips.nirmata.io";
const FORK: &str = "staticegressips.io";
const SERVER: &str = "203.0.113.10/32";
/// A server in a separate network.
const DATABASE: &str = "198.51.100.10";
/// Another address of the server, which no rule names.
const OTHER: &str = "203.0.113.20";

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "walk",
            walk,
            steps![
                n1_n3_pods_of_the_service_leave_with_egressip_on_every_node,
                n2_other_destinations_and_other_pods_keep_their_source,
                n6_status_names_the_gateway_by_uid_and_address,
                n5_two_rules_and_two_objects_work_at_once,
                n10_a_pod_that_comes_later_is_served_without_a_gap,
                n11_rules_are_reordered_changed_and_removed,
                n12_a_missing_service_is_said_and_comes_to_life,
                n22_an_address_of_a_node_is_refused_and_harms_nobody,
                wrong_rules_are_said_where_their_user_looks_and_the_good_one_works,
                an_object_is_left_alone_until_it_is_adopted,
                n17_nothing_is_written_when_nothing_changes,
                n11_what_is_deleted_leaves_with_the_nodes_address_again,
            ],
        ),
        Group::new(
            "failover",
            failover,
            steps![n7_another_node_takes_over_and_status_says_so],
        ),
        Group::new(
            "fork",
            fork,
            steps![
                the_readmes_example_without_label_and_table_works,
                f1_labelled_nodes_are_the_gateways_and_in_status,
                n17_nothing_is_written_to_an_object_with_two_gateways,
                f4_the_second_gateway_goes_and_comes_back,
                f4_a_node_without_the_label_is_no_gateway_any_more,
            ],
        ),
        Group::new(
            "devices",
            devices,
            steps![n9_the_address_is_used_on_the_device_whose_network_has_it],
        ),
    ]
}

/// Without an `EgressGateway`: every node is a gateway.
fn walk() -> anyhow::Result<Cluster> {
    let settings = ["--front-end", "staticegressip"];
    let cluster = Cluster::up_set("seip", &Topology::built_in(), &settings)?;
    cluster.without_egress_gateway()?;
    let rule = (EGRESS[0], "frontend", SERVER);
    cluster.apply(&[
        service("frontend", "MyApp"),
        static_egress_ip(NIRMATA, "eip", &[rule]),
    ])?;
    served(&cluster, "NirmataStaticEgressIP", "eip")?;
    Ok(cluster)
}

fn served(cluster: &Cluster, kind: &str, name: &str) -> anyhow::Result<Value> {
    cluster.wait_foreign(kind, name, "it is served", |status| {
        condition(status, "Ready") == "True/Programmed" && status["gateway-node"].is_string()
    })
}

/// Cases: N1, N3, N21. Every node is a gateway here, so each of these pods runs on one; TCP, UDP and ping are answered.
fn n1_n3_pods_of_the_service_leave_with_egressip_on_every_node(cluster: &Cluster) -> Outcome {
    let address = ip(EGRESS[0]);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    for name in ["a1", "b1", "a2", "b2", "a3", "b3"] {
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), address)?;
    }
    watch.clean()
}

/// Cases: N2.
fn n2_other_destinations_and_other_pods_keep_their_source(cluster: &Cluster) -> Outcome {
    for n in 1..=3 {
        let worker = format!("worker{n}");
        let node = cluster.node_address(&worker, ip(SERVERS[0]))?;
        expect_source(&cluster.pod(&format!("a{n}"))?, ip(OTHER), node)?;
        expect_source(&cluster.pod(&format!("other{n}"))?, ip(SERVERS[0]), node)?;
        // The rule has no IPv6 destination.
        let node = cluster.node_address(&worker, ip(SERVERS[1]))?;
        expect_source(&cluster.pod(&format!("a{n}"))?, ip(SERVERS[1]), node)?;
    }
    Ok(())
}

fn uid(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    let node = cluster.object("Node", None, node).context("the node")?;
    let uid = node["metadata"]["uid"].as_str();
    Ok(uid.context("its uid")?.to_owned())
}

/// Cases: N6. In the form of the original: the node's uid and its address.
fn n6_status_names_the_gateway_by_uid_and_address(cluster: &Cluster) -> Outcome {
    let status = served(cluster, "NirmataStaticEgressIP", "eip")?;
    let announcer = cluster.announcer(ip(EGRESS[0]))?;
    let address = cluster.node_address(&announcer, ip(EGRESS[0]))?;
    ensure!(
        status["gateway-node"] == uid(cluster, &announcer)?,
        "{status:#}"
    );
    ensure!(status["gateway-ip"] == address.to_string(), "{status:#}");
    let gateways = status["gateways"].as_array().context("gateways")?;
    ensure!(gateways.len() == 6, "every node is a gateway: {status:#}");
    Ok(())
}

/// Cases: N5. The same destination with two addresses for two Services, and two rules in one object.
fn n5_two_rules_and_two_objects_work_at_once(cluster: &Cluster) -> Outcome {
    let (second, third) = ("192.168.122.223", "192.168.122.224");
    cluster.apply(&[
        service("backend", "Other"),
        service("third", "Third"),
        static_egress_ip(
            NIRMATA,
            "two",
            &[
                (second, "backend", "203.0.113.0/24"),
                (third, "third", SERVER),
            ],
        ),
    ])?;
    cluster.lab().add_pod("worker2", pod("third2", "Third"))?;
    cluster.wait_selected("two:third:192.168.122.224", 1)?;
    served(cluster, "NirmataStaticEgressIP", "two")?;
    for (name, address) in [("a1", EGRESS[0]), ("other1", second), ("third2", third)] {
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), ip(address))?;
    }
    cluster.delete(&[static_egress_ip(NIRMATA, "two", &[])])?;
    cluster.wait_ready()
}

/// Cases: N10. Captured from before the pod starts, with another pod's packets all the time.
fn n10_a_pod_that_comes_later_is_served_without_a_gap(cluster: &Cluster) -> Outcome {
    let address = ip(EGRESS[0]);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    let probe = UdpProbe::start(&cluster.pod("a1")?, echo(ip(SERVERS[0])))?;
    cluster.lab().add_pod("worker3", pod("late3", "MyApp"))?;
    cluster.wait_selected("eip:frontend:192.168.122.222", 7)?;
    expect_source(&cluster.pod("late3")?, ip(SERVERS[0]), address)?;
    let seen = probe.stop().source_ips();
    ensure!(seen.iter().eq([&address]), "the server saw {seen:?}");
    watch.clean()
}

/// Cases: N11. A rule's position is not its identity: reordering changes nothing, and a changed address moves pods.
fn n11_rules_are_reordered_changed_and_removed(cluster: &Cluster) -> Outcome {
    let first = (EGRESS[0], "frontend", SERVER);
    let other = ("192.168.122.225", "backend", "198.51.100.0/24");
    let apply =
        |rules: &[(&str, &str, &str)]| cluster.apply(&[static_egress_ip(NIRMATA, "eip", rules)]);
    for rules in [[first, other], [other, first]] {
        apply(&rules)?;
        cluster.wait_foreign("NirmataStaticEgressIP", "eip", "two rules", |status| {
            status["policies"]
                .as_array()
                .is_some_and(|all| all.len() == 2)
        })?;
        expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    }
    let moved = "192.168.122.226";
    apply(&[(moved, "frontend", SERVER)])?;
    let is_moved = |status: &Value| {
        let policies = status["policies"].as_array().cloned().unwrap_or_default();
        policies.len() == 1 && policies[0]["addresses"][0] == moved && policies[0]["ready"] == true
    };
    cluster.wait_foreign("NirmataStaticEgressIP", "eip", "the new address", is_moved)?;
    cluster.wait_ready()?;
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(moved))?;
    apply(&[first])?;
    served(cluster, "NirmataStaticEgressIP", "eip")?;
    cluster.wait_ready()?;
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))
}

/// Cases: N12.
fn n12_a_missing_service_is_said_and_comes_to_life(cluster: &Cluster) -> Outcome {
    let rule = ("192.168.122.227", "nosuch", SERVER);
    let object = static_egress_ip(NIRMATA, "nosuch", &[rule]);
    let path = cluster.lab().dir().path().join("nosuch.yaml");
    std::fs::write(&path, &object)?;
    cluster.lab().apply(&path)?;
    let missing = |status: &Value| condition(status, "Ready") == "False/ServiceNotFound";
    let status = cluster.wait_foreign("NirmataStaticEgressIP", "nosuch", "said", missing)?;
    ensure!(message(&status, "Ready").contains("nosuch"), "{status:#}");
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    cluster.apply(&[service("nosuch", "Other")])?;
    served(cluster, "NirmataStaticEgressIP", "nosuch")?;
    expect_source(&cluster.pod("other1")?, ip(SERVERS[0]), ip(rule.0))?;
    // The Service is deleted: its pods are selected no longer.
    cluster.delete(&[service("nosuch", "Other")])?;
    cluster.wait_foreign("NirmataStaticEgressIP", "nosuch", "said again", missing)?;
    cluster.delete(&[object])?;
    cluster.wait_ready()?;
    let node = cluster.node_address("worker1", ip(SERVERS[0]))?;
    wait_source(&cluster.pod("other1")?, ip(SERVERS[0]), node)
}

/// Cases: N22.
fn n22_an_address_of_a_node_is_refused_and_harms_nobody(cluster: &Cluster) -> Outcome {
    let taken = cluster.node_address("worker2", ip(SERVERS[0]))?.to_string();
    let object = static_egress_ip(NIRMATA, "taken", &[(&taken, "backend", "198.51.100.0/24")]);
    let path = cluster.lab().dir().path().join("taken.yaml");
    std::fs::write(&path, &object)?;
    cluster.lab().apply(&path)?;
    let refused = |status: &Value| condition(status, "Accepted") == "False/AddressInCluster";
    cluster.wait_foreign("NirmataStaticEgressIP", "taken", "refused", refused)?;
    expect_source(&cluster.pod("a2")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    cluster.delete(&[object])?;
    cluster.wait_ready()?;
    // The node still has its own address.
    expect_source(&cluster.pod("other2")?, ip(SERVERS[0]), ip(&taken))
}

fn wrong_rules_are_said_where_their_user_looks_and_the_good_one_works(
    cluster: &Cluster,
) -> Outcome {
    let good = ("192.168.122.228", "backend", SERVER);
    let object = static_egress_ip(
        NIRMATA,
        "mixed",
        &[
            ("192.168.122.300", "backend", SERVER),
            good,
            ("192.168.122.229", "backend", "203.0.113.0/33"),
            ("192.168.122.229", "backend", SERVER),
        ],
    );
    let path = cluster.lab().dir().path().join("mixed.yaml");
    std::fs::write(&path, &object)?;
    cluster.lab().apply(&path)?;
    let said = |status: &Value| {
        condition(status, "Accepted") == "False/Invalid"
            && status["policies"][0]["ready"] == true
            && status["policies"][0]["pods"]["programmed"] == 3
    };
    let status = cluster.wait_foreign("NirmataStaticEgressIP", "mixed", "said", said)?;
    let text = message(&status, "Accepted");
    for field in [
        "spec.rules[0].egressip 192.168.122.300",
        "spec.rules[2].cidr 203.0.113.0/33",
        "spec.rules[3].egressip 192.168.122.229",
    ] {
        ensure!(text.contains(field), "{field} is not in: {text}");
    }
    expect_source(&cluster.pod("other1")?, ip(SERVERS[0]), ip(good.0))?;
    cluster.delete(&[object])?;
    cluster.wait_ready()
}

fn an_object_is_left_alone_until_it_is_adopted(cluster: &Cluster) -> Outcome {
    let rule = ("192.168.122.230", "backend", SERVER);
    let adopted = static_egress_ip(FORK, "shy", &[rule]);
    let path = cluster.lab().dir().path().join("shy.yaml");
    std::fs::write(&path, adopted.replace("egret.dev/adopt: \"true\"", ""))?;
    cluster.lab().apply(&path)?;
    wait_for("a finding names it", DEADLINE, || {
        let status = cluster.status().unwrap_or_default();
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        findings.iter().any(|finding| {
            finding["object"] == "StaticEgressIP default/shy"
                && finding["field"] == "metadata.annotations[egret.dev/adopt]"
        })
    })?;
    let node = cluster.node_address("worker1", ip(SERVERS[0]))?;
    wait_source(&cluster.pod("other1")?, ip(SERVERS[0]), node)?;
    let status = cluster.foreign_status("StaticEgressIP", "shy");
    ensure!(status.is_null(), "it was written to: {status:#}");
    std::fs::write(&path, adopted)?;
    cluster.lab().apply(&path)?;
    served(cluster, "StaticEgressIP", "shy")?;
    expect_source(&cluster.pod("other1")?, ip(SERVERS[0]), ip(rule.0))?;
    cluster.lab().delete(&path)?;
    cluster.wait_ready()
}

/// Cases: N17. The original wrote every object every 5 s. Another object's status serves as a clock: it shows that the
/// controller completed a round meanwhile.
fn n17_nothing_is_written_when_nothing_changes(cluster: &Cluster) -> Outcome {
    nothing_is_written(cluster, "NirmataStaticEgressIP", "eip")
}

/// Cases: N17. The fork's manager and agents overwrote each other's list of gateways.
fn n17_nothing_is_written_to_an_object_with_two_gateways(cluster: &Cluster) -> Outcome {
    nothing_is_written(cluster, "StaticEgressIP", "labelled")
}

fn nothing_is_written(cluster: &Cluster, kind: &str, name: &str) -> Outcome {
    let version = |cluster: &Cluster| {
        let object = cluster.object(kind, Some("default"), name);
        object.unwrap_or_default()["metadata"]["resourceVersion"].clone()
    };
    served(cluster, kind, name)?;
    let before = version(cluster);
    for address in ["192.168.122.231", "192.168.122.232", "192.168.122.233"] {
        cluster.apply(&[egress("clock", "Nobody", &[address], "")])?;
        wait_for("the controller to go round", DEADLINE, || {
            let object = cluster.object("Egress", Some("default"), "clock");
            object.unwrap_or_default()["status"]["addresses"][0] == address
        })?;
    }
    ensure!(version(cluster) == before, "the object was written");
    cluster.delete(&[egress("clock", "Nobody", &EGRESS, "")])
}

/// Cases: N11.
fn n11_what_is_deleted_leaves_with_the_nodes_address_again(cluster: &Cluster) -> Outcome {
    cluster.delete(&[static_egress_ip(NIRMATA, "eip", &[])])?;
    wait_for("nothing is announced", DEADLINE, || {
        cluster.announcer(ip(EGRESS[0])).is_err()
    })?;
    for n in 1..=3 {
        let node = cluster.node_address(&format!("worker{n}"), ip(SERVERS[0]))?;
        wait_source(&cluster.pod(&format!("a{n}"))?, ip(SERVERS[0]), node)?;
    }
    Ok(())
}

fn failover() -> anyhow::Result<Cluster> {
    let settings = ["--front-end", "staticegressip", "--front-end-adopt-all"];
    let cluster = Cluster::up_set("seipf", &Topology::built_in(), &settings)?;
    let rule = (EGRESS[0], "frontend", SERVER);
    cluster.apply(&[
        service("frontend", "MyApp"),
        // Without the annotation: the chart's value states that no other controller runs.
        static_egress_ip(NIRMATA, "eip", &[rule]).replace("egret.dev/adopt", "some/other"),
    ])?;
    served(&cluster, "NirmataStaticEgressIP", "eip")?;
    Ok(cluster)
}

/// Cases: N4, N7. Pods and gateways are on different nodes here, with the cluster's own `EgressGateway`. The original
/// retained routes to the old gateway.
fn n7_another_node_takes_over_and_status_says_so(cluster: &Cluster) -> Outcome {
    let address = ip(EGRESS[0]);
    let first = cluster.announcer(address)?;
    ensure!(first.starts_with("gateway"), "{first} is no gateway");
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    cluster.lab().kill(&first, Hurt::Power)?;
    let moved = |status: &Value| {
        let old = uid(cluster, &first).unwrap_or_default();
        status["gateway-node"].is_string() && status["gateway-node"] != old
    };
    let status = cluster.wait_foreign("NirmataStaticEgressIP", "eip", "another gateway", moved)?;
    for name in ["a1", "a2", "a3"] {
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), address)?;
    }
    let second = cluster.announcer(address)?;
    ensure!(
        second != first && status["gateway-node"] == uid(cluster, &second)?,
        "{second}: {status:#}"
    );
    watch.clean()
}

fn fork() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    let label = |host: &mut Host| host.labels.insert("egress".to_owned(), String::new());
    for host in &mut topology.hosts {
        if ["gateway1", "gateway2"].contains(&host.name.as_str()) {
            label(host);
        }
    }
    let settings = ["--front-end", "staticegressip"];
    Cluster::up_set("seipk", &topology, &settings)
}

/// The example of the fork's README has neither gateway-label nor a routing table.
fn the_readmes_example_without_label_and_table_works(cluster: &Cluster) -> Outcome {
    let rule = (EGRESS[0], "frontend", SERVER);
    cluster.apply(&[
        service("frontend", "MyApp"),
        static_egress_ip(FORK, "eip", &[rule]),
    ])?;
    served(cluster, "StaticEgressIP", "eip")?;
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))
}

fn labelled() -> String {
    let rule = ("192.168.122.223", "backend", SERVER);
    let object = static_egress_ip(FORK, "labelled", &[rule]);
    object.replace("spec:\n", "spec:\n  gateway-label: egress\n")
}

fn gateway_addresses(status: &Value) -> Vec<String> {
    let gateways = status["gateways"].as_array().cloned().unwrap_or_default();
    let address = |one: &Value| one["gateway-ip"].as_str().unwrap_or_default().to_owned();
    gateways.iter().map(address).collect()
}

/// Cases: F1.
fn f1_labelled_nodes_are_the_gateways_and_in_status(cluster: &Cluster) -> Outcome {
    cluster.apply(&[service("backend", "Other"), labelled()])?;
    let status = served(cluster, "StaticEgressIP", "labelled")?;
    let wanted = ["gateway1", "gateway2"].map(|node| cluster.node_address(node, ip(SERVERS[0])));
    let wanted = wanted.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    ensure!(gateway_addresses(&status) == wanted, "{status:#}");
    expect_source(
        &cluster.pod("other1")?,
        ip(SERVERS[0]),
        ip("192.168.122.223"),
    )
}

/// Cases: F4. The original noticed a change of the list's first entry only.
fn f4_the_second_gateway_goes_and_comes_back(cluster: &Cluster) -> Outcome {
    let of = |nodes: &[&str]| -> anyhow::Result<Vec<String>> {
        let address = |node: &&str| cluster.node_address(node, ip(SERVERS[0]));
        let addresses = nodes.iter().map(address);
        addresses.map(|a| a.map(|a| a.to_string())).collect()
    };
    let (one, both) = (of(&["gateway1"])?, of(&["gateway1", "gateway2"])?);
    for (labelled, wanted) in [(false, one), (true, both)] {
        cluster.edit("node.gateway2.yaml", |node| {
            let labels = node["metadata"]["labels"].as_object_mut();
            match labels {
                Some(labels) if labelled => drop(labels.insert("egress".to_owned(), "".into())),
                Some(labels) => drop(labels.remove("egress")),
                None => {}
            }
        })?;
        let told = |status: &Value| gateway_addresses(status) == wanted;
        cluster.wait_foreign("StaticEgressIP", "labelled", "its gateways", told)?;
        wait_source(
            &cluster.pod("other1")?,
            ip(SERVERS[0]),
            ip("192.168.122.223"),
        )?;
    }
    Ok(())
}

/// Cases: F4.
fn f4_a_node_without_the_label_is_no_gateway_any_more(cluster: &Cluster) -> Outcome {
    cluster.edit("node.gateway1.yaml", |node| {
        let labels = node["metadata"]["labels"].as_object_mut();
        labels.map(|labels| labels.remove("egress"));
    })?;
    let one = |status: &Value| gateway_addresses(status).len() == 1;
    cluster.wait_foreign("StaticEgressIP", "labelled", "one gateway", one)?;
    wait_for("the other one announces", DEADLINE, || {
        cluster
            .announcer(ip("192.168.122.223"))
            .is_ok_and(|node| node == "gateway2")
    })?;
    expect_source(
        &cluster.pod("other1")?,
        ip(SERVERS[0]),
        ip("192.168.122.223"),
    )
}

/// A gateway with a second device, in the network of a database, and one without.
fn devices() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology.hosts.retain(|host| host.name != "gateway3");
    topology.segments.push(Segment {
        cidrs: vec!["198.51.100.0/24".parse()?],
        ..topology.segments[0].clone()
    });
    let segment = topology.segments.last_mut().context("a segment")?;
    "databases".clone_into(&mut segment.name);
    let gateway = topology.hosts.iter_mut().find(|h| h.name == "gateway1");
    let gateway = gateway.context("a gateway")?;
    gateway.links.push(Link::to("databases"));
    gateway.labels.insert("egress".to_owned(), String::new());
    let mut database = Host::plain("database", Role::Server, &["databases"]);
    database.links[0].addresses = vec![ip(DATABASE)];
    topology.hosts.push(database);
    Cluster::up_set("seipd", &topology, &["--front-end", "staticegressip"])
}

/// Cases: N9. Its default route uses another device; without that device nothing reaches the database.
fn n9_the_address_is_used_on_the_device_whose_network_has_it(cluster: &Cluster) -> Outcome {
    const ADDRESS: &str = "198.51.100.77";
    let _database = Server::start(&cluster.host("database")?)?;
    let rule = (ADDRESS, "frontend", "198.51.100.10/32");
    let object = static_egress_ip(FORK, "database", &[rule]);
    cluster.apply(&[
        service("frontend", "MyApp"),
        object.replace("spec:\n", "spec:\n  gateway-label: egress\n"),
    ])?;
    served(cluster, "StaticEgressIP", "database")?;
    for name in ["a1", "b2", "a3"] {
        expect_source(&cluster.pod(name)?, ip(DATABASE), ip(ADDRESS))?;
    }
    let record = cluster.object("EgressNode", None, "gateway1");
    let device = record.context("its record")?["status"]["externalInterface"].clone();
    ensure!(device == "eth1", "{device}");
    Ok(())
}
