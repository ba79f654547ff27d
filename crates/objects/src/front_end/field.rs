//! Fields of foreign objects, read leniently: earlier systems had no schema, so that a number may be a string.

use crate::convert::field as strict;
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// What a field says, for people.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A text that is not empty; `Ok(None)`: the field is absent, null or empty.
pub(super) fn text(value: &Value) -> Result<Option<&str>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => Ok(Some(text.trim())),
        _ => Err("put the value in quotes: it must be a string".to_owned()),
    }
}

/// A text that must be there.
pub(super) fn required<'v>(value: &'v Value, example: &str) -> Result<&'v str, String> {
    text(value)?.ok_or_else(|| format!("add this field, for example {example}"))
}

/// An egress address.
pub(super) fn egress_address(value: &Value) -> Result<IpAddr, String> {
    strict::egress_address(required(value, "192.168.122.222")?)
}

/// A prefix, or one address, which iptables and ip-route take for a prefix too.
pub(super) fn prefix(value: &Value) -> Result<IpNet, String> {
    let text = required(value, "203.0.113.0/24")?;
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => strict::prefix(text),
    }
}

/// The name of an object.
pub(super) fn object_name(value: &Value, example: &str) -> Result<String, String> {
    strict::object_name(required(value, example)?)
}

/// A number, also where it is written as a string; `Ok(None)`: absent.
pub(super) fn number(value: &Value) -> Result<Option<i64>, String> {
    let bad = || "write a whole number".to_owned();
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => text.trim().parse().map(Some).map_err(|_| bad()),
        other => other.as_i64().map(Some).ok_or_else(bad),
    }
}
