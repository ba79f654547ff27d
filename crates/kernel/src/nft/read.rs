//! Reads a table in the kernel, for callers that adopt or remove an earlier process's table.

use super::apply::Nftables;
use super::attributes::{text, trimmed};
use super::error::NftError;
use super::message as m;
use super::table::Count;
use crate::netlink::{Attrs, attributes};
use nix::libc;
use std::collections::BTreeMap;
use std::net::IpAddr;

const GETSETELEM: u16 = 13;

impl Nftables {
    /// Packets of each named counter.
    pub fn counters(&mut self) -> Result<BTreeMap<String, u64>, NftError> {
        let counts = self.counts()?.into_iter();
        Ok(counts.map(|(name, count)| (name, count.packets)).collect())
    }

    /// Each named counter, by one dump whatever their number.
    ///
    /// # Errors
    /// [`NftError::Netlink`].
    pub fn counts(&mut self) -> Result<BTreeMap<String, Count>, NftError> {
        let name = self.name().to_owned();
        self.counts_of(&name)
    }

    fn counts_of(&mut self, table: &str) -> Result<BTreeMap<String, Count>, NftError> {
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        const DATA: u16 = 4;
        let attrs = Attrs::default().text(TABLE, table).be32(3, 1);
        let request = m::request(m::GETOBJ, 0, attrs, "counters".into());
        let replies = self.dump_all(&request);
        let mut counts = BTreeMap::new();
        for reply in self.error(replies)? {
            let (mut ours, mut name, mut count) = (false, None, None);
            for (kind, value) in attributes(reply.body.get(4..).unwrap_or(&[])) {
                match kind {
                    TABLE => ours = trimmed(value) == table,
                    NAME => name = Some(trimmed(value)),
                    DATA => count = self::count(value),
                    _ => {}
                }
            }
            if let (true, Some(name), Some(count)) = (ours, name, count) {
                counts.insert(name, count);
            }
        }
        Ok(counts)
    }

    /// Addresses in a set of addresses; none without table or set.
    ///
    /// # Errors
    /// [`NftError::Netlink`].
    pub fn addresses_in(&mut self, set: &str) -> Result<Vec<IpAddr>, NftError> {
        let keys = self.keys_of(set)?;
        Ok(keys.iter().filter_map(|key| address(key)).collect())
    }

    /// Keys in a set, as bytes of fields that are padded to 32 bits each; none without table or set.
    ///
    /// # Errors
    /// [`NftError::Netlink`].
    pub fn keys_of(&mut self, set: &str) -> Result<Vec<Vec<u8>>, NftError> {
        const ELEMENTS: u16 = 3;
        let attrs = Attrs::default().text(1, self.name()).text(2, set);
        let found = match self.dump(GETSETELEM, attrs) {
            Ok(found) => found,
            Err(NftError::Netlink { source, .. }) if source.errno() == Some(libc::ENOENT) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for list in found.iter().filter_map(|message| message.get(&ELEMENTS)) {
            all.extend(attributes(list).filter_map(|(_, element)| key(element)));
        }
        Ok(all)
    }

    /// Device that a chain of ours hooks into; `None` without that chain.
    ///
    /// # Errors
    /// [`NftError::Netlink`].
    pub fn hook_device(&mut self, chain: &str) -> Result<Option<String>, NftError> {
        const HOOK: u16 = 4;
        const DEVICE: u16 = 3;
        let table = self.name().to_owned();
        let chains = self.dump(m::GETCHAIN, Attrs::default())?;
        let ours = |one: &&BTreeMap<u16, Vec<u8>>| text(one, 1) == table && text(one, 3) == chain;
        let hook = chains.iter().find(ours).and_then(|one| one.get(&HOOK));
        Ok(hook.and_then(|hook| {
            let (_, name) = attributes(hook).find(|(kind, _)| *kind == DEVICE)?;
            let name = String::from_utf8_lossy(name);
            Some(name.trim_end_matches('\0').to_owned())
        }))
    }
}

/// Parses a named counter (`NFTA_COUNTER_*`).
fn count(data: &[u8]) -> Option<Count> {
    let number = |wanted: u16| {
        let (_, value) = attributes(data).find(|(kind, _)| *kind == wanted)?;
        Some(u64::from_be_bytes(value.try_into().ok()?))
    };
    Some(Count {
        packets: number(2)?,
        bytes: number(1)?,
    })
}

/// Key of one element.
fn key(element: &[u8]) -> Option<Vec<u8>> {
    const KEY: u16 = 1;
    let value = attributes(element).find(|(kind, _)| *kind == KEY)?.1;
    Some(attributes(value).next()?.1.to_vec())
}

/// Parses an address of 4 or 16 bytes.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
