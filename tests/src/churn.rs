//! Nodes that come and go through one egress address, as a cluster autoscaler makes them. Their machines do not exist: this
//! module says what their agents would (real agents that acknowledge are tested in `tests/lab/growth.rs` and
//! `tests/promise/withdrawn.rs`). The controller and the objects are real.

use crate::bulk::Request;
use crate::cluster::DEADLINE;
use anyhow::{Context, ensure};
use egret_core::model::{NodeName, NodeRecord, PortRange, Snapshot};
use egret_lab::process::wait_for_every;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Pause between two looks at the objects.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait until ports of the last nodes are free: grace, acknowledgement and hold-down, on a busy machine.
const RETURNED_WITHIN: Duration = Duration::from_secs(240);

/// A node of the autoscaler, with one selected pod.
#[derive(Clone, Copy, Debug)]
pub struct Spot(pub usize);

impl Spot {
    /// Its name.
    pub fn name(self) -> String {
        format!("spot-{}", self.0)
    }

    /// Its underlay address.
    pub fn address(self) -> Ipv4Addr {
        self.inside(77)
    }

    /// Address of its pod.
    pub fn pod_address(self) -> Ipv4Addr {
        self.inside(88)
    }

    fn inside(self, second: u8) -> Ipv4Addr {
        let [.., high, low] = (self.0 + 1).to_be_bytes();
        Ipv4Addr::new(10, second, high, low)
    }
}

/// The request that writes what an agent reports of its leases.
pub fn report_request(record: &NodeRecord) -> Request {
    let held = record.held.iter().map(|(address, ranges)| {
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        json!({"address": address, "ranges": ranges})
    });
    let status = json!({"status": {
        "acknowledgedEpoch": record.acknowledged,
        "held": held.collect::<Vec<_>>(),
        "steeringVersion": record.steering_version,
        "underlayAddresses": record.underlay_addresses,
    }});
    let path = format!(
        "/apis/egret.dev/v1alpha1/egressnodes/{}/status",
        record.node
    );
    Request::patch(path, status.to_string())
}

/// Where the objects are.
pub trait Objects {
    /// The latest view.
    ///
    /// # Errors
    /// It cannot be read.
    fn snapshot(&mut self) -> anyhow::Result<Snapshot>;

    /// Creates Node and pod of each.
    ///
    /// # Errors
    /// One is refused.
    fn come(&mut self, spots: &[Spot]) -> anyhow::Result<()>;

    /// Deletes Node and pod of each.
    ///
    /// # Errors
    /// One is refused.
    fn go(&mut self, spots: &[Spot]) -> anyhow::Result<()>;

    /// Writes what agents report.
    ///
    /// # Errors
    /// A write is refused for another reason than a newer version or a missing object.
    fn report(&mut self, records: &[NodeRecord]) -> anyhow::Result<()>;
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// Nodes that come and go in all.
    pub nodes: usize,
    /// Nodes at a time.
    pub at_once: usize,
    /// How long each lives. Ports of a vanished node come back after a minute at the earliest, so an address serves so many
    /// new nodes a minute and no more.
    pub life: Duration,
    /// The address.
    pub address: IpAddr,
    /// Whether gateways have no agents either.
    pub gateways_too: bool,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Blocks that the nodes had, added up over all nodes.
    pub blocks: usize,
    /// Most leases of the address in one view.
    pub leases_max: usize,
}

