//! Names that the indexes of the planner share instead of copying them.

use crate::model::ObjectRef;
use std::sync::Arc;

/// Namespace and name of a pod.
pub(super) type PodRef = Arc<(String, String)>;

/// Name of a policy.
pub(super) type PolicyRef = Arc<ObjectRef>;
