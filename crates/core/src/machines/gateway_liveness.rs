//! What one node's probes say of the gateways: the result of [`super::Liveness`] and [`super::Hearing`], for decisions.

use crate::model::NodeName;
use std::collections::{BTreeMap, BTreeSet};

/// The gateways as one node's probes see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayLiveness {
    /// Gateways that answer.
    pub live: BTreeSet<NodeName>,
    /// The steering version in each gateway's last answer; 0: it cannot forward.
    pub versions: BTreeMap<NodeName, u64>,
    /// Every gateway has answered, or had the time to: from now on silence means something.
    pub settled: bool,
    /// Gateways that stopped answering since the last message.
    pub losses: u64,
    /// Since the last message a gateway that is not trusted yet answered for a moment.
    pub lapsed: bool,
    /// There are other gateways, and none answers this node.
    pub alone: bool,
    /// While this node is alone: packets of others come in by the tunnel.
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

    /// Every such gateway.
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
