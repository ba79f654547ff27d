//! `EgressAddress` and `EgressNode`, both directions: records that Egret itself writes.

use super::field::{address, egress_address, number, port_ranges};
use super::{Check, Gaps, Reading, resource_version};
use crate::front_end;
use egret_api as api;
use egret_core::model::{
    AddressClaim, AddressRecord, Fenced, GatewayName, Grant, Kind, Lease, LeaseState, MacAddress,
    NoMacAddress, NodeName, NodeRecord, ObjectRef, PairedPod, PortRange, Programmed, Restored,
};
use egret_core::numbers::TUNNEL_INDEX_MAX;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Remedy for an unreadable part that only a node's agent writes.
const OURS: &str =
    "the node's agent writes this anew; if it stays, run one version of Egret everywhere";

/// Remedy for an unreadable part of an address's record that only the controller writes.
const KEEP: &str = "put the field back as it was, and do not delete the object: its ports would be given to others while \
                    connections use them";

/// Reads an `EgressAddress` as far as possible, with its readable leases. Without a valid address as its name there is
/// no record, since Egret never creates such an object.
pub fn address_record(object: &api::EgressAddress) -> Reading<AddressRecord> {
    let mut check = Check::new(Kind::EgressAddress, &object.metadata);
    let spec = &object.spec;
    let named = api::address_of_object_name(&check.object.name);
    let Some(address) = named else {
        let remedy = "remove this object: Egret names such objects after their address";
        check.bad("metadata.name", check.object.name.clone(), remedy);
        return Reading {
            record: None,
            gaps: Gaps::default(),
            findings: check.into_findings(),
        };
    };
    let stated = egress_address(&spec.address);
    let stated = stated.and_then(|stated| match stated == address {
        true => Ok(stated),
        false => Err(format!("the object's name says {address}; {KEEP}")),
    });
    check.take("spec.address", &spec.address, stated);
    let epoch = epoch(&mut check, "spec.epoch", spec.epoch);
    let leases = spec.leases.iter().enumerate();
    let leases = leases.filter_map(|(index, lease)| {
        self::lease(&mut check, &format!("spec.leases[{index}]"), lease)
    });
    let record = AddressRecord {
        address,
        gateway: GatewayName(spec.gateway.clone()),
        leases: leases.collect(),
        epoch: epoch.unwrap_or(0),
        term: self::epoch(&mut check, "spec.term", spec.term).unwrap_or(0),
        restored: spec.restored.as_ref().and_then(|restored| {
            Some(Restored {
                epoch: self::epoch(&mut check, "spec.restored.epoch", restored.epoch)?,
                since_secs: restored.since.0.as_second(),
            })
        }),
        resource_version: resource_version(&object.metadata),
    };
    let mut findings = check.into_findings();
    for finding in &mut findings {
        if !finding.remedy.contains(KEEP) {
            finding.remedy = format!("{}; {KEEP}", finding.remedy);
        }
    }
    let gaps = Gaps {
        spec: !findings.is_empty(),
        demand: false,
    };
    Reading {
        record: Some(record),
        gaps,
        findings,
    }
}

fn lease(check: &mut Check, field: &str, lease: &api::AddressLease) -> Option<Lease> {
    Some(Lease {
        node: NodeName(lease.node.clone()),
        ranges: port_ranges(check, &format!("{field}.ranges"), &lease.ranges)?,
        epoch: epoch(check, &format!("{field}.epoch"), lease.epoch)?,
        withdrawn: match lease.withdrawn_epoch {
            Some(withdrawn) => Some(epoch(check, &format!("{field}.withdrawnEpoch"), withdrawn)?),
            None => None,
        },
        state: match lease.state {
            api::LeaseStateName::Granted => LeaseState::Granted,
            api::LeaseStateName::Active => LeaseState::Active,
            api::LeaseStateName::Draining => LeaseState::Draining,
            api::LeaseStateName::Vanished => LeaseState::Vanished,
            api::LeaseStateName::Fenced => LeaseState::Fenced,
            api::LeaseStateName::HoldDown => LeaseState::HoldDown,
        },
        since_secs: lease.since.0.as_second(),
    })
}

fn epoch(check: &mut Check, field: &str, value: i64) -> Option<u64> {
    number(check, field, value, 0, i64::MAX)
}

