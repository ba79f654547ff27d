//! Names and numbers by which the parts of a node's state refer to each other.

use serde::{Deserialize, Serialize};

/// Number of a node inside the tunnel: last 16 bits of its link-local address there, and of its tunnel MAC address.
pub type TunnelIndex = u16;

/// Stable name of a profile: a hash of the policies that make it, so that an edit of one keeps the others' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProfileId(pub u64);

/// Stable name of a target: a hash of egress address, group key and policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetId(pub u64);

/// Stable name of a traffic key: a hash of policy and egress address, or [`TrafficKeyId::OTHER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TrafficKeyId(pub u64);

impl TrafficKeyId {
    /// All keys beyond `TRAFFIC_ACCOUNTS_MAX`.
    pub const OTHER: TrafficKeyId = TrafficKeyId(0);
    /// Canaries, which belong to no policy.
    pub const CANARY: TrafficKeyId = TrafficKeyId(u64::MAX);
}

/// Stable name of a namespace: a hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespaceId(pub u64);

/// Number of a gateway group on this node, 1..=`GROUPS_MAX`: its mark, table and next hop group follow from it.
pub type GroupNumber = u8;
