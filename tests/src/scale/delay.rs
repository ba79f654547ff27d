//! From the API server's answer to the kernel of the pod's node: the time in which the API knows and the node does not.

use super::{Large, PODS, TIMEOUT, WORKER, seconds_of_day, time};
use crate::bulk::Request;
use crate::kubernetes::{requests_between, until};
use anyhow::Context;
use serde_json::Value;
use std::time::SystemTime;

/// Milliseconds of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    /// From the answer to the write of its address until the kernel has its element.
    pub came: f64,
    /// From the answer to its deletion until the kernel has it no more.
    pub went: f64,
}

impl Large {
    /// A pod comes to the watched worker and goes, in a cluster whose pods are all there.
    ///
    /// # Errors
    /// The kernel does not follow.
    pub fn to_the_kernel(&self, number: usize) -> anyhow::Result<Delay> {
        let number = self.size.pods + number;
        let name = format!("pod{number}");
        let came = self.until_the_kernel(number, true, ("patch", &name), || {
            self.make_pods(std::iter::once(number))
        })?;
        let went = self.until_the_kernel(number, false, ("delete", &name), || {
            let body = r#"{"gracePeriodSeconds": 0}"#.to_owned();
            let path = format!("{PODS}/{name}");
            let request = Request {
                method: "DELETE",
                path,
                body,
            };
            self.bulk.send([request])
        })?;
        Ok(Delay { came, went })
    }

    fn until_the_kernel(
        &self,
        number: usize,
        there: bool,
        (verb, pod): (&str, &str),
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let log = self.server.audit_log();
        let from = std::fs::metadata(&log)?.len();
        change()?;
        let place = self.lab.place(WORKER)?;
        let element = format!("{{ {} }}", super::address_of(number));
        let words = [
            "get",
            "element",
            "inet",
            "egret",
            "classify_pods4",
            &element,
        ];
        let mut at = SystemTime::now();
        until("the kernel to follow", TIMEOUT, || {
            let mut command = self.lab.exec(&place, "nft")?;
            let said = command.args(words).output()?;
            at = SystemTime::now();
            Ok(said.status.success() == there)
        })?;
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
