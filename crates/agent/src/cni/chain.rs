//! Changes to the runtime's CNI configuration that add or remove the plugin. Pure: files in, changes out.
//!
//! Runtimes use the first file in byte order (libcni `ConfFiles`, go-cni, ocicni). So the plugin belongs into the list
//! of that file and of no other. A list is changed in place. A file with a single plugin cannot be: it gets a list of
//! the same name with [`LIST`] appended, and is renamed to a name that runtimes ignore.

use egret_wire::cni::{PLUGIN, SPEC_VERSIONS};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Suffix that names the list made from a single plugin's file: `10-a.conf.conflist` sorts right after `10-a.conf` and
/// before `10-a.conflist`, if there is one.
const LIST: &str = ".conflist";
/// Suffix that hides a single plugin's file.
const ASIDE: &str = ".egret-saved";
/// Suffixes of the files that runtimes read.
const LOOKED_AT: [&str; 3] = [".conf", ".conflist", ".json"];

/// Content of a directory's files, by name; files that are not text are left out.
pub(super) type Files = BTreeMap<String, String>;

/// One step of a change; the order matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Write a file, with the permissions of another.
    Write {
        name: String,
        text: String,
        like: String,
    },
    /// Rename a file.
    Rename { from: String, to: String },
    /// Remove a file.
    Remove { name: String },
}

/// Why the plugin cannot be chained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    #[error("there is no CNI configuration yet")]
    Nothing,
    #[error("{0} is of CNI version {1:?}, which has no lists of plugins that egret-cni can be in")]
    Version(String, String),
}

fn read(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

fn plugins(conf: &Map<String, Value>) -> Option<&Vec<Value>> {
    conf.get("plugins")?.as_array()
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// A list with our plugin in it.
fn has_ours(conf: &Map<String, Value>) -> bool {
    plugins(conf).is_some_and(|plugins| plugins.iter().any(is_ours))
}

fn is_looked_at(name: &str) -> bool {
    LOOKED_AT.iter().any(|end| name.ends_with(end))
}

/// The file that runtimes use: the first valid one.
fn first(files: &Files) -> Option<(&String, Map<String, Value>)> {
    let looked_at = files.iter().filter(|(name, _)| is_looked_at(name));
    looked_at
        .filter_map(|(name, text)| Some((name, read(text)?)))
        .find(|(name, conf)| match name.ends_with(LIST) {
            true => plugins(conf).is_some_and(|plugins| plugins.iter().any(|one| !is_ours(one))),
            false => conf.get("type").is_some_and(Value::is_string),
        })
}

/// Adds `entry`, our plugin, to the list that runtimes use, and removes it from every other.
pub(super) fn chain(files: &Files, entry: &Value) -> Result<(String, Vec<Change>), ChainError> {
    let (name, conf) = first(files).ok_or(ChainError::Nothing)?;
    let version = conf
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !SPEC_VERSIONS.contains(&version) {
        return Err(ChainError::Version(name.clone(), version.to_owned()));
    }
    let mut changes = Vec::new();
    let list = match plugins(&conf) {
        Some(plugins) => {
            let ours: Vec<&Value> = plugins.iter().filter(|one| is_ours(one)).collect();
            if ours != [entry] {
                let text = with_plugins(&conf, others(plugins).chain([entry.clone()]));
                changes.push(write(name, text, name));
            }
            name.clone()
        }
        None => {
            let list = format!("{name}{LIST}");
            let mut made = Map::new();
            made.insert("cniVersion".into(), json!(version));
            made.insert(
                "name".into(),
                conf.get("name").cloned().unwrap_or(Value::Null),
            );
            let plugins = [Value::Object(conf), entry.clone()];
            changes.push(write(&list, with_plugins(&made, plugins), name));
            changes.push(Change::Rename {
                from: name.clone(),
                to: format!("{name}{ASIDE}"),
            });
            list
        }
    };
    changes.extend(unchain_but(files, Some(&list)));
    Ok((list, changes))
}

/// Removes our plugin from every list, and restores hidden files.
pub(super) fn unchain(files: &Files) -> Vec<Change> {
    unchain_but(files, None)
}

fn unchain_but(files: &Files, but: Option<&str>) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(LIST)) {
        let single = name.strip_suffix(LIST).unwrap_or(name);
        let aside = format!("{single}{ASIDE}");
        seen.insert(aside.clone());
        let Some(conf) = read(text).filter(has_ours) else {
            seen.remove(&aside);
            continue;
        };
        if but == Some(name) {
            continue;
        }
        let rest: Vec<Value> = plugins(&conf)
            .map(|all| others(all).collect())
            .unwrap_or_default();
        let saved = files.get(&aside).and_then(|text| read(text));
        let restores = saved.is_some_and(|saved| rest == [Value::Object(saved)]);
        if restores && !files.contains_key(single) {
            changes.push(Change::Rename {
                from: aside,
                to: single.to_owned(),
            });
            changes.push(Change::Remove { name: name.clone() });
            continue;
        }
        // The other tool has rewritten the single plugin's file, or the list has no other plugin.
        let made_by_us = files.contains_key(&aside) && files.contains_key(single);
        if rest.is_empty() || made_by_us {
            changes.push(Change::Remove { name: name.clone() });
        } else {
            // Others have added their plugins: the list stays.
            changes.push(write(name, with_plugins(&conf, rest), name));
        }
        if files.contains_key(&aside) {
            changes.push(Change::Remove { name: aside });
        }
    }
    // Hidden files whose list was removed or is no longer ours: whoever removed it meant the network, too.
    let orphans = files
        .keys()
        .filter(|name| name.ends_with(ASIDE) && !seen.contains(*name));
    let current = but
        .and_then(|list| list.strip_suffix(LIST))
        .map(|single| format!("{single}{ASIDE}"));
    for name in orphans.filter(|name| current.as_ref() != Some(name)) {
        changes.push(Change::Remove { name: name.clone() });
    }
    changes
}

