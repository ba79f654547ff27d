//! Arguments of a test program, as libtest has them.

/// Environment variable: a selected step selects the rest of its group, since steps build on each other.
const WHOLE_GROUPS: &str = "EGRET_TEST_WHOLE_GROUPS";

/// Selected tests, and options.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    /// Print the names only.
    pub list: bool,
    ignored: bool,
    /// Number of parallel groups, if given.
    pub threads: Option<usize>,
    /// Run all steps of a group if one is selected.
    pub whole_groups: bool,
}

impl Arguments {
    pub fn of_this_process() -> Self {
        Self {
            whole_groups: std::env::var_os(WHOLE_GROUPS).is_some_and(|value| value == "1"),
            ..Self::parse(std::env::args().skip(1))
        }
    }

    fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored = true,
                "--skip" => arguments.skips.extend(words.next()),
                "--test-threads" => arguments.read_threads(words.next().as_deref()),
                // Options of libtest with a value.
                "--format" | "--color" | "--logfile" | "-Z" => {
                    words.next();
                }
                word if word.starts_with('-') => {
                    arguments.read_threads(word.strip_prefix("--test-threads="));
                }
                word => arguments.filters.push(word.to_owned()),
            }
        }
        arguments
    }

    fn read_threads(&mut self, number: Option<&str>) {
        let number = number.and_then(|number| number.parse().ok());
        self.threads = number.filter(|number| *number > 0).or(self.threads);
    }

    /// Whether the test with this whole name is selected.
    pub fn wants(&self, name: &str) -> bool {
        let matches = |filter: &String| match self.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skips.iter().any(matches)
    }
}

#[cfg(test)]
mod of_libtest {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn filters_choose_by_part_or_by_whole_name() {
        let part = parse("canary:: --color always --skip nothing");
        assert!(part.wants("canary::up::a") && !part.wants("classic::up::a"));
        assert!(!part.wants("canary::up::nothing_is_seen"));
        let exact = parse("--exact canary::up::a");
        assert!(exact.wants("canary::up::a") && !exact.wants("canary::up::a_b"));
        assert!(parse("").wants("anything") && !parse("--ignored").wants("anything"));
    }

    #[test]
    fn the_number_of_threads_is_read_in_both_forms() {
        assert_eq!(parse("--test-threads 3").threads, Some(3));
        assert_eq!(parse("--test-threads=4 -q").threads, Some(4));
        assert_eq!(parse("--test-threads=0").threads, None);
    }
}
