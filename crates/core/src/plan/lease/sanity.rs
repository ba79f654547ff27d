//! Validation of address records, which people can edit. Leases that no planner would have written are removed, newest
//! first, so that two workers never share a block whatever the record contains (P4).

use crate::model::*;
use crate::numbers::{BLOCK_PORTS, LEASE_PORT_FIRST};
use std::collections::BTreeSet;

/// Removes invalid leases; returns whether there were any.
pub(super) fn mend(record: &mut AddressRecord, findings: &mut BTreeSet<Finding>) -> bool {
    let mut order: Vec<usize> = (0..record.leases.len()).collect();
    order.sort_by_key(|i| (record.leases[*i].epoch, &record.leases[*i].node, *i));
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    let mut bad: BTreeSet<usize> = BTreeSet::new();
    for i in order {
        let lease = &record.leases[i];
        let whole = lease.ranges.iter().all(|r| {
            r.first >= LEASE_PORT_FIRST
                && r.first <= r.last
                && r.first % BLOCK_PORTS == 0
                && r.last % BLOCK_PORTS == BLOCK_PORTS - 1
        });
        let blocks: Vec<u16> = lease
            .ranges
            .iter()
            .filter(|_| whole)
            .flat_map(|r| r.first / BLOCK_PORTS..=r.last / BLOCK_PORTS)
            .collect();
        let distinct: BTreeSet<u16> = blocks.iter().copied().collect();
        let good = whole
            && !blocks.is_empty()
            && distinct.len() == blocks.len()
            && distinct.is_disjoint(&taken);
        if good {
            taken.extend(distinct);
        } else {
            bad.insert(i);
        }
    }
    for i in bad.iter().rev() {
        let lease = record.leases.remove(*i);
        let ranges: Vec<String> = lease.ranges.iter().map(ToString::to_string).collect();
        findings.insert(Finding {
            object: ObjectRef::of_cluster(Kind::EgressAddress, record.address.to_string()),
            field: format!("spec.leases[{i}].ranges"),
            value: ranges.join(","),
            remedy: format!(
                "lease of {} taken out: its ranges are not whole blocks of ports that may be leased, or belong to \
                 another lease; let only the controller write this object",
                lease.node
            ),
        });
    }
    !bad.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(node: &str, first: u16, last: u16, epoch: u64) -> Lease {
        Lease {
            node: NodeName(node.into()),
            ranges: vec![PortRange { first, last }],
            epoch,
            withdrawn: None,
            state: LeaseState::Active,
            since_secs: 0,
        }
    }

    #[test]
    fn of_two_leases_of_one_block_the_newer_goes() {
        let mut record = AddressRecord {
            epoch: 3,
            leases: vec![
                lease("new", 1024, 1151, 3),
                lease("old", 1088, 1151, 1),
                lease("crooked", 2000, 2063, 1),
                lease("low", 0, 63, 1),
            ],
            ..AddressRecord::new([192, 0, 2, 1].into(), GatewayName("g".into()))
        };
        let mut findings = BTreeSet::new();
        assert!(mend(&mut record, &mut findings));
        assert_eq!(record.leases, [lease("old", 1088, 1151, 1)]);
        assert_eq!(findings.len(), 3);
        assert!(!mend(&mut record, &mut findings));
    }
}
