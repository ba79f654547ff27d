//! A stand-in for network plugins whose pods' packets bypass the host stack: see `tests/standin/bypass.bpf.c`.

use anyhow::{Context, ensure};
use egret_lab::Lab;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/standin/bypass.bpf.c");

/// The compiled programs, in a folder that hosts can access and that is removed with the value.
pub struct Standin {
    folder: PathBuf,
}

impl Drop for Standin {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

impl Standin {
    /// Compiles the programs.
    ///
    /// # Errors
    /// clang is missing, or rejects them.
    pub fn compile(test: &str) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("egret-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let standin = Self { folder };
        let output = Command::new("clang")
            .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"])
            // Debian has asm/types.h in the directory of the architecture.
            .arg(format!(
                "-I/usr/include/{}-linux-gnu",
                std::env::consts::ARCH
            ))
            .args(["-c", SOURCE, "-o"])
            .arg(standin.object())
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "clang: {errors}");
        Ok(standin)
    }

    fn object(&self) -> PathBuf {
        self.folder.join("bypass.o")
    }

    /// Lets the packets of all pods of a host, and those towards them, bypass its stack. The router gets the route.
    ///
    /// # Errors
    /// `tc` rejects a command.
    pub fn take_over(&self, lab: &Lab, host: &str) -> anyhow::Result<()> {
        let layout = lab.layout()?;
        let found = layout.host(host).context("no such host")?;
        for pod in &found.pods {
            self.filter(lab, host, &pod.device, "from_pod")?;
        }
        for link in &found.links {
            self.filter(lab, host, &link.device, "to_pod")?;
        }
        // Nothing is translated, so the network outside needs routes to the pods.
        for prefix in &found.pod_cidrs {
            let mut vias = found.node_addresses();
            let via = vias.find(|via| via.is_ipv4() == prefix.addr().is_ipv4());
            let via = via.context("no node address of this family")?;
            let (prefix, via) = (prefix.to_string(), via.to_string());
            let words = ["ip", "route", "replace", &prefix, "via", &via];
            exec(lab, "router", &words)?;
        }
        Ok(())
    }

    /// Attaches one of the programs at the ingress of a device.
    ///
    /// # Errors
    /// `tc` rejects it.
    pub fn filter(&self, lab: &Lab, host: &str, device: &str, program: &str) -> anyhow::Result<()> {
        // Egret has it already where its programs are filters.
        let _exists = exec(lab, host, &["tc", "qdisc", "add", "dev", device, "clsact"]);
        let object = self.object();
        let words = ["tc", "filter", "add", "dev", device, "ingress", "prio", "9"];
        let program = [
            "bpf",
            "direct-action",
            "obj",
            &object.to_string_lossy(),
            "sec",
            program,
        ];
        exec(lab, host, &[&words[..], &program[..]].concat())
    }

    /// Attaches an XDP program to a device.
    ///
    /// # Errors
    /// `ip` rejects it.
    pub fn express(&self, lab: &Lab, host: &str, device: &str) -> anyhow::Result<()> {
        let object = self.object();
        let words = ["ip", "link", "set", "dev", device, "xdpgeneric", "obj"];
        let program = [&*object.to_string_lossy(), "sec", "xdp"];
        exec(lab, host, &[&words[..], &program[..]].concat())
    }
}

fn exec(lab: &Lab, host: &str, words: &[&str]) -> anyhow::Result<()> {
    let (program, arguments) = words.split_first().context("a program")?;
    let place = lab.place(host)?;
    let output = lab.exec(&place, program)?.args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {errors}");
    Ok(())
}
