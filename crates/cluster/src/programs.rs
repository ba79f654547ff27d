//! The programs of Kubernetes and those that it needs, built or unpacked beforehand: nothing is built here, since that
//! takes minutes.

use crate::ClusterError;
use crate::error::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code of the scripts: nothing is built yet.
const NOT_BUILT: i32 = 3;

/// Environment variable: tests may be skipped where Kubernetes is not built.
const CONSENT: &str = "EGRET_WITHOUT_KUBERNETES";
/// File with the folders of the programs that a cluster was started with.
const REMEMBERED: &str = "programs";

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    kubernetes: PathBuf,
    others: PathBuf,
}

impl Programs {
    /// Looks where `./dev cluster build` puts them, or where `KUBEBUILDER_ASSETS` says.
    ///
    /// # Errors
    /// They are not there; the message says what to do.
    pub fn find() -> Result<Self, ClusterError> {
        Ok(Self {
            kubernetes: folder("build")?,
            others: folder("unpack")?,
        })
    }

    /// Remembers in a folder which programs a cluster was started with: others may be the built ones later.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), ClusterError> {
        let text = format!("{}\n{}\n", self.kubernetes.display(), self.others.display());
        std::fs::write(folder.join(REMEMBERED), text).map_err(io("remembering the programs"))
    }

    /// What [`Self::write`] remembered.
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

    /// etcd: of `KUBEBUILDER_ASSETS` where that has one.
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

/// Whether a test that needs Kubernetes should end at once: it is not built, and `EGRET_WITHOUT_KUBERNETES` consents.
/// Says so in a line that `./dev test` counts. Without that consent such tests fail.
pub fn skipped(test: &str) -> bool {
    let consents = std::env::var_os(CONSENT).is_some_and(|value| !value.is_empty());
    match Programs::find() {
        Err(ClusterError::NotBuilt(reason)) if consents => {
            // Not by println: what a passing test prints is not shown.
            let _ = writeln!(std::io::stdout(), "\nskipped: {test}: {reason}");
            true
        }
        _ => false,
    }
}

/// A script beside the Go module.
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
