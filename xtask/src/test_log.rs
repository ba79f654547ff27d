//! Output of `cargo test`: one line for each test, by libtest and by `egret_tests::steps` alike.

/// Test programs whose modules were separate programs before: their tests are named `module::group::step`, or
/// `module::test`.
pub const MODULAR: [&str; 4] = ["lab", "promise", "kube", "install"];

/// A test that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended<'a> {
    /// The program that cargo ran.
    pub program: Program<'a>,
    /// Whole name.
    pub name: &'a str,
    /// Whether it passed.
    pub passed: bool,
}

/// A test program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program<'a> {
    /// Name of its file: `classic`, or `egret_core` for tests within that library.
    pub name: &'a str,
    /// How cargo selects it.
    pub kind: Kind,
}

/// Kind of a test program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Tests within a library.
    Library,
    /// Tests within a program.
    Binary,
    /// A file or folder of `tests/`.
    Test,
    /// Examples of the documentation.
    Documentation,
}

impl Program<'_> {
    /// Whether it is one of [`MODULAR`].
    pub fn is_modular(&self) -> bool {
        self.kind == Kind::Test && MODULAR.contains(&self.name)
    }
}

/// Every test that passed or failed, in the order of the text.
pub fn read(text: &str) -> Vec<Ended<'_>> {
    let mut all = Vec::new();
    let mut program = None;
    // A test with output of its own: its result is on a separate line.
    let mut open: Option<&str> = None;
    for line in text.lines().map(str::trim) {
        if let Some(next) = running(line) {
            program = Some(next);
            open = None;
            continue;
        }
        let (name, result) = match (test(line), open) {
            (Some(found), _) => found,
            (None, Some(name)) => (name, line),
            (None, None) => continue,
        };
        open = None;
        let passed = match result.split_whitespace().next() {
            Some("ok") => true,
            Some("FAILED") => false,
            Some("ignored") => continue,
            _ => {
                open = Some(name);
                continue;
            }
        };
        if let Some(program) = program {
            all.push(Ended {
                program,
                name,
                passed,
            });
        }
    }
    all
}

/// `Running tests/classic.rs (target/debug/deps/classic-0123456789abcdef)`, or `Doc-tests egret_core`.
fn running(line: &str) -> Option<Program<'_>> {
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        let kind = Kind::Documentation;
        return Some(Program { name, kind });
    }
    let (source, path) = line.strip_prefix("Running ")?.rsplit_once('(')?;
    let kind = match source.trim() {
        "unittests src/lib.rs" => Kind::Library,
        source if source.starts_with("unittests ") => Kind::Binary,
        _ => Kind::Test,
    };
    let name = path.trim_end_matches(')').rsplit('/').next()?;
    let (name, _hash) = name.rsplit_once('-')?;
    Some(Program { name, kind })
}

/// `test group::name ... ok (1.2s)`
fn test(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ...")?;
    Some((name, result))
}

#[cfg(test)]
mod of_runs {
    use super::*;

    #[test]
    fn lines_of_both_harnesses_are_read() {
        let text = "\
     Running tests/lab/main.rs (target/debug/deps/lab-63d5f3dc3a0e1f2b)
lab  classic::up up after 3.1s
test classic::up::one_works ... ok (1.2s)
test classic::up::another ... FAILED (0.2s)
it was not as it should be
     Running unittests src/lib.rs (target/debug/deps/egret_core-aaaaaaaaaaaaaaaa)
test resolve::tests::a_thing ... ok
test resolve::tests::slow ... ignored
test prints_much ... 
something
ok
     Running unittests src/main.rs (target/debug/deps/egret-aaaaaaaaaaaaaaaa)
test run::works ... ok
   Doc-tests egret_core
test crates/core/src/lib.rs - (line 3) ... ok
";
        let found: Vec<_> = read(text)
            .into_iter()
            .map(|one| (one.program.name, one.program.kind, one.name, one.passed))
            .collect();
        assert_eq!(
            found,
            [
                ("lab", Kind::Test, "classic::up::one_works", true),
                ("lab", Kind::Test, "classic::up::another", false),
                ("egret_core", Kind::Library, "resolve::tests::a_thing", true),
                ("egret_core", Kind::Library, "prints_much", true),
                ("egret", Kind::Binary, "run::works", true),
                (
                    "egret_core",
                    Kind::Documentation,
                    "crates/core/src/lib.rs - (line 3)",
                    true
                ),
            ]
        );
    }
}
