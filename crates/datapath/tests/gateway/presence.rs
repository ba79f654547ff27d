//! Presence of addresses outside, each of the kind that the state names.

use crate::driver::groups;
use crate::site::{EXTERNAL_MAC, Site, Wire, state};
use egret_core::machines::GatewayCommand;
use egret_core::node::{GatewayState, Presence, Steering};
use egret_datapath::presence::{ExternalDevice, Presences};
use std::collections::BTreeSet;
use std::net::Ipv6Addr;

fn with(addresses: &[(Ipv6Addr, Presence)]) -> GatewayState {
    let table = |(address, presence): &(Ipv6Addr, Presence)| {
        let steering = Steering {
            presence: *presence,
            ..Steering::default()
        };
        ((*address).into(), steering)
    };
    GatewayState {
        addresses: addresses.iter().map(table).collect(),
        ..state(false)
    }
}

#[test]
fn of_an_address_that_routers_lead_to_nothing_is_said_on_the_segment() {
    let site = Site::new();
    let announced: Ipv6Addr = "2001:db8:e::a7:1".parse().unwrap();
    let routed: Ipv6Addr = "2001:db8:e::a7:2".parse().unwrap();
    let device = ExternalDevice {
        index: site.config.external_ifindex,
        name: "ge".into(),
        mac: EXTERNAL_MAC,
    };
    let joined = groups("igmp6").len();
    let mut presences = Presences::open(&device, &BTreeSet::new());
    let state = with(&[(announced, Presence::L2), (routed, Presence::Routed)]);
    presences.serve(&state).unwrap();
    assert_eq!(groups("igmp6").len(), joined + 1);

    let wire = site.outside.run(|| Wire::open("oe"));
    let says = |frame: &[u8], address: Ipv6Addr| {
        let octets = address.octets();
        frame.windows(16).any(|part| part == octets)
    };
    let commands = [GatewayCommand::SendGratuitous, GatewayCommand::Probe];
    for command in commands {
        for address in [routed, announced] {
            presences.carry_out(&command(address.into())).unwrap();
        }
        let first = wire.receive(|frame| says(frame, routed) || says(frame, announced));
        assert!(says(&first, announced), "{first:02x?}");
    }

    presences
        .serve(&with(&[(routed, Presence::Routed)]))
        .unwrap();
    assert_eq!(groups("igmp6").len(), joined);
    let no_longer = GatewayCommand::SendGratuitous(announced.into());
    presences.carry_out(&no_longer).unwrap();
}
