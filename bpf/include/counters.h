/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Outcomes of a packet in the two programs, one counter each, and further facts about some of them.
 * crates/datapath/src/gateway/counters.rs has the same table; a test compares them. Append only: the index is part of the pinned map's meaning.
 */
#ifndef EGRET_COUNTERS_H
#define EGRET_COUNTERS_H

enum egret_counter {
	/* external_in, served */
	EGRET_IN_FORWARDED = 0,
	EGRET_IN_SELF = 1,
	EGRET_IN_ARP_ANSWERED = 2,
	EGRET_IN_ND_ANSWERED = 3,
	/* external_in, dropped */
	EGRET_IN_NO_BLOCK = 4,
	EGRET_IN_NO_WORKER = 5,
	EGRET_IN_ECHO_REQUEST = 6,
	EGRET_IN_FRAGMENT_UNKNOWN = 7,
	EGRET_IN_FOREIGN_QUOTE = 8,
	EGRET_IN_UNSERVED = 9,
	EGRET_IN_MALFORMED = 10,
	EGRET_IN_TTL_EXPIRED = 11,
	EGRET_IN_TOO_BIG = 12,
	/* egress_in, served */
	EGRET_OUT_FORWARDED = 13,
	EGRET_OUT_SELF = 14,
	EGRET_PROBE_ANSWERED = 15,
	EGRET_PROBE_RECEIVED = 16,
	/* egress_in, dropped */
	EGRET_OUT_SPOOFED = 17,
	EGRET_OUT_FRAGMENT_UNKNOWN = 18,
	EGRET_OUT_FOREIGN_QUOTE = 19,
	EGRET_OUT_UNSERVED = 20,
	EGRET_OUT_MALFORMED = 21,
	EGRET_OUT_TTL_EXPIRED = 22,
	EGRET_OUT_TOO_BIG = 23,
	EGRET_OUT_NOT_OURS = 24,
	EGRET_OUT_UNKNOWN_PEER = 25,
	EGRET_OUT_FOREIGN_TUNNEL = 26,
	EGRET_PROBE_REFUSED = 27,
	/* both */
	EGRET_ICMP_LIMITED = 28,
	EGRET_FAILED = 29,
	/* egress_in, to next hops: served, dropped */
	EGRET_OUT_NEXT_HOP = 30,
	EGRET_OUT_NEXT_HOP_UNKNOWN = 31,
	/* egress_in, canaries: answered, dropped */
	EGRET_CANARY_TURNED = 32,
	EGRET_CANARY_REFUSED = 33,
	/* egress_in, for the gateway itself: served */
	EGRET_OUT_LOCAL = 34,
	/* of those in EGRET_OUT_FORWARDED */
	EGRET_OUT_UNRESOLVED = 35,
	/* external_in, a port without owner: passed to another gateway; dropped because of too many */
	EGRET_IN_RELAYED = 36,
	EGRET_IN_RELAY_LIMITED = 37,
	/* egress_in, passed on by another gateway: sent to the worker or up; dropped */
	EGRET_RELAY_FORWARDED = 38,
	EGRET_RELAY_NO_BLOCK = 39,
	EGRET_RELAY_REFUSED = 40,
	EGRET_COUNTERS = 41
};

#endif