fn others(plugins: &[Value]) -> impl Iterator<Item = Value> {
    plugins.iter().filter(|one| !is_ours(one)).cloned()
}

fn with_plugins(conf: &Map<String, Value>, plugins: impl IntoIterator<Item = Value>) -> String {
    let mut conf = conf.clone();
    conf.insert("plugins".into(), plugins.into_iter().collect());
    let text = serde_json::to_string_pretty(&conf).expect("JSON that was read can be written");
    format!("{text}\n")
}

fn write(name: &str, text: String, like: &str) -> Change {
    Change::Write {
        name: name.to_owned(),
        text,
        like: like.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Value {
        json!({"type": "egret-cni", "socket": "/run/egret/cni.sock"})
    }

    fn files(all: &[(&str, &str)]) -> Files {
        let all = all.iter();
        all.map(|(name, text)| ((*name).into(), (*text).into()))
            .collect()
    }

    fn carry_out(files: &Files, changes: &[Change]) -> Files {
        let mut files = files.clone();
        for change in changes {
            match change {
                Change::Write { name, text, like } => {
                    assert!(files.contains_key(like), "{like} has permissions to copy");
                    files.insert(name.clone(), text.clone());
                }
                Change::Rename { from, to } => {
                    let text = files.remove(from).unwrap();
                    files.insert(to.clone(), text);
                }
                Change::Remove { name } => drop(files.remove(name).unwrap()),
            }
        }
        files
    }

    /// Applies `chain` until nothing changes, which is after one pass.
    fn chained(before: &Files) -> (String, Files) {
        let (name, changes) = chain(before, &entry()).unwrap();
        let after = carry_out(before, &changes);
        assert_eq!(chain(&after, &entry()).unwrap(), (name.clone(), vec![]));
        let taken = first(&after).unwrap();
        assert!(has_ours(&taken.1), "runtimes take {}", taken.0);
        (name, after)
    }

    fn unchained(before: &Files) -> Files {
        let after = carry_out(before, &unchain(before));
        assert_eq!(unchain(&after), vec![]);
        assert!(!after.values().any(|text| text.contains(PLUGIN)));
        after
    }

    fn same(one: &Files, other: &Files) -> bool {
        let values = |files: &Files| -> BTreeMap<String, Value> {
            let values = files.iter().map(|(name, text)| {
                let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
                (name.clone(), value)
            });
            values.collect()
        };
        values(one) == values(other)
    }

    const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
    const BRIDGE: &str = r#"{"name": "pods", "cniVersion": "1.0.0", "type": "bridge", "ipam": {"type": "host-local"}}"#;

    #[test]
    fn a_list_gets_the_plugin_at_its_end_and_loses_it_without_a_trace() {
        let before = files(&[("10-flannel.conflist", FLANNEL), ("README", "nothing")]);
        let (name, after) = chained(&before);
        assert_eq!(name, "10-flannel.conflist");
        let conf = read(&after[&name]).unwrap();
        let types: Vec<&str> = plugins(&conf)
            .unwrap()
            .iter()
            .map(|p| p["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["flannel", "portmap", "egret-cni"]);
        assert!(same(&unchained(&after), &before));
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_a_single_plugin_again() {
        for name in ["10-pods.conf", "10-a.json"] {
            let before = files(&[
                (name, BRIDGE),
                ("10-pods.conflist", FLANNEL),
                ("99-loopback.conf", "{}"),
            ]);
            let (list, after) = chained(&before);
            assert_eq!(list, format!("{name}.conflist"));
            assert!(!after.contains_key(name));
            assert_eq!(
                after["10-pods.conflist"], FLANNEL,
                "others' files are left alone"
            );
            assert!(same(&unchained(&after), &before));
        }
    }

    #[test]
    fn what_other_tools_rewrite_is_chained_again() {
        // A list that another tool rewrote without our plugin.
        let (_, mut after) = chained(&files(&[("10-flannel.conflist", FLANNEL)]));
        after.insert(
            "10-flannel.conflist".into(),
            FLANNEL.replace("cbr0", "cbr1"),
        );
        let (_, after) = chained(&after);
        assert!(after["10-flannel.conflist"].contains("cbr1"));
        // A single plugin's file that another tool rewrote beside our list.
        let (_, mut after) = chained(&files(&[("10-pods.conf", BRIDGE)]));
        after.insert("10-pods.conf".into(), BRIDGE.replace("bridge", "ptp"));
        let (list, again) = chained(&after);
        assert!(again[&list].contains("ptp") && !again[&list].contains("bridge"));
        assert!(same(
            &unchained(&again),
            &files(&[("10-pods.conf", &BRIDGE.replace("bridge", "ptp"))])
        ));
        // The same, but our plugin is removed before it is chained again.
        assert!(same(
            &unchained(&after),
            &files(&[("10-pods.conf", &BRIDGE.replace("bridge", "ptp"))])
        ));
    }

    #[test]
    fn what_others_add_to_our_list_stays() {
        let (list, mut after) = chained(&files(&[("10-pods.conf", BRIDGE)]));
        let mut conf = read(&after[&list]).unwrap();
        let mut all = plugins(&conf).unwrap().clone();
        all.push(json!({"type": "mesh-cni"}));
        conf.insert("plugins".into(), Value::Array(all));
        after.insert(list.clone(), serde_json::to_string(&conf).unwrap());
        assert_eq!(
            chain(&after, &entry()).unwrap().1,
            vec![],
            "behind us is as good"
        );
        let left = unchained(&after);
        assert_eq!(left.keys().collect::<Vec<_>>(), [&list]);
        assert!(left[&list].contains("mesh-cni") && left[&list].contains("bridge"));
    }

    #[test]
    fn the_plugin_moves_to_the_file_that_comes_first() {
        let (_, mut after) = chained(&files(&[("10-flannel.conflist", FLANNEL)]));
        after.insert("05-new.conf".into(), BRIDGE.into());
        let (name, moved) = chained(&after);
        assert_eq!(name, "05-new.conf.conflist");
        assert!(!moved["10-flannel.conflist"].contains(PLUGIN));
        let both = files(&[("05-new.conf", BRIDGE), ("10-flannel.conflist", FLANNEL)]);
        assert!(same(&unchained(&moved), &both));
        // And back, when the new file is removed; the file that was hidden for it is removed, too.
        let mut gone = moved.clone();
        gone.remove("05-new.conf.conflist");
        let (name, back) = chained(&gone);
        assert_eq!(name, "10-flannel.conflist");
        assert_eq!(back.len(), 1);
    }

    #[test]
    fn what_cannot_be_chained_is_left_alone_and_told() {
        let old = BRIDGE.replace("1.0.0", "0.2.0");
        let error = chain(&files(&[("10-pods.conf", &old)]), &entry()).unwrap_err();
        assert_eq!(
            error,
            ChainError::Version("10-pods.conf".into(), "0.2.0".into())
        );
        // Half-written files, files of other kinds, an empty folder.
        let others = [
            ("10-a.conf", "{\"type\": "),
            ("20-b.conf.bak", BRIDGE),
            ("30-c.conflist", "{\"plugins\": []}"),
        ];
        assert_eq!(
            chain(&files(&others), &entry()).unwrap_err(),
            ChainError::Nothing
        );
        assert_eq!(unchain(&files(&others)), vec![]);
    }

    #[test]
    fn a_changed_setting_of_ours_replaces_the_old_one() {
        let (name, after) = chained(&files(&[("10-flannel.conflist", FLANNEL)]));
        let other = json!({"type": "egret-cni", "socket": "/elsewhere"});
        let (_, changes) = chain(&after, &other).unwrap();
        let after = carry_out(&after, &changes);
        assert!(after[&name].contains("/elsewhere") && !after[&name].contains("/run/egret"));
    }
}
