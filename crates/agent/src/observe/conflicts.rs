//! Address conflict detection of this gateway: listens on its external segment, and asks.

use crate::clock::now_secs;
use crate::error::{AgentError, chain};
use crate::threads::{Notify, spawn};
use egret_core::machines::{ConflictCommand, ConflictInputs, Conflicts};
use egret_core::model::{AddressClaim, MacAddress, NodeName, NodeRecord, Snapshot};
use egret_core::numbers::CONFLICTS_MAX;
use egret_datapath::presence::l2::conflict::{Claim, Listener, probe};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);
/// One machine's word about one address is passed on this often, so that no flood of it reaches the main loop.
const SAME_WORD: Duration = Duration::from_millis(500);
/// Words remembered for that.
const WORDS_MAX: usize = 1024;

/// Conflict detection. Without a device it knows of no conflict.
pub(crate) struct Detection {
    machine: Conflicts,
    notify: Notify<Vec<Claim>>,
    listening: Option<Listening>,
    /// The device on which nobody can listen.
    deaf: Option<u32>,
    /// What is told, and since when.
    claims: BTreeMap<IpAddr, AddressClaim>,
}

/// A thread that listens on one device until this is dropped.
struct Listening {
    ifindex: u32,
    stop: Arc<AtomicBool>,
    wanted: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the agent knows of a gateway's surroundings when it decides.
pub(crate) struct Around<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) node: &'a NodeName,
    /// Addresses that this node's kernel has.
    pub(crate) local: &'a BTreeSet<IpAddr>,
    /// Hardware address of the external device.
    pub(crate) mac: MacAddress,
    /// Addresses that this node announces.
    pub(crate) announcing: BTreeSet<IpAddr>,
}

impl Detection {
    /// `notify` takes what machines on the external segment say that they have.
    pub(crate) fn new(notify: Notify<Vec<Claim>>) -> Self {
        Detection {
            machine: Conflicts::default(),
            notify,
            listening: None,
            deaf: None,
            claims: BTreeMap::new(),
        }
    }

