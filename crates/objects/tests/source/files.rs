//! Which files are read, and how they change.

use crate::scratch::{Ask, Scratch, egress, eventually, pod, settings};
use egret_core::model::NodeName;
use egret_objects::dir::DirSource;
use egret_objects::{Source, SourceError};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

#[test]
fn documents_lists_and_json_are_all_read() {
    let scratch = Scratch::new();
    let (one, two) = (egress("one", "192.0.2.1"), egress("two", "192.0.2.2"));
    scratch.put(
        "a.yaml",
        &format!("# a comment\n---\n{one}---\n# nothing\n---\n{two}...\n"),
    );
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "egret.dev/v1alpha1", "kind": "Egress", "metadata": {"name": "three"},
         "spec": {"selector": {}, "ip": "192.0.2.3"}}]}"#;
    scratch.put("deep/er/b.json", list);
    let pods =
        "kind: PodList\napiVersion: v1\nitems:\n- metadata: {name: p}\n  spec: {nodeName: n}\n";
    scratch.put("c.yml", pods);
    let view = scratch.view();
    view.assert_clean();
    assert_eq!(view.names(), ["one", "three", "two"]);
    let pod = &view.snapshot.pods[&("default".into(), "p".into())];
    assert_eq!(pod.node, NodeName("n".into()));
    assert!(!pod.uid.is_empty());
}

#[test]
fn hidden_backup_temporary_and_status_files_are_no_input() {
    let scratch = Scratch::new();
    let names = [
        ".a.yaml",
        "b.yaml~",
        "c.yaml.tmp",
        "d.txt",
        ".git/e.yaml",
        "status/f.yaml",
        "g.tmp/h.yaml",
    ];
    for (index, name) in names.iter().enumerate() {
        fs::create_dir_all(scratch.path(name).parent().unwrap()).unwrap();
        fs::write(
            scratch.path(name),
            egress(&format!("p{index}"), "192.0.2.1"),
        )
        .unwrap();
    }
    scratch.put("sub/status/i.yaml", &egress("read", "192.0.2.2"));
    let view = scratch.view();
    view.assert_clean();
    assert_eq!(view.names(), ["read"]);
}

#[test]
fn kinds_of_others_are_passed_over_and_unknown_kinds_of_ours_are_not() {
    let scratch = Scratch::new();
    let manifest = |version: &str, kind: &str| {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n")
    };
    scratch.put("a.yaml", &manifest("apps/v1", "Deployment"));
    scratch.put("b.yaml", &manifest("egress.mapper.com/v1alpha1", "Egress"));
    scratch.view().assert_clean();
    for (version, kind) in [
        ("egret.dev/v1alpha1", "Egres"),
        ("egret.dev/v1", "Egress"),
        ("egret.dev/v1alpha1", "Pod"),
    ] {
        scratch.put("c.yaml", &manifest(version, kind));
        let view = scratch.view();
        let finding = view.finding("apiVersion");
        assert_eq!(finding.object.to_string(), "File c.yaml");
        assert!(finding.remedy.contains("write"), "{finding:?}");
    }
    for kind in ["EgressAddress", "EgressNode"] {
        scratch.put("c.yaml", &manifest("egret.dev/v1alpha1", kind));
        assert!(
            scratch
                .view()
                .finding("kind")
                .remedy
                .contains("Egret writes this kind")
        );
    }
}

#[test]
fn of_two_files_with_one_object_the_first_path_counts() {
    let scratch = Scratch::new();
    scratch.put("b.yaml", &egress("p", "192.0.2.2"));
    scratch.put("a/z.yaml", &egress("p", "192.0.2.1"));
    let mut source = scratch.open();
    let view = source.snapshot().unwrap();
    let finding = view.finding("metadata.name");
    assert!(
        finding.remedy.contains("a/z.yaml line 1"),
        "{}",
        finding.remedy
    );
    assert!(
        finding.remedy.contains("b.yaml line 1"),
        "{}",
        finding.remedy
    );
    assert!(format!("{:?}", view.policy("p").unwrap().addresses).contains("192.0.2.1"));
    scratch.remove("a/z.yaml");
    let view = source.snapshot().unwrap();
    view.assert_clean();
    let policy = view.policy("p").unwrap();
    assert!(format!("{:?}", policy.addresses).contains("192.0.2.2"));
    assert_eq!(policy.generation, 2);
}

#[test]
fn a_vanished_file_deletes_its_objects_and_their_copies() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("p", "192.0.2.1"));
    scratch.put("pod.yaml", &pod("a1", "worker1", "10.244.1.5"));
    let mut source = scratch.open();
    assert_eq!(source.snapshot().unwrap().names(), ["p"]);
    assert!(scratch.path("status/Egress/default.p.yaml").exists());
    assert!(scratch.path("status/Pod/default.a1.yaml").exists());
    scratch.remove("a.yaml");
    scratch.remove("pod.yaml");
    let view = source.snapshot().unwrap();
    view.assert_clean();
    assert!(view.names().is_empty() && view.snapshot.pods.is_empty());
    assert!(!scratch.path("status/Egress/default.p.yaml").exists());
    assert!(!scratch.path("status/Pod/default.a1.yaml").exists());
}

