//! First difference between what is wanted and what the kernel holds, as text for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// First element that is in only one of the two sets, as text for people.
pub fn first_other<T: Ord + fmt::Display>(
    wanted: &BTreeSet<T>,
    found: &BTreeSet<T>,
) -> Option<String> {
    let gone = wanted.difference(found).next();
    let gone = gone.map(|one| format!("{one} is gone"));
    gone.or_else(|| {
        let strange = found.difference(wanted).next();
        strange.map(|one| format!("{one} is not of this agent's making"))
    })
}

/// First name whose content differs, as text for people.
pub fn first_changed<K: Ord, V: PartialEq>(
    wanted: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
    name: impl Fn(&K) -> String,
) -> Option<String> {
    let other = wanted
        .iter()
        .find(|(key, value)| found.get(key) != Some(value));
    if let Some((key, _)) = other {
        let how = if found.contains_key(key) {
            "was changed"
        } else {
            "is gone"
        };
        return Some(format!("{} {how}", name(key)));
    }
    let strange = found.keys().find(|key| !wanted.contains_key(key));
    strange.map(|key| format!("{} is not of this agent's making", name(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told_whichever_side_lacks_it() {
        let set = |items: &[u8]| items.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(first_other(&set(&[1, 2]), &set(&[1, 2])), None);
        let told = |wanted: &[u8], found: &[u8]| first_other(&set(wanted), &set(found)).unwrap();
        assert_eq!(told(&[1, 2, 3], &[1, 4]), "2 is gone");
        assert_eq!(told(&[1], &[1, 4]), "4 is not of this agent's making");
        let map = |items: &[(u8, u8)]| items.iter().copied().collect::<BTreeMap<_, _>>();
        let told = |wanted: &[(u8, u8)], found: &[(u8, u8)]| {
            first_changed(&map(wanted), &map(found), |key| format!("hop {key}"))
        };
        assert_eq!(told(&[(1, 1)], &[(1, 1)]), None);
        assert_eq!(told(&[(1, 1)], &[(1, 2)]).unwrap(), "hop 1 was changed");
        assert_eq!(told(&[(1, 1)], &[]).unwrap(), "hop 1 is gone");
        assert!(told(&[], &[(1, 1)]).unwrap().starts_with("hop 1 is not"));
    }
}