/// The spec that represents the record.
pub fn address_spec(record: &AddressRecord) -> api::EgressAddressSpec {
    api::EgressAddressSpec {
        address: record.address.to_string(),
        gateway: record.gateway.0.clone(),
        epoch: api_number(record.epoch),
        term: api_number(record.term),
        restored: record.restored.map(|restored| api::AddressRestored {
            epoch: api_number(restored.epoch),
            since: time(restored.since_secs),
        }),
        leases: record
            .leases
            .iter()
            .map(|lease| api::AddressLease {
                node: lease.node.0.clone(),
                ranges: range_texts(&lease.ranges),
                epoch: api_number(lease.epoch),
                withdrawn_epoch: lease.withdrawn.map(api_number),
                state: match lease.state {
                    LeaseState::Granted => api::LeaseStateName::Granted,
                    LeaseState::Active => api::LeaseStateName::Active,
                    LeaseState::Draining => api::LeaseStateName::Draining,
                    LeaseState::Vanished => api::LeaseStateName::Vanished,
                    LeaseState::Fenced => api::LeaseStateName::Fenced,
                    LeaseState::HoldDown => api::LeaseStateName::HoldDown,
                },
                since: time(lease.since_secs),
            })
            .collect(),
    }
}

/// Reads an `EgressNode` as far as possible. Unreadable parts of the agent's report count as absent; without a readable
/// tunnel index there is no record.
pub fn node_record(object: &api::EgressNode) -> Reading<NodeRecord> {
    let mut check = Check::new(Kind::EgressNode, &object.metadata);
    let index: Option<u16> = number(
        &mut check,
        "spec.tunnelIndex",
        object.spec.tunnel_index.into(),
        1,
        TUNNEL_INDEX_MAX.into(),
    );
    let grants = grants_of(&mut check, "spec.grants", &object.spec.grants);
    let draining = grants_of(&mut check, "spec.draining", &object.spec.draining);
    let resting = grants_of(&mut check, "spec.resting", &object.spec.resting);
    let grants_epoch = epoch(&mut check, "spec.grantsEpoch", object.spec.grants_epoch);
    let mut reported = Check::new(Kind::EgressNode, &object.metadata);
    let mut demand_gap = false;
    let status = object.status.clone().unwrap_or_default();
    let record = (|| {
        let check = &mut reported;
        Some(NodeRecord {
            node: NodeName(check.object.name.clone()),
            tunnel_index: index?,
            grants,
            draining,
            resting,
            fenced: object.spec.fenced.as_ref().map(|fenced| Fenced {
                reason: fenced.reason.clone(),
                since_secs: fenced.since.0.as_second(),
            }),
            grants_epoch: grants_epoch.unwrap_or(0),
            pod_prefixes: networks(check, "spec.podPrefixes", &object.spec.pod_prefixes)?,
            device_addresses: networks(
                check,
                "spec.deviceAddresses",
                &object.spec.device_addresses,
            )?,
            underlay_addresses: addresses(
                check,
                "status.underlayAddresses",
                &status.underlay_addresses,
            )?,
            external_addresses: networks(
                check,
                "status.externalAddresses",
                &status.external_addresses,
            )?,
            next_hops: addresses(check, "status.nextHops", &status.next_hops)?
                .into_iter()
                .collect(),
            uplink_lost: status.uplink_lost,
            steering_version: epoch(check, "status.steeringVersion", status.steering_version)
                .unwrap_or(0),
            announcing: addresses(check, "status.announcing", &status.announcing)?
                .into_iter()
                .collect(),
            acknowledged: epoch(check, "status.acknowledgedEpoch", status.acknowledged_epoch)
                .unwrap_or(0),
            held: held(check, &status.held, &mut demand_gap),
            wanted_ports: wanted_ports(check, &status.demand),
            demand: status
                .demand
                .iter()
                .enumerate()
                .filter_map(|(index, demand)| {
                    let field = format!("status.demand[{index}]");
                    let text = &demand.address;
                    let address = check.take(format!("{field}.address"), text, address(text))?;
                    let ports = number(check, &format!("{field}.ports"), demand.ports, 0, 1 << 31);
                    Some((address, ports.unwrap_or(0)))
                })
                .collect(),
            full_destinations: full_destinations(check, &status.demand)?,
            paired: paired(check, &status.paired),
            programmed: programmed(check, &status.programmed)?,
            datapath: status
                .datapath
                .map(|datapath| datapath_text(datapath).to_owned()),
            capabilities: capabilities(&status).iter().cloned().collect(),
            node_addresses: networks(check, "status.nodeAddresses", &status.node_addresses)?,
            routers: addresses(check, "status.routers", &status.routers)?
                .into_iter()
                .collect(),
            external_mac: status
                .external_mac
                .as_ref()
                .and_then(|text| mac(check, "status.externalMac", text)),
            conflicts: conflicts(check, &status.conflicts),
            newer_tables: newer_tables(check, &status.newer_tables),
            resource_version: resource_version(&object.metadata),
        })
    })();
    let mut findings = check.into_findings();
    let gaps = Gaps {
        spec: !findings.is_empty(),
        demand: demand_gap,
    };
    for finding in &mut findings {
        finding.remedy = format!("{}; {RESTORE}", finding.remedy);
    }
    findings.extend(reported.into_findings());
    Reading {
        record,
        gaps,
        findings,
    }
}

