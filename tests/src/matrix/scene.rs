//! A running lab of the matrix, and operations on it.

use super::cells::{Nodes, Policy};
use super::labs::{LabPlan, NodePlan, PodPlan, servers};
use super::marks;
use super::paths::{PathLog, wait_whole};
use crate::Cluster;
use crate::chaos::{Kind, Load};
use crate::cluster::{DEADLINE, echo, egress};
use crate::watch::Leaving;
use anyhow::{Context, ensure};
use egret_lab::process::wait_for;
use egret_lab::topology::Cni;
use egret_lab::{Hurt, Place};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Number of selected pods up to which each of them sends all kinds of traffic.
const CROWD: usize = 4;

/// A running lab of the matrix, with policies. It is taken down with the value.
pub struct Scene {
    /// The lab.
    pub cluster: Cluster,
    /// Its plan.
    pub plan: LabPlan,
    path_log: RefCell<PathLog>,
}

fn name(policy: Policy) -> String {
    format!("{policy:?}").to_lowercase()
}

/// Object name of the policy of a pod.
pub fn policy_name(pod: &PodPlan) -> String {
    name(pod.policy)
}

impl Scene {
    /// Brings the lab up, with other components' marks, and waits until its policies are ready; they are not while a
    /// node is [closed](Self::is_closed).
    ///
    /// # Errors
    /// The lab does not come up, or a policy does not become ready.
    pub fn up(test: &str, plan: LabPlan) -> anyhow::Result<Self> {
        let cluster = Cluster::up(test, &plan.topology())?;
        let scene = Self {
            cluster,
            plan,
            path_log: RefCell::default(),
        };
        for node in &scene.plan.nodes {
            scene.shell(
                &node.name,
                &format!("nft -f - <<'END'\n{}END", scene.marks(node)?),
            )?;
        }
        match scene.plan.nodes.iter().any(|node| scene.is_closed(node)) {
            true => scene.cluster.put(&scene.manifests(false))?,
            false => scene.put_policies(false)?,
        }
        Ok(scene)
    }

    /// Whether only the operator can let a node's pods into the tunnel. A single node sends nothing through it.
    pub fn is_closed(&self, node: &NodePlan) -> bool {
        node.node.is_blocked() && self.plan.ground.nodes == Nodes::Many
    }

    /// Fails if a canary of any node was lost since the last call, or since the lab came up. `broken`: nodes whose path
    /// the lab itself has broken meanwhile.
    ///
    /// # Errors
    /// The lab, the node and what its agent said.
    pub fn paths_stayed_whole(&self, broken: &[&NodePlan]) -> anyhow::Result<()> {
        let agents = self.plan.agents();
        let lost = self.path_log.borrow_mut().lost(&self.cluster, &agents)?;
        let is_excused = |line: &String| {
            let mut excused = broken.iter();
            excused.any(|node| line.starts_with(&format!("{}: ", node.name)))
        };
        let lost: Vec<String> = lost.into_iter().filter(|one| !is_excused(one)).collect();
        let lab = self.plan.name();
        ensure!(lost.is_empty(), "{lab}: PathBroken on {}", lost.join("\n"));
        Ok(())
    }

    /// Breaks something on purpose and waits until it is whole again; paths must be so before and afterwards.
    ///
    /// # Errors
    /// `fault` fails, or a path stays broken.
    pub fn with_broken_paths(
        &self,
        fault: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.paths_stayed_whole(&[])?;
        fault()?;
        self.wait_whole()
    }

    /// Waits until every path is whole after a fault; what was lost until then no longer counts.
    ///
    /// # Errors
    /// A path stays broken.
    pub fn wait_whole(&self) -> anyhow::Result<()> {
        let agents = self.plan.agents();
        wait_whole(&self.cluster, &agents)?;
        self.path_log.borrow_mut().lost(&self.cluster, &agents)?;
        Ok(())
    }

    fn manifests(&self, edited: bool) -> Vec<String> {
        let policies = self.plan.policies().into_iter().map(|policy| {
            let addresses = self.plan.addresses(policy, edited).into_iter();
            let addresses: Vec<String> = addresses.map(|a| a.to_string()).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            egress(&name(policy), &format!("{policy:?}"), &addresses, "")
        });
        policies.collect()
    }

    /// Applies every policy, with its own or with its other addresses, and waits until each is ready in that
    /// generation.
    ///
    /// # Errors
    /// One does not become ready.
    pub fn put_policies(&self, edited: bool) -> anyhow::Result<()> {
        let names = || self.plan.policies().into_iter().map(name);
        let before: Vec<i64> = names().map(|name| self.ready_generation(&name)).collect();
        self.cluster.apply(&self.manifests(edited))?;
        for (name, before) in names().zip(before) {
            let what = format!("{name} to be ready as it is now");
            wait_for(&what, DEADLINE, || self.ready_generation(&name) > before)?;
        }
        Ok(())
    }

