//! Unselected traffic stays unchanged: every observation is made before the policies and compared afterwards.

use anyhow::{Context, ensure};
use egret_lab::topology::Role;
use egret_lab::traffic::server::ECHO_PORTS;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_lab::traffic::{PingOptions, Server, ping};
use egret_lab::{Place, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, seen_sources};
use egret_tests::{Cluster, Outcome, steps};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "unchanged",
        Scene::up,
        steps![
            selected_traffic_has_changed,
            destinations_outside_the_list,
            exceptions_of_a_destination,
            other_ports_of_a_destination,
            unselected_pods,
            pod_to_pod_on_the_same_node,
            pod_to_pod_on_another_node,
            pod_to_its_own_node,
            pod_to_other_nodes,
            pod_to_the_router,
            cluster_ip_that_leads_to_a_pod,
            cluster_ip_that_leads_outside_is_selected_by_where_it_leads,
            inbound_to_a_selected_pod,
            inbound_by_a_node_port,
            inbound_by_another_nodes_port,
            node_to_outside,
            node_to_a_selected_pod,
            no_packet_had_the_egress_address_that_should_not,
        ],
    )]
}

/// The server's addresses: in the list, outside of it, an exception, and with ports; one pair of families each.
const OUTSIDE_LIST: [&str; 2] = ["203.0.113.20", "2001:db8:1::20"];
const EXCEPTED: [&str; 2] = ["203.0.113.30", "2001:db8:1::30"];
const WITH_PORTS: [&str; 2] = ["203.0.113.40", "2001:db8:1::40"];
/// Addresses of Services.
const CLUSTER_IP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const CLUSTER_IP_OUTSIDE: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const NODE_PORT: u16 = 30080;
/// Egress addresses of the policy with destinations.
const LISTED_EGRESS: [&str; 2] = ["192.168.122.223", "fd00:122::223"];

/// Observed sources, by traffic.
type Observations = BTreeMap<String, String>;

struct Scene {
    // Servers end before the lab.
    _servers: Vec<Server>,
    before: BTreeMap<&'static str, Observations>,
    cluster: Cluster,
}

type Observe = fn(&Cluster) -> anyhow::Result<Observations>;

/// All observations that must not change, by name.
const UNCHANGED: [(&str, Observe); 14] = [
    ("outside the list", |c| {
        from_pods(c, &["l1", "l2"], &OUTSIDE_LIST)
    }),
    ("exceptions", |c| from_pods(c, &["l1", "l2"], &EXCEPTED)),
    ("other ports", other_ports),
    ("unselected", |c| {
        from_pods(c, &["other1", "other2", "other3"], &SERVERS)
    }),
    ("same node", |c| to_pod(c, "a1", "b1")),
    ("another node", |c| to_pod(c, "a1", "b2")),
    ("own node", |c| to_node(c, "a1", "worker1")),
    ("other nodes", |c| to_node(c, "a1", "worker2")),
    ("router", to_router),
    ("cluster ip", |c| {
        from_pods(c, &["a1", "other1"], &CLUSTER_IP)
    }),
    ("inbound", inbound),
    ("node port", |c| node_port(c, "worker1")),
    ("other node's port", |c| node_port(c, "worker2")),
    ("nodes", nodes),
];

