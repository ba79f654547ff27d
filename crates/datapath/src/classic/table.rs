//! The nftables table of the driver `classic`.
//!
//! ```text
//! input      -150 input       late packets of flows that another node held before
//! forward    -150 forward     the same for flows that another node holds now
//! prerouting last classify    source -> address: mark
//! forward   first routed      our mark is cleared, before any foreign rule of this hook
//! input     first routed_in   the same for packets to the node itself
//! postrouting  90 nat         source -> address: the holder translates, others prevent later translation
//! postrouting 300 guard       packets that would leave with a wrong source, or not by the holder, dropped
//! ```

use crate::elements::{ByAddress, named_by_content};
use crate::worker::{Counter, marks};
use egret_core::classic::{ClassicAddress, ClassicState};
use egret_core::node::{PodMap, ProfileId};
use egret_core::numbers::{MARK_MASK, MARK_SHIFT};
use egret_kernel::nft::rule::{
    Builder, End, FAMILIES, Family, STATE_ESTABLISHED, STATE_INVALID, STATE_NEW,
};
use egret_kernel::nft::rule::{Interface, STATE_UNTRACKED, TCP, rule};
use egret_kernel::nft::{Chain, ElementKey, Hook, Rule, Set, SharedElements, Table, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;

const GOTO: i32 = -4;
const LATE: &str = "late_packet";
const INVALID: &str = "invalid_state";
const ENDED: &str = "ended_flow";
const MOVED: &str = "moved_flow";
const GUARD: &str = "guard_selected";
const REFUSED: &str = "refused_pod";
/// Profile of pods without an address; numbers of addresses begin at 1.
const NOBODYS: ProfileId = ProfileId(0);

/// All counters of the table.
pub const COUNTERS: &[Counter] = &[
    Counter {
        name: LATE,
        help: "packets to an egress address, of TCP connections that another node translates or translated",
    },
    Counter {
        name: INVALID,
        help: "selected packets that conntrack calls invalid",
    },
    Counter {
        name: ENDED,
        help: "packets of flows that left with another source before, refused to the pod",
    },
    Counter {
        name: MOVED,
        help: "packets of flows that were translated by a holder that is none any more, until the flow is taken up anew",
    },
    Counter {
        name: GUARD,
        help: "selected packets that would have left with a wrong source or past the holder",
    },
    Counter {
        name: REFUSED,
        help: "packets of mapped pods whose egress address is not known",
    },
];

/// The three chains that look up a packet's address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Classify,
    Nat,
    Guard,
}

const STAGES: [Stage; 3] = [Stage::Classify, Stage::Nat, Stage::Guard];

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Stage::Classify => "classify",
            Stage::Nat => "nat",
            Stage::Guard => "guard",
        }
    }

    fn pods(self, family: Family) -> String {
        family.named(&format!("{}_pods", self.word()))
    }

    fn ranges(self, family: Family) -> String {
        family.named(&format!("{}_ranges", self.word()))
    }

    fn address(self, number: u8) -> String {
        format!("{}_address_{number}", self.word())
    }

    fn refused(self) -> String {
        format!("{}_refused", self.word())
    }
}

/// Builds the whole table of one node. A pure function: equal states make equal tables.
pub fn table(state: &ClassicState) -> Table {
    let mut table = Table {
        counters: COUNTERS.iter().map(|counter| counter.name).collect(),
        ..Table::default()
    };
    for (address, here) in &state.addresses {
        for (stage, rules) in [
            (Stage::Classify, classify_address(*address, *here)),
            (Stage::Nat, vec![nat_address(*address, *here)]),
            (Stage::Guard, guard_address(*address, *here, &state.device)),
        ] {
            let chain = Chain { hook: None, rules };
            table.chains.insert(stage.address(here.number), chain);
        }
    }
    if !state.refused.is_empty() {
        // Also in the guard: packets that skipped the classification must not leave either. Nothing needs translation.
        for stage in STAGES.into_iter().filter(|stage| *stage != Stage::Nat) {
            let rules = vec![rule().count(REFUSED).drop()];
            let chain = Chain { hook: None, rules };
            table.chains.insert(stage.refused(), chain);
        }
    }
    let elsewhere = state.addresses.values().filter(|here| !here.held);
    marks::sets(elsewhere.map(|here| here.number), &mut table);
    let mut ranges = BTreeMap::new();
    for family in FAMILIES {
        destinations(state, family, &mut table);
        pods(state, family, &mut table);
        for stage in STAGES {
            let map = range_map(state, stage, family);
            let name = named_by_content(&map, &stage.ranges(family));
            ranges.insert((stage.word(), family.digit()), name.clone());
            table.sets.insert(name, map);
        }
    }
    let by_source = |stage: Stage, family: Family| {
        let ranges = ranges[&(stage.word(), family.digit())].clone();
        [stage.pods(family), ranges]
    };
    chains(&mut table, &state.device, &by_source);
    table
}

