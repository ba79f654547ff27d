//! The promises of `docs/properties.md` during faults of a cluster in the lab. `./dev test` never repeats
//! `wrong_source` and `matrix`: one packet with a wrong source is enough. Need root.

mod bypass;
mod damage;
mod drain;
mod exhaustion;
mod failures;
mod gateways_cut_off;
mod matrix;
mod next_hop;
mod rolling;
mod three_gateways;
mod traffic;
mod withdrawn;
mod wrong_source;

use egret_tests::modules;
use egret_tests::steps::Module;
use std::process::ExitCode;

fn main() -> ExitCode {
    if egret_tests::held::run_as_end() {
        return ExitCode::SUCCESS;
    }
    // Modules that bound or measure times, or need both processors.
    let timed = modules![
        bypass,
        damage,
        drain,
        gateways_cut_off,
        next_hop,
        matrix,
        rolling
    ];
    let mut all = modules![exhaustion, withdrawn];
    all.extend(timed.into_iter().map(Module::timed));
    // These mostly wait; where the first bounds an outage, it does so coarsely.
    all.push(Module::new("failures", failures::groups()).at_once(3));
    all.push(Module::new("wrong_source", wrong_source::groups()).at_once(4));
    egret_tests::run(all)
}
