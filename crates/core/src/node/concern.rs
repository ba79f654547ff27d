//! Whether a change of the objects concerns a node. Every status write of anybody is such a change: without this, each
//! would be a round on every node.

use crate::model::{AddressRecord, Lease, LeaseState, NodeName, NodeRecord, SharedMap, Snapshot};

/// Whether [`super::node_state`] and [`crate::machines::GatewayRole`] of this node may decide differently with the newer
/// snapshot. Statuses that only the controller or people read do not count: ports in use and held, acknowledgements,
/// steering versions, programmed pods.
pub fn concerns(before: &Snapshot, after: &Snapshot, node: &NodeName) -> bool {
    let same = before.settings == after.settings
        && before.policies == after.policies
        && before.gateways == after.gateways
        && before.pools == after.pools
        && before.nodes == after.nodes
        && before.namespaces == after.namespaces
        && before.pods == after.pods
        && before.services == after.services
        && before.api_server == after.api_server
        && before.pod_prefixes == after.pod_prefixes
        && before.unreadable.addresses == after.unreadable.addresses
        && before.unreadable.nodes == after.unreadable.nodes;
    !same
        || differs(&before.addresses, &after.addresses, |_, record| {
            steered(record)
        })
        || differs(&before.node_records, &after.node_records, |name, record| {
            used(record, name == node)
        })
}

/// Whether any object differs in the part that is used.
fn differs<K: Ord + Clone, V: PartialEq>(
    before: &SharedMap<K, V>,
    after: &SharedMap<K, V>,
    part: impl Fn(&K, &V) -> V,
) -> bool {
    let mut differs = false;
    before.differences(after, |key, newer| {
        differs |= match (before.get(key), newer) {
            (Some(old), Some(new)) => part(key, old) != part(key, new),
            _ => true,
        };
    });
    differs
}

/// Part of a node's record that its own or another agent uses.
fn used(record: &NodeRecord, own: bool) -> NodeRecord {
    let nobody = NodeRecord::new(record.node.clone());
    let mut used = NodeRecord {
        steering_version: 0,
        newer_tables: nobody.newer_tables,
        acknowledged: 0,
        held: nobody.held,
        demand: nobody.demand,
        wanted_ports: nobody.wanted_ports,
        full_destinations: nobody.full_destinations,
        paired: nobody.paired,
        programmed: nobody.programmed,
        datapath: None,
        conflicts: nobody.conflicts,
        resting: Vec::new(),
        fenced: None,
        resource_version: 0,
        ..record.clone()
    };
    if !own {
        (used.grants, used.draining, used.grants_epoch) = (nobody.grants, nobody.draining, 0);
    }
    used
}

