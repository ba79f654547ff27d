//! A reader closes the pipe early.

use std::io::Read;
use std::process::{Command, Stdio};

#[test]
fn a_reader_that_has_enough_ends_the_answer_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egret"))
        .arg("crds")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("egret starts");
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut [0; 16]).expect("the answer begins");
    drop(stdout);
    let output = child.wait_with_output().expect("egret ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "{stderr}");
}
