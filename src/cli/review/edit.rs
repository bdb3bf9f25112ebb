//! Edits of a text: only images, annotations and a pull secret change, all else stays byte for byte.
//!
//! An edit that would act in more places than one (anchors, merges), or for which the text as it is
//! written has no room, is not made here: the caller writes that document anew.

use std::{fmt::Write as _, ops::Range};

use serde_json::{Value, json};

use super::{
    document::{Data, Document, NodeId, Style},
    scalar,
};

/// How much deeper than its name a mapping is written.
const INDENT: usize = 2;

/// The names and positions that lead to a value.
pub(super) type Path = Vec<String>;

/// What becomes of a Pod, or of a template of Pods, within a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rewrite {
    /// Images and where they stand.
    pub(super) images: Vec<(Path, String)>,
    /// What has the `metadata` that the annotations belong to.
    pub(super) pod: Path,
    pub(super) annotations: Vec<(String, String)>,
    /// What has the `imagePullSecrets` that a name belongs to.
    pub(super) pull_secret: Option<(Path, String)>,
}

/// A piece of text in place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) at: Range<usize>,
    pub(super) text: String,
}

/// Returns a text with edits made; none if they overlap.
pub(super) fn edited(text: &str, mut edits: Vec<Edit>) -> Option<String> {
    edits.sort_by_key(|edit| edit.at.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        out.push_str(text.get(at..edit.at.start)?);
        out.push_str(&edit.text);
        at = edit.at.end;
    }
    out.push_str(text.get(at..)?);
    Some(out)
}

/// Returns a field of an object, an empty one where there is none.
fn field<'v>(object: &'v mut Value, name: &str) -> Option<&'v mut Value> {
    let field = object.as_object_mut()?.entry(name).or_insert(Value::Null);
    if field.is_null() {
        *field = json!({});
    }
    Some(field)
}

impl Rewrite {
    /// Carries it out on what the document means.
    pub(super) fn apply(&self, document: &mut Value) {
        for (path, image) in &self.images {
            if let Some(place) = document.pointer_mut(&pointer(path)) {
                *place = json!(image);
            }
        }
        let Some(pod) = document.pointer_mut(&pointer(&self.pod)) else {
            return;
        };
        let annotations = field(pod, "metadata").and_then(|metadata| field(metadata, "annotations"));
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            for (name, value) in &self.annotations {
                annotations.insert(name.clone(), json!(value));
            }
        }
        let Some((path, name)) = &self.pull_secret else {
            return;
        };
        if let Some(spec) = document.pointer_mut(&pointer(path)) {
            let entry = json!({"name": name});
            match spec["imagePullSecrets"].as_array_mut() {
                Some(list) => list.push(entry),
                None => spec["imagePullSecrets"] = json!([entry]),
            }
        }
    }

    /// Returns the edits of the text that carry it out; none if that cannot be told to work.
    pub(super) fn edits(&self, text: &str, document: &Document) -> Option<Vec<Edit>> {
        let mut editor = Editor {
            text,
            document,
            edits: Vec::new(),
        };
        for (path, image) in &self.images {
            editor.replace(path, image)?;
        }
        let (name, pod) = editor.walk(&self.pod)?;
        let annotations = self.annotations.iter();
        let annotations = annotations.map(|(name, value)| (name.as_str(), value.as_str()));
        editor.set(
            pod,
            name,
            &["metadata", "annotations"],
            &annotations.collect::<Vec<_>>(),
        )?;
        if let Some((path, secret)) = &self.pull_secret {
            editor.append(path, "imagePullSecrets", secret)?;
        }
        Some(editor.edits)
    }
}

/// Returns a path as a JSON pointer.
fn pointer(path: &[String]) -> String {
    path.iter().fold(String::new(), |pointer, part| {
        pointer + "/" + &part.replace('~', "~0").replace('/', "~1")
    })
}

/// A value that is put into a document.
enum Tree {
    Text(String),
    Mapping(Vec<(String, Self)>),
    List(Vec<Self>),
}

struct Editor<'a> {
    text: &'a str,
    document: &'a Document,
    edits: Vec<Edit>,
}

