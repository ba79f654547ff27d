//! `egret lab` alone, to try the lab by hand: `cargo run -p egret-lab --example lab -- up --no-agents`.

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "lab", about = "The verbs of `egret lab`")]
struct Program {
    #[command(flatten)]
    lab: egret_lab::LabCommand,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    egret_lab::cli::run(Program::parse().lab)
}
