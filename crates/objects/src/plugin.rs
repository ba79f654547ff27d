//! Prefixes of pods that network plugins publish: in objects of their own kinds, and in annotations of Nodes. A kind
//! that does not exist publishes none, and neither does an unreadable field: nobody would repair these objects for us,
//! and pods outside all prefixes are listed one by one (see `NodeRecord::pod_prefixes` of the core).

use crate::convert::field::prefix;
use egret_core::model::Kind;
use ipnet::IpNet;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A kind of a network plugin, with its names in manifests and in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginKind {
    /// Unique kind inside Egret.
    pub kind: Kind,
    /// `apiVersion`.
    pub api_version: &'static str,
    /// `kind`.
    pub name: &'static str,
    /// Plural in API paths.
    pub plural: &'static str,
    /// Whether its objects are namespaced.
    pub namespaced: bool,
}

/// All kinds.
pub const KINDS: [PluginKind; 6] = [
    of_cluster(
        Kind::CalicoIPPool,
        "crd.projectcalico.org/v1",
        "IPPool",
        "ippools",
    ),
    of_cluster(
        Kind::CiliumNode,
        "cilium.io/v2",
        "CiliumNode",
        "ciliumnodes",
    ),
    of_cluster(
        Kind::CiliumPodIPPool,
        "cilium.io/v2alpha1",
        "CiliumPodIPPool",
        "ciliumpodippools",
    ),
    of_cluster(Kind::KubeOvnSubnet, "kubeovn.io/v1", "Subnet", "subnets"),
    of_cluster(
        Kind::OpenShiftNetwork,
        "config.openshift.io/v1",
        "Network",
        "networks",
    ),
    PluginKind {
        namespaced: true,
        ..of_cluster(
            Kind::AzureNodeNetworkConfig,
            "acn.azure.com/v1alpha",
            "NodeNetworkConfig",
            "nodenetworkconfigs",
        )
    },
];

const fn of_cluster(
    kind: Kind,
    api_version: &'static str,
    name: &'static str,
    plural: &'static str,
) -> PluginKind {
    PluginKind {
        kind,
        api_version,
        name,
        plural,
        namespaced: false,
    }
}

/// Names of a network plugin's kind; `None` for every other kind.
pub fn plugin_kind(kind: Kind) -> Option<&'static PluginKind> {
    KINDS.iter().find(|known| known.kind == kind)
}

/// All strings below a value: lists of prefixes are lists of strings, or of mappings with one.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => text.split(',').map(str::trim).collect(),
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// A prefix; host bits are ignored.
fn lenient(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let network = IpNet::new(address.parse::<IpAddr>().ok()?, length.parse().ok()?);
    prefix(&network.ok()?.trunc().to_string()).ok()
}

/// The prefixes of pods that an object of one of [`KINDS`] publishes.
pub fn prefixes(kind: Kind, whole: &Value) -> BTreeSet<IpNet> {
    let spec = &whole["spec"];
    let found: Vec<&Value> = match kind {
        // Pools may be for load balancers or tunnels alone (`allowedUses`; absent: everything).
        Kind::CalicoIPPool => {
            let uses = texts(&spec["allowedUses"]);
            let pods = uses.is_empty() || uses.contains(&"Workload");
            pods.then_some(&spec["cidr"]).into_iter().collect()
        }
        // In modes where the cloud assigns addresses there is no prefix: those pods are listed one by one.
        Kind::CiliumNode => {
            let pools = spec["ipam"]["pools"]["allocated"].as_array();
            let pools = pools.into_iter().flatten().map(|pool| &pool["cidrs"]);
            std::iter::once(&spec["ipam"]["podCIDRs"])
                .chain(pools)
                .collect()
        }
        Kind::CiliumPodIPPool => vec![&spec["ipv4"]["cidrs"], &spec["ipv6"]["cidrs"]],
        // A subnet on a VLAN is a network outside, where not only pods have addresses.
        Kind::KubeOvnSubnet => {
            let outside = spec["vlan"].as_str().is_some_and(|vlan| !vlan.is_empty());
            (!outside)
                .then_some(&spec["cidrBlock"])
                .into_iter()
                .collect()
        }
        Kind::OpenShiftNetwork => {
            let networks = whole["status"]["clusterNetwork"].as_array();
            networks
                .into_iter()
                .flatten()
                .map(|one| &one["cidr"])
                .collect()
        }
        // In overlay mode a prefix; otherwise one address, and not all of `subnetAddressSpace` are pods.
        Kind::AzureNodeNetworkConfig => {
            let containers = whole["status"]["networkContainers"].as_array();
            let containers = containers.into_iter().flatten();
            containers.map(|one| &one["primaryIP"]).collect()
        }
        _ => Vec::new(),
    };
    found
        .into_iter()
        .flat_map(texts)
        .filter_map(lenient)
        .collect()
}

