//! Gateways that are none any more stay peers for a while: until routers send elsewhere, they tunnel replies to workers,
//! which would drop packets of a node that is no peer.

use crate::node::{Peer, TunnelIndex};
use crate::numbers::DEPARTURE_MS;
use std::collections::BTreeMap;

/// Former gateways among the peers of one node.
#[derive(Clone, Debug, Default)]
pub struct PeerMemory {
    /// Gateways, with the time since which each is none any more.
    gateways: BTreeMap<TunnelIndex, (Peer, Option<u64>)>,
}

impl PeerMemory {
    /// Adds to the peers of a round those that were gateways until a while ago, as peers that are none.
    pub fn keep(&mut self, peers: &mut BTreeMap<TunnelIndex, Peer>, now_ms: u64) {
        for (index, peer) in peers.iter().filter(|(_, peer)| peer.gateway) {
            self.gateways.insert(*index, (peer.clone(), None));
        }
        self.gateways.retain(|index, (_, gone_ms)| {
            if peers.get(index).is_some_and(|peer| peer.gateway) {
                return true;
            }
            let gone_ms = *gone_ms.get_or_insert(now_ms);
            now_ms < gone_ms.saturating_add(DEPARTURE_MS)
        });
        for (index, (peer, _)) in &self.gateways {
            // The index or the address may be another node's by now.
            let is_known = peers.contains_key(index)
                || peers.values().any(|other| other.underlay == peer.underlay);
            if !is_known {
                let former = Peer {
                    gateway: false,
                    ..peer.clone()
                };
                peers.insert(*index, former);
            }
        }
    }

    /// Time of the next call of [`Self::keep`] although nothing has changed: a former gateway is a peer no longer.
    pub fn next_deadline(&self) -> Option<u64> {
        let gone = self.gateways.values().filter_map(|(_, gone_ms)| *gone_ms);
        gone.map(|at| at.saturating_add(DEPARTURE_MS)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn gateway(name: &str, last: u8) -> Peer {
        Peer {
            gateway: true,
            ..Peer::new(name, IpAddr::from([192, 0, 2, last]))
        }
    }

    #[test]
    fn a_former_gateway_stays_a_peer_for_a_while_and_leads_nowhere() {
        let mut memory = PeerMemory::default();
        let both: BTreeMap<_, _> = [(1, gateway("a", 1)), (2, gateway("b", 2))].into();
        let mut peers = both.clone();
        memory.keep(&mut peers, 1_000);
        assert_eq!(peers, both);
        assert_eq!(memory.next_deadline(), None);
        let one: BTreeMap<_, _> = [(1, gateway("a", 1))].into();
        let mut peers = one.clone();
        // Rounds may be far between.
        memory.keep(&mut peers, 900_000);
        assert!(!peers[&2].gateway);
        let end = memory.next_deadline().unwrap();
        assert_eq!(end, 900_000 + DEPARTURE_MS);
        let mut peers = one.clone();
        memory.keep(&mut peers, end);
        assert_eq!(peers, one);
    }

    #[test]
    fn nodes_that_never_were_gateways_are_forgotten_and_others_take_their_place() {
        let mut memory = PeerMemory::default();
        let worker = Peer::new("w", IpAddr::from([192, 0, 2, 9]));
        let mut peers = [(1, gateway("a", 1)), (9, worker)].into();
        memory.keep(&mut peers, 0);
        let other: BTreeMap<_, _> = [(7, Peer::new("c", IpAddr::from([192, 0, 2, 1])))].into();
        let mut peers = other.clone();
        memory.keep(&mut peers, 1);
        assert_eq!(peers, other, "its address is another node's");
    }
}
