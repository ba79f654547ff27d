//! Node-wide settings: forwarding and the settings that depend on it.

use super::DatapathError;
use crate::route::{Advertised, Routing};
use egret_kernel::sysctl::{NODE_SETTINGS, Sysctls};

/// Turns forwarding on, after setting devices that depend on router advertisements to accept them still. `come`:
/// devices may have come since. Returns the names of the settings that were changed.
pub(crate) fn forward(
    sysctls: &Sysctls,
    routing: &mut Routing,
    come: bool,
) -> Result<Vec<String>, DatapathError> {
    let mut devices = Vec::new();
    // The full read is only for the few nodes where we turn forwarding on.
    if sysctls.is_host()? {
        devices = sysctls.hear_as_hosts(&routing.advertised()?)?;
    } else if come {
        devices = deaf(sysctls, routing)?;
    }
    devices.extend(sysctls.deaf()?);
    let mut changed = sysctls.hear_forwarding(&devices)?;
    changed.extend(sysctls.ensure(NODE_SETTINGS)?);
    Ok(changed)
}

/// Devices that came after we turned forwarding on and accept no router advertisements.
fn deaf(sysctls: &Sysctls, routing: &mut Routing) -> Result<Vec<String>, DatapathError> {
    if !sysctls.was_host()? {
        return Ok(Vec::new());
    }
    let come = Advertised {
        uplinks: routing.uplinks()?,
        ..Advertised::default()
    };
    Ok(sysctls.hear_as_hosts(&come)?)
}

/// The first setting that others have changed, as text for people.
pub(crate) fn changed(sysctls: &Sysctls) -> Result<Option<String>, DatapathError> {
    if let Some(found) = sysctls.first_other(NODE_SETTINGS)? {
        return Ok(Some(found));
    }
    let deaf = sysctls.deaf()?.into_iter().next();
    Ok(deaf.map(|device| format!("{device} hears router advertisements no more")))
}

/// The first device that came since and accepts no router advertisements, as text for people.
pub(crate) fn come(
    sysctls: &Sysctls,
    routing: &mut Routing,
) -> Result<Option<String>, DatapathError> {
    let first = deaf(sysctls, routing)?.into_iter().next();
    Ok(first.map(|device| format!("{device} is new and hears no router advertisements")))
}
