//! Tests in the lab: hosts in namespaces, real packets, captures at the router. Need root.

mod acceptance;
mod addresses;
mod canary;
mod churn;
mod classic;
mod cleanup;
mod cni;
mod datapaths;
mod doctor;
mod egress_mapper;
mod endpoints;
mod environments;
mod errors;
mod families;
mod foreign_rules;
mod fragments;
mod growth;
mod host_firewalls;
mod hostile;
mod ipvs;
mod keepalived;
mod migrating;
mod pod_addresses;
mod protocols;
mod quotas;
mod repair;
mod reuse;
mod runner;
mod sources;
mod spreading;
mod static_egress_ip;
mod traffic_metrics;
mod unchanged;
mod unknown_pods;
mod upgrade;
mod uplink;

use egret_tests::modules;
use egret_tests::steps::Module;
use std::process::ExitCode;

fn main() -> ExitCode {
    if growth::run_as_opener() {
        return ExitCode::SUCCESS;
    }
    if let Some(subject) = runner::subject() {
        return egret_tests::run(subject);
    }
    let mut all = modules![
        acceptance,
        addresses,
        churn,
        cleanup,
        doctor,
        egress_mapper,
        endpoints,
        environments,
        errors,
        families,
        foreign_rules,
        fragments,
        host_firewalls,
        hostile,
        ipvs,
        protocols,
        quotas,
        repair,
        runner,
        sources,
        spreading,
        traffic_metrics,
        unchanged,
        unknown_pods,
        upgrade
    ];
    // Modules that bound or measure times.
    let timed = modules![
        canary,
        classic,
        cni,
        datapaths,
        growth,
        keepalived,
        migrating,
        pod_addresses,
        reuse,
        static_egress_ip,
        uplink
    ];
    all.extend(timed.into_iter().map(Module::timed));
    egret_tests::run(all)
}
