//! Which pods belong to a workload, told by the pods alone: no workload object is read.

use crate::model::*;

/// Label that a Deployment's controller puts on its ReplicaSets and their pods; the ReplicaSet is named by it
/// (Kubernetes, `DefaultDeploymentUniqueLabelKey`: `<deployment>-<value>`).
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Whether the pod is the one named, or was made by the workload named. The namespace is the caller's business.
pub(crate) fn belongs(pod: &Pod, kind: WorkloadKind, name: &str) -> bool {
    if kind == WorkloadKind::Pod {
        return pod.name == name;
    }
    let Some(owner) = &pod.owner else {
        return false;
    };
    if kind == WorkloadKind::Deployment {
        let hash = pod.labels.get(TEMPLATE_HASH_LABEL);
        let deployment = hash.and_then(|hash| {
            let owner = owner.name.strip_suffix(hash.as_str())?;
            owner.strip_suffix('-')
        });
        return owner.kind == "ReplicaSet" && deployment == Some(name);
    }
    owner.kind == kind.to_string() && owner.name == name
}
