//! Source addresses that the server receives from the pods of every worker.

use super::screen::{Screen, time};
use crate::layout::{HostLayout, PodLayout};
use crate::slowness::relaxed;
use crate::traffic::ping::PingError;
use crate::traffic::{TrafficError, ping_source, server, tcp_source, udp_source};
use crate::{Lab, LabError, Place};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Longest time for a refusal to count as immediate: programs would wait for a later one. A TCP connection whose first
/// SYN got no answer would take one second (RFC 6298).
const AT_ONCE: Duration = Duration::from_millis(700);

/// Expected result of a pod in one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The address of the pod's node.
    Node,
    /// An egress address.
    Address(IpAddr),
    /// No answer: the pod gets an error "prohibited" at once.
    Refused,
}

/// Actual result.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Source(IpAddr),
    Refused(Duration),
    Failed(String),
}

/// One pod of the table.
struct Row<'a> {
    host: &'a HostLayout,
    pod: &'a PodLayout,
    place: Place,
    wanted: [Wanted; 2],
}

/// Asks the servers, one of each family, by TCP, UDP and ping from every pod for which `wanted` has an expectation, and
/// shows and checks one line per pod.
pub(super) fn show(
    screen: &mut Screen,
    lab: &Lab,
    servers: [IpAddr; 2],
    wanted: impl Fn(&PodLayout) -> Option<[Wanted; 2]>,
) -> anyhow::Result<()> {
    screen.go_on()?;
    let layout = lab.layout()?;
    let mut rows = Vec::new();
    for host in &layout.hosts {
        for pod in &host.pods {
            if let Some(wanted) = wanted(pod) {
                let place = lab.place(&format!("pod/{}/{}", pod.namespace, pod.name))?;
                rows.push(Row {
                    host,
                    pod,
                    place,
                    wanted,
                });
            }
        }
    }
    let [v4, v6] = servers.map(|server| format!("SEEN BY {server}"));
    screen.note(&line("WORKER", "POD", "LABEL", &v4, &v6));
    for (row, seen) in rows.iter().zip(ask_all(&rows, servers)) {
        let label = row.pod.labels.iter().next();
        let label = label.map(|(key, value)| format!("{key}: {value}"));
        let (is_right, [v4, v6]) = judge(row, &seen);
        let label = label.unwrap_or_default();
        screen.check(
            is_right,
            &line(&row.host.name, &row.pod.name, &label, &v4, &v6),
        );
    }
    Ok(())
}

fn line(worker: &str, pod: &str, label: &str, v4: &str, v6: &str) -> String {
    format!("{worker:<9}{pod:<8}{label:<12}{v4:<23}{v6}")
}

/// Answers by TCP, UDP and ping of both families, all pods at the same time.
fn ask_all(rows: &[Row<'_>], servers: [IpAddr; 2]) -> Vec<[[Seen; 3]; 2]> {
    std::thread::scope(|scope| {
        let ask = |place: &Place, server| [tcp, udp, ping].map(|by| timed(|| by(place, server)));
        let threads: Vec<_> = rows
            .iter()
            .map(|row| servers.map(|server| scope.spawn(move || ask(&row.place, server))))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(seen) => seen,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(|pair| pair.map(join)).collect()
    })
}

fn tcp(place: &Place, server: IpAddr) -> Result<IpAddr, TrafficError> {
    tcp_source(place, SocketAddr::new(server, server::ECHO_PORTS[0])).map(|source| source.ip())
}

fn udp(place: &Place, server: IpAddr) -> Result<IpAddr, TrafficError> {
    udp_source(place, SocketAddr::new(server, server::ECHO_PORTS[0])).map(|source| source.ip())
}

fn ping(place: &Place, server: IpAddr) -> Result<IpAddr, TrafficError> {
    ping_source(place, server)
}

fn timed(ask: impl FnOnce() -> Result<IpAddr, TrafficError>) -> Seen {
    let started = Instant::now();
    match ask() {
        Ok(source) => Seen::Source(source),
        Err(error) if is_prohibited(&error) => Seen::Refused(started.elapsed()),
        Err(error) => Seen::Failed(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// Whether an error is the refusal of a policy: for TCP a reset, otherwise "communication administratively prohibited"
/// (RFC 1812 section 5.2.7.1: Linux returns `EHOSTUNREACH` to sockets; RFC 4443 section 3.1: `EACCES`).
fn is_prohibited(error: &TrafficError) -> bool {
    match error {
        TrafficError::Ping(PingError::Icmp { kind, code, .. }) => {
            matches!((kind, code), (3, 13) | (1, 1))
        }
        TrafficError::Ping(PingError::Send(_, source)) | TrafficError::Io { source, .. } => {
            matches!(
                source.raw_os_error(),
                Some(libc::EACCES | libc::EHOSTUNREACH | libc::ECONNREFUSED)
            )
        }
        _ => false,
    }
}

/// Whether all answers of a pod are as expected, and a cell of text for each family.
fn judge(row: &Row<'_>, seen: &[[Seen; 3]; 2]) -> (bool, [String; 2]) {
    let nodes: Vec<IpAddr> = row.host.node_addresses().collect();
    let is_right = |seen: &Seen, wanted: Wanted, is_v4: bool| match (seen, wanted) {
        (Seen::Source(source), Wanted::Node) => nodes.contains(source) && source.is_ipv4() == is_v4,
        (Seen::Source(source), Wanted::Address(address)) => *source == address,
        (Seen::Refused(after), Wanted::Refused) => *after < relaxed(AT_ONCE),
        _ => false,
    };
    let mut families = seen.iter().zip(row.wanted).zip([true, false]);
    let all_right = families
        .all(|((answers, wanted), is_v4)| answers.iter().all(|seen| is_right(seen, wanted, is_v4)));
    (all_right, [cell(&seen[0]), cell(&seen[1])])
}

fn cell(seen: &[Seen; 3]) -> String {
    match seen {
        [Seen::Source(tcp), Seen::Source(udp), Seen::Source(ping)] if tcp == udp && udp == ping => {
            tcp.to_string()
        }
        [Seen::Refused(tcp), Seen::Refused(udp), Seen::Refused(ping)] => {
            format!("refused in {}", time(*tcp.max(udp).max(ping)))
        }
        _ => ["tcp", "udp", "ping"]
            .iter()
            .zip(seen)
            .map(|(protocol, seen)| match seen {
                Seen::Source(source) => format!("{protocol} {source}"),
                Seen::Refused(after) => format!("{protocol} refused ({})", time(*after)),
                Seen::Failed(why) => format!("{protocol} failed: {why}"),
            })
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// The first server host's addresses: the first and the second of each family.
pub(super) fn servers(lab: &Lab) -> Result<[[IpAddr; 2]; 2], LabError> {
    let layout = lab.layout()?;
    let all: Vec<IpAddr> = layout
        .host("server")
        .map(|server| server.addresses().collect())
        .unwrap_or_default();
    let of = |is_v4: bool, n: usize| {
        let mut family = all.iter().filter(|address| address.is_ipv4() == is_v4);
        *family.nth(n).expect("the built-in server has two of each")
    };
    Ok([0, 1].map(|n| [of(true, n), of(false, n)]))
}
