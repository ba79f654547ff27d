//! The tables of the gateway's programs: their content, and bringing it to a desired state.

use super::abi::{self, Address, Config, FRAGMENT_BYTES, Owner, SteeringValue, Worker};
use super::counters::COUNTERS;
use super::traffic::{Carried, Sums, TrafficTable};
use super::{GatewayError, Pins};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use egret_core::node::{GatewayState, TunnelIndex};
use egret_kernel::difference::first_changed;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::size_of;
use std::net::IpAddr;

/// Pinned maps, by name in `bpf/include/maps.h`.
pub(super) const PINNED: &[&str] = &[
    "config",
    "steering",
    "workers",
    "owners",
    "next_hops",
    "peers",
    "fragments",
    "counters",
    "traffic",
];

/// The pinned maps and their content.
pub(super) struct Tables {
    config_map: Array<MapData, Config>,
    steering_map: HashMap<MapData, Address, SteeringValue>,
    workers_map: HashMap<MapData, u32, Worker>,
    owners_map: HashMap<MapData, Owner, u32>,
    next_hops_map: HashMap<MapData, u32, u32>,
    peers_map: HashMap<MapData, u32, u32>,
    counters_map: PerCpuArray<MapData, u64>,
    traffic: TrafficTable,
    config: Config,
    steering: BTreeMap<Address, Box<SteeringValue>>,
    workers: BTreeMap<u32, Worker>,
    owners: BTreeSet<Owner>,
    next_hops: BTreeMap<u32, u32>,
    peers: BTreeMap<u32, u32>,
    turns: Turns,
}

/// Keys after which the next partial comparison continues.
#[derive(Default)]
struct Turns {
    steering: Option<Address>,
    workers: Option<u32>,
    owners: Option<Owner>,
}

/// Addresses that one partial comparison reads: 2 KiB each.
const STEERING_AT_ONCE: usize = 64;
/// Entries of the small maps that one partial comparison reads.
const OTHERS_AT_ONCE: usize = 256;

const OWNERS_CHANGED: &str = "an owner of a block was added or removed";

fn steering_name(address: &Address) -> String {
    format!("steering of {}", abi::ip(*address))
}

fn worker_name(index: &u32) -> String {
    format!("worker {index}")
}

fn told(name: String, is_there: bool) -> String {
    match is_there {
        true => format!("{name} was changed"),
        false => format!("{name} is gone"),
    }
}

/// The next keys after the last one, at most so many; at the end it starts again.
fn next<'a, K: Ord + Copy + 'a>(
    last: &mut Option<K>,
    keys: impl Iterator<Item = &'a K>,
    count: usize,
) -> Vec<K> {
    let behind = keys.skip_while(|key| last.as_ref().is_some_and(|last| *key <= last));
    let some: Vec<K> = behind.take(count).copied().collect();
    *last = some.last().copied().filter(|_| some.len() == count);
    some
}

/// Value of a map at a key; `None` if absent.
fn there<V>(found: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(error) => absent(error).map(|()| None),
    }
}

fn replace<K: Ord, V>(held: &mut BTreeMap<K, V>, key: K, now: Option<V>) {
    match now {
        Some(value) => drop(held.insert(key, value)),
        None => drop(held.remove(&key)),
    }
}

/// Sizes of key and value of a pinned map, bytes.
fn shape(name: &str) -> (u32, u32) {
    match name {
        "config" => (4, size_of::<Config>() as u32),
        "steering" => (16, size_of::<SteeringValue>() as u32),
        "workers" => (4, size_of::<Worker>() as u32),
        "owners" => (size_of::<Owner>() as u32, 4),
        "next_hops" | "peers" => (4, 4),
        "fragments" => FRAGMENT_BYTES,
        "counters" => (4, 8),
        "traffic" => (16, size_of::<Sums>() as u32),
        other => unreachable!("{other} is not in PINNED"),
    }
}

/// Whether all maps are pinned, in the shape that our programs use.
pub(super) fn pinned_in_our_shape(pins: &Pins) -> bool {
    PINNED.iter().all(|name| {
        let info = MapInfo::from_pin(pins.path(name));
        let counters = COUNTERS.len() as u32;
        info.is_ok_and(|info| {
            (info.key_size(), info.value_size()) == shape(name)
                && (*name != "counters" || info.max_entries() == counters)
        })
    })
}

