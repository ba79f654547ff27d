//! One file: its documents, its objects, and their lines.

use super::locate::Places;
use super::object::{self, Class, Converted, Outcome};
use egret_core::model::{Finding, Kind, ObjectRef};
use serde_json::Value;
use std::sync::Arc;

/// One document of a file. Reused while its text is unchanged.
#[derive(Clone)]
pub(super) struct Document {
    /// First line of the document in the file, from 1.
    pub start: usize,
    text: String,
    /// Objects of the document: several in a List.
    pub items: Arc<Vec<Item>>,
    /// Lines of fields, computed on first use.
    places: Arc<Places>,
}

impl Document {
    /// Line of one of its objects in the file.
    pub fn line_of(&self, entry: &Entry) -> usize {
        let line = match entry.prefix.as_str() {
            "" => first_line(&self.text),
            prefix => self.places.line_of(&self.text, prefix),
        };
        self.start + line - 1
    }
}

/// One object of a document, or a problem.
pub(super) enum Item {
    /// A manifest of a kind that is read.
    Object(Box<Entry>),
    /// A document that names no object.
    Bad(Problem),
}

/// A manifest.
pub(super) struct Entry {
    pub key: ObjectRef,
    /// The manifest; without the status for our own kinds.
    pub value: Arc<Value>,
    pub result: Result<Arc<Converted>, Vec<Problem>>,
    pub unknown: Vec<Problem>,
    /// Path of the object in the document: empty unless it is an item of a List.
    prefix: String,
}

/// A finding and its line within the document, from 1.
#[derive(Clone)]
pub(super) struct Problem {
    pub finding: Finding,
    pub line: usize,
}

impl Problem {
    /// The finding with its file and line.
    pub fn at(&self, file: &str, document_start: usize) -> Finding {
        let line = document_start + self.line - 1;
        let remedy = format!("{} ({file} line {line})", self.finding.remedy);
        Finding {
            remedy,
            ..self.finding.clone()
        }
    }
}

/// Parses a file's text; documents with unchanged text are reused.
pub(super) fn parse(file: &str, text: &str, previous: &[Document]) -> Vec<Document> {
    let known: std::collections::HashMap<&str, &Document> = previous
        .iter()
        .map(|document| (document.text.as_str(), document))
        .collect();
    let parts = if file.ends_with(".json") {
        vec![(1, text)]
    } else {
        split(text)
    };
    parts
        .into_iter()
        .map(|(start, text)| match known.get(text) {
            Some(document) => Document {
                start,
                ..(*document).clone()
            },
            None => {
                let places = Arc::new(Places::default());
                Document {
                    start,
                    items: Arc::new(parse_document(file, text, &places)),
                    text: text.to_owned(),
                    places,
                }
            }
        })
        .collect()
}

/// Splits a YAML stream into documents with their first lines. Inside a manifest no line starts with `---`: every other
/// line is indented or a key.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut begin, mut begin_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.strip_prefix("---");
        if marker.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            parts.push((begin_line, &text[begin..offset]));
            (begin, begin_line) = (offset, index + 1);
        }
        offset += line.len();
    }
    parts.push((begin_line, &text[begin..]));
    parts
}

/// All manifests of a text, with Lists expanded; read as JSON if it starts like JSON.
///
/// # Errors
/// Line and message of the first unreadable document.
pub fn read_documents(text: &str) -> Result<Vec<Value>, String> {
    let json = text.trim_start().starts_with('{');
    let parts = if json { vec![(1, text)] } else { split(text) };
    let mut all = Vec::new();
    for (start, part) in parts {
        let value = read_value(json, part)
            .map_err(|(line, message)| format!("line {}: {message}", start + line - 1))?;
        match value.get("items").and_then(Value::as_array) {
            Some(items) => all.extend(items.iter().cloned()),
            None if value.is_null() => {}
            None => all.push(value),
        }
    }
    Ok(all)
}

/// Whether a line has content beside comments.
fn has_content(line: &str) -> bool {
    let line = line.trim();
    !(line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "...")
}

fn file_finding(file: &str, field: &str, value: String, remedy: String) -> Finding {
    let object = ObjectRef::of_cluster(Kind::File, file);
    Finding {
        object,
        field: field.to_owned(),
        value,
        remedy,
    }
}

/// Parses a YAML or JSON text; on error the line and the message.
pub(super) fn read_value(json: bool, text: &str) -> Result<Value, (usize, String)> {
    if json {
        return serde_json::from_str(text).map_err(|e| (e.line().max(1), e.to_string()));
    }
    // The default budget is meant for configuration files; a List of ten thousand pods is larger.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 50_000_000, max_nodes: 25_000_000 },
        strict_booleans: true, // YAML 1.2: a node may be called n, and a label may say yes
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let text = error.without_snippet().to_string();
        // The message's own line is relative to the document; the file's line is reported instead.
        let message = text.lines().next().unwrap_or_default();
        let message = message
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        (usize::try_from(line).unwrap_or(1).max(1), message)
    })
}

