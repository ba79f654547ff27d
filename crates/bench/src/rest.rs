//! Memory and CPU of an idle agent, with few and with many local pods.

use crate::cluster;
use crate::figure::Report;
use crate::idle;
use anyhow::{Context, Result};
use egret_lab::layout::CONTROL;
use egret_tests::chaos::Scene;
use egret_tests::scale::{cpu_seconds, memory_mb};
use std::time::{Duration, Instant};

const PART: &str = "at rest";
const SIZES: [usize; 2] = [10, 10_000];
const WATCHED: Duration = Duration::from_secs(20);

/// Measures an agent of each size, for a while after it has become ready.
pub fn measure(report: &mut Report) -> Result<()> {
    for size in SIZES {
        let hosts = [
            cluster::worker("w1", 1, &[("a1", "MyApp")]),
            cluster::gateway("g1"),
        ];
        let scene = cluster::up(&format!("bench-rest-{size}"), &hosts)?;
        scene.put(&pods(size))?;
        cluster::start_policy(&scene, &["g1"])?;
        idle::wait()?;
        for (host, what) in [
            ("w1", "worker's agent"),
            ("g1", "gateway's agent"),
            (CONTROL, "controller"),
        ] {
            let pid = pid(&scene, host)?;
            let (before, start) = (cpu_seconds(pid)?, Instant::now());
            std::thread::sleep(WATCHED);
            let cpu = (cpu_seconds(pid)? - before) / start.elapsed().as_secs_f64() * 100.0;
            let name = format!("{what}, {size} pods");
            report.add(PART, &format!("{name}, CPU"), "ours", "% of a core", cpu);
            report.add(
                PART,
                &format!("{name}, memory"),
                "ours",
                "MB",
                memory_mb(pid)?,
            );
        }
    }
    Ok(())
}

/// Pods on the worker that exist as objects only.
fn pods(count: usize) -> String {
    let pod = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: many-{number}, namespace: default, labels: {{app: MyApp}}}}\n\
             spec: {{nodeName: w1}}\nstatus: {{podIPs: [{{ip: 10.200.{high}.{low}}}]}}\n"
        )
    };
    let all: Vec<String> = (0..count).map(pod).collect();
    all.join("---\n")
}

/// Process id of a host's agent, or of the controller.
fn pid(scene: &Scene, host: &str) -> Result<i32> {
    let state = scene.lab().dir().read()?;
    let daemon = match host {
        CONTROL => state.controller,
        _ => state.hosts.get(host).and_then(|host| host.agent),
    };
    let daemon = daemon.with_context(|| format!("nothing runs in {host}"))?;
    Ok(daemon.process.pid)
}
