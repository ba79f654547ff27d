//! Many random edits: a reader that followed all of them has the same view as one that starts afterwards.

use crate::scratch::{Ask, Scratch, egress, pod};
use egret_objects::Source;
use std::collections::BTreeMap;
use std::fs;

/// A small generator (Knuth's MMIX), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn document(random: &mut Random) -> String {
    let name = format!("n{}", random.below(5));
    match random.below(8) {
        0..=2 => egress(&name, &format!("192.0.2.{}", random.below(3))),
        3 | 4 => pod(
            &name,
            "worker1",
            &format!("10.244.1.{}", 1 + random.below(3)),
        ),
        5 => egress(&name, "bad address"),
        6 => "kind: [\n".to_owned(),
        _ => "# nothing\n".to_owned(),
    }
}

fn edit(scratch: &Scratch, random: &mut Random) {
    let name = ["a.yaml", "b/c.yaml", "b/d.yml"][usize::try_from(random.below(3)).unwrap()];
    let documents: Vec<String> = (0..random.below(4)).map(|_| document(random)).collect();
    let text = documents.join("---\n");
    match random.below(6) {
        0 => drop(fs::remove_file(scratch.path(name))),
        // In place, often within one tick of the clock and without a change of size.
        1 if scratch.path(name).exists() => fs::write(scratch.path(name), text).unwrap(),
        2 => drop(fs::remove_dir_all(scratch.path("status"))),
        _ => scratch.put(name, &text),
    }
}

#[test]
fn a_reader_that_followed_every_edit_agrees_with_a_fresh_one() {
    for seed in 0..6 {
        let scratch = Scratch::new();
        let mut random = Random(seed);
        let (mut one, mut two) = (scratch.open(), scratch.open());
        for step in 0..60 {
            edit(&scratch, &mut random);
            // Either of the two may write the copies.
            let mut views = BTreeMap::new();
            if random.below(2) == 0 {
                views.insert("two", two.snapshot().unwrap());
            }
            views.insert("one", one.snapshot().unwrap());
            views.insert("again", one.snapshot().unwrap());
            let fresh = scratch.view();
            for (name, view) in &views {
                assert_eq!(*view, fresh, "reader {name}, seed {seed}, step {step}");
            }
        }
    }
}

#[test]
fn the_same_size_within_one_tick_is_still_a_change() {
    let scratch = Scratch::new();
    let mut source = scratch.open();
    for round in 0..200 {
        let ip = format!("192.0.2.{}", 100 + round % 100);
        scratch.put("a.yaml", &egress("p", &ip));
        let view = source.snapshot().unwrap();
        assert!(
            format!("{:?}", view.policy("p").unwrap().addresses).contains(&ip),
            "{round}"
        );
    }
}
