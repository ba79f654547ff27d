//! The ruleset of `classic` in a real kernel, compared with the `nft` program's listing.

use egret_classic::state::{ClassicWanted, classic_state};
use egret_kernel::nft::Nftables;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Command;

/// Runs `f` on a thread of its own in a new network namespace, which ends with the thread.
fn in_new_namespace<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            f()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run(command: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn the_kernel_holds_the_classic_ruleset_that_the_golden_file_shows() {
    let wanted = ClassicWanted {
        device: "eth0".into(),
        never: BTreeSet::from(["10.96.0.0/12".parse().expect("a prefix")]),
        addresses: BTreeMap::from([
            (ip("192.168.122.222"), 64),
            (ip("192.168.122.223"), 65),
            (ip("fd00:122::222"), 66),
        ]),
        pods: BTreeMap::from([
            (ip("10.244.1.5"), ip("192.168.122.222")),
            (ip("fd00:244:1::5"), ip("fd00:122::222")),
        ]),
        ranges: BTreeMap::from([(
            "10.32.0.0/12".parse().expect("a prefix"),
            ip("192.168.122.223"),
        )]),
        refused: BTreeSet::from([ip("10.244.1.6")]),
    };
    let held = BTreeSet::from([ip("192.168.122.222")]);
    let state = classic_state(&wanted, &held);
    let listed = in_new_namespace(|| {
        let mut nft = Nftables::open("egret_classic").expect("open");
        nft.apply(&egret_classic::table(&state)).expect("apply");
        assert!(nft.is_intact().expect("verify"));
        let listed = run("nft list table inet egret_classic");
        let lines = listed.lines().skip(2).map(|line| format!("{line}\n"));
        lines.collect::<String>()
    });
    expect_test::expect_file!["golden/classic.nft"].assert_eq(&listed);
}
