//! What objects of earlier systems became, as a view has it.

use egret_core::condition::Reason;
use egret_core::model::{Finding, NodeName, ObjectRef};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Something that is wrong with an object, for its conditions and as a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word.
    pub reason: Reason,
    /// Path of the field.
    pub field: String,
    /// What it says.
    pub value: String,
    /// What would be right.
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

/// What an object became.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// The generation that it was read at.
    pub generation: i64,
    /// Its policies, by name.
    pub policies: BTreeSet<ObjectRef>,
    /// What is wrong with it. What is right of it is carried out.
    pub problems: Vec<Problem>,
    /// Services that it names and that do not exist.
    pub missing_services: BTreeSet<String>,
    /// Addresses that it stands for: those of its policies, or the `Vip`'s own.
    pub addresses: Vec<IpAddr>,
    /// What it says without effect, as one sentence for its `Accepted` condition; empty: nothing.
    pub note: String,
    /// The status that it has.
    pub status: Value,
}

/// The objects of front-ends in a view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrontEnds {
    /// Those that are taken, by name.
    pub objects: BTreeMap<ObjectRef, Object>,
    /// Which object a policy came from.
    pub origins: BTreeMap<ObjectRef, ObjectRef>,
    /// `metadata.uid` of nodes: earlier systems name nodes by it. Empty while no front-end serves.
    pub node_uids: BTreeMap<NodeName, String>,
}
