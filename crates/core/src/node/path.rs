//! How packets of this node's pods leave it: through the stack, or past it by programs of the network plugin.
//!
//! A plugin is never asked for its name. Whoever takes packets past the stack needs a program where they arrive, at the
//! devices of pods; where there is one, what leaves is looked at once more at the uplinks, which does no harm where it
//! came through the stack after all.

use super::ids::ProfileId;
use super::report::{NodeReport, ReportKind};
use super::state::{Profile, Verdict};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What the agent was told about its network plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniPath {
    /// To look for itself.
    #[default]
    Auto,
    /// Pods' packets pass the stack, whatever programs look at them.
    Netfilter,
    /// Programs take pods' packets past the stack.
    Bpf,
}

/// A route that packets can leave the node by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Way {
    /// Name of the device.
    pub device: String,
    /// Its frames have Ethernet headers.
    pub ethernet: bool,
    /// Destinations of the route.
    pub to: IpNet,
}

/// What the node's kernel shows of the ways of pods' packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathFacts {
    /// What the agent was told.
    pub choice: CniPath,
    /// Why the uplink programs cannot be used here; `None`: nothing is known against them.
    pub refused: Option<String>,
    /// Unicast routes of others.
    pub ways: BTreeSet<Way>,
    /// Devices at whose ingress tc or tcx programs of others look at packets.
    pub programs: BTreeSet<String>,
    /// Devices with an XDP program.
    pub express: BTreeSet<String>,
    /// Devices of an Open vSwitch bridge.
    pub switched: BTreeSet<String>,
    /// The devices that the node's routes lead to for the addresses of its pods; `None`: nowhere for some of them.
    pub delivered: BTreeSet<Option<String>>,
}

/// How pods' packets leave a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodsPath {
    /// Through the stack.
    Netfilter,
    /// Maybe past it, and then by one of the uplinks that the state names.
    Bpf,
    /// In a way that is not served, with the reason in a sentence.
    Unsupported(String),
}

/// How this node's pods leave, and the devices to lift their packets at. `inside`: destinations that are no egress traffic.
pub(super) fn decide(
    path: &PathFacts,
    inside: [&BTreeSet<IpNet>; 2],
    profiles: &BTreeMap<ProfileId, Profile>,
) -> (PodsPath, BTreeSet<String>) {
    if path.choice == CniPath::Netfilter {
        return (PodsPath::Netfilter, BTreeSet::new());
    }
    let inside: Vec<&IpNet> = inside.into_iter().flatten().collect();
    let leads_out = |way: &&Way| !inside.iter().any(|never| never.contains(&way.to));
    let ways: Vec<&Way> = path.ways.iter().filter(leads_out).collect();
    let uplinks: BTreeSet<&String> = ways.iter().map(|way| &way.device).collect();
    let beside = |devices: &BTreeSet<String>| -> Vec<String> {
        let others = devices.iter().filter(|device| !uplinks.contains(device));
        others.cloned().collect()
    };
    if let Some(text) = strange(path, &uplinks, &beside) {
        return (PodsPath::Unsupported(text), BTreeSet::new());
    }
    let programs = beside(&path.programs);
    if path.choice == CniPath::Auto && programs.is_empty() {
        return (PodsPath::Netfilter, BTreeSet::new());
    }
    let why = match programs.as_slice() {
        [] => "--cni-path says that programs take pods' packets past the stack".to_owned(),
        [first, ..] => format!(
            "a program at {first} may take pods' packets past the stack ({} such devices)",
            programs.len()
        ),
    };
    if let Some(refused) = &path.refused {
        let text = format!("{why}, and they cannot be taken back: {refused}");
        return (PodsPath::Unsupported(text), BTreeSet::new());
    }
    let headless = |way: &&&Way| !way.ethernet && selects(profiles, way.to);
    if let Some(way) = ways.iter().find(headless) {
        let text = format!(
            "{why}, and {}, by which selected destinations are reached, is no Ethernet device",
            way.device
        );
        return (PodsPath::Unsupported(text), BTreeSet::new());
    }
    let ethernet = ways.iter().filter(|way| way.ethernet);
    let lift = ethernet.map(|way| way.device.clone()).collect();
    (PodsPath::Bpf, lift)
}

/// What is no way through the stack, and none that can be looked at from the uplinks.
fn strange(
    path: &PathFacts,
    uplinks: &BTreeSet<&String>,
    beside: &dyn Fn(&BTreeSet<String>) -> Vec<String>,
) -> Option<String> {
    if let [first, ..] = beside(&path.express).as_slice() {
        return Some(format!(
            "an XDP program at {first} may send pods' packets on before anything of the node sees them"
        ));
    }
    let switched_out = uplinks
        .iter()
        .find(|device| path.switched.contains(**device));
    if let (Some(uplink), [first, ..]) = (switched_out, beside(&path.switched).as_slice()) {
        return Some(format!(
            "{first} and {uplink} are of one Open vSwitch, which may send pods' packets out by itself"
        ));
    }
    let is_away = |device: &Option<String>| device.as_ref().is_none_or(|d| uplinks.contains(d));
    if !path.delivered.is_empty() && path.delivered.iter().all(is_away) {
        return Some(
            "none of the addresses of its pods is routed to a device of theirs: their packets do not pass this node's \
             stack (ipvlan, macvlan, SR-IOV, or a bridge to the network)"
                .into(),
        );
    }
    None
}

/// Whether any selected destination is inside.
fn selects(profiles: &BTreeMap<ProfileId, Profile>, to: IpNet) -> bool {
    let (first, last) = (to.network(), to.broadcast());
    let boxes = profiles.values().flat_map(|profile| {
        let boxes = profile.ranges.iter().map(|one| (one.first, one.last));
        boxes.chain(profile.portless.iter().copied())
    });
    boxes
        .filter(|(from, _)| from.is_ipv4() == first.is_ipv4())
        .any(|(from, until)| from <= last && first <= until)
}

/// Where pods' packets leave in a way that is not served, those that the stack sees are refused: a policy is served in
/// whole or not at all.
pub(super) fn refuse(profiles: &mut BTreeMap<ProfileId, Profile>) {
    profiles.values_mut().for_each(Profile::refuse);
}

/// Answers of a next hop come to the node as any packet does, and programs take them past the stack to the pod: its
/// connection tracking would see one half of every flow. So such traffic is refused instead.
pub(super) fn refuse_next_hops(profiles: &mut BTreeMap<ProfileId, Profile>) -> Option<NodeReport> {
    let mut refused = false;
    for one in profiles
        .values_mut()
        .flat_map(|profile| &mut profile.ranges)
        .filter(|one| matches!(one.verdict, Verdict::NextHop(_)))
    {
        one.verdict = Verdict::Unavailable;
        refused = true;
    }
    refused.then(|| NodeReport {
        kind: ReportKind::NextHopPath,
        subject: "next hops".into(),
        text: "programs of the network plugin may take pods' packets past this node's stack, and answers of a next hop \
               with them: traffic of its pods to next hops is dropped"
            .into(),
    })
}
