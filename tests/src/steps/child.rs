//! The process of a group: it runs the steps, reports each over a socket, and ends with its parent.

use super::{Arguments, Module, Outcome, Report, Step, labs};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, dup2_stdin};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// Environment variable: the group that this process runs.
pub(super) const GROUP: &str = "EGRET_TEST_GROUP";
/// First word of the report of a step that passed.
pub(super) const PASSED: &str = "passed";
/// First word of the report of a step that failed.
pub(super) const FAILED: &str = "failed";

/// The group that this process was started for.
pub(super) fn wanted() -> Option<String> {
    std::env::var(GROUP).ok()
}

/// Runs the group and reports its steps.
pub(super) fn run(modules: Vec<Module>, wanted: &str, arguments: &Arguments) -> ExitCode {
    let parent = match take_socket() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("{GROUP} is for test programs that start themselves: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = |name: &str, has_passed: bool| {
        let word = if has_passed { PASSED } else { FAILED };
        // Without a parent this process is about to end anyway.
        let _ = (&parent).write_all(format!("{word} {name}\n").as_bytes());
    };
    for module in modules {
        for group in module.groups {
            if group.id(module.name) == wanted {
                let chosen = group.chosen(module.name, arguments);
                let prefix = group.prefix(module.name);
                (group.run)(&prefix, &chosen, &mut report);
            }
        }
    }
    ExitCode::SUCCESS
}

/// The socket that the parent passed as standard input. From now on this process ends when the other end closes,
/// however the parent ended, and its labs and its own children with it.
fn take_socket() -> anyhow::Result<UnixStream> {
    // Not inherited by the tests' children, unlike standard input itself, which becomes empty.
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    let mut other_end = socket.try_clone()?;
    other_end.peer_addr()?;
    std::thread::spawn(move || {
        // The parent sends nothing: this returns when it has ended.
        let _ = other_end.read(&mut [0]);
        labs::take_down_of(std::process::id());
        // The parent made this process the leader of a process group.
        let _ = killpg(Pid::this(), Signal::SIGKILL);
    });
    Ok(socket)
}

/// Brings the lab up and runs the selected steps. If it does not come up, all of them fail.
pub(super) fn run_steps<C>(
    prefix: &str,
    up: impl FnOnce() -> anyhow::Result<C>,
    steps: &[Step<C>],
    chosen: &[String],
    report: &mut Report<'_>,
) {
    let started = Instant::now();
    let context = match caught(up) {
        Ok(context) => context,
        Err(why) => {
            println!("lab  {prefix} did not come up: {why}");
            for name in chosen {
                println!("test {name} ... FAILED (no lab)");
                report(name, false);
            }
            return;
        }
    };
    println!("lab  {prefix} up after {:.1?}", started.elapsed());
    for step in steps {
        let name = format!("{prefix}::{}", step.name);
        if chosen.contains(&name) {
            run_one(&name, || (step.run)(&context), report);
        }
    }
}

/// Runs a step, prints its result and reports it.
pub(super) fn run_one(name: &str, step: impl FnOnce() -> Outcome, report: &mut Report<'_>) {
    let started = Instant::now();
    let result = caught(step);
    let took = started.elapsed();
    match &result {
        Ok(()) => println!("test {name} ... ok ({took:.1?})"),
        Err(why) => println!("test {name} ... FAILED ({took:.1?})\n{why}"),
    }
    report(name, result.is_ok());
}

fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        // The panic hook has printed message and location.
        Err(_) => Err("panicked".to_owned()),
    }
}
