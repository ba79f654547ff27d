//! Every file of `crates/sim/scripts` is a history that violated a rule once, or that issue 15 describes.

use egret_sim::{Script, World};
use std::fs;
use std::path::Path;

#[test]
fn no_kept_script_violates_a_rule() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let files = fs::read_dir(&folder).expect("the folder of scripts");
    let mut files: Vec<_> = files
        .map(|file| file.expect("a readable folder").path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut failed = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable script");
        let script: Script = text
            .parse()
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        if let Err(violation) = World::run(&script, None) {
            failed.push(format!("{}: {violation}", file.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_script_survives_being_printed_and_read() {
    for seed in 0..20 {
        let script = egret_sim::generate::script(seed, 500);
        assert_eq!(script.to_string().parse(), Ok(script));
    }
}
