//! Requests on the external network, and the processing of their answers.

use super::MainLoop;
use crate::observe::facts::Links;
use crate::observe::neighbours::{Heard, Order, Watch};
use egret_core::model::Snapshot;
use egret_core::numbers::UPLINK_NEXT_HOPS_MAX;
use egret_datapath::presence::l2::ask::Device;
use egret_datapath::route::OutboundNextHops;
use std::net::IpAddr;

impl MainLoop {
    /// Whether this node's external link counts: it has carrier, and a next hop behind it answers or no other gateway
    /// does better.
    pub(super) fn link_up(&mut self, snapshot: &Snapshot, links: &Links) -> bool {
        let link = links.external_link();
        self.watch(links, link.carrier);
        let planned = self.outcome.as_ref();
        let planned = planned.and_then(|outcome| outcome.state.gateway.as_ref());
        let now_ms = self.now_ms();
        let link = (&link, &links.local_addresses);
        let gateways = &self.inputs.gateways;
        self.gateway
            .decide_link(snapshot, planned, link, gateways, now_ms)
    }

    /// Sends the next hops of the external device to the thread that probes them, if they changed.
    fn watch(&mut self, links: &Links, has_carrier: bool) {
        let mut watch = Watch::default();
        let external = links.external.as_ref().filter(|_| has_carrier);
        if let Some((device, v4, v6)) = external
            && let Ok(mac) = <[u8; 6]>::try_from(device.mac.as_slice())
        {
            watch.device = Some(Device {
                ifindex: device.index,
                mac,
                v4: *v4,
                v6: links.external_link_local.or(*v6),
            });
            for outbound in &links.outbound {
                if let OutboundNextHops::Via(hops) = outbound {
                    let some = hops.iter().take(UPLINK_NEXT_HOPS_MAX);
                    watch.next_hops.extend(some.copied());
                }
            }
        }
        if watch != self.last_sent.watch
            && self.channels.neighbours.send(Order::Watch(watch.clone()))
        {
            self.last_sent.watch = watch;
        }
    }

    /// Asks on the segment who has the contested addresses.
    pub(super) fn ask(&mut self) {
        let now_ms = self.now_ms();
        let questions: Vec<IpAddr> = self.gateway.fitness_mut().questions(now_ms);
        if !questions.is_empty() {
            // A question that is not sent does not count and is sent again.
            self.channels.neighbours.send(Order::Ask(questions));
        }
        self.schedule
            .request_round_if(self.gateway.fitness().is_stale());
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Silent(silent) => {
                self.gateway.fitness_mut().set_silent(silent);
                self.schedule.request_round();
            }
            Heard::Asked(address) => {
                let now_ms = self.now_ms();
                self.gateway.fitness_mut().question_sent(address, now_ms);
            }
            Heard::Taken(address) => {
                self.gateway.fitness_mut().answered(address);
                self.schedule
                    .request_round_if(self.gateway.fitness().is_stale());
            }
        }
    }
}
