//! The one hash of Egret. Names of profiles and targets, the scatter of leases and every rendezvous order come from it,
//! on every node and in every version alike, so it is written out here instead of taken from a library or from
//! `std::hash` (whose `DefaultHasher` may change with the compiler): FNV-1a (64 bit) over length-prefixed fields, then
//! the finaliser of splitmix64, because FNV alone spreads short inputs that differ in their last byte badly.
//! It is not meant to resist an attacker: nobody gains by choosing a name that collides, since a collision of
//! profiles is caught when they are built.

use std::net::IpAddr;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// A hash under construction.
#[derive(Clone, Copy, Debug)]
pub struct StableHash(u64);

impl StableHash {
    /// Starts a hash for one purpose; different purposes never share values.
    pub fn new(purpose: &str) -> Self {
        Self(FNV_OFFSET).text(purpose)
    }

    /// Adds bytes, without their length.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
        self
    }

    /// Adds a text, with its length.
    pub fn text(self, text: &str) -> Self {
        self.number(text.len() as u64).raw(text.as_bytes())
    }

    /// Adds a number.
    pub fn number(self, number: u64) -> Self {
        self.raw(&number.to_le_bytes())
    }

    /// Adds an address, with its family.
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.raw(&[4]).raw(&v4.octets()),
            IpAddr::V6(v6) => self.raw(&[6]).raw(&v6.octets()),
        }
    }

    /// The hash (splitmix64's finaliser).
    pub fn finish(self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::StableHash;

    #[test]
    fn values_never_change_between_versions() {
        let hash = StableHash::new("test").text("a").number(7).finish();
        assert_eq!(hash, StableHash::new("test").text("a").number(7).finish());
        assert_eq!(format!("{hash:#x}"), "0x55e62aa5271a8c6d");
    }

    #[test]
    fn field_boundaries_count() {
        let one = StableHash::new("t").text("ab").text("c").finish();
        let other = StableHash::new("t").text("a").text("bc").finish();
        assert_ne!(one, other);
    }
}
