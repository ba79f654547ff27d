//! Sends canaries along every path of the node and reports which do not come back, and where they are lost.
//! `core::canary` decides which canaries to send and what a loss means; this module has the sockets and the waiting.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::canary::{CanaryCounts, CanaryKind, Lost};
use egret_core::error::with_causes;
use egret_core::node::{BrokenPath, CanaryEnd, CanaryPath};
use egret_core::numbers::{
    CANARY_AGAIN_MS, CANARY_ANSWER_MS, CANARY_INTERVAL_MS, CANARY_SETTLE_MS, CANARY_TRIES,
};
use egret_datapath::canary::{Canary, CanaryError, CanaryPort};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// First source port (and echo id) of canaries. Each kind has its own ports, which rounds use in turn, so that no
/// canary meets a conntrack entry of the previous one.
const PORTS_FIRST: u16 = 20_000;
const PORTS_OF_A_KIND: u16 = 16;
/// Poll interval of the counters for a canary that nobody answers.
const LOOK: Duration = Duration::from_millis(10);

/// Input of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The paths.
    pub(crate) paths: Vec<CanaryPath>,
    /// Largest IP packet that the tunnel carries, bytes.
    pub(crate) mtu: u32,
}

/// Result of the last round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// Paths that were measured.
    pub(crate) paths: Vec<CanaryPath>,
    /// Paths whose canaries are lost.
    pub(crate) broken: BTreeSet<BrokenPath>,
    /// When the round ended.
    pub(crate) at: Option<Instant>,
}

/// Output of the thread.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// A round has ended.
    Shown(Shown),
    /// The canary device was recreated: its new index.
    Device(u32),
}

/// Input of the thread.
pub(crate) enum Order {
    /// Measure these paths from now on.
    Measure(Measured),
    /// Links, rules or policies have changed: measure soon.
    LookSoon,
}

/// Creates the canary device and starts the thread; returns its channel and the device's index. `None` where the kernel
/// refuses the device: then nothing is measured.
pub(crate) fn start(notify: Notify<Report>) -> Result<(Sender<Order>, Option<u32>), AgentError> {
    let (sender, orders) = channel();
    let opened = CanaryPort::open().and_then(|mut port| {
        let index = port.ensure()?;
        Ok((port, index))
    });
    match opened {
        Ok((port, index)) => {
            let thread = Canaries {
                notify,
                orders,
                port,
                device: index,
                measured: Measured::default(),
                next: None,
                round: 0,
                previous: Vec::new(),
                generation: None,
            };
            spawn("canaries", move || thread.run())?;
            Ok((sender, Some(index)))
        }
        Err(error) => {
            let error = with_causes(&error);
            tracing::warn!(error, "paths are not measured");
            // Without a thread nobody receives the orders.
            Ok((sender, None))
        }
    }
}

struct Canaries {
    notify: Notify<Report>,
    orders: Receiver<Order>,
    port: CanaryPort,
    device: u32,
    measured: Measured,
    /// When the next round begins; `None`: there is nothing to measure.
    next: Option<Instant>,
    round: u16,
    /// Canaries of the last round: connection tracking still knows them.
    previous: Vec<Canary>,
    /// Generation of the whole nftables ruleset at the last check.
    generation: Option<u32>,
}

fn is_past(at: Instant) -> bool {
    at <= Instant::now()
}

