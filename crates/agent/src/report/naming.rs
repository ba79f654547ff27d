//! How many entries of a list a message names.

/// Entries of a list that a message names.
pub(super) const NAMED_MAX: usize = 5;

pub(super) fn and_more(all: usize) -> String {
    match all.saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}
