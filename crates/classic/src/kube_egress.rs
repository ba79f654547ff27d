//! Flags and mapping directories of kube-egress, without any Kubernetes API, as [`ClassicWanted`].
//!
//! A mapping directory is a mounted ConfigMap: each file's name is a key and its content the value (`<pod address>` ->
//! `<egress address>`, `<egress address>` -> `<route id>`). Files whose names begin with a dot belong to the mount.

use crate::run::ReadWanted;
use crate::state::ClassicWanted;
use egret_core::error::with_causes;
use egret_core::numbers::CLASSIC_NUMBER_MAX;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Default mount of the mapping from egress address to route id.
pub const VIP_ROUTEID_MAPPINGS: &str = "/etc/kube-egress/vip_routeid_mapping/";
/// Default mount of the mapping from pod address to egress address.
pub const PODIP_VIP_MAPPINGS: &str = "/etc/kube-egress/podip_vip_mapping/";

/// Values of the flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeEgress {
    /// Device of node addresses and egress addresses.
    pub interface: String,
    /// Networks of all pods.
    pub pod_subnets: Vec<IpNet>,
    /// Networks of Services.
    pub service_subnets: Vec<IpNet>,
    /// Egress address of each pod.
    pub mapping: Mapping,
}

/// Egress address of each pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// One address for every pod.
    One {
        /// The address.
        vip: IpAddr,
        /// Number of its mark and of its routing table.
        route_id: u8,
    },
    /// Addresses from two directories.
    Directories {
        /// `<egress address>` -> `<route id>`.
        vip_routeid: PathBuf,
        /// `<pod address>` -> `<egress address>`.
        podip_vip: PathBuf,
    },
}

/// One invalid entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{file}:{line}: {value:?}: {remedy}")]
pub struct BadEntry {
    /// The file.
    pub file: String,
    /// Line in the file, from 1.
    pub line: usize,
    /// Content of the line, or the file's name.
    pub value: String,
    /// The correct form, and the behaviour until then.
    pub remedy: String,
}

/// A mapping directory could not be read: the previous mappings should stay.
#[derive(Debug, thiserror::Error)]
#[error("mapping directory {path}")]
pub struct Unreadable {
    /// The directory.
    pub path: PathBuf,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

impl KubeEgress {
    /// Reads the wanted mappings again and again; an invalid entry is logged once, for as long as it is.
    pub fn reader(self) -> ReadWanted {
        let mut told = BTreeSet::new();
        let mut before = None;
        Box::new(move || match self.wanted(before.as_ref()) {
            Ok((wanted, bad)) => {
                let lines: BTreeSet<String> = bad.iter().map(ToString::to_string).collect();
                for line in lines.difference(&told) {
                    tracing::warn!("{line}");
                }
                told = lines;
                before = Some(wanted.clone());
                Some(wanted)
            }
            Err(error) => {
                let line = with_causes(&error);
                if told.insert(line.clone()) {
                    tracing::warn!("{line}: the mapping stays as it was");
                }
                None
            }
        })
    }

    /// Reads the wanted mappings; `before` are the previous ones. A pod with an invalid entry leaves by its previous
    /// address, or not at all if it had none: the two mappings are written one after the other, and a mapped pod must
    /// never leave by its node's address.
    pub fn wanted(
        &self,
        before: Option<&ClassicWanted>,
    ) -> Result<(ClassicWanted, BTreeSet<BadEntry>), Unreadable> {
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
                let nothing = ClassicWanted::default();
                let before = before.unwrap_or(&nothing);
                wanted.addresses = addresses(&entries(vip_routeid)?, before, &mut bad);
                for entry in entries(podip_vip)? {
                    map_pod(&entry, before, &mut wanted, &mut bad);
                }
            }
        }
        Ok((wanted, bad))
    }
}

/// One file of a mapping.
struct Entry {
    path: PathBuf,
    content: String,
}

impl Entry {
    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn value(&self) -> &str {
        self.content.trim()
    }

    /// Error: the name is invalid.
    fn bad_name(&self, remedy: &str) -> BadEntry {
        BadEntry {
            file: self.path.display().to_string(),
            line: 1,
            value: self.name(),
            remedy: remedy.into(),
        }
    }

    /// Error: the content is invalid. Names the first unreadable line, or else the second one, which is one too many.
    fn bad(&self, readable: impl Fn(&str) -> bool, remedy: impl Into<String>) -> BadEntry {
        let lines = self.content.lines().map(str::trim).enumerate();
        let mut lines = lines.filter(|(_, line)| !line.is_empty());
        let first = lines.next().unwrap_or((0, ""));
        let (number, line) = match readable(first.1) {
            true => lines.next().unwrap_or(first),
            false => first,
        };
        BadEntry {
            file: self.path.display().to_string(),
            line: number + 1,
            value: line.into(),
            remedy: remedy.into(),
        }
    }
}

