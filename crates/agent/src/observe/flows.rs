//! Thread that dumps the node's flows, so that the main loop does not wait: the kernel walks all of its hash buckets
//! for that, however few flows there are.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::error::with_causes;
use egret_kernel::conntrack::{Conntrack, Flow};
use std::sync::mpsc::{self, Sender};

/// All flows, and the number of the change that requested them.
pub(crate) struct ConntrackDump {
    pub(crate) change: u64,
    pub(crate) flows: Result<Vec<Flow>, String>,
}

/// Starts the thread and returns its channel. Each change number is answered by flows that were read after its request,
/// or by those of a later number.
pub(crate) fn start(notify: Notify<ConntrackDump>) -> Result<Sender<u64>, AgentError> {
    let (ask, asked) = mpsc::channel::<u64>();
    spawn("flows", move || {
        let mut table = None;
        while let Ok(first) = asked.recv() {
            // One dump answers all requests made before it.
            let change = asked.try_iter().fold(first, u64::max);
            let flows = read(&mut table);
            if !notify(ConntrackDump { change, flows }) {
                return;
            }
        }
    })?;
    Ok(ask)
}

fn read(table: &mut Option<Conntrack>) -> Result<Vec<Flow>, String> {
    let opened = match table.take() {
        Some(table) => Ok(table),
        None => Conntrack::open(),
    };
    let mut opened = opened.map_err(|error| with_causes(&error))?;
    let flows = opened.flows().map_err(|error| with_causes(&error))?;
    *table = Some(opened);
    Ok(flows)
}