/// Part of an address's record that steering tables are made of.
fn steered(record: &AddressRecord) -> AddressRecord {
    let leases = record.leases.iter().map(|lease| Lease {
        since_secs: 0,
        withdrawn: None,
        state: match lease.state {
            LeaseState::Granted => LeaseState::Active,
            state => state,
        },
        ..lease.clone()
    });
    AddressRecord {
        term: 0,
        restored: None,
        resource_version: 0,
        leases: leases.collect(),
        ..record.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GatewayName, Grant, PortRange, Programmed, Settings, UnpooledAddresses};
    use crate::model::{Kind, ObjectRef};
    use std::net::IpAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn name(text: &str) -> NodeName {
        NodeName(text.into())
    }

    fn grant(epoch: u64) -> Grant {
        Grant {
            address: ip("192.0.2.1"),
            gateway: GatewayName("edge".into()),
            ranges: vec![PortRange {
                first: 1024,
                last: 1087,
            }],
            epoch,
        }
    }

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::empty(Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: Vec::new(),
            hold_down_secs: 120,
        });
        for node in ["a", "b"] {
            let record = NodeRecord {
                grants: vec![grant(1)],
                ..NodeRecord::new(name(node))
            };
            snapshot.node_records.insert(name(node), record);
        }
        let lease = Lease {
            node: name("a"),
            ranges: grant(1).ranges,
            epoch: 1,
            withdrawn: None,
            state: LeaseState::Granted,
            since_secs: 10,
        };
        let record = AddressRecord {
            epoch: 1,
            leases: vec![lease],
            ..AddressRecord::new(ip("192.0.2.1"), GatewayName("edge".into()))
        };
        snapshot.addresses.insert(ip("192.0.2.1"), record);
        snapshot
    }

    /// Whether node `a` is concerned by a change of this node's record.
    fn of_record(node: &str, change: impl Fn(&mut NodeRecord)) -> bool {
        let (before, mut after) = (snapshot(), snapshot());
        change(after.node_records.get_mut(&name(node)).unwrap());
        concerns(&before, &after, &name("a"))
    }

    fn of_address(change: impl Fn(&mut AddressRecord)) -> bool {
        let (before, mut after) = (snapshot(), snapshot());
        change(after.addresses.get_mut(&ip("192.0.2.1")).unwrap());
        concerns(&before, &after, &name("a"))
    }

    #[test]
    fn what_nodes_report_about_themselves_concerns_no_other_and_not_themselves() {
        let policy = ObjectRef {
            kind: Kind::Egress,
            namespace: "default".into(),
            name: "one".into(),
        };
        let reports: [&dyn Fn(&mut NodeRecord); 8] = [
            &|record| record.steering_version = 9,
            &|record| record.acknowledged = 9,
            &|record| record.held = [(ip("192.0.2.1"), grant(1).ranges)].into(),
            &|record| record.demand = [(ip("192.0.2.1"), 64)].into(),
            &|record| record.wanted_ports = [(ip("192.0.2.1"), 64)].into(),
            &|record| record.full_destinations = [(ip("192.0.2.1"), 1)].into(),
            &|record| {
                record.programmed.push(Programmed {
                    policy: policy.clone(),
                    generation: 1,
                    pods: 1,
                });
            },
            &|record| record.resource_version = 9,
        ];
        for report in reports {
            assert!(!of_record("a", report));
            assert!(!of_record("b", report));
        }
    }

    #[test]
    fn grants_concern_their_node_and_addresses_and_announcements_everybody() {
        assert!(of_record("a", |record| record.grants.push(grant(2))));
        assert!(of_record("a", |record| record.draining.push(grant(2))));
        assert!(of_record("a", |record| record.grants_epoch = 2));
        assert!(!of_record("b", |record| record.grants.push(grant(2))));
        for node in ["a", "b"] {
            assert!(of_record(node, |record| record.tunnel_index = 7));
            let address = ip("10.0.0.7");
            assert!(of_record(node, |record| {
                record.underlay_addresses.push(address);
            }));
            assert!(of_record(node, |record| {
                record.announcing.insert(address);
            }));
        }
        let (before, mut after) = (snapshot(), snapshot());
        after.node_records.remove(&name("b"));
        assert!(concerns(&before, &after, &name("a")));
        assert!(!concerns(&before, &before.clone(), &name("a")));
    }

    #[test]
    fn of_leases_what_steering_tables_are_made_of_concerns_a_node() {
        assert!(!of_address(|record| record.resource_version = 9));
        assert!(!of_address(|record| record.term = 9));
        assert!(!of_address(|record| record.leases[0].since_secs = 99));
        assert!(!of_address(
            |record| record.leases[0].state = LeaseState::Active
        ));
        assert!(of_address(
            |record| record.leases[0].state = LeaseState::Fenced
        ));
        assert!(of_address(|record| record.leases[0].node = name("b")));
        assert!(of_address(|record| record.epoch = 2));
    }

    #[test]
    fn policies_pods_and_nodes_concern_everybody_who_reads_them() {
        let (before, mut after) = (snapshot(), snapshot());
        after.api_server.insert(ip("10.0.0.1"));
        assert!(concerns(&before, &after, &name("a")));
        let mut after = before.clone();
        after.pod_prefixes.insert("10.9.0.0/16".parse().unwrap());
        assert!(concerns(&before, &after, &name("a")));
        let mut after = before.clone();
        after.unreadable.addresses.insert(ip("192.0.2.1"));
        assert!(concerns(&before, &after, &name("a")));
        let mut after = before.clone();
        after.unreadable.demand.insert(name("b"));
        assert!(!concerns(&before, &after, &name("a")));
    }
}
