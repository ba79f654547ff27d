//! The driver `classic`, as `egret kube-egress` runs it: a lab without agents and controller.

use crate::chaos::{wait, without_memory};
use crate::cluster::ip;
use crate::watch::wait_source;
use crate::{Cluster, Outcome, egret};
use egret_lab::{Snapshot, Topology};
use std::collections::BTreeMap;
use std::process::Stdio;

/// Nodes that run it.
pub const NODES: [&str; 3] = ["worker1", "worker2", "worker3"];
/// Directory of a node with the numbers of egress addresses.
pub const VIPS: &str = "/run/vips";
/// Directory of a node with the egress addresses of pods.
pub const PODS: &str = "/run/pods";
/// Arguments: mappings, until it is ended. A test's changes take effect at once, or not before the test's end.
pub const FLAGS: &[&str] = &[
    "--pod-subnet",
    "10.244.0.0/16,fd00:244::/32",
    "--update-interval",
    "3600",
    "--vip-routeid-mappings",
    VIPS,
    "--podip-vip-mappings",
    PODS,
];

/// The built-in lab with a masquerading CNI on every worker, and the initial snapshot of each.
pub struct Classic {
    /// The lab.
    pub cluster: Cluster,
    before: BTreeMap<&'static str, Snapshot>,
}

impl Classic {
    /// Brings it up; nothing of Egret runs.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up(test: &str) -> anyhow::Result<Self> {
        let cluster = Cluster::without_agents(test, &Topology::built_in())?;
        let mut before = BTreeMap::new();
        for node in NODES {
            // Learned neighbours, and objects that the kernel makes at the first packet, exist from the start.
            before.insert(node, without_memory(Snapshot::take(&cluster.host(node)?)?));
        }
        Ok(Self { cluster, before })
    }

    /// Runs a shell line in a host and returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&self, host: &str, line: &str) -> anyhow::Result<String> {
        self.cluster
            .exec(&self.cluster.host(host)?, &["sh", "-c", line])
    }

    /// Writes the two mappings of a node, with an invalid entry among them: numbers of addresses, and pods with their
    /// egress addresses of the same family.
    ///
    /// # Errors
    /// There is no such node or pod.
    pub fn map(&self, node: &str, numbers: &[(&str, u8)], pods: &[(&str, &str)]) -> Outcome {
        let numbers = numbers.iter().map(|(vip, id)| (*vip, id.to_string()));
        let numbers: Vec<_> = numbers.collect();
        let mut entries = vec![("rubbish".to_owned(), "rubbish".to_owned())];
        for (pod, egress) in pods {
            let address = self.cluster.pod_address(pod, ip(egress))?.to_string();
            entries.push((address, (*egress).to_owned()));
        }
        self.mount(node, VIPS, &numbers)?;
        self.mount(node, PODS, &entries)
    }

    /// Lays a directory out like a mounted ConfigMap with these keys and values: links into a folder that is replaced
    /// atomically.
    ///
    /// # Errors
    /// There is no such node.
    pub fn mount<K: AsRef<str>>(
        &self,
        node: &str,
        directory: &str,
        entries: &[(K, String)],
    ) -> Outcome {
        let mut line =
            format!("set -e; mkdir -p {directory}; cd {directory}; new=$(mktemp -d ..XXXXXX)\n");
        for (key, value) in entries {
            let key = key.as_ref().replace(':', "-");
            line += &format!("printf '%s\\n' '{value}' > $new/{key}\n");
        }
        line += "old=$(readlink ..data || true); ln -s $new ..data_tmp; mv -T ..data_tmp ..data
            for file in $new/*; do
                name=${file##*/}; if [ -e $file ]; then ln -sf ..data/$name $name; fi
            done
            for name in *; do if [ ! -e $name ]; then rm -f $name; fi; done
            if [ -n \"$old\" ]; then rm -r $old; fi";
        self.shell(node, &line).map(drop)
    }

    /// Log of `egret kube-egress` on a node so far.
    ///
    /// # Errors
    /// It was not started there.
    pub fn log(&self, node: &str) -> anyhow::Result<String> {
        let log = self.cluster.lab().dir().log();
        Ok(std::fs::read_to_string(
            log.join(format!("classic-{node}.log")),
        )?)
    }

    /// Starts `egret kube-egress` on a node.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, node: &str, flags: &[&str]) -> Outcome {
        let lab = self.cluster.lab();
        let log = lab.dir().log().join(format!("classic-{node}.log"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let mut command = lab.exec(&self.cluster.host(node)?, egret()?)?;
        command.arg("kube-egress").args(flags);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.spawn()?;
        Ok(())
    }

    /// Ends it with a signal and waits until it has ended. Only processes in that host are searched.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&self, node: &str, signal: &str) -> Outcome {
        self.shell(node, &format!("pkill -{signal} -x egret"))?;
        wait(&format!("egret on {node} to end"), || {
            self.shell(node, "pgrep -x egret || true")
                .is_ok_and(|pids| pids.trim().is_empty())
        })
    }

    /// Waits until a server sees this source address for a pod.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_source(&self, pod: &str, server: &str, source: &str) -> Outcome {
        wait_source(&self.cluster.pod(pod)?, ip(server), ip(source))
    }

    /// Differences of a node to its initial snapshot.
    ///
    /// # Errors
    /// There is no such node.
    pub fn left(&self, node: &str) -> anyhow::Result<Vec<String>> {
        let after = without_memory(Snapshot::take(&self.cluster.host(node)?)?);
        Ok(self.before[node].diff(&after))
    }
}
