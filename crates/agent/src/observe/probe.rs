//! Probes gateways through the tunnel. `core::machines::Liveness` decides which are alive; this module has the sockets.
//!
//! A request is a handmade tunnel packet from the node's underlay address. The gateway's eBPF program returns it
//! through its tunnel, so the answer proves the path and not a process.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::machines::{GatewayLiveness, Hearing, Liveness, LivenessCommand, ProbeSettings};
use egret_core::model::NodeName;
use egret_core::node::ProbeTarget;
use egret_core::numbers::{TUNNEL_DEVICE, TUNNEL_PORT};
use egret_datapath::gateway::Heard;
use egret_wire::link_local;
use egret_wire::probe::{Kind, PORT, Probe};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, SendError, Sender, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Longest sleep.
const LOOK_MS: u64 = 500;
/// The same while probes wait for this node's own carrier.
const LOOK_WHILE_CUT_OFF_MS: u64 = 20;
/// Answers read between two reads of the clock.
const BURST_MAX: usize = 256;

/// Gateways to probe, and the node's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// Own number in the tunnel, own underlay address, index of the tunnel device.
    pub(crate) me: Option<(u16, IpAddr, u32)>,
    /// Gateways.
    pub(crate) peers: BTreeMap<NodeName, ProbeTarget>,
    /// Where no eBPF program answers probes: the steering version, and the nodes that get answers, by tunnel index.
    pub(crate) answers: Option<(u64, BTreeMap<u16, IpAddr>)>,
    /// This node itself has no carrier: silence shows nothing about others, so no probes are sent.
    pub(crate) cut_off: bool,
}

/// Slot in which the main loop puts the counters of the programs that answer other nodes' probes.
pub(crate) type HeardSlot = Arc<Mutex<Option<Heard>>>;

/// The thread's channel for targets. Sending wakes it.
#[derive(Debug)]
pub(crate) struct TargetSender {
    targets: Sender<Targets>,
    wake: UnixStream,
}

impl TargetSender {
    /// Replaces the targets.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn send(&self, targets: Targets) -> Result<(), SendError<Targets>> {
        self.targets.send(targets)?;
        // A full buffer wakes it as well.
        let _ = (&self.wake).write(&[0]);
        Ok(())
    }
}

/// Starts the thread and returns its channel for targets.
pub(crate) fn start(
    heard: HeardSlot,
    notify: Notify<GatewayLiveness>,
) -> Result<TargetSender, AgentError> {
    let (targets, inbox) = mpsc::channel();
    let (wake, woken) = wake_pair().map_err(|source| AgentError::Io {
        doing: "starting a thread",
        source,
    })?;
    let prober = Prober {
        notify,
        inbox,
        woken,
        started: Instant::now(),
        // Keyed by the operating system's randomness: nonces cannot be guessed.
        liveness: Liveness::new(RandomState::new().hash_one("egret probes")),
        targets: Targets::default(),
        sockets: None,
        targets_updated: false,
        told: GatewayLiveness::default(),
        heard,
        hearing: Hearing::default(),
        asked: 0,
        answered: true,
    };
    spawn("probes", move || prober.run())?;
    Ok(TargetSender { targets, wake })
}

fn wake_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    Ok((wake, woken))
}

struct Sockets {
    requests: UdpSocket,
    replies: UdpSocket,
    reply_port: u16,
    /// Socket for other nodes' probes, on gateways without eBPF.
    asked: Option<UdpSocket>,
}

struct Prober {
    notify: Notify<GatewayLiveness>,
    inbox: Receiver<Targets>,
    /// Readable when there are new targets.
    woken: UnixStream,
    started: Instant,
    liveness: Liveness,
    targets: Targets,
    sockets: Option<Sockets>,
    /// Gateways may have been added or removed since the last message.
    targets_updated: bool,
    told: GatewayLiveness,
    heard: HeardSlot,
    hearing: Hearing,
    /// Probes that this process has answered.
    asked: u64,
    /// Whether a gateway has answered since this node's own link was down.
    answered: bool,
}

impl Prober {
    fn run(mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(targets) => {
                    self.update_targets(targets);
                    self.targets_updated = true;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            self.sleep();
            // Answers first: a late wake-up must not declare a gateway dead whose answer has arrived.
            self.read_replies();
            self.answer();
            let now_ms = self.now_ms();
            if !self.is_waiting() {
                self.liveness.handle_deadline(now_ms);
            }
            if !self.carry_out() {
                return;
            }
        }
    }

