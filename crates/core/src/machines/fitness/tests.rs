use super::*;
use crate::model::{NodeRecord, Settings, UnpooledAddresses};
use crate::numbers::UPLINK_TURN_MS;

const ADDRESS: &str = "192.0.2.1";
const ROUTER: &str = "203.0.113.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName(text.into())
}

/// The gateway `a`, beside the gateway `b` that serves the same address.
struct Scene {
    fitness: GatewayFitness,
    snapshot: Snapshot,
    link: ExternalLink,
    addresses: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    liveness: GatewayLiveness,
}

impl Scene {
    fn new() -> Self {
        let snapshot = Snapshot::empty(Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: Vec::new(),
            hold_down_secs: 120,
        });
        let via = OutboundRoute::Via([ip(ROUTER)].into());
        Self {
            fitness: GatewayFitness::new(name("a")),
            snapshot,
            link: ExternalLink {
                device: Some("eth1".into()),
                carrier: true,
                routes: [via, OutboundRoute::Direct],
            },
            addresses: [(ip(ADDRESS), [name("a"), name("b")].into())].into(),
            liveness: GatewayLiveness {
                live: [name("b")].into(),
                versions: [(name("b"), 7)].into(),
                settled: true,
                reached: true,
                ..GatewayLiveness::default()
            },
        }
    }

    fn uplink(&mut self, now_ms: u64) -> bool {
        self.fitness.decide_uplink(
            &self.snapshot,
            &self.link,
            &self.addresses,
            &self.liveness,
            now_ms,
        )
    }

    fn limited(&mut self, now_ms: u64) -> usize {
        let mut addresses = self.addresses.clone();
        let seen = (self.liveness.alone, self.liveness.reached);
        self.fitness.limit(&mut addresses, seen, now_ms);
        addresses.len()
    }
}

#[test]
fn a_gateway_whose_router_is_silent_leaves_to_others_that_serve() {
    let mut scene = Scene::new();
    assert!(scene.uplink(0));
    scene.fitness.set_silent([ip(ROUTER)].into());
    assert!(!scene.uplink(10));
    assert!(scene.fitness.leaves());
    let reports = scene.fitness.reports();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].0, Reason::NoUplink);
    assert!(reports[0].1.contains(ROUTER), "{}", reports[0].1);
    scene.fitness.set_silent(BTreeSet::new());
    assert!(scene.uplink(20));
    assert_eq!(scene.fitness.reports(), []);
}

#[test]
fn it_stays_where_no_other_serves_or_all_are_lost() {
    let mut scene = Scene::new();
    scene.fitness.set_silent([ip(ROUTER)].into());
    scene.liveness.versions = [(name("b"), 0)].into();
    assert!(scene.uplink(0), "the other one has loaded nothing");
    assert!(scene.fitness.lost().is_some());
    scene.liveness.versions = [(name("b"), 7)].into();
    let mut record = NodeRecord::new(name("b"));
    record.uplink_lost = true;
    scene.snapshot.node_records.insert(name("b"), record);
    assert!(scene.uplink(UPLINK_TURN_MS), "the other one does no better");
    assert!(scene.fitness.reports()[0].1.contains("goes on serving"));
}

#[test]
fn only_families_that_are_served_matter() {
    let mut scene = Scene::new();
    scene.link.routes[1] = OutboundRoute::OtherDevice;
    assert!(scene.uplink(0));
    scene.addresses = [(ip("2001:db8::1"), [name("a"), name("b")].into())].into();
    assert!(!scene.uplink(10));
    assert!(scene.fitness.lost().unwrap().contains("another device"));
}

#[test]
fn without_carrier_the_link_never_counts() {
    let mut scene = Scene::new();
    scene.link.carrier = false;
    assert!(!scene.uplink(0));
    assert!(!scene.fitness.leaves());
}

#[test]
fn a_gateway_that_nobody_reaches_announces_nothing_that_others_may_serve() {
    let mut scene = Scene::new();
    assert_eq!(scene.limited(0), 1);
    (scene.liveness.alone, scene.liveness.reached) = (true, false);
    assert_eq!(scene.limited(10), 0);
    assert_eq!(scene.fitness.given_up(), &[ip(ADDRESS)].into());
    let reports = scene.fitness.reports();
    assert_eq!(reports[0].0, Reason::CutOff);
    assert!(reports[0].1.contains("by the tunnel"), "{}", reports[0].1);
    assert_eq!(scene.fitness.questions(10), [ip(ADDRESS)]);
    scene.fitness.question_sent(ip(ADDRESS), 10);
    scene.fitness.answered(ip(ADDRESS));
    assert!(scene.fitness.reports()[0].1.contains(ADDRESS));
    assert!(!scene.fitness.is_stale());
    (scene.liveness.alone, scene.liveness.reached) = (false, true);
    assert_eq!(scene.limited(20), 1);
    assert_eq!(scene.fitness.reports(), []);
}
