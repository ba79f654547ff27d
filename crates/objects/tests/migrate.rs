//! `egret convert` on samples of every system: the output is in the tree beside the input, is what the converter says,
//! and is good for Egret. `EGRET_BLESS=1` writes the outputs anew.

use egret_objects::Source;
use egret_objects::dir::{DirSource, Settings};
use egret_objects::migrate;
use std::path::{Path, PathBuf};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/migrating/samples")
}

fn inputs() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(samples()).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_input = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.ends_with(".yaml") && !name.ends_with(".out.yaml")
    };
    let mut inputs: Vec<PathBuf> = paths.filter(is_input).collect();
    inputs.sort();
    inputs
}

fn said(output: &migrate::Output) -> String {
    let lost: String = output
        .losses
        .iter()
        .map(|loss| format!("lost: {loss}\n"))
        .collect();
    let passed: String = output
        .passed_over
        .iter()
        .map(|object| format!("passed over: {object}\n"))
        .collect();
    passed + &lost
}

#[test]
fn samples_convert_to_what_is_in_the_tree() {
    let bless = std::env::var_os("EGRET_BLESS").is_some();
    assert!(inputs().len() >= 8, "{:?}", inputs());
    for path in inputs() {
        let output = migrate::convert(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for (suffix, text) in [
            ("out.yaml", output.text.clone()),
            ("lost.txt", said(&output)),
        ] {
            let golden = path.with_extension(suffix);
            if bless {
                std::fs::write(&golden, &text).unwrap();
            }
            let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
            assert_eq!(text, wanted, "{}", golden.display());
        }
    }
}

/// Read as Egret reads its objects, without a finding, and as many policies as there are.
#[test]
fn what_samples_convert_to_is_good() {
    for path in inputs() {
        let output = migrate::convert(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), &output.text).unwrap();
        let settings = Settings {
            record: false,
            ..Settings::default()
        };
        let mut source = DirSource::open(folder.path(), settings).unwrap();
        let view = source.snapshot().unwrap();
        assert!(
            view.findings.is_empty(),
            "{}: {:#?}",
            path.display(),
            view.findings
        );
        let written = output.text.matches("kind: Egress\n").count()
            + output.text.matches("kind: ClusterEgress\n").count();
        assert_eq!(view.snapshot.policies.len(), written, "{}", path.display());
        assert!(written > 0, "{}", path.display());
    }
}

#[test]
fn a_field_that_nobody_knows_is_named_with_its_place() {
    let output = migrate::convert(
        "apiVersion: k8s.ovn.org/v1\nkind: EgressIP\nmetadata: {name: e}\n\
         spec: {egressIPs: [192.0.2.1], namespaceSelector: {}, trafficSelector: {matchLabels: {a: b}}}\n",
    )
    .unwrap();
    let lost: Vec<String> = output.losses.iter().map(ToString::to_string).collect();
    assert_eq!(
        lost,
        [
            "EgressIP e: spec.trafficSelector ({\"matchLabels\":{\"a\":\"b\"}}): Egret has no equal for it"
        ]
    );
    assert!(
        output
            .text
            .contains("# lost: EgressIP e: spec.trafficSelector")
    );
}

#[test]
fn nothing_is_lost_where_everything_has_an_equal() {
    let text = std::fs::read_to_string(samples().join("kep.yaml")).unwrap();
    let output = migrate::convert(&text).unwrap();
    assert!(output.losses.is_empty(), "{:?}", output.losses);
    let only = output.text.replace("---\n", "");
    assert!(
        only.starts_with("apiVersion: egret.dev/v1alpha1\nkind: Egress\n"),
        "{only}"
    );
}

#[test]
fn rubbish_is_an_error_with_its_line() {
    let error = migrate::convert("apiVersion: v1\nkind: [\n").unwrap_err();
    assert!(error.starts_with("line "), "{error}");
    let output = migrate::convert("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n").unwrap();
    assert_eq!(output.passed_over, ["v1 Secret s"]);
}
