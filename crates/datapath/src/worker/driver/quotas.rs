//! Pods' connections that were refused lately because of a quota.

use super::refused::refused;
use super::{DatapathError, RefusedProtocol, WorkerDriver};
use crate::worker::names::{NAMESPACE_QUOTA_SETS, POD_QUOTA_SETS};
use egret_core::model::Quotas;
use egret_core::node::NodeState;
use std::collections::BTreeSet;

/// Connections that were refused in the last `egret_core::numbers::QUOTA_REPORT_SECS` seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverQuota {
    /// Because of the quota of a pod.
    pub pod: BTreeSet<RefusedProtocol>,
    /// Because of the quota of a namespace.
    pub namespace: BTreeSet<RefusedProtocol>,
}

impl WorkerDriver {
    /// Whether there are quotas that the kernel cannot enforce (`CONFIG_NFT_CONNLIMIT`).
    pub fn ignores_quotas(&self) -> bool {
        self.counts_connections == Some(false)
    }

    /// The state without its quotas, if there are some and the kernel cannot count connections.
    pub(super) fn without_uncounted_quotas(
        &mut self,
        state: &NodeState,
    ) -> Result<Option<NodeState>, DatapathError> {
        let mut targets = state.worker.targets.values();
        if targets.all(|target| target.quotas.is_empty()) {
            self.counts_connections = self.counts_connections.filter(|counts| *counts);
            return Ok(None);
        }
        if self.counts_connections != Some(true) {
            self.counts_connections = Some(self.nft.counts_connections()?);
        }
        if !self.ignores_quotas() {
            return Ok(None);
        }
        let mut without = state.clone();
        let targets = without.worker.targets.values_mut();
        targets.for_each(|target| target.quotas = Quotas::default());
        Ok(Some(without))
    }

    /// Connections that were refused lately because of a quota.
    pub fn over_quota(&mut self) -> Result<OverQuota, DatapathError> {
        let applied = self.applied.as_ref();
        let mut targets = applied.into_iter().flat_map(|s| s.worker.targets.values());
        if targets.all(|target| target.quotas.is_empty()) {
            return Ok(OverQuota::default());
        }
        Ok(OverQuota {
            pod: self.keys(POD_QUOTA_SETS)?,
            namespace: self.keys(NAMESPACE_QUOTA_SETS)?,
        })
    }

    fn keys(&mut self, sets: [&str; 2]) -> Result<BTreeSet<RefusedProtocol>, DatapathError> {
        let mut all = BTreeSet::new();
        for set in sets {
            let keys = self.nft.keys_of(set)?;
            all.extend(keys.iter().filter_map(|key| refused(key)));
        }
        Ok(all)
    }
}
