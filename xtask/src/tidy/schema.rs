//! `docs/cli-v1.schema.json` names the fields and variants of the types that are printed.
//!
//! Every definition says in `$comment` which type it describes: `PATH NAME`. What the program really prints is held
//! against the schema by a test of `egret-cli`.

use super::Tree;
use serde_json::Value;
use std::collections::BTreeSet;

const SCHEMA: &str = "docs/cli-v1.schema.json";
/// Definitions that no type of ours stands behind.
const WITHOUT_TYPE: &[&str] = &["Plan", "Leaves"];

/// Everything that this module checks.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    let text = tree.need(SCHEMA, &mut problems);
    let schema: Value = match serde_json::from_str(text) {
        Ok(schema) => schema,
        Err(error) => return vec![format!("{SCHEMA}: {error}")],
    };
    let Some(definitions) = schema["$defs"].as_object() else {
        return vec![format!("{SCHEMA}: no $defs")];
    };
    for (name, definition) in definitions {
        let problem = match definition["$comment"]
            .as_str()
            .and_then(|c| c.split_once(' '))
        {
            None if WITHOUT_TYPE.contains(&name.as_str()) => None,
            None => Some("no $comment names its type".into()),
            Some((path, item)) => match tree.get(path) {
                None => Some(format!("there is no {path}")),
                Some(source) => difference(definition, source, item),
            },
        };
        problems.extend(problem.map(|problem| format!("{SCHEMA}: {name}: {problem}")));
    }
    problems.extend(
        references(&schema, &schema)
            .iter()
            .map(|r| format!("{SCHEMA}: {r} is not there")),
    );
    problems
}

/// Names that are in only one of definition and type.
fn difference(definition: &Value, source: &str, item: &str) -> Option<String> {
    let strings = |value: &Value| -> BTreeSet<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    };
    let (told, found) = match fields(source, item) {
        Some(found) => {
            let properties = definition["properties"].as_object()?;
            // Written by hand around the type, or always the same.
            let fixed = |name: &String| {
                properties
                    .get(name)
                    .is_some_and(|p| p.get("const").is_some())
            };
            let told: BTreeSet<String> = properties.keys().filter(|n| !fixed(n)).cloned().collect();
            let found: BTreeSet<String> = found.into_iter().filter(|n| !fixed(n)).collect();
            let required: BTreeSet<String> = strings(&definition["required"])
                .into_iter()
                .filter(|n| !fixed(n))
                .collect();
            if required != told {
                return Some("every field is printed, so `required` names every property".into());
            }
            (told, found)
        }
        None => (strings(&definition["enum"]), variants(source, item)?),
    };
    let differ: Vec<&String> = told.symmetric_difference(&found).collect();
    (!differ.is_empty()).then(|| format!("{item} and the schema differ in {differ:?}"))
}

/// The lines between the braces of an item, and its attributes.
fn body<'a>(source: &'a str, keyword: &str, item: &str) -> Option<(&'a str, &'a str)> {
    let (before, rest) = source.split_once(&format!("pub {keyword} {item} {{\n"))?;
    let (body, _) = rest.split_once("\n}")?;
    let attributes = before.rfind("\n\n").map_or(before, |at| &before[at..]);
    Some((body, attributes))
}

/// Names of a struct's fields as serde writes them.
fn fields(source: &str, item: &str) -> Option<BTreeSet<String>> {
    let (body, attributes) = body(source, "struct", item)?;
    let camel_case = attributes.contains("rename_all = \"camelCase\"");
    let mut found = BTreeSet::new();
    for line in body.lines().filter(|line| line.starts_with("    ")) {
        let line = line.trim().trim_start_matches("pub ");
        let name = line.split(": ").next().unwrap_or_default();
        if line.starts_with("//") || line.starts_with('#') || !line.contains(": ") {
            continue;
        }
        found.insert(if camel_case { camel(name) } else { name.into() });
    }
    Some(found)
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut text: String = parts.next().unwrap_or_default().into();
    for part in parts {
        text.push_str(&part[..1].to_uppercase());
        text.push_str(&part[1..]);
    }
    text
}

/// Names of an enum's variants without content.
fn variants(source: &str, item: &str) -> Option<BTreeSet<String>> {
    let (body, _) = body(source, "enum", item)?;
    let names = body.lines().map(|line| line.trim().trim_end_matches(','));
    let plain = |name: &&str| !name.is_empty() && name.chars().all(char::is_alphanumeric);
    Some(names.filter(plain).map(str::to_owned).collect())
}

/// References that lead nowhere.
fn references(value: &Value, schema: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let mut bad: Vec<String> = map.values().flat_map(|v| references(v, schema)).collect();
            if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                let there = target
                    .strip_prefix('#')
                    .and_then(|pointer| schema.pointer(pointer));
                bad.extend(there.is_none().then(|| target.to_owned()));
            }
            bad
        }
        Value::Array(list) => list.iter().flat_map(|v| references(v, schema)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{assert_none, assert_one};
    use super::*;

    #[test]
    fn the_schema_of_the_command_line_names_what_the_types_have() {
        assert_none(&check(&Tree::load().unwrap()));
    }

    const SOURCE: &str = "use a;\n\n/// A.\n#[serde(rename_all = \"camelCase\")]\npub struct A {\n    kind: &'static str,\n    \
        /// B: c.\n    pub b_c: u8,\n}\n\n/// E.\npub enum E {\n    /// One.\n    One,\n    Two,\n}\n";

    fn problems(schema: &str) -> Vec<String> {
        check(&Tree::of(&[(SCHEMA, schema), ("a.rs", SOURCE)]))
    }

    fn structure(properties: &str, required: &str) -> String {
        format!(
            r##"{{"$defs": {{"A": {{"$comment": "a.rs A", "properties": {{"kind": {{"const": "A"}}, {properties}}},
            "required": ["kind", {required}]}}}}}}"##
        )
    }

    #[test]
    fn differences_from_the_types_are_seen() {
        assert_none(&problems(&structure(r#""bC": {}"#, r#""bC""#)));
        assert_one(
            &problems(&structure(r#""b_c": {}"#, r#""b_c""#)),
            &["bC", "b_c"],
        );
        assert_one(
            &problems(&structure(r#""bC": {}, "d": {}"#, r#""bC", "d""#)),
            &["\"d\""],
        );
        assert_one(
            &problems(&structure(r#""bC": {}, "d": {}"#, r#""bC""#)),
            &["required"],
        );
        let variants = |list: &str| {
            format!(r#"{{"$defs": {{"E": {{"$comment": "a.rs E", "enum": [{list}]}}}}}}"#)
        };
        assert_none(&problems(&variants(r#""One", "Two""#)));
        assert_one(&problems(&variants(r#""One""#)), &["Two"]);
    }

    #[test]
    fn broken_schemas_are_seen() {
        assert_one(&problems("{"), &["EOF"]);
        assert_one(&problems("{}"), &["$defs"]);
        assert_one(&problems(r#"{"$defs": {"X": {}}}"#), &["$comment"]);
        assert_one(
            &problems(r#"{"$defs": {"X": {"$comment": "gone.rs X"}}}"#),
            &["gone.rs"],
        );
        assert_one(
            &problems(r##"{"$defs": {}, "$ref": "#/$defs/Y"}"##),
            &["#/$defs/Y"],
        );
    }
}
