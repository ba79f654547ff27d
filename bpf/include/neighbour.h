/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Answers ARP requests and IPv6 neighbour solicitations for the addresses that this gateway announces. */
#ifndef EGRET_NEIGHBOUR_H
#define EGRET_NEIGHBOUR_H


#include "steer.h"

/* linux/if_arp.h pulls in the C library's headers; these are its numbers. */
#define ARPHRD_ETHER 1
#define ARPOP_REQUEST 1
#define ARPOP_REPLY 2

struct egret_arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed, aligned(4)));

struct egret_nd {
	struct ipv6hdr ip;
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	struct egret_address target;
	__u8 option;
	__u8 option_units; /* of 8 bytes */
	__u8 mac[6];
} __attribute__((packed, aligned(4)));

#define EGRET_ND_SOLICITED 0x40000000u
#define EGRET_ND_OVERRIDE 0x20000000u
#define EGRET_ND_TARGET_MAC 2

static __always_inline int announces(const struct egret_address *address)
{
	struct egret_steering *table = table_of(address);

	return table && (table->flags & EGRET_ANNOUNCE);
}

/*
 * An ARP probe (sender 0.0.0.0) is answered like any request: the address is in use (RFC 5227 section 2.1.1). A
 * gratuitous request (sender = target) is another node's announcement and needs no answer.
 */
static __always_inline int answer_arp(struct __sk_buff *skb, const struct egret_config *settings)
{
	struct egret_arp arp;
	struct egret_address target;
	__be32 asked;

	if (skb->pkt_type == PACKET_OTHERHOST || bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) < 0)
		return EGRET_PASS;
	if (arp.hardware != bpf_htons(ARPHRD_ETHER) || arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_bytes != 6 ||
	    arp.protocol_bytes != 4 || arp.operation != bpf_htons(ARPOP_REQUEST) || arp.sender == arp.target)
		return EGRET_PASS;
	asked = arp.target;
	mapped_v4(&target, asked);
	if (!announces(&target))
		return EGRET_PASS;
	if (untag(skb) < 0)
		return drop(EGRET_FAILED);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 6);
	__builtin_memcpy(arp.sender_mac, settings->external_mac, 6);
	arp.target = arp.sender;
	arp.sender = asked;
	arp.operation = bpf_htons(ARPOP_REPLY);
	if (write_macs(skb, arp.target_mac, settings->external_mac) < 0 ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0) < 0)
		return drop(EGRET_FAILED);
	count(EGRET_IN_ARP_ANSWERED);
	return bpf_redirect(settings->external_ifindex, 0);
}

static __always_inline int is_solicitation(struct __sk_buff *skb, const struct egret_packet *packet)
{
	__u8 type[2];

	/* RFC 4861 section 7.1.1: hop limit 255, code 0; no extension headers (RFC 6980) */
	return packet->version == 6 && packet->protocol == IPPROTO_ICMPV6 && packet->hop_limit == 255 &&
	       packet->l4 == ETH_HLEN + sizeof(struct ipv6hdr) &&
	       bpf_skb_load_bytes(skb, packet->l4, type, sizeof(type)) == 0 && type[0] == ICMPV6_SOLICITATION && type[1] == 0;
}

/*
 * RFC 4861 section 7.2.4: solicited and override, to the sender. If the sender has no address yet (source ::, duplicate
 * address detection), to all nodes and not solicited, so that no other node takes the address (RFC 4862 section 5.4.3:
 * its holder defends it). The holder itself never probes it, since no stack owns it.
 */
static __noinline int answer_solicitation(struct __sk_buff *skb, const struct egret_config *settings,
					  const struct egret_packet *packet)
{
	struct egret_nd nd;
	__be32 pseudo[2] = { bpf_htonl(sizeof(nd) - sizeof(nd.ip)), bpf_htonl(IPPROTO_ICMPV6) };
	struct ethhdr ethernet;
	int detection = no_address(&packet->source);
	__u32 sum;

	if (skb->pkt_type == PACKET_OTHERHOST ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &nd, offsetof(struct egret_nd, option)) < 0 ||
	    bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)) < 0)
		return EGRET_PASS;
	struct egret_address target = nd.target;
	if (!announces(&target))
		return EGRET_PASS;
	if (untag(skb) < 0)
		return drop(EGRET_FAILED);
	__builtin_memcpy(ethernet.h_dest, ethernet.h_source, 6);
	nd.ip.daddr = nd.ip.saddr;
	nd.flags = bpf_htonl(EGRET_ND_SOLICITED | EGRET_ND_OVERRIDE);
	if (detection) {
		const __u8 all_nodes[6] = { 0x33, 0x33, 0, 0, 0, 1 };

		__builtin_memcpy(ethernet.h_dest, all_nodes, 6);
		nd.ip.daddr.in6_u.u6_addr32[0] = bpf_htonl(0xff020000);
		nd.ip.daddr.in6_u.u6_addr32[3] = bpf_htonl(1);
		nd.flags = bpf_htonl(EGRET_ND_OVERRIDE);
	}
	__builtin_memcpy(ethernet.h_source, settings->external_mac, 6);
	__builtin_memcpy(&nd.ip.saddr, &target, 16);
	nd.ip.payload_len = bpf_htons(sizeof(nd) - sizeof(nd.ip));
	nd.type = ICMPV6_ADVERTISEMENT;
	nd.code = 0;
	nd.checksum = 0;
	nd.option = EGRET_ND_TARGET_MAC;
	nd.option_units = 1;
	__builtin_memcpy(nd.mac, settings->external_mac, 6);
	sum = bpf_csum_diff(0, 0, (__be32 *)&nd.ip.saddr, sizeof(nd) - offsetof(struct ipv6hdr, saddr), 0);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	nd.checksum = fold(sum);
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(nd), 0) < 0 ||
	    bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0) < 0 ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &nd, sizeof(nd), 0) < 0)
		return drop(EGRET_FAILED);
	count(EGRET_IN_ND_ANSWERED);
	return bpf_redirect(settings->external_ifindex, 0);
}

#endif
