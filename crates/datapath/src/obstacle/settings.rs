//! Settings, policy routing and sizes, in the form of `egret_core::obstacle`.

use crate::requirements::OPTIONS;
use crate::route::{Device, RouteError, Routing};
use egret_core::numbers::{
    CLASSIC_ROUTE_PROTOCOL, ROUTE_PROTOCOL, TUNNEL_DEVICE, TUNNEL_OVERHEAD_V4_BYTES, TUNNEL_PORT,
};
use egret_core::obstacle::{RoutingRule, Settings};
use egret_kernel::bytes::host_u32;
use egret_kernel::netlink::{NetlinkSocket, Request, attributes};
use egret_kernel::sysctl;
use std::collections::BTreeSet;
use std::path::Path;

const RTM_GETRULE: u16 = 34;
const RULE_HEADER: usize = 12;

/// Reads the settings. `root` is the directory of the node's files; unreadable values are left out.
///
/// # Errors
/// Links or rules cannot be read.
pub fn read(root: &Path) -> Result<Settings, RouteError> {
    let mut routing = Routing::open()?;
    let devices = routing.devices()?;
    let default = routing.default_device()?;
    let marks = routing.foreign_marks()?;
    let mut socket = NetlinkSocket::open(libc::NETLINK_ROUTE)?;
    Ok(Settings {
        tunnel_reverse_path: reverse_path(),
        filtered_bridge: default.as_ref().and_then(bridge),
        foreign_marks: marks
            .into_iter()
            .map(|rule| (rule.priority, rule.mark, rule.mask))
            .collect(),
        rules: rules(&mut socket)?,
        missing_options: missing_options(root),
        ipvs: translates_by_ipvs(),
        mtu: mtu(&devices, default),
    })
}

fn number(name: &str) -> Option<u32> {
    sysctl::value(name)?.parse().ok()
}

fn reverse_path() -> Option<(u32, u32)> {
    let of = |device: &str| number(&format!("net.ipv4.conf.{device}.rp_filter"));
    of("all").zip(of(TUNNEL_DEVICE))
}

fn bridge(device: &Device) -> Option<(String, bool, bool)> {
    let is_bridge = Path::new("/sys/class/net")
        .join(&device.name)
        .join("bridge")
        .exists();
    let is_on = |name: &str| number(name) == Some(1);
    let v4 = is_on("net.bridge.bridge-nf-call-iptables");
    let v6 = is_on("net.bridge.bridge-nf-call-ip6tables");
    (is_bridge && (v4 || v6)).then(|| (device.name.clone(), v4, v6))
}

/// Whether kube-proxy's device for Service addresses exists, or the kernel has a virtual service of IPVS.
fn translates_by_ipvs() -> bool {
    const DEVICE: &str = "/sys/class/net/kube-ipvs0";
    const TABLE: &str = "/proc/net/ip_vs";
    let is_service = |line: &str| {
        ["TCP", "UDP", "SCTP", "FWM"]
            .iter()
            .any(|p| line.starts_with(p))
    };
    let table = std::fs::read_to_string(TABLE).unwrap_or_default();
    Path::new(DEVICE).exists() || table.lines().any(is_service)
}

/// MTUs of the tunnel and its underlay device, assumed to be the default route's, and the overhead over IPv4.
fn mtu(devices: &[Device], default: Option<Device>) -> Option<(u32, String, u32, u32)> {
    let tunnel = devices.iter().find(|device| {
        device.name == TUNNEL_DEVICE && device.metadata_vxlan == Some(TUNNEL_PORT)
    })?;
    let default = default?;
    Some((
        tunnel.mtu,
        default.name,
        default.mtu,
        TUNNEL_OVERHEAD_V4_BYTES,
    ))
}

/// Rules of others without a mark, before the kernel's own rule for the main table.
fn rules(socket: &mut NetlinkSocket) -> Result<Vec<RoutingRule>, RouteError> {
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut body = vec![0; RULE_HEADER];
        body[0] = family;
        let request = Request {
            kind: RTM_GETRULE,
            flags: 0,
            body,
            what: "the routing rules".into(),
        };
        let replies = socket.dump(&request)?;
        found.extend(replies.iter().filter_map(|reply| rule(&reply.body)));
    }
    Ok(found.into_iter().collect())
}

/// `struct fib_rule_hdr` and its attributes (`linux/fib_rules.h`).
fn rule(body: &[u8]) -> Option<RoutingRule> {
    const PRIORITY: u16 = 6;
    const MARK: u16 = 10;
    const TABLE: u16 = 15;
    const MASK: u16 = 16;
    const PROTOCOL: u16 = 21;
    const SUPPRESS_PREFIX: u16 = 14;
    const L3MDEV: u16 = 19;
    let is_v4 = *body.first()? == libc::AF_INET as u8;
    let (mut priority, mut table) = (0, u32::from(*body.get(4)?));
    // Prefixes of source and destination, type of service.
    let mut takes_all = body.get(1..4)? == [0; 3];
    for (kind, value) in attributes(body.get(RULE_HEADER..)?) {
        match kind {
            PRIORITY => priority = host_u32(value)?,
            TABLE => table = host_u32(value)?,
            MARK if host_u32(value)? != 0 => return None,
            // Only devices of a VRF.
            L3MDEV => return None,
            PROTOCOL
                if [[ROUTE_PROTOCOL], [CLASSIC_ROUTE_PROTOCOL]]
                    .iter()
                    .any(|own| own == value) =>
            {
                return None;
            }
            MARK | MASK | PROTOCOL | SUPPRESS_PREFIX => {}
            _ => takes_all = false,
        }
    }
    let some = if takes_all { "from all" } else { "from some" };
    Some(RoutingRule {
        is_v4,
        priority,
        text: format!("{priority}: {some} lookup {table}"),
        takes_all,
    })
}

/// Missing options, from the configuration file beside the kernel; none where there is no such file.
fn missing_options(root: &Path) -> Vec<String> {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return Vec::new();
    };
    let path = root.join("boot").join(format!("config-{}", release.trim()));
    let Ok(config) = std::fs::read_to_string(path) else {
        return Vec::new();
    };
    let is_on = |option: &&&str| {
        let (built_in, module) = (format!("CONFIG_{option}=y"), format!("CONFIG_{option}=m"));
        config
            .lines()
            .any(|line| line == built_in || line == module)
    };
    let missing = OPTIONS.iter().filter(|option| !is_on(option));
    missing.map(|option| (*option).to_owned()).collect()
}
