//! `EgressPool` to [`Pool`].

use super::Check;
use super::field::{egress_address, object_name, prefix, quotas, selector};
use super::policy::gateway_name;
use egret_api as api;
use egret_core::model::{Finding, Kind, Namespaces, Pool, PoolName};
use std::net::IpAddr;

/// An `EgressPool`. Its ranges come out sorted and disjoint.
pub fn pool(object: &api::EgressPool) -> Result<Pool, Vec<Finding>> {
    let mut check = Check::new(Kind::EgressPool, &object.metadata);
    let parsed = parse(&mut check, object.metadata.generation, &object.spec);
    check.finish(parsed)
}

fn parse(check: &mut Check, generation: Option<i64>, spec: &api::EgressPoolSpec) -> Option<Pool> {
    let ranges = ranges(check, spec);
    let gateway = gateway_name(check, &spec.gateway);
    let namespaces = namespaces(check, &spec.namespaces);
    let quotas = quotas(check, "spec.quota", spec.quota.as_ref());
    Some(Pool {
        name: PoolName(check.object.name.clone()),
        generation: generation.unwrap_or(0),
        ranges,
        gateway: gateway?,
        namespaces: namespaces?,
        allow_node_address: spec.allow_node_address,
        quotas: quotas?,
    })
}

fn ranges(check: &mut Check, spec: &api::EgressPoolSpec) -> Vec<(IpAddr, IpAddr)> {
    if spec.cidrs.is_empty() && spec.ranges.is_empty() {
        check.bad(
            "spec.cidrs",
            "",
            "say which addresses: cidrs, ranges or both",
        );
    }
    let mut all = Vec::new();
    for (index, text) in spec.cidrs.iter().enumerate() {
        let field = format!("spec.cidrs[{index}]");
        let Some(cidr) = check.take(&field, text, prefix(text)) else {
            continue;
        };
        if let Err(remedy) = egress_address(&cidr.addr().to_string()) {
            check.bad(field, text, remedy);
        }
        all.push((cidr.network(), cidr.broadcast()));
    }
    for (index, range) in spec.ranges.iter().enumerate() {
        let field = format!("spec.ranges[{index}]");
        let start = check.take(
            format!("{field}.start"),
            &range.start,
            egress_address(&range.start),
        );
        let end = check.take(
            format!("{field}.end"),
            &range.end,
            egress_address(&range.end),
        );
        let (Some(start), Some(end)) = (start, end) else {
            continue;
        };
        if start.is_ipv4() != end.is_ipv4() {
            check.bad(
                format!("{field}.end"),
                end,
                "write start and end of one family",
            );
        } else if end < start {
            check.bad(
                format!("{field}.end"),
                end,
                format!("write an address from {start} on"),
            );
        }
        all.push((start, end));
    }
    merge(all)
}

/// Sorts the ranges and merges overlapping ones, so that no address counts twice.
fn merge(mut ranges: Vec<(IpAddr, IpAddr)>) -> Vec<(IpAddr, IpAddr)> {
    ranges.sort();
    let mut merged: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if last.1.is_ipv4() == start.is_ipv4() && start <= last.1 => {
                last.1 = last.1.max(end);
            }
            _ => merged.push((start, end)),
        }
    }
    merged
}

fn namespaces(check: &mut Check, spec: &api::PoolNamespaces) -> Option<Namespaces> {
    match (spec.all, &spec.names, &spec.selector) {
        (true, None, None) => Some(Namespaces::All),
        (false, Some(names), None) => {
            let mut good = true;
            for (index, name) in names.iter().enumerate() {
                let field = format!("spec.namespaces.names[{index}]");
                good &= check.take(field, name, object_name(name)).is_some();
            }
            good.then(|| Namespaces::Names(names.iter().cloned().collect()))
        }
        (false, None, Some(labels)) => Some(Namespaces::Labels(selector(
            check,
            "spec.namespaces.selector",
            labels,
        )?)),
        _ => {
            let remedy = "say which namespaces: exactly one of all: true, names and selector";
            check.bad("spec.namespaces", "", remedy);
            None
        }
    }
}
