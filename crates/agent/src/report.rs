//! Reports about this node: metrics and health, the node's status, and answers to the command line.

mod cli_conditions;
mod cli_status;
mod conditions;
mod gateway_report;
pub(crate) mod gauges;
mod health;
mod metrics;
mod naming;
mod node_status;
mod obstacles;
mod path_view;
mod query;
mod quotas;
mod status_inputs;
mod status_writer;
mod traffic;

pub use cli_conditions::{ConditionView, NodeView};
pub use cli_status::{
    AddressView, CLI_API_VERSION, FindingView, GatewayView, LeaseView, Pods, PolicyView,
    PortUsageView, Status,
};
pub(crate) use gateway_report::GatewayReport;
pub use health::Health;
pub(crate) use metrics::ByKind;
pub use metrics::Metrics;
pub(crate) use node_status::node_status;
pub use path_view::PathView;
pub(crate) use query::{Query, listen};
pub use query::{Question, ask};
pub(crate) use status_inputs::{LocalFindings, StatusInputs};
pub(crate) use status_writer::{NodeStatus, Numbered, StatusAnswer, start as start_status_writer};
pub(crate) use traffic::Traffic;

use egret_core::machines::Destination;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Number of full destinations, by egress address.
fn full_destinations(full: &BTreeSet<Destination>) -> BTreeMap<IpAddr, u32> {
    let mut counts = BTreeMap::new();
    for one in full {
        *counts.entry(one.egress).or_default() += 1;
    }
    counts
}
