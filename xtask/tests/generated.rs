//! What is generated and committed is what the code would generate now.

use std::process::Command;

#[test]
fn the_definitions_in_deploy_are_current() {
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["crds", "--check"])
        .status();
    assert!(
        status.expect("xtask runs").success(),
        "run: cargo run -p xtask -- crds"
    );
}

#[test]
fn the_page_about_conditions_is_current() {
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["conditions", "--check"])
        .status();
    assert!(
        status.expect("xtask runs").success(),
        "run: cargo run -p xtask -- conditions"
    );
}

#[test]
fn the_page_about_earlier_systems_is_current() {
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["compatibility", "--check"])
        .status();
    assert!(
        status.expect("xtask runs").success(),
        "run: cargo run -p xtask -- compatibility"
    );
}
