// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The data path of an Egret gateway: two stateless programs over the same tables.
 *
 *   external_in   ingress of the external device: packets to egress addresses go into the tunnel
 *   egress_in     ingress of the tunnel device egret0: workers' packets leave by the external device
 *
 * Kernel floor 5.15. Compiled by crates/datapath/build.rs, loaded by crates/datapath/src/gateway/.
 */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "include/abi.h"
#include "include/maps.h"
#include "include/parse.h"
#include "include/select.h"
#include "include/steer.h"
#include "include/icmp.h"
#include "include/neighbour.h"
#include "include/probe.h"
#include "include/traffic.h"
#include "include/canary.h"

/* Drops, and sends an ICMP error to the sender, by the device that the packet came by. */
static __noinline int tell_outside(struct __sk_buff *skb, const struct egret_packet *packet, __u32 kind)
{
	struct egret_config *settings = get_config();
	struct egret_address from = packet->destination;
	__u8 macs[12];
	int made;

	if (!settings || bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)) < 0)
		return drop(EGRET_FAILED);
	if (packet->version == 4 && !no_address(&settings->external_v4))
		from = settings->external_v4;
	if (packet->version == 6 && !no_address(&settings->external_v6))
		from = settings->external_v6;
	made = make_icmp_error(skb, packet, &from, kind, settings->tunnel_mtu);
	if (made == 0)
		made = write_macs(skb, macs + 6, settings->external_mac) < 0 ? -3 : 0;
	if (made == 0) {
		skb->mark = 0;
		return bpf_redirect(settings->external_ifindex, 0);
	}
	if (made == -2)
		count(EGRET_ICMP_LIMITED);
	else if (made == -3)
		count(EGRET_FAILED);
	return TC_ACT_SHOT;
}

/* Drops, and sends an ICMP error into the tunnel, to the pod behind `index`. */
static __noinline int tell_worker(struct __sk_buff *skb, const struct egret_packet *packet, __u32 index, __u32 kind,
				  __u32 mtu)
{
	struct egret_config *settings = get_config();
	struct egret_worker *worker = worker_at(index);
	struct egret_address from;
	int made;

	if (!settings || !worker)
		return drop(EGRET_FAILED);
	from = settings->external_v4;
	barrier(); /* or clang chooses between two pointers first, which the verifier takes from CAP_PERFMON alone */
	if (packet->version == 6)
		from = settings->external_v6;
	made = make_icmp_error(skb, packet, &from, kind, mtu);
	if (made == 0)
		made = write_macs(skb, worker->tunnel_mac, settings->tunnel_mac) < 0 ||
				       set_tunnel(skb, &worker->underlay, EGRET_VNI) < 0 ?
			       -3 :
			       0;
	if (made == 0) {
		skb->mark = 0;
		return bpf_redirect(settings->tunnel_ifindex, 0);
	}
	if (made == -2)
		count(EGRET_ICMP_LIMITED);
	else if (made == -3)
		count(EGRET_FAILED);
	return TC_ACT_SHOT;
}

/*
 * Steers a packet for an egress address to the worker that owns its block. A port without an owner may be in a table that
 * another gateway has and this one does not have yet: one other gateway gets the packet, and decides for good.
 */
static __always_inline int steer_inward(struct __sk_buff *skb, struct egret_config *settings,
					struct egret_steering *table, const struct egret_packet *packet)
{
	struct egret_selection selection = EGRET_NOT_SELECTED;
	__u32 identifier = EGRET_VNI, served = EGRET_IN_FORWARDED;
	struct egret_worker *worker;
	__u32 index;