/// Remedy for the controller's part of a node's record.
const RESTORE: &str =
    "put the field back as it was: until then the node keeps what it has and gets nothing new";

fn mac(check: &mut Check, field: &str, text: &str) -> Option<MacAddress> {
    let read = text
        .parse()
        .map_err(|error: NoMacAddress| error.to_string());
    check.take(field, text, read)
}

fn newer_tables(check: &mut Check, all: &[api::NewerTable]) -> BTreeMap<IpAddr, u64> {
    let read = all.iter().enumerate().filter_map(|(index, one)| {
        let field = format!("status.newerTables[{index}]");
        let text = &one.address;
        let address = check.take(format!("{field}.address"), text, address(text))?;
        Some((address, epoch(check, &format!("{field}.epoch"), one.epoch)?))
    });
    read.collect()
}

fn conflicts(check: &mut Check, all: &[api::AddressConflict]) -> BTreeMap<IpAddr, AddressClaim> {
    all.iter()
        .enumerate()
        .filter_map(|(index, one)| {
            let field = format!("status.conflicts[{index}]");
            let text = &one.address;
            let address = check.take(format!("{field}.address"), text, address(text))?;
            let mac = mac(check, &format!("{field}.mac"), &one.mac)?;
            let since_secs = one.since.0.as_second();
            Some((address, AddressClaim { mac, since_secs }))
        })
        .collect()
}

/// Held ranges by address. `gap`: set if some cannot be read, so that it is unknown what the node holds.
fn held(
    check: &mut Check,
    all: &[api::HeldPorts],
    gap: &mut bool,
) -> BTreeMap<IpAddr, Vec<PortRange>> {
    let mut held = BTreeMap::new();
    for (index, one) in all.iter().enumerate() {
        let field = format!("status.held[{index}]");
        let text = &one.address;
        let address = check.take(format!("{field}.address"), text, address(text));
        let ranges = port_ranges(check, &format!("{field}.ranges"), &one.ranges);
        match (address, ranges) {
            (Some(address), Some(ranges)) => drop(held.insert(address, ranges)),
            _ => *gap = true,
        }
    }
    held
}

fn wanted_ports(check: &mut Check, demand: &[api::PortDemand]) -> BTreeMap<IpAddr, u32> {
    let mut all = BTreeMap::new();
    for (index, one) in demand.iter().enumerate() {
        let field = format!("status.demand[{index}].wantedPorts");
        let wanted: Option<u32> = number(check, &field, one.wanted_ports.into(), 0, 64_512);
        let wanted = wanted.unwrap_or(0);
        if let (true, Ok(address)) = (wanted > 0, one.address.parse()) {
            all.insert(address, wanted);
        }
    }
    all
}

fn full_destinations(
    check: &mut Check,
    demand: &[api::PortDemand],
) -> Option<BTreeMap<IpAddr, u32>> {
    let mut all = BTreeMap::new();
    for (index, one) in demand.iter().enumerate() {
        let field = format!("status.demand[{index}].fullDestinations");
        let full: Option<u32> = number(check, &field, one.full_destinations.into(), 0, 1 << 31);
        let full = full.unwrap_or(0);
        if let (true, Ok(address)) = (full > 0, one.address.parse()) {
            all.insert(address, full);
        }
    }
    Some(all)
}

/// The readable grants of a list.
fn grants_of(check: &mut Check, field: &str, grants: &[api::NodeGrant]) -> Vec<Grant> {
    let grants = grants.iter().enumerate();
    let read =
        grants.filter_map(|(index, grant)| self::grant(check, &format!("{field}[{index}]"), grant));
    read.collect()
}

fn grant(check: &mut Check, field: &str, grant: &api::NodeGrant) -> Option<Grant> {
    let text = &grant.address;
    Some(Grant {
        address: check.take(format!("{field}.address"), text, egress_address(text))?,
        gateway: GatewayName(grant.gateway.clone()),
        ranges: port_ranges(check, &format!("{field}.ranges"), &grant.ranges)?,
        epoch: epoch(check, &format!("{field}.epoch"), grant.epoch)?,
    })
}

