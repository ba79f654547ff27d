//! Observers: each looks at one thing and hands on values of its own type. Those that wait have a thread, and give what
//! they find to a closure; none knows who takes it. The others are asked by the main loop.

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