fn parse_document(file: &str, text: &str, places: &Places) -> Vec<Item> {
    let json = file.ends_with(".json");
    let value = match read_value(json, text) {
        Ok(Value::Null) => return Vec::new(),
        Ok(value) => value,
        Err((line, message)) => {
            let shown = text
                .lines()
                .nth(line - 1)
                .unwrap_or_default()
                .trim()
                .to_owned();
            let remedy = format!("mend the {}: {message}", if json { "JSON" } else { "YAML" });
            let finding = file_finding(file, "", shown, remedy);
            return vec![Item::Bad(Problem { finding, line })];
        }
    };
    let mut items = Vec::new();
    collect((file, text, places), value, "", &mut items);
    items
}

/// Adds the object, or the objects of a List.
fn collect(
    (file, text, places): (&str, &str, &Places),
    mut value: Value,
    prefix: &str,
    items: &mut Vec<Item>,
) {
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    let api_version = value["apiVersion"].as_str().unwrap_or_default().to_owned();
    if let (Some(item_kind), Some(Value::Array(list))) =
        (kind.strip_suffix("List"), value.get_mut("items"))
    {
        for (index, mut item) in std::mem::take(list).into_iter().enumerate() {
            // Items of a typed list (`PodList`) have no `apiVersion` and `kind`.
            if let (Value::Object(fields), false) = (&mut item, item_kind.is_empty()) {
                fields.entry("kind").or_insert_with(|| item_kind.into());
                fields
                    .entry("apiVersion")
                    .or_insert_with(|| api_version.clone().into());
            }
            let prefix = format!("{prefix}items[{index}].");
            collect((file, text, places), item, &prefix, items);
        }
        return;
    }
    let bad = |field: &str, shown: String, remedy: String| {
        let path = format!("{prefix}{field}");
        let line = places.line_of(text, &path);
        Item::Bad(Problem {
            finding: file_finding(file, &path, shown, remedy),
            line,
        })
    };
    if !value.is_object() || kind.is_empty() || api_version.is_empty() {
        let shown = object::shown(&value, "");
        let remedy = "write a manifest: a mapping with apiVersion, kind and metadata".to_owned();
        let field = if value.is_object() && api_version.is_empty() {
            "apiVersion"
        } else {
            "kind"
        };
        items.push(bad(field, shown, remedy));
        return;
    }
    let kind = match object::classify(&api_version, &kind) {
        Class::Known(kind) => kind,
        Class::Foreign => {
            tracing::debug!(
                file,
                kind,
                api_version,
                "ignoring an object of another kind"
            );
            return;
        }
        Class::Mistaken(remedy) => {
            items.push(bad(
                "apiVersion",
                format!("{api_version}, kind {kind}"),
                remedy,
            ));
            return;
        }
    };
    if matches!(kind, Kind::EgressAddress | Kind::EgressNode) {
        let remedy = "remove it: Egret writes this kind itself, under status/".to_owned();
        items.push(bad("kind", format!("{kind:?}"), remedy));
        return;
    }
    match object::identify(kind, &value) {
        Ok(key) => items.push(Item::Object(Box::new(entry(
            (text, places),
            key,
            value,
            prefix,
        )))),
        Err((field, remedy)) => items.push(bad(field, object::shown(&value, field), remedy)),
    }
}

fn entry((text, places): (&str, &Places), key: ObjectRef, mut value: Value, prefix: &str) -> Entry {
    if object::has_our_status(key.kind)
        && let Value::Object(fields) = &mut value
    {
        fields.remove("status"); // ours to write, whatever a dumped manifest says
    }
    if object::is_namespaced(key.kind) {
        value["metadata"]["namespace"] = key.namespace.clone().into();
    } else if let Value::Object(metadata) = &mut value["metadata"] {
        metadata.remove("namespace");
    }
    let Outcome { result, unknown } = object::convert(&key, &value);
    let locate = |finding: Finding| Problem {
        line: places.line_of(text, &format!("{prefix}{}", finding.field)),
        finding,
    };
    Entry {
        prefix: prefix.to_owned(),
        key,
        value: Arc::new(value),
        result: result
            .map(Arc::new)
            .map_err(|all| all.into_iter().map(locate).collect()),
        unknown: unknown.into_iter().map(locate).collect(),
    }
}

/// The first line with content.
fn first_line(text: &str) -> usize {
    text.lines()
        .position(has_content)
        .map_or(1, |index| index + 1)
}
