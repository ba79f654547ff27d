//! End of flows when pods come and go, in a real kernel: the flows are put into its table by hand.

use egret_core::model::PortRange;
use egret_core::node::*;
use egret_datapath::worker::driver::WorkerDriver;
use egret_kernel::conntrack::Conntrack;
use egret_kernel::netlink::{Attrs, NetlinkSocket, Request, flags};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

const FIRST: &str = "10.244.1.5";
const SECOND: &str = "10.244.1.6";
const SERVER: &str = "203.0.113.10";
const NODE: &str = "192.168.122.11";
/// Egress addresses of two policies.
const EGRESS: [&str; 2] = ["192.168.122.222", "192.168.122.223"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Runs `f` on a thread of its own in a new network namespace, which ends with the thread.
fn in_new_namespace(f: impl FnOnce(&mut WorkerDriver) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let directory = tempfile::tempdir().expect("a directory");
            f(&mut WorkerDriver::open(directory.path()).expect("the data path"));
        });
        let joined = thread.join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Pods with the number of their policy.
fn state(pods: &[(&str, usize)]) -> NodeState {
    let mut worker = WorkerState {
        egress_addresses: EGRESS.map(ip).into(),
        groups: BTreeMap::from([(1, Group::Nowhere)]),
        ..WorkerState::default()
    };
    for (address, policy) in pods {
        let (profile, target) = (ProfileId(*policy as u64 + 1), TargetId(*policy as u64 + 1));
        worker.pods.insert(ip(address), profile);
        let everything = DestinationRange {
            first: ip("0.0.0.0"),
            last: ip("255.255.255.255"),
            protocol: None,
            port_first: 0,
            port_last: u16::MAX,
            verdict: Verdict::Target(target),
        };
        let boxes = vec![everything];
        let portless = Vec::new();
        worker.profiles.insert(
            profile,
            Profile {
                ranges: boxes,
                portless,
            },
        );
        let address = ip(EGRESS[*policy]);
        let (group, ranges) = (1, Vec::new());
        let target_of_policy = Target {
            address,
            group,
            traffic_key: TrafficKeyId(1),
            quotas: Default::default(),
            ranges,
        };
        worker.targets.insert(target, target_of_policy);
    }
    NodeState {
        tunnel: Tunnel::new(1, ip(NODE), 1450),
        peers: BTreeMap::new(),
        node_addresses: BTreeSet::from([ip(NODE)]),
        worker,
        gateway: None,
    }
}

fn starts(address: &str) -> Idle {
    let starting = [ip(address)].into();
    Idle {
        starting,
        ..Idle::default()
    }
}

fn ended(address: &str) -> Idle {
    let ended = [ip(address)].into();
    Idle {
        ended,
        ..Idle::default()
    }
}

/// A UDP flow of a pod to the server, which sees it come from `source`; both ends use `port`.
fn open(pod: &str, source: &str, port: u16) {
    const NEW: u16 = 0x100;
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_TUPLE_REPLY: u16 = 2;
    const CTA_TIMEOUT: u16 = 7;
    let address = |text: &str| text.parse::<Ipv4Addr>().expect("IPv4").octets();
    let tuple = |from: &str, to: &str| {
        let addresses = Attrs::default()
            .bytes(1, &address(from))
            .bytes(2, &address(to));
        let ports = Attrs::default()
            .u8(1, 17)
            .bytes(2, &port.to_be_bytes())
            .bytes(3, &port.to_be_bytes());
        Attrs::default().nest(1, addresses).nest(2, ports)
    };
    let attrs = Attrs::after(&[libc::AF_INET as u8, 0, 0, 0])
        .nest(CTA_TUPLE_ORIG, tuple(pod, SERVER))
        .nest(CTA_TUPLE_REPLY, tuple(SERVER, source))
        .be32(CTA_TIMEOUT, 300);
    let request = Request {
        kind: NEW,
        flags: flags::CREATE | flags::EXCL,
        body: attrs.finish(),
        what: "a flow".into(),
    };
    let mut socket = NetlinkSocket::open(libc::NETLINK_NETFILTER).expect("netlink");
    socket.execute(&request).expect("the flow is entered");
}

