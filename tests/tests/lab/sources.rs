//! Selected pods leave only with their egress address, captured at the router, over both families.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::capture::{Capture, Direction};
use egret_lab::topology::{Host, Link, Role, Segment};
use egret_tests::cluster::{EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use std::net::IpAddr;

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "workers_and_gateways",
            workers_and_gateways,
            steps![
                unselected_pods_leave_with_their_nodes_address,
                selected_pods_on_every_worker_leave_with_the_egress_address,
                no_packet_of_a_selected_pod_has_another_source,
                every_gateway_carries_for_the_address,
                in_ordinary_use_nothing_is_dropped,
                pods_that_come_later_leave_with_their_egress_address,
            ],
        ),
        Group::new(
            "node_that_is_also_a_gateway",
            both_roles,
            steps![
                its_pods_leave_with_the_egress_address_whoever_announces_it,
                its_pods_leave_by_its_own_external_device,
                what_the_others_announce_returns_through_the_tunnel,
            ],
        ),
        Group::new(
            "single_node",
            single_node,
            steps![
                the_selected_pod_leaves_with_the_egress_address,
                the_unselected_pod_keeps_the_nodes_address,
                nothing_touches_a_tunnel,
            ],
        ),
        Group::new(
            "edge",
            edge,
            steps![
                selected_pods_leave_by_the_gateways_external_link,
                unselected_pods_keep_their_nodes_address_and_way,
            ],
        ),
        Group::new(
            "edge_single_node",
            edge_single_node,
            steps![the_pod_leaves_by_the_external_link],
        ),
    ]
}

/// Every pair of server and egress address, one per family.
fn families() -> [(IpAddr, IpAddr); 2] {
    [0, 1].map(|family| (ip(SERVERS[family]), ip(EGRESS[family])))
}

fn workers_and_gateways() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("plain", &Topology::built_in())?;
    // Before the policy: the masquerade of the CNI, for comparison with the egress address.
    for n in 1..=3 {
        for (server, _) in families() {
            let node = cluster.node_address(&format!("worker{n}"), server)?;
            expect_source(&cluster.pod(&format!("a{n}"))?, server, node)?;
        }
    }
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn unselected_pods_leave_with_their_nodes_address(cluster: &Cluster) -> Outcome {
    for n in 1..=3 {
        for (server, _) in families() {
            let node = cluster.node_address(&format!("worker{n}"), server)?;
            expect_source(&cluster.pod(&format!("other{n}"))?, server, node)?;
        }
    }
    Ok(())
}

fn selected_pods_on_every_worker_leave_with_the_egress_address(cluster: &Cluster) -> Outcome {
    for name in ["a1", "b1", "a2", "b2", "a3", "b3"] {
        for (server, address) in families() {
            expect_source(&cluster.pod(name)?, server, address)?;
        }
    }
    Ok(())
}

fn no_packet_of_a_selected_pod_has_another_source(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    for name in ["a1", "a2", "a3"] {
        for (server, address) in families() {
            expect_source(&cluster.pod(name)?, server, address)?;
        }
    }
    watch.clean()?;
    // The same capture sees packets of an unselected pod, so it can fail.
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    let node = cluster.node_address("worker1", ip(SERVERS[0]))?;
    expect_source(&cluster.pod("other1")?, ip(SERVERS[0]), node)?;
    ensure!(watch.count()? > 0, "the watch is blind");
    Ok(())
}

fn every_gateway_carries_for_the_address(cluster: &Cluster) -> Outcome {
    let mut captures = Vec::new();
    for n in 1..=3 {
        let leaves = |packet: &egret_lab::capture::Packet| {
            packet.direction == Direction::Out && EGRESS.map(ip).contains(&packet.source)
        };
        captures.push(Capture::start(
            &cluster.host(&format!("gateway{n}"))?,
            "eth0",
            leaves,
        )?);
    }
    let pod = cluster.pod("a1")?;
    // A hash of its ports selects the path of a flow: by chance, all of 60 flows miss one of three once in 10^10 runs.
    for (server, address) in families() {
        for _ in 0..30 {
            let seen = egret_lab::traffic::udp_source(&pod, echo(server))?;
            ensure!(seen.ip() == address, "{seen}");
        }
    }
    for (n, capture) in captures.into_iter().enumerate() {
        ensure!(
            capture.stop()?.offending_count > 0,
            "gateway{} carried nothing",
            n + 1
        );
    }
    Ok(())
}

