//! One object under conversion: fields taken from its spec, objects made from it, and losses.

use super::{Loss, ours};
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Longest value that a loss shows, in characters.
const SHOWN_MAX: usize = 120;

pub(super) struct Sheet<'v> {
    object: &'v Value,
    taken: BTreeSet<String>,
    /// Reasons for losses by path; other losses get a general sentence.
    reasons: BTreeMap<String, String>,
    made: Vec<Value>,
    losses: Vec<Loss>,
    /// The output is the same object under another name: it inherits labels and annotations.
    same: bool,
}

/// Annotations that matter only to the tool that wrote them, or to Egret for the old object.
const MEANINGLESS: [&str; 2] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    egret_objects::front_end::ADOPT_ANNOTATION,
];

impl<'v> Sheet<'v> {
    pub fn of(object: &'v Value) -> Self {
        Self {
            object,
            taken: BTreeSet::new(),
            reasons: BTreeMap::new(),
            made: Vec::new(),
            losses: Vec::new(),
            same: false,
        }
    }

    /// Lets the output inherit this object's labels and annotations.
    pub fn is_same_object(&mut self) {
        self.same = true;
    }

    pub fn object(&self) -> &'v Value {
        self.object
    }

    pub fn name(&self) -> &'v str {
        self.object["metadata"]["name"]
            .as_str()
            .unwrap_or("unnamed")
    }

    pub fn namespace(&self) -> &'v str {
        let namespace = self.object["metadata"]["namespace"].as_str();
        namespace.unwrap_or("default")
    }

    pub fn api_version(&self) -> &'v str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }

    /// Reads a field of the spec without taking it: `a.b[0].c`.
    pub fn peek(&self, path: &str) -> &'v Value {
        let mut node = &self.object["spec"];
        for part in path.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
            node = match part.parse::<usize>() {
                Ok(index) => &node[index],
                Err(_) => &node[part],
            };
        }
        node
    }

    /// Takes a field, with everything below it: its meaning is in the output.
    pub fn take(&mut self, path: &str) -> &'v Value {
        self.taken.insert(path.to_owned());
        self.peek(path)
    }

    /// Takes a non-empty text.
    pub fn text(&mut self, path: &str) -> Option<&'v str> {
        self.take(path).as_str().filter(|text| !text.is_empty())
    }

    /// Takes the distinct texts of a list. Other entries become losses.
    pub fn texts(&mut self, path: &str) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for (index, one) in self.take(path).as_array().into_iter().flatten().enumerate() {
            match one.as_str().map(str::trim).filter(|text| !text.is_empty()) {
                Some(text) if all.iter().any(|known| known == text) => {}
                Some(text) => all.push(text.to_owned()),
                None => {
                    let why = "it says nothing; left out";
                    self.lose(&format!("spec.{path}[{index}]"), one, why);
                }
            }
        }
        all
    }

    /// Takes the prefixes of a list, as [`Sheet::prefixes_of`] reads them.
    pub fn prefixes(&mut self, path: &str) -> Vec<String> {
        let texts = self.texts(path);
        self.prefixes_of(path, &texts)
    }

    /// Distinct prefixes without host bits, since these systems ignore those. Other texts become losses.
    pub fn prefixes_of(&mut self, path: &str, texts: &[String]) -> Vec<String> {
        let mut all = Vec::new();
        for text in texts {
            match network(text) {
                Some(net) if all.contains(&net) => {}
                Some(net) => all.push(net),
                None => self.lose(
                    &format!("spec.{path}"),
                    &Value::from(text.as_str()),
                    "it is no prefix; left out",
                ),
            }
        }
        all
    }

    /// Sets the reason why this field has no equivalent, if it is present.
    pub fn without_equal(&mut self, path: &str, why: &str) {
        self.reasons.insert(path.to_owned(), why.to_owned());
    }

    /// Adds a loss that no field of the spec causes.
    pub fn lose(&mut self, field: &str, value: &Value, why: impl Into<String>) {
        self.losses.push(Loss {
            object: self.label(),
            field: field.to_owned(),
            value: shown(value),
            why: why.into(),
        });
    }

    /// Adds an object of ours.
    pub fn make(
        &mut self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        spec: Map<String, Value>,
    ) {
        let mut made = ours(kind, namespace, name, spec);
        if self.same {
            for (field, key, value) in self.named() {
                made["metadata"][field][key] = value.clone();
            }
        }
        self.made.push(made);
    }

    /// Labels and annotations that matter.
    fn named(&self) -> Vec<(&'static str, &'v str, &'v Value)> {
        let metadata = &self.object["metadata"];
        let of = |field: &'static str| {
            let all = metadata[field].as_object().into_iter().flatten();
            all.map(move |(key, value)| (field, key.as_str(), value))
        };
        let all = of("labels").chain(of("annotations"));
        all.filter(|(_, key, _)| !MEANINGLESS.contains(key))
            .collect()
    }

    /// Adds ownership metadata to the losses: an owner by labels, annotations or owner references (Helm, Argo CD, a
    /// controller) would own the new object, too, if it were copied.
    fn lose_metadata(&mut self) {
        if !self.same {
            for (field, key, value) in self.named() {
                let why = "labels and annotations are not taken over: add those that are yours to what is made";
                self.lose(&format!("metadata.{field}.{key}"), value, why);
            }
        }
        for field in ["ownerReferences", "finalizers"] {
            let value = &self.object["metadata"][field];
            if !is_nothing(value) {
                let why = "whoever put it there does not know what is made";
                self.lose(&format!("metadata.{field}"), value, why);
            }
        }
    }

    /// Kind and name of the object, for people.
    pub fn label(&self) -> String {
        let kind = self.object["kind"].as_str().unwrap_or_default();
        match self.object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("{kind} {namespace}/{}", self.name()),
            None => format!("{kind} {}", self.name()),
        }
    }

    /// The objects made, and the losses, with every field that was not taken.
    pub fn finish(mut self) -> (Vec<Value>, Vec<Loss>) {
        self.lose_metadata();
        let mut left = Vec::new();
        self.walk(&self.object["spec"], "", &mut left);
        for (path, value) in left {
            let why = self.reasons.get(&without_indexes(&path)).cloned();
            let why = why.unwrap_or_else(|| "Egret has no equal for it".to_owned());
            self.lose(&format!("spec.{path}"), &value, why);
        }
        (self.made, self.losses)
    }

    /// Collects fields that were not taken: the topmost ones without a taken field below.
    fn walk(&self, value: &Value, path: &str, left: &mut Vec<(String, Value)>) {
        if self.taken.contains(path) || is_nothing(value) {
            return;
        }
        let inside = |taken: &String| {
            taken
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        let named = self.reasons.contains_key(&without_indexes(path));
        if !path.is_empty() && (named || !self.taken.iter().any(inside)) {
            // A reason for a field below takes precedence over one for the whole.
            let below = |known: &String| known.starts_with(&format!("{}.", without_indexes(path)));
            if named || !self.reasons.keys().any(below) {
                left.push((path.to_owned(), value.clone()));
                return;
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    self.walk(value, &format!("{path}{dot}{name}"), left);
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    self.walk(value, &format!("{path}[{index}]"), left);
                }
            }
            _ => left.push((path.to_owned(), value.clone())),
        }
    }
}

/// A prefix without host bits; an address becomes a prefix of full length.
fn network(text: &str) -> Option<String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().ok()?,
    };
    Some(net.trunc().to_string())
}

/// Whether a value is equivalent to an absent field.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) => false,
    }
}

/// `a[0].b` as `a.b`: reasons apply to every entry of a list.
fn without_indexes(path: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => text.push(c),
            _ => {}
        }
    }
    text
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
