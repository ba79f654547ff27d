//! The part of a gateway's planned state that is in force: version and announcements, by link, join delay, other
//! gateways and conflicts.

use crate::scene::*;
use egret_core::machines::{
    EffectiveGateway, ExternalLink, GatewayCommand, GatewayInputs, GatewayLiveness, GatewayRole,
    GroupNodes, OutboundRoute,
};
use egret_core::model::*;
use egret_core::node::GatewayState;
use egret_core::numbers::{CONFLICT_DECIDED_MS, ENTRANCE_MS};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub const E: &str = "192.168.122.222";
pub const START_MS: u64 = 10_000;
const FOREIGN: MacAddress = MacAddress([2, 0, 0, 0, 0, 99]);

/// The role of gateway1 in a settled cluster of three gateways.
pub struct Gateway1 {
    pub scene: Scene,
    pub role: GatewayRole,
    liveness: GatewayLiveness,
    pub lagging: GroupNodes,
    link_up: bool,
    local: BTreeSet<IpAddr>,
}

impl Gateway1 {
    /// `others`: gateways that answer and forward.
    pub fn new(others: &[&str]) -> Self {
        let mut scene = kep_scene();
        scene.settle();
        let mut this = Self {
            scene,
            role: GatewayRole::new(node_name("gateway1")),
            liveness: GatewayLiveness::default(),
            lagging: GroupNodes::new(),
            link_up: true,
            local: BTreeSet::new(),
        };
        this.see(others);
        this
    }

    pub fn see(&mut self, others: &[&str]) {
        self.liveness = GatewayLiveness {
            live: others.iter().map(|name| node_name(name)).collect(),
            versions: others.iter().map(|name| (node_name(name), 1)).collect(),
            settled: true,
            alone: others.is_empty(),
            reached: true,
            ..GatewayLiveness::default()
        };
    }

    pub fn planned(&self) -> GatewayState {
        self.scene.outcome("gateway1").state.gateway.unwrap()
    }

    /// A round whose data path accepts every state.
    pub fn round(&mut self, now_ms: u64) -> EffectiveGateway {
        let planned = self.planned();
        self.role.attached(false);
        self.role.loaded();
        self.decide(&planned, now_ms);
        self.role.effective(&planned, self.link_up)
    }

    fn decide(&mut self, planned: &GatewayState, now_ms: u64) {
        self.role.decide(&GatewayInputs {
            snapshot: &self.scene.snapshot,
            planned,
            local: &self.local,
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            liveness: &self.liveness,
            lagging: &self.lagging,
            link_up: self.link_up,
            now_ms,
            now_secs: 1_700_000_000,
        });
    }

    /// Some gateway has announced the address before.
    pub fn in_use(mut self) -> Self {
        let records = &mut self.scene.snapshot.node_records;
        let record = records.get_mut(&node_name("gateway2")).unwrap();
        record.announcing.insert(ip(E));
        self
    }
}

pub fn announces(effective: &EffectiveGateway) -> bool {
    effective.state.addresses[&ip(E)].announce
}

#[test]
fn a_gateway_that_joins_others_is_used_after_its_join_delay() {
    let mut gateway = Gateway1::new(&["gateway2", "gateway3"]);
    let planned = gateway.planned();
    assert!(planned.version > 0);
    let first = gateway.round(START_MS);
    assert_eq!(first.state.version, 0);
    assert_eq!(first.steering_version, planned.version);
    assert_eq!(gateway.role.decides_at(), Some(START_MS + ENTRANCE_MS));
    let joined = gateway.round(START_MS + ENTRANCE_MS);
    assert_eq!(joined.state.version, planned.version);
    assert_eq!(gateway.role.decides_at(), None);
}

#[test]
fn what_an_earlier_agent_left_goes_on_without_a_delay_and_what_was_lost_begins_again() {
    let mut gateway = Gateway1::new(&["gateway2", "gateway3"]);
    let planned = gateway.planned();
    gateway.role.attached(true);
    let adopted = gateway.role.effective(&planned, true);
    assert_eq!(adopted.state.version, planned.version);
    gateway.role.loaded();
    gateway.decide(&planned, START_MS);
    let adopted = gateway.role.effective(&planned, true);
    assert_eq!(adopted.state.version, planned.version);
    gateway.role.detached();
    assert!(!gateway.role.is_loaded());
    let again = gateway.round(START_MS + 1);
    assert_eq!(again.state.version, 0);
}

#[test]
fn tables_that_are_not_loaded_keep_a_gateway_out() {
    let mut gateway = Gateway1::new(&[]).in_use();
    let planned = gateway.planned();
    gateway.role.attached(false);
    gateway.decide(&planned, START_MS);
    let effective = gateway.role.effective(&planned, true);
    assert_eq!(effective.state.version, 0);
    assert!(!announces(&effective));
    gateway.role.loaded();
    gateway.decide(&planned, START_MS + 1);
    let effective = gateway.role.effective(&planned, true);
    assert_eq!(effective.state.version, planned.version);
    assert!(announces(&effective));
}

#[test]
fn without_an_external_link_the_tables_stay_and_nobody_sends_through_it() {
    let mut gateway = Gateway1::new(&[]).in_use();
    assert!(announces(&gateway.round(START_MS)));
    gateway.link_up = false;
    let down = gateway.round(START_MS + 1);
    assert_eq!((down.state.version, down.steering_version), (0, 0));
    assert!(!announces(&down));
    let planned = gateway.planned();
    let blocks = &down.state.addresses[&ip(E)].blocks;
    assert_eq!(blocks, &planned.addresses[&ip(E)].blocks);
    let commands = gateway.role.drain();
    assert!(commands.contains(&GatewayCommand::Withdraw(ip(E))));
}

