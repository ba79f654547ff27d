//! The checks of one kernel. Each one is a test program of this build, or tests of it, run inside.

use anyhow::ensure;
use egret_tests::emulated::{Machine, Program, Series};
use egret_tests::steps::Group;
use egret_tests::{Outcome, steps};
use std::time::Duration;

const RULESET: Program = Program {
    package: "crates/datapath",
    name: "ruleset",
};
const GATEWAY: Program = Program {
    package: "crates/datapath",
    name: "gateway_packets",
};
const UPLINK: Program = Program {
    package: "crates/datapath",
    name: "uplink_packets",
};
const LAB: Program = Program {
    package: "tests",
    name: "lab",
};
/// Longest time of a test program.
const LIMIT: Duration = Duration::from_secs(600);

/// All checks of a kernel, in one machine.
pub fn checks(series: Series) -> Group {
    let boot = move || {
        let machine = Machine::boot(series.kernel()?)?;
        println!(
            "kernel {} {} ({}) up after {:.1?}",
            series.name(),
            machine.kernel.release,
            machine.kernel.version,
            machine.booted_after
        );
        Ok(machine)
    };
    Group::new(
        "emulated",
        boot,
        steps![
            it_is_that_kernel,
            the_verifier_accepts_the_programs,
            the_ruleset_is_as_its_golden_text_says_and_is_repaired,
            the_gateways_programs_pass_their_tests,
            the_uplinks_programs_pass_their_tests,
            cleanup_leaves_nothing,
        ],
    )
}

fn tests(machine: &Machine, program: Program, arguments: &str) -> Outcome {
    let ran = program.run(machine, arguments, LIMIT)?;
    println!("{} tests of {} {arguments}", ran.passed, program.name);
    Ok(())
}

fn it_is_that_kernel(machine: &Machine) -> Outcome {
    let output = machine.run("uname -r", Duration::from_secs(30))?;
    ensure!(
        output.lines == [machine.kernel.release.as_str()],
        "{output:?}"
    );
    Ok(())
}

fn the_verifier_accepts_the_programs(machine: &Machine) -> Outcome {
    let ran = GATEWAY.run(machine, "verifier::", LIMIT)?;
    for line in ran.lines.iter().filter(|line| line.contains("insns")) {
        println!("{line}");
    }
    Ok(())
}

fn the_ruleset_is_as_its_golden_text_says_and_is_repaired(machine: &Machine) -> Outcome {
    tests(machine, RULESET, "")
}

fn the_gateways_programs_pass_their_tests(machine: &Machine) -> Outcome {
    tests(machine, GATEWAY, "--skip verifier:: --test-threads 2")
}

fn the_uplinks_programs_pass_their_tests(machine: &Machine) -> Outcome {
    tests(machine, UPLINK, "--test-threads 2")
}

fn cleanup_leaves_nothing(machine: &Machine) -> Outcome {
    tests(machine, LAB, "--exact cleanup::nothing_stays_in_a_cluster")
}