/// Brings a small map to `wanted`. Removes obsolete entries first: a number may have another meaning now.
fn put_all(
    map: &mut HashMap<MapData, u32, u32>,
    known: &mut BTreeMap<u32, u32>,
    wanted: BTreeMap<u32, u32>,
) -> Result<(), MapError> {
    let gone = |key: &u32| !wanted.contains_key(key);
    let gone: Vec<u32> = known.keys().copied().filter(gone).collect();
    for key in gone {
        map.remove(&key).or_else(absent)?;
        known.remove(&key);
    }
    for (key, value) in wanted {
        if known.get(&key) != Some(&value) {
            map.insert(key, value, 0)?;
            known.insert(key, value);
        }
    }
    Ok(())
}

impl Tables {
    /// Opens the pinned maps and reads their content.
    pub fn open(pins: &Pins) -> Result<Self, GatewayError> {
        let map = |name: &'static str| {
            MapData::from_pin(pins.path(name)).map_err(|error| GatewayError::map(name, error))
        };
        let hash = |name: &'static str| map(name).map(Map::HashMap);
        let wrong = GatewayError::map;
        let mut tables = Self {
            config_map: Array::try_from(Map::Array(map("config")?))
                .map_err(|e| wrong("config", e))?,
            steering_map: HashMap::try_from(hash("steering")?).map_err(|e| wrong("steering", e))?,
            workers_map: HashMap::try_from(hash("workers")?).map_err(|e| wrong("workers", e))?,
            owners_map: HashMap::try_from(hash("owners")?).map_err(|e| wrong("owners", e))?,
            next_hops_map: HashMap::try_from(hash("next_hops")?)
                .map_err(|e| wrong("next_hops", e))?,
            peers_map: HashMap::try_from(hash("peers")?).map_err(|e| wrong("peers", e))?,
            counters_map: PerCpuArray::try_from(Map::PerCpuArray(map("counters")?))
                .map_err(|e| wrong("counters", e))?,
            traffic: TrafficTable::open(pins)?,
            config: Config::default(),
            steering: BTreeMap::new(),
            workers: BTreeMap::new(),
            owners: BTreeSet::new(),
            turns: Turns::default(),
            next_hops: BTreeMap::new(),
            peers: BTreeMap::new(),
        };
        tables.read().map_err(|(name, error)| wrong(name, error))?;
        Ok(tables)
    }

    fn read(&mut self) -> Result<(), (&'static str, MapError)> {
        self.config = self
            .config_map
            .get(&0, 0)
            .map_err(|error| ("config", error))?;
        for entry in self.steering_map.iter() {
            let (address, value) = entry.map_err(|error| ("steering", error))?;
            self.steering.insert(address, Box::new(value));
        }
        for entry in self.workers_map.iter() {
            let (index, worker) = entry.map_err(|error| ("workers", error))?;
            self.workers.insert(index, worker);
        }
        for owner in self.owners_map.keys() {
            self.owners
                .insert(owner.map_err(|error| ("owners", error))?);
        }
        for entry in self.next_hops_map.iter() {
            let (identifier, number) = entry.map_err(|error| ("next_hops", error))?;
            self.next_hops.insert(identifier, number);
        }
        for entry in self.peers_map.iter() {
            let (key, value) = entry.map_err(|error| ("peers", error))?;
            self.peers.insert(key, value);
        }
        Ok(())
    }

    /// Whether reading all entries is cheap.
    pub fn are_few(&self) -> bool {
        self.steering.len() <= STEERING_AT_ONCE
    }

    /// Reads everything again. Returns the first entry that differs from what was written, as text for people; then the
    /// next [`Self::apply`] repairs it.
    pub fn reread(&mut self) -> Result<Option<String>, GatewayError> {
        let config = self.config;
        let steering = std::mem::take(&mut self.steering);
        let workers = std::mem::take(&mut self.workers);
        let owners = std::mem::take(&mut self.owners);
        let next_hops = std::mem::take(&mut self.next_hops);
        let peers = std::mem::take(&mut self.peers);
        self.read()
            .map_err(|(name, error)| GatewayError::map(name, error))?;
        let steering = first_changed(&steering, &self.steering, steering_name);
        let workers = first_changed(&workers, &self.workers, worker_name);
        let owners = (owners != self.owners).then(|| OWNERS_CHANGED.to_owned());
        let next_hops = first_changed(&next_hops, &self.next_hops, |network| {
            format!("next hop of network {network}")
        });
        let peers = first_changed(&peers, &self.peers, |key| format!("peer {key}"));
        // The configuration is not part of the state, so it is restored here.
        let told = self.restore(config)?;
        Ok(steering
            .or(workers)
            .or(owners)
            .or(next_hops)
            .or(peers)
            .or(told))
    }

    /// [`Self::reread`] for the configuration and the next few entries of each map: a call stays cheap for any number
    /// of entries, and every entry gets its turn. Surplus entries are found by [`Self::reread`] alone.
    pub fn reread_some(&mut self) -> Result<Option<String>, GatewayError> {
        let config = self.config;
        self.config = self
            .config_map
            .get(&0, 0)
            .map_err(|error| GatewayError::map("config", error))?;
        let restored = self.restore(config)?;
        let mut changed = Vec::new();
        for address in next(
            &mut self.turns.steering,
            self.steering.keys(),
            STEERING_AT_ONCE,
        ) {
            let now = there(self.steering_map.get(&address, 0));
            let now = now.map_err(|error| GatewayError::map("steering", error))?;
            if now.as_ref() != self.steering.get(&address).map(|value| &**value) {
                changed.push(told(steering_name(&address), now.is_some()));
                replace(&mut self.steering, address, now.map(Box::new));
            }
        }
        for index in next(&mut self.turns.workers, self.workers.keys(), OTHERS_AT_ONCE) {
            let now = there(self.workers_map.get(&index, 0));
            let now = now.map_err(|error| GatewayError::map("workers", error))?;
            if now.as_ref() != self.workers.get(&index) {
                changed.push(told(worker_name(&index), now.is_some()));
                replace(&mut self.workers, index, now);
            }
        }
        for owner in next(&mut self.turns.owners, self.owners.iter(), OTHERS_AT_ONCE) {
            let now = there(self.owners_map.get(&owner, 0));
            let now = now.map_err(|error| GatewayError::map("owners", error))?;
            if now.is_none() {
                changed.push(OWNERS_CHANGED.to_owned());
                self.owners.remove(&owner);
            }
        }
        changed.extend(restored);
        Ok(changed.into_iter().next())
    }

    /// Writes the configuration again if the one just read differs.
    fn restore(&mut self, config: Config) -> Result<Option<String>, GatewayError> {
        let is_same = self.config == config;
        self.set_config(config)?;
        Ok((!is_same).then(|| "config was changed".to_owned()))
    }

    /// Configuration of the programs.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Writes the configuration of the programs.
    pub fn set_config(&mut self, config: Config) -> Result<(), GatewayError> {
        if config != self.config {
            self.config_map
                .set(0, config, 0)
                .map_err(|error| GatewayError::map("config", error))?;
            self.config = config;
        }
        Ok(())
    }

    /// Addresses in the steering table.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.steering
            .keys()
            .map(|address| abi::ip(*address))
            .collect()
    }

    /// Addresses that the gateway answers ARP and ND for.
    pub fn announcing(&self) -> BTreeSet<IpAddr> {
        let announced = self
            .steering
            .iter()
            .filter(|(_, value)| value.flags & abi::ANNOUNCE != 0);
        announced.map(|(address, _)| abi::ip(*address)).collect()
    }

    /// Brings the tables to `state` without steering a packet by half of it: workers before the blocks that name them,
    /// owners before the blocks that they prove, removals in the opposite order, the version last. Returns the
    /// addresses that are announced now and were not before.
    pub fn apply(
        &mut self,
        state: &GatewayState,
        own: TunnelIndex,
    ) -> Result<Vec<IpAddr>, GatewayError> {
        let steering: BTreeMap<Address, Box<SteeringValue>> = (state.addresses.iter())
            .map(|(ip, steering)| {
                (
                    abi::address(*ip),
                    Box::new(SteeringValue::new(*ip, steering, own)),
                )
            })
            .collect();
        let owners: BTreeSet<Owner> = steering
            .values()
            .flat_map(|value| value.owners(own))
            .collect();
        let workers: BTreeMap<u32, Worker> = (state.workers.iter())
            .filter(|(index, _)| **index != own) // the tunnel never leads to ourselves
            .map(|(index, underlay)| (u32::from(*index), Worker::new(*index, *underlay)))
            .collect();

        self.traffic.set(&steering.keys().copied().collect())?;
        self.add_workers(&workers)?;
        self.add_owners(&owners)?;
        let announced = self.put_steering(&steering)?;
        let next_hops = (state.next_hops.iter())
            .map(|(identifier, number)| (*identifier, u32::from(*number)))
            .collect();
        put_all(&mut self.next_hops_map, &mut self.next_hops, next_hops)
            .map_err(|error| GatewayError::map("next_hops", error))?;
        put_all(
            &mut self.peers_map,
            &mut self.peers,
            abi::peers(&state.peers),
        )
        .map_err(|error| GatewayError::map("peers", error))?;
        self.remove_all_but(&steering, &owners, &workers)?;
        self.set_config(Config {
            steering_version: state.version,
            ..self.config
        })?;
        Ok(announced)
    }

    fn add_workers(&mut self, workers: &BTreeMap<u32, Worker>) -> Result<(), GatewayError> {
        for (index, worker) in workers {
            if self.workers.get(index) != Some(worker) {
                let done = self.workers_map.insert(index, worker, 0);
                done.map_err(|error| GatewayError::map("workers", error))?;
                self.workers.insert(*index, *worker);
            }
        }
        Ok(())
    }

    fn add_owners(&mut self, owners: &BTreeSet<Owner>) -> Result<(), GatewayError> {
        let new: Vec<Owner> = owners.difference(&self.owners).copied().collect();
        for owner in new {
            let done = self.owners_map.insert(owner, 1, 0);
            done.map_err(|error| GatewayError::map("owners", error))?;
            self.owners.insert(owner);
        }
        Ok(())
    }

    fn put_steering(
        &mut self,
        steering: &BTreeMap<Address, Box<SteeringValue>>,
    ) -> Result<Vec<IpAddr>, GatewayError> {
        let mut announced = Vec::new();
        for (address, value) in steering {
            let old = self.steering.get(address);
            if old == Some(value) {
                continue;
            }
            let was_announced = old.is_some_and(|old| old.flags & abi::ANNOUNCE != 0);
            let done = self.steering_map.insert(address, **value, 0);
            done.map_err(|error| GatewayError::map("steering", error))?;
            if value.flags & abi::ANNOUNCE != 0 && !was_announced {
                announced.push(abi::ip(*address));
            }
            self.steering.insert(*address, value.clone());
        }
        Ok(announced)
    }

    fn remove_all_but(
        &mut self,
        steering: &BTreeMap<Address, Box<SteeringValue>>,
        owners: &BTreeSet<Owner>,
        workers: &BTreeMap<u32, Worker>,
    ) -> Result<(), GatewayError> {
        let gone: Vec<Address> = self
            .steering
            .keys()
            .filter(|address| !steering.contains_key(*address))
            .copied()
            .collect();
        for address in gone {
            let done = self.steering_map.remove(&address);
            done.or_else(absent)
                .map_err(|error| GatewayError::map("steering", error))?;
            self.steering.remove(&address);
        }
        let gone: Vec<Owner> = self.owners.difference(owners).copied().collect();
        for owner in gone {
            let done = self.owners_map.remove(&owner);
            done.or_else(absent)
                .map_err(|error| GatewayError::map("owners", error))?;
            self.owners.remove(&owner);
        }
        let gone: Vec<u32> = self
            .workers
            .keys()
            .filter(|index| !workers.contains_key(*index))
            .copied()
            .collect();
        for index in gone {
            let done = self.workers_map.remove(&index);
            done.or_else(absent)
                .map_err(|error| GatewayError::map("workers", error))?;
            self.workers.remove(&index);
        }
        Ok(())
    }

    /// Traffic and drops by egress address.
    pub fn traffic(&self) -> Result<BTreeMap<IpAddr, Carried>, GatewayError> {
        self.traffic.read()
    }

    /// The counters, summed over CPUs, by name.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, GatewayError> {
        let one = |(index, counter): (usize, &super::Counter)| {
            let values = self.counters_map.get(&(index as u32), 0);
            let values = values.map_err(|error| GatewayError::map("counters", error))?;
            Ok((counter.name, values.iter().sum()))
        };
        COUNTERS.iter().enumerate().map(one).collect()
    }
}

/// Counts an element that is already absent as removed.
pub(super) fn absent(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::KeyNotFound => Ok(()),
        MapError::SyscallError(ref call)
            if call.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::next;

    #[test]
    fn every_entry_has_its_turn_and_then_the_first_again() {
        let keys = [1, 2, 3, 5, 8];
        let mut last = None;
        let mut look = |count| next(&mut last, keys.iter(), count);
        assert_eq!(look(2), [1, 2]);
        assert_eq!(look(2), [3, 5]);
        assert_eq!(look(2), [8]);
        assert_eq!(look(2), [1, 2]);
    }

    #[test]
    fn an_entry_that_is_gone_is_no_end() {
        let mut last = Some(4);
        assert_eq!(next(&mut last, [1, 2, 3, 5, 8].iter(), 1), [5]);
        assert_eq!(next(&mut last, [1, 2].iter(), 1), [0; 0]);
        assert_eq!(next(&mut last, [1, 2].iter(), 1), [1]);
    }
}
