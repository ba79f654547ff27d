//! Faults: of the network, the store, machines and Node objects; and their repair.

use super::World;
use crate::agent::Agent;
use crate::cluster::{self, node_name};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::step::{Kind, Place, Step};
use crate::store::Reader;
use egret_core::model::{DrainCause, Maintenance, Node};

impl World {
    pub(super) fn take_fault(&mut self, step: Step) {
        match step {
            Step::Cut(one, other) => drop(self.cuts.insert((one.min(other), one.max(other)))),
            Step::Join(one, other) => drop(self.cuts.remove(&(one.min(other), one.max(other)))),
            Step::DeleteAddress(address) => {
                let address = cluster::egress_address(address);
                let _ = self.store.delete_address(address, None);
            }
            Step::DeleteRecord(node) => self.store.delete_record(&node_name(node)),
            Step::Backup => self.store.back_up(),
            Step::Restore => self.store.restore(),
            Step::Clock(Place::Controller(number), seconds) => {
                if let Some(controller) = self.controllers.get_mut(number) {
                    controller.clock_secs += seconds;
                }
            }
            // Agents read no wall clock.
            Step::Clock(..) => {}
            Step::Kill(node)
            | Step::Start(node, _)
            | Step::Reboot(node)
            | Step::Freeze(node)
            | Step::Thaw(node)
            | Step::DeleteNode(node)
            | Step::CreateNode(node)
            | Step::Fence(node)
            | Step::Unfence(node)
            | Step::Drain(node)
            | Step::Undrain(node)
            | Step::Downgrade(node)
            | Step::Replace(node)
                if node < self.machines.len() =>
            {
                self.take_machine_fault(step, node);
            }
            _ => {}
        }
    }

    fn take_machine_fault(&mut self, step: Step, node: usize) {
        let machine = &mut self.machines[node];
        match step {
            Step::Kill(_) => machine.agent = None,
            Step::Start(_, lag) => self.start(node, lag),
            Step::Reboot(_) => {
                machine.agent = None;
                machine.kernel = Kernel::default();
                machine.is_frozen = false;
            }
            Step::Freeze(_) => machine.is_frozen = true,
            Step::Thaw(_) => machine.is_frozen = false,
            Step::DeleteNode(_) => {
                machine.is_known = false;
                let name = machine.name.clone();
                self.store.set_node(name.clone(), None);
                // The garbage collector removes its pods.
                let pods = self.store.state().pods.iter();
                let pods: Vec<(String, String)> = pods
                    .filter(|(_, pod)| pod.node == name)
                    .map(|(key, _)| key.clone())
                    .collect();
                pods.into_iter()
                    .for_each(|key| self.store.set_pod(key, None));
            }
            Step::CreateNode(_) => self.create_node(node),
            Step::Unfence(_) if self.store.state().nodes.contains_key(&machine.name) => {
                self.create_node(node);
            }
            Step::Unfence(_) => {}
            Step::Fence(_) => self.fence(node),
            Step::Drain(_) => self.drain(node, Some(DrainCause::Requested)),
            Step::Undrain(_) => self.drain(node, None),
            Step::Downgrade(_) => self.downgrade(node),
            Step::Replace(_) => {
                *machine = Machine::new(&self.cluster, node, self.numbers);
                self.numbers += 1;
                self.create_node(node);
                self.start(node, 0);
            }
            _ => unreachable!("other steps are taken elsewhere"),
        }
    }

    pub(super) fn start(&mut self, node: usize, lag: usize) {
        let is_connected = self.connected(Place::Api, Place::Node(node));
        let machine = &mut self.machines[node];
        if machine.agent.is_none() && is_connected {
            let reader = Reader::list(&self.store, &self.origin, lag);
            machine.agent = Some(Agent::start(
                &machine.name,
                reader,
                &machine.disk,
                self.sabotage,
            ));
        }
    }

    fn create_node(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let object = cluster::node(&self.cluster, node, machine.number);
        let known = self.store.state().nodes.get(&machine.name);
        if known.is_none_or(|known| known.maintenance.fence.is_some()) {
            machine.known_from = self.store.changes(Kind::Addresses);
            machine.is_known = false;
        }
        self.store.set_node(machine.name.clone(), Some(object));
    }

    /// An operator fences a node that has a Node object. As with a deletion, he is right about a gateway.
    fn fence(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let known = self.store.state().nodes.get(&machine.name);
        if let Some(known) = known.cloned() {
            machine.is_known = false;
            let maintenance = Maintenance {
                fence: Some("it is off".to_owned()),
                ..known.maintenance
            };
            let object = Node {
                maintenance,
                ..known
            };
            self.store.set_node(machine.name.clone(), Some(object));
        }
    }

    /// An operator drains a gateway, or no longer.
    fn drain(&mut self, node: usize, drain: Option<DrainCause>) {
        let name = node_name(node);
        let known = self.store.state().nodes.get(&name);
        if let Some(known) = known.cloned() {
            let maintenance = Maintenance {
                drain,
                ..known.maintenance
            };
            let object = Node {
                maintenance,
                ..known
            };
            self.store.set_node(name, Some(object));
        }
    }

    /// An agent of the version before takes over.
    fn downgrade(&mut self, node: usize) {
        self.machines[node].agent = None;
        self.start(node, 0);
        if let Some(agent) = &mut self.machines[node].agent {
            agent.make_old();
        }
    }

    /// Everything is repaired: machines, network, agents, Node objects, and who leads.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        while !self.late.is_empty() {
            self.land();
        }
        self.lead(0, false);
        for node in 0..self.machines.len() {
            let machine = &mut self.machines[node];
            machine.is_frozen = false;
            if machine.agent.as_ref().is_some_and(|agent| agent.is_old()) {
                machine.agent = None;
            }
            self.create_node(node);
            self.start(node, 0);
        }
    }
}
