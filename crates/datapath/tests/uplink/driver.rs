//! The life of the uplink programs in the kernel: attached first, adopted, replaced, set aside, removed.

use crate::foreign::{attached_programs, filter_before_all, pin, verdict, without_tcx};
use crate::namespaces::{Net, command, own_bpffs};
use aya::maps::{Array, Map, MapData};
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use egret_core::node::{PodMap, Profile, ProfileId, WorkerState};
use egret_datapath::drift::{Drift, DriftReport};
use egret_datapath::gateway::Attachment;
use egret_datapath::uplink::abi::Config;
use egret_datapath::uplink::{Looker, OBJECT, UplinkDriver};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

pub const UPLINKS: [&str; 2] = ["up0", "up1"];

/// Moves this thread into a namespace of its own, with uplinks and a pod's device.
pub fn node() -> (Net, PathBuf) {
    let pins = own_bpffs();
    let net = Net::new();
    let file = std::fs::File::open(net.path()).unwrap();
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    for (device, peer) in [("up0", "far0"), ("up1", "far1"), ("pod0", "in0")] {
        command(&format!("ip link add {device} type veth peer name {peer}"));
        command(&format!("ip link set {device} up"));
        command(&format!("ip link set {peer} up"));
    }
    (net, pins)
}

pub fn worker(uplinks: &[&str]) -> WorkerState {
    let mut pods = PodMap::default();
    pods.insert("10.244.1.10".parse().unwrap(), ProfileId(7));
    WorkerState {
        reinject: uplinks.iter().map(|name| (*name).to_owned()).collect(),
        throw: BTreeSet::from(["10.244.1.0/24".parse().unwrap()]),
        pods,
        profiles: [(ProfileId(7), Profile::default())].into(),
        ..WorkerState::default()
    }
}

/// Kinds of the drift found, each of which must have a text.
fn kinds(found: &DriftReport) -> BTreeSet<Drift> {
    assert!(found.values().all(|what| !what.is_empty()), "{found:?}");
    found.keys().copied().collect()
}

fn programs(device: &str, direction: TcAttachType) -> Vec<u32> {
    attached_programs(device, direction)
}

fn all_programs() -> Vec<Vec<u32>> {
    let directions = [TcAttachType::Ingress, TcAttachType::Egress];
    let on = |device| directions.map(|direction| programs(device, direction));
    UPLINKS.into_iter().flat_map(on).collect()
}

/// A foreign program before all others.
fn intruder(device: &str, direction: TcAttachType) -> Ebpf {
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    attached(device, direction, first)
}

fn attached(device: &str, direction: TcAttachType, how: TcAttachOptions) -> Ebpf {
    let mut object = EbpfLoader::new().btf(None).load(OBJECT).unwrap();
    let program: &mut SchedClassifier =
        object.program_mut("uplink_in").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach_with_options(device, direction, how).unwrap();
    object
}

pub fn up(pins: &std::path::Path, state: &WorkerState) -> UplinkDriver {
    let mut driver = UplinkDriver::open(pins).unwrap();
    driver.prepare(state).unwrap();
    driver.settle(state).unwrap();
    driver
}

#[test]
fn it_is_attached_adopted_moved_and_removed() {
    let (_net, pins) = node();
    let state = worker(&UPLINKS);
    let mut driver = up(&pins, &state);
    let first = all_programs();
    assert!(
        first.iter().all(|programs| programs.len() == 1),
        "{first:?}"
    );
    assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
    drop(driver);
    assert_eq!(all_programs(), first, "they outlive the agent");
    let mut driver = up(&pins, &state);
    assert_eq!(all_programs(), first, "the next agent adopts them");

    driver.settle(&worker(&["up1"])).unwrap();
    assert!(programs("up0", TcAttachType::Egress).is_empty());
    assert_eq!(programs("up1", TcAttachType::Egress), first[3]);

    assert!(UplinkDriver::remove(&pins).unwrap());
    assert!(all_programs().iter().all(Vec::is_empty));
    assert!(!pins.exists());
    assert!(nix::net::if_::if_nametoindex("egret-lift").is_err());
    assert!(
        !UplinkDriver::remove(&pins).unwrap(),
        "nothing is left to remove"
    );
}

#[test]
fn packets_are_seen_before_others_see_them() {
    if without_tcx("packets_are_seen_before_others_see_them") {
        return;
    }
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let there = move || {
            let (_net, pins) = node();
            let state = worker(&UPLINKS);
            let mut driver = up(&pins, &state);
            let ours = programs("up0", direction);
            let _intruder = intruder("up0", direction);
            assert_eq!(programs("up0", direction)[1..], ours);
            assert_eq!(
                kinds(&driver.verify(false).unwrap()),
                BTreeSet::from([Drift::Programs])
            );
            driver.settle(&state).unwrap();
            let now = programs("up0", direction);
            assert_eq!(now.len(), 2, "the other's stays, and ours is there once");
            assert_eq!(kinds(&driver.verify(false).unwrap()), BTreeSet::new());
            UplinkDriver::remove(&pins).unwrap();
            assert_eq!(programs("up0", direction).len(), 1);
        };
        std::thread::spawn(there).join().unwrap();
    }
}

