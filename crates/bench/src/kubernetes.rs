//! A large cluster on a real API server: 500 nodes, 10,000 pods, 500 policies as objects, with a controller and the agents
//! of one worker and one gateway; and a worker that runs 10,000 or 100,000 pods itself.

use crate::figure::Report;
use anyhow::Result;
use egret_objects::Source;
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
/// All but ten of the nodes run one pod of the only policy.
const ONE_ADDRESS: Size = Size {
    nodes: 1_001,
    pods: 990,
    policies: 1,
    all_on_worker: false,
};
/// How long workers come and go, and how often: 200 a minute.
const BUSY: Duration = Duration::from_secs(60);
const BUSY_PAUSE: Duration = Duration::from_millis(300);
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

/// Sizes and rates of an address with very many workers, of which one in 300 ms is another one.
pub fn one_address(report: &mut Report) -> Result<()> {
    let mut large = Large::up("bench-one-address", ONE_ADDRESS)?;
    large.converge_with(&["--hold-down-secs", "2"])?;
    let mut reader = large.reader()?;
    while large.report_for_others(&mut reader)? {
        reader.wait(Duration::from_millis(200))?;
    }
    large.start_agents()?;
    let busy = large.busy(&mut reader, BUSY, BUSY_PAUSE)?;
    let with = format!("{} workers of one address", busy.leases);
    let mut add = |what: &str, unit: &str, value: f64| {
        report.add(PART, &format!("{with}, {what}"), "ours", unit, value);
    };
    add("size of the record", "kB", busy.record_bytes as f64 / 1e3);
    add(
        "workers that change",
        "per minute",
        busy.moved as f64 / BUSY.as_secs_f64() * 60.0,
    );
    for (what, rate) in &busy.writes {
        add(&format!("the controller's {what}"), "per minute", *rate);
    }
    for (component, kb) in COMPONENTS[1..].iter().zip(busy.received_kb) {
        add(
            &format!("received by the agent of a {component}"),
            "kB per minute",
            kb,
        );
    }
    for (component, cores) in COMPONENTS.iter().zip(&busy.cores) {
        add(&format!("{component}, CPU"), "% of a core", cores * 100.0);
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
