//! Debian's kernels: found and downloaded by apt, with package lists of its own, and unpacked into the cache. Nothing is
//! installed, and the machine's own package lists and sources are not touched.

use anyhow::{Context, bail, ensure};
use egret_lab::process::run;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Keys of the archive: package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The archive for `apt`: directory, suite.
const SUITES: [(&str, &str); 2] = [
    ("debian-security", "bookworm-security"),
    ("debian", "trixie-backports"),
];
/// Packages of a kernel: image and modules. Newer kernels have the image in `linux-binary`, and the list of modules that are
/// built in, without which modprobe fails, in `linux-base`.
const PARTS: [&str; 4] = [
    "linux-image-",
    "linux-binary-",
    "linux-modules-",
    "linux-base-",
];
/// Drivers that stay in the cache. The others are for hardware and take more than half of the space.
const DRIVERS: [&str; 3] = ["block", "net", "virtio"];
/// Most packages that one kernel may consist of.
const PACKAGES_MAX: usize = 12;

/// A line of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// Linux 6.1 of Debian 12.
    V6_1,
    /// Linux 6.12 of Debian 13.
    V6_12,
    /// The newest that Debian builds for a stable release.
    Newest,
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Folder with `lib/modules`, and with `boot` in older packages.
    folder: PathBuf,
    /// Release as `uname -r` prints it.
    pub release: String,
    /// Version of the package, `6.1.192-3`.
    pub version: String,
}

impl Series {
    /// Name in commands and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// Package that depends on the current kernel of the series, and the suite that has it.
    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::V6_1 => ("linux-image-amd64", "bookworm-security"),
            Self::V6_12 => ("linux-image-6.12-amd64", "bookworm-security"),
            Self::Newest => ("linux-image-amd64", "trixie-backports"),
        }
    }

    /// The current kernel of the series, downloaded if the cache lacks it. Without a network: the one of the cache.
    ///
    /// # Errors
    /// apt does not find or fetch it, and the cache has none.
    pub fn kernel(self) -> anyhow::Result<Kernel> {
        let cache = cache()?.join(self.name());
        std::fs::create_dir_all(&cache)?;
        match Apt::new(self).and_then(|apt| apt.fetch(&cache)) {
            Ok(kernel) => Ok(kernel),
            Err(error) => {
                let cached = cached(&cache).with_context(|| format!("{error:#}"))?;
                println!("Linux {} from the cache: {error:#}", cached.release);
                Ok(cached)
            }
        }
    }
}

impl Kernel {
    /// The compressed kernel: in `/boot`, in newer packages beside its modules.
    pub fn image(&self) -> PathBuf {
        let name = format!("vmlinuz-{}", self.release);
        let older = self.folder.join("boot").join(name);
        match older.is_file() {
            true => older,
            false => self.modules().join("vmlinuz"),
        }
    }

    /// Folder with its modules.
    pub fn modules(&self) -> PathBuf {
        self.root().join("lib/modules").join(&self.release)
    }

    /// Folder under which `modprobe -d` finds its modules.
    pub fn root(&self) -> &Path {
        &self.folder
    }

    fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        let version = folder.file_name().context("a folder in the cache")?;
        let modules = folder.join("lib/modules");
        let mut entries = std::fs::read_dir(&modules)
            .with_context(|| format!("reading {}", modules.display()))?;
        let release = entries.next().context("a package without modules")??;
        let kernel = Self {
            folder: folder.to_owned(),
            release: release.file_name().to_string_lossy().into_owned(),
            version: version.to_string_lossy().into_owned(),
        };
        let image = kernel.image();
        ensure!(image.is_file(), "{} is missing", image.display());
        Ok(kernel)
    }
}

/// Folder of all kernels.
fn cache() -> anyhow::Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let base = variable("EGRET_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("egret")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/egret")));
    let base = base.context("none of EGRET_CACHE, XDG_CACHE_HOME and HOME is set")?;
    Ok(base.join("kernels"))
}

/// A kernel that an earlier run left.
fn cached(cache: &Path) -> anyhow::Result<Kernel> {
    let entries = std::fs::read_dir(cache)?.filter_map(Result::ok);
    let mut kernels = entries.filter_map(|entry| Kernel::in_folder(&entry.path()).ok());
    kernels.next().context("the cache has no kernel either")
}

/// apt with lists of its own for one suite.
struct Apt {
    folder: PathBuf,
    package: &'static str,
}

impl Apt {
    fn new(series: Series) -> anyhow::Result<Self> {
        let (package, wanted) = series.package();
        ensure!(
            Path::new(KEYRING).is_file(),
            "{KEYRING} is missing: install debian-archive-keyring"
        );
        let folder = cache()?.join("apt").join(wanted);
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        let suite = SUITES.iter().find(|(_, suite)| *suite == wanted);
        let (directory, suite) = suite.context("a suite of the table")?;
        let line =
            format!("deb [signed-by={KEYRING}] http://deb.debian.org/{directory} {suite} main\n");
        std::fs::write(folder.join("sources.list"), line)?;
        std::fs::write(folder.join("status"), "")?;
        Ok(Self { folder, package })
    }

