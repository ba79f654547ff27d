/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The maps of a gateway. The loader pins all but budgets by these names. */
#ifndef EGRET_MAPS_H
#define EGRET_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "counters.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct egret_config);
} config SEC(".maps");

/* Replacing an element switches all its blocks at once. Not preallocated: a full table would take 64 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_ADDRESSES_MAX);
	__type(key, struct egret_address);
	__type(value, struct egret_steering);
} steering SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_WORKERS_MAX);
	__type(key, __u32);
	__type(value, struct egret_worker);
} workers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_OWNERS_MAX);
	__type(key, struct egret_owner);
	__type(value, __u32);
} owners SEC(".maps");

/*
 * Gateways that share a group with this one: tunnel index to 1. And where packets without an owner go:
 * EGRET_RELAY_KEY_BASE + number of the group to a tunnel index.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_PEERS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} peers SEC(".maps");

/* VXLAN network identifier to the number of a next hop: its mark and routing table. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_NEXT_HOPS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} next_hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EGRET_FRAGMENTS_MAX);
	__type(key, struct egret_datagram);
	__type(value, struct egret_fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EGRET_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* The loader makes an element for every steered address; the programs make none. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_ADDRESSES_MAX);
	__type(key, struct egret_address);
	__type(value, struct egret_traffic);
} traffic SEC(".maps");

enum egret_icmp_kind { EGRET_TIME_EXCEEDED = 0, EGRET_PACKET_TOO_BIG = 1, EGRET_ICMP_KINDS = 2 };

/* Positions in budgets: kinds of ICMP errors, and packets that are passed to another gateway. */
enum egret_budget { EGRET_BUDGET_RELAY = EGRET_ICMP_KINDS, EGRET_BUDGETS = 3 };

struct egret_window {
	__u64 start_ns;
	__u64 used;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EGRET_BUDGETS);
	__type(key, __u32);
	__type(value, struct egret_window);
} budgets SEC(".maps");

/* Takes one of so many per second and CPU. */
static __always_inline int within_budget(__u32 budget, __u64 per_second)
{
	struct egret_window *window = bpf_map_lookup_elem(&budgets, &budget);
	__u64 now = bpf_ktime_get_ns();

	if (!window)
		return 0;
	if (now - window->start_ns >= 1000000000ull) {
		window->start_ns = now;
		window->used = 0;
	}
	if (window->used >= per_second)
		return 0;
	window->used += 1;
	return 1;
}

static __always_inline void count(__u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &reason);

	if (value)
		*value += 1;
}

#endif
