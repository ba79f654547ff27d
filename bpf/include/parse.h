/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Parses IP headers, of a packet or of the packet that an ICMP error quotes. Everything is read by
 * bpf_skb_load_bytes: the kernel checks the bounds, and headers that are not in the linear part are no special case. */
#ifndef EGRET_PARSE_H
#define EGRET_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* Pass the packet to the next programs and to the stack. */
#define EGRET_PASS TC_ACT_UNSPEC

/* The VLAN identifier in a tag's control information. */
#define EGRET_VID 0x0fff

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* linux/icmp.h and linux/icmpv6.h pull in the C library's headers; these are their numbers. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_TIMESTAMP 13
#define ICMP_TIMESTAMPREPLY 14
#define ICMP_FRAG_NEEDED 4
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_TIME_EXCEED 3
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_SOLICITATION 135
#define ICMPV6_ADVERTISEMENT 136

/* The first eight bytes of any ICMP and ICMPv6 message. */
struct egret_icmp_head {
	__u8 type;
	__u8 code;
	__be16 checksum;
	union {
		struct {
			__be16 id;
			__be16 sequence;
		};
		struct {
			__be16 unused;
			__be16 mtu_v4;
		};
		__be32 mtu_v6;
	};
};

enum egret_fragmentation { WHOLE = 0, FIRST_FRAGMENT = 1, LATER_FRAGMENT = 2 };

struct egret_packet {
	struct egret_address source;
	struct egret_address destination;
	__u32 l4; /* offset of the transport header in the skb */
	__u32 fragment_id;
	__u32 l3_bytes; /* length of the IP packet by its own header */
	__u8 version; /* 4 or 6 */
	__u8 protocol;
	__u8 hop_limit;
	__u8 fragmentation;
	__u8 dont_fragment; /* may not be fragmented on the way: DF, or IPv6 */
	__u8 reserved[3];
};

struct egret_extension {
	__u8 next;
	__u8 length;
	__be16 offset; /* of a fragment header */
	__be32 id; /* of a fragment header */
};

static __always_inline int same_address(const struct egret_address *a, const struct egret_address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline int no_address(const struct egret_address *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline void mapped_v4(struct egret_address *to, __be32 address)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = address;
}

static __always_inline void copy_v6(struct egret_address *to, const struct in6_addr *from)
{
	to->word[0] = from->in6_u.u6_addr32[0];
	to->word[1] = from->in6_u.u6_addr32[1];
	to->word[2] = from->in6_u.u6_addr32[2];
	to->word[3] = from->in6_u.u6_addr32[3];
}

static __always_inline int parse_v4(struct __sk_buff *skb, __u32 offset, struct egret_packet *packet)
{
	struct iphdr header;
	__u16 fragment;

	if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)) < 0)
		return -1;
	mapped_v4(&packet->source, header.saddr);
	mapped_v4(&packet->destination, header.daddr);
	packet->version = 4;
	packet->protocol = header.protocol;
	packet->hop_limit = header.ttl;
	packet->l3_bytes = bpf_ntohs(header.tot_len);
	packet->l4 = offset + header.ihl * 4;
	packet->fragment_id = bpf_ntohs(header.id);
	fragment = bpf_ntohs(header.frag_off);
	packet->dont_fragment = (fragment & IP_DF) != 0;
	if (fragment & IP_OFFSET)
		packet->fragmentation = LATER_FRAGMENT;
	else
		packet->fragmentation = fragment & IP_MF ? FIRST_FRAGMENT : WHOLE;
	if (!header.tot_len && skb->gso_size) /* "BIG TCP": the kernel's own packets above 64 KiB */
		packet->l3_bytes = skb->len - offset;
	if (header.version != 4 || header.ihl < 5 || packet->l3_bytes < header.ihl * 4)
		return -1;
	return 0;
}

/* Walks at most EGRET_EXTENSION_HEADERS_MAX extension headers; a later fragment ends the walk. */
static __always_inline int parse_v6(struct __sk_buff *skb, __u32 offset, struct egret_packet *packet)
{
	struct ipv6hdr header;
	struct egret_extension extension;
	__u32 at = offset + sizeof(header);
	__u8 next;

	if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)) < 0)
		return -1;
	copy_v6(&packet->source, &header.saddr);
	copy_v6(&packet->destination, &header.daddr);
	packet->version = 6;
	packet->hop_limit = header.hop_limit;
	packet->l3_bytes = sizeof(header) + bpf_ntohs(header.payload_len);
	if (!header.payload_len && skb->gso_size) /* as above */
		packet->l3_bytes = skb->len - offset;
	packet->fragment_id = 0;
	packet->fragmentation = WHOLE;
	packet->dont_fragment = 1;
	if (header.version != 6)
		return -1;
	next = header.nexthdr;
	for (int i = 0; i <= EGRET_EXTENSION_HEADERS_MAX; i++) {
		packet->protocol = next;
		packet->l4 = at;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT && next != IPPROTO_AH)
			return 0;
		if (bpf_skb_load_bytes(skb, at, &extension, sizeof(extension)) < 0)
			return -1;
		if (next == IPPROTO_FRAGMENT) {
			__u16 where = bpf_ntohs(extension.offset);

			packet->fragment_id = bpf_ntohl(extension.id);
			at += 8;
			if (where & 0xfff8) {
				packet->fragmentation = LATER_FRAGMENT;
				packet->protocol = extension.next;
				packet->l4 = at;
				return 0;
			}
			/* offset 0 without "more": an atomic fragment (RFC 6946), a whole packet */
			if (where & 1)
				packet->fragmentation = FIRST_FRAGMENT;
		} else if (next == IPPROTO_AH) {
			at += (extension.length + 2) * 4;
		} else {
			at += (extension.length + 1) * 8;
		}
		next = extension.next;
	}
	return -1;
}

/*
 * 0; -1: the packet is malformed or has too long a chain. Addresses are filled in as far as they could be read.
 *
 * Not static, here and elsewhere: the verifier processes such a function once and not for each path to each of its
 * calls. Otherwise kernels before 6.3 would count over a million instructions, which they refuse. The verifier assumes
 * that pointer arguments may be null, and requires the memory behind them to be initialised before.
 */
__noinline int parse_ip(struct __sk_buff *skb, __u32 offset, __u32 version, struct egret_packet *packet)
{
	if (!packet)
		return -1;
	if (version == 4)
		return parse_v4(skb, offset, packet);
	return parse_v6(skb, offset, packet);
}

/* Whether the frame belongs to a VLAN. VID 0 is none: the tag has only a priority (IEEE 802.1Q, priority-tagged). */
static __always_inline int is_of_vlan(struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & EGRET_VID) != 0;
}

/* Removes the tag of a priority-tagged frame that leaves by another device. */
static __always_inline int untag(struct __sk_buff *skb)
{
	return skb->vlan_present ? bpf_skb_vlan_pop(skb) : 0;
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

#endif
