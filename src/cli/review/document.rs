//! Streams of YAML or JSON documents as trees that know where each part stands in the text, so that the
//! text can be edited instead of being written anew.
//!
//! JSON is read as JSON, with its tabs and surrogates; else it is YAML, as Kubernetes reads it. Knows
//! nothing of kinds.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    ops::Range,
};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::scalar;
use crate::state::file::unquoted_start;

/// How many nodes aliases may repeat: they multiply.
const REPLAY_LIMIT: usize = 100_000;

/// How deep lists and mappings may stand in each other.
const DEPTH_LIMIT: usize = 255;

/// Why a text cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Starts at 1.
    pub(super) line: usize,
    /// Starts at 1; without empty ones.
    pub(super) document: usize,
    pub(super) message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            document,
            message,
        } = self;
        write!(formatter, "{line}: document {document}: {message}")
    }
}

/// A node's position in its document.
pub(super) type NodeId = usize;

/// One document of a stream.
#[derive(Debug)]
pub(super) struct Document {
    /// Where its content stands in the text, with the comments around it.
    pub(super) span: Range<usize>,
    pub(super) root: NodeId,
    /// Whether it is JSON.
    pub(super) json: bool,
    nodes: Vec<Node>,
    /// What an alias repeats.
    repeated: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub(super) struct Node {
    /// Where a scalar, of a text on lines of its own only these lines, or an alias stands; of lists and
    /// mappings only the start and, in brackets, the end.
    pub(super) span: Range<usize>,
    pub(super) data: Data,
}

#[derive(Debug)]
pub(super) enum Data {
    Scalar {
        text: String,
        style: Style,
        tag: Tag,
    },
    List {
        items: Vec<NodeId>,
        flow: bool,
    },
    Mapping {
        fields: Vec<(NodeId, NodeId)>,
        flow: bool,
    },
    Alias(NodeId),
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    SingleQuoted,
    DoubleQuoted,
    /// A text on lines of its own, `|` or `>`.
    Block,
}

/// What a scalar's tag makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// There is none: plain scalars mean what they look like, others are text.
    Absent,
    /// One of YAML's own other than text, as `!!int`.
    Resolved,
    Text,
}

/// Reads a text, or returns the first thing that is wrong with it. Documents without content are left
/// out.
pub(super) fn read(text: &str) -> Result<Vec<Document>, Fault> {
    // A byte order mark is no part of the text.
    let start = text.len() - text.trim_start_matches('\u{feff}').len();
    if !text[start..].trim_start().starts_with(['{', '[']) {
        return yaml(text, start);
    }
    json(text, start).or_else(|of_json| {
        // YAML looks like that too.
        yaml(text, start).map_err(|of_yaml| {
            if of_yaml.line > of_json.line {
                of_yaml
            } else {
                of_json
            }
        })
    })
}

/// Returns the line of a position.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    memchr::memchr_iter(b'\n', before).count() + 1
}

impl Document {
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Whether an alias repeats a node, so that a change of it would be one in other places too.
    pub(super) fn is_repeated(&self, id: NodeId) -> bool {
        self.repeated.contains(&id)
    }

    /// Whether it has a number that JSON does not, which cannot be written anew.
    pub(super) fn is_beyond_json(&self) -> bool {
        self.nodes.iter().any(|node| {
            matches!(&node.data, Data::Scalar { text, style: Style::Plain, .. } if scalar::is_beyond_json(text))
        })
    }

    /// Returns the position of a field's name and value in a mapping, written there itself.
    pub(super) fn field(&self, mapping: NodeId, name: &str) -> Option<(NodeId, NodeId)> {
        let Data::Mapping { fields, .. } = &self.node(mapping).data else {
            return None;
        };
        let named = |(key, _): &&(NodeId, NodeId)| self.key(*key).as_deref() == Some(name);
        fields.iter().find(named).copied()
    }

    /// Whether a mapping takes fields from others (`<<`).
    pub(super) fn merges(&self, mapping: NodeId) -> bool {
        let Data::Mapping { fields, .. } = &self.node(mapping).data else {
            return false;
        };
        fields.iter().any(|(key, _)| self.is_merge(*key))
    }

    fn is_merge(&self, key: NodeId) -> bool {
        !self.json
            && matches!(&self.node(key).data, Data::Scalar { text, style: Style::Plain, .. } if text == "<<")
    }

