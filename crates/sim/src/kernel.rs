//! The model of one kernel: what an agent has put into it stays until the machine starts anew.

use egret_core::hash::StableHash;
use egret_core::model::{GroupKey, NodeName};
use egret_core::node::{Group, GroupNumber, NodeState, TunnelIndex, Verdict, WorkerState};
use egret_core::numbers::BLOCK_PORTS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A block of ports of one egress address.
pub type Block = (IpAddr, u16);

/// One flow of the connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Address of the pod.
    pub pod: IpAddr,
    /// The source that it leaves with.
    pub address: IpAddr,
    /// The source port that it leaves with.
    pub port: u16,
    /// Destination address.
    pub destination: IpAddr,
}

impl Flow {
    /// The block of its source port.
    pub fn block(&self) -> Block {
        (self.address, self.port / BLOCK_PORTS)
    }
}

/// Fate of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is translated.
    Flow(Flow),
    /// It is dropped or refused.
    Dropped,
    /// It leaves as the network plugin routes it.
    Untouched,
}

/// Where packets with a source address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// To one of these gateways, by their underlay addresses.
    Tunnel(BTreeSet<IpAddr>),
    /// Out of this machine itself.
    Local,
    /// Nowhere.
    Nowhere,
}

/// Tables of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Owner of each block.
    pub blocks: BTreeMap<IpAddr, BTreeMap<u16, TunnelIndex>>,
    /// Underlay address of each owner.
    pub workers: BTreeMap<TunnelIndex, IpAddr>,
    /// Addresses that it announces.
    pub announcing: BTreeSet<IpAddr>,
    /// Epoch of the record that each table was loaded from.
    pub epochs: BTreeMap<IpAddr, u64>,
    /// Version in answers to probes.
    pub version: u64,
}

impl Tables {
    /// The owner of a block.
    pub fn owner(&self, (address, block): Block) -> Option<TunnelIndex> {
        self.blocks.get(&address)?.get(&block).copied()
    }

    /// Whether a packet from this machine with a source in this block is let through.
    pub fn admit(&self, block: Block, from: IpAddr) -> bool {
        let owner = self.owner(block);
        owner.and_then(|owner| self.workers.get(&owner)) == Some(&from)
    }
}

/// One kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    /// Rules of the worker role, once there are some.
    pub worker: Option<Arc<WorkerState>>,
    /// Blocks in which new flows may be opened.
    pub usable: BTreeSet<Block>,
    /// Where packets of each egress address go.
    pub exits: BTreeMap<IpAddr, Exit>,
    /// Underlay addresses that tunnel packets are taken from.
    pub peers: BTreeSet<IpAddr>,
    /// Gateway programs with their tables.
    pub gateway: Option<Tables>,
    /// Numbers of groups, which an agent adopts when it starts.
    pub groups: BTreeMap<GroupKey, GroupNumber>,
    /// Members of groups, likewise.
    pub members: BTreeMap<GroupKey, BTreeSet<TunnelIndex>>,
    /// Gateways that have answered, likewise.
    pub ever_live: BTreeSet<NodeName>,
    flows: Vec<Flow>,
    used: BTreeMap<(IpAddr, IpAddr), BTreeSet<u16>>,
    blocks: BTreeMap<Block, usize>,
    opened: u64,
}

impl Kernel {
    /// Replaces the rules of the worker role.
    pub fn apply_worker(&mut self, state: &NodeState) {
        let worker = &state.worker;
        self.usable = usable_blocks(worker);
        self.exits.clear();
        for target in worker.targets.values() {
            let underlay = |index: &TunnelIndex| state.peers.get(index).map(|peer| peer.underlay);
            let exit = match worker.groups.get(&target.group) {
                Some(Group::Tunnel(members)) => {
                    Exit::Tunnel(members.iter().filter_map(underlay).collect())
                }
                Some(Group::Local { .. }) => Exit::Local,
                Some(Group::Nowhere) | None => Exit::Nowhere,
            };
            self.exits.insert(target.address, exit);
        }
        self.peers = state.peers.values().map(|peer| peer.underlay).collect();
        self.worker = Some(Arc::new(worker.clone()));
        if let Some(ports) = &worker.flow_ports {
            self.end(|flow| !ports.of(flow.address).contains_port(flow.port));
        }
        self.end_mismatched();
    }

    /// Ends flows whose source is not the one that their pod has now.
    fn end_mismatched(&mut self) {
        let Some(worker) = self.worker.clone() else {
            return;
        };
        self.end(|flow| {
            let source = source(&worker, flow.pod, flow.destination);
            source.is_some_and(|source| source != Some(flow.address))
        });
    }

