//! Labs for measurements.

use anyhow::Result;
use egret_lab::Topology;
use egret_tests::chaos::{Scene, egress, ip};

/// Address of the server, as pods use it.
pub const SERVER: &str = "203.0.113.10";
/// The egress address.
pub const EGRESS: &str = "192.168.122.222";

/// Brings up a lab of these hosts with router and server.
pub fn up(name: &str, hosts: &[String]) -> Result<Scene> {
    up_with(name, hosts, &[])
}

/// [`up`] with further arguments for every agent.
pub fn up_with(name: &str, hosts: &[String], agent_args: &[&str]) -> Result<Scene> {
    let topology = format!(
        "segments:\n- {{name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}}\n\
         - {{name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}}\nhosts:\n{}\n\
         - {{name: router, roles: [router]}}\n\
         - {{name: server, roles: [server], links: [{{segment: outside}}]}}\n",
        hosts.join("\n")
    );
    Scene::up_with(name, &Topology::from_yaml(&topology)?, agent_args)
}

/// Brings up a lab of one worker and gateways that send to a segment of their own, which contains the egress address.
pub fn up_with_edge(name: &str, host: &str, gateways: &[&str]) -> Result<Scene> {
    let gateway = |name: &&str| {
        format!(
            "- {{name: {name}, roles: [gateway], \
             links: [{{segment: nodes}}, {{segment: edge, external: true}}]}}"
        )
    };
    let mut hosts = vec![worker(host, 1, &[("a1", "MyApp")])];
    hosts.extend(gateways.iter().map(gateway));
    let topology = format!(
        "segments:\n- {{name: nodes, cidrs: [10.10.0.0/24, 'fd00:10::/64']}}\n\
         - {{name: edge, cidrs: [192.168.122.0/24, 'fd00:122::/64']}}\n\
         - {{name: outside, cidrs: [203.0.113.0/24, '2001:db8:1::/64']}}\nhosts:\n{}\n\
         - {{name: router, roles: [router]}}\n\
         - {{name: server, roles: [server], links: [{{segment: outside}}]}}\n",
        hosts.join("\n")
    );
    Scene::up(name, &Topology::from_yaml(&topology)?)
}

/// A worker with one pod of this label, without a masquerade of its own.
pub fn worker(name: &str, number: usize, pods: &[(&str, &str)]) -> String {
    let pods: Vec<String> = pods
        .iter()
        .map(|(pod, app)| format!("{{name: {pod}, labels: {{app: {app}}}}}"))
        .collect();
    // Pods that exist only as objects have addresses of 10.200.0.0/15, all on the first worker. A host has one prefix
    // per family.
    let v4 = match number {
        1 => "10.192.0.0/11".to_owned(),
        _ => format!("10.244.{number}.0/24"),
    };
    format!(
        "- {{name: {name}, roles: [worker], cni: none, links: [{{segment: nodes}}], \
         podCidrs: [{v4}, 'fd00:244:{number}::/64'], pods: [{}]}}",
        pods.join(", ")
    )
}

/// A gateway on the nodes' network.
pub fn gateway(name: &str) -> String {
    format!("- {{name: {name}, roles: [gateway], links: [{{segment: nodes}}]}}")
}

/// Applies the policy for `app: MyApp` and waits until it is in force.
pub fn start_policy(scene: &Scene, gateways: &[&str]) -> Result<()> {
    scene.put_ready("main", &egress("main", &[ip(EGRESS)], &[]))?;
    scene.wait_live("w1", gateways)
}

/// Raises liveness limits, so that no gateway counts as dead while the measured traffic has all CPUs: the resulting
/// writes, and their reads by all agents of the lab, would be measured too.
pub fn be_patient(scene: &Scene, workers: usize) -> Result<()> {
    scene.put(&format!(
        "apiVersion: egret.dev/v1alpha1\nkind: EgressGateway\nmetadata: {{name: default}}\nspec:\n  default: true\n  \
         nodeSelector: {{matchLabels: {{egret.dev/gateway: 'true'}}}}\n  announce: {{mode: L2}}\n  \
         leases: {{expectedWorkers: {workers}}}\n  probe: {{intervalMs: 1000, failures: 20}}\n"
    ))
}
