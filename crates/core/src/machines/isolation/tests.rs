use super::*;
use crate::machines::Announcer;
use proptest::prelude::*;

/// Milliseconds of one step of the network.
const STEP_MS: u64 = 15;

/// Gateways on one external segment: the tunnel's reachability is given, and answers take one step.
struct Segment {
    nodes: BTreeSet<NodeName>,
    addresses: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    machines: BTreeMap<NodeName, (Isolation, Announcer)>,
    now_ms: u64,
}

impl Segment {
    fn new(count: usize) -> Self {
        let nodes: BTreeSet<NodeName> = (0..count).map(|n| NodeName(format!("g{n}"))).collect();
        let address = |last| (IpAddr::from([192, 0, 2, last]), nodes.clone());
        let machine = |name: &NodeName| {
            let pair = (Isolation::new(name.clone()), Announcer::new(name.clone()));
            (name.clone(), pair)
        };
        Segment {
            addresses: (1..=4).map(address).collect(),
            machines: nodes.iter().map(machine).collect(),
            nodes,
            now_ms: 0,
        }
    }

    /// `off`: without power. `cut`: hears no other gateway and is not heard. `reached`: workers' packets arrive.
    fn step(&mut self, off: &BTreeSet<usize>, cut: &BTreeSet<usize>, reached: &BTreeSet<usize>) {
        self.now_ms += STEP_MS;
        let nodes: Vec<NodeName> = self.nodes.iter().cloned().collect();
        let mut questions = Vec::new();
        for (number, me) in nodes.iter().enumerate() {
            let (isolation, announcer) = self.machines.get_mut(me).unwrap();
            if off.contains(&number) {
                *isolation = Isolation::new(me.clone());
                *announcer = Announcer::new(me.clone());
                continue;
            }
            let others = (0..nodes.len()).filter(|n| *n != number && !off.contains(n));
            let hears = others.filter(|n| !cut.contains(&number) && !cut.contains(n));
            let live: BTreeSet<NodeName> = hears.map(|n| nodes[n].clone()).collect();
            let (alone, reached) = (live.is_empty(), reached.contains(&number));
            isolation.update(&self.addresses, alone, reached, self.now_ms);
            isolation.handle_deadline(self.now_ms);
            let given_up = isolation.given_up();
            let mut mine = self.addresses.clone();
            mine.retain(|address, _| !given_up.contains(address));
            announcer.update(&mine, &live, true, |_| true, self.now_ms);
            questions.extend(isolation.drain().into_iter().map(|a| (me.clone(), a)));
        }
        for (asker, address) in questions {
            let isolation = &mut self.machines.get_mut(&asker).unwrap().0;
            isolation.asked(address, self.now_ms);
            if self.announcers(address).iter().any(|name| *name != asker) {
                self.machines.get_mut(&asker).unwrap().0.answered(address);
            }
        }
    }

    fn run(
        &mut self,
        ms: u64,
        off: &BTreeSet<usize>,
        cut: &BTreeSet<usize>,
        reached: &BTreeSet<usize>,
    ) {
        for _ in 0..ms / STEP_MS {
            self.step(off, cut, reached);
        }
    }

    fn announcers(&self, address: IpAddr) -> Vec<NodeName> {
        let all = self.machines.iter();
        let says = all.filter(|(_, (_, announcer))| announcer.announcing().contains(&address));
        says.map(|(name, _)| name.clone()).collect()
    }

    fn numbers(&self, address: IpAddr) -> BTreeSet<usize> {
        let number = |name: &NodeName| self.nodes.iter().position(|node| node == name).unwrap();
        self.announcers(address).iter().map(number).collect()
    }
}

fn set(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
    numbers.into_iter().collect()
}

/// Long enough for the last in the order to ask twice.
const SETTLED_MS: u64 = 2 * ISOLATION_ASK_AGAIN_MS * (ISOLATION_ASKS as u64 + 1) * 8;

#[test]
fn a_gateway_that_is_cut_off_announces_nothing_that_others_serve() {
    let mut segment = Segment::new(3);
    let (none, all) = (set([]), set([0, 1, 2]));
    segment.run(1_000, &none, &none, &all);
    let addresses: Vec<IpAddr> = segment.addresses.keys().copied().collect();
    assert!(addresses.iter().any(|a| segment.numbers(*a) == set([1])));
    // From the first moment on, it never announces an address that it must not.
    for _ in 0..SETTLED_MS / STEP_MS {
        segment.step(&none, &set([1]), &set([0, 2]));
        assert!(addresses.iter().all(|a| !segment.numbers(*a).contains(&1)));
    }
    assert!(addresses.iter().all(|a| segment.numbers(*a).len() == 1));
    segment.run(STEP_MS, &none, &none, &all);
    assert!(addresses.iter().any(|a| segment.numbers(*a) == set([1])));
}

