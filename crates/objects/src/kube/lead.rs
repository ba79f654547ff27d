//! Leader election of controllers: a Lease of coordination.k8s.io, held by renewing it.
//!
//! No controller relies on another's clock: a Lease counts as expired once it has not changed for its duration while
//! this controller observed it. The holder stops writing [`HELD`] after it *sent* its last successful renewal, which is
//! well before another one may take over.

use egret_core::error::with_causes;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Name of the Lease.
pub const LEASE_NAME: &str = "egret-controller";
/// Time without a change after which others take the Lease over.
const DURATION: Duration = Duration::from_secs(15);
/// Time after a renewal in which the holder writes: a write that is under way at the end has the rest of [`DURATION`]
/// to arrive.
const HELD: Duration = Duration::from_secs(10);
/// Interval at which the Lease is read and renewed.
const EVERY: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// A Lease as last read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: String,
    version: String,
    duration: Duration,
}

/// Next step of the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is no Lease: create it.
    Create,
    /// This controller holds it: renew it.
    Renew,
    /// It has expired or was released: take it over.
    TakeOver,
    /// Another controller holds it.
    Wait,
}

/// Decides from observed Leases and their times. No IO.
#[derive(Debug)]
struct Election {
    me: String,
    /// The Lease, and when this version was first observed.
    seen: Option<(Seen, Instant)>,
    held_until: Option<Instant>,
}

impl Election {
    fn new(me: String) -> Self {
        Self {
            me,
            seen: None,
            held_until: None,
        }
    }

    fn step(&mut self, now: Instant, lease: Option<Seen>) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            self.held_until = None;
            return Step::Create;
        };
        if lease.holder == self.me {
            return Step::Renew;
        }
        self.held_until = None;
        if lease.holder.is_empty() {
            return Step::TakeOver;
        }
        let since = match &self.seen {
            Some((seen, since)) if *seen == lease => *since,
            _ => now,
        };
        let given_up = now.duration_since(since) >= lease.duration;
        self.seen = Some((lease, since));
        if given_up { Step::TakeOver } else { Step::Wait }
    }

    /// A successful request that was sent at `sent` acquired or renewed the Lease.
    fn held(&mut self, sent: Instant) {
        self.held_until = Some(sent + HELD);
    }
}

/// This controller's part in the election.
#[derive(Debug)]
pub(super) struct Leadership {
    election: Mutex<Election>,
    leases: Api<Lease>,
}

