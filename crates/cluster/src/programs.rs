//! The programs of Kubernetes and their dependencies, built or unpacked beforehand: building them here would take
//! minutes.

use crate::ClusterError;
use crate::error::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code of the scripts: the programs are not built yet.
const NOT_BUILT: i32 = 3;

/// Environment variable that allows tests to be skipped where Kubernetes is not built.
const CONSENT: &str = "EGRET_WITHOUT_KUBERNETES";
/// File with the folders of the programs that a cluster was started with.
const REMEMBERED: &str = "programs";

/// Folders of the programs.
#[derive(Debug, Clone)]
pub struct Programs {
    kubernetes: PathBuf,
    others: PathBuf,
}

impl Programs {
    /// Finds the programs where `./dev cluster build` puts them, or in `KUBEBUILDER_ASSETS`.
    ///
    /// # Errors
    /// They are missing; the message contains the remedy.
    pub fn find() -> Result<Self, ClusterError> {
        Ok(Self {
            kubernetes: folder("build")?,
            others: folder("unpack")?,
        })
    }

    /// Writes the folders of a cluster's programs into its folder: a later build may be another one.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), ClusterError> {
        let text = format!("{}\n{}\n", self.kubernetes.display(), self.others.display());
        std::fs::write(folder.join(REMEMBERED), text).map_err(io("remembering the programs"))
    }

    /// Reads the folders that [`Self::write`] wrote.
    pub(crate) fn read(folder: &Path) -> Result<Self, ClusterError> {
        let text = std::fs::read_to_string(folder.join(REMEMBERED));
        let text = text.map_err(io("looking for the programs of the cluster"))?;
        let mut lines = text.lines().map(PathBuf::from);
        let mut next = || lines.next().unwrap_or_default();
        Ok(Self {
            kubernetes: next(),
            others: next(),
        })
    }

    /// A program of Kubernetes: `kube-apiserver`, `kubectl`, `helm`, ...
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes.join(name)
    }

    /// etcd, from `KUBEBUILDER_ASSETS` if that has one.
    pub fn etcd(&self) -> PathBuf {
        let own = self.kubernetes.join("etcd");
        if own.is_file() {
            own
        } else {
            self.other("etcd")
        }
    }

    /// A program of the distribution: `containerd`, `runc`, `busybox`, ...
    pub fn other(&self, name: &str) -> PathBuf {
        self.others.join("bin").join(name)
    }

    /// The folder of those programs.
    pub fn others(&self) -> PathBuf {
        self.others.join("bin")
    }

    /// The folder of CNI plugins.
    pub fn cni(&self) -> PathBuf {
        self.others.join("cni")
    }
}

/// Whether a test that needs Kubernetes should end at once: it is not built, and `EGRET_WITHOUT_KUBERNETES` allows it.
/// Prints a line that `./dev test` counts. Without that variable such tests fail.
pub fn skipped(test: &str) -> bool {
    let consents = std::env::var_os(CONSENT).is_some_and(|value| !value.is_empty());
    match Programs::find() {
        Err(ClusterError::NotBuilt(reason)) if consents => {
            // println output of a passing test is not shown.
            let _ = writeln!(std::io::stdout(), "\nskipped: {test}: {reason}");
            true
        }
        _ => false,
    }
}

/// Path of a script beside the Go module.
pub(crate) fn script(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../../tests/kubernetes").join(name)
}

fn folder(name: &str) -> Result<PathBuf, ClusterError> {
    let path = script(name);
    let output = Command::new(&path)
        .arg("--cached")
        .output()
        .map_err(io(format!("running {}", path.display())))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        )),
        Some(NOT_BUILT) => Err(ClusterError::NotBuilt(said)),
        _ => Err(ClusterError::NotBuilt(format!(
            "{}: {said}",
            path.display()
        ))),
    }
}
