//! The walks of docs/migrating with an earlier system still in service: its own commands' kernel state, rewritten,
//! Egret beside it, and its end. No packet leaves with a wrong source.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::traffic::UdpProbe;
use egret_tests::chaos::wait;
use egret_tests::classic::{Classic, NODES};
use egret_tests::cluster::{SERVERS, echo, ip};
use egret_tests::earlier::{KUBE_EGRESS, ROOT, STATIC_EGRESS_IP, ask, count, script};
use egret_tests::foreign::{condition, service, static_egress_ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, is_icmp_error, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "static_egress_ip",
            beside,
            steps![from_static_egress_ip_without_a_packet_of_another_source],
        ),
        Group::new(
            "kube_egress",
            kube_egress,
            steps![from_kube_egress_without_a_packet_of_another_source],
        ),
    ]
}

/// One worker with two pods that the old system serves: its node is the old gateway.
const BESIDE: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: worker1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}, {name: b1, labels: {app: Other}}]}
- {name: gateway1, roles: [gateway], links: [{segment: nodes}]}
- {name: gateway2, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";
const OLD: &str = "192.168.122.230";
/// Address of the second object.
const SECOND: &str = "192.168.122.231";
const NIRMATA: &str = "staticegressips.nirmata.io";

fn beside() -> anyhow::Result<Cluster> {
    let settings = ["--front-end", "staticegressip"];
    let cluster = Cluster::up_set("migrating", &Topology::from_yaml(BESIDE)?, &settings)?;
    let files = format!("mkdir -p {ROOT}/etc/iproute2; touch {ROOT}/etc/iproute2/rt_tables");
    let pod = |name: &str| -> anyhow::Result<String> {
        Ok(cluster.pod_address(name, ip(OLD))?.to_string())
    };
    let first = STATIC_EGRESS_IP
        .replace("10.244.1.12", &pod("a1")?)
        .replace("203.0.113.99", SERVERS[0]);
    let second = first
        .replace(&pod("a1")?, &pod("b1")?)
        .replace("ABCDEFGHIJKLMNO7", "ABCDEFGHIJKLMNO6")
        .replace(OLD, SECOND);
    // The lines that each object has separately.
    let own = |line: &&str| line.contains("$S ") || line.starts_with("S=") || line.contains(SECOND);
    let lines = first.lines().chain(second.lines().filter(own));
    // A gateway leaves no traffic to the CNI: it translates itself.
    let is_gateways = |line: &&str| !line.contains("-A STATIC-EGRESS-BYPASS-CNI");
    let lines: Vec<&str> = lines.filter(is_gateways).collect();
    let script = script("iptables-nft", &format!("{files}\n{}", lines.join("\n")));
    cluster.exec(&cluster.host("worker1")?, &["sh", "-c", &script])?;
    cluster.apply(&[service("frontend", "MyApp"), service("backend", "Other")])?;
    Ok(cluster)
}

/// The walk of docs/migrating/static-egress-ip.md with the old system's addresses, one object after the other. No
/// packet leaves with another source: before, while both are there, and after; and each object's only with its own
/// address.
fn from_static_egress_ip_without_a_packet_of_another_source(cluster: &Cluster) -> Outcome {
    let server = ip(SERVERS[0]);
    let (first, second) = (cluster.pod("a1")?, cluster.pod("b1")?);
    let object = |name: &str, address: &str, of: &str, adopted: bool| -> Outcome {
        let destination = format!("{server}/32");
        let text = static_egress_ip(NIRMATA, name, &[(address, of, &destination)]);
        let file = cluster.lab().dir().path().join(format!("{name}.yaml"));
        let text = match adopted {
            true => text,
            false => text.replace("egret.dev/adopt: \"true\"", ""),
        };
        std::fs::write(&file, text)?;
        cluster.lab().apply(&file)?;
        Ok(())
    };
    object("eip", OLD, "frontend", false)?;
    object("later", SECOND, "backend", false)?;
    let both = || -> Outcome {
        wait_source(&first, server, ip(OLD)).context("the first object")?;
        wait_source(&second, server, ip(SECOND)).context("the second object")
    };
    both().context("the old system serves")?;
    let watch = Leaving::watch(cluster, move |packet| {
        let wanted = [OLD, SECOND].map(ip).contains(&packet.source);
        packet.source.is_ipv4() && !wanted && !is_icmp_error(packet)
    })?;
    let probe = UdpProbe::start(&second, echo(server))?;
    let served = |status: &Value| condition(status, "Ready") == "True/Programmed";
    let kind = "NirmataStaticEgressIP";
    object("eip", OLD, "frontend", true)?;
    cluster.wait_foreign(kind, "eip", "it is served", served)?;
    both().context("one is adopted, the other is the old system's")?;
    let seen = probe.stop().source_ips();
    ensure!(
        seen.iter().eq([&ip(SECOND)]),
        "its source changed: {seen:?}"
    );
    object("later", SECOND, "backend", true)?;
    cluster.wait_foreign(kind, "later", "it is served", served)?;
    let arguments = ["--clean-legacy", "static-egress-ip", "--yes"];
    let (answer, code) = ask(cluster, "worker1", &arguments)?;
    ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
    ensure!(
        count(&answer, "removed", "static-egress-ip", "address") == 2,
        "{answer:#}"
    );
    both().context("Egret serves")?;
    watch.clean()?;
    let (answer, code) = ask(cluster, "worker1", &[])?;
    ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
    // It was Egret: without the object the pod has its node's address.
    let file = cluster.lab().dir().path().join("eip.yaml");
    cluster.lab().delete(&file)?;
    let node = cluster.node_address("worker1", server)?;
    wait_source(&first, server, node)
}

/// The node that has the address; the others send to it.
const HOLDER: &str = "worker1";
const VIP: &str = "192.168.122.222";

/// kube-egress' first version on every node: one address for all pods.
fn kube_egress() -> anyhow::Result<Classic> {
    let classic = Classic::up("migrating-ke")?;
    for node in NODES {
        let of_holder = |line: &str| line.contains("FORWARD") || line.contains("POSTROUTING");
        let of_others = |line: &str| line.starts_with("ip ");
        let wanted = |line: &&str| {
            let mappings = ["65", "EGRESS_", "192.168.122.232"];
            let first = !mappings.iter().any(|other| line.contains(other));
            first && (node == HOLDER || !of_holder(line)) && (node != HOLDER || !of_others(line))
        };
        let lines: Vec<&str> = KUBE_EGRESS.lines().filter(wanted).collect();
        let lines = lines.join("\n");
        let lines = lines
            .replace("10.250.0.0/16", "10.244.0.0/16")
            .replace("10.32.0.0/12", "10.244.0.0/16")
            .replace("192.168.122.231", VIP);
        let hold = match node == HOLDER {
            true => format!("ip address add {VIP}/32 dev eth0"),
            false => String::new(),
        };
        let files = format!("mkdir -p {ROOT}/etc/iproute2/rt_tables.d");
        let lines = format!("{files}\n{lines}\n{hold}");
        classic.shell(node, &script("iptables-nft", &lines))?;
    }
    Ok(classic)
}

/// The walk of docs/migrating/kube-egress.md: Egret starts beside the old script, also on the node with the address,
/// and only then the old one is stopped.
fn from_kube_egress_without_a_packet_of_another_source(classic: &Classic) -> Outcome {
    let (server, pods) = (SERVERS[0], ["a1", "a2", "a3"]);
    let served = || -> Outcome {
        for pod in pods {
            classic.wait_source(pod, server, VIP).context(pod)?;
        }
        Ok(())
    };
    served().context("the old system serves")?;
    let watch = Leaving::watch(&classic.cluster, |packet| {
        packet.source.is_ipv4() && packet.source != ip(VIP) && !is_icmp_error(packet)
    })?;
    let mut probes = Vec::new();
    for pod in pods {
        probes.push(UdpProbe::start(
            &classic.cluster.pod(pod)?,
            echo(ip(server)),
        )?);
    }
    let range = "10.244.0.0/16";
    let flags = ["--vip", VIP, "--pod-subnet", range, "--update-interval=5"];
    for node in NODES {
        classic.start(node, &flags)?;
        wait("it to be applied", || {
            classic.log(node).is_ok_and(|log| log.contains("applied"))
        })?;
        served().with_context(|| format!("{node} has both"))?;
    }
    for node in NODES {
        let arguments = ["--clean-legacy", "kube-egress", "--yes"];
        let (answer, code) = ask(&classic.cluster, node, &arguments)?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
        ensure!(
            count(&answer, "removed", "kube-egress", "chain") == 1,
            "{answer:#}"
        );
        served().with_context(|| format!("{node} has Egret alone"))?;
    }
    for probe in probes {
        let seen = probe.stop().source_ips();
        ensure!(seen.iter().eq([&ip(VIP)]), "the server saw {seen:?}");
    }
    watch.clean()?;
    for node in NODES {
        let (answer, code) = ask(&classic.cluster, node, &[])?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
    }
    // It was Egret: when it ends, pods have their node's address.
    classic.end("worker2", "TERM")?;
    let node = classic.cluster.node_address("worker2", ip(server))?;
    classic.wait_source("a2", server, &node.to_string())
}