	select_port(skb, packet, INWARD, &selection);
	if (selection.kind == REFUSED)
		return drop(selection.reason);
	if (selection.kind == BY_PORT)
		index = slot_of(table, &packet->destination, selection.port);
	else
		index = worker_of_datagram(&selection.datagram);
	if (index == EGRET_SLOT_NONE && selection.kind != BY_PORT)
		return drop(EGRET_IN_FRAGMENT_UNKNOWN);
	if (index == EGRET_SLOT_NONE) {
		worker = relay_of(table);
		if (!worker)
			return drop(EGRET_IN_NO_BLOCK);
		if (!within_budget(EGRET_BUDGET_RELAY, EGRET_RELAYED_PER_SECOND))
			return drop(EGRET_IN_RELAY_LIMITED);
		identifier = EGRET_RELAY_VNI;
		served = EGRET_IN_RELAYED;
	} else if (packet->fragmentation == FIRST_FRAGMENT && selection.kind == BY_PORT && !selection.icmp_error)
		remember_first_fragment(&selection.datagram, index);
	if (index == EGRET_SLOT_SELF) {
		count(EGRET_IN_SELF);
		count_back(skb, packet);
		return EGRET_PASS;
	}
	if (index != EGRET_SLOT_NONE)
		worker = worker_at(index);
	if (!worker)
		return drop(EGRET_IN_NO_WORKER);
	if (untag(skb) < 0)
		return drop(EGRET_FAILED);
	if (packet->hop_limit <= 1) {
		count(EGRET_IN_TTL_EXPIRED);
		return selection.icmp_error ? TC_ACT_SHOT : tell_outside(skb, packet, EGRET_TIME_EXCEEDED);
	}
	if (packet->dont_fragment && packet_bytes(skb, packet) > settings->tunnel_mtu) {
		count(EGRET_IN_TOO_BIG);
		return selection.icmp_error ? TC_ACT_SHOT : tell_outside(skb, packet, EGRET_PACKET_TOO_BIG);
	}
	if (decrement_hop_limit(skb, packet->version, packet->hop_limit) < 0)
		return drop(EGRET_FAILED);
	count_back(skb, packet);
	return tunnel_to(skb, settings, worker, identifier, served);
}

/*
 * Ingress of the external device, which may be the node's only one: packets to other addresses than egress addresses
 * pass unchanged.
 *
 * Deliberately not done here: no NAT, no connection state, no port is ever rewritten; no reassembly (later fragments
 * follow the first, and are dropped where that was not seen); no answer to an echo request for an egress address (its
 * id is the sender's, so it names no block of ours; dropped and counted); no reset or unreachable for ports without
 * owner; no ARP or ND for addresses that another gateway announces; no parsing of VLANs' or other machines' frames.
 */
SEC("classifier")
int external_in(struct __sk_buff *skb)
{
	struct egret_config *settings;
	struct egret_packet packet = {};
	struct egret_steering *table;
	int parsed;

	if (is_of_vlan(skb))
		return EGRET_PASS;
	settings = get_config();
	if (!settings)
		return EGRET_PASS;
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, settings);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		parsed = parse_ip(skb, ETH_HLEN, 4, &packet);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		parsed = parse_ip(skb, ETH_HLEN, 6, &packet);
	else
		return EGRET_PASS;
	if (is_solicitation(skb, &packet))
		return answer_solicitation(skb, settings, &packet);
	if (skb->pkt_type != PACKET_HOST)
		return EGRET_PASS;
	table = table_of(&packet.destination);
	if (!table)
		return EGRET_PASS;
	if (parsed < 0 || ETH_HLEN + packet.l3_bytes > skb->len)
		return drop(EGRET_IN_MALFORMED);
	return judged_back(steer_inward(skb, settings, table, &packet), &packet);
}

/* The index in the sender's MAC address; the caller checks it against the sender's underlay address. */
static __always_inline __u32 sender_index(struct __sk_buff *skb)
{
	struct ethhdr ethernet;

	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)) < 0 || ethernet.h_source[0] != 0x02 ||
	    ethernet.h_source[1] != 'e' || ethernet.h_source[2] != 'g' || ethernet.h_source[3] != 'r')
		return EGRET_SLOT_NONE;
	return (__u32)ethernet.h_source[4] << 8 | ethernet.h_source[5];
}

static __always_inline int is_from(__u32 index, const struct egret_address *underlay)
{
	struct egret_worker *worker = worker_at(index);

	return worker && same_address(&worker->underlay, underlay);
}

/* The worker that verifiably sent the packet, or EGRET_SLOT_NONE. */
static __always_inline __u32 proven_owner(struct __sk_buff *skb, struct egret_steering *table,
					  const struct egret_packet *packet, const struct egret_selection *selection,
					  const struct egret_address *underlay)
{
	struct egret_owner owner = { .address = packet->source };
	__u32 index;

	if (selection->kind == BY_PORT)
		index = slot_of(table, &packet->source, selection->port);
	else if (selection->kind == BY_QUOTED_DATAGRAM)
		index = worker_of_datagram(&selection->datagram);
	else {
		index = sender_index(skb);
		owner.worker = index;
		if (!bpf_map_lookup_elem(&owners, &owner))
			return EGRET_SLOT_NONE;
	}
	if (index == EGRET_SLOT_NONE || index == EGRET_SLOT_SELF || !is_from(index, underlay))
		return EGRET_SLOT_NONE;
	return index;
}

