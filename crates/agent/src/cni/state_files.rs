//! State files of the CNI: announcements, for the next agent, and pods that may start without an agent, for the plugin.
//!
//! Both are written by rename and without fsync: no pod that they describe survives a crash of the machine.

use egret_core::announced::Announced;
use egret_wire::cni::Known;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Below the agent's state directory.
const DIRECTORY: &str = "cni";
const ANNOUNCED_FILE: &str = "announced.json";
const KNOWN_FILE: &str = "known.json";
/// Changes with each boot of the kernel (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The announcements on disk, with the boot id: sandboxes do not outlive the kernel.
#[derive(Serialize, Deserialize)]
struct OnDisk {
    boot: String,
    announced: Announced,
}

/// Path of the file in which the plugin reads which pods may start.
pub(super) fn known_file(state_directory: &Path) -> PathBuf {
    state_directory.join(DIRECTORY).join(KNOWN_FILE)
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default()
}

/// Reads the announcements of an earlier agent of this boot.
pub(super) fn load_announced(state_directory: &Path) -> Announced {
    let path = state_directory.join(DIRECTORY).join(ANNOUNCED_FILE);
    let bytes = fs::read(path).ok();
    let on_disk: Option<OnDisk> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let ours = on_disk.filter(|on_disk| on_disk.boot == boot());
    ours.map(|on_disk| on_disk.announced).unwrap_or_default()
}

/// Writes the announcements; without any the file is removed.
pub(super) fn save_announced(state_directory: &Path, announced: &Announced) -> io::Result<()> {
    let directory = state_directory.join(DIRECTORY);
    if *announced == Announced::default() {
        return remove(&directory.join(ANNOUNCED_FILE));
    }
    let on_disk = OnDisk {
        boot: boot(),
        announced: announced.clone(),
    };
    write(&directory, ANNOUNCED_FILE, &serde_json::to_vec(&on_disk)?)
}

/// Reads the plugin's file.
pub(super) fn load_known(state_directory: &Path) -> Option<Known> {
    let text = fs::read_to_string(known_file(state_directory)).ok()?;
    Known::from_text(&text).ok()
}

/// Writes the plugin's file.
pub(super) fn save_known(state_directory: &Path, known: &Known) -> io::Result<()> {
    let directory = state_directory.join(DIRECTORY);
    write(&directory, KNOWN_FILE, known.to_text().as_bytes())
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let temporary = directory.join(format!("{name}.tmp"));
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, directory.join(name))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes all state files.
pub(crate) fn forget(state_directory: &Path) -> io::Result<()> {
    let directory = state_directory.join(DIRECTORY);
    for name in [ANNOUNCED_FILE, KNOWN_FILE] {
        remove(&directory.join(name))?;
        remove(&directory.join(format!("{name}.tmp")))?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::announced::AttachmentId;

    #[test]
    fn what_is_kept_is_found_again_and_goes_without_a_trace() {
        let state = tempfile::tempdir().unwrap();
        let mut announced = Announced::default();
        let id = AttachmentId {
            container: "c".into(),
            interface: "eth0".into(),
        };
        announced.add(id, None, ["10.0.0.1".parse().unwrap()].into());
        save_announced(state.path(), &announced).unwrap();
        assert_eq!(load_announced(state.path()), announced);
        let known = Known {
            version: 1,
            others_wait: true,
            ..Known::default()
        };
        assert_eq!(load_known(state.path()), None);
        save_known(state.path(), &known).unwrap();
        assert_eq!(load_known(state.path()), Some(known));
        forget(state.path()).unwrap();
        forget(state.path()).unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
        assert_eq!(load_announced(state.path()), Announced::default());
    }

    #[test]
    fn what_was_told_before_the_kernel_started_is_over() {
        let state = tempfile::tempdir().unwrap();
        let on_disk = r#"{"boot":"another","announced":{"attachments":[[{"container":"c","interface":"eth0"},
            {"pod":null,"addresses":["10.0.0.1"],"seen":false}]],"released":[]}}"#;
        write(
            &state.path().join(DIRECTORY),
            ANNOUNCED_FILE,
            on_disk.as_bytes(),
        )
        .unwrap();
        assert_eq!(load_announced(state.path()), Announced::default());
    }
}
