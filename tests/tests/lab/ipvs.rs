//! A Service of IPVS with an endpoint outside the cluster. The kernel of the tests has no IPVS. The stand-in is a rule that
//! rewrites the destination behind the forward hook without a translation that conntrack knows, as `ip_vs_nat_xmit` does
//! in the output hook; the real IPVS is tested by hand only, under emulation (docs/decisions/0128).

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use std::net::UdpSocket;

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "ipvs",
        up,
        steps![
            doctor_names_ipvs,
            what_ipvs_sends_outside_is_dropped_and_counted_by_itself,
        ],
    )]
}

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
