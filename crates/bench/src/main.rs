//! Measurements: `./dev bench`. Never part of the tests; ratios against baselines of the same run are what counts,
//! because machines differ and are busy.
//!
//! Every figure is the median of several runs that alternate with those it is compared with, and carries the load of the
//! machine. `--write` writes `docs/performance.json`, the tables of `docs/performance.md` and the chart beside it.

mod cluster;
mod endpoints;
mod exhaustion;
mod failover;
mod figure;
mod idle;
mod kubernetes;
mod page;
mod planning;
mod plugin;
mod programming;
mod rest;
mod state;
mod traffic;
mod ways;

use clap::{Parser, ValueEnum};
use figure::Report;

/// Measure Egret on this machine.
#[derive(Parser)]
struct Arguments {
    /// Only these parts.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Rounds of interleaved runs, and runs of each failover.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Write docs/performance.{json,md,svg} as well.
    #[arg(long)]
    write: bool,
    /// Measure nothing; write page and chart anew from docs/performance.json.
    #[arg(long)]
    render: bool,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Round trips, packets, throughput and connections, against plain routing and older ways.
    Traffic,
    /// Programming the kernel's ruleset.
    Programming,
    /// Planning in `core`.
    Planning,
    /// Memory and CPU of an agent at rest.
    Rest,
    /// New flows while a lease fills up.
    Lease,
    /// Outages when a gateway goes.
    Failover,
    /// What the CNI plugin adds to the start of a pod.
    Cni,
    /// Very many workers of one address on a real API server, of which some come and go.
    OneAddress,
    /// A large cluster of objects on a real API server: planning, and what everything costs at rest.
    Kubernetes,
}

const ALL: [Part; 9] = [
    Part::Planning,
    Part::Programming,
    Part::Traffic,
    Part::Rest,
    Part::Lease,
    Part::Failover,
    Part::Cni,
    Part::OneAddress,
    Part::Kubernetes,
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.render {
        return page::render();
    }
    let mut report = Report::begin();
    for part in ALL {
        if !arguments.only.is_empty() && !arguments.only.contains(&part) {
            continue;
        }
        eprintln!("== {part:?}");
        match part {
            Part::Traffic => traffic::measure(&mut report, arguments.rounds)?,
            Part::Programming => programming::measure(&mut report, arguments.rounds)?,
            Part::Planning => planning::measure(&mut report, arguments.rounds),
            Part::Rest => rest::measure(&mut report)?,
            Part::Lease => exhaustion::measure(&mut report, arguments.rounds)?,
            Part::Failover => failover::measure(&mut report, arguments.rounds)?,
            Part::Cni => plugin::measure(&mut report)?,
            Part::OneAddress => kubernetes::one_address(&mut report)?,
            Part::Kubernetes => kubernetes::measure(&mut report)?,
        }
    }
    print!("{}", page::tables(&report));
    if arguments.write {
        page::write(report)?;
    }
    Ok(())
}
