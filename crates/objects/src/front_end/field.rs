//! Fields of foreign objects, read tolerantly: earlier systems had no schema, so a number may be a string.

use crate::convert::field as strict;
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// Value of a field, for people.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A non-empty text; `Ok(None)`: the field is absent, null or empty.
pub(super) fn text(value: &Value) -> Result<Option<&str>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => Ok(Some(text.trim())),
        _ => Err("put the value in quotes: it must be a string".to_owned()),
    }
}

/// A required text.
pub(super) fn required<'v>(value: &'v Value, example: &str) -> Result<&'v str, String> {
    text(value)?.ok_or_else(|| format!("add this field, for example {example}"))
}

/// An egress address.
pub(super) fn egress_address(value: &Value) -> Result<IpAddr, String> {
    strict::egress_address(required(value, "192.168.122.222")?)
}

/// Prefixes as iptables accepts them: one, or several separated by commas. A single address is a prefix, too, and a
/// length may be a netmask.
pub(super) fn prefixes(value: &Value) -> Result<Vec<IpNet>, String> {
    let text = required(value, "203.0.113.0/24")?;
    text.split(',').map(|one| prefix(one.trim())).collect()
}

fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let parts = text.split_once('/');
    let parts = parts.map(|(address, mask)| (address.parse::<IpAddr>(), mask.parse::<IpAddr>()));
    match parts {
        Some((Ok(address), Ok(mask))) if address.is_ipv4() == mask.is_ipv4() => {
            match IpNet::with_netmask(address, mask) {
                Ok(net) => strict::prefix(&net.to_string()),
                Err(_) => Err(format!(
                    "{mask} is no netmask of {address}: write a length, such as /24"
                )),
            }
        }
        _ => strict::prefix(text),
    }
}

/// The name of an object.
pub(super) fn object_name(value: &Value, example: &str) -> Result<String, String> {
    strict::object_name(required(value, example)?)
}

/// A number, possibly written as a string; `Ok(None)`: absent.
pub(super) fn number(value: &Value) -> Result<Option<i64>, String> {
    let bad = || "write a whole number".to_owned();
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => text.trim().parse().map(Some).map_err(|_| bad()),
        other => other.as_i64().map(Some).ok_or_else(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prefixes_are_what_iptables_takes() {
        let read = |text: &str| -> Result<Vec<String>, String> {
            let nets = prefixes(&json!(text))?;
            Ok(nets.iter().map(ToString::to_string).collect())
        };
        for (text, wanted) in [
            ("203.0.113.0/24", &["203.0.113.0/24"][..]),
            ("203.0.113.9", &["203.0.113.9/32"]),
            ("10.244.0.0/255.255.0.0", &["10.244.0.0/16"]),
            (
                "10.244.0.0/16,10.245.0.0/16",
                &["10.244.0.0/16", "10.245.0.0/16"],
            ),
            ("2001:db8::/32, 10.0.0.1", &["2001:db8::/32", "10.0.0.1/32"]),
        ] {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            assert_eq!(read(text), Ok(wanted), "{text}");
        }
        for bad in [
            "10.0.0.0/255.0.255.0",
            "10.0.0.0/8,",
            "10.0.0.0/33",
            "10.0.0.0/ffff::",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
