//! The archive with which an emulated kernel starts: busybox, the modules for this machine's file system, `init` and
//! `guest`. Format: "newc" of cpio (kernel: Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed.

use super::Kernel;
use anyhow::{Context, ensure};
use egret_lab::process::run;
use std::path::Path;
use std::process::Command;

/// A static busybox: package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// What the file system of this machine needs: 9p over virtio, and the overlay.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const FOLDERS: [&str; 9] = [
    "bin", "dev", "lower", "modules", "new", "proc", "sys", "upper", "root",
];
const MODE_FOLDER: u32 = 0o040_755;
const MODE_PROGRAM: u32 = 0o100_755;

/// The archive for a kernel.
///
/// # Errors
/// busybox or a module is missing.
pub(super) fn archive(kernel: &Kernel) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.add(folder, MODE_FOLDER, &[]);
    }
    let busybox = std::fs::read(BUSYBOX)
        .with_context(|| format!("reading {BUSYBOX}: install busybox-static"))?;
    archive.add("bin/busybox", MODE_PROGRAM, &busybox);
    archive.add("init", MODE_PROGRAM, include_bytes!("init"));
    archive.add("guest", MODE_PROGRAM, include_bytes!("guest"));
    for (number, path) in needed(kernel)?.iter().enumerate() {
        // busybox inserts in the order of names.
        archive.add(
            &format!("modules/{number:02}.ko"),
            MODE_PROGRAM,
            &module(path)?,
        );
    }
    Ok(archive.end())
}

/// Files of the modules, in the order in which they are to be loaded.
fn needed(kernel: &Kernel) -> anyhow::Result<Vec<String>> {
    let mut modprobe = Command::new("modprobe");
    modprobe.arg("-d").arg(kernel.root());
    modprobe.args(["-S", &kernel.release, "--show-depends", "-a"]);
    let text = run(modprobe.args(MODULES), "").context("asking modprobe (package kmod)")?;
    let mut files: Vec<String> = Vec::new();
    // "builtin NAME", or "insmod PATH".
    for path in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
        let path = path.trim().to_owned();
        if !files.contains(&path) {
            files.push(path);
        }
    }
    Ok(files)
}

/// A module, decompressed: busybox cannot.
fn module(path: &str) -> anyhow::Result<Vec<u8>> {
    let mut command = match Path::new(path).extension().and_then(|one| one.to_str()) {
        Some("xz") => Command::new("xz"),
        Some("zst") => Command::new("zstd"),
        _ => return std::fs::read(path).with_context(|| format!("reading {path}")),
    };
    let output = command.args(["-d", "-c", "-q", path]).output();
    let output =
        output.with_context(|| format!("decompressing {path} (package xz-utils or zstd)"))?;
    ensure!(output.status.success(), "{path} cannot be decompressed");
    Ok(output.stdout)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(data.len()).expect("files are far smaller than 4 GB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod of_the_format {
    use super::*;

    #[test]
    fn an_archive_has_a_header_name_and_padded_data_for_each_file() {
        let mut archive = Archive::default();
        archive.add("a", MODE_PROGRAM, b"12345");
        let bytes = archive.end();
        // 110 bytes of header, "a\0", and 5 bytes padded to 8.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..120], b"12345\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert!(bytes.len().is_multiple_of(4));
    }
}
