/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Lookups of slots, workers and remembered first fragments; and sending into the tunnel. */
#ifndef EGRET_STEER_H
#define EGRET_STEER_H

#include "maps.h"
#include "parse.h"
#include "select.h"

/* Size of struct bpf_tunnel_key up to and without local_ipv4, which 5.15 lacks. */
#define EGRET_TUNNEL_KEY_BYTES offsetof(struct bpf_tunnel_key, local_ipv4)

static __always_inline struct egret_config *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline struct egret_steering *table_of(const struct egret_address *address)
{
	return bpf_map_lookup_elem(&steering, address);
}

/* Owner of the port's block; EGRET_SLOT_NONE also where the element was reused meanwhile. */
static __always_inline __u32 slot_of(struct egret_steering *table, const struct egret_address *address, __u32 port)
{
	__u32 worker = *(volatile __u16 *)&table->slot[(port >> EGRET_BLOCK_SHIFT) & (EGRET_BLOCKS - 1)];

	barrier();
	if (!same_address(&table->address, address))
		return EGRET_SLOT_NONE;
	return worker;
}

static __always_inline void remember_first_fragment(const struct egret_datagram *datagram, __u32 worker)
{
	struct egret_fragment value = { .seen_ns = bpf_ktime_get_ns(), .worker = worker };

	bpf_map_update_elem(&fragments, datagram, &value, BPF_ANY);
}

/* Worker that got the first fragment of the datagram; EGRET_SLOT_NONE if it is unknown or too old. */
static __always_inline __u32 worker_of_datagram(const struct egret_datagram *datagram)
{
	struct egret_fragment *known = bpf_map_lookup_elem(&fragments, datagram);

	if (!known || bpf_ktime_get_ns() - known->seen_ns > EGRET_FRAGMENT_LIFETIME_NS)
		return EGRET_SLOT_NONE;
	return known->worker;
}

static __always_inline struct egret_worker *worker_at(__u32 index)
{
	return bpf_map_lookup_elem(&workers, &index);
}

/* Gateway that gets packets for ports of the address that have no owner here; 0: none. */
static __always_inline struct egret_worker *relay_of(const struct egret_steering *table)
{
	__u32 key = EGRET_RELAY_KEY_BASE + (table->flags >> EGRET_GROUP_SHIFT);
	__u32 *index = bpf_map_lookup_elem(&peers, &key);

	return index ? worker_at(*index) : 0;
}

static __always_inline int is_mapped_v4(const struct egret_address *address)
{
	return !address->word[0] && !address->word[1] && address->word[2] == bpf_htonl(0xffff);
}

static __always_inline int set_tunnel(struct __sk_buff *skb, const struct egret_address *underlay, __u32 identifier)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	key.tunnel_id = identifier;
	key.tunnel_ttl = 64;
	if (is_mapped_v4(underlay)) {
		key.remote_ipv4 = bpf_ntohl(underlay->word[3]);
	} else {
		flags |= BPF_F_TUNINFO_IPV6;
		key.remote_ipv6[0] = underlay->word[0];
		key.remote_ipv6[1] = underlay->word[1];
		key.remote_ipv6[2] = underlay->word[2];
		key.remote_ipv6[3] = underlay->word[3];
	}
	return bpf_skb_set_tunnel_key(skb, &key, EGRET_TUNNEL_KEY_BYTES, flags);
}

/* Underlay address of the sender of a tunnel packet, and its network identifier; 0: no tunnel. */
static __always_inline __u32 get_tunnel(struct __sk_buff *skb, struct egret_address *underlay)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, EGRET_TUNNEL_KEY_BYTES, 0) == 0) {
		mapped_v4(underlay, bpf_htonl(key.remote_ipv4));
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, EGRET_TUNNEL_KEY_BYTES, BPF_F_TUNINFO_IPV6) != 0)
			return 0;
		underlay->word[0] = key.remote_ipv6[0];
		underlay->word[1] = key.remote_ipv6[1];
		underlay->word[2] = key.remote_ipv6[2];
		underlay->word[3] = key.remote_ipv6[3];
	}
	return key.tunnel_id;
}

