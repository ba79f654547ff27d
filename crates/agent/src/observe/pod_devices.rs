//! Device of each pod of this node, and pods whose device is gone.
//!
//! The API shows a pod's address longer than the pod has it. Where the network plugin has a route for each pod, the
//! device is removed with the pod, before another pod can get the address: state bound to the device is removed with
//! it. Where pods share a bridge there is no such route, and nothing is bound.

use egret_core::model::{NodeName, Snapshot};
use egret_core::node::{MainRoute, pod_routes};
use egret_datapath::route::{RouteError, Routing};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A pod that the API still shows as the only one with its address has it again after another device has led to the
/// address for this long: its sandbox was recreated. A kubelet shows a pod's address within seconds.
const REGAINED_AFTER: Duration = Duration::from_secs(30);

/// An address and the uid of the pod that the API shows with it.
type Held = (IpAddr, String);

/// Devices and routes of this node's pods.
#[derive(Default)]
pub(crate) struct PodDevices {
    bound: BTreeMap<Held, u32>,
    /// Time since which another device leads to the address.
    detached: BTreeMap<Held, Option<Instant>>,
    /// Prefixes that the routes identify as pods'.
    pod_routes: BTreeSet<IpNet>,
    /// Devices, routes or pods have changed since the last read.
    stale: bool,
}

/// Addresses with a host route straight to a device, as network plugins without a bridge make them.
fn straight(routes: &[MainRoute]) -> BTreeMap<IpAddr, u32> {
    let one = |route: &&MainRoute| {
        route.next_hop.is_none() && route.to.prefix_len() == route.to.max_prefix_len()
    };
    let found = routes.iter().filter(one);
    found.map(|route| (route.to.addr(), route.device)).collect()
}

impl PodDevices {
    /// Marks the devices as changed.
    pub(crate) fn invalidate(&mut self) {
        self.stale = true;
    }

