//! Result of a merge: objects in force, and copies to write.

use super::object::Converted;
use egret_core::model::{Finding, ObjectRef};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object in force.
pub(super) struct Effective {
    pub converted: Arc<Converted>,
    /// The whole object, with metadata and status of our copy.
    pub whole: Arc<Value>,
}

/// Objects in force, and copies to write.
#[derive(Default)]
pub(super) struct Merged {
    pub objects: BTreeMap<ObjectRef, Effective>,
    pub findings: Vec<Finding>,
    pub writes: Vec<(ObjectRef, Arc<Value>)>,
    pub deletes: Vec<ObjectRef>,
}

impl Merged {
    pub fn has_writes(&self) -> bool {
        !self.writes.is_empty() || !self.deletes.is_empty()
    }
}
