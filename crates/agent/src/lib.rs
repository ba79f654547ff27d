//! The agent of one node: reads what concerns the node, asks `core` what the kernel must contain, and has it carried out.
//!
//! ```text
//! source thread --View------\
//! probe thread  --liveness---+--> main loop: facts + View -> core::node_state -> gateway, then worker data path
//! link thread   --changes---+          |                        |
//! flow thread   --full ports+          |                        |
//! socket thread --questions-/          +-> announcer            +-> status thread -> source
//! cni thread    --new pods--/
//! ```
//!
//! The main loop alone touches the kernel. Nothing on it waits for the source: a source that hangs stops news, not
//! traffic. A restarted agent adopts what is there, and changes nothing before it knows which gateways answer.

mod board;
mod canary;
mod classic;
mod cni;
mod conflicts;
pub mod doctor;
mod facts;
mod flows;
mod gateway;
mod links;
mod main_loop;
mod metrics;
mod neighbours;
mod pod_devices;
mod port_use;
mod probe;
mod remembered;
pub mod report;
mod socket;
mod source;
mod standing;
mod surroundings;
pub mod told;
mod traffic;
mod uncovered;

pub use board::Board;
pub use classic::{ClassicConfig, ReadWanted, cleanup_classic, run_classic};
pub use cni::{CniConfig, InstallConfig};
pub use metrics::Metrics;
pub use socket::{Question, ask};

pub use egret_datapath::gateway::BackendChoice;
pub use egret_datapath::sysctl::{
    DIRECTORY as SYSCTL_DIRECTORY, use_directory as use_sysctl_directory,
};

use egret_core::model::NodeName;
pub use egret_core::node::{CniPath, UnknownPodsPolicy};
pub(crate) use egret_datapath::error::chain;
use egret_datapath::node::NodeDatapath;
use egret_datapath::worker::driver::DatapathError;
use egret_objects::{Source, SourceError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

/// Opens the source; called once for each thread that uses it.
pub type OpenSource = Arc<dyn Fn() -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// Where the agent runs and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node: NodeName,
    /// What must outlive the agent.
    pub state_directory: PathBuf,
    /// Pinned eBPF objects.
    pub pin_directory: PathBuf,
    /// Socket for questions of the command line.
    pub socket: PathBuf,
    /// How this node forwards, if it is a gateway.
    pub gateway_datapath: BackendChoice,
    /// What is known of how the network plugin sends pods' packets on.
    pub cni_path: CniPath,
    /// What becomes of packets of pods that the API has not shown yet.
    pub unknown_pods: UnknownPodsPolicy,
    /// The CNI plugin.
    pub cni: CniConfig,
}

/// Why the agent cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel's interfaces cannot be opened.
    #[error("opening the data path")]
    Datapath(#[from] DatapathError),
    /// The source cannot be opened.
    #[error("opening the source of objects")]
    Source(#[from] SourceError),
    /// A thread or socket cannot be made.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs until `stop` is set. What is in the kernel then stays there, for the next agent to adopt.
pub fn run(
    config: &Config,
    open: OpenSource,
    board: &Arc<Board>,
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
    source::read(&open, events.clone(), stop)?;
    let status = source::write(&open)?;
    let heard = probe::HeardSlot::default();
    let probes = probe::start(events.clone(), heard.clone())?;
    let neighbours = neighbours::start(events.clone())?;
    let links = events.clone();
    links::watch(Some(own), move || {
        links.send(main_loop::Event::Links).is_ok()
    })?;
    let ranges = port_use::start(events.clone())?;
    let flows = flows::start(events.clone())?;
    let (canaries, canary_device) = canary::start(events.clone())?;
    cni::listen(&config.cni.socket, events.clone())?;
    let ready = Arc::new(AtomicBool::new(false));
    let desk = cni::Desk::open(&config.node, &config.state_directory, ready.clone());
    cni::keep_installed(&config.cni, &config.state_directory, &ready, stop)?;
    socket::listen(&config.socket, events.clone())?;
    let ways = main_loop::Ways {
        status,
        probes,
        heard,
        neighbours,
        ranges,
        flows,
        canaries,
        events,
    };
    let main_loop = main_loop::MainLoop::new(config, datapath, board, ways, desk);
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
    // First of all: pods that start from now on are none of ours.
    let mut errors = cni.install.as_ref().map_or_else(Vec::new, cni::uninstall);
    if let Err(error) = cni::forget(state_directory) {
        errors.push(format!("record of the CNI: {error}"));
    }
    let removed = NodeDatapath::remove(state_directory, pin_directory);
    errors.extend(removed.iter().map(|error| chain(error)));
    if let Err(error) = remembered::Remembered::forget(state_directory) {
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
    // The directory is ours only by its default name, and only if nobody else keeps anything in it.
    if socket == Path::new(egret_core::numbers::AGENT_SOCKET)
        && let Some(directory) = socket.parent()
    {
        let _in_use = std::fs::remove_dir(directory);
    }
    errors
}