    /// Whether a pod may have its address again by now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let since = self.detached.values().flatten().min();
        since.is_some_and(|since| now.duration_since(*since) >= REGAINED_AFTER)
    }

    /// Reads devices and routes, if they may have changed.
    pub(crate) fn look(
        &mut self,
        routing: &mut Routing,
        snapshot: &Snapshot,
        node: &NodeName,
    ) -> Result<(), RouteError> {
        let now = Instant::now();
        if self.stale || self.is_due(now) {
            let routes = routing.main_routes()?;
            let devices = routing.devices()?;
            let names = devices
                .iter()
                .map(|device| (device.index, device.name.clone()));
            self.pod_routes = pod_routes(snapshot, node, &routes, &names.collect());
            let routes = straight(&routes);
            let devices = devices.iter().map(|device| device.index).collect();
            let own = snapshot.pods.values().filter(|pod| pod.node == *node);
            let own = own.filter(|pod| !pod.host_network && !pod.finished);
            let held = own.flat_map(|pod| pod.addresses.iter().map(|a| (*a, pod.uid.clone())));
            self.follow(held.collect(), &routes, &devices, now);
            self.stale = false;
        }
        Ok(())
    }

    /// The device of each address.
    pub(crate) fn devices(&self) -> BTreeMap<Held, u32> {
        self.bound.clone()
    }

    /// Prefixes of pods, from the node's routes.
    pub(crate) fn pod_routes(&self) -> BTreeSet<IpNet> {
        self.pod_routes.clone()
    }

    /// Pods whose device is gone.
    pub(crate) fn detached(&self) -> BTreeSet<Held> {
        self.detached.keys().cloned().collect()
    }

    fn follow(
        &mut self,
        held: BTreeSet<Held>,
        routes: &BTreeMap<IpAddr, u32>,
        devices: &BTreeSet<u32>,
        now: Instant,
    ) {
        self.bound.retain(|one, _| held.contains(one));
        self.detached.retain(|one, _| held.contains(one));
        for one in held {
            let leads = routes.get(&one.0).copied();
            if let Some(since) = self.detached.get_mut(&one) {
                *since = leads.map(|_| since.unwrap_or(now));
                if since.is_some_and(|since| now.duration_since(since) >= REGAINED_AFTER) {
                    self.detached.remove(&one);
                    self.bound.extend(leads.map(|device| (one, device)));
                }
                continue;
            }
            match self.bound.get(&one) {
                Some(device) if !devices.contains(device) => {
                    let (address, uid) = &one;
                    tracing::info!(%address, uid, "the pod's device is gone: its address belongs to no pod for now");
                    self.bound.remove(&one);
                    self.detached.insert(one, None);
                }
                _ => self.bound.extend(leads.map(|device| (one, device))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (&str, &str) = ("10.244.1.10", "uid-a");

    fn held(all: &[(&str, &str)]) -> BTreeSet<Held> {
        let one = |(address, uid): &(&str, &str)| (address.parse().unwrap(), (*uid).to_owned());
        all.iter().map(one).collect()
    }

    /// Updates and returns the detached pods. `leads`: the device that leads to A's address.
    fn follow(
        devices_of_pods: &mut PodDevices,
        pods: &[(&str, &str)],
        leads: Option<u32>,
        now: Instant,
    ) -> BTreeSet<Held> {
        let routes = leads.map(|device| (A.0.parse().unwrap(), device));
        let devices = leads.into_iter().chain([1, 2]).collect();
        devices_of_pods.follow(held(pods), &routes.into_iter().collect(), &devices, now);
        devices_of_pods.detached()
    }

    #[test]
    fn a_pod_loses_its_address_with_its_device_whatever_the_next_device_is() {
        let (mut devices_of_pods, now) = (PodDevices::default(), Instant::now());
        assert_eq!(follow(&mut devices_of_pods, &[A], Some(7), now), held(&[]));
        assert_eq!(follow(&mut devices_of_pods, &[A], None, now), held(&[A]));
        assert_eq!(follow(&mut devices_of_pods, &[A], Some(8), now), held(&[A]));
        // The API shows the next pod with the address, and then no longer the first.
        let next = (A.0, "uid-b");
        assert_eq!(
            follow(&mut devices_of_pods, &[A, next], Some(8), now),
            held(&[A])
        );
        assert_eq!(
            follow(&mut devices_of_pods, &[next], Some(8), now),
            held(&[])
        );
        assert_eq!(
            follow(&mut devices_of_pods, &[next], None, now),
            held(&[next])
        );
        assert_eq!(follow(&mut devices_of_pods, &[], None, now), held(&[]));
    }

    #[test]
    fn one_look_may_see_the_next_device_already() {
        let (mut devices_of_pods, now) = (PodDevices::default(), Instant::now());
        follow(&mut devices_of_pods, &[A], Some(7), now);
        assert_eq!(follow(&mut devices_of_pods, &[A], Some(8), now), held(&[A]));
    }

    #[test]
    fn behind_a_bridge_nothing_is_bound_and_nothing_lost() {
        let (mut devices_of_pods, now) = (PodDevices::default(), Instant::now());
        for _ in 0..2 {
            assert_eq!(follow(&mut devices_of_pods, &[A], None, now), held(&[]));
        }
    }

    #[test]
    fn a_sandbox_made_anew_has_its_address_back_after_a_while() {
        let (mut devices_of_pods, now) = (PodDevices::default(), Instant::now());
        follow(&mut devices_of_pods, &[A], Some(7), now);
        follow(&mut devices_of_pods, &[A], None, now);
        assert!(!devices_of_pods.is_due(now + REGAINED_AFTER));
        follow(&mut devices_of_pods, &[A], Some(8), now);
        let early = now + REGAINED_AFTER - Duration::from_millis(1);
        assert!(!devices_of_pods.is_due(early));
        assert_eq!(
            follow(&mut devices_of_pods, &[A], Some(8), early),
            held(&[A])
        );
        let then = now + REGAINED_AFTER;
        assert!(devices_of_pods.is_due(then));
        assert_eq!(follow(&mut devices_of_pods, &[A], Some(8), then), held(&[]));
        assert_eq!(follow(&mut devices_of_pods, &[A], None, then), held(&[A]));
    }
}
