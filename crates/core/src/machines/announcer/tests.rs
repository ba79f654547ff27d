use super::*;

fn names(count: u8) -> BTreeSet<NodeName> {
    (1..=count)
        .map(|n| NodeName(format!("gateway{n}")))
        .collect()
}

fn addresses(nodes: &BTreeSet<NodeName>) -> BTreeMap<IpAddr, BTreeSet<NodeName>> {
    (1..=60u8)
        .map(|last| (IpAddr::from([192, 0, 2, last]), nodes.clone()))
        .collect()
}

/// One announcer per gateway; `live` says which others each one sees.
fn round(
    machines: &mut BTreeMap<NodeName, Announcer>,
    nodes: &BTreeSet<NodeName>,
    live: &BTreeSet<NodeName>,
    now_ms: u64,
) {
    for (name, machine) in machines.iter_mut().filter(|(name, _)| live.contains(*name)) {
        let others: BTreeSet<NodeName> = live.iter().filter(|n| *n != name).cloned().collect();
        machine.update(&addresses(nodes), &others, true, |_| true, now_ms);
    }
}

#[test]
fn every_address_has_one_announcer_and_only_a_dead_ones_addresses_move() {
    let nodes = names(4);
    let mut machines: BTreeMap<NodeName, Announcer> = nodes
        .iter()
        .map(|n| (n.clone(), Announcer::new(n.clone())))
        .collect();
    round(&mut machines, &nodes, &nodes, 0);
    let before: BTreeMap<NodeName, BTreeSet<IpAddr>> = machines
        .iter()
        .map(|(n, m)| (n.clone(), m.announcing()))
        .collect();
    let total: usize = before.values().map(BTreeSet::len).sum();
    assert_eq!(total, 60);
    assert!(before.values().all(|a| a.len() > 3), "{before:?}");

    let dead = nodes.iter().next().unwrap();
    let live: BTreeSet<NodeName> = nodes.iter().filter(|n| *n != dead).cloned().collect();
    round(&mut machines, &nodes, &live, 1_000);
    let mut all = BTreeSet::new();
    for name in &live {
        let now = machines[name].announcing();
        assert!(now.is_superset(&before[name]), "what {name} had it keeps");
        all.extend(now);
    }
    assert_eq!(all.len(), 60);

    round(&mut machines, &nodes, &nodes, 2_000);
    for (name, machine) in &machines {
        assert_eq!(
            machine.announcing(),
            before[name],
            "with its return all is as before"
        );
    }
}

