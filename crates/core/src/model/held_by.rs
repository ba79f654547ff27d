//! Egress addresses that something of the cluster has itself.

use super::ids::ObjectRef;
use super::port_blocks::PortBlocks;
use super::record::PortRange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The holder of an egress address, with the ports that are its own: they are never leased, so that their packets go on to
/// the holder's stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBy {
    /// The Node or Service that has the address.
    pub holder: ObjectRef,
    /// Ports of the holder's own connections (`net.ipv4.ip_local_port_range`), first and last; `None`: it opens none from
    /// this address.
    pub ephemeral: Option<(u16, u16)>,
    /// Ports of NodePort Services, first and last; `None`: it serves none.
    pub node_ports: Option<(u16, u16)>,
    /// Ports that Services and the holder's programs listen on.
    pub service_ports: BTreeSet<u16>,
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
    use crate::model::Kind;

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
