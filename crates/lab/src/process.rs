//! Processes that the lab starts: run to completion, or identified by id and start time, so that a reused id is never
//! killed.

use crate::LabError;
use crate::slowness::relaxed;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Poll interval of a condition.
const POLL: Duration = Duration::from_millis(2);
/// Longest wait for a killed process to end, or for a started one to exist.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(60);

/// A process, distinguished from later ones with the same id by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the root process namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat` field 22).
    pub started: u64,
}

impl Process {
    /// The living process with this id.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = stat(pid)?;
        // The first thread of a killed process is a zombie while others still end; its files are closed by the last.
        let ended = matches!(stat.state, 'Z' | 'X') && stat.threads <= 1;
        (!ended).then_some(Self {
            pid,
            started: stat.started,
        })
    }

    /// Whether this very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Whether it is stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.state == 'T' && stat.started == self.started)
    }

    /// Sends a signal if this very process still runs; returns whether it did.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_alive() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }

    /// Kills it and waits until it is gone; reaps it if it is a child of this process.
    ///
    /// # Errors
    /// It still exists after a minute: on a busy machine the kernel may take long to end a process in the middle of a
    /// transaction.
    pub fn kill(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGKILL);
        wait_for(
            &format!("process {} to end", self.pid),
            PROCESS_TIMEOUT,
            || {
                self.reap();
                !self.is_alive()
            },
        )
    }

    /// Takes the exit status if it ended and is a child of this process, so that no zombie stays.
    pub fn reap(&self) {
        // Not a child (started by another run of the program), or not yet ended: both are fine.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
    }

    /// Waits until it has started a child, and returns that.
    ///
    /// # Errors
    /// It ended, or a minute passed.
    pub fn first_child(&self, what: &str) -> Result<Self, LabError> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let mut found = None;
        wait_for(what, PROCESS_TIMEOUT, || {
            let children = std::fs::read_to_string(&path).unwrap_or_default();
            found = children
                .split_whitespace()
                .next()
                .and_then(|pid| Self::of(pid.parse().ok()?));
            found.is_some() || !self.is_alive()
        })?;
        self.reap();
        found.ok_or_else(|| LabError::Ended {
            what: what.to_owned(),
        })
    }
}

/// Fields of `/proc/PID/stat` (proc_pid_stat(5)).
struct Stat {
    /// Field 3.
    state: char,
    /// Field 20.
    threads: u64,
    /// Field 22.
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may contain anything, so fields are counted from the last one.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        state,
        threads,
        started,
    })
}

/// Waits until `condition` holds. On a slow machine the wait is longer ([`crate::slowness`]).
///
/// # Errors
/// It does not hold within `timeout`.
pub fn wait_for(
    what: &str,
    timeout: Duration,
    condition: impl FnMut() -> bool,
) -> Result<(), LabError> {
    wait_for_every(what, timeout, POLL, condition)
}

/// As [`wait_for`] for a condition whose check is so expensive that it would delay the awaited event: `pause` is the
/// time between two checks.
///
/// # Errors
/// It does not hold within `timeout`.
pub fn wait_for_every(
    what: &str,
    timeout: Duration,
    pause: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<(), LabError> {
    let timeout = relaxed(timeout);
    let deadline = Instant::now() + timeout;
    while !condition() {
        if Instant::now() > deadline {
            return Err(LabError::Timeout {
                what: what.to_owned(),
                after: timeout,
            });
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Runs a command to completion with `input` on its standard input and returns its standard output.
///
/// # Errors
/// It cannot be started or fails; the error contains its output.
pub fn run(command: &mut Command, input: &str) -> Result<String, LabError> {
    let what = format!("{command:?}");
    let failed = |source| LabError::Io {
        what: format!("running {what}"),
        source,
    };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child.stdin.take().expect("standard input was asked for");
    // No program that the lab runs writes output while more than a pipe's capacity of its input is unread, so this
    // cannot block.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LabError::Command {
            what,
            said,
            input: input.to_owned(),
        });
    }
    written.map_err(failed)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_apart_by_its_start_time() {
        let me = Process::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        let earlier = Process {
            started: me.started - 1,
            ..me
        };
        assert!(!earlier.is_alive());
        assert!(!earlier.signal(Signal::SIGKILL), "this test would be dead");
    }

    #[test]
    fn a_failed_command_tells_what_it_said() {
        let error = run(
            Command::new("sh").args(["-c", "cat >&2; exit 3"]),
            "no such thing",
        )
        .unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
    }
}
