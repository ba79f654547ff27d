//! Events: a condition of a user's object became bad, or good again.
//!
//! Limited twice, so that a fault of the whole cluster causes no storm: a few per object, refilled slowly, and a few
//! per second in all. The object's status also has what is dropped here.

use crate::front_end::foreign_kind;
use crate::status::{Condition, ConditionStatus};
use egret_api as api;
use egret_core::condition::ConditionType;
use egret_core::error::with_causes;
use egret_core::model::ObjectRef;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Reporting controller.
const REPORTER: &str = "egret.dev/controller";
/// Burst of events per object; one more every [`OBJECT_REFILL`].
const OBJECT_BURST: u32 = 6;
/// Refill interval per object.
const OBJECT_REFILL: Duration = Duration::from_secs(120);
/// Burst of events of all objects; one more every [`ALL_REFILL`].
const ALL_BURST: u32 = 50;
/// Refill interval of all objects.
const ALL_REFILL: Duration = Duration::from_millis(500);
/// Objects with a stored budget; beyond that, those with a full budget are dropped, then all.
const OBJECTS_MAX: usize = 4096;
/// Longest note of an event, in bytes (events.k8s.io/v1).
const NOTE_MAX: usize = 1024;
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// One event to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    warning: bool,
    reason: String,
    text: String,
}

/// Conditions that became bad or good between two lists. A bad one is reported again only with another reason.
pub(super) fn notes(before: &[Condition], now: &[Condition]) -> Vec<Note> {
    let old = |kind: &str| before.iter().find(|c| c.kind == kind);
    let mut notes = Vec::new();
    for condition in now {
        let was = old(&condition.kind);
        if is_bad(condition) {
            if was.is_none_or(|was| !is_bad(was) || was.reason != condition.reason) {
                notes.push(note(true, condition));
            }
        } else if condition.kind == ConditionType::Ready.to_string()
            && was.is_some_and(|was| was.status != ConditionStatus::True)
        {
            notes.push(note(false, condition));
        }
    }
    notes
}

fn note(warning: bool, condition: &Condition) -> Note {
    Note {
        warning,
        reason: condition.reason.clone(),
        text: format!("{}: {}", condition.kind, condition.message),
    }
}

/// Accepted, Allocated and Ready are bad when False, all others when True. Ready that only waits for pods to be
/// programmed is not bad.
fn is_bad(condition: &Condition) -> bool {
    let good = [
        ConditionType::Accepted,
        ConditionType::Allocated,
        ConditionType::Ready,
    ];
    if good.iter().any(|kind| kind.to_string() == condition.kind) {
        condition.status == ConditionStatus::False && condition.reason != "Programming"
    } else {
        condition.status == ConditionStatus::True
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    since: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, burst: u32, refill: Duration) -> bool {
        self.refill(now, burst, refill);
        let there = self.left > 0;
        self.left = self.left.saturating_sub(1);
        there
    }

    fn refill(&mut self, now: Instant, burst: u32, refill: Duration) {
        let passed = now.duration_since(self.since).as_millis() / refill.as_millis();
        let back = u32::try_from(passed).unwrap_or(u32::MAX).min(burst);
        if back > 0 {
            self.left = self.left.saturating_add(back).min(burst);
            self.since = now;
        }
    }
}

/// Remaining events.
#[derive(Debug)]
struct Budget {
    all: Bucket,
    objects: BTreeMap<ObjectRef, Bucket>,
}

impl Budget {
    fn new(now: Instant) -> Self {
        let all = Bucket {
            left: ALL_BURST,
            since: now,
        };
        Self {
            all,
            objects: BTreeMap::new(),
        }
    }

    fn take(&mut self, now: Instant, object: &ObjectRef) -> bool {
        if self.objects.len() >= OBJECTS_MAX && !self.objects.contains_key(object) {
            self.objects.retain(|_, bucket| {
                bucket.refill(now, OBJECT_BURST, OBJECT_REFILL);
                bucket.left < OBJECT_BURST
            });
            if self.objects.len() >= OBJECTS_MAX {
                self.objects.clear();
            }
        }
        let fresh = Bucket {
            left: OBJECT_BURST,
            since: now,
        };
        let bucket = self.objects.entry(object.clone()).or_insert(fresh);
        bucket.take(now, OBJECT_BURST, OBJECT_REFILL) && self.all.take(now, ALL_BURST, ALL_REFILL)
    }
}

/// Sends events, without waiting for the answers.
#[derive(Clone)]
pub(super) struct Events {
    client: Client,
    budget: Arc<Mutex<Budget>>,
}