#[test]
fn a_gateway_without_carrier_announces_nothing_and_says_so_at_once() {
    let nodes = names(1);
    let me = nodes.first().unwrap().clone();
    let mut machine = Announcer::new(me);
    machine.update(&addresses(&nodes), &BTreeSet::new(), true, |_| true, 0);
    assert_eq!(machine.announcing().len(), 60);
    machine.drain();
    machine.update(&addresses(&nodes), &BTreeSet::new(), false, |_| true, 10);
    let commands = machine.drain();
    assert_eq!(commands.len(), 60);
    assert!(
        commands
            .iter()
            .all(|c| matches!(c, AnnouncerCommand::Withdraw(_)))
    );
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn a_take_over_is_told_at_once_and_again_and_then_from_time_to_time() {
    let nodes = names(1);
    let address = IpAddr::from([192, 0, 2, 1]);
    let mut machine = Announcer::new(nodes.first().unwrap().clone());
    let wanted = [(address, nodes.clone())].into();
    machine.update(&wanted, &BTreeSet::new(), true, |_| true, 1_000);
    let gratuitous = AnnouncerCommand::SendGratuitous(address);
    assert_eq!(
        machine.drain(),
        [AnnouncerCommand::Announce(address), gratuitous.clone()]
    );
    let mut times = Vec::new();
    while let Some(now) = machine.next_deadline().filter(|d| *d < 40_000) {
        // An update in between changes nothing.
        machine.update(&wanted, &BTreeSet::new(), true, |_| true, now - 1);
        machine.handle_deadline(now);
        assert_eq!(machine.drain(), std::slice::from_ref(&gratuitous));
        times.push(now - 1_000);
    }
    assert_eq!(
        times,
        [100, 500, 1_000, 2_000, 5_000, 15_000, 25_000, 35_000]
    );
}

/// The first in the order flapped: it announced again before this node trusted it, and died before this node withdrew.
/// Without a repeated announcement the router would send to a dead gateway until the next refresh.
#[test]
fn a_gateway_that_lapsed_makes_the_announcer_say_again_that_it_is_it() {
    let nodes = names(2);
    let address = IpAddr::from([192, 0, 2, 1]);
    let order = announcer_order(address, &nodes);
    let mut machine = Announcer::new(order[1].clone());
    machine.update(
        &[(address, nodes.clone())].into(),
        &BTreeSet::new(),
        true,
        |_| true,
        0,
    );
    machine.handle_deadline(20_000);
    machine.drain();
    machine.repeat(21_000);
    machine.handle_deadline(21_000);
    assert_eq!(machine.drain(), [AnnouncerCommand::SendGratuitous(address)]);
    assert_eq!(machine.next_deadline(), Some(21_100));
}

#[test]
fn a_late_call_sends_once() {
    let nodes = names(1);
    let mut machine = Announcer::new(nodes.first().unwrap().clone());
    let address = IpAddr::from([192, 0, 2, 1]);
    machine.update(
        &[(address, nodes)].into(),
        &BTreeSet::new(),
        true,
        |_| true,
        0,
    );
    machine.drain();
    machine.handle_deadline(3_000);
    assert_eq!(machine.drain().len(), 1);
    assert_eq!(machine.next_deadline(), Some(5_000));
}

#[test]
fn when_another_gateway_returns_the_announcer_says_again_that_it_is_it() {
    let nodes = names(2);
    let order: Vec<NodeName> = announcer_order(IpAddr::from([192, 0, 2, 1]), &nodes)
        .into_iter()
        .cloned()
        .collect();
    let mut machine = Announcer::new(order[0].clone());
    let wanted = [(IpAddr::from([192, 0, 2, 1]), nodes)].into();
    machine.update(&wanted, &BTreeSet::new(), true, |_| true, 0);
    machine.drain();
    machine.update(&wanted, &[order[1].clone()].into(), true, |_| true, 50_000);
    assert_eq!(
        machine.drain(),
        [AnnouncerCommand::SendGratuitous(IpAddr::from([
            192, 0, 2, 1
        ]))]
    );
    assert_eq!(machine.next_deadline(), Some(50_100));
}

/// One address, this node first in its order, and another node.
fn giving_way() -> (Announcer, IpAddr, [BTreeSet<NodeName>; 2]) {
    let nodes = names(2);
    let address = IpAddr::from([192, 0, 2, 1]);
    let order = announcer_order(address, &nodes);
    let [me, other] = [order[0], order[1]].map(|node| BTreeSet::from([node.clone()]));
    let mut machine = Announcer::new(order[0].clone());
    machine.update(
        &[(address, nodes.clone())].into(),
        &other,
        true,
        |_| true,
        0,
    );
    machine.drain();
    (machine, address, [me, other])
}

#[test]
fn an_announcer_answers_until_the_next_one_announces_and_sends_nothing_unasked() {
    let (mut machine, address, [_, other]) = giving_way();
    let drained = [(address, other.clone())].into();
    machine.update(&drained, &other, true, |_| false, 100);
    machine.repeat(200);
    machine.handle_deadline(60_000);
    assert_eq!(machine.drain(), []);
    assert_eq!(machine.next_deadline(), None);
    assert_eq!(machine.announcing(), [address].into());
    assert_eq!(machine.handing_over(), [address].into());
    machine.update(&drained, &other, true, |_| true, 60_001);
    assert_eq!(machine.drain(), [AnnouncerCommand::Withdraw(address)]);
    assert!(machine.announcing().is_empty());
}

#[test]
fn an_announcer_that_was_to_give_way_and_stays_after_all_announces_again() {
    let (mut machine, address, [me, other]) = giving_way();
    machine.update(
        &[(address, other.clone())].into(),
        &other,
        true,
        |_| false,
        100,
    );
    machine.update(&[(address, me)].into(), &other, true, |_| false, 200);
    assert_eq!(machine.drain(), [AnnouncerCommand::SendGratuitous(address)]);
    assert!(machine.handing_over().is_empty());
    assert_eq!(machine.next_deadline(), Some(300));
}

#[test]
fn an_announcer_repeats_itself_when_a_gateway_that_may_have_answered_is_gone() {
    let (mut machine, address, [me, _]) = giving_way();
    machine.update(
        &[(address, me)].into(),
        &BTreeSet::new(),
        true,
        |_| true,
        50_000,
    );
    assert_eq!(machine.drain(), [AnnouncerCommand::SendGratuitous(address)]);
}
