//! Change notifications for mappings: inotify on the directories themselves. A mounted ConfigMap changes by a rename of
//! its `..data`, other writers write the files in place.

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Buffer for inotify events, bytes; their content is ignored.
const EVENTS_BYTES: usize = 16 * 1024;

/// The directories of mappings.
pub(crate) struct Mappings {
    inotify: Option<Inotify>,
    directories: Vec<(PathBuf, Option<WatchDescriptor>)>,
}

impl Mappings {
    pub(crate) fn watch(directories: &[PathBuf]) -> Self {
        let inotify = Inotify::init().inspect_err(|error| {
            tracing::warn!(%error, "no inotify: mappings are read after every interval only");
        });
        let unwatched = directories.iter().map(|path| (path.clone(), None));
        Mappings {
            inotify: inotify.ok(),
            directories: unwatched.collect(),
        }
    }

    /// Whether anything changed since the last call. A directory that was recreated or replaced counts.
    pub(crate) fn changed(&mut self) -> bool {
        let Some(inotify) = &mut self.inotify else {
            return false;
        };
        let mut changed = happened(inotify);
        for (path, known) in &mut self.directories {
            // inotify returns the same watch for the same directory.
            let watch = add(inotify, path).ok();
            changed |= watch != *known;
            *known = watch;
        }
        changed
    }
}

fn add(inotify: &Inotify, directory: &Path) -> io::Result<WatchDescriptor> {
    // A file that is being written sends no event before it is closed.
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::CLOSE_WRITE
        | WatchMask::ONLYDIR;
    inotify.watches().add(directory, mask)
}

/// Reads the pending events; returns whether there were any.
fn happened(inotify: &mut Inotify) -> bool {
    let mut buffer = vec![0; EVENTS_BYTES];
    let mut any = false;
    loop {
        match inotify.read_events(&mut buffer) {
            Ok(events) => {
                let told = |mask: EventMask| !mask.contains(EventMask::IGNORED);
                any |= events.into_iter().any(|event| told(event.mask));
            }
            // Any other error means that events were lost, so it counts as a change.
            Err(error) => return any || error.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn swaps_writes_and_new_directories_are_seen_and_rest_is_rest() {
        let root = tempfile::tempdir().unwrap();
        let (mount, later) = (root.path().join("mount"), root.path().join("later"));
        fs::create_dir_all(mount.join("..1")).unwrap();
        symlink("..1", mount.join("..data")).unwrap();
        let mut mappings = Mappings::watch(&[mount.clone(), later.clone()]);
        assert!(mappings.changed(), "nothing was seen yet");
        assert!(!mappings.changed());
        // As kubelet does.
        fs::create_dir(mount.join("..2")).unwrap();
        fs::write(mount.join("..2/10.244.1.7"), "192.0.2.1").unwrap();
        assert!(mappings.changed());
        symlink("..2", mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        assert!(mappings.changed());
        assert!(!mappings.changed());
        fs::write(mount.join("10.244.1.8"), "192.0.2.1").unwrap();
        assert!(mappings.changed());
        fs::create_dir(&later).unwrap();
        assert!(mappings.changed());
        fs::remove_dir(&later).unwrap();
        assert!(mappings.changed());
        fs::create_dir(&later).unwrap();
        assert!(mappings.changed());
        assert!(!mappings.changed());
    }
}
