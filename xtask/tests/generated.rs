//! Committed generated files equal what the code generates. A failure names the command to run.

use std::process::Command;

fn assert_current(task: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args([task, "--check"])
        .status();
    assert!(
        status.expect("xtask runs").success(),
        "run `cargo run -p xtask -- {task}` and commit"
    );
}

#[test]
fn the_definitions_in_deploy_are_current() {
    assert_current("crds");
}

#[test]
fn the_page_about_conditions_is_current() {
    assert_current("conditions");
}

#[test]
fn the_tables_of_metrics_are_current() {
    assert_current("metrics");
}

#[test]
fn the_schema_of_the_command_line_is_current() {
    assert_current("schema");
}

#[test]
fn the_page_about_earlier_systems_is_current() {
    assert_current("compatibility");
}
