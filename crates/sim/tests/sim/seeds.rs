//! Random histories. The checker finds nothing, and in the end everybody is served and all ports are free.

use egret_sim::run;
use std::env;

/// Seeds of each CI run.
const SEEDS: u64 = 2_000;

/// Steps of each seed.
const STEPS: usize = 1_000;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text}, which is no number")),
    )
}

/// `SIM_SEEDS` sets another number of seeds, `SIM_FIRST` the first one, `SIM_FAILURES` the number of failures to look for.
#[test]
fn no_history_violates_a_rule() {
    let first = number("SIM_FIRST").unwrap_or(0);
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let failures = number("SIM_FAILURES").unwrap_or(1);
    let failures = usize::try_from(failures).expect("a small number");
    let seeds: Vec<u64> = (first..first + seeds).collect();
    let failed = run::seeds(&seeds, STEPS, None, failures);
    let texts: Vec<String> = failed.iter().map(ToString::to_string).collect();
    assert!(
        failed.is_empty(),
        "{} seeds fail:\n{}",
        failed.len(),
        texts.join("\n")
    );
}