/// The readable addresses of a list.
fn addresses(check: &mut Check, field: &str, texts: &[String]) -> Option<Vec<IpAddr>> {
    let texts = texts.iter().enumerate();
    let read = texts.filter_map(|(index, text)| {
        let parsed = address(text).map_err(|_| OURS.to_owned());
        check.take(format!("{field}[{index}]"), text, parsed)
    });
    Some(read.collect())
}

/// The readable prefixes of a list.
fn networks(check: &mut Check, field: &str, texts: &[String]) -> Option<BTreeSet<IpNet>> {
    let network = |text: &String| text.parse::<IpNet>().map_err(|_| OURS.to_owned());
    let texts = texts.iter().enumerate();
    let read = texts
        .filter_map(|(index, text)| check.take(format!("{field}[{index}]"), text, network(text)));
    Some(read.collect())
}

fn programmed(check: &mut Check, all: &[api::ProgrammedPolicy]) -> Option<Vec<Programmed>> {
    let all = all.iter().enumerate();
    let read = all.filter_map(|(index, one)| {
        let field = format!("status.programmed[{index}]");
        let policy = policy_ref(&one.policy).ok_or_else(|| OURS.to_owned());
        Some(Programmed {
            policy: check.take(format!("{field}.policy"), &one.policy, policy)?,
            generation: one.generation,
            pods: number(check, &format!("{field}.pods"), one.pods.into(), 0, 1 << 31)?,
        })
    });
    Some(read.collect())
}

fn paired(check: &mut Check, all: &[api::PairedPods]) -> BTreeSet<PairedPod> {
    let mut paired = BTreeSet::new();
    for (index, one) in all.iter().enumerate() {
        let field = format!("status.paired[{index}]");
        let policy = policy_ref(&one.policy).ok_or_else(|| OURS.to_owned());
        let policy = check.take(format!("{field}.policy"), &one.policy, policy);
        let text = &one.address;
        let address = check.take(format!("{field}.address"), text, address(text));
        if let (Some(policy), Some(address)) = (policy, address) {
            paired.extend(one.pods.iter().map(|pod| PairedPod {
                policy: policy.clone(),
                pod: pod.clone(),
                address,
            }));
        }
    }
    paired
}

fn api_paired(all: &BTreeSet<PairedPod>) -> Vec<api::PairedPods> {
    let mut by_address: BTreeMap<(&ObjectRef, IpAddr), Vec<String>> = BTreeMap::new();
    for one in all {
        let pods = by_address.entry((&one.policy, one.address)).or_default();
        pods.push(one.pod.clone());
    }
    let all = by_address.into_iter();
    all.map(|((policy, address), pods)| api::PairedPods {
        policy: policy_text(policy),
        address: address.to_string(),
        pods,
    })
    .collect()
}

/// `Egress/namespace/name` or `ClusterEgress/name`; the kinds of front-ends as [`Kind`] has them.
pub fn policy_text(policy: &ObjectRef) -> String {
    if policy.namespace.is_empty() {
        format!("{:?}/{}", policy.kind, policy.name)
    } else {
        format!("{:?}/{}/{}", policy.kind, policy.namespace, policy.name)
    }
}

