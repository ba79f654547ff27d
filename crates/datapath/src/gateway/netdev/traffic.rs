//! Packets and bytes by egress address: a map from addresses to counters for each direction and family. One rule looks
//! up every carried packet in it.

use super::super::{Carried, Flow};
use super::matches::*;
use egret_core::node::GatewayState;
use egret_kernel::nft::{Count, ElementKey, Expression as E, Rule, Set, Table, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;

const OUT: &str = "out_";
const BACK: &str = "in_";

/// Maps of one family, and the counters in them.
pub(super) fn maps(table: &mut Table, family: &Family, state: &GatewayState) {
    for direction in [OUT, BACK] {
        let mut map = Set::new(&[family.address]);
        map.counters = true;
        for address in state.addresses.keys().filter(|ip| family.is(ip)) {
            let counter = format!("{direction}{address}");
            table.traffic.insert(counter.clone());
            let key = ElementKey::address(*address);
            map.elements.insert(key, Value::Counter(counter));
        }
        table.sets.insert(map_name(direction, family), map);
    }
}

/// Counts a packet that leaves with the address as source.
pub(super) fn out(family: &Family) -> Rule {
    vec![family.load(family.source, 0), count(map_name(OUT, family))]
}

/// Counts a packet for the address.
pub(super) fn back(family: &Family) -> Rule {
    let mut rule = ethertype(&family.ethertype);
    rule.extend([
        family.load(family.destination, 0),
        count(map_name(BACK, family)),
    ]);
    rule
}

fn count(map: String) -> E {
    E::CountBy {
        set: map,
        register: 0,
    }
}

fn map_name(direction: &str, family: &Family) -> String {
    family.named(&format!("{direction}traffic"))
}

pub(super) fn read(counts: &BTreeMap<String, Count>) -> BTreeMap<IpAddr, Carried> {
    let mut all: BTreeMap<IpAddr, Carried> = BTreeMap::new();
    let address = |name: &str, direction| name.strip_prefix(direction)?.parse().ok();
    for (name, count) in counts {
        let flow = Flow {
            packets: count.packets,
            bytes: count.bytes,
            dropped: None,
        };
        if let Some(address) = address(name, OUT) {
            all.entry(address).or_default().out = flow;
        } else if let Some(address) = address(name, BACK) {
            all.entry(address).or_default().back = flow;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_no_addresses() {
        let count = Count {
            packets: 2,
            bytes: 200,
        };
        let names = [
            "out_forwarded",
            "out_192.0.2.1",
            "in_self",
            "in_2001:db8::1",
        ];
        let counts = names.map(|name| (name.to_owned(), count)).into();
        let told = read(&counts);
        let of = |address: &str| told[&address.parse::<IpAddr>().unwrap()];
        assert_eq!(told.len(), 2);
        assert_eq!(
            (of("192.0.2.1").out.bytes, of("192.0.2.1").back.bytes),
            (200, 0)
        );
        assert_eq!(of("2001:db8::1").back.packets, 2);
    }
}
