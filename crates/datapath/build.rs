//! Compiles the eBPF programs of `bpf/` and writes objects and hashes for `src/gateway/programs.rs` and
//! `src/uplink/programs.rs`.

use std::error::Error;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?)
        .join("../../bpf")
        .canonicalize()?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", root.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CLANG");
    for directory in [root.clone(), root.join("include")] {
        for entry in std::fs::read_dir(directory)? {
            println!("cargo:rerun-if-changed={}", entry?.path().display());
        }
    }
    for name in ["gateway", "uplink"] {
        let object = out.join(format!("{name}.bpf.o"));
        compile(&root, &format!("{name}.bpf.c"), &object)?;
        let hash = fnv1a(&std::fs::read(&object)?);
        let variable = format!("EGRET_{}_OBJECT_HASH", name.to_uppercase());
        println!("cargo:rustc-env={variable}={hash}");
    }
    Ok(())
}

fn compile(root: &Path, source: &str, object: &Path) -> Result<(), Box<dyn Error>> {
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let output = Command::new(&clang)
        .current_dir(root)
        .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"])
        // Debian has asm/types.h in the directory of the architecture
        .arg(format!("-I/usr/include/{architecture}-linux-gnu"))
        // the same source gives the same object, and so the same hash, in any build directory
        .arg(format!("-ffile-prefix-map={}=.", root.display()))
        .args(["-fdebug-compilation-dir", ".", "-c", source, "-o"])
        .arg(object)
        .output();
    let output = match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(format!(
                "`{clang}` is missing, which compiles bpf/{source}: run ./dev setup"
            )
            .into());
        }
        other => other?,
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let hint = if text.contains("bpf_helpers.h") || text.contains("file not found") {
            "\nheaders of libbpf or of the kernel are missing: run ./dev setup"
        } else {
            ""
        };
        return Err(format!("bpf/{source} does not compile:\n{text}{hint}").into());
    }
    Ok(())
}

/// 64-bit FNV-1a, which identifies an object; never 0 for a real one.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
