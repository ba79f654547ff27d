//! Foreign rules, marks and tunnels on a node keep their effect beside Egret: stand-ins for kube-router's and Calico's
//! marks and flannel's tunnel, set in the same hooks. The real plugins run in the tests of the clusters of kubelets.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_lab::topology::Role;
use egret_lab::traffic::source::{tcp_source_within, udp_echo};
use egret_lab::traffic::{Server, ping_source};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::packet;
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "foreign_rules",
        up,
        steps![
            a_mark_that_others_require_in_the_forward_hook_is_not_ours,
            nobody_in_the_forward_hook_sees_our_mark,
            no_mark_of_others_leads_an_unselected_pod_astray,
            a_mark_of_others_arrives_as_it_was_set,
            packets_of_the_node_itself_meet_no_rule_of_ours,
            the_outer_packet_of_anothers_tunnel_goes_its_own_way,
            a_connection_from_an_egress_address_to_a_node_is_not_ended,
            a_connection_from_an_egress_address_reaches_a_pod_behind_a_service,
            a_pod_of_a_gateway_cannot_forge_an_egress_address,
        ],
    )]
}

/// The server's second address, which only the forging pod sends to.
const VICTIM: [&str; 2] = ["203.0.113.20", "2001:db8:1::20"];
/// How long a forbidden packet is waited for.
const SILENCE: Duration = Duration::from_secs(2);

/// Four gateway groups, so that marks of one, two and four are in use; gateway3 also runs pods.
fn up() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    for host in &mut topology.hosts {
        if host.name == "gateway3" {
            host.roles.push(Role::Worker);
            host.pods.push(egret_tests::cluster::pod("g3", "MyApp"));
            host.pods.push(egret_tests::cluster::pod("forger", "Other"));
            host.pod_cidrs = vec![
                "10.244.4.0/24".parse().expect("a literal prefix"),
                "fd00:244:4::/64".parse().expect("a literal prefix"),
            ];
        }
    }
    let cluster = Cluster::up("foreign", &topology)?;
    let gateway = |name: &str, default: bool| {
        format!(
            "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {{name: {name}}}\nspec:\n  default: {default}\n  \
             nodeSelector: {{matchLabels: {{egret.dev/gateway: \"true\"}}}}\n"
        )
    };
    let mut objects = vec![
        gateway("default", true),
        egress("myapp", "MyApp", &EGRESS, ""),
    ];
    for n in 2..=4 {
        let name = format!("group{n}");
        objects.push(gateway(&name, false));
        let address = format!("192.168.122.{}", 222 + n);
        let destination = format!("198.51.100.{n}/32");
        objects.push(egress(
            &name,
            "MyApp",
            &[&address],
            &format!("gateway: {name}\ndestinations: [{{cidr: {destination}}}]"),
        ));
    }
    cluster.apply(&objects)?;
    cluster.wait_ready()?;
    Ok(cluster)
}

fn families() -> [(IpAddr, IpAddr); 2] {
    [0, 1].map(|family| (ip(SERVERS[family]), ip(EGRESS[family])))
}

/// Runs with a foreign ruleset loaded at a host, and removes it again.
fn with_rules(
    cluster: &Cluster,
    host: &str,
    table: &str,
    check: impl FnOnce() -> Outcome,
) -> Outcome {
    let place = cluster.host(host)?;
    // The program needs a line break after each block.
    let table = table.replace("} ", "}\n");
    cluster.exec(
        &place,
        &["nft", &format!("table inet others {{\n{table}\n}}")],
    )?;
    let outcome = check();
    cluster.exec(&place, &["nft", "delete table inet others"])?;
    outcome
}

/// Case 1 of nodes as they really are: kube-router's policy controller allows by a mark and rejects the rest.
fn a_mark_that_others_require_in_the_forward_hook_is_not_ours(cluster: &Cluster) -> Outcome {
    for bits in ["0x00010000", "0x00020000", "0x00040000"] {
        let table = format!(
            "chain c {{ type filter hook forward priority 0; ip saddr 10.244.0.0/16 meta mark & {bits} != {bits} drop; \
             ip6 saddr fd00:244::/32 meta mark & {bits} != {bits} drop; }}"
        );
        with_rules(cluster, "worker1", &table, || {
            for (server, _) in families() {
                for pod in ["a1", "other1"] {
                    let seen = udp_echo(&cluster.pod(pod)?, echo(server), 32, SILENCE);
                    ensure!(seen.is_err(), "{pod} got through by mark {bits}: {seen:?}");
                }
            }
            Ok(())
        })?;
    }
    for (server, address) in families() {
        expect_source(&cluster.pod("a1")?, server, address)?;
    }
    Ok(())
}

