use super::*;

fn name(text: &str) -> NodeName {
    NodeName(text.to_owned())
}

/// Peers that answer while they are up, driven tick by tick.
struct Net {
    machine: Liveness,
    now_ms: u64,
    up: BTreeSet<NodeName>,
    events: Vec<(u64, LivenessCommand)>,
    probes: u64,
}

impl Net {
    fn new(peers: usize) -> Self {
        let mut machine = Liveness::new(7);
        let names: Vec<NodeName> = (0..peers).map(|n| name(&format!("g{n:03}"))).collect();
        machine.set_peers(
            &names
                .iter()
                .map(|n| (n.clone(), ProbeSettings::default()))
                .collect(),
            0,
        );
        Self {
            machine,
            now_ms: 0,
            up: names.into_iter().collect(),
            events: Vec::new(),
            probes: 0,
        }
    }

    fn run_until(&mut self, end_ms: u64) {
        while let Some(deadline) = self.machine.next_deadline().filter(|d| *d <= end_ms) {
            self.now_ms = self.now_ms.max(deadline);
            self.machine.handle_deadline(self.now_ms);
            self.exchange();
        }
        self.now_ms = end_ms;
    }

    fn exchange(&mut self) {
        for command in self.machine.drain() {
            if let LivenessCommand::SendProbe { peer, nonce } = command {
                self.probes += 1;
                if self.up.contains(&peer) {
                    self.machine.reply_received(&peer, nonce, 5, self.now_ms);
                }
            } else {
                self.events.push((self.now_ms, command));
            }
        }
        for command in self.machine.drain() {
            self.events.push((self.now_ms, command));
        }
    }

    fn times(&self, wanted: &LivenessCommand) -> Vec<u64> {
        self.events
            .iter()
            .filter(|(_, c)| c == wanted)
            .map(|(t, _)| *t)
            .collect()
    }
}

#[test]
fn a_gateway_is_alive_with_its_first_reply() {
    let mut net = Net::new(2);
    assert!(!net.machine.settled());
    net.run_until(0);
    assert_eq!(net.machine.live().len(), 2);
    assert!(net.machine.settled());
    assert_eq!(net.machine.versions()[&name("g000")], 5);
}

#[test]
fn three_lost_probes_make_a_gateway_dead_within_200_ms() {
    let mut net = Net::new(2);
    net.run_until(1_000);
    net.up.remove(&name("g001"));
    net.run_until(1_500);
    let dead = net.times(&LivenessCommand::Dead { peer: name("g001") });
    assert!(
        dead.len() == 1 && (1_100..=1_200).contains(&dead[0]),
        "{dead:?}"
    );
    assert_eq!(net.machine.live(), [name("g000")].into());
    assert_eq!(
        net.machine.versions().len(),
        2,
        "the last version stays known"
    );
}

#[test]
fn two_lost_probes_are_no_death() {
    let mut net = Net::new(1);
    net.run_until(1_000);
    let start = net.machine.next_deadline().unwrap();
    net.up.clear();
    net.run_until(start + 60);
    net.up.insert(name("g000"));
    net.run_until(3_000);
    assert_eq!(
        net.times(&LivenessCommand::Dead { peer: name("g000") }),
        [0; 0]
    );
}

#[test]
fn a_dead_gateway_needs_several_replies_and_more_if_it_flaps() {
    let mut net = Net::new(1);
    net.run_until(100);
    let peer = name("g000");
    let mut waits = Vec::new();
    for _ in 0..3 {
        net.up.clear();
        net.run_until(net.now_ms + 400);
        let before = net
            .times(&LivenessCommand::Alive { peer: peer.clone() })
            .len();
        let start = net.now_ms;
        net.up.insert(peer.clone());
        net.run_until(start + 2_000);
        let alive = net.times(&LivenessCommand::Alive { peer: peer.clone() });
        assert_eq!(alive.len(), before + 1);
        waits.push(alive[before] - start);
    }
    assert!((100..=150).contains(&waits[0]), "{waits:?}");
    assert!(
        waits[1] > waits[0] && waits[2] > waits[1] && waits[2] <= 650,
        "{waits:?}"
    );
}

