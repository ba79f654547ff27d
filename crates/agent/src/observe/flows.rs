//! The thread that reads the node's flows, so that the main loop does not wait for it: the kernel walks all of its buckets
//! for that, however few flows there are.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::error::with_causes;
use egret_datapath::conntrack::{Conntrack, Flow};
use std::sync::mpsc::{self, Sender};

/// All flows, and the number of the change that asked for them.
pub(crate) struct ConntrackDump {
    pub(crate) change: u64,
    pub(crate) flows: Result<Vec<Flow>, String>,
}

/// Starts the thread, and returns the way to ask it: each number of a change is answered by flows read after it was asked
/// for, or those of a later one are.
pub(crate) fn start(notify: Notify<ConntrackDump>) -> Result<Sender<u64>, AgentError> {
    let (ask, asked) = mpsc::channel::<u64>();
    spawn("flows", move || {
        let mut table = None;
        while let Ok(first) = asked.recv() {
            // One look answers all that have asked before it.
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
