//! An emulated machine. Its first serial port is the kernel's console, a file; its second one takes commands and
//! returns what they print.

use super::{Kernel, initramfs};
use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";
/// Memory of the machine, MB. The overlay's changes are in it.
const MEMORY_MB: u32 = 4096;
/// Longest time from power on to the first command; ten seconds are usual.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 30;
/// Lines of a command's output that stay.
const OUTPUT_LINES_MAX: usize = 100_000;
/// What the console shows when the kernel itself found a fault.
const FAULTS: [&str; 5] = [
    "Oops",
    "BUG:",
    "Kernel panic",
    "general protection",
    "WARNING:",
];

/// A machine that is up. Its power is cut with the value.
pub struct Machine {
    /// The kernel that it runs.
    pub kernel: Kernel,
    /// Time from power on to the first command.
    pub booted_after: Duration,
    process: Child,
    port: RefCell<Port>,
    folder: tempfile::TempDir,
}

struct Port {
    input: ChildStdin,
    lines: Receiver<String>,
}

/// What a command printed on both outputs, and its exit code.
#[derive(Debug, Clone)]
pub struct Output {
    /// Lines without their ends.
    pub lines: Vec<String>,
    /// Exit code.
    pub status: i32,
}

impl Machine {
    /// Boots a kernel.
    ///
    /// # Errors
    /// QEMU is missing, or the kernel does not come up in time; the error shows its last lines.
    pub fn boot(kernel: Kernel) -> anyhow::Result<Self> {
        let started = Instant::now();
        let folder = tempfile::Builder::new().prefix("egret-kernel.").tempdir()?;
        let archive = folder.path().join("initramfs");
        std::fs::write(&archive, initramfs::archive(&kernel)?)?;
        let mut process = qemu(&kernel, &folder)
            .spawn()
            .with_context(|| format!("starting {QEMU}: install qemu-system-x86"))?;
        let input = process.stdin.take().context("its input")?;
        let output = process.stdout.take().context("its output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            // Programs may print anything.
            while output
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                let text = String::from_utf8_lossy(&line);
                let is_wanted = sender.send(text.trim_end().to_owned()).is_ok();
                line.clear();
                if !is_wanted {
                    return;
                }
            }
        });
        let mut machine = Self {
            kernel,
            booted_after: Duration::ZERO,
            process,
            port: RefCell::new(Port { input, lines }),
            folder,
        };
        machine.wait("it to boot", "::ready", BOOT_LIMIT)?;
        machine.booted_after = started.elapsed();
        Ok(machine)
    }

    /// Runs a line of shell as root and waits until it ends.
    ///
    /// # Errors
    /// The machine ended, the command took longer than `limit`, or the kernel reported a fault of its own.
    pub fn run(&self, line: &str, limit: Duration) -> anyhow::Result<Output> {
        let faults = self.faults();
        let mut port = self.port.borrow_mut();
        let sent = writeln!(port.input, "{}", line.replace('\n', " "));
        drop(port);
        sent.with_context(|| format!("the machine does not listen{}", self.console()))?;
        let (status, lines) = self.wait(line, "::status ", limit)?;
        if self.faults() > faults {
            bail!("{line}: the kernel reports a fault{}", self.console());
        }
        let status = status.trim().parse().context("an exit code")?;
        Ok(Output { lines, status })
    }

    /// Waits for a line with this prefix, and returns the rest of it and the lines before.
    fn wait(
        &self,
        what: &str,
        prefix: &str,
        limit: Duration,
    ) -> anyhow::Result<(String, Vec<String>)> {
        let deadline = Instant::now() + limit;
        let port = self.port.borrow();
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match port.lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix(prefix) {
                    Some(rest) => return Ok((rest.to_owned(), lines)),
                    None if lines.len() < OUTPUT_LINES_MAX => lines.push(line),
                    None => {}
                },
                Err(why) => {
                    let why = match why {
                        RecvTimeoutError::Timeout => format!("{what}: no end within {limit:?}"),
                        RecvTimeoutError::Disconnected => format!("{what}: the machine ended"),
                    };
                    let last = lines.len().saturating_sub(CONSOLE_LINES);
                    bail!(
                        "{why}; its last lines:\n{}{}",
                        lines[last..].join("\n"),
                        self.console()
                    );
                }
            }
        }
    }

    fn console_text(&self) -> String {
        let bytes = std::fs::read(console(&self.folder)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The console's last lines, for an error.
    fn console(&self) -> String {
        let text = self.console_text();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let last = lines.len().saturating_sub(CONSOLE_LINES);
        format!(
            "\nconsole of Linux {}:\n{}",
            self.kernel.release,
            lines[last..].join("\n")
        )
    }

    /// Number of faults that the kernel reported.
    fn faults(&self) -> usize {
        let text = self.console_text();
        let is_fault = |line: &&str| FAULTS.iter().any(|fault| line.contains(fault));
        text.lines().filter(is_fault).count()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its file system is this machine's, read-only: nothing needs to be saved.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn console(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("console")
}

fn qemu(kernel: &Kernel, folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(QEMU);
    command
        // /dev/kvm of a virtual machine may exist and not work.
        .args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"])
        .args(["-smp", "2", "-m", &MEMORY_MB.to_string()])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-serial", &format!("file:{}", console(folder).display())])
        .args(["-serial", "stdio"])
        .args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(folder.path().join("initramfs"))
        .arg("-append")
        .arg(format!(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off random.trust_cpu=on egret.modules={}",
            kernel.modules().display()
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    // The machine ends with its test, however that ends: the thread that starts it lives as long as the process.
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    command
}
