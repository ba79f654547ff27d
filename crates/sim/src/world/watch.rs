//! Flows that nothing may interrupt while nothing fails (P3).

use super::World;
use crate::checker::Rule;
use crate::cluster;
use crate::kernel::{Exit, Flow};
use crate::step::Step;
use egret_core::numbers::BLOCK_PORTS;
use std::net::IpAddr;

/// Flows that are watched at a time; older ones are forgotten.
const WATCHED_MAX: usize = 16;

/// One watched flow.
struct Watched {
    node: usize,
    pod: usize,
    flow: Flow,
    /// It got out by every gateway that it may take, and replies came back.
    was_served: bool,
}

/// Watched flows of a history in which nothing has failed yet.
#[derive(Default)]
pub(super) struct Watch {
    flows: Vec<Watched>,
    /// Something has failed.
    has_ended: bool,
}

impl Watch {
    /// A step is about to be taken.
    pub(super) fn note(&mut self, step: Step, policy_of: impl Fn(usize) -> usize) {
        if !step.is_calm() {
            self.has_ended = true;
            self.flows.clear();
        }
        match step {
            Step::RemovePod(pod) => self.flows.retain(|one| one.pod != pod),
            Step::Repoint(policy, _) => self.flows.retain(|one| policy_of(one.pod) != policy),
            _ => {}
        }
    }

    /// A pod has opened a flow.
    pub(super) fn add(&mut self, node: usize, pod: usize, flow: Flow) {
        if self.has_ended || self.flows.len() >= WATCHED_MAX {
            return;
        }
        self.flows.push(Watched {
            node,
            pod,
            flow,
            was_served: false,
        });
    }
}

impl World {
    /// Looks at the watched flows after a step.
    pub(super) fn look_at_flows(&mut self) -> Result<(), (Rule, String)> {
        let mut watch = std::mem::take(&mut self.watch);
        let has = |one: &Watched| self.machines[one.node].kernel.flows().contains(&one.flow);
        watch.flows.retain(has);
        let mut found = Ok(());
        for one in &mut watch.flows {
            match self.why_lost(one.node, &one.flow) {
                None => one.was_served = true,
                Some(why) if one.was_served => {
                    let text = format!("a flow of pod{} on node{}: {why}", one.pod, one.node);
                    found = Err((Rule::Interrupted, text));
                }
                Some(_) => {}
            }
        }
        self.watch = watch;
        found
    }

    /// Why packets of a flow are lost on some way that they may take.
    fn why_lost(&self, node: usize, flow: &Flow) -> Option<String> {
        let (block, underlay) = (flow.block(), self.machines[node].underlay);
        match self.machines[node].kernel.exits.get(&flow.address) {
            None | Some(Exit::Nowhere) => return Some("its worker has no next hop".to_owned()),
            Some(Exit::Local) => {}
            Some(Exit::Tunnel(members)) => {
                let admits = |member: &IpAddr| {
                    let mut machines = self.machines.iter();
                    let gateway = machines.find(|machine| machine.underlay == *member)?;
                    Some(gateway.kernel.gateway.as_ref()?.admit(block, underlay))
                };
                let lost = members.iter().find(|member| admits(member) != Some(true));
                if let Some(lost) = lost {
                    return Some(format!("gateway {lost} drops what it sends"));
                }
            }
        }
        self.lost_replies(node, flow.address, flow.port / BLOCK_PORTS)
    }

    /// A step is about to be taken.
    pub(super) fn watch_step(&mut self, step: Step) {
        let policy_of = |pod| cluster::policy_of(&self.cluster, pod);
        self.watch.note(step, policy_of);
    }
}
