/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Probes: answered here instead of by the agent, so that they measure the path and not a process. */
#ifndef EGRET_PROBE_H
#define EGRET_PROBE_H

#include "steer.h"

#define EGRET_PROBE_VERSION 1
#define EGRET_PROBE_REQUEST 1
#define EGRET_PROBE_REPLY 2

struct egret_probe_packet {
	struct ipv6hdr ip;
	__be16 source_port;
	__be16 destination_port;
	__be16 length;
	__be16 checksum;
	struct egret_probe probe;
} __attribute__((packed, aligned(4)));

/* fe80::<index>: the index, or 0 for any other address. */
static __always_inline __u32 link_local_index(const struct egret_address *address)
{
	if (address->word[0] != bpf_htonl(0xfe800000) || address->word[1] || address->word[2])
		return 0;
	return bpf_ntohl(address->word[3]) > 0xffff ? 0 : bpf_ntohl(address->word[3]);
}

/*
 * A packet between link-local addresses of the tunnel, from `underlay`. Only a known node with its own underlay address
 * gets an answer; a reply goes up to the agent; anything else is dropped.
 */
static __noinline int probe(struct __sk_buff *skb, const struct egret_config *settings,
			    const struct egret_packet *packet, const struct egret_address *underlay)
{
	struct egret_probe_packet frame;
	__be32 pseudo[2] = { bpf_htonl(sizeof(frame) - sizeof(frame.ip)), bpf_htonl(IPPROTO_UDP) };
	__u32 index = link_local_index(&packet->source);
	struct egret_worker *worker = worker_at(index);
	struct in6_addr swap;
	__u32 sum;

	if (!worker || !same_address(&worker->underlay, underlay) ||
	    link_local_index(&packet->destination) != settings->own_index || packet->protocol != IPPROTO_UDP ||
	    packet->l4 != ETH_HLEN + sizeof(frame.ip) || packet->fragmentation != WHOLE ||
	    packet->l3_bytes != sizeof(frame) || bpf_skb_load_bytes(skb, ETH_HLEN, &frame, sizeof(frame)) < 0)
		return drop(EGRET_PROBE_REFUSED);
	if (frame.probe.magic[0] != 'E' || frame.probe.magic[1] != 'G' || frame.probe.magic[2] != 'R' ||
	    frame.probe.magic[3] != 'T' || frame.probe.version != EGRET_PROBE_VERSION ||
	    bpf_ntohs(frame.probe.sender) != index)
		return drop(EGRET_PROBE_REFUSED);
	if (frame.source_port == bpf_htons(EGRET_PROBE_PORT) && frame.probe.kind == EGRET_PROBE_REPLY) {
		count(EGRET_PROBE_RECEIVED);
		return EGRET_PASS;
	}
	if (frame.destination_port != bpf_htons(EGRET_PROBE_PORT) || frame.probe.kind != EGRET_PROBE_REQUEST)
		return drop(EGRET_PROBE_REFUSED);
	swap = frame.ip.saddr;
	frame.ip.saddr = frame.ip.daddr;
	frame.ip.daddr = swap;
	frame.ip.hop_limit = 64;
	frame.destination_port = frame.source_port;
	frame.source_port = bpf_htons(EGRET_PROBE_PORT);
	frame.length = bpf_htons(sizeof(frame) - sizeof(frame.ip));
	frame.checksum = 0;
	frame.probe.kind = EGRET_PROBE_REPLY;
	frame.probe.sender = bpf_htons(settings->own_index);
	frame.probe.steering_version = bpf_cpu_to_be64(settings->steering_version);
	sum = bpf_csum_diff(0, 0, (__be32 *)&frame.ip.saddr, sizeof(frame) - offsetof(struct ipv6hdr, saddr), 0);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	frame.checksum = fold(sum);
	if (!frame.checksum)
		frame.checksum = 0xffff; /* RFC 768: zero means none */
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &frame, sizeof(frame), 0) < 0)
		return drop(EGRET_FAILED);
	return tunnel_to(skb, settings, worker, EGRET_VNI, EGRET_PROBE_ANSWERED);
}

#endif
