//! Results of translating objects of earlier systems, in a view.

use egret_core::condition::Reason;
use egret_core::model::{Finding, NodeName, ObjectRef};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A fault of an object, reported in its conditions and as a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Reason of the condition.
    pub reason: Reason,
    /// Path of the field.
    pub field: String,
    /// Value of the field.
    pub value: String,
    /// Instruction that repairs it.
    pub remedy: String,
}

impl Problem {
    pub(super) fn invalid(
        field: impl Into<String>,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            reason: Reason::Invalid,
            field: field.into(),
            value: value.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn finding(&self, object: &ObjectRef) -> Finding {
        Finding {
            object: object.clone(),
            field: self.field.clone(),
            value: self.value.clone(),
            remedy: self.remedy.clone(),
        }
    }
}

/// Translation of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// Generation that was translated.
    pub generation: i64,
    /// Names of its policies.
    pub policies: BTreeSet<ObjectRef>,
    /// Faults. The valid parts of the object are applied.
    pub problems: Vec<Problem>,
    /// Services that it names and that do not exist.
    pub missing_services: BTreeSet<String>,
    /// Its addresses: those of its policies, or the `Vip`'s own.
    pub addresses: Vec<IpAddr>,
    /// Fields without effect, as one sentence for the `Accepted` condition; may be empty.
    pub note: String,
    /// Current status of the object.
    pub status: Value,
}

/// The objects of front-ends in a view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrontEnds {
    /// Adopted objects, by name.
    pub objects: BTreeMap<ObjectRef, Object>,
    /// Origin of each translated policy.
    pub origins: BTreeMap<ObjectRef, ObjectRef>,
    /// `metadata.uid` of nodes: earlier systems name nodes by it. Empty while no front-end serves.
    pub node_uids: BTreeMap<NodeName, String>,
}
