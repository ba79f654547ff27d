//! Installs the plugin, chains it into the runtime's configuration, and repairs it when other tools overwrite it. All
//! files are written atomically, by rename.

use super::chain::{ChainError, Change, Files, chain, unchain};
use super::{CniConfig, InstallConfig, state_files};
use crate::error::AgentError;
use crate::threads::spawn;
use egret_wire::cni::PLUGIN;
use inotify::{Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Poll interval of the configuration, independent of inotify.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// Poll interval of the ready and stop flags.
const ASK: Duration = Duration::from_millis(500);
/// Pause after each change of ours, so that two tools that undo each other do not spin.
const PAUSE: Duration = Duration::from_secs(1);
/// Buffer for inotify events, bytes; their content is ignored.
const EVENTS_BYTES: usize = 16 * 1024;
/// Largest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Name of a file that is being written; runtimes ignore such names.
const TEMPORARY: &str = ".egret-cni.tmp";

/// Reasons why the plugin cannot be installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Chain(#[from] ChainError),
}

fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Starts the thread that installs the plugin once `ready` is set, and keeps it installed.
pub(crate) fn keep_installed(
    config: &CniConfig,
    state_directory: &Path,
    ready: &Arc<AtomicBool>,
    stop: &Arc<AtomicBool>,
) -> Result<(), AgentError> {
    let Some(install) = config.install.clone() else {
        return Ok(());
    };
    if install.remove {
        return remove(install, stop.clone());
    }
    let entry = json!({
        "type": PLUGIN, "socket": config.socket, "known": state_files::known_file(state_directory),
    });
    let (ready, stop) = (ready.clone(), stop.clone());
    spawn("cni-config", move || {
        while !ready.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
            thread::park_timeout(ASK);
        }
        let mut watch = Watch::new(&install.conf_directory);
        let mut last = String::new();
        while !stop.load(Ordering::Relaxed) {
            let (said, changed) = match install_once(&install, &entry) {
                Ok((file, changed)) => (format!("chained into {file}"), changed),
                Err(error) => (egret_core::error::with_causes(&error), false),
            };
            if said != last || changed {
                tracing::info!(said, "CNI plugin");
                last = said;
            }
            if changed {
                thread::park_timeout(PAUSE);
            }
            watch.wait(LOOK_ANYWAY, &stop);
        }
    })
}

/// Starts the thread that removes the installation of an earlier agent; it ends once that succeeded.
fn remove(install: InstallConfig, stop: Arc<AtomicBool>) -> Result<(), AgentError> {
    spawn("cni-config", move || {
        let mut last = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let errors = uninstall(&install);
            if errors.is_empty() {
                tracing::info!("the CNI plugin is in no configuration of this node");
                return;
            }
            if errors != last {
                tracing::warn!(?errors, "the CNI plugin cannot be removed");
                last = errors;
            }
            thread::park_timeout(LOOK_ANYWAY);
        }
    })
}

/// Checks the installation and repairs it. Returns the file with the plugin, and whether anything was changed.
pub(super) fn install_once(
    install: &InstallConfig,
    entry: &serde_json::Value,
) -> Result<(String, bool), InstallError> {
    // The program first: with a configuration that names a missing plugin no pod starts.
    let mut changed = copy_plugin(&install.plugin, &install.bin_directory)?;
    let files = read_all(&install.conf_directory)?;
    let (file, changes) = chain(&files, entry)?;
    changed |= !changes.is_empty();
    carry_out(&install.conf_directory, &changes)?;
    Ok((file, changed))
}

