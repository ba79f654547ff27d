//! Reads a node's kernel in the form of `core::earlier`, and carries out the removals that it names.
//!
//! Netlink and, for the old ip_tables, the socket options that `iptables-legacy` uses; no program is started. IPv4 only,
//! as the earlier systems are.

mod expressions;
mod extension;
mod iptables;
mod old_tables;
mod rtnetlink;
mod sets;

use egret_core::earlier::{Action, Backend, Node};
use egret_kernel::netlink::{NetlinkError, NetlinkSocket, Request};
use old_tables::{OldTable, OldTableError};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Attempts at a dump that others' changes interrupt.
const TRIES: usize = 10;

/// Error of reading or changing a kernel.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The kernel refused a netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Error of tables of the old ip_tables.
    #[error(transparent)]
    OldTable(#[from] OldTableError),
    /// Foreign rules or lists refer to a set.
    #[error("the set {0} is still in use by something else")]
    SetInUse(String),
    /// The device no longer has this name.
    #[error("device {0} is not there any more")]
    Device(String),
}

/// The kernel of the calling thread's network namespace.
pub struct Kernel {
    route: NetlinkSocket,
    netfilter: NetlinkSocket,
    /// Tables of the old ip_tables as last read.
    old: BTreeMap<String, OldTable>,
    lock: PathBuf,
}

impl Kernel {
    /// Opens the sockets. `lock` is the lock file of programs that write old tables, usually `/run/xtables.lock`.
    ///
    /// # Errors
    /// Permission denied.
    pub fn open(lock: PathBuf) -> Result<Self, LegacyError> {
        Ok(Kernel {
            route: NetlinkSocket::open(libc::NETLINK_ROUTE)?,
            netfilter: NetlinkSocket::open(libc::NETLINK_NETFILTER)?,
            old: BTreeMap::new(),
            lock,
        })
    }

    /// Reads everything of the kernel, and returns also what cannot be read, as text for people.
    ///
    /// # Errors
    /// Links, addresses, routes, rules or nftables cannot be read.
    pub fn read(&mut self) -> Result<(Node, Vec<String>), LegacyError> {
        let mut unseen = Vec::new();
        let mut node = Node::default();
        rtnetlink::read(&mut self.route, &mut node)?;
        let names = sets::read(&mut self.netfilter, &mut node, &mut unseen)?;
        iptables::read(&mut self.netfilter, &names, &mut node)?;
        self.old = match old_tables::read_all() {
            Ok(tables) => tables,
            Err(error) => {
                unseen.push(format!("tables of iptables-legacy: {error}"));
                BTreeMap::new()
            }
        };
        for (name, table) in &self.old {
            table.describe(name, &names, &mut node);
        }
        Ok((node, unseen))
    }

    /// Carries out the actions on the kernel, in order; returns each failed one with its error. An object that is
    /// already gone is no failure. Actions on files are skipped.
    pub fn remove(&mut self, actions: &[&Action]) -> Vec<(Action, LegacyError)> {
        let mut actions = actions.to_vec();
        actions.sort();
        let mut failed = Vec::new();
        let of_tables = |one: &&Action| matches!(one, Action::Rule(..) | Action::Chain(..));
        let (tables, rest): (Vec<&Action>, Vec<&Action>) = actions.into_iter().partition(of_tables);
        for backend in [Backend::Nft, Backend::Legacy] {
            let theirs = |one: &&&Action| matches!(one, Action::Rule(of, ..) | Action::Chain(of, ..) if *of == backend);
            let of_backend: Vec<&Action> = tables.iter().filter(theirs).copied().collect();
            let result = match backend {
                Backend::Nft => iptables::remove(&mut self.netfilter, &of_backend),
                Backend::Legacy => self.remove_old(&of_backend),
            };
            if let (Err(error), Some(first)) = (result, of_backend.first()) {
                failed.push(((*first).clone(), error));
            }
        }
        for action in rest {
            if let Err(error) = self.one(action) {
                failed.push((action.clone(), error));
            }
        }
        failed
    }

    fn remove_old(&mut self, actions: &[&Action]) -> Result<(), LegacyError> {
        if actions.is_empty() {
            return Ok(());
        }
        let _lock = old_tables::lock(&self.lock)?;
        for (name, table) in &self.old {
            table.remove(name, actions)?;
        }
        Ok(())
    }

    fn one(&mut self, action: &Action) -> Result<(), LegacyError> {
        let (kind, body, what) = match action {
            Action::Set(name) => return sets::destroy(&mut self.netfilter, name),
            Action::RoutingRule(raw) => (rtnetlink::RTM_DELRULE, raw.clone(), "a routing rule"),
            Action::Route(raw) => (rtnetlink::RTM_DELROUTE, raw.clone(), "a route"),
            Action::Address(raw) => (rtnetlink::RTM_DELADDR, raw.clone(), "an address"),
            Action::Device(index, name) => {
                let body = rtnetlink::deletion_of_device(&mut self.route, *index, name)?;
                (rtnetlink::RTM_DELLINK, body, "a device")
            }
            _ => return Ok(()),
        };
        let request = Request {
            kind,
            flags: 0,
            body,
            what: format!("deletion of {what}"),
        };
        absent_is_fine(self.route.execute(&request))
    }
}

fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), LegacyError> {
    const ABSENT: [i32; 4] = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL];
    match result {
        Err(error) if error.errno().is_some_and(|errno| ABSENT.contains(&errno)) => Ok(()),
        result => Ok(result?),
    }
}

/// Dumps, again when others' changes interrupt the dump.
fn dump(
    socket: &mut NetlinkSocket,
    request: &Request,
) -> Result<Vec<egret_kernel::netlink::Reply>, NetlinkError> {
    for _ in 1..TRIES {
        match socket.dump(request) {
            Err(NetlinkError::Interrupted) => {}
            result => return result,
        }
    }
    socket.dump(request)
}

/// Parses a number in host byte order at the start of these bytes.
pub(crate) fn host_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
