//! `deploy/examples` is what people copy: every file contains objects, and none has a finding.

use crate::scratch::{Ask, Scratch};
use egret_core::model::{AddressRequest, Namespaces, Selection};
use egret_core::model::{LabelSelector, Requirement};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_example_is_understood() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples");
    let mut files = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let scratch = Scratch::new();
        scratch.put("example.yaml", &std::fs::read_to_string(&path).unwrap());
        let view = scratch.view();
        view.assert_clean();
        let snapshot = &view.snapshot;
        let objects = snapshot.policies.len() + snapshot.gateways.len() + snapshot.pools.len();
        assert!(objects >= 1, "{} says nothing", path.display());
        files += 1;
    }
    assert!(files >= 6, "only {files} examples");
}

#[test]
fn the_proposals_own_manifest_means_what_it_says() {
    let scratch = Scratch::new();
    let text = include_str!("../../../../deploy/examples/egress.yaml");
    scratch.put("a.yaml", text);
    let view = scratch.view();
    let policy = view.policy("my-egress").unwrap();
    assert_eq!(policy.object.to_string(), "Egress default/my-egress");
    assert_eq!(
        policy.addresses,
        AddressRequest::Fixed(vec!["192.168.122.222".parse().unwrap()])
    );
    assert_eq!(policy.destinations, None);
    let labels = Requirement::In("app".into(), BTreeSet::from(["MyApp".into()]));
    let expected = Selection::Labels {
        namespaces: Namespaces::Names(BTreeSet::from(["default".into()])),
        pods: LabelSelector(vec![labels]),
        nodes: None,
    };
    assert_eq!(policy.selection, expected);

    // With the proposal's own apiVersion there is a finding with a remedy; the file is not ignored silently.
    scratch.put("a.yaml", &text.replace("egret.dev/v1alpha1", "v1"));
    let view = scratch.view();
    assert!(
        view.finding("apiVersion")
            .remedy
            .contains("egret.dev/v1alpha1")
    );
}