impl Canaries {
    fn run(mut self) {
        loop {
            match self.orders.recv_timeout(self.wait_for_orders()) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) if self.next.is_some_and(is_past) => {
                    let shown = self.look();
                    let interval = match shown.broken.is_empty() {
                        true => CANARY_INTERVAL_MS,
                        false => CANARY_AGAIN_MS,
                    };
                    self.next = Some(Instant::now() + Duration::from_millis(interval));
                    if !(self.notify)(Report::Shown(shown)) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.next.is_some() => {
                    // Foreign firewalls send no notification of a change.
                    let generation = self.port.ruleset_generation();
                    if std::mem::replace(&mut self.generation, generation) != generation {
                        self.look_soon();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, order: Order) {
        if let Order::Measure(measured) = order {
            if measured == self.measured {
                return;
            }
            let before = std::mem::replace(&mut self.measured, measured);
            self.forget(&before);
            let paths = self.measured.paths.clone();
            if let Err(error) = self.prepare(&paths) {
                tracing::warn!(error = %with_causes(&error), "canaries");
            }
        }
        if self.measured.paths.is_empty() {
            self.next = None;
            // Paths that were broken no longer exist on this node.
            let _ = (self.notify)(Report::Shown(Shown::default()));
            return;
        }
        self.look_soon();
    }

    /// Removes the state of addresses that canaries no longer use.
    fn forget(&mut self, before: &Measured) {
        let after: BTreeSet<_> = self.measured.paths.iter().map(|path| path.source).collect();
        let before: BTreeSet<_> = before.paths.iter().map(|path| path.source).collect();
        for source in before.difference(&after) {
            if let Err(error) = self.port.expect_no_answers(*source) {
                tracing::debug!(error = %with_causes(&error), "cannot remove a neighbour of canaries");
            }
        }
    }

    fn wait_for_orders(&self) -> Duration {
        let glance = Duration::from_millis(CANARY_SETTLE_MS);
        match self.next {
            Some(next) => next.saturating_duration_since(Instant::now()).min(glance),
            None => Duration::from_millis(CANARY_INTERVAL_MS),
        }
    }

    /// Schedules an early round. Changes come in bursts, so a pending round is not postponed.
    fn look_soon(&mut self) {
        let soon = Instant::now() + Duration::from_millis(CANARY_SETTLE_MS);
        self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
    }

    /// Runs one round. A canary that cannot be sent counts as lost.
    fn look(&mut self) -> Shown {
        self.round = self.round.wrapping_add(1);
        let paths = self.measured.paths.clone();
        self.forget_previous(&paths);
        let mut waiting: BTreeMap<Canary, &CanaryPath> = BTreeMap::new();
        let of = |end: CanaryEnd| paths.iter().filter(move |path| path.end == end);
        for path in of(CanaryEnd::Gateway) {
            for kind in CanaryKind::ALL {
                waiting.insert(canary(path, kind, self.round), path);
            }
        }
        self.generation = self.port.ruleset_generation();
        if let Err(error) = self.prepare(&paths) {
            tracing::warn!(error = %with_causes(&error), "canaries");
        }
        for _ in 0..CANARY_TRIES {
            let sent: Vec<Canary> = waiting.keys().copied().collect();
            for one in &sent {
                self.send(one);
            }
            self.wait(&mut waiting);
            if waiting.is_empty() {
                break;
            }
        }
        let mut broken = self.find(waiting);
        broken.extend(of(CanaryEnd::Guard).filter_map(|path| self.as_far_as_the_guard(path)));
        Shown {
            paths,
            broken,
            at: Some(Instant::now()),
        }
    }

    /// Frees the source ports of the last round: the kernel would keep them for half a minute, and rounds that follow
    /// each other quickly would find none. Only now, so that late answers of the last round are still known as answers.
    fn forget_previous(&mut self, paths: &[CanaryPath]) {
        let round = self.round;
        let canaries = paths
            .iter()
            .flat_map(|path| CanaryKind::ALL.map(|kind| canary(path, kind, round)));
        for one in std::mem::replace(&mut self.previous, canaries.collect()) {
            if let Err(error) = self.port.forget(&one) {
                tracing::debug!(error = %with_causes(&error), "the flow of a canary is not deleted");
            }
        }
    }

    fn prepare(&mut self, paths: &[CanaryPath]) -> Result<(), CanaryError> {
        let device = self.port.ensure()?;
        if device != self.device {
            self.device = device;
            // Somebody has removed the device; the ruleset must have the index of the new one.
            let _ = (self.notify)(Report::Device(device));
        }
        let sources: BTreeSet<_> = paths.iter().map(|path| path.source).collect();
        for source in sources {
            self.port.expect_answers(source)?;
        }
        Ok(())
    }

    fn send(&mut self, canary: &Canary) {
        if let Err(error) = self.port.send(canary, self.measured.mtu) {
            tracing::debug!(error = %with_causes(&error), "a canary is not sent");
        }
    }

    /// Waits for answers, at most as long as one try may take.
    fn wait(&mut self, waiting: &mut BTreeMap<Canary, &CanaryPath>) {
        let end = Instant::now() + Duration::from_millis(CANARY_ANSWER_MS);
        while !waiting.is_empty() {
            while let Some(answer) = self.port.receive() {
                let asked = waiting.keys().copied().find(|one| answer.is_to(one));
                let Some(asked) = asked else { continue };
                waiting.remove(&asked);
                if asked.kind == CanaryKind::Tcp {
                    // Only so that conntrack removes the entry sooner.
                    let _ = self.port.reset(&asked);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if waiting.is_empty() || left.is_zero() {
                return;
            }
            let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.port.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait only ends sooner.
            let _ = poll(&mut fds, timeout);
        }
    }

    /// Finds where the first lost canary of each path is lost: sends it again, alone, and reads the hooks' counters
    /// before and after.
    fn find(&mut self, lost: BTreeMap<Canary, &CanaryPath>) -> BTreeSet<BrokenPath> {
        let mut of_path: BTreeMap<&CanaryPath, Vec<Canary>> = BTreeMap::new();
        for (canary, path) in lost {
            of_path.entry(path).or_default().push(canary);
        }
        let mut broken = BTreeSet::new();
        for (path, canaries) in of_path {
            let mut kinds: BTreeSet<CanaryKind> = canaries.iter().map(|one| one.kind).collect();
            let mut place = None;
            for canary in &canaries {
                match self.trace(canary, path) {
                    Some(lost) => {
                        place = Some(lost);
                        break;
                    }
                    // This time it came back, or nothing is known about it.
                    None => kinds.remove(&canary.kind),
                };
            }
            if let Some(lost) = place {
                broken.insert(BrokenPath {
                    group: path.group.clone(),
                    v6: path.egress.is_ipv6(),
                    kinds,
                    lost,
                });
            }
        }
        broken
    }

    /// Sends the canaries that nobody answers, one after the other, since only the hooks' counters show how far they
    /// get.
    fn as_far_as_the_guard(&mut self, path: &CanaryPath) -> Option<BrokenPath> {
        let mut kinds = BTreeSet::new();
        let mut place = None;
        for kind in CanaryKind::ALL {
            let canary = canary(path, kind, self.round);
            let tries = (0..CANARY_TRIES).map(|_| self.passes(&canary));
            // One try that gets through is enough.
            let lost = tries.map_while(|lost| lost).collect::<Vec<Lost>>();
            if lost.len() == CANARY_TRIES as usize {
                kinds.insert(kind);
                place = place.or(lost.last().copied());
            }
        }
        Some(BrokenPath {
            group: path.group.clone(),
            v6: path.egress.is_ipv6(),
            kinds,
            lost: place?,
        })
    }

    /// Sends one and waits until the guard has counted it; returns where it is lost otherwise.
    fn passes(&mut self, canary: &Canary) -> Option<Lost> {
        let before = self.counts()?;
        self.send(canary);
        let end = Instant::now() + Duration::from_millis(CANARY_ANSWER_MS);
        loop {
            let after = self.counts()?;
            let lost = Lost::before_the_guard(&before, &after)?;
            if is_past(end) {
                return Some(lost);
            }
            // No packet arrives that could wake this thread; the kernel has mostly counted it by the first poll.
            std::thread::sleep(LOOK);
        }
    }

    /// Counters of the hooks. `None`: they cannot be read, so that no place can be named in this round.
    fn counts(&mut self) -> Option<CanaryCounts> {
        let counts = self.port.counts();
        counts
            .inspect_err(|error| {
                tracing::warn!(error = %with_causes(error), "cannot read the counters of canaries");
            })
            .ok()
    }

    fn trace(&mut self, canary: &Canary, path: &CanaryPath) -> Option<Lost> {
        let before = self.counts()?;
        self.send(canary);
        let mut waiting = BTreeMap::from([(*canary, path)]);
        self.wait(&mut waiting);
        if waiting.is_empty() {
            return None;
        }
        let after = self.counts()?;
        Some(Lost::between(&before, &after))
    }
}

fn canary(path: &CanaryPath, kind: CanaryKind, round: u16) -> Canary {
    Canary {
        kind,
        source: path.source,
        destination: path.destination,
        port: PORTS_FIRST + kind as u16 * PORTS_OF_A_KIND + round % PORTS_OF_A_KIND,
    }
}
