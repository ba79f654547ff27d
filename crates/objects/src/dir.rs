//! The directory source: `PATH/**/*.yaml` and `PATH/status`.
//!
//! ```text
//!  snapshot():  tree     the user's files, parsed once per change   (no lock; read again until quiet)
//!               store    PATH/status, scanned under the shared lock
//!               merge    objects in force; required content of our copies
//!               write    copies that differ, under the exclusive lock   (unless read-only)
//!               assemble the view
//! ```
//!
//! Several processes share one directory: agents in separate mount namespaces, one controller, the command line.

mod assemble;
mod document;
mod effective;
mod locate;
mod lock;
mod merge;
mod object;
mod records;
mod store;
mod tree;
mod watch;
mod write;

pub use document::read_documents;
pub use object::objections;

use crate::{SourceError, View, front_end};
use effective::Merged;
use egret_core::model::{Finding, UnpooledAddresses};
use egret_core::numbers::LEASE_HOLD_DOWN_SECS;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use store::Store;
use tree::Tree;
use watch::Watch;

/// Rounds of reading while files keep changing; then the current content is used.
const ROUNDS_MAX: u32 = 20;
/// Copies that are written per lock period: on a slow disk a write takes milliseconds, and other processes stop waiting
/// for the lock after seconds.
const WRITES_PER_LOCK: usize = 256;
/// Lock periods per snapshot: enough for a quarter of a million objects. The next snapshot writes the rest.
const RECORD_ROUNDS_MAX: u32 = 1000;
/// Delay before a file is read again that changed just before it was read.
const RACY_LOOK: Duration = Duration::from_millis(60);

/// Share of a core for comparisons of signatures, as a divisor: with ten thousands of files one takes 0.1 s.
const LOOK_SHARE: u32 = 100;
/// Longest pause between two comparisons.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Settings of a directory source.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Write copies under `PATH/status` (generation, first-seen time, last good). Off for readers that must not write,
    /// such as `egret plan`; then [`crate::Source`]'s writes fail with [`SourceError::ReadOnly`].
    pub record: bool,
    /// A file that changed less than this ago is read again before it is used.
    pub debounce: Duration,
    /// Interval of [`crate::Source::wait`]'s signature comparisons, for changes without inotify events; longer where a
    /// comparison of so many files would take more than a hundredth of a core.
    pub look_every: Duration,
    /// Settings that planning depends on; part of every snapshot.
    pub installation: egret_core::model::Settings,
    /// Enabled front-ends.
    pub front_ends: front_end::Settings,
}

impl Default for Settings {
    /// Settings for lab, tests and hosts without Kubernetes: copies are written, addresses outside every pool are
    /// allowed.
    fn default() -> Self {
        Self {
            record: true,
            debounce: Duration::from_millis(10),
            look_every: Duration::from_secs(2),
            installation: egret_core::model::Settings {
                unpooled_addresses: UnpooledAddresses::Allow,
                never_destinations: Vec::new(),
                service_cidrs: Vec::new(),
                hold_down_secs: LEASE_HOLD_DOWN_SECS,
            },
            front_ends: front_end::Settings::default(),
        }
    }
}

/// A directory of manifests.
pub struct DirSource {
    root: PathBuf,
    settings: Settings,
    tree: Tree,
    store: Store,
    watch: Watch,
    /// Time of the last read.
    read_at: Instant,
    /// Time of the next signature comparison.
    look_at: Instant,
}

