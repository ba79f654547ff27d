//! Reads possible obstacles for our packets: firewalls of all owners, settings, policy routing. `egret_core::obstacle`
//! decides which of them are obstacles. Uses netlink and, for the old ip_tables, socket options; starts no program and
//! changes nothing.

mod expressions;
mod legacy;
pub(crate) mod nft;
mod settings;
mod xtables;

pub use settings::read as read_settings;

use egret_core::numbers::{FIREWALL_RULES_MAX, OBSTACLES_AGAIN_SECS, OBSTACLES_SECS};
use egret_core::obstacle::firewall::{Action, Rule};
use egret_core::obstacle::{Obstacle, Samples, Table, of_firewalls};
use egret_kernel::netlink::{NetlinkError, NetlinkSocket};
use std::time::{Duration, Instant};

/// Reader of all owners' firewalls, which limits how often it reads them.
pub struct Lookout {
    socket: NetlinkSocket,
    last: Option<Looked>,
}

struct Looked {
    at: Instant,
    state: State,
    samples: Samples,
    found: Vec<Obstacle>,
}

/// Cheap indicators of a firewall's change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    generation: u32,
    old: legacy::Sizes,
}

impl Lookout {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// Permission denied.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Lookout {
            socket: NetlinkSocket::open(libc::NETLINK_NETFILTER)?,
            last: None,
        })
    }

    /// Firewall rules that refuse these packets. While nothing changes, a call costs a few small messages, and
    /// everything is read again every `OBSTACLES_SECS` seconds; with constant changes, every `OBSTACLES_AGAIN_SECS`
    /// seconds.
    ///
    /// # Errors
    /// nftables cannot be read.
    pub fn look(&mut self, samples: &Samples) -> Result<&[Obstacle], NetlinkError> {
        const AGAIN: Duration = Duration::from_secs(OBSTACLES_AGAIN_SECS);
        const ANYWAY: Duration = Duration::from_secs(OBSTACLES_SECS);
        if let Some(last) = &self.last {
            let age = last.at.elapsed();
            let same_families = last.samples.families() == samples.families();
            if same_families && age < AGAIN {
                return Ok(&self.last.as_ref().expect("just seen").found);
            }
        }
        let state = State {
            generation: nft::generation(&mut self.socket)?,
            old: legacy::sizes(),
        };
        let is_news = |last: &Looked| {
            last.state != state || last.samples != *samples || last.at.elapsed() >= ANYWAY
        };
        if self.last.as_ref().is_none_or(is_news) {
            let found = self.read(samples)?;
            self.last = Some(Looked {
                at: Instant::now(),
                state,
                samples: samples.clone(),
                found,
            });
        }
        Ok(&self.last.as_ref().expect("just set").found)
    }

    /// Reads only the chains that the packets pass.
    fn read(&mut self, samples: &Samples) -> Result<Vec<Obstacle>, NetlinkError> {
        let of_nft = nft::tables(&mut self.socket)?;
        let families: Vec<u8> = of_nft.iter().map(|(family, _)| *family).collect();
        let mut tables: Vec<Table> = of_nft.into_iter().map(|(_, table)| table).collect();
        tables.extend(legacy::tables());
        let mut read = 0;
        loop {
            let unread = match of_firewalls(&tables, samples) {
                Ok(found) => return Ok(found),
                Err(unread) => unread,
            };
            let table = &mut tables[unread.table];
            let rules = match families.get(unread.table) {
                Some(family) if read < FIREWALL_RULES_MAX => {
                    nft::rules(&mut self.socket, *family, &table.name, &unread.chain)?
                }
                // Too large, or absent: the chain may do anything.
                _ => Vec::new(),
            };
            let is_unknown = read >= FIREWALL_RULES_MAX || families.len() <= unread.table;
            read += rules.len();
            let mut rules: Vec<Rule> = rules.into_iter().map(|found| found.rule).collect();
            if is_unknown {
                rules.push(Rule {
                    conditions: Vec::new(),
                    action: Action::Other("unread".into()),
                    handle: 0,
                });
            }
            table.chains.insert(unread.chain, rules);
        }
    }
}
