//! Merges the user's files and our copies: objects in force, and the required content of our copies.

use super::document::{self, Item};
use super::effective::{Effective, Merged};
use super::object::{has_our_status, is_record};
use super::records;
use super::store::{Copy, Store, version_of};
use super::tree::{self, Tree, file_finding};
use crate::convert::SOURCE_FILE_ANNOTATION;
use crate::front_end;
use egret_core::model::{Finding, Kind, ObjectRef};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A manifest with its file and line.
struct Candidate<'a> {
    file: &'a str,
    document: &'a document::Document,
    entry: &'a document::Entry,
}

/// Merges. `now_secs` becomes the creation time of objects seen for the first time.
pub(super) fn merge(
    tree: &Tree,
    store: &mut Store,
    front_ends: &front_end::Settings,
    now_secs: i64,
) -> Merged {
    let mut merged = Merged::default();
    let mut candidates = candidates(tree, &mut merged.findings);
    let read = |kind: Kind| front_end::foreign_kind(kind).is_none() || front_ends.reads(kind);
    candidates.retain(|key, _| read(key.kind));
    merged.findings.retain(|finding| read(finding.object.kind));
    for (key, candidate) in &candidates {
        settle(key, candidate, store, now_secs, &mut merged);
    }
    let kept = keep(tree, store, &candidates, &mut merged);
    store
        .lost
        .retain(|key, _| candidates.contains_key(key) || kept.contains(key));
    records::add(store, &mut merged);
    for key in store.copies.keys() {
        if is_record(key.kind) {
            continue;
        }
        if !candidates.contains_key(key) && !kept.contains(key) {
            merged.deletes.push(key.clone());
        }
    }
    for key in store.broken.keys() {
        if !is_record(key.kind) && !candidates.contains_key(key) {
            merged.deletes.push(key.clone());
        }
    }
    merged.findings.sort();
    merged.findings.dedup();
    merged
}

/// The first manifest of every object, in byte order of the paths.
fn candidates<'a>(
    tree: &'a Tree,
    findings: &mut Vec<Finding>,
) -> BTreeMap<ObjectRef, Candidate<'a>> {
    let mut all: BTreeMap<ObjectRef, Candidate<'_>> = BTreeMap::new();
    for (file, found) in &tree.files {
        for document in &found.documents {
            for item in document.items.iter() {
                let Item::Object(entry) = item else { continue };
                let Some(first) = all.get(&entry.key) else {
                    let candidate = Candidate {
                        file,
                        document,
                        entry,
                    };
                    all.insert(entry.key.clone(), candidate);
                    continue;
                };
                let line = document.line_of(entry);
                let first_line = first.document.line_of(first.entry);
                findings.push(Finding {
                    object: entry.key.clone(),
                    field: "metadata.name".to_owned(),
                    value: entry.key.name.clone(),
                    remedy: format!(
                        "remove one of the two: {} line {first_line} says this object too and counts ({file} line {line})",
                        first.file
                    ),
                });
            }
        }
    }
    all
}

/// The content of a copy, if it is valid.
fn good(copy: &Copy) -> Option<Effective> {
    let converted = Arc::clone(copy.result.as_ref().ok()?);
    Some(Effective {
        converted,
        whole: Arc::clone(&copy.value),
    })
}

/// Puts one manifest in force, or the last good version of its object.
fn settle(
    key: &ObjectRef,
    candidate: &Candidate<'_>,
    store: &mut Store,
    now_secs: i64,
    merged: &mut Merged,
) {
    let entry = candidate.entry;
    let place = |problem: &document::Problem| problem.at(candidate.file, candidate.document.start);
    merged.findings.extend(entry.unknown.iter().map(place));
    let lost = store.lost.get(key);
    let copy = store.copies.get_mut(key);
    let converted = match &entry.result {
        Ok(converted) => Arc::clone(converted),
        Err(problems) => {
            let kept = copy.as_deref().or(lost).and_then(good);
            let note = if kept.is_some() {
                "; the last good one stays in force"
            } else {
                ""
            };
            merged
                .findings
                .extend(problems.iter().map(place).map(|finding| Finding {
                    remedy: format!("{}{note}", finding.remedy),
                    ..finding
                }));
            if let Some(kept) = kept {
                if copy.is_none() {
                    merged.writes.push((key.clone(), Arc::clone(&kept.whole)));
                }
                merged.objects.insert(key.clone(), kept);
            }
            return;
        }
    };
    if let Some(copy) = &copy
        && copy
            .in_sync_with
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &entry.value))
        && copy.source_file() == Some(candidate.file)
    {
        let whole = Arc::clone(&copy.value);
        merged
            .objects
            .insert(key.clone(), Effective { converted, whole });
        return;
    }
    let old = copy.as_deref().or(lost).map(|copy| copy.value.as_ref());
    let whole = Arc::new(compose(key, &entry.value, candidate.file, old, now_secs));
    match copy {
        Some(copy) if *copy.value == *whole => {
            copy.in_sync_with = Some(Arc::clone(&entry.value));
        }
        _ => merged.writes.push((key.clone(), Arc::clone(&whole))),
    }
    merged
        .objects
        .insert(key.clone(), Effective { converted, whole });
}

