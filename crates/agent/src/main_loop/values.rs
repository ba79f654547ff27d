//! The values that the loop consists of, beside its schedule and the data path.

use crate::observe::canary::{Measured, Shown};
use crate::observe::facts::Links;
use crate::observe::neighbours::Watch;
use crate::observe::pod_devices::PodDevices;
use crate::observe::port_use::Ranges;
use crate::observe::probe::Targets;
use crate::observe::surroundings::Routers;
use crate::observe::uncovered::Uncovered;
use crate::report::{Health, LocalFindings, NodeStatus, Traffic};
use egret_core::machines::{Destination, GatewayLiveness};
use egret_core::model::NodeName;
use egret_core::obstacle::Obstacle;
use egret_objects::View;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// What observers have found, as known last.
#[derive(Default)]
pub(super) struct Inputs {
    /// The objects, with what the CNI has told laid over; `None` before the first.
    pub(super) view: Option<Box<View>>,
    /// When the oldest view came that is not carried out yet.
    pub(super) view_since: Option<Instant>,
    /// The gateways as probes see them.
    pub(super) gateways: GatewayLiveness,
    /// Gateways that have answered since the start.
    pub(super) ever_live: BTreeSet<NodeName>,
    /// Facts about links; `None` until they are looked up.
    pub(super) links: Option<Links>,
    /// They may have changed since.
    pub(super) links_stale: bool,
    /// Routers around this node.
    pub(super) routers: Routers,
    /// Which device leads to which pod.
    pub(super) pod_devices: PodDevices,
    /// Pods that other nodes do not know to be pods.
    pub(super) uncovered: Uncovered,
    /// Destinations towards which a lease is used up.
    pub(super) full: BTreeSet<Destination>,
    /// What canaries have shown.
    pub(super) canaries: Shown,
    /// Index of the device at whose ingress canaries appear, where there is one.
    pub(super) canary_device: Option<u32>,
}

/// What the threads that work for the loop were sent last: what has not changed is not sent again.
#[derive(Default)]
pub(super) struct LastSent {
    /// Source ports whose use is followed.
    pub(super) ranges: Ranges,
    /// Whom to probe.
    pub(super) targets: Targets,
    /// Next hops to ask.
    pub(super) watch: Watch,
    /// What canaries measure.
    pub(super) measured: Measured,
    /// This node's status.
    pub(super) status: Option<NodeStatus>,
    /// Version of this node's record when the status was sent.
    pub(super) record_version: u64,
    /// The change whose flows were asked for.
    pub(super) flows_change: Option<u64>,
}

/// What is read now and then only to be reported, and who reports it.
pub(super) struct Reports {
    /// Metrics, and whether the agent is well.
    pub(super) health: Arc<Health>,
    /// Counters of the kernel.
    pub(super) traffic: Traffic,
    /// Source ports in use, by egress address.
    pub(super) ports: BTreeMap<IpAddr, u32>,
    /// What is reported as a condition.
    pub(super) findings: LocalFindings,
    /// What of others' firewalls refuses our packets, as last looked at.
    pub(super) obstacles: Vec<Obstacle>,
}

impl Reports {
    pub(super) fn new(health: &Arc<Health>) -> Self {
        Reports {
            health: health.clone(),
            traffic: Traffic::default(),
            ports: BTreeMap::new(),
            findings: LocalFindings::default(),
            obstacles: Vec::new(),
        }
    }
}
