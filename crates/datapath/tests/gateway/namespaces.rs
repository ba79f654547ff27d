//! Network namespaces made by threads of the test: they end with the test, also when it fails.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Timeout of every wait in a test: far more than needed, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace that lives as long as this value.
pub struct Net {
    file: File,
}

impl Net {
    /// Creates one, loopback up, without duplicate address detection.
    pub fn new() -> Self {
        let make = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests run as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let net = Self {
            file: std::thread::spawn(make).join().unwrap(),
        };
        net.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
        net.ip("link set lo up");
        net
    }

    /// Runs `work` in this namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            nix::sched::setns(&self.file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match std::thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `ip` with these arguments.
    pub fn ip(&self, arguments: &str) {
        self.run(|| command(&format!("ip {arguments}")));
    }

    /// Writes a file of /proc/sys/net.
    pub fn write(&self, path: &str, text: &str) {
        self.run(|| std::fs::write(path, text).unwrap());
    }

    /// Path of the namespace, for `ip link .. netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// Runs a command that must succeed.
pub fn command(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A BPF file system of this thread's own, in a mount namespace that ends with the thread.
pub fn own_bpffs() -> PathBuf {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("tests run as root");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::create_dir("/mnt/bpf").unwrap();
    mount(Some("bpf"), "/mnt/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
    PathBuf::from("/mnt/bpf/egret")
}

/// Waits until `done` returns a value.
pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::yield_now();
    }
}
