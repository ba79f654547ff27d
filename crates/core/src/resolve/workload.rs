//! Membership of pods in workloads, derived from the pods alone: no workload object is read.

use crate::model::*;

/// Label that a Deployment's controller puts on its ReplicaSets and their pods; the ReplicaSet is named by it
/// (Kubernetes, `DefaultDeploymentUniqueLabelKey`: `<deployment>-<value>`).
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Whether the pod has this name and kind itself, or was created by this workload. The caller checks the namespace.
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
