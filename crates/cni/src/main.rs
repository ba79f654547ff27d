//! `egret-cni`: a chained CNI plugin (specification 0.3.0 to 1.1.0). It assigns no address and touches no device. It
//! sends a pod's new addresses to the node's agent and returns when the kernel handles them, so that the first packet
//! of the pod's first process has the right source.
//!
//! ```text
//! runtime --environment, configuration--> call --Request--> agent of the node
//!                                          |     <-Answer--
//!                                          +-- no agent answers: its file on disk decides which pods may start
//! ```
//!
//! It starts no process, queries no API and resolves no name.
#![forbid(unsafe_code)]

mod agent;
mod call;
mod config;
mod failure;

use failure::{Failure, INVALID_ENVIRONMENT, IO};
use std::io::{Read, Write};
use std::process::ExitCode;

/// Size limit of the configuration, bytes.
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
    // A caller that does not read the answer is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

/// Carries out the command in `CNI_COMMAND`; returns the text to print.
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
