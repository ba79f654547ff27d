//! The process of a group, from its parent's side.

use super::child::{GROUP, PASSED};
use super::labs;
use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

/// Longest time for a lab to come up and for each step; the longest one takes three minutes.
const STEP_LIMIT: Duration = Duration::from_secs(900);
/// Environment variable: another limit, seconds.
const STEP_LIMIT_VARIABLE: &str = "EGRET_TEST_STEP_SECS";

/// Results of a group's steps.
pub(super) struct Ended {
    /// By whole name; a step without a result is missing.
    pub results: BTreeMap<String, bool>,
    /// Why results are missing, if the process did not end by itself.
    pub why: String,
}

/// A running group.
pub(super) struct Process {
    child: Child,
    socket: BufReader<UnixStream>,
    /// Its output; `None` if it prints directly.
    output: Option<File>,
}

impl Process {
    /// Starts this program again for one group. Its output is printed when it has ended, or directly with `is_live`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start(id: &str, is_live: bool) -> anyhow::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(step_limit()))?;
        // The same program, even if it was rebuilt meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.args(std::env::args_os().skip(1)).env(GROUP, id);
        // Its children end with it, and a terminal's Ctrl-C reaches this process only.
        command.process_group(0).stdin(OwnedFd::from(theirs));
        let output = match is_live {
            true => None,
            false => Some(tempfile::tempfile()?),
        };
        if let Some(file) = &output {
            command.stdout(file.try_clone()?).stderr(file.try_clone()?);
        }
        Ok(Self {
            child: command.spawn().context("starting this program again")?,
            socket: BufReader::new(socket),
            output,
        })
    }

    /// Waits until the group has ended, or kills it if a step takes too long. No process of it is left then.
    pub fn wait(mut self) -> Ended {
        let mut results = BTreeMap::new();
        let mut line = String::new();
        let is_over = loop {
            line.clear();
            match self.socket.read_line(&mut line) {
                Ok(0) => break true,
                Ok(_) => {
                    if let Some((word, name)) = line.trim_end().split_once(' ') {
                        results.insert(name.to_owned(), word == PASSED);
                    }
                }
                Err(_) => break false,
            }
        };
        let id = Pid::from_raw(self.child.id() as i32);
        if !is_over {
            let _ = killpg(id, Signal::SIGKILL);
        }
        // Some of its children may still live. Until it is reaped, its group's number is not reused.
        let _ = waitid(Id::Pid(id), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = killpg(id, Signal::SIGKILL);
        let status = self.child.wait();
        labs::take_down_of(self.child.id());
        if let Some(file) = self.output.as_mut() {
            print(file);
        }
        let why = match status {
            _ if !is_over => format!("no result within {:?}", step_limit()),
            Ok(status) => format!("its process ended: {status}"),
            Err(error) => error.to_string(),
        };
        Ended { results, why }
    }
}

fn step_limit() -> Duration {
    let text = std::env::var(STEP_LIMIT_VARIABLE).ok();
    let seconds = text.and_then(|text| text.parse().ok());
    seconds.map_or(STEP_LIMIT, Duration::from_secs)
}

/// Prints the whole output without another group's lines in between.
fn print(file: &mut File) {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
    let mut out = std::io::stdout().lock();
    let written = read.and_then(|_| out.write_all(&text));
    if let Err(error) = written.and_then(|()| out.flush()) {
        eprintln!("printing the output of a group: {error}");
    }
}
