//! The program against a real API server, some with kubelets and pods, without the chart. Need root and a built Kubernetes.

mod kube_away;
mod kube_churn;
mod kube_cluster;
mod kube_devices;
mod kube_front_ends;
mod kube_maintenance;
mod kube_node_records;
mod kube_one_object;
mod kube_plugins;
mod kube_pods;
mod kube_scale;
mod kube_source;
mod small;

use egret_tests::modules;
use std::process::ExitCode;

fn main() -> ExitCode {
    egret_tests::run(modules![
        kube_cluster,
        kube_churn,
        kube_devices,
        kube_scale,
        kube_away,
        kube_front_ends,
        kube_node_records,
        kube_maintenance,
        kube_one_object,
        kube_plugins,
        kube_pods,
        kube_source
    ])
}
