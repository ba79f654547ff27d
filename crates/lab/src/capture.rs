//! Counts packets on a device before any other hook processes them, so that a test can check the source addresses on
//! the wire.
//!
//! Packets that the kernel could not deliver are reported: see [`CaptureReport::dropped`].

mod socket;

use crate::LabError;
use crate::error::io;
use crate::namespace::Place;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use socket::PacketSocket;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of each packet that are read and stored.
const SNAP_BYTES: usize = 256;
/// Offending packets that are stored for a failed test's message; more are only counted.
const KEPT_MAX: usize = 20;
/// Poll interval of the thread's stop flag.
const POLL: Duration = Duration::from_millis(20);

/// Whether a packet came in or went out by the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// A captured IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Direction at the device.
    pub direction: Direction,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol after IPv6 extension headers (IANA number: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6).
    pub protocol: u8,
    /// Source and destination port of TCP or UDP, if the packet has them (later fragments do not).
    pub ports: Option<(u16, u16)>,
    /// Its first bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

impl std::fmt::Display for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            direction,
            source,
            destination,
            protocol,
            ports,
            bytes,
        } = self;
        write!(
            f,
            "{direction:?} {source} > {destination} protocol {protocol}"
        )?;
        if let Some((from, to)) = ports {
            write!(f, " ports {from} > {to}")?;
        }
        f.write_str(" bytes ")?;
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Key by which packets are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// Source address.
    pub source: IpAddr,
    /// Protocol (IANA number).
    pub protocol: u8,
    /// Direction at the device.
    pub direction: Direction,
}

/// Result of a capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureReport {
    /// IP packets by source, protocol and direction.
    pub counts: BTreeMap<FlowKey, u64>,
    /// Packets that are not IP.
    pub other: u64,
    /// The first packets that the predicate matched.
    pub offending: Vec<Packet>,
    /// Number of all packets that the predicate matched.
    pub offending_count: u64,
    /// Packets that the kernel received but could not deliver. A test that expects no packet must check that this is
    /// zero.
    pub dropped: u64,
}

impl CaptureReport {
    /// Packets from `source` in one direction, of all protocols.
    pub fn from_source(&self, source: IpAddr, direction: Direction) -> u64 {
        let counts = self.counts.iter();
        let ours = counts.filter(|(key, _)| key.source == source && key.direction == direction);
        ours.map(|(_, count)| count).sum()
    }

    /// `Ok` if there is no offending and no lost packet; otherwise a text about them.
    ///
    /// # Errors
    /// The predicate matched a packet, or packets were lost, so that the result is unknown.
    pub fn clean(&self) -> Result<(), String> {
        if self.offending_count == 0 && self.dropped == 0 {
            return Ok(());
        }
        let packets: Vec<String> = self.offending.iter().map(ToString::to_string).collect();
        Err(format!(
            "{} offending packets, {} lost by the capture\n{}",
            self.offending_count,
            self.dropped,
            packets.join("\n")
        ))
    }
}

/// A capture that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<CaptureReport>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Capture {
    /// Captures on a device of a place; no packet after the return is missed. Packets for which `is_offending` holds
    /// are stored.
    ///
    /// # Errors
    /// No such device, or the place cannot be entered.
    pub fn start(
        place: &Place,
        device: &str,
        is_offending: impl Fn(&Packet) -> bool + Send + 'static,
    ) -> Result<Self, LabError> {
        let socket = place.run(|| PacketSocket::open(device))?;
        let what = format!("capturing on {device} of {}", place.name());
        let socket = socket.map_err(io(what))?;
        let (stop, report) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (inner_stop, inner_report) = (Arc::clone(&stop), Arc::clone(&report));
        let work = move || capture(&socket, &is_offending, &inner_stop, &inner_report);
        let thread = std::thread::Builder::new()
            .name(format!("capture {device}"))
            .spawn(work);
        let thread = Some(thread.map_err(io("starting a thread"))?);
        Ok(Self {
            stop,
            report,
            thread,
        })
    }

    /// Report up to now.
    pub fn so_far(&self) -> CaptureReport {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the packets that the kernel still has queued, ends the capture and reports.
    ///
    /// # Errors
    /// The device vanished or the kernel refused to read on.
    pub fn stop(mut self) -> Result<CaptureReport, LabError> {
        self.end().map_err(io("capturing packets"))?;
        Ok(self.so_far())
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // A test that fails has its own message; this one would hide it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn capture(
    socket: &PacketSocket,
    is_offending: &impl Fn(&Packet) -> bool,
    stop: &AtomicBool,
    report: &Mutex<CaptureReport>,
) -> std::io::Result<()> {
    let mut buffer = [0; SNAP_BYTES];
    loop {
        // Read before the queue is emptied, so that everything from before the stop is counted.
        let is_last = stop.load(Ordering::SeqCst);
        if !is_last {
            socket.wait(POLL)?;
        }
        while let Some((length, is_outgoing)) = socket.receive(&mut buffer)? {
            let direction = if is_outgoing {
                Direction::Out
            } else {
                Direction::In
            };
            let packet = parse(&buffer[..length], direction);
            let offends = packet.as_ref().is_some_and(is_offending);
            count(
                &mut report.lock().unwrap_or_else(PoisonError::into_inner),
                packet,
                offends,
            );
        }
        // The kernel resets its counter at every read.
        let dropped = u64::from(socket.dropped()?);
        report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .dropped += dropped;
        if is_last {
            return Ok(());
        }
    }
}

fn count(report: &mut CaptureReport, packet: Option<Packet>, offends: bool) {
    let Some(packet) = packet else {
        report.other += 1;
        return;
    };
    let Packet {
        source,
        protocol,
        direction,
        ..
    } = packet;
    *report
        .counts
        .entry(FlowKey {
            source,
            protocol,
            direction,
        })
        .or_default() += 1;
    if offends {
        report.offending_count += 1;
        if report.offending.len() < KEPT_MAX {
            report.offending.push(packet);
        }
    }
}

fn parse(bytes: &[u8], direction: Direction) -> Option<Packet> {
    let sliced = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    let (source, destination, protocol): (IpAddr, IpAddr, u8) = match sliced.net? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let protocol = ip.payload().ip_number.0;
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                protocol,
            )
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let protocol = ip.payload().ip_number.0;
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                protocol,
            )
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    };
    Some(Packet {
        direction,
        source,
        destination,
        protocol,
        ports,
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_read_from_a_cut_off_packet() {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [3; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1024, 53);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &[0; 1000]).unwrap();
        let packet = parse(&bytes[..SNAP_BYTES], Direction::In).unwrap();
        assert_eq!(packet.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!((packet.protocol, packet.ports), (17, Some((1024, 53))));
    }
}
