//! A stand-in for network plugins that take pods' packets past the node's stack: see `tests/standin/bypass.bpf.c`.

use crate::Cluster;
use anyhow::{Context, ensure};
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/standin/bypass.bpf.c");

/// The compiled programs, in a folder that hosts see and that goes with the value.
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
    /// There is no clang, or it refuses them.
    pub fn compile(test: &str) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("egret-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let standin = Self { folder };
        let output = Command::new("clang")
            .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"])
            // Debian keeps asm/types.h in the directory of the architecture.
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

    /// Takes the packets of all pods of a host past its stack, and those that come for them.
    ///
    /// # Errors
    /// `tc` refuses something.
    pub fn take_over(&self, cluster: &Cluster, host: &str) -> anyhow::Result<()> {
        let layout = cluster.lab().layout()?;
        let found = layout.host(host).context("no such host")?;
        for pod in &found.pods {
            self.filter(cluster, host, &pod.device, "from_pod")?;
        }
        for link in &found.links {
            self.filter(cluster, host, &link.device, "to_pod")?;
        }
        Ok(())
    }

    /// Attaches one of the programs at the ingress of a device.
    ///
    /// # Errors
    /// `tc` refuses it.
    pub fn filter(
        &self,
        cluster: &Cluster,
        host: &str,
        device: &str,
        program: &str,
    ) -> anyhow::Result<()> {
        let place = cluster.host(host)?;
        // Egret has it already where its programs are filters.
        let _exists = cluster.exec(&place, &["tc", "qdisc", "add", "dev", device, "clsact"]);
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
        cluster.exec(&place, &[&words[..], &program[..]].concat())?;
        Ok(())
    }

    /// Puts an XDP program at a device.
    ///
    /// # Errors
    /// `ip` refuses it.
    pub fn express(&self, cluster: &Cluster, host: &str, device: &str) -> anyhow::Result<()> {
        let object = self.object();
        let words = ["ip", "link", "set", "dev", device, "xdpgeneric", "obj"];
        let program = [&*object.to_string_lossy(), "sec", "xdp"];
        cluster.exec(&cluster.host(host)?, &[&words[..], &program[..]].concat())?;
        Ok(())
    }
}
