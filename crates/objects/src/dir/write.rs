//! Writes: status of the user's objects, and the objects that only Egret writes.

use super::DirSource;
use super::store::version_of;
use crate::convert::{self, lease};
use crate::source::{Source, SourceError, View, carry_transition_times};
use crate::status::{
    AddressStatus, Condition, GatewayStatus, NodeReport, PolicyStatus, PoolStatus,
};
use egret_api as api;
use egret_core::model::{
    AddressRecord, GatewayName, Kind, NodeName, NodeRecord, ObjectRef, PoolName,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

impl Source for DirSource {
    fn snapshot(&mut self) -> Result<View, SourceError> {
        self.view()
    }

    fn wait(&mut self, timeout: Duration) -> Result<bool, SourceError> {
        self.wait_for_change(timeout)
    }

    fn write_address(&mut self, record: &AddressRecord) -> Result<u64, SourceError> {
        let key = address_key(record.address);
        let mut lock = self.writing()?;
        let current = self.store.current(&key)?;
        same_version(&key, current.as_ref(), record.resource_version)?;
        let mut value = current.unwrap_or_else(|| fresh(&key));
        set_spec(&mut value, to_value(&lease::address_spec(record)));
        self.store.put(&mut lock, &key, value)
    }

    fn delete_address(
        &mut self,
        address: IpAddr,
        resource_version: u64,
    ) -> Result<(), SourceError> {
        let key = address_key(address);
        let mut lock = self.writing()?;
        let current = self.store.current(&key)?;
        same_version(&key, current.as_ref(), resource_version)?;
        self.store.remove(&mut lock, &key)
    }

    fn write_node_spec(&mut self, record: &NodeRecord) -> Result<u64, SourceError> {
        let key = ObjectRef::of_cluster(Kind::EgressNode, &record.node.0);
        let mut lock = self.writing()?;
        let mut value = self.store.current(&key)?.unwrap_or_else(|| fresh(&key));
        if !set_spec(&mut value, to_value(&lease::node_spec(record))) {
            return Ok(version_of(&value));
        }
        self.store.put(&mut lock, &key, value)
    }

    fn write_node_status(
        &mut self,
        record: &NodeRecord,
        report: &NodeReport,
        now_secs: i64,
    ) -> Result<u64, SourceError> {
        let key = ObjectRef::of_cluster(Kind::EgressNode, &record.node.0);
        let mut lock = self.writing()?;
        let mut value = self
            .store
            .current(&key)?
            .ok_or_else(|| SourceError::NotFound {
                object: key.to_string(),
            })?;
        let old: Option<api::NodeStatus> = from_status(&value);
        let old = old
            .map(|status| convert::conditions(&status.conditions))
            .unwrap_or_default();
        let conditions = carry_transition_times(&old, &report.conditions, now_secs);
        let status = api::NodeStatus {
            tunnel_mac: report.tunnel_mac.clone(),
            external_interface: report.external_interface.clone(),
            capabilities: report.capabilities.clone(),
            conditions: convert::api_conditions(&conditions, 0),
            ..lease::node_status(record)
        };
        if !set_status(&mut value, &status) {
            return Ok(version_of(&value));
        }
        self.store.put(&mut lock, &key, value)
    }

    fn delete_node(&mut self, node: &NodeName) -> Result<(), SourceError> {
        let mut lock = self.writing()?;
        self.store
            .remove(&mut lock, &ObjectRef::of_cluster(Kind::EgressNode, &node.0))
    }

    fn write_policy_status(
        &mut self,
        object: &ObjectRef,
        status: &PolicyStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        self.write_status(object, |old: Option<api::PolicyStatus>| {
            let conditions = carry(old.map(|s| s.conditions), &status.conditions, now_secs);
            convert::api_policy_status(&PolicyStatus {
                conditions,
                ..status.clone()
            })
        })
    }

    fn write_gateway_status(
        &mut self,
        gateway: &GatewayName,
        status: &GatewayStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        let key = ObjectRef::of_cluster(Kind::EgressGateway, &gateway.0);
        self.write_status(&key, |old: Option<api::GatewayStatus>| {
            let conditions = carry(old.map(|s| s.conditions), &status.conditions, now_secs);
            convert::api_gateway_status(&GatewayStatus {
                conditions,
                ..status.clone()
            })
        })
    }

    fn write_pool_status(
        &mut self,
        pool: &PoolName,
        status: &PoolStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        let key = ObjectRef::of_cluster(Kind::EgressPool, &pool.0);
        self.write_status(&key, |old: Option<api::PoolStatus>| {
            let conditions = carry(old.map(|s| s.conditions), &status.conditions, now_secs);
            convert::api_pool_status(&PoolStatus {
                conditions,
                ..status.clone()
            })
        })
    }

    fn write_address_status(
        &mut self,
        address: IpAddr,
        status: &AddressStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        self.write_status(&address_key(address), |old: Option<api::AddressStatus>| {
            let conditions = carry(old.map(|s| s.conditions), &status.conditions, now_secs);
            convert::api_address_status(&AddressStatus {
                conditions,
                ..status.clone()
            })
        })
    }

    fn write_front_end_status(
        &mut self,
        object: &ObjectRef,
        _before: &Value,
        status: &Value,
    ) -> Result<bool, SourceError> {
        self.write_status(object, |_: Option<Value>| status.clone())
    }
}

impl DirSource {
    fn writing(&self) -> Result<super::lock::Lock, SourceError> {
        if self.settings.record {
            self.store.lock_exclusive()
        } else {
            Err(SourceError::ReadOnly)
        }
    }

    /// Sets the status of an object; returns whether that changed anything.
    fn write_status<T: DeserializeOwned + Serialize>(
        &mut self,
        key: &ObjectRef,
        make: impl FnOnce(Option<T>) -> T,
    ) -> Result<bool, SourceError> {
        let mut lock = self.writing()?;
        // Our copy was removed while its object is in force: it is created again. Records are not created again here:
        // removing an address may be intended.
        let ours_alone = matches!(key.kind, Kind::EgressAddress | Kind::EgressNode);
        let remembered = || {
            let copy = self.store.copies.get(key).filter(|_| !ours_alone)?;
            Some(copy.value.as_ref().clone())
        };
        let Some(mut value) = self.store.current(key)?.or_else(remembered) else {
            return Ok(false);
        };
        let status = make(from_status(&value));
        if !set_status(&mut value, &status) {
            return Ok(false);
        }
        self.store.put(&mut lock, key, value)?;
        Ok(true)
    }
}

fn carry(
    old: Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>>,
    new: &[Condition],
    now_secs: i64,
) -> Vec<Condition> {
    carry_transition_times(
        &convert::conditions(&old.unwrap_or_default()),
        new,
        now_secs,
    )
}

fn address_key(address: IpAddr) -> ObjectRef {
    ObjectRef::of_cluster(Kind::EgressAddress, api::address_object_name(address))
}

fn same_version(
    key: &ObjectRef,
    current: Option<&Value>,
    expected: u64,
) -> Result<(), SourceError> {
    let found = current.map_or(0, version_of);
    if found == expected {
        return Ok(());
    }
    Err(SourceError::Conflict {
        object: key.to_string(),
        expected,
        found,
    })
}

/// A record that is written for the first time.
fn fresh(key: &ObjectRef) -> Value {
    json!({
        "apiVersion": api::API_VERSION,
        "kind": format!("{:?}", key.kind),
        "metadata": { "name": key.name, "generation": 0 },
    })
}

fn to_value(part: &impl Serialize) -> Value {
    serde_json::to_value(part).expect("API types have string keys and finite numbers only")
}

/// Sets the spec and raises the generation; returns whether that changed anything.
fn set_spec(value: &mut Value, spec: Value) -> bool {
    if value.get("spec") == Some(&spec) {
        return false;
    }
    value["spec"] = spec;
    let generation = value["metadata"]["generation"].as_i64().unwrap_or(0);
    value["metadata"]["generation"] = (generation + 1).into();
    true
}

fn from_status<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value.get("status")?).ok()
}

/// Sets the status; returns whether that changed anything.
fn set_status(value: &mut Value, status: &impl Serialize) -> bool {
    let status = to_value(status);
    if value.get("status") == Some(&status) {
        return false;
    }
    value["status"] = status;
    true
}
