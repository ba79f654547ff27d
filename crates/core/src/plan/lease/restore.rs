//! A store that has gone back to an older state: a backup was restored, or an API server lost what it had acknowledged.
//!
//! It shows in a node that acknowledged an epoch which its record does not have. The record of an address may then lack
//! leases that nodes use. So the epochs go on above all that nodes know, everybody is asked to acknowledge the new one, and
//! nothing is granted until all have, or until the hold-down has passed: gateways drop what others send by then.

use super::{AddressWork, Cluster};
use crate::model::*;

impl AddressWork {
    /// Notices that the store has gone back, and that every node has said since what it holds.
    pub(super) fn notice_restore(&mut self, cluster: &Cluster<'_>) {
        match self.record.restored {
            None if self.is_behind(cluster) => {
                self.say(
                    "the store has gone back: nothing is granted until every node has said what it holds"
                        .to_owned(),
                );
                self.record.restored = Some(Restored {
                    epoch: 0,
                    since_secs: self.now_secs,
                });
                self.steering_changed = true;
                for work in &mut self.leases {
                    work.renumber |= work.lease.state != LeaseState::HoldDown;
                    work.withdraw |= work.lease.state == LeaseState::Draining;
                }
            }
            Some(restored) if self.is_over(cluster, restored) => {
                self.say(
                    "every node has said what it holds since the store has gone back".to_owned(),
                );
                self.record.restored = None;
            }
            _ => {}
        }
    }

    /// One node may be wrong about itself; its word concerns what it has. Two are not.
    fn is_behind(&self, cluster: &Cluster<'_>) -> bool {
        match cluster.ahead {
            [] => false,
            [node] => cluster.claims.has(self.record.address, node),
            _ => true,
        }
    }

    fn is_over(&self, cluster: &Cluster<'_>, restored: Restored) -> bool {
        let records = cluster.snapshot.node_records.values();
        let mut agents = records.filter(|record| {
            !record.underlay_addresses.is_empty()
                && cluster.snapshot.nodes.contains_key(&record.node)
        });
        let until = restored.since_secs.saturating_add(cluster.hold_down_secs());
        self.now_secs >= until || agents.all(|record| record.acknowledged >= restored.epoch)
    }
}