    /// Deletes every policy and waits until no node has one applied.
    ///
    /// # Errors
    /// One remains.
    pub fn take_policies(&self) -> anyhow::Result<()> {
        self.cluster.delete(&self.manifests(false))?;
        let is_gone = |policy: Policy| {
            let found = self
                .cluster
                .object("egress", Some("default"), &name(policy));
            found.is_none()
        };
        wait_for("policies to be gone from every node", DEADLINE, || {
            let programmed = self.plan.nodes.iter().any(|node| {
                let record = self.cluster.object("egressnode", None, &node.name);
                let record = record.unwrap_or_default();
                let list = record["status"]["programmed"].as_array();
                list.is_some_and(|list| !list.is_empty())
            });
            !programmed && self.plan.policies().into_iter().all(is_gone)
        })?;
        Ok(())
    }

    /// The generation of a policy whose status is Ready; 0 if it is not.
    fn ready_generation(&self, policy: &str) -> i64 {
        let object = self.cluster.object("egress", Some("default"), policy);
        let object = object.unwrap_or_default();
        let ready = condition(&object, "Ready").is_some_and(|found| found["status"] == "True");
        let seen = &object["status"]["observedGeneration"];
        let is_current = *seen == object["metadata"]["generation"];
        seen.as_i64()
            .filter(|_| ready && is_current)
            .unwrap_or_default()
    }

    fn addresses(&self, policy: Policy) -> impl Iterator<Item = IpAddr> {
        self.plan.addresses(policy, false).into_iter()
    }

    fn marks(&self, node: &NodePlan) -> anyhow::Result<String> {
        let layout = self.cluster.lab().layout()?;
        Ok(marks::table(node, |name| {
            let found = layout.pod("default", name);
            found.map_or(Vec::new(), |(_, pod)| pod.addresses.clone())
        }))
    }

    /// Servers that a pod reaches, with the expected source.
    pub fn covered(&self, pod: &PodPlan) -> Vec<(IpAddr, IpAddr)> {
        let pairs = self.addresses(pod.policy).map(|address| {
            let server = servers(pod.policy)[usize::from(address.is_ipv6())];
            (server, address)
        });
        pairs.collect()
    }

    /// Servers of the family without an address in the pod's policy.
    pub fn uncovered(&self, pod: &PodPlan) -> Vec<IpAddr> {
        let covered = self.covered(pod);
        let servers = servers(pod.policy).into_iter();
        let uncovered = servers.filter(|one| !covered.iter().any(|(server, _)| server == one));
        uncovered.collect()
    }

    /// Watches for packets whose source is not an address of their pod's policy.
    ///
    /// # Errors
    /// Nothing can be captured.
    pub fn watch(&self) -> anyhow::Result<Leaving> {
        self.watch_for(&[false])
    }