impl Scene {
    fn up() -> anyhow::Result<Self> {
        let mut topology = Topology::built_in();
        for host in &mut topology.hosts {
            if host.has(Role::Server) {
                let more = EXCEPTED.into_iter().chain(WITH_PORTS);
                host.links[0].addresses.extend(more.map(ip));
            }
        }
        for n in 1..=2 {
            topology.hosts[n - 1]
                .pods
                .push(pod(&format!("l{n}"), "Listed"));
        }
        let cluster = Cluster::up("same", &topology)?;
        let mut servers = Vec::new();
        for place in [
            "pod/default/b1",
            "pod/default/b2",
            "worker1",
            "worker2",
            "router",
        ] {
            servers.push(Server::start(&cluster.lab().place(place)?)?);
        }
        routes(&cluster)?;
        services(&cluster)?;
        let mut before = BTreeMap::new();
        for (name, observe) in UNCHANGED {
            before.insert(
                name,
                observe(&cluster).with_context(|| format!("before: {name}"))?,
            );
        }
        let destinations = format!(
            "destinations:\n- {{cidr: 203.0.113.0/28}}\n- {{cidr: 203.0.113.24/29, except: [{}/32]}}\n\
             - {{cidr: \"{}/128\"}}\n- {{cidr: \"2001:db8:1::30/124\", except: [\"{}/128\"]}}\n\
             - {{cidr: {}/32, ports: [{PORTS}]}}\n- {{cidr: \"{}/128\", ports: [{PORTS}]}}",
            EXCEPTED[0], SERVERS[1], EXCEPTED[1], WITH_PORTS[0], WITH_PORTS[1],
        );
        cluster.apply(&[
            egress("everything", "MyApp", &EGRESS, ""),
            egress("listed", "Listed", &LISTED_EGRESS, &destinations),
        ])?;
        Ok(Self {
            _servers: servers,
            before,
            cluster,
        })
    }

    /// Observes again and compares.
    fn same(&self, names: &[&str]) -> Outcome {
        for (name, observe) in UNCHANGED
            .into_iter()
            .filter(|(name, _)| names.contains(name))
        {
            let (before, after) = (&self.before[name], observe(&self.cluster)?);
            ensure!(!after.is_empty(), "{name}: nothing was observed");
            ensure!(
                *before == after,
                "{name}\nbefore: {before:#?}\nafter: {after:#?}"
            );
        }
        Ok(())
    }
}

/// Ports of the destination that has some: TCP 5000 and UDP 5001 to 5002.
const PORTS: &str = "{protocol: TCP, port: 5000}, {protocol: UDP, port: 5001, endPort: 5002}";

/// Gives the router routes to pods, as in clusters whose pods are reachable.
fn routes(cluster: &Cluster) -> anyhow::Result<()> {
    let router = cluster.host("router")?;
    for (prefix, via) in [
        ("10.244.1.0/24", "192.168.122.11"),
        ("fd00:244:1::/64", "fd00:122::11"),
    ] {
        cluster.exec(&router, &["ip", "route", "add", prefix, "via", via])?;
    }
    Ok(())
}

/// Like kube-proxy: Services by DNAT on every worker, and node ports.
fn services(cluster: &Cluster) -> anyhow::Result<()> {
    let (v4, v6) = (ip(SERVERS[0]), ip(SERVERS[1]));
    let [b2_v4, b2_v6] = [
        cluster.pod_address("b2", v4)?,
        cluster.pod_address("b2", v6)?,
    ];
    let [b1_v4, b1_v6] = [
        cluster.pod_address("b1", v4)?,
        cluster.pod_address("b1", v6)?,
    ];
    for n in 1..=3 {
        let rules = format!(
            "table inet proxy {{\n\
             chain services {{\n type nat hook prerouting priority dstnat;\n\
             ip daddr {} dnat ip to {b2_v4}\nip6 daddr {} dnat ip6 to {b2_v6}\n\
             ip daddr {} dnat ip to {v4}\nip6 daddr {} dnat ip6 to {v6}\n\
             fib daddr type local meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport {NODE_PORT} ct mark set 7 dnat ip to {b1_v4}:{port}\n\
             fib daddr type local meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport {NODE_PORT} ct mark set 7 dnat ip6 to [{b1_v6}]:{port}\n}}\n\
             chain node_ports {{\n type nat hook postrouting priority srcnat;\n ct mark 7 masquerade\n}}\n}}\n",
            CLUSTER_IP[0],
            CLUSTER_IP[1],
            CLUSTER_IP_OUTSIDE[0],
            CLUSTER_IP_OUTSIDE[1],
            port = ECHO_PORTS[1],
        );
        let host = cluster.host(&format!("worker{n}"))?;
        cluster.exec(&host, &["nft", &rules])?;
    }
    Ok(())
}

