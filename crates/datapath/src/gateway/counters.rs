//! The counters of the eBPF programs: the Rust side of `bpf/include/counters.h`.

/// A counter of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Name, also the label in metrics.
    pub name: &'static str,
    /// Meaning of the counter.
    pub help: &'static str,
    /// Whether it counts dropped packets.
    pub dropped: bool,
}

pub(crate) const fn served(name: &'static str, help: &'static str) -> Counter {
    Counter {
        name,
        help,
        dropped: false,
    }
}

pub(crate) const fn dropped(name: &'static str, help: &'static str) -> Counter {
    Counter {
        name,
        help,
        dropped: true,
    }
}

/// All counters; the position is the index in the map.
pub const COUNTERS: &[Counter] = &[
    served("in_forwarded", "for an egress address, sent to its worker"),
    served(
        "in_self",
        "for a block of this node itself, left to its stack",
    ),
    served("in_arp_answered", "ARP requests answered"),
    served("in_nd_answered", "neighbour solicitations answered"),
    dropped(
        "in_no_block",
        "for a port of an egress address that nobody has leased",
    ),
    dropped("in_no_worker", "for a worker that is not in the table"),
    dropped("in_echo_request", "echo requests to an egress address"),
    dropped(
        "in_fragment_unknown",
        "fragments whose first fragment was not seen",
    ),
    dropped(
        "in_foreign_quote",
        "ICMP errors that quote a packet of somebody else",
    ),
    dropped(
        "in_unserved",
        "for an egress address, by a protocol without ports",
    ),
    dropped(
        "in_malformed",
        "for an egress address, with broken headers or too many of them",
    ),
    dropped(
        "in_ttl_expired",
        "for an egress address, at the end of its hops",
    ),
    dropped(
        "in_too_big",
        "for an egress address, larger than the tunnel and not to be fragmented",
    ),
    served(
        "out_forwarded",
        "from a worker that owns the port, sent out",
    ),
    served(
        "out_self",
        "from another gateway to this node as a worker, left to its stack",
    ),
    served("probe_answered", "probes answered"),
    served("probe_received", "answers to own probes, left to the agent"),
    dropped(
        "out_spoofed",
        "from a worker that does not own the source port",
    ),
    dropped(
        "out_fragment_unknown",
        "ICMP errors about fragments that were not seen",
    ),
    dropped(
        "out_foreign_quote",
        "ICMP errors about a packet that was not for their source",
    ),
    dropped("out_unserved", "from a worker, by a protocol without ports"),
    dropped(
        "out_malformed",
        "from the tunnel, with broken headers or too many of them",
    ),
    dropped("out_ttl_expired", "from a worker, at the end of its hops"),
    dropped(
        "out_too_big",
        "from a worker, larger than the external device's MTU",
    ),
    dropped(
        "out_not_ours",
        "from the tunnel, neither from nor for an egress address of ours",
    ),
    dropped(
        "out_unknown_peer",
        "from the tunnel, from an address that is no node of ours",
    ),
    dropped(
        "out_foreign_tunnel",
        "on the tunnel device, but for another machine or network identifier",
    ),
    dropped(
        "probe_refused",
        "link-local packets in the tunnel that are no probe of a known node",
    ),
    dropped(
        "icmp_limited",
        "ICMP errors not sent, since there were too many in this second",
    ),
    dropped(
        "failed",
        "the kernel refused a call: memory, headroom, an unset table",
    ),
    served(
        "out_next_hop",
        "from a pod to a next hop of this gateway, left to its stack",
    ),
    dropped(
        "out_next_hop_unknown",
        "from a pod to a next hop that this gateway does not have",
    ),
    served(
        "canary_turned",
        "canaries of workers that own their port, sent back to them",
    ),
    dropped(
        "canary_refused",
        "packets to the canaries' destinations that are no canaries",
    ),
    served(
        "out_local",
        "from a worker that owns the port, to this gateway itself, left to its stack",
    ),
    served(
        "out_unresolved",
        "of those in out_forwarded: for a neighbour whose link address was not known (yet); the kernel asks for it, keeps a few and drops the rest",
    ),
    served(
        "in_relayed",
        "for a port without owner in these tables, passed to another gateway of the group",
    ),
    dropped(
        "in_relay_limited",
        "for a port without owner, beyond what is passed to another gateway in a second",
    ),
    served(
        "relay_forwarded",
        "passed on by another gateway, sent to its worker or left to the stack",
    ),
    dropped(
        "relay_no_block",
        "passed on by another gateway, for a port that nobody has leased here either",
    ),
    dropped(
        "relay_refused",
        "passed on by a node that shares no group with this gateway, or not to be served by port",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_header() {
        let header = include_str!("../../../../bpf/include/counters.h");
        let lines = header
            .lines()
            .filter_map(|line| line.trim().strip_prefix("EGRET_"));
        let pairs = lines.filter_map(|line| line.trim_end_matches(',').split_once(" = "));
        let mut c: Vec<(String, String)> = pairs
            .map(|(name, index)| (name.to_lowercase(), index.to_owned()))
            .collect();
        assert_eq!(
            c.pop(),
            Some(("counters".to_owned(), COUNTERS.len().to_string()))
        );
        let rust: Vec<(String, String)> = COUNTERS
            .iter()
            .enumerate()
            .map(|(index, counter)| (counter.name.to_owned(), index.to_string()))
            .collect();
        assert_eq!(c, rust);
    }
}