    /// Listens on this device.
    pub(crate) fn listen(&mut self, ifindex: u32) {
        if self
            .listening
            .as_ref()
            .is_some_and(|one| one.ifindex == ifindex)
            || self.deaf == Some(ifindex)
        {
            return;
        }
        self.listening = None;
        match start(ifindex, self.notify.clone()) {
            Ok(listening) => self.listening = Some(listening),
            Err(error) => {
                self.deaf = Some(ifindex);
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "nobody listens for other machines with egress addresses"
                );
            }
        }
    }

    /// This node is no gateway any more.
    pub(crate) fn end(&mut self) {
        self.listening = None;
        self.machine = Conflicts::default();
        self.claims.clear();
    }

    /// Decides anew. `served`: addresses that gateways answer for on the segment; `chosen`: those that this node would
    /// announce.
    pub(crate) fn update(
        &mut self,
        around: &Around<'_>,
        served: BTreeSet<IpAddr>,
        chosen: BTreeSet<IpAddr>,
        now_ms: u64,
    ) {
        let records = || around.snapshot.node_records.values();
        let of_others = |record: &&NodeRecord| record.node != *around.node;
        let mut used = around.announcing.clone();
        used.extend(records().flat_map(|record| &record.announcing));
        let mut held = around.local.clone();
        let elsewhere = records().filter(of_others);
        held.extend(elsewhere.flat_map(|r| r.external_addresses.iter().map(|net| net.addr())));
        held.retain(|address| served.contains(address));
        let mut gateways: BTreeSet<MacAddress> = records().filter_map(|r| r.external_mac).collect();
        gateways.insert(around.mac);
        if let Some(listening) = &self.listening {
            let mut wanted = listening
                .wanted
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if *wanted != served {
                wanted.clone_from(&served);
            }
        }
        let inputs = ConflictInputs {
            served,
            chosen,
            used,
            held,
            gateways,
        };
        self.machine.update(inputs, now_ms);
        self.tell(around.snapshot.node_records.get(around.node));
    }

    /// Takes up what was heard. True if there is something new to tell or decide.
    pub(crate) fn heard(&mut self, claims: &[Claim], now_ms: u64) -> bool {
        let mut news = false;
        for Claim { address, mac } in claims {
            if self.machine.heard(*address, MacAddress(*mac), now_ms) {
                let mac = MacAddress(*mac);
                tracing::warn!(%address, %mac, "a machine that is no gateway answers for an egress address");
                news = true;
            }
        }
        news
    }

    /// Conflicts as they are told. A time that was told before stays.
    fn tell(&mut self, record: Option<&NodeRecord>) {
        let conflicts = self.machine.conflicts().into_iter().take(CONFLICTS_MAX);
        let told = record.map(|record| &record.conflicts);
        let claims = conflicts.map(|(address, mac)| {
            let known = self.claims.get(&address);
            let known = known.or_else(|| told?.get(&address));
            let known = known.filter(|claim| claim.mac == mac).copied();
            let fresh = || AddressClaim {
                mac,
                since_secs: now_secs(),
            };
            (address, known.unwrap_or_else(fresh))
        });
        let claims: BTreeMap<IpAddr, AddressClaim> = claims.collect();
        for (address, claim) in &self.claims {
            if !claims.contains_key(address) {
                tracing::info!(%address, mac = %claim.mac, "the other machine no longer answers for the egress address");
            }
        }
        self.claims = claims;
    }

    /// Sends what is due. Addresses to announce once more, in defence.
    pub(crate) fn act(&mut self, ifindex: u32, mac: [u8; 6], now_ms: u64) -> Vec<IpAddr> {
        self.machine.handle_deadline(now_ms);
        let mut defended = Vec::new();
        for command in self.machine.drain() {
            match command {
                ConflictCommand::Probe(address) => {
                    if let Err(error) = probe(ifindex, mac, address) {
                        tracing::debug!(%address, error = %chain(&error), "the segment cannot be asked");
                    }
                }
                ConflictCommand::Defend(address) => defended.push(address),
            }
        }
        defended
    }

    /// Whether this node may announce the address.
    pub(crate) fn may_announce(&self, address: &IpAddr) -> bool {
        self.machine.may_announce(address)
    }

    /// Machines that have addresses which this node would announce.
    pub(crate) fn claims(&self) -> &BTreeMap<IpAddr, AddressClaim> {
        &self.claims
    }

    /// When [`Self::act`] is due.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.machine.next_deadline()
    }

    /// When [`Self::update`] is due although nothing has changed.
    pub(crate) fn decision_at(&self) -> Option<u64> {
        self.machine.decision_at()
    }
}

fn start(ifindex: u32, notify: Notify<Vec<Claim>>) -> Result<Listening, AgentError> {
    let listener = Listener::open(ifindex).map_err(|source| AgentError::Io {
        doing: "listening on the external device",
        source,
    })?;
    let listening = Listening {
        ifindex,
        stop: Arc::default(),
        wanted: Arc::default(),
    };
    let (stop, wanted) = (listening.stop.clone(), listening.wanted.clone());
    spawn("conflicts", move || {
        listen(listener, &stop, &wanted, &notify)
    })?;
    Ok(listening)
}

fn listen(
    mut listener: Listener,
    stop: &AtomicBool,
    wanted: &Mutex<BTreeSet<IpAddr>>,
    notify: &Notify<Vec<Claim>>,
) {
    let mut said: BTreeMap<Claim, Instant> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let mut claims = match listener.hear(LOOK) {
            Ok(claims) => claims,
            Err(error) => {
                // A device that is down says so once, and is heard again when it is up.
                tracing::debug!(%error, "listening on the external device");
                thread::park_timeout(LOOK);
                continue;
            }
        };
        {
            let wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|claim| wanted.contains(&claim.address));
        }
        let now = Instant::now();
        said.retain(|_, at| now.duration_since(*at) < SAME_WORD);
        claims.retain(|claim| {
            let is_new = !said.contains_key(claim) && said.len() < WORDS_MAX;
            if is_new {
                said.insert(*claim, now);
            }
            is_new
        });
        if !claims.is_empty() && !notify(claims) {
            return;
        }
    }
}
