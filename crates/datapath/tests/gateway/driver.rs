//! The life of the gateway's data path in the kernel: adopted, replaced under traffic, moved, removed; and announced.

use crate::foreign::attached_programs;
use crate::packets::{tunnelled, udp};
use crate::site::{EGRESS, EXTERNAL_MAC, OUTSIDE, OWN, Site, Wire, receive, state};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::TcAttachType;
use egret_datapath::gateway::abi::{self, Address, Config, Owner, SteeringValue, Worker};
use egret_datapath::gateway::{Attachment, GatewayDriver, GatewayError};
use egret_datapath::presence::l2;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Replacements under traffic; the verifier takes about half a second for each.
const REPLACEMENTS: usize = 8;

fn programs() -> Vec<u32> {
    let on = |device| attached_programs(device, TcAttachType::Ingress);
    ["ge", "egret0"].into_iter().flat_map(on).collect()
}

/// Makes the pinned hash that of another build.
fn pretend_other_build(pins: &Path) {
    let map = Map::Array(MapData::from_pin(pins.join("gateway/config")).unwrap());
    let mut map: Array<MapData, Config> = Array::try_from(map).unwrap();
    let config = map.get(&0, 0).unwrap();
    map.set(
        0,
        Config {
            object_hash: 1,
            ..config
        },
        0,
    )
    .unwrap();
}

fn send(site: &Site, payload: &[u8]) {
    let packet = udp((EGRESS[0], 1024), (OUTSIDE[0], 9000), 64, payload);
    site.worker(11)
        .send_to(&tunnelled(11, OWN, &packet), site.tunnel())
        .unwrap();
}

#[test]
fn the_next_agent_adopts_tables_and_programs_and_replaces_those_of_another_build() {
    let mut site = Site::new();
    let server = site.server(0, 9000);
    send(&site, b"one");
    assert_eq!(receive(&server).0, b"one");
    let first = programs();
    assert_eq!(first.len(), 2);

    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    assert_eq!(programs(), first, "the same build touches nothing");
    assert_eq!(site.driver.version(), 77);
    assert_eq!(
        site.driver.addresses(),
        EGRESS.map(|ip| ip.parse().unwrap()).into()
    );
    assert!(
        site.driver.apply(&state(false), OWN).unwrap().is_empty(),
        "nothing is new"
    );
    assert_eq!(site.counter("out_forwarded"), 1);

    pretend_other_build(&site.pins);
    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    let second = programs();
    assert_eq!(second.len(), 2, "replaced, not added");
    assert!(second.iter().all(|program| !first.contains(program)));
    assert_eq!(site.driver.version(), 77);
    send(&site, b"two");
    assert_eq!(receive(&server).0, b"two");
    assert_eq!(site.counter("out_forwarded"), 2);
    let traffic = site.driver.traffic().unwrap();
    assert_eq!(traffic[&EGRESS[0].parse().unwrap()].out.packets, 2);
}

#[test]
fn replacing_the_programs_under_traffic_loses_no_packet() {
    let mut site = Site::new();
    let server = site.server(0, 9000);
    let worker = site.worker(11);
    let done = AtomicBool::new(false);
    let tunnel = site.tunnel();
    let (sent, got) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0u64;
            // one packet at a time: the next is sent after the last has arrived
            while !done.load(Ordering::Relaxed) || sent < 1000 {
                let packet = udp(
                    (EGRESS[0], 1024),
                    (OUTSIDE[0], 9000),
                    64,
                    &sent.to_be_bytes(),
                );
                worker
                    .send_to(&tunnelled(11, OWN, &packet), tunnel)
                    .unwrap();
                assert_eq!(receive(&server).0, sent.to_be_bytes());
                sent += 1;
            }
            sent
        });
        for _ in 0..REPLACEMENTS {
            pretend_other_build(&site.pins);
            site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        (sent, site.counter("out_forwarded"))
    });
    assert_eq!(sent, got);
}

