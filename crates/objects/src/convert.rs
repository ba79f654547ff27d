//! API objects to `egret_core::model`: parsed once, never checked again. One module per kind or front-end.
//!
//! Every function returns the validated value or all findings about the object; one invalid object never affects
//! another (P9).

pub mod cluster;
pub(crate) mod field;
pub mod gateway;
pub mod lease;
pub mod policy;
pub mod pool;
pub(crate) mod reading;
mod report;
pub(crate) mod unread;

pub use reading::{Gaps, Reading};
pub use report::*;

use egret_core::model::{Finding, Kind, ObjectRef};
use egret_core::numbers::FINDINGS_PER_OBJECT_MAX;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotation of our copy of an object: the file that it was read from, relative to the source's directory.
pub const SOURCE_FILE_ANNOTATION: &str = "egret.dev/source-file";

/// Collects the findings about one object.
struct Check {
    object: ObjectRef,
    findings: Vec<Finding>,
    /// Number of findings beyond the recorded ones.
    more: usize,
}

impl Check {
    fn new(kind: Kind, metadata: &ObjectMeta) -> Self {
        Self {
            object: object_ref(kind, metadata),
            findings: Vec::new(),
            more: 0,
        }
    }

    /// Records a finding about this field. An object's author can cause any number of findings: only the first ones are
    /// recorded.
    fn bad(&mut self, field: impl Into<String>, value: impl ToString, remedy: impl Into<String>) {
        if self.findings.len() >= FINDINGS_PER_OBJECT_MAX {
            self.more += 1;
            return;
        }
        self.findings.push(Finding {
            object: self.object.clone(),
            field: field.into(),
            value: shortened(&value.to_string()),
            remedy: remedy.into(),
        });
    }

    /// Returns the valid value, or records the finding.
    fn take<T>(
        &mut self,
        field: impl Into<String>,
        value: &str,
        parsed: Result<T, String>,
    ) -> Option<T> {
        parsed.map_err(|remedy| self.bad(field, value, remedy)).ok()
    }

    /// The value if there are no findings. `None` without a finding is a bug in this crate.
    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Finding>> {
        match value {
            None if self.findings.is_empty() => {
                // A bug here must not end the process: only the object is rejected.
                debug_assert!(false, "{} refused without a finding", self.object);
                Err(vec![Finding {
                    field: "spec".to_owned(),
                    value: String::new(),
                    remedy:
                        "Egret cannot say what is wrong: report this object as a fault of Egret"
                            .to_owned(),
                    object: self.object,
                }])
            }
            Some(value) if self.findings.is_empty() => Ok(value),
            _ => Err(self.into_findings()),
        }
    }

    /// All recorded findings, and the number of the others.
    fn into_findings(mut self) -> Vec<Finding> {
        if self.more > 0 {
            self.findings.push(Finding {
                object: self.object,
                field: "spec".to_owned(),
                value: String::new(),
                remedy: format!("mend the others first: {} more are not shown", self.more),
            });
        }
        self.findings
    }
}

/// Longest value that a finding shows, in characters.
const SHOWN_MAX: usize = 100;

/// A value, shortened to fit on a line.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reference of this object, as people name it.
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