    /// Returns a key as it is in JSON; none for one that is no scalar.
    fn key(&self, id: NodeId) -> Option<String> {
        match self.scalar(id)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    fn scalar(&self, id: NodeId) -> Option<Value> {
        match &self.node(id).data {
            Data::Scalar { text, style, tag } => {
                let looked_at = match tag {
                    Tag::Absent => *style == Style::Plain,
                    Tag::Resolved => true,
                    Tag::Text => false,
                };
                Some(if looked_at {
                    scalar::value(text)
                } else {
                    Value::String(text.clone())
                })
            }
            Data::Alias(target) => self.scalar(*target),
            Data::List { .. } | Data::Mapping { .. } => None,
        }
    }

    /// Whether null stands there, or nothing.
    pub(super) fn is_null(&self, id: NodeId) -> bool {
        self.scalar(id) == Some(Value::Null)
    }

    /// Returns what the document means, aliases and merges carried out; the error says why nothing.
    pub(super) fn value(&self) -> Result<Value, &'static str> {
        let mut reader = Meaning {
            document: self,
            replayed: 0,
        };
        reader.value(self.root, 0, false)
    }
}

/// Turns nodes into values.
struct Meaning<'a> {
    document: &'a Document,
    replayed: usize,
}

impl Meaning<'_> {
    fn value(&mut self, id: NodeId, depth: usize, in_alias: bool) -> Result<Value, &'static str> {
        self.replayed += usize::from(in_alias);
        // One that holds itself is as deep as one likes.
        if self.replayed > REPLAY_LIMIT || depth > 4 * DEPTH_LIMIT {
            return Err("its aliases repeat too much");
        }
        let document = self.document;
        Ok(match &document.node(id).data {
            Data::Scalar { .. } => document.scalar(id).unwrap_or_default(),
            Data::Alias(target) => self.value(*target, depth + 1, true)?,
            Data::List { items, .. } => {
                let mut list = Vec::with_capacity(items.len());
                for item in items {
                    list.push(self.value(*item, depth + 1, in_alias)?);
                }
                Value::Array(list)
            }
            Data::Mapping { fields, .. } => {
                let mut mapping = Map::new();
                for (key, value) in fields {
                    let value = self.value(*value, depth + 1, in_alias)?;
                    if document.is_merge(*key) {
                        merge(&mut mapping, value);
                    } else if let Some(key) = document.key(*key) {
                        mapping.insert(key, value);
                    }
                }
                Value::Object(mapping)
            }
        })
    }
}

/// Puts the fields of another mapping, or of several of which the first counts most, into one.
fn merge(into: &mut Map<String, Value>, value: Value) {
    match value {
        Value::Object(fields) => into.extend(fields),
        Value::Array(items) => items.into_iter().rev().for_each(|item| merge(into, item)),
        _ => {}
    }
}

/// What both readers build.
struct Builder<'t> {
    text: &'t str,
    document: Document,
    /// Which document it is.
    number: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str, number: usize, json: bool) -> Self {
        let document = Document {
            span: 0..0,
            root: 0,
            json,
            nodes: Vec::new(),
            repeated: BTreeSet::new(),
        };
        Self {
            text,
            document,
            number,
        }
    }

    fn push(&mut self, span: Range<usize>, data: Data) -> NodeId {
        self.document.nodes.push(Node { span, data });
        self.document.nodes.len() - 1
    }

    fn fault(&self, at: usize, message: impl Into<String>) -> Fault {
        Fault {
            line: line_of(self.text, at),
            document: self.number,
            message: message.into(),
        }
    }

    /// Checks the keys of a complete mapping.
    fn check_keys(&self, mapping: NodeId) -> Result<(), Fault> {
        let Data::Mapping { fields, .. } = &self.document.node(mapping).data else {
            return Ok(());
        };
        let mut seen = HashSet::with_capacity(fields.len());
        for (key, _) in fields {
            let at = self.document.node(*key).span.start;
            let name = self.document.key(*key);
            let name = name.ok_or_else(|| self.fault(at, "a field's name is a list or a mapping"))?;
            if !self.document.is_merge(*key) && !seen.insert(name.clone()) {
                return Err(self.fault(at, format!("the field {name} is there twice")));
            }
        }
        Ok(())
    }
}

