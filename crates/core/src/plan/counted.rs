//! Multisets that know their highest value.

use std::collections::BTreeMap;

/// Multiset of values: number of occurrences of each.
#[derive(Debug)]
pub(super) struct Counted<T>(BTreeMap<T, u32>);

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Counted(BTreeMap::new())
    }
}

impl<T: Ord + Copy> Counted<T> {
    /// Adds one occurrence.
    pub(super) fn add(&mut self, value: T) {
        *self.0.entry(value).or_default() += 1;
    }

    /// Removes one occurrence, if there is one.
    pub(super) fn remove(&mut self, value: T) {
        if let Some(count) = self.0.get_mut(&value) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&value);
            }
        }
    }

    /// The highest value.
    pub(super) fn highest(&self) -> Option<T> {
        self.0.last_key_value().map(|(value, _)| *value)
    }

    /// The highest value that is at most `max`.
    pub(super) fn highest_up_to(&self, max: T) -> Option<T> {
        self.0.range(..=max).next_back().map(|(value, _)| *value)
    }
}