#[test]
fn another_build_is_replaced_and_other_tables_are_set_aside_until_then() {
    let (_net, pins) = node();
    let state = worker(&UPLINKS);
    drop(up(&pins, &state));
    let map = Map::Array(MapData::from_pin(pins.join("uplink/uplink_config")).unwrap());
    let mut map: Array<MapData, Config> = Array::try_from(map).unwrap();
    let config = map.get(&0, 0).unwrap();
    let other = Config {
        object_hash: 1,
        ..config
    };
    map.set(0, other, 0).unwrap();
    let before = all_programs();
    drop(up(&pins, &state));
    let after = all_programs();
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(b, a)| a.len() == 1 && a != b)
    );

    // A removed table counts as a table of another shape.
    std::fs::remove_file(pins.join("uplink/uplink_chosen")).unwrap();
    let mut driver = UplinkDriver::open(&pins).unwrap();
    assert_eq!(all_programs(), after, "still attached until ours are");
    driver.prepare(&state).unwrap();
    driver.settle(&state).unwrap();
    let now = all_programs();
    assert!(after.iter().zip(&now).all(|(a, n)| n.len() == 1 && n != a));
    assert!(!pins.join("uplink_before").exists());
    assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
}

#[test]
fn filters_do_the_same_where_there_is_no_tcx() {
    let (_net, pins) = node();
    let state = worker(&UPLINKS);
    let mut driver = UplinkDriver::open_with(&pins, Attachment::Clsact).unwrap();
    driver.prepare(&state).unwrap();
    driver.settle(&state).unwrap();
    if Attachment::supported() == Attachment::Tcx {
        assert!(all_programs().iter().all(Vec::is_empty));
    }
    assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
    command("tc filter delete dev up0 egress");
    assert_eq!(
        kinds(&driver.verify(false).unwrap()),
        BTreeSet::from([Drift::Programs])
    );
    driver.settle(&state).unwrap();
    assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
    let theirs = pins.parent().unwrap().join("theirs");
    pin(&verdict(0), &theirs);
    for way in ["ingress", "egress"] {
        filter_before_all(&theirs, "up0", way, 1);
        assert_eq!(
            kinds(&driver.verify(false).unwrap()),
            BTreeSet::from([Drift::Programs])
        );
        driver.settle(&state).unwrap();
        assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
        command(&format!(
            "tc filter delete dev up0 {way} priority 1 handle 1 bpf"
        ));
    }
    drop(driver);
    assert!(UplinkDriver::remove(&pins).unwrap());
    let output = std::process::Command::new("tc")
        .args(["filter", "show", "dev", "up0", "egress"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn a_device_of_our_name_that_is_not_ours_is_left_alone() {
    let (_net, pins) = node();
    command("ip link add egret-lift type veth peer name theirs");
    assert!(UplinkDriver::open(&pins).is_err());
    UplinkDriver::remove(&pins).unwrap();
    assert!(nix::net::if_::if_nametoindex("egret-lift").is_ok());
}

#[test]
fn damage_is_seen_by_kind() {
    let (_net, pins) = node();
    let state = worker(&UPLINKS);
    for (line, kind) in [
        ("ip link delete egret-lift".to_owned(), Drift::Device),
        ("ip link set egret-lift down".to_owned(), Drift::Device),
        (
            format!(
                "bpftool map delete pinned {}/uplink/uplink_pods key 0 0 0 0 0 0 0 0 0 0 255 255 10 244 1 10",
                pins.display()
            ),
            Drift::Tables,
        ),
    ] {
        let mut driver = up(&pins, &state);
        assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
        command(&line);
        assert_eq!(
            kinds(&driver.verify(true).unwrap()),
            BTreeSet::from([kind]),
            "{line}"
        );
    }
    let mut driver = up(&pins, &state);
    assert_eq!(kinds(&driver.verify(true).unwrap()), BTreeSet::new());
}

#[test]
fn the_kernel_shows_ways_programs_and_where_pods_are() {
    let (_net, _pins) = node();
    for line in [
        "ip address add 192.0.2.1/24 dev up0",
        "ip route add default via 192.0.2.254",
        "ip route add 198.51.100.0/24 nexthop via 192.0.2.253 nexthop dev up1",
        "ip route add 203.0.113.0/24 dev up1 table 77",
        "ip route add 10.244.1.10 dev pod0",
    ] {
        command(line);
    }
    let pods = ["10.244.1.10", "10.244.1.11", "fd00:244:1::10"];
    let pods = pods.map(|pod| pod.parse().unwrap());
    let mut looker = Looker::open().unwrap();
    let (seen, delivered) = looker.look(&pods.into()).unwrap();
    let routes: BTreeSet<(String, String)> = seen
        .routes
        .iter()
        .filter(|route| route.to.addr().is_ipv4() && route.ethernet)
        .map(|route| (route.device.clone(), route.to.to_string()))
        .collect();
    let expected = [
        ("pod0", "10.244.1.10/32"),
        ("up0", "0.0.0.0/0"),
        ("up0", "192.0.2.0/24"),
        ("up0", "198.51.100.0/24"),
        ("up1", "198.51.100.0/24"),
        ("up1", "203.0.113.0/24"),
    ];
    let expected = expected.map(|(device, to)| (device.to_owned(), to.to_owned()));
    assert_eq!(routes, expected.into());
    let delivered: Vec<Option<String>> = delivered.into_values().collect();
    assert_eq!(
        delivered,
        [Some("pod0".to_owned()), Some("up0".to_owned()), None]
    );
    assert!(seen.programs.is_empty() && seen.express.is_empty());

    let _tcx = intruder("pod0", TcAttachType::Ingress);
    let _leaving = intruder("in0", TcAttachType::Egress);
    command("tc qdisc add dev up1 clsact");
    let filter = TcAttachOptions::Netlink(NlOptions::default());
    let _filter = attached("up1", TcAttachType::Ingress, filter);
    let seen = looker.look_at_programs().unwrap();
    assert_eq!(seen, ["pod0", "up1"].map(str::to_owned).into());

    // Asked for one pod, it reads that pod's device alone, with the same result.
    command("ip route add 10.244.1.12 via 203.0.113.9 dev up1 onlink");
    for (pod, device, programmed) in [
        ("10.244.1.10", "pod0", true),
        ("10.244.1.11", "up0", false),
        ("10.244.1.12", "up1", true),
    ] {
        let pod: IpAddr = pod.parse().unwrap();
        let towards = looker.look_towards(&[pod].into()).unwrap();
        let device = device.to_owned();
        assert_eq!(towards.delivered, [(pod, Some(device.clone()))].into());
        assert_eq!(towards.devices, [(device, programmed)].into());
    }
    let nowhere = "fd00:244:1::10".parse().unwrap();
    let towards = looker.look_towards(&[nowhere].into()).unwrap();
    assert_eq!(towards.delivered, [(nowhere, None)].into());
    assert!(towards.devices.is_empty());
}

/// Few lookups, the same answers: addresses with different routes are looked up separately.
#[test]
fn pods_that_are_asked_for_together_are_where_they_would_be_alone() {
    let (_net, _pins) = node();
    for line in [
        "ip address add 192.0.2.1/24 dev up0",
        "ip address add 10.244.1.1/24 dev pod0",
        "ip address add 10.244.1.77/32 dev up1",
        "ip -6 address add fd00:244:1::1/64 dev pod0 nodad",
        "ip route add default via 192.0.2.254",
        "ip route add 10.244.1.10 dev up1",
        "ip route add 10.244.1.11 dev up1 metric 9",
        "ip route add 10.244.1.11 dev up0 metric 5",
        "ip route add blackhole 10.244.1.64/30",
        "ip route add 10.244.1.80/29 dev up1",
        "ip route add 10.244.1.0/25 dev up0 table 77",
        "ip route add 10.244.1.21 dev up0 table 77",
        "ip rule add to 10.244.1.32/28 lookup 77",
        "ip rule add fwmark 0x5 lookup 77",
        "ip -6 route add fd00:244:1::40/124 dev up1",
        "ip -6 rule add to fd00:244:1::60/124 unreachable",
    ] {
        command(line);
    }
    let v4 = (0..160).map(|last| format!("10.244.1.{last}"));
    let v6 = (0..160).map(|last| format!("fd00:244:1::{last:x}"));
    let nowhere = ["fd00:99::1", "198.51.100.7"].map(str::to_owned);
    let pods = v4.chain(v6).chain(nowhere);
    let pods: BTreeSet<IpAddr> = pods.map(|pod| pod.parse().unwrap()).collect();
    let mut looker = Looker::open().unwrap();
    let (_, together) = looker.look(&pods).unwrap();
    let alone = looker.look_towards(&pods).unwrap().delivered;
    assert_eq!(together, alone);
    let devices: BTreeSet<Option<String>> = alone.into_values().collect();
    let all = ["pod0", "up0", "up1"].map(|name| Some(name.to_owned()));
    assert_eq!(devices, [&[None][..], &all].concat().into_iter().collect());
}
