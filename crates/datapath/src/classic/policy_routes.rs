//! Routes and rules towards the holder of an address.

use crate::route::desired::{METRIC_GROUP, METRIC_LAST};
use crate::route::policy::{self, Owner};
use crate::route::{RouteEntry, RouteError, RouteKind, RuleEntry};
use egret_core::classic::ClassicState;
use egret_core::numbers::MARK_SHIFT;
use egret_kernel::netlink::NetlinkSocket;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;

/// Routes and rules, wanted or read from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PolicyRoutes {
    routes: BTreeSet<RouteEntry>,
    rules: BTreeSet<RuleEntry>,
}

impl PolicyRoutes {
    /// Routes and rules of the state, by the device with this index.
    pub(super) fn of(state: &ClassicState, device: u32) -> Self {
        let mut policy_routes = PolicyRoutes::default();
        for (address, here) in state.addresses.iter().filter(|(_, here)| !here.held) {
            let v6 = address.is_ipv6();
            let to = if v6 {
                IpNet::V6(Ipv6Net::default())
            } else {
                IpNet::V4(Ipv4Net::default())
            };
            let table = u32::from(here.number);
            let to_holder = RouteKind::Neighbour {
                address: *address,
                device,
            };
            for (metric, kind) in [
                (METRIC_GROUP, to_holder),
                (METRIC_LAST, RouteKind::Unreachable),
            ] {
                policy_routes.routes.insert(RouteEntry {
                    table,
                    to,
                    metric,
                    kind,
                });
            }
            let mark = table << MARK_SHIFT;
            policy_routes
                .rules
                .extend(RuleEntry::marked(v6, mark, table));
        }
        policy_routes
    }

    /// Reads our routes and rules from the kernel.
    pub(super) fn read(socket: &mut NetlinkSocket) -> Result<Self, RouteError> {
        Ok(PolicyRoutes {
            routes: policy::routes(socket, Owner::CLASSIC)?,
            rules: policy::rules(socket, Owner::CLASSIC)?,
        })
    }

    /// Adds wanted routes and rules that are missing.
    pub(super) fn add(&self, socket: &mut NetlinkSocket, there: &Self) -> Result<(), RouteError> {
        for route in self.routes.difference(&there.routes) {
            policy::add_route(socket, Owner::CLASSIC, route)?;
        }
        for rule in self.rules.difference(&there.rules) {
            policy::add_rule(socket, Owner::CLASSIC, rule)?;
        }
        Ok(())
    }

    /// Deletes obsolete routes and rules. A route that another one replaces (same table, prefix and metric) stays.
    pub(super) fn settle(
        &self,
        socket: &mut NetlinkSocket,
        there: &Self,
    ) -> Result<(), RouteError> {
        let stale: Vec<_> = there.rules.difference(&self.rules).collect();
        for rule in stale.into_iter().rev() {
            policy::delete_rule(socket, Owner::CLASSIC, rule)?;
        }
        for route in there.routes.difference(&self.routes) {
            let place = |entry: &RouteEntry| (entry.table, entry.to, entry.metric);
            if !self.routes.iter().any(|new| place(new) == place(route)) {
                policy::delete_route(socket, Owner::CLASSIC, route)?;
            }
        }
        Ok(())
    }
}
