//! Number of other nodes' packets that came through this gateway's tunnel: an unreachable gateway receives none.

use super::{COUNTERS, GatewayError, Pins};
use aya::maps::{Map, MapData, PerCpuArray};
use std::path::Path;

/// Counters that rise only with packets that another node sent unasked; answers to own probes are not counted.
const FROM_OTHERS: [&str; 4] = [
    "probe_answered",
    "out_forwarded",
    "out_self",
    "out_next_hop",
];

/// Counters of the pinned programs, for frequent reads.
pub struct Heard {
    counters: PerCpuArray<MapData, u64>,
    places: Vec<u32>,
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heard").finish_non_exhaustive()
    }
}

impl Heard {
    /// Opens the pinned counters; they belong to the programs until a [`super::GatewayDriver`] is opened anew.
    ///
    /// # Errors
    /// [`GatewayError::Map`]: the counters are not pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, GatewayError> {
        let error = |error| GatewayError::map("counters", error);
        // Beside another version, those of the programs that take over.
        let next = Pins::next(pin_dir).path("counters");
        let path = match next.exists() {
            true => next,
            false => Pins::new(pin_dir).path("counters"),
        };
        let data = MapData::from_pin(path).map_err(error)?;
        let counters = PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(error)?;
        let places = COUNTERS.iter().zip(0..);
        let wanted = places.filter(|(counter, _)| FROM_OTHERS.contains(&counter.name));
        Ok(Self {
            counters,
            places: wanted.map(|(_, place)| place).collect(),
        })
    }

    /// Packets so far; a counter that cannot be read counts as zero.
    pub fn packets(&self) -> u64 {
        let one = |place: &u32| {
            let values = self.counters.get(place, 0);
            values.map_or(0, |values| values.iter().sum::<u64>())
        };
        self.places.iter().map(one).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_there() {
        for name in FROM_OTHERS {
            assert!(
                COUNTERS.iter().any(|counter| counter.name == name),
                "{name}"
            );
        }
    }
}
