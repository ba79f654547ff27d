//! Router advertisements on a node that forwards. With `accept_ra` 1 a device accepts advertisements only while it does
//! not forward: turning forwarding on deletes the default route that a router advertised, and ignores the next one
//! (`addrconf_fixup_forwarding` of net/ipv6/addrconf.c, Documentation/networking/ip-sysctl.rst).

use super::{SysctlError, Sysctls, read};
use crate::route::Advertised;

/// Forwarding of all devices; setting it sets each device's.
const FORWARDING: &str = "net.ipv6.conf.all.forwarding";
const OFF: &str = "0";
/// `accept_ra` 1: advertisements are accepted unless the device forwards.
const AS_A_HOST: &str = "1";
/// `accept_ra` 2: advertisements are accepted whether or not the device forwards.
pub(super) const EVEN_FORWARDING: &str = "2";
const DEVICES: &str = "net.ipv6.conf.";
const ACCEPTANCE: &str = ".accept_ra";

/// Whether a setting is one that this file changes.
pub(super) fn is_acceptance(name: &str) -> bool {
    name.starts_with(DEVICES) && name.ends_with(ACCEPTANCE)
}

/// Name of a device's setting; as in sysctl(8), a dot in a device's name becomes a slash.
fn of(device: &str, setting: &str) -> String {
    format!("{DEVICES}{}{setting}", device.replace('.', "/"))
}

impl Sysctls {
    /// Whether this node is an IPv6 host, so that after turning forwarding on its devices would ignore advertisements.
    pub fn is_host(&self) -> Result<bool, SysctlError> {
        Ok(read(FORWARDING)?.as_deref() == Some(OFF))
    }

    /// Whether the node was a host before us, so that new devices would accept advertisements without us.
    pub fn was_host(&self) -> Result<bool, SysctlError> {
        let record = self.read_record()?;
        Ok(record.get(FORWARDING).is_some_and(|before| before == OFF))
    }

    /// Those of these devices that accept advertisements only while they do not forward.
    pub fn hear_as_hosts(&self, advertised: &Advertised) -> Result<Vec<String>, SysctlError> {
        let mut found = Vec::new();
        for device in advertised.heard.iter().chain(&advertised.uplinks) {
            if read(&of(device, ACCEPTANCE))?.as_deref() == Some(AS_A_HOST) {
                found.push(device.clone());
            }
        }
        Ok(found)
    }

    /// Makes these devices accept advertisements also while they forward. Returns the names of the settings that were
    /// changed.
    pub fn hear_forwarding(&self, devices: &[String]) -> Result<Vec<String>, SysctlError> {
        let mut changed = Vec::new();
        for device in devices {
            let name = of(device, ACCEPTANCE);
            changed.extend(self.ensure(&[(&name, EVEN_FORWARDING)])?);
        }
        Ok(changed)
    }

    /// Devices that accept advertisements only as a host again, though we had changed that.
    pub fn deaf(&self) -> Result<Vec<String>, SysctlError> {
        let record = self.read_record()?;
        let mut deaf = Vec::new();
        for name in record.keys().filter(|name| is_acceptance(name)) {
            if read(name)?.as_deref() == Some(AS_A_HOST) {
                let device = name.strip_prefix(DEVICES).unwrap_or(name);
                let device = device.strip_suffix(ACCEPTANCE).unwrap_or(device);
                deaf.push(device.replace('/', "."));
            }
        }
        Ok(deaf)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NODE_SETTINGS, write};
    use super::*;
    use std::collections::BTreeSet;

    fn in_a_namespace(work: impl FnOnce() + Send + 'static) {
        let work = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            work();
        };
        std::thread::spawn(work).join().expect("the thread passes");
    }

    fn lo_heard() -> Advertised {
        Advertised {
            heard: BTreeSet::from(["lo".to_owned()]),
            uplinks: BTreeSet::from(["gone0".to_owned()]),
        }
    }

    #[test]
    fn who_heard_routers_as_a_host_goes_on_hearing_them_until_it_is_a_host_again() {
        in_a_namespace(|| {
            const ACCEPT: &str = "net.ipv6.conf.lo.accept_ra";
            let value = |name| read(name).expect("read").expect("there");
            let directory = tempfile::tempdir().expect("a directory");
            let sysctls = Sysctls::new(directory.path());
            write(FORWARDING, OFF).expect("write");
            write(ACCEPT, AS_A_HOST).expect("write");
            assert!(sysctls.is_host().expect("read") && !sysctls.was_host().expect("read"));
            let devices = sysctls.hear_as_hosts(&lo_heard()).expect("read");
            assert_eq!(devices, ["lo"]);
            assert_eq!(sysctls.hear_forwarding(&devices).expect("set"), [ACCEPT]);
            sysctls.ensure(NODE_SETTINGS).expect("set");
            assert!(!sysctls.is_host().expect("read") && sysctls.was_host().expect("read"));
            assert_eq!(value(ACCEPT), "2");
            assert!(sysctls.deaf().expect("read").is_empty());
            write(ACCEPT, AS_A_HOST).expect("somebody's sysctl --system");
            assert_eq!(sysctls.deaf().expect("read"), ["lo"]);
            sysctls.hear_forwarding(&devices).expect("set again");
            sysctls.restore().expect("restore");
            assert_eq!((value(ACCEPT), value(FORWARDING)), ("1".into(), "0".into()));
        });
    }

    #[test]
    fn who_hears_no_routers_or_hears_them_anyway_is_left_alone() {
        in_a_namespace(|| {
            let directory = tempfile::tempdir().expect("a directory");
            let sysctls = Sysctls::new(directory.path());
            for accepts in ["0", "2"] {
                write("net.ipv6.conf.lo.accept_ra", accepts).expect("write");
                let devices = sysctls.hear_as_hosts(&lo_heard()).expect("read");
                assert!(devices.is_empty(), "accept_ra {accepts}");
            }
        });
    }
}
