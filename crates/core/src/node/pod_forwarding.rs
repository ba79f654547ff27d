//! How packets of this node's pods leave it: through the stack, or past it by programs of the network plugin.
//!
//! The decision does not depend on the plugin's name. Whoever sends packets past the stack needs a program at the
//! devices of pods, where packets arrive. Where such a program exists, uplink programs check what leaves, which is
//! harmless for packets that did pass the stack.

use super::ids::ProfileId;
use super::issue::{IssueKind, NodeIssue};
use super::state::{Profile, Verdict};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Setting: how the network plugin forwards pods' packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniPath {
    /// Derived from what the kernel shows.
    #[default]
    Auto,
    /// Pods' packets pass the stack, even where programs are attached.
    Netfilter,
    /// Programs send pods' packets past the stack.
    Bpf,
}

/// A route by which packets can leave the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UplinkRoute {
    /// Name of the device.
    pub device: String,
    /// Its frames have Ethernet headers.
    pub ethernet: bool,
    /// Destinations of the route.
    pub to: IpNet,
}

/// Facts of the node's kernel about routes of pods' packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathFacts {
    /// The setting `--cni-path`.
    pub choice: CniPath,
    /// Why the uplink programs cannot be used here; `None`: no reason is known.
    pub refused: Option<String>,
    /// Unicast routes of others.
    pub routes: BTreeSet<UplinkRoute>,
    /// Devices with tc or tcx programs of others at their ingress.
    pub programs: BTreeSet<String>,
    /// Devices with an XDP program.
    pub express: BTreeSet<String>,
    /// Devices of an Open vSwitch bridge.
    pub switched: BTreeSet<String>,
    /// Devices that the node's routes to its pods' addresses use; `None`: some of them have no route.
    pub delivered: BTreeSet<Option<String>>,
}

/// How pods' packets leave a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodForwarding {
    /// Through the stack.
    Netfilter,
    /// Possibly past the stack, and then by one of the uplinks in the state.
    Bpf,
    /// In an unsupported manner, with the reason in a sentence.
    Unsupported(String),
}

/// Decides how this node's pods' packets leave, and at which devices they are reinjected. `inside`: destinations that
/// are not egress traffic.
pub(super) fn decide(
    path: &PathFacts,
    inside: [&BTreeSet<IpNet>; 2],
    profiles: &BTreeMap<ProfileId, Profile>,
) -> (PodForwarding, BTreeSet<String>) {
    if path.choice == CniPath::Netfilter {
        return (PodForwarding::Netfilter, BTreeSet::new());
    }
    let inside: Vec<&IpNet> = inside.into_iter().flatten().collect();
    let leads_out = |route: &&UplinkRoute| !inside.iter().any(|never| never.contains(&route.to));
    let routes: Vec<&UplinkRoute> = path.routes.iter().filter(leads_out).collect();
    let uplinks: BTreeSet<&String> = routes.iter().map(|route| &route.device).collect();
    let beside = |devices: &BTreeSet<String>| -> Vec<String> {
        let others = devices.iter().filter(|device| !uplinks.contains(device));
        others.cloned().collect()
    };
    if let Some(text) = strange(path, &uplinks, &beside) {
        return (PodForwarding::Unsupported(text), BTreeSet::new());
    }
    let programs = beside(&path.programs);
    if path.choice == CniPath::Auto && programs.is_empty() {
        return (PodForwarding::Netfilter, BTreeSet::new());
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
        return (PodForwarding::Unsupported(text), BTreeSet::new());
    }
    let headless = |route: &&&UplinkRoute| !route.ethernet && selects(profiles, route.to);
    if let Some(route) = routes.iter().find(headless) {
        let text = format!(
            "{why}, and {}, by which selected destinations are reached, is no Ethernet device",
            route.device
        );
        return (PodForwarding::Unsupported(text), BTreeSet::new());
    }
    let ethernet = routes.iter().filter(|route| route.ethernet);
    let reinject = ethernet.map(|route| route.device.clone()).collect();
    (PodForwarding::Bpf, reinject)
}

/// Reason why packets neither pass the stack nor can be reinjected at the uplinks.
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

/// Whether any selected destination is in `to`.
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

/// Refuses egress traffic that passes the stack where pods' packets leave in an unsupported manner: a policy is served
/// completely or not at all.
pub(super) fn refuse(profiles: &mut BTreeMap<ProfileId, Profile>) {
    profiles.values_mut().for_each(Profile::refuse);
}

/// Refuses traffic to next hops. Answers of a next hop arrive like any packet, and programs deliver them to the pod
/// past the stack, so connection tracking would see one half of every flow.
pub(super) fn refuse_next_hops(profiles: &mut BTreeMap<ProfileId, Profile>) -> Option<NodeIssue> {
    let mut refused = false;
    for one in profiles
        .values_mut()
        .flat_map(|profile| &mut profile.ranges)
        .filter(|one| matches!(one.verdict, Verdict::NextHop(_)))
    {
        one.verdict = Verdict::Unavailable;
        refused = true;
    }
    refused.then(|| NodeIssue {
        kind: IssueKind::NextHopPath,
        subject: "next hops".into(),
        text: "programs of the network plugin may take pods' packets past this node's stack, and answers of a next hop \
               with them: traffic of its pods to next hops is dropped"
            .into(),
    })
}
