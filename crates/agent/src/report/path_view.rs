//! Measured paths, as `egret status` and `egret doctor` show them.

use crate::observe::canary::Shown;
use egret_core::node::{CanaryEnd, CanaryPath};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One path that canaries measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PathView {
    /// Name of the `EgressGateway`.
    pub gateway: String,
    /// Egress address that canaries use.
    pub address: IpAddr,
    /// `gateway`: measured to a gateway and back. `guard`: measured to the last hook of this node.
    pub measured_to: String,
    /// Family, protocols and place of the loss; null if nothing is lost.
    pub broken: Option<String>,
    /// Age of the measurement, seconds.
    pub measured_secs_ago: u64,
}

/// All paths of the last round; empty before the first.
pub(crate) fn paths(canaries: &Shown) -> Vec<PathView> {
    let Some(at) = canaries.at else {
        return Vec::new();
    };
    let one = |path: &CanaryPath| {
        let v6 = path.egress.is_ipv6();
        let mut broken = canaries.broken.iter();
        let broken = broken.find(|one| one.group == path.group && one.v6 == v6);
        PathView {
            gateway: path.group.gateway.0.clone(),
            address: path.egress,
            measured_to: match path.end {
                CanaryEnd::Gateway => "gateway".into(),
                CanaryEnd::Guard => "guard".into(),
            },
            broken: broken.map(ToString::to_string),
            measured_secs_ago: at.elapsed().as_secs(),
        }
    };
    canaries.paths.iter().map(one).collect()
}
