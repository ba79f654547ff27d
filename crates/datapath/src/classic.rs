//! The second driver, `classic`: carries out a [`ClassicState`] (design section 4; limits: `docs/classic.md`).

mod policy_routes;
mod table;

pub use table::{COUNTERS, table};

use crate::drift::{Drift, DriftReport};
use crate::route::{RouteError, Routing};
use crate::worker::driver::{DatapathError, settings};
use egret_core::classic::{ClassicFate, ClassicState};
use egret_core::numbers::CLASSIC_NFT_TABLE;
use egret_kernel::conntrack::{Conntrack, Flow};
use egret_kernel::netlink::NetlinkSocket;
use egret_kernel::nft::Nftables;
use egret_kernel::sysctl::Sysctls;
use policy_routes::PolicyRoutes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

const TCP: u8 = 6;

/// The data path of the network namespace of the thread that opened it.
pub struct ClassicDatapath {
    nft: Nftables,
    socket: NetlinkSocket,
    routing: Routing,
    conntrack: Conntrack,
    sysctls: Sysctls,
    applied: Option<(ClassicState, PolicyRoutes)>,
}

impl ClassicDatapath {
    /// Opens the sockets; changes nothing yet. `state_directory` holds the state that must outlive the process.
    pub fn open(state_directory: &Path) -> Result<Self, DatapathError> {
        let socket = NetlinkSocket::open(libc::NETLINK_ROUTE).map_err(RouteError::from)?;
        Ok(ClassicDatapath {
            nft: Nftables::open(CLASSIC_NFT_TABLE)?,
            socket,
            routing: Routing::open()?,
            conntrack: Conntrack::open().map_err(DatapathError::Conntrack)?,
            sysctls: Sysctls::new(state_directory),
            applied: None,
        })
    }

    /// All addresses of this node.
    pub fn local_addresses(&mut self) -> Result<BTreeSet<IpAddr>, DatapathError> {
        let by_device = self.routing.addresses()?;
        let all = by_device.into_values().flatten();
        Ok(all.map(|network| network.addr()).collect())
    }

    /// Makes the kernel equal to the state. Obsolete routes to holders are removed before the ruleset changes, new ones
    /// added after it: rules that translate never coexist with a route to another holder, and without a route the guard
    /// drops. `before` is the state that an earlier process applied last, if any.
    ///
    /// Conntrack entries of flows whose holder changed are deleted, so that the pod's next packet is translated by the
    /// new holder. The holder preserves source ports where it can, so most TCP connections continue.
    pub fn apply(
        &mut self,
        state: &ClassicState,
        before: Option<&ClassicState>,
    ) -> Result<usize, DatapathError> {
        settings::forward(&self.sysctls, &mut self.routing, true)?;
        let devices = self.routing.devices()?;
        let device = devices.iter().find(|device| device.name == state.device);
        let Some(device) = device else {
            let device = state.device.clone();
            return Err(RouteError::NoDevice { device }.into());
        };
        let ways = PolicyRoutes::of(state, device.index);
        let there = PolicyRoutes::read(&mut self.socket)?;
        ways.settle(&mut self.socket, &there)?;
        self.nft.apply(&table(state))?;
        ways.add(&mut self.socket, &there)?;
        let known = self.applied.take();
        let old = known.as_ref().map(|(state, _)| state);
        let ended = match old {
            Some(old) if old == state => 0,
            old => self.forget_flows(old.or(before), state)?,
        };
        self.applied = Some((state.clone(), ways));
        Ok(ended)
    }

    /// Detects drift; the next [`Self::apply`] repairs it.
    pub fn verify(&mut self) -> Result<DriftReport, DatapathError> {
        let Some((_, ways)) = &self.applied else {
            return Ok(DriftReport::new());
        };
        let routes = match PolicyRoutes::read(&mut self.socket)? == *ways {
            true => None,
            false => Some("a rule or route of ours is not as it was".to_owned()),
        };
        let settings = settings::changed(&self.sysctls)?;
        let parts = [
            (Drift::Routes, routes),
            (Drift::Ruleset, self.nft.verify_quick()?),
            (Drift::Sysctls, settings),
        ];
        let drifted = parts.into_iter();
        Ok(drifted
            .filter_map(|(kind, what)| Some((kind, what?)))
            .collect())
    }

    /// Packets counted, by reason.
    pub fn counters(&mut self) -> Result<BTreeMap<String, u64>, DatapathError> {
        Ok(self.nft.counters()?)
    }

    /// Removes everything of this driver and restores settings; flows of `before` then leave as they would without us.
    /// Continues after errors and returns them all.
    pub fn remove(&mut self, before: Option<&ClassicState>) -> Vec<DatapathError> {
        let known = self.applied.take();
        let mut errors = Vec::new();
        errors.extend(self.nft.remove().err().map(DatapathError::from));
        let gone = PolicyRoutes::read(&mut self.socket)
            .and_then(|there| PolicyRoutes::default().settle(&mut self.socket, &there));
        errors.extend(gone.err().map(DatapathError::from));
        errors.extend(self.sysctls.restore().err().map(DatapathError::from));
        let old = known.as_ref().map(|(state, _)| state).or(before);
        let forgotten = self.forget_flows(old, &ClassicState::default());
        errors.extend(forgotten.err());
        errors
    }

    fn forget_flows(
        &mut self,
        old: Option<&ClassicState>,
        new: &ClassicState,
    ) -> Result<usize, DatapathError> {
        let mut flows = self.conntrack.flows().map_err(DatapathError::Conntrack)?;
        flows.retain(|flow| is_stale(flow, old, new));
        for flow in &flows {
            let deleted = self.conntrack.delete(flow);
            deleted.map_err(DatapathError::Conntrack)?;
        }
        Ok(flows.len())
    }
}

/// Whether the flow's entry must be deleted, so that its next packet is classified again. TCP connections that others
/// translated stay: the ruleset resets them towards the pod.
fn is_stale(flow: &Flow, old: Option<&ClassicState>, new: &ClassicState) -> bool {
    let (pod, destination) = (flow.original.source, flow.reply.source);
    let source = flow.reply.destination;
    let by_others = flow.original.protocol != TCP;
    match new.fate(pod, destination) {
        ClassicFate::Translated(address) if source == address => false,
        ClassicFate::Translated(_) => source == pod || by_others,
        ClassicFate::Sent(_) if source == pod => false,
        ClassicFate::Sent(address) => source == address || by_others,
        // None of its packets leaves; it continues if the pod gets its address back.
        ClassicFate::Refused => false,
        ClassicFate::Untouched => {
            old.is_some_and(|old| old.fate(pod, destination) != ClassicFate::Untouched)
        }
    }
}