type BySource<'a> = dyn Fn(Stage, Family) -> [String; 2] + 'a;

fn chains(table: &mut Table, device: &str, by_source: &BySource<'_>) {
    const PREROUTING: u32 = 0;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const POSTROUTING: u32 = 4;
    for (name, number, priority, rules) in [
        ("input", INPUT, -150, input()),
        ("forward", FORWARD, -150, forward(device)),
        ("classify", PREROUTING, i32::MAX, classify(by_source)),
        ("routed", FORWARD, i32::MIN, marks::restore()),
        ("routed_in", INPUT, i32::MIN, marks::restore()),
        ("nat", POSTROUTING, 90, nat(by_source)),
        ("guard", POSTROUTING, 300, guard(by_source)),
    ] {
        let hook = Some(Hook {
            number,
            priority,
            nat: name == "nat",
            device: None,
        });
        table.chains.insert(name.into(), Chain { hook, rules });
    }
}

fn destinations(state: &ClassicState, family: Family, table: &mut Table) {
    let mut never = Set::new(&[family.address_type()]);
    never.interval = true;
    let nets = state.never.iter();
    for net in nets.filter(|net| Family::of(net.addr()) == family) {
        let key = ElementKey::addresses(net.network(), net.broadcast());
        never.elements.insert(key, Value::Member);
    }
    table.sets.insert(family.named("never"), never);
    // All addresses, not only the held ones: packets arrive before the agent learns that the kernel got an address.
    let mut addresses = Set::new(&[family.address_type()]);
    let all = state.addresses.keys();
    for address in all.filter(|address| Family::of(**address) == family) {
        let key = ElementKey::address(*address);
        addresses.elements.insert(key, Value::Member);
    }
    table.sets.insert(family.named("addresses"), addresses);
}

fn pods(state: &ClassicState, family: Family, table: &mut Table) {
    let of_family = state
        .pods
        .iter()
        .filter(|(pod, _)| Family::of(**pod) == family);
    // Here an address is the profile of its pods.
    let profile = |here: &ClassicAddress| ProfileId(u64::from(here.number));
    let profiles = of_family.map(|(pod, address)| (*pod, profile(&state.addresses[address])));
    let refused = state
        .refused
        .iter()
        .filter(|pod| Family::of(**pod) == family);
    let refused = refused.map(|pod| (*pod, NOBODYS));
    let addresses: PodMap = profiles.chain(refused).collect();
    for stage in STAGES {
        let mut map = Set::new(&[family.address_type()]);
        map.verdicts = true;
        let verdict = |here: &ClassicAddress| {
            let chain = stage.address(here.number);
            (profile(here), Value::Verdict(GOTO, Some(chain)))
        };
        let mut verdicts: BTreeMap<_, _> = state.addresses.values().map(verdict).collect();
        if !state.refused.is_empty() && stage != Stage::Nat {
            verdicts.insert(NOBODYS, Value::Verdict(GOTO, Some(stage.refused())));
        }
        map.shared = Some(SharedElements::new(ByAddress {
            addresses: addresses.clone(),
            verdicts,
        }));
        table.sets.insert(stage.pods(family), map);
    }
}

