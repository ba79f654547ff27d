//! The state folder `/run/egret-lab/NAME/`: the parts that are up, written after every step so that a crash can be
//! cleaned up.

use crate::LabError;
use crate::error::io;
use crate::layout::{CONTROL, Layout};
use crate::process::Process;
use crate::slowness::relaxed;
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Folder of all labs.
const ROOT: &str = "/run/egret-lab";
/// Longest wait for another command on the same lab.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Poll interval of the lock.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Parts of a lab that are up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// As given to `up`.
    pub topology: Topology,
    /// The program that runs as agent and controller.
    pub egret: PathBuf,
    /// Arguments of every agent after those of the lab.
    pub agent_args: Vec<String>,
    /// Settings that agents and controller share.
    pub settings: Vec<String>,
    /// Whether agents and controller run.
    pub agents: bool,
    /// Namespaces of hosts and of [`CONTROL`]; a host that is off has none.
    pub hosts: BTreeMap<String, HostProcesses>,
    /// For each host whose power was cut: the process that retains its network namespace, without cables, until it
    /// starts again.
    #[serde(default)]
    pub remains: BTreeMap<String, Process>,
    /// The controller.
    pub controller: Option<Daemon>,
    /// The standing answering server.
    pub server: Option<Daemon>,
}

/// Processes of a host that is on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct HostProcesses {
    /// `unshare`, which waits for `init`.
    pub launcher: Process,
    /// First process of the host's process namespace; when it dies, everything in the host dies.
    pub init: Process,
    /// Egret's agent.
    pub agent: Option<Daemon>,
}

/// A standing process inside a host.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Daemon {
    /// `nsenter`, which waits for `process`.
    pub launcher: Process,
    /// The program.
    pub process: Process,
}

impl State {
    /// The concrete form of the topology.
    pub fn layout(&self) -> Layout {
        Layout::of(&self.topology)
    }

    /// First process of a host, or of the control namespace.
    pub(crate) fn init_of(&self, host: &str) -> Result<Process, LabError> {
        self.check_host(host)?;
        match self.hosts.get(host) {
            Some(processes) if processes.init.is_alive() => Ok(processes.init),
            _ => Err(LabError::Off(host.to_owned())),
        }
    }

    /// Rejects names of hosts that the topology lacks.
    pub(crate) fn check_host(&self, host: &str) -> Result<(), LabError> {
        let names: Vec<&str> = self
            .topology
            .hosts
            .iter()
            .map(|host| host.name.as_str())
            .collect();
        if host == CONTROL || names.contains(&host) {
            return Ok(());
        }
        Err(LabError::NoSuchHost {
            host: host.to_owned(),
            known: names.join(", "),
        })
    }
}

/// Paths of one lab's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    name: String,
}

impl StateDir {
    /// The folder of the lab `name`.
    ///
    /// # Errors
    /// The name is not allowed.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let is_good = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !is_good {
            return Err(LabError::Name(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Name of the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// The source directory, the same path outside and inside of hosts.
    pub fn objects(&self) -> PathBuf {
        self.path().join("objects")
    }

    /// Log files, the same path outside and inside of hosts.
    pub fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// Environment variable that marks every process of this lab.
    pub(crate) fn marker(&self) -> (&'static str, PathBuf) {
        ("EGRET_LAB", self.path())
    }

    fn file(&self) -> PathBuf {
        self.path().join("state.json")
    }

    /// Whether the lab is up, or a crash left parts of it.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Reads the state.
    ///
    /// # Errors
    /// The lab is not up, or the file is damaged.
    pub fn read(&self) -> Result<State, LabError> {
        let path = self.file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(LabError::NotUp(self.name.clone()));
            }
            Err(error) => return Err(io(format!("reading {}", path.display()))(error)),
        };
        serde_json::from_str(&text).map_err(|error| LabError::State {
            path,
            problem: error.to_string(),
        })
    }

    /// Replaces the state atomically.
    pub(crate) fn write(&self, state: &State) -> Result<(), LabError> {
        let text = serde_json::to_string_pretty(state).expect("the state has string keys only");
        replace(&self.file(), &text)
    }

    /// Waits until no other command works on this lab, and excludes others until the value is dropped.
    ///
    /// # Errors
    /// Another command held it for a minute, or the lock file cannot be created.
    pub(crate) fn lock(&self) -> Result<Lock, LabError> {
        let path = Path::new(ROOT).join(format!("{}.lock", self.name));
        let deadline = Instant::now() + relaxed(LOCK_TIMEOUT);
        while Instant::now() < deadline {
            // The folder vanishes with the last lab, so it may have to be created again in every iteration.
            std::fs::create_dir_all(ROOT).map_err(io(format!("creating {ROOT}")))?;
            let file = match File::options().create(true).append(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io(format!("opening {}", path.display()))(error)),
            };
            match file.try_lock() {
                Ok(()) if is_still_at(&file, &path) => return Ok(Lock { file, path }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
                Err(TryLockError::Error(error)) => {
                    return Err(io(format!("locking {}", path.display()))(error));
                }
            }
        }
        Err(LabError::Locked(self.name.clone()))
    }

    /// Names of the labs that have a state folder.
    pub fn all() -> Vec<String> {
        let entries = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> = folders
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}

/// Whether the locked file is still at the path: a holder may unlink it, and a waiter then locks an unreachable file.
fn is_still_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

/// Excludes other commands from a lab.
#[derive(Debug)]
pub(crate) struct Lock {
    // Closing it releases the lock.
    #[expect(dead_code, reason = "held for its lock")]
    file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removes the file and, after the last lab, the folder. Both may fail: others use them.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_dir(ROOT);
    }
}

/// Writes a temporary file and renames it, so that readers get the old or the new text, never a part.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), LabError> {
    let name = path
        .file_name()
        .expect("a file has a name")
        .to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let written = std::fs::write(&temporary, text);
    written.map_err(io(format!("writing {}", temporary.display())))?;
    std::fs::rename(&temporary, path).map_err(io(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_plain_words_are_refused() {
        for name in ["", "../etc", "A", "a b", &"x".repeat(33)] {
            assert!(StateDir::new(name).is_err(), "{name:?}");
        }
        assert_eq!(
            StateDir::new("lab").unwrap().objects(),
            Path::new("/run/egret-lab/lab/objects")
        );
    }

    #[test]
    fn a_lock_keeps_others_away_and_leaves_no_file() {
        let dir = StateDir::new("test-lock-unit").unwrap();
        let lock = dir.lock().unwrap();
        let path = lock.path.clone();
        let other = File::options().append(true).open(&path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(lock);
        assert!(!path.exists());
    }
}
