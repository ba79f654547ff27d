//! Wake-up by changes: inotify on every directory, and periodic comparison of signatures for changes that it misses
//! (files behind symbolic links, a full queue, network file systems).

use crate::SourceError;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Buffer for the events of one read, bytes: an event has 16 bytes and a name of at most 256.
const EVENTS_BYTES: usize = 16 * 1024;

/// Watched directories. Without inotify (limits, unusual file systems) only signatures are compared.
pub(super) struct Watch {
    inotify: Option<Inotify>,
    /// By path: whether the directory is ours (below `status/`), and its watch.
    directories: BTreeMap<PathBuf, (bool, WatchDescriptor)>,
}

impl Watch {
    pub fn new() -> Self {
        let inotify = Inotify::init()
            .inspect_err(|error| tracing::warn!(%error, "no inotify: changes are noticed later"))
            .ok();
        Self {
            inotify,
            directories: BTreeMap::new(),
        }
    }

    /// Watches a directory from now on; call it before the directory is read, so that no change is missed. A missing
    /// directory is watched once it exists.
    pub fn add(&mut self, directory: &Path, ours: bool) {
        let Some(inotify) = &self.inotify else { return };
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        match inotify.watches().add(directory, mask) {
            Ok(watch) => {
                self.directories.insert(directory.to_owned(), (ours, watch));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.directories.remove(directory);
            }
            Err(error) => {
                tracing::debug!(%error, directory = %directory.display(), "not watched");
            }
        }
    }

    /// Waits until an event arrives or the timeout expires. `true`: an event that concerns the source.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.poll(left)? {
                return Ok(false);
            }
            if self.drain() {
                return Ok(true);
            }
        }
    }

    /// Whether events arrive within the timeout.
    fn poll(&self, timeout: Duration) -> Result<bool, SourceError> {
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128);
        let timeout = PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX))
            .unwrap_or(PollTimeout::ZERO);
        let Some(inotify) = &self.inotify else {
            std::thread::sleep(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
            return Ok(false);
        };
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(SourceError::Io {
                doing: "waiting for changes below",
                path: self.directories.keys().next().cloned().unwrap_or_default(),
                source: errno.into(),
            }),
        }
    }

    /// Reads the pending events. `true` if one of them concerns the source.
    fn drain(&mut self) -> bool {
        let Some(inotify) = &mut self.inotify else {
            return false;
        };
        let mut buffer = vec![0; EVENTS_BYTES];
        let mut relevant = false;
        // Ends at WouldBlock; any other error means that events were lost, so it counts as a change.
        loop {
            let events = match inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) => return relevant || error.kind() != io::ErrorKind::WouldBlock,
            };
            for event in events {
                let ours = self
                    .directories
                    .values()
                    .any(|(ours, watch)| *ours && *watch == event.wd);
                // The lock file and temporary files are ignored; hidden names of the user's are not: `..data`.
                let hidden = event
                    .name
                    .is_some_and(|name| name.as_encoded_bytes().first() == Some(&b'.'));
                relevant |= event.mask.contains(EventMask::Q_OVERFLOW) || !(ours && hidden);
            }
        }
    }

    /// Waits until there has been no event for a while, at most ten times that long.
    pub fn settle(&mut self, quiet: Duration) -> Result<(), SourceError> {
        let deadline = Instant::now() + quiet * 10;
        while Instant::now() < deadline && self.poll(quiet)? {
            self.drain();
        }
        Ok(())
    }
}
