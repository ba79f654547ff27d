//! A Service of IPVS with an endpoint outside the cluster (docs/decisions/0128). Where the kernel has IPVS, with IPVS:
//! `./dev kernels` has such kernels. Everywhere with a stand-in: a rule that rewrites the destination behind the forward
//! hook without a translation that conntrack knows, as `ip_vs_nat_xmit` does in the output hook.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "ipvs",
            up,
            steps![
                doctor_names_ipvs,
                what_ipvs_sends_outside_is_dropped_and_counted_by_itself,
            ],
        ),
        Group::new(
            "kernel",
            up_with_ipvs,
            steps![what_the_kernels_ipvs_sends_outside_is_dropped_counted_and_reported],
        )
        .unless(lacks_ipvs),
    ]
}

/// Two nodes: this one also runs on emulated machines.
const SMALL: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: worker1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64], cni: iptables-nft,
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: gateway1, roles: [gateway], links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

const SERVICE: &str = "10.96.0.77";

const OBJECT: &str = "
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: default}
spec: {clusterIP: 10.96.0.77, clusterIPs: [10.96.0.77], ports: [{port: 7}]}
";

const RULES: &str = "table ip ipvs {
  chain sends {
    type filter hook postrouting priority 200
    ip daddr 10.96.0.77 ip daddr set 203.0.113.10
  }
}";

fn up() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("ipvs", &Topology::built_in())?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, ""), OBJECT.to_owned()])?;
    let worker = cluster.host("worker1")?;
    cluster.exec(&worker, &["nft", RULES])?;
    // kube-proxy has a dummy device of this name; this kernel has no such devices.
    let words = "ip link add kube-ipvs0 type veth peer name kube-ipvs1";
    cluster.exec(&worker, &words.split(' ').collect::<Vec<_>>())?;
    Ok(cluster)
}

fn doctor_names_ipvs(cluster: &Cluster) -> Outcome {
    for (host, is_there) in [("worker1", true), ("worker2", false)] {
        let program = egret_tests::egret()?;
        let line = format!("{} doctor -o json || true", program.display());
        let said = cluster.exec(&cluster.host(host)?, &["sh", "-c", &line])?;
        let said: Value = serde_json::from_str(&said).with_context(|| said)?;
        let obstacles = said["obstacles"].as_array().context("no obstacles")?;
        let found = obstacles.iter().find(|one| one["kind"] == "ipvs");
        ensure!(found.is_some() == is_there, "{host}: {said:#}");
        ensure!(found.is_none_or(|one| one["certain"] == false), "{host}");
    }
    Ok(())
}

fn what_ipvs_sends_outside_is_dropped_and_counted_by_itself(cluster: &Cluster) -> Outcome {
    let count = |name| cluster.worker_counter("worker1", name);
    let before = (count("guard_ipvs")?, count("guard_selected")?);
    let watch = Leaving::watch(cluster, |packet| {
        packet.destination == ip(SERVERS[0]) && packet.source != ip(EGRESS[0])
    })?;
    let place = cluster.pod("a1")?;
    wait_for("the guard to count it", DEADLINE, || {
        let sent = place.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"x", echo(ip(SERVICE)))
        });
        sent.is_ok_and(|sent| sent.is_ok()) && count("guard_ipvs").is_ok_and(|now| now > before.0)
    })?;
    ensure!(
        count("guard_selected")? == before.1,
        "it is counted as something else, too"
    );
    // Without IPVS between them the same destination is reached.
    expect_source(&place, ip(SERVERS[0]), ip(EGRESS[0]))?;
    watch.clean()
}

/// Whether the kernel has no IPVS, or nobody to configure it; then it says so.
fn lacks_ipvs() -> bool {
    let listed = Command::new("ipvsadm").args(["-L", "-n"]).output();
    let has_it = listed.is_ok_and(|output| output.status.success());
    if !has_it {
        println!(
            "skipped: ipvs::kernel: this kernel has no IPVS; `./dev kernels` has some that do"
        );
    }
    !has_it
}

/// As kube-proxy configures a Service: its address on a dummy device, and conntrack for masquerading.
fn up_with_ipvs() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("ipvs-kernel", &Topology::from_yaml(SMALL)?)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, ""), OBJECT.to_owned()])?;
    let worker = cluster.host("worker1")?;
    for line in [
        "ip link add kube-ipvs0 type dummy",
        "ip address add 10.96.0.77/32 dev kube-ipvs0",
        "sysctl -q -w net.ipv4.vs.conntrack=1",
        "ipvsadm -A -u 10.96.0.77:5000 -s rr",
        "ipvsadm -a -u 10.96.0.77:5000 -r 203.0.113.10:5000 -m",
        "ipvsadm -A -t 10.96.0.77:5000 -s rr",
        "ipvsadm -a -t 10.96.0.77:5000 -r 203.0.113.10:5000 -m",
    ] {
        cluster.exec(&worker, &line.split(' ').collect::<Vec<_>>())?;
    }
    Ok(cluster)
}

fn what_the_kernels_ipvs_sends_outside_is_dropped_counted_and_reported(
    cluster: &Cluster,
) -> Outcome {
    what_ipvs_sends_outside_is_dropped_and_counted_by_itself(cluster)?;
    // TCP, too.
    let count = || cluster.worker_counter("worker1", "guard_ipvs");
    let before = count()?;
    let service = echo(ip(SERVICE));
    let place = cluster.pod("a1")?;
    let connected = place.run(|| TcpStream::connect_timeout(&service, Duration::from_secs(2)))?;
    ensure!(connected.is_err(), "the Service answers: {connected:?}");
    ensure!(count()? > before, "SYNs are not counted");
    Ok(wait_for("the node to say so", DEADLINE, || {
        let node = cluster.object("EgressNode", None, "worker1");
        let node = node.unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|one| {
            one["type"] == "Degraded" && one["status"] == "True" && one["reason"] == "IpvsService"
        })
    })?)
}
