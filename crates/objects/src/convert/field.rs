//! Parsers of single fields. Errors are remedies: sentences with the correct form.

use super::Check;
use egret_api as api;
use egret_core::model::{LabelSelector, Labels, PortRange, Quotas, Requirement};
use egret_core::numbers::{BLOCK_PORTS, LEASE_PORT_FIRST, LEASE_PORTS_ALL};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// Longest name of an object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// Whether this is a valid object name; a valid one is also safe as part of a file name.
pub(crate) fn is_object_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    (1..=NAME_MAX).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-' || *b == b'.')
}

/// An address in canonical notation.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let parsed: IpAddr = text.parse().map_err(|_| {
        if text.contains('/') {
            "write one address without a prefix length, for example 192.168.122.222".to_owned()
        } else {
            "write an IPv4 address such as 192.168.122.222 or an IPv6 address such as fd00::1"
                .to_owned()
        }
    })?;
    match parsed {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(format!(
            "write the IPv4 address itself: {}",
            v6.to_ipv4_mapped()
                .expect("the guard just saw that it is one")
        )),
        other => Ok(other),
    }
}

/// A unicast address that is usable as a packet's source on a network.
pub(crate) fn egress_address(text: &str) -> Result<IpAddr, String> {
    let parsed = address(text)?;
    let what = match parsed {
        _ if parsed.is_unspecified() => "the unspecified address",
        _ if parsed.is_loopback() => "a loopback address",
        _ if parsed.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "an address of the network 0.0.0.0/8",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return Ok(parsed),
    };
    Err(format!(
        "{what} cannot be a source address outside a node; choose a unicast address"
    ))
}

/// A prefix without host bits.
pub(crate) fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => format!("write a prefix; for this one address: {v4}/32"),
        Ok(IpAddr::V6(v6)) => format!("write a prefix; for this one address: {v6}/128"),
        Err(_) => "write a prefix such as 203.0.113.0/24 or 2001:db8::/32".to_owned(),
    })?;
    if let IpNet::V6(v6) = parsed
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err("write the prefix as IPv4, not as IPv4-mapped IPv6".to_owned());
    }
    // The prefix parser reads 010 as 10; others read it as octal.
    let canonical = text.split_once('/').is_some_and(|(address, length)| {
        address.parse::<IpAddr>().is_ok() && length == parsed.prefix_len().to_string()
    });
    if !canonical {
        return Err(format!(
            "leave leading zeros out, which some programs read as octal: write {parsed}, if that is meant"
        ));
    }
    if parsed.trunc() != parsed {
        return Err(format!(
            "bits behind the prefix length are set; write {} for the network, or {}/{} for the one address",
            parsed.trunc(),
            parsed.addr(),
            parsed.max_prefix_len()
        ));
    }
    Ok(parsed)
}

/// A range of source ports in whole blocks, for example `1024-1279`.
pub(super) fn port_range(text: &str) -> Result<PortRange, String> {
    let remedy = || {
        format!(
            "write whole blocks of {BLOCK_PORTS} ports from {LEASE_PORT_FIRST} on, such as 1024-1279"
        )
    };
    let (first, last) = text.split_once('-').ok_or_else(remedy)?;
    let first: u16 = first.parse().map_err(|_| remedy())?;
    let last: u16 = last.parse().map_err(|_| remedy())?;
    let whole = first.is_multiple_of(BLOCK_PORTS)
        && (u32::from(last) + 1).is_multiple_of(BLOCK_PORTS.into());
    if first < LEASE_PORT_FIRST || first > last || !whole {
        return Err(remedy());
    }
    Ok(PortRange { first, last })
}

