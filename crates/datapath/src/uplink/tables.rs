//! The tables of the uplink programs: their content for a worker's state, and bringing them to it.

use super::abi::{self, Config, Destination, Prefix, Profile};
use super::counters::COUNTERS;
use crate::gateway::abi::{Address, address};
use crate::gateway::{GatewayError, Pins};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use egret_core::node::{Profile as Destinations, WorkerState};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pinned maps, by name in `bpf/include/uplink.h`, with sizes of key and value in bytes.
pub(super) const PINNED: &[(&str, u32, u32)] = &[
    ("uplink_config", 4, size_of::<Config>() as u32),
    ("uplink_pods", 16, 8),
    ("uplink_chosen", 4 + 28, 4),
    ("uplink_never", 4 + 20, 4),
    ("uplink_local", 4 + 20, 4),
    ("uplink_knocks", 20, 8),
    ("uplink_inbound", 40, 8),
    ("uplink_flows", 40, 16),
    ("uplink_datagrams", 40, 8),
    ("uplink_counters", 4, 8),
];

/// Most prefixes of one profile. With more, all packets of its pods are reinjected, and the ruleset leaves those alone
/// that it does not select.
const PROFILE_PREFIXES_MAX: usize = 16_384;
/// Most profiles whose prefixes are written out: their sum fits into the map.
const PROFILES_MAX: usize = 15;

/// Desired content of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Desired {
    pods: BTreeMap<Address, Profile>,
    chosen: BTreeSet<(u32, Destination)>,
    never: BTreeSet<(u32, Prefix)>,
    local: BTreeSet<(u32, Prefix)>,
}

impl Desired {
    /// Content for a worker's state.
    pub fn of(worker: &WorkerState) -> Self {
        let pods = worker.pods.iter();
        let prefixes = |all: &BTreeSet<IpNet>| all.iter().copied().map(abi::prefix).collect();
        Desired {
            pods: pods
                .map(|(ip, id)| (address(*ip), abi::profile(*id)))
                .collect(),
            chosen: chosen(worker),
            never: prefixes(&worker.never),
            local: prefixes(&worker.throw),
        }
    }
}

fn chosen(worker: &WorkerState) -> BTreeSet<(u32, Destination)> {
    let mut all = BTreeSet::new();
    for (id, profile) in &worker.profiles {
        let prefixes = prefixes(profile);
        if prefixes.len() > PROFILE_PREFIXES_MAX || worker.profiles.len() > PROFILES_MAX {
            all.insert(abi::destination(*id, None));
        } else {
            let keys = prefixes.into_iter().map(Some);
            all.extend(keys.map(|to| abi::destination(*id, to)));
        }
    }
    all
}

/// All addresses that the profile has a verdict for, as prefixes.
fn prefixes(profile: &Destinations) -> Vec<IpNet> {
    let boxes = profile.ranges.iter().map(|one| (one.first, one.last));
    let ranges = boxes.chain(profile.portless.iter().copied());
    let mut all = BTreeSet::new();
    for range in ranges.collect::<BTreeSet<_>>() {
        match range {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                all.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                all.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
            _ => {}
        }
    }
    IpNet::aggregate(&all.into_iter().collect())
}

/// The pinned maps and their content.
pub(super) struct Tables {
    config_map: Array<MapData, Config>,
    pods_map: HashMap<MapData, Address, Profile>,
    chosen_map: LpmTrie<MapData, Destination, u32>,
    never_map: LpmTrie<MapData, Prefix, u32>,
    local_map: LpmTrie<MapData, Prefix, u32>,
    counters_map: PerCpuArray<MapData, u64>,
    config: Config,
    held: Desired,
}

/// Whether all maps are pinned, in the shape that our programs use.
pub(super) fn pinned_in_our_shape(pins: &Pins) -> bool {
    PINNED.iter().all(|(name, key, value)| {
        let counters = COUNTERS.len() as u32;
        MapInfo::from_pin(pins.path(name)).is_ok_and(|info| {
            (info.key_size(), info.value_size()) == (*key, *value)
                && (*name != "uplink_counters" || info.max_entries() == counters)
        })
    })
}