fn range_map(state: &ClassicState, stage: Stage, family: Family) -> Set {
    let mut map = Set::new(&[family.address_type()]);
    (map.verdicts, map.interval) = (true, true);
    for (first, last, address) in &state.ranges {
        if Family::of(*first) == family {
            let chain = stage.address(state.addresses[address].number);
            let key = ElementKey::addresses(*first, *last);
            map.elements.insert(key, Value::Verdict(GOTO, Some(chain)));
        }
    }
    map
}

/// Drops packets of connections that this node's stack has never seen: it would reset them. They continue with the
/// pod's next packet.
fn input() -> Vec<Rule> {
    late(rule).collect()
}

/// Keeps a past holder from tracking packets that servers still send: when it holds the address again, the source port
/// would be in use, and the connection would get another one.
fn forward(device: &str) -> Vec<Rule> {
    late(|| rule().device(Interface::In, device, true)).collect()
}

fn late(start: impl Fn() -> Builder) -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().map(move |family| {
        start()
            .address_in(family, End::Destination, &family.named("addresses"))
            .state(STATE_NEW | STATE_INVALID)
            .tcp_not_first()
            .count(LATE)
            .drop()
    })
}

fn classify(by_source: &BySource<'_>) -> Vec<Rule> {
    let mut rules = vec![marks::set_aside(), rule().direction(true).accept()];
    rules.extend(never());
    rules.push(rule().destination_is_local().accept());
    for family in FAMILIES {
        for map in by_source(Stage::Classify, family) {
            rules.push(rule().by_source(family, map));
        }
    }
    rules
}

fn never() -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().map(|family| {
        rule()
            .address_in(family, End::Destination, &family.named("never"))
            .accept()
    })
}

fn nat(by_source: &BySource<'_>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = never().collect();
    for family in FAMILIES {
        for map in by_source(Stage::Nat, family) {
            rules.push(rule().by_source(family, map));
        }
    }
    rules
}

fn guard(by_source: &BySource<'_>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = never().collect();
    for family in FAMILIES {
        for map in by_source(Stage::Guard, family) {
            let tracked = rule().forwarded(true).direction(false);
            rules.push(tracked.by_original_source(family, map.clone()));
            let untracked = rule()
                .forwarded(true)
                .state(STATE_INVALID | STATE_UNTRACKED);
            rules.push(untracked.by_source(family, map));
        }
    }
    rules
}

fn classify_address(address: IpAddr, here: ClassicAddress) -> Vec<Rule> {
    let established = || rule().state(STATE_ESTABLISHED);
    let translated = || established().source_is_translated(true);
    let by_another = || match here.held {
        true => translated().translated_source_is(address, false),
        false => translated(),
    };
    let moved = match here.held {
        true => established().translated_source_is(address, false),
        false => translated().translated_source_is(address, true),
    };
    let mut rules = vec![rule().state(STATE_INVALID).count(INVALID).drop()];
    if !here.held {
        rules.push(moved.count(MOVED).drop());
        rules.push(by_another().protocol(TCP).count(ENDED).reset());
        rules.push(by_another().count(ENDED).prohibit());
    } else {
        rules.push(by_another().protocol(TCP).count(ENDED).reset());
        rules.push(by_another().count(ENDED).prohibit());
        rules.push(moved.count(MOVED).drop());
    }
    if !here.held {
        let mark = u32::from(here.number) << MARK_SHIFT;
        rules.push(rule().set_mark(MARK_MASK, mark).done());
    }
    rules
}

fn nat_address(address: IpAddr, here: ClassicAddress) -> Rule {
    match here.held {
        true => rule().snat_to(address),
        false => rule().snat_to_itself(Family::of(address)),
    }
}

/// Relies on no mark: foreign rules clear marks.
fn guard_address(address: IpAddr, here: ClassicAddress, device: &str) -> Vec<Rule> {
    let to_holder = || {
        rule()
            .device(Interface::Out, device, true)
            .next_hop_is(address)
    };
    let dropped = || rule().count(GUARD).drop();
    match here.held {
        // A translated packet goes to no other holder: that would track it, and find the port in use when it
        // translates.
        true => vec![
            to_holder().count(GUARD).drop(),
            rule().address_is(End::Source, address, true).accept(),
            dropped(),
        ],
        false => vec![to_holder().source_is_translated(false).accept(), dropped()],
    }
}
