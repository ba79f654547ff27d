//! Shared keys of the planner's indexes.

use crate::model::ObjectRef;
use std::sync::Arc;

/// Namespace and name of a pod.
pub(super) type PodRef = Arc<(String, String)>;

/// Name of a policy.
pub(super) type PolicyRef = Arc<ObjectRef>;
