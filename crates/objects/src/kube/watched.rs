//! Objects of one watch as model values, and whether its first list is complete.

use super::entry::Entry;
use super::watch::Watch;
use egret_core::model::ObjectRef;
use std::collections::BTreeMap;
use tokio::task::AbortHandle;

/// Deleted objects that are remembered: a late answer to a write arrives within seconds.
const GONE_MAX: usize = 1024;

/// Objects by name.
pub(super) type Objects = BTreeMap<ObjectRef, Entry>;

/// State of one watch.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Whether a list has completed.
    pub synced: bool,
    /// Error, as long as the watch fails.
    pub error: Option<String>,
    /// Its objects.
    pub objects: Objects,
    /// Objects of a list that is under way.
    listing: Option<Objects>,
    /// Versions at which objects were deleted, so that a late answer to a write does not restore one.
    gone: BTreeMap<ObjectRef, u64>,
    /// Handle that aborts its task.
    pub task: Option<AbortHandle>,
}

/// All watches, by target.
pub(super) type Watches = BTreeMap<Watch, Watched>;

/// News from a watch.
pub(super) enum News {
    /// A list starts.
    Begin,
    /// One object of the list.
    Listed(ObjectRef, Entry),
    /// The list is complete: objects that it lacks are deleted.
    End,
    /// An object was added or changed.
    Put(ObjectRef, Entry),
    /// An object was deleted, at this version.
    Gone(ObjectRef, u64),
    /// The watch failed.
    Trouble(String),
    /// The API server does not have the kind, which counts as no objects.
    Absent,
}

impl News {
    /// The object of the news; `None` if it concerns many.
    pub fn object(&self) -> Option<&ObjectRef> {
        match self {
            News::Put(object, _) | News::Gone(object, _) => Some(object),
            _ => None,
        }
    }
}

impl Watched {
    /// A watch without news so far.
    pub fn by(task: AbortHandle) -> Self {
        Self {
            task: Some(task),
            ..Self::default()
        }
    }

    /// Processes news; returns whether a view would differ.
    pub fn take(&mut self, news: News) -> bool {
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
            // A write of our own may be newer than the list; the watch resumes from the list and reports the rest.
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
            // Late: it was created again since.
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
            // Late: it was deleted since.
            Some(gone) if *gone >= entry.version => return false,
            _ => {}
        }
        self.gone.remove(&object);
        match self.objects.get_mut(&object) {
            // Late: it was written since.
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

/// The newest entry of an object: two watches may have it while one replaces the other.
pub(super) fn newest<'a>(watches: &'a Watches, object: &ObjectRef) -> Option<&'a Entry> {
    let watches = watches
        .iter()
        .filter(|(watch, _)| watch.kind() == object.kind);
    let entries = watches.filter_map(|(_, watched)| watched.objects.get(object));
    entries.max_by_key(|entry| entry.version)
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
        // By a watch event, and by a list after the watch was interrupted.
        assert!(watched.take(News::Put(object("a"), meaning(2, None))));
        let bad = watched.objects[&object("a")].clone();
        assert_eq!((&bad.value, bad.findings.len()), (&good.value, 1));
        watched.take(News::Begin);
        watched.take(News::Listed(object("a"), meaning(3, None)));
        watched.take(News::End);
        assert_eq!(watched.objects[&object("a")].value, good.value);
        // An object that was never valid has no last good value, and neither has one that was recreated under the same
        // name.
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
