// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Worker whose network plugin sends pods' packets past the stack: two programs on every device by which such packets
 * can leave the node.
 *
 *   uplink_out   egress: a selected pod's packet to a selected destination, in a flow that it opened, goes to the
 *                ingress of the reinject device: the stack classifies, translates and tunnels it as on any worker
 *   uplink_in    ingress: remembers flows that others open towards pods; touches no packet
 *
 * No selected packet leaves from here directly: without the reinject device or the ruleset's mark it is dropped.
 * Kernel floor 5.15. Compiled by crates/datapath/build.rs, loaded by crates/datapath/src/uplink/.
 */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "include/abi.h"
#include "include/parse.h"
#include "include/uplink.h"

#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Owner of a packet's flow. */
enum egret_verdict { OPENED_BY_POD = 0, AN_ANSWER = 1 };

/* Fields read of a packet besides its addresses. */
struct egret_ends {
	__be16 from;
	__be16 to;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 is_error; /* an ICMP error: the embedded packet counts */
};

static __always_inline int is_icmp(const struct egret_packet *packet)
{
	return packet->protocol == (packet->version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline int is_error_type(__u32 version, __u8 type)
{
	if (version == 6)
		return type < 128;
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == 5 || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

/* A request is by its type never an answer, and an answer never opens a flow. */
static __always_inline int is_request(__u32 version, __u8 type)
{
	return version == 4 ? type == ICMP_ECHO || type == ICMP_TIMESTAMP : type == ICMPV6_ECHO_REQUEST;
}

static __always_inline int is_reply(__u32 version, __u8 type)
{
	return version == 4 ? type == ICMP_ECHOREPLY || type == ICMP_TIMESTAMPREPLY : type == ICMPV6_ECHO_REPLY;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

/* 0; -1: the transport header is cut off. */
static __always_inline int read_ends(struct __sk_buff *skb, const struct egret_packet *packet, struct egret_ends *ends)
{
	struct egret_icmp_head head;
	__be16 ports[2];

	if (has_ports(packet->protocol)) {
		if (bpf_skb_load_bytes(skb, packet->l4, ports, sizeof(ports)) < 0)
			return -1;
		ends->from = ports[0];
		ends->to = ports[1];
		if (packet->protocol == IPPROTO_TCP)
			return bpf_skb_load_bytes(skb, packet->l4 + TCP_FLAGS, &ends->tcp_flags, 1);
		return 0;
	}
	if (is_icmp(packet)) {
		if (bpf_skb_load_bytes(skb, packet->l4, &head, sizeof(head)) < 0)
			return -1;
		ends->icmp_type = head.type;
		ends->is_error = is_error_type(packet->version, head.type);
		ends->from = head.id;
		ends->to = head.id;
	}
	return 0;
}

static __always_inline int is_never(__u32 version, const struct egret_address *address)
{
	struct egret_prefix prefix = { .bits = 32 + 128, .version = version, .address = *address };

	return bpf_map_lookup_elem(&uplink_never, &prefix) != 0;
}

static __always_inline int is_local(__u32 version, const struct egret_address *address)
{
	struct egret_prefix prefix = { .bits = 32 + 128, .version = version, .address = *address };

	return bpf_map_lookup_elem(&uplink_local, &prefix) != 0;
}

static __always_inline int is_chosen(const struct egret_profile *profile, __u32 version,
				     const struct egret_address *address)
{
	struct egret_destination key = { .bits = 96 + 128, .version = version, .address = *address };

	key.profile[0] = profile->profile[0];
	key.profile[1] = profile->profile[1];
	return bpf_map_lookup_elem(&uplink_chosen, &key) != 0;
}

/* TCP of a pod. A flow begins with a SYN, so flows that the pod opens need no state. */
static __always_inline int judge_tcp(const struct egret_flow *flow, __u8 flags)
{
	struct egret_knock knock = { .remote = flow->remote, .port = flow->remote_port };
	__u64 now = bpf_ktime_get_ns();
	__u64 *seen;

	if ((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		bpf_map_delete_elem(&uplink_inbound, flow);
		return OPENED_BY_POD;
	}
	if (bpf_map_lookup_elem(&uplink_inbound, flow))
		return AN_ANSWER;
	if (!(flags & (TCP_SYN | TCP_RST)))
		return OPENED_BY_POD;
	/* The answer to a SYN, or its refusal. Only the other end is compared: a load balancer may have translated the
	 * destination after the SYN was seen here. */
	seen = bpf_map_lookup_elem(&uplink_knocks, &knock);
	if (!seen || now - *seen > EGRET_UPLINK_KNOCK_NS)
		return OPENED_BY_POD;
	if (flags & TCP_SYN)
		bpf_map_update_elem(&uplink_inbound, flow, &now, BPF_ANY);
	return AN_ANSWER;
}

/* Opener of a flow without handshake: `opener` unless the flow is known. */
static __always_inline __u32 opener_of(const struct egret_flow *flow, __u32 opener)
{
	struct egret_opened *known = bpf_map_lookup_elem(&uplink_flows, flow);
	struct egret_opened fresh = { .seen_ns = bpf_ktime_get_ns(), .opener = opener };

	if (known && fresh.seen_ns - known->seen_ns <= EGRET_UPLINK_FLOW_NS) {
		known->seen_ns = fresh.seen_ns;
		return known->opener;
	}
	bpf_map_update_elem(&uplink_flows, flow, &fresh, BPF_ANY);
	return opener;
}

/* Whether another host has opened the flow; opens none. */
static __always_inline int is_opened_by_remote(const struct egret_flow *flow)
{
	struct egret_opened *known;

	if (flow->protocol == IPPROTO_TCP)
		return bpf_map_lookup_elem(&uplink_inbound, flow) != 0;
	known = bpf_map_lookup_elem(&uplink_flows, flow);
	return known && known->opener == EGRET_BY_REMOTE &&
	       bpf_ktime_get_ns() - known->seen_ns <= EGRET_UPLINK_FLOW_NS;
}

/* A pod's ICMP error belongs to the flow of the packet that it quotes, which went to the pod. */
static __noinline int judge_error(struct __sk_buff *skb, const struct egret_packet *packet)
{
	struct egret_packet quoted = {};
	struct egret_flow flow = {};
	__be16 ports[2];
	__u32 at = packet->l4 + sizeof(struct egret_icmp_head);

	if (parse_ip(skb, at, packet->version, &quoted) < 0 || quoted.fragmentation == LATER_FRAGMENT ||
	    !same_address(&quoted.destination, &packet->source))
		return OPENED_BY_POD;
	flow.pod = quoted.destination;
	flow.remote = quoted.source;
	flow.protocol = quoted.protocol;
	if (has_ports(quoted.protocol)) {
		if (bpf_skb_load_bytes(skb, quoted.l4, ports, sizeof(ports)) < 0)
			return OPENED_BY_POD;
		flow.remote_port = ports[0];
		flow.pod_port = ports[1];
	}
	return is_opened_by_remote(&flow) ? AN_ANSWER : OPENED_BY_POD;
}

/* Owner of the flow of a pod's packet; remembers the flow. If unknown it is the pod's: the stack decides. */
static __noinline int judge(struct __sk_buff *skb, const struct egret_packet *packet)
{
	struct egret_datagram datagram = { .source = packet->source, .destination = packet->destination };
	struct egret_ends ends = {};
	struct egret_flow flow = {};
	int verdict;

	datagram.id = packet->fragment_id;
	datagram.protocol = packet->version == 4 ? packet->protocol : 0;
	if (packet->fragmentation == LATER_FRAGMENT) {
		__u64 *seen = bpf_map_lookup_elem(&uplink_datagrams, &datagram);

		return seen && bpf_ktime_get_ns() - *seen <= EGRET_FRAGMENT_LIFETIME_NS ? AN_ANSWER : OPENED_BY_POD;
	}
	if (read_ends(skb, packet, &ends) < 0)
		return OPENED_BY_POD;
	flow.pod = packet->source;
	flow.remote = packet->destination;
	flow.pod_port = ends.from;
	flow.remote_port = ends.to;
	flow.protocol = packet->protocol;
	if (packet->protocol == IPPROTO_TCP)
		verdict = judge_tcp(&flow, ends.tcp_flags);
	else if (!is_icmp(packet))
		verdict = opener_of(&flow, EGRET_BY_POD) == EGRET_BY_REMOTE ? AN_ANSWER : OPENED_BY_POD;
	else if (ends.is_error)
		verdict = judge_error(skb, packet);
	else
		verdict = is_reply(packet->version, ends.icmp_type) && is_opened_by_remote(&flow) ? AN_ANSWER :
												   OPENED_BY_POD;
	if (verdict == AN_ANSWER && packet->fragmentation == FIRST_FRAGMENT) {
		__u64 now = bpf_ktime_get_ns();

		bpf_map_update_elem(&uplink_datagrams, &datagram, &now, BPF_ANY);
	}
	return verdict;
}

/* Redirects to the ingress of the reinject device, as a packet for this host. If it is down, the packet is dropped. */
static __always_inline int reinject(struct __sk_buff *skb, const struct egret_uplink_config *settings)
{
	__u8 mac[6];

	__builtin_memcpy(mac, settings->reinject_mac, sizeof(mac));
	if (!settings->reinject_ifindex || untag(skb) < 0 || bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0) < 0) {
		tally(EGRET_UPLINK_FAILED);
		return TC_ACT_SHOT;
	}
	tally(EGRET_UPLINK_REINJECTED);
	return bpf_redirect(settings->reinject_ifindex, BPF_F_INGRESS);
}

/* A selected pod's packet that was reinjected already: only the ruleset's mark lets it pass. */
static __always_inline int let_go(struct __sk_buff *skb, const struct egret_uplink_config *settings)
{
	if ((skb->mark & settings->mark_mask) != settings->mark_left) {
		tally(EGRET_UPLINK_NO_RULESET);
		return TC_ACT_SHOT;
	}
	skb->mark &= ~settings->mark_mask;
	tally(EGRET_UPLINK_LEFT_ALONE);
	return EGRET_PASS;
}

static __always_inline int parse(struct __sk_buff *skb, struct egret_packet *packet)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ip(skb, ETH_HLEN, 4, packet);
	return parse_ip(skb, ETH_HLEN, 6, packet);
}

static __always_inline int is_ip(struct __sk_buff *skb)
{
	return !is_of_vlan(skb) && (skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6));
}

/*
 * Egress of an uplink. Packets that are not from a selected pod to a selected destination pass unchanged, and so do
 * answers in flows that others opened.
 *
 * Deliberately not done here: no translation, no tunnel, no selection by ports (the ruleset selects; packets that it
 * leaves alone pass here again and leave); no second reinjection; no packets of the node itself.
 */
SEC("classifier")
int uplink_out(struct __sk_buff *skb)
{
	struct egret_uplink_config *settings;
	struct egret_packet packet = {};
	struct egret_profile *profile;
	__u32 zero = 0;
	int parsed;

	if (!is_ip(skb))
		return EGRET_PASS;
	settings = bpf_map_lookup_elem(&uplink_config, &zero);
	if (!settings)
		return EGRET_PASS;
	parsed = parse(skb, &packet);
	profile = bpf_map_lookup_elem(&uplink_pods, &packet.source);
	if (!profile || !is_chosen(profile, packet.version, &packet.destination) || is_never(packet.version, &packet.destination)) {
		/* A policy may select it any time, and must know then who opened its flows. */
		if (parsed == 0 && (profile || is_local(packet.version, &packet.source)) && !is_never(packet.version, &packet.destination))
			judge(skb, &packet);
		return EGRET_PASS;
	}
	if (settings->reinject_ifindex && skb->ingress_ifindex == settings->reinject_ifindex)
		return let_go(skb, settings);
	if (parsed == 0 && judge(skb, &packet) == AN_ANSWER) {
		tally(EGRET_UPLINK_ANSWERED);
		return EGRET_PASS;
	}
	return reinject(skb, settings);
}

/* Ingress of an uplink: remembers who opens flows towards pods. */
SEC("classifier")
int uplink_in(struct __sk_buff *skb)
{
	struct egret_packet packet = {};
	struct egret_ends ends = {};
	struct egret_flow flow = {};

	if (!is_ip(skb) || skb->pkt_type != PACKET_HOST)
		return EGRET_PASS;
	if (parse(skb, &packet) < 0 || packet.fragmentation == LATER_FRAGMENT || read_ends(skb, &packet, &ends) < 0)
		return EGRET_PASS;
	if (packet.protocol == IPPROTO_TCP) {
		struct egret_knock knock = { .remote = packet.source, .port = ends.from };
		__u64 now = bpf_ktime_get_ns();

		if ((ends.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && !is_never(packet.version, &packet.source))
			bpf_map_update_elem(&uplink_knocks, &knock, &now, BPF_ANY);
		return EGRET_PASS;
	}
	if (is_icmp(&packet) && !is_request(packet.version, ends.icmp_type))
		return EGRET_PASS;
	if (!is_local(packet.version, &packet.destination) || is_never(packet.version, &packet.source))
		return EGRET_PASS;
	flow.pod = packet.destination;
	flow.remote = packet.source;
	flow.pod_port = ends.to;
	flow.remote_port = ends.from;
	flow.protocol = packet.protocol;
	opener_of(&flow, EGRET_BY_REMOTE);
	return EGRET_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
