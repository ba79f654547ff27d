//! When a host is usable: by condition, so that nothing needs to sleep.

use crate::LabError;
use crate::host::host_netns;
use crate::layout::HostLayout;
use crate::namespace::run_in;
use crate::process::{Process, wait_for};
use crate::traffic::ping::{PingOptions, ping_here};
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

/// Whether all links of a host have carrier.
pub(crate) fn has_carrier(host: &HostLayout, init: Process) -> bool {
    // The host's own sysfs shows its devices.
    host.links.iter().all(|link| {
        let path = format!(
            "/proc/{}/root/sys/class/net/{}/operstate",
            init.pid, link.device
        );
        std::fs::read_to_string(path).is_ok_and(|state| state.trim() == "up")
    })
}
