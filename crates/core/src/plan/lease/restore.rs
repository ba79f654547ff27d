//! Records that may lack leases which nodes use: nothing is granted by them for a hold-down.
//!
//! - The store has gone back to an older state: a backup was restored, or an API server lost what it had acknowledged. It
//!   shows in a node that acknowledged an epoch which its record does not have, and in a gateway that has loaded a newer
//!   table. Such a gateway keeps its table until the record has a higher epoch.
//! - The record of an address is made anew while the record of some node is missing. Both may have been deleted, and nobody
//!   but the node knows what it had.
//!
//! The epochs go on above all that nodes know, and everybody is asked to acknowledge the new one. Nothing is granted for the
//! hold-down: which ports rest is unknown. Afterwards every node must have said what it holds, or every gateway must have
//! the new epoch, so that it drops what others send.

use super::{AddressWork, Cluster, is_fenced};
use crate::model::*;

impl AddressWork {
    /// Notices that the record may lack leases, and that the time for that is over.
    pub(super) fn notice_restore(&mut self, cluster: &Cluster<'_>) {
        match self.record.restored {
            None if self.is_behind(cluster) || self.is_older_than_a_table(cluster) => {
                self.begin_restore("the store has gone back: nothing is granted for a hold-down");
            }
            None if self.is_new(cluster)
                && let Some(node) = cluster.without_record() =>
            {
                let why = "its record is made anew and a node has no record: both may have been deleted, and nothing is \
                           granted for a hold-down";
                self.begin_restore(why);
                self.rest_what_is_free(node);
            }
            Some(restored) if self.is_over(cluster, restored) => {
                self.say("the ports that nodes have are known again".to_owned());
                self.record.restored = None;
            }
            _ => {}
        }
    }

    fn begin_restore(&mut self, why: &str) {
        self.say(why.to_owned());
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

    /// One node may be wrong about itself; its word concerns what it has. Two are not.
    fn is_behind(&self, cluster: &Cluster<'_>) -> bool {
        match cluster.ahead {
            [] => false,
            [node] => cluster.claims.has(self.record.address, node),
            _ => true,
        }
    }

    /// A gateway of the address has loaded a table with a higher epoch.
    fn is_older_than_a_table(&self, cluster: &Cluster<'_>) -> bool {
        let Some(gateway) = cluster.snapshot.gateways.get(&self.record.gateway) else {
            return false;
        };
        let mut newer = cluster.claims.newer(self.record.address);
        newer.any(|(node, epoch)| {
            let node = cluster.snapshot.nodes.get(node);
            let is_believed = epoch <= cluster.epoch;
            epoch > self.record.epoch && is_believed && node.is_some_and(|one| gateway.selects(one))
        })
    }

    fn is_over(&self, cluster: &Cluster<'_>, restored: Restored) -> bool {
        self.now_secs >= until(restored, cluster.hold_down_secs())
            && (has_everyone_spoken(cluster, restored) || self.has_every_gateway(cluster, restored))
    }

    fn has_every_gateway(&self, cluster: &Cluster<'_>, restored: Restored) -> bool {
        let reported = cluster.reports.epoch(&self.record.gateway);
        let is_known = cluster.reports.unknown(&self.record.gateway).is_none();
        is_known && reported.is_none_or(|epoch| epoch >= restored.epoch)
    }
}

fn has_everyone_spoken(cluster: &Cluster<'_>, restored: Restored) -> bool {
    let mut nodes = cluster.snapshot.nodes.keys();
    nodes.all(|node| {
        let record = cluster.snapshot.node_records.get(node);
        let has_spoken = record.is_some_and(|record| record.acknowledged >= restored.epoch);
        has_spoken || is_fenced(cluster.snapshot, node)
    })
}

/// Seconds since the epoch before which nothing is granted.
pub(super) fn until(restored: Restored, hold_down_secs: i64) -> i64 {
    restored.since_secs.saturating_add(hold_down_secs)
}
