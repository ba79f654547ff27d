//! What the watches have told so far: objects as model values, and whether a watch has listed everything yet.

use super::entry::Entry;
use super::kept::{Kept, newest};
use super::wanted::Watch;
use crate::front_end;
use crate::source::View;
use egret_core::model::{ObjectRef, Settings};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// Objects that went and are remembered: a late answer comes within seconds.
const GONE_MAX: usize = 1024;

/// Objects by name.
pub(super) type Objects = BTreeMap<ObjectRef, Entry>;

/// One watch.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// It has listed everything once.
    pub synced: bool,
    /// Why it does not get on, as long as it does not.
    pub error: Option<String>,
    /// Its objects.
    pub objects: Objects,
    /// A list that has begun and not ended.
    listing: Option<Objects>,
    /// Versions at which objects went, so that a late answer to a write does not bring one back.
    gone: BTreeMap<ObjectRef, u64>,
    /// Ends its task.
    pub task: Option<AbortHandle>,
}

/// Every watch, behind a lock.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By what they watch.
    pub watches: BTreeMap<Watch, Watched>,
    /// Raised whenever a view would differ.
    pub version: u64,
    /// Front-ends that serve: which watches are needed depends on what their objects become.
    pub front_ends: front_end::Settings,
    /// The newest view.
    pub kept: Kept,
    /// What was known when it was last looked at which watches are needed.
    pub rewatched: Option<u64>,
}

impl State {
    /// A view would differ by this object, or by anything.
    fn touch(&mut self, object: Option<ObjectRef>) {
        self.version += 1;
        match object {
            Some(object) => self.kept.touch(object, self.version),
            None => self.kept.touch_all(self.version),
        }
    }

    /// What a view says of the object of the news, or that it may be about many, where more than one watch has the kind:
    /// what a watch tells again may be newer than what another one has told since.
    fn between_watches(&self, watch: &Watch, news: &News) -> Between {
        let kind = watch.kind();
        let several = self.watches.keys().filter(|one| one.kind() == kind).count() > 1;
        match (several, news) {
            (true, News::Put(object, _)) => Between::One(newest(&self.watches, object).cloned()),
            (true, News::End) => Between::Many,
            _ => Between::Nothing,
        }
    }

    /// Whether a view says something else now than [`State::between_watches`] found.
    fn differs(&self, before: Between, object: Option<&ObjectRef>) -> bool {
        match (before, object) {
            (Between::Nothing, _) => false,
            (Between::One(before), Some(object)) => {
                let now = newest(&self.watches, object);
                !matches!((&before, now), (Some(before), Some(now)) if before.says_the_same(now))
            }
            _ => true,
        }
    }

    /// The view of what the watches have.
    pub fn view(&mut self, settings: &Settings) -> View {
        self.kept.view(&self.watches, settings, &self.front_ends)
    }
}

/// What a view said before the news of one of several watches of a kind.
enum Between {
    /// There is one watch of the kind: it knows by itself.
    Nothing,
    /// This of the object.
    One(Option<Entry>),
    /// Many objects may be concerned.
    Many,
}

