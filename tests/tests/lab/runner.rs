//! The runner of these programs: faults of one group do not affect others, and a killed one leaves nothing behind. Each
//! test starts this program again with groups that are made to fail.

use anyhow::{Context, ensure};
use egret_lab::process::{Process, wait_for};
use egret_lab::{Lab, StateDir, Topology, UpOptions};
use egret_tests::cluster::DEADLINE;
use egret_tests::steps::{Group, Module, lab_name};
use egret_tests::{Outcome, Step, egret, modules, steps, tests};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Environment variable: run the groups that are made to fail.
const SUBJECT: &str = "EGRET_TEST_RUNNER_SUBJECT";
/// Text that a group prints before its lab's name, once that is up.
const LAB: &str = "lab of the subject: ";

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24]}
- {name: router, roles: [router]}
";

pub fn groups() -> Vec<Group> {
    tests![
        a_group_that_fails_takes_no_other_along,
        a_lab_that_does_not_come_up_fails_its_steps_and_no_others,
        a_step_that_hangs_is_ended_and_its_lab_taken_down,
        a_killed_program_leaves_no_lab,
        one_test_is_run_by_its_name_and_with_its_group_where_that_is_asked_for,
    ]
}

/// The groups that are made to fail, if this process is to run them.
pub fn subject() -> Option<Vec<Module>> {
    std::env::var_os(SUBJECT)?;
    Some(modules![bad])
}

mod bad {
    use super::*;

    pub fn groups() -> Vec<Group> {
        vec![
            Group::single("panics", panics),
            Group::single("aborts", aborts),
            Group::single("works", passes),
            Group::new("no_lab", no_lab, vec![works("first"), works("second")]),
            Group::new("hangs", lab, steps![sleeps]),
            Group::new("steps", || Ok(()), vec![works("one"), works("two")]),
        ]
    }

    fn works<C>(name: &'static str) -> Step<C> {
        let run = |_: &C| Ok(());
        Step { name, run }
    }

    fn panics() {
        panic!("as it should");
    }

    fn aborts() {
        std::process::abort();
    }

    fn passes() {}

    fn no_lab() -> anyhow::Result<()> {
        anyhow::bail!("no lab today")
    }

    fn lab() -> anyhow::Result<egret_lab::OwnedLab> {
        let options = UpOptions {
            egret: egret()?,
            agent_args: Vec::new(),
            agents: false,
            standing_server: false,
        };
        let topology = Topology::from_yaml(TOPOLOGY)?;
        Ok(Lab::up(&lab_name("subject"), &topology, &options)?.owned())
    }

    fn sleeps(lab: &egret_lab::OwnedLab) -> Outcome {
        println!("{LAB}{}", lab.name());
        loop {
            std::thread::park();
        }
    }
}

/// This program with the failing groups and these arguments.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    // The tests' own process runs a group itself.
    command.env_remove("EGRET_TEST_GROUP").env(SUBJECT, "1");
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Its output; it must fail.
fn printed(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success(), "it passed: {text}");
    Ok(text)
}

fn contains(text: &str, parts: &[&str]) -> Outcome {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is missing: {text}");
    }
    Ok(())
}

fn a_group_that_fails_takes_no_other_along() -> Outcome {
    let text = printed(&mut program(&["--skip", "hangs", "--skip", "no_lab"]))?;
    contains(
        &text,
        &[
            "running 5 tests",
            "test bad::panics ... FAILED",
            "test bad::aborts ... FAILED\nits process ended: signal: 6",
            "test bad::works ... ok",
            "test bad::steps::two ... ok",
            "failures:\n    bad::",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 3 filtered out; finished in ",
        ],
    )
}

fn a_lab_that_does_not_come_up_fails_its_steps_and_no_others() -> Outcome {
    let text = printed(&mut program(&["no_lab", "bad::works"]))?;
    contains(
        &text,
        &[
            "lab  bad::no_lab did not come up: no lab today",
            "test bad::no_lab::second ... FAILED",
            "    bad::no_lab::first\n    bad::no_lab::second\n",
            "FAILED. 1 passed; 2 failed;",
        ],
    )
}

/// Name of the lab in the output of the subject.
fn lab_of(text: &str) -> anyhow::Result<String> {
    let found = text.lines().find_map(|line| line.strip_prefix(LAB));
    Ok(found.with_context(|| text.to_owned())?.to_owned())
}

fn a_step_that_hangs_is_ended_and_its_lab_taken_down() -> Outcome {
    let mut command = program(&["hangs", "works"]);
    let text = printed(command.env("EGRET_TEST_STEP_SECS", "10"))?;
    contains(
        &text,
        &[
            "test bad::works ... ok",
            "test bad::hangs::sleeps ... FAILED\nno result within 10s",
        ],
    )?;
    let lab = lab_of(&text)?;
    ensure!(!StateDir::new(&lab)?.exists(), "{lab} is up");
    Ok(())
}

/// One of its two processes is killed, the other one, and both.
fn a_killed_program_leaves_no_lab() -> Outcome {
    for (program, group) in [(true, false), (false, true), (true, true)] {
        killed(program, group).with_context(|| format!("{program} {group}"))?;
    }
    Ok(())
}

fn killed(is_program: bool, is_group: bool) -> Outcome {
    let mut command = self::program(&["hangs"]);
    let mut child = command.process_group(0).stdout(Stdio::piped()).spawn()?;
    let own = Process::of(child.id() as i32).context("it lives")?;
    let output = child.stdout.take().context("its output")?;
    let mut lines = BufReader::new(output).lines();
    let lab = loop {
        let line = lines.next().context("it ended")??;
        if let Some(lab) = line.strip_prefix(LAB) {
            break lab.to_owned();
        }
    };
    let owner = lab.rsplit('-').next().context("a process")?.parse()?;
    let owner = Process::of(owner).context("the group lives")?;
    if is_program {
        own.signal(Signal::SIGSTOP);
    }
    if is_group {
        owner.signal(Signal::SIGKILL);
    }
    if is_program {
        own.signal(Signal::SIGKILL);
    }
    child.wait()?;
    if is_program && is_group {
        // Both were killed: the next test program cleans up.
        self::program(&["bad::works"]).output()?;
    }
    let folder = StateDir::new(&lab)?;
    Ok(wait_for("the lab to be gone", DEADLINE, || {
        !folder.exists() && !owner.is_alive()
    })?)
}

fn one_test_is_run_by_its_name_and_with_its_group_where_that_is_asked_for() -> Outcome {
    let exact = ["--exact", "bad::steps::two"];
    let alone = program(&exact).output()?;
    let alone = String::from_utf8_lossy(&alone.stdout).into_owned();
    contains(&alone, &["running 1 tests", "ok. 1 passed; 0 failed;"])?;
    let whole = program(&exact)
        .env("EGRET_TEST_WHOLE_GROUPS", "1")
        .output()?;
    let whole = String::from_utf8_lossy(&whole.stdout).into_owned();
    contains(
        &whole,
        &["test bad::steps::one ... ok", "ok. 2 passed; 0 failed;"],
    )
}
