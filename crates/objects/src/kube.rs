//! The source `kube`: a Kubernetes API server.
//!
//! ```text
//!  client     the connection, with keep-alive
//!  watch_set  required watches, by role and known objects          pure
//!  reflect    one task per watch --News--> store               list, watch with bookmarks, back off
//!  discovery  which kinds of network plugins are served, so that no other is listed
//!  lenient    an object of another version of Egret affects no other object
//!  entry      API object -> model value + status               unused fields are dropped
//!  watched    objects of one watch
//!  store      all watches behind a lock, a version, a condition variable
//!  view_cache  store -> View, by what changed
//!  write      unchanged objects are not written
//!  request    one write: field manager, deadline, versions; the answer goes into the store at once
//!  lead       one of several controllers leads, by a Lease
//!  annotate   operators' wishes about a node
//!  uninstall  agents' pods become pods that clean up
//!  event      Events about conditions that became bad; rate-limited
//! ```
//!
//! The client is asynchronous and has a runtime of its own with one thread; [`Source`](crate::Source) is blocking.
//! While the API server is unreachable, known objects stay, and watches resume afterwards.

mod annotate;
mod client;
mod discovery;
mod entry;
mod event;
mod lead;
mod lenient;
mod maintenance;
mod reflect;
mod request;
mod store;
mod uninstall;
mod view_cache;
mod watch;
mod watch_set;
mod watched;
mod write;

pub use annotate::{Annotated, annotate_node};
pub use lead::LEASE_NAME;
pub use maintenance::{Outcome, drain, move_address, undrain};
pub use uninstall::{Left, Uninstalled, uninstall};
pub use watch::GATEWAY_LABEL;
pub use watch_set::Role;

use crate::{PolicyStatus, SourceError, View, front_end};
use client::connect;
use discovery::Discovery;
use egret_core::error::with_causes;
use egret_core::model::{NodeName, NodeRecord, ObjectRef, Settings as Installation, SharedMap};
use event::Events;
use kube::Client;
use lead::Leadership;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use store::{State, Store};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use view_cache::Touches;
use watch_set::needed;
use watched::Watched;

/// Longest wait for lists that are under way, in one [`crate::Source::snapshot`].
const SYNC: Duration = Duration::from_secs(5);
/// Quiet time that combines changes into one view, for agents and the command line.
const QUIET: Duration = Duration::from_millis(5);
/// The same for the controller, which is shorter: a pod waits for its lease, and a round costs only what changed.
const QUIET_CONTROLLER: Duration = Duration::from_millis(1);

/// Settings of a Kubernetes source.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A kubeconfig file; otherwise `KUBECONFIG`, `~/.kube/config` or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Role of the reader.
    pub role: Role,
    /// Settings that planning depends on; part of every snapshot, with the discovered Service ranges.
    pub installation: Installation,
    /// Enabled front-ends: their kinds are watched, too.
    pub front_ends: front_end::Settings,
}

/// State that all sources of one process share: client, watches, election.
struct Shared {
    settings: Settings,
    client: Client,
    store: Arc<Store>,
    discovery: Arc<Discovery>,
    leadership: Option<Arc<Leadership>>,
    /// Stops the election task.
    election: Option<AbortHandle>,
    events: Events,
    /// Last field, so that its tasks end after everything that uses them.
    runtime: Runtime,
}

/// A Kubernetes source. Clones share watches; each has its own view version.
#[derive(Clone)]
pub struct KubeSource {
    shared: Arc<Shared>,
    /// Version of the last view.
    seen: Option<u64>,
    /// Records of nodes in the last view, for the controller: only these versions may be overwritten.
    records: SharedMap<NodeName, NodeRecord>,
    /// Statuses of policies in the last view, for the same purpose: they contain the assigned addresses.
    policies: SharedMap<ObjectRef, PolicyStatus>,
    /// Gateway nodes, and the version at which they were computed.
    gateways: (Option<u64>, BTreeSet<NodeName>),
    /// State at which all records had the correct labels.
    labelled: Option<Touches>,
}

