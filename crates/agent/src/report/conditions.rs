//! The conditions of this node.

use super::naming::{NAMED_MAX, and_more};
use super::obstacles;
use super::quotas;
use super::status_inputs::StatusInputs;
use egret_core::condition::{Condition as Said, ConditionType, Reason};
use egret_core::machines::Destination;
use egret_core::model::DrainCause;
use egret_core::node::{ForeignMark, IssueKind, NodeIssue, PodForwarding};
use egret_core::numbers::{MARK_MASK, STATUS_PROGRAMMED_MAX};
use egret_core::obstacle::Obstacle;
use egret_datapath::worker::driver::RefusedProtocol;
use egret_objects::Condition;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Names the first [`NAMED_MAX`].
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

/// Names the first [`NAMED_MAX`].
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

/// Condition for paths whose canaries do not come back, with the reason of the first.
fn path_broken<'a>(
    issues: impl Iterator<Item = &'a NodeIssue>,
    obstacles: &[Obstacle],
) -> Option<Condition> {
    let broken: Vec<_> = issues
        .filter(|issue| matches!(issue.kind, IssueKind::PathBroken(_)))
        .collect();
    let reason = broken.first()?.kind.reason();
    let lines = broken
        .iter()
        .map(|issue| format!("{}: {}", issue.subject, issue.text));
    // Known obstacles on this node: their text contains the remedy.
    let known = obstacles.iter().filter(|obstacle| obstacle.certain);
    let known = known.map(|obstacle| format!("known here: {}", obstacle.told()));
    let text: Vec<String> = lines.chain(known.take(NAMED_MAX)).collect();
    let said = Said::new(ConditionType::PathBroken, true, reason, text.join("; "));
    Some(Condition::from(&said))
}

/// How far the drain of this gateway is, and who asks for it.
fn draining(inputs: &StatusInputs<'_>) -> Option<Condition> {
    let report = inputs.gateway.drain.as_ref()?;
    let node = inputs.snapshot.nodes.get(&inputs.record.node);
    let cause = match node.map(|node| node.maintenance.drain) {
        Some(Some(DrainCause::Requested)) => "annotation egret.dev/drain",
        Some(Some(DrainCause::Cordoned)) => "the node is cordoned",
        Some(Some(DrainCause::Deleted)) | None => "its Node object is being deleted",
        Some(None) => "no EgressGateway selects it any more",
    };
    let text = format!("{cause}: {}", report.text());
    let said = Said::new(ConditionType::Draining, true, report.reason(), text);
    Some(Condition::from(&said))
}

/// Numbers of entries that the status does not name, beyond the limits of its lists.
pub(super) struct LeftOut {
    /// Device addresses and routers.
    pub(super) addresses: usize,
    /// Programmed policies.
    pub(super) policies: usize,
}

impl LeftOut {
    fn text(&self) -> Option<String> {
        let LeftOut {
            addresses,
            policies,
        } = self;
        let addresses = (*addresses > 0).then(|| {
            format!(
                "{addresses} addresses of devices and routers are not reported, beyond the limits"
            )
        });
        let policies = (*policies > 0).then(|| {
            format!(
                "{policies} policies with pods here are not reported, beyond {STATUS_PROGRAMMED_MAX}: they are in the \
                 kernel and do not become Ready; select pods by fewer policies"
            )
        });
        let texts: Vec<String> = addresses.into_iter().chain(policies).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// All conditions that hold on this node.
pub(super) fn conditions(inputs: &StatusInputs<'_>, left_out: LeftOut) -> Vec<Condition> {
    let StatusInputs {
        outcome,
        gateway,
        full,
        findings,
        obstacles,
        ..
    } = *inputs;
    let last_error = inputs.last_error.or(gateway.last_error.as_deref());
    let holds = |kind, reason, text: String| Condition::from(&Said::new(kind, true, reason, text));
    let mut conditions = vec![match last_error {
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
    let node = inputs.snapshot.nodes.get(&inputs.record.node);
    if let Some(reason) = node.and_then(|node| node.maintenance.fence.clone()) {
        let kind = ConditionType::Fenced;
        conditions.push(holds(kind, Reason::FencedByOperator, reason));
    }
    if !full.is_empty() {
        conditions.push(holds(
            ConditionType::PortsExhausted,
            Reason::DestinationFull,
            full_text(full),
        ));
    }
    conditions.extend(quotas::condition(inputs));
    let machines = gateway.claims.iter();
    let machines = machines.map(|(address, claim)| format!("{claim} answers for {address}"));
    let machines: Vec<String> = machines.collect();
    if !machines.is_empty() {
        let (kind, reason) = (ConditionType::AddressConflict, Reason::ForeignMachine);
        conditions.push(holds(kind, reason, machines.join("; ")));
    }
    conditions.extend(draining(inputs));
    conditions.extend(obstacles::condition(obstacles));
    if let Some(PodForwarding::Unsupported(text)) = outcome.map(|outcome| &outcome.pod_forwarding) {
        let (kind, reason) = (ConditionType::Unsupported, Reason::UnknownPath);
        conditions.push(holds(kind, reason, text.clone()));
    }
    let mut by_reason: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    if let Some(text) = &gateway.limitations {
        by_reason.insert(Reason::NftablesDatapath, vec![text.clone()]);
    }
    for (reason, text) in &gateway.degraded {
        by_reason.entry(*reason).or_default().push(text.clone());
    }
    if let Some(text) = left_out.text() {
        by_reason.entry(Reason::Limit).or_default().push(text);
    }
    if !findings.refused.is_empty() {
        let text = refused_text(&findings.refused);
        by_reason.insert(Reason::ProtocolRefused, vec![text]);
    }
    if findings.ipvs_dropped {
        let text = "packets of selected pods to a Service with an endpoint outside the cluster are dropped, because IPVS \
                    sends them past the gateways: run kube-proxy in mode iptables or nftables, or let these pods use the \
                    endpoint's own address";
        by_reason.insert(Reason::IpvsService, vec![text.to_owned()]);
    }
    if findings.ignores_quotas {
        let text =
            "the kernel cannot count connections (CONFIG_NFT_CONNLIMIT): no quota is enforced";
        by_reason.insert(Reason::QuotaIgnored, vec![text.to_owned()]);
    }
    for rule in &findings.foreign_marks {
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
    let issues = || outcome.into_iter().flat_map(|outcome| &outcome.issues);
    conditions.extend(path_broken(issues(), obstacles));
    let is_path = |issue: &&NodeIssue| matches!(issue.kind, IssueKind::PathBroken(_));
    for issue in issues().filter(|issue| !is_path(issue)) {
        let line = format!("{}: {}", issue.subject, issue.text);
        by_reason.entry(issue.kind.reason()).or_default().push(line);
    }
    if let Some(reason) = by_reason.keys().next().copied() {
        let text: Vec<String> = by_reason.into_values().flatten().collect();
        conditions.push(holds(ConditionType::Degraded, reason, text.join("; ")));
    }
    conditions
}