    /// Opens a flow from a pod to a destination.
    pub fn open(&mut self, pod: IpAddr, destination: IpAddr) -> Opened {
        let Some(worker) = self.worker.clone() else {
            return Opened::Dropped;
        };
        match source(&worker, pod, destination) {
            None => {
                let unknown = worker.unknown.as_ref();
                let is_pods =
                    unknown.is_some_and(|u| u.cidrs.iter().any(|cidr| cidr.contains(&pod)));
                let is_known = unknown.is_some_and(|unknown| unknown.known.contains(&pod));
                match is_pods && !is_known {
                    true => Opened::Dropped,
                    false => Opened::Untouched,
                }
            }
            Some(None) => Opened::Dropped,
            Some(Some(address)) => self.translate(pod, address, destination),
        }
    }

    fn translate(&mut self, pod: IpAddr, address: IpAddr, destination: IpAddr) -> Opened {
        let blocks: Vec<u16> = self
            .usable
            .range((address, 0)..=(address, u16::MAX))
            .map(|(_, block)| *block)
            .collect();
        if blocks.is_empty() {
            return Opened::Dropped;
        }
        self.opened += 1;
        let ports = blocks.len() * usize::from(BLOCK_PORTS);
        let hash = StableHash::new("port").number(self.opened).finish();
        let first = usize::try_from(hash % ports as u64).expect("a port number");
        let used = self.used.entry((address, destination)).or_default();
        let nth = |n: usize| {
            let n = (first + n) % ports;
            let (block, offset) = (n / usize::from(BLOCK_PORTS), n % usize::from(BLOCK_PORTS));
            blocks[block] * BLOCK_PORTS + u16::try_from(offset).expect("below the size of a block")
        };
        let Some(port) = (0..ports).map(nth).find(|port| !used.contains(port)) else {
            return Opened::Dropped;
        };
        used.insert(port);
        let flow = Flow {
            pod,
            address,
            port,
            destination,
        };
        *self.blocks.entry(flow.block()).or_default() += 1;
        self.flows.push(flow);
        Opened::Flow(flow)
    }

    /// Ends flows.
    pub fn end(&mut self, mut is_ended: impl FnMut(&Flow) -> bool) {
        let (used, blocks) = (&mut self.used, &mut self.blocks);
        self.flows.retain(|flow| {
            let ends = is_ended(flow);
            if ends {
                if let Some(ports) = used.get_mut(&(flow.address, flow.destination)) {
                    ports.remove(&flow.port);
                }
                if let Some(count) = blocks.get_mut(&flow.block()) {
                    *count -= 1;
                    if *count == 0 {
                        blocks.remove(&flow.block());
                    }
                }
            }
            !ends
        });
    }

    /// The flows.
    pub fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// Blocks with flows.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        self.blocks.keys().copied()
    }

    /// Ports in use towards the busiest destination of an address.
    pub fn busiest(&self, address: IpAddr) -> usize {
        let all = self.used.range((address, IpAddr::from([0, 0, 0, 0]))..);
        let mine = all.take_while(|((one, _), _)| *one == address);
        mine.map(|(_, ports)| ports.len()).max().unwrap_or(0)
    }

    /// Ports in use of an address.
    pub fn ports(&self, address: IpAddr) -> usize {
        self.flows
            .iter()
            .filter(|flow| flow.address == address)
            .count()
    }
}

/// Blocks in which these rules open flows.
fn usable_blocks(worker: &WorkerState) -> BTreeSet<Block> {
    let blocks = worker.targets.values().flat_map(|target| {
        let ranges = target.ranges.iter();
        let blocks = ranges.flat_map(|range| range.first / BLOCK_PORTS..=range.last / BLOCK_PORTS);
        blocks.map(|block| (target.address, block))
    });
    blocks.collect()
}

/// The source that a pod's packets leave with; `None`: no rule is about the pod; `Some(None)`: they are dropped.
fn source(worker: &WorkerState, pod: IpAddr, destination: IpAddr) -> Option<Option<IpAddr>> {
    let profile = worker.profiles.get(worker.pods.get(&pod)?)?;
    let mut ranges = profile.ranges.iter();
    let found = ranges.find(|one| {
        one.first.is_ipv4() == destination.is_ipv4()
            && (one.first..=one.last).contains(&destination)
    })?;
    Some(match found.verdict {
        Verdict::Target(id) => worker.targets.get(&id).map(|target| target.address),
        Verdict::NextHop(_) | Verdict::FamilyNotCovered | Verdict::Unavailable => None,
    })
}
