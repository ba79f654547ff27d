//! `egret status`: the answer of an agent, or of the objects alone.

use super::cli_conditions::{self, ConditionView, NodeView};
use super::path_view::PathView;
use egret_core::condition::{ConditionType, Reason};
use egret_core::machines::GatewayLiveness;
use egret_core::model::{Finding, NodeName, NodeRecord, PortBlocks};
use egret_core::node::{IssueKind, NodeOutcome};
use egret_core::rendezvous::announcer;
use egret_objects::{ConditionStatus, View};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// `apiVersion` of everything that `-o json` prints.
pub const CLI_API_VERSION: &str = "egret.dev/cli/v1";

/// `egret status -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    #[cfg_attr(feature = "schema", schemars(extend("const" = CLI_API_VERSION)))]
    api_version: &'static str,
    #[cfg_attr(feature = "schema", schemars(extend("const" = "Status")))]
    kind: &'static str,
    /// Origin of the answer: an agent, or the objects alone.
    pub source: String,
    /// All policies.
    pub policies: Vec<PolicyView>,
    /// All egress addresses.
    pub addresses: Vec<AddressView>,
    /// All gateway nodes.
    pub gateways: Vec<GatewayView>,
    /// Paths that this node's agent measures; empty if the answer is from the objects alone.
    pub paths: Vec<PathView>,
    /// Nodes that are not ready or have limitations.
    pub nodes: Vec<NodeView>,
    /// Invalid objects and other faults, with their remedies.
    pub findings: Vec<FindingView>,
}

/// One policy of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyView {
    /// `Egress` or `ClusterEgress`.
    #[cfg_attr(feature = "schema", schemars(with = "egret_core::model::Kind"))]
    pub kind: String,
    /// Namespace of the policy; empty for `ClusterEgress`.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Whether every selected pod leaves by the policy's address.
    pub ready: bool,
    /// Egress addresses in use.
    pub addresses: Vec<IpAddr>,
    /// Numbers of selected and programmed pods.
    pub pods: Pods,
    /// Reason of `ready`, in one word.
    pub reason: String,
    /// Reason of `ready`, for people.
    pub message: String,
    /// Other conditions that hold.
    pub conditions: Vec<ConditionView>,
}

/// Numbers of a policy's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pods {
    /// Pods that the policy selects.
    pub selected: u32,
    /// Pods whose nodes have programmed the policy.
    pub programmed: u32,
}

/// One address of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AddressView {
    /// The egress address.
    pub address: IpAddr,
    /// The gateway that announces it.
    pub announcer: Option<String>,
    /// The node that its `EgressGateway` names to announce it, as `egret move` asks.
    pub moved_to: Option<String>,
    /// Leases of its ports.
    pub leases: Vec<LeaseView>,
    /// What nodes report about their ports of it.
    pub usage: Vec<PortUsageView>,
}

/// Report of one node about its ports of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortUsageView {
    /// Name of the node.
    pub node: String,
    /// Ports that it holds: it may open flows in them, or has flows.
    pub held: u32,
    /// Ports in use, in whole blocks.
    pub in_use: u32,
    /// Ports that it wants; `None`: its first grant has sufficed so far.
    pub wanted: Option<u32>,
}

/// One lease of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LeaseView {
    /// The worker that holds the lease.
    pub node: String,
    /// Port ranges, each as `first-last`.
    pub ranges: Vec<String>,
    /// State: Granted, Active, Draining, Vanished, Fenced or HoldDown.
    #[cfg_attr(feature = "schema", schemars(with = "egret_core::model::LeaseState"))]
    pub state: String,
    /// Steering version that includes the lease.
    pub epoch: u64,
}

/// One gateway of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayView {
    /// Name of the node.
    pub node: String,
    /// Whether it answers probes (asked of an agent), or its agent has reported (read from the objects).
    pub live: bool,
    /// Steering version of its tables.
    pub version: u64,
    /// Data path: `ebpf` or `nftables`.
    pub datapath: Option<String>,
    /// Reason of its condition `Draining`; `None`: nobody asks for a drain.
    pub drain: Option<String>,
}

