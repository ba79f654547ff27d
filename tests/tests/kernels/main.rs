//! Egret on Debian's kernels, each emulated with this machine's file system. Needs QEMU; see `./dev kernels`.

mod checks;

use checks::checks;
use egret_tests::emulated::Series;
use egret_tests::steps::Module;
use std::process::ExitCode;

/// Environment variable of `./dev kernels`: names of the series to run, separated by spaces.
const SERIES: &str = "EGRET_KERNELS";
/// Environment variable of `./dev test --full`.
const FULL: &str = "EGRET_FULL";

fn main() -> ExitCode {
    let is_whole = value_of(SERIES).or_else(|| value_of(FULL)).is_some();
    let of = |series| checks(series, is_whole);
    let modules = [
        Module::new("linux_6_1", vec![of(Series::V6_1).unless(omit_6_1)]),
        Module::new("linux_6_12", vec![of(Series::V6_12).unless(omit_6_12)]),
        Module::new("newest", vec![of(Series::Newest).unless(omit_newest)]),
    ];
    // Each machine has as many processors as this one.
    egret_tests::run(modules.into_iter().map(Module::timed).collect())
}

/// The value of an environment variable, if it has one.
fn value_of(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn omit_6_1() -> bool {
    omits(Series::V6_1)
}

fn omit_6_12() -> bool {
    omits(Series::V6_12)
}

fn omit_newest() -> bool {
    omits(Series::Newest)
}

/// Whether this run leaves a series out; then it says why. Every run has Linux 6.1, which lacks the most.
fn omits(series: Series) -> bool {
    let is_wanted = match value_of(SERIES) {
        Some(names) => names.split_whitespace().any(|name| name == series.name()),
        None => series == Series::V6_1 || value_of(FULL).is_some(),
    };
    if !is_wanted {
        let name = series.name();
        println!("skipped: Linux {name}: run `./dev kernels {name}` or `./dev test --full`");
    }
    !is_wanted
}
