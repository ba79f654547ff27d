//! `SharedMap` behaves like any sorted map, whatever happens to its copies, and comparing copies costs the differences.

use egret_core::model::{List, SharedMap};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    Put(u16, u8),
    Remove(u16),
    Change(u16, u8),
    ChangeAll,
    /// Retains every n-th entry.
    Thin(u16),
    /// Compare with this copy from here on.
    Copy,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0u16..500, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        12 => (0u16..500).prop_map(Step::Remove),
        6 => (0u16..500, any::<u8>()).prop_map(|(key, value)| Step::Change(key, value)),
        1 => Just(Step::ChangeAll),
        1 => (1u16..5).prop_map(Step::Thin),
        2 => Just(Step::Copy),
    ]
}

type Differences = Vec<(u16, Option<u8>)>;

fn expected(old: &BTreeMap<u16, u8>, new: &BTreeMap<u16, u8>) -> Differences {
    let keys: std::collections::BTreeSet<&u16> = old.keys().chain(new.keys()).collect();
    let differ = keys.into_iter().filter(|key| old.get(key) != new.get(key));
    differ.map(|key| (*key, new.get(key).copied())).collect()
}

fn found(old: &SharedMap<u16, u8>, new: &SharedMap<u16, u8>) -> Differences {
    let mut all = Vec::new();
    old.differences(new, |key, value| all.push((*key, value.map(|v| **v))));
    all
}

fn carry_out(step: &Step, objects: &mut SharedMap<u16, u8>, map: &mut BTreeMap<u16, u8>) {
    match step {
        Step::Put(key, value) => {
            let was = objects.insert(*key, *value);
            assert_eq!(was.as_deref().copied(), map.insert(*key, *value));
        }
        Step::Remove(key) => {
            let was = objects.remove(key);
            assert_eq!(was.as_deref().copied(), map.remove(key));
        }
        Step::Change(key, value) => {
            let known = objects.get_mut(key).map(|known| *known = *value);
            assert_eq!(known, map.get_mut(key).map(|known| *known = *value));
        }
        Step::ChangeAll => {
            objects.values_mut().for_each(|v| *v = v.wrapping_add(1));
            map.values_mut().for_each(|v| *v = v.wrapping_add(1));
        }
        Step::Thin(n) => {
            objects.retain(|key, _| key % n == 0);
            map.retain(|key, _| key % n == 0);
        }
        Step::Copy => {}
    }
}

proptest! {
    #![proptest_config(crate::scene::cases(200))]

    #[test]
    fn objects_are_a_sorted_map_and_copies_stay_what_they_were(
        first in 0u16..400,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut map: BTreeMap<u16, u8> = (0..first).map(|key| (key, 7)).collect();
        let mut objects: SharedMap<u16, u8> = (0..first).map(|key| (key, 7)).collect();
        let mut copies = vec![(objects.clone(), map.clone())];
        for step in &steps {
            carry_out(step, &mut objects, &mut map);
            if matches!(step, Step::Copy) {
                copies.push((objects.clone(), map.clone()));
            }
            prop_assert_eq!(objects.len(), map.len());
        }
        copies.push((objects, map));
        for (objects, map) in &copies {
            prop_assert!(objects.iter().eq(map.iter()));
            prop_assert!((0..500).all(|key| objects.get(&key) == map.get(&key)));
            prop_assert_eq!(objects.is_empty(), map.is_empty());
            let anew: SharedMap<u16, u8> = map.iter().rev().map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(objects, &anew);
        }
        for (old, old_map) in &copies {
            for (new, new_map) in &copies {
                prop_assert_eq!(found(old, new), expected(old_map, new_map));
                prop_assert_eq!(old == new, old_map == new_map);
            }
        }
    }
}

thread_local! {
    static COMPARED: Cell<u32> = const { Cell::new(0) };
}

#[derive(Clone, Debug)]
struct Counting(u32);

impl PartialEq for Counting {
    fn eq(&self, other: &Self) -> bool {
        COMPARED.set(COMPARED.get() + 1);
        self.0 == other.0
    }
}

#[test]
fn what_copies_share_is_not_compared() {
    let mut objects: SharedMap<u32, Counting> =
        (0..100_000).map(|key| (key, Counting(key))).collect();
    let before = objects.clone();
    objects.insert(77_777, Counting(1));
    objects.remove(&5);
    objects.insert(100_000, Counting(2));
    let mut differing = Vec::new();
    before.differences(&objects, |key, value| {
        differing.push((*key, value.is_some()))
    });
    assert_eq!(differing, [(5, false), (77_777, true), (100_000, true)]);
    assert!(COMPARED.get() <= 2, "{} values compared", COMPARED.get());
}

#[test]
fn a_list_changes_in_one_copy_only() {
    let mut list: List<u8> = vec![1, 2].into();
    let before = list.clone();
    list.push(3);
    for value in &mut list {
        *value += 1;
    }
    assert_eq!(
        (before.to_vec(), list.to_vec()),
        (vec![1, 2], vec![2, 3, 4])
    );
    let shared: Arc<u8> = Arc::new(1);
    let mut objects = SharedMap::from_iter([("a", shared.clone())]);
    objects.values_mut().for_each(|value| *value = 9);
    assert_eq!((*shared, objects["a"]), (1, 9));
}
