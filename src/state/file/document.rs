//! Streams of YAML or JSON documents as JSON values, and the line of each field.
//!
//! Knows nothing of kinds, but for `List`, whose items are documents.

use std::{collections::BTreeMap, fmt, rc::Rc};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::Fault;
use crate::api::{self, schema};

/// Decodes a stream of YAML or JSON documents, keys in their order; empty documents are left out.
///
/// The error, the first one, has no file name.
pub fn decode_documents(text: &str) -> Result<Vec<Value>, Fault> {
    let (values, faults) = read(text);
    match faults.into_iter().next() {
        None => Ok(values.into_iter().map(|(_, value)| value).collect()),
        Some(fault) => Err(fault),
    }
}

/// Returns a value as a YAML document that API tools read back as the same value.
pub fn encode_document(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("JSON values are trees of maps, lists and scalars")
}

/// A document, or an item of one that is a List.
pub(super) struct Document {
    /// `document 2` or `document 2, item 3`.
    place: String,
    /// What leads to the item within the document, with the dot: `items[2].`.
    base: String,
    pub(super) value: Value,
    lines: Rc<Lines>,
}

impl Document {
    /// Returns the items of a List, or the document itself.
    pub(super) fn items(mut self) -> Vec<Self> {
        let is_list = self.value["kind"] == "List" && self.value["apiVersion"] == "v1";
        let Some(items) = self
            .value
            .get_mut("items")
            .and_then(Value::as_array_mut)
            .filter(|_| is_list)
        else {
            return vec![self];
        };
        let item = |(index, value): (usize, &mut Value)| Self {
            place: format!("{}, item {}", self.place, index + 1),
            base: format!("items[{index}]."),
            value: value.take(),
            lines: Rc::clone(&self.lines),
        };
        items.iter_mut().enumerate().map(item).collect()
    }

    /// Returns a function that makes the faults of this document.
    pub(super) fn faults(&self) -> impl Fn(api::Fault) -> Fault + use<> {
        let (subject, base, lines) = (self.subject(), self.base.clone(), Rc::clone(&self.lines));
        move |fault| Fault {
            file: String::new(),
            line: lines.of(&format!("{base}{}", fault.field)),
            subject: subject.clone(),
            fault,
        }
    }

    fn subject(&self) -> String {
        let (kind, name) = (
            self.value["kind"].as_str(),
            self.value["metadata"]["name"].as_str(),
        );
        match (kind, name) {
            (Some(kind), Some(name)) => format!("{} ({kind} {name})", self.place),
            (Some(kind), None) => format!("{} ({kind})", self.place),
            _ => self.place.clone(),
        }
    }
}

/// The line of each field, by path.
#[derive(Default)]
struct Lines(BTreeMap<String, u64>);

impl Lines {
    /// Returns the line of a field, or of what would hold it.
    fn of(&self, field: &str) -> Option<u64> {
        let mut field = field;
        loop {
            if let Some(line) = self.0.get(field) {
                return Some(*line);
            }
            let nothing_left = field.is_empty();
            field = &field[..field.rfind(['.', '[']).unwrap_or(0)];
            if nothing_left {
                return None;
            }
        }
    }
}

/// A YAML node that remembers where it was.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Self>>),
    Mapping(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl Node {
    fn into_value(self, path: &str, lines: &mut Lines) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => {
                let item = |(index, item): (usize, Spanned<Self>)| {
                    let path = format!("{path}[{index}]");
                    lines.0.insert(path.clone(), item.referenced.line());
                    item.value.into_value(&path, lines)
                };
                items.into_iter().enumerate().map(item).collect()
            }
            Self::Mapping(fields) => {
                let field = |(name, value): (Spanned<String>, Spanned<Self>)| {
                    let path = schema::join(path, &name.value);
                    lines.0.insert(path.clone(), name.referenced.line());
                    (name.value, value.value.into_value(&path, lines))
                };
                fields.into_iter().map(field).collect()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter
                    .write_str("text, a number, true, false, null, a list or a mapping with text as keys")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Node, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = mapping.next_entry()? {
                    fields.push(field);
                }
                Ok(Node::Mapping(fields))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

/// Returns the documents that can be read, and the faults of the others.
pub(super) fn parse(text: &str) -> (Vec<Document>, Vec<Fault>) {
    let (nodes, faults) = read::<Spanned<Node>>(text);
    let document = |(place, node): (String, Spanned<Node>)| {
        let mut lines = Lines(BTreeMap::from([(String::new(), node.referenced.line())]));
        let value = node.value.into_value("", &mut lines);
        Document {
            place,
            base: String::new(),
            value,
            lines: Rc::new(lines),
        }
    };
    (nodes.into_iter().map(document).collect(), faults)
}

/// Reads a stream; after broken syntax nothing more is read.
///
/// Lists of a whole cluster's Pods must pass, so there is much room, but little for aliases: they
/// multiply.
fn read<T: DeserializeOwned>(text: &str) -> (Vec<(String, T)>, Vec<Fault>) {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        budget: serde_saphyr::budget! { max_nodes: 10_000_000, max_events: 40_000_000, max_documents: 100_000 },
    };
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    let mut bytes = text.as_bytes();
    for (index, read) in serde_saphyr::read_with_options(&mut bytes, options).enumerate() {
        let place = format!("document {}", index + 1);
        match read {
            Ok(value) => values.push((place, value)),
            Err(error) => faults.push(syntax_fault(place, &error, text)),
        }
    }
    (values, faults)
}

fn syntax_fault(place: String, error: &serde_saphyr::Error, text: &str) -> Fault {
    use serde_saphyr::Error;

    let line = error.location().map(|location| location.line());
    let mut cause = error.without_snippet();
    while let Error::AliasError { error, .. } = cause {
        cause = error;
    }
    let message = match cause {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the field {key} is there twice"),
        Error::AliasReplayLimitExceeded { .. } => "its aliases repeat too much".to_owned(),
        Error::Budget { breach, .. } => format!("is more than can be read: {breach:?}"),
        _ => {
            let full = cause.to_string();
            // The line is told apart.
            let message = full.split(" at line ").next().unwrap_or(&full);
            let index = line.and_then(|line| usize::try_from(line).ok()?.checked_sub(1));
            match index.and_then(|index| unquoted_start(text.lines().nth(index)?)) {
                Some(start) => format!("{message}: a value that begins with {start} must be put in quotes"),
                None => message.to_owned(),
            }
        }
    };
    Fault {
        file: String::new(),
        line,
        subject: place,
        fault: api::Fault::new("", message),
    }
}

/// Returns the character of a line that looks like the start of a text that must be quoted.
pub(crate) fn unquoted_start(line: &str) -> Option<char> {
    let template = ["{registry}", "{repository}"]
        .iter()
        .any(|name| line.contains(&format!(": {name}")));
    let marked = ['*', '@', '%', '`', '&'].into_iter();
    let mut found = marked.filter(|mark| {
        [": ", "- ", "[", ", "]
            .iter()
            .any(|before| line.contains(&format!("{before}{mark}")))
    });
    if template { Some('{') } else { found.next() }
}
