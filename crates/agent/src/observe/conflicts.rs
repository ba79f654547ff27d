//! Listens for machines on the external segment that claim addresses of this gateway.

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use egret_core::error::with_causes;
use egret_datapath::presence::l2::conflict::{Claim, Listener};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Poll interval of the thread's stop flag.
const LOOK: Duration = Duration::from_secs(1);
/// Minimum interval between two reports of the same claim, so that a flood does not reach the main loop.
const SAME_WORD: Duration = Duration::from_millis(500);
/// Claims remembered for that.
const WORDS_MAX: usize = 1024;

/// Listener on the external segment. Without a device it is idle.
pub(crate) struct SegmentListener {
    notify: Notify<Vec<Claim>>,
    listening: Option<Listening>,
    /// The device on which listening fails.
    deaf: Option<u32>,
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

impl SegmentListener {
    /// `notify` receives the claims of machines on the external segment.
    pub(crate) fn new(notify: Notify<Vec<Claim>>) -> Self {
        SegmentListener {
            notify,
            listening: None,
            deaf: None,
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
                let error = with_causes(&error);
                tracing::warn!(
                    error,
                    "cannot listen for machines that claim egress addresses"
                );
            }
        }
    }

    /// Reports claims to these addresses only.
    pub(crate) fn follow(&self, addresses: &BTreeSet<IpAddr>) {
        if let Some(listening) = &self.listening {
            let mut wanted = listening
                .wanted
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if *wanted != *addresses {
                wanted.clone_from(addresses);
            }
        }
    }

    /// Stops listening: this node is no longer a gateway.
    pub(crate) fn end(&mut self) {
        self.listening = None;
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
                // A device that goes down causes one error, and packets again once it is up.
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
