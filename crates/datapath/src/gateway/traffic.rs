//! Traffic of each egress address through this gateway, in both directions: the Rust side of `bpf/include/traffic.h`.

use super::abi::{self, Address};
use super::{GatewayError, Pins};
use aya::maps::{Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Traffic of an address in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Packets carried.
    pub packets: u64,
    /// Bytes of them, from the IP header on.
    pub bytes: u64,
    /// Packets dropped; `None` where they are not counted by address.
    pub dropped: Option<u64>,
}

/// Traffic of an address in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// To the network outside.
    pub out: Flow,
    /// From the network outside.
    pub back: Flow,
}

/// `struct egret_traffic`: packets, bytes and dropped packets out, then back.
pub(super) type Sums = [u64; 6];

/// The pinned map `traffic`: an element for each address that is steered.
pub(super) struct TrafficTable {
    map: PerCpuHashMap<MapData, Address, Sums>,
    addresses: BTreeSet<Address>,
}

const NAME: &str = "traffic";

impl TrafficTable {
    pub(super) fn open(pins: &Pins) -> Result<Self, GatewayError> {
        let wrong = |error| GatewayError::map(NAME, error);
        let map = MapData::from_pin(pins.path(NAME)).map_err(wrong)?;
        let map = PerCpuHashMap::try_from(Map::PerCpuHashMap(map)).map_err(wrong)?;
        let addresses: Result<_, MapError> = map.keys().collect();
        Ok(Self {
            addresses: addresses.map_err(wrong)?,
            map,
        })
    }

    /// Counts traffic of these addresses: new ones start at zero, the others continue.
    pub(super) fn set(&mut self, addresses: &BTreeSet<Address>) -> Result<(), GatewayError> {
        let wrong = |error| GatewayError::map(NAME, error);
        if self.addresses == *addresses {
            return Ok(());
        }
        for gone in self.addresses.difference(addresses) {
            self.map
                .remove(gone)
                .or_else(super::maps::absent)
                .map_err(wrong)?;
        }
        self.addresses.retain(|address| addresses.contains(address));
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| wrong(MapError::IoError(error)))?;
        for new in addresses {
            if self.addresses.contains(new) {
                continue;
            }
            let zero = PerCpuValues::try_from(vec![Sums::default(); cpus]);
            let zero = zero.map_err(|error| wrong(MapError::IoError(error)))?;
            self.map.insert(new, zero, 0).map_err(wrong)?;
            self.addresses.insert(*new);
        }
        Ok(())
    }

    /// Sums over all CPUs, by address.
    pub(super) fn read(&self) -> Result<BTreeMap<IpAddr, Carried>, GatewayError> {
        let mut all = BTreeMap::new();
        for address in &self.addresses {
            let sums = match self.map.get(address, 0) {
                Ok(sums) => sums,
                Err(error) => {
                    super::maps::absent(error).map_err(|error| GatewayError::map(NAME, error))?;
                    continue;
                }
            };
            all.insert(abi::ip(*address), carried(&sums));
        }
        Ok(all)
    }
}

fn carried(per_cpu: &[Sums]) -> Carried {
    let sum = |field: usize| per_cpu.iter().map(|sums| sums[field]).sum();
    let flow = |first: usize| Flow {
        packets: sum(first),
        bytes: sum(first + 1),
        dropped: Some(sum(first + 2)),
    };
    Carried {
        out: flow(0),
        back: flow(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_over_all_cpus() {
        let told = carried(&[[1, 100, 0, 2, 200, 1], [3, 300, 5, 4, 400, 0]]);
        let flow = |packets, bytes, dropped| Flow {
            packets,
            bytes,
            dropped: Some(dropped),
        };
        assert_eq!((told.out, told.back), (flow(4, 400, 5), flow(6, 600, 1)));
    }
}