/// Parses ranges; the result is sorted and disjoint.
pub(super) fn port_ranges(
    check: &mut Check,
    field: &str,
    texts: &[String],
) -> Option<Vec<PortRange>> {
    let mut ranges = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        ranges.push(check.take(format!("{field}[{index}]"), text, port_range(text))?);
    }
    ranges.sort();
    if ranges.windows(2).any(|pair| pair[0].last >= pair[1].first) {
        check.bad(
            field,
            texts.join(", "),
            "write each port once: these ranges overlap",
        );
        return None;
    }
    Some(ranges)
}

/// A number of the API, converted to the model's type.
pub(super) fn number<T: TryFrom<i64>>(
    check: &mut Check,
    field: &str,
    value: i64,
    first: i64,
    last: i64,
) -> Option<T> {
    let parsed = (first..=last)
        .contains(&value)
        .then(|| T::try_from(value).ok())
        .flatten();
    if parsed.is_none() {
        let remedy = if last == i64::MAX {
            format!("write a number of at least {first}")
        } else {
            format!("write a number from {first} to {last}")
        };
        check.bad(field, value, remedy);
    }
    parsed
}

/// Quotas of a gateway or a pool.
pub(super) fn quotas(
    check: &mut Check,
    field: &str,
    spec: Option<&api::QuotaSpec>,
) -> Option<Quotas> {
    let spec = spec.copied().unwrap_or_default();
    let mut one = |name: &str, value: Option<i32>| -> Option<Option<NonZeroU32>> {
        let Some(value) = value else {
            return Some(None);
        };
        let ports = number::<u32>(
            check,
            &format!("{field}.{name}"),
            value.into(),
            1,
            LEASE_PORTS_ALL.into(),
        )?;
        Some(NonZeroU32::new(ports))
    };
    let (pod, namespace) = (
        one("perPod", spec.per_pod),
        one("perNamespace", spec.per_namespace),
    );
    Some(Quotas {
        pod: pod?,
        namespace: namespace?,
    })
}

/// A name that an object can have (RFC 1123 subdomain).
pub(crate) fn object_name(text: &str) -> Result<String, String> {
    if is_object_name(text) {
        Ok(text.to_owned())
    } else {
        Err("write the name of an object: lower case letters, digits, '-' and '.'".to_owned())
    }
}

/// `matchLabels` alone, the KEP's plain form.
pub(super) fn labels_selector(labels: &Labels) -> LabelSelector {
    let one = |(key, value): (&String, &String)| {
        Requirement::In(key.clone(), BTreeSet::from([value.clone()]))
    };
    LabelSelector(labels.iter().map(one).collect())
}

/// A full label selector.
pub(super) fn selector(
    check: &mut Check,
    field: &str,
    selector: &meta::LabelSelector,
) -> Option<LabelSelector> {
    let mut all = labels_selector(&selector.match_labels.clone().unwrap_or_default());
    let mut good = true;
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        match requirement(expression) {
            Ok(requirement) => all.0.push(requirement),
            Err((name, value, remedy)) => {
                check.bad(
                    format!("{field}.matchExpressions[{index}].{name}"),
                    value,
                    remedy,
                );
                good = false;
            }
        }
    }
    good.then_some(all)
}

/// One expression, or its invalid field with value and remedy.
fn requirement(
    expression: &meta::LabelSelectorRequirement,
) -> Result<Requirement, (&'static str, String, &'static str)> {
    let key = expression.key.clone();
    if key.is_empty() {
        return Err(("key", key, "write the key of a label"));
    }
    let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
    let listed = || values.iter().cloned().collect::<Vec<_>>().join(", ");
    match (expression.operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
        ("In" | "NotIn", true) => Err((
            "values",
            String::new(),
            "list at least one value for In and NotIn",
        )),
        ("Exists", true) => Ok(Requirement::Exists(key)),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key)),
        ("Exists" | "DoesNotExist", false) => Err((
            "values",
            listed(),
            "leave values out: Exists and DoesNotExist take none",
        )),
        (other, _) => Err((
            "operator",
            other.to_owned(),
            "write In, NotIn, Exists or DoesNotExist",
        )),
    }
}