fn json(text: &str, start: usize) -> Result<Vec<Document>, Fault> {
    let mut documents = Vec::new();
    let mut at = start;
    loop {
        let rest = text[at..].trim_start_matches([' ', '\t', '\r', '\n']);
        at = text.len() - rest.len();
        if rest.is_empty() {
            return Ok(documents);
        }
        // API tools allow YAML's separator.
        if let Some(line) = rest.lines().next().filter(|line| line.trim_end() == "---") {
            at += line.len();
            continue;
        }
        let mut builder = Builder::new(text, documents.len() + 1, true);
        let mut checker = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        if let Some(Err(error)) = checker.next() {
            let full = error.to_string();
            // The line is told apart.
            let message = full.split(" at line ").next().unwrap_or(&full).to_owned();
            let mut fault = builder.fault(at, message);
            fault.line += error.line().saturating_sub(1);
            return Err(fault);
        }
        let mut reader = JsonReader {
            builder: &mut builder,
            at,
        };
        let root = reader.value(0)?;
        let end = reader.at;
        builder.document.root = root;
        builder.document.span = at..end;
        documents.push(builder.document);
        at = end;
    }
}

/// Reads JSON that was found to be some.
struct JsonReader<'b, 't> {
    builder: &'b mut Builder<'t>,
    at: usize,
}

impl JsonReader<'_, '_> {
    /// Returns the next byte that is no space; 0 at the end.
    fn peek(&mut self) -> u8 {
        let bytes = self.builder.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !byte.is_ascii_whitespace() {
                return *byte;
            }
            self.at += 1;
        }
        0
    }

    fn value(&mut self, depth: usize) -> Result<NodeId, Fault> {
        let opening = self.peek();
        let start = self.at;
        if depth > DEPTH_LIMIT {
            return Err(self.builder.fault(start, "its lists and objects are too deep"));
        }
        match opening {
            b'{' => {
                let data = Data::Mapping {
                    fields: Vec::new(),
                    flow: true,
                };
                let id = self.builder.push(start..start, data);
                self.at += 1;
                while self.peek() != b'}' {
                    let key = self.value(depth + 1)?;
                    self.peek();
                    // The colon.
                    self.at += 1;
                    let value = self.value(depth + 1)?;
                    if let Data::Mapping { fields, .. } = &mut self.builder.document.nodes[id].data {
                        fields.push((key, value));
                    }
                    self.pass_comma();
                }
                self.end(id);
                self.builder.check_keys(id)?;
                Ok(id)
            }
            b'[' => {
                let data = Data::List {
                    items: Vec::new(),
                    flow: true,
                };
                let id = self.builder.push(start..start, data);
                self.at += 1;
                while self.peek() != b']' {
                    let item = self.value(depth + 1)?;
                    if let Data::List { items, .. } = &mut self.builder.document.nodes[id].data {
                        items.push(item);
                    }
                    self.pass_comma();
                }
                self.end(id);
                Ok(id)
            }
            b'"' => self.string(),
            _ => {
                let rest = &self.builder.text[start..];
                let ends = |byte: char| matches!(byte, ',' | ']' | '}') || byte.is_ascii_whitespace();
                let token = &rest[..rest.find(ends).unwrap_or(rest.len())];
                self.at += token.len();
                let data = Data::Scalar {
                    text: token.to_owned(),
                    style: Style::Plain,
                    tag: Tag::Absent,
                };
                Ok(self.builder.push(start..self.at, data))
            }
        }
    }

    fn string(&mut self) -> Result<NodeId, Fault> {
        let start = self.at;
        let bytes = self.builder.text.as_bytes();
        let mut end = start + 1;
        while let Some(byte) = bytes.get(end) {
            match byte {
                b'\\' => end += 2,
                b'"' => break,
                _ => end += 1,
            }
        }
        self.at = end + 1;
        let literal = self.builder.text.get(start..self.at).unwrap_or_default();
        let text = serde_json::from_str(literal)
            .map_err(|_| self.builder.fault(start, "a text is no sequence of characters"))?;
        let data = Data::Scalar {
            text,
            style: Style::DoubleQuoted,
            tag: Tag::Absent,
        };
        Ok(self.builder.push(start..self.at, data))
    }

    fn pass_comma(&mut self) {
        if self.peek() == b',' {
            self.at += 1;
        }
    }

    /// Passes the closing bracket.
    fn end(&mut self, id: NodeId) {
        self.at += 1;
        self.builder.document.nodes[id].span.end = self.at;
    }
}

fn yaml(text: &str, start: usize) -> Result<Vec<Document>, Fault> {
    let mut documents = Vec::new();
    let mut start = start;
    // Files that were put together may each begin with a byte order mark.
    for (at, mark) in text.match_indices('\u{feff}') {
        let before = text[..at].trim_end_matches(['\r', '\n']);
        if at > start && before.len() < at && before.ends_with("\n---") {
            yaml_part(text, start..at, &mut documents)?;
            start = at + mark.len();
        }
    }
    yaml_part(text, start..text.len(), &mut documents)?;
    Ok(documents)
}

