use super::*;
use crate::model::{GatewayName, NodeName, PortRange};
use proptest::prelude::*;
use std::net::IpAddr;

const NOW: u64 = 50_000;

fn address() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

fn blocks(numbers: &[u16]) -> AddressPorts {
    let ranges: Vec<PortRange> = numbers.iter().map(|number| range(*number)).collect();
    [(address(), ranges.as_slice())].into_iter().collect()
}

fn range(number: u16) -> PortRange {
    let first = 1024 + number * 64;
    PortRange {
        first,
        last: first + 63,
    }
}

fn grants(numbers: &[u16]) -> Vec<Grant> {
    let one = |number: &u16| Grant {
        address: address(),
        gateway: GatewayName("edge".into()),
        ranges: vec![range(*number)],
        epoch: 1,
    };
    numbers.iter().map(one).collect()
}

fn record(acknowledged: u64, held: &AddressPorts) -> NodeRecord {
    NodeRecord {
        acknowledged,
        held: held.ranges(),
        ..NodeRecord::new(NodeName("a".into()))
    }
}

/// A machine whose kernel has these blocks, reported and accepted, and without flows.
fn holding(numbers: &[u16]) -> HeldPorts {
    let mut ports = HeldPorts::default();
    ports.adopt(&record(1, &blocks(numbers)));
    ports.admit(&grants(numbers));
    ports.applying(&blocks(numbers));
    ports.applied(blocks(numbers), 1, NOW);
    ports.counted(AddressPorts::default(), NOW);
    report(&mut ports);
    ports
}

/// Reports, and has the report accepted.
fn report(ports: &mut HeldPorts) {
    let held = ports.report().held;
    let number = ports.sent(held.clone());
    ports.accepted(number, held);
}

#[test]
fn a_new_range_waits_for_its_report_and_is_reported_while_it_waits() {
    let mut ports = holding(&[0]);
    assert_eq!(ports.admit(&grants(&[0, 1])), grants(&[0]));
    assert!(ports.is_waiting());
    let held = ports.report().held;
    assert_eq!(held, blocks(&[0, 1]));
    let number = ports.sent(held.clone());
    assert_eq!(
        ports.admit(&grants(&[0, 1])),
        grants(&[0]),
        "sent is not accepted"
    );
    ports.accepted(number, held);
    assert!(!ports.is_waiting());
    assert_eq!(ports.admit(&grants(&[0, 1])), grants(&[0, 1]));
}

#[test]
fn a_range_of_which_a_part_is_reported_is_used_in_part() {
    let mut ports = holding(&[0]);
    let wide = Grant {
        ranges: vec![PortRange {
            first: 1024,
            last: 1151,
        }],
        ..grants(&[0]).remove(0)
    };
    assert_eq!(ports.admit(&[wide]), grants(&[0]));
}

#[test]
fn a_later_report_that_may_have_been_written_counts_against_a_range() {
    let mut ports = holding(&[0, 1]);
    ports.admit(&grants(&[0]));
    ports.applied(blocks(&[0]), 2, NOW);
    ports.counted(AddressPorts::default(), NOW + DRAIN_SETTLE_MS);
    let less = ports.report().held;
    assert_eq!(less, blocks(&[0]));
    // Whether it was written is unknown: the answer did not arrive.
    ports.sent(less);
    assert_eq!(ports.admit(&grants(&[0, 1])), grants(&[0]));
    report(&mut ports);
    assert_eq!(ports.admit(&grants(&[0, 1])), grants(&[0, 1]));
}

#[test]
fn without_the_api_what_the_kernel_has_stays_and_new_ranges_wait() {
    let mut ports = holding(&[0]);
    for _ in 0..100 {
        assert_eq!(ports.admit(&grants(&[0, 1])), grants(&[0]));
        let held = ports.report().held;
        ports.sent(held);
        ports.applied(blocks(&[0]), 2, NOW);
    }
    assert!(ports.unanswered.len() <= REPORTS_MAX);
    ports.lost();
    assert_eq!(ports.admit(&grants(&[0, 1])), grants(&[0]));
}

