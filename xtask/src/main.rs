//! Development tasks: `cargo run -p xtask -- TASK`.

mod compatibility;
mod conditions;
mod crds;
mod generated;
mod kernels;
mod metrics;
mod rerun;
mod schema;
mod test_log;
mod tidy;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Development tasks of Egret.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write deploy/crds/*.yaml from the types in crates/api.
    Crds {
        /// Write nothing; fail if a file is not current.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/conditions.md from the reasons in crates/core.
    Conditions {
        /// Write nothing; fail if the page is not current.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/compatibility.md: acceptance cases of earlier systems, their tests, and how these ended.
    Compatibility {
        /// Output of a run of tests, as `./dev test` leaves it in target/test.log; later ones win.
        #[arg(long = "run", value_name = "FILE")]
        runs: Vec<PathBuf>,
        /// Write nothing; fail if the page is not current.
        #[arg(long)]
        check: bool,
    },
    /// Write the table of docs/requirements.md that shows on which kernels the tests ran.
    Kernels {
        /// Output of `./dev kernels` or `./dev test`, as they leave it in target/kernels.log and target/test.log; later ones
        /// win.
        #[arg(long = "run", value_name = "FILE")]
        runs: Vec<PathBuf>,
        /// Write nothing; fail if the table is not as it would be written.
        #[arg(long)]
        check: bool,
    },
    /// Print arguments of `cargo test` for the tests of a run that failed and may be run again, one line per program.
    Rerun {
        /// Output of the run.
        log: PathBuf,
    },
    /// Write the tables of docs/metrics.md from the registries and the counters of the data path.
    Metrics {
        /// Write nothing; fail if a table is not current.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/cli-v1.schema.json from the types that `egret -o json` prints.
    Schema {
        /// Write nothing; fail if the schema is not current.
        #[arg(long)]
        check: bool,
    },
    /// Check the rules that neither compiler nor lints know.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Crds { check } => crds::run(check),
        Task::Conditions { check } => conditions::run(check),
        Task::Compatibility { runs, check } => compatibility::run(check, &runs),
        Task::Kernels { runs, check } => kernels::run(check, &runs),
        Task::Rerun { log } => rerun::run(&log),
        Task::Metrics { check } => metrics::run(check),
        Task::Schema { check } => schema::run(check),
        Task::Tidy => tidy::run(),
    }
}
