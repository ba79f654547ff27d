//! Front-end of kube-egress: its flags and mapping directories, without any Kubernetes API, as [`ClassicWanted`].
//!
//! A mapping directory is a mounted ConfigMap: each file's name is a key and its content the value (`<pod address>` ->
//! `<egress address>`, `<egress address>` -> `<route id>`). Files whose names begin with a dot are the mount's own.

use egret_core::classic::ClassicWanted;
use egret_core::numbers::CLASSIC_NUMBER_MAX;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where mappings are mounted by default.
pub const VIP_ROUTEID_MAPPINGS: &str = "/etc/kube-egress/vip_routeid_mapping/";
/// See [`VIP_ROUTEID_MAPPINGS`].
pub const PODIP_VIP_MAPPINGS: &str = "/etc/kube-egress/podip_vip_mapping/";

/// What the flags say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeEgress {
    /// Device of nodes and egress addresses.
    pub interface: String,
    /// Addresses of all pods.
    pub pod_subnets: Vec<IpNet>,
    /// Addresses of Services.
    pub service_subnets: Vec<IpNet>,
    /// Which pods leave by which address.
    pub mapping: Mapping,
}

/// Which pods leave by which address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Every pod by this address.
    One {
        /// The address.
        vip: IpAddr,
        /// Number of its mark and table.
        route_id: u8,
    },
    /// By two directories.
    Directories {
        /// `<egress address>` -> `<route id>`.
        vip_routeid: PathBuf,
        /// `<pod address>` -> `<egress address>`.
        podip_vip: PathBuf,
    },
}

/// One entry that was left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{file}: {value:?}: {remedy}")]
pub struct BadEntry {
    /// The file.
    pub file: String,
    /// What it says, or its name.
    pub value: String,
    /// What would be right.
    pub remedy: String,
}

