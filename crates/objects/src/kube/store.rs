//! What the watches have told so far, behind a lock, and the view that it makes.

use super::entry::Entry;
use super::view_cache::ViewCache;
use super::watch::Watch;
use super::watched::{News, Watches, newest};
use crate::front_end;
use crate::source::View;
use egret_core::model::{ObjectRef, Settings};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every watch, behind a lock.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By what they watch.
    pub watches: Watches,
    /// Raised whenever a view would differ.
    pub version: u64,
    /// Front-ends that serve: which watches are needed depends on what their objects become.
    pub front_ends: front_end::Settings,
    /// The newest view.
    pub cache: ViewCache,
    /// What was known when it was last looked at which watches are needed.
    pub rewatched: Option<u64>,
}

impl State {
    /// A view would differ by this object, or by anything.
    fn touch(&mut self, object: Option<ObjectRef>) {
        self.version += 1;
        match object {
            Some(object) => self.cache.touch(object, self.version),
            None => self.cache.touch_all(self.version),
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
        self.cache.view(&self.watches, settings, &self.front_ends)
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
