//! What the controller counts, under names that `docs/metrics.md` lists (a test compares).

use egret_core::plan::ClusterPlan;
use egret_objects::View;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A gauge by egress address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByAddress {
    /// The egress address.
    pub address: String,
}

/// A gauge by policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
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
    findings: Gauge,
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
            findings: Gauge::default(),
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
            "findings",
            "Objects with something to mend",
            metrics.findings.clone(),
        );
        Metrics {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    pub(crate) fn observe(&mut self, view: &View, cluster: &ClusterPlan, plan_seconds: f64) {
        self.plan_seconds.observe(plan_seconds);
        self.findings
            .set((view.findings.len() + cluster.findings.len()) as i64);
        self.policy_ready.clear();
        self.policy_pods.clear();
        for (object, policy) in &cluster.policies {
            let label = ByPolicy {
                policy: object.to_string(),
            };
            self.policy_ready
                .get_or_create(&label)
                .set(i64::from(policy.ready));
            self.policy_pods
                .get_or_create(&label)
                .set(i64::from(policy.selected));
        }
        self.ports_leased.clear();
        self.ports_free.clear();
        for (address, status) in &cluster.address_status {
            let label = ByAddress {
                address: address.to_string(),
            };
            self.ports_leased
                .get_or_create(&label)
                .set(i64::from(status.ports_leased));
            self.ports_free
                .get_or_create(&label)
                .set(i64::from(status.ports_free));
        }
    }
}
