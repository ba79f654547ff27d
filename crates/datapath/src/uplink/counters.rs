//! The counters of the uplink programs: the Rust side of `enum egret_uplink_counter`.

use crate::gateway::Counter;
use crate::gateway::counters::{dropped, served};

/// All counters; the position is the index in the map.
pub const COUNTERS: &[Counter] = &[
    served(
        "reinjected",
        "of selected pods, bypassing the host stack: taken back into it, whose guard decides",
    ),
    served(
        "left_alone",
        "reinjected, and selected by no policy after all, for its port: sent on as they were",
    ),
    served(
        "answered",
        "of selected pods, in flows that others opened: left alone",
    ),
    dropped(
        "no_ruleset",
        "reinjected, and no ruleset of Egret has looked at them",
    ),
    dropped("failed", "to be reinjected, without a device for it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_header() {
        let header = include_str!("../../../../bpf/include/uplink.h");
        let lines = header
            .lines()
            .filter_map(|line| line.trim().strip_prefix("EGRET_UPLINK_"));
        let pairs = lines.filter_map(|line| line.trim_end_matches(',').split_once(" = "));
        let mut c: Vec<(String, String)> = pairs
            .map(|(name, index)| (name.to_lowercase(), index.to_owned()))
            .collect();
        let last = ("counters".to_owned(), COUNTERS.len().to_string());
        assert_eq!(c.pop(), Some(last));
        let rust: Vec<(String, String)> = COUNTERS
            .iter()
            .enumerate()
            .map(|(index, counter)| (counter.name.to_owned(), index.to_string()))
            .collect();
        assert_eq!(c, rust);
    }
}
