//! `tidy`: rules of this repository that neither compiler nor lints check. `cargo test -p xtask` runs the same checks.
//!
//! Every check is a function of the [`Tree`], so that its tests can pass an invalid one.

mod circles;
mod kernel;
mod links;
mod manifests;
mod operations;
mod pages;
mod rooms;
mod sources;
mod tables;

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// All files of the repository: path with slashes, and text (lossy for binary files).
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, String>,
}

/// Folders at the root that are not read.
const PASSED_OVER: &[&str] = &[".git", "target"];

impl Tree {
    /// The repository that this program was built from.
    pub fn load() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut tree = Self::default();
        tree.read(&root, "")
            .with_context(|| format!("reading {}", root.display()))?;
        Ok(tree)
    }

    fn read(&mut self, folder: &Path, prefix: &str) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if prefix.is_empty() && PASSED_OVER.contains(&name.as_str()) {
                continue;
            }
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.read(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path())?;
                self.files
                    .insert(path, String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter();
        Self {
            files: files.map(|(p, t)| ((*p).into(), (*t).into())).collect(),
        }
    }

    /// The text of a file.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// The file's text, or a problem in `problems`.
    fn need<'a>(&'a self, path: &str, problems: &mut Vec<String>) -> &'a str {
        self.get(path).unwrap_or_else(|| {
            problems.push(format!("{path}: missing"));
            ""
        })
    }

    /// Files whose path ends with one of `suffixes`, and their text, in the order of paths.
    pub fn with_suffix<'a>(
        &'a self,
        suffixes: &'a [&str],
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(|(path, _)| suffixes.iter().any(|suffix| path.ends_with(suffix)))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Whether the file or folder exists.
    fn exists(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|file| file.starts_with(&folder))
    }
}

/// Prints all problems and fails if there are any.
pub fn run() -> anyhow::Result<()> {
    let tree = Tree::load()?;
    for line in sources::long_files(&tree) {
        println!("long: {line}");
    }
    let mut problems = manifests::check(&tree, &manifests::metadata()?);
    problems.extend(rooms::check(&tree));
    problems.extend(sources::check(&tree));
    problems.extend(circles::check(&tree));
    problems.extend(tables::check(&tree));
    problems.extend(kernel::check(&tree));
    problems.extend(links::check(&tree));
    problems.extend(pages::check(&tree));
    problems.extend(operations::check(&tree));
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} problems", problems.len());
    }
    println!("tidy: {} files", tree.files.len());
    Ok(())
}

/// Fails and prints each problem on a separate line.
#[cfg(test)]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// Fails unless there is exactly one problem and it contains all of the words.
#[cfg(test)]
fn assert_one(problems: &[String], words: &[&str]) {
    assert_eq!(problems.len(), 1, "\n{}\n", problems.join("\n"));
    for word in words {
        assert!(problems[0].contains(word), "{word}: {}", problems[0]);
    }
}
