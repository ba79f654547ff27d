//! Objects by key; copies of a map share equal entries.
//!
//! ```text
//!  SharedMap -- Arc --> [ chunk, chunk, chunk, ... ]       sorted; at most CHUNK_MAX entries each
//!                         |      ^
//!                         v      +---- the same chunk in the copy
//!                     [ (key, Arc<value>), ... ]
//! ```
//!
//! Copying a map costs one pointer. Changing a copy costs one chunk and the list of chunks. Comparing two copies costs
//! the chunks that differ, however many objects there are (P10). Equality, order and serialised form are those of a
//! `BTreeMap`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut, Index};
use std::sync::Arc;

/// Maximum number of entries of one chunk, which one change copies. The list of chunks of 100,000 objects is copied as
/// fast.
const CHUNK_MAX: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, Arc<V>)>>;

/// A sorted map, cheap to copy and to compare with its copies.
pub struct SharedMap<K, V> {
    /// No chunk is empty.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> SharedMap<K, V> {
    /// An empty map.
    pub fn new() -> Self {
        Self {
            chunks: Arc::new(Vec::new()),
            len: 0,
        }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every object, by its key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            chunks: self.chunks.iter(),
            entries: [].iter(),
        }
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// Every object.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// Removes every object.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// Position of the key, or position at which to insert it: chunk, and index in it. The chunk is the last whose
    /// first key is not greater than the key, or the first of all.
    fn find<Q>(&self, key: &Q) -> Result<(usize, usize), (usize, usize)>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let behind = |chunk: &Chunk<K, V>| chunk.first().is_some_and(|(k, _)| k.borrow() <= key);
        let chunk = self.chunks.partition_point(behind).saturating_sub(1);
        let Some(entries) = self.chunks.get(chunk) else {
            return Err((0, 0));
        };
        match entries.binary_search_by(|(known, _)| known.borrow().cmp(key)) {
            Ok(position) => Ok((chunk, position)),
            Err(position) => Err((chunk, position)),
        }
    }

    /// The object of this key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.get_shared(key).map(Arc::as_ref)
    }

    /// The object of this key, as shared pointer.
    pub fn get_shared<Q>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (chunk, position) = self.find(key).ok()?;
        Some(&self.chunks[chunk][position].1)
    }

    /// The object of this key, with the key that the map has.
    pub fn get_key_value<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (chunk, position) = self.find(key).ok()?;
        let (key, value) = &self.chunks[chunk][position];
        Some((key, value))
    }

    /// Whether an object of this key exists.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.find(key).is_ok()
    }
}

impl<K: Ord + Clone, V> SharedMap<K, V> {
    /// Inserts or replaces an object; returns the previous one.
    pub fn insert(&mut self, key: K, value: impl Into<Arc<V>>) -> Option<Arc<V>> {
        let value = value.into();
        let found = self.find(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let (at, position) = match found {
            Ok((at, position)) => {
                let known = &mut Arc::make_mut(&mut chunks[at])[position].1;
                return Some(std::mem::replace(known, value));
            }
            Err(place) => place,
        };
        self.len += 1;
        let is_last = at + 1 >= chunks.len();
        match chunks.get_mut(at) {
            None => chunks.push(Arc::new(vec![(key, value)])),
            // Appending in order, as lists arrive: leave chunks full.
            Some(full) if full.len() >= CHUNK_MAX && is_last && position == full.len() => {
                chunks.push(Arc::new(vec![(key, value)]));
            }
            Some(chunk) => {
                let entries = Arc::make_mut(chunk);
                entries.insert(position, (key, value));
                if entries.len() > CHUNK_MAX {
                    let rest = entries.split_off(entries.len() / 2);
                    chunks.insert(at + 1, Arc::new(rest));
                }
            }
        }
        None
    }

    /// Removes an object and returns it.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (at, position) = self.find(key).ok()?;
        self.len -= 1;
        let chunks = Arc::make_mut(&mut self.chunks);
        let (_, value) = Arc::make_mut(&mut chunks[at]).remove(position);
        // Merge small neighbours, so that inserting and removing leaves no small chunks.
        let with_next = |at: usize| chunks.get(at + 1).map(|next| chunks[at].len() + next.len());
        if chunks[at].is_empty() {
            chunks.remove(at);
        } else if with_next(at).is_some_and(|both| both <= CHUNK_MAX / 2) {
            let next = chunks.remove(at + 1);
            Arc::make_mut(&mut chunks[at]).extend(next.iter().cloned());
        }
        Some(value)
    }