#[test]
fn generation_rises_with_the_spec_only_and_creation_stays() {
    let scratch = Scratch::new();
    let text = egress("p", "192.0.2.1");
    scratch.put("a.yaml", &text);
    let mut source = scratch.open();
    let first = source.snapshot().unwrap().policy("p").unwrap().clone();
    assert_eq!(first.generation, 1);
    assert!(first.created_secs > 1_700_000_000);
    scratch.put(
        "a.yaml",
        &text.replace("metadata:", "metadata:\n  labels: {team: x}"),
    );
    assert_eq!(source.snapshot().unwrap().policy("p"), Some(&first));
    scratch.put("a.yaml", &text.replace("192.0.2.1", "192.0.2.9"));
    let edited = scratch.view().policy("p").unwrap().clone();
    assert_eq!(edited.generation, 2);
    assert_eq!(
        (edited.uid, edited.created_secs),
        (first.uid, first.created_secs)
    );
    let dated = text.replace(
        "metadata:",
        "metadata:\n  uid: u-1\n  creationTimestamp: 2020-01-01T00:00:00Z",
    );
    scratch.put("a.yaml", &dated);
    let dated = source.snapshot().unwrap().policy("p").unwrap().clone();
    assert_eq!(
        (dated.uid.as_str(), dated.created_secs),
        ("u-1", 1_577_836_800)
    );
}

#[test]
fn a_reader_that_must_leave_no_trace_leaves_none() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("p", "192.0.2.1"));
    let mut source = scratch.open_read_only();
    let view = source.snapshot().unwrap();
    assert_eq!(view.policy("p").unwrap().generation, 1);
    assert!(!scratch.path("status").exists());
    let error = source
        .delete_address("192.0.2.1".parse().unwrap(), 0)
        .unwrap_err();
    assert!(matches!(error, SourceError::ReadOnly));
}

#[test]
fn a_mount_swapped_by_symlink_is_one_change() {
    let scratch = Scratch::new();
    // As the kubelet lays out a ConfigMap: file -> ..data/file, ..data -> ..1.
    let version = |number: u32| {
        let name = format!("policies/..{number}");
        for file in ["a", "b"] {
            let text = egress(&format!("{file}-{number}"), &format!("192.0.2.{number}"));
            scratch.put(&format!("{name}/{file}.yaml"), &text);
        }
        symlink(format!("..{number}"), scratch.path("policies/..data.new")).unwrap();
        fs::rename(
            scratch.path("policies/..data.new"),
            scratch.path("policies/..data"),
        )
        .unwrap();
    };
    version(1);
    for file in ["a.yaml", "b.yaml"] {
        symlink(
            format!("..data/{file}"),
            scratch.path(&format!("policies/{file}")),
        )
        .unwrap();
    }
    let mut source = scratch.open();
    assert_eq!(source.snapshot().unwrap().names(), ["a-1", "b-1"]);
    for number in 2..20 {
        version(number);
        assert!(
            source.wait(Duration::from_secs(5)).unwrap(),
            "swap {number} not noticed"
        );
        let view = source.snapshot().unwrap();
        assert_eq!(view.names(), [format!("a-{number}"), format!("b-{number}")]);
    }
}

#[test]
fn waiting_wakes_for_new_files_new_directories_and_files_behind_links() {
    let scratch = Scratch::new();
    let elsewhere = Scratch::new();
    let mut source = scratch.open();
    assert!(source.snapshot().unwrap().names().is_empty());
    scratch.put("new/dir/a.yaml", &egress("a", "192.0.2.1"));
    eventually(&mut source, "a file in new directories", |view| {
        view.names() == ["a"]
    });
    scratch.put("new/dir/b.yaml", &egress("b", "192.0.2.2"));
    eventually(&mut source, "a second file there", |view| {
        view.names() == ["a", "b"]
    });
    elsewhere.put("c.yaml", &egress("c", "192.0.2.3"));
    symlink(elsewhere.path("c.yaml"), scratch.path("c.yaml")).unwrap();
    eventually(&mut source, "a linked file", |view| {
        view.names() == ["a", "b", "c"]
    });
    // inotify reports nothing about this directory; the comparison of signatures does.
    elsewhere.put("c.yaml", &egress("d", "192.0.2.3"));
    eventually(&mut source, "a file behind a link", |view| {
        view.names() == ["a", "b", "d"]
    });
}

#[test]
fn waiting_ends_in_quiet_when_nothing_changes() {
    let scratch = Scratch::new();
    scratch.put("a.yaml", &egress("a", "192.0.2.1"));
    let mut source = scratch.open();
    let mut other = scratch.open();
    source.snapshot().unwrap();
    // Own copies and young files may cause a few wake-ups, but readers must not wake each other forever.
    let mut woken = 0;
    while source.wait(Duration::from_millis(150)).unwrap() {
        source.snapshot().unwrap();
        other.snapshot().unwrap();
        woken += 1;
        assert!(woken < 20, "readers wake each other for ever");
    }
}

#[test]
fn a_directory_that_is_not_there_is_an_error_and_no_empty_view() {
    let scratch = Scratch::new();
    assert!(DirSource::open(scratch.path("none"), settings()).is_err());
    let inner = scratch.path("inner");
    fs::create_dir(&inner).unwrap();
    let mut source = DirSource::open(&inner, settings()).unwrap();
    source.snapshot().unwrap();
    fs::remove_dir_all(&inner).unwrap();
    assert!(source.snapshot().is_err());
}

#[test]
fn loops_of_directories_end() {
    let scratch = Scratch::new();
    scratch.put("a/b.yaml", &egress("b", "192.0.2.1"));
    symlink("..", scratch.path("a/up")).unwrap();
    let view = scratch.view();
    assert_eq!(view.names(), ["b"]);
    assert!(
        view.findings[0].remedy.contains("loop"),
        "{:?}",
        view.findings
    );
}
