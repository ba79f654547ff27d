//! Addresses that Debian's keepalived moves from node to node: `egret kube-egress` follows them, and Egret's own
//! gateways leave them to the node that has them. Ids are those of docs/compatibility.md.

use anyhow::{Context, ensure};
use egret_lab::traffic::IdleFlows;
use egret_lab::{Hurt, Topology};
use egret_tests::chaos::wait;
use egret_tests::classic::{Classic, FLAGS, NODES};
use egret_tests::cluster::{SERVERS, echo, ip};
use egret_tests::foreign::{condition, mapper};
use egret_tests::keepalived::{Keepalived, Virtual, wait_holder};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, is_icmp_error};
use egret_tests::{Cluster, Outcome, egret, steps};
use std::cell::RefCell;
use std::collections::BTreeMap;

const FIRST: &str = "192.168.122.222";
const SECOND: &str = "192.168.122.223";
/// Both addresses, on different nodes as long as those live.
const VIRTUAL: [Virtual<'static>; 2] = [
    Virtual {
        address: FIRST,
        router: 51,
        nodes: &["worker1", "worker2", "worker3"],
    },
    Virtual {
        address: SECOND,
        router: 52,
        nodes: &["worker2", "worker3", "worker1"],
    },
];
/// Pods and their mapped addresses.
const MAPPING: [(&str, &str); 5] = [
    ("a1", FIRST),
    ("a2", FIRST),
    ("a3", FIRST),
    ("b2", SECOND),
    ("b3", SECOND),
];

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "kube_egress",
            classic,
            steps![
                p1_p2_p6_two_addresses_are_on_two_nodes_and_serve_their_pods,
                e3_p6_an_address_that_keepalived_gives_up_is_followed,
                e3_an_address_whose_node_dies_is_followed,
                e4_p5_nothing_stays_when_all_have_ended,
            ],
        ),
        Group::new(
            "egress_mapper",
            mapped,
            steps![
                the_node_that_keepalived_chose_answers_for_the_vip,
                the_vip_moves_with_keepalived_and_connections_go_on,
                without_keepalived_a_gateway_answers_again,
            ],
        ),
    ]
}

/// keepalived on every node, stopped one by one.
struct Scene {
    classic: Classic,
    running: RefCell<BTreeMap<&'static str, Keepalived>>,
}

fn start_all(cluster: &Cluster) -> anyhow::Result<BTreeMap<&'static str, Keepalived>> {
    let mut running = BTreeMap::new();
    for node in NODES {
        running.insert(node, Keepalived::start(cluster, node, &VIRTUAL)?);
    }
    wait_holder(cluster, FIRST, "worker1", &NODES)?;
    wait_holder(cluster, SECOND, "worker2", &NODES)?;
    Ok(running)
}

fn classic() -> anyhow::Result<Scene> {
    let classic = Classic::up("vrrp")?;
    let running = RefCell::new(start_all(&classic.cluster)?);
    for node in NODES {
        classic.map(node, &[(FIRST, 64), (SECOND, 65)], &MAPPING)?;
        classic.start(node, FLAGS)?;
    }
    let scene = Scene { classic, running };
    scene.all_served(&MAPPING)?;
    Ok(scene)
}

impl Scene {
    fn all_served(&self, mapping: &[(&str, &str)]) -> Outcome {
        for (pod, address) in mapping {
            self.classic.wait_source(pod, SERVERS[0], address)?;
        }
        Ok(())
    }

    fn take(&self, node: &str) -> anyhow::Result<Keepalived> {
        let taken = self.running.borrow_mut().remove(node);
        taken.with_context(|| format!("keepalived runs on {node}"))
    }

    /// Captures packets with neither of the addresses; unmapped pods send nothing meanwhile. While the address moves, a
    /// node that still receives packets for it may send errors under its own address.
    fn watch(&self) -> anyhow::Result<Leaving> {
        Leaving::watch(&self.classic.cluster, |packet| {
            ![FIRST, SECOND].map(ip).contains(&packet.source) && !is_icmp_error(packet)
        })
    }
}

/// Cases: P1, P2, P6.
fn p1_p2_p6_two_addresses_are_on_two_nodes_and_serve_their_pods(scene: &Scene) -> Outcome {
    let cluster = &scene.classic.cluster;
    let watch = scene.watch()?;
    for (pod, address) in MAPPING {
        expect_source(&cluster.pod(pod)?, ip(SERVERS[0]), ip(address))?;
    }
    watch.clean()?;
    for (pod, worker) in [("b1", "worker1"), ("other2", "worker2")] {
        let node = cluster.node_address(worker, ip(FIRST))?;
        expect_source(&cluster.pod(pod)?, ip(SERVERS[0]), node)?;
    }
    Ok(())
}

/// Cases: E3, P6. Only one of the two moves, and the other's connections are not affected.
fn e3_p6_an_address_that_keepalived_gives_up_is_followed(scene: &Scene) -> Outcome {
    let cluster = &scene.classic.cluster;
    let watch = scene.watch()?;
    let mut flows = Vec::new();
    for pod in ["b2", "b3"] {
        flows.push(IdleFlows::start(
            &cluster.pod(pod)?,
            echo(ip(SERVERS[0])),
            5,
        )?);
    }
    scene.take("worker1")?.end()?;
    wait_holder(cluster, FIRST, "worker2", &NODES)?;
    scene.all_served(&MAPPING)?;
    // It returns to the preferred node.
    let again = Keepalived::start(cluster, "worker1", &VIRTUAL)?;
    scene.running.borrow_mut().insert("worker1", again);
    wait_holder(cluster, FIRST, "worker1", &NODES)?;
    scene.all_served(&MAPPING)?;
    for report in flows.into_iter().map(IdleFlows::stop) {
        ensure!(report.broken.is_empty(), "{:?}", report.broken);
    }
    watch.clean()
}

