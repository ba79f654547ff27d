/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Formats that the eBPF programs of a gateway and their loader share. Rust side: crates/datapath/src/gateway/abi.rs;
 * a test there compares the sizes. A change of a map's key or value raises EGRET_ABI.
 */
#ifndef EGRET_ABI_H
#define EGRET_ABI_H

#include <linux/types.h>

/* Version of the layout of the pinned maps. */
#define EGRET_ABI 1

/* VXLAN network identifier of the tunnel. */
#define EGRET_VNI 14790
/* Identifier of packets from outside that a gateway of the same group had no owner for: never passed on again. */
#define EGRET_RELAY_VNI 14791
/* First identifier of packets to a next hop: the rest of the 24 bits is the next hop's number. */
#define EGRET_NEXT_HOP_VNI_BASE 0x800000
/* Our mark bits, and the shift of a group number into them. */
#define EGRET_MARK_MASK 0x00ff0000u
#define EGRET_MARK_SHIFT 16
/* Destinations of canaries without the number of the group: 198.18.79.0, and the third word of 100::79:0:0. */
#define EGRET_CANARY_V4 0xc6124f00u
#define EGRET_CANARY_V6_WORD 0x00000079u
/* UDP port of probes inside the tunnel. */
#define EGRET_PROBE_PORT 14790
/* Source ports in one block: 1 << 6. */
#define EGRET_BLOCK_SHIFT 6
/* Blocks of one address (65536 >> 6). */
#define EGRET_BLOCKS 1024

/* Slot values that are not a tunnel index. */
#define EGRET_SLOT_NONE 0
#define EGRET_SLOT_SELF 0xffff

/* egret_steering.flags: this gateway answers ARP and ND for the address. */
#define EGRET_ANNOUNCE 1u
/* egret_steering.flags: number of the address's group on this gateway; 0: none. */
#define EGRET_GROUP_SHIFT 16

/* Most addresses that one gateway serves: 4 KiB of kernel memory each. */
#define EGRET_ADDRESSES_MAX 16384
/* Most nodes that may own blocks: every tunnel index. */
#define EGRET_WORKERS_MAX 65536
/* Most (address, worker) pairs: 16384 addresses with 16 workers each. */
#define EGRET_OWNERS_MAX 262144
/* Keys of peers above all tunnel indexes: this + the number of a group. */
#define EGRET_RELAY_KEY_BASE 0x10000u
/* Most entries of peers: gateways that share a group with this one, and one per group. */
#define EGRET_PEERS_MAX 4096
/* Packets without an owner that are passed to another gateway, per second and CPU; more are dropped and counted. */
#define EGRET_RELAYED_PER_SECOND 10000
/* Most next hops of one gateway: group numbers. */
#define EGRET_NEXT_HOPS_MAX 250
/* Most datagrams whose first fragment is remembered; the least recently used is removed first. */
#define EGRET_FRAGMENTS_MAX 16384
/* Lifetime of a remembered first fragment, as long as Linux reassembles (ipfrag_time): 30 s. */
#define EGRET_FRAGMENT_LIFETIME_NS 30000000000ull
/* Most IPv6 extension headers that are parsed; a longer chain is dropped and counted. */
#define EGRET_EXTENSION_HEADERS_MAX 6
/* Bytes of the offending packet that an ICMP error quotes: header and ports are in it (RFC 4884 section 3 asks 128). */
#define EGRET_ICMP_QUOTE_MAX 128
/* ICMP errors of one kind made per second and CPU (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f). */
#define EGRET_ICMP_ERRORS_PER_SECOND 1000

/* An address, IPv4 as ::ffff:a.b.c.d, network byte order. */
struct egret_address {
	__u32 word[4];
};

/* config[0] */
struct egret_config {
	__u32 external_ifindex;
	__u32 tunnel_ifindex;
	__u32 tunnel_mtu; /* bytes of an IP packet inside the tunnel */
	__u16 own_index;
	__u8 external_mac[6];
	__u8 tunnel_mac[6];
	__u8 attachment; /* the loader's own note: how the programs are attached */
	__u8 reserved[5];
	struct egret_address external_v4; /* all zero: none */
	struct egret_address external_v6; /* all zero: none */
	__u64 steering_version; /* written last */
	__u64 object_hash; /* of the object that the programs came from */
};

/* steering[address] */
struct egret_steering {
	/* Repetition of the key. An element freed by a replacement may be reused for another address while a program
	 * still reads it; the reader compares this after the slot, so that it never uses another address's slot. */
	struct egret_address address;
	__u32 flags;
	__u16 slot[EGRET_BLOCKS]; /* port >> 6 -> tunnel index, or EGRET_SLOT_* */
};

/* workers[tunnel index] */
struct egret_worker {
	struct egret_address underlay;
	__u8 tunnel_mac[6];
	__u8 reserved[2];
};

/* Key of owners: the worker has at least one block of the address. */
struct egret_owner {
	struct egret_address address;
	__u32 worker;
};

/* Key of fragments. */
struct egret_datagram {
	struct egret_address source;
	struct egret_address destination;
	__u32 id;
	__u32 protocol; /* 0 for IPv6: RFC 8200 section 4.5 identifies by addresses and id alone */
};

/* Value of fragments. */
struct egret_fragment {
	__u64 seen_ns;
	__u32 worker; /* tunnel index or EGRET_SLOT_SELF */
	__u32 reserved;
};

/* Value of traffic, per CPU. Bytes are those of IP packets; segments of merged packets (GRO) are counted singly. */
struct egret_sums {
	__u64 packets;
	__u64 bytes;
	__u64 dropped; /* packets */
};

struct egret_traffic {
	struct egret_sums out; /* to the network outside */
	struct egret_sums back; /* from it */
};

/* Payload of a probe; the frozen wire format of crates/wire/src/probe.rs. Network byte order. */
struct egret_probe {
	__u8 magic[4]; /* "EGRT" */
	__u8 version; /* 1 */
	__u8 kind; /* 1 request, 2 reply */
	__be16 sender; /* tunnel index */
	__be64 nonce;
	__be64 steering_version; /* 0 in requests */
	__u8 reserved[8];
} __attribute__((packed));

#endif