    /// As [`Self::watch`], with the addresses that [`LabPlan::addresses`] gives for these values.
    ///
    /// # Errors
    /// Nothing can be captured.
    pub fn watch_for(&self, edited: &[bool]) -> anyhow::Result<Leaving> {
        let mut right: BTreeSet<(IpAddr, IpAddr)> = BTreeSet::new();
        for policy in self.plan.policies() {
            let addresses = edited.iter();
            let addresses = addresses.flat_map(|edited| self.plan.addresses(policy, *edited));
            right.extend(addresses.map(|own| {
                let server = servers(policy)[usize::from(own.is_ipv6())];
                (own, server)
            }));
        }
        Leaving::watch(&self.cluster, move |packet| {
            !right.contains(&(packet.source, packet.destination))
        })
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

    /// Carries out the remedy of `ForwardBlocked` manually, and waits until the condition ends.
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

    /// Numbers of a pod's packets with and without the other component's bits after Egret's rules.
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

    /// Waits until every agent has applied its state, every policy is ready and every gateway is live.
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
    pub fn restart_agents(&self, load: &Traffic, in_order: bool) -> anyhow::Result<()> {
        let agents = self.plan.agents();
        for agent in &agents {
            match in_order {
                true => self.cluster.end_agent(agent)?,
                false => self.cluster.lab().kill(agent, Hurt::Agent)?,
            }
        }
        load.wait_turns()?;
        for agent in &agents {
            self.cluster.lab().start(agent)?;
        }
        self.settle()
    }

    /// Runs `nft flush ruleset` on every node, and then restores the rules of the other components.
    ///
    /// # Errors
    /// A rule is rejected.
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

    /// Unplugs these gateways for a moment.
    ///
    /// # Errors
    /// They do not come back.
    pub fn lose(&self, gateways: &[String], load: &Traffic) -> anyhow::Result<()> {
        for gateway in gateways {
            self.cluster.lab().kill(gateway, Hurt::Links)?;
        }
        load.wait_turns()?;
        for gateway in gateways {
            self.cluster.lab().start(gateway)?;
        }
        self.settle()
    }

    /// Clears our bits of the mark of all forwarded packets, on every node, until every pod has sent.
    ///
    /// # Errors
    /// A rule is rejected.
    pub fn clear_marks(&self, load: &Traffic) -> anyhow::Result<()> {
        let rules = "chain c { type filter hook prerouting priority -50; \
                     meta mark set meta mark & 0xff00ffff; }";
        let each = |line: &str| -> anyhow::Result<()> {
            for node in &self.plan.nodes {
                self.shell(&node.name, line)?;
            }
            Ok(())
        };
        each(&format!("nft 'table inet foreign {{ {rules}; }}'"))?;
        load.wait_turns()?;
        each("nft delete table inet foreign")
    }

    /// Traffic of every selected pod. With many pods, one per node sends all kinds of it; the others open new flows and
    /// a long one.
    ///
    /// # Errors
    /// A pod cannot be entered.
    pub fn traffic(&self) -> anyhow::Result<Traffic> {
        let mut traffic = Traffic::default();
        let is_crowded = self.plan.pods().count() > CROWD;
        for node in &self.plan.nodes {
            for (number, pod) in node.pods.iter().enumerate() {
                let (kinds, refused): (&[Kind], &[Kind]) = match is_crowded && number > 0 {
                    true => (&[Kind::Datagrams, Kind::LongUdp], &[Kind::Datagrams]),
                    false => (&Kind::ALL, &Kind::ALL),
                };
                let place = [self.cluster.pod(&pod.name)?];
                let covered = self.covered(pod).into_iter();
                let servers: Vec<IpAddr> = covered.map(|(server, _)| server).collect();
                let covered = Load::start_kinds(&place, &servers, kinds)?;
                traffic.covered.push(covered);
                let missing = self.uncovered(pod);
                let uncovered = Load::start_kinds(&place, &missing, refused)?;
                traffic.uncovered.push(uncovered);
            }
        }
        Ok(traffic)
    }

    /// Deletes the router's neighbour entry of an egress address, so that it must be resolved again.
    ///
    /// # Errors
    /// There was no entry, or it still exists.
    pub fn forget_neighbour(&self, address: IpAddr) -> anyhow::Result<()> {
        let known = self.neighbour(address)?;
        ensure!(!known.is_empty(), "the router did not know {address}");
        self.shell("router", &format!("ip neigh flush to {address}"))?;
        let left = self.neighbour(address)?;
        ensure!(left.is_empty(), "still there after the flush: {left}");
        Ok(())
    }

    /// The router's neighbour entry of an address, as text; empty if there is none.
    ///
    /// # Errors
    /// It cannot be queried.
    pub fn neighbour(&self, address: IpAddr) -> anyhow::Result<String> {
        let text = self.shell("router", &format!("ip neigh show to {address}"))?;
        let known = text.lines().filter(|line| line.contains("lladdr"));
        Ok(known.collect::<Vec<_>>().join("\n"))
    }

    /// Sends a datagram from a pod over IPv6; no answer is expected.
    ///
    /// # Errors
    /// The pod cannot be entered.
    pub fn send(&self, pod: &str) -> anyhow::Result<Place> {
        let place = self.cluster.pod(pod)?;
        place.run(|| {
            let socket = std::net::UdpSocket::bind("[::]:0")?;
            socket.send_to(b"x", echo(servers(Policy::Dual)[1]))
        })??;
        Ok(place)
    }

    /// Whether another gateway remains when one is lost.
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
    covered: Vec<Load>,
    uncovered: Vec<Load>,
}

impl Traffic {
    /// Waits until every pod has made another attempt.
    ///
    /// # Errors
    /// The traffic stalls.
    pub fn wait_turns(&self) -> anyhow::Result<()> {
        self.covered.iter().try_for_each(Load::wait_turns)
    }

    /// Waits until every kind of traffic is answered again.
    ///
    /// # Errors
    /// One gets no answer.
    pub fn wait_answers(&self) -> anyhow::Result<()> {
        self.covered.iter().try_for_each(Load::wait_answers)
    }

    /// Ends all traffic.
    ///
    /// # Errors
    /// There was none.
    pub fn stop(self) -> anyhow::Result<()> {
        ensure!(!self.covered.is_empty(), "there was no traffic");
        let all = self.covered.into_iter().chain(self.uncovered);
        all.for_each(Load::stop);
        Ok(())
    }
}