impl Editor<'_> {
    /// Returns what a path leads to, and the name of the field that it is the value of. None where
    /// something on the way stands elsewhere too.
    fn walk(&self, path: &[String]) -> Option<(Option<NodeId>, NodeId)> {
        let (mut name, mut node) = (None, self.document.root);
        for part in path {
            if self.document.is_repeated(node) {
                return None;
            }
            (name, node) = match &self.document.node(node).data {
                Data::Mapping { .. } => {
                    let (key, value) = self.document.field(node, part)?;
                    (Some(key), value)
                }
                Data::List { items, .. } => (None, *items.get(part.parse::<usize>().ok()?)?),
                Data::Scalar { .. } | Data::Alias(_) => return None,
            };
        }
        (!self.document.is_repeated(node)).then_some((name, node))
    }

    fn replace(&mut self, path: &[String], by: &str) -> Option<()> {
        let (name, node) = self.walk(path)?;
        let style = match &self.document.node(node).data {
            Data::Scalar { style, .. } => *style,
            // The alias alone goes, what it repeats stays.
            Data::Alias(_) => Style::Plain,
            Data::List { .. } | Data::Mapping { .. } => return None,
        };
        let text = self.written(by, style);
        let at = self.whole_extent(name, node)?;
        self.edits.push(Edit { at, text });
        Some(())
    }

    /// Returns where a scalar or an alias stands, without the space after it.
    fn extent(&self, node: NodeId) -> Range<usize> {
        let span = &self.document.node(node).span;
        span.start..span.start + self.text[span.clone()].trim_end().len()
    }

    /// The same, with the line that announces a text on lines of its own.
    fn whole_extent(&self, name: Option<NodeId>, node: NodeId) -> Option<Range<usize>> {
        let mut extent = self.extent(node);
        if let Data::Scalar {
            style: Style::Block, ..
        } = self.document.node(node).data
        {
            let after = self.document.node(name?).span.end;
            extent.start = after + self.text.get(after..extent.start)?.find(['|', '>'])?;
        }
        Some(extent)
    }

    /// Sets texts in the mapping that names lead to, and makes what is absent of it.
    fn set(
        &mut self,
        mapping: NodeId,
        owner: Option<NodeId>,
        names: &[&str],
        entries: &[(&str, &str)],
    ) -> Option<()> {
        let Data::Mapping { flow, .. } = &self.document.node(mapping).data else {
            return None;
        };
        // What is not written there itself may come from elsewhere.
        if self.document.is_repeated(mapping) || self.document.merges(mapping) {
            return None;
        }
        let Some((name, rest)) = names.split_first() else {
            let mut new = Vec::new();
            for (key, value) in entries {
                match self.document.field(mapping, key) {
                    None => new.push(((*key).to_owned(), Tree::Text((*value).to_owned()))),
                    Some((name, node)) => {
                        if self.document.is_repeated(node) {
                            return None;
                        }
                        let Data::Scalar { style, .. } = self.document.node(node).data else {
                            return None;
                        };
                        let at = self.whole_extent(Some(name), node)?;
                        // Without any text there is no place for it.
                        if at.is_empty() {
                            return None;
                        }
                        let text = self.written(value, style);
                        self.edits.push(Edit { at, text });
                    }
                }
            }
            return self.put(mapping, owner, &new);
        };
        let nested = |names: &[&str]| {
            let entries = entries.iter();
            let entries = entries.map(|(key, value)| ((*key).to_owned(), Tree::Text((*value).to_owned())));
            names
                .iter()
                .rev()
                .fold(Tree::Mapping(entries.collect()), |tree, name| {
                    Tree::Mapping(vec![((*name).to_owned(), tree)])
                })
        };
        match self.document.field(mapping, name) {
            None => self.put(mapping, owner, &[((*name).to_owned(), nested(rest))]),
            Some((key, value)) if self.document.is_null(value) => self.fill(key, value, *flow, &nested(rest)),
            Some((key, value)) => self.set(value, Some(key), rest, entries),
        }
    }

    /// Adds `name: secret` to a list of a mapping.
    fn append(&mut self, path: &[String], list: &str, secret: &str) -> Option<()> {
        let (owner, mapping) = self.walk(path)?;
        let Data::Mapping { flow, .. } = &self.document.node(mapping).data else {
            return None;
        };
        let entry = Tree::Mapping(vec![("name".to_owned(), Tree::Text(secret.to_owned()))]);
        let Some((key, value)) = self.document.field(mapping, list) else {
            if self.document.merges(mapping) {
                return None;
            }
            return self.put(mapping, owner, &[(list.to_owned(), Tree::List(vec![entry]))]);
        };
        if self.document.is_null(value) {
            return self.fill(key, value, *flow, &Tree::List(vec![entry]));
        }
        let Data::List { items, flow } = &self.document.node(value).data else {
            return None;
        };
        if self.document.is_repeated(value) {
            return None;
        }
        match (items.first().zip(items.last()), flow) {
            (None, true) => {
                let at = self.document.node(value).span.start + 1;
                self.insert(at, entry.flow());
            }
            (None, false) => return None,
            (Some((_, last)), true) => self.insert(self.end(*last)?, format!(", {}", entry.flow())),
            (Some((first, last)), false) => {
                let dash = self.before(*first).trim_end();
                let indent = dash.strip_suffix('-')?;
                if !indent.bytes().all(|byte| byte == b' ') {
                    return None;
                }
                let lines = vec![format!("- name: {}", self.written(secret, Style::Plain))];
                self.insert_lines_after(self.end(*last)?, indent.len(), &lines);
            }
        }
        Some(())
    }

    /// Puts fields into a mapping, before those that it has.
    fn put(&mut self, mapping: NodeId, owner: Option<NodeId>, new: &[(String, Tree)]) -> Option<()> {
        if new.is_empty() {
            return Some(());
        }
        let node = self.document.node(mapping);
        let Data::Mapping { fields, flow } = &node.data else {
            return None;
        };
        let first = fields.first().map(|(key, _)| self.document.node(*key).span.start);
        match (first, flow) {
            (None, true) => self.insert(node.span.start + 1, flow_fields(new, " ")),
            (None, false) => return None,
            (Some(first), true) => {
                // A single field of a list in brackets needs no braces of its own.
                let gap = self.text.get(node.span.start + 1..first)?;
                let gap = match gap {
                    "" if self.document.json => "",
                    gap if !gap.is_empty() && gap.trim().is_empty() => gap,
                    _ => " ",
                };
                self.insert(first, format!("{},{gap}", flow_fields(new, gap)));
            }
            (Some(first), false) => {
                let indent = self.column(fields.first()?.0)?;
                let lines = self.block_lines(new, 0);
                let owner = owner.map(|owner| self.document.node(owner).span.end);
                if let Some(owner) = owner.filter(|owner| self.text[*owner..first].contains('\n')) {
                    self.insert_lines_after(owner, indent, &lines);
                } else {
                    let next = format!("{}{}", self.line_end(first), " ".repeat(indent));
                    self.insert(first, lines.join(&next) + &next);
                }
            }
        }
        Some(())
    }

    /// Puts a value in place of null.
    fn fill(&mut self, key: NodeId, null: NodeId, flow: bool, tree: &Tree) -> Option<()> {
        let at = self.extent(null);
        if flow {
            // Without any text there is no place for it.
            if at.is_empty() {
                return None;
            }
            let text = tree.flow();
            self.edits.push(Edit { at, text });
            return Some(());
        }
        let indent = self.column(key)? + INDENT;
        let lines = match tree {
            Tree::Mapping(fields) => self.block_lines(fields, 0),
            Tree::List(items) => block_items(items, 0),
            Tree::Text(_) => return None,
        };
        let name = self.document.node(key).span.end;
        if !at.is_empty() {
            let text = String::new();
            self.edits.push(Edit { at, text });
        }
        self.insert_lines_after(name, indent, &lines);
        Some(())
    }

    fn insert(&mut self, at: usize, text: String) {
        self.edits.push(Edit { at: at..at, text });
    }

    /// Inserts lines after the line of a position.
    fn insert_lines_after(&mut self, at: usize, indent: usize, lines: &[String]) {
        let end = self.line_end(at);
        let next = self.text[at..].find('\n').map(|found| at + found + 1);
        let mut text = String::new();
        for line in lines {
            if next.is_none() {
                text.push_str(end);
            }
            text.extend(std::iter::repeat_n(' ', indent));
            text.push_str(line);
            if next.is_some() {
                text.push_str(end);
            }
        }
        self.insert(next.unwrap_or(self.text.len()), text);
    }

    /// Returns how lines end around a position.
    fn line_end(&self, at: usize) -> &'static str {
        let line = self.text[at..].split_inclusive('\n').next().unwrap_or_default();
        if line.ends_with("\r\n") { "\r\n" } else { "\n" }
    }

    /// Returns what stands before a node on its line.
    fn before(&self, node: NodeId) -> &str {
        let start = self.document.node(node).span.start;
        let line = self.text[..start].rfind('\n').map_or(0, |found| found + 1);
        self.text[line..start].trim_start_matches('\u{feff}')
    }

    /// Returns the column of the first field of its kind on a line; none if more than the dashes of lists
    /// stands before it.
    fn column(&self, key: NodeId) -> Option<usize> {
        let before = self.before(key);
        let is_indent = |byte: u8| matches!(byte, b' ' | b'-');
        before.bytes().all(is_indent).then_some(before.len())
    }

    /// Returns where a node ends; none where that is not known.
    fn end(&self, node: NodeId) -> Option<usize> {
        match &self.document.node(node).data {
            Data::Scalar {
                style: Style::Block, ..
            } => None,
            Data::Scalar { .. } | Data::Alias(_) => Some(self.extent(node).end),
            Data::List { flow: true, .. } | Data::Mapping { flow: true, .. } => {
                Some(self.document.node(node).span.end)
            }
            Data::List { items, .. } => self.end(*items.last()?),
            Data::Mapping { fields, .. } => self.end(fields.last()?.1),
        }
    }

    /// Writes a text as the one in whose place it comes was written.
    fn written(&self, text: &str, style: Style) -> String {
        let is_printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        match style {
            _ if self.document.json => quoted(text),
            Style::SingleQuoted if is_printable(text) => format!("'{}'", text.replace('\'', "''")),
            Style::Plain | Style::Block if is_plain(text) => text.to_owned(),
            // Easier to read where there are quotes in it.
            Style::Plain | Style::Block if is_printable(text) && text.contains('"') => {
                format!("'{}'", text.replace('\'', "''"))
            }
            Style::SingleQuoted | Style::DoubleQuoted | Style::Plain | Style::Block => quoted(text),
        }
    }

    fn block_lines(&self, fields: &[(String, Tree)], indent: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let space = " ".repeat(indent);
        for (name, value) in fields {
            let name = self.written(name, Style::Plain);
            match value {
                Tree::Text(text) => {
                    lines.push(format!("{space}{name}: {}", self.written(text, Style::Plain)));
                }
                Tree::Mapping(fields) => {
                    lines.push(format!("{space}{name}:"));
                    lines.extend(self.block_lines(fields, indent + INDENT));
                }
                Tree::List(items) => {
                    lines.push(format!("{space}{name}:"));
                    lines.extend(block_items(items, indent));
                }
            }
        }
        lines
    }
}

