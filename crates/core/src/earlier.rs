//! What earlier egress systems leave on a node: which kernel objects and files are theirs, and what would remove them.
//!
//! Pure: [`Node`] is what was read, [`find`] says what of it is whose. An object is theirs by a name that nobody else has,
//! or by its whole shape together with something that has such a name; never by a mark, a priority or a table number
//! alone. Only tables of iptables are looked at, so what nftables users (Egret, kube-proxy in that mode) have is out of
//! reach by construction.

mod find;
mod kube_egress;
mod kube_egress_gateway;
mod observed;
mod rule;
mod static_egress_ip;
#[cfg(test)]
mod tests;

pub use find::find;
pub use observed::{
    Address, Backend, Chain, CniFile, Device, FileLine, IpSet, Node, PolicyRule, Route,
};
pub use rule::{Match, Rule, Target};

use serde::Serialize;

/// An earlier system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "LegacySystem"))]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// nirmata/kube-static-egress-ip, and the fork of jmalmeid, which uses the same names.
    StaticEgressIp,
    /// steven-sheehy/kube-egress, and its pull request 1, which egress-mapper deploys.
    KubeEgress,
    /// aledbf/kube-keepalived-vip, as kube-egress and egress-mapper use it.
    KeepalivedVip,
    /// Azure/kube-egress-gateway.
    KubeEgressGateway,
}

impl System {
    /// Every system.
    pub const ALL: [System; 4] = [
        System::StaticEgressIp,
        System::KubeEgress,
        System::KeepalivedVip,
        System::KubeEgressGateway,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            System::StaticEgressIp => "static-egress-ip",
            System::KubeEgress => "kube-egress",
            System::KeepalivedVip => "keepalived-vip",
            System::KubeEgressGateway => "kube-egress-gateway",
        }
    }
}

/// What is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "LegacyKind"))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A rule of iptables.
    Rule,
    /// A chain of iptables.
    Chain,
    /// A set of ipset.
    Set,
    /// A policy routing rule.
    RoutingRule,
    /// A route in a table of theirs.
    Route,
    /// A network device.
    Device,
    /// An address of a device.
    Address,
    /// A named network namespace.
    Namespace,
    /// A line in a file that names routing tables.
    TableName,
    /// A file.
    File,
    /// A setting of the kernel.
    Setting,
}

/// What removes a finding. The order of the variants is the order in which they are done: nothing is removed while
/// something else still leads to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Deletes the rule.
    Rule(Backend, String, RuleId),
    /// Deletes the chain, which is empty by then.
    Chain(Backend, String, String),
    /// Destroys the set.
    Set(String),
    /// Deletes the policy routing rule with this body, as the kernel dumped it.
    RoutingRule(Vec<u8>),
    /// The same for a route.
    Route(Vec<u8>),
    /// Deletes the device of this index, if it still has this name.
    Device(u32, String),
    /// Deletes the address with this body, as the kernel dumped it.
    Address(Vec<u8>),
    /// Unmounts and removes the name of a network namespace.
    Namespace(String),
    /// Removes this line from a file.
    Line(String, String),
    /// Removes a file.
    File(String),
    /// Nothing is done: a person decides.
    Nothing,
}

/// Where a rule is, while it is there: nftables never gives a handle twice; in old tables it is the rule's position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId {
    /// Its chain.
    pub chain: String,
    /// Handle, or position in the table.
    pub handle: u64,
}

/// One thing that an earlier system left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose it is.
    pub system: System,
    /// What it is.
    pub kind: Kind,
    /// As the tool that made it writes it: `iptables-nft -t nat -A ...`, `ip rule add ...`.
    pub object: String,
    /// Packets that it has counted; none where it counts nothing.
    pub packets: Option<u64>,
    /// What else is to be known; may be empty.
    pub note: String,
    /// How a person would remove it, in the language of that tool.
    pub removal: String,
    /// How Egret would.
    pub action: Action,
}

impl Finding {
    /// Whether [`Action`] removes it, or a person must.
    pub fn is_removable(&self) -> bool {
        self.action != Action::Nothing
    }
}
