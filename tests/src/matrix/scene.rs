//! A lab of the matrix that runs, and what is asked of it.

use super::cells::{Nodes, Policy};
use super::labs::{LabPlan, NodePlan, PodPlan};
use super::marks;
use crate::Cluster;
use crate::chaos::Noise;
use crate::cluster::{DEADLINE, SERVERS, echo, egress, ip};
use crate::watch::Leaving;
use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use egret_lab::topology::Cni;
use egret_lab::{Hurt, Place};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A lab of the matrix that is up, with policies. Goes down with the value.
pub struct Scene {
    /// The lab.
    pub cluster: Cluster,
    /// What it is made of.
    pub plan: LabPlan,
}

fn name(policy: Policy) -> String {
    format!("{policy:?}").to_lowercase()
}

/// Object name of the policy of a pod.
pub fn policy_name(pod: &PodPlan) -> String {
    name(pod.policy)
}

impl Scene {
    /// Brings the lab up, with other components' marks, and waits until its policies are ready.
    ///
    /// # Errors
    /// The lab does not come up, or a policy does not become ready.
    pub fn up(test: &str, plan: LabPlan) -> anyhow::Result<Self> {
        let cluster = Cluster::up(test, &plan.topology())?;
        let scene = Self { cluster, plan };
        for node in &scene.plan.nodes {
            scene.shell(
                &node.name,
                &format!("nft -f - <<'END'\n{}END", scene.marks(node)?),
            )?;
        }
        let policies = scene.plan.policies().into_iter().map(|policy| {
            let addresses: Vec<String> = scene.addresses(policy).map(|a| a.to_string()).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            egress(&name(policy), &format!("{policy:?}"), &addresses, "")
        });
        let policies: Vec<String> = policies.collect();
        scene.cluster.apply(&policies)?;
        Ok(scene)
    }

    fn addresses(&self, policy: Policy) -> impl Iterator<Item = IpAddr> {
        self.plan.addresses(policy).into_iter()
    }

    fn marks(&self, node: &NodePlan) -> anyhow::Result<String> {
        let layout = self.cluster.lab().layout()?;
        Ok(marks::table(node, |name| {
            let found = layout.pod("default", name);
            found.map_or(Vec::new(), |(_, pod)| pod.addresses.clone())
        }))
    }

    /// Servers that a pod reaches, with the source that they must see.
    pub fn covered(&self, pod: &PodPlan) -> Vec<(IpAddr, IpAddr)> {
        let pairs = self.addresses(pod.policy).map(|address| {
            let server = SERVERS[usize::from(address.is_ipv6())];
            (ip(server), address)
        });
        pairs.collect()
    }

    /// Servers of the family that the pod's policy has no address of.
    pub fn uncovered(&self, pod: &PodPlan) -> Vec<IpAddr> {
        let covered = self.covered(pod);
        let servers = SERVERS.map(ip).into_iter();
        let uncovered = servers.filter(|one| !covered.iter().any(|(server, _)| server == one));
        uncovered.collect()
    }

    /// Watches for packets with any source but an egress address.
    ///
    /// # Errors
    /// Nothing can be captured.
    pub fn watch(&self) -> anyhow::Result<Leaving> {
        let policies = self.plan.policies().into_iter();
        let right: BTreeSet<IpAddr> = policies.flat_map(|policy| self.addresses(policy)).collect();
        Leaving::watch(&self.cluster, move |packet| !right.contains(&packet.source))
    }