fn note(observations: &mut Observations, from: &Place, to: IpAddr) -> anyhow::Result<()> {
    let seen = seen_sources(from, to)?;
    observations.insert(format!("{} to {to}", from.name()), format!("{seen:?}"));
    Ok(())
}

fn from_pods(cluster: &Cluster, pods: &[&str], targets: &[&str]) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    for pod in pods {
        for target in targets {
            note(&mut seen, &cluster.pod(pod)?, ip(target))?;
        }
    }
    Ok(seen)
}

fn other_ports(cluster: &Cluster) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    for name in ["l1", "l2"] {
        let pod = cluster.pod(name)?;
        for server in WITH_PORTS.map(ip) {
            let (tcp, udp) = (SocketAddr::new(server, 5001), SocketAddr::new(server, 5003));
            let tcp = tcp_source_within(&pod, tcp, DEADLINE)?.ip();
            let udp = udp_echo(&pod, udp, 32, DEADLINE)?.ip();
            let asked = egret_lab::traffic::ping_source(&pod, server)?;
            seen.insert(
                format!("{name} to {server}"),
                format!("{tcp} {udp} {asked}"),
            );
        }
    }
    Ok(seen)
}

fn to_pod(cluster: &Cluster, from: &str, to: &str) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    for like in SERVERS.map(ip) {
        note(
            &mut seen,
            &cluster.pod(from)?,
            cluster.pod_address(to, like)?,
        )?;
    }
    Ok(seen)
}

fn to_node(cluster: &Cluster, from: &str, to: &str) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    for like in SERVERS.map(ip) {
        note(
            &mut seen,
            &cluster.pod(from)?,
            cluster.node_address(to, like)?,
        )?;
    }
    Ok(seen)
}

/// From a pod whose policy has destinations that do not include the router.
fn to_router(cluster: &Cluster) -> anyhow::Result<Observations> {
    from_pods(
        cluster,
        &["l1", "other1"],
        &["192.168.122.1", "fd00:122::1"],
    )
}

fn inbound(cluster: &Cluster) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    let server = cluster.host("server")?;
    for like in SERVERS.map(ip) {
        // An answer counts only from the pod's own address.
        note(&mut seen, &server, cluster.pod_address("b1", like)?)?;
    }
    Ok(seen)
}

fn node_port(cluster: &Cluster, node: &str) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    let server = cluster.host("server")?;
    for like in SERVERS.map(ip) {
        let target = SocketAddr::new(cluster.node_address(node, like)?, NODE_PORT);
        let tcp = tcp_source_within(&server, target, DEADLINE)?.ip();
        let udp = udp_echo(&server, target, 32, DEADLINE)?.ip();
        seen.insert(target.to_string(), format!("{tcp} {udp}"));
    }
    Ok(seen)
}

fn nodes(cluster: &Cluster) -> anyhow::Result<Observations> {
    let mut seen = Observations::new();
    for node in ["worker1", "gateway1"] {
        for server in SERVERS.map(ip) {
            note(&mut seen, &cluster.host(node)?, server)?;
            let options = PingOptions {
                timeout: DEADLINE,
                ..PingOptions::default()
            };
            ping(
                &cluster.host(node)?,
                cluster.pod_address("a1", server)?,
                &options,
            )?;
            note(
                &mut seen,
                &cluster.host(node)?,
                cluster.pod_address("b1", server)?,
            )?;
        }
    }
    Ok(seen)
}

