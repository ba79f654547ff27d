//! Very many workers of one egress address, of which some come and go: sizes and rates of what that makes the controller
//! write and agents receive. The agents of all nodes but two are stand-ins (`churn`).

use super::{GATEWAY, Large, PODS, TIMEOUT, WORKER, is_write};
use crate::bulk::Request;
use crate::churn::{report_request, reported};
use crate::kubernetes::{requests_between, right_of, until};
use anyhow::Context;
use egret_core::model::{Settings, UnpooledAddresses};
use egret_objects::Source;
use egret_objects::kube::{KubeSource, Role, Settings as KubeSettings};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a busy minute costs.
#[derive(Clone, Debug)]
pub struct Busy {
    /// Size of the address' object in the API server's JSON, bytes.
    pub record_bytes: usize,
    /// Leases in it.
    pub leases: usize,
    /// Pods that moved.
    pub moved: usize,
    /// Writes of the controller per minute, by verb and resource.
    pub writes: BTreeMap<String, f64>,
    /// Received by the agents of worker and gateway, kB per minute.
    pub received_kb: [f64; 2],
    /// CPU of controller, worker's and gateway's agents, share of one core.
    pub cores: Vec<f64>,
}

impl Large {
    /// Opens a reader of all objects.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn reader(&self) -> anyhow::Result<KubeSource> {
        let settings = KubeSettings {
            kubeconfig: Some(self.kubectl().kubeconfig().to_owned()),
            role: Role::Reader,
            installation: Settings {
                unpooled_addresses: UnpooledAddresses::Allow,
                never_destinations: Vec::new(),
                service_cidrs: Vec::new(),
                hold_down_secs: 0,
            },
            front_ends: egret_objects::front_end::Settings::default(),
        };
        let mut reader = KubeSource::open(settings)?;
        until("the reader has everything", TIMEOUT, || {
            reader.wait(Duration::from_millis(200))?;
            Ok(reader.snapshot().is_ok())
        })?;
        Ok(reader)
    }

    /// Reports for every agent that does not run; returns whether any had something to say.
    ///
    /// # Errors
    /// A report is refused.
    pub fn report_for_others(&self, reader: &mut KubeSource) -> anyhow::Result<bool> {
        let snapshot = reader.snapshot()?.snapshot;
        let epochs = snapshot.addresses.values().map(|record| record.epoch);
        let newest = epochs.max().unwrap_or(0);
        let others = snapshot.node_records.values();
        let others = others.filter(|record| ![WORKER, GATEWAY].contains(&record.node.0.as_str()));
        let mut reports = Vec::new();
        for record in others {
            let wanted = reported(record, &snapshot, newest);
            // Their gateway role does not exist; what they would say of it changes nothing.
            let differs = wanted.acknowledged != record.acknowledged || wanted.held != record.held;
            if differs {
                reports.push(report_request(&wanted));
            }
        }
        let any = !reports.is_empty();
        self.bulk.send(reports)?;
        Ok(any)
    }

    /// Moves one pod every `pause` to the next of the nodes that had none at first, for this time, and reports for all agents
    /// that do not run. So each move ends one lease and begins another one.
    ///
    /// # Errors
    /// A component has ended, or the API server refuses something.
    pub fn busy(
        &self,
        reader: &mut KubeSource,
        time: Duration,
        pause: Duration,
    ) -> anyhow::Result<Busy> {
        let pids: Vec<i32> = self
            .daemons
            .iter()
            .map(crate::kubernetes::Daemon::program)
            .collect::<Result<_, _>>()?;
        let cpus = || -> anyhow::Result<Vec<f64>> {
            pids.iter().map(|pid| super::cpu_seconds(*pid)).collect()
        };
        let received = |node: &str| {
            let relay = self.relays.iter().find(|(of, _)| *of == node);
            relay.map_or(0, |(_, relay)| relay.received())
        };
        let (from, before) = (self.now()?, cpus()?);
        let bytes = [WORKER, GATEWAY].map(received);
        let (start, mut moved) = (Instant::now(), 0);
        while start.elapsed() < time {
            let pods = self.size.pods;
            let delete = Request {
                method: "DELETE",
                path: format!("{PODS}/pod{}", pods + moved - 1),
                body: r#"{"gracePeriodSeconds": 0}"#.to_owned(),
            };
            self.bulk.send([delete])?;
            // Without the gateway.
            let spare = self.size.nodes - 1 - pods;
            let node = self.node_of(pods + moved % spare);
            self.make_pods_on(std::iter::once((pods + moved, node)))?;
            moved += 1;
            while start.elapsed() < pause * u32::try_from(moved)? {
                reader.wait(Duration::from_millis(50))?;
                self.report_for_others(reader)?;
            }
        }
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let mut writes: BTreeMap<String, f64> = BTreeMap::new();
        for request in requests_between(&self.server.audit_log(), from)?
            .iter()
            .filter(|r| is_write(r))
        {
            let (_, resource, verb) = right_of(request);
            *writes.entry(format!("{verb} {resource}")).or_default() += 1.0 / minutes;
        }
        let after = [WORKER, GATEWAY].map(received);
        let cores = cpus()?.into_iter().zip(before);
        let (record_bytes, leases) = self.record_size(reader)?;
        Ok(Busy {
            record_bytes,
            leases,
            moved,
            writes,
            received_kb: [0, 1].map(|at| (after[at] - bytes[at]) as f64 / 1e3 / minutes),
            cores: cores
                .map(|(now, then)| (now - then) / (minutes * 60.0))
                .collect(),
        })
    }

    /// Bytes and leases of the only `EgressAddress`.
    fn record_size(&self, reader: &mut KubeSource) -> anyhow::Result<(usize, usize)> {
        let snapshot = reader.snapshot()?.snapshot;
        let record = snapshot.addresses.values().next().context("an address")?;
        // A list of one object.
        let path = format!("{}/egressaddresses", super::OURS);
        let text = self.kubectl().run(&["get", "--raw", &path])?;
        Ok((text.len(), record.leases.len()))
    }
}