fn nobody_in_the_forward_hook_sees_our_mark(cluster: &Cluster) -> Outcome {
    let look = "counter seen { } \
        chain a { type filter hook prerouting priority 2000; meta mark & 0x00ff0000 != 0 counter name seen; } \
        chain b { type filter hook forward priority -400; meta mark & 0x00ff0000 != 0 counter name seen; } \
        chain c { type filter hook postrouting priority -400; meta mark & 0x00ff0000 != 0 counter name seen; } \
        chain d { type filter hook output priority -400; meta mark & 0x00ff0000 != 0 counter name seen; }";
    with_rules(cluster, "worker1", look, || {
        for (server, address) in families() {
            expect_source(&cluster.pod("a1")?, server, address)?;
        }
        let place = cluster.host("worker1")?;
        let seen = cluster.exec(&place, &["nft", "list counter inet others seen"])?;
        ensure!(seen.contains("packets 0 "), "{seen}");
        Ok(())
    })
}

/// Every bit and the values of our own groups, set in prerouting like Calico does, on unselected pods.
fn marks() -> impl Iterator<Item = u32> {
    let bits = (0..32).map(|bit| 1 << bit);
    let ours = (1..=6).flat_map(|group: u32| [group << 16, (group | 0x80) << 16]);
    bits.chain(ours).chain([u32::MAX, 0x00ff_0000, 0xab5a_4e00])
}

