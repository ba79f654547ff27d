/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Traffic by egress address, out and back. */
#ifndef EGRET_TRAFFIC_H
#define EGRET_TRAFFIC_H

#include "maps.h"
#include "parse.h"

static __always_inline void count_packet(struct egret_sums *sums, struct __sk_buff *skb,
					 const struct egret_packet *packet)
{
	__u32 pieces = skb->gso_segs;

	sums->packets += pieces ? pieces : 1;
	sums->bytes += packet->l3_bytes;
}

/* Counts a packet with the address as source that was sent out. */
static __always_inline void count_out(struct __sk_buff *skb, const struct egret_packet *packet)
{
	struct egret_traffic *sums = bpf_map_lookup_elem(&traffic, &packet->source);

	if (sums)
		count_packet(&sums->out, skb, packet);
}

/* Counts a packet for the address that was steered. */
static __always_inline void count_back(struct __sk_buff *skb, const struct egret_packet *packet)
{
	struct egret_traffic *sums = bpf_map_lookup_elem(&traffic, &packet->destination);

	if (sums)
		count_packet(&sums->back, skb, packet);
}

/* Counts the drop of a packet with the address as source. */
static __always_inline int judged_out(int verdict, const struct egret_packet *packet)
{
	struct egret_traffic *sums;

	if (verdict != TC_ACT_SHOT)
		return verdict;
	sums = bpf_map_lookup_elem(&traffic, &packet->source);
	if (sums)
		sums->out.dropped += 1;
	return verdict;
}

/* Counts the drop of a packet for the address. */
static __always_inline int judged_back(int verdict, const struct egret_packet *packet)
{
	struct egret_traffic *sums;

	if (verdict != TC_ACT_SHOT)
		return verdict;
	sums = bpf_map_lookup_elem(&traffic, &packet->destination);
	if (sums)
		sums->back.dropped += 1;
	return verdict;
}

#endif