    /// Whether probes wait for this node's own carrier. A fresh agent does not wait: it has a kernel to program.
    fn is_waiting(&self) -> bool {
        self.targets.cut_off && self.liveness.settled()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn update_targets(&mut self, mut targets: Targets) {
        while let Ok(newer) = self.inbox.try_recv() {
            targets = newer;
        }
        let answers = targets.answers.is_some();
        let same = targets.me == self.targets.me && answers == self.targets.answers.is_some();
        if !same || self.sockets.is_none() {
            // The old ones first: only one socket can have the probe port.
            self.sockets = None;
            self.sockets = targets.me.and_then(|(index, underlay, device)| {
                open(index, underlay, device, answers)
                    .inspect_err(|error| tracing::warn!(%error, "probes cannot be sent yet"))
                    .ok()
            });
        }
        let settings = |target: &ProbeTarget| ProbeSettings {
            interval_ms: target.interval_ms,
            failures: target.failures,
        };
        let peers = targets
            .peers
            .iter()
            .map(|(name, peer)| (name.clone(), settings(peer)));
        let now_ms = self.now_ms();
        if self.targets.cut_off && !targets.cut_off {
            self.liveness.resume(now_ms);
        }
        self.answered &= !targets.cut_off;
        self.liveness.set_peers(&peers.collect(), now_ms);
        self.targets = targets;
    }

    fn sleep(&self) {
        let due = self.liveness.next_deadline().unwrap_or(u64::MAX);
        let wait_ms = match self.is_waiting() {
            true => LOOK_WHILE_CUT_OFF_MS,
            false => due.saturating_sub(self.now_ms()).min(LOOK_MS),
        };
        let timeout = PollTimeout::try_from(wait_ms as i32).unwrap_or(PollTimeout::ZERO);
        let readable = |socket| PollFd::new(socket, PollFlags::POLLIN);
        let mut wait = vec![readable(self.woken.as_fd())];
        if let Some(sockets) = &self.sockets {
            wait.push(readable(sockets.replies.as_fd()));
            let asked = sockets.asked.iter();
            wait.extend(asked.map(|socket| readable(socket.as_fd())));
        }
        // The result does not matter otherwise: the loop checks everything.
        let _ = poll(&mut wait, timeout);
        if wait[0].any().unwrap_or(true) {
            let _ = (&self.woken).read(&mut [0; 64]);
        }
    }

    fn read_replies(&mut self) {
        let Some(sockets) = &self.sockets else { return };
        let mut buffer = [0u8; 128];
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for _ in 0..BURST_MAX {
            let Ok((length, from)) = sockets.replies.recv_from(&mut buffer) else {
                return;
            };
            let Ok(probe) = Probe::decode(&buffer[..length]) else {
                continue;
            };
            let sender = self
                .targets
                .peers
                .iter()
                .find(|(_, peer)| peer.index == probe.sender);
            let genuine = probe.kind == Kind::Reply
                && from.port() == PORT
                && from.ip() == IpAddr::V6(link_local(probe.sender));
            if let (true, Some((name, _))) = (genuine, sender) {
                let version = probe.steering_version;
                self.answered |= !self.targets.cut_off;
                self.liveness
                    .reply_received(name, probe.nonce, version, now_ms);
            }
        }
    }

    /// Answers other nodes' probes as the eBPF program would: only to known nodes.
    fn answer(&mut self) {
        let (Some(sockets), Some((version, nodes)), Some((own, ..))) =
            (&self.sockets, &self.targets.answers, self.targets.me)
        else {
            return;
        };
        let Some(asked) = &sockets.asked else { return };
        let mut buffer = [0u8; 128];
        for _ in 0..BURST_MAX {
            let Ok((length, from)) = asked.recv_from(&mut buffer) else {
                return;
            };
            let Ok(probe) = Probe::decode(&buffer[..length]) else {
                continue;
            };
            let genuine =
                probe.kind == Kind::Request && from.ip() == IpAddr::V6(link_local(probe.sender));
            if let (true, Some(underlay)) = (genuine, nodes.get(&probe.sender)) {
                let to = probe.sender;
                let reply = Probe {
                    kind: Kind::Reply,
                    sender: own,
                    steering_version: *version,
                    ..probe
                };
                let frame = reply.encode_frame(to, PORT, from.port());
                self.asked += 1;
                // An error counts as a lost answer.
                let _ = sockets.requests.send_to(&frame, (*underlay, TUNNEL_PORT));
            }
        }
    }

    /// Sends due probes and reports changes; `false`: the receiver is gone.
    fn carry_out(&mut self) -> bool {
        let commands = self.liveness.drain();
        let mut news = false;
        let (mut losses, mut lapsed) = (0, false);
        for command in commands {
            match command {
                LivenessCommand::SendProbe { peer, nonce } => self.send(&peer, nonce),
                LivenessCommand::Dead { peer } => {
                    tracing::warn!(gateway = %peer, "gateway does not answer");
                    (news, losses) = (true, losses + 1);
                }
                LivenessCommand::Alive { peer } => {
                    tracing::info!(gateway = %peer, "gateway answers");
                    news = true;
                }
                LivenessCommand::Lapsed { peer } => {
                    tracing::info!(gateway = %peer, "gateway answered for a moment");
                    (news, lapsed) = (true, true);
                }
                LivenessCommand::Version { .. } => news = true,
            }
        }
        let settled = self.sockets.is_some() && self.liveness.settled();
        let targets_updated = std::mem::take(&mut self.targets_updated);
        let (alone, reached) = self.standing();
        let same =
            (settled, alone, reached) == (self.told.settled, self.told.alone, self.told.reached);
        if !news && !targets_updated && same {
            return true;
        }
        let seen = GatewayLiveness {
            live: self.liveness.live(),
            versions: self.liveness.versions(),
            settled,
            losses,
            lapsed,
            alone,
            reached,
        };
        if !news && seen == self.told {
            return true;
        }
        self.told = seen;
        (self.notify)(self.told.clone())
    }

    /// Returns whether no other gateway answers this node, and whether other nodes' probes reach it.
    fn standing(&mut self) -> (bool, bool) {
        let now_ms = self.now_ms();
        if self.targets.peers.is_empty() {
            return (false, true);
        }
        if let Ok(slot) = self.heard.lock()
            && let Some(heard) = slot.as_ref()
        {
            self.hearing.counted(heard.packets() + self.asked, now_ms);
        } else if self.asked > 0 {
            self.hearing.counted(self.asked, now_ms);
        }
        if self.targets.cut_off {
            self.hearing.cut_off(now_ms);
        }
        let alone = self.targets.cut_off || !self.answered || !self.liveness.any_live();
        let patience_ms = self.liveness.patience_ms();
        let reached = self.hearing.is_reached(alone, patience_ms, now_ms);
        (alone, reached)
    }

    fn send(&self, peer: &NodeName, nonce: u64) {
        let (Some(sockets), Some(target)) = (&self.sockets, self.targets.peers.get(peer)) else {
            return;
        };
        let sender = self.targets.me.map_or(0, |(index, ..)| index);
        let probe = Probe {
            kind: Kind::Request,
            sender,
            nonce,
            steering_version: 0,
        };
        let frame = probe.encode_frame(target.index, sockets.reply_port, PORT);
        // An error (no route, interface down) counts as a lost probe.
        let to = (target.underlay, TUNNEL_PORT);
        let _ = sockets.requests.send_to(&frame, to);
    }
}

fn open(index: u16, underlay: IpAddr, device: u32, answers: bool) -> io::Result<Sockets> {
    let requests = UdpSocket::bind((underlay, 0))?;
    requests.set_nonblocking(true)?;
    let replies = in_tunnel(index, device, 0)?;
    let asked = answers
        .then(|| in_tunnel(index, device, PORT))
        .transpose()?;
    let reply_port = replies.local_addr()?.port();
    Ok(Sockets {
        requests,
        replies,
        reply_port,
        asked,
    })
}

fn in_tunnel(index: u16, device: u32, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.bind_device(Some(TUNNEL_DEVICE.as_bytes()))?;
    let address = SocketAddrV6::new(link_local(index), port, 0, device);
    socket.bind(&SocketAddr::from(address).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_targets_wake_the_thread() {
        let (wake, woken) = wake_pair().unwrap();
        let (targets, inbox) = mpsc::channel();
        let sender = TargetSender { targets, wake };
        let woken_by = || (&woken).read(&mut [0; 64]).ok();
        assert_eq!(woken_by(), None);
        sender.send(Targets::default()).unwrap();
        assert_eq!(woken_by(), Some(1));
        assert_eq!(inbox.try_recv(), Ok(Targets::default()));
    }
}
