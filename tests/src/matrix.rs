//! All kinds of nodes and networks that users have, in as few labs as possible.
//!
//! ```text
//! pairs    a table of few rows in which every pair of values of two factors occurs
//! cells    the factors of this product's environment, and impossible combinations with their reasons
//! labs     cells -> labs: one lab serves all cells that differ only in their node or pod
//! marks    stand-ins for the marks of other components, and counters of their preservation
//! paths    what the agents' canaries found during the life of a lab
//! scene    a running lab of the matrix: its policies, expected sources, and operations
//! ```

use std::io::Write;

pub mod cells;
pub mod labs;
pub mod marks;
pub mod pairs;
pub mod paths;
pub mod scene;

/// Whether the full cross is requested instead of the pairs: `EGRET_FULL=1`, set by `./dev test --full`.
pub fn is_full() -> bool {
    std::env::var_os("EGRET_FULL").is_some_and(|value| value == "1")
}

/// Whether a test that takes minutes is left to `./dev test --full`. Prints a line for it, which `./dev test` counts.
pub fn left_to_full(test: &str) -> bool {
    if !is_full() {
        // Not by println: the output of a passing test is not shown.
        let why = "takes minutes on a real cluster; ./dev test --full runs it";
        let _ = writeln!(std::io::stdout(), "\nskipped: {test}: {why}");
    }
    !is_full()
}
