//! The table as a value.

use super::expression::{Rule, address_bytes};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Type numbers by which the `nft` program prints sets (its `enum datatypes`); the kernel does not look at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum SetType {
    Ipv4 = 7,
    Ipv6 = 8,
    Ethernet = 9,
    Protocol = 12,
    Port = 13,
    InterfaceName = 41,
}

impl SetType {
    /// Bytes of a value, before padding to 32 bits.
    pub fn bytes(self) -> u32 {
        match self {
            SetType::Ipv4 => 4,
            SetType::Ipv6 => 16,
            SetType::Ethernet => 6,
            SetType::Protocol => 1,
            SetType::Port => 2,
            SetType::InterfaceName => 16,
        }
    }
}

/// Key of an element: the bytes of its fields, each padded to 32 bits, and for interval sets the last key too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementKey {
    /// First (or only) key.
    pub first: Vec<u8>,
    /// Last key, inclusive; the same as `first` in sets without intervals.
    pub last: Vec<u8>,
}

impl ElementKey {
    /// A single key out of its fields.
    pub fn single(fields: &[&[u8]]) -> Self {
        let key = padded(fields);
        ElementKey {
            first: key.clone(),
            last: key,
        }
    }

    /// A range, field by field.
    pub fn range(first: &[&[u8]], last: &[&[u8]]) -> Self {
        ElementKey {
            first: padded(first),
            last: padded(last),
        }
    }

    /// A single address.
    pub fn address(address: IpAddr) -> Self {
        Self::single(&[&address_bytes(address)])
    }

    /// An interface name.
    pub fn interface(name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        Self::single(&[&bytes])
    }
}

fn padded(fields: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for field in fields {
        key.extend_from_slice(field);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

/// What an element holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is in the set.
    Member,
    /// A verdict (see [`super::Expression::Verdict`]).
    Verdict(i32, Option<String>),
}

/// One element, for sets that packets or flows fill while the table lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Key.
    pub key: ElementKey,
    /// Seconds after which the kernel forgets it.
    pub timeout_secs: u64,
}

/// A set or verdict map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Fields of the key.
    pub key: Vec<SetType>,
    /// Elements are ranges.
    pub interval: bool,
    /// Elements hold verdicts.
    pub verdicts: bool,
    /// Elements are added at run time with a timeout, at most this many. `None`: fixed content.
    pub runtime_max: Option<u32>,
    /// Content (empty for run-time sets).
    pub elements: BTreeMap<ElementKey, Value>,
}

impl Set {
    /// An empty set.
    pub fn new(key: &[SetType]) -> Self {
        Set {
            key: key.to_vec(),
            interval: false,
            verdicts: false,
            runtime_max: None,
            elements: BTreeMap::new(),
        }
    }

    /// The same set, without its content: what cannot change while it lives.
    pub(super) fn same_shape(&self, other: &Set) -> bool {
        (&self.key, self.interval, self.verdicts, self.runtime_max)
            == (
                &other.key,
                other.interval,
                other.verdicts,
                other.runtime_max,
            )
    }
}

/// Family of a table (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TableFamily {
    /// IPv4 and IPv6 at the hooks of the stack.
    Inet = 1,
    /// At a device, before the stack.
    Netdev = 5,
}

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `NF_INET_*` (of a device: 0 ingress): 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Priority.
    pub priority: i32,
    /// Chain type `nat` instead of `filter`.
    pub nat: bool,
    /// Device of a chain of family `netdev`, padded with zeros.
    pub device: Option<[u8; 16]>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Base chains only.
    pub hook: Option<Hook>,
    /// Rules in their order.
    pub rules: Vec<Rule>,
}

/// The whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Named counters.
    pub counters: Vec<&'static str>,
    /// Tunnel objects by name: the other end of the tunnel.
    pub tunnels: BTreeMap<String, IpAddr>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}