/// One finding of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FindingView {
    /// Kind, namespace and name of the object.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// Value of the field.
    pub value: String,
    /// Instruction that repairs it.
    pub remedy: String,
}

impl FindingView {
    /// The finding as the command line shows it.
    pub fn of(finding: &Finding) -> Self {
        FindingView {
            object: finding.object.to_string(),
            field: finding.field.clone(),
            value: finding.value.clone(),
            remedy: finding.remedy.clone(),
        }
    }
}

impl Status {
    /// Status from the objects alone.
    pub fn of_objects(view: &View) -> Self {
        let gateways = view.gateways.values().flat_map(|gateway| &gateway.gateways);
        let mut by_node: BTreeMap<String, GatewayView> = BTreeMap::new();
        for member in gateways {
            let status = GatewayView {
                node: member.node.0.clone(),
                live: member.live,
                version: member.steering_version,
                datapath: member.datapath.clone(),
                drain: drain(view, &member.node),
            };
            by_node.insert(member.node.0.clone(), status);
        }
        Status {
            api_version: CLI_API_VERSION,
            kind: "Status",
            source: "objects (no agent was asked: live means that its agent has reported)".into(),
            policies: policies(view),
            addresses: addresses(view, &BTreeSet::new()),
            findings: view
                .findings
                .iter()
                .map(FindingView::of)
                .chain(without_uplink(view, by_node.keys()))
                .collect(),
            gateways: by_node.into_values().collect(),
            paths: Vec::new(),
            nodes: cli_conditions::of_nodes(view),
        }
    }

    /// Status from the objects, with the liveness of gateways from this node's probes.
    pub(crate) fn of_agent(
        view: &View,
        outcome: Option<&NodeOutcome>,
        seen: &GatewayLiveness,
    ) -> Self {
        let mut status = Self::of_objects(view);
        status.source = "agent".into();
        let nobody = BTreeSet::new();
        let silent = outcome.map_or(&nobody, |outcome| &outcome.silent);
        status.addresses = addresses(view, silent);
        let unreached = outcome.into_iter().flat_map(unreached);
        status.findings.extend(unreached);
        for gateway in &mut status.gateways {
            let name = egret_core::model::NodeName(gateway.node.clone());
            if seen.versions.contains_key(&name) || seen.settled {
                gateway.live = seen.live.contains(&name) || outcome_is_of(outcome, &gateway.node);
            }
            if let Some(version) = seen.versions.get(&name) {
                gateway.version = *version;
            }
        }
        let findings = outcome.into_iter().flat_map(|outcome| &outcome.findings);
        status.findings.extend(findings.map(FindingView::of));
        status
    }

    /// Whether every policy is ready, every gateway live, and there is no finding.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
            && self.policies.iter().all(|policy| policy.ready)
            && self.gateways.iter().all(|gateway| gateway.live)
    }
}

/// Whether the outcome is that of this node. A node does not probe itself; it counts as live while it has a gateway
/// state.
fn outcome_is_of(outcome: Option<&NodeOutcome>, node: &str) -> bool {
    outcome.is_some_and(|outcome| {
        let own = outcome.state.tunnel.index;
        outcome.state.gateway.is_some()
            && outcome.state.peers.values().all(|peer| peer.node != node)
            && !outcome.state.peers.contains_key(&own)
    })
}

fn policies(view: &View) -> Vec<PolicyView> {
    let one = |policy: &egret_core::model::Policy| {
        let status = view
            .policies
            .get(&policy.object)
            .cloned()
            .unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.kind == "Ready");
        let pods = Pods {
            selected: status.selected,
            programmed: status.programmed,
        };
        PolicyView {
            kind: format!("{:?}", policy.object.kind),
            namespace: policy.object.namespace.clone(),
            name: policy.object.name.clone(),
            ready: ready.is_some_and(|c| c.status == ConditionStatus::True)
                && status.observed_generation == policy.generation,
            conditions: cli_conditions::of_policy(&status.conditions),
            addresses: status.addresses,
            pods,
            reason: ready.map_or("NotPlannedYet".into(), |c| c.reason.clone()),
            message: ready.map_or("no controller has looked at it".into(), |c| {
                c.message.clone()
            }),
        }
    };
    view.snapshot.policies.iter().map(one).collect()
}

