//! Local pod addresses: a map in pieces that successive states share, so that copying, comparing and changing one pod
//! do not cost as much as there are pods.

use super::ids::ProfileId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Index;
use std::sync::Arc;

/// Number of low address bits that vary within one piece.
const PIECE_BITS: u32 = 8;

type Piece = BTreeMap<IpAddr, ProfileId>;

/// Pod addresses with their profiles, in the order of the addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodMap {
    /// Pieces by their first address; none is empty.
    pieces: BTreeMap<IpAddr, Arc<Piece>>,
    len: usize,
}

/// Change of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodChange {
    /// The address.
    pub address: IpAddr,
    /// Its profile before, if it had one.
    pub before: Option<ProfileId>,
    /// Its profile now, if it has one.
    pub after: Option<ProfileId>,
}

fn piece_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(
            v4.to_bits() >> PIECE_BITS << PIECE_BITS,
        )),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(
            v6.to_bits() >> PIECE_BITS << PIECE_BITS,
        )),
    }
}

impl PodMap {
    /// Sets the profile of the address; returns the previous one.
    pub fn insert(&mut self, address: IpAddr, profile: ProfileId) -> Option<ProfileId> {
        let piece = self.pieces.entry(piece_of(address)).or_default();
        let before = Arc::make_mut(piece).insert(address, profile);
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes the address; returns its profile.
    pub fn remove(&mut self, address: &IpAddr) -> Option<ProfileId> {
        let name = piece_of(*address);
        let piece = self.pieces.get_mut(&name)?;
        if !piece.contains_key(address) {
            return None;
        }
        let piece = Arc::make_mut(piece);
        let before = piece.remove(address);
        if piece.is_empty() {
            self.pieces.remove(&name);
        }
        self.len -= 1;
        before
    }

    /// The profile of an address.
    pub fn get(&self, address: &IpAddr) -> Option<&ProfileId> {
        self.pieces.get(&piece_of(*address))?.get(address)
    }

    /// Whether the address is there.
    pub fn contains_key(&self, address: &IpAddr) -> bool {
        self.get(address).is_some()
    }

    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes all addresses.
    pub fn clear(&mut self) {
        *self = PodMap::default();
    }

    /// Addresses with their profiles, sorted by address.
    pub fn iter(&self) -> impl Iterator<Item = (&IpAddr, &ProfileId)> {
        self.pieces.values().flat_map(|piece| piece.iter())
    }

    /// The addresses, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &IpAddr> {
        self.iter().map(|(address, _)| address)
    }

    /// The profiles, sorted by address.
    pub fn values(&self) -> impl Iterator<Item = &ProfileId> {
        self.iter().map(|(_, profile)| profile)
    }

    /// The addresses of one family; the pieces are shared with this map.
    pub fn of_family(&self, v4: bool) -> PodMap {
        let pieces = self.pieces.iter();
        let pieces = pieces.filter(|(first, _)| first.is_ipv4() == v4);
        let pieces: BTreeMap<IpAddr, Arc<Piece>> = pieces
            .map(|(first, piece)| (*first, piece.clone()))
            .collect();
        PodMap {
            len: pieces.values().map(|piece| piece.len()).sum(),
            pieces,
        }
    }

    /// Differences from `before`, sorted by address. Shared pieces are not compared.
    pub fn changes_since(&self, before: &PodMap) -> Vec<PodChange> {
        let nothing = Piece::new();
        let mut names: Vec<IpAddr> = Vec::new();
        let other = |other: &PodMap, name: &IpAddr, piece: &Arc<Piece>| {
            let there = other.pieces.get(name);
            there.is_none_or(|there| !Arc::ptr_eq(there, piece))
        };
        let here = self.pieces.iter();
        let here = here.filter(|(name, piece)| other(before, name, piece));
        names.extend(here.map(|(name, _)| *name));
        let there = before.pieces.keys();
        names.extend(there.filter(|name| !self.pieces.contains_key(*name)));
        names.sort_unstable();
        let mut changes = Vec::new();
        for name in names {
            let of = |map: &'_ PodMap| map.pieces.get(&name).cloned();
            let (old, new) = (of(before), of(self));
            let (old, new) = (
                old.as_deref().unwrap_or(&nothing),
                new.as_deref().unwrap_or(&nothing),
            );
            let gone = old.keys().filter(|address| !new.contains_key(*address));
            let mut all: Vec<IpAddr> = gone.chain(new.keys()).copied().collect();
            all.sort_unstable();
            let all = all.into_iter().map(|address| PodChange {
                address,
                before: old.get(&address).copied(),
                after: new.get(&address).copied(),
            });
            changes.extend(all.filter(|change| change.before != change.after));
        }
        changes
    }
}

impl FromIterator<(IpAddr, ProfileId)> for PodMap {
    fn from_iter<T: IntoIterator<Item = (IpAddr, ProfileId)>>(all: T) -> Self {
        let mut map = PodMap::default();
        for (address, profile) in all {
            map.insert(address, profile);
        }
        map
    }
}

impl Index<&IpAddr> for PodMap {
    type Output = ProfileId;

    fn index(&self, address: &IpAddr) -> &ProfileId {
        self.get(address).expect("the address is in the map")
    }
}

impl Serialize for PodMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for PodMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Piece::deserialize(deserializer)?;
        Ok(all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(number: u16) -> IpAddr {
        let number = u32::from(number % 1024);
        match number % 2 {
            0 => IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(number))),
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_that_knows_what_changed(
            first in prop::collection::vec((any::<u16>(), 0u64..3), 0..200),
            then in prop::collection::vec((any::<u16>(), prop::option::of(0u64..3)), 0..40)
        ) {
            let all = first.iter().map(|(n, id)| (address(*n), ProfileId(*id)));
            let mut plain: BTreeMap<IpAddr, ProfileId> = all.clone().collect();
            let mut map: PodMap = all.collect();
            let (plain_before, before) = (plain.clone(), map.clone());
            for (number, id) in then {
                let address = address(number);
                match id.map(ProfileId) {
                    Some(id) => prop_assert_eq!(map.insert(address, id), plain.insert(address, id)),
                    None => prop_assert_eq!(map.remove(&address), plain.remove(&address)),
                }
            }
            prop_assert!(map.iter().eq(plain.iter()));
            prop_assert!(before.iter().eq(plain_before.iter()));
            prop_assert_eq!(map.len(), plain.len());
            for v4 in [true, false] {
                let family = plain.iter().filter(|(a, _)| a.is_ipv4() == v4);
                prop_assert!(map.of_family(v4).iter().eq(family));
            }
            let keys: std::collections::BTreeSet<&IpAddr> =
                plain_before.keys().chain(plain.keys()).collect();
            let expected: Vec<PodChange> = keys
                .into_iter()
                .map(|a| PodChange {
                    address: *a,
                    before: plain_before.get(a).copied(),
                    after: plain.get(a).copied(),
                })
                .filter(|change| change.before != change.after)
                .collect();
            prop_assert_eq!(map.changes_since(&before), expected);
            prop_assert_eq!(map, plain.into_iter().collect());
        }
    }
}
