//! Findings: invalid objects, reported to their authors.

use super::ids::ObjectRef;
use serde::{Deserialize, Serialize};

/// An invalid object: object, field, value and remedy. Never affects other objects (P9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// The invalid object.
    pub object: ObjectRef,
    /// Path of the field, for example `spec.destinations[0].cidr`.
    pub field: String,
    /// Current value of the field.
    pub value: String,
    /// Remedy, as a sentence.
    pub remedy: String,
}