/// Pod and source of every flow.
fn flows() -> BTreeSet<(IpAddr, IpAddr)> {
    let flows = Conntrack::open().and_then(|mut table| table.flows());
    let flows = flows.expect("the flows").into_iter();
    let flows = flows.filter(|flow| flow.reply.source == ip(SERVER));
    flows
        .map(|flow| (flow.original.source, flow.reply.destination))
        .collect()
}

fn pairs(all: &[(&str, &str)]) -> BTreeSet<(IpAddr, IpAddr)> {
    all.iter().map(|(a, b)| (ip(a), ip(b))).collect()
}

/// Does the work of the agent's thread: reads all flows for a change, and has them ended.
fn end_owed(datapath: &mut WorkerDriver) -> usize {
    let change = datapath.pending_flow_cleanup().expect("a change that owes");
    let flows = Conntrack::open().and_then(|mut table| table.flows());
    let flows = flows.expect("the flows");
    datapath
        .finish_flow_cleanup(change, flows)
        .expect("they end")
}

fn is_late(port: u16) -> bool {
    listed("late4").contains(&format!("{SERVER} . {} . udp . {port} . {port}", EGRESS[0]))
}

fn listed(set: &str) -> String {
    let command = format!("nft list set inet egret {set}");
    let output = Command::new("sh").args(["-c", &command]).output();
    String::from_utf8(output.expect("nft").stdout).expect("text")
}

fn is_remembered(set: &str, port: u16) -> bool {
    listed(set).contains(&format!("{SERVER} . {NODE} . udp . {port} . {port}"))
}

#[test]
fn what_an_earlier_pod_left_ends_after_the_next_one_was_taken_up() {
    in_new_namespace(|datapath| {
        let one = state(&[(FIRST, 0)]);
        datapath.apply(&one, &Idle::default()).expect("applied");
        assert_eq!(datapath.pending_flow_cleanup(), None);
        open(FIRST, EGRESS[0], 1000);
        // An unselected pod had the address: the node's own address was its source.
        open(SECOND, NODE, 2000);
        let applied = datapath.apply(&state(&[(FIRST, 0), (SECOND, 1)]), &starts(SECOND));
        assert_eq!(applied.expect("applied").ended_flows, 0);
        assert_eq!(flows().len(), 2, "nobody has waited");
        assert!(!is_remembered("late4", 2000));
        assert_eq!(end_owed(datapath), 1);
        assert_eq!(flows(), pairs(&[(FIRST, EGRESS[0])]));
        assert!(is_remembered("late4", 2000), "what comes late is dropped");
        assert_eq!(datapath.pending_flow_cleanup(), None);
    });
}

#[test]
fn flows_of_pods_that_run_end_with_the_change() {
    in_new_namespace(|datapath| {
        let one = state(&[(FIRST, 0)]);
        datapath.apply(&one, &Idle::default()).expect("applied");
        open(SECOND, NODE, 2000);
        let both = state(&[(FIRST, 0), (SECOND, 1)]);
        let applied = datapath.apply(&both, &starts(FIRST)).expect("applied");
        assert_eq!(applied.ended_flows, 1);
        assert!(flows().is_empty() && datapath.pending_flow_cleanup().is_none());
        assert!(is_remembered("late4", 2000));
    });
}

#[test]
fn an_address_that_nobody_took_back_leaves_nothing_to_the_next_pod() {
    for next in [&[(SECOND, 1)][..], &[]] {
        in_new_namespace(|datapath| {
            let before = state(&[(SECOND, 0)]);
            datapath.apply(&before, &Idle::default()).expect("applied");
            open(SECOND, EGRESS[0], 1000);
            let applied = datapath.apply(&state(next), &starts(SECOND));
            assert_eq!(applied.expect("applied").ended_flows, 1);
            assert!(flows().is_empty());
        });
    }
}

