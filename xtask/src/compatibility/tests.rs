//! Which test shows which case, from the comments of tests.

use crate::test_log::MODULAR;
use crate::tidy::Tree;

/// A test that shows a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Id of the case.
    pub case: String,
    /// Source file, from the root of the repository.
    pub path: String,
    /// Name of the function.
    pub test: String,
}

impl Shown {
    /// The test program that runs it, under cargo's name: `core`, or `egret_core` for tests within that library; for
    /// [`MODULAR`] programs the module: `classic`.
    pub fn program(&self) -> String {
        let parts: Vec<&str> = self.path.split('/').collect();
        match parts.as_slice() {
            ["tests", "tests", program, module, ..] if MODULAR.contains(program) => stem(module),
            ["crates", _, "tests", file, ..] => stem(file),
            ["crates", "cli", ..] => "egret".to_owned(),
            ["crates", room, ..] => format!("egret_{room}"),
            [first, ..] => (*first).to_owned(),
            [] => String::new(),
        }
    }

    /// Environment of the test.
    pub fn place(&self) -> &'static str {
        let starts = |folder: &str| self.path.starts_with(folder);
        if ["install", "kube_cluster", "kube_away", "cluster"].contains(&self.program().as_str()) {
            "real cluster"
        } else if [
            "tests/tests/kube/",
            "tests/tests/install/",
            "crates/cluster/",
        ]
        .into_iter()
        .any(starts)
        {
            "API server"
        } else if starts("tests/") {
            "lab"
        } else {
            "process"
        }
    }
}

fn stem(file: &str) -> String {
    file.strip_suffix(".rs").unwrap_or(file).to_owned()
}

/// Whether files at this path contain tests.
fn has_tests(path: &str) -> bool {
    path.ends_with(".rs") && (path.starts_with("tests/") || path.starts_with("crates/"))
}

/// All tests with cases, in the order of files and lines.
pub fn read(tree: &Tree) -> Vec<Shown> {
    let mut all = Vec::new();
    let files = tree.with_suffix(&[".rs"]);
    for (path, text) in files.filter(|(path, _)| has_tests(path)) {
        all.extend(of_file(path, text));
    }
    all
}

fn of_file(path: &str, text: &str) -> Vec<Shown> {
    let mut found = Vec::new();
    let mut cases: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(list) = line.strip_prefix("/// Cases: ") {
            cases.extend(ids(list));
        } else if let Some(name) = function(line) {
            let shown = cases.drain(..).map(|case| Shown {
                case,
                path: path.to_owned(),
                test: name.to_owned(),
            });
            found.extend(shown);
        } else if !line.starts_with("//") && !line.starts_with('#') {
            cases.clear();
        }
    }
    found
}

/// The ids up to the first full stop.
fn ids(list: &str) -> impl Iterator<Item = String> {
    let list = list.split('.').next().unwrap_or_default();
    list.split(',').map(|id| id.trim().to_owned())
}

/// Name of the function that begins on this line.
fn function(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").unwrap_or(line);
    let rest = rest.strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

#[cfg(test)]
mod in_sources {
    use super::*;

    const TEXT: &str = "
/// Cases: N1, N3. With more words, and N9 is no id.
fn n1_works(cluster: &Cluster) -> Outcome {
    Ok(())
}

/// Cases: P7.
#[test]
fn at_the_end_of_a_line() {}

/// Cases: N5.
struct NoFunction;

fn plain() {}
";

    #[test]
    fn tests_name_their_cases_themselves() {
        let found = of_file("tests/tests/lab/classic.rs", TEXT);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|one| (one.case.as_str(), one.test.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("N1", "n1_works"),
                ("N3", "n1_works"),
                ("P7", "at_the_end_of_a_line")
            ]
        );
    }

    #[test]
    fn programs_are_named_as_cargo_does() {
        let of = |path: &str| {
            let one = &of_file(path, TEXT)[0];
            (one.program(), one.place())
        };
        assert_eq!(of("tests/tests/lab/classic.rs"), ("classic".into(), "lab"));
        assert_eq!(
            of("tests/tests/lab/protocols/datagrams.rs"),
            ("protocols".into(), "lab"),
            "a folder of modules is no module of its own"
        );
        assert_eq!(
            of("tests/tests/kube/kube_pods.rs"),
            ("kube_pods".into(), "API server")
        );
        assert_eq!(
            of("crates/core/tests/core/planning.rs"),
            ("core".into(), "process")
        );
        assert_eq!(
            of("crates/core/src/resolve/address.rs"),
            ("egret_core".into(), "process")
        );
        assert_eq!(
            of("crates/cluster/tests/front_ends.rs"),
            ("front_ends".into(), "API server")
        );
        assert_eq!(
            of("tests/tests/install/install/walks.rs"),
            ("install".into(), "real cluster")
        );
    }
}
