//! Measured paths, as `egret status` and `egret doctor` show them.

use crate::observe::canary::Shown;
use egret_core::node::{BrokenPath, CanaryEnd, CanaryPath};
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

/// A path with its last measurement.
pub(super) struct Measured<'a> {
    pub(super) path: &'a CanaryPath,
    /// What is lost on it.
    pub(super) broken: Option<&'a BrokenPath>,
    /// Age of the measurement.
    pub(super) secs_ago: u64,
}

/// All paths of the last round; none before the first.
pub(super) fn measured(canaries: &Shown) -> impl Iterator<Item = Measured<'_>> {
    let secs_ago = canaries.at.map(|at| at.elapsed().as_secs());
    let paths = secs_ago.map_or(&[][..], |_| &canaries.paths[..]);
    paths.iter().map(move |path| {
        let v6 = path.egress.is_ipv6();
        let mut broken = canaries.broken.iter();
        Measured {
            path,
            broken: broken.find(|one| one.group == path.group && one.v6 == v6),
            secs_ago: secs_ago.unwrap_or_default(),
        }
    })
}

/// All paths of the last round, for the command line.
pub(crate) fn paths(canaries: &Shown) -> Vec<PathView> {
    let one = |one: Measured<'_>| PathView {
        gateway: one.path.group.gateway.0.clone(),
        address: one.path.egress,
        measured_to: match one.path.end {
            CanaryEnd::Gateway => "gateway".into(),
            CanaryEnd::Guard => "guard".into(),
        },
        broken: one.broken.map(ToString::to_string),
        measured_secs_ago: one.secs_ago,
    };
    measured(canaries).map(one).collect()
}