/// Files in the order of their names. One that disappears while the directory is read (the mount was swapped) is left
/// out.
fn entries(directory: &Path) -> Result<Vec<Entry>, Unreadable> {
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
                let content = String::from_utf8_lossy(&content).into_owned();
                entries.insert(entry.path(), content);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    let entries = entries.into_iter();
    Ok(entries
        .map(|(path, content)| Entry { path, content })
        .collect())
}

/// Parses an address. A ConfigMap's keys have no colons: an IPv6 address is written with dashes.
fn address(text: &str) -> Option<IpAddr> {
    text.parse()
        .or_else(|_| text.replace('-', ":").parse())
        .ok()
}

fn route_id(text: &str) -> Option<u8> {
    let number = text.parse().ok();
    number.filter(|number| (1..=CLASSIC_NUMBER_MAX).contains(number))
}

fn addresses(
    entries: &[Entry],
    before: &ClassicWanted,
    bad: &mut BTreeSet<BadEntry>,
) -> BTreeMap<IpAddr, u8> {
    let mut good = Vec::new();
    for entry in entries {
        let Some(vip) = address(&entry.name()) else {
            let remedy = "the file's name must be an egress address, such as 192.168.122.222";
            bad.insert(entry.bad_name(remedy));
            continue;
        };
        match route_id(entry.value()) {
            Some(number) => good.push((entry, vip, number)),
            None => {
                let remedy = format!("a route id is a number from 1 to {CLASSIC_NUMBER_MAX}");
                bad.insert(entry.bad(|line| route_id(line).is_some(), remedy));
            }
        }
    }
    // Of two addresses with one number, the one that already has it keeps it.
    good.sort_by_key(|(_, vip, number)| before.addresses.get(vip) != Some(number));
    let mut addresses = BTreeMap::new();
    for (entry, vip, number) in good {
        match addresses.iter().find(|(_, taken)| **taken == number) {
            Some((other, _)) => {
                let remedy = format!("{other} has this route id already: give each its own");
                bad.insert(entry.bad(|line| route_id(line).is_some(), remedy));
            }
            None => {
                addresses.insert(vip, number);
            }
        }
    }
    addresses
}

fn map_pod(
    entry: &Entry,
    before: &ClassicWanted,
    wanted: &mut ClassicWanted,
    bad: &mut BTreeSet<BadEntry>,
) {
    let Some(pod) = address(&entry.name()) else {
        let remedy = "the file's name must be a pod's address, such as 10.244.1.7";
        bad.insert(entry.bad_name(remedy));
        return;
    };
    let remedy = match address(entry.value()) {
        None => "the content must be an egress address, such as 192.168.122.222".to_owned(),
        Some(vip) if vip.is_ipv4() != pod.is_ipv4() => {
            format!("{pod} needs an egress address of its own family")
        }
        Some(vip) if !wanted.addresses.contains_key(&vip) => {
            "this address has no route id: add it to the other mapping".to_owned()
        }
        Some(vip) => {
            wanted.pods.insert(pod, vip);
            return;
        }
    };
    let meanwhile = match kept(pod, before, wanted) {
        Some(vip) => format!("until then {pod} leaves by {vip}, as before"),
        None => {
            wanted.refused.insert(pod);
            format!("until then what {pod} sends outside is dropped")
        }
    };
    let readable = |line: &str| address(line).is_some();
    bad.insert(entry.bad(readable, format!("{remedy}; {meanwhile}")));
}

