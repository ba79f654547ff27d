//! Deserializes objects of our kinds one by one: stored ones may be of another version of Egret, with unknown fields or
//! values. A list must not fail because of one of them.

use super::entry::{self, Entry, Observed};
use egret_core::model::{Kind, ObjectRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::Value;
use std::borrow::Cow;

/// An object, or its raw value and the error.
#[derive(Clone, Debug)]
pub(super) struct Lenient<K> {
    metadata: ObjectMeta,
    read: Result<K, (Value, String)>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Value::deserialize(deserializer)?;
        let metadata = ObjectMeta::deserialize(&whole["metadata"]).map_err(D::Error::custom)?;
        let read = K::deserialize(&whole).map_err(|error| (whole, error.to_string()));
        Ok(Self { metadata, read })
    }
}

impl<K: Observed + DeserializeOwned> Observed for Lenient<K> {
    const KIND: Kind = K::KIND;

    fn observe(self) -> (ObjectRef, Entry) {
        let (whole, why) = match self.read {
            Ok(object) => return object.observe(),
            Err(unread) => unread,
        };
        // An unreadable status that the controller writes may be dropped. An agent's may not: its content would be
        // unknown.
        let mut spec_only = whole.clone();
        if let (Value::Object(fields), true) = (&mut spec_only, K::KIND != Kind::EgressNode) {
            fields.remove("status");
            if let Ok(object) = K::deserialize(spec_only) {
                return object.observe();
            }
        }
        entry::unread(K::KIND, self.metadata, &whole, &why)
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Lenient<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::entry;
    use egret_api as api;
    use egret_core::model::NodeName;
    use serde_json::json;

    fn read<K: Observed + DeserializeOwned>(
        name: &str,
        spec: &Value,
        status: &Value,
    ) -> (ObjectRef, Entry) {
        let whole = json!({
            "apiVersion": api::API_VERSION,
            "kind": format!("{:?}", K::KIND),
            "metadata": {"name": name, "resourceVersion": "7"},
            "spec": spec,
            "status": status,
        });
        serde_json::from_value::<Lenient<K>>(whole)
            .unwrap()
            .observe()
    }

    /// A later version of Egret may say something in a status that this one does not know.
    #[test]
    fn a_status_of_another_version_is_not_said_and_the_spec_is() {
        let (spec, status) = (json!({"tunnelIndex": 9}), json!({"datapath": "xdp"}));
        let (_, node) = read::<api::EgressNode>("n", &spec, &status);
        let record = node.value.record().unwrap();
        assert_eq!((record.tunnel_index, record.resource_version), (9, 7));
        assert_eq!((node.gaps.spec, node.gaps.demand), (false, true));
        assert_eq!(node.findings.len(), 1);
        let spec = json!({"cidrs": ["192.0.2.0/24"], "namespaces": {"all": true}});
        let (_, pool) = read::<api::EgressPool>("p", &spec, &json!({"used": "many"}));
        assert!(matches!(pool.value, entry::Value::Pool(_)) && pool.findings.is_empty());
    }

    #[test]
    fn a_record_of_another_version_is_there_and_its_name_says_of_what() {
        let spec = json!({"address": "192.0.2.1", "gateway": "g", "epoch": 1, "leases": [{"state": "Paused"}]});
        let (_, address) = read::<api::EgressAddress>("v4-192-0-2-1", &spec, &Value::Null);
        let record = address.value.address().unwrap();
        assert_eq!(record.address.to_string(), "192.0.2.1");
        assert!(address.gaps.spec && address.findings.len() == 1);
        let spec = json!({"tunnelIndex": 9, "grants": "none"});
        let (_, node) = read::<api::EgressNode>("n", &spec, &Value::Null);
        let record = node.value.record().unwrap();
        assert_eq!(
            (&record.node, record.tunnel_index),
            (&NodeName("n".into()), 9)
        );
        assert!(node.gaps.spec && node.gaps.demand);
        let (_, policy) = read::<api::Egress>("e", &json!({"ip": 1}), &Value::Null);
        assert!(matches!(policy.value, entry::Value::Nothing) && policy.findings.len() == 1);
    }
}
