//! Reasons why a worker drops or refuses packets, one named counter each.

/// A counter of the worker's table: name in the kernel and in metrics, and meaning.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Name.
    pub name: &'static str,
    /// Meaning, for `--help` of metrics and the docs.
    pub help: &'static str,
}

pub(super) const LATE: &str = "late_packet";
pub(super) const STRANGER: &str = "tunnel_stranger";
pub(super) const HANDMADE: &str = "tunnel_handmade";
pub(super) const TRANSIT: &str = "tunnel_transit";
pub(super) const UNSOLICITED: &str = "unsolicited";
pub(super) const INVALID: &str = "invalid_state";
pub(super) const MIDSTREAM: &str = "midstream_reset";
pub(super) const ENDED: &str = "ended_flow";
pub(super) const FAMILY: &str = "family_not_covered";
pub(super) const UNAVAILABLE: &str = "unavailable";
pub(super) const PORTLESS: &str = "protocol_refused";
pub(super) const NO_LEASE: &str = "no_lease";
pub(super) const FULL: &str = "ports_exhausted";
pub(super) const POD_QUOTA: &str = "pod_quota";
pub(super) const NAMESPACE_QUOTA: &str = "namespace_quota";
pub(super) const HAIRPIN: &str = "hairpin";
pub(super) const UNKNOWN_POD: &str = "unknown_pod";
pub(super) const OTHER_DEVICE: &str = "other_device";
pub(super) const FORGED: &str = "forged_source";
pub(super) const GUARD_SELECTED: &str = "guard_selected";
/// Counter of selected packets that IPVS sent past the gateways (decision 128).
pub const GUARD_IPVS: &str = "guard_ipvs";
pub(super) const GUARD_EGRESS: &str = "guard_egress_address";
pub(super) const GUARD_DEVICE: &str = "guard_tunnel_device";

/// Every counter of the worker's table.
pub const COUNTERS: &[Counter] = &[
    Counter {
        name: LATE,
        help: "late packets of flows that a policy change ended",
    },
    Counter {
        name: STRANGER,
        help: "tunnel packets from others than known peers, or to another address than the underlay's",
    },
    Counter {
        name: HANDMADE,
        help: "tunnel packets that a pod or another host made by hand",
    },
    Counter {
        name: TRANSIT,
        help: "packets that would have gone from tunnel to tunnel",
    },
    Counter {
        name: UNSOLICITED,
        help: "packets to an egress address that belong to no flow",
    },
    Counter {
        name: INVALID,
        help: "selected packets that conntrack calls invalid",
    },
    Counter {
        name: MIDSTREAM,
        help: "selected TCP packets without a flow, answered by a reset",
    },
    Counter {
        name: ENDED,
        help: "packets of flows that a policy change ended, refused to the pod",
    },
    Counter {
        name: FAMILY,
        help: "packets of a family that their policy has no address of",
    },
    Counter {
        name: UNAVAILABLE,
        help: "selected packets whose policy has no address yet",
    },
    Counter {
        name: PORTLESS,
        help: "selected packets of protocols without ports",
    },
    Counter {
        name: NO_LEASE,
        help: "new selected flows without usable source ports",
    },
    Counter {
        name: FULL,
        help: "new selected flows to a destination towards which all source ports are in use, refused to the pod",
    },
    Counter {
        name: POD_QUOTA,
        help: "new selected flows of a pod that has as many to the destination as its quota allows, refused to the pod",
    },
    Counter {
        name: NAMESPACE_QUOTA,
        help: "new selected flows of a namespace that has as many to the destination on this node as its quota allows, refused to the pod",
    },
    Counter {
        name: HAIRPIN,
        help: "new selected flows to an egress address of the cluster, refused to the pod",
    },
    Counter {
        name: UNKNOWN_POD,
        help: "new flows to outside from addresses of the pod CIDRs that no known pod has, where these are to be dropped",
    },
    Counter {
        name: OTHER_DEVICE,
        help: "selected packets from a pod's address that did not come by the pod's device: it is another's by now",
    },
    Counter {
        name: FORGED,
        help: "forwarded packets from an egress address that came by another device than the one that leads there",
    },
    Counter {
        name: GUARD_SELECTED,
        help: "selected packets that would have left by a wrong way",
    },
    Counter {
        name: GUARD_IPVS,
        help: "selected packets that IPVS would have sent past the gateways: to a Service with an endpoint outside the cluster",
    },
    Counter {
        name: GUARD_EGRESS,
        help: "packets from an egress address on a wrong device",
    },
    Counter {
        name: GUARD_DEVICE,
        help: "packets on the tunnel without a leased source",
    },
];
