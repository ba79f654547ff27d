//! Addresses and routers of this node's networks that other nodes must know.

use egret_core::error::with_causes;
use egret_core::model::{NodeRecord, Snapshot};
use egret_core::node::{NodeOutcome, never_anywhere};
use egret_core::numbers::{NODE_ADDRESSES_MAX, ROUTERS_MAX, ROUTERS_REFRESH_SECS, is_own_device};
use egret_datapath::route::{Device, Routing};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Interval of router updates: routers change seldom, and every route must be read to find them.
const REFRESH: Duration = Duration::from_secs(ROUTERS_REFRESH_SECS);

/// Addresses of all devices except Egret's, each with its prefix.
pub(crate) fn device_addresses(
    devices: &[Device],
    by_device: &BTreeMap<u32, Vec<IpNet>>,
) -> BTreeSet<IpNet> {
    let others = devices.iter().filter(|device| !is_own_device(&device.name));
    let all = others.filter_map(|device| by_device.get(&device.index));
    all.flatten().copied().collect()
}

/// The routers around this node.
#[derive(Debug, Default)]
pub(crate) struct Routers {
    known: Option<BTreeSet<IpAddr>>,
    looked: Option<Instant>,
}

impl Routers {
    /// Reads the routers if the last read is long ago. After an error they stay as they were.
    pub(crate) fn look(&mut self, routing: &mut Routing) {
        if self.looked.is_some_and(|at| at.elapsed() < REFRESH) {
            return;
        }
        self.looked = Some(Instant::now());
        match routing.routers() {
            Ok(found) => self.known = Some(found),
            Err(error) => tracing::warn!(error = %with_causes(&error), "cannot read the routes"),
        }
    }
}

/// Reported addresses and routers, and how many more there are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Surroundings {
    pub(crate) node_addresses: BTreeSet<IpNet>,
    pub(crate) routers: BTreeSet<IpAddr>,
    /// Addresses and routers beyond the limits.
    pub(crate) left_out: usize,
}

impl Surroundings {
    /// `addresses`: those of the devices. Unknown values are reported as last time: a restarted agent must not release
    /// any.
    pub(crate) fn of(
        record: &NodeRecord,
        snapshot: &Snapshot,
        outcome: Option<&NodeOutcome>,
        addresses: Option<&BTreeSet<IpNet>>,
        routers: &Routers,
    ) -> Self {
        let mut left_out = 0;
        let node_addresses = match addresses {
            Some(addresses) => {
                let known = known_anyway(snapshot, record);
                let is_new = |address: &IpAddr| !known.iter().any(|net| net.contains(address));
                let all = addresses.iter().filter(|net| is_new(&net.addr()));
                bounded(all.copied(), NODE_ADDRESSES_MAX, &mut left_out)
            }
            None => record.node_addresses.clone(),
        };
        let routers = match (&routers.known, outcome) {
            (Some(routers), Some(outcome)) => {
                let anywhere = never_anywhere();
                let nodes = &outcome.state.node_addresses;
                let is_foreign = |address: &&IpAddr| {
                    !nodes.contains(address) && !anywhere.iter().any(|net| net.contains(*address))
                };
                let all = routers.iter().filter(is_foreign);
                bounded(all.copied(), ROUTERS_MAX, &mut left_out)
            }
            _ => record.routers.clone(),
        };
        Self {
            node_addresses,
            routers,
            left_out,
        }
    }
}

fn bounded<T: Ord>(
    all: impl Iterator<Item = T>,
    limit: usize,
    left_out: &mut usize,
) -> BTreeSet<T> {
    let all: BTreeSet<T> = all.collect();
    *left_out += all.len().saturating_sub(limit);
    all.into_iter().take(limit).collect()
}

/// Prefixes whose addresses are not reported: link-local and similar, this node's pods, Services.
fn known_anyway(snapshot: &Snapshot, record: &NodeRecord) -> Vec<IpNet> {
    let mut all = never_anywhere();
    let node = snapshot.nodes.get(&record.node);
    all.extend(node.into_iter().flat_map(|node| &node.pod_cidrs));
    all.extend(&snapshot.settings.service_cidrs);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::model::{Node, NodeName, Settings, UnpooledAddresses};

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn scene() -> (Snapshot, NodeRecord) {
        let name = NodeName("a".into());
        let mut snapshot = Snapshot::empty(Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            hold_down_secs: 120,
        });
        let node = Node {
            name: name.clone(),
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            pod_cidrs: nets(&["10.244.1.0/24"]).into_iter().collect(),
            maintenance: egret_core::model::Maintenance::default(),
        };
        snapshot.nodes.insert(name.clone(), node);
        (snapshot, NodeRecord::new(name))
    }

    #[test]
    fn what_others_know_anyway_is_not_told() {
        let (snapshot, record) = scene();
        let found = nets(&[
            "127.0.0.1/8",
            "::1/128",
            "fe80::1/64",
            "169.254.20.10/32",
            "10.244.1.1/24",
            "10.96.0.10/32",
            "192.168.122.11/24",
            "203.0.113.7/32",
            "fd00:122::11/64",
        ]);
        let told = Surroundings::of(&record, &snapshot, None, Some(&found), &Routers::default());
        let wanted = nets(&["192.168.122.11/24", "203.0.113.7/32", "fd00:122::11/64"]);
        assert_eq!((told.node_addresses, told.left_out), (wanted, 0));
    }

    #[test]
    fn what_is_not_known_yet_is_as_it_was() {
        let (snapshot, mut record) = scene();
        record.node_addresses = nets(&["203.0.113.7/32"]);
        record.routers = [IpAddr::from([203, 0, 113, 1])].into();
        let told = Surroundings::of(&record, &snapshot, None, None, &Routers::default());
        assert_eq!(told.node_addresses, record.node_addresses);
        assert_eq!(told.routers, record.routers);
    }

    #[test]
    fn there_is_a_limit() {
        let (snapshot, record) = scene();
        let many = 0..=NODE_ADDRESSES_MAX as u32;
        let many = many.map(|n| IpNet::from(IpAddr::from((0xcb00_7100 + n).to_be_bytes())));
        let many: BTreeSet<IpNet> = many.collect();
        let told = Surroundings::of(&record, &snapshot, None, Some(&many), &Routers::default());
        assert_eq!(told.node_addresses.len(), NODE_ADDRESSES_MAX);
        assert_eq!(told.left_out, 1);
    }
}
