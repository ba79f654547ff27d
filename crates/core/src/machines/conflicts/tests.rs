use super::*;

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const FOREIGN: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x99]);

fn address() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

/// One of two gateways, which would announce the address; nobody has announced it yet.
fn inputs() -> ConflictInputs {
    ConflictInputs {
        served: [address()].into(),
        chosen: [address()].into(),
        gateways: [OWN, OTHER].into(),
        ..ConflictInputs::default()
    }
}

/// Times of probes until `until_ms`, with calls at the machine's deadlines.
fn probes(machine: &mut Conflicts, from_ms: u64, until_ms: u64) -> Vec<u64> {
    let mut now = from_ms;
    let mut sent = Vec::new();
    while let Some(due) = machine.next_deadline().filter(|due| *due < until_ms) {
        now = now.max(due);
        machine.handle_deadline(now);
        let probe = ConflictCommand::Probe(address());
        let drained = machine.drain();
        sent.extend(drained.iter().filter(|one| **one == probe).map(|_| now));
    }
    sent
}

#[test]
fn an_address_that_nobody_has_announced_is_asked_for_first() {
    let mut machine = Conflicts::default();
    machine.update(inputs(), 1_000);
    assert!(!machine.may_announce(&address()));
    let mut sent: Vec<u64> = machine.drain().iter().map(|_| 1_000).collect();
    sent.extend(probes(&mut machine, 1_000, 1_500));
    assert_eq!(sent, [1_000, 1_060, 1_120]);
    assert_eq!(machine.decision_at(), Some(1_000 + CONFLICT_DECIDED_MS));
    machine.update(inputs(), 1_199);
    assert!(!machine.may_announce(&address()));
    machine.update(inputs(), 1_200);
    assert!(machine.may_announce(&address()));
    assert_eq!(machine.decision_at(), None);
    assert_eq!(machine.conflicts(), BTreeMap::new());
}

#[test]
fn what_another_machine_has_is_not_announced_until_it_is_gone() {
    let mut machine = Conflicts::default();
    machine.update(inputs(), 0);
    assert!(machine.heard(address(), FOREIGN, 10));
    assert!(!machine.heard(address(), FOREIGN, 70), "no news");
    machine.update(inputs(), CONFLICT_DECIDED_MS);
    assert!(!machine.may_announce(&address()));
    assert_eq!(machine.conflicts(), [(address(), FOREIGN)].into());
    assert!(
        !machine
            .drain()
            .contains(&ConflictCommand::Defend(address())),
        "there is nothing to defend"
    );
    // The other machine continues to answer.
    let mut now = CONFLICT_DECIDED_MS;
    for _ in 0..5 {
        now = machine.next_deadline().unwrap().max(now);
        machine.handle_deadline(now);
        machine.heard(address(), FOREIGN, now);
        assert!(!machine.may_announce(&address()));
    }
    // The other machine is gone.
    assert_eq!(machine.decision_at(), Some(now + CONFLICT_FORGET_MS));
    assert!(probes(&mut machine, now, now + CONFLICT_FORGET_MS).len() >= 2);
    machine.update(inputs(), now + CONFLICT_FORGET_MS);
    assert!(machine.may_announce(&address()));
    assert_eq!(machine.conflicts(), BTreeMap::new());
}

#[test]
fn a_take_over_waits_for_nobody() {
    let mut machine = Conflicts::default();
    let not_chosen = ConflictInputs {
        chosen: BTreeSet::new(),
        used: [address()].into(),
        ..inputs()
    };
    machine.update(not_chosen, 0);
    // The previous announcer has withdrawn, and reports it before this one has taken over.
    machine.update(inputs(), 50_000);
    assert!(machine.may_announce(&address()));

    // The objects do not show yet that another gateway has announced it, but its announcement was observed.
    let mut machine = Conflicts::default();
    let nobody = ConflictInputs {
        chosen: BTreeSet::new(),
        ..inputs()
    };
    machine.update(nobody, 0);
    assert!(!machine.heard(address(), OTHER, 5));
    machine.update(inputs(), 10);
    assert!(machine.may_announce(&address()));
}

