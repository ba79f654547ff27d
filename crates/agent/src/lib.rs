//! The agent of one node: reads the objects that concern the node, has `core` compute the node state, and applies it.
//!
//! ```text
//! source thread --View------\
//! probe thread  --liveness---+--> main loop: facts + View -> core::node_state -> NodeDatapath
//! link thread   --changes---+          |                        |
//! flow thread   --full ports+          |                        |
//! socket thread --questions-/          +-> announcer            +-> status thread -> source
//! cni thread    --new pods--/
//! ```
//!
//! Rooms from the bottom up; none imports one above itself (`xtask` checks it):
//!
//! - `observe`: each observer watches one thing and passes values of its own type to a closure.
//! - `cni`: calls of the CNI plugin, and its installation.
//! - `apply`: the gateway role, as `core` decides it, between observers and data path; and the state file from which a
//!   restarted agent adopts its predecessor's kernel state.
//! - `report`: metrics, health, the node's status, answers to the command line.
//! - `main_loop`: the only module that knows its wake-up events; has `core` decide once per round, applies the result
//!   and reports it.
//!
//! Only the main loop writes to the kernel. It never waits for the source: a source that hangs stops updates, not
//! traffic. A restarted agent adopts the kernel state that exists, and changes nothing before it knows which gateways
//! answer.

mod apply;
mod classic;
mod clock;
mod cni;
mod config;
pub mod doctor;
mod error;
mod main_loop;
mod observe;
pub mod report;
mod threads;
mod unix_socket;

pub use classic::{ClassicConfig, ReadWanted, cleanup_classic, run_classic};
pub use cni::{CniConfig, InstallConfig};
pub use config::Config;
pub use error::AgentError;
pub use observe::source::OpenSource;
pub use report::{Health, Metrics, Question, ask};
pub use threads::abort_on_panic;

pub use egret_datapath::gateway::BackendChoice;
pub use egret_kernel::sysctl::{
    DIRECTORY as SYSCTL_DIRECTORY, use_directory as use_sysctl_directory,
};

use egret_core::error::with_causes;
pub use egret_core::node::{CniPath, UnknownPodsPolicy};
use egret_datapath::node::NodeDatapath;
use egret_datapath::worker::driver::DatapathError;
use main_loop::{Channels, Event, MainLoop};
use observe::{canary, flows, links, neighbours, port_use, probe, source};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

/// Runs until `stop` is set. The kernel state then stays in place, for the next agent to adopt.
pub fn run(
    config: &Config,
    open: OpenSource,
    health: &Arc<Health>,
    stop: &Arc<AtomicBool>,
) -> Result<(), AgentError> {
    let mut datapath = NodeDatapath::open(
        &config.state_directory,
        &config.pin_directory,
        config.gateway_datapath,
    )?;
    let own = datapath
        .worker()
        .routing()
        .port()
        .map_err(DatapathError::from)?;
    let (events, inbox) = mpsc::channel();
    source::read(&open, stop, Event::notify(&events, Event::Source))?;
    let status = report::start_status_writer(&open, Event::notify(&events, Event::Status))?;
    let heard = probe::HeardSlot::default();
    let probes = probe::start(heard.clone(), Event::notify(&events, Event::Gateways))?;
    let neighbours = neighbours::start(Event::notify(&events, Event::Neighbours))?;
    let changed = events.clone();
    links::watch(Some(own), move || changed.send(Event::Links).is_ok())?;
    let ranges = port_use::start(Event::notify(&events, Event::Ports))?;
    let flows = flows::start(Event::notify(&events, Event::Flows))?;
    let (canaries, canary_device) = canary::start(Event::notify(&events, Event::Canaries))?;
    cni::listen(&config.cni.socket, Event::notify(&events, Event::Cni))?;
    let ready = Arc::new(AtomicBool::new(false));
    let pending = cni::PendingCalls::open(&config.node, &config.state_directory, ready.clone());
    cni::keep_installed(&config.cni, &config.state_directory, &ready, stop)?;
    report::listen(&config.socket, Event::notify(&events, Event::Query))?;
    let channels = Channels {
        status,
        probes,
        heard,
        neighbours,
        ranges,
        flows,
        canaries,
        events,
    };
    let main_loop = MainLoop::new(config, datapath, health, channels, pending);
    main_loop.measuring(canary_device).run(&inbox, stop);
    for socket in [&config.socket, &config.cni.socket] {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

/// Removes everything of Egret from this node's kernel and file system. Goes on after errors and returns them all.
pub fn cleanup(
    state_directory: &Path,
    pin_directory: &Path,
    socket: &Path,
    cni: &CniConfig,
) -> Vec<String> {
    // Uninstall the plugin first, so that pods that start from now on do not depend on the agent.
    let mut errors = cni.install.as_ref().map_or_else(Vec::new, cni::uninstall);
    if let Err(error) = cni::forget(state_directory) {
        errors.push(format!("record of the CNI: {error}"));
    }
    let removed = NodeDatapath::remove(state_directory, pin_directory);
    errors.extend(removed.iter().map(|error| with_causes(error)));
    if let Err(error) = apply::Remembered::forget(state_directory) {
        errors.push(format!("record of groups: {error}"));
    }
    for socket in [socket, &cni.socket] {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(format!("socket {}: {error}", socket.display()));
            }
            _ => {}
        }
    }
    // Remove the directory only under its default name, and only if it is empty.
    if socket == Path::new(egret_core::numbers::AGENT_SOCKET)
        && let Some(directory) = socket.parent()
    {
        let _in_use = std::fs::remove_dir(directory);
    }
    errors
}