/// Keeps the pod's previous address, unless another address has its number by now.
fn kept(pod: IpAddr, before: &ClassicWanted, wanted: &mut ClassicWanted) -> Option<IpAddr> {
    let vip = *before.pods.get(&pod)?;
    let number = *before.addresses.get(&vip)?;
    if !wanted.addresses.contains_key(&vip) {
        if wanted.addresses.values().any(|taken| *taken == number) {
            return None;
        }
        wanted.addresses.insert(vip, number);
    }
    wanted.pods.insert(pod, vip);
    Some(vip)
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
        let (wanted, bad) = flags.wanted(None).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = BTreeMap::from([(ip("192.168.122.222"), 64), (ip("fd00:122::222"), 66)]);
        assert_eq!(wanted.addresses, expected);
        let expected = BTreeMap::from([(ip("10.244.1.10"), ip("192.168.122.222"))]);
        assert_eq!(wanted.pods, expected);
        let refused = ["10.244.1.11", "10.244.1.12", "10.244.1.13"].map(ip);
        assert_eq!(wanted.refused, BTreeSet::from(refused));
        let told: Vec<String> = bad.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 8, "{told:#?}");
        let about = |file: &str| told.iter().find(|line| line.contains(file)).unwrap();
        assert!(about("192.168.122.224").contains("192.168.122.222 has this route id"));
        assert!(about("10.244.1.11").contains("no route id"));
        assert!(about("10.244.1.12").contains("own family"));
        assert!(about("10.244.1.11").contains("10.244.1.11:1: \"192.168.122.223\""));
        assert!(about("10.244.1.13").contains("is dropped"));
    }

    #[test]
    fn mappings_that_are_out_of_step_leave_a_pod_where_it_was() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (first, second) = ("192.168.122.222", "192.168.122.223");
        let pods = [("10.244.1.10", first), ("10.244.1.11", second)];
        let (_root, flags) = directories(&[(first, "64"), (second, "65")], &pods);
        let (good, bad) = flags.wanted(None).unwrap();
        assert!(bad.is_empty(), "{bad:?}");
        for (vips, pods) in [
            // The number of one is removed first, or becomes invalid.
            (vec![(second, "65")], pods.to_vec()),
            (vec![(first, "6.4"), (second, "65")], pods.to_vec()),
            // A new address has no number yet; an entry becomes invalid.
            (
                vec![(first, "64"), (second, "65")],
                vec![("10.244.1.10", "192.168.122.229"), pods[1]],
            ),
            (
                vec![(first, "64"), (second, "65")],
                vec![("10.244.1.10", "\n\nnonsense"), pods[1]],
            ),
        ] {
            let (_root, flags) = directories(&vips, &pods);
            let (now, bad) = flags.wanted(Some(&good)).unwrap();
            assert_eq!((&now.pods, &now.addresses), (&good.pods, &good.addresses));
            assert!(now.refused.is_empty(), "{now:?}");
            let told: Vec<String> = bad.iter().map(ToString::to_string).collect();
            let as_before = "10.244.1.10 leaves by 192.168.122.222, as before";
            assert!(told.iter().any(|line| line.contains(as_before)), "{told:?}");
        }
        // An address keeps its number, whatever the names' order; a number that another address has now is not used
        // twice.
        let (earlier, later) = ("192.168.122.100", "192.168.122.222");
        let vips = [(earlier, "64"), (later, "64")];
        let (_root, flags) = directories(&vips, &[("10.244.1.10", first)]);
        let (now, _) = flags.wanted(Some(&good)).unwrap();
        assert_eq!(now.addresses, BTreeMap::from([(ip(later), 64)]));
        let (_root, flags) = directories(&[(earlier, "64")], &[("10.244.1.10", first)]);
        let (now, _) = flags.wanted(Some(&good)).unwrap();
        assert_eq!(now.refused, BTreeSet::from([ip("10.244.1.10")]));
        // And a pod whose entry is removed is not mapped.
        let (_root, flags) = directories(&[(first, "64")], &[]);
        let (now, _) = flags.wanted(Some(&good)).unwrap();
        assert!(now.pods.is_empty() && now.refused.is_empty(), "{now:?}");
    }

    #[test]
    fn the_line_that_is_wrong_is_named() {
        let pods = [
            ("10.244.1.10", "\n\n  nonsense\n"),
            ("10.244.1.11", "192.168.122.222\n\n192.168.122.223\n"),
        ];
        let (_root, flags) = directories(&[("192.168.122.222", "64")], &pods);
        let (_, bad) = flags.wanted(None).unwrap();
        let told: Vec<String> = bad.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("10.244.1.10:3: \"nonsense\""), "{told:?}");
        assert!(
            told[1].contains("10.244.1.11:3: \"192.168.122.223\""),
            "{told:?}"
        );
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_an_empty_one() {
        let (root, flags) = directories(&[], &[]);
        drop(root);
        assert!(flags.wanted(None).unwrap_err().to_string().contains("vips"));
    }

    #[test]
    fn one_address_serves_the_pods_of_its_family() {
        let (_root, mut flags) = directories(&[], &[]);
        flags.pod_subnets.push("fd00:244::/32".parse().unwrap());
        let vip = "192.168.122.222".parse().unwrap();
        flags.mapping = Mapping::One { vip, route_id: 64 };
        let (wanted, _) = flags.wanted(None).unwrap();
        assert_eq!(wanted.ranges.len(), 1);
        assert_eq!(wanted.never.len(), 3);
    }
}
