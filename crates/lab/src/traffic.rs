//! Real traffic between hosts and pods, without any external tool: an answering server, questions to it, and flows that
//! watch themselves. Every function has a deadline.

pub mod ping;