impl DirSource {
    /// Opens an existing directory.
    pub fn open(path: impl AsRef<Path>, settings: Settings) -> Result<Self, SourceError> {
        let root = path.as_ref().to_owned();
        let metadata = std::fs::metadata(&root);
        let metadata = metadata.map_err(|e| tree::io_error("opening", &root, e))?;
        if !metadata.is_dir() {
            let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(tree::io_error("opening", &root, error));
        }
        let (tree, store) = (Tree::new(root.clone()), Store::new(&root));
        Ok(Self {
            root,
            settings,
            tree,
            store,
            watch: Watch::new(),
            read_at: Instant::now(),
            look_at: Instant::now(),
        })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn view(&mut self) -> Result<View, SourceError> {
        let mut merged = self.observe()?;
        if self.settings.record && merged.has_writes() {
            // Reading continues where nothing can be written (P9), without generation and first-seen time.
            if let Err(error) = self.record(&mut merged) {
                let why = std::error::Error::source(&error).map(|e| format!(": {e}"));
                merged
                    .findings
                    .push(unwritable(&error, &why.unwrap_or_default()));
            }
        }
        Ok(assemble::assemble(&merged, &self.settings))
    }

    /// Reads files and copies as of one moment.
    fn observe(&mut self) -> Result<Merged, SourceError> {
        for _ in 0..ROUNDS_MAX {
            self.read_files()?;
            let _lock = self.store.lock_shared()?;
            self.scan_copies()?;
            let again = self.list_files()?;
            if !self.tree.differs(&again) {
                break;
            }
        }
        self.read_at = Instant::now();
        Ok(self.merge())
    }

    fn merge(&mut self) -> Merged {
        let front_ends = &self.settings.front_ends;
        merge::merge(&self.tree, &mut self.store, front_ends, now_secs())
    }

    fn list_files(&mut self) -> Result<tree::Listing, SourceError> {
        let watch = &mut self.watch;
        self.tree.list(&mut |directory| watch.add(directory, false))
    }

    /// Reads the user's files until none of them has changed just before.
    fn read_files(&mut self) -> Result<(), SourceError> {
        let debounce = self.settings.debounce;
        for _ in 0..ROUNDS_MAX {
            let listing = self.list_files()?;
            if !self.tree.differs(&listing) && !self.tree.is_racy() {
                return Ok(());
            }
            match self.tree.read(listing) {
                Some(age) if age < debounce => std::thread::sleep(debounce - age),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// The caller holds a lock.
    fn scan_copies(&mut self) -> Result<(), SourceError> {
        let watch = &mut self.watch;
        let listing = self
            .store
            .list(&mut |directory| watch.add(directory, true))?;
        self.store.read(listing);
        Ok(())
    }

    /// Updates our copies, a few per lock period, so that no process waits long. What to write is computed again under
    /// the exclusive lock, since another process may have written it, or read a newer edit.
    fn record(&mut self, merged: &mut Merged) -> Result<(), SourceError> {
        for _ in 0..RECORD_ROUNDS_MAX {
            if !merged.has_writes() {
                break;
            }
            let mut lock = self.store.lock_exclusive()?;
            let listing = self.list_files()?;
            if self.tree.differs(&listing) {
                self.read_files()?;
            }
            self.scan_copies()?;
            *merged = self.merge();
            // One that cannot be written (its name is too long for a file) does not stop the others.
            let mut failed = None;
            let mut written = 0;
            let mut note = |result: Result<(), SourceError>| match result {
                Ok(()) => written += 1,
                Err(error) => drop(failed.get_or_insert(error)),
            };
            for (key, whole) in merged.writes.iter().take(WRITES_PER_LOCK) {
                let whole = whole.as_ref().clone();
                note(self.store.put(&mut lock, key, whole).map(drop));
            }
            for key in merged.deletes.iter().take(WRITES_PER_LOCK) {
                note(self.store.remove(&mut lock, key));
            }
            *merged = self.merge();
            if let (0, Some(error)) = (written, failed) {
                return Err(error);
            }
        }
        Ok(())
    }

    fn wait_for_change(&mut self, timeout: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + timeout;
        let racy = self.tree.is_racy() || self.store.is_racy();
        loop {
            let look_at = if racy {
                self.read_at + RACY_LOOK
            } else {
                self.look_at
            };
            let until = look_at.min(deadline);
            let left = until.saturating_duration_since(Instant::now());
            if self.watch.wait(left)? {
                self.watch.settle(self.settings.debounce)?;
                return Ok(true);
            }
            let now = Instant::now();
            if now >= look_at && (racy || self.look()?) {
                return Ok(true);
            }
            if now >= deadline {
                return Ok(false);
            }
        }
    }

    /// Compares signatures; the longer that takes, the later the next comparison.
    fn look(&mut self) -> Result<bool, SourceError> {
        let began = Instant::now();
        let differs = self.differs()?;
        let pause = (began.elapsed() * LOOK_SHARE).min(LOOK_PAUSE_MAX);
        self.look_at = Instant::now() + pause.max(self.settings.look_every);
        Ok(differs)
    }

    /// Whether signatures differ from the last read.
    fn differs(&mut self) -> Result<bool, SourceError> {
        Ok(self.tree.differs(&self.tree.list(&mut |_| {})?)
            || self.store.differs(&self.store.list(&mut |_| {})?))
    }
}

fn unwritable(error: &SourceError, why: &str) -> Finding {
    let remedy = format!(
        "make it writable for Egret, which keeps last good objects and status there: {error}{why}"
    );
    tree::file_finding("status", remedy)
}

fn now_secs() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
