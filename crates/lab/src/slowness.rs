//! One factor for all time limits of the lab and of tests in it, for machines that are much slower than the usual ones:
//! kernels under emulation. Checks stay the same; only how long they wait changes.

use std::sync::OnceLock;
use std::time::Duration;

/// Environment variable with the factor, 1 to [`MAX`].
pub const VARIABLE: &str = "EGRET_LAB_SLOWNESS";
/// Largest factor. A limit of 20 seconds becomes half an hour.
pub const MAX: u32 = 100;

/// Error of the variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE} is {0:?}: write a whole number from 1 to {MAX}, how many times slower than usual this machine is"
)]
pub struct SlownessError(String);

/// The factor of this process; 1 without the variable.
///
/// # Errors
/// The variable is no number, or out of range.
pub fn slowness() -> Result<u32, SlownessError> {
    static FACTOR: OnceLock<Result<u32, SlownessError>> = OnceLock::new();
    let read = || parse(std::env::var(VARIABLE).ok().as_deref());
    FACTOR.get_or_init(read).clone()
}

/// A time limit on this machine. An invalid variable counts as 1: [`slowness`] reports it.
pub fn relaxed(limit: Duration) -> Duration {
    limit * slowness().unwrap_or(1)
}

fn parse(text: Option<&str>) -> Result<u32, SlownessError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(1);
    };
    let factor = text
        .parse()
        .ok()
        .filter(|factor| (1..=MAX).contains(factor));
    factor.ok_or_else(|| SlownessError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_a_number_within_its_range() {
        assert_eq!(parse(None), Ok(1));
        assert_eq!(parse(Some("")), Ok(1));
        assert_eq!(parse(Some("10")), Ok(10));
        for bad in ["0", "101", "-1", "fast", "1.5"] {
            let error = parse(Some(bad)).unwrap_err().to_string();
            assert!(
                error.contains(bad) && error.contains("from 1 to 100"),
                "{error}"
            );
        }
    }
}