    /// Removes the objects for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter());
        *self = all
            .filter(|(key, value)| keep(key, value))
            .cloned()
            .collect();
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Mutable access to an object; copies of the map are not affected.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (at, position) = self.find(key).ok()?;
        let chunk = &mut Arc::make_mut(&mut self.chunks)[at];
        Some(Arc::make_mut(&mut Arc::make_mut(chunk)[position].1))
    }

    /// Mutable access to every object; copies of the map are not affected.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let chunks = Arc::make_mut(&mut self.chunks).iter_mut();
        let entries = chunks.flat_map(|chunk| Arc::make_mut(chunk).iter_mut());
        entries.map(|(_, value)| Arc::make_mut(value))
    }
}

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// Calls `found`, in order of keys, with every key whose object differs and with its object in `newer`; `None` if
    /// it was removed. Shared chunks are not compared.
    pub fn differences<'a>(
        &'a self,
        newer: &'a Self,
        mut found: impl FnMut(&'a K, Option<&'a Arc<V>>),
    ) {
        if Arc::ptr_eq(&self.chunks, &newer.chunks) {
            return;
        }
        let (mut old, mut new) = (Cursor::of(self), Cursor::of(newer));
        loop {
            if old.skip_shared(&mut new) {
                continue;
            }
            match (old.entry(), new.entry()) {
                (None, None) => return,
                (Some((key, _)), None) => {
                    found(key, None);
                    old.advance();
                }
                (None, Some((key, value))) => {
                    found(key, Some(value));
                    new.advance();
                }
                (Some((before, was)), Some((after, is))) => match before.cmp(after) {
                    std::cmp::Ordering::Less => {
                        found(before, None);
                        old.advance();
                    }
                    std::cmp::Ordering::Greater => {
                        found(after, Some(is));
                        new.advance();
                    }
                    std::cmp::Ordering::Equal => {
                        if !Arc::ptr_eq(was, is) && was != is {
                            found(after, Some(is));
                        }
                        old.advance();
                        new.advance();
                    }
                },
            }
        }
    }
}

/// A position between entries.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    position: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn of(objects: &'a SharedMap<K, V>) -> Self {
        Self {
            chunks: &objects.chunks,
            position: 0,
        }
    }

    fn entry(&self) -> Option<&'a (K, Arc<V>)> {
        self.chunks.first()?.get(self.position)
    }

    fn advance(&mut self) {
        self.position += 1;
        if self
            .chunks
            .first()
            .is_some_and(|c| self.position >= c.len())
        {
            self.next_chunk();
        }
    }

    fn next_chunk(&mut self) {
        self.chunks = &self.chunks[1..];
        self.position = 0;
    }

    /// Skips the chunk that both cursors stand before if it is the same; returns whether it was.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let (Some(own), Some(theirs)) = (self.chunks.first(), other.chunks.first()) else {
            return false;
        };
        let shared = self.position == 0 && other.position == 0 && Arc::ptr_eq(own, theirs);
        if shared {
            self.next_chunk();
            other.next_chunk();
        }
        shared
    }
}

/// Every object, by its key.
pub struct Iter<'a, K, V> {
    chunks: std::slice::Iter<'a, Chunk<K, V>>,
    entries: std::slice::Iter<'a, (K, Arc<V>)>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            entries: self.entries.clone(),
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key, value));
            }
            self.entries = self.chunks.next()?.iter();
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord + Clone, V, A: Into<Arc<V>>> FromIterator<(K, A)> for SharedMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, A)>>(entries: T) -> Self {
        let mut all = Self::new();
        all.extend(entries);
        all
    }
}

impl<K: Ord + Clone, V, A: Into<Arc<V>>> Extend<(K, A)> for SharedMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, A)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V>
where
    K: Borrow<Q>,
{
    type Output = V;

    /// # Panics
    /// There is none of this key.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry found for key")
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut same = self.len == other.len;
        if same {
            self.differences(other, |_, _| same = false);
        }
        same
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de, K, V> Deserialize<'de> for SharedMap<K, V>
where
    K: Ord + Clone + Deserialize<'de>,
    V: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = BTreeMap::<K, V>::deserialize(deserializer)?;
        Ok(all.into_iter().collect())
    }
}

/// A list that is cheap to copy; changing a copy copies the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(Arc<Vec<T>>);

impl<T> Default for List<T> {
    fn default() -> Self {
        List(Arc::default())
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(list: Vec<T>) -> Self {
        List(Arc::new(list))
    }
}

impl<T> Deref for List<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: Clone> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        Arc::make_mut(&mut self.0)
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T: Clone> IntoIterator for &'a mut List<T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}