/* A packet from an egress address: out, if the worker behind `underlay` owns the port; up, if it is for this node. */
static __always_inline int send_out(struct __sk_buff *skb, struct egret_config *settings, struct egret_steering *table,
				    const struct egret_packet *packet, const struct egret_address *underlay)
{
	struct egret_selection selection = EGRET_NOT_SELECTED;
	struct bpf_redir_neigh neighbour = {};
	__u32 mtu = 0;
	__u32 index;
	int way;

	select_port(skb, packet, OUTWARD, &selection);
	if (selection.kind == REFUSED)
		return drop(selection.reason);
	index = proven_owner(skb, table, packet, &selection, underlay);
	if (index == EGRET_SLOT_NONE)
		return drop(selection.kind == BY_QUOTED_DATAGRAM ? EGRET_OUT_FRAGMENT_UNKNOWN : EGRET_OUT_SPOOFED);
	if (selection.kind == BY_PORT && !selection.icmp_error && is_canary(packet))
		return turn_round(skb, packet, index);
	if (packet->fragmentation == FIRST_FRAGMENT && selection.kind == BY_PORT && !selection.icmp_error)
		remember_first_fragment(&selection.datagram, index);
	way = way_of(skb, settings->external_ifindex, packet, &neighbour);
	if (way == WAY_UP) {
		set_mark_bits(skb, 0);
		count(EGRET_OUT_LOCAL);
		return EGRET_PASS;
	}
	if (packet->hop_limit <= 1) {
		count(EGRET_OUT_TTL_EXPIRED);
		return selection.icmp_error ? TC_ACT_SHOT : tell_worker(skb, packet, index, EGRET_TIME_EXCEEDED, 0);
	}
	if (bpf_check_mtu(skb, settings->external_ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) > 0) {
		count(EGRET_OUT_TOO_BIG);
		return selection.icmp_error || !packet->dont_fragment ?
			       TC_ACT_SHOT :
			       tell_worker(skb, packet, index, EGRET_PACKET_TOO_BIG, mtu);
	}
	if (decrement_hop_limit(skb, packet->version, packet->hop_limit) < 0)
		return drop(EGRET_FAILED);
	skb->mark = 0;
	count(EGRET_OUT_FORWARDED);
	count_out(skb, packet);
	if (way == WAY_NOT_TOLD)
		return bpf_redirect_neigh(settings->external_ifindex, 0, 0, 0);
	if (way == WAY_UNRESOLVED)
		count(EGRET_OUT_UNRESOLVED);
	return bpf_redirect_neigh(settings->external_ifindex, &neighbour, sizeof(neighbour), 0);
}

/*
 * A packet from outside that another gateway of the group had no owner for. That gateway has checked its size and its hop
 * limit. It is never passed on again, so it cannot go round.
 */
static __noinline int steer_relayed(struct __sk_buff *skb, struct egret_config *settings,
				    const struct egret_packet *packet, const struct egret_address *underlay)
{
	struct egret_steering *table = table_of(&packet->destination);
	struct egret_selection selection = EGRET_NOT_SELECTED;
	__u32 sender = sender_index(skb);
	struct egret_worker *worker;
	__u32 index;

	if (!table || !is_from(sender, underlay) || !bpf_map_lookup_elem(&peers, &sender))
		return drop(EGRET_RELAY_REFUSED);
	select_port(skb, packet, INWARD, &selection);
	if (selection.kind != BY_PORT)
		return drop(EGRET_RELAY_REFUSED);
	index = slot_of(table, &packet->destination, selection.port);
	if (index == EGRET_SLOT_SELF) {
		/* Our bits of the outer packet's mark are arbitrary, and would select a next hop in the ruleset. */
		set_mark_bits(skb, 0);
		count(EGRET_RELAY_FORWARDED);
		return EGRET_PASS;
	}
	worker = index == EGRET_SLOT_NONE ? 0 : worker_at(index);
	if (!worker)
		return drop(EGRET_RELAY_NO_BLOCK);
	return tunnel_to(skb, settings, worker, EGRET_VNI, EGRET_RELAY_FORWARDED);
}

