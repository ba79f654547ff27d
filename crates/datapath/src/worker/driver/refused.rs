//! Pods' packets that were refused because their protocol has no ports.

use super::{DatapathError, WorkerDriver};
use crate::worker::names::PORTLESS_SETS;
use egret_kernel::nft::read::address;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Refused packets of one pod to one destination by one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefusedProtocol {
    /// Address of the pod.
    pub pod: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
}

impl WorkerDriver {
    /// Packets refused in the last `egret_core::numbers::REFUSED_PROTOCOL_SECS` seconds.
    pub fn refused_protocols(&mut self) -> Result<BTreeSet<RefusedProtocol>, DatapathError> {
        let mut all = BTreeSet::new();
        for set in PORTLESS_SETS {
            let keys = self.nft.keys_of(set)?;
            all.extend(keys.iter().filter_map(|key| refused(key)));
        }
        Ok(all)
    }
}

/// Parses two addresses, and the protocol in the first byte of the last 32 bits.
pub(super) fn refused(key: &[u8]) -> Option<RefusedProtocol> {
    let width = key.len().checked_sub(4)? / 2;
    Some(RefusedProtocol {
        pod: address(key.get(..width)?)?,
        destination: address(key.get(width..2 * width)?)?,
        protocol: *key.get(2 * width)?,
    })
}
