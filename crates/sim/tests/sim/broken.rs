//! The checker finds each part that is broken on purpose (issue 15, "What it must show"). Each test prints the seed and
//! the shortened script that shows it.

use egret_sim::Rule;
use egret_sim::run::{self, Failure};
use egret_sim::sabotage::Sabotage;

/// Seeds that are tried for one broken part.
const SEEDS: u64 = 400;

/// Finds a seed by which the broken part violates one of these rules.
fn caught(sabotage: Sabotage, rules: &[Rule]) -> Failure {
    let failed = run::seeds(0..SEEDS, 1_000, Some(sabotage), 1);
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

#[test]
fn a_lease_freed_without_hold_down() {
    let rules = [Rule::RestTooShort, Rule::TwoOwners];
    caught(Sabotage::NoHoldDown, &rules);
}

#[test]
fn a_lease_freed_before_a_gateway_acknowledged() {
    caught(Sabotage::NoFence, &[Rule::TwoOwners, Rule::RestTooShort]);
}

#[test]
fn growth_granted_from_stale_free_space() {
    let rules = [
        Rule::TwoOwners,
        Rule::RestTooShort,
        Rule::VersionWithoutTable,
        Rule::UsedBeforeMade,
    ];
    caught(Sabotage::StaleFreeSpace, &rules);
}

#[test]
fn an_agent_that_ignores_epochs() {
    let rules = [Rule::UsedBeforeMade, Rule::TwoOwners, Rule::RestTooShort];
    caught(Sabotage::IgnoreEpochs, &rules);
}

#[test]
fn an_agent_that_acknowledges_before_it_applies() {
    caught(
        Sabotage::AcknowledgeFirst,
        &[Rule::TwoOwners, Rule::RestTooShort],
    );
}

#[test]
fn an_agent_that_uses_ports_before_it_holds_them() {
    caught(
        Sabotage::UseBeforeHeld,
        &[Rule::TwoOwners, Rule::RestTooShort],
    );
}

#[test]
fn a_gateway_that_announces_before_its_table_is_complete() {
    caught(Sabotage::AnnounceFirst, &[Rule::VersionWithoutTable]);
}