/// Cases 2 and 8.
fn no_mark_of_others_leads_an_unselected_pod_astray(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("other1")?;
    for mark in marks() {
        let table = format!(
            "chain c {{ type filter hook prerouting priority -150; iifname != \"eth0\" iifname != \"egret0\" meta mark set {mark:#x}; }}"
        );
        with_rules(cluster, "worker1", &table, || {
            for (server, _) in families() {
                let node = cluster.node_address("worker1", server)?;
                let seen = udp_echo(&pod, echo(server), 32, DEADLINE)
                    .with_context(|| format!("mark {mark:#x}"))?;
                ensure!(seen.ip() == node, "mark {mark:#x}: {seen}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Marks that others set before routing reach their forward hook unchanged, on packets that Egret does not select.
fn a_mark_of_others_arrives_as_it_was_set(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod("other1")?;
    let in_use = (1..=4).map(|group: u32| group << 16);
    for mark in in_use.chain([0x0008_0000, 0xffff_ffff, 0x4000, 0x00fe_0000]) {
        let table = format!(
            "counter right {{ }} counter wrong {{ }} \
             chain c {{ type filter hook prerouting priority -150; iifname != \"eth0\" iifname != \"egret0\" meta mark set {mark:#x}; }} \
             chain d {{ type filter hook forward priority -400; iifname \"eth0\" return; iifname \"egret0\" return; iifname \"egret-canary\" return; \
             meta mark {mark:#x} counter name right return; counter name wrong; }}"
        );
        with_rules(cluster, "worker1", &table, || {
            udp_echo(&pod, echo(ip(SERVERS[0])), 32, DEADLINE)?;
            let place = cluster.host("worker1")?;
            let right = cluster.exec(&place, &["nft", "list counter inet others right"])?;
            let wrong = cluster.exec(&place, &["nft", "list counter inet others wrong"])?;
            ensure!(
                !right.contains("packets 0 "),
                "{mark:#x} never arrived: {right}"
            );
            ensure!(
                wrong.contains("packets 0 "),
                "{mark:#x} arrived as another: {wrong}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Case 8: a program of the node itself with a mark, like Tailscale's.
fn packets_of_the_node_itself_meet_no_rule_of_ours(cluster: &Cluster) -> Outcome {
    let place = cluster.host("worker1")?;
    for mark in marks() {
        let table = format!(
            "chain c {{ type route hook output priority -150; udp dport != 14789 meta mark set {mark:#x}; }}"
        );
        with_rules(cluster, "worker1", &table, || {
            for (server, _) in families() {
                let node = cluster.node_address("worker1", server)?;
                let seen = udp_echo(&place, echo(server), 32, DEADLINE)
                    .with_context(|| format!("mark {mark:#x}"))?;
                ensure!(seen.ip() == node, "mark {mark:#x}: {seen}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Case 2: kube-router marks in the forward hook, and a VXLAN device routes its outer packet with that mark.
fn the_outer_packet_of_anothers_tunnel_goes_its_own_way(cluster: &Cluster) -> Outcome {
    let peer = cluster.node_address("worker2", ip(SERVERS[0]))?;
    let own = cluster.node_address("worker1", ip(SERVERS[0]))?;
    for (host, remote, address) in [("worker1", peer, 1), ("worker2", own, 2)] {
        let place = cluster.host(host)?;
        for words in [
            format!("ip link add flannel.9 type vxlan id 9 remote {remote} dstport 8472 dev eth0"),
            format!("ip address add 172.30.9.{address}/24 dev flannel.9"),
            "ip link set flannel.9 up".to_owned(),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            cluster.exec(&place, &words)?;
        }
    }
    let pod = cluster.pod("other1")?;
    for mark in ["0x10000", "0x20000", "0x40000"] {
        let table = format!(
            "chain c {{ type filter hook forward priority 0; meta mark set {mark}; }} \
             chain n {{ type nat hook postrouting priority 50; oifname \"flannel.9\" masquerade; }}"
        );
        with_rules(cluster, "worker1", &table, || {
            cluster
                .exec(&pod, &["ping", "-c", "3", "-W", "2", "172.30.9.2"])
                .with_context(|| format!("pod to pod with mark {mark}"))?;
            Ok(())
        })?;
    }
    for host in ["worker1", "worker2"] {
        cluster.exec(&cluster.host(host)?, &["ip", "link", "delete", "flannel.9"])?;
    }
    Ok(())
}

/// Case 9: an address of a node that its Node object lacks.
fn a_connection_from_an_egress_address_to_a_node_is_not_ended(cluster: &Cluster) -> Outcome {
    let place = cluster.host("worker2")?;
    cluster.exec(
        &place,
        &["ip", "address", "add", "192.168.122.77/32", "dev", "eth0"],
    )?;
    let server = Server::start(&place)?;
    let to = echo(ip("192.168.122.77"));
    let talk = || -> Outcome {
        for pod in ["a1", "other1"] {
            // Handshake and data.
            tcp_source_within(&cluster.pod(pod)?, to, DEADLINE).with_context(|| pod.to_owned())?;
        }
        Ok(())
    };
    let outcome = talk();
    drop(server);
    cluster.exec(
        &place,
        &[
            "ip",
            "address",
            "delete",
            "192.168.122.77/32",
            "dev",
            "eth0",
        ],
    )?;
    outcome
}

/// Case 9: a Service with `externalTrafficPolicy: Local` reached by the node's second address.
fn a_connection_from_an_egress_address_reaches_a_pod_behind_a_service(
    cluster: &Cluster,
) -> Outcome {
    let place = cluster.host("worker2")?;
    cluster.exec(
        &place,
        &["ip", "address", "add", "192.168.122.78/32", "dev", "eth0"],
    )?;
    let endpoint = cluster.pod_address("other2", ip(SERVERS[0]))?;
    let server = Server::start(&cluster.pod("other2")?)?;
    let to = echo(ip("192.168.122.78"));
    let port = to.port();
    let table = format!(
        "chain c {{ type nat hook prerouting priority -100; ip daddr 192.168.122.78 tcp dport {port} dnat ip to {endpoint}; }}"
    );
    let outcome = with_rules(cluster, "worker2", &table, || {
        for pod in ["a1", "other1"] {
            tcp_source_within(&cluster.pod(pod)?, to, DEADLINE).with_context(|| pod.to_owned())?;
        }
        Ok(())
    });
    drop(server);
    cluster.exec(
        &place,
        &[
            "ip",
            "address",
            "delete",
            "192.168.122.78/32",
            "dev",
            "eth0",
        ],
    )?;
    outcome
}

/// Case 15: a node that is its own gateway, without the kernel's own filter.
fn a_pod_of_a_gateway_cannot_forge_an_egress_address(cluster: &Cluster) -> Outcome {
    let place = cluster.host("gateway3")?;
    let layout = cluster.lab().layout()?;
    let pods = &layout.host("gateway3").context("gateway3")?.pods;
    for device in pods.iter().map(|pod| pod.device.as_str()).chain(["all"]) {
        let setting = format!("net.ipv4.conf.{device}.rp_filter=0");
        cluster.exec(&place, &["sysctl", "-qw", &setting])?;
    }
    let victims = VICTIM.map(ip);
    let watch = Leaving::watch(cluster, move |packet| victims.contains(&packet.destination))?;
    for pod in ["g3", "forger"] {
        let from = cluster.pod(pod)?;
        for family in 0..2 {
            let own = *cluster.lease(ip(EGRESS[family]), "gateway3")?.start();
            for port in [own, 60_000] {
                let source = SocketAddr::new(ip(EGRESS[family]), port);
                let to = SocketAddr::new(ip(VICTIM[family]), 7777);
                from.run(|| packet::send_raw(&packet::udp(source, to, b"forged")))??;
            }
        }
    }
    wait_for("the forged packets to be counted", DEADLINE, || {
        cluster
            .worker_counter("gateway3", "forged_source")
            .is_ok_and(|count| count >= 8)
    })?;
    // A permitted packet, to prove that the capture works.
    for (server, address) in families() {
        let seen = ping_source(&cluster.pod("g3")?, server)?;
        ensure!(seen == address, "{seen}");
    }
    ensure!(watch.wrong() == 0, "{} forged packets left", watch.wrong());
    watch.clean()
}
