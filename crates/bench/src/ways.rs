//! The variants that are compared, and their setup on the hosts of the lab.
//!
//! *Plain* is routing through a tunnel of the same kind to the same gateway, without any translation. *Gateway NAT* is
//! the method of the oldest scripts: a rule for each pod marks its packets at the worker, one for each pod translates
//! at the gateway (iptables), which tracks the connections. *Classic* is Egret's own second driver, the gateway as the
//! holder.

use crate::cluster::SERVER;
use anyhow::{Context, Result};
use egret_tests::chaos::Scene;

/// Clamps the MSS so that segments fit the tunnel, as Egret does.
const CLAMP: &str = "for way in -i -o; do iptables-legacy -t mangle -A FORWARD $way plain -p tcp \\
                     --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1410; done";
/// The gateway of every variant.
pub const GATEWAY: &str = "g1";

/// Address of a host or pod, IPv4.
fn address(scene: &Scene, place: &str) -> Result<String> {
    let layout = scene.lab().layout()?;
    let found = match layout.pod("default", place) {
        Some((_, pod)) => pod.addresses.iter().copied().find(|a| a.is_ipv4()),
        None => {
            let host = layout.hosts.iter().find(|host| host.name == place);
            host.and_then(|host| host.addresses().into_iter().find(|a| a.is_ipv4()))
        }
    };
    Ok(found
        .with_context(|| format!("{place} has no address"))?
        .to_string())
}

/// Creates the gateway's end of the plain tunnel.
pub fn tunnel_at_gateway(scene: &Scene) -> Result<()> {
    let local = address(scene, GATEWAY)?;
    scene.shell(
        GATEWAY,
        &format!(
            "ip link add plain type vxlan id 77 dstport 4790 local {local}; ip link set plain up
            ip address add 10.99.0.100/24 dev plain
            {CLAMP}
            sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.plain.rp_filter=0"
        ),
    )?;
    Ok(())
}

/// Routes one pod through a tunnel that the kernel alone serves. With rules: translated at the gateway, after this many
/// rules of other pods at both ends.
pub fn plain(scene: &Scene, number: usize, pod: &str, rules: Option<usize>) -> Result<()> {
    let worker = format!("w{number}");
    let (local, remote) = (address(scene, &worker)?, address(scene, GATEWAY)?);
    let pod = address(scene, pod)?;
    let select = match rules {
        None => format!("from {pod}"),
        // The tunnel's own packets carry the mark too, and must not be routed into the tunnel.
        Some(_) => format!("to {SERVER} fwmark 0x64"),
    };
    scene.shell(
        &worker,
        &format!(
            "ip link add plain type vxlan id 77 dstport 4790 local {local} remote {remote}; ip link set plain up
            ip address add 10.99.0.{number}/24 dev plain
            {CLAMP}
            sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.plain.rp_filter=0
            ip rule add {select} lookup 100 priority 50; ip route add default via 10.99.0.100 dev plain table 100"
        ),
    )?;
    scene.shell(
        GATEWAY,
        &format!(
            "bridge fdb append 00:00:00:00:00:00 dev plain dst {local}
            ip route add {pod}/32 via 10.99.0.{number} dev plain"
        ),
    )?;
    let Some(rules) = rules else {
        scene.shell("router", &format!("ip route add {pod}/32 via {remote}"))?;
        return Ok(());
    };
    let virtual_address = format!("192.168.122.{}", 230 + number);
    let others = |rule: &str| {
        format!(
            "awk 'BEGIN {{ for (i = 1; i < {rules}; i++) printf \"{rule}\\n\", i / 250, i % 250 + 1 }}'"
        )
    };
    let mark = others("-A PREROUTING -s 10.201.%d.%d/32 -j MARK --set-mark 0x64");
    scene.shell(
        &worker,
        &format!(
            "(echo '*mangle'; {mark}; echo '-A PREROUTING -s {pod}/32 -d {SERVER}/32 -j MARK --set-mark 0x64'; echo COMMIT) \
            | iptables-legacy-restore --noflush"
        ),
    )?;
    let translate = others(&format!(
        "-A POSTROUTING -s 10.{}.%d.%d/32 -j SNAT --to-source {virtual_address}",
        201 + number
    ));
    scene.shell(
        GATEWAY,
        &format!(
            "ip address add {virtual_address}/32 dev eth0
            iptables-legacy -t nat -N to{number}
            iptables-legacy -t nat -A POSTROUTING -s {pod}/32 -j to{number}
            (echo '*nat'; {translate} | sed 's/POSTROUTING/to{number}/'
            echo '-A to{number} -s {pod}/32 -j SNAT --to-source {virtual_address}'; echo COMMIT) \
            | iptables-legacy-restore --noflush"
        ),
    )?;
    Ok(())
}

/// Sets up the driver `classic` for one pod of a worker: the gateway holds the address and translates.
pub fn classic(scene: &Scene, number: usize, pod: &str) -> Result<()> {
    let worker = format!("w{number}");
    let held = format!("192.168.122.{}", 230 + number);
    scene.shell(GATEWAY, &format!("ip address add {held}/32 dev eth0"))?;
    let pod = address(scene, pod)?;
    for host in [&worker, GATEWAY] {
        scene.shell(
            host,
            &format!(
                "mkdir -p /run/vips /run/pods; echo 64 > /run/vips/{held}; echo {held} > /run/pods/{pod}"
            ),
        )?;
        let flags = "kube-egress --pod-subnet 10.244.0.0/16 --update-interval 60 \
                     --vip-routeid-mappings /run/vips --podip-vip-mappings /run/pods";
        let flags: Vec<&str> = flags.split_whitespace().collect();
        scene.start(host, "classic", &flags)?;
    }
    Ok(())
}
