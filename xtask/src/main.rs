//! Development tasks: `cargo run -p xtask -- TASK`.

mod conditions;
mod crds;
mod tidy;

use clap::{Parser, Subcommand};

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
    /// Check the rules that neither compiler nor lints know.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Crds { check } => crds::run(check),
        Task::Conditions { check } => conditions::run(check),
        Task::Tidy => tidy::run(),
    }
}