/// Lets all nodes come and go, and waits until the address has no lease of any. Each must get ports within [`DEADLINE`].
///
/// # Errors
/// A node was refused, or ports do not come back.
pub fn run(objects: &mut impl Objects, churn: Churn) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let all: Vec<Spot> = (0..churn.nodes).map(Spot).collect();
    for wave in all.chunks(churn.at_once) {
        let born = Instant::now();
        objects.come(wave)?;
        let names: BTreeSet<String> = wave.iter().map(|spot| spot.name()).collect();
        let mut granted: BTreeMap<String, usize> = BTreeMap::new();
        let mut failed = None;
        let what = format!(
            "ports for {} to {}",
            wave[0].name(),
            wave[wave.len() - 1].name()
        );
        wait_for_every(&what, DEADLINE, PAUSE, || {
            match answer(objects, churn, &mut seen) {
                Ok(now) => granted = now,
                Err(error) => failed = Some(error),
            }
            failed.is_some() || names.iter().all(|name| granted.contains_key(name))
        })
        .with_context(|| {
            let without: Vec<&String> =
                names.iter().filter(|n| !granted.contains_key(*n)).collect();
            format!("refused: {without:?}")
        })?;
        failed.map_or(Ok(()), Err)?;
        seen.blocks += names.iter().map(|name| granted[name]).sum::<usize>();
        while born.elapsed() < churn.life {
            answer(objects, churn, &mut seen)?;
            std::thread::sleep(PAUSE);
        }
        objects.go(wave)?;
    }
    let mut failed = None;
    wait_for_every("all ports to be free", RETURNED_WITHIN, PAUSE, || {
        let left = answer(objects, churn, &mut seen).and_then(|_| left(objects, churn.address));
        match left {
            Ok(left) => left == 0,
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    })?;
    failed.map_or(Ok(seen), Err)
}

/// Leases of nodes that came and went.
fn left(objects: &mut impl Objects, address: IpAddr) -> anyhow::Result<usize> {
    let snapshot = objects.snapshot()?;
    let record = snapshot.addresses.get(&address);
    let leases = record.iter().flat_map(|record| &record.leases);
    Ok(leases
        .filter(|lease| lease.node.0.starts_with("spot-"))
        .count())
}

/// Reports for all agents that do not run. Returns the granted blocks of each node that has some and said so.
fn answer(
    objects: &mut impl Objects,
    churn: Churn,
    seen: &mut Seen,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let snapshot = objects.snapshot()?;
    let record = snapshot.addresses.get(&churn.address);
    let leases = record.map_or(&[][..], |record| &record.leases);
    seen.leases_max = seen.leases_max.max(leases.len());
    no_block_twice(leases.iter().map(|lease| (&lease.node, &lease.ranges)))?;
    let epochs = snapshot.addresses.values().map(|record| record.epoch);
    let newest = epochs.max().unwrap_or(0);
    let (mut reports, mut granted) = (Vec::new(), BTreeMap::new());
    for record in snapshot.node_records.values() {
        let is_spot = record.node.0.starts_with("spot-");
        // A machine that is gone says nothing any more.
        let is_there = snapshot.nodes.contains_key(&record.node);
        if !is_there || !(is_spot || churn.gateways_too) {
            continue;
        }
        let wanted = reported(record, &snapshot, newest);
        let mine = record
            .grants
            .iter()
            .filter(|grant| grant.address == churn.address);
        let blocks: usize = mine.flat_map(|grant| &grant.ranges).map(blocks).sum();
        if wanted != *record {
            reports.push(wanted);
        } else if blocks > 0 {
            granted.insert(record.node.0.clone(), blocks);
        }
    }
    objects.report(&reports)?;
    Ok(granted)
}

fn blocks(range: &PortRange) -> usize {
    usize::from(range.last - range.first).div_ceil(64)
}

/// What the agent of the node would report: everything applied, no flow in what was withdrawn. `newest`: the highest epoch
/// of any address.
pub fn reported(record: &NodeRecord, snapshot: &Snapshot, newest: u64) -> NodeRecord {
    let mut held: BTreeMap<IpAddr, Vec<PortRange>> = BTreeMap::new();
    for grant in &record.grants {
        held.entry(grant.address).or_default().extend(&grant.ranges);
    }
    let node = snapshot.nodes.get(&record.node);
    NodeRecord {
        acknowledged: record.grants_epoch,
        held,
        underlay_addresses: node.map_or_else(Vec::new, |node| node.addresses.clone()),
        steering_version: newest,
        ..record.clone()
    }
}

/// No two nodes have one block, whatever the state of their leases.
fn no_block_twice<'a>(
    leases: impl Iterator<Item = (&'a NodeName, &'a Vec<PortRange>)>,
) -> anyhow::Result<()> {
    let mut owners: BTreeMap<u16, &NodeName> = BTreeMap::new();
    for (node, ranges) in leases {
        for block in ranges
            .iter()
            .flat_map(|range| range.first / 64..=range.last / 64)
        {
            if let Some(other) = owners.insert(block, node) {
                ensure!(other == node, "{node} and {other} have block {block}");
            }
        }
    }
    Ok(())
}
