//! A large cluster on a real API server: 500 nodes, 10,000 pods, 500 policies as objects, with a controller and the agents
//! of one worker and one gateway; and a worker that runs 10,000 or 100,000 pods itself.

use crate::figure::Report;
use anyhow::Result;
use egret_tests::scale::{COMPONENTS, Large, Size};
use std::time::Duration;

const PART: &str = "kubernetes";
const WATCHED: Duration = Duration::from_secs(20);
/// Pods that are added one by one: first where their policy needs a new lease, then at the worker that has all.
const SINGLE_PODS: usize = 21;

const LARGE: Size = Size {
    nodes: 500,
    pods: 10_000,
    policies: 500,
    all_on_worker: false,
};
/// Numbers of pods that one worker runs: the limit of a kubelet, and far more.
const LOCAL: [usize; 3] = [110, 10_000, 100_000];
/// Most pods with `nft monitor`: with more, it takes minutes to read their elements before its first output.
const MONITORED_MAX: usize = 10_000;

/// Measures all clusters, one after the other.
pub fn measure(report: &mut Report) -> Result<()> {
    let mut large = Large::up("bench-kubernetes", LARGE)?;
    let seconds = large.converge()?;
    report.add(PART, "controller, from nothing", "ours", "s", seconds);
    large.start_agents()?;
    large.wait_quiet()?;
    for number in 0..SINGLE_PODS {
        let ms = large.one_pod_more(number)?;
        report.add(PART, "one pod more, to its lease", "ours", "ms", ms);
        large.wait_quiet()?;
    }
    rest(report, &large, "")?;
    drop(large);
    for pods in LOCAL {
        let size = Size {
            nodes: 2,
            pods,
            policies: 20,
            all_on_worker: true,
        };
        let mut local = Large::up("bench-kubernetes-local", size)?;
        local.converge()?;
        local.start_agents()?;
        rest(report, &local, &format!(", {pods} local pods"))?;
        if pods > MONITORED_MAX {
            continue;
        }
        let changes = local.watch_the_kernel()?;
        for number in 0..SINGLE_PODS {
            let delay = local.to_the_kernel(&changes, number)?;
            for (what, ms) in [("comes", delay.came), ("goes", delay.went)] {
                let name = format!("one pod of {pods} {what}, API to kernel");
                report.add(PART, &name, "ours", "ms", ms);
            }
        }
    }
    Ok(())
}

fn rest(report: &mut Report, large: &Large, with: &str) -> Result<()> {
    for (rest, component) in large.rest(WATCHED)?.iter().zip(COMPONENTS) {
        for (what, unit, value) in [
            ("memory", "MB", rest.memory_mb),
            ("CPU", "% of a core", rest.cores * 100.0),
            ("requests at rest", "per second", rest.requests_per_sec),
        ] {
            let name = format!("{component}{with}, {what}");
            report.add(PART, &name, "ours", unit, value);
        }
    }
    Ok(())
}
