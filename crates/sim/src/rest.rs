//! The end of a run: everything is repaired, and then everybody must be served, and in the end all ports be free.

use crate::checker::Rule;
use crate::cluster::{ELSEWHERE, egress_address, pod_key};
use crate::step::Part;
use crate::world::World;
use egret_core::model::Lease;
use egret_core::numbers::{BLOCK_PORTS, LEASE_PORT_FIRST};
use std::net::IpAddr;

type Found = Result<(), (Rule, String)>;

/// Rounds of a second each after which whatever was under way is done.
const SHORT_ROUNDS: usize = 10;

/// Rounds of half a minute each: hold-down, the time for which a node may be gone, and a change of leader.
const LONG_ROUNDS: usize = 14;

impl World {
    /// Repairs everything, and checks that the cluster becomes whole, and later empty.
    pub(crate) fn rest(&mut self) -> Found {
        self.heal();
        self.rounds(SHORT_ROUNDS, 1_000)?;
        self.rounds(LONG_ROUNDS, 30_000)?;
        if self.is_full() {
            // Flows that go on for ever keep their ports, whoever else has none: such flows end now.
            for node in 0..self.machines.len() {
                self.close(node, Part::All);
            }
            self.rounds(LONG_ROUNDS, 30_000)?;
        }
        self.everybody_is_served()?;
        for node in 0..self.machines.len() {
            self.close(node, Part::All);
        }
        let pods: Vec<_> = self.store.state().pods.keys().cloned().collect();
        pods.into_iter()
            .for_each(|key| self.store.set_pod(key, None));
        self.rounds(SHORT_ROUNDS, 1_000)?;
        self.rounds(LONG_ROUNDS, 30_000)?;
        self.all_is_free()
    }

    /// Whether every block of some address is leased.
    fn is_full(&self) -> bool {
        let blocks = |lease: &Lease| -> usize {
            let ranges = lease.ranges.iter();
            let ports = ranges.map(|range| usize::from(range.last - range.first) + 1);
            ports.sum::<usize>() / usize::from(BLOCK_PORTS)
        };
        let all = usize::from(u16::MAX - LEASE_PORT_FIRST) / usize::from(BLOCK_PORTS) + 1;
        let mut records = self.store.state().addresses.values();
        records.any(|record| record.leases.iter().map(blocks).sum::<usize>() == all)
    }

    fn rounds(&mut self, rounds: usize, ms: u64) -> Found {
        for _ in 0..rounds {
            self.everyone();
            self.look()?;
            self.wait(ms);
            self.look()?;
        }
        Ok(())
    }

    /// Every pod opens a flow, its packets get out, and the announcer of its address leads replies back.
    fn everybody_is_served(&mut self) -> Found {
        for node in 0..self.machines.len() {
            self.close(node, Part::Half);
        }
        let pods = 0..100;
        let pods: Vec<usize> = pods
            .filter(|pod| self.store.state().pods.contains_key(&pod_key(*pod)))
            .collect();
        pods.into_iter().try_for_each(|pod| self.is_served(pod))?;
        self.look()
    }

    /// The pod opens a flow, its packets get out, and the announcer of its address leads replies back.
    pub(crate) fn is_served(&mut self, pod: usize) -> Found {
        let Some((node, flow)) = self.open_one(pod, 9)? else {
            let text = format!("pod{pod} cannot open a flow: {}", self.why(pod));
            return Err((Rule::NotServed, text));
        };
        if !self.passes(node, &flow) {
            let text = format!("no gateway lets packets of pod{pod} out: {flow:?}");
            return Err((Rule::NotServed, text));
        }
        match self.lost_replies(node, flow.address, flow.port / BLOCK_PORTS) {
            Some(text) => Err((Rule::NotServed, format!("pod{pod} gets no replies: {text}"))),
            None => Ok(()),
        }
    }

    /// Why replies for a block do not reach a node.
    pub(crate) fn lost_replies(&self, node: usize, address: IpAddr, block: u16) -> Option<String> {
        let underlay = self.machines[node].underlay;
        let announcing = self.machines.iter().filter_map(|machine| {
            let tables = machine.kernel.gateway.as_ref()?;
            tables
                .announcing
                .contains(&address)
                .then_some((machine, tables))
        });
        let announcing: Vec<_> = announcing.collect();
        if announcing.is_empty() {
            return Some(format!("no gateway announces {address}"));
        }
        let lost = announcing
            .iter()
            .find(|(_, tables)| !tables.admit((address, block), underlay));
        lost.map(|(machine, _)| format!("{} steers block {block} elsewhere", machine.name))
    }

    /// What the store says about a pod that cannot open a flow.
    fn why(&self, pod: usize) -> String {
        let state = self.store.state();
        let Some(object) = state.pods.get(&pod_key(pod)) else {
            return "it is gone".to_owned();
        };
        let leases: Vec<String> = (0..self.cluster.addresses)
            .filter_map(|number| state.addresses.get(&egress_address(number)))
            .flat_map(|record| &record.leases)
            .filter(|lease| lease.node == object.node)
            .map(|lease| format!("{:?} {}", lease.state, lease.epoch))
            .collect();
        let record = state.node_records.get(&object.node);
        let record = record.map(|r| (r.grants_epoch, r.acknowledged, r.grants.len(), &r.held));
        let versions: Vec<(u64, bool)> = self
            .machines
            .iter()
            .filter_map(|machine| machine.kernel.gateway.as_ref())
            .map(|tables| (tables.version, tables.announcing.is_empty()))
            .collect();
        format!(
            "{} has leases {leases:?}, record {record:?}; gateways at {versions:?}",
            object.node
        )
    }

    fn all_is_free(&self) -> Found {
        let state = self.store.state();
        let leases = state.addresses.values().flat_map(|record| &record.leases);
        let leases: Vec<String> = leases
            .filter(|lease| lease.node.0 != ELSEWHERE)
            .map(|lease| {
                let record = state.node_records.get(&lease.node);
                let record = record.map(|r| (r.grants_epoch, r.acknowledged, &r.draining, &r.held));
                format!("{lease:?}, its node has {record:?}")
            })
            .collect();
        match leases.is_empty() {
            true => Ok(()),
            false => Err((Rule::NeverFree, leases.join("; "))),
        }
    }
}
