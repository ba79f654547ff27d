//! The table as a value.

use super::expression::{Rule, address_bytes};
use egret_core::hash::StableHash;
use egret_core::node::{PodMap, ProfileId};
use std::collections::{BTreeMap, BTreeSet};
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
    Mark = 19,
    InterfaceIndex = 20,
    InterfaceName = 41,
}

impl SetType {
    /// Bytes of a value, before padding to 32 bits.
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

    /// A range of addresses, both ends in it.
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

/// What an element holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is in the set.
    Member,
    /// A verdict (see [`super::Expression::Verdict`]).
    Verdict(i32, Option<String>),
    /// A named counter.
    Counter(String),
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
    /// Elements hold named counters.
    pub counters: bool,
    /// Elements are added at run time with a timeout, at most this many. `None`: fixed content.
    pub runtime_max: Option<u32>,
    /// Packets add them ([`super::Expression::Remember`]), not this process.
    pub by_packets: bool,
    /// Content (empty for run-time sets, and where there is `by_address`).
    pub elements: BTreeMap<ElementKey, Value>,
    /// Content that is a verdict for each of many addresses, of which few change at a time.
    pub by_address: Option<ByAddress>,
}

/// A jump for each address whose profile has a verdict. Maps of several stages and of one state and the next share the
/// addresses: a node has as many elements as pods, and one pod comes or goes at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByAddress {
    /// Which of the chains.
    pub addresses: PodMap,
    /// Verdict of each.
    pub verdicts: BTreeMap<ProfileId, Value>,
}

impl ByAddress {
    fn element(&self, address: IpAddr, profile: Option<ProfileId>) -> Option<(ElementKey, Value)> {
        let value = self.verdicts.get(&profile?)?;
        Some((ElementKey::address(address), value.clone()))
    }

    /// Elements that are in one and not in the other, or hold something else: (gone, added).
    fn changed(old: Option<&Self>, new: &Self) -> [Vec<(ElementKey, Value)>; 2] {
        let nothing = ByAddress {
            addresses: PodMap::default(),
            verdicts: BTreeMap::new(),
        };
        let old = old.unwrap_or(&nothing);
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        for change in new.addresses.changes_since(&old.addresses) {
            gone.extend(old.element(change.address, change.before));
            added.extend(new.element(change.address, change.after));
        }
        // Chains are named after their profile, so this is none in practice.
        let other = |(id, value): &(&ProfileId, &Value)| {
            let now = new.verdicts.get(*id);
            now.is_some_and(|now| now != *value)
        };
        let others = old.verdicts.iter().filter(other).map(|(id, _)| *id);
        let others: BTreeSet<ProfileId> = others.collect();
        if !others.is_empty() {
            let stays = |(address, id): &(&IpAddr, &ProfileId)| {
                others.contains(*id) && old.addresses.get(address) == Some(*id)
            };
            for (address, id) in new.addresses.iter().filter(stays) {
                gone.extend(old.element(*address, Some(*id)));
                added.extend(new.element(*address, Some(*id)));
            }
        }
        [gone, added]
    }
}

impl Set {
    /// Maps of ranges never change their content: other content has another name. A packet then meets the old map or the
    /// new one, whole, while the kernel shows changes of such a map only some time after it has switched the rules.
    pub(crate) fn named_by_content(&self, name: &str) -> String {
        let mut hash = StableHash::new("map").number(self.elements.len() as u64);
        for (key, value) in &self.elements {
            hash = hash.raw(&key.first).raw(&key.last);
            hash = match value {
                Value::Member => hash.number(0),
                Value::Verdict(code, chain) => hash
                    .number(i64::from(*code) as u64)
                    .text(chain.as_deref().unwrap_or_default()),
                Value::Counter(name) => hash.number(1).text(name),
            };
        }
        format!("{name}_{:016x}", hash.finish())
    }

    /// An empty set.
    pub fn new(key: &[SetType]) -> Self {
        Set {
            key: key.to_vec(),
            interval: false,
            verdicts: false,
            counters: false,
            runtime_max: None,
            by_packets: false,
            elements: BTreeMap::new(),
            by_address: None,
        }
    }

    /// Elements to delete and to add on the way from `old` (`None`: an empty set) to this one.
    pub(super) fn changed(&self, old: Option<&Set>) -> [Vec<(ElementKey, Value)>; 2] {
        if let Some(by_address) = &self.by_address {
            return ByAddress::changed(old.and_then(|old| old.by_address.as_ref()), by_address);
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

    /// The same set, without its content: what cannot change while it lives.
    pub(super) fn same_shape(&self, other: &Set) -> bool {
        let shape = |set: &Set| (set.interval, set.verdicts, set.counters, set.runtime_max);
        self.key == other.key && shape(self) == shape(other)
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
    /// Named counters that come and go, whose counts go over into a table that replaces this one.
    pub traffic: BTreeSet<String>,
    /// Tunnel objects by name: the other end of the tunnel.
    pub tunnels: BTreeMap<String, IpAddr>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// What a counter says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; what the kernel has merged counts as one.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// Named counters.
pub(super) type Counts = BTreeMap<String, Count>;

/// Of each chain: what its hook is, and what its rules say, in their order. The kernel shows expressions in another form
/// than it takes them, so it is compared with itself.
pub(super) type Shown = BTreeMap<String, Vec<u64>>;
