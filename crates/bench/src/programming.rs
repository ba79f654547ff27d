//! Times of the kernel's ruleset: from the request to the kernel's acknowledgement, in a namespace of its own.

use crate::figure::Report;
use crate::state;
use anyhow::{Result, anyhow};
use egret_core::node::{NodeState, ProfileId};
use egret_datapath::worker;
use egret_kernel::nft::Nftables;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::time::Instant;

const PART: &str = "programming";
const SIZES: [usize; 2] = [10_000, 100_000];
/// Elements per pod address: classification, translation and guard each look it up.
const ELEMENTS_PER_POD: usize = 3;
/// Elements of the 50 ms target.
const ELEMENTS: usize = 10_000;
/// Single pods that come and go, per round.
const SINGLE_PODS: usize = 50;
/// Pods that one policy selects.
const SELECTED: usize = 10_000;

/// Measures whole tables, one pod among many, one policy of many pods.
pub fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        let elements = in_namespace(|| at_once(ELEMENTS / ELEMENTS_PER_POD))?;
        let name = format!("{ELEMENTS} elements at once");
        report.add(PART, &name, "ours", "ms", elements.elapsed);
        let name = format!("{name}, in the kernel");
        report.add(PART, &name, "ours", "ms", elements.kernel);
        for size in SIZES {
            let figures = in_namespace(move || program(size))?;
            for (name, ms) in figures {
                report.add(PART, &name, "ours", "ms", ms);
            }
        }
    }
    Ok(())
}

/// Milliseconds of one change.
struct Spent {
    elapsed: f64,
    /// System time of the thread: netlink works in the sender's context.
    kernel: f64,
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<Spent> {
    let system = || -> Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
        Ok(usage.system_time().num_microseconds() as f64 / 1e3)
    };
    let (start, before) = (Instant::now(), system()?);
    work()?;
    Ok(Spent {
        elapsed: start.elapsed().as_secs_f64() * 1e3,
        kernel: system()? - before,
    })
}

/// Adds this number of pods to an empty table.
fn at_once(pods: usize) -> Result<Spent> {
    let mut nft = Nftables::open("egret")?;
    nft.apply(&worker::table(&state::worker(0)))?;
    let table = worker::table(&state::worker(pods));
    let spent = timed(|| Ok(nft.apply(&table)?))?;
    nft.remove()?;
    Ok(spent)
}

/// Runs work on a thread in a new namespace: sockets stay in the namespace of the thread that opened them.
fn in_namespace<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread
        .join()
        .map_err(|_| anyhow!("a measurement panicked"))?
}

fn program(size: usize) -> Result<Vec<(String, f64)>> {
    let mut figures = Vec::new();
    let mut nft = Nftables::open("egret")?;
    let mut state = state::worker(size);
    let mut apply = |name: Option<String>, state: &NodeState| -> Result<f64> {
        let table = worker::table(state);
        let spent = timed(|| Ok(nft.apply(&table)?))?;
        if let Some(name) = name {
            figures.push((format!("{name}, in the kernel"), spent.kernel));
            figures.push((name, spent.elapsed));
        }
        Ok(spent.elapsed)
    };
    // The table without pods exists first, as on a node that starts.
    apply(None, &state::worker(0))?;
    apply(Some(format!("{size} pods at once")), &state)?;

    let mut singles = Vec::new();
    for number in 0..SINGLE_PODS {
        let address = state::pod_address(size + number);
        state.worker.pods.insert(address, ProfileId(1));
        singles.push(apply(None, &state)?);
        state.worker.pods.remove(&address);
        singles.push(apply(None, &state)?);
    }
    singles.sort_by(f64::total_cmp);
    let p99 = singles[singles.len() * 99 / 100];
    let median = singles[singles.len() / 2];

    let other = ProfileId(2);
    let profile = state.worker.profiles[&ProfileId(1)].clone();
    state.worker.profiles.insert(other, profile);
    for number in 0..SELECTED.min(size) {
        state.worker.pods.insert(state::pod_address(number), other);
    }
    apply(
        Some(format!("a policy of {SELECTED} pods changed, among {size}")),
        &state,
    )?;
    figures.push((format!("one pod among {size}, median"), median));
    figures.push((format!("one pod among {size}, p99"), p99));
    nft.remove()?;
    Ok(figures)
}
