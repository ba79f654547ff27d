//! Condition types and reasons. They are an interface: alerts and scripts name them, so they never change silently.

/// Types of conditions.
pub mod condition {
    /// The object is understood and will be carried out.
    pub const ACCEPTED: &str = "Accepted";
    /// Its addresses are known and not refused to it.
    pub const ALLOCATED: &str = "Allocated";
    /// Every selected pod leaves with its egress address.
    pub const READY: &str = "Ready";
    /// A worker has no source ports left for an address.
    pub const PORTS_EXHAUSTED: &str = "PortsExhausted";
    /// The addresses lack a family: traffic of that family is rejected.
    pub const FAMILY_NOT_COVERED: &str = "FamilyNotCovered";
    /// Another policy comes before this one for some pods and destinations.
    pub const OVERLAPPED: &str = "Overlapped";
    /// It works, with less than was promised.
    pub const DEGRADED: &str = "Degraded";
    /// A node's firewall refuses forwarding and Egret cannot mend it there.
    pub const FORWARD_BLOCKED: &str = "ForwardBlocked";
    /// The network plugin of a node takes packets past the kernel in a way that Egret does not know.
    pub const UNSUPPORTED: &str = "Unsupported";
}

/// Reasons of conditions, grouped by what they say.
pub mod reason {
    /// Understood.
    pub const VALID: &str = "Valid";
    /// A field says something that cannot be; the message names it.
    pub const INVALID: &str = "Invalid";
    /// The newest edit is bad; the last good one stays in force.
    pub const LAST_GOOD_KEPT: &str = "LastGoodKept";
    /// The object asks for something that is not built yet.
    pub const NOT_SUPPORTED: &str = "NotSupported";
    /// Addresses are there.
    pub const ADDRESSES_ASSIGNED: &str = "AddressesAssigned";
    /// The pool has no free address.
    pub const POOL_EXHAUSTED: &str = "PoolExhausted";
    /// The named pool does not exist.
    pub const POOL_NOT_FOUND: &str = "PoolNotFound";
    /// The pool does not serve this namespace, or the address is in no pool and that is not allowed.
    pub const ADDRESS_NOT_ALLOWED: &str = "AddressNotAllowed";
    /// The named gateway does not exist, or there is no default one.
    pub const GATEWAY_NOT_FOUND: &str = "GatewayNotFound";
    /// The gateway selects no node, or none of its nodes lives.
    pub const NO_LIVE_GATEWAY: &str = "NoLiveGateway";
    /// Every selected pod is programmed.
    pub const PROGRAMMED: &str = "Programmed";
    /// Some selected pods are not programmed yet.
    pub const PROGRAMMING: &str = "Programming";
    /// The policy selects no pod now.
    pub const NO_PODS: &str = "NoPods";
    /// Selected pods use their node's network and are left out.
    pub const HOST_NETWORK_PODS: &str = "HostNetworkPods";
    /// No port block of the address is free.
    pub const NO_FREE_PORTS: &str = "NoFreePorts";
    /// A worker uses all ports of its lease.
    pub const LEASE_FULL: &str = "LeaseFull";
    /// The addresses are all IPv4.
    pub const IPV4_ONLY: &str = "IPv4Only";
    /// The addresses are all IPv6.
    pub const IPV6_ONLY: &str = "IPv6Only";
    /// Another policy comes first; the message names it.
    pub const OTHER_POLICY_FIRST: &str = "OtherPolicyFirst";
    /// The gateway runs without eBPF, so it cannot check who owns a source port.
    pub const NO_OWNERSHIP_CHECK: &str = "NoOwnershipCheck";
    /// The condition's question does not arise.
    pub const NOT_APPLICABLE: &str = "NotApplicable";
}
