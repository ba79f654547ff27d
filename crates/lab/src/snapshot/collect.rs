//! Collects the sections of a snapshot.

use super::tcx;
use crate::LabError;
use crate::error::io;
use crate::host::host_netns;
use crate::namespace::run_in;
use crate::process::{Process, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Keys of `ip -json` that change without a cause.
const VOLATILE_KEYS: &[&str] = &[
    "ifindex",
    "link_index",
    "link_netnsid",
    "valid_life_time",
    "preferred_life_time",
    "users",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
];
/// Kernel settings that are counters, or change without a cause.
const VOLATILE_SYSCTLS: &[&str] = &["nf_conntrack_count"];
/// Files that the lab itself and its firewall programs have below /run.
const LAB_FILES: &[&str] = &[
    "/run/egret-lab",
    "/run/netns",
    "/run/mount",
    "/run/xtables.lock",
];

type Sections = BTreeMap<&'static str, Vec<String>>;

pub(super) fn collect(init: Process) -> Result<Sections, LabError> {
    let netns = host_netns(init);
    let listings: [(&'static str, &[&str]); 13] = [
        ("addresses", &["ip", "-j", "address"]),
        ("iptables-legacy", &["iptables-legacy-save"]),
        ("ip6tables-legacy", &["ip6tables-legacy-save"]),
        ("links", &["ip", "-j", "-d", "link"]),
        ("multicast", &["ip", "-j", "maddress"]),
        (
            "neighbours 4",
            &["ip", "-4", "neigh", "show", "nud", "permanent"],
        ),
        (
            "neighbours 6",
            &["ip", "-6", "neigh", "show", "nud", "permanent"],
        ),
        ("nexthops", &["ip", "nexthop"]),
        ("nft", &["nft", "-s", "list", "ruleset"]),
        ("routes 4", &["ip", "-4", "route", "show", "table", "all"]),
        ("routes 6", &["ip", "-6", "route", "show", "table", "all"]),
        ("rules 4", &["ip", "-4", "rule"]),
        ("rules 6", &["ip", "-6", "rule"]),
    ];
    let mut sections = Sections::new();
    for (name, command) in listings {
        sections.insert(name, canonical(name, &list(&netns, command)?)?);
    }
    let mut proxies = Vec::new();
    for family in ["-4", "-6"] {
        proxies.extend(lines(&list(
            &netns,
            &["ip", family, "neigh", "show", "proxy"],
        )?));
    }
    sections.insert("neighbour proxies", proxies);
    sections.insert("traffic control", traffic_control(&netns)?);
    let mut attached = bpf_attached(&netns)?;
    attached.extend(run_in(&netns, tcx::programs)?.map_err(io("listing tcx programs"))?);
    sections.insert("bpf attached", attached);
    sections.insert("bpf held", bpf_held(init));
    sections.insert("bpf pins", files(init, "/sys/fs/bpf", &[]));
    let mut own_files = files(init, "/run", LAB_FILES);
    own_files.extend(files(init, "/var/lib/egret", &[]));
    sections.insert("files", own_files);
    let sysctls = run_in(&netns, || sysctls(Path::new("/proc/sys/net")))?;
    sections.insert("sysctl", sysctls.map_err(io("reading /proc/sys/net"))?);
    Ok(sections)
}

fn list(netns: &Path, command: &[&str]) -> Result<String, LabError> {
    run_in(netns, || {
        run(Command::new(command[0]).args(&command[1..]), "")
    })?
}

fn lines(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    lines.sort();
    lines
}

fn canonical(name: &str, text: &str) -> Result<Vec<String>, LabError> {
    match name {
        "links" | "addresses" | "multicast" => {
            let value: Value =
                serde_json::from_str(if text.trim().is_empty() { "[]" } else { text })
                    .map_err(|error| io(format!("reading the list of {name}"))(error.into()))?;
            Ok(json_lines(name, value))
        }
        // Order and nesting matter.
        "nft" => Ok(text.lines().map(str::to_owned).collect()),
        "iptables-legacy" | "ip6tables-legacy" => {
            let rules = text.lines().filter(|line| !line.starts_with('#'));
            let without_counters = |line: &str| line.split(" [").next().unwrap_or(line).to_owned();
            Ok(rules.map(without_counters).collect())
        }
        _ => Ok(lines(text)
            .iter()
            .map(|line| without_expiry(line))
            .collect()),
    }
}

/// Learned routes show their remaining lifetime.
fn without_expiry(line: &str) -> String {
    let mut words = line.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "expires" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

fn json_lines(name: &str, mut value: Value) -> Vec<String> {
    strip(&mut value);
    let devices = value.as_array().cloned().unwrap_or_default();
    let mut result: Vec<String> = match name {
        "links" => devices.iter().map(ToString::to_string).collect(),
        _ => {
            let key = if name == "addresses" {
                "addr_info"
            } else {
                "maddr"
            };
            let entries = devices.iter().flat_map(|device| {
                let device_name = device["ifname"].as_str().unwrap_or_default().to_owned();
                let entries = device[key].as_array().cloned().unwrap_or_default();
                entries
                    .into_iter()
                    .map(move |entry| format!("{device_name} {entry}"))
            });
            entries.collect()
        }
    };
    result.sort();
    result
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(map) => {
            map.retain(|key, _| !VOLATILE_KEYS.contains(&key.as_str()));
            map.values_mut().for_each(strip);
        }
        _ => {}
    }
}

fn traffic_control(netns: &Path) -> Result<Vec<String>, LabError> {
    let qdiscs = lines(&list(netns, &["tc", "qdisc", "show"])?);
    let mut result = Vec::new();
    for qdisc in &qdiscs {
        let mut words = qdisc.split(' ');
        let device = words
            .by_ref()
            .skip_while(|word| *word != "dev")
            .nth(1)
            .unwrap_or_default();
        if !qdisc.starts_with("qdisc clsact") && !qdisc.starts_with("qdisc ingress") {
            continue;
        }
        for direction in ["ingress", "egress"] {
            let filters = list(netns, &["tc", "filter", "show", "dev", device, direction])?;
            result.extend(
                lines(&filters)
                    .iter()
                    .map(|line| format!("{device} {direction} {line}")),
            );
        }
    }
    result.extend(qdiscs);
    Ok(result)
}

/// Output of `bpftool net`: programs at XDP, tc and netfilter, without their ids.
fn bpf_attached(netns: &Path) -> Result<Vec<String>, LabError> {
    let text = list(netns, &["bpftool", "net"])?;
    let is_id = |word: &&str| word.parse::<u32>().is_err();
    let line = |line: &str| line.split(' ').filter(is_id).collect::<Vec<_>>().join(" ");
    Ok(lines(&text)
        .iter()
        .map(|text| line(text))
        .filter(|line| !line.ends_with(':'))
        .collect())
}

/// eBPF objects that processes of the host hold open.
fn bpf_held(init: Process) -> Vec<String> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = namespace(&init.pid.to_string());
    let mut held = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().into_string() else {
            continue;
        };
        if !pid.bytes().all(|b| b.is_ascii_digit()) || namespace(&pid) != ours || ours.is_none() {
            continue;
        }
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        for fd in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let info = std::fs::read_to_string(fd.path()).unwrap_or_default();
            let types = info.lines().filter(|line| {
                ["prog_type:", "map_type:", "link_type:"]
                    .iter()
                    .any(|key| line.starts_with(key))
            });
            let types: Vec<String> = types.map(|line| line.replace('\t', " ")).collect();
            if !types.is_empty() {
                held.push(format!("{} {}", name.trim(), types.join(" ")));
            }
        }
    }
    held.sort();
    held
}

/// Every file below a folder of the host.
fn files(init: Process, folder: &str, except: &[&str]) -> Vec<String> {
    let root = PathBuf::from(format!("/proc/{}/root", init.pid));
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        let inside = root.join(folder.strip_prefix("/").unwrap_or(&folder));
        for entry in std::fs::read_dir(inside).into_iter().flatten().flatten() {
            let path = folder.join(entry.file_name());
            // The kernel itself creates these two in every bpffs.
            let is_debug = path.ends_with("maps.debug") || path.ends_with("progs.debug");
            if is_debug || except.iter().any(|except| path == Path::new(except)) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

/// `path = value` of every readable setting.
fn sysctls(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut result = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Folders of devices may vanish concurrently.
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if !VOLATILE_SYSCTLS.iter().any(|name| path.ends_with(name)) {
                // Some settings are write-only.
                if let Ok(value) = std::fs::read_to_string(&path) {
                    result.push(format!("{} = {}", path.display(), value.trim()));
                }
            }
        }
    }
    result.sort();
    Ok(result)
}
