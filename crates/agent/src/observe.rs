//! Observers: each reads one thing and passes on values of its own type. Observers that block have a thread and pass
//! values to a closure; none knows the receiver. The main loop calls the others.

pub(crate) mod canary;
pub(crate) mod conflicts;
pub(crate) mod facts;
pub(crate) mod flows;
pub(crate) mod links;
pub(crate) mod neighbours;
pub(crate) mod pod_devices;
pub(crate) mod port_use;
pub(crate) mod probe;
pub(crate) mod source;
pub(crate) mod surroundings;
pub(crate) mod uncovered;
