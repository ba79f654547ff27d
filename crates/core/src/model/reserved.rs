//! Port blocks that are never leased, because they are those of an address's holder.

use super::held_by::HeldBy;
use super::port_blocks::PortBlocks;
use super::record::{PortRange, Snapshot};
use std::net::IpAddr;

impl Snapshot {
    /// Blocks of the address that are never leased: ports of its holder.
    pub fn reserved(&self, address: IpAddr) -> PortBlocks {
        let holder = self.held_by.get(&address);
        holder.map_or(PortBlocks::default(), HeldBy::reserved)
    }
}

impl HeldBy {
    /// Every block with a port of the holder's own.
    pub fn reserved(&self) -> PortBlocks {
        let ranges = self.ephemeral.into_iter().chain(self.node_ports);
        let ranges = ranges.filter(|(first, last)| first <= last);
        let ranges: Vec<PortRange> = ranges
            .map(|(first, last)| PortRange { first, last })
            .collect();
        let mut blocks = PortBlocks::of(&ranges);
        for port in &self.service_ports {
            blocks.insert_port(*port);
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectRef};
    use std::collections::BTreeSet;

    #[test]
    fn every_block_with_a_port_of_the_holder_is_reserved_and_no_other() {
        let holder = HeldBy {
            holder: ObjectRef::of_cluster(Kind::Node, "a"),
            ephemeral: Some((32_768, 60_999)),
            node_ports: Some((30_000, 32_767)),
            service_ports: [443, 8080].into(),
        };
        let reserved = holder.reserved();
        for port in [
            443, 8080, 8064, 8127, 29_952, 30_000, 32_768, 60_999, 61_000,
        ] {
            assert!(reserved.contains_port(port), "{port}");
        }
        for port in [1024, 8063, 8128, 29_951, 61_056, 65_535] {
            assert!(!reserved.contains_port(port), "{port}");
        }
        let nothing = HeldBy {
            ephemeral: Some((2, 1)),
            node_ports: None,
            service_ports: BTreeSet::new(),
            ..holder
        };
        assert!(nothing.reserved().is_empty());
    }
}
