//! The checks of one kernel. Each one is a test program of this build, or tests of it, run inside.

use anyhow::ensure;
use egret_tests::emulated::{Machine, Program, Series, demo};
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
const LIMIT: Duration = Duration::from_secs(840);
/// Longest time of the demo, with six agents on two emulated processors.
const DEMO_LIMIT: Duration = Duration::from_secs(3500);

/// The checks of a kernel, in one machine: all of them if `is_whole`, else those that take a few minutes.
pub fn checks(series: Series, is_whole: bool) -> Group {
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
    let mut steps = steps![
        it_is_that_kernel,
        the_verifier_accepts_the_programs,
        the_ruleset_is_as_its_golden_text_says_and_damage_is_repaired,
        the_programs_of_gateways_judge_packets,
        the_programs_of_uplinks_judge_packets,
        pods_leave_with_their_egress_address_and_what_others_delete_comes_back,
        what_ipvs_sends_outside_is_dropped_counted_and_reported,
        cleanup_leaves_nothing,
    ];
    if is_whole {
        steps.extend(steps![
            the_drivers_of_gateways_pass_all_their_tests,
            the_drivers_of_uplinks_pass_all_their_tests,
            the_demo_passes_all_its_checks,
        ]);
    }
    Group::new("emulated", boot, steps)
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

fn the_ruleset_is_as_its_golden_text_says_and_damage_is_repaired(machine: &Machine) -> Outcome {
    tests(machine, RULESET, "")
}

/// Programs run on packets alone, without a network.
fn the_programs_of_gateways_judge_packets(machine: &Machine) -> Outcome {
    tests(machine, GATEWAY, "answers:: beyond:: order::")
}

fn the_programs_of_uplinks_judge_packets(machine: &Machine) -> Outcome {
    tests(machine, UPLINK, "verdicts:: tags::")
}

fn the_drivers_of_gateways_pass_all_their_tests(machine: &Machine) -> Outcome {
    let arguments = "--skip verifier:: --skip answers:: --skip beyond:: --skip order::";
    tests(machine, GATEWAY, arguments)
}

fn the_drivers_of_uplinks_pass_all_their_tests(machine: &Machine) -> Outcome {
    tests(machine, UPLINK, "--skip verdicts:: --skip tags::")
}

fn pods_leave_with_their_egress_address_and_what_others_delete_comes_back(
    machine: &Machine,
) -> Outcome {
    tests(machine, LAB, "repair::")
}

fn what_ipvs_sends_outside_is_dropped_counted_and_reported(machine: &Machine) -> Outcome {
    tests(machine, LAB, "ipvs::kernel::")
}

fn cleanup_leaves_nothing(machine: &Machine) -> Outcome {
    tests(
        machine,
        LAB,
        "--exact cleanup::nothing_stays_in_a_single_node",
    )
}

/// `egret lab demo`: its own exit code and lines say what was wrong.
fn the_demo_passes_all_its_checks(machine: &Machine) -> Outcome {
    demo(machine, DEMO_LIMIT)
}
