//! Thread that follows the flows of this node and reports how many ports they use: towards the busiest destinations, and
//! the destinations towards which leases are exhausted.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::error::with_causes;
use egret_core::machines::{Destination, PortUse, wanted_ports};
use egret_core::model::PortRange;
use egret_datapath::worker::driver::port_of;
use egret_kernel::conntrack::{Conntrack, Flow, FlowEvents};
use egret_kernel::netlink::NetlinkError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// Source ports that new flows may use, by egress address.
pub(crate) type Ranges = BTreeMap<IpAddr, Vec<PortRange>>;

/// Use of the source ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortUsage {
    /// All destinations towards which a lease is exhausted at present.
    pub(crate) full: BTreeSet<Destination>,
    /// Ports in use towards the busiest destination of each address: at least so many, and at most so many as give the
    /// same number of wanted ports.
    pub(crate) busiest: BTreeMap<IpAddr, u32>,
    /// Number of full destinations not listed for lack of room, since the start.
    pub(crate) left_out: u64,
}

/// Longest wait for an event before the channel is checked for new ranges.
const LOOK_UP: Duration = Duration::from_millis(200);
/// Interval of comparisons with a dump; another one follows each loss of events.
const COMPARE: Duration = Duration::from_secs(60);
/// Pause after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);

/// Starts the thread and returns its channel for ranges. Without ranges it does not subscribe, so that the kernel
/// creates no events for it.
pub(crate) fn start(notify: Notify<PortUsage>) -> Result<Sender<Ranges>, AgentError> {
    let (tell, told) = mpsc::channel::<Ranges>();
    spawn("port-use", move || {
        let mut follower = Follower {
            ports: PortUse::default(),
            started: Instant::now(),
            said: BTreeSet::new(),
            said_busiest: BTreeMap::new(),
            notify,
        };
        while let Ok(ranges) = told.recv() {
            if !ranges.is_empty() && follower.follow(ranges, &told).is_none() {
                return;
            }
        }
    })?;
    Ok(tell)
}

struct Follower {
    ports: PortUse,
    started: Instant,
    said: BTreeSet<Destination>,
    said_busiest: BTreeMap<IpAddr, u32>,
    notify: Notify<PortUsage>,
}

impl Follower {
    /// Follows flows until there are no ranges left. `None`: the main loop has ended.
    fn follow(&mut self, ranges: Ranges, told: &Receiver<Ranges>) -> Option<()> {
        self.ports.set_ranges(ranges, self.now_ms());
        loop {
            match self.listen(told) {
                Ok(Some(())) => return self.say(true),
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(error = %with_causes(&error), "cannot follow the flows of this node");
                    std::thread::park_timeout(PAUSE_AFTER_ERROR);
                }
            }
        }
    }

    fn listen(&mut self, told: &Receiver<Ranges>) -> Result<Option<()>, NetlinkError> {
        // Subscribe first: changes during the dump arrive afterwards.
        let (mut socket, mut table) = (FlowEvents::open()?, Conntrack::open()?);
        self.compare(&mut table)?;
        let mut compared = Instant::now();
        loop {
            match newest(told) {
                Ok(Some(ranges)) => {
                    let none = ranges.is_empty();
                    self.ports.set_ranges(ranges, self.now_ms());
                    if none {
                        return Ok(Some(()));
                    }
                    // Flows of new addresses were not recorded so far.
                    self.compare(&mut table)?;
                }
                Ok(None) => {}
                Err(()) => return Ok(None),
            }
            let lost = match socket.wait(LOOK_UP) {
                Ok(flows) => {
                    flows.iter().for_each(|flow| self.take_up(flow));
                    false
                }
                Err(NetlinkError::Interrupted) => true,
                Err(error) => return Err(error),
            };
            let compares = lost || compared.elapsed() >= COMPARE;
            if compares {
                self.compare(&mut table)?;
                compared = Instant::now();
            }
            if self.say(compares).is_none() {
                return Ok(None);
            }
        }
    }

    fn compare(&mut self, table: &mut Conntrack) -> Result<(), NetlinkError> {
        let flows = table.flows()?;
        self.ports.forget_flows();
        flows.iter().for_each(|flow| self.take_up(flow));
        self.ports.told_all(self.now_ms());
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take_up(&mut self, flow: &Flow) {
        let Some((destination, port)) = port_of(flow) else {
            return;
        };
        let now_ms = self.now_ms();
        match flow.holds_port {
            true => self.ports.add(destination, port, now_ms),
            false => self.ports.remove(destination, port, now_ms),
        }
    }

    /// Reports changes: destinations that are full or no longer, and at once when more ports are wanted. That fewer would
    /// suffice is reported after a comparison (`fewer`). `None`: the receiver is gone.
    fn say(&mut self, fewer: bool) -> Option<()> {
        let full = self.ports.refused(self.now_ms());
        let busiest = self.ports.busiest();
        let wants = |of: &BTreeMap<IpAddr, u32>, address| {
            wanted_ports(of.get(address).copied().unwrap_or(0))
        };
        let said = &self.said_busiest;
        let more = busiest
            .keys()
            .any(|address| wants(&busiest, address) > wants(said, address));
        if full == self.said && !more && !(fewer && busiest != *said) {
            return Some(());
        }
        self.said = full.clone();
        self.said_busiest = busiest.clone();
        let usage = PortUsage {
            full,
            busiest,
            left_out: self.ports.left_out(),
        };
        (self.notify)(usage).then_some(())
    }
}

/// The newest ranges received, if any. `Err`: the sender is gone.
fn newest(told: &Receiver<Ranges>) -> Result<Option<Ranges>, ()> {
    let mut newest = None;
    loop {
        match told.try_recv() {
            Ok(ranges) => newest = Some(ranges),
            Err(TryRecvError::Empty) => return Ok(newest),
            Err(TryRecvError::Disconnected) => return Err(()),
        }
    }
}
