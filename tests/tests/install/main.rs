//! Installation: the chart, the manifests made from it, and both on real clusters. Need root and a built Kubernetes.

mod chart;
mod chart_front_ends;
mod install;
mod upgrade;

use egret_tests::modules;
use std::process::ExitCode;

fn main() -> ExitCode {
    egret_tests::run(modules![chart, chart_front_ends, install, upgrade])
}
