//! The program `egret`: parses arguments, starts threads, prints. No decisions.

mod args;
mod convert;
mod doctor;
mod fence;
mod http;
mod invocation;
mod kube_egress;
mod maintenance;
mod run;
mod show;
mod uninstall;

use std::process::ExitCode;

fn main() -> ExitCode {
    egret_agent::abort_on_panic();
    let arguments = invocation::arguments();
    logging(&arguments);
    if arguments.verb.only_prints() {
        end_with_the_reader();
    }
    match run::run(arguments.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("egret: {error:#}");
            ExitCode::from(args::EXIT_UNREACHABLE)
        }
    }
}

/// Restores SIGPIPE, so that `egret crds | head` ends quietly, like other programs.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no handler of ours, and no other thread runs yet.
    let set = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    set.expect("SIGPIPE has a default action");
}

fn logging(arguments: &args::Arguments) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("EGRET_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(arguments.verb.default_log()));
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        args::LogFormat::Json => logger.json().init(),
        args::LogFormat::Text => logger.with_ansi(false).init(),
    }
}
