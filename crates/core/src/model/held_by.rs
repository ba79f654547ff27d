//! Egress addresses that something of the cluster has itself.

use super::ids::ObjectRef;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The holder of an egress address, with the ports that are its own: they are never leased, so that their packets go on to
/// the holder's stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBy {
    /// The Node or Service that has the address.
    pub holder: ObjectRef,
    /// Ports of the holder's own connections (`net.ipv4.ip_local_port_range`), first and last; `None`: it opens none from
    /// this address.
    pub ephemeral: Option<(u16, u16)>,
    /// Ports of NodePort Services, first and last; `None`: it serves none.
    pub node_ports: Option<(u16, u16)>,
    /// Ports that Services and the holder's programs listen on.
    pub service_ports: BTreeSet<u16>,
}
