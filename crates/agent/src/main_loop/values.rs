//! Values that the main loop consists of, beside its schedule and the data path.

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

/// Latest values of all observers.
#[derive(Default)]
pub(super) struct Inputs {
    /// The objects, with the CNI's announcements laid over them; `None` before the first.
    pub(super) view: Option<Box<View>>,
    /// Arrival time of the oldest view that is not applied yet.
    pub(super) view_since: Option<Instant>,
    /// Liveness of the gateways, from probes.
    pub(super) gateways: GatewayLiveness,
    /// Gateways that have answered since the start.
    pub(super) ever_live: BTreeSet<NodeName>,
    /// Facts about links; `None` until the first read.
    pub(super) links: Option<Links>,
    /// Links may have changed since the last read.
    pub(super) links_stale: bool,
    /// Routers attached to this node's networks.
    pub(super) routers: Routers,
    /// Device of each pod.
    pub(super) pod_devices: PodDevices,
    /// Pods of this node that other nodes do not know to be pods.
    pub(super) uncovered: Uncovered,
    /// Destinations towards which a lease is exhausted.
    pub(super) full: BTreeSet<Destination>,
    /// Results of canaries.
    pub(super) canaries: Shown,
    /// Index of the device at whose ingress canaries appear, where there is one.
    pub(super) canary_device: Option<u32>,
}

/// Values sent last to the threads that serve the loop: an unchanged value is not sent again.
#[derive(Default)]
pub(super) struct LastSent {
    /// Source ports whose use is followed.
    pub(super) ranges: Ranges,
    /// Gateways to probe.
    pub(super) targets: Targets,
    /// Next hops to probe.
    pub(super) watch: Watch,
    /// Paths that canaries measure.
    pub(super) measured: Measured,
    /// This node's status.
    pub(super) status: Option<NodeStatus>,
    /// Version of this node's record when the status was sent.
    pub(super) record_version: u64,
    /// Number of the change whose flows were requested.
    pub(super) flows_change: Option<u64>,
}

/// Values that are read periodically for reports only, and the reporting threads.
pub(super) struct Reports {
    /// Metrics and health of the agent.
    pub(super) health: Arc<Health>,
    /// Counters of the kernel.
    pub(super) traffic: Traffic,
    /// Source ports in use, by egress address.
    pub(super) ports: BTreeMap<IpAddr, u32>,
    /// Findings that are reported as conditions.
    pub(super) findings: LocalFindings,
    /// Rules of foreign firewalls that refuse our packets, as of the last check.
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
