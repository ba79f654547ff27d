/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Turns a packet into the ICMP error about it: it is cut to the quoted part, and new IP and ICMP headers are put in
 * front of it (RFC 792, 1191, 4443). The caller sets Ethernet addresses and chooses the device.
 *
 * Limit: a packet that another virtual machine of the same host sent without its checksum filled in
 * (CHECKSUM_PARTIAL) stays marked so; the error is correct as written here, and the mark never leaves that host.
 */
#ifndef EGRET_ICMP_H
#define EGRET_ICMP_H

#include "steer.h"

/* Bytes of the shortest quotation: an IPv4 header and 8 bytes. */
#define EGRET_ICMP_QUOTE_MIN 28

struct egret_error_v4 {
	struct iphdr ip;
	struct egret_icmp_head icmp;
};

struct egret_error_v6 {
	struct ipv6hdr ip;
	struct egret_icmp_head icmp;
};

/* Whether an error may be sent to this address (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e). */
static __always_inline int may_be_told(const struct egret_packet *packet)
{
	const struct egret_address *source = &packet->source;
	__u8 first;

	if (packet->version == 6)
		return !no_address(source) && (bpf_ntohl(source->word[0]) >> 24) != 0xff;
	if (packet->fragmentation == LATER_FRAGMENT)
		return 0;
	first = bpf_ntohl(source->word[3]) >> 24;
	return first != 0 && first != 127 && first < 224;
}

static __always_inline int prepend_v4(struct __sk_buff *skb, const struct egret_address *from,
				      const struct egret_packet *packet, __u32 kind, __u32 mtu, __u32 quoted, __u32 sum)
{
	struct egret_error_v4 head = {};

	head.icmp.type = kind == EGRET_TIME_EXCEEDED ? ICMP_TIME_EXCEEDED : ICMP_DEST_UNREACH;
	head.icmp.code = kind == EGRET_TIME_EXCEEDED ? 0 : ICMP_FRAG_NEEDED;
	if (kind == EGRET_PACKET_TOO_BIG)
		head.icmp.mtu_v4 = bpf_htons(mtu > 0xffff ? 0xffff : mtu);
	head.icmp.checksum = fold(bpf_csum_diff(0, 0, (__be32 *)&head.icmp, sizeof(head.icmp), sum));
	head.ip.version = 4;
	head.ip.ihl = 5;
	head.ip.tos = 0xc0;
	head.ip.tot_len = bpf_htons(sizeof(head) + quoted);
	head.ip.frag_off = bpf_htons(IP_DF);
	head.ip.ttl = 64;
	head.ip.protocol = IPPROTO_ICMP;
	head.ip.saddr = from->word[3];
	head.ip.daddr = packet->source.word[3];
	head.ip.check = fold(bpf_csum_diff(0, 0, (__be32 *)&head.ip, sizeof(head.ip), 0));
	if (bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, 0) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, ETH_HLEN, &head, sizeof(head), 0);
}

static __always_inline int prepend_v6(struct __sk_buff *skb, const struct egret_address *from,
				      const struct egret_packet *packet, __u32 kind, __u32 mtu, __u32 quoted, __u32 sum)
{
	struct egret_error_v6 head = {};
	__be32 pseudo[2] = { bpf_htonl(sizeof(head.icmp) + quoted), bpf_htonl(IPPROTO_ICMPV6) };

	head.icmp.type = kind == EGRET_TIME_EXCEEDED ? ICMPV6_TIME_EXCEED : ICMPV6_PKT_TOOBIG;
	if (kind == EGRET_PACKET_TOO_BIG)
		head.icmp.mtu_v6 = bpf_htonl(mtu);
	head.ip.version = 6;
	head.ip.payload_len = bpf_htons(sizeof(head.icmp) + quoted);
	head.ip.nexthdr = IPPROTO_ICMPV6;
	head.ip.hop_limit = 64;
	__builtin_memcpy(&head.ip.saddr, from, 16);
	__builtin_memcpy(&head.ip.daddr, &packet->source, 16);
	sum = bpf_csum_diff(0, 0, (__be32 *)&head.ip.saddr, 32, sum);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	head.icmp.checksum = fold(bpf_csum_diff(0, 0, (__be32 *)&head.icmp, sizeof(head.icmp), sum));
	if (bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, 0) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, ETH_HLEN, &head, sizeof(head), 0);
}

/*
 * Turns the packet into the error about it, from the gateway's own external address (or, where the device has none of
 * this family, from `fallback`). 0; -1: no valid receiver; -2: over the budget; -3: a kernel call failed.
 */
static __noinline int make_icmp_error(struct __sk_buff *skb, const struct egret_packet *packet,
				      const struct egret_address *from, __u32 kind, __u32 mtu)
{
	__u8 quote[EGRET_ICMP_QUOTE_MAX] = {};
	__u64 quoted = packet->l3_bytes; /* 64 bits: the verifier must see the bounds on the register passed on */
	__u32 sum;

	if (!may_be_told(packet) || no_address(from))
		return -1;
	if (!within_budget(kind, EGRET_ICMP_ERRORS_PER_SECOND))
		return -2;
	if (quoted > EGRET_ICMP_QUOTE_MAX)
		quoted = EGRET_ICMP_QUOTE_MAX;
	asm volatile("" : "+r"(quoted));
	if (quoted < EGRET_ICMP_QUOTE_MIN || quoted > EGRET_ICMP_QUOTE_MAX)
		return -1;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, quote, quoted) < 0)
		return -3;
	if (bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0) < 0)
		return -3;
	/* the rest of the buffer is zero and adds nothing */
	sum = bpf_csum_diff(0, 0, (__be32 *)quote, sizeof(quote), 0);
	if (packet->version == 4)
		return prepend_v4(skb, from, packet, kind, mtu, quoted, sum) < 0 ? -3 : 0;
	return prepend_v6(skb, from, packet, kind, mtu, quoted, sum) < 0 ? -3 : 0;
}

/* GSO_BY_FRAGS of linux/skbuff.h */
#define EGRET_GSO_BY_FRAGS 0xffff

/* Bytes of the largest IP packet that this skb is, or that its segments will be. */
static __always_inline __u32 packet_bytes(struct __sk_buff *skb, const struct egret_packet *packet)
{
	__u32 header = 8; /* UDP */
	__u8 offset = 0;

	if (!skb->gso_size)
		return packet->l3_bytes;
	/* SCTP's segments are of any size, each a packet that its sender made for the path */
	if (skb->gso_size == EGRET_GSO_BY_FRAGS)
		return 0;
	if (packet->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, packet->l4 + 12, &offset, 1) < 0)
			return packet->l3_bytes;
		header = (offset >> 4) * 4;
	}
	return packet->l4 - ETH_HLEN + header + skb->gso_size;
}

#endif