/// After all the traffic above: a counter that rises in normal use would hide real drops.
fn in_ordinary_use_nothing_is_dropped(cluster: &Cluster) -> Outcome {
    for n in 1..=3 {
        let host = format!("worker{n}");
        let counters = cluster.worker_counters(&host)?;
        ensure!(counters.is_empty(), "{host}: {counters:?}");
    }
    Ok(())
}

/// One pod of an existing policy, and one on a node that has no lease of its address yet.
fn pods_that_come_later_leave_with_their_egress_address(cluster: &Cluster) -> Outcome {
    let [v4, v6] = slot(9);
    cluster.apply(&[egress("late", "Late", &[&v4, &v6], "")])?;
    for (name, host, app) in [("late1", "worker1", "MyApp"), ("late2", "worker2", "Late")] {
        cluster.lab().add_pod(host, pod(name, app))?;
    }
    cluster.wait_selected("myapp", 7)?;
    cluster.wait_selected("late", 1)?;
    for (family, server) in SERVERS.map(ip).into_iter().enumerate() {
        expect_source(&cluster.pod("late1")?, server, ip(EGRESS[family]))?;
        expect_source(&cluster.pod("late2")?, server, ip(&slot(9)[family]))?;
    }
    Ok(())
}

/// Addresses of the four pods of the node with both roles.
fn slot(n: usize) -> [String; 2] {
    [format!("192.168.122.23{n}"), format!("fd00:122::23{n}")]
}

fn both_roles() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology
        .hosts
        .retain(|host| !["worker3", "gateway2", "gateway3"].contains(&host.name.as_str()));
    let node = topology
        .hosts
        .iter_mut()
        .find(|host| host.name == "worker2")
        .context("worker2")?;
    node.roles = vec![Role::Worker, Role::Gateway];
    node.pods
        .extend((0..SLOTS).map(|n| pod(&format!("s{n}"), &format!("slot{n}"))));
    let cluster = Cluster::up("both", &topology)?;
    let mut policies = vec![egress("myapp", "MyApp", &EGRESS, "")];
    for n in 0..SLOTS {
        let [v4, v6] = slot(n);
        policies.push(egress(
            &format!("slot{n}"),
            &format!("slot{n}"),
            &[&v4, &v6],
            "",
        ));
    }
    cluster.apply(&policies)?;
    Ok(cluster)
}

/// Enough addresses that both gateways announce some of each family.
const SLOTS: usize = 6;

fn its_pods_leave_with_the_egress_address_whoever_announces_it(cluster: &Cluster) -> Outcome {
    for (family, server) in SERVERS.map(ip).into_iter().enumerate() {
        let mut announcers = std::collections::BTreeSet::new();
        for n in 0..SLOTS {
            let address = ip(&slot(n)[family]);
            announcers.insert(cluster.announcer(address)?);
            expect_source(&cluster.pod(&format!("s{n}"))?, server, address)?;
        }
        ensure!(
            announcers.len() == 2,
            "only {announcers:?} announces: take more addresses"
        );
        // Its gateway also serves the worker without that role.
        for name in ["a1", "a2"] {
            expect_source(&cluster.pod(name)?, server, ip(EGRESS[family]))?;
        }
    }
    Ok(())
}

fn its_pods_leave_by_its_own_external_device(cluster: &Cluster) -> Outcome {
    let node = cluster.host("worker2")?;
    let ours = |packet: &egret_lab::capture::Packet| {
        packet.direction == Direction::Out
            && (0..SLOTS).any(|n| slot(n).contains(&packet.source.to_string()))
    };
    let own = Capture::start(&node, "eth0", ours)?;
    let tunnel = Capture::start(&node, "egret0", ours)?;
    let watch = Leaving::watch(cluster, move |packet| {
        !(0..SLOTS).any(|n| slot(n).contains(&packet.source.to_string()))
    })?;
    for (family, server) in SERVERS.map(ip).into_iter().enumerate() {
        for n in 0..SLOTS {
            expect_source(
                &cluster.pod(&format!("s{n}"))?,
                server,
                ip(&slot(n)[family]),
            )?;
        }
    }
    watch.clean()?;
    ensure!(
        own.stop()?.offending_count > 0,
        "nothing left by the node's own device"
    );
    tunnel.stop()?.clean().map_err(anyhow::Error::msg)
}

