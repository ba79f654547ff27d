//! A stand-in for `egret` that only has `egret lab`, to try the lab by hand:
//! `cargo run -p egret-lab --example lab -- lab up`. Its agents and controllers do nothing but stay.

use clap::{Parser, Subcommand};
use egret_lab::LabCommand;
use std::process::ExitCode;

#[derive(Debug, Parser)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A cluster in namespaces on this machine
    Lab(LabCommand),
    /// Stays until killed
    #[command(hide = true)]
    Agent {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Stays until killed
    #[command(hide = true)]
    Controller {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Program::parse().command {
        Command::Lab(command) => egret_lab::cli::run(command),
        Command::Agent { arguments } | Command::Controller { arguments } => {
            println!("started with {arguments:?}");
            loop {
                std::thread::park();
            }
        }
    }
}
