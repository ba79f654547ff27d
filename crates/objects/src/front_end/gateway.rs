//! Gateways for objects whose systems selected gateways themselves.
//!
//! If the cluster has an `EgressGateway`, it serves them (the default one, or the only one). If not, every node without
//! a control plane is a gateway, as in those systems; a node label makes a group of its own.

use super::Translation;
use egret_core::model::{Gateway, GatewayName, LabelSelector, ObjectRef, Requirement, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// Labels of control plane nodes; the first is the older one.
const CONTROL_PLANE_LABELS: [&str; 2] = [
    "node-role.kubernetes.io/master",
    "node-role.kubernetes.io/control-plane",
];
/// Name of the group that is generated if there is no `EgressGateway`.
const STAND_IN: &str = "front-end";
/// Name prefix of a group that is generated from a node label.
const BY_LABEL: &str = "front-end-label-";

/// Selection of gateways in this cluster.
pub(super) struct Choice {
    /// There is no `EgressGateway`.
    none: bool,
    /// All nodes have a control plane label.
    control_plane_only: bool,
}

impl Choice {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let plain = |labels: &BTreeMap<String, String>| {
            CONTROL_PLANE_LABELS
                .iter()
                .all(|key| !labels.contains_key(*key))
        };
        Self {
            none: snapshot.gateways.is_empty(),
            control_plane_only: !snapshot.nodes.values().any(|node| plain(&node.labels)),
        }
    }

    /// The gateway of a policy; `None`: the default one, or the only one.
    pub(super) fn gateway(&self, label: Option<&str>) -> Option<GatewayName> {
        match label {
            Some(label) => Some(GatewayName(name_of_label(label))),
            None => self.none.then(|| GatewayName(STAND_IN.to_owned())),
        }
    }

    /// Adds the generated groups that these translations use.
    pub(super) fn add_to(
        &self,
        snapshot: &mut Snapshot,
        all: &[(ObjectRef, Translation)],
        interface: Option<&str>,
    ) {
        let policies = all.iter().flat_map(|(_, one)| &one.policies);
        let used: BTreeSet<&str> = policies
            .filter_map(|policy| policy.gateway.as_ref())
            .map(|name| name.0.as_str())
            .collect();
        for name in used {
            let mut requirements = match self.control_plane_only {
                true => Vec::new(),
                false => CONTROL_PLANE_LABELS
                    .map(|key| Requirement::DoesNotExist(key.to_owned()))
                    .to_vec(),
            };
            if let Some(label) = label_of_name(name) {
                requirements.push(Requirement::Exists(label));
            } else if name != STAND_IN {
                continue;
            }
            let gateway = stand_in(name, LabelSelector(requirements), interface);
            snapshot.gateways.insert(gateway.name.clone(), gateway);
        }
    }
}

fn stand_in(name: &str, nodes: LabelSelector, interface: Option<&str>) -> Gateway {
    Gateway {
        generation: 1,
        // The generated group exists only without an `EgressGateway`, so it is the only one.
        by_name_only: name != STAND_IN,
        external_interface: interface.map(str::to_owned),
        ..Gateway::new(GatewayName(name.to_owned()), nodes)
    }
}

/// A label key as part of a name. Characters other than lower case letters and digits become their numbers, so that the
/// result is unique.
fn name_of_label(label: &str) -> String {
    let encoded = label.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("-{other:02x}"),
    });
    format!("{BY_LABEL}{}", encoded.collect::<String>())
}

fn label_of_name(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix(BY_LABEL)?;
    let mut label = Vec::new();
    while let Some(first) = rest.bytes().next() {
        let (byte, used) = match first {
            b'-' => (u8::from_str_radix(rest.get(1..3)?, 16).ok()?, 3),
            plain => (plain, 1),
        };
        label.push(byte);
        rest = &rest[used..];
    }
    String::from_utf8(label).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_key_is_found_again_in_the_name_of_its_group() {
        for key in ["egress", "egress-gateway", "example.com/Egress_GW", "é"] {
            assert_eq!(label_of_name(&name_of_label(key)).as_deref(), Some(key));
        }
        assert_ne!(name_of_label("a-b"), name_of_label("a.b"));
        assert_eq!(label_of_name(STAND_IN), None);
    }
}