fn what_the_others_announce_returns_through_the_tunnel(cluster: &Cluster) -> Outcome {
    for (family, server) in SERVERS.map(ip).into_iter().enumerate() {
        for n in 0..SLOTS {
            let address = ip(&slot(n)[family]);
            let returns = move |packet: &egret_lab::capture::Packet| {
                packet.direction == Direction::In && packet.destination == address
            };
            let tunnel = Capture::start(&cluster.host("worker2")?, "egret0", returns)?;
            expect_source(&cluster.pod(&format!("s{n}"))?, server, address)?;
            let through_tunnel = tunnel.stop()?.offending_count > 0;
            let announced_here = cluster.announcer(address)? == "worker2";
            ensure!(
                through_tunnel != announced_here,
                "{address}: announced here {announced_here}, back through the tunnel {through_tunnel}"
            );
        }
    }
    Ok(())
}

fn single_node() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology
        .hosts
        .retain(|host| !host.is_node() || host.name == "worker1");
    topology.hosts[0].roles = vec![Role::Worker, Role::Gateway];
    let cluster = Cluster::up("single", &topology)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

/// Cases: N21.
fn the_selected_pod_leaves_with_the_egress_address(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    for (server, address) in families() {
        for name in ["a1", "b1"] {
            expect_source(&cluster.pod(name)?, server, address)?;
        }
    }
    watch.clean()
}

fn the_unselected_pod_keeps_the_nodes_address(cluster: &Cluster) -> Outcome {
    for (server, _) in families() {
        let node = cluster.node_address("worker1", server)?;
        expect_source(&cluster.pod("other1")?, server, node)?;
    }
    Ok(())
}

fn nothing_touches_a_tunnel(cluster: &Cluster) -> Outcome {
    let node = cluster.host("worker1")?;
    let ours = |packet: &egret_lab::capture::Packet| {
        EGRESS.map(ip).contains(&packet.source) || EGRESS.map(ip).contains(&packet.destination)
    };
    let tunnel = Capture::start(&node, "egret0", ours)?;
    the_selected_pod_leaves_with_the_egress_address(cluster)?;
    tunnel.stop()?.clean().map_err(anyhow::Error::msg)
}

fn edge_segment() -> Segment {
    Segment {
        name: "edge".to_owned(),
        cidrs: vec![
            "198.51.100.0/24".parse().expect("a literal prefix"),
            "2001:db8:2::/64".parse().expect("a literal prefix"),
        ],
        mld_snooping: true,
    }
}

fn edge_link() -> Link {
    Link {
        external: true,
        ..Link::to("edge")
    }
}

/// Egress addresses on the edge segment.
const EDGE: [&str; 2] = ["198.51.100.222", "2001:db8:2::222"];

/// Gateways have a second link, and egress addresses are of its segment.
fn edge() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology.segments.push(edge_segment());
    let gateways = |host: &&mut Host| host.has(Role::Gateway);
    for host in topology.hosts.iter_mut().filter(gateways) {
        host.links.push(edge_link());
    }
    let cluster = Cluster::up("edge", &topology)?;
    cluster.apply(&[egress("myapp", "MyApp", &EDGE, "")])?;
    Ok(cluster)
}

/// Cases: N14.
fn selected_pods_leave_by_the_gateways_external_link(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EDGE.map(ip).contains(&packet.source))?;
    let nodes = Capture::start(&cluster.host("router")?, "eth0", |packet| {
        EDGE.map(ip).contains(&packet.source)
    })?;
    for name in ["a1", "a2", "a3"] {
        for (server, address) in SERVERS.map(ip).into_iter().zip(EDGE.map(ip)) {
            expect_source(&cluster.pod(name)?, server, address)?;
        }
    }
    watch.clean()?;
    nodes.stop()?.clean().map_err(anyhow::Error::msg)
}

fn unselected_pods_keep_their_nodes_address_and_way(cluster: &Cluster) -> Outcome {
    for server in SERVERS.map(ip) {
        let node = cluster.node_address("worker1", server)?;
        expect_source(&cluster.pod("other1")?, server, node)?;
    }
    Ok(())
}

fn edge_single_node() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    topology.segments.push(edge_segment());
    topology
        .hosts
        .retain(|host| !host.is_node() || host.name == "worker1");
    topology.hosts[0].roles = vec![Role::Worker, Role::Gateway];
    topology.hosts[0].links.push(edge_link());
    let cluster = Cluster::up("edge1", &topology)?;
    cluster.apply(&[egress("myapp", "MyApp", &EDGE, "")])?;
    Ok(cluster)
}

fn the_pod_leaves_by_the_external_link(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EDGE.map(ip).contains(&packet.source))?;
    for (server, address) in SERVERS.map(ip).into_iter().zip(EDGE.map(ip)) {
        expect_source(&cluster.pod("a1")?, server, address)?;
    }
    watch.clean()
}
