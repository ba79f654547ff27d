//! API objects to `egret_core::model`: parsed once, never checked again. One module per kind or front-end.
//!
//! Every function gives the validated value or everything that is wrong with the object; one bad object never
//! touches another (P9).

pub mod cluster;
pub(crate) mod field;
pub mod gateway;
pub mod lease;
pub mod policy;
pub mod pool;
mod report;

pub use report::*;

use egret_core::model::{Finding, Kind, ObjectRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotation with the file, relative to the source's directory, that our copy of an object was read from.
pub const SOURCE_FILE_ANNOTATION: &str = "egret.dev/source-file";

/// Collects what is wrong with one object.
struct Check {
    object: ObjectRef,
    findings: Vec<Finding>,
}

impl Check {
    fn new(kind: Kind, metadata: &ObjectMeta) -> Self {
        Self {
            object: object_ref(kind, metadata),
            findings: Vec::new(),
        }
    }

    /// Something is wrong with this field.
    fn bad(&mut self, field: impl Into<String>, value: impl ToString, remedy: impl Into<String>) {
        self.findings.push(Finding {
            object: self.object.clone(),
            field: field.into(),
            value: value.to_string(),
            remedy: remedy.into(),
        });
    }

    /// Takes the good value, or notes what is wrong.
    fn take<T>(
        &mut self,
        field: impl Into<String>,
        value: &str,
        parsed: Result<T, String>,
    ) -> Option<T> {
        parsed.map_err(|remedy| self.bad(field, value, remedy)).ok()
    }

    /// The value if nothing was wrong. `None` without a finding is a mistake here.
    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Finding>> {
        match value {
            Some(value) if self.findings.is_empty() => Ok(value),
            _ => {
                assert!(
                    !self.findings.is_empty(),
                    "{} refused without a finding",
                    self.object
                );
                Err(self.findings)
            }
        }
    }
}

/// How people name this object.
pub fn object_ref(kind: Kind, metadata: &ObjectMeta) -> ObjectRef {
    ObjectRef {
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// `metadata.resourceVersion` as the number that compare-and-swap uses; 0 if there is none.
fn resource_version(metadata: &ObjectMeta) -> u64 {
    metadata
        .resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}