/// Gateway nodes that report that nothing behind their external link answers.
fn without_uplink<'a>(
    view: &'a View,
    nodes: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = FindingView> {
    let records = nodes.filter_map(|node| view.snapshot.node_records.get(&NodeName(node.clone())));
    let lost = records.filter(|record| record.uplink_lost);
    lost.map(|record| FindingView {
        object: format!("EgressNode/{}", record.node),
        field: "status.uplinkLost".into(),
        value: "true".into(),
        remedy: Reason::NoUplink.remedy().into(),
    })
}

/// Gateway groups of which no node answers this one.
fn unreached(outcome: &NodeOutcome) -> impl Iterator<Item = FindingView> {
    let kinds = [IssueKind::FailStatic, IssueKind::NoGateway];
    let issues = outcome.issues.iter();
    let all = issues.filter(move |issue| kinds.contains(&issue.kind));
    all.map(|issue| FindingView {
        object: format!("EgressGateway/{}", issue.subject),
        field: "spec.nodeSelector".into(),
        value: "no node of it answers this node's probes".into(),
        remedy: issue.text.clone(),
    })
}

/// `silent`: gateways that do not answer; their last reports do not count.
fn addresses(view: &View, silent: &BTreeSet<NodeName>) -> Vec<AddressView> {
    let lease = |lease: &egret_core::model::Lease| LeaseView {
        node: lease.node.0.clone(),
        ranges: lease.ranges.iter().map(ToString::to_string).collect(),
        state: format!("{:?}", lease.state),
        epoch: lease.epoch,
    };
    let gateway_of = |address: &IpAddr| {
        let record = view.snapshot.addresses.get(address)?;
        view.snapshot.gateways.get(&record.gateway)
    };
    let announcer = |address: &IpAddr| {
        let records = view.snapshot.node_records.values();
        let saying = records.filter(|record| record.announcing.contains(address));
        let nodes = saying.map(|record| &record.node);
        let live = nodes.filter(|node| !silent.contains(*node));
        announcer(gateway_of(address), *address, live).map(|node| node.0.clone())
    };
    let moved_to = |address: &IpAddr| {
        let named = gateway_of(address)?.announcers.get(address)?;
        Some(named.0.clone())
    };
    view.snapshot
        .addresses
        .values()
        .map(|record| AddressView {
            address: record.address,
            announcer: announcer(&record.address),
            moved_to: moved_to(&record.address),
            leases: record.leases.iter().map(lease).collect(),
            usage: usage(view, record.address),
        })
        .collect()
}

/// Reason of the condition `Draining` of a node.
fn drain(view: &View, node: &NodeName) -> Option<String> {
    let kind = ConditionType::Draining.to_string();
    let conditions = view.nodes.get(node)?.conditions.iter();
    let mut holds = conditions.filter(|one| one.status == ConditionStatus::True);
    let found = holds.find(|one| one.kind == kind)?;
    Some(found.reason.clone())
}

fn usage(view: &View, address: IpAddr) -> Vec<PortUsageView> {
    let records = view.snapshot.node_records.values();
    let one = |record: &NodeRecord| {
        let held = PortBlocks::of(record.held.get(&address).into_iter().flatten()).ports();
        let in_use = record.demand.get(&address).copied().unwrap_or(0);
        let wanted = record.wanted_ports.get(&address).copied();
        let some = held > 0 || in_use > 0 || wanted.is_some();
        some.then(|| PortUsageView {
            node: record.node.0.clone(),
            held,
            in_use,
            wanted,
        })
    };
    records.filter_map(one).collect()
}
