//! An invalid edit never takes an object out of force, even over a restart, and is reported with file, line and field.

use crate::scratch::{Ask, Scratch, egress, pod, policy_ref};
use egret_core::model::Kind;
use egret_objects::{Source, View};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Checks both the reader that read the valid version and one that starts now.
fn both(scratch: &Scratch, source: &mut impl Source, check: impl Fn(&View)) {
    check(&source.snapshot().unwrap());
    check(&scratch.view());
}

#[test]
fn a_bad_field_keeps_the_last_good_one_and_touches_no_other() {
    let scratch = Scratch::new();
    let (one, two) = (egress("one", "192.0.2.1"), egress("two", "192.0.2.2"));
    scratch.put("dir/a.yaml", &format!("{one}---\n{two}"));
    let mut source = scratch.open();
    let before = source.snapshot().unwrap();
    scratch.put(
        "dir/a.yaml",
        &format!("{one}---\n{}", two.replace("192.0.2.2", "192.0.2.300")),
    );
    both(&scratch, &mut source, |view| {
        assert_eq!(view.snapshot, before.snapshot);
        let finding = view.finding("spec.ip");
        assert_eq!(finding.object, policy_ref("two"));
        assert_eq!(finding.value, "192.0.2.300");
        // Eight lines of the first document, then the separator.
        assert!(
            finding.remedy.contains("dir/a.yaml line 17"),
            "{}",
            finding.remedy
        );
        assert!(
            finding.remedy.contains("last good one stays"),
            "{}",
            finding.remedy
        );
    });
    scratch.put(
        "dir/a.yaml",
        &format!("{one}---\n{}", two.replace("192.0.2.2", "192.0.2.3")),
    );
    both(&scratch, &mut source, |view| {
        view.assert_clean();
        assert_eq!(view.policy("two").unwrap().generation, 2);
    });
}

#[test]
fn a_bad_object_without_a_good_past_is_left_out_alone() {
    let scratch = Scratch::new();
    let bad = egress("bad", "nonsense");
    scratch.put(
        "a.yaml",
        &format!("{bad}---\n{}", egress("good", "192.0.2.2")),
    );
    let view = scratch.view();
    assert_eq!(view.names(), ["good"]);
    assert!(!view.finding("spec.ip").remedy.contains("last good"));
}

#[test]
fn broken_yaml_keeps_the_objects_of_its_file_and_carries_out_its_neighbours() {
    let scratch = Scratch::new();
    let (one, two) = (egress("one", "192.0.2.1"), egress("two", "192.0.2.2"));
    scratch.put("a.yaml", &format!("{one}---\n{two}"));
    scratch.put("b.yaml", &egress("other", "192.0.2.3"));
    let mut source = scratch.open();
    source.snapshot().unwrap();
    let torn = two.replace("    app: two", "    app: [two");
    scratch.put(
        "a.yaml",
        &format!("{}---\n{torn}", one.replace("192.0.2.1", "192.0.2.9")),
    );
    scratch.remove("b.yaml");
    both(&scratch, &mut source, |view| {
        assert_eq!(
            view.names(),
            ["one", "two"],
            "other vanished with its file, two stays"
        );
        assert!(format!("{:?}", view.policy("one").unwrap().addresses).contains("192.0.2.9"));
        assert_eq!(view.findings.len(), 1, "{:#?}", view.findings);
        assert_eq!(view.findings[0].object.kind, Kind::File);
        assert_eq!(view.findings[0].object.name, "a.yaml");
        assert!(
            view.findings[0].remedy.contains("line 1"),
            "{}",
            view.findings[0].remedy
        );
    });
    // The document is removed for good: no unclear one is left, so the object is removed.
    scratch.put("a.yaml", &one);
    both(&scratch, &mut source, |view| {
        view.assert_clean();
        assert_eq!(view.names(), ["one"]);
    });
}

#[test]
fn every_torn_prefix_of_a_file_keeps_every_policy() {
    let scratch = Scratch::new();
    let text = format!(
        "{}---\n{}",
        egress("one", "192.0.2.1"),
        egress("two", "192.0.2.2")
    );
    // Cut inside the second document's head, where it does not name its object yet; and the empty file that `command >
    // file` leaves while the command runs.
    let second = text.find("---").unwrap() + 4;
    let cuts = [
        0,
        second + 5,
        second + 20,
        second + 32,
        second + 45,
        second + 56,
    ];
    for cut in cuts {
        scratch.put("a.yaml", &text);
        let mut source = scratch.open();
        assert_eq!(source.snapshot().unwrap().names(), ["one", "two"]);
        scratch.put("a.yaml", &text[..cut]);
        both(&scratch, &mut source, |view| {
            assert_eq!(view.names(), ["one", "two"], "after {:?}", &text[..cut]);
            assert!(!view.findings.is_empty(), "after {:?}", &text[..cut]);
        });
    }
    scratch.remove("a.yaml");
    assert!(scratch.view().names().is_empty());
}

#[test]
fn a_bad_pod_keeps_its_last_good_address() {
    let scratch = Scratch::new();
    scratch.put("pod.yaml", &pod("a1", "worker1", "10.244.1.5"));
    let mut source = scratch.open();
    source.snapshot().unwrap();
    scratch.put("pod.yaml", &pod("a1", "worker1", "10.244.1"));
    both(&scratch, &mut source, |view| {
        let pod = &view.snapshot.pods[&("default".into(), "a1".into())];
        assert_eq!(
            pod.addresses,
            ["10.244.1.5".parse::<std::net::IpAddr>().unwrap()]
        );
        assert!(
            view.finding("status.podIPs[0].ip")
                .remedy
                .contains("pod.yaml line 9")
        );
    });
}

#[test]
fn files_that_cannot_be_read_keep_their_objects() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("a", "192.0.2.1"));
    let mut source = scratch.open();
    source.snapshot().unwrap();
    fs::write(scratch.path("a.yaml"), b"kind: \xff\xfe").unwrap();
    both(&scratch, &mut source, |view| {
        assert_eq!(view.names(), ["a"]);
        assert!(
            view.findings[0].remedy.contains("UTF-8"),
            "{:?}",
            view.findings
        );
    });
}

#[test]
fn reading_goes_on_where_status_cannot_be_written() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("a", "192.0.2.1"));
    fs::write(scratch.path("status"), "a file is in the way").unwrap();
    fs::set_permissions(scratch.path("status"), fs::Permissions::from_mode(0o444)).unwrap();
    let result = scratch.open().snapshot();
    let view = result.unwrap();
    assert_eq!(view.names(), ["a"]);
    assert_eq!(view.findings[0].object.name, "status");
}

#[test]
fn copies_that_somebody_removed_are_written_again_while_their_manifest_is_bad() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("a", "192.0.2.1"));
    scratch.put("b.yaml", &egress("b", "192.0.2.2"));
    let mut source = scratch.open();
    let before = source.snapshot().unwrap();
    scratch.put("a.yaml", &egress("a", "nonsense"));
    scratch.put("b.yaml", "kind: [");
    source.snapshot().unwrap();
    fs::remove_dir_all(scratch.path("status")).unwrap();
    both(&scratch, &mut source, |view| {
        assert_eq!(view.snapshot, before.snapshot)
    });
    scratch.remove("a.yaml");
    scratch.remove("b.yaml");
    both(&scratch, &mut source, |view| {
        view.assert_clean();
        assert!(view.names().is_empty());
    });
}
