//! Runs the driver `classic` on one node: wanted mappings + the node's addresses -> [`classic_state`] -> kernel.

use crate::datapath::ClassicDatapath;
use crate::state::{ClassicState, ClassicWanted, classic_state};
use crate::watch::Mappings;
use egret_core::error::with_causes;
use egret_core::numbers::TUNNEL_DEVICE;
use egret_datapath::worker::driver::DatapathError;
use egret_kernel::route::changes::Changes;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fs, io};

/// Poll interval of the stop flag.
const LOOK_UP: Duration = Duration::from_millis(200);
const STATE_FILE: &str = "state.json";

/// Error that prevents the driver from running.
#[derive(Debug, thiserror::Error)]
pub enum ClassicError {
    /// The kernel's interfaces cannot be opened, or what is wanted cannot be applied once.
    #[error("opening the data path")]
    Datapath(#[from] DatapathError),
    /// A thread or socket cannot be created.
    #[error("{doing}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Configuration of the driver.
pub struct ClassicConfig {
    /// Directory for state that outlives the process.
    pub state_directory: PathBuf,
    /// Longest interval between two reads of the mappings; changes of the node's addresses take effect at once. `None`:
    /// apply once, and leave the kernel state in place at the end.
    pub interval: Option<Duration>,
    /// Directories that the mappings are read from: a change in one takes effect at once.
    pub watched: Vec<PathBuf>,
}

/// The wanted mappings; `None` if they cannot be read and the previous ones stay.
pub type ReadWanted = Box<dyn FnMut() -> Option<ClassicWanted>>;

/// Runs until `stop` is set, then removes everything; or applies once.
pub fn run_classic(
    config: &ClassicConfig,
    mut read: ReadWanted,
    stop: &Arc<AtomicBool>,
) -> Result<(), ClassicError> {
    let mut driver = Driver::open(config)?;
    let Some(interval) = config.interval else {
        let wanted = read().unwrap_or_default();
        return Ok(driver.apply(&wanted)?);
    };
    let (changed, changes) = mpsc::channel();
    watch_links(move || changed.send(()).is_ok())?;
    let mut mappings = Mappings::watch(&config.watched);
    let mut wanted = None;
    let mut read_at: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        // Checked before the read: a change during the read causes another one.
        if mappings.changed() || read_at.is_none_or(|at| at.elapsed() >= interval) {
            wanted = read().or(wanted);
            read_at = Some(Instant::now());
        }
        if let Some(wanted) = &wanted {
            driver.keep(wanted);
        }
        let due = read_at.map_or(Duration::ZERO, |at| interval.saturating_sub(at.elapsed()));
        match changes.recv_timeout(due.min(LOOK_UP)) {
            // This read covers all other pending notifications.
            Ok(()) => while changes.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for error in driver.remove() {
        tracing::error!(error, "removing");
    }
    Ok(())
}

/// Removes everything of the driver. Continues after errors and returns them all.
pub fn cleanup_classic(config: &ClassicConfig) -> Vec<String> {
    match Driver::open(config) {
        Ok(mut driver) => driver.remove(),
        Err(error) => vec![with_causes(&error)],
    }
}

/// Reports changes of links, addresses, routes and rules, on a thread of its own.
fn watch_links(tell: impl FnMut() -> bool + Send + 'static) -> Result<(), ClassicError> {
    let error = |doing| move |source| ClassicError::Io { doing, source };
    let changes = Changes::open().map_err(error("watching links and routes"))?;
    let builder = std::thread::Builder::new().name("links".into());
    let spawned = builder.spawn(move || changes.watch(None, TUNNEL_DEVICE, tell));
    spawned.map(drop).map_err(error("starting a thread"))
}

struct Driver {
    datapath: ClassicDatapath,
    directory: PathBuf,
    /// State that an earlier process applied last.
    before: Option<ClassicState>,
    applied: Option<ClassicState>,
    /// Last logged error: a repeated one is logged once.
    told: Option<String>,
}

impl Driver {
    fn open(config: &ClassicConfig) -> Result<Self, ClassicError> {
        let file = fs::read(config.state_directory.join(STATE_FILE)).ok();
        Ok(Driver {
            datapath: ClassicDatapath::open(&config.state_directory)?,
            directory: config.state_directory.clone(),
            before: file.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            applied: None,
            told: None,
        })
    }

    /// Applies the wanted state; an error is logged, and retried at the next interval.
    fn keep(&mut self, wanted: &ClassicWanted) {
        let error = self.apply(wanted).err().map(|error| with_causes(&error));
        if let Some(error) = &error
            && self.told.as_ref() != Some(error)
        {
            tracing::error!(error, "cannot apply the wanted state");
        }
        self.told = error;
    }

    fn apply(&mut self, wanted: &ClassicWanted) -> Result<(), DatapathError> {
        let drift = self.datapath.verify()?;
        for (kind, what) in &drift {
            let found = format!("{kind}: {what}");
            tracing::warn!(found, "drift detected, repairing");
        }
        let state = classic_state(wanted, &self.datapath.local_addresses()?);
        if drift.is_empty() && self.applied.as_ref() == Some(&state) {
            return Ok(());
        }
        // Saved before the apply: an entry too many only makes a successor check more flows.
        if let Err(error) = self.save(&state) {
            tracing::warn!(%error, directory = %self.directory.display(), "cannot save the state");
        }
        let forgotten = self.datapath.apply(&state, self.before.as_ref())?;
        self.tell(&state, forgotten);
        self.before = None;
        self.applied = Some(state);
        Ok(())
    }

    fn tell(&self, state: &ClassicState, forgotten: usize) {
        let held = |state: &ClassicState, address: &IpAddr| {
            state.addresses.get(address).map(|here| here.held)
        };
        for address in state.addresses.keys() {
            let now = held(state, address);
            if self.applied.as_ref().and_then(|old| held(old, address)) != now {
                let role = match now {
                    Some(true) => "this node holds the address and translates",
                    _ => "another node holds the address: packets go there",
                };
                tracing::info!(%address, "{role}");
            }
        }
        tracing::info!(
            addresses = state.addresses.len(),
            pods = state.pods.len(),
            forgotten,
            "applied"
        );
    }

    fn save(&self, state: &ClassicState) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let temporary = self.directory.join("state.tmp");
        fs::write(&temporary, serde_json::to_vec(state)?)?;
        fs::rename(temporary, self.directory.join(STATE_FILE))
    }

    fn remove(&mut self) -> Vec<String> {
        let errors = self.datapath.remove(self.before.as_ref());
        let mut errors: Vec<String> = errors.iter().map(|error| with_causes(error)).collect();
        match fs::remove_file(self.directory.join(STATE_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(format!("record of the state: {error}"));
            }
            _ => {}
        }
        // Only if they are empty.
        let _in_use = fs::remove_dir(&self.directory);
        if let Some(parent) = self.directory.parent() {
            let _in_use = fs::remove_dir(parent);
        }
        errors
    }
}
