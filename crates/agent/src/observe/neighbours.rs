//! ARP and ND requests on the external network: whether the next hops of the external device answer, and who has an
//! address. `core::machines` interprets the answers; this module has the sockets.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::machines::NextHopProbes;
use egret_datapath::presence::l2::ask::{Asker, Device, Who};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::Instant;

/// Longest sleep.
const REST_MS: u64 = 10_000;

/// Orders of the main loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Probe these next hops from now on.
    Watch(Watch),
    /// Ask once who has these addresses.
    Ask(Vec<IpAddr>),
}

/// Next hops, and the device to probe them by; none: this node is no gateway, or its external link has no carrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) device: Option<Device>,
    pub(crate) next_hops: BTreeSet<IpAddr>,
}

/// Results for the main loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Next hops that do not answer now.
    Silent(BTreeSet<IpAddr>),
    /// The request who has the address was sent.
    Asked(IpAddr),
    /// Another machine answered that it has a requested address.
    Taken(IpAddr),
}

/// Channel to the thread: an order, and a byte that wakes it.
pub(crate) struct Orders {
    orders: Sender<Order>,
    bell: UnixStream,
}

impl Orders {
    /// Sends an order; false if the thread has ended.
    pub(crate) fn send(&self, order: Order) -> bool {
        let sent = self.orders.send(order).is_ok();
        // A full buffer wakes the thread as well.
        let _ = (&self.bell).write(&[1]);
        sent
    }
}

/// Starts the thread and returns its channel.
pub(crate) fn start(notify: Notify<Heard>) -> Result<Orders, AgentError> {
    let error = |source| AgentError::Io {
        doing: "making a pair of sockets",
        source,
    };
    let (bell, woken) = UnixStream::pair().map_err(error)?;
    for end in [&bell, &woken] {
        end.set_nonblocking(true).map_err(error)?;
    }
    let (orders, inbox) = mpsc::channel();
    let thread = Neighbours {
        notify,
        inbox,
        woken,
        started: Instant::now(),
        watch: Watch::default(),
        asker: None,
        probes: NextHopProbes::default(),
        known: BTreeMap::new(),
        asked: BTreeSet::new(),
        told: BTreeSet::new(),
    };
    spawn("neighbours", move || thread.run())?;
    Ok(Orders { orders, bell })
}

struct Neighbours {
    notify: Notify<Heard>,
    inbox: Receiver<Order>,
    woken: UnixStream,
    started: Instant,
    watch: Watch,
    asker: Option<Asker>,
    probes: NextHopProbes,
    /// MAC address of each next hop, from its last answer.
    known: BTreeMap<IpAddr, [u8; 6]>,
    /// Addresses that were requested and not answered yet.
    asked: BTreeSet<IpAddr>,
    told: BTreeSet<IpAddr>,
}

impl Neighbours {
    fn run(mut self) {
        while self.take_orders() {
            self.sleep();
            // Answers first: a late wake-up must not declare a next hop silent whose answer has arrived.
            let heard = self.listen();
            self.ask_next_hops();
            if !heard || !self.tell_silent() {
                return;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// `false`: the main loop has ended.
    fn take_orders(&mut self) -> bool {
        let mut bytes = [0; 64];
        while (&self.woken).read(&mut bytes).is_ok_and(|read| read > 0) {}
        loop {
            match self.inbox.try_recv() {
                Ok(order) => self.take(order),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        if self.asker.is_none() && self.watch.device.is_some() {
            self.set(self.watch.clone());
        }
        true
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Watch(watch) => self.set(watch),
            Order::Ask(addresses) => {
                for address in addresses {
                    if self.send(address, Who::HasIt) {
                        self.asked.insert(address);
                        // If the receiver is gone, the thread ends with the next answer.
                        let _ = (self.notify)(Heard::Asked(address));
                    }
                }
            }
        }
    }

    fn set(&mut self, watch: Watch) {
        let now_ms = self.now_ms();
        if self.asker.as_ref().map(Asker::device) != watch.device {
            self.asked.clear();
            self.asker = None;
            self.probes.resume(now_ms);
        }
        if let (None, Some(device)) = (&self.asker, watch.device) {
            self.asker = Asker::open(device)
                .inspect_err(|error| tracing::warn!(%error, "cannot probe neighbours"))
                .ok();
        }
        // Without a socket no silence can be observed.
        match self.asker {
            Some(_) => self.probes.set(&watch.next_hops, now_ms),
            None => self.probes.set(&BTreeSet::new(), now_ms),
        }
        self.known
            .retain(|address, _| watch.next_hops.contains(address));
        self.watch = watch;
    }

    fn sleep(&self) {
        let due = self.probes.next_deadline().unwrap_or(u64::MAX);
        let wait_ms = due.saturating_sub(self.now_ms()).min(REST_MS);
        let timeout = PollTimeout::try_from(wait_ms as i32).unwrap_or(PollTimeout::ZERO);
        let sockets = self.asker.iter().flat_map(Asker::sockets);
        let sockets = sockets.chain([self.woken.as_fd()]);
        let mut wait: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::new(socket, PollFlags::POLLIN))
            .collect();
        // The result does not matter: the loop checks everything.
        let _ = poll(&mut wait, timeout);
    }

    fn listen(&mut self) -> bool {
        let heard = self.asker.as_ref().map(Asker::heard).unwrap_or_default();
        for claim in heard {
            if claim.is_answer && self.watch.next_hops.contains(&claim.address) {
                self.known.insert(claim.address, claim.mac);
                self.probes.answered(claim.address);
            }
            let is_taken = self.asked.remove(&claim.address);
            if is_taken && !(self.notify)(Heard::Taken(claim.address)) {
                return false;
            }
        }
        true
    }

    fn ask_next_hops(&mut self) {
        let now_ms = self.now_ms();
        self.probes.handle_deadline(now_ms);
        for question in self.probes.drain() {
            let known = self.known.get(&question.address).copied();
            let at = known.filter(|_| question.is_known);
            // A request that cannot be sent counts as unanswered.
            self.send(question.address, Who::IsThere(at));
        }
    }

    /// Reports changes; `false`: the receiver is gone.
    fn tell_silent(&mut self) -> bool {
        let silent = self.probes.silent();
        if silent == self.told {
            return true;
        }
        for address in silent.difference(&self.told) {
            tracing::warn!(next_hop = %address, "the next hop does not answer");
        }
        for address in self.told.difference(&silent) {
            tracing::info!(next_hop = %address, "the next hop answers, or is no longer probed");
        }
        self.told.clone_from(&silent);
        (self.notify)(Heard::Silent(silent))
    }

    /// Returns whether it was sent.
    fn send(&self, address: IpAddr, who: Who) -> bool {
        let asker = self.asker.as_ref();
        asker.is_some_and(|asker| asker.ask(address, who).is_ok())
    }
}
