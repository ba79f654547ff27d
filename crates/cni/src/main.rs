//! `egret-cni`: a chained CNI plugin (specification 0.3.0 to 1.1.0). It gives no address and touches no device: it tells
//! the agent of the node which addresses a pod has got, and returns when the kernel treats them right, so that the first
//! packet of the pod's first process has the right source.
//!
//! ```text
//! runtime --environment, configuration--> call --Request--> agent of the node
//!                                          |     <-Answer--
//!                                          +-- no agent answers: what it left on disk says who may start
//! ```
//!
//! It starts no process, asks no API and resolves no name.
#![forbid(unsafe_code)]

mod agent;
mod call;
mod config;
mod failure;

use failure::{Failure, INVALID_ENVIRONMENT, IO};
use std::io::{Read, Write};
use std::process::ExitCode;

/// Longest configuration that is read, bytes.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;

fn main() -> ExitCode {
    let mut config = String::new();
    let read = std::io::stdin()
        .take(CONFIG_BYTES_MAX)
        .read_to_string(&mut config);
    let said = match read {
        Ok(_) => run(&config),
        Err(error) => Err(Failure::new(IO, "reading the configuration", error)),
    };
    let (text, code) = match said {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (
            failure.to_json(&config::version_of(&config)),
            ExitCode::FAILURE,
        ),
    };
    // Whoever called and does not listen has its reasons.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

/// Carries out what `CNI_COMMAND` says; returns what is to be printed.
fn run(config: &str) -> Result<String, Failure> {
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    let environment = |name: &str| std::env::var(name).unwrap_or_default();
    match command.as_str() {
        "VERSION" => Ok(call::version(config)),
        "ADD" => call::add(config, &environment),
        "CHECK" => call::check(config, &environment),
        "DEL" => call::del(config, &environment),
        "GC" => call::gc(config),
        "STATUS" => call::status(config),
        _ => Err(Failure::new(
            INVALID_ENVIRONMENT,
            "CNI_COMMAND is none of ADD, CHECK, DEL, GC, STATUS, VERSION",
            format!(
                "it is {command:?}: {} is started by a container runtime",
                egret_wire::cni::PLUGIN
            ),
        )),
    }
}