#[test]
fn a_device_that_came_back_is_served_again() {
    let mut site = Site::new();
    let server = site.server(0, 9000);
    site.gateway.ip("link delete egret0");
    site.gateway.ip("link add egret0 address 02:65:67:72:00:02 mtu 1430 type vxlan external dstport 14789 nolearning");
    site.gateway.ip("link set egret0 up");
    site.config.tunnel_ifindex = nix::net::if_::if_nametoindex("egret0").unwrap();
    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    assert_eq!(programs().len(), 2);
    send(&site, b"again");
    assert_eq!(receive(&server).0, b"again");
}

#[test]
fn removal_leaves_nothing_and_may_be_repeated() {
    for attachment in [Attachment::supported(), Attachment::Clsact] {
        std::thread::spawn(move || {
            let site = Site::with(false, attachment);
            assert!(GatewayDriver::remove(&site.pins).unwrap());
            assert!(programs().is_empty());
            let filters = std::process::Command::new("tc")
                .args(["filter", "show", "dev", "ge", "ingress"])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&filters.stdout), "");
            assert!(!site.pins.exists());
            assert!(!GatewayDriver::remove(&site.pins).unwrap());
        })
        .join()
        .unwrap();
    }
}

#[test]
fn tables_follow_the_state_and_the_version_comes_with_them() {
    let mut site = Site::new();
    let mut less = state(false);
    let v6: IpAddr = EGRESS[1].parse().unwrap();
    less.addresses.remove(&v6);
    less.workers.remove(&12);
    less.version = 80;
    assert!(site.driver.apply(&less, OWN).unwrap().is_empty());
    assert_eq!(
        site.driver.addresses(),
        BTreeSet::from([EGRESS[0].parse().unwrap()])
    );
    let counted: Vec<IpAddr> = site.driver.traffic().unwrap().into_keys().collect();
    assert_eq!(counted, [EGRESS[0].parse::<IpAddr>().unwrap()]);
    // a second agent reads the same from the kernel
    let other = GatewayDriver::open(&site.pins, &site.config).unwrap();
    assert_eq!(
        (other.version(), other.addresses()),
        (80, site.driver.addresses())
    );
    assert_eq!(site.driver.apply(&state(false), OWN).unwrap(), [v6]);
}

/// Each partial verification reads a few entries only, and finds drift when its entry has its turn.
#[test]
fn with_many_addresses_damage_is_found_by_a_few_small_looks() {
    const ADDRESSES: u8 = 200;
    // Of 200 addresses each call reads 64.
    const LOOKS: usize = 4;
    let mut site = Site::new();
    let mut many = state(false);
    let steering = many.addresses[&EGRESS[0].parse::<IpAddr>().unwrap()].clone();
    for last in 0..ADDRESSES {
        let address = IpAddr::from([198, 51, 100, last]);
        many.addresses.insert(address, steering.clone());
    }
    site.driver.apply(&many, OWN).unwrap();
    let look = |site: &mut Site| {
        let mut looks = (0..LOOKS + 1).map(|_| site.driver.verify_tables(false).unwrap());
        looks.find_map(|found| found)
    };
    assert_eq!(look(&mut site), None);
    let address = |last: u8| abi::address(IpAddr::from([198, 51, 100, last]));
    let mut steering: Pinned<Address, SteeringValue> = pinned(&site, "steering");
    let mut owners: Pinned<Owner, u32> = pinned(&site, "owners");
    let mut workers: Pinned<u32, Worker> = pinned(&site, "workers");
    let mut found_and_mended = |word: &str| {
        let found = look(&mut site).unwrap_or_else(|| panic!("not found: {word}"));
        assert!(found.contains(word), "{found}, not {word}");
        site.driver.apply(&many, OWN).unwrap();
        let left = site.driver.verify_tables(true).unwrap();
        assert_eq!(left, None, "{word}: not mended");
    };
    steering.remove(&address(150)).unwrap();
    found_and_mended("steering of 198.51.100.150 is gone");
    let value = steering.get(&address(7), 0).unwrap();
    let other = SteeringValue { flags: 0, ..value };
    steering.insert(address(3), other, 0).unwrap();
    found_and_mended("steering of 198.51.100.3 was changed");
    workers.remove(&12).unwrap();
    found_and_mended("worker 12 is gone");
    let owner = owners.keys().next().unwrap().unwrap();
    owners.remove(&owner).unwrap();
    found_and_mended("owner");
}

