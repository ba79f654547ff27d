//! State of all watches, behind a lock, and the view made from it.

use super::entry::Entry;
use super::view_cache::ViewCache;
use super::watch::Watch;
use super::watched::{News, Watches, newest};
use crate::front_end;
use crate::source::View;
use egret_core::model::{ObjectRef, Settings};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// State of all watches.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By watched objects.
    pub watches: Watches,
    /// Incremented whenever a view would differ.
    pub version: u64,
    /// Enabled front-ends: required watches depend on the translation of their objects.
    pub front_ends: front_end::Settings,
    /// The latest view.
    pub cache: ViewCache,
    /// Version at which the required watches were last computed.
    pub rewatched: Option<u64>,
}

impl State {
    /// Records that a view would differ in this object, or in anything.
    fn touch(&mut self, object: Option<ObjectRef>) {
        self.version += 1;
        match object {
            Some(object) => self.cache.touch(object, self.version),
            None => self.cache.touch_all(self.version),
        }
    }

    /// Content of a view about the news' object, or that many objects may differ, if more than one watch has the kind:
    /// a repeated event of one watch may be newer than a later one of another.
    fn between_watches(&self, watch: &Watch, news: &News) -> Between {
        let kind = watch.kind();
        let several = self.watches.keys().filter(|one| one.kind() == kind).count() > 1;
        match (several, news) {
            (true, News::Put(object, _)) => Between::One(newest(&self.watches, object).cloned()),
            (true, News::End) => Between::Many,
            _ => Between::Nothing,
        }
    }

    /// Whether a view now differs from the result of [`State::between_watches`].
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

    /// The view of the current state.
    pub fn view(&mut self, settings: &Settings) -> View {
        self.cache.view(&self.watches, settings, &self.front_ends)
    }
}

/// Content of a view before news from one of several watches of a kind.
enum Between {
    /// There is one watch of the kind, so its own comparison is enough.
    Nothing,
    /// The entry of this object.
    One(Option<Entry>),
    /// Many objects may differ.
    Many,
}

/// Shared between the watches' tasks and the source's threads.
#[derive(Debug, Default)]
pub(super) struct Store {
    state: Mutex<State>,
    changed: Condvar,
}

impl Store {
    /// Locks the state; hold it only briefly.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is harmless: every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes news of a watch; ignores those of a watch that has been ended.
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

    /// Stores the API server's answer to a write, so that the next view has it before a watch event arrives.
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

    /// Wakes all waiting threads, although no object changed.
    pub fn touch(&self) {
        self.lock().version += 1;
        self.changed.notify_all();
    }

    /// The newest entry of an object among these watches.
    pub fn get(&self, watches: &[Watch], object: &ObjectRef) -> Option<Entry> {
        let state = self.lock();
        let found = watches
            .iter()
            .filter_map(|watch| state.watches.get(watch)?.objects.get(object));
        found.max_by_key(|entry| entry.version).cloned()
    }

    /// Waits until the version differs from `seen`, and then until it has been stable for `quiet`. Returns whether it
    /// differs.
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