#[test]
fn a_flapping_gateway_that_dies_before_it_is_trusted_again_lapses_once() {
    let mut net = Net::new(1);
    net.run_until(100);
    let peer = name("g000");
    for _ in 0..2 {
        net.up.clear();
        net.run_until(net.now_ms + 400);
        net.up.insert(peer.clone());
        net.run_until(net.now_ms + 2_000);
    }
    net.up.clear();
    net.run_until(net.now_ms + 400);
    assert_eq!(
        net.times(&LivenessCommand::Lapsed { peer: peer.clone() }),
        [0; 0]
    );
    net.up.insert(peer.clone());
    net.run_until(net.now_ms + 200);
    assert_eq!(net.machine.live(), [].into());
    let gone = net.now_ms;
    net.up.clear();
    net.run_until(gone + 2_000);
    let lapsed = net.times(&LivenessCommand::Lapsed { peer });
    assert!(
        lapsed.len() == 1 && (gone + 100..=gone + 200).contains(&lapsed[0]),
        "{lapsed:?} after {gone}"
    );
}

#[test]
fn a_node_that_was_held_up_declares_nobody_dead() {
    let mut net = Net::new(1);
    net.run_until(1_000);
    // Nothing was sent for five seconds, so nothing is missing.
    net.now_ms = 6_000;
    net.machine.handle_deadline(6_000);
    net.exchange();
    net.run_until(7_000);
    assert_eq!(
        net.times(&LivenessCommand::Dead { peer: name("g000") }),
        [0; 0]
    );
}

/// A gateway whose own link was down declared all others dead, and announced when the link came back.
#[test]
fn who_was_cut_off_asks_anew_before_it_declares_anybody_dead() {
    let mut net = Net::new(2);
    net.run_until(1_000);
    net.up.clear();
    net.run_until(1_110);
    // Now the loss of the own carrier is noticed: no probes until it is back.
    net.now_ms = 5_000;
    net.machine.resume(5_000);
    net.up.insert(name("g000"));
    net.run_until(5_000);
    assert_eq!(net.machine.live().len(), 2);
    net.run_until(5_300);
    assert_eq!(net.machine.live(), [name("g000")].into());
}

#[test]
fn forged_repeated_and_late_replies_count_for_nothing() {
    let mut machine = Liveness::new(1);
    let peer = name("g");
    machine.set_peers(&[(peer.clone(), ProbeSettings::default())].into(), 0);
    let mut nonces = Vec::new();
    for _ in 0..6 {
        let now = machine.next_deadline().unwrap();
        machine.handle_deadline(now);
        nonces.extend(machine.drain().into_iter().filter_map(|c| match c {
            LivenessCommand::SendProbe { nonce, .. } => Some(nonce),
            _ => None,
        }));
    }
    let now = machine.next_deadline().unwrap();
    machine.reply_received(&peer, 42, 9, now);
    machine.reply_received(&peer, nonces[0], 9, now);
    assert_eq!(machine.drain(), [], "forged, and older than three probes");
    for _ in 0..10 {
        machine.reply_received(&peer, nonces[5], 9, now);
    }
    assert!(
        machine.live().is_empty(),
        "one reply is one, however often it comes"
    );
}

#[test]
fn many_gateways_are_probed_no_faster_than_the_limit() {
    let mut net = Net::new(4 * PROBE_PEERS_FULL_RATE);
    net.run_until(10_000);
    let limit = PROBE_PEERS_FULL_RATE as u64 * 10_000 / PROBE_INTERVAL_MS;
    assert!(
        net.probes <= limit + 5 * PROBE_PEERS_FULL_RATE as u64,
        "{}",
        net.probes
    );
    assert!(net.probes >= limit * 9 / 10, "{}", net.probes);
}

#[test]
fn peers_that_stay_keep_their_state_and_others_go() {
    let mut net = Net::new(2);
    net.run_until(500);
    let stay = [(
        name("g001"),
        ProbeSettings {
            interval_ms: 10,
            failures: 5,
        },
    )]
    .into();
    net.machine.set_peers(&stay, 500);
    assert_eq!(net.machine.live(), [name("g001")].into());
}

#[test]
fn a_gateway_that_comes_later_is_waited_for_by_nobody_and_not_alive_before_it_answers() {
    let mut net = Net::new(2);
    assert!(
        !net.machine.settled(),
        "at the beginning silence means nothing"
    );
    net.run_until(100);
    assert!(net.machine.settled());
    let settings = ProbeSettings::default();
    let of = |names: &[&str]| names.iter().map(|n| (name(n), settings)).collect();
    net.machine.set_peers(&of(&["g000"]), 100);
    // It was alive when it left.
    net.machine.set_peers(&of(&["g000", "g001"]), 110);
    assert!(net.machine.settled());
    assert_eq!(net.machine.live(), [name("g000")].into());
    net.run_until(120);
    assert_eq!(net.machine.live(), [name("g000"), name("g001")].into());
}
