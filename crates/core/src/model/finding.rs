//! Mistakes in objects, told to their authors.

use super::ids::ObjectRef;
use serde::{Deserialize, Serialize};

/// Something wrong with an object: which, where, what it says and what would be right. Never stops other objects (P9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// The object to mend.
    pub object: ObjectRef,
    /// Path of the field, for example `spec.destinations[0].cidr`.
    pub field: String,
    /// What the field says now.
    pub value: String,
    /// What would be right, as a sentence.
    pub remedy: String,
}