fn selected_traffic_has_changed(scene: &Scene) -> Outcome {
    let cluster = &scene.cluster;
    for family in 0..2 {
        for pod in ["a1", "a2", "a3"] {
            expect_source(&cluster.pod(pod)?, ip(SERVERS[family]), ip(EGRESS[family]))?;
        }
        let listed = cluster.pod("l1")?;
        expect_source(&listed, ip(SERVERS[family]), ip(LISTED_EGRESS[family]))?;
        let server = ip(WITH_PORTS[family]);
        let seen = tcp_source_within(&listed, SocketAddr::new(server, 5000), DEADLINE)?.ip();
        ensure!(
            seen == ip(LISTED_EGRESS[family]),
            "the listed TCP port: {seen}"
        );
        for port in [5001, 5002] {
            let seen = udp_echo(&listed, SocketAddr::new(server, port), 32, DEADLINE)?.ip();
            ensure!(
                seen == ip(LISTED_EGRESS[family]),
                "the listed UDP port {port}: {seen}"
            );
        }
    }
    Ok(())
}

/// Cases: S5.
fn destinations_outside_the_list(scene: &Scene) -> Outcome {
    scene.same(&["outside the list"])
}

/// Cases: S5.
fn exceptions_of_a_destination(scene: &Scene) -> Outcome {
    scene.same(&["exceptions"])
}

fn other_ports_of_a_destination(scene: &Scene) -> Outcome {
    scene.same(&["other ports"])
}

fn unselected_pods(scene: &Scene) -> Outcome {
    scene.same(&["unselected"])
}

fn pod_to_pod_on_the_same_node(scene: &Scene) -> Outcome {
    scene.same(&["same node"])
}

/// Cases: S5.
fn pod_to_pod_on_another_node(scene: &Scene) -> Outcome {
    scene.same(&["another node"])
}

fn pod_to_its_own_node(scene: &Scene) -> Outcome {
    scene.same(&["own node"])
}

/// Cases: S5.
fn pod_to_other_nodes(scene: &Scene) -> Outcome {
    scene.same(&["other nodes"])
}

fn pod_to_the_router(scene: &Scene) -> Outcome {
    scene.same(&["router"])
}

/// Cases: S5.
fn cluster_ip_that_leads_to_a_pod(scene: &Scene) -> Outcome {
    scene.same(&["cluster ip"])
}

fn cluster_ip_that_leads_outside_is_selected_by_where_it_leads(scene: &Scene) -> Outcome {
    let cluster = &scene.cluster;
    for family in 0..2 {
        let service = ip(CLUSTER_IP_OUTSIDE[family]);
        expect_source(&cluster.pod("a1")?, service, ip(EGRESS[family]))?;
        expect_source(&cluster.pod("l1")?, service, ip(LISTED_EGRESS[family]))?;
        let node = cluster.node_address("worker1", service)?;
        expect_source(&cluster.pod("other1")?, service, node)?;
    }
    Ok(())
}

fn inbound_to_a_selected_pod(scene: &Scene) -> Outcome {
    scene.same(&["inbound"])
}

fn inbound_by_a_node_port(scene: &Scene) -> Outcome {
    scene.same(&["node port"])
}

fn inbound_by_another_nodes_port(scene: &Scene) -> Outcome {
    scene.same(&["other node's port"])
}

fn node_to_outside(scene: &Scene) -> Outcome {
    scene.same(&["nodes"])
}

fn node_to_a_selected_pod(scene: &Scene) -> Outcome {
    let cluster = &scene.cluster;
    for server in SERVERS.map(ip) {
        let target = echo(cluster.pod_address("b1", server)?);
        for node in ["worker1", "worker2", "gateway1"] {
            tcp_source_within(&cluster.host(node)?, target, DEADLINE).context(node)?;
        }
    }
    Ok(())
}

fn no_packet_had_the_egress_address_that_should_not(scene: &Scene) -> Outcome {
    let egress: Vec<IpAddr> = EGRESS.into_iter().chain(LISTED_EGRESS).map(ip).collect();
    let is_ours = move |packet: &egret_lab::capture::Packet| egress.contains(&packet.source);
    let watch = Leaving::watch(&scene.cluster, is_ours)?;
    scene.same(&[
        "outside the list",
        "exceptions",
        "unselected",
        "inbound",
        "node port",
        "nodes",
    ])?;
    watch.clean()
}
