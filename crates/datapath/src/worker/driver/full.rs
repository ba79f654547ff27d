//! Destinations towards which a lease is used up: new flows to them are refused visibly (design section 7).

use super::{DatapathError, WorkerDriver};
use crate::worker::names::FULL_SETS;
use egret_core::machines::Destination;
use egret_core::numbers::FULL_DESTINATION_SECS;
use egret_kernel::conntrack::Flow;
use egret_kernel::nft::{Element, ElementKey};
use std::collections::BTreeSet;

const WITH_PORTS: [u8; 3] = [6, 17, 132];

impl WorkerDriver {
    /// Refuses new flows to these destinations, and to no others, for [`FULL_DESTINATION_SECS`] from now on. To be
    /// called again before they have passed.
    pub fn refuse_full(&mut self, full: &BTreeSet<Destination>) -> Result<(), DatapathError> {
        self.full = full.clone();
        self.refuse()
    }

    pub(super) fn refuse(&mut self) -> Result<(), DatapathError> {
        for (number, set) in FULL_SETS.iter().enumerate() {
            let family = self
                .full
                .iter()
                .filter(|full| full.egress.is_ipv6() == (number == 1));
            let elements: Vec<Element> = family.map(element).collect();
            self.nft.hold(set, &elements)?;
        }
        Ok(())
    }
}

fn element(full: &Destination) -> Element {
    let bytes = |address| ElementKey::address(address).first;
    let key = ElementKey::single(&[
        &bytes(full.egress),
        &bytes(full.address),
        &[full.protocol],
        &full.port.to_be_bytes(),
    ]);
    Element {
        key,
        timeout_secs: FULL_DESTINATION_SECS,
    }
}

/// The destination and the source port of a flow, if its source was translated and its protocol has ports.
pub fn port_of(flow: &Flow) -> Option<(Destination, u16)> {
    let outside = &flow.reply;
    let translated = outside.destination != flow.original.source;
    (translated && WITH_PORTS.contains(&outside.protocol)).then(|| {
        let destination = Destination {
            egress: outside.destination,
            address: outside.source,
            protocol: outside.protocol,
            port: outside.source_port,
        };
        (destination, outside.destination_port)
    })
}
