//! The counters of the uplink programs: the Rust side of `enum egret_lift_counter`.

use crate::worker::Counter;

/// All of them; the place is the index in the map.
pub const COUNTERS: &[Counter] = &[
    Counter {
        name: "uplink_lifted",
        help: "packets of selected pods that came past the stack, taken into it",
    },
    Counter {
        name: "uplink_left_alone",
        help: "lifted packets that no policy selects after all (another port), sent on as they were",
    },
    Counter {
        name: "uplink_answered",
        help: "packets of selected pods in flows that others opened, left alone",
    },
    Counter {
        name: "uplink_no_ruleset",
        help: "lifted packets that no ruleset of Egret has looked at, dropped",
    },
    Counter {
        name: "uplink_failed",
        help: "packets to be lifted without a device to lift them to, dropped",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_header() {
        let header = include_str!("../../../../bpf/include/uplink.h");
        let lines = header
            .lines()
            .filter_map(|line| line.trim().strip_prefix("EGRET_LIFT_"));
        let pairs = lines.filter_map(|line| line.trim_end_matches(',').split_once(" = "));
        let mut c: Vec<(String, String)> = pairs
            .map(|(name, index)| (format!("uplink_{}", name.to_lowercase()), index.to_owned()))
            .collect();
        let last = ("uplink_counters".to_owned(), COUNTERS.len().to_string());
        assert_eq!(c.pop(), Some(last));
        let rust: Vec<(String, String)> = COUNTERS
            .iter()
            .enumerate()
            .map(|(index, counter)| (counter.name.to_owned(), index.to_string()))
            .collect();
        assert_eq!(c, rust);
    }
}
