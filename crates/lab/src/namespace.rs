//! Runs code inside a network namespace of the lab. The only module that changes a thread's namespace.
//!
//! A network namespace belongs to a thread: the closure runs on a fresh one, which ends with it. Threads that the
//! closure starts inherit the namespace.

use crate::LabError;
use crate::error::io;
use crate::state::{State, StateDir};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::JoinHandle;

/// Name of a host or a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceName {
    /// A host.
    Host(String),
    /// A pod by namespace and name.
    Pod(String, String),
    /// A network namespace that a program on a host made, by host and name below its /run/netns.
    Netns(String, String),
}

impl FromStr for PlaceName {
    type Err = LabError;

    /// `HOST`, `pod/NAMESPACE/NAME` or `netns/HOST/NAME`.
    fn from_str(text: &str) -> Result<Self, LabError> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [host] if !host.is_empty() => Ok(Self::Host((*host).to_owned())),
            ["pod", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod((*namespace).to_owned(), (*name).to_owned()))
            }
            ["netns", host, name] if !host.is_empty() && !name.is_empty() => {
                Ok(Self::Netns((*host).to_owned(), (*name).to_owned()))
            }
            _ => Err(LabError::Place(text.to_owned())),
        }
    }
}

impl std::fmt::Display for PlaceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(host) => f.write_str(host),
            Self::Pod(namespace, name) => write!(f, "pod/{namespace}/{name}"),
            Self::Netns(host, name) => write!(f, "netns/{host}/{name}"),
        }
    }
}

/// A host or pod of a lab. Stays valid when the host is switched off and on again.
#[derive(Debug, Clone)]
pub struct Place {
    pub(crate) state_dir: StateDir,
    pub(crate) name: PlaceName,
}

impl Place {
    /// Its name.
    pub fn name(&self) -> &PlaceName {
        &self.name
    }

    /// Path of its network namespace, seen from the root mount namespace.
    ///
    /// # Errors
    /// No such host or pod, or the host is off.
    pub fn netns_path(&self) -> Result<PathBuf, LabError> {
        netns_path(&self.state_dir.read()?, &self.name)
    }

    /// The host's file system as seen from outside: files written below it are in the host. A pod's is its host's.
    ///
    /// # Errors
    /// No such host or pod, or the host is off.
    pub fn root(&self) -> Result<PathBuf, LabError> {
        let state = self.state_dir.read()?;
        let host = host_of(&state, &self.name)?;
        Ok(PathBuf::from(format!(
            "/proc/{}/root",
            state.init_of(&host)?.pid
        )))
    }

    /// Runs `work` on a fresh thread inside the network namespace and returns its result.
    ///
    /// # Errors
    /// No such host or pod, the host is off, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        run_in(&self.netns_path()?, work)
    }

    /// Starts `work` on a fresh thread inside the network namespace. The thread keeps the namespace alive.
    ///
    /// # Errors
    /// As [`Place::run`].
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, LabError> {
        let builder = std::thread::Builder::new().name(self.name.to_string());
        // A thread starts in the namespace of the thread that starts it.
        self.run(|| builder.spawn(work))?
            .map_err(io("starting a thread"))
    }
}

/// Name of the host of a place.
fn host_of(state: &State, place: &PlaceName) -> Result<String, LabError> {
    match place {
        PlaceName::Host(host) | PlaceName::Netns(host, _) => Ok(host.clone()),
        PlaceName::Pod(namespace, name) => match state.layout().pod(namespace, name) {
            Some((host, _)) => Ok(host.name.clone()),
            None => Err(LabError::NoSuchPod(format!("{namespace}/{name}"))),
        },
    }
}

/// Path of the network namespace of a place.
pub(crate) fn netns_path(state: &State, place: &PlaceName) -> Result<PathBuf, LabError> {
    let init = state.init_of(&host_of(state, place)?)?;
    Ok(match place {
        PlaceName::Host(_) => PathBuf::from(format!("/proc/{}/ns/net", init.pid)),
        PlaceName::Pod(namespace, name) => PathBuf::from(format!(
            "/proc/{}/root/run/netns/{namespace}.{name}",
            init.pid
        )),
        PlaceName::Netns(_, name) => {
            PathBuf::from(format!("/proc/{}/root/run/netns/{name}", init.pid))
        }
    })
}

/// Runs `work` on a fresh thread inside the network namespace at `path`.
pub(crate) fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    let netns = open(path)?;
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    result.map_err(|errno: nix::Error| {
        io(format!("entering the network namespace {}", path.display()))(errno.into())
    })
}

fn open(path: &Path) -> Result<File, LabError> {
    File::open(path).map_err(io(format!(
        "opening the network namespace {}",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_three_forms() {
        assert_eq!(
            "worker1".parse::<PlaceName>().unwrap(),
            PlaceName::Host("worker1".to_owned())
        );
        let pod: PlaceName = "pod/default/a1".parse().unwrap();
        assert_eq!(pod.to_string(), "pod/default/a1");
        let netns: PlaceName = "netns/worker1/cni-1".parse().unwrap();
        assert_eq!(netns.to_string(), "netns/worker1/cni-1");
        assert!("pod/a1".parse::<PlaceName>().is_err());
        assert!("".parse::<PlaceName>().is_err());
    }
}
