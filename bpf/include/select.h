/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Selects the port (or echo id) of the egress address for a packet. INWARD packets have the address as destination,
 * OUTWARD ones as source; an ICMP error is judged by the packet that it quotes, in which the roles are swapped.
 */
#ifndef EGRET_SELECT_H
#define EGRET_SELECT_H

#include "maps.h"
#include "parse.h"

enum egret_direction { INWARD = 0, OUTWARD = 1 };

enum egret_selected {
	BY_PORT = 0,
	BY_DATAGRAM = 1, /* the packet is a later fragment */
	BY_QUOTED_DATAGRAM = 2, /* an ICMP error quotes a later fragment */
	REFUSED = 3,
};

struct egret_selection {
	__u32 kind;
	__u32 reason; /* of REFUSED */
	__u32 port; /* of BY_PORT */
	__u32 icmp_error; /* the packet itself is an ICMP error */
	struct egret_datagram datagram; /* of BY_DATAGRAM, BY_QUOTED_DATAGRAM and of first fragments */
};

/* Initial value of a selection: kernels before 6.3 do not allow reads of memory that was not written. */
#define EGRET_NOT_SELECTED { .kind = REFUSED, .reason = EGRET_FAILED }

static __always_inline void name_datagram(const struct egret_packet *packet, struct egret_datagram *to)
{
	to->source = packet->source;
	to->destination = packet->destination;
	to->id = packet->fragment_id;
	to->protocol = packet->version == 4 ? packet->protocol : 0;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static __always_inline int is_icmp(const struct egret_packet *packet)
{
	return packet->version == 4 ? packet->protocol == IPPROTO_ICMP : packet->protocol == IPPROTO_ICMPV6;
}

/* A request with an id: echo, and the timestamp that conntrack treats alike (RFC 792). */
static __always_inline int is_query(__u32 version, __u8 type)
{
	return version == 4 ? type == ICMP_ECHO || type == ICMP_TIMESTAMP : type == ICMPV6_ECHO_REQUEST;
}

static __always_inline int is_query_reply(__u32 version, __u8 type)
{
	return version == 4 ? type == ICMP_ECHOREPLY || type == ICMP_TIMESTAMPREPLY : type == ICMPV6_ECHO_REPLY;
}

/* Errors that are forwarded: not a redirect (5), which concerns a host's own link. */
static __always_inline int is_error(__u32 version, __u8 type)
{
	if (version == 4)
		return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_TIME_EXCEEDED ||
		       type == ICMP_PARAMETERPROB;
	return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

/* Port of the address in an unfragmented packet or first fragment; `destination`: it is the destination. 0 or -1. */
static __always_inline int port_of(struct __sk_buff *skb, const struct egret_packet *packet, int destination,
				   __u32 *port)
{
	__be16 ports[2];
	struct egret_icmp_head icmp;

	if (has_ports(packet->protocol)) {
		if (bpf_skb_load_bytes(skb, packet->l4, ports, sizeof(ports)) < 0)
			return -1;
		*port = bpf_ntohs(destination ? ports[1] : ports[0]);
		return 0;
	}
	if (!is_icmp(packet) || bpf_skb_load_bytes(skb, packet->l4, &icmp, sizeof(icmp)) < 0)
		return -1;
	if (!(destination ? is_query_reply(packet->version, icmp.type) : is_query(packet->version, icmp.type)))
		return -1;
	*port = bpf_ntohs(icmp.id);
	return 0;
}

static __always_inline void refuse(struct egret_selection *selection, __u32 reason)
{
	selection->kind = REFUSED;
	selection->reason = reason;
}

/* Selects by the packet that an ICMP error quotes. It may be cut off after 8 bytes of its transport header. */
static __always_inline void select_by_quote(struct __sk_buff *skb, const struct egret_packet *packet, __u32 direction,
					    struct egret_selection *selection)
{
	struct egret_packet quoted = {};
	int parsed = parse_ip(skb, packet->l4 + sizeof(struct egret_icmp_head), packet->version, &quoted);
	int swapped = direction == OUTWARD;

	if (parsed < 0) {
		refuse(selection, direction == INWARD ? EGRET_IN_MALFORMED : EGRET_OUT_MALFORMED);
		return;
	}
	if (direction == INWARD ? !same_address(&quoted.source, &packet->destination) :
				  !same_address(&quoted.destination, &packet->source)) {
		refuse(selection, direction == INWARD ? EGRET_IN_FOREIGN_QUOTE : EGRET_OUT_FOREIGN_QUOTE);
		return;
	}
	if (quoted.fragmentation == LATER_FRAGMENT) {
		name_datagram(&quoted, &selection->datagram);
		selection->kind = BY_QUOTED_DATAGRAM;
		return;
	}
	if (port_of(skb, &quoted, swapped, &selection->port) < 0)
		refuse(selection, direction == INWARD ? EGRET_IN_UNSERVED : EGRET_OUT_UNSERVED);
}

/* Not static: see parse_ip. */
__noinline int select_port(struct __sk_buff *skb, const struct egret_packet *packet, __u32 direction,
			   struct egret_selection *selection)
{
	struct egret_icmp_head icmp;

	if (!packet || !selection)
		return -1;
	selection->kind = BY_PORT;
	selection->icmp_error = 0;
	name_datagram(packet, &selection->datagram);
	if (packet->fragmentation == LATER_FRAGMENT) {
		selection->kind = BY_DATAGRAM;
		return 0;
	}
	if (is_icmp(packet)) {
		if (bpf_skb_load_bytes(skb, packet->l4, &icmp, sizeof(icmp)) < 0) {
			refuse(selection, direction == INWARD ? EGRET_IN_MALFORMED : EGRET_OUT_MALFORMED);
			return 0;
		}
		if (is_error(packet->version, icmp.type)) {
			selection->icmp_error = 1;
			select_by_quote(skb, packet, direction, selection);
			return 0;
		}
		if (direction == INWARD && is_query(packet->version, icmp.type)) {
			refuse(selection, EGRET_IN_ECHO_REQUEST);
			return 0;
		}
	}
	if (port_of(skb, packet, direction == INWARD, &selection->port) < 0)
		refuse(selection, direction == INWARD ? EGRET_IN_UNSERVED : EGRET_OUT_UNSERVED);
	return 0;
}

#endif
