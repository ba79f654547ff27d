/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Formats that the uplink programs of a worker and their loader share, and their maps. The Rust side is
 * crates/datapath/src/uplink/abi.rs; a test there compares sizes and names. All maps are pinned by these names.
 */
#ifndef EGRET_UPLINK_H
#define EGRET_UPLINK_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* Most addresses of selected pods of this node. */
#define EGRET_UPLINK_PODS_MAX 16384
/* Most prefixes of selected destinations of all profiles; a profile with too many is reinjected as a whole. */
#define EGRET_UPLINK_DESTINATIONS_MAX 262144
/* Most never-destination prefixes, and most prefixes of this node's pods. */
#define EGRET_UPLINK_PREFIXES_MAX 65536
/* Most flows, ends of flows and datagrams remembered at once, per map; the least recently used is removed first. */
#define EGRET_UPLINK_FLOWS_MAX 65536
#define EGRET_UPLINK_DATAGRAMS_MAX 16384
/* Lifetime of the opener of a flow without handshake after its last packet, as in conntrack
 * (nf_conntrack_udp_timeout_stream). */
#define EGRET_UPLINK_FLOW_NS 120000000000ull
/* Lifetime of a SYN from outside: tcp_synack_retries take 63 s. */
#define EGRET_UPLINK_KNOCK_NS 70000000000ull

/* uplink_config[0] */
struct egret_uplink_config {
	__u32 reinject_ifindex; /* the device at whose ingress reinjected packets appear; 0: nothing is reinjected */
	__u32 mark_mask; /* our bits of a packet's mark */
	__u32 mark_left; /* what the ruleset puts there when it has looked at a reinjected packet and left it alone */
	__u8 reinject_mac[6];
	__u8 attachment; /* the loader's own note: how the programs are attached */
	__u8 reserved[5];
	__u64 object_hash; /* of the object that the programs came from */
};

/* Key of uplink_never and uplink_local. */
struct egret_prefix {
	__u32 bits; /* 32 and those of the address, IPv4 as ::ffff:a.b.c.d */
	__u32 version; /* 4 or 6: ::/0 is no prefix of an IPv4 address */
	struct egret_address address;
};

/* Key of uplink_destinations: the profile comes first and always counts fully. */
struct egret_destination {
	__u32 bits; /* 96 and those of the address; 64: all of both families */
	__u32 profile[2]; /* as in uplink_pods */
	__u32 version;
	struct egret_address address;
};

/* Value of uplink_pods. */
struct egret_profile {
	__u32 profile[2];
};

/* A flow from its pod's side. Ports are 0 where the protocol has none; ICMP has its echo id twice. */
struct egret_flow {
	struct egret_address pod;
	struct egret_address remote;
	__be16 pod_port;
	__be16 remote_port;
	__u32 protocol;
};

enum egret_opener { EGRET_BY_POD = 1, EGRET_BY_REMOTE = 2 };

/* Value of uplink_flows. */
struct egret_opened {
	__u64 seen_ns;
	__u32 opener;
	__u32 reserved;
};

/* Key of uplink_knocks. */
struct egret_knock {
	struct egret_address remote;
	__be16 port;
	__u16 reserved;
};

/* Outcomes of a packet in the programs, one counter each; crates/datapath/src/uplink/counters.rs has the same
 * table. Append only. */
enum egret_uplink_counter {
	EGRET_UPLINK_REINJECTED = 0,
	EGRET_UPLINK_LEFT_ALONE = 1,
	EGRET_UPLINK_ANSWERED = 2,
	EGRET_UPLINK_NO_RULESET = 3,
	EGRET_UPLINK_FAILED = 4,
	EGRET_UPLINK_COUNTERS = 5
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct egret_uplink_config);
} uplink_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_UPLINK_PODS_MAX);
	__type(key, struct egret_address);
	__type(value, struct egret_profile);
} uplink_pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_UPLINK_DESTINATIONS_MAX);
	__type(key, struct egret_destination);
	__type(value, __u32);
} uplink_chosen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_UPLINK_PREFIXES_MAX);
	__type(key, struct egret_prefix);
	__type(value, __u32);
} uplink_never SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, EGRET_UPLINK_PREFIXES_MAX);
	__type(key, struct egret_prefix);
	__type(value, __u32);
} uplink_local SEC(".maps");

/* TCP: ends outside that have sent a SYN recently. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EGRET_UPLINK_FLOWS_MAX);
	__type(key, struct egret_knock);
	__type(value, __u64);
} uplink_knocks SEC(".maps");

/* TCP: flows opened towards pods, until the pod opens one with the same ports. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EGRET_UPLINK_FLOWS_MAX);
	__type(key, struct egret_flow);
	__type(value, __u64);
} uplink_inbound SEC(".maps");

/* All other protocols: who sent the first packet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EGRET_UPLINK_FLOWS_MAX);
	__type(key, struct egret_flow);
	__type(value, struct egret_opened);
} uplink_flows SEC(".maps");

/* Datagrams whose first fragment was an answer. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EGRET_UPLINK_DATAGRAMS_MAX);
	__type(key, struct egret_datagram);
	__type(value, __u64);
} uplink_datagrams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EGRET_UPLINK_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} uplink_counters SEC(".maps");

static __always_inline void tally(__u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(&uplink_counters, &reason);

	if (value)
		*value += 1;
}

#endif
