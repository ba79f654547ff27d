// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Stand-in for a network plugin that takes pods' packets past the node's stack, as plugins with eBPF host routing do:
 *
 *   from_pod   ingress of a pod's device: routed, hop limit lowered, and out by the route's device, neighbour and all
 *   to_pod     ingress of the uplink: what is for a pod of this node, straight into the pod
 *   express    an XDP program that passes everything, for a path that nobody can follow
 *
 * Towards this node, link-local and multicast addresses the stack stays in charge. Nothing is translated.
 */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10

static __always_inline int look(struct __sk_buff *skb, struct bpf_fib_lookup *fib)
{
	struct iphdr v4;
	struct ipv6hdr v6;

	fib->ifindex = skb->ifindex;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &v4, sizeof(v4)) < 0 || v4.ttl <= 1)
			return -1;
		fib->family = AF_INET;
		fib->ipv4_src = v4.saddr;
		fib->ipv4_dst = v4.daddr;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &v6, sizeof(v6)) < 0 || v6.hop_limit <= 1 ||
		    v6.daddr.in6_u.u6_addr8[0] == 0xff || v6.daddr.in6_u.u6_addr8[0] == 0xfe)
			return -1;
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, &v6.saddr, 16);
		__builtin_memcpy(fib->ipv6_dst, &v6.daddr, 16);
	} else {
		return -1;
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

static __always_inline void lower(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u16 old, new;

		bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, ttl), &old, 2);
		new = bpf_htons(bpf_ntohs(old) - 0x100);
		bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), old, new, 2);
		bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, ttl), &new, 2, 0);
	} else {
		__u8 hops;

		bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &hops, 1);
		hops--;
		bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &hops, 1, 0);
	}
}

SEC("from_pod")
int leave(struct __sk_buff *skb)
{
	struct bpf_fib_lookup fib = {};
	int found = look(skb, &fib);

	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return TC_ACT_OK;
	lower(skb);
	return bpf_redirect_neigh(fib.ifindex, 0, 0, 0);
}

SEC("to_pod")
int come(struct __sk_buff *skb)
{
	struct bpf_fib_lookup fib = {};

	if (look(skb, &fib) != BPF_FIB_LKUP_RET_SUCCESS || fib.ifindex == skb->ifindex)
		return TC_ACT_OK;
	lower(skb);
	return bpf_redirect_peer(fib.ifindex, 0);
}

SEC("xdp")
int express(struct xdp_md *context)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
