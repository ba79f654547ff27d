//! The checker finds each part that is broken on purpose (issue 15, "What it must show"). Each test prints the seed and
//! the shortened script that shows it.

use egret_sim::run::{self, Failure};
use egret_sim::sabotage::Sabotage;
use egret_sim::{Rule, Script, World};

/// Seeds that are tried for one broken part.
const SEEDS: u64 = 400;

/// Finds a seed by which the broken part violates one of these rules.
fn caught(sabotage: Sabotage, rules: &[Rule]) -> Failure {
    let seeds: Vec<u64> = (0..SEEDS).collect();
    let failed = run::seeds(&seeds, 1_000, Some(sabotage), 1);
    let failure = failed.into_iter().next();
    let failure = failure.unwrap_or_else(|| panic!("{sabotage:?}: nothing found in {SEEDS} seeds"));
    println!("{sabotage:?}: {failure}");
    let rule = failure.violation.rule;
    assert!(
        rules.contains(&rule),
        "{sabotage:?} shows as {rule:?}: {failure}"
    );
    failure
}

/// A kept script passes, and violates one of these rules with the broken part.
fn shown_by(script: &str, sabotage: Sabotage, rules: &[Rule]) {
    let script: Script = script.parse().expect("a script");
    assert_eq!(World::run(&script, None), Ok(()));
    let found = World::run(&script, Some(sabotage)).expect_err("the broken part shows");
    assert!(rules.contains(&found.rule), "{found}");
}

#[test]
fn a_lease_freed_without_hold_down() {
    let script = include_str!("../../scripts/rest-before-reuse.txt");
    let rules = [Rule::RestTooShort, Rule::TwoOwners];
    shown_by(script, Sabotage::NoHoldDown, &rules);
}

#[test]
fn a_lease_freed_before_a_gateway_acknowledged() {
    let script = include_str!("../../scripts/fenced-by-one-gateway-only.txt");
    let rules = [Rule::TwoOwners, Rule::RestTooShort];
    shown_by(script, Sabotage::NoFence, &rules);
}

#[test]
fn growth_granted_from_stale_free_space() {
    let script = include_str!("../../scripts/stale-growth.txt");
    let rules = [Rule::TwoOwners, Rule::RestTooShort];
    shown_by(script, Sabotage::StaleGrowth, &rules);
}

#[test]
fn an_agent_that_acknowledges_before_it_applies() {
    let script = include_str!("../../scripts/acknowledged-before-applied.txt");
    let rules = [Rule::TwoOwners, Rule::RestTooShort];
    shown_by(script, Sabotage::AcknowledgeFirst, &rules);
}

#[test]
fn an_agent_that_uses_ports_before_it_has_reported_them() {
    let script = include_str!("../../scripts/used-before-reported.txt");
    let rules = [Rule::TwoOwners, Rule::RestTooShort];
    shown_by(script, Sabotage::UseBeforeHeld, &rules);
}

#[test]
fn an_agent_that_ignores_epochs() {
    let rules = [Rule::UsedBeforeMade, Rule::TwoOwners, Rule::RestTooShort];
    caught(Sabotage::IgnoreEpochs, &rules);
}

#[test]
fn a_gateway_that_announces_before_its_table_is_complete() {
    caught(Sabotage::AnnounceFirst, &[Rule::VersionWithoutTable]);
}

#[test]
fn a_drain_that_leaves_before_the_take_over() {
    let script = include_str!("../../scripts/gateways-drained-in-turn.txt");
    shown_by(script, Sabotage::LeaveFirst, &[Rule::Interrupted]);
    caught(Sabotage::LeaveFirst, &[Rule::Interrupted]);
}