impl Tree {
    /// Returns it as JSON, which is YAML as well.
    fn flow(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Mapping(fields) => format!("{{{}}}", flow_fields(fields, " ")),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::flow).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }
}

fn block_items(items: &[Tree], indent: usize) -> Vec<String> {
    let space = " ".repeat(indent);
    items
        .iter()
        .map(|item| format!("{space}- {}", item.flow()))
        .collect()
}

fn flow_fields(fields: &[(String, Tree)], gap: &str) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}: {}", quoted(name), value.flow()))
        .collect();
    fields.join(&format!(",{gap}"))
}

/// Returns a text in double quotes, good for JSON and YAML.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    for character in json!(text).to_string().chars() {
        // YAML folds some of them, editors hide others.
        if character.is_ascii() || character.is_alphanumeric() {
            out.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// Whether a text without quotes is read as that text, wherever it stands.
fn is_plain(text: &str) -> bool {
    let known =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'@' | b':' | b'-');
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(known)
        && !text.ends_with(':')
        && scalar::value(text).is_string()
}

#[cfg(test)]
mod tests {
    use super::{super::document::read, *};

    const MIRRORED: &str = "mirror.test/docker.io/library/nginx:1.27";

    fn rewrite(pod: &[&str], places: &[&str], secret: bool) -> Rewrite {
        let path = |more: &str| -> Path {
            let more = more.split('/').filter(|part| !part.is_empty());
            pod.iter().copied().chain(more).map(ToOwned::to_owned).collect()
        };
        Rewrite {
            images: places
                .iter()
                .map(|place| (path(place), MIRRORED.to_owned()))
                .collect(),
            pod: path(""),
            annotations: vec![
                ("original-image.kagami.dev/a".to_owned(), "nginx:1.27".to_owned()),
                (
                    "kagami.dev/decisions".to_owned(),
                    "{\"containers.a\":{}}".to_owned(),
                ),
            ],
            pull_secret: secret.then(|| (path("spec"), "kagami-pull".to_owned())),
        }
    }

