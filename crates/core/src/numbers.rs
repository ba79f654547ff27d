//! Every number that marks a kernel object as Egret's, and every limit. One table; `docs/numbers.md` is checked
//! against it by the tidy test.

use std::net::Ipv6Addr;

/// Name of the tunnel device on every node.
pub const TUNNEL_DEVICE: &str = "egret0";
/// UDP port of the tunnel (VXLAN, RFC 7348), on every node.
pub const TUNNEL_PORT: u16 = 14789;
/// VXLAN network identifier of the tunnel.
pub const TUNNEL_VNI: u32 = 14790;
/// VXLAN network identifier of packets that one gateway passes to another one of its group (decision 138).
pub const RELAY_VNI: u32 = 14791;
/// First VXLAN network identifier of packets to a next hop; the next hop's hash is under `NEXT_HOP_VNI_BITS`.
pub const NEXT_HOP_VNI_BASE: u32 = 0x0080_0000;
/// Bits of a next hop's hash in its VXLAN network identifier: two next hops that share them cannot both be used, and the
/// younger policy is refused.
pub const NEXT_HOP_VNI_BITS: u32 = 23;
/// Address of the tunnel device on every node: without one, loose reverse-path filtering drops what it receives.
pub const TUNNEL_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 77, 1);
/// Bytes that the tunnel adds over an IPv4 underlay (IPv4 20, UDP 8, VXLAN 8, Ethernet 14).
pub const TUNNEL_OVERHEAD_V4_BYTES: u32 = 50;
/// Bytes that the tunnel adds over an IPv6 underlay.
pub const TUNNEL_OVERHEAD_V6_BYTES: u32 = 70;
/// UDP port of probes inside the tunnel, answered by the gateway's eBPF program.
pub const PROBE_PORT: u16 = 14790;
/// Packet mark bits that are ours.
pub const MARK_MASK: u32 = 0x00ff_0000;
/// Bits that a group number is shifted to reach the mark.
pub const MARK_SHIFT: u32 = 16;
/// Highest gateway group number of one node; more are a finding.
pub const GROUPS_MAX: u8 = 120;
/// Set from classification to routing in a mark of another component that has one of our group numbers in our bits, and
/// taken off after routing: no group number has this bit, so such a packet meets none of our routing rules.
pub const FOREIGN_MARK_BIT: u32 = 0x0080_0000;
/// Group number that means "reinjected into the stack and left alone by it"; no target has it.
pub const GROUP_LEFT_ALONE: u8 = 252;
/// Name of the device at whose ingress the packets appear that pods send past the stack.
pub const REINJECT_DEVICE: &str = "egret-lift";
/// Name of its other end, which carries nothing.
pub const REINJECT_PEER: &str = "egret-lift-end";
/// Address of the reinject device: without one, loose reverse-path filtering drops what it receives.
pub const REINJECT_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 77, 2);
/// Name of the device at whose ingress canaries appear, as if from a pod.
pub const CANARY_DEVICE: &str = "egret-canary";
/// Name of its other end, where the agent sends and receives them.
pub const CANARY_PEER: &str = "egret-canary-in";
/// Address of the canary device: without one, loose reverse-path filtering drops what it receives.
pub const CANARY_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 77, 3);
/// Source of IPv4 canaries where the Node has no IPv4 pod CIDR.
pub const CANARY_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 77, 4);
/// Source of IPv6 canaries where the Node has no IPv6 pod CIDR.
pub const CANARY_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd65, 0x6772, 0x6574, 0, 0, 0, 0, 4);
/// Destinations of IPv4 canaries (RFC 2544): the last octet is the number of the gateway group. Gateways turn them round.
pub const CANARY_DESTINATION_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(198, 18, 79, 0);
/// Destinations of IPv6 canaries (RFC 6666): the last octet is the number of the gateway group.
pub const CANARY_DESTINATION_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0x79, 0, 0);
/// Port that TCP and UDP canaries are sent to.
pub const CANARY_PORT: u16 = 14791;
/// Source ports of the node's own lease that canaries use.
pub const CANARY_LEASE_PORTS: u16 = 16;
/// Ports that a lease must have for canaries to use it: of a smaller one none is taken.
pub const CANARY_LEASE_MIN_PORTS: u32 = 256;
/// Milliseconds between two rounds of canaries.
pub const CANARY_INTERVAL_MS: u64 = 10_000;
/// The same while a path is broken: it counts again soon after it is whole.
pub const CANARY_AGAIN_MS: u64 = 2_000;
/// Milliseconds after a change of links, rules or policies until a round begins; further changes do not put it off.
pub const CANARY_SETTLE_MS: u64 = 1_000;
/// Tries of one canary, all without answer, after which its path is looked at hook by hook.
pub const CANARY_TRIES: u32 = 3;
/// Milliseconds that one try waits for its answer.
pub const CANARY_ANSWER_MS: u64 = 700;
/// Priority of the rule that leads answers of canaries out of the tunnel to the canary device.
pub const RULE_PRIORITY_CANARY: u32 = 76;
/// Priority of our policy routing rules.
pub const RULE_PRIORITY: u32 = 79;
/// Priority of the rule that leads what the node itself makes past our rules.
pub const RULE_PRIORITY_OWN_PACKETS: u32 = 77;
/// Priority of the rule that it leads to, which does nothing: behind our rules, before everybody else's.
pub const RULE_PRIORITY_END: u32 = 80;
/// Routing table of group g is this plus g.
pub const ROUTE_TABLE_BASE: u32 = 14790;
/// Route protocol number on our routes, rules, addresses and next hops.
pub const ROUTE_PROTOCOL: u8 = 79;
/// Priority of the rules of the driver `classic`.
pub const CLASSIC_RULE_PRIORITY: u32 = 78;
/// Route protocol number of the driver `classic`.
pub const CLASSIC_ROUTE_PROTOCOL: u8 = 78;
/// Highest number of an address of the driver `classic`: a mark under `MARK_MASK`, and a routing table below the
/// kernel's own (253 to 255).
pub const CLASSIC_NUMBER_MAX: u8 = 252;
/// nftables table of the driver `classic` (family inet).
pub const CLASSIC_NFT_TABLE: &str = "egret_classic";
/// Directory of what must outlive the driver `classic` (saved sysctls).
pub const CLASSIC_STATE_DIR: &str = "/var/lib/egret/classic";
/// Next hop objects: base plus tunnel index; groups: base plus `NEXTHOP_GROUP_OFFSET` plus group.
pub const NEXTHOP_BASE: u32 = 0x0e60_0000;
/// See [`NEXTHOP_BASE`].
pub const NEXTHOP_GROUP_OFFSET: u32 = 0x0001_0000;
/// Next hop objects of packets to a next hop: `NEXTHOP_BASE` plus this times one more than the group's number, plus tunnel
/// index.
pub const NEXT_HOP_OBJECTS: u32 = 0x0001_0000;
/// Our nftables table (family inet).
pub const NFT_TABLE: &str = "egret";
/// Directory of pinned eBPF objects.
pub const PIN_DIR: &str = "/sys/fs/bpf/egret";
/// Directory of what must outlive the agent (saved sysctls).
pub const STATE_DIR: &str = "/var/lib/egret";
/// The agent's socket for the command line.
pub const AGENT_SOCKET: &str = "/run/egret/agent.sock";
/// The agent's socket for the CNI plugin `egret-cni`.
pub const CNI_SOCKET: &str = "/run/egret/cni.sock";
/// Directory of the runtime's CNI plugins.
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// Seconds that a new pod waits until the API has told the agent of it; then its start is tried again.
pub const CNI_OBJECT_SECS: u64 = 10;
/// Seconds that a new selected pod waits until it can open connections; then it starts, and cannot yet.
pub const CNI_LEASE_SECS: u64 = 5;
/// Calls of the CNI plugin that wait at once; further ones are told to come again.
pub const CNI_PENDING_MAX: usize = 256;
/// HTTP port of the agent.
pub const AGENT_HTTP_PORT: u16 = 9791;
/// HTTP port of the controller.
pub const CONTROLLER_HTTP_PORT: u16 = 9792;
/// Source ports in one block, and its alignment.
pub const BLOCK_PORTS: u16 = 64;
/// First port that may be leased (RFC 6888 keeps well-known ports apart).
pub const LEASE_PORT_FIRST: u16 = 1024;
/// Ranges that a first grant is scattered over, at most (RFC 6056: unpredictable ports).
pub const LEASE_RANGES_MAX: usize = 4;
/// First grant, in ports, at most.
pub const LEASE_PORTS_FIRST_MAX: u16 = 1024;
/// Seconds that a released range rests before another worker may have it (RFC 6888 REQ-8).
pub const LEASE_HOLD_DOWN_SECS: u64 = 120;
/// Milliseconds for which a gateway's agent, once restarted, waits for records that are as new as the kernel's tables: as
/// long as a released range rests.
pub const OLDER_RECORDS_MS: u64 = 120_000;
/// Seconds for which the flows of a node go on whose Node object is gone: kubelets register again within less.
pub const NODE_GONE_SECS: i64 = 60;
/// Seconds during which fewer ports of an address must have sufficed until a node wants fewer.
pub const LEASE_IDLE_SECS: u64 = 600;
/// Source ports of one address that can be leased.
pub const LEASE_PORTS_ALL: u32 = 64_512;
/// Milliseconds after which no packet in the stack can still get a port of rules that were replaced: withdrawn ranges are
/// held until flows have been counted after them.
pub const DRAIN_SETTLE_MS: u64 = 1_000;
/// Seconds for which a node reports a number of ports in use that is a little too high.
pub const PORTS_REPORT_SECS: u64 = 60;
/// Ports that every worker with a selected pod gets before others get more.
pub const LEASE_FLOOR_PORTS: u32 = 64;
/// Pairs of pod (or namespace) and destination whose connections one set counts. Further ones are not limited by the
/// quota.
pub const QUOTA_DESTINATIONS_MAX: u32 = 65_536;
/// Pods and destinations of refused connections over a quota that a node reports, of each family.
pub const QUOTA_REPORTED_MAX: u32 = 256;
/// Seconds for which a node reports such a connection after it was refused.
pub const QUOTA_REPORT_SECS: u64 = 300;
/// Percentage of an address's ports that workers have and need, from which on new pods of policies with several addresses
/// avoid it.
pub const CROWDED_ENTER_PERCENT: usize = 80;
/// Percentage below which they use it again.
pub const CROWDED_LEAVE_PERCENT: usize = 70;
/// Milliseconds for which a live gateway may stay behind the steering version that another one of its group has; after that
/// it is left out until it has caught up.
pub const GATEWAY_LAG_MS: u64 = 5_000;
/// Milliseconds between probes of one gateway.
pub const PROBE_INTERVAL_MS: u64 = 50;
/// Probes without answer after which a gateway counts as dead.
pub const PROBE_FAILURES: u32 = 3;
/// Tunnel indexes are 1..=this (they are the last 16 bits of fe80::/64 next hops and of tunnel MAC addresses).
pub const TUNNEL_INDEX_MAX: u16 = 0xfffd;
/// Seconds that tuples of flows ended by a policy change are remembered (TCP gives up after about 924 s: tcp_retries2).
pub const ENDED_FLOW_SECS: u64 = 930;
/// Tuples of ended flows remembered at once, per set; further ones are counted and left to the guard.
pub const ENDED_FLOWS_MAX: u32 = 65_536;
/// Destinations towards which a lease is used up that are refused visibly at once; new flows to further ones are dropped
/// in silence, as the kernel does.
pub const FULL_DESTINATIONS_MAX: usize = 4096;
/// Prefixes and addresses of pods that no Node names and that the controller tells every node, at most. While there are
/// more, policies that could take traffic to the rest are not Ready: name their prefixes by `--never-destination`.
pub const POD_PREFIXES_MAX: usize = 4096;
/// Addresses of nodes' devices that no Node names and that the controller tells every node, at most. While there are
/// more, a finding names the first of the rest: name their networks by `--never-destination`.
pub const DEVICE_ADDRESSES_MAX: usize = 4096;
/// `EgressNode`s that keep the highest epoch when the record of an unused address is deleted: one of them may be deleted or
/// edited by hand at a time.
pub const EPOCH_RECORDS: usize = 3;
/// `EgressNode`s of gateway nodes that carry both: every agent reads those of gateways, and with two the list stays where
/// one node is no gateway any more.
pub const POD_PREFIX_RECORDS: usize = 2;
/// Prefixes that a node takes out of its own routing table as those of pods, at most.
pub const POD_ROUTES_MAX: usize = 1024;
/// Shortest prefix length of an IPv4 route that counts as evidence of pods: a VPN may halve the default route.
pub const POD_ROUTE_WIDEST_V4: u8 = 8;
/// The same for IPv6.
pub const POD_ROUTE_WIDEST_V6: u8 = 16;
/// Seconds for which a pod's address may be unknown to other nodes before its node says so: a new pod's is told within
/// less where the controller runs.
pub const POD_UNCOVERED_SECS: u64 = 5;
/// Addresses of its external device that a gateway reports, at most.
pub const EXTERNAL_ADDRESSES_MAX: usize = 64;
/// Addresses of its devices that a node reports, at most.
pub const NODE_ADDRESSES_MAX: usize = 128;
/// Routers around a node that it reports, at most.
pub const ROUTERS_MAX: usize = 64;
/// Egress addresses that a gateway reports as another machine's, at most.
pub const CONFLICTS_MAX: usize = 64;
/// Seconds after which a node looks for its routers again.
pub const ROUTERS_REFRESH_SECS: u64 = 30;
/// Milliseconds for which new flows to a full destination are dropped in silence, so that TCP tries again, before they are
/// refused: the controller may grant more ports meanwhile.
pub const FULL_GRACE_MS: u64 = 1_500;
/// Seconds after which the refusal of a full destination ends by itself if no agent renews it.
pub const FULL_DESTINATION_SECS: u64 = 30;
/// Refused packets of protocols without ports (source, destination, protocol) that are remembered at once, per family,
/// to be told in a condition; all are counted.
pub const REFUSED_PROTOCOLS_MAX: u32 = 256;
/// Seconds after the last such packet until the condition forgets it.
pub const REFUSED_PROTOCOL_SECS: u64 = 300;
/// Destination boxes of one profile, at most: a set of the kernel with more takes longer to commit than a policy change
/// may take. The policies that rank last are left out until the rest fits, with a finding each.
pub const PROFILE_BOXES_MAX: usize = 65_536;
/// Pairs of policy and egress address of one node whose traffic is counted apart, and addresses of one gateway; what is
/// beyond is summed under `other`, so that metrics stay few.
pub const TRAFFIC_ACCOUNTS_MAX: usize = 1000;
/// Characters of an operator's reason for a fence that are kept.
pub const FENCE_REASON_MAX: usize = 1024;
/// Findings that are kept of one object; the others are counted.
pub const FINDINGS_PER_OBJECT_MAX: usize = 64;
/// Findings that a condition names; the others are counted.
pub const FINDINGS_TOLD_MAX: usize = 10;
/// Bytes of the message of a condition, at most (`metav1.Condition` takes 32768 characters).
pub const CONDITION_MESSAGE_MAX_BYTES: usize = 32_768;
/// Policies that the status of an `EgressAddress` names, at most: the first by name.
pub const STATUS_USERS_MAX: usize = 500;
/// Nodes that the status of an `EgressGateway` names, at most: the first by name.
pub const STATUS_GATEWAYS_MAX: usize = 1000;
/// Policies that a node reports as programmed, at most, one per namespace in turns. A policy with pods on a node that does
/// not report it is not Ready.
pub const STATUS_PROGRAMMED_MAX: usize = 1000;
/// Milliseconds until the controller tries a refused write of an object again; doubled with each further refusal.
pub const WRITE_RETRY_FIRST_MS: u64 = 500;
/// Seconds between two tries of a refused write, at most.
pub const WRITE_RETRY_MAX_SECS: u64 = 60;
/// Writes of one object's status that the controller makes without a pause.
pub const STATUS_BURST: u32 = 5;
/// Milliseconds between two writes of one object's status after `STATUS_BURST` of them.
pub const STATUS_INTERVAL_MS: u64 = 2_000;
/// Times in a row that an object may be written by another between reading and writing before it counts as refused.
pub const WRITE_CONFLICTS_MAX: u32 = 3;
/// Replies in a row that bring a dead gateway back; doubled for each further death within `FLAP_WINDOW_MS`.
pub const PROBE_RECOVER_REPLIES: u32 = 3;
/// Doublings of `PROBE_RECOVER_REPLIES`, at most.
pub const PROBE_RECOVER_DOUBLINGS_MAX: u32 = 4;
/// Milliseconds for which a death counts against a gateway that comes back.
pub const FLAP_WINDOW_MS: u64 = 10_000;
/// Gateways that one node probes at the full rate; with n times as many the interval is n times as long.
pub const PROBE_PEERS_FULL_RATE: usize = 64;
/// Milliseconds for which a gateway that begins to forward waits until it says so, while others forward its addresses:
/// as long as the API may take to tell the slowest worker of it.
pub const ENTRANCE_MS: u64 = 2_000;
/// Milliseconds after which a drained gateway sends workers away although no other gateway was heard to announce its
/// addresses: that one may be cut off from the API, and sees only that this gateway serves no more.
pub const DRAIN_HANDOVER_MS: u64 = 5_000;
/// Milliseconds without a packet after which a drained gateway counts as empty.
pub const DRAIN_QUIET_MS: u64 = 3_000;
/// Milliseconds for which a node that is no gateway any more forwards what still arrives, at most; for as long, workers
/// accept tunnel packets from it.
pub const DEPARTURE_MS: u64 = 30_000;
/// Milliseconds after a take-over at which gratuitous ARP and unsolicited NA are sent (RFC 5227 and RFC 4861 7.2.6
/// send a few; switches that are still learning lose the first).
pub const GRATUITOUS_AFTER_MS: [u64; 6] = [0, 100, 500, 1_000, 2_000, 5_000];
/// Milliseconds between further ones, for as long as the address is announced: they mend what a short time with two
/// announcers left behind.
pub const GRATUITOUS_REFRESH_MS: u64 = 10_000;
/// Questions by ARP and ND without answer after which a gateway that nobody reaches takes an address for free.
pub const ISOLATION_ASKS: u32 = 3;
/// Milliseconds between the first questions of a gateway that no other gateway answers.
pub const ISOLATION_ASK_FIRST_MS: u64 = 30;
/// Milliseconds between its questions about an address that it has given up.
pub const ISOLATION_ASK_AGAIN_MS: u64 = 250;
/// Milliseconds between its questions about an address that it announces.
pub const ISOLATION_ASK_MS: u64 = 1_000;
/// Questions that it asks at once; with n times as many addresses the time between those about one is n times as long.
pub const ISOLATION_ASKS_AT_ONCE: usize = 64;
/// Milliseconds between questions to a next hop of the external device.
pub const UPLINK_ASK_MS: u64 = 1_000;
/// Milliseconds between the first questions to a new next hop: fewer together than `ENTRANCE_MS`.
pub const UPLINK_ASK_FIRST_MS: u64 = 300;
/// Questions in a row without answer after which a next hop counts as gone.
pub const UPLINK_FAILURES: u32 = 3;
/// Next hops of one family that a gateway asks, at most.
pub const UPLINK_NEXT_HOPS_MAX: usize = 16;
/// Milliseconds by which each further gateway waits before it says that it has no way out, or that it stays without one:
/// so that one of them stays.
pub const UPLINK_TURN_MS: u64 = 300;
/// Milliseconds for which a packet in the tunnel says that others reach a gateway that no other gateway answers.
pub const ISOLATION_REACHED_MS: u64 = 10_000;
/// Seconds after which everybody's firewalls are looked at again for what refuses our packets, if nobody changed them.
pub const OBSTACLES_SECS: u64 = 30;
/// The same if somebody does change them, all the time.
pub const OBSTACLES_AGAIN_SECS: u64 = 5;
/// Rules of nftables that one such look reads, at most; what is beyond may do anything.
pub const FIREWALL_RULES_MAX: usize = 50_000;
/// Milliseconds at which the segment is asked for an address that no gateway has announced yet: ARP probes (RFC 5227
/// section 2.1.1) or neighbour solicitations from nobody (RFC 4862 section 5.4.2).
pub const CONFLICT_PROBES_AFTER_MS: [u64; 3] = [0, 60, 120];
/// Milliseconds after which an address that nobody has answered for is announced. RFC 5227 waits 5 to 7 s, for hosts that come
/// up all at once on slow links; who answers later is found by the probes that follow.
pub const CONFLICT_DECIDED_MS: u64 = 200;
/// Milliseconds between the announcer's further probes of an address in use.
pub const CONFLICT_REFRESH_MS: u64 = 10_000;
/// The same while another machine has the address.
pub const CONFLICT_AGAIN_MS: u64 = 3_000;
/// Milliseconds without a word of another machine after which it counts as gone.
pub const CONFLICT_FORGET_MS: u64 = 10_000;
/// Milliseconds between two defences of an address, at least (DEFEND_INTERVAL of RFC 5227 section 1.1).
pub const CONFLICT_DEFEND_MS: u64 = 10_000;

/// Whether a device of this name is Egret's: then it is no device of the node's own, no uplink and no external device.
pub fn is_own_device(name: &str) -> bool {
    [
        TUNNEL_DEVICE,
        REINJECT_DEVICE,
        REINJECT_PEER,
        CANARY_DEVICE,
        CANARY_PEER,
    ]
    .contains(&name)
}
