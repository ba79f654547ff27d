/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Canaries: packets by which a node tests the path of its pods' packets. Like those they come from an egress address and
 * a port that the sender owns. Their destination identifies them, which no host has (RFC 2544, RFC 6666). They are
 * returned here and never leave the cluster.
 */
#ifndef EGRET_CANARY_H
#define EGRET_CANARY_H

#include <linux/tcp.h>

#include "steer.h"

#define EGRET_TCP_FLAGS_OFFSET 13
#define EGRET_TCP_SYN 0x02
#define EGRET_TCP_RST 0x04
#define EGRET_TCP_SYN_ACK 0x12
/* Initial sequence number of every answer: the connection is never continued. */
#define EGRET_CANARY_SEQUENCE 0x65677265u

static __always_inline int is_canary(const struct egret_packet *packet)
{
	const struct egret_address *to = &packet->destination;
	__u32 last = bpf_ntohl(to->word[3]);

	if (packet->version == 4)
		return is_mapped_v4(to) && (last & ~0xffu) == EGRET_CANARY_V4;
	return to->word[0] == bpf_htonl(0x01000000) && !to->word[1] && to->word[2] == bpf_htonl(EGRET_CANARY_V6_WORD) &&
	       last <= 0xff;
}

/* Swaps source and destination of an IP header; its checksum does not change. */
static __always_inline int swap_addresses(struct __sk_buff *skb, __u32 version)
{
	__u32 offset = ETH_HLEN + (version == 4 ? offsetof(struct iphdr, saddr) : offsetof(struct ipv6hdr, saddr));
	struct in6_addr pair[2];
	__be32 four[2];
	__be32 swapped[2];

	if (version == 4) {
		if (bpf_skb_load_bytes(skb, offset, four, sizeof(four)) < 0)
			return -1;
		swapped[0] = four[1];
		swapped[1] = four[0];
		return bpf_skb_store_bytes(skb, offset, swapped, sizeof(swapped), 0);
	}
	if (bpf_skb_load_bytes(skb, offset, pair, sizeof(pair)) < 0 ||
	    bpf_skb_store_bytes(skb, offset, &pair[1], sizeof(pair[1]), 0) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, offset + sizeof(pair[0]), &pair[0], sizeof(pair[0]), 0);
}

static __always_inline int swap_ports(struct __sk_buff *skb, __u32 l4)
{
	__be16 ports[2];
	__be16 swapped[2];

	if (bpf_skb_load_bytes(skb, l4, ports, sizeof(ports)) < 0)
		return -1;
	swapped[0] = ports[1];
	swapped[1] = ports[0];
	return bpf_skb_store_bytes(skb, l4, swapped, sizeof(swapped), 0);
}

/* A reset ends a canary that was answered, and needs no answer. */
static __always_inline int is_goodbye(struct __sk_buff *skb, __u32 l4)
{
	__u8 flags;

	return bpf_skb_load_bytes(skb, l4 + EGRET_TCP_FLAGS_OFFSET, &flags, 1) == 0 && flags & EGRET_TCP_RST;
}

/* Turns a SYN into the SYN and ACK that answers it. */
static __always_inline int accept_syn(struct __sk_buff *skb, __u32 l4)
{
	struct egret_tcp_head {
		__be16 source;
		__be16 destination;
		__be32 sequence;
		__be32 acknowledgement;
		__u8 offset;
		__u8 flags;
		__be16 window;
		__be16 checksum;
		__be16 urgent;
	} old, new;
	__u32 sum;

	if (bpf_skb_load_bytes(skb, l4, &old, sizeof(old)) < 0 || (old.flags & 0x3f) != EGRET_TCP_SYN)
		return -1;
	new = old;
	new.source = old.destination;
	new.destination = old.source;
	new.sequence = bpf_htonl(EGRET_CANARY_SEQUENCE);
	new.acknowledgement = bpf_htonl(bpf_ntohl(old.sequence) + 1);
	new.flags = EGRET_TCP_SYN_ACK;
	new.checksum = 0;
	sum = (__u16)~old.checksum;
	old.checksum = 0;
	sum = bpf_csum_diff((__be32 *)&old, sizeof(old), (__be32 *)&new, sizeof(new), sum);
	new.checksum = fold(sum);
	return bpf_skb_store_bytes(skb, l4, &new, sizeof(new), 0);
}

static __always_inline int answer_echo(struct __sk_buff *skb, __u32 l4, __u8 asked, __u8 answered)
{
	__u8 type;

	if (bpf_skb_load_bytes(skb, l4, &type, 1) < 0 || type != asked ||
	    bpf_l4_csum_replace(skb, l4 + offsetof(struct egret_icmp_head, checksum), bpf_htons(asked << 8),
				bpf_htons(answered << 8), 2) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, l4, &answered, 1, 0);
}

/* Back to the sending worker, as an answer from a host outside would go: by the slot of its port. */
static __noinline int turn_round(struct __sk_buff *skb, const struct egret_packet *packet, __u32 index)
{
	struct egret_config *settings = get_config();
	struct egret_worker *worker = worker_at(index);
	__u32 l4 = packet->l4;
	int made;

	if (!settings || !worker)
		return drop(EGRET_FAILED);
	if (packet->fragmentation != WHOLE)
		return drop(EGRET_CANARY_REFUSED);
	if (packet->protocol == IPPROTO_TCP && is_goodbye(skb, l4))
		return TC_ACT_SHOT;
	if (packet->protocol == IPPROTO_TCP)
		made = accept_syn(skb, l4);
	else if (packet->protocol == IPPROTO_UDP)
		made = swap_ports(skb, l4);
	else if (packet->protocol == IPPROTO_ICMP)
		made = answer_echo(skb, l4, ICMP_ECHO, ICMP_ECHOREPLY);
	else if (packet->protocol == IPPROTO_ICMPV6)
		made = answer_echo(skb, l4, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY);
	else
		made = -1;
	if (made < 0 || swap_addresses(skb, packet->version) < 0)
		return drop(EGRET_CANARY_REFUSED);
	return tunnel_to(skb, settings, worker, EGRET_VNI, EGRET_CANARY_TURNED);
}

#endif