#[test]
fn the_link_counts_by_what_was_planned_before() {
    let mut gateway = Gateway1::new(&["gateway2", "gateway3"]);
    let link = ExternalLink {
        device: Some("eth1".into()),
        carrier: true,
        routes: [OutboundRoute::OtherDevice, OutboundRoute::Direct],
    };
    let planned = gateway.planned();
    let mut decide = |planned: Option<&GatewayState>| {
        let own = (&link, &gateway.local);
        let (snapshot, liveness) = (&gateway.scene.snapshot, &gateway.liveness);
        let role = &mut gateway.role;
        role.decide_link(snapshot, planned, own, liveness, START_MS)
    };
    assert!(decide(None), "it serves nothing yet");
    assert!(!decide(Some(&planned)), "others have a route out");
}

#[test]
fn a_fresh_address_is_probed_first_and_one_in_use_is_announced_at_once() {
    let mut fresh = Gateway1::new(&[]);
    assert!(!announces(&fresh.round(START_MS)));
    let commands = fresh.role.drain();
    assert_eq!(commands, [GatewayCommand::Probe(ip(E))]);
    let decided_ms = START_MS + CONFLICT_DECIDED_MS;
    assert_eq!(fresh.role.decides_at(), Some(decided_ms));
    fresh.role.handle_deadline(decided_ms);
    assert!(announces(&fresh.round(decided_ms)));
    assert!(
        fresh
            .role
            .drain()
            .contains(&GatewayCommand::Announce(ip(E)))
    );
    assert_eq!(fresh.role.announcing(), [ip(E)].into());

    let mut used = Gateway1::new(&[]).in_use();
    assert!(announces(&used.round(START_MS)));
    let commands = used.role.drain();
    let gratuitous = GatewayCommand::SendGratuitous(ip(E));
    assert!(commands.contains(&GatewayCommand::Announce(ip(E))));
    assert!(commands.contains(&gratuitous));
    used.role.repeat(START_MS + 1);
    used.role.handle_deadline(START_MS + 1);
    assert!(used.role.drain().contains(&gratuitous));
}

#[test]
fn an_address_of_another_machine_is_not_announced_and_told_with_its_first_time() {
    let mut gateway = Gateway1::new(&[]);
    gateway.round(START_MS);
    assert!(gateway.role.heard(ip(E), FOREIGN, START_MS + 1));
    let effective = gateway.round(START_MS + CONFLICT_DECIDED_MS);
    assert!(!announces(&effective));
    let claim = gateway.role.claims()[&ip(E)];
    assert_eq!((claim.mac, claim.since_secs), (FOREIGN, 1_700_000_000));

    let mut restarted = Gateway1::new(&[]);
    let records = &mut restarted.scene.snapshot.node_records;
    let record = records.get_mut(&node_name("gateway1")).unwrap();
    let since_secs = 1_600_000_000;
    let mac = FOREIGN;
    record
        .conflicts
        .insert(ip(E), AddressClaim { mac, since_secs });
    restarted.round(START_MS);
    restarted.role.heard(ip(E), FOREIGN, START_MS + 1);
    restarted.round(START_MS + 2);
    assert_eq!(restarted.role.claims()[&ip(E)].since_secs, since_secs);
}

#[test]
fn where_routers_lead_to_the_gateways_nobody_answers_and_all_forward() {
    let mut gateway = Gateway1::new(&[]).in_use();
    let gateways = &mut gateway.scene.snapshot.gateways;
    let main = gateways.get_mut(&GatewayName("main".into())).unwrap();
    main.announce = AnnounceMode::Static;
    let effective = gateway.round(START_MS);
    assert!(!announces(&effective));
    assert_eq!(effective.state.version, gateway.planned().version);
    assert_eq!(gateway.role.drain(), []);
    assert_eq!(gateway.role.served(), &BTreeSet::new());
}

#[test]
fn deadlines_of_a_gateway_without_a_data_path_are_not_waited_for() {
    let mut gateway = Gateway1::new(&[]);
    gateway.liveness.alone = false;
    gateway.round(START_MS);
    assert!(gateway.role.next_deadline().is_some());
    assert!(gateway.role.decides_at().is_some());
    gateway.role.detached();
    assert_eq!(gateway.role.next_deadline(), None);
    assert_eq!(gateway.role.decides_at(), None);
    gateway.role.reset();
    assert_eq!(gateway.role.announcing(), BTreeSet::new());
}

#[test]
fn an_address_of_a_gateway_that_stays_behind_is_announced_by_the_next_one() {
    let mut first = Gateway1::new(&["gateway2", "gateway3"]).in_use();
    first.round(START_MS);
    let joined = first.round(START_MS + ENTRANCE_MS);
    let others = |behind: &[&str]| -> GroupNodes {
        let behind = behind.iter().map(|name| node_name(name)).collect();
        [(GatewayName("main".into()), behind)].into()
    };
    let now_ms = START_MS + ENTRANCE_MS + 1;
    first.lagging = others(&["gateway2", "gateway3"]);
    assert!(announces(&first.round(now_ms)));
    // Its own agent is cut off from the API, and its program goes on to forward.
    first.lagging = others(&["gateway1"]);
    let behind = first.round(now_ms);
    assert!(!announces(&behind));
    assert_eq!(behind.state.version, first.planned().version);
    first.lagging = others(&["gateway1", "gateway2", "gateway3"]);
    let all_behind = first.round(now_ms + 1);
    assert_eq!(announces(&all_behind), announces(&joined), "by their order");
}
