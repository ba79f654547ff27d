//! Finds the line of a field by parsing the text again. Done only for findings, and once per document: an object's
//! author can cause any number of findings.

use super::object::segments;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;
use std::sync::OnceLock;

/// Lines of the nodes of one document.
#[derive(Default)]
pub(super) struct Places(OnceLock<Option<Placed>>);

/// A node of a document with its line.
struct Placed {
    line: usize,
    node: Node,
}

enum Node {
    Map(Vec<(String, Placed)>),
    List(Vec<Placed>),
    Leaf,
}

impl Places {
    /// Line of a field (`spec.destinations[0].cidr`) in the document of this text, from 1; that of the nearest existing
    /// enclosing field if it is missing. JSON is parsed as YAML.
    pub fn line_of(&self, text: &str, field: &str) -> usize {
        let root = self.0.get_or_init(|| serde_saphyr::from_str(text).ok());
        root.as_ref().map_or(1, |root| line_of(root, field))
    }
}

fn line_of(root: &Placed, field: &str) -> usize {
    let mut place = root;
    for part in segments(field) {
        let next = match &place.node {
            Node::Map(fields) => fields
                .iter()
                .find(|(key, _)| *key == part)
                .map(|(_, at)| at),
            Node::List(items) => part
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index)),
            Node::Leaf => None,
        };
        match next {
            Some(next) => place = next,
            None => break,
        }
    }
    place.line.max(1)
}

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Node>::deserialize(deserializer)?;
        let line = usize::try_from(spanned.referenced.line()).unwrap_or(0);
        Ok(Self {
            line,
            node: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry::<String, Placed>()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<Placed>()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
}
