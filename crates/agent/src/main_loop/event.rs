//! What wakes the loop. Whoever finds something hands on its own type; only here it becomes an event.

use crate::cni::PendingCall;
use crate::observe::canary::Report;
use crate::observe::flows::ConntrackDump;
use crate::observe::neighbours::Heard;
use crate::observe::port_use::FullDestinations;
use crate::observe::source::Reading;
use crate::report::Query;
use crate::threads::Notify;
use egret_core::machines::GatewayLiveness;
use egret_datapath::presence::l2::conflict::Claim;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// What wakes the loop.
pub(crate) enum Event {
    /// The objects were read, or cannot be.
    Source(Reading),
    /// What the probes say.
    Gateways(GatewayLiveness),
    /// What was heard on the external network.
    Neighbours(Heard),
    /// A link, address, route or rule has changed.
    Links,
    /// Machines on the external segment have said that they have addresses that this gateway serves.
    Claims(Vec<Claim>),
    /// All flows of the node, as asked for.
    Flows(ConntrackDump),
    /// Destinations towards which a lease is used up.
    Full(FullDestinations),
    /// Somebody asks.
    Query(Query),
    /// The CNI plugin tells of a pod.
    Cni(PendingCall),
    /// What canaries have shown.
    Canaries(Report),
}

impl Event {
    /// Hands values of an observer to the loop, as events of one kind.
    pub(crate) fn notify<T: 'static>(events: &Sender<Event>, kind: fn(T) -> Event) -> Notify<T> {
        let events = events.clone();
        Arc::new(move |value| events.send(kind(value)).is_ok())
    }
}