/// Removes the plugin from the configuration, then the program. Continues after errors and returns them all.
pub(crate) fn uninstall(install: &InstallConfig) -> Vec<String> {
    let mut errors = Vec::new();
    let directory = &install.conf_directory;
    let undone = read_all(directory).and_then(|files| carry_out(directory, &unchain(&files)));
    match undone {
        Ok(()) => {
            // Not while a configuration still names the plugin: no pod would start.
            for name in [PLUGIN, TEMPORARY] {
                let path = install.bin_directory.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        errors.push(format!("removing {}: {error}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        Err(error) => errors.push(egret_core::error::with_causes(&error)),
    }
    let _none = fs::remove_file(directory.join(TEMPORARY));
    errors
}

fn copy_plugin(plugin: &Path, directory: &Path) -> Result<bool, InstallError> {
    let wanted = fs::read(plugin).map_err(io("reading", plugin))?;
    let path = directory.join(PLUGIN);
    if fs::read(&path).is_ok_and(|there| there == wanted) {
        return Ok(false);
    }
    fs::create_dir_all(directory).map_err(io("creating", directory))?;
    replace(&path, &wanted, 0o755)?;
    Ok(true)
}

fn read_all(directory: &Path) -> Result<Files, InstallError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Files::new()),
        Err(error) => return Err(io("reading", directory)(error)),
    };
    let mut files = Files::new();
    for entry in entries.flatten() {
        let size = fs::metadata(entry.path()).map(|found| (found.is_file(), found.len()));
        let readable = size.is_ok_and(|(is_file, length)| is_file && length <= FILE_BYTES_MAX);
        // A file that is gone by now, or is not text, is no configuration.
        if readable
            && let Ok(text) = fs::read_to_string(entry.path())
            && let Ok(name) = entry.file_name().into_string()
        {
            files.insert(name, text);
        }
    }
    Ok(files)
}

fn carry_out(directory: &Path, changes: &[Change]) -> Result<(), InstallError> {
    for change in changes {
        match change {
            Change::Write { name, text, like } => {
                let like = fs::metadata(directory.join(like));
                let mode = like.map_or(0o600, |like| like.permissions().mode() & 0o777);
                replace(&directory.join(name), text.as_bytes(), mode)?;
            }
            Change::Rename { from, to } => {
                let from = directory.join(from);
                fs::rename(&from, directory.join(to)).map_err(io("renaming", &from))?;
            }
            Change::Remove { name } => {
                let path = directory.join(name);
                fs::remove_file(&path).map_err(io("removing", &path))?;
            }
        }
    }
    Ok(())
}

/// Writes a temporary file and renames it. Without the sync a power cut could leave an empty configuration.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let temporary = path.with_file_name(TEMPORARY);
    let written = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    written().map_err(io("writing", path))
}

/// Inotify watch on the configuration's directory.
struct Watch {
    directory: PathBuf,
    inotify: Option<Inotify>,
    watched: bool,
}

impl Watch {
    fn new(directory: &Path) -> Self {
        let inotify = Inotify::init()
            .inspect_err(
                |error| tracing::warn!(%error, "no inotify: others' changes are seen later"),
            )
            .ok();
        let mut watch = Watch {
            directory: directory.to_owned(),
            inotify,
            watched: false,
        };
        watch.add();
        watch
    }

    /// Adds the watch; the directory may not exist yet.
    fn add(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        self.watched = inotify.watches().add(&self.directory, mask).is_ok();
    }