#[test]
fn a_withdrawn_range_is_held_until_a_count_long_after_it_left_the_kernel() {
    let mut ports = holding(&[0, 1]);
    ports.admit(&grants(&[0]));
    ports.applying(&blocks(&[0]));
    assert_eq!(ports.report().acknowledged, 1);
    assert_eq!(ports.report().held, blocks(&[0, 1]), "the apply may fail");
    ports.applied(blocks(&[0]), 7, NOW);
    assert_eq!(ports.report().acknowledged, 7);
    assert_eq!(ports.report().held, blocks(&[0, 1]));
    assert_eq!(ports.count_at(), Some(NOW + DRAIN_SETTLE_MS));
    ports.counted(AddressPorts::default(), NOW + DRAIN_SETTLE_MS - 1);
    assert_eq!(ports.report().held, blocks(&[0, 1]));
    ports.counted(blocks(&[1]), NOW + DRAIN_SETTLE_MS);
    assert_eq!(ports.count_at(), None);
    assert_eq!(ports.report().held, blocks(&[0, 1]), "it has a flow");
    ports.counted(AddressPorts::default(), NOW + 10_000);
    assert_eq!(ports.report().held, blocks(&[0]));
}

#[test]
fn before_the_first_count_an_agent_repeats_its_predecessor() {
    let mut ports = HeldPorts::default();
    ports.adopt(&record(4, &blocks(&[0, 1, 2])));
    assert_eq!(ports.admit(&grants(&[0])), grants(&[0]));
    ports.applied(blocks(&[0]), 9, NOW);
    let said = ports.report();
    assert_eq!((said.acknowledged, said.held), (4, blocks(&[0, 1, 2])));
    // What the store says later does not replace it.
    ports.adopt(&record(0, &AddressPorts::default()));
    ports.counted(blocks(&[2]), NOW + DRAIN_SETTLE_MS);
    let said = ports.report();
    assert_eq!((said.acknowledged, said.held), (9, blocks(&[0, 2])));
}

#[test]
fn the_grants_that_an_agent_without_reports_used_are_used_on() {
    let mut before = NodeRecord {
        grants: grants(&[0, 1]),
        ..record(0, &AddressPorts::default())
    };
    let mut fresh = HeldPorts::default();
    fresh.adopt(&before);
    assert_eq!(fresh.admit(&before.grants), []);
    before.demand.insert(address(), 0);
    let mut updated = HeldPorts::default();
    updated.adopt(&before);
    assert_eq!(updated.admit(&before.grants), grants(&[0, 1]));
}

/// An input of the machine.
#[derive(Clone, Debug)]
enum Step {
    Grant(Vec<u16>),
    Apply,
    Count(Vec<u16>),
    Send,
    /// The writer writes the newest report, and the answer arrives or not.
    Write(bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(0u16..5, 0..4);
    prop_oneof![
        numbers().prop_map(Step::Grant),
        Just(Step::Apply),
        numbers().prop_map(Step::Count),
        Just(Step::Send),
        any::<bool>().prop_map(Step::Write),
        (0u64..2_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Property: the store's report contains every block of the kernel's rules, whatever is written, lost or answered
    /// late; and every block with a flow that the last count has found.
    #[test]
    fn the_store_knows_every_block_in_the_kernel(steps in prop::collection::vec(step(), 0..120)) {
        let mut ports = HeldPorts::default();
        ports.adopt(&record(1, &AddressPorts::default()));
        let mut store = AddressPorts::default();
        let (mut granted, mut kernel) = (Vec::new(), AddressPorts::default());
        let (mut newest, mut now_ms, mut epoch) = (None, NOW, 1);
        for step in steps {
            match step {
                Step::Grant(numbers) => { granted = grants(&numbers); epoch += 1; }
                Step::Apply => {
                    let admitted = ports_of(ports.admit(&granted).iter());
                    prop_assert!(kernel.union(&store).contains(&admitted));
                    ports.applying(&admitted);
                    ports.applied(admitted.clone(), epoch, now_ms);
                    kernel = admitted;
                }
                Step::Count(numbers) => {
                    // Flows are only where the kernel may have put them.
                    let flows = blocks(&numbers).intersection(&ports.report().held);
                    ports.counted(flows.clone(), now_ms);
                    prop_assert!(ports.report().held.contains(&flows));
                }
                Step::Send => {
                    let held = ports.report().held;
                    newest = Some((ports.sent(held.clone()), held));
                }
                Step::Write(answered) => if let Some((number, held)) = newest.clone() {
                    store = held.clone();
                    if answered { ports.accepted(number, held); }
                }
                Step::Wait(ms) => now_ms += ms,
            }
            prop_assert!(store.contains(&kernel), "{store:?} lacks some of {kernel:?}");
            prop_assert!(ports.report().held.contains(&kernel));
        }
    }
}
