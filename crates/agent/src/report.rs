//! What is told about this node and cluster: metrics, the node's status, and `egret status`.

mod obstacles;

use crate::board::Board;
use crate::canary::Shown;
use crate::facts::Links;
use crate::gateway::Gateway;
use crate::metrics::{ByAddress, ByGateway, ByGatewayAndFamily, ByReason, Metrics};
use crate::probe::Seen;
use crate::surroundings::{Routers, Surroundings};
use crate::told::{self, ConditionTold, NodeTold};
use crate::uplink::Uplink;
use egret_core::condition::{Condition as Said, ConditionType, Reason};
use egret_core::machines::Destination;
use egret_core::model::{Finding, NodeName, NodeRecord};
use egret_core::node::{CANARY_ABILITY, ForeignMark, NodeOutcome, PodsPath, ReportKind};
use egret_core::numbers::MARK_MASK;
use egret_core::obstacle::Obstacle;
use egret_core::rendezvous::announcer;
use egret_datapath::driver::RefusedProtocol;
use egret_objects::{Condition, ConditionStatus, NodeReport, View};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::source::Status as NodeStatus;

/// `apiVersion` of everything that `-o json` prints.
pub const CLI_API_VERSION: &str = "egret.dev/cli/v1";

/// `egret status -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Status {
    #[cfg_attr(feature = "schema", schemars(extend("const" = CLI_API_VERSION)))]
    api_version: &'static str,
    #[cfg_attr(feature = "schema", schemars(extend("const" = "Status")))]
    kind: &'static str,
    /// Where the answer comes from: an agent, or the objects alone.
    pub source: String,
    /// Every policy.
    pub policies: Vec<PolicyStatus>,
    /// Every egress address.
    pub addresses: Vec<AddressStatus>,
    /// Every gateway node.
    pub gateways: Vec<GatewayStatus>,
    /// Nodes that are not as they should be, or work with less than was promised.
    pub nodes: Vec<NodeTold>,
    /// What is to be mended.
    pub findings: Vec<FindingStatus>,
}

/// One policy of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyStatus {
    /// `Egress` or `ClusterEgress`.
    #[cfg_attr(feature = "schema", schemars(with = "egret_core::model::Kind"))]
    pub kind: String,
    /// Empty for `ClusterEgress`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Every selected pod leaves by its address.
    pub ready: bool,
    /// Addresses in use.
    pub addresses: Vec<IpAddr>,
    /// Pods selected and programmed.
    pub pods: Pods,
    /// Why it is or is not ready.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// What else holds and limits what it does.
    pub conditions: Vec<ConditionTold>,
}

/// Pods of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pods {
    /// Selected.
    pub selected: u32,
    /// Programmed.
    pub programmed: u32,
}

/// One address of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AddressStatus {
    /// The address.
    pub address: IpAddr,
    /// The gateway that answers for it.
    pub announcer: Option<String>,
    /// Who may use which ports.
    pub leases: Vec<LeaseStatus>,
}

/// One lease of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LeaseStatus {
    /// The worker.
    pub node: String,
    /// `first-last`.
    pub ranges: Vec<String>,
    /// Granted, Active, Draining or HoldDown.
    #[cfg_attr(feature = "schema", schemars(with = "egret_core::model::LeaseState"))]
    pub state: String,
    /// The steering version that includes it.
    pub epoch: u64,
}

/// One gateway of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GatewayStatus {
    /// The node.
    pub node: String,
    /// It answers probes (asked of an agent), or its agent has reported (read from the objects).
    pub live: bool,
    /// Its steering version.
    pub version: u64,
    /// `ebpf` or `nftables`.
    pub datapath: Option<String>,
}

/// One finding of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FindingStatus {
    /// Kind, namespace and name.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// What it says.
    pub value: String,
    /// What would be right.
    pub remedy: String,
}

impl FindingStatus {
    /// The same in words of the command line.
    pub fn of(finding: &Finding) -> Self {
        FindingStatus {
            object: finding.object.to_string(),
            field: finding.field.clone(),
            value: finding.value.clone(),
            remedy: finding.remedy.clone(),
        }
    }
}

