//! Node-wide settings that forwarding needs. Earlier values are recorded and restored on request.

mod advertisements;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Directory of the settings for this process, if not [`DIRECTORY`].
static OTHER_DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
/// Directory of the kernel's settings (proc_sys(5)).
pub const DIRECTORY: &str = "/proc/sys";

/// Reads and writes settings below `directory` instead of [`DIRECTORY`] from now on. In a container without privileges
/// /proc/sys is read-only, and the node's own /proc/sys/net has to be mounted elsewhere; the reader's network namespace
/// alone decides whose settings it shows. Returns `false` if another directory was chosen before.
pub fn use_directory(directory: &Path) -> bool {
    OTHER_DIRECTORY.get_or_init(|| directory.to_owned()) == directory
}

/// Error of a setting.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// A file of /proc/sys could not be read or written.
    #[error("sysctl {name}")]
    Setting {
        /// Name with dots.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The record of earlier values could not be read or written.
    #[error("record of sysctls {path}")]
    Record {
        /// Its path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Settings that every node needs (kernel: Documentation/networking/ip-sysctl.rst).
pub const NODE_SETTINGS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
];
/// Settings that spread one pod's flows to one destination over several gateways. They are node-wide, so they are
/// changed only where no multipath route of others exists.
pub const HASH_SETTINGS: &[(&str, &str)] = &[
    ("net.ipv4.fib_multipath_hash_policy", "1"),
    ("net.ipv6.fib_multipath_hash_policy", "1"),
];

/// Name of a device's reverse path filter, before the device's name and after it.
const DEVICES: &str = "net.ipv4.conf.";
const FILTER: &str = ".rp_filter";
const LOOSE: &str = "2";

/// Sysctls of the namespace of the calling thread, and the record of what we changed.
pub struct Sysctls {
    record: PathBuf,
}

impl Sysctls {
    /// `directory` contains the record as `sysctls`.
    pub fn new(directory: &Path) -> Self {
        Sysctls {
            record: directory.join("sysctls"),
        }
    }

    /// Sets what differs, after writing the old value to disk. Returns the names that were changed.
    pub fn ensure(&self, settings: &[(&str, &str)]) -> Result<Vec<String>, SysctlError> {
        let mut changed = Vec::new();
        for (name, value) in settings {
            let Some(before) = read(name)? else { continue };
            if before == *value {
                continue;
            }
            let mut record = self.read_record()?;
            if !record.contains_key(*name) {
                record.insert((*name).to_string(), before);
                self.write_record(&record)?;
            }
            write(name, value)?;
            changed.push((*name).to_string());
        }
        Ok(changed)
    }

    /// Changes a device's reverse path filter from strict to loose: answers of a next hop come by a device that the
    /// main routes to their sources do not use. Returns the name, if it was changed.
    pub fn loosen(&self, device: &str) -> Result<Option<String>, SysctlError> {
        const STRICT: &str = "1";
        // As in sysctl(8): a dot in a device's name becomes a slash.
        let name = format!("{DEVICES}{}{FILTER}", device.replace('.', "/"));
        // The kernel uses the higher of the two.
        let of_device = read(&name)?.unwrap_or_default();
        let of_all = read(&format!("{DEVICES}all{FILTER}"))?.unwrap_or_default();
        if of_device.max(of_all) != STRICT {
            return Ok(None);
        }
        let changed = self.ensure(&[(&name, LOOSE)])?;
        Ok(changed.into_iter().next())
    }

    /// The first setting that has another value now, as text for people.
    pub fn first_other(&self, settings: &[(&str, &str)]) -> Result<Option<String>, SysctlError> {
        for (name, value) in settings {
            if let Some(now) = read(name)?.filter(|now| now != *value) {
                return Ok(Some(format!("{name} is {now}, not {value}")));
            }
        }
        Ok(None)
    }

    /// Whether any of them has another value now.
    pub fn differ(&self, settings: &[(&str, &str)]) -> Result<bool, SysctlError> {
        Ok(self.first_other(settings)?.is_some())
    }

    /// Restores earlier values and deletes the record. A value that somebody else has changed since stays.
    pub fn restore(&self) -> Result<bool, SysctlError> {
        let record = self.read_record()?;
        // A device may accept advertisements as a host again only after the node is one.
        let (last, first): (Vec<_>, Vec<_>) = record
            .iter()
            .partition(|(name, _)| advertisements::is_acceptance(name));
        for (name, before) in first.into_iter().chain(last) {
            let ours = NODE_SETTINGS
                .iter()
                .chain(HASH_SETTINGS)
                .find(|(ours, _)| ours == name)
                .map(|(_, value)| *value);
            let filter = name.starts_with(DEVICES) && name.ends_with(FILTER);
            let ours = ours
                .or(filter.then_some(LOOSE))
                .or(advertisements::is_acceptance(name).then_some(advertisements::EVEN_FORWARDING));
            let now = read(name)?;
            if ours.is_some() && now.as_deref() == ours {
                write(name, before)?;
            }
        }
        match fs::remove_file(&self.record) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SysctlError::Record {
                path: self.record.clone(),
                source,
            }),
            _ => Ok(!record.is_empty()),
        }
    }

    fn read_record(&self) -> Result<BTreeMap<String, String>, SysctlError> {
        let text = match fs::read_to_string(&self.record) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(SysctlError::Record {
                    path: self.record.clone(),
                    source,
                });
            }
        };
        let lines = text.lines().filter_map(|line| line.split_once(" = "));
        Ok(lines
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect())
    }

    fn write_record(&self, record: &BTreeMap<String, String>) -> Result<(), SysctlError> {
        let text: String = record
            .iter()
            .map(|(name, value)| format!("{name} = {value}\n"))
            .collect();
        let temporary = self.record.with_extension("tmp");
        let directory = self.record.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &self.record))
            .map_err(|source| SysctlError::Record {
                path: self.record.clone(),
                source,
            })
    }
}

