//! ARP requests and neighbour solicitations, rewritten into their answers.

use super::matches::*;
use super::rules::Site;
use egret_kernel::nft::{Base, Checksum, Expression as E, Rule};

const ARP_REPLY: [u8; 2] = [0, 2];

/// Rewrites an ARP request for an announced address into its answer.
pub(super) fn arp(site: &Site<'_>) -> Vec<Rule> {
    const ETHERNET_IPV4_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let write =
        |offset, length, register| store(Base::Network, offset, length, register, Checksum::None);
    let (operation, mac, device) = (8, 9, 11);
    vec![
        // Gratuitous ARP: another gateway announces.
        vec![
            network(14, 4, 0),
            inside(V4.named("announce"), 0),
            E::Verdict(ACCEPT, None),
        ],
        vec![
            network(0, 8, 0),
            equals(0, &ETHERNET_IPV4_REQUEST),
            network(24, 4, 4),
            inside(V4.named("announce"), 4),
            network(8, 6, 0),
            network(14, 4, 2),
            E::Load(operation, ARP_REPLY.to_vec()),
            E::Load(mac, site.config.external_mac.to_vec()),
            write(6, 2, operation),
            write(8, 6, mac),
            write(14, 4, 4),
            write(18, 6, 0),
            write(24, 4, 2),
            store(Base::Link, 0, 6, 0, Checksum::None),
            store(Base::Link, 6, 6, mac, Checksum::None),
            E::Count("in_arp_answered".into()),
            E::Load(device, site.config.external_ifindex.to_ne_bytes().to_vec()),
            E::Redirect(device),
        ],
    ]
}

/// Rewrites a neighbour solicitation for an announced address into an advertisement: solicited, override.
pub(super) fn solicitation(site: &Site<'_>) -> Vec<Rule> {
    const ICMP_AND_ITS_LIMIT: [u8; 2] = [58, 255];
    const SOLICITATION: [u8; 2] = [135, 0];
    const ADVERTISEMENT: [u8; 2] = [136, 0];
    const SOLICITED_OVERRIDE: [u8; 4] = [0x60, 0, 0, 0];
    const TARGET_LINK_ADDRESS: [u8; 2] = [2, 1];
    const WITH_OPTION: [u8; 2] = [0, 32];
    const WITHOUT: [u8; 2] = [0, 24];
    let in_icmp = |offset, length, register| {
        store(Base::Transport, offset, length, register, Checksum::At(2))
    };
    let answer = |with_option: bool| {
        let length = if with_option { WITH_OPTION } else { WITHOUT };
        let mut rule = vec![
            network(4, 2, 0),
            equals(0, &length),
            network(6, 2, 0),
            equals(0, &ICMP_AND_ITS_LIMIT),
            transport(0, 2, 0),
            equals(0, &SOLICITATION),
            // Duplicate address detection has the unspecified source address.
            network(8, 16, 4),
            differs(4, &[0; 16]),
            transport(8, 16, 0),
            inside(V6.named("announce"), 0),
            link(6, 6, 8),
            store(Base::Network, 8, 16, 0, Checksum::Pseudo),
            store(Base::Network, 24, 16, 4, Checksum::Pseudo),
            E::Load(10, ADVERTISEMENT.to_vec()),
            in_icmp(0, 2, 10),
            E::Load(10, SOLICITED_OVERRIDE.to_vec()),
            in_icmp(4, 4, 10),
            E::Load(12, site.config.external_mac.to_vec()),
        ];
        if with_option {
            rule.extend([
                E::Load(10, TARGET_LINK_ADDRESS.to_vec()),
                in_icmp(24, 2, 10),
                in_icmp(26, 6, 12),
            ]);
        }
        rule.extend([
            store(Base::Link, 0, 6, 8, Checksum::None),
            store(Base::Link, 6, 6, 12, Checksum::None),
            E::Count("in_nd_answered".into()),
            E::Load(10, site.config.external_ifindex.to_ne_bytes().to_vec()),
            E::Redirect(10),
        ]);
        rule
    };
    vec![answer(true), answer(false), goes(vec![], "in6")]
}
