//! Files of a node: names of routing tables, CNI configuration and plugins, named network namespaces, settings.

use crate::earlier::{Action, CniFile, FileLine, Node};
use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories that iproute2 reads; newer versions use the later ones.
const TABLES: [&str; 3] = ["etc/iproute2", "usr/share/iproute2", "usr/lib/iproute2"];
const CNI_CONFIGURATION: &str = "etc/cni/net.d";
const CNI_PLUGINS: &str = "opt/cni/bin";
/// The directory of named network namespaces, under its present and its former path.
const NAMESPACES: [&str; 2] = ["var/run/netns", "run/netns"];
/// Settings that earlier systems change, and their files in /proc.
const SETTINGS: [&str; 3] = [
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv4.ip_nonlocal_bind",
];
/// Suffixes of the configuration files that container runtimes read.
const CNI_ENDS: [&str; 3] = ["conf", "conflist", "json"];

/// Reads everything below `root`; files that exist but cannot be read are added to `unseen`.
pub(super) fn read(root: &Path, node: &mut Node, unseen: &mut Vec<String>) {
    let mut told = |path: &Path, error: &io::Error| {
        if error.kind() != io::ErrorKind::NotFound {
            unseen.push(format!("{}: {error}", path.display()));
        }
    };
    for directory in TABLES.map(|one| root.join(one)) {
        let mut files = vec![directory.join("rt_tables")];
        match names(&directory.join("rt_tables.d")) {
            Ok(more) => files.extend(more.into_iter().filter(|one| has_end(one, &["conf"]))),
            Err(error) => told(&directory, &error),
        }
        for file in files {
            match std::fs::read_to_string(&file) {
                Ok(text) => node.tables.extend(lines(&file, &text)),
                Err(error) => told(&file, &error),
            }
        }
    }
    let configuration = root.join(CNI_CONFIGURATION);
    match names(&configuration) {
        Ok(files) => {
            for file in files.into_iter().filter(|one| has_end(one, &CNI_ENDS)) {
                match std::fs::read_to_string(&file) {
                    Ok(text) => node.cni.extend(cni_file(&file, &text)),
                    Err(error) => told(&file, &error),
                }
            }
        }
        Err(error) => told(&configuration, &error),
    }
    for (path, error) in read_names(root, node) {
        told(&path, &error);
    }
    for name in SETTINGS {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if let Ok(value) = std::fs::read_to_string(path) {
            node.sysctls
                .insert(name.to_owned(), value.trim().to_owned());
        }
    }
}

/// Reads the entries of which only the name matters.
fn read_names(root: &Path, node: &mut Node) -> Vec<(PathBuf, io::Error)> {
    let mut errors = Vec::new();
    let mut into =
        |directory: &str, into: &mut BTreeMap<String, String>| match names(&root.join(directory)) {
            Ok(paths) => into.extend(paths.iter().filter_map(|path| by_name(path))),
            Err(error) => errors.push((root.join(directory), error)),
        };
    into(CNI_PLUGINS, &mut node.plugins);
    for directory in NAMESPACES {
        into(directory, &mut node.namespaces);
    }
    errors
}

fn by_name(path: &Path) -> Option<(String, String)> {
    Some((
        path.file_name()?.to_str()?.to_owned(),
        path.to_str()?.to_owned(),
    ))
}

/// Paths of a directory's files, in byte order.
fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn has_end(path: &Path, ends: &[&str]) -> bool {
    path.extension()
        .and_then(|end| end.to_str())
        .is_some_and(|end| ends.contains(&end))
}

/// Lines `NUMBER NAME`; comments and all other lines are ignored.
fn lines(file: &Path, text: &str) -> Vec<FileLine> {
    let said = |line: &&str| !line.trim().is_empty();
    let count = text.lines().filter(said).count();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let id = words.next()?.parse().ok()?;
        Some(FileLine {
            file: file.to_str()?.to_owned(),
            text: line.to_owned(),
            id,
            name: words.next()?.to_owned(),
            is_alone: count == 1,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Parses a configuration that a runtime accepts; `None` for others.
fn cni_file(file: &Path, text: &str) -> Option<CniFile> {
    let value: Value = serde_json::from_str(text).ok()?;
    let kind = |plugin: &Value| plugin["type"].as_str().map(str::to_owned);
    let types = match value["plugins"].as_array() {
        Some(plugins) => plugins.iter().filter_map(kind).collect(),
        None => kind(&value).into_iter().collect(),
    };
    Some(CniFile {
        path: file.to_str()?.to_owned(),
        types,
    })
}

/// Carries out an action on files; one on the kernel is ignored. A missing file is no error.
pub(super) fn remove(action: &Action) -> io::Result<()> {
    let result = match action {
        Action::Line(file, line) => remove_line(Path::new(file), line),
        Action::File(file) => std::fs::remove_file(file),
        Action::Namespace(path) => {
            // Removing the name also removes a mount that belongs to another mount namespace.
            let _not_mounted_here = umount2(path.as_str(), MntFlags::MNT_DETACH);
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Rewrites a file without the lines equal to this one; all other bytes stay.
fn remove_line(file: &Path, line: &str) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let keeps = |one: &&str| one.trim_end_matches('\n') != line;
    let kept: String = text.split_inclusive('\n').filter(keeps).collect();
    let mode = std::fs::metadata(file)?.permissions().mode();
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".egret-tmp");
    std::fs::write(&temporary, kept)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_and_every_other_byte_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rt_tables");
        let text =
            "# comment\n255\tlocal\n99 kube-static-egress-ip\n990 kube-static-egress-ip\n0\tunspec";
        std::fs::write(&file, text).unwrap();
        let found = lines(&file, text);
        assert_eq!(found.len(), 4);
        assert_eq!(
            (found[1].id, found[1].name.as_str(), found[1].is_alone),
            (99, "kube-static-egress-ip", false)
        );
        let path = file.to_str().unwrap().to_owned();
        remove(&Action::Line(path, found[1].text.clone())).unwrap();
        let left = std::fs::read_to_string(&file).unwrap();
        assert_eq!(left, text.replace("99 kube-static-egress-ip\n9", "9"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn types_of_plugins_are_read_from_lists_and_single_ones() {
        let types = |text: &str| cni_file(Path::new("/a.conf"), text).map(|file| file.types);
        assert_eq!(types(r#"{"type": "bridge"}"#), Some(vec!["bridge".into()]));
        let list = r#"{"plugins": [{"type": "ptp"}, {"type": "kube-egress-cni"}]}"#;
        assert_eq!(
            types(list),
            Some(vec!["ptp".into(), "kube-egress-cni".into()])
        );
        assert_eq!(types("{"), None);
    }
}