fn yaml_part(text: &str, part: Range<usize>, documents: &mut Vec<Document>) -> Result<(), Fault> {
    let start = part.start;
    let options = granit_parser::options! {
        emit_comments: false,
        block_scalar_eof_without_line_feed: true,
    };
    let mut reader = YamlReader::new(Builder::new(text, 1, false));
    let mut end = start;
    for next in Parser::new_from_str_with_options(&text[part], options) {
        let number = documents.len() + 1;
        let (event, span) = next.map_err(|error| {
            let line = line_of(text, start) + error.marker().line().saturating_sub(1);
            let written = text.lines().nth(line - 1).unwrap_or_default();
            let message = match unquoted_start(written) {
                Some(start) => format!(
                    "{}: a value that begins with {start} must be put in quotes",
                    error.info()
                ),
                None => error.info(),
            };
            Fault {
                line,
                document: number,
                message,
            }
        })?;
        let span = bytes(&span, start);
        match event {
            Event::DocumentStart(explicit, _) => {
                reader = YamlReader::new(Builder::new(text, number, false));
                reader.builder.document.span.start = if explicit { span.end } else { end };
            }
            Event::DocumentEnd => {
                end = span.end;
                let mut document =
                    std::mem::replace(&mut reader, YamlReader::new(Builder::new(text, 1, false)))
                        .builder
                        .document;
                document.span.end = span.start.max(document.span.start);
                let root = document.nodes.get(document.root);
                let is_something = |root: &Node| {
                    !root.span.is_empty() || matches!(root.data, Data::List { .. } | Data::Mapping { .. })
                };
                if root.is_some_and(is_something) {
                    documents.push(document);
                }
            }
            event => reader.take(event, span)?,
        }
    }
    Ok(())
}

fn bytes(span: &Span, start: usize) -> Range<usize> {
    let at = |offset: Option<usize>| start + offset.unwrap_or_default();
    at(span.start.byte_offset())..at(span.end.byte_offset())
}

/// Builds a document from events.
struct YamlReader<'t> {
    builder: Builder<'t>,
    /// The lists and mappings that are not complete, and the names of fields that wait for a value.
    open: Vec<(NodeId, Option<NodeId>)>,
    anchors: HashMap<usize, NodeId>,
}