#[test]
fn one_whose_answers_are_lost_gives_way_though_workers_reach_it() {
    let mut segment = Segment::new(3);
    let (none, all) = (set([]), set([0, 1, 2]));
    segment.run(1_000, &none, &none, &all);
    segment.run(SETTLED_MS, &none, &set([1]), &all);
    let addresses: Vec<IpAddr> = segment.addresses.keys().copied().collect();
    assert!(addresses.iter().all(|a| !segment.numbers(*a).contains(&1)));
}

#[test]
fn the_last_one_takes_over_at_once_where_workers_reach_it_and_soon_where_nobody_does() {
    let addresses: Vec<IpAddr> = Segment::new(2).addresses.into_keys().collect();
    for (reached, within_ms) in [
        (set([0]), STEP_MS),
        (
            set([]),
            ISOLATION_ASK_FIRST_MS * (ISOLATION_ASKS as u64 + 1),
        ),
    ] {
        let mut segment = Segment::new(2);
        segment.run(1_000, &set([]), &set([]), &set([0, 1]));
        segment.run(within_ms, &set([1]), &set([]), &reached);
        assert!(addresses.iter().all(|a| segment.numbers(*a) == set([0])));
    }
}

#[test]
fn the_only_gateway_of_a_group_never_asks() {
    let me = NodeName("g0".into());
    let address = IpAddr::from([192, 0, 2, 1]);
    let addresses = BTreeMap::from([(address, BTreeSet::from([me.clone()]))]);
    let mut isolation = Isolation::new(me);
    isolation.update(&addresses, true, false, 0);
    isolation.handle_deadline(1_000);
    assert!(isolation.drain().is_empty() && isolation.given_up().is_empty());
    assert_eq!(isolation.next_deadline(), None);
}

#[test]
fn a_question_that_was_never_sent_counts_for_nothing() {
    let nodes: BTreeSet<NodeName> = ["g0", "g1"].map(|name| NodeName(name.into())).into();
    let address = IpAddr::from([192, 0, 2, 1]);
    let mut isolation = Isolation::new(NodeName("g0".into()));
    isolation.update(&BTreeMap::from([(address, nodes)]), true, false, 0);
    for now_ms in 0..60_000 {
        isolation.handle_deadline(now_ms);
    }
    assert!(isolation.drain().len() > 100, "it is tried again");
    assert_eq!(isolation.given_up(), BTreeSet::from([address]));
}

#[test]
fn many_addresses_are_asked_for_in_bursts() {
    let nodes: BTreeSet<NodeName> = ["g0", "g1"].map(|name| NodeName(name.into())).into();
    let address = |n: u16| IpAddr::from([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    let addresses = (0..1_000).map(|n| (address(n), nodes.clone())).collect();
    let mut isolation = Isolation::new(NodeName("g0".into()));
    isolation.update(&addresses, true, false, 0);
    let mut asked = BTreeSet::new();
    while asked.len() < 1_000 {
        let now_ms = isolation.next_deadline().unwrap();
        isolation.handle_deadline(now_ms);
        let burst = isolation.drain();
        assert!(burst.len() <= ISOLATION_ASKS_AT_ONCE && now_ms < 10_000);
        asked.extend(burst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Property: whichever gateways are off or cut off over time, in the end every address has one announcer. It is not
    /// a cut-off one where two gateways hear each other; a single gateway gets no address back from a cut-off one that
    /// took it while nobody served.
    #[test]
    fn in_the_end_each_address_has_one_announcer_that_serves(
        history in prop::collection::vec(
            (prop::collection::btree_set(0usize..4, 0..4), prop::collection::btree_set(0usize..4, 0..5), 0u64..1_500),
            1..5,
        ),
    ) {
        let mut segment = Segment::new(4);
        for (off, cut, ms) in &history {
            let reached = set((0..4).filter(|n| !cut.contains(n)));
            segment.run(*ms, off, cut, &reached);
        }
        let (off, cut, _) = history.last().unwrap();
        let reached = set((0..4).filter(|n| !cut.contains(n)));
        segment.run(SETTLED_MS, off, cut, &reached);
        let serving = set((0..4).filter(|n| !off.contains(n) && !cut.contains(n)));
        for address in segment.addresses.keys() {
            let numbers = segment.numbers(*address);
            prop_assert_eq!(numbers.len(), 1, "{:?} announce {}", numbers, address);
            let serves = serving.len() < 2 || numbers.is_subset(&serving);
            prop_assert!(serves, "{:?} of {:?}", numbers, serving);
        }
    }
}