/// Shared between the watches' tasks and the source's threads.
#[derive(Debug, Default)]
pub(super) struct Store {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a watch tells.
pub(super) enum News {
    /// A list begins.
    Begin,
    /// One object of the list that has begun.
    Listed(ObjectRef, Entry),
    /// The list is complete: what it does not have is gone.
    End,
    /// An object is there or has changed.
    Put(ObjectRef, Entry),
    /// An object is gone, since this version.
    Gone(ObjectRef, u64),
    /// The watch does not get on.
    Trouble(String),
    /// The API server does not have the kind, and that is as good as none of it.
    Absent,
}

impl News {
    /// The one object that it is about; none if it is about many.
    fn object(&self) -> Option<&ObjectRef> {
        match self {
            News::Put(object, _) | News::Gone(object, _) => Some(object),
            _ => None,
        }
    }
}

impl Store {
    /// The state, for a short look.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes news of a watch; those of a watch that is not wanted any more are dropped.
    pub fn take(&self, watch: &Watch, news: News) {
        let mut state = self.lock();
        let object = news.object().cloned();
        let before = state.between_watches(watch, &news);
        let Some(watched) = state.watches.get_mut(watch) else {
            return;
        };
        if watched.take(news) || state.differs(before, object.as_ref()) {
            state.touch(object);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Takes what the API server answered to a write, so that the next view has it although no watch has told it yet.
    pub fn wrote(&self, watches: &[Watch], object: &ObjectRef, entry: Option<&Entry>) {
        let mut state = self.lock();
        let mut changed = false;
        for watch in watches {
            let Some(watched) = state.watches.get_mut(watch) else {
                continue;
            };
            let known = watched.objects.get(object).map_or(0, |known| known.version);
            changed |= watched.take(match entry {
                Some(entry) => News::Put(object.clone(), entry.clone()),
                None => News::Gone(object.clone(), known),
            });
        }
        if changed {
            state.touch(Some(object.clone()));
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Wakes whoever waits, although no object changed.
    pub fn touch(&self) {
        self.lock().version += 1;
        self.changed.notify_all();
    }

    /// The newest entry of an object that any of the watches has.
    pub fn get(&self, watches: &[Watch], object: &ObjectRef) -> Option<Entry> {
        let state = self.lock();
        let found = watches
            .iter()
            .filter_map(|watch| state.watches.get(watch)?.objects.get(object));
        found.max_by_key(|entry| entry.version).cloned()
    }

    /// Waits until the version is another than `seen`, and a little longer until it rests. Whether it is another.
    pub fn wait(&self, seen: Option<u64>, timeout: Duration, quiet: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while Some(state.version) == seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.sleep(state, left);
        }
        let rest = Instant::now() + quiet * 10;
        loop {
            let before = state.version;
            let until = (Instant::now() + quiet).min(rest);
            while state.version == before && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                state = self.sleep(state, left);
            }
            if state.version == before || Instant::now() >= rest {
                return true;
            }
        }
    }

    /// Waits for any change, at most until the deadline.
    pub fn sleep<'a>(&self, state: MutexGuard<'a, State>, left: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Watched {
    /// A watch that has told nothing yet.
    pub fn by(task: AbortHandle) -> Self {
        Self {
            task: Some(task),
            ..Self::default()
        }
    }

    /// Whether a view would differ.
    fn take(&mut self, news: News) -> bool {
        match news {
            News::Begin => {
                self.listing = Some(Objects::new());
                false
            }
            News::Listed(object, entry) => {
                self.listing.get_or_insert_default().insert(object, entry);
                false
            }
            News::End => self.complete(),
            News::Put(object, entry) => self.put(object, entry),
            News::Gone(object, version) => self.remove(object, version),
            News::Trouble(why) => {
                let new = self.error.as_ref() != Some(&why);
                self.error = Some(why);
                new && !self.synced
            }
            News::Absent => {
                self.error = None;
                !std::mem::replace(&mut self.synced, true)
            }
        }
    }

    fn complete(&mut self) -> bool {
        let mut listed = self.listing.take().unwrap_or_default();
        let mut before = std::mem::take(&mut self.objects);
        let mut same = self.synced && before.len() == listed.len();
        for (object, entry) in &mut listed {
            let Some(mut known) = before.remove(object) else {
                same = false;
                continue;
            };
            entry.keep_last_good(&known);
            same &= known.says_the_same(entry);
            entry.share(&mut known);
            // A write of our own may be newer than the list; the watch goes on from the list and tells the rest.
            if known.version > entry.version {
                *entry = known;
            }
        }
        self.objects = listed;
        self.gone.clear();
        self.synced = true;
        self.error = None;
        !same
    }

    fn remove(&mut self, object: ObjectRef, version: u64) -> bool {
        self.error = None;
        match self.objects.get(&object) {
            // Told late: we made it again since.
            Some(known) if known.version > version => return false,
            _ => {}
        }
        let was = self.objects.remove(&object).is_some();
        if self.gone.len() >= GONE_MAX {
            self.gone.clear();
        }
        self.gone.insert(object, version);
        was
    }

    fn put(&mut self, object: ObjectRef, mut entry: Entry) -> bool {
        self.error = None;
        match self.gone.get(&object) {
            // Told late: it went since.
            Some(gone) if *gone >= entry.version => return false,
            _ => {}
        }
        self.gone.remove(&object);
        match self.objects.get_mut(&object) {
            // Told late: we wrote since.
            Some(known) if known.version > entry.version => false,
            Some(known) => {
                entry.keep_last_good(known);
                let same = known.says_the_same(&entry);
                entry.share(known);
                *known = entry;
                !same
            }
            None => {
                self.objects.insert(object, entry);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::entry::{Status, Value};
    use egret_core::model::{Finding, Kind};

    fn object(name: &str) -> ObjectRef {
        ObjectRef {
            kind: Kind::Egress,
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    fn entry(version: u64, says: &str) -> Entry {
        Entry {
            version,
            uid: "u".to_owned(),
            generation: 1,
            kept: None,
            value: Value::Nothing,
            status: Status::None,
            gaps: crate::convert::Gaps::default(),
            findings: vec![Finding {
                object: object("a"),
                field: "spec".to_owned(),
                value: says.to_owned(),
                remedy: String::new(),
            }],
        }
    }

    fn listed(entries: &[(&str, u64)]) -> Watched {
        let mut watched = Watched::default();
        watched.take(News::Begin);
        for (name, version) in entries {
            watched.take(News::Listed(object(name), entry(*version, "first")));
        }
        assert!(watched.take(News::End));
        watched
    }

    #[test]
    fn a_heartbeat_is_no_change_and_a_list_that_says_the_same_neither() {
        let mut watched = listed(&[("a", 1)]);
        assert!(!watched.take(News::Put(object("a"), entry(2, "first"))));
        assert_eq!(watched.objects[&object("a")].version, 2);
        watched.take(News::Begin);
        watched.take(News::Listed(object("a"), entry(3, "first")));
        assert!(!watched.take(News::End));
        assert!(watched.take(News::Put(object("a"), entry(4, "second"))));
    }

    fn meaning(version: u64, pods: Option<&str>) -> Entry {
        let range = |text: &str| vec![text.parse().unwrap()];
        Entry {
            value: pods.map_or(Value::Nothing, |text| Value::ServiceCidrs(range(text))),
            findings: match pods {
                Some(_) => Vec::new(),
                None => entry(version, "cannot be understood").findings,
            },
            ..entry(version, "")
        }
    }

    #[test]
    fn what_cannot_be_understood_keeps_its_last_good_version() {
        let good = meaning(1, Some("10.0.0.0/8"));
        let mut watched = Watched::default();
        watched.take(News::Begin);
        watched.take(News::Listed(object("a"), good.clone()));
        watched.take(News::Listed(object("b"), meaning(1, None)));
        watched.take(News::End);
        // By a watch, and by a list after the watch was interrupted.
        assert!(watched.take(News::Put(object("a"), meaning(2, None))));
        let bad = watched.objects[&object("a")].clone();
        assert_eq!((&bad.value, bad.findings.len()), (&good.value, 1));
        watched.take(News::Begin);
        watched.take(News::Listed(object("a"), meaning(3, None)));
        watched.take(News::End);
        assert_eq!(watched.objects[&object("a")].value, good.value);
        // What was never good has no last good version, and neither has what was made anew by the same name.
        assert_eq!(meaning(1, None).value, Value::Nothing);
        let mut anew = meaning(4, None);
        anew.uid = "another".to_owned();
        assert!(watched.take(News::Put(object("a"), anew)));
        assert_eq!(watched.objects[&object("a")].value, Value::Nothing);
        let mended = meaning(5, Some("10.0.0.0/9"));
        assert!(watched.take(News::Put(object("a"), mended.clone())));
        assert_eq!(watched.objects[&object("a")].value, mended.value);
        assert_eq!(watched.objects[&object("a")].findings, []);
    }

    #[test]
    fn news_from_before_our_own_write_are_not_believed() {
        let mut watched = listed(&[("a", 1)]);
        assert!(watched.take(News::Put(object("a"), entry(5, "ours"))));
        assert!(!watched.take(News::Put(object("a"), entry(3, "late"))));
        assert!(!watched.take(News::Gone(object("a"), 4)));
        assert_eq!(watched.objects[&object("a")].version, 5);
    }

    #[test]
    fn the_answer_to_a_write_does_not_bring_back_what_went_since() {
        let mut watched = listed(&[("a", 1)]);
        assert!(watched.take(News::Gone(object("a"), 7)));
        assert!(!watched.take(News::Put(object("a"), entry(6, "late answer"))));
        assert!(watched.objects.is_empty());
        assert!(watched.take(News::Put(object("a"), entry(8, "made again"))));
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut watched = listed(&[("a", 1), ("b", 1)]);
        watched.take(News::Begin);
        watched.take(News::Listed(object("b"), entry(1, "first")));
        assert_eq!(watched.objects.len(), 2, "not before the list is whole");
        assert!(watched.take(News::End));
        assert!(!watched.objects.contains_key(&object("a")));
    }
}