impl Status {
    /// From the objects alone.
    pub fn of_objects(view: &View) -> Self {
        let gateways = view.gateways.values().flat_map(|gateway| &gateway.gateways);
        let mut by_node: BTreeMap<String, GatewayStatus> = BTreeMap::new();
        for member in gateways {
            let status = GatewayStatus {
                node: member.node.0.clone(),
                live: member.live,
                version: member.steering_version,
                datapath: member.datapath.clone(),
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
                .map(FindingStatus::of)
                .chain(without_way_out(view, by_node.keys()))
                .collect(),
            gateways: by_node.into_values().collect(),
            nodes: told::of_nodes(view),
        }
    }

    /// The same, with what this node's probes say of the gateways.
    pub(crate) fn of_agent(view: &View, outcome: Option<&NodeOutcome>, seen: &Seen) -> Self {
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
        status.findings.extend(findings.map(FindingStatus::of));
        status
    }

    /// Everything is as it should be.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
            && self.policies.iter().all(|policy| policy.ready)
            && self.gateways.iter().all(|gateway| gateway.live)
    }
}

/// A node does not probe itself; it answers for itself as long as it has a gateway state.
fn outcome_is_of(outcome: Option<&NodeOutcome>, node: &str) -> bool {
    outcome.is_some_and(|outcome| {
        let own = outcome.state.tunnel.index;
        outcome.state.gateway.is_some()
            && outcome.state.peers.values().all(|peer| peer.node != node)
            && !outcome.state.peers.contains_key(&own)
    })
}

