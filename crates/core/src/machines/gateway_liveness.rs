//! Results of one node's probes to gateways, from [`super::Liveness`] and [`super::Hearing`], as input of decisions.

use crate::model::NodeName;
use std::collections::{BTreeMap, BTreeSet};

/// Liveness of the gateways, as one node's probes observe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayLiveness {
    /// Gateways that answer.
    pub live: BTreeSet<NodeName>,
    /// The steering version in each gateway's last answer; 0: it cannot forward.
    pub versions: BTreeMap<NodeName, u64>,
    /// Every gateway has answered or has had time to: from now on, missing answers count.
    pub settled: bool,
    /// Number of gateways that stopped answering since the last message.
    pub losses: u64,
    /// Since the last message, a gateway that is not trusted yet answered for a moment.
    pub lapsed: bool,
    /// Other gateways exist, and none answers this node.
    pub alone: bool,
    /// While this node is alone: packets of other nodes arrive by the tunnel.
    pub reached: bool,
}

impl GatewayLiveness {
    /// Whether this gateway answers and has loaded steering tables (version above 0).
    pub fn serves(&self, gateway: &NodeName) -> bool {
        let loaded = self
            .versions
            .get(gateway)
            .is_some_and(|version| *version > 0);
        loaded && self.live.contains(gateway)
    }

    /// Every gateway for which [`Self::serves`] is true.
    pub fn serving(&self) -> BTreeSet<NodeName> {
        let live = self.live.iter();
        live.filter(|gateway| self.serves(gateway))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_serves_once_it_answers_with_loaded_tables() {
        let names = ["loaded", "empty", "unknown", "silent"].map(|name| NodeName(name.into()));
        let [loaded, empty, unknown, silent] = names;
        let liveness = GatewayLiveness {
            live: [loaded.clone(), empty.clone(), unknown].into(),
            versions: [(loaded.clone(), 7), (empty, 0), (silent, 7)].into(),
            ..GatewayLiveness::default()
        };
        assert_eq!(liveness.serving(), [loaded].into());
    }
}