type Pinned<K, V> = HashMap<MapData, K, V>;

fn pinned<K: aya::Pod, V: aya::Pod>(site: &Site, name: &str) -> Pinned<K, V> {
    let map = MapData::from_pin(site.pins.join("gateway").join(name)).unwrap();
    HashMap::try_from(Map::HashMap(map)).unwrap()
}

#[test]
fn a_directory_that_is_no_bpf_file_system_is_refused() {
    let site = Site::new();
    let directory = tempfile::tempdir().unwrap();
    let error = GatewayDriver::open(directory.path(), &site.config).unwrap_err();
    assert!(matches!(error, GatewayError::NotBpffs { .. }), "{error}");
}

#[test]
fn hosts_outside_follow_an_announcement() {
    let site = Site::new();
    for (family, egress) in EGRESS.iter().enumerate() {
        let add = format!("neigh add {egress} lladdr 02:00:00:00:aa:aa dev oe nud stale");
        site.outside.ip(&add);
        l2::gratuitous(
            site.config.external_ifindex,
            EXTERNAL_MAC,
            egress.parse().unwrap(),
        )
        .unwrap();
        crate::namespaces::wait("the new MAC address", || {
            let table = site.outside.run(|| {
                let args = ["neigh", "show", "to", egress];
                std::process::Command::new("ip")
                    .args(args)
                    .output()
                    .unwrap()
                    .stdout
            });
            String::from_utf8_lossy(&table)
                .contains("02:00:00:00:ee:02")
                .then_some(())
        });
        assert_eq!(family, if egress.contains(':') { 1 } else { 0 });
    }
}

/// Groups of the device: joined ones by /proc/net/igmp6, link-layer entries by /proc/net/dev_mcast.
pub fn groups(file: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let of_device = text
        .lines()
        .filter(|line| line.split_whitespace().nth(1) == Some("ge"));
    of_device
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn solicitations_get_through_also_without_an_agent() {
    let site = Site::new();
    let addresses: BTreeSet<IpAddr> = (1..=200u16)
        .map(|i| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0xa7, i)))
        .chain(["203.0.113.100".parse().unwrap()])
        .collect();
    let (joined, entries) = (groups("igmp6").len(), groups("dev_mcast").len());
    // the kernel reports its groups on the link (MLD)
    let wire = site.outside.run(|| Wire::open("oe"));
    let mut nodes = l2::SolicitedNodes::new(site.config.external_ifindex, "ge");
    nodes.set(&addresses).unwrap();
    nodes.set(&addresses).unwrap();
    assert_eq!(
        (groups("igmp6").len(), groups("dev_mcast").len()),
        (joined + 200, entries + 200)
    );
    let group = l2::solicited_node("2001:db8:e::a7:1".parse().unwrap()).octets();
    wire.receive(|frame| {
        frame[12..14] == [0x86, 0xdd] && frame.windows(16).any(|part| part == group)
    });

    drop(nodes);
    assert_eq!(
        (groups("igmp6").len(), groups("dev_mcast").len()),
        (joined, entries + 200)
    );
    let mut nodes = l2::SolicitedNodes::new(site.config.external_ifindex, "ge");
    nodes.adopt(&addresses);
    nodes.set(&BTreeSet::new()).unwrap();
    assert_eq!(
        (groups("igmp6").len(), groups("dev_mcast").len()),
        (joined, entries)
    );
}
