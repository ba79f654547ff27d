//! The main loop's part of the CNI: calls that wait for the kernel, and the announced addresses.

use super::{PendingCall, state_files};
use egret_core::announced::{Announced, AttachmentId, MaySelect, PodId, Replaced, take_off};
use egret_core::model::{NodeName, Snapshot};
use egret_core::node::{Idle, NodeOutcome};
use egret_core::numbers::{CNI_LEASE_SECS, CNI_OBJECT_SECS, CNI_PENDING_MAX};
use egret_wire::cni::{Answer, Attachment, Call, Known, VERSION};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long ADD waits for the API to show the pod.
const OBJECT: Duration = Duration::from_secs(CNI_OBJECT_SECS);
/// How long DEL waits for the removed pod's flows to be deleted, since its address may then be reused. The plugin waits
/// twice as long.
const FLOWS: Duration = Duration::from_secs(1);
/// How long ADD waits until a selected pod can open connections.
const LEASE: Duration = Duration::from_secs(CNI_LEASE_SECS);

/// Progress of the main loop, as calls need it.
pub(crate) struct Round<'a> {
    /// The objects, with announcements laid over them; `None` before the first.
    pub(crate) snapshot: Option<&'a Snapshot>,
    /// Kernel content, if the last round was applied.
    pub(crate) outcome: Option<&'a NodeOutcome>,
    /// Error of the last round, for people.
    pub(crate) last_error: Option<&'a str>,
    /// No flow of a pod that started or ended is left to delete.
    pub(crate) flows_ended: bool,
}

/// Calls that wait, and all announcements.
pub(crate) struct PendingCalls {
    node: NodeName,
    state_directory: PathBuf,
    announced: Announced,
    replaced: Replaced,
    pending: Vec<(PendingCall, Instant)>,
    /// Content of the file that the plugin reads.
    known: Option<Known>,
    /// A call has arrived that no round has processed yet.
    unprocessed: bool,
    /// `known` has been written: the plugin can be installed.
    ready: Arc<AtomicBool>,
}

impl PendingCalls {
    /// Restores the announcements from an earlier agent's file.
    pub(crate) fn open(node: &NodeName, state_directory: &Path, ready: Arc<AtomicBool>) -> Self {
        let known = state_files::load_known(state_directory);
        ready.store(known.is_some(), Ordering::Relaxed);
        PendingCalls {
            node: node.clone(),
            state_directory: state_directory.to_owned(),
            announced: state_files::load_announced(state_directory),
            replaced: Replaced::new(),
            pending: Vec::new(),
            known,
            unprocessed: false,
            ready,
        }
    }

    /// Lays the announcements over new objects.
    pub(crate) fn overlay(&mut self, snapshot: &mut Snapshot) {
        if self.announced.forget(&snapshot.pods) {
            self.save();
        }
        self.replaced = self.announced.lay_over(&mut snapshot.pods, &self.node);
    }

    /// Accepts a call. `true`: a round is due.
    pub(crate) fn take(&mut self, pending: PendingCall, snapshot: Option<&mut Snapshot>) -> bool {
        if self.pending.len() >= CNI_PENDING_MAX {
            let why = format!("{CNI_PENDING_MAX} calls wait already");
            pending.answer(&Answer::Later { why });
            return false;
        }
        let changed = match &pending.call {
            Call::Add(attachment) => {
                let (id, pod, addresses) = told(attachment);
                if !self.announced.add(id, pod, addresses) {
                    let why = "the node has too many attachments of containers".into();
                    pending.answer(&Answer::Later { why });
                    return false;
                }
                true
            }
            Call::Del(attachment) => {
                let (id, pod, addresses) = told(attachment);
                self.announced.remove(&id, pod, addresses)
            }
            Call::Gc { valid } => {
                let valid = valid.iter().map(|id| AttachmentId {
                    container: id.container.clone(),
                    interface: id.interface.clone(),
                });
                self.announced.keep(&valid.collect())
            }
            Call::Check(attachment) => {
                let answer = self.check(attachment);
                pending.answer(&answer);
                return false;
            }
            Call::Status {} => false,
        };
        if !changed {
            pending.answer(&Answer::Done {});
            return false;
        }
        self.save();
        if let Some(snapshot) = snapshot {
            take_off(&mut snapshot.pods, std::mem::take(&mut self.replaced));
            self.replaced = self.announced.lay_over(&mut snapshot.pods, &self.node);
        }
        self.pending.push((pending, Instant::now()));
        self.unprocessed = true;
        true
    }

    /// Checks that no other pod has the addresses. Pods older than the plugin were never announced.
    fn check(&self, attachment: &Attachment) -> Answer {
        let (_, pod, addresses) = told(attachment);
        let mut owners = addresses.iter().map(|a| (a, self.announced.owner(a)));
        let taken = owners.find(|(_, owner)| owner.is_some_and(|owner| owner != pod.as_ref()));
        match taken {
            None => Answer::Done {},
            Some((address, owner)) => {
                let owner = owner.flatten();
                let owner = owner.map_or("another container".into(), |pod| {
                    format!("{}/{}", pod.namespace, pod.name)
                });
                let why = format!("the address {address} belongs to {owner} by now");
                Answer::Refused { why }
            }
        }
    }

    /// Whether a call has arrived that no round has processed yet.
    pub(crate) fn has_unprocessed(&self) -> bool {
        self.unprocessed
    }

    /// Addresses of pods that do not run: the runtime waits for the answer before it starts a pod's first process, and
    /// before it reuses the addresses of pods that have ended.
    pub(crate) fn idle(&self) -> Idle {
        let mut idle = Idle::default();
        for (pending, _) in &self.pending {
            match &pending.call {
                Call::Add(attachment) => idle.starting.extend(&attachment.addresses),
                Call::Del(attachment) => idle.ended.extend(&attachment.addresses),
                Call::Check(_) | Call::Gc { .. } | Call::Status {} => {}
            }
        }
        idle
    }