    /// A program of apt.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "sources.d"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            let path = self.folder.join(value);
            command
                .arg("-o")
                .arg(format!("{option}={}", path.display()));
        }
        command.args([
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "APT::Architecture=amd64",
        ]);
        command
    }

    /// The current kernel, whole in the cache.
    fn fetch(&self, cache: &Path) -> anyhow::Result<Kernel> {
        run(self.command("apt-get").arg("update"), "")
            .context("fetching Debian's package lists")?;
        let packages = self.packages()?;
        let first = packages.first().context("it consists of no package")?;
        let version = self.field(first, "Version")?;
        let folder = cache.join(&version);
        if !folder.exists() {
            self.unpack(&packages, cache, &folder)?;
        }
        Kernel::in_folder(&folder)
    }

    /// Packages with image and modules, by following dependencies.
    fn packages(&self) -> anyhow::Result<Vec<String>> {
        let mut packages = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = vec![self.package.to_owned()];
        while let Some(package) = next.pop() {
            if !seen.insert(package.clone()) {
                continue;
            }
            ensure!(seen.len() <= PACKAGES_MAX, "too many packages: {seen:?}");
            next.extend(parts(&self.field(&package, "Depends").unwrap_or_default()));
            if package.contains(|letter: char| letter.is_ascii_digit()) && package != self.package {
                packages.push(package);
            }
        }
        ensure!(
            !packages.is_empty(),
            "{} depends on no kernel",
            self.package
        );
        packages.sort();
        Ok(packages)
    }

    /// A field of the newest version of a package.
    fn field(&self, package: &str, name: &str) -> anyhow::Result<String> {
        let mut show = self.command("apt-cache");
        let text = run(show.args(["--no-all-versions", "show", package]), "")?;
        let line = text.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            (key == name).then_some(value)
        });
        Ok(line
            .with_context(|| format!("{package} has no field {name}"))?
            .to_owned())
    }

    fn unpack(&self, packages: &[String], cache: &Path, folder: &Path) -> anyhow::Result<()> {
        let work = tempfile::Builder::new().prefix("new.").tempdir_in(cache)?;
        let downloads = work.path().join("packages");
        let root = work.path().join("root");
        std::fs::create_dir_all(&downloads)?;
        let mut download = self.command("apt-get");
        download
            .arg("download")
            .args(packages)
            .current_dir(&downloads);
        run(&mut download, "").context("downloading a kernel")?;
        for entry in std::fs::read_dir(&downloads)? {
            let mut unpack = Command::new("dpkg-deb");
            run(unpack.arg("-x").arg(entry?.path()).arg(&root), "")?;
        }
        // Merged /usr: some packages of one kernel have their files below /usr/lib, others below /lib.
        if root.join("usr/lib/modules").is_dir() {
            std::fs::create_dir_all(root.join("lib/modules"))?;
            let mut copy = Command::new("cp");
            copy.args(["-a", "usr/lib/modules", "lib/"])
                .current_dir(&root);
            run(&mut copy, "")?;
        }
        let mut releases = std::fs::read_dir(root.join("lib/modules"))?;
        let release = releases.next().context("packages without modules")??;
        remove_hardware(&release.path())?;
        let mut depmod = Command::new("depmod");
        run(depmod.arg("-b").arg(&root).arg(release.file_name()), "")?;
        for old in std::fs::read_dir(cache)?.filter_map(Result::ok) {
            if Kernel::in_folder(&old.path()).is_ok() {
                std::fs::remove_dir_all(old.path())?;
            }
        }
        // It appears whole. Another run may have been faster.
        if let Err(error) = std::fs::rename(&root, folder)
            && !folder.exists()
        {
            bail!("{error}");
        }
        Ok(())
    }
}

/// Packages of a kernel in a list of dependencies.
fn parts(depends: &str) -> Vec<String> {
    let names = depends
        .split(',')
        .filter_map(|one| one.split_whitespace().next());
    let is_part = |name: &&str| PARTS.iter().any(|part| name.starts_with(part));
    names.filter(is_part).map(str::to_owned).collect()
}

/// Removes modules for hardware that an emulated machine does not have.
fn remove_hardware(modules: &Path) -> anyhow::Result<()> {
    let kernel = modules.join("kernel");
    let _ = std::fs::remove_dir_all(kernel.join("sound"));
    for entry in std::fs::read_dir(kernel.join("drivers"))? {
        let entry = entry?;
        if !DRIVERS.iter().any(|name| entry.file_name() == *name) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    for card in ["ethernet", "wireless"] {
        let _ = std::fs::remove_dir_all(kernel.join("drivers/net").join(card));
    }
    Ok(())
}

#[cfg(test)]
mod of_dependencies {
    use super::*;

    #[test]
    fn image_and_modules_are_found_and_what_only_an_installation_needs_is_not() {
        let depends = "dracut | initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool, linux-base-7.3.4+deb13-amd64 \
                       (= 7.3.4-1), linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1)";
        let found = [
            "linux-base-7.3.4+deb13-amd64",
            "linux-binary-7.3.4+deb13-amd64",
            "linux-modules-7.3.4+deb13-amd64",
        ];
        assert_eq!(parts(depends), found);
        assert_eq!(
            parts("linux-image-6.1.0-57-amd64 (= 6.1.192-3)"),
            ["linux-image-6.1.0-57-amd64"]
        );
        assert!(parts("kmod, linux-base (>= 4.3~)").is_empty());
    }
}