    /// Runs a shell line on a node.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&self, host: &str, line: &str) -> anyhow::Result<String> {
        let place = self.cluster.host(host)?;
        self.cluster.exec(&place, &["sh", "-c", line])
    }

    /// The message of a node's `ForwardBlocked`, while it is true.
    pub fn blocked(&self, node: &str) -> Option<String> {
        let object = self.cluster.object("egressnode", None, node)?;
        let condition = condition(&object, "ForwardBlocked")?;
        (condition["status"] == "True").then(|| condition["message"].to_string())
    }

    /// Does by hand what `ForwardBlocked` asks for, and waits until the condition ends.
    ///
    /// # Errors
    /// It does not end.
    pub fn unblock(&self, node: &str) -> anyhow::Result<()> {
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            for way in ["-i", "-o"] {
                self.shell(
                    node,
                    &format!("{program} -A FORWARD {way} egret0 -j ACCEPT"),
                )?;
            }
        }
        let what = format!("ForwardBlocked of {node} to end");
        Ok(wait_for(&what, DEADLINE, || self.blocked(node).is_none())?)
    }

    /// Packets of a pod that had the bits of the other component behind Egret's rules, and that had not.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn marks_seen(&self, node: &str, pod: &str) -> anyhow::Result<[u64; 2]> {
        let mut seen = [0; 2];
        for (packets, kind) in seen.iter_mut().zip(["kept", "lost"]) {
            let table = marks::TABLE;
            let text = self.shell(
                node,
                &format!("nft -j list counter inet {table} {kind}_{pod}"),
            )?;
            let json: Value = serde_json::from_str(&text)?;
            let objects = json["nftables"].as_array().cloned().unwrap_or_default();
            let mut found = objects
                .iter()
                .filter_map(|one| one["counter"]["packets"].as_u64());
            *packets = found.next().context("a counter")?;
        }
        Ok(seen)
    }

    /// Waits until every agent says that all is carried out, every policy is ready and every gateway lives.
    ///
    /// # Errors
    /// Not in time.
    pub fn settle(&self) -> anyhow::Result<()> {
        for agent in self.plan.agents() {
            let what = format!("the agent of {agent} to be ready");
            wait_for(&what, DEADLINE, || self.cluster.agent_ready(&agent))?;
        }
        self.cluster.wait_ready()
    }

    /// Ends every agent and starts it again; new ones replace the whole ruleset.
    ///
    /// # Errors
    /// An agent does not end, or does not come back.
    pub fn restart_agents(&self, noise: &Traffic, in_order: bool) -> anyhow::Result<()> {
        let agents = self.plan.agents();
        for agent in &agents {
            match in_order {
                true => self.cluster.end_agent(agent)?,
                false => self.cluster.lab().kill(agent, Hurt::Agent)?,
            }
        }
        noise.wait_turns()?;
        for agent in &agents {
            self.cluster.lab().start(agent)?;
        }
        self.settle()
    }

    /// `nft flush ruleset` on every node, by somebody who then puts the rules of the other components back.
    ///
    /// # Errors
    /// A rule is refused.
    pub fn flush(&self) -> anyhow::Result<()> {
        for node in &self.plan.nodes {
            let (save, restore) = match node.node.cni {
                Cni::IptablesNft => (
                    "a=$(iptables-nft-save | grep -v egret0); b=$(ip6tables-nft-save | grep -v egret0)",
                    "echo \"$a\" | iptables-nft-restore; echo \"$b\" | ip6tables-nft-restore",
                ),
                _ => (
                    "a=$(nft list table inet cni 2>/dev/null | grep -v egret0) || true",
                    "echo \"$a\" | nft -f -",
                ),
            };
            let marks = self.marks(node)?;
            let line =
                format!("{save}; nft flush ruleset; {restore}\nnft -f - <<'END'\n{marks}END");
            self.shell(&node.name, &line)?;
        }
        Ok(())
    }

    /// Pulls the cables of these gateways for a moment.
    ///
    /// # Errors
    /// They do not come back.
    pub fn lose(&self, gateways: &[String], noise: &Traffic) -> anyhow::Result<()> {
        for gateway in gateways {
            self.cluster.lab().kill(gateway, Hurt::Links)?;
        }
        noise.wait_turns()?;
        for gateway in gateways {
            self.cluster.lab().start(gateway)?;
        }
        self.settle()
    }

    /// Traffic of the lab's selected pods, of at most one per node where there are many.
    ///
    /// # Errors
    /// A pod cannot be entered.
    pub fn traffic(&self) -> anyhow::Result<Traffic> {
        let mut traffic = Traffic::default();
        let is_crowded = self.plan.pods().count() > 4;
        for node in &self.plan.nodes {
            let wanted = if is_crowded { 1 } else { node.pods.len() };
            for pod in &node.pods[..wanted] {
                let place = [self.cluster.pod(&pod.name)?];
                let covered = self.covered(pod).into_iter();
                let servers: Vec<IpAddr> = covered.map(|(server, _)| server).collect();
                traffic.covered.push(Noise::start(&place, &servers)?);
                let missing = self.uncovered(pod);
                traffic.uncovered.push(Noise::start(&place, &missing)?);
            }
        }
        Ok(traffic)
    }

    /// Makes the router forget all neighbours on segments of the cluster, so that it must ask for egress addresses.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn forget_neighbours(&self) -> anyhow::Result<()> {
        self.shell("router", "ip -4 neigh flush all; ip -6 neigh flush all")
            .map(drop)
    }

    /// Sends a datagram from a pod over IPv6; an answer is not expected.
    ///
    /// # Errors
    /// The pod cannot be entered.
    pub fn send(&self, pod: &str) -> anyhow::Result<Place> {
        let place = self.cluster.pod(pod)?;
        place.run(|| {
            let socket = std::net::UdpSocket::bind("[::]:0")?;
            socket.send_to(b"x", echo(ip(SERVERS[1])))
        })??;
        Ok(place)
    }

    /// Whether losing one gateway leaves another.
    pub fn has_spare(&self) -> bool {
        self.plan.ground.nodes == Nodes::Many
    }
}

/// A condition of an object.
pub fn condition(object: &Value, kind: &str) -> Option<Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == kind);
    found.cloned()
}

/// Traffic that must be answered, and traffic that must be refused.
#[derive(Default)]
pub struct Traffic {
    covered: Vec<Noise>,
    uncovered: Vec<Noise>,
}

impl Traffic {
    /// Waits until every pod has tried what it does once more.
    ///
    /// # Errors
    /// It stands still.
    pub fn wait_turns(&self) -> anyhow::Result<()> {
        self.covered.iter().try_for_each(Noise::wait_turns)
    }

    /// Waits until every kind of traffic is answered again.
    ///
    /// # Errors
    /// One gets no answer.
    pub fn wait_answers(&self) -> anyhow::Result<()> {
        self.covered.iter().try_for_each(Noise::wait_answers)
    }

    /// Ends all traffic.
    ///
    /// # Errors
    /// There was none.
    pub fn stop(self) -> anyhow::Result<()> {
        ensure!(!self.covered.is_empty(), "there was no traffic");
        let all = self.covered.into_iter().chain(self.uncovered);
        all.for_each(Noise::stop);
        Ok(())
    }
}