impl<'t> YamlReader<'t> {
    fn new(builder: Builder<'t>) -> Self {
        Self {
            builder,
            open: Vec::new(),
            anchors: HashMap::new(),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Range<usize>) -> Result<(), Fault> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted => Style::SingleQuoted,
                    ScalarStyle::DoubleQuoted => Style::DoubleQuoted,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                };
                let tag = match tag.as_deref().map(granit_parser::Tag::core_suffix) {
                    None => Tag::Absent,
                    Some(Some("int" | "float" | "bool" | "null")) => Tag::Resolved,
                    Some(_) => Tag::Text,
                };
                let text = text.into_owned();
                self.add(span, Data::Scalar { text, style, tag }, anchor);
            }
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).copied() else {
                    return Err(self.builder.fault(span.start, "an alias of nothing"));
                };
                self.builder.document.repeated.insert(target);
                self.add(span, Data::Alias(target), 0);
            }
            Event::SequenceStart(style, anchor, _) => {
                let data = Data::List {
                    items: Vec::new(),
                    flow: style == StructureStyle::Flow,
                };
                let id = self.add(span, data, anchor);
                self.open.push((id, None));
            }
            Event::MappingStart(style, anchor, _) => {
                let data = Data::Mapping {
                    fields: Vec::new(),
                    flow: style == StructureStyle::Flow,
                };
                let id = self.add(span, data, anchor);
                self.open.push((id, None));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((id, _)) = self.open.pop() {
                    self.builder.document.nodes[id].span.end = span.end;
                    self.builder.check_keys(id)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds a node to what is open.
    fn add(&mut self, span: Range<usize>, data: Data, anchor: usize) -> NodeId {
        let id = self.builder.push(span, data);
        if anchor > 0 {
            self.anchors.insert(anchor, id);
        }
        let Some((parent, name)) = self.open.last_mut() else {
            self.builder.document.root = id;
            return id;
        };
        match &mut self.builder.document.nodes[*parent].data {
            Data::List { items, .. } => items.push(id),
            Data::Mapping { fields, .. } => match name.take() {
                None => *name = Some(id),
                Some(name) => fields.push((name, id)),
            },
            Data::Scalar { .. } | Data::Alias(_) => {}
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        let documents = read(text).unwrap();
        documents
            .iter()
            .map(|document| document.value().unwrap())
            .collect()
    }

    #[track_caller]
    fn fault(text: &str) -> String {
        match read(text) {
            Err(fault) => fault.to_string(),
            Ok(documents) => {
                let values = documents.iter().map(Document::value);
                values.collect::<Result<Vec<_>, _>>().unwrap_err().to_owned()
            }
        }
    }

    #[test]
    fn a_document_means_what_kubernetes_reads() {
        let text = "# head\n---\nmode: 0400\non: \"on\"\nlist: [1_000, !!str 0x1F, !!int \"7\"]\n---\n# nothing\n---\nb: ~\n...\n";
        let expected = [
            json!({"mode": 256, "true": "on", "list": [1000, "0x1F", 7]}),
            json!({"b": null}),
        ];
        assert_eq!(values(text), expected);
    }

    #[test]
    fn aliases_and_merges_are_carried_out() {
        let text = "base: &base {a: 1, b: 1}\nmore: &more {b: 2, c: 2}\nx:\n  <<: [*base, *more]\n  a: 3\nz: *base\n";
        let expected = json!({
            "base": {"a": 1, "b": 1}, "more": {"b": 2, "c": 2},
            "x": {"a": 3, "b": 1, "c": 2}, "z": {"a": 1, "b": 1},
        });
        assert_eq!(values(text), [expected]);
    }

    #[test]
    fn json_is_read_as_json() {
        let pod = json!({"a": ["\u{1f600}", 1, null, true], "b": {"c": "x\"y"}});
        let tabs = "{\n\t\"a\": [\"\\ud83d\\ude00\", 1, null, true],\n\t\"b\":\t{\"c\": \"x\\\"y\"}\n}\n";
        assert_eq!(values(tabs), std::slice::from_ref(&pod));
        assert_eq!(values(&format!("\u{feff}{tabs}---\n{tabs}{tabs}")), vec![pod; 3]);
        assert_eq!(
            values("[{\"a\": 1e2}, 9007199254740993]"),
            [json!([{"a": 100.0}, 9_007_199_254_740_993_u64])]
        );
        // YAML that looks like it.
        assert_eq!(values("{a: 0400}\n"), [json!({"a": 256})]);
    }

    #[test]
    fn a_byte_order_mark_is_no_content() {
        assert_eq!(
            values("\u{feff}a: 1\n---\n\u{feff}b: 2\n---\n\u{feff}\n"),
            [json!({"a": 1}), json!({"b": 2})]
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        assert_eq!(
            fault("a: 1\n---\nb: 1\nb: 2\n"),
            "4: document 2: the field b is there twice"
        );
        assert_eq!(
            fault("{\"a\": 1}\n{\"b\": [\n"),
            "3: document 2: EOF while parsing a list"
        );
        assert_eq!(fault("a:\n  - b\n c: d\n").split(':').next(), Some("3"));
        assert_eq!(
            fault("a: {{ .Values.x }}\n"),
            "1: document 1: a field's name is a list or a mapping"
        );
        assert_eq!(
            fault("{\"a\": \"\\ud83d\"}"),
            "1: document 1: a text is no sequence of characters"
        );
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(",");
            writeln!(bomb, "a{level}: &a{level} [{aliases}]").unwrap();
        }
        assert_eq!(fault(&bomb), "its aliases repeat too much");
        assert_eq!(fault("a: &a [*a]\n"), "its aliases repeat too much");
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert_eq!(fault(&deep), "1: document 1: its lists and objects are too deep");
    }

    #[test]
    fn every_scalar_knows_where_it_stands() {
        let text = "a: nginx # x\nb: 'q'\nc: \"d\"\nd: [x, y]\ne: >-\n  folded\n\nf: é\ng: *z\n"
            .replace("f: é", "f: &z é");
        let documents = read(&text).unwrap();
        let document = &documents[0];
        let slice = |name: &str| {
            let (_, value) = document.field(document.root, name).unwrap();
            text[document.node(value).span.clone()].trim_end()
        };
        let slices = ["a", "b", "c", "d", "e", "f", "g"].map(slice);
        assert_eq!(slices, ["nginx", "'q'", "\"d\"", "[x, y]", "folded", "é", "*z"]);
    }
}