    /// Makes the edits and checks that what they make means what it should. None if they cannot be made.
    fn edit(text: &str, rewrite: &Rewrite) -> Option<String> {
        let document = read(text).unwrap().remove(0);
        let mut expected = document.value().unwrap();
        rewrite.apply(&mut expected);
        let text = edited(text, rewrite.edits(text, &document)?)?;
        let read = read(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
        assert_eq!(read[0].value().unwrap(), expected, "{text}");
        Some(text)
    }

    const IMAGE: &str = "spec/containers/0/image";

    #[test]
    fn comments_order_and_numbers_stay() {
        let text = "\
# head
apiVersion: v1
kind: Pod
metadata: # of it
  # the name
  name: web
  annotations:
    # first
    a: 0x1F   # odd
spec:
  volumes:
  - {name: s, secret: {secretName: s, defaultMode: 0400}}
  containers:
  - name: a
    image:   nginx:1.27   # ours
# end
";
        let expected = "\
# head
apiVersion: v1
kind: Pod
metadata: # of it
  # the name
  name: web
  annotations:
    original-image.kagami.dev/a: nginx:1.27
    kagami.dev/decisions: '{\"containers.a\":{}}'
    # first
    a: 0x1F   # odd
spec:
  imagePullSecrets:
  - {\"name\": \"kagami-pull\"}
  volumes:
  - {name: s, secret: {secretName: s, defaultMode: 0400}}
  containers:
  - name: a
    image:   mirror.test/docker.io/library/nginx:1.27   # ours
# end
";
        assert_eq!(edit(text, &rewrite(&[], &[IMAGE], true)).unwrap(), expected);
    }

    #[test]
    fn every_way_to_write_it_has_its_edit() {
        let secrets = [
            "",
            "  imagePullSecrets: []\n",
            "  imagePullSecrets: null\n",
            "  imagePullSecrets:\n",
            "  imagePullSecrets: [{name: x}]\n",
            "  imagePullSecrets:\n  - name: x # y\n",
            "  imagePullSecrets:\n    - name: x\n      # z\n",
        ];
        let metadata = [
            "metadata: {name: web}\n",
            "metadata: {}\n",
            "metadata: { name: web, annotations: {a: b} }\n",
            "metadata: {name: web, annotations: {}}\n",
            "metadata: {name: web, annotations: null}\n",
            "metadata:\n  name: web\n",
            "metadata:\n  name: web\n  annotations:\n",
            "metadata:\n  annotations: ~ # none\n  name: web\n",
            "metadata:\n\n  annotations: {}\n",
            "metadata:\n  annotations: {kagami.dev/decisions: 'x'}\n",
            "metadata:\n  annotations:\n    kagami.dev/decisions: |\n      x\n      y\n    b: c\n",
            "metadata:\n",
            "",
        ];
        let images = [
            "nginx:1.27",
            "'nginx:1.27'",
            "\"nginx:1.27\"",
            ">-\n      nginx:1.27\n\n",
            "|\n      nginx:1.27\n    # why",
            "!!str nginx:1.27",
            "&unused nginx:1.27",
        ];
        for secret in secrets {
            for metadata in metadata {
                for image in images {
                    let text = format!(
                        "{metadata}spec:\n{secret}  containers:\n  - name: a\n    image: {image}\n    args: [x]\n"
                    );
                    for text in [
                        text.clone(),
                        text.replace('\n', "\r\n"),
                        text.trim_end().to_owned(),
                    ] {
                        let made = edit(&text, &rewrite(&[], &[IMAGE], true));
                        assert!(made.is_some(), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_pod_in_a_list_has_its_edit() {
        let pod =
            "  metadata:\n    name: web\n  spec:\n    containers:\n    - {name: a, image: nginx:1.27}\n";
        let text = format!(
            "items:\n- kind: Pod\n{pod}- kind: Pod\n  spec:\n    containers:\n    - image: nginx:1.27\n      name: a\n"
        );
        for item in ["0", "1"] {
            edit(&text, &rewrite(&["items", item], &[IMAGE], true)).unwrap();
        }
        let bare = "- spec:\n    containers:\n      - image: nginx:1.27\n        name: a\n";
        edit(bare, &rewrite(&["0"], &[IMAGE], true)).unwrap();
    }

    #[test]
    fn json_stays_json_and_keeps_its_shape() {
        let text = "{\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\n\t\t\"name\": \"web\"\n\t},\n\t\"spec\": {\"containers\": [{\"name\": \"a\", \"image\": \"nginx:1.27\"}]}\n}\n";
        let made = edit(text, &rewrite(&[], &[IMAGE], true)).unwrap();
        assert!(serde_json::from_str::<Value>(&made).is_ok(), "{made}");
        assert!(
            made.contains(
                "\t\"metadata\": {\n\t\t\"annotations\": {\"original-image.kagami.dev/a\": \"nginx:1.27\","
            ),
            "{made}"
        );
        let bare = "{\"metadata\":{},\"spec\":{\"imagePullSecrets\":null,\"containers\":[{\"image\":\"nginx:1.27\"}]}}";
        let made = edit(bare, &rewrite(&[], &[IMAGE], true)).unwrap();
        assert!(serde_json::from_str::<Value>(&made).is_ok(), "{made}");
    }

    #[test]
    fn what_stands_in_more_places_than_one_is_not_edited() {
        let repeated = "image: &i nginx:1.27\nspec:\n  containers:\n  - {name: a, image: *i}\nmetadata: {}\n";
        // The alias goes, what it repeats stays.
        assert!(edit(repeated, &rewrite(&[], &[IMAGE], false)).is_some());
        for text in [
            "metadata: {}\nspec:\n  containers:\n  - {name: a, image: &i nginx:1.27}\n  - {name: b, image: *i}\n",
            "metadata: {}\nspec: &s\n  containers:\n  - {name: a, image: nginx:1.27}\nmore: *s\n",
            "metadata: {}\nx: &x {image: nginx:1.27}\nspec:\n  containers:\n  - {<<: *x, name: a}\n",
            "m: &m {annotations: {a: b}}\nmetadata: *m\nspec:\n  containers:\n  - {name: a, image: nginx:1.27}\n",
            "m: &m {annotations: {a: b}}\nmetadata:\n  <<: *m\nspec:\n  containers:\n  - {name: a, image: nginx:1.27}\n",
        ] {
            assert_eq!(edit(text, &rewrite(&[], &[IMAGE], false)), None, "{text}");
        }
    }

    #[test]
    fn what_looks_like_something_else_is_quoted() {
        for image in [
            "22:22",
            "y",
            "1e3",
            "0400",
            "a b",
            "x:",
            "[::1]:5000/a",
            "*a",
            "é",
            "",
        ] {
            let mut rewrite = rewrite(&[], &[IMAGE], false);
            rewrite.images[0].1 = image.to_owned();
            edit("metadata: {}\nspec: {containers: [{image: nginx}]}\n", &rewrite).unwrap();
        }
    }
}