/// Inverse of [`policy_text`].
fn policy_ref(text: &str) -> Option<ObjectRef> {
    let parts: Vec<&str> = text.split('/').collect();
    let (kind, namespace, name) = match parts[..] {
        ["Egress", namespace, name] => (Kind::Egress, namespace, name),
        ["ClusterEgress", name] => (Kind::ClusterEgress, "", name),
        [kind, namespace, name] => {
            let mut known = front_end::KINDS.iter();
            let known = known.find(|known| format!("{:?}", known.kind) == kind)?;
            (known.kind, namespace, name)
        }
        _ => return None,
    };
    Some(ObjectRef {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// The controller's part of an `EgressNode`.
pub fn node_spec(record: &NodeRecord) -> api::EgressNodeSpec {
    api::EgressNodeSpec {
        tunnel_index: record.tunnel_index.into(),
        grants: node_grants(&record.grants),
        draining: node_grants(&record.draining),
        resting: node_grants(&record.resting),
        fenced: record.fenced.as_ref().map(|fenced| api::NodeFence {
            reason: fenced.reason.clone(),
            since: time(fenced.since_secs),
        }),
        grants_epoch: api_number(record.grants_epoch),
        pod_prefixes: record.pod_prefixes.iter().map(IpNet::to_string).collect(),
        device_addresses: record
            .device_addresses
            .iter()
            .map(IpNet::to_string)
            .collect(),
    }
}

fn node_grants(grants: &[Grant]) -> Vec<api::NodeGrant> {
    let grants = grants.iter().map(|grant| api::NodeGrant {
        address: grant.address.to_string(),
        gateway: grant.gateway.0.clone(),
        ranges: range_texts(&grant.ranges),
        epoch: api_number(grant.epoch),
    });
    grants.collect()
}

/// The agent's part of an `EgressNode`, as far as the record contains it.
pub fn node_status(record: &NodeRecord) -> api::NodeStatus {
    api::NodeStatus {
        underlay_addresses: record
            .underlay_addresses
            .iter()
            .map(IpAddr::to_string)
            .collect(),
        external_addresses: record
            .external_addresses
            .iter()
            .map(IpNet::to_string)
            .collect(),
        external_mac: record.external_mac.map(|mac| mac.to_string()),
        node_addresses: record.node_addresses.iter().map(IpNet::to_string).collect(),
        routers: record.routers.iter().map(IpAddr::to_string).collect(),
        newer_tables: record
            .newer_tables
            .iter()
            .map(|(address, epoch)| api::NewerTable {
                address: address.to_string(),
                epoch: api_number(*epoch),
            })
            .collect(),
        conflicts: record
            .conflicts
            .iter()
            .map(|(address, claim)| api::AddressConflict {
                address: address.to_string(),
                mac: claim.mac.to_string(),
                since: time(claim.since_secs),
            })
            .collect(),
        next_hops: record.next_hops.iter().map(IpAddr::to_string).collect(),
        uplink_lost: record.uplink_lost,
        steering_version: api_number(record.steering_version),
        announcing: record.announcing.iter().map(IpAddr::to_string).collect(),
        acknowledged_epoch: api_number(record.acknowledged),
        held: record
            .held
            .iter()
            .map(|(address, ranges)| api::HeldPorts {
                address: address.to_string(),
                ranges: range_texts(ranges),
            })
            .collect(),
        demand: record
            .demand
            .iter()
            .map(|(address, ports)| api::PortDemand {
                address: address.to_string(),
                ports: (*ports).into(),
                wanted_ports: record
                    .wanted_ports
                    .get(address)
                    .map_or(0, |wanted| i32::try_from(*wanted).unwrap_or(i32::MAX)),
                full_destinations: record
                    .full_destinations
                    .get(address)
                    .map_or(0, |full| i32::try_from(*full).unwrap_or(i32::MAX)),
            })
            .collect(),
        paired: api_paired(&record.paired),
        programmed: record
            .programmed
            .iter()
            .map(|one| api::ProgrammedPolicy {
                policy: policy_text(&one.policy),
                generation: one.generation,
                pods: i32::try_from(one.pods).unwrap_or(i32::MAX),
            })
            .collect(),
        datapath: record.datapath.as_deref().and_then(datapath_name),
        capabilities: record.capabilities.iter().cloned().collect(),
        ..api::NodeStatus::default()
    }
}

/// Capabilities of a node's kernel and agent; agents of the previous release report them in `abilities`.
pub(super) fn capabilities(status: &api::NodeStatus) -> &[String] {
    match status.capabilities.is_empty() {
        true => &status.abilities,
        false => &status.capabilities,
    }
}

pub(super) fn datapath_text(name: api::DatapathName) -> &'static str {
    match name {
        api::DatapathName::Ebpf => "ebpf",
        api::DatapathName::Nftables => "nftables",
    }
}

pub(super) fn datapath_name(text: &str) -> Option<api::DatapathName> {
    match text {
        "ebpf" => Some(api::DatapathName::Ebpf),
        "nftables" => Some(api::DatapathName::Nftables),
        _ => None,
    }
}

fn range_texts(ranges: &[PortRange]) -> Vec<String> {
    ranges.iter().map(PortRange::to_string).collect()
}

/// Kubernetes has signed numbers only; epochs never get near their limit.
pub(super) fn api_number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Seconds since the Unix epoch, as the API's time.
/// Seconds since the Unix epoch, as RFC 3339 writes them.
pub fn time_text(secs: i64) -> String {
    time(secs).0.to_string()
}

pub(super) fn time(secs: i64) -> Time {
    Time(Timestamp::from_second(secs).unwrap_or(Timestamp::UNIX_EPOCH))
}
