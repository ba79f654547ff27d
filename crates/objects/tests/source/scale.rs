//! The cost of a change does not grow with the number of other objects (P10).

use crate::scratch::{Scratch, pod};
use egret_objects::Source;
use std::time::{Duration, Instant};

const PODS: usize = 1_000;

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// One change of one pod must cost much less than reading everything. The limit is coarse, so that a busy machine does
/// not exceed it; parsing everything again would.
fn one_change_is_cheap(files: impl Fn(usize) -> Vec<(String, String)>) {
    let scratch = Scratch::new();
    for (name, text) in files(1) {
        scratch.put(&name, &text);
    }
    let mut source = scratch.open();
    let (view, first) = timed(|| source.snapshot().unwrap());
    assert_eq!(view.snapshot.pods.len(), PODS);
    // Files that changed just before are read twice; afterwards nothing changes.
    while source.wait(Duration::from_millis(100)).unwrap() {
        source.snapshot().unwrap();
    }
    let (_, idle) = timed(|| source.snapshot().unwrap());
    let mut change = Duration::MAX;
    for version in 2..6 {
        let (name, text) = files(version).remove(0);
        scratch.put(&name, &text);
        let (view, spent) = timed(|| source.snapshot().unwrap());
        let pod = &view.snapshot.pods[&("default".into(), "p0".into())];
        assert_eq!(pod.addresses[0].to_string(), format!("10.{version}.0.0"));
        change = change.min(spent);
    }
    println!("{PODS} pods: first {first:?}, idle {idle:?}, one change {change:?}");
    assert!(change < first / 4, "first {first:?}, one change {change:?}");
}

fn text(index: usize, version: usize) -> String {
    let version = if index == 0 { version } else { 1 };
    let ip = format!("10.{version}.{}.{}", index / 250, index % 250);
    pod(&format!("p{index}"), "worker1", &ip)
}

#[test]
fn one_pod_of_many_files() {
    one_change_is_cheap(|version| {
        (0..PODS)
            .map(|index| (format!("{index}.yaml"), text(index, version)))
            .collect()
    });
}

#[test]
fn one_pod_of_many_documents_in_one_file() {
    one_change_is_cheap(|version| {
        let all: Vec<String> = (0..PODS).map(|index| text(index, version)).collect();
        vec![("pods.yaml".to_owned(), all.join("---\n"))]
    });
}
