//! Delay from the API server's answer to the kernel of the pod's node: the time in which the API has the pod and the
//! node does not.

use super::{Large, PODS, TIMEOUT, WORKER, seconds_of_day, time};
use crate::bulk::Request;
use crate::kubernetes::{requests_between, until};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};

/// Milliseconds of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    /// From the answer to the write of its address until the kernel has its element.
    pub came: f64,
    /// From the answer to its deletion until the kernel has removed the element.
    pub went: f64,
}

/// Changes of the worker's ruleset, as `nft monitor` shows them. A query for an element would make `nft` read the whole
/// set first, which takes longer than the measured time.
pub struct Changes {
    monitor: Child,
    lines: Receiver<(SystemTime, String)>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

impl Changes {
    /// Time at which a line with all of these words arrived.
    fn when(&self, words: &[&str], timeout: Duration) -> anyhow::Result<SystemTime> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let (at, line) = line.with_context(|| format!("no change with {words:?}"))?;
            let said = |word: &&str| line.split_whitespace().any(|one| one == *word);
            if words.iter().all(said) {
                return Ok(at);
            }
        }
    }
}

impl Large {
    /// Starts `nft monitor` on the worker.
    ///
    /// # Errors
    /// `nft monitor` prints nothing.
    pub fn watch_the_kernel(&self) -> anyhow::Result<Changes> {
        let place = self.lab.place(WORKER)?;
        let mut command = self.lab.exec(&place, "nft")?;
        let command = command.arg("monitor").stdout(Stdio::piped());
        let mut monitor = command.spawn().context("nft monitor")?;
        let output = monitor.stdout.take().context("piped above")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((SystemTime::now(), line)).is_err() {
                    return;
                }
            }
        });
        let changes = Changes { monitor, lines };
        // It reads the whole ruleset before it listens, and does not report when it has.
        until("nft monitor to listen", TIMEOUT, || {
            for verb in ["add", "delete"] {
                let words = [verb, "table", "inet", "bench_listens"];
                let done = self.lab.exec(&place, "nft")?.args(words).status()?;
                ensure!(done.success(), "nft {words:?}");
            }
            let words = ["add", "table", "bench_listens"];
            Ok(changes.when(&words, Duration::from_millis(200)).is_ok())
        })?;
        Ok(changes)
    }

    /// Adds a pod on the measured worker and removes it, in a cluster that has all of its pods.
    ///
    /// # Errors
    /// The kernel does not change.
    pub fn to_the_kernel(&self, changes: &Changes, number: usize) -> anyhow::Result<Delay> {
        let number = self.size.pods + number;
        let name = format!("pod{number}");
        let address = super::address_of(number);
        let came = self.until_the_kernel(("patch", &name), || {
            self.make_pods(std::iter::once(number))?;
            changes.when(&["add", "classify_pods4", &address], TIMEOUT)
        })?;
        let went = self.until_the_kernel(("delete", &name), || {
            let body = r#"{"gracePeriodSeconds": 0}"#.to_owned();
            let path = format!("{PODS}/{name}");
            let request = Request {
                method: "DELETE",
                path,
                body,
            };
            self.bulk.send([request])?;
            changes.when(&["delete", "classify_pods4", &address], TIMEOUT)
        })?;
        Ok(Delay { came, went })
    }

    /// Milliseconds from the server's last answer to this request until the time that `change` returns.
    fn until_the_kernel(
        &self,
        (verb, pod): (&str, &str),
        change: impl FnOnce() -> anyhow::Result<SystemTime>,
    ) -> anyhow::Result<f64> {
        let log = self.server.audit_log();
        let from = std::fs::metadata(&log)?.len();
        let at = change()?;
        let mut answered = None;
        until("the audit log to have the request", TIMEOUT, || {
            let all = requests_between(&log, from)?;
            let of_pod = |r: &&Value| {
                r["verb"] == verb
                    && r["objectRef"]["name"] == pod
                    && r["objectRef"]["resource"] == "pods"
            };
            let last = all.iter().rfind(of_pod);
            answered = last.map(|request| time(&request["stageTimestamp"]));
            Ok(answered.is_some())
        })?;
        let answered = answered.context("the condition held")?;
        Ok((seconds_of_day(at) - answered).max(0.0) * 1e3)
    }
}