    /// Waits until something changes, the timeout expires, or the agent stops.
    fn wait(&mut self, timeout: Duration, stop: &AtomicBool) {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
            if !self.watched {
                self.add();
                if self.watched {
                    return;
                }
                thread::park_timeout(ASK);
                continue;
            }
            let Some(inotify) = &mut self.inotify else {
                return;
            };
            let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            let millis = u16::try_from(ASK.as_millis()).unwrap_or(u16::MAX);
            if nix::poll::poll(&mut fds, PollTimeout::from(millis)).is_ok_and(|ready| ready > 0) {
                let mut buffer = vec![0; EVENTS_BYTES];
                let gone = inotify.read_events(&mut buffer).map(|mut events| {
                    events.any(|event| event.mask.contains(inotify::EventMask::IGNORED))
                });
                self.watched = !gone.unwrap_or(false);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "0.4.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

    fn place() -> (tempfile::TempDir, InstallConfig) {
        let place = tempfile::tempdir().unwrap();
        let install = InstallConfig {
            conf_directory: place.path().join("net.d"),
            bin_directory: place.path().join("bin"),
            plugin: place.path().join("egret-cni"),
            remove: false,
        };
        fs::create_dir(&install.conf_directory).unwrap();
        fs::write(&install.plugin, "program").unwrap();
        (place, install)
    }

    fn entry() -> serde_json::Value {
        json!({"type": PLUGIN})
    }

    #[test]
    fn program_and_configuration_come_and_go_together() {
        let (place, install) = place();
        let conf = install.conf_directory.join("10-net.conflist");
        fs::write(&conf, LIST).unwrap();
        fs::set_permissions(&conf, fs::Permissions::from_mode(0o640)).unwrap();
        let done = |changed| ("10-net.conflist".to_owned(), changed);
        assert_eq!(install_once(&install, &entry()).unwrap(), done(true));
        assert_eq!(install_once(&install, &entry()).unwrap(), done(false));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&conf), 0o640);
        assert_eq!(mode(&install.bin_directory.join(PLUGIN)), 0o755);
        assert!(fs::read_to_string(&conf).unwrap().contains(PLUGIN));
        // A new program replaces the old one.
        fs::write(&install.plugin, "newer").unwrap();
        assert_eq!(install_once(&install, &entry()).unwrap(), done(true));
        assert_eq!(
            fs::read(install.bin_directory.join(PLUGIN)).unwrap(),
            b"newer"
        );
        assert_eq!(uninstall(&install), Vec::<String>::new());
        assert_eq!(uninstall(&install), Vec::<String>::new());
        let left: serde_json::Value = serde_json::from_slice(&fs::read(&conf).unwrap()).unwrap();
        assert_eq!(
            left,
            serde_json::from_str::<serde_json::Value>(LIST).unwrap()
        );
        assert_eq!(fs::read_dir(&install.bin_directory).unwrap().count(), 0);
        assert_eq!(fs::read_dir(place.path().join("net.d")).unwrap().count(), 1);
    }

    #[test]
    fn no_program_no_change_of_the_configuration() {
        let (_place, install) = place();
        fs::remove_file(&install.plugin).unwrap();
        let conf = install.conf_directory.join("10-net.conflist");
        fs::write(&conf, LIST).unwrap();
        assert!(matches!(
            install_once(&install, &entry()),
            Err(InstallError::Io { .. })
        ));
        assert_eq!(fs::read_to_string(&conf).unwrap(), LIST);
    }

    #[test]
    fn a_tool_that_writes_its_configuration_anew_is_followed() {
        let (_place, install) = place();
        let conf = install.conf_directory.join("10-net.conf");
        let single = r#"{"cniVersion": "0.4.0", "name": "net", "type": "bridge"}"#;
        let stop = Arc::new(AtomicBool::new(false));
        let config = CniConfig {
            socket: "/run/egret/cni.sock".into(),
            install: Some(install.clone()),
        };
        let ready = Arc::new(AtomicBool::new(true));
        keep_installed(&config, Path::new("/var/lib/egret"), &ready, &stop).unwrap();
        let wait = |what: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !what() {
                assert!(Instant::now() < deadline, "not in time");
                thread::park_timeout(Duration::from_millis(5));
            }
        };
        let list = install.conf_directory.join("10-net.conf.conflist");
        let has = |text: &str| fs::read_to_string(&list).is_ok_and(|found| found.contains(text));
        fs::write(&conf, single).unwrap();
        wait(&|| has(PLUGIN) && !conf.exists());
        fs::write(&conf, single.replace("bridge", "ptp")).unwrap();
        wait(&|| has(PLUGIN) && has("ptp") && !conf.exists());
        stop.store(true, Ordering::Relaxed);
        // The next agent is configured to remove it; the thread of the last one may have run once more by then.
        let stop = Arc::new(AtomicBool::new(false));
        let config = CniConfig {
            install: Some(InstallConfig {
                remove: true,
                ..install.clone()
            }),
            ..config
        };
        let plugin = install.bin_directory.join(PLUGIN);
        keep_installed(&config, Path::new("/var/lib/egret"), &ready, &stop).unwrap();
        wait(&|| !list.exists() && conf.exists() && !plugin.exists());
    }
}