impl Tables {
    /// Opens the pinned maps and reads their content.
    pub fn open(pins: &Pins) -> Result<Self, GatewayError> {
        let map = |name: &'static str| {
            MapData::from_pin(pins.path(name)).map_err(|error| GatewayError::map(name, error))
        };
        let wrong = |name| move |error: MapError| GatewayError::map(name, error);
        let trie = |name| map(name).map(Map::LpmTrie);
        let mut tables = Self {
            config_map: Array::try_from(Map::Array(map("uplink_config")?))
                .map_err(wrong("uplink_config"))?,
            pods_map: HashMap::try_from(Map::HashMap(map("uplink_pods")?))
                .map_err(wrong("uplink_pods"))?,
            chosen_map: LpmTrie::try_from(trie("uplink_chosen")?)
                .map_err(wrong("uplink_chosen"))?,
            never_map: LpmTrie::try_from(trie("uplink_never")?).map_err(wrong("uplink_never"))?,
            local_map: LpmTrie::try_from(trie("uplink_local")?).map_err(wrong("uplink_local"))?,
            counters_map: PerCpuArray::try_from(Map::PerCpuArray(map("uplink_counters")?))
                .map_err(wrong("uplink_counters"))?,
            config: Config::default(),
            held: Desired::default(),
        };
        tables.read()?;
        Ok(tables)
    }

    fn read(&mut self) -> Result<(), GatewayError> {
        let wrong = |name| move |error: MapError| GatewayError::map(name, error);
        self.config = self.config_map.get(&0, 0).map_err(wrong("uplink_config"))?;
        let pods: Result<_, MapError> = self.pods_map.iter().collect();
        self.held = Desired {
            pods: pods.map_err(wrong("uplink_pods"))?,
            chosen: keys(&self.chosen_map).map_err(wrong("uplink_chosen"))?,
            never: keys(&self.never_map).map_err(wrong("uplink_never"))?,
            local: keys(&self.local_map).map_err(wrong("uplink_local"))?,
        };
        Ok(())
    }

    /// Reads everything again. Returns whether it is what was written; otherwise the next [`Self::grow`] repairs it.
    pub fn reread(&mut self) -> Result<bool, GatewayError> {
        let (config, held) = (self.config, std::mem::take(&mut self.held));
        self.read()?;
        let same = self.config == config && self.held == held;
        self.set_config(config)?;
        Ok(same)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn set_config(&mut self, config: Config) -> Result<(), GatewayError> {
        if config != self.config {
            let done = self.config_map.set(0, config, 0);
            done.map_err(|error| GatewayError::map("uplink_config", error))?;
            self.config = config;
        }
        Ok(())
    }

    /// Adds missing entries. Never-destinations come first, entries that reinject last.
    pub fn grow(&mut self, wanted: &Desired) -> Result<(), GatewayError> {
        let wrong = |name| move |error: MapError| GatewayError::map(name, error);
        let held = &mut self.held;
        add(&mut self.never_map, &wanted.never, &mut held.never).map_err(wrong("uplink_never"))?;
        add(&mut self.local_map, &wanted.local, &mut held.local).map_err(wrong("uplink_local"))?;
        add(&mut self.chosen_map, &wanted.chosen, &mut held.chosen)
            .map_err(wrong("uplink_chosen"))?;
        for (pod, profile) in &wanted.pods {
            if held.pods.get(pod) != Some(profile) {
                let done = self.pods_map.insert(pod, profile, 0);
                done.map_err(wrong("uplink_pods"))?;
                held.pods.insert(*pod, *profile);
            }
        }
        Ok(())
    }

    /// Removes obsolete entries, in the opposite order.
    pub fn shrink(&mut self, wanted: &Desired) -> Result<(), GatewayError> {
        let wrong = |name| move |error: MapError| GatewayError::map(name, error);
        let held = &mut self.held;
        let gone = |pod: &&Address| !wanted.pods.contains_key(*pod);
        let gone: Vec<Address> = held.pods.keys().filter(gone).copied().collect();
        for pod in gone {
            absent_is_fine(self.pods_map.remove(&pod)).map_err(wrong("uplink_pods"))?;
            held.pods.remove(&pod);
        }
        take(&mut self.chosen_map, &wanted.chosen, &mut held.chosen)
            .map_err(wrong("uplink_chosen"))?;
        take(&mut self.local_map, &wanted.local, &mut held.local).map_err(wrong("uplink_local"))?;
        take(&mut self.never_map, &wanted.never, &mut held.never).map_err(wrong("uplink_never"))
    }

    /// The counters, summed over CPUs, by name.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, GatewayError> {
        let one = |(index, counter): (usize, &crate::gateway::Counter)| {
            let values = self.counters_map.get(&(index as u32), 0);
            let values = values.map_err(|error| GatewayError::map("uplink_counters", error))?;
            Ok((counter.name, values.iter().sum()))
        };
        COUNTERS.iter().enumerate().map(one).collect()
    }
}

type Prefixes<K> = BTreeSet<(u32, K)>;

fn keys<K: Pod + Ord>(map: &LpmTrie<MapData, K, u32>) -> Result<Prefixes<K>, MapError> {
    let pair = |key: Key<K>| (key.prefix_len(), key.data());
    map.keys().map(|key| key.map(pair)).collect()
}

fn add<K: Pod + Ord>(
    map: &mut LpmTrie<MapData, K, u32>,
    wanted: &Prefixes<K>,
    held: &mut Prefixes<K>,
) -> Result<(), MapError> {
    let new: Vec<_> = wanted.difference(held).copied().collect();
    for (bits, data) in new {
        map.insert(&Key::new(bits, data), 1, 0)?;
        held.insert((bits, data));
    }
    Ok(())
}

fn take<K: Pod + Ord>(
    map: &mut LpmTrie<MapData, K, u32>,
    wanted: &Prefixes<K>,
    held: &mut Prefixes<K>,
) -> Result<(), MapError> {
    let gone: Vec<_> = held.difference(wanted).copied().collect();
    for (bits, data) in gone {
        absent_is_fine(map.remove(&Key::new(bits, data)))?;
        held.remove(&(bits, data));
    }
    Ok(())
}

/// Counts an element that is already absent as removed.
fn absent_is_fine(done: Result<(), MapError>) -> Result<(), MapError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(ref call))
            if call.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::model::Protocol;
    use egret_core::node::{DestinationRange, Verdict};

    #[test]
    fn ranges_of_boxes_become_few_prefixes() {
        let one = |first: &str, last: &str, port| DestinationRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
            protocol: Some(Protocol::Tcp),
            port_first: port,
            port_last: port,
            verdict: Verdict::Unavailable,
        };
        let profile = Destinations {
            ranges: vec![
                one("203.0.113.0", "203.0.113.127", 80),
                one("203.0.113.0", "203.0.113.127", 443),
                one("203.0.113.128", "203.0.113.255", 80),
                one("2001:db8::1", "2001:db8::2", 80),
            ],
            portless: vec![("::".parse().unwrap(), "::1".parse().unwrap())],
        };
        let mut found: Vec<String> = prefixes(&profile).iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "2001:db8::1/128",
                "2001:db8::2/128",
                "203.0.113.0/24",
                "::/127"
            ]
        );
    }
}
