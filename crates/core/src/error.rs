//! Formatting of errors for people.

use std::error::Error;

/// An error on one line, with those of its causes that add information.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("no such file")]
        Missing,
        #[error("opening /a")]
        Opening(#[source] Box<Failure>),
        #[error("reading: {0}")]
        Reading(#[source] Box<Failure>),
    }

    #[test]
    fn causes_follow_in_their_order_and_what_is_said_already_is_not_said_again() {
        let opening = Failure::Opening(Box::new(Failure::Missing));
        assert_eq!(with_causes(&opening), "opening /a: no such file");
        let reading = Failure::Reading(Box::new(opening));
        assert_eq!(with_causes(&reading), "reading: opening /a: no such file");
    }
}
