//! A panic ends the process.

use egret_agent::abort_on_panic;
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const CHILD: &str = "EGRET_TEST_PANIC";

/// The test runs itself as a process of its own, whose other thread panics while its main thread waits.
#[test]
fn a_thread_that_panics_ends_the_process() {
    if std::env::var_os(CHILD).is_some() {
        abort_on_panic();
        let died = thread::Builder::new().name("probes".into());
        let died = died.spawn(|| panic!("a thread dies")).expect("a thread");
        drop(died);
        loop {
            thread::park();
        }
    }
    let name = thread::current().name().expect("a name").to_owned();
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        assert!(
            Instant::now() < deadline || child.kill().is_err(),
            "it goes on"
        );
        thread::park_timeout(Duration::from_millis(10));
    };
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("probes") && said.contains("a thread dies"),
        "{said}"
    );
}