/// Annotations of a Node with its pods' prefixes: separated by commas, or as JSON by network.
const NODE_ANNOTATIONS: [&str; 7] = [
    "k8s.ovn.org/node-subnets",
    "kube-router.io/pod-cidr",
    "kube-router.io/pod-cidrs",
    "network.cilium.io/ipv4-pod-cidr",
    "network.cilium.io/ipv6-pod-cidr",
    "io.cilium.network.ipv4-pod-cidr",
    "io.cilium.network.ipv6-pod-cidr",
];

/// The prefixes of pods in the annotations of a Node.
pub(crate) fn of_node(annotations: &BTreeMap<String, String>) -> Vec<IpNet> {
    let said = NODE_ANNOTATIONS.iter();
    let said = said.filter_map(|name| annotations.get(*name));
    let read = |text: &String| -> Vec<IpNet> {
        let json = serde_json::from_str::<Value>(text);
        let value = json.unwrap_or_else(|_| Value::String(text.clone()));
        texts(&value).into_iter().filter_map(lenient).collect()
    };
    said.flat_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(kind: Kind, object: Value) -> Vec<String> {
        let found = prefixes(kind, &object);
        found.iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn what_plugins_publish_is_read_and_nothing_else_of_it() {
        let pool = |uses: Value| json!({"spec": {"cidr": "10.48.0.0/16", "allowedUses": uses}});
        assert_eq!(of(Kind::CalicoIPPool, pool(Value::Null)), ["10.48.0.0/16"]);
        assert_eq!(
            of(Kind::CalicoIPPool, pool(json!(["Workload", "Tunnel"]))),
            ["10.48.0.0/16"]
        );
        assert!(of(Kind::CalicoIPPool, pool(json!(["LoadBalancer"]))).is_empty());

        let node = json!({"spec": {"ipam": {
            "podCIDRs": ["10.0.1.0/24"],
            "pool": {"172.31.5.9": {"resource": "eni-1"}},
            "pools": {"allocated": [{"pool": "a", "cidrs": ["10.10.0.0/27"]}],
                "requested": [{"pool": "a", "needed": {"ipv4-addrs": 16}}]},
        }}});
        assert_eq!(of(Kind::CiliumNode, node), ["10.0.1.0/24", "10.10.0.0/27"]);

        let pools = json!({"spec": {"ipv4": {"cidrs": ["10.20.0.0/16"], "maskSize": 24},
            "ipv6": {"cidrs": [{"cidr": "fd00::/104"}], "maskSize": 120}}});
        assert_eq!(
            of(Kind::CiliumPodIPPool, pools),
            ["10.20.0.0/16", "fd00::/104"]
        );

        let subnet = |vlan: &str| json!({"spec": {"cidrBlock": "10.16.0.0/16,fd00:10:16::/112", "vlan": vlan}});
        assert_eq!(
            of(Kind::KubeOvnSubnet, subnet("")),
            ["10.16.0.0/16", "fd00:10:16::/112"]
        );
        assert!(of(Kind::KubeOvnSubnet, subnet("vlan7")).is_empty());

        let network = json!({"spec": {"clusterNetwork": [{"cidr": "10.1.0.0/16"}]},
            "status": {"clusterNetwork": [{"cidr": "10.128.0.0/14", "hostPrefix": 23}]}});
        assert_eq!(of(Kind::OpenShiftNetwork, network), ["10.128.0.0/14"]);

        let azure = |primary: &str| {
            json!({"status": {"networkContainers": [
            {"primaryIP": primary, "subnetAddressSpace": "10.224.0.0/16"}]}})
        };
        assert_eq!(
            of(Kind::AzureNodeNetworkConfig, azure("10.244.1.0/24")),
            ["10.244.1.0/24"]
        );
        assert!(of(Kind::AzureNodeNetworkConfig, azure("10.224.0.7")).is_empty());
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        for odd in ["", "10.1.0.0", "10.1.0.0/33", "010.1.0.0/16", "any"] {
            let pool = json!({"spec": {"cidr": odd}});
            assert!(of(Kind::CalicoIPPool, pool).is_empty(), "{odd}");
        }
        assert!(of(Kind::CiliumNode, json!({"spec": {"ipam": 7}})).is_empty());
        assert!(of(Kind::Pod, json!({"spec": {"cidr": "10.0.0.0/8"}})).is_empty());
    }

    #[test]
    fn nodes_say_it_in_annotations_too() {
        let read = |name: &str, text: &str| -> Vec<String> {
            let annotations = BTreeMap::from([(name.to_owned(), text.to_owned())]);
            of_node(&annotations).iter().map(IpNet::to_string).collect()
        };
        let ovn = "k8s.ovn.org/node-subnets";
        assert_eq!(
            read(ovn, r#"{"default":"10.128.0.0/23"}"#),
            ["10.128.0.0/23"]
        );
        let both = r#"{"default":["10.128.2.0/23","fd01:0:0:2::/64"]}"#;
        assert_eq!(read(ovn, both), ["10.128.2.0/23", "fd01:0:0:2::/64"]);
        let router = "10.20.0.0/24,fd20::/64";
        assert_eq!(
            read("kube-router.io/pod-cidrs", router),
            ["10.20.0.0/24", "fd20::/64"]
        );
        assert!(read("example.com/cidr", router).is_empty());
    }
}