#[test]
fn an_address_in_use_is_kept_told_and_defended_now_and_then() {
    let mut machine = Conflicts::default();
    let used = ConflictInputs {
        used: [address()].into(),
        ..inputs()
    };
    machine.update(used.clone(), 0);
    machine.drain();
    assert!(machine.heard(address(), FOREIGN, 100));
    assert!(machine.may_announce(&address()));
    assert_eq!(machine.drain(), [ConflictCommand::Defend(address())]);
    machine.heard(address(), FOREIGN, 200);
    assert_eq!(machine.drain(), []);
    machine.heard(address(), FOREIGN, 100 + CONFLICT_DEFEND_MS);
    assert_eq!(machine.drain(), [ConflictCommand::Defend(address())]);
    assert_eq!(machine.conflicts(), [(address(), FOREIGN)].into());
    // Another machine is news.
    let third = MacAddress([2, 0, 0, 0, 0, 0x98]);
    assert!(machine.heard(address(), third, 200 + CONFLICT_DEFEND_MS));
    // The address moves to another gateway, which observes conflicts from now on.
    let elsewhere = ConflictInputs {
        chosen: BTreeSet::new(),
        ..used
    };
    machine.update(elsewhere, 30_000);
    assert_eq!(machine.conflicts(), BTreeMap::new());
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn gateways_are_not_foreign_also_those_known_late() {
    let mut machine = Conflicts::default();
    machine.update(inputs(), 0);
    assert!(!machine.heard(address(), OTHER, 1));
    assert_eq!(machine.conflicts(), BTreeMap::new());
    assert!(machine.heard(address(), FOREIGN, 2));
    let late = ConflictInputs {
        gateways: [OWN, OTHER, FOREIGN].into(),
        ..inputs()
    };
    machine.update(late, 3);
    assert_eq!(machine.conflicts(), BTreeMap::new());
}

#[test]
fn what_a_gateways_kernel_has_is_left_to_it() {
    let mut machine = Conflicts::default();
    let held = ConflictInputs {
        held: [address()].into(),
        ..inputs()
    };
    machine.update(held, 0);
    assert!(machine.may_announce(&address()));
    assert!(!machine.heard(address(), FOREIGN, 1), "VRRP has its own");
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn what_is_not_served_is_nobodys_business() {
    let mut machine = Conflicts::default();
    machine.update(inputs(), 0);
    assert!(!machine.heard("192.0.2.8".parse().unwrap(), FOREIGN, 1));
    machine.update(ConflictInputs::default(), 2);
    assert!(!machine.heard(address(), FOREIGN, 3));
    assert_eq!(machine.next_deadline(), None);
    assert_eq!(machine.decision_at(), None);
}

/// Under load a probe is sent late, when the decision is due too. A decision that nobody is asked for stays due.
#[test]
fn a_late_deadline_takes_no_decision_away() {
    let mut machine = Conflicts::default();
    machine.update(inputs(), 1_000);
    let late = 1_000 + CONFLICT_DECIDED_MS + 50;
    machine.handle_deadline(late);
    assert_eq!(machine.decision_at(), Some(1_000 + CONFLICT_DECIDED_MS));
    machine.update(inputs(), late);
    assert!(machine.may_announce(&address()));

    assert!(machine.heard(address(), FOREIGN, late));
    let gone = late + CONFLICT_FORGET_MS;
    machine.handle_deadline(gone + 50);
    assert_eq!(machine.decision_at(), Some(gone));
    assert_eq!(machine.conflicts(), [(address(), FOREIGN)].into());
    machine.update(inputs(), gone + 50);
    assert_eq!(machine.conflicts(), BTreeMap::new());
}
