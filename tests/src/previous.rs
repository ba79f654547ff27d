//! The version before this one, from which upgrades start: chart and programs, built from the repository's history.

use anyhow::{Context, ensure};
use egret_lab::process::run;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The commit: the last one whose `EgressNode` status says `abilities` where `capabilities` is now.
pub const COMMIT: &str = "0cca1d8077085c0f06b5afb6ffb2be3b41b2e354";
/// The repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// File of the unpacked source that names its commit.
const MARK: &str = ".commit";

/// Source and programs of the previous version.
pub struct Previous {
    folder: PathBuf,
}

impl Previous {
    /// Unpacks and builds it in `target/previous` unless that is done: minutes once, seconds after that.
    ///
    /// # Errors
    /// This clone lacks the commit, or it does not build.
    pub fn built() -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        // target/debug/deps/test -> target/previous
        let target = own.ancestors().nth(3).context("the folder of programs")?;
        let previous = Self {
            folder: target.join("previous"),
        };
        let source = previous.source();
        let mark = std::fs::read_to_string(source.join(MARK)).unwrap_or_default();
        if mark.trim() != COMMIT {
            unpack(&source)?;
        }
        let mut build = Command::new("cargo");
        build
            .args(["build", "--quiet", "--locked", "--workspace"])
            .args(["--bin", "egret", "--bin", "egret-cni"])
            .env("CARGO_TARGET_DIR", previous.folder.join("target"))
            .current_dir(&source);
        run(&mut build, "").context("building the previous version")?;
        Ok(previous)
    }

    fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// A program of it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("target/debug").join(name)
    }

    /// Its chart.
    pub fn chart(&self) -> PathBuf {
        self.source().join("deploy/chart")
    }
}

fn unpack(source: &Path) -> anyhow::Result<()> {
    if source.exists() {
        std::fs::remove_dir_all(source)?;
    }
    std::fs::create_dir_all(source)?;
    let mut archive = Command::new("git")
        .args(["-C", REPOSITORY, "archive", COMMIT])
        .stdout(Stdio::piped())
        .spawn()
        .context("running git")?;
    let files = archive.stdout.take().context("git's output")?;
    let unpacked = Command::new("tar")
        .arg("-x")
        .current_dir(source)
        .stdin(files)
        .status()
        .context("running tar")?;
    ensure!(
        archive.wait()?.success() && unpacked.success(),
        "commit {COMMIT} cannot be unpacked; a shallow clone lacks it: git fetch --unshallow"
    );
    Ok(std::fs::write(source.join(MARK), COMMIT)?)
}