#[test]
fn flows_of_a_pod_that_was_taken_back_end_before_another_gets_its_address() {
    in_new_namespace(|datapath| {
        let both = state(&[(FIRST, 0), (SECOND, 0)]);
        datapath.apply(&both, &Idle::default()).expect("applied");
        open(FIRST, EGRESS[0], 1000);
        open(SECOND, EGRESS[0], 2000);
        let one = state(&[(FIRST, 0)]);
        let applied = datapath.apply(&one, &ended(SECOND)).expect("applied");
        assert_eq!((applied.ended_flows, flows().len()), (0, 2));
        let change = datapath.pending_flow_cleanup().expect("flows to end");
        let read = Conntrack::open().and_then(|mut table| table.flows());
        let read = read.expect("the flows");
        // The address comes back before its flows have ended, under the same policy: the sources alone do not
        // distinguish them.
        let applied = datapath.apply(&both, &starts(SECOND));
        applied.expect("applied");
        assert_eq!(flows(), pairs(&[(FIRST, EGRESS[0])]));
        // The new pod's own flows stay, whenever the others were read.
        open(SECOND, EGRESS[0], 3000);
        datapath
            .finish_flow_cleanup(change, read)
            .expect("they are gone");
        assert_eq!(end_owed(datapath), 0);
        assert_eq!(flows().len(), 2);
        assert_eq!(datapath.pending_flow_cleanup(), None);
    });
}

#[test]
fn flows_read_before_the_last_change_do_not_pay_for_it() {
    in_new_namespace(|datapath| {
        let none = state(&[]);
        datapath.apply(&none, &Idle::default()).expect("applied");
        let applied = datapath.apply(&state(&[(FIRST, 0)]), &starts(FIRST));
        applied.expect("applied");
        let change = datapath.pending_flow_cleanup().expect("flows to end");
        let read = Conntrack::open().and_then(|mut table| table.flows());
        let read = read.expect("the flows");
        open(SECOND, NODE, 2000);
        let both = state(&[(FIRST, 0), (SECOND, 1)]);
        datapath.apply(&both, &starts(SECOND)).expect("applied");
        assert_eq!(
            datapath
                .finish_flow_cleanup(change, read)
                .expect("none end"),
            0
        );
        assert_eq!(end_owed(datapath), 1);
        assert!(flows().is_empty());
    });
}

#[test]
fn flows_in_ports_that_were_withdrawn_end_and_those_of_the_rest_stay() {
    in_new_namespace(|datapath| {
        let with = |last: Option<u16>| {
            let ranges = last.map(|last| vec![PortRange { first: 1024, last }]);
            let mut state = state(&[(FIRST, 0)]);
            state.worker.flow_ports =
                ranges.map(|ranges| BTreeMap::from([(ip(EGRESS[0]), ranges)]).into());
            state
        };
        let nobody = Idle::default();
        // An earlier agent's flows; the record of now is older than that agent's.
        for port in [1030, 1100, 1160] {
            open(FIRST, EGRESS[0], port);
        }
        let ended = |datapath: &mut WorkerDriver, last| {
            let applied = datapath.apply(&with(last), &nobody).expect("applied");
            match datapath.pending_flow_cleanup() {
                Some(_) => applied.ended_flows + end_owed(datapath),
                None => applied.ended_flows,
            }
        };
        assert_eq!(ended(datapath, None), 0);
        assert_eq!(ended(datapath, Some(1151)), 1);
        assert!(is_late(1160), "what comes late is dropped");
        assert_eq!(ended(datapath, Some(1215)), 0);
        assert_eq!(ended(datapath, Some(1087)), 1);
        assert!(!is_late(1030) && is_late(1100));
        assert_eq!(flows(), pairs(&[(FIRST, EGRESS[0])]));
        let in_use = datapath.ports_in_use().expect("the flows");
        assert_eq!(in_use.counts, [(ip(EGRESS[0]), 1)].into());
        let block = PortRange {
            first: 1024,
            last: 1087,
        };
        assert_eq!(
            in_use.blocks.ranges(),
            [(ip(EGRESS[0]), vec![block])].into()
        );
    });
}