impl Leadership {
    /// In the client's own namespace.
    pub fn new(client: Client) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // The system seeds it: two controllers on one host differ.
        let salt = RandomState::new().build_hasher().finish();
        let me = format!("{}_{:08x}", host.trim(), salt & 0xffff_ffff);
        Self {
            election: Mutex::new(Election::new(me)),
            leases: Api::default_namespaced(client),
        }
    }

    /// Time until which this controller may write, if it leads.
    pub fn held_until(&self) -> Option<Instant> {
        let held = self.lock().held_until;
        held.filter(|until| Instant::now() < *until)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Election> {
        self.election.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the election forever; calls `changed` whenever this controller starts or stops leading.
    pub async fn run(&self, changed: impl Fn()) {
        let mut led = false;
        loop {
            let round = tokio::time::timeout(ANSWER, self.round()).await;
            if let Err(why) = round.map_err(|_| "no answer".to_owned()).flatten() {
                tracing::debug!(why, "the Lease could not be read or written");
            }
            let leads = self.held_until().is_some();
            if leads != led {
                tracing::info!(leads, lease = LEASE_NAME, "leadership changed");
                changed();
                led = leads;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn round(&self) -> Result<(), String> {
        let found = self.leases.get_opt(LEASE_NAME).await;
        let found = found.map_err(|error| with_causes(&error))?;
        let seen = found.as_ref().map(seen);
        let step = self.lock().step(Instant::now(), seen);
        let me = self.lock().me.clone();
        let sent = Instant::now();
        let parameters = PostParams::default();
        let written = match (step, found) {
            (Step::Wait, _) => return Ok(()),
            (Step::Create, _) | (_, None) => {
                let fresh = Lease {
                    metadata: ObjectMeta {
                        name: Some(LEASE_NAME.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(ours(None, &me)),
                };
                self.leases.create(&parameters, &fresh).await
            }
            (Step::Renew | Step::TakeOver, Some(mut lease)) => {
                lease.spec = Some(ours(lease.spec.as_ref(), &me));
                lease.metadata.managed_fields = None;
                self.leases.replace(LEASE_NAME, &parameters, &lease).await
            }
        };
        written.map_err(|error| with_causes(&error))?;
        self.lock().held(sent);
        Ok(())
    }

    /// Releases the Lease, so that another one need not wait. Called at the end of the process; tries only briefly.
    pub async fn release(&self) {
        let held = self.lock().held_until.take().is_some();
        if held
            && tokio::time::timeout(ANSWER, self.give_back())
                .await
                .is_err()
        {
            tracing::debug!("the Lease was not released in time: it will expire");
        }
    }

    async fn give_back(&self) {
        let me = self.lock().me.clone();
        let Ok(Some(mut lease)) = self.leases.get_opt(LEASE_NAME).await else {
            return;
        };
        let Some(spec) = lease.spec.as_mut() else {
            return;
        };
        if spec.holder_identity.as_deref() != Some(&me) {
            return;
        }
        spec.holder_identity = Some(String::new());
        lease.metadata.managed_fields = None;
        let parameters = PostParams::default();
        if let Err(error) = self.leases.replace(LEASE_NAME, &parameters, &lease).await {
            tracing::debug!(error = %with_causes(&error), "the Lease was not released");
        }
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    let secs = spec.lease_duration_seconds.unwrap_or(0);
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        duration: Duration::from_secs(u64::try_from(secs).unwrap_or(0)),
    }
}

/// The spec of a Lease that this controller acquires or renews.
fn ours(before: Option<&LeaseSpec>, me: &str) -> LeaseSpec {
    let before = before.cloned().unwrap_or_default();
    let now = MicroTime(Timestamp::now());
    let same = before.holder_identity.as_deref() == Some(me);
    let transitions = before.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: before.acquire_time.filter(|_| same).or(Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(if same {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Option<Seen> {
        Some(Seen {
            holder: holder.to_owned(),
            version: version.to_owned(),
            duration: DURATION,
        })
    }

    #[test]
    fn a_lease_is_taken_over_only_after_it_rested_for_its_duration_while_we_looked() {
        let mut election = Election::new("me".to_owned());
        let start = Instant::now();
        assert_eq!(election.step(start, lease("other", "1")), Step::Wait);
        let almost = start + DURATION - Duration::from_millis(1);
        assert_eq!(election.step(almost, lease("other", "1")), Step::Wait);
        assert_eq!(
            election.step(almost, lease("other", "2")),
            Step::Wait,
            "renewed"
        );
        let later = start + DURATION;
        assert_eq!(election.step(later, lease("other", "2")), Step::Wait);
        assert_eq!(
            election.step(almost + DURATION, lease("other", "2")),
            Step::TakeOver
        );
    }

    #[test]
    fn a_lease_that_was_given_back_or_is_gone_is_taken_at_once() {
        let mut election = Election::new("me".to_owned());
        let now = Instant::now();
        assert_eq!(election.step(now, lease("", "1")), Step::TakeOver);
        assert_eq!(election.step(now, None), Step::Create);
        assert_eq!(election.step(now, lease("me", "2")), Step::Renew);
    }

    #[test]
    fn leading_ends_when_another_is_seen_to_hold_the_lease() {
        let mut election = Election::new("me".to_owned());
        let now = Instant::now();
        election.held(now);
        assert_eq!(election.held_until, Some(now + HELD));
        election.step(now, lease("other", "1"));
        assert_eq!(election.held_until, None);
    }

    const _: () = assert!(HELD.as_secs() + ANSWER.as_secs() < DURATION.as_secs());
}