static __always_inline int decrement_hop_limit(struct __sk_buff *skb, __u32 version, __u8 hop_limit)
{
	__u8 lower = hop_limit - 1;

	if (version == 6)
		return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &lower, 1,
					   BPF_F_RECOMPUTE_CSUM);
	/* the TTL is the high byte of its 16 bits in the header checksum */
	if (bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), bpf_htons(hop_limit << 8),
				bpf_htons(lower << 8), 2) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, ttl), &lower, 1, 0);
}

static __always_inline int write_macs(struct __sk_buff *skb, const __u8 *destination, const __u8 *source)
{
	__u8 macs[12];

	__builtin_memcpy(macs, destination, 6);
	__builtin_memcpy(macs + 6, source, 6);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

/* Sets our bits of the mark and no others. Written as a whole: the verifier allows no write of a single byte. */
static __always_inline void set_mark_bits(struct __sk_buff *skb, __u32 bits)
{
	*(volatile __u32 *)&skb->mark = (skb->mark & ~EGRET_MARK_MASK) | bits;
}

/* Into the tunnel, to a node. The outer route lookup uses the inner packet's mark, so it is cleared. */
static __always_inline int tunnel_to(struct __sk_buff *skb, const struct egret_config *settings,
				     const struct egret_worker *worker, __u32 identifier, __u32 served)
{
	if (write_macs(skb, worker->tunnel_mac, settings->tunnel_mac) < 0 ||
	    set_tunnel(skb, &worker->underlay, identifier) < 0) {
		count(EGRET_FAILED);
		return TC_ACT_SHOT;
	}
	skb->mark = 0;
	count(served);
	return bpf_redirect(settings->tunnel_ifindex, 0);
}

/* Result of the kernel's route lookup for a destination. */
enum egret_way {
	WAY_NOT_TOLD = 0, /* not by the external device, or the kernel does not say: bpf_redirect_neigh asks it anew */
	WAY_UP = 1, /* an address of this node, or none that it routes */
	WAY_NEIGHBOUR = 2, /* by the external device, to a neighbour */
	WAY_UNRESOLVED = 3, /* the same, and the neighbour's link address is not known */
};

/* linux/socket.h pulls in the C library's headers; these are its numbers. */
#define AF_INET 2
#define AF_INET6 10

/*
 * Route of a packet that leaves by the external device. It is looked up as if the packet had come by that device: with
 * the rules and the routing domain (VRF) of that device, and with the node's own addresses recognised, whichever device
 * they are on.
 *
 * Not static: see parse_ip.
 */
__noinline int way_of(struct __sk_buff *skb, __u32 external_ifindex, const struct egret_packet *packet,
		      struct bpf_redir_neigh *neighbour)
{
	struct bpf_fib_lookup route = { .ifindex = external_ifindex };
	long found;

	if (!packet || !neighbour)
		return WAY_NOT_TOLD;
	if (packet->version == 4) {
		route.family = AF_INET;
		route.ipv4_src = packet->source.word[3];
		route.ipv4_dst = packet->destination.word[3];
	} else {
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_src, &packet->source, 16);
		__builtin_memcpy(route.ipv6_dst, &packet->destination, 16);
	}
	found = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	if (found == BPF_FIB_LKUP_RET_NOT_FWDED)
		return WAY_UP;
	if ((found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    route.ifindex != external_ifindex)
		return WAY_NOT_TOLD;
	neighbour->nh_family = route.family;
	if (route.family == AF_INET)
		neighbour->ipv4_nh = route.ipv4_dst;
	else
		__builtin_memcpy(neighbour->ipv6_nh, route.ipv6_dst, 16);
	return found == BPF_FIB_LKUP_RET_NO_NEIGH ? WAY_UNRESOLVED : WAY_NEIGHBOUR;
}

static __always_inline int drop(__u32 reason)
{
	count(reason);
	return TC_ACT_SHOT;
}

#endif
