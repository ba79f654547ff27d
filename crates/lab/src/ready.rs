//! Waits until a host is usable: by conditions, without sleeps.

use crate::LabError;
use crate::host::host_netns;
use crate::layout::{Bridge, HostLayout};
use crate::namespace::run_in;
use crate::process::{Process, run, wait_for};
use crate::traffic::ping::{PingOptions, ping_here};
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

/// Longest wait for carrier and for the router's answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for one answer.
const PING_TIMEOUT: Duration = Duration::from_millis(200);

/// Waits until the links have carrier and the routers answer, over both families.
pub(crate) fn wait(host: &HostLayout, init: Process) -> Result<(), LabError> {
    wait_for(
        &format!("carrier of all links of {}", host.name),
        TIMEOUT,
        || has_carrier(host, init),
    )?;
    run_in(&host_netns(init), || {
        let options = PingOptions {
            timeout: PING_TIMEOUT,
            ..PingOptions::default()
        };
        host.default_routes.iter().try_for_each(|router| {
            wait_for(
                &format!("{} to reach its router {router}", host.name),
                TIMEOUT,
                || ping_here(*router, &options).is_ok(),
            )
        })
    })?
}

/// Waits until the snooping bridges know the groups that a host joined: until then its addresses cannot be resolved
/// once they filter.
pub(crate) fn wait_joined(
    host: &HostLayout,
    control: Process,
    bridges: &[Bridge],
) -> Result<(), LabError> {
    for bridge in bridges.iter().filter(|bridge| bridge.mld_snooping) {
        let links = host
            .links
            .iter()
            .filter(|link| link.bridge == bridge.device);
        let wanted: Vec<String> = links
            .flat_map(|link| {
                link.addresses
                    .iter()
                    .map(move |address| (link, address.addr()))
            })
            .filter_map(|(link, address)| match address {
                IpAddr::V6(address) => Some(format!(
                    "port {} grp {} ",
                    link.port,
                    solicited_node(address)
                )),
                IpAddr::V4(_) => None,
            })
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let mut failure = None;
        let what = format!(
            "bridge {} to know the groups of {}",
            bridge.device, host.name
        );
        wait_for(&what, TIMEOUT, || {
            let list = run_in(&host_netns(control), || {
                run(
                    Command::new("bridge").args(["mdb", "show", "dev", &bridge.device]),
                    "",
                )
            });
            match list.and_then(|list| list) {
                Ok(list) => wanted.iter().all(|entry| list.contains(entry)),
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        })?;
        failure.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// The solicited-node group of an address (RFC 4291 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = u128::from(address) & 0x00ff_ffff;
    Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000_u128 | low)
}

/// Whether all links of a host have carrier. (The kernel updates `operstate` only later.)
pub(crate) fn has_carrier(host: &HostLayout, init: Process) -> bool {
    // The host's own sysfs contains its devices.
    host.links.iter().all(|link| {
        let path = format!(
            "/proc/{}/root/sys/class/net/{}/carrier",
            init.pid, link.device
        );
        std::fs::read_to_string(path).is_ok_and(|carrier| carrier.trim() == "1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_solicited_node_group_has_the_last_three_bytes() {
        let group = solicited_node("fd00:122::12:3456".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff12:3456");
    }
}