    /// Answers, after a round, all calls that need not wait any longer.
    pub(crate) fn after(&mut self, round: &Round<'_>) {
        self.unprocessed = false;
        if let (Some(snapshot), Some(outcome)) = (round.snapshot, round.outcome) {
            self.keep_known(snapshot, outcome);
        }
        self.answer(round);
    }

    /// Answers, between rounds, calls that have reached their time limit.
    pub(crate) fn overdue(&mut self, round: &Round<'_>) {
        if !self.unprocessed {
            self.answer(round);
        }
    }

    fn answer(&mut self, round: &Round<'_>) {
        if self.pending.is_empty() {
            return;
        }
        let may = round
            .snapshot
            .map(|snapshot| MaySelect::of(snapshot, &self.node));
        for (pending, since) in std::mem::take(&mut self.pending) {
            let answer = match &pending.call {
                Call::Add(attachment) => self.add(attachment, since.elapsed(), round, may.as_ref()),
                // The kernel is up to date, or will be before the address is reused.
                _ => {
                    let carried_out = round.outcome.is_some();
                    let over = round.flows_ended || !carried_out || since.elapsed() >= FLOWS;
                    over.then_some(Answer::Done {})
                }
            };
            match answer {
                Some(answer) => pending.answer(&answer),
                None => self.pending.push((pending, since)),
            }
        }
    }

    /// Answer to an ADD; `None` while it must wait.
    fn add(
        &self,
        attachment: &Attachment,
        waited: Duration,
        round: &Round<'_>,
        may: Option<&MaySelect>,
    ) -> Option<Answer> {
        let later = |why: String| Some(Answer::Later { why });
        let (Some(snapshot), Some(outcome), Some(may)) = (round.snapshot, round.outcome, may)
        else {
            let reason = self.reason_to_wait(attachment, may);
            let Some(reason) = reason else {
                return Some(Answer::Done {});
            };
            let last_error = round.last_error.unwrap_or("it has read no objects yet");
            let why = format!("{reason}, and the agent cannot program the node: {last_error}");
            return (waited >= OBJECT).then_some(Answer::Later { why });
        };
        let (_, pod, addresses) = told(attachment);
        let Some(pod) = pod else {
            return Some(Answer::Done {});
        };
        let selected = |a: &&IpAddr| outcome.state.worker.pods.get(a).is_some();
        match pod.find(&snapshot.pods) {
            None if !may.contains(&pod.namespace) => Some(Answer::Done {}),
            None if waited >= OBJECT => later(format!(
                "an egress policy may select pods of the namespace {}, and the API has not told this node's agent of {}/{}",
                pod.namespace, pod.namespace, pod.name
            )),
            None => None,
            Some(_) => {
                let mut own = addresses.iter().filter(selected);
                let usable = own.all(|address| outcome.state.worker.is_usable(*address));
                if !usable && waited >= LEASE {
                    tracing::warn!(
                        pod = format!("{}/{}", pod.namespace, pod.name),
                        "a selected pod starts before it can open connections: see `egret explain`"
                    );
                }
                (usable || waited >= LEASE).then_some(Answer::Done {})
            }
        }
    }

    /// Reason to wait while no round can be applied: from the plugin's file, and from the objects.
    fn reason_to_wait(&self, attachment: &Attachment, may: Option<&MaySelect>) -> Option<String> {
        let pod = attachment.pod.as_ref();
        let known = self.known.as_ref();
        let kept = known.and_then(|known| known.reason_to_wait(pod, &attachment.addresses));
        kept.or_else(|| {
            let namespace = &pod?.namespace;
            let selects = known.is_none() && may.is_some_and(|may| may.contains(namespace));
            selects
                .then(|| format!("an egress policy may select pods of the namespace {namespace}"))
        })
    }

    fn keep_known(&mut self, snapshot: &Snapshot, outcome: &NodeOutcome) {
        let may = MaySelect::of(snapshot, &self.node);
        let addresses: BTreeSet<IpAddr> = outcome.state.worker.pods.keys().copied().collect();
        let own = snapshot.pods.values().filter(|pod| {
            pod.node == self.node
                && may.contains(&pod.namespace)
                && !pod.addresses.is_empty()
                && pod.addresses.iter().all(|a| !addresses.contains(a))
        });
        let known = Known {
            version: VERSION,
            free_pods: own
                .map(|pod| Known::pod(&pod.namespace, &pod.name, &pod.uid))
                .collect(),
            waiting: may.named,
            free: may.free,
            others_wait: may.others,
            addresses,
        };
        if self.known.as_ref() != Some(&known) {
            if let Err(error) = state_files::save_known(&self.state_directory, &known) {
                tracing::warn!(%error, "cannot write the file for the CNI plugin");
                return;
            }
            self.known = Some(known);
        }
        self.ready.store(true, Ordering::Relaxed);
    }

    fn save(&self) {
        if let Err(error) = state_files::save_announced(&self.state_directory, &self.announced) {
            tracing::warn!(%error, "cannot write the CNI's announcements");
        }
    }
}

fn told(attachment: &Attachment) -> (AttachmentId, Option<PodId>, BTreeSet<IpAddr>) {
    let id = AttachmentId {
        container: attachment.id.container.clone(),
        interface: attachment.id.interface.clone(),
    };
    let pod = attachment.pod.as_ref().map(|pod| PodId {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    });
    (id, pod, attachment.addresses.iter().copied().collect())
}

#[cfg(test)]
mod tests;
