//! Metrics of the controller. The table in `docs/metrics.md` is generated from names, kinds, labels and help texts here.

use egret_core::check::LeaseAudit;
use egret_core::model::ObjectRef;
use egret_core::plan::ClusterPlan;
use egret_core::plan::planner::Touched;
use egret_objects::View;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::net::IpAddr;

/// A gauge by egress address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByAddress {
    /// The egress address.
    pub address: String,
}

/// A gauge by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    /// The kind.
    pub kind: &'static str,
}

/// A gauge by policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByPolicy {
    /// The policy, as `Kind namespace/name`.
    pub policy: String,
}

/// Every metric of the controller.
#[derive(Debug)]
pub struct Metrics {
    /// The registry that is served.
    pub registry: Registry,
    /// Rounds that ended in an error of the source.
    pub errors: Counter,
    plan_seconds: Histogram,
    policy_ready: Family<ByPolicy, Gauge>,
    policy_pods: Family<ByPolicy, Gauge>,
    ports_leased: Family<ByAddress, Gauge>,
    ports_free: Family<ByAddress, Gauge>,
    lease_violations: Family<ByKind, Gauge>,
    findings: Gauge,
    unwritten_objects: Gauge,
    refused_writes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("egret_controller");
        let metrics = Metrics {
            errors: Counter::default(),
            // 0.1 ms to about 6 s.
            plan_seconds: Histogram::new(exponential_buckets(0.0001, 3.0, 11)),
            policy_ready: Family::default(),
            policy_pods: Family::default(),
            ports_leased: Family::default(),
            ports_free: Family::default(),
            lease_violations: Family::default(),
            findings: Gauge::default(),
            unwritten_objects: Gauge::default(),
            refused_writes: Counter::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register(
            "errors",
            "Rounds that ended in an error of the source",
            metrics.errors.clone(),
        );
        r.register(
            "plan_seconds",
            "Seconds to plan the cluster",
            metrics.plan_seconds.clone(),
        );
        let ready = "Whether every selected pod leaves by its egress address";
        r.register("policy_ready", ready, metrics.policy_ready.clone());
        r.register(
            "policy_pods",
            "Pods that the policy selects",
            metrics.policy_pods.clone(),
        );
        r.register(
            "ports_leased",
            "Source ports that workers hold",
            metrics.ports_leased.clone(),
        );
        r.register(
            "ports_free",
            "Source ports left to lease",
            metrics.ports_free.clone(),
        );
        r.register(
            "lease_violations",
            "Port blocks that two nodes hold (held_twice), or that a node holds without a lease (without_lease); must be 0",
            metrics.lease_violations.clone(),
        );
        r.register("findings", "Invalid objects", metrics.findings.clone());
        r.register(
            "unwritten_objects",
            "Writes that back off after a refusal; others go on",
            metrics.unwritten_objects.clone(),
        );
        r.register(
            "refused_writes",
            "Writes that were refused",
            metrics.refused_writes.clone(),
        );
        Metrics {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// With a sample in every family, so that encoding the registry names every metric: for `docs/metrics.md`.
    pub fn with_samples() -> Self {
        let metrics = Metrics::default();
        // All fields by name, so that a new field does not compile until it is added here.
        let Metrics {
            registry: _,
            errors: _,
            plan_seconds: _,
            policy_ready,
            policy_pods,
            ports_leased,
            ports_free,
            lease_violations,
            findings: _,
            unwritten_objects: _,
            refused_writes: _,
        } = &metrics;
        for family in [policy_ready, policy_pods] {
            family.get_or_create(&ByPolicy::default()).set(0);
        }
        for family in [ports_leased, ports_free] {
            family.get_or_create(&ByAddress::default()).set(0);
        }
        lease_violations.get_or_create(&ByKind::default()).set(0);
        metrics
    }

    /// Updates metrics of the objects that an update touched.
    pub(crate) fn observe(
        &mut self,
        view: &View,
        cluster: &ClusterPlan,
        touched: &Touched,
        plan_seconds: f64,
    ) {
        self.plan_seconds.observe(plan_seconds);
        self.findings
            .set((view.findings.len() + cluster.findings.len()) as i64);
        if touched.all {
            self.policy_ready.clear();
            self.policy_pods.clear();
            self.ports_leased.clear();
            self.ports_free.clear();
            let all = cluster.policies.keys();
            all.for_each(|object| self.policy(cluster, object));
            let all = cluster.address_status.keys();
            all.for_each(|address| self.address(cluster, *address));
        }
        for object in &touched.policies {
            self.policy(cluster, object);
        }
        for address in &touched.addresses {
            self.address(cluster, *address);
        }
    }

    /// Sets what an audit of the leases found.
    pub(crate) fn audited(&self, audit: LeaseAudit) {
        let LeaseAudit {
            held_twice,
            without_lease,
        } = audit;
        for (kind, blocks) in [("held_twice", held_twice), ("without_lease", without_lease)] {
            let gauge = self.lease_violations.get_or_create(&ByKind { kind });
            gauge.set(i64::try_from(blocks).unwrap_or(i64::MAX));
        }
    }

    /// Sets the number of waiting writes, and adds the refusals since the last round.
    pub(crate) fn refused(&self, waiting: i64, refusals: u64) {
        self.unwritten_objects.set(waiting);
        self.refused_writes.inc_by(refusals);
    }

    fn policy(&self, cluster: &ClusterPlan, object: &ObjectRef) {
        let label = ByPolicy {
            policy: object.to_string(),
        };
        let Some(plan) = cluster.policies.get(object) else {
            self.policy_ready.remove(&label);
            self.policy_pods.remove(&label);
            return;
        };
        let ready = self.policy_ready.get_or_create(&label);
        ready.set(i64::from(plan.ready));
        let pods = self.policy_pods.get_or_create(&label);
        pods.set(i64::from(plan.selected));
    }

    fn address(&self, cluster: &ClusterPlan, address: IpAddr) {
        let label = ByAddress {
            address: address.to_string(),
        };
        let Some(status) = cluster.address_status.get(&address) else {
            self.ports_leased.remove(&label);
            self.ports_free.remove(&label);
            return;
        };
        let leased = self.ports_leased.get_or_create(&label);
        leased.set(i64::from(status.ports_leased));
        let free = self.ports_free.get_or_create(&label);
        free.set(i64::from(status.ports_free));
    }
}
