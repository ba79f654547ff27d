//! keepalived on nodes of a lab: VRRP over multicast between hosts, as an operator runs it to move addresses.

use crate::chaos::wait;
use crate::{Cluster, Outcome};
use anyhow::{Context, ensure};
use egret_lab::process::Process;
use nix::sys::signal::Signal;
use std::process::{Child, Stdio};

/// One address that moves: its number (1 to 255, unique in the segment), and the nodes in the order of preference.
pub struct Virtual<'a> {
    /// IPv4 address, without prefix length.
    pub address: &'a str,
    /// Virtual router id.
    pub router: u8,
    /// Nodes in the order of preference.
    pub nodes: &'a [&'a str],
}

/// keepalived on one node. Ends with the value.
pub struct Keepalived {
    launcher: Child,
    process: Process,
}

impl Keepalived {
    /// Starts it on a node with the addresses that have the node in their lists.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(cluster: &Cluster, node: &str, all: &[Virtual<'_>]) -> anyhow::Result<Self> {
        let place = cluster.host(node)?;
        let path = "/run/keepalived.conf";
        let text = configuration(node, all);
        cluster.exec(
            &place,
            &["sh", "-c", &format!("cat >{path} <<'END'\n{text}END\n")],
        )?;
        let log = cluster.lab().dir().log();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log.join(format!("keepalived-{node}.log")))?;
        let mut command = cluster.lab().exec(&place, "keepalived")?;
        // In the foreground, with its log here, VRRP only: no IPVS.
        command.args(["-n", "-l", "-D", "-P", "-f", path]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let launcher = command.spawn().context("starting nsenter")?;
        let started = Process::of(i32::try_from(launcher.id())?);
        let process = started
            .context("the launcher runs")?
            .first_child("keepalived")?;
        Ok(Self { launcher, process })
    }

    /// Ends it in order: it releases its addresses and notifies the others.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Outcome {
        self.process.signal(Signal::SIGTERM);
        wait("keepalived to end", || {
            matches!(self.launcher.try_wait(), Ok(Some(_)))
        })
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        // It releases addresses first. A process that does not end is killed with the lab.
        let _ = wait("keepalived to end", || {
            matches!(self.launcher.try_wait(), Ok(Some(_)))
        });
    }
}

fn configuration(node: &str, all: &[Virtual<'_>]) -> String {
    let mut text = format!("global_defs {{\n router_id {node}\n vrrp_version 3\n}}\n");
    for one in all {
        let Some(place) = one.nodes.iter().position(|name| *name == node) else {
            continue;
        };
        // 250, 240, ...: no two nodes have the same priority.
        let priority = 250 - 10 * place;
        text += &format!(
            "vrrp_instance v{0} {{\n state BACKUP\n interface eth0\n virtual_router_id {0}\n \
             priority {priority}\n advert_int 0.5\n virtual_ipaddress {{\n  {1}/32 dev eth0\n }}\n}}\n",
            one.router, one.address
        );
    }
    text
}

/// The node whose kernel has the address; `None` if none or more than one has it.
///
/// # Errors
/// A host cannot be queried.
pub fn holder<'a>(
    cluster: &Cluster,
    address: &str,
    nodes: &[&'a str],
) -> anyhow::Result<Option<&'a str>> {
    let mut found = Vec::new();
    for node in nodes {
        let words = ["ip", "-o", "address", "show", "to", address];
        if !cluster.exec(&cluster.host(node)?, &words)?.is_empty() {
            found.push(*node);
        }
    }
    Ok(match found.as_slice() {
        [one] => Some(*one),
        _ => None,
    })
}

/// Waits until this node alone has the address.
///
/// # Errors
/// It has not in time.
pub fn wait_holder(cluster: &Cluster, address: &str, wanted: &str, nodes: &[&str]) -> Outcome {
    ensure!(nodes.contains(&wanted), "{wanted} is none of {nodes:?}");
    wait(
        &format!("{wanted} to have {address}"),
        || matches!(holder(cluster, address, nodes), Ok(Some(node)) if node == wanted),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_instances_that_name_it() {
        let all = [
            Virtual {
                address: "192.0.2.1",
                router: 51,
                nodes: &["a", "b"],
            },
            Virtual {
                address: "192.0.2.2",
                router: 52,
                nodes: &["a"],
            },
        ];
        let text = configuration("b", &all);
        assert!(text.contains("vrrp_instance v51 {") && text.contains("priority 240"));
        assert!(!text.contains("v52"), "{text}");
    }
}
