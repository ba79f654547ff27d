//! Takes a lab down from its state folder alone, whatever is left of it.

use crate::LabError;
use crate::error::io;
use crate::process::{Process, wait_for};
use crate::state::{HostProcesses, StateDir};
use nix::sys::signal::Signal;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Longest wait for all processes of a lab to end.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Kills all processes of the lab and removes its folder. Namespaces, mounts and devices end with the processes:
/// nothing else holds them.
pub(crate) fn down(dir: &StateDir) -> Result<(), LabError> {
    let mut problems = Vec::new();
    // A start that crashed may have left processes that the state does not list; the environment marks them all.
    let mut processes = marked(dir);
    match dir.read() {
        Ok(state) => {
            let daemons = state.hosts.values().filter_map(|host| host.agent);
            let daemons = daemons.chain(state.controller).chain(state.server);
            processes.extend(daemons.flat_map(|daemon| [daemon.process, daemon.launcher]));
            processes.extend(
                state
                    .hosts
                    .values()
                    .flat_map(|host| [host.init, host.launcher]),
            );
        }
        Err(LabError::NotUp(_)) => {}
        Err(error) => problems.push(error.to_string()),
    }
    for process in &processes {
        process.signal(Signal::SIGKILL);
    }
    let gone = wait_for(
        &format!("all processes of lab {:?} to end", dir.name()),
        TIMEOUT,
        || {
            processes.iter().for_each(Process::reap);
            processes.iter().all(|process| !process.is_alive()) && marked(dir).is_empty()
        },
    );
    problems.extend(gone.err().map(|error| error.to_string()));
    let removed = std::fs::remove_dir_all(dir.path());
    let removed = removed.map_err(io(format!("removing {}", dir.path().display())));
    problems.extend(removed.err().map(|error| error.to_string()));
    if problems.is_empty() {
        Ok(())
    } else {
        Err(LabError::Remains(problems.join("; ")))
    }
}

/// Waits until a killed host has ended.
pub(crate) fn reap(host: &HostProcesses) -> Result<(), LabError> {
    let agent = host.agent.map(|agent| [agent.process, agent.launcher]);
    let agent = agent.iter().flatten().copied();
    [host.init, host.launcher]
        .into_iter()
        .chain(agent)
        .try_for_each(|process| process.kill())
}

/// Living processes that the environment marks as the lab's.
fn marked(dir: &StateDir) -> Vec<Process> {
    let (name, value) = dir.marker();
    let marker = [name.as_bytes(), b"=", value.as_os_str().as_bytes()].concat();
    let own = std::process::id() as i32;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| {
            // The start time is read first: a process that reuses the id afterwards is not killed.
            let process = Process::of(pid)?;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == marker)
                .then_some(process)
        })
        .collect()
}
