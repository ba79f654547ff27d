//! Quotas of connections.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// The most connections to one destination (address, protocol, port) that pods of one node may have at a time: each needs
/// a source port of its own. TCP, UDP and SCTP. `None`: as many as there are ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quotas {
    /// Of one address of a pod.
    pub pod: Option<NonZeroU32>,
    /// Of all pods of one namespace on the node together.
    pub namespace: Option<NonZeroU32>,
}

impl Quotas {
    /// The lower quota of both, each by itself.
    pub fn lower(self, other: Self) -> Self {
        let lower = |a: Option<NonZeroU32>, b: Option<NonZeroU32>| a.into_iter().chain(b).min();
        Self {
            pod: lower(self.pod, other.pod),
            namespace: lower(self.namespace, other.namespace),
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_of_two_quotas_counts_each_by_itself() {
        let of = |pod, namespace| Quotas {
            pod: NonZeroU32::new(pod),
            namespace: NonZeroU32::new(namespace),
        };
        assert_eq!(of(5, 0).lower(of(7, 9)), of(5, 9));
        assert_eq!(of(7, 9).lower(of(5, 0)), of(5, 9));
        assert_eq!(of(0, 0).lower(of(0, 0)), Quotas::default());
        assert!(of(0, 0).is_empty() && !of(0, 1).is_empty());
    }
}
