//! Obstacles other than firewalls: kernel settings, policy routing, MTU.

use super::{Obstacle, ObstacleKind};
use crate::numbers::{MARK_MASK, RULE_PRIORITY, TUNNEL_DEVICE};

/// Minimum MTU of IPv6 in bytes (RFC 8200 section 5).
const IPV6_MTU_MIN: u32 = 1280;
/// Value of `rp_filter` that drops packets which arrive by another device than the route back.
const STRICT: u32 = 1;

/// A policy routing rule of others that matches no mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoutingRule {
    /// It is IPv4.
    pub is_v4: bool,
    /// Its priority.
    pub priority: u32,
    /// Text in the syntax of `ip rule`.
    pub text: String,
    /// It matches every packet; otherwise those of some source, destination or device.
    pub takes_all: bool,
}

/// Facts of a node, beside its firewalls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `rp_filter` of all devices and of the tunnel's; `None` without such a device.
    pub tunnel_reverse_path: Option<(u32, u32)>,
    /// Bridges with the node's default routes, and whether `net.bridge.bridge-nf-call-*` is on for IPv4 and IPv6.
    pub filtered_bridge: Option<(String, bool, bool)>,
    /// Priority, mark and mask of others' rules that match bits of our mark.
    pub foreign_marks: Vec<(u32, u32, u32)>,
    /// Rules of others that match no mark.
    pub rules: Vec<RoutingRule>,
    /// Build options that this kernel lacks; empty where that is unknown.
    pub missing_options: Vec<String>,
    /// IPVS translates Services on this node.
    pub ipvs: bool,
    /// MTU of the tunnel, and name and MTU of the device that carries it, bytes, with what the tunnel adds.
    pub mtu: Option<(u32, String, u32, u32)>,
}

/// Obstacles among these facts.
pub fn of_settings(settings: &Settings) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |kind, place: String, text: String, remedy: String, (v4, v6, certain)| {
        found.push(Obstacle {
            kind,
            place,
            text,
            remedy,
            v4,
            v6,
            certain,
        });
    };
    if let Some((of_all, of_tunnel)) = settings.tunnel_reverse_path
        && of_all.max(of_tunnel) == STRICT
    {
        add(
            ObstacleKind::ReversePathSetting,
            format!("net.ipv4.conf.{TUNNEL_DEVICE}.rp_filter"),
            format!(
                "the reverse path filter of {TUNNEL_DEVICE} is strict: answers out of the tunnel are dropped"
            ),
            format!("sysctl -w net.ipv4.conf.{TUNNEL_DEVICE}.rp_filter=2"),
            (true, false, true),
        );
    }
    if let Some((bridge, v4, v6)) = &settings.filtered_bridge {
        add(
            ObstacleKind::BridgeNetfilter,
            "net.bridge.bridge-nf-call-iptables".into(),
            format!(
                "the node's default route leaves by the bridge {bridge}, and frames of bridges pass the firewall: \
                 what a gateway gets from outside may be lost there"
            ),
            format!(
                "give egress another device than {bridge} (EgressGateway spec.externalInterface), or sysctl -w net.bridge.bridge-nf-call-iptables=0"
            ),
            (*v4, *v6, false),
        );
    }
    for (priority, mark, mask) in &settings.foreign_marks {
        add(
            ObstacleKind::MarkOverlap,
            format!("ip rule, priority {priority}"),
            format!(
                "the rule looks for mark {mark:#x}/{mask:#x}, and {MARK_MASK:#010x} is Egret's"
            ),
            "give that component other bits".into(),
            (true, true, false),
        );
    }
    for rule in settings.rules.iter().filter(|rule| is_before(rule)) {
        let may = if rule.takes_all { "" } else { "may " };
        let takes = if rule.takes_all { "takes" } else { "take" };
        let family = if rule.is_v4 { "" } else { " -6" };
        add(
            ObstacleKind::RoutingRule,
            format!("ip{family} rule: {}", rule.text),
            format!(
                "the rule comes before Egret's (priority {RULE_PRIORITY}) and {may}{takes} packets on their way into the tunnel \
                 where its table has a route for them"
            ),
            format!("give it a priority above {RULE_PRIORITY}"),
            (rule.is_v4, !rule.is_v4, false),
        );
    }
    for option in &settings.missing_options {
        add(
            ObstacleKind::KernelOption,
            format!("CONFIG_{option}"),
            format!("the kernel is built without {option}"),
            "use a kernel of docs/requirements.md".into(),
            (true, true, false),
        );
    }
    if settings.ipvs {
        add(
            ObstacleKind::Ipvs,
            "IPVS".into(),
            "IPVS translates Services on this node: packets of selected pods to a Service with an endpoint outside the \
             cluster are dropped (counter guard_ipvs); Services with endpoints in the cluster are not affected"
                .into(),
            "run kube-proxy in mode iptables or nftables, or let these pods use the endpoint's own address".into(),
            (true, true, false),
        );
    }
    mtu(settings, &mut add);
    found
}

fn is_before(rule: &RoutingRule) -> bool {
    // Priority 0 is the kernel's own look-up in the local table.
    (1..RULE_PRIORITY).contains(&rule.priority)
}

type Flags = (bool, bool, bool);

fn mtu(settings: &Settings, add: &mut impl FnMut(ObstacleKind, String, String, String, Flags)) {
    let Some((tunnel, device, carrier, overhead)) = &settings.mtu else {
        return;
    };
    if *tunnel < IPV6_MTU_MIN {
        add(
            ObstacleKind::Mtu,
            format!("mtu of {TUNNEL_DEVICE}"),
            format!("the tunnel's MTU is {tunnel}, and IPv6 needs {IPV6_MTU_MIN}"),
            format!("raise the MTU of {device}, or EgressGateway spec.transport.mtu"),
            (false, true, true),
        );
    }
    if tunnel + overhead > *carrier {
        add(
            ObstacleKind::Mtu,
            format!("mtu of {device}"),
            format!(
                "full packets of the tunnel have {} bytes and {device} carries {carrier}",
                tunnel + overhead
            ),
            format!("raise the MTU of {device}, or lower EgressGateway spec.transport.mtu"),
            (true, true, false),
        );
    }
}