impl KubeSource {
    /// Reads the connection settings and starts watches. The API server may be unreachable at first.
    ///
    /// # Errors
    /// There is no valid configuration.
    pub fn open(settings: Settings) -> Result<Self, SourceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kube")
            .enable_all()
            .build()
            .map_err(|error| api("starting the client's thread", &error))?;
        let client = runtime.block_on(connect(settings.kubeconfig.as_deref()))?;
        let store = Arc::new(Store::default());
        store.lock().front_ends = settings.front_ends.clone();
        let leadership = match settings.role {
            Role::Controller => Some(Arc::new(Leadership::new(client.clone()))),
            Role::Agent(_) | Role::Reader => None,
        };
        let election = leadership.as_ref().map(|leadership| {
            let (leadership, store) = (leadership.clone(), store.clone());
            let task = async move { leadership.run(|| store.touch()).await };
            runtime.spawn(task).abort_handle()
        });
        let source = Self {
            shared: Arc::new(Shared {
                settings,
                events: Events::new(client.clone()),
                client,
                store,
                discovery: Arc::default(),
                leadership,
                election,
                runtime,
            }),
            seen: None,
            records: SharedMap::new(),
            policies: SharedMap::new(),
            gateways: (None, BTreeSet::new()),
            labelled: None,
        };
        source.shared.rewatch(&mut source.shared.store.lock());
        Ok(source)
    }

    /// Waits until all required watches are complete and returns their view.
    fn view(&mut self) -> Result<View, SourceError> {
        let deadline = Instant::now() + SYNC;
        let shared = &self.shared;
        let mut state = shared.store.lock();
        loop {
            shared.rewatch(&mut state);
            let Some((watch, watched)) = state.watches.iter().find(|(_, w)| !w.synced) else {
                break;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SourceError::NotYet {
                    what: format!("{watch:?}"),
                    why: watched.error.clone().unwrap_or_else(|| "no answer".into()),
                });
            }
            state = shared.store.sleep(state, left);
        }
        self.seen = Some(state.version);
        let view = state.view(&shared.settings.installation);
        drop(state);
        self.records = view.snapshot.node_records.clone();
        self.policies = view.policies.clone();
        Ok(view)
    }
}

impl Shared {
    /// Starts missing watches and ends those that are no longer required.
    fn rewatch(&self, state: &mut MutexGuard<'_, State>) {
        let touches = state.cache.touches;
        let matters = match self.settings.role {
            Role::Agent(_) => touches.others.max(touches.pods),
            Role::Controller | Role::Reader => touches.others,
        };
        if state.rewatched == Some(matters) {
            return;
        }
        let needed = needed(&self.settings.role, state);
        // A gateway's label may arrive before the last list: no watch ends before all lists are complete.
        let known = state.watches.values().all(|watched| watched.synced);
        if known {
            let before = state.watches.len();
            state.watches.retain(|watch, watched| {
                let keep = needed.contains(watch);
                if !keep && let Some(task) = &watched.task {
                    task.abort();
                }
                keep
            });
            if state.watches.len() < before {
                let version = state.version;
                state.cache.touch_all(version);
            }
            state.rewatched = Some(matters);
        }
        for watch in needed {
            state.watches.entry(watch.clone()).or_insert_with(|| {
                let (store, discovery) = (self.store.clone(), self.discovery.clone());
                let task = reflect::reflect(self.client.clone(), store, discovery, watch);
                Watched::by(self.runtime.spawn(task).abort_handle())
            });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Otherwise it could reacquire the Lease that is released here.
        if let Some(election) = &self.election {
            election.abort();
        }
        if let Some(leadership) = &self.leadership {
            self.runtime.block_on(leadership.release());
        }
    }
}

fn api(doing: impl Into<String>, error: &dyn std::error::Error) -> SourceError {
    SourceError::Api {
        doing: doing.into(),
        why: with_causes(error),
    }
}