/// Enables IPv6 on one device, whatever the default for new devices is; the setting is removed with the device.
pub fn enable_ipv6(device: &str) -> Result<(), SysctlError> {
    let name = format!("net.ipv6.conf.{device}.disable_ipv6");
    match read(&name)?.as_deref() {
        Some("1") => write(&name, "0"),
        _ => Ok(()),
    }
}

fn path(name: &str) -> PathBuf {
    let directory = OTHER_DIRECTORY
        .get()
        .map_or(Path::new(DIRECTORY), PathBuf::as_path);
    let swapped = name.chars().map(|letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    directory.join(swapped.collect::<String>())
}

/// The value, as text for people; `None` where it cannot be read.
pub fn value(name: &str) -> Option<String> {
    read(name).ok().flatten()
}

/// The value; `None` where this kernel has no such setting (IPv6 switched off).
fn read(name: &str) -> Result<Option<String>, SysctlError> {
    match fs::read_to_string(path(name)) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError::Setting {
            name: name.into(),
            source,
        }),
    }
}

fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(path(name), value).map_err(|source| SysctlError::Setting {
        name: name.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strict_filter_of_one_device_is_loosened_and_put_back_and_others_stay() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let directory = tempfile::tempdir().expect("a directory");
            let sysctls = Sysctls::new(directory.path());
            let (all, own) = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.lo.rp_filter");
            let value = |name| read(name).expect("read").expect("there");
            for (of_all, of_device, loosened) in [
                ("0", "0", false),
                ("2", "1", false),
                ("0", "1", true),
                ("1", "0", true),
            ] {
                write(all, of_all).expect("write");
                write(own, of_device).expect("write");
                let changed = sysctls.loosen("lo").expect("loosen");
                assert_eq!(changed.is_some(), loosened, "{of_all} {of_device}");
                assert_eq!(value(all), of_all);
                assert_eq!(value(own), if loosened { "2" } else { of_device });
                sysctls.restore().expect("restore");
                assert_eq!(value(own), of_device);
            }
            assert_eq!(
                path("net.ipv4.conf.eth0/100.rp_filter"),
                Path::new("/proc/sys/net/ipv4/conf/eth0.100/rp_filter")
            );
        })
        .join()
        .expect("the thread passes");
    }

    #[test]
    fn what_was_changed_is_put_back_and_what_others_changed_since_stays() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let directory = tempfile::tempdir().expect("a directory");
            write("net.ipv4.ip_forward", "0").expect("write");
            write("net.ipv6.conf.all.forwarding", "0").expect("write");
            let sysctls = Sysctls::new(directory.path());
            let changed = sysctls.ensure(NODE_SETTINGS).expect("ensure");
            assert_eq!(
                changed,
                ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
            );
            assert!(sysctls.ensure(NODE_SETTINGS).expect("again").is_empty());
            write("net.ipv6.conf.all.forwarding", "2").expect("somebody else");
            assert!(sysctls.restore().expect("restore"));
            assert_eq!(
                read("net.ipv4.ip_forward").expect("read").as_deref(),
                Some("0")
            );
            assert_eq!(
                read("net.ipv6.conf.all.forwarding")
                    .expect("read")
                    .as_deref(),
                Some("2")
            );
            assert!(!sysctls.restore().expect("nothing left to restore"));
        })
        .join()
        .expect("the thread passes");
    }
}