fn policies(view: &View) -> Vec<PolicyStatus> {
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
        PolicyStatus {
            kind: format!("{:?}", policy.object.kind),
            namespace: policy.object.namespace.clone(),
            name: policy.object.name.clone(),
            ready: ready.is_some_and(|c| c.status == ConditionStatus::True)
                && status.observed_generation == policy.generation,
            conditions: told::of_policy(&status.conditions),
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

/// Gateway nodes that say that nothing behind their external link answers.
fn without_way_out<'a>(
    view: &'a View,
    nodes: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = FindingStatus> {
    let records = nodes.filter_map(|node| view.snapshot.node_records.get(&NodeName(node.clone())));
    let lost = records.filter(|record| record.uplink_lost);
    lost.map(|record| FindingStatus {
        object: format!("EgressNode/{}", record.node),
        field: "status.uplinkLost".into(),
        value: "true".into(),
        remedy: Reason::NoUplink.remedy().into(),
    })
}

/// Gateways of which no node answers this one.
fn unreached(outcome: &NodeOutcome) -> impl Iterator<Item = FindingStatus> {
    let kinds = [ReportKind::FailStatic, ReportKind::NoGateway];
    let reports = outcome.reports.iter();
    let all = reports.filter(move |report| kinds.contains(&report.kind));
    all.map(|report| FindingStatus {
        object: format!("EgressGateway/{}", report.subject),
        field: "spec.nodeSelector".into(),
        value: "no node of it answers this node's probes".into(),
        remedy: report.text.clone(),
    })
}

/// `silent`: gateways that do not answer; what they said last counts no more.
fn addresses(view: &View, silent: &BTreeSet<NodeName>) -> Vec<AddressStatus> {
    let lease = |lease: &egret_core::model::Lease| LeaseStatus {
        node: lease.node.0.clone(),
        ranges: lease.ranges.iter().map(ToString::to_string).collect(),
        state: format!("{:?}", lease.state),
        epoch: lease.epoch,
    };
    let announcer = |address: &IpAddr| {
        let records = view.snapshot.node_records.values();
        let saying = records.filter(|record| record.announcing.contains(address));
        let nodes = saying.map(|record| &record.node);
        let live = nodes.filter(|node| !silent.contains(*node));
        announcer(*address, live).map(|node| node.0.clone())
    };
    view.snapshot
        .addresses
        .values()
        .map(|record| AddressStatus {
            address: record.address,
            announcer: announcer(&record.address),
            leases: record.leases.iter().map(lease).collect(),
        })
        .collect()
}

pub(crate) fn metrics(
    board: &Board,
    outcome: Option<&NodeOutcome>,
    seen: &Seen,
    counters: &BTreeMap<String, u64>,
    (ports, full): (&BTreeMap<IpAddr, u32>, &BTreeSet<Destination>),
) {
    board.with(|metrics| {
        metrics.full_destinations.clear();
        for (address, count) in full_destinations(full) {
            let label = ByAddress {
                address: address.to_string(),
            };
            let gauge = metrics.full_destinations.get_or_create(&label);
            gauge.set(i64::from(count));
        }
        for (reason, packets) in counters {
            let label = ByReason {
                reason: reason.clone(),
            };
            metrics.worker_packets.get_or_create(&label).set(*packets);
        }
        metrics.gateway_live.clear();
        for gateway in seen.versions.keys().chain(&seen.live) {
            let label = ByGateway {
                gateway: gateway.0.clone(),
            };
            let live = i64::from(seen.live.contains(gateway));
            metrics.gateway_live.get_or_create(&label).set(live);
        }
        metrics.ports_in_use.clear();
        for (address, used) in ports {
            let label = ByAddress {
                address: address.to_string(),
            };
            metrics
                .ports_in_use
                .get_or_create(&label)
                .set(i64::from(*used));
        }
        let Some(outcome) = outcome else { return };
        metrics.selected_pods.set(selected_pods(outcome) as i64);
        metrics.findings.set(outcome.findings.len() as i64);
        metrics.ports_leased.clear();
        for target in outcome.state.worker.targets.values() {
            let label = ByAddress {
                address: target.address.to_string(),
            };
            let ports = target
                .ranges
                .iter()
                .map(|r| i64::from(r.last) - i64::from(r.first) + 1);
            metrics.ports_leased.get_or_create(&label).set(ports.sum());
        }
    });
}

fn selected_pods(outcome: &NodeOutcome) -> usize {
    let worker = &outcome.state.worker;
    let canaries = worker.canary.as_ref().map_or(0, |c| c.sources.len());
    worker.pods.len() - canaries
}

pub(crate) fn gateway_metrics(metrics: &mut Metrics, gateway: &mut Gateway) {
    for (reason, packets) in gateway.counters() {
        let label = ByReason {
            reason: reason.into(),
        };
        metrics.gateway_packets.get_or_create(&label).set(packets);
    }
    metrics.announcing.set(gateway.announcing().len() as i64);
    metrics.steering_version.set(gateway.version());
}

/// One figure for each path that canaries have measured.
pub(crate) fn canary_metrics(metrics: &mut Metrics, shown: &Shown) {
    metrics.path_broken.clear();
    for path in &shown.paths {
        let v6 = path.egress.is_ipv6();
        let label = ByGatewayAndFamily {
            gateway: path.group.gateway.0.clone(),
            family: if v6 { "IPv6" } else { "IPv4" }.into(),
        };
        let mut broken = shown.broken.iter();
        let broken = broken.any(|one| one.group == path.group && one.v6 == v6);
        let gauge = metrics.path_broken.get_or_create(&label);
        gauge.set(gauge.get().max(i64::from(broken)));
    }
}

pub(crate) fn uplink_metrics(metrics: &mut Metrics, uplink: &Uplink) {
    for (reason, packets) in uplink.counters() {
        let label = ByReason {
            reason: reason.into(),
        };
        metrics.uplink_packets.get_or_create(&label).set(packets);
    }
}

fn full_destinations(full: &BTreeSet<Destination>) -> BTreeMap<IpAddr, u32> {
    let mut counts = BTreeMap::new();
    for one in full {
        *counts.entry(one.egress).or_default() += 1;
    }
    counts
}

/// What the agent sees at its node and only tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenHere {
    /// What pods tried lately by protocols without ports.
    pub refused: BTreeSet<RefusedProtocol>,
    /// Policy routing rules of others that look at bits of our mark.
    pub foreign_marks: BTreeSet<ForeignMark>,
}

/// How many of a list a message names.
const NAMED_MAX: usize = 5;

fn and_more(all: usize) -> String {
    match all.saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

/// Names the first few.
fn refused_text(refused: &BTreeSet<RefusedProtocol>) -> String {
    let name = |one: &RefusedProtocol| {
        let protocol = match one.protocol {
            47 => "GRE".to_owned(),
            50 => "ESP".to_owned(),
            51 => "AH".to_owned(),
            other => format!("protocol {other}"),
        };
        format!("{protocol} from {} to {}", one.pod, one.destination)
    };
    let named: Vec<String> = refused.iter().take(NAMED_MAX).map(name).collect();
    let more = and_more(refused.len());
    format!("refused, having no ports: {}{more}", named.join(", "))
}

/// Names the first few.
fn full_text(full: &BTreeSet<Destination>) -> String {
    let name = |one: &Destination| {
        let protocol = match one.protocol {
            6 => "TCP".to_owned(),
            17 => "UDP".to_owned(),
            132 => "SCTP".to_owned(),
            other => other.to_string(),
        };
        let to = SocketAddr::new(one.address, one.port);
        format!("{protocol} {to} by {}", one.egress)
    };
    let named: Vec<String> = full.iter().take(NAMED_MAX).map(name).collect();
    let more = and_more(full.len());
    format!("new flows are refused towards {}{more}", named.join(", "))
}

/// This node's status. Without an outcome nothing is reported as programmed.
pub(crate) fn status(
    record: &NodeRecord,
    view: &View,
    outcome: Option<&NodeOutcome>,
    gateway: &Gateway,
    (links, routers): (Option<&Links>, &Routers),
    (ports, full, seen_here): (&BTreeMap<IpAddr, u32>, &BTreeSet<Destination>, &SeenHere),
    (trouble, obstacles): (Option<&str>, &[Obstacle]),
) -> NodeStatus {
    let node = view.snapshot.nodes.get(&record.node);
    let mut demand = ports.clone();
    for address in outcome.into_iter().flat_map(|outcome| &outcome.granted) {
        demand.entry(*address).or_default();
    }
    let is_gateway = outcome.is_some_and(|outcome| outcome.state.gateway.is_some());
    let can = abilities(outcome, gateway);
    let addresses = links.map(|links| &links.device_addresses);
    let around = Surroundings::of(record, &view.snapshot, outcome, addresses, routers);
    let record = NodeRecord {
        abilities: can.iter().cloned().collect(),
        underlay_addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
        external_addresses: links
            .filter(|_| is_gateway)
            .map(|links| links.external_addresses.clone())
            .unwrap_or_default(),
        next_hops: outcome
            .filter(|_| gateway.is_loaded())
            .map(carried)
            .unwrap_or_default(),
        uplink_lost: is_gateway && gateway.standing.uplink_lost(),
        steering_version: gateway.version(),
        announcing: gateway.announcing(),
        // Without an outcome the controller must not conclude that anything is drained.
        demand: if outcome.is_some() {
            demand
        } else {
            record.demand.clone()
        },
        full_destinations: full_destinations(full),
        programmed: outcome
            .map(|outcome| outcome.programmed.clone())
            .unwrap_or_default(),
        datapath: gateway.datapath().filter(|_| is_gateway),
        node_addresses: around.node_addresses,
        routers: around.routers,
        // Others must know it for as long as they may hear it.
        external_mac: gateway
            .external_mac()
            .or(record.external_mac.filter(|_| is_gateway)),
        conflicts: gateway.claims().clone(),
        ..record.clone()
    };
    let report = NodeReport {
        tunnel_mac: Some(mac_text(egret_wire::tunnel_mac(record.tunnel_index))),
        external_interface: links
            .and_then(|links| links.external.as_ref())
            .map(|(device, ..)| device.name.clone()),
        abilities: can,
        conditions: conditions(
            outcome,
            gateway,
            trouble,
            obstacles,
            (full, seen_here, around.left_out),
        ),
    };
    NodeStatus { record, report }
}

/// Next hops that other nodes may send packets for.
fn carried(outcome: &NodeOutcome) -> BTreeSet<IpAddr> {
    let served = outcome
        .state
        .gateway
        .iter()
        .flat_map(|g| g.next_hops.values());
    let worker = &outcome.state.worker;
    served
        .filter_map(|number| Some(worker.next_hops.get(number)?.address))
        .collect()
}

/// What carries packets here, and how those of pods leave: through netfilter, or lifted at the uplinks.
fn abilities(outcome: Option<&NodeOutcome>, gateway: &Gateway) -> Vec<String> {
    let ebpf = gateway.lacks().is_none().then_some("ebpf");
    let path = outcome.and_then(|outcome| match outcome.pods_path {
        PodsPath::Netfilter => Some("cni-path-netfilter"),
        PodsPath::Bpf => Some("cni-path-bpf"),
        PodsPath::Unsupported(_) => None,
    });
    // The nftables fallback does not turn canaries round.
    let canary = ebpf.filter(|_| gateway.is_loaded()).map(|_| CANARY_ABILITY);
    let all = ["nftables"]
        .into_iter()
        .chain(ebpf)
        .chain(path)
        .chain(canary);
    all.map(str::to_owned).collect()
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Ways whose canaries do not come back, under the reason of the first.
fn path_broken<'a>(
    reports: impl Iterator<Item = &'a egret_core::node::NodeReport>,
    obstacles: &[Obstacle],
) -> Option<Condition> {
    let broken: Vec<_> = reports
        .filter(|report| matches!(report.kind, ReportKind::PathBroken(_)))
        .collect();
    let reason = broken.first()?.kind.reason();
    let lines = broken
        .iter()
        .map(|report| format!("{}: {}", report.subject, report.text));
    // What is known by name on this node has its remedy in the text.
    let known = obstacles.iter().filter(|obstacle| obstacle.certain);
    let known = known.map(|obstacle| format!("known here: {}", obstacle.told()));
    let text: Vec<String> = lines.chain(known.take(NAMED_MAX)).collect();
    let said = Said::new(ConditionType::PathBroken, true, reason, text.join("; "));
    Some(Condition::from(&said))
}

fn conditions(
    outcome: Option<&NodeOutcome>,
    gateway: &Gateway,
    trouble: Option<&str>,
    obstacles: &[Obstacle],
    (full, seen_here, left_out): (&BTreeSet<Destination>, &SeenHere, usize),
) -> Vec<Condition> {
    let trouble = trouble.or(gateway.trouble.as_deref());
    let holds = |kind, reason, text: String| Condition::from(&Said::new(kind, true, reason, text));
    let mut conditions = vec![match trouble {
        None => holds(
            ConditionType::Ready,
            Reason::Programmed,
            "the kernel is as wanted".into(),
        ),
        Some(text) => {
            let (kind, reason) = (ConditionType::Ready, Reason::NotProgrammed);
            Condition::from(&Said::new(kind, false, reason, text))
        }
    }];
    if !full.is_empty() {
        conditions.push(holds(
            ConditionType::PortsExhausted,
            Reason::DestinationFull,
            full_text(full),
        ));
    }
    let machines = gateway.claims().iter();
    let machines = machines.map(|(address, claim)| format!("{claim} answers for {address}"));
    let machines: Vec<String> = machines.collect();
    if !machines.is_empty() {
        let (kind, reason) = (ConditionType::AddressConflict, Reason::ForeignMachine);
        conditions.push(holds(kind, reason, machines.join("; ")));
    }
    conditions.extend(obstacles::condition(obstacles));
    if let Some(PodsPath::Unsupported(text)) = outcome.map(|outcome| &outcome.pods_path) {
        let (kind, reason) = (ConditionType::Unsupported, Reason::UnknownPath);
        conditions.push(holds(kind, reason, text.clone()));
    }
    let mut by_reason: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    if let Some(text) = gateway.lacks() {
        by_reason.insert(Reason::NftablesDatapath, vec![text]);
    }
    for (reason, text) in gateway.standing.reports() {
        by_reason.entry(reason).or_default().push(text);
    }
    if left_out > 0 {
        let text = format!(
            "{left_out} addresses of devices and routers are not reported, beyond the limits"
        );
        by_reason.entry(Reason::Limit).or_default().push(text);
    }
    if !seen_here.refused.is_empty() {
        let text = refused_text(&seen_here.refused);
        by_reason.insert(Reason::ProtocolRefused, vec![text]);
    }
    for rule in &seen_here.foreign_marks {
        let ForeignMark {
            priority,
            mark,
            mask,
        } = rule;
        let text = format!(
            "the rule of priority {priority} looks for mark {mark:#x}/{mask:#x}, and {MARK_MASK:#010x} is Egret's"
        );
        by_reason.entry(Reason::MarkOverlap).or_default().push(text);
    }
    let reports = || outcome.into_iter().flat_map(|outcome| &outcome.reports);
    conditions.extend(path_broken(reports(), obstacles));
    let is_path =
        |report: &&egret_core::node::NodeReport| matches!(report.kind, ReportKind::PathBroken(_));
    for report in reports().filter(|report| !is_path(report)) {
        let line = format!("{}: {}", report.subject, report.text);
        by_reason
            .entry(report.kind.reason())
            .or_default()
            .push(line);
    }
    if let Some(reason) = by_reason.keys().next().copied() {
        let text: Vec<String> = by_reason.into_values().flatten().collect();
        conditions.push(holds(ConditionType::Degraded, reason, text.join("; ")));
    }
    conditions
}