impl Events {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            budget: Arc::new(Mutex::new(Budget::new(Instant::now()))),
        }
    }

    /// Sends events about an object.
    pub fn tell(&self, runtime: &Runtime, object: &ObjectRef, uid: &str, notes: Vec<Note>) {
        for note in notes {
            let now = Instant::now();
            let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
            if !budget.take(now, object) {
                continue;
            }
            drop(budget);
            let event = event(object, uid, &note);
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            runtime.spawn(async move {
                let parameters = PostParams::default();
                let sent = events.create(&parameters, &event);
                match tokio::time::timeout(ANSWER, sent).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::debug!(error = %with_causes(&error), "no event"),
                    Err(_) => tracing::debug!("no event: no answer"),
                }
            });
        }
    }
}

fn event(object: &ObjectRef, uid: &str, note: &Note) -> Event {
    // Events of cluster-scoped objects go into `default`, like those of nodes.
    let namespace = match object.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    // Users look for events of front-ends' objects under the names of their own systems.
    let (api_version, kind) = match foreign_kind(object.kind) {
        Some(known) => (known.api_version, known.name.to_owned()),
        None => (api::API_VERSION, format!("{:?}", object.kind)),
    };
    let now = Timestamp::now();
    let mut text = note.text.clone();
    if text.len() > NOTE_MAX {
        let end = text.floor_char_boundary(NOTE_MAX);
        text.truncate(end);
    }
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", object.name, now.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some("Plan".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(text),
        reason: Some(note.reason.clone()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind),
            name: Some(object.name.clone()),
            namespace: (!object.namespace.is_empty()).then(|| object.namespace.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(super::LEASE_NAME.to_owned()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_core::model::Kind;

    fn condition(kind: &str, status: ConditionStatus, reason: &str) -> Condition {
        Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: "why".to_owned(),
            since_secs: 0,
        }
    }

    #[test]
    fn a_condition_is_told_when_it_becomes_bad_and_not_while_it_stays_so() {
        let bad = [condition("Accepted", ConditionStatus::False, "NoAddress")];
        let told = notes(&[], &bad);
        assert_eq!(told.len(), 1);
        assert!(told[0].warning);
        assert_eq!(told[0].text, "Accepted: why");
        assert_eq!(notes(&bad, &bad), []);
        let other = [condition(
            "Accepted",
            ConditionStatus::False,
            "PoolNotFound",
        )];
        assert_eq!(notes(&bad, &other).len(), 1, "another reason is news");
        let worse = [condition(
            "Overlapped",
            ConditionStatus::True,
            "OtherPolicyWins",
        )];
        assert_eq!(notes(&[], &worse).len(), 1);
    }

    #[test]
    fn ready_is_told_when_it_comes_back_and_waiting_for_pods_is_no_trouble() {
        let waiting = [condition("Ready", ConditionStatus::False, "Programming")];
        let ready = [condition("Ready", ConditionStatus::True, "Programmed")];
        assert_eq!(notes(&[], &waiting), []);
        let told = notes(&waiting, &ready);
        assert_eq!(told.len(), 1);
        assert!(!told[0].warning);
        assert_eq!(notes(&[], &ready), []);
    }

    #[test]
    fn an_event_names_an_object_of_a_front_end_as_its_system_does() {
        let object = ObjectRef {
            kind: Kind::NirmataStaticEgressIP,
            namespace: "shop".to_owned(),
            name: "eip".to_owned(),
        };
        let refused = condition("Accepted", ConditionStatus::False, "Invalid");
        let about = event(&object, "uid", &note(true, &refused))
            .regarding
            .unwrap();
        assert_eq!(about.kind.as_deref(), Some("StaticEgressIP"));
        let version = "staticegressips.nirmata.io/v1alpha1";
        assert_eq!(about.api_version.as_deref(), Some(version));
    }

    #[test]
    fn events_of_one_object_and_of_all_are_bounded_and_come_back_with_time() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let object = |n: usize| ObjectRef {
            kind: Kind::Egress,
            namespace: "default".to_owned(),
            name: format!("p{n}"),
        };
        let sent = (0..100).filter(|_| budget.take(start, &object(0))).count();
        assert_eq!(sent, OBJECT_BURST as usize);
        let sent = (1..10_000)
            .filter(|n| budget.take(start, &object(*n)))
            .count();
        assert_eq!(sent, (ALL_BURST - OBJECT_BURST) as usize);
        assert!(budget.objects.len() <= OBJECTS_MAX);
        assert!(budget.take(start + OBJECT_REFILL, &object(0)));
    }
}