/// Retains the objects of files that now contain a document without a named object; returns them.
fn keep(
    tree: &Tree,
    store: &Store,
    candidates: &BTreeMap<ObjectRef, Candidate<'_>>,
    merged: &mut Merged,
) -> BTreeSet<ObjectRef> {
    let unclear: BTreeSet<&str> = tree
        .files
        .iter()
        .filter(|(_, found)| is_unclear(found))
        .map(|(file, _)| file.as_str())
        .collect();
    let mut kept = BTreeSet::new();
    let mut keeping = BTreeSet::new();
    for (key, copy) in store.copies.iter().chain(&store.lost) {
        let Some(file) = copy.source_file() else {
            continue;
        };
        let under = |directory: &String| {
            file.strip_prefix(directory.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let unclear = unclear.contains(file)
            || tree.closed.contains_key(file)
            || tree.closed.keys().any(under);
        if !unclear || candidates.contains_key(key) {
            continue;
        }
        kept.insert(key.clone());
        keeping.insert(file);
        if let Some(kept) = good(copy) {
            if !store.copies.contains_key(key) {
                merged.writes.push((key.clone(), Arc::clone(&kept.whole)));
            }
            merged.objects.insert(key.clone(), kept);
        }
    }
    let keeps = |file: &str| keeping.contains(file);
    for (file, found) in &tree.files {
        merged.findings.extend(found.unreadable.clone());
        if found.empty && keeps(file) {
            let remedy =
                "remove the file to remove its objects; while it is empty they stay as they were";
            merged.findings.push(file_finding(file, remedy));
        }
        for document in &found.documents {
            for item in document.items.iter() {
                let Item::Bad(problem) = item else { continue };
                let mut finding = problem.at(file, document.start);
                if keeps(file) {
                    finding
                        .remedy
                        .push_str("; the last good objects of this file stay in force");
                }
                merged.findings.push(finding);
            }
        }
    }
    merged.findings.extend(tree.closed.values().cloned());
    kept
}

/// Whether a file contains a document without a named object, so that its set of objects is unknown.
fn is_unclear(found: &tree::Entry) -> bool {
    let bad = |item: &Item| matches!(item, Item::Bad(_));
    found.empty
        || found.unreadable.is_some()
        || found
            .documents
            .iter()
            .any(|document| document.items.iter().any(bad))
}

/// Our copy of a manifest: the whole object, with the metadata that an API server would add, and its status.
fn compose(
    key: &ObjectRef,
    manifest: &Value,
    file: &str,
    old: Option<&Value>,
    now_secs: i64,
) -> Value {
    let mut whole = manifest.clone();
    if has_our_status(key.kind)
        && let Some(status) = old.and_then(|old| old.get("status"))
    {
        whole["status"] = status.clone();
    }
    let none = Value::Null;
    let before = old.map_or(&none, |old| &old["metadata"]);
    let given = |field: &str| {
        [&manifest["metadata"][field], &before[field]]
            .into_iter()
            .find(|v| !v.is_null())
            .cloned()
    };
    let uid = given("uid").unwrap_or_else(|| stable_uid(key).into());
    let created = given("creationTimestamp").unwrap_or_else(|| {
        Timestamp::from_second(now_secs)
            .unwrap_or(Timestamp::UNIX_EPOCH)
            .to_string()
            .into()
    });
    let generation = match old {
        Some(old) => {
            let raised = body(old) != body(manifest);
            before["generation"].as_i64().unwrap_or(0) + i64::from(raised)
        }
        None => manifest["metadata"]["generation"]
            .as_i64()
            .unwrap_or(1)
            .max(1),
    };
    let metadata = &mut whole["metadata"];
    if let Value::Object(fields) = metadata {
        fields.remove("managedFields");
    }
    metadata["uid"] = uid;
    metadata["creationTimestamp"] = created;
    metadata["generation"] = generation.into();
    metadata["resourceVersion"] = old.map_or(0, version_of).to_string().into();
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][SOURCE_FILE_ANNOTATION] = file.into();
    whole
}

/// The part whose changes raise the generation: everything except metadata and status.
fn body(value: &Value) -> Map<String, Value> {
    let mut fields = value.as_object().cloned().unwrap_or_default();
    fields.remove("metadata");
    fields.remove("status");
    fields
}

/// A uid that every reader computes by itself: FNV-1a of kind, namespace and name, twice.
fn stable_uid(key: &ObjectRef) -> String {
    let text = format!("{:?}/{}/{}", key.kind, key.namespace, key.name);
    let hash = |basis: u64| {
        text.bytes().fold(basis, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    let (high, low) = (hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142));
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}