/// Cases: E3. The machine loses its power, so no process releases the address.
fn e3_an_address_whose_node_dies_is_followed(scene: &Scene) -> Outcome {
    let cluster = &scene.classic.cluster;
    let watch = scene.watch()?;
    cluster.lab().kill("worker1", Hurt::Power)?;
    let lost = scene.take("worker1")?;
    wait_holder(cluster, FIRST, "worker2", &["worker2", "worker3"])?;
    scene.all_served(&MAPPING[1..])?;
    drop(lost);
    watch.clean()
}

/// Cases: E4, P5. One ends in order; the other is killed, and `--delete` removes its leftovers, twice.
fn e4_p5_nothing_stays_when_all_have_ended(scene: &Scene) -> Outcome {
    for node in ["worker2", "worker3"] {
        let killed = node == "worker3";
        scene
            .classic
            .end(node, if killed { "KILL" } else { "TERM" })?;
        let cluster = &scene.classic.cluster;
        let program = egret()?.to_str().context("a path of text")?.to_owned();
        for _ in 0..if killed { 2 } else { 0 } {
            let words = [program.as_str(), "kube-egress", "--delete"];
            cluster.exec(&cluster.host(node)?, &words)?;
        }
        scene.take(node)?.end()?;
        // The test's own files.
        scene
            .classic
            .shell(node, "rm -rf /run/vips /run/pods /run/keepalived*")?;
        let left = scene.classic.left(node)?;
        ensure!(left.is_empty(), "{node}: {left:#?}");
    }
    let node = scene.classic.cluster.node_address("worker2", ip(FIRST))?;
    scene
        .classic
        .wait_source("a2", SERVERS[0], &node.to_string())
}

/// egress-mapper's objects where keepalived still moves the address.
struct Mapped {
    cluster: Cluster,
    running: RefCell<BTreeMap<&'static str, Keepalived>>,
}

/// Every node is a gateway, as egress-mapper's users have it.
fn mapped() -> anyhow::Result<Mapped> {
    let settings = ["--front-end", "egressmapper"];
    let cluster = Cluster::up_set("vrrpmap", &Topology::built_in(), &settings)?;
    cluster.without_egress_gateway()?;
    let running = RefCell::new(start_all(&cluster)?);
    let spec = format!("{{ip: {FIRST}, kind: pod, namespace: default, name: a3}}");
    cluster.apply(&[
        mapper("Vip", "vip1", &format!("{{ip: {FIRST}, routeid: 64}}")),
        mapper("Egress", "my-egress", &spec),
    ])?;
    Ok(Mapped { cluster, running })
}

/// Waits until the Vip's status names this node, and only its kernel answers the router's requests.
fn wait_answers(cluster: &Cluster, node: &str) -> Outcome {
    cluster.wait_foreign("MapperVip", "vip1", node, |status| {
        condition(status, "Ready") == "True/Announced" && status["node"] == node
    })?;
    let router = cluster.host("router")?;
    let link = cluster.exec(
        &cluster.host(node)?,
        &["cat", "/sys/class/net/eth0/address"],
    )?;
    wait(&format!("{node} to answer for {FIRST}"), || {
        // The router's entry is deleted: every node that considers itself responsible answers the next request.
        let ask = format!(
            "ip neighbour flush to {FIRST}; ping -c1 -W1 {FIRST} >/dev/null; ip neighbour show to {FIRST}"
        );
        let known = cluster.exec(&router, &["sh", "-c", &ask]);
        known.is_ok_and(|text| text.contains(link.trim()))
    })
}

/// Cases: M2, M4. Egret's own choice would be another node for most addresses; keepalived's decision is used.
fn the_node_that_keepalived_chose_answers_for_the_vip(mapped: &Mapped) -> Outcome {
    let cluster = &mapped.cluster;
    wait_answers(cluster, "worker1")?;
    let address = ip(FIRST);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    expect_source(&cluster.pod("a3")?, ip(SERVERS[0]), address)?;
    watch.clean()
}

/// Cases: M2. Egret's connections do not depend on which node has the address.
fn the_vip_moves_with_keepalived_and_connections_go_on(mapped: &Mapped) -> Outcome {
    let cluster = &mapped.cluster;
    let address = ip(FIRST);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    let flows = IdleFlows::start(&cluster.pod("a3")?, echo(ip(SERVERS[0])), 5)?;
    for (ends, follows) in [("worker1", "worker2"), ("worker2", "worker3")] {
        let taken = mapped.running.borrow_mut().remove(ends);
        taken.context("keepalived runs")?.end()?;
        wait_holder(cluster, FIRST, follows, &NODES)?;
        wait_answers(cluster, follows)?;
        expect_source(&cluster.pod("a3")?, ip(SERVERS[0]), address)?;
    }
    let report = flows.stop();
    ensure!(report.broken.is_empty(), "{:?}", report.broken);
    watch.clean()
}

/// Cases: M2. keepalived is stopped, as the page about migrating describes.
fn without_keepalived_a_gateway_answers_again(mapped: &Mapped) -> Outcome {
    let cluster = &mapped.cluster;
    mapped.running.borrow_mut().clear();
    cluster.wait_foreign("MapperVip", "vip1", "answered for", |status| {
        condition(status, "Ready") == "True/Announced"
    })?;
    let address = ip(FIRST);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    egret_tests::watch::wait_source(&cluster.pod("a3")?, ip(SERVERS[0]), address)?;
    watch.clean()
}
