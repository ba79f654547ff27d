//! An nftables table as a value.

use super::expression::{Rule, address_bytes};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Type numbers by which the `nft` program prints sets (its `enum datatypes`); the kernel ignores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum SetType {
    Ipv4 = 7,
    Ipv6 = 8,
    Ethernet = 9,
    Protocol = 12,
    Port = 13,
    Mark = 19,
    InterfaceIndex = 20,
    InterfaceName = 41,
}

impl SetType {
    /// Size of a value in bytes, before padding to 32 bits.
    pub fn bytes(self) -> u32 {
        match self {
            SetType::Ipv4 | SetType::InterfaceIndex | SetType::Mark => 4,
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
    /// Last key, inclusive; equals `first` in sets without intervals.
    pub last: Vec<u8>,
}

impl ElementKey {
    /// A single key from its fields.
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

    /// A range of addresses, both ends included.
    pub fn addresses(first: IpAddr, last: IpAddr) -> Self {
        Self::range(&[&address_bytes(first)], &[&address_bytes(last)])
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

/// Value of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// No value: a member of a set.
    Member,
    /// A verdict (see [`super::Expression::Verdict`]).
    Verdict(i32, Option<String>),
    /// A named counter.
    Counter(String),
}

/// One element of a set that packets or flows fill while the table exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Key.
    pub key: ElementKey,
    /// Seconds after which the kernel removes it.
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
    /// Elements hold named counters.
    pub counters: bool,
    /// Maximum number of elements added at run time with a timeout. `None`: fixed content.
    pub runtime_max: Option<u32>,
    /// Packets add the elements ([`super::Expression::Remember`]), not this process.
    pub by_packets: bool,
    /// Packets count connections in the elements ([`super::Expression::CountConnections`]): the kernel removes those without
    /// any, and refuses timeouts.
    pub counts_connections: bool,
    /// Content; empty for run-time sets and with `shared`.
    pub elements: BTreeMap<ElementKey, Value>,
    /// Content of which few elements change at a time, in place of `elements`.
    pub shared: Option<SharedElements>,
}

/// Elements of a set of many, few of which change at a time: their owner knows what differs between two of its values,
/// so that a change costs what it changes.
pub trait Elements: Any + fmt::Debug + Send + Sync {
    /// Elements that are in one only, or have another value: (removed, added). Without `old` all are added.
    ///
    /// Both are of one type: a set of one name is made by one owner.
    fn changed(&self, old: Option<&dyn Elements>) -> [Vec<(ElementKey, Value)>; 2];

    /// Whether both have the same elements.
    fn is_same(&self, other: &dyn Elements) -> bool;
}

/// [`Elements`] that copies of a table share.
#[derive(Clone, Debug)]
pub struct SharedElements(Arc<dyn Elements>);

impl SharedElements {
    /// Shares these elements.
    pub fn new(elements: impl Elements) -> Self {
        SharedElements(Arc::new(elements))
    }
}

impl PartialEq for SharedElements {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.is_same(&*other.0)
    }
}

impl Eq for SharedElements {}

impl Set {
    /// An empty set.
    pub fn new(key: &[SetType]) -> Self {
        Set {
            key: key.to_vec(),
            interval: false,
            verdicts: false,
            counters: false,
            runtime_max: None,
            by_packets: false,
            counts_connections: false,
            elements: BTreeMap::new(),
            shared: None,
        }
    }

    /// Elements to delete and to add to turn `old` (`None`: an empty set) into this one.
    pub(super) fn changed(&self, old: Option<&Set>) -> [Vec<(ElementKey, Value)>; 2] {
        if let Some(shared) = &self.shared {
            let old = old.and_then(|old| old.shared.as_ref());
            return shared.0.changed(old.map(|old| &*old.0));
        }
        let nothing = BTreeMap::new();
        let before = old.map_or(&nothing, |set| &set.elements);
        let missing = |of: &BTreeMap<ElementKey, Value>, from: &BTreeMap<ElementKey, Value>| {
            let missing = of
                .iter()
                .filter(|(key, value)| from.get(*key) != Some(*value));
            missing
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        };
        [
            missing(before, &self.elements),
            missing(&self.elements, before),
        ]
    }

    /// Whether the sets are equal except for their content: properties that cannot change while a set exists.
    pub(super) fn same_shape(&self, other: &Set) -> bool {
        let shape = |set: &Set| (set.interval, set.verdicts, set.counters, set.runtime_max);
        self.key == other.key
            && shape(self) == shape(other)
            && self.counts_connections == other.counts_connections
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

/// Hook of a base chain.
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

/// Metadata that a rule gives to packets for a tunnel device in collect-metadata mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelKey {
    /// VXLAN network identifier, 24 bits.
    pub network_identifier: u32,
    /// Underlay address of the other end.
    pub to: IpAddr,
}

/// The whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Named counters.
    pub counters: Vec<&'static str>,
    /// Named counters that come and go; a table that replaces this one takes over their counts.
    pub traffic: BTreeSet<String>,
    /// Tunnel objects by name.
    pub tunnels: BTreeMap<String, TunnelKey>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// Value of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; merged ones (GRO) count as one.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// Named counters.
pub(super) type Counts = BTreeMap<String, Count>;

/// Hook and rules of each chain, in order, as the kernel returned them. The kernel returns expressions in another form
/// than it accepts, so its answers are compared with each other.
pub(super) type Shown = BTreeMap<String, Vec<u64>>;
