//! Events that wake the main loop. An observer passes its own type; only here it becomes an event.

use crate::cni::PendingCall;
use crate::observe::canary::Report;
use crate::observe::flows::ConntrackDump;
use crate::observe::neighbours::Heard;
use crate::observe::port_use::PortUsage;
use crate::observe::source::Reading;
use crate::report::{Query, StatusAnswer};
use crate::threads::Notify;
use egret_core::machines::GatewayLiveness;
use egret_datapath::presence::l2::conflict::Claim;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Event that wakes the main loop.
pub(crate) enum Event {
    /// The objects were read, or could not be read.
    Source(Reading),
    /// Result of the gateway probes.
    Gateways(GatewayLiveness),
    /// Answers and silence on the external network.
    Neighbours(Heard),
    /// A link, address, route or rule has changed.
    Links,
    /// Machines on the external segment claim addresses that this gateway serves.
    Claims(Vec<Claim>),
    /// All flows of the node, as requested.
    Flows(ConntrackDump),
    /// Use of the source ports.
    Ports(PortUsage),
    /// The node's status was written, or cannot be.
    Status(StatusAnswer),
    /// Question of the command line.
    Query(Query),
    /// Call of the CNI plugin.
    Cni(PendingCall),
    /// Results of canaries.
    Canaries(Report),
}

impl Event {
    /// Passes values of an observer to the loop, as events of one kind.
    pub(crate) fn notify<T: 'static>(events: &Sender<Event>, kind: fn(T) -> Event) -> Notify<T> {
        let events = events.clone();
        Arc::new(move |value| events.send(kind(value)).is_ok())
    }
}
