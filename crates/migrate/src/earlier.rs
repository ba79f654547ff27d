//! Traces of earlier egress systems on a node: which kernel objects and files are theirs, and what removes them.
//!
//! Pure: [`Node`] is what was read, [`find`] attributes it to systems. An object is attributed by a name that nobody
//! else uses, or by its whole shape together with an object of such a name; never by a mark, a priority or a table
//! number alone. Only tables of iptables are read, so objects of nftables users (Egret, kube-proxy in that mode) cannot
//! be affected.

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

/// Kind of a finding.
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
    /// A route in a routing table of an earlier system.
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

/// Action that removes a finding. The order of the variants is the order of execution: nothing is removed while
/// something else still refers to it.
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
    /// Deletes the route with this body, as the kernel dumped it.
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
    /// None: a person decides.
    Nothing,
}

/// Identifies a rule while it exists. nftables never reuses a handle; in legacy tables it is the rule's position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId {
    /// Its chain.
    pub chain: String,
    /// Handle, or position in the table.
    pub handle: u64,
}

/// One trace of an earlier system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The earlier system.
    pub system: System,
    /// Kind of the trace.
    pub kind: Kind,
    /// The trace in the syntax of the tool that made it: `iptables-nft -t nat -A ...`, `ip rule add ...`.
    pub object: String,
    /// Packets that it has counted; `None` where it has no counter.
    pub packets: Option<u64>,
    /// Further information; may be empty.
    pub note: String,
    /// Command with which a person would remove it, in the syntax of that tool.
    pub removal: String,
    /// Action with which Egret removes it.
    pub action: Action,
}

impl Finding {
    /// Whether [`Action`] removes it; otherwise a person must.
    pub fn is_removable(&self) -> bool {
        self.action != Action::Nothing
    }
}
