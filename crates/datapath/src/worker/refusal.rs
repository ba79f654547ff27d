//! Refusal of a packet towards the pod that sent it.

use egret_kernel::nft::Rule;
use egret_kernel::nft::rule::{self, rule};

/// Refuses towards the pod: TCP by a reset, the rest as administratively prohibited.
pub(super) fn refuse(counter: &str) -> Vec<Rule> {
    vec![
        rule().protocol(rule::TCP).count(counter).reset(),
        rule().count(counter).prohibit(),
    ]
}
