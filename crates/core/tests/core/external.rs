//! Choice of a gateway's external device.

use crate::planning::with;
use crate::scene::*;
use egret_core::model::*;
use egret_core::node::{Candidate, ExternalChoice, external_choice};
use ipnet::IpNet;

/// Device chosen among devices given by name, with `*` before the one of the default route, and networks.
fn chosen(choice: &ExternalChoice, devices: &[(&str, &[&str])]) -> Option<String> {
    let networks: Vec<Vec<IpNet>> = devices
        .iter()
        .map(|(_, nets)| nets.iter().map(|net| net.parse().unwrap()).collect())
        .collect();
    let candidates: Vec<Candidate<'_>> = devices
        .iter()
        .zip(&networks)
        .map(|((name, _), networks)| Candidate {
            name: name.trim_start_matches('*'),
            default: name.starts_with('*'),
            networks,
        })
        .collect();
    choice.among(&candidates).map(str::to_owned)
}

fn auto(addresses: &[&str]) -> ExternalChoice {
    ExternalChoice::Auto(addresses.iter().map(|address| ip(address)).collect())
}

#[test]
fn the_device_of_the_default_route_unless_only_another_has_an_address_in_its_networks() {
    let devices: [(&str, &[&str]); 4] = [
        ("*eth0", &["192.0.2.5/24", "2001:db8::5/64"]),
        ("eth1", &["198.51.100.5/24"]),
        ("eth2", &["198.51.100.6/24", "203.0.113.5/24"]),
        ("vip0", &["10.0.0.7/32"]),
    ];
    for (addresses, expected) in [
        (&[][..], "eth0"),
        (&["192.0.2.77"], "eth0"),
        (&["2001:db8::77"], "eth0"),
        (&["198.51.100.77"], "eth1"),
        (&["203.0.113.77"], "eth2"),
        (&["203.0.113.77", "198.51.100.77"], "eth1"),
        // A usable default device is kept.
        (&["198.51.100.77", "192.0.2.77"], "eth0"),
        // Addresses that are routed to the gateways, or that a device has without a network.
        (&["233.252.0.1", "10.0.0.7"], "eth0"),
    ] {
        let chosen = chosen(&auto(addresses), &devices);
        assert_eq!(chosen.as_deref(), Some(expected), "{addresses:?}");
    }
    let named = |name: &str| chosen(&ExternalChoice::Named(name.into()), &devices);
    assert_eq!(named("eth2").as_deref(), Some("eth2"));
    assert_eq!(named("eth9"), None);
    // Without any default route.
    assert_eq!(chosen(&auto(&["192.0.2.77"]), &devices[1..]), None);
    assert_eq!(
        chosen(&auto(&["198.51.100.77"]), &devices[1..]).as_deref(),
        Some("eth1")
    );
}

#[test]
fn a_gateway_asks_for_the_addresses_that_it_serves() {
    let mut scene = with(vec![egress("default", "a", &["192.0.2.1"])]);
    scene.settle();
    let mut other = scene.snapshot.addresses[&ip("192.0.2.1")].clone();
    (other.address, other.gateway) = (ip("192.0.2.2"), GatewayName("elsewhere".into()));
    scene.snapshot.addresses.insert(other.address, other);
    let choice = |node: &str| external_choice(&scene.snapshot, &node_name(node));
    assert_eq!(choice("gateway1"), Some(auto(&["192.0.2.1"])));
    assert_eq!(choice("worker1"), None);
}