/* A packet of another gateway for this node as a worker: up the stack, whose connection tracking decides. */
static __always_inline int receive(struct __sk_buff *skb, struct egret_config *settings,
				   const struct egret_packet *packet, const struct egret_address *underlay)
{
	struct egret_owner owner = { .address = packet->destination, .worker = settings->own_index };
	struct egret_steering *table = table_of(&packet->destination);
	struct egret_selection selection = EGRET_NOT_SELECTED;
	__u32 index;

	if (!table)
		return drop(EGRET_OUT_NOT_OURS);
	if (!is_from(sender_index(skb), underlay))
		return drop(EGRET_OUT_UNKNOWN_PEER);
	select_port(skb, packet, INWARD, &selection);
	if (selection.kind == REFUSED)
		return drop(selection.reason);
	if (selection.kind == BY_PORT)
		index = slot_of(table, &packet->destination, selection.port);
	else
		index = bpf_map_lookup_elem(&owners, &owner) ? EGRET_SLOT_SELF : EGRET_SLOT_NONE;
	if (index != EGRET_SLOT_SELF)
		return drop(EGRET_OUT_NOT_OURS);
	/* Our bits of the outer packet's mark are arbitrary, and would select a next hop in the ruleset. */
	set_mark_bits(skb, 0);
	count(EGRET_OUT_SELF);
	return EGRET_PASS;
}

/*
 * A pod's packet to a next hop: up the stack, marked with the number of the next hop. The stack routes it by that
 * number, translates it and tracks its connection, none of which the rest of this file needs. No other place sets the
 * mark that the stack's ruleset relies on.
 */
static __always_inline int to_next_hop(struct __sk_buff *skb, __u32 identifier, const struct egret_packet *packet,
				       const struct egret_address *underlay)
{
	__u32 *number = bpf_map_lookup_elem(&next_hops, &identifier);

	if (!is_from(sender_index(skb), underlay))
		return drop(EGRET_OUT_UNKNOWN_PEER);
	if (!number)
		return drop(EGRET_OUT_NEXT_HOP_UNKNOWN);
	if (link_local_index(&packet->source) || table_of(&packet->source))
		return drop(EGRET_OUT_SPOOFED);
	set_mark_bits(skb, *number << EGRET_MARK_SHIFT & EGRET_MARK_MASK);
	count(EGRET_OUT_NEXT_HOP);
	return EGRET_PASS;
}

/*
 * Ingress of the tunnel device. A packet leaves only if its source is an egress address and it comes from the worker
 * that owns the source port. Up the stack go such packets for this node itself, other nodes' packets for this one in
 * its role as worker, answers to its probes, and packets of other nodes' pods to a next hop (which the stack alone can
 * reach). The rest is dropped.
 *
 * Deliberately not done here: no NAT, no connection state; no routing decision (the kernel's routes decide, and
 * packets leave by the external device alone); no tagged frames, which no node of ours sends; no fragmentation (a packet
 * that may be fragmented and exceeds the external device's MTU is dropped and counted: give that device an MTU of at
 * least the tunnel's); no shortcut between two pods by their egress addresses.
 */
SEC("classifier")
int egress_in(struct __sk_buff *skb)
{
	struct egret_config *settings = get_config();
	struct egret_packet packet = {};
	struct egret_address underlay = {};
	struct egret_steering *table;
	__u32 identifier;
	int parsed;

	if (!settings)
		return drop(EGRET_FAILED);
	identifier = get_tunnel(skb, &underlay);
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present ||
	    (identifier != EGRET_VNI && identifier != EGRET_RELAY_VNI && identifier < EGRET_NEXT_HOP_VNI_BASE))
		return drop(EGRET_OUT_FOREIGN_TUNNEL);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		parsed = parse_ip(skb, ETH_HLEN, 4, &packet);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		parsed = parse_ip(skb, ETH_HLEN, 6, &packet);
	else
		return drop(EGRET_OUT_NOT_OURS);
	if (parsed < 0 || ETH_HLEN + packet.l3_bytes > skb->len)
		return drop(EGRET_OUT_MALFORMED);
	if (identifier == EGRET_RELAY_VNI)
		return steer_relayed(skb, settings, &packet, &underlay);
	if (identifier != EGRET_VNI)
		return to_next_hop(skb, identifier, &packet, &underlay);
	if (link_local_index(&packet.source))
		return probe(skb, settings, &packet, &underlay);
	table = table_of(&packet.source);
	if (table) {
		int verdict = send_out(skb, settings, table, &packet, &underlay);

		/* Canaries do not count as traffic. */
		return is_canary(&packet) ? verdict : judged_out(verdict, &packet);
	}
	return receive(skb, settings, &packet, &underlay);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
