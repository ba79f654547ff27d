//! Sends canaries along every path of the node and says which do not come back, and where they are lost. What is sent and
//! what a loss means is decided in `core::canary`; here are the sockets and the waiting.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::canary::{CanaryKind, Lost};
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

/// First source port (and echo id) of canaries; each kind has some of its own, which rounds use in turn, so that none
/// meets what connection tracking remembers of the one before.
const PORTS_FIRST: u16 = 20_000;
const PORTS_OF_A_KIND: u16 = 16;
/// Time between two looks at the counters of a canary that nobody answers.
const LOOK: Duration = Duration::from_millis(10);

/// What is to be measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The paths.
    pub(crate) paths: Vec<CanaryPath>,
    /// Largest IP packet that the tunnel carries, bytes.
    pub(crate) mtu: u32,
}

/// What the last round has shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// Paths that it looked at.
    pub(crate) paths: Vec<CanaryPath>,
    /// Those whose canaries are lost.
    pub(crate) broken: BTreeSet<BrokenPath>,
    /// When it ended.
    pub(crate) at: Option<Instant>,
}

/// What the thread hands on.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// A round has ended.
    Shown(Shown),
    /// The canary device was made anew: its index.
    Device(u32),
}

/// What the thread is told.
pub(crate) enum Order {
    /// These paths from now on.
    Measure(Measured),
    /// Links, rules or policies have changed: look soon.
    LookSoon,
}

/// Makes the canary device and starts the thread: the way to it, and the device's index. `None` where the kernel refuses
/// the device: then nothing is measured.
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
                generation: None,
            };
            spawn("canaries", move || thread.run())?;
            Ok((sender, Some(index)))
        }
        Err(error) => {
            let error = with_causes(&error);
            tracing::warn!(error, "the way of pods' packets is not measured");
            // Nobody reads what is sent.
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
    /// When the next round begins; `None`: nothing is to be measured.
    next: Option<Instant>,
    round: u16,
    /// Of everybody's ruleset, when it was last looked at.
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
                    // Firewalls do not tell when they change.
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
            // What was broken is no way of this node any more.
            let _ = (self.notify)(Report::Shown(Shown::default()));
            return;
        }
        self.look_soon();
    }

    /// Nothing stays of addresses that canaries come from no more.
    fn forget(&mut self, before: &Measured) {
        let after: BTreeSet<_> = self.measured.paths.iter().map(|path| path.source).collect();
        let before: BTreeSet<_> = before.paths.iter().map(|path| path.source).collect();
        for source in before.difference(&after) {
            if let Err(error) = self.port.expect_no_answers(*source) {
                tracing::debug!(error = %with_causes(&error), "a neighbour of canaries stays");
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

    /// Changes come in bursts; what is put off again and again would never be looked at.
    fn look_soon(&mut self) {
        let soon = Instant::now() + Duration::from_millis(CANARY_SETTLE_MS);
        self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
    }

    /// One round. What cannot be sent at all is lost like what is dropped.
    fn look(&mut self) -> Shown {
        self.round = self.round.wrapping_add(1);
        let paths = self.measured.paths.clone();
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

    fn prepare(&mut self, paths: &[CanaryPath]) -> Result<(), CanaryError> {
        let device = self.port.ensure()?;
        if device != self.device {
            self.device = device;
            // Somebody has removed it; the ruleset must know the new one.
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

    /// Waits for answers, at most as long as one try has.
    fn wait(&mut self, waiting: &mut BTreeMap<Canary, &CanaryPath>) {
        let end = Instant::now() + Duration::from_millis(CANARY_ANSWER_MS);
        while !waiting.is_empty() {
            while let Some(answer) = self.port.receive() {
                let asked = waiting.keys().copied().find(|one| answer.is_to(one));
                let Some(asked) = asked else { continue };
                waiting.remove(&asked);
                if asked.kind == CanaryKind::Tcp {
                    // Only so that connection tracking forgets it sooner.
                    let _ = self.port.reset(&asked);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if waiting.is_empty() || left.is_zero() {
                return;
            }
            let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.port.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a short one.
            let _ = poll(&mut fds, timeout);
        }
    }

    /// Where the first lost canary of each path is lost: sent once more, alone, between two looks at the hooks' counters.
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
                    // It came back this time.
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

    /// Canaries that nobody answers: one after the other, since only the hooks' counters tell of them.
    fn as_far_as_the_guard(&mut self, path: &CanaryPath) -> Option<BrokenPath> {
        let mut kinds = BTreeSet::new();
        let mut place = None;
        for kind in CanaryKind::ALL {
            let canary = canary(path, kind, self.round);
            let tries = (0..CANARY_TRIES).map(|_| self.passes(&canary));
            // The first try that gets there is enough.
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

    /// Sends one and waits until the guard has counted it: where it is lost, if it does not get there.
    fn passes(&mut self, canary: &Canary) -> Option<Lost> {
        let before = self.port.counts().unwrap_or_default();
        self.send(canary);
        let end = Instant::now() + Duration::from_millis(CANARY_ANSWER_MS);
        loop {
            let after = self.port.counts().unwrap_or_default();
            let lost = Lost::before_the_guard(&before, &after)?;
            if is_past(end) {
                return Some(lost);
            }
            // Nothing that arrives wakes us here; the kernel has mostly done it by the first look.
            std::thread::sleep(LOOK);
        }
    }

    fn trace(&mut self, canary: &Canary, path: &CanaryPath) -> Option<Lost> {
        let before = self.port.counts().unwrap_or_default();
        self.send(canary);
        let mut waiting = BTreeMap::from([(*canary, path)]);
        self.wait(&mut waiting);
        if waiting.is_empty() {
            return None;
        }
        let after = self.port.counts().unwrap_or_default();
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
