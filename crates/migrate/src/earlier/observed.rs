//! Facts that were read from a node.

use super::Rule;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Backend of an iptables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// nftables, by `iptables-nft`.
    Nft,
    /// The old ip_tables, by `iptables-legacy`.
    Legacy,
}

impl Backend {
    /// The program that reads and writes its tables.
    pub fn program(self) -> &'static str {
        match self {
            Backend::Nft => "iptables-nft",
            Backend::Legacy => "iptables-legacy",
        }
    }
}

/// All facts of one node. IPv4 only: none of these systems supports IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// User-defined chains of iptables' tables (no built-in ones).
    pub chains: Vec<Chain>,
    /// Rules of all chains of iptables' tables, in order.
    pub rules: Vec<Rule>,
    /// Sets of ipset.
    pub sets: Vec<IpSet>,
    /// Policy routing rules.
    pub policy: Vec<PolicyRule>,
    /// Routes of all tables.
    pub routes: Vec<Route>,
    /// Network devices.
    pub devices: Vec<Device>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Names of network namespaces, with the path of each.
    pub namespaces: BTreeMap<String, String>,
    /// Lines of the files that name routing tables.
    pub tables: Vec<FileLine>,
    /// Files in the container runtime's CNI configuration.
    pub cni: Vec<CniFile>,
    /// Paths of CNI plugins, by their file name.
    pub plugins: BTreeMap<String, String>,
    /// Settings, by `sysctl` name.
    pub sysctls: BTreeMap<String, String>,
}

/// A chain of iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its backend.
    pub backend: Backend,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// A set of ipset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpSet {
    /// Its name.
    pub name: String,
    /// Its type, for example `hash:ip`.
    pub kind: String,
    /// IPv4.
    pub is_v4: bool,
    /// Number of its elements.
    pub entries: u32,
    /// Number of rules and sets that refer to it.
    pub references: u32,
}

/// A policy routing rule of IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its priority.
    pub priority: u32,
    /// `fwmark`.
    pub mark: u32,
    /// Its mask.
    pub mask: u32,
    /// `lookup`.
    pub table: u32,
    /// It matches only the mark, and only looks up a table.
    pub is_plain: bool,
    /// Body of the kernel's message, with which it can be deleted.
    pub raw: Vec<u8>,
}

/// A route of IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// Its destination; `None` where the kernel's message cannot be parsed.
    pub to: Option<Ipv4Net>,
    /// `via`.
    pub via: Option<Ipv4Addr>,
    /// Index of its device; 0 for none or several.
    pub device: u32,
    /// Body of the kernel's message, with which it can be deleted.
    pub raw: Vec<u8>,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `gre`, `wireguard`...; empty for hardware.
    pub kind: String,
    /// Remote address of a tunnel, if it has one.
    pub remote: Option<Ipv4Addr>,
    /// Local address of a tunnel.
    pub local: Option<Ipv4Addr>,
    /// Packets received and sent.
    pub packets: u64,
}

/// An IPv4 address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the device.
    pub device: u32,
    /// The address with the length of its network's prefix.
    pub address: Ipv4Net,
    /// Its label; most have the device's name.
    pub label: String,
    /// Body of the kernel's message, with which it can be deleted.
    pub raw: Vec<u8>,
}

/// A line `NUMBER NAME` of a file that names routing tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLine {
    /// The file.
    pub file: String,
    /// The unchanged line.
    pub text: String,
    /// The number.
    pub id: u32,
    /// The name.
    pub name: String,
    /// It is the only line of the file.
    pub is_alone: bool,
}

/// A file that the container runtime may use as its CNI configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniFile {
    /// Its path.
    pub path: String,
    /// Types of its plugins.
    pub types: Vec<String>,
}

impl Node {
    /// Name of a device; its index if it has no name.
    pub(super) fn device_name(&self, index: u32) -> String {
        let found = self.devices.iter().find(|device| device.index == index);
        found.map_or_else(|| format!("if{index}"), |device| device.name.clone())
    }

    /// The address as an additional one: with full prefix length, on a device with another address in whose network it
    /// is.
    pub(super) fn extra_address(&self, wanted: IpAddr) -> Option<&Address> {
        let IpAddr::V4(wanted) = wanted else {
            return None;
        };
        self.addresses.iter().find(|one| {
            let beside = |other: &Address| {
                other.device == one.device
                    && other.address.addr() != wanted
                    && other.address.contains(&wanted)
            };
            one.address.addr() == wanted
                && one.address.prefix_len() == 32
                && self.addresses.iter().any(beside)
        })
    }
}