/// A mapping directory could not be read: what was known before should stay.
#[derive(Debug, thiserror::Error)]
#[error("mapping directory {path}")]
pub struct Unreadable {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl KubeEgress {
    /// What is wanted now. Bad entries are left out, alone.
    pub fn wanted(&self) -> Result<(ClassicWanted, BTreeSet<BadEntry>), Unreadable> {
        let mut bad = BTreeSet::new();
        let never = self.pod_subnets.iter().chain(&self.service_subnets);
        let mut wanted = ClassicWanted {
            device: self.interface.clone(),
            never: never.copied().collect(),
            ..ClassicWanted::default()
        };
        match &self.mapping {
            Mapping::One { vip, route_id } => {
                wanted.addresses.insert(*vip, *route_id);
                let of_family = |net: &&IpNet| net.addr().is_ipv4() == vip.is_ipv4();
                let pods = self.pod_subnets.iter().filter(of_family);
                wanted.ranges = pods.map(|net| (*net, *vip)).collect();
            }
            Mapping::Directories {
                vip_routeid,
                podip_vip,
            } => {
                wanted.addresses = addresses(&entries(vip_routeid)?, &mut bad);
                let pods = entries(podip_vip)?;
                wanted.pods = pods_of(&pods, &wanted.addresses, &mut bad);
            }
        }
        Ok((wanted, bad))
    }
}

/// Content by path. A file that goes away while the directory is read (the mount was swapped) is not there.
fn entries(directory: &Path) -> Result<BTreeMap<PathBuf, String>, Unreadable> {
    let unreadable = |source| Unreadable {
        path: directory.into(),
        source,
    };
    let mut entries = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        match std::fs::read(entry.path()) {
            Ok(content) => {
                let content = String::from_utf8_lossy(&content).trim().to_string();
                entries.insert(entry.path(), content);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(entries)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn bad_entry(path: &Path, value: &str, remedy: impl Into<String>) -> BadEntry {
    BadEntry {
        file: path.display().to_string(),
        value: value.into(),
        remedy: remedy.into(),
    }
}

/// A ConfigMap's keys have no colons: an IPv6 address is written with dashes there.
fn address(text: &str) -> Option<IpAddr> {
    text.parse()
        .or_else(|_| text.replace('-', ":").parse())
        .ok()
}

fn addresses(
    entries: &BTreeMap<PathBuf, String>,
    bad: &mut BTreeSet<BadEntry>,
) -> BTreeMap<IpAddr, u8> {
    let mut addresses = BTreeMap::new();
    for (path, value) in entries {
        let Some(vip) = address(&name(path)) else {
            let remedy = "the file's name must be an egress address, such as 192.168.122.222";
            bad.insert(bad_entry(path, &name(path), remedy));
            continue;
        };
        let number = value.parse().ok();
        let number = number.filter(|number| (1..=CLASSIC_NUMBER_MAX).contains(number));
        let Some(number) = number else {
            let remedy = format!("a route id is a number from 1 to {CLASSIC_NUMBER_MAX}");
            bad.insert(bad_entry(path, value, remedy));
            continue;
        };
        match addresses.iter().find(|(_, taken)| **taken == number) {
            Some((other, _)) => {
                let remedy = format!("{other} has this route id already: give each its own");
                bad.insert(bad_entry(path, value, remedy));
            }
            None => {
                addresses.insert(vip, number);
            }
        }
    }
    addresses
}

fn pods_of(
    entries: &BTreeMap<PathBuf, String>,
    addresses: &BTreeMap<IpAddr, u8>,
    bad: &mut BTreeSet<BadEntry>,
) -> BTreeMap<IpAddr, IpAddr> {
    let mut pods = BTreeMap::new();
    for (path, value) in entries {
        let Some(pod) = address(&name(path)) else {
            let remedy = "the file's name must be a pod's address, such as 10.244.1.7";
            bad.insert(bad_entry(path, &name(path), remedy));
            continue;
        };
        match address(value) {
            None => {
                let remedy = "the content must be an egress address, such as 192.168.122.222";
                bad.insert(bad_entry(path, value, remedy));
            }
            Some(vip) if vip.is_ipv4() != pod.is_ipv4() => {
                let remedy = format!("{pod} needs an egress address of its own family");
                bad.insert(bad_entry(path, value, remedy));
            }
            Some(vip) if !addresses.contains_key(&vip) => {
                let remedy = "this address has no route id: add it to the other mapping";
                bad.insert(bad_entry(path, value, remedy));
            }
            Some(vip) => {
                pods.insert(pod, vip);
            }
        }
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(
        vips: &[(&str, &str)],
        pods: &[(&str, &str)],
    ) -> (tempfile::TempDir, KubeEgress) {
        let root = tempfile::tempdir().unwrap();
        let directory = |name: &str, content: &[(&str, &str)]| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.join("..2026_11_21")).unwrap();
            for (name, content) in content {
                std::fs::write(path.join(name), content).unwrap();
            }
            path
        };
        let mapping = Mapping::Directories {
            vip_routeid: directory("vips", vips),
            podip_vip: directory("pods", pods),
        };
        let flags = KubeEgress {
            interface: "eth0".into(),
            pod_subnets: vec!["10.244.0.0/16".parse().unwrap()],
            service_subnets: vec!["10.96.0.0/12".parse().unwrap()],
            mapping,
        };
        (root, flags)
    }

    #[test]
    fn good_entries_are_taken_beside_bad_ones() {
        let vips = [
            ("192.168.122.222", "64\n"),
            ("192.168.122.223", "sixty"),
            ("192.168.122.224", "64"),
            ("192.168.122.225", "253"),
            ("rubbish", "5"),
            ("fd00-122--222", "66"),
        ];
        let pods = [
            ("10.244.1.10", " 192.168.122.222 "),
            ("10.244.1.11", "192.168.122.223"),
            ("10.244.1.12", "fd00:122::222"),
            ("nonsense", "192.168.122.222"),
            ("10.244.1.13", ""),
        ];
        let (_root, flags) = directories(&vips, &pods);
        let (wanted, bad) = flags.wanted().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = BTreeMap::from([(ip("192.168.122.222"), 64), (ip("fd00:122::222"), 66)]);
        assert_eq!(wanted.addresses, expected);
        let expected = BTreeMap::from([(ip("10.244.1.10"), ip("192.168.122.222"))]);
        assert_eq!(wanted.pods, expected);
        let told: Vec<String> = bad.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 8, "{told:#?}");
        let about = |file: &str| told.iter().find(|line| line.contains(file)).unwrap();
        assert!(about("192.168.122.224").contains("192.168.122.222 has this route id"));
        assert!(about("10.244.1.11").contains("no route id"));
        assert!(about("10.244.1.12").contains("own family"));
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_an_empty_one() {
        let (root, flags) = directories(&[], &[]);
        drop(root);
        assert!(flags.wanted().unwrap_err().to_string().contains("vips"));
    }

    #[test]
    fn one_address_serves_the_pods_of_its_family() {
        let (_root, mut flags) = directories(&[], &[]);
        flags.pod_subnets.push("fd00:244::/32".parse().unwrap());
        let vip = "192.168.122.222".parse().unwrap();
        flags.mapping = Mapping::One { vip, route_id: 64 };
        let (wanted, _) = flags.wanted().unwrap();
        assert_eq!(wanted.ranges.len(), 1);
        assert_eq!(wanted.never.len(), 3);
    }
}
