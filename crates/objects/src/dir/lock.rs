//! `PATH/status/.lock`: shared by scans, exclusive for writes. It also contains the highest version ever assigned, so
//! that no version is reused, even after its object was deleted.

use super::tree::io_error;
use crate::SourceError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for the lock: a process that was stopped while holding it must not stop the others' reading.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// A held lock; released on drop.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

/// Waits for the shared lock. `None` if there is no status directory yet.
pub(super) fn shared(directory: &Path) -> Result<Option<Lock>, SourceError> {
    let path = directory.join(".lock");
    let open = || match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(io_error("opening", &path, error)),
    };
    take(&path, open, File::try_lock_shared)
}

/// Waits for the exclusive lock; creates missing directory and file.
pub(super) fn exclusive(directory: &Path) -> Result<Lock, SourceError> {
    let path = directory.join(".lock");
    let open = || {
        fs::create_dir_all(directory).map_err(|e| io_error("making", directory, e))?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map(Some)
            .map_err(|e| io_error("opening", &path, e))
    };
    take(&path, open, File::try_lock)?.ok_or_else(|| SourceError::Locked { path: path.clone() })
}

fn take(
    path: &Path,
    open: impl Fn() -> Result<Option<File>, SourceError>,
    lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<Lock>, SourceError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    loop {
        let Some(file) = open()? else { return Ok(None) };
        match lock(&file) {
            Ok(()) if is_still(path, &file) => {
                return Ok(Some(Lock {
                    file,
                    path: path.to_owned(),
                }));
            }
            Ok(()) => {} // the file was replaced meanwhile: this lock keeps nobody out
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(io_error("locking", path, error)),
        }
        if Instant::now() >= deadline {
            return Err(SourceError::Locked {
                path: path.to_owned(),
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Whether the error means that the file does not exist, or that its parent is no directory.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether the path still refers to this file.
fn is_still(path: &Path, file: &File) -> bool {
    let (Ok(there), Ok(here)) = (fs::metadata(path), file.metadata()) else {
        return false;
    };
    (there.dev(), there.ino()) == (here.dev(), here.ino())
}

impl Lock {
    /// The next version: above every version assigned before, and above `floor`. Needs the exclusive lock.
    pub fn next_version(&mut self, floor: u64) -> Result<u64, SourceError> {
        self.advance(floor)
            .map_err(|e| io_error("counting versions in", &self.path, e))
    }

    fn advance(&mut self, floor: u64) -> io::Result<u64> {
        let mut text = String::new();
        self.file.rewind()?;
        // Invalid content is no error: `floor`, from the objects themselves, is sufficient.
        let last = match self.file.read_to_string(&mut text) {
            Ok(_) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => 0,
            Err(error) => return Err(error),
        };
        let next = floor.max(last) + 1;
        self.file.rewind()?;
        // Fixed width: a shorter number never leaves old digits behind.
        self.file.write_all(format!("{next:020}\n").as_bytes())?;
        self.file.set_len(21)?;
        Ok(next)
    }
}
