//! `kagami review`: answers a review, or rewrites Pods and what creates them, from a file.
//!
//! The output means what the input meant: where no image is rewritten it is the input, byte for byte;
//! else only images, annotations and pull secrets change in it.

mod document;
mod edit;
mod kinds;
mod scalar;

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use self::{
    document::Document,
    edit::{Edit, Rewrite, edited},
    kinds::{Found, Template},
};
use super::{
    BadSettings,
    arguments::ReviewArguments,
    input,
    oneshot::{Asked, Once, RENDER_FIRST, wrong_with},
    output::{self, Table},
    passed_on::{self, PassedOn},
};
use crate::{
    domain::{
        decision::{Operation, Probing, Request, keep_all},
        foreign::Foreign,
        mirror::Mode,
        patch::patch,
        reason::Reason,
        routing::Routing,
    },
    state::{file::encode_document, replica::Images},
    webhook::read_pod,
};

/// How many Pods are decided about at once.
const SIDE_BY_SIDE: usize = 64;

pub(super) async fn run(arguments: ReviewArguments) -> anyhow::Result<()> {
    let ReviewArguments {
        file,
        once,
        heal,
        mode,
        namespace,
    } = arguments;
    let text = input::read(&file)?;
    let name = input::name(&file);
    let hint = |fault: &document::Fault| {
        template_line(&text, fault.line).map_or_else(String::new, |line| {
            format!("; line {line} is of a template: {RENDER_FIRST}")
        })
    };
    let stream =
        Stream::read(&text).map_err(|fault| BadSettings::one(format!("{name}:{fault}{}", hint(&fault))))?;
    if stream.documents.is_empty() {
        return Err(BadSettings::one(format!("{name}: there is no document in it")).into());
    }
    let asked = Asked {
        images: Images::All,
        namespace,
        probing: Probing::Hosted,
        heal: heal.heal,
    };
    let reviewer = Reviewer {
        once: Once::start(&once, asked).await?,
        mode: mode.map(Mode::from),
        heal: heal.heal,
    };
    reviewer.once.notes.iter().for_each(|note| output::complain(note));
    let looked = reviewer.look(&stream).await?;
    let (out, anew) = stream.write(&looked.changes)?;
    let table = looked.table();
    if !table.is_empty() {
        table.lines().iter().for_each(|line| output::complain(line));
    }
    looked.notes.iter().for_each(|note| output::complain(note));
    looked.passed_on().iter().for_each(|line| output::complain(line));
    for number in anew {
        output::complain(&format!(
            "document {}: written anew, without its comments, for its images stand where no edit can change \
             them alone (anchors, aliases, merges)",
            number + 1
        ));
    }
    output::print(&out)
}

/// Returns the line of a text that cannot be read which shows that it is a template of another program's:
/// the one with the fault or, if that is none, the first.
fn template_line(text: &str, fault: usize) -> Option<usize> {
    let is_template = |line: &str| line.contains("{{") && !line.trim_start().starts_with('#');
    let of_fault = text.lines().nth(fault.saturating_sub(1));
    if of_fault.is_some_and(is_template) {
        return Some(fault);
    }
    Some(text.lines().position(is_template)? + 1)
}

/// Why a value is nothing that the API server knows; none for objects and lists of them.
fn no_object(value: &Value) -> Option<&'static str> {
    match value {
        // kubectl passes over what is null, such as a value of a chart that is not set.
        Value::Object(_) | Value::Null => None,
        Value::Array(items) if items.iter().all(Value::is_object) => None,
        Value::Array(_) => Some("is a list of something else than objects"),
        Value::String(_) => Some("is text, not an object"),
        Value::Number(_) => Some("is a number, not an object"),
        Value::Bool(_) => Some("is true or false, not an object"),
    }
}

/// A text with its documents and what they mean.
struct Stream<'t> {
    text: &'t str,
    documents: Vec<Document>,
    values: Vec<Value>,
}

/// What becomes of one document.
enum Change {
    Nothing,
    Rewritten(Vec<Rewrite>),
    /// An AdmissionReview becomes its answer.
    Answered(Value),
}

impl<'t> Stream<'t> {
    fn read(text: &'t str) -> Result<Self, document::Fault> {
        let documents = document::read(text)?;
        let mut values = Vec::with_capacity(documents.len());
        for (index, document) in documents.iter().enumerate() {
            let fault = |message: &str| document::Fault {
                line: document::line_of(text, document.node(document.root).span.start),
                document: index + 1,
                message: message.to_owned(),
            };
            let value = document.value().map_err(fault)?;
            if let Some(message) = no_object(&value) {
                return Err(fault(message));
            }
            values.push(value);
        }
        Ok(Self {
            text,
            documents,
            values,
        })
    }

    /// Returns the text with changes, one for each document, and the documents that had to be written
    /// anew. What comes out is read again: it means what it should, or there is none.
    fn write(&self, changes: &[Change]) -> anyhow::Result<(String, BTreeSet<usize>)> {
        let expected: Vec<Option<Value>> = changes
            .iter()
            .zip(&self.values)
            .map(|(change, value)| match change {
                Change::Nothing => None,
                Change::Answered(answer) => Some(answer.clone()),
                Change::Rewritten(rewrites) => {
                    let mut value = value.clone();
                    for rewrite in rewrites {
                        rewrite.apply(&mut value);
                    }
                    Some(value)
                }
            })
            .collect();
        let mut anew = BTreeSet::new();
        // The second time everything that did not come out right is written anew.
        for _ in 0..2 {
            let mut edits = Vec::new();
            for (index, (change, document)) in changes.iter().zip(&self.documents).enumerate() {
                let Some(expected) = &expected[index] else {
                    continue;
                };
                let made: Option<Vec<_>> = match change {
                    Change::Rewritten(rewrites) if !anew.contains(&index) => rewrites
                        .iter()
                        .map(|rewrite| rewrite.edits(self.text, document))
                        .collect(),
                    _ => None,
                };
                if let Some(made) = made {
                    edits.extend(made.into_iter().flatten());
                    continue;
                }
                if matches!(change, Change::Rewritten(_)) {
                    anew.insert(index);
                }
                edits.push(self.whole(index, expected)?);
            }
            let out = edited(self.text, edits).unwrap_or_default();
            let wrong = wrong(&out, &expected);
            if wrong.is_empty() {
                return Ok((out, anew));
            }
            anew.extend(wrong);
        }
        anyhow::bail!("what would be written does not mean what it should")
    }

    /// Writes a document anew.
    fn whole(&self, index: usize, value: &Value) -> anyhow::Result<Edit> {
        let document = &self.documents[index];
        anyhow::ensure!(
            !document.is_beyond_json(),
            "document {} has a number (.inf, .nan) that Kubernetes does not read",
            index + 1
        );
        let at = document.span.clone();
        let text = if document.json {
            serde_json::to_string_pretty(value)?
        } else if self.text[..at.start].ends_with("---") {
            format!("\n{}", encode_document(value))
        } else {
            encode_document(value)
        };
        Ok(Edit { at, text })
    }
}

/// Returns the documents that do not mean what they should, all if they cannot be read.
fn wrong(text: &str, expected: &[Option<Value>]) -> Vec<usize> {
    let changed = expected.iter().enumerate().filter_map(|(index, expected)| {
        let expected = expected.as_ref()?;
        Some((index, expected))
    });
    let read = document::read(text).ok();
    let Some(documents) = read.filter(|documents| documents.len() == expected.len()) else {
        return changed.map(|(index, _)| index).collect();
    };
    changed
        .filter(|(index, expected)| documents[*index].value().as_ref() != Ok(expected))
        .map(|(index, _)| index)
        .collect()
}

struct Reviewer {
    once: Once,
    mode: Option<Mode>,
    heal: bool,
}

/// What came of all documents.
#[derive(Default)]
struct Looked {
    rows: Vec<Row>,
    /// For people, a sentence each.
    notes: Vec<String>,
    /// With the Pods that pass them on.
    passed_on: Vec<(String, PassedOn)>,
    /// One for each document.
    changes: Vec<Change>,
}

/// A decision as it is shown.
struct Row {
    namespace: String,
    pod: String,
    place: String,
    outcome: &'static str,
    reason: &'static str,
    mirror: Option<String>,
    /// What would stand there.
    image: String,
}

impl Looked {
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "NAMESPACE",
            "POD",
            "PLACE",
            "OUTCOME",
            "REASON",
            "MIRROR",
            "IMAGE",
        ]);
        for row in &self.rows {
            table.row([
                &Foreign(&row.namespace),
                &Foreign(&row.pod),
                &Foreign(&row.place),
                &row.outcome,
                &row.reason,
                &row.mirror.as_deref().unwrap_or("-"),
                &Foreign(&row.image),
            ]);
        }
        table
    }

    /// Returns the lines that tell of images whose names are passed on, the first ones.
    fn passed_on(&self) -> Vec<String> {
        let shown = self.passed_on.iter().take(passed_on::SHOWN);
        let mut lines: Vec<String> = shown.map(|(pod, passed_on)| passed_on.line(pod)).collect();
        if self.passed_on.len() > lines.len() {
            lines.push(format!("and {} more", self.passed_on.len() - lines.len()));
        }
        if !lines.is_empty() {
            lines.push(passed_on::MEANING.to_owned());
        }
        lines
    }
}

/// Something to be decided about.
enum Question<'a> {
    Review(&'a Value),
    Pod(&'a Template),
}

/// What was decided about one.
#[derive(Default)]
struct Answer {
    rows: Vec<Row>,
    /// For people, a sentence each.
    notes: Vec<String>,
    passed_on: Vec<(String, PassedOn)>,
    change: Option<Change>,
}

/// An operation of a patch.
#[derive(Deserialize)]
struct PatchOperation {
    op: String,
    path: String,
    value: Value,
}

impl Reviewer {
    /// Looks at all documents side by side.
    async fn look(&self, stream: &Stream<'_>) -> anyhow::Result<Looked> {
        let mut others = std::collections::BTreeMap::new();
        let found: Vec<Found> = stream
            .values
            .iter()
            .map(|value| {
                let mut found = Found::default();
                if value["kind"] != "AdmissionReview" {
                    found.look(value);
                }
                found
            })
            .collect();
        let mut questions = Vec::new();
        for (index, (value, found)) in stream.values.iter().zip(&found).enumerate() {
            if value["kind"] == "AdmissionReview" {
                questions.push((index, Question::Review(value)));
            }
            questions.extend(
                found
                    .templates
                    .iter()
                    .map(|template| (index, Question::Pod(template))),
            );
            for (kind, count) in &found.others {
                *others.entry(kind).or_insert(0_usize) += count;
            }
        }
        let answers = questions.iter().map(|(index, question)| async move {
            let answer = match question {
                Question::Review(review) => self.answer(review).await,
                Question::Pod(template) => self.decide(template).await,
            };
            answer.map(|answer| (*index, answer))
        });
        let answers: Vec<anyhow::Result<(usize, Answer)>> =
            stream::iter(answers).buffered(SIDE_BY_SIDE).collect().await;
        let mut looked = Looked {
            changes: stream.values.iter().map(|_| Change::Nothing).collect(),
            ..Looked::default()
        };
        for answer in answers {
            let (index, answer) = answer?;
            looked.rows.extend(answer.rows);
            looked.notes.extend(answer.notes);
            looked.passed_on.extend(answer.passed_on);
            match (&mut looked.changes[index], answer.change) {
                (_, None) => {}
                (Change::Rewritten(rewrites), Some(Change::Rewritten(more))) => rewrites.extend(more),
                (change, Some(new)) => *change = new,
            }
        }
        for (kind, count) in others {
            looked.notes.push(format!(
                "not looked into, although images stand in it: {count} × {kind}"
            ));
        }
        for (index, _) in found.iter().enumerate().filter(|(_, found)| found.is_kindless) {
            looked.notes.push(format!(
                "document {}: not looked into, because it has no kind",
                index + 1
            ));
        }
        if looked.rows.is_empty() {
            let why = "no image was decided about: there is no Pod, or nothing that creates one, in it";
            looked.notes.insert(0, why.to_owned());
        }
        Ok(looked)
    }

    fn mode(&self, namespace: &str) -> Mode {
        self.mode.unwrap_or_else(|| self.once.mode_of(namespace))
    }

    /// Decides about one Pod or template as admission would.
    async fn decide(&self, template: &Template) -> anyhow::Result<Answer> {
        let text = serde_json::to_string(&template.object)?;
        let namespace = template.namespace.as_deref().unwrap_or(&self.once.namespace);
        let Some(pod) = read_pod(&text) else {
            let name = &template.object["metadata"]["name"];
            let note = format!("{name} is left alone: it is no Pod as the API server would take it");
            return Ok(Answer {
                notes: vec![note],
                ..Answer::default()
            });
        };
        let mut request = Request {
            namespace,
            mode: self.mode(namespace),
            operation: Operation::Create,
            heal: self.heal,
            pod,
        };
        let admission = &self.once.admission;
        let snapshot = admission.begin(&mut request);
        let mut decisions = admission
            .decide(&snapshot, &request, true, self.once.deadline)
            .await;
        let patch = patch(&request, &snapshot.routing, &decisions).unwrap_or_else(|_| {
            keep_all(&mut decisions, Reason::PodTooLarge);
            None
        });
        let rows = decisions.iter().map(|decision| Row {
            namespace: namespace.to_owned(),
            pod: request.pod.name.to_string(),
            place: decision.label().to_string(),
            outcome: decision.outcome.as_str(),
            reason: decision.reason.as_str(),
            mirror: decision
                .mirror
                .map(|mirror| snapshot.routing.mirror(mirror).name.clone()),
            image: decision.rewritten.as_deref().unwrap_or(decision.image).to_owned(),
        });
        let wrong = decisions.iter().filter_map(|decision| {
            let wrong = wrong_with(decision.image).filter(|_| decision.reason == Reason::InvalidReference)?;
            let (pod, label) = (&*request.pod.name, decision.label().to_string());
            let (pod, label, image) = (Foreign(pod), Foreign(&label), Foreign(decision.image));
            Some(format!("{pod} {label}: {image}: {wrong}"))
        });
        let rewrite = patch.map(|patch| rewrite(template, &patch)).transpose()?;
        let asked = decisions.iter().filter(|decision| !decision.left_alone);
        let images: Vec<&str> = asked.map(|decision| decision.image).collect();
        Ok(Answer {
            rows: rows.collect(),
            notes: wrong.collect(),
            passed_on: named_passed_on(&request.pod.name, &text, &images, &snapshot.routing),
            // Annotations alone would only roll a template out, and go stale in it.
            change: rewrite
                .filter(|rewrite| !rewrite.images.is_empty())
                .map(|rewrite| Change::Rewritten(vec![rewrite])),
        })
    }

    /// Answers a review.
    async fn answer(&self, review: &Value) -> anyhow::Result<Answer> {
        let namespace = review["request"]["namespace"].as_str().unwrap_or_default();
        let body = serde_json::to_vec(review)?;
        // A caller's timeout has a second for its own ways.
        let left = self.once.deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
        let admission = self.once.admission.apart();
        let answer = admission.review(self.mode(namespace), &body, Some(left)).await?;
        let recent = admission.recent();
        // Whoever is left alone has the exception already.
        let left_alone = [Reason::ModeOff, Reason::OwnerExcluded, Reason::PullNever].map(Reason::as_str);
        let asked = recent
            .iter()
            .filter(|decision| !left_alone.contains(&decision.reason));
        let images: Vec<&str> = asked.map(|decision| decision.image.as_str()).collect();
        let name = recent.first().map_or("", |decision| &decision.pod);
        let object = review["request"]["object"].to_string();
        let passed_on = if images.is_empty() {
            Vec::new()
        } else {
            named_passed_on(name, &object, &images, &self.once.store.snapshot().routing)
        };
        let rows = recent.into_iter().map(|decision| Row {
            image: decision.rewritten.unwrap_or(decision.image),
            namespace: decision.namespace,
            pod: decision.pod,
            place: decision.place,
            outcome: decision.outcome,
            reason: decision.reason,
            mirror: decision.mirror,
        });
        Ok(Answer {
            rows: rows.collect(),
            notes: Vec::new(),
            passed_on,
            change: Some(Change::Answered(serde_json::from_slice(&answer)?)),
        })
    }
}

/// Returns the images whose names a Pod passes on, beside its own name; none where nothing was asked about.
fn named_passed_on(name: &str, pod: &str, images: &[&str], routing: &Routing) -> Vec<(String, PassedOn)> {
    if images.is_empty() {
        return Vec::new();
    }
    let found = passed_on::of(pod, images.iter().copied(), routing);
    found.into_iter().map(|found| (name.to_owned(), found)).collect()
}

/// Turns admission's patch of a Pod into what becomes of its document.
fn rewrite(template: &Template, patch: &str) -> anyhow::Result<Rewrite> {
    let operations: Vec<PatchOperation> = serde_json::from_str(patch).context("the patch does not decode")?;
    let mut rewrite = Rewrite {
        pod: template.pod.clone(),
        ..Rewrite::default()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for PatchOperation { op, path, value } in operations {
        if op == "replace" {
            let place = template
                .place(&path)
                .context("the patch replaces what is no image")?;
            rewrite.images.push((place, text(&value)));
        } else if let Some(rest) = path.strip_prefix("/metadata/annotations") {
            match rest.strip_prefix('/') {
                Some(name) => {
                    let name = name.replace("~1", "/").replace("~0", "~");
                    rewrite.annotations.push((name, text(&value)));
                }
                None => rewrite.annotations.extend(
                    value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(name, value)| (name.clone(), text(value))),
                ),
            }
        } else if path.starts_with("/spec/imagePullSecrets") {
            let entry = value.get(0).unwrap_or(&value);
            rewrite.pull_secret = template.place("/spec").map(|spec| (spec, text(&entry["name"])));
        } else {
            anyhow::bail!("the patch adds {path}, which is neither an annotation nor a pull secret");
        }
    }
    Ok(rewrite)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGE: &str = "nginx:1.27";
    const MIRRORED: &str = "mirror.test/docker.io/library/nginx:1.27";

    /// Ways to write a Pod's metadata, an image and what stands beside it, as lines without indent.
    const METADATA: [&[&str]; 9] = [
        &[],
        &["metadata:", "  name: web # its name"],
        &[
            "metadata: # of it",
            "  # first",
            "  labels: {a: 'b'}",
            "",
            "  name: web",
        ],
        &["metadata: {name: web}"],
        &["metadata: {}"],
        &["metadata: { annotations: {a: 0x1F}, name: web } # why"],
        &[
            "metadata:",
            "  name: web",
            "  annotations:",
            "    # of a",
            "    a: |",
            "      x: y",
            "",
            "    b: on",
        ],
        &["metadata:", "  annotations: {}", "  name: web"],
        &[
            "metadata:",
            "    annotations:",
            "        kagami.dev/mode-of: \"x\"",
        ],
    ];
    const IMAGES: [&str; 4] = [
        "image: nginx:1.27",
        "image:   'nginx:1.27'   # why",
        "\"image\": \"nginx:1.27\"",
        "image: !!str nginx:1.27",
    ];
    const BESIDE: [&[&str]; 4] = [
        &["name: a"],
        &[
            "name: a",
            "# image: none",
            "args:",
            "- |",
            "  image: redis",
            "   # no comment",
            "- 0400",
        ],
        &["name: \"\\u00e9\"", "env: [{name: N, value: 1_000}]", ""],
        &["name: a", "stdin: on", "ports: [", "  {containerPort: 0x50}", "]"],
    ];
    /// What leads to a Pod: its lines, how deep it stands below them, and the path.
    const KINDS: [(&[&str], usize, &[&str]); 3] = [
        (&["kind: Pod", "apiVersion: v1"], 0, &[]),
        (
            &["apiVersion: apps/v1", "kind: Deployment", "spec:", "  template:"],
            4,
            &["spec", "template"],
        ),
        (
            &["kind: PodList", "apiVersion: v1", "items:", "-"],
            2,
            &["items", "0"],
        ),
    ];

    #[derive(Debug)]
    struct Sample {
        text: String,
        paths: Vec<Vec<String>>,
        places: Vec<usize>,
    }

    fn document() -> impl Strategy<Value = (Vec<String>, Vec<String>, usize)> {
        let container = (0..IMAGES.len(), 0..BESIDE.len(), any::<bool>());
        let containers = proptest::collection::vec(container, 1..4);
        (0..KINDS.len(), 0..METADATA.len(), containers, any::<bool>()).prop_map(
            |(kind, metadata, containers, indented)| {
                let (head, depth, path) = KINDS[kind];
                let mut lines: Vec<String> = head.iter().map(|line| (*line).to_owned()).collect();
                let mut pod: Vec<String> = METADATA[metadata].iter().map(|line| (*line).to_owned()).collect();
                pod.push("spec:".to_owned());
                pod.push("  containers: # all".to_owned());
                let space = if indented { "    " } else { "  " };
                for (image, beside, first) in &containers {
                    let mut fields: Vec<&str> = BESIDE[*beside].to_vec();
                    fields.insert(if *first { 0 } else { fields.len() }, IMAGES[*image]);
                    for (index, field) in fields.iter().enumerate() {
                        let dash = if index == 0 { "- " } else { "  " };
                        pod.push(format!("{space}{dash}{field}"));
                    }
                }
                // An item begins on the line of its dash.
                let mut pod = pod.into_iter();
                if lines.last().is_some_and(|line| line == "-")
                    && let (Some(last), Some(first)) = (lines.last_mut(), pod.next())
                {
                    *last = format!("- {first}");
                }
                lines.extend(pod.map(|line| format!("{}{line}", " ".repeat(depth))));
                let path = path.iter().map(|part| (*part).to_owned()).collect();
                (lines, path, containers.len())
            },
        )
    }

    fn sample() -> impl Strategy<Value = Sample> {
        let documents = proptest::collection::vec((document(), any::<bool>()), 1..4);
        (documents, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(documents, windows, mark, ended)| {
                let (mut lines, mut paths, mut places) = (Vec::new(), Vec::new(), Vec::new());
                for (index, ((document, path, containers), comment)) in documents.into_iter().enumerate() {
                    if index > 0 {
                        lines.push("---".to_owned());
                    }
                    if comment {
                        lines.push("# of the document".to_owned());
                    }
                    lines.extend(document);
                    paths.push(path);
                    places.push(containers);
                }
                let end = if windows { "\r\n" } else { "\n" };
                let mut text = lines.join(end);
                if mark {
                    text.insert(0, '\u{feff}');
                }
                if ended {
                    text.push_str(end);
                }
                Sample { text, paths, places }
            },
        )
    }

    /// Returns a line without its indent, its dash and the mark before it, which a new first field takes over.
    fn bare(line: &str) -> &str {
        line.trim_start_matches(['\u{feff}', ' '])
            .trim_start_matches("- ")
    }

    /// Whether a line is another one into which one piece was put.
    fn is_with_a_piece(line: &str, original: &str) -> bool {
        let common = line
            .bytes()
            .zip(original.bytes())
            .take_while(|(one, other)| one == other)
            .count();
        (0..=common).any(|at| original.is_char_boundary(at) && line[at..].ends_with(&original[at..]))
    }

    /// What texts are made of, well or badly formed.
    const PIECES: [&str; 40] = [
        "kind: Pod\n",
        "metadata:",
        "spec:",
        "containers:",
        "image:",
        "annotations:",
        "imagePullSecrets:",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "\n",
        "\n",
        "\n  ",
        "\n    ",
        "  ",
        "&a ",
        "*a",
        "<<: ",
        "|",
        ">-",
        "'",
        "\"",
        "#",
        "~",
        "null",
        "nginx",
        "---\n",
        "...\n",
        "é",
        "\u{feff}",
        "\r\n",
        "? ",
        "!!str ",
        "\t",
        "%YAML 1.1\n",
        "0400",
    ];

    /// Every image of every Pod in a text goes to a mirror, whatever the text is.
    fn rewrite_all(text: &str) -> Option<String> {
        let stream = Stream::read(text).ok()?;
        let changes = stream.values.iter().map(|value| {
            let mut found = Found::default();
            found.look(value);
            let rewrites = found.templates.iter().map(|template| {
                let containers = template.object["spec"]["containers"].as_array();
                let containers = containers.into_iter().flatten().enumerate();
                let images = containers.filter(|(_, container)| container["image"].is_string());
                let place = |index: usize| template.place(&format!("/spec/containers/{index}/image"));
                Rewrite {
                    images: images
                        .filter_map(|(index, _)| Some((place(index)?, MIRRORED.to_owned())))
                        .collect(),
                    pod: template.pod.clone(),
                    annotations: vec![("kagami.dev/decisions".to_owned(), "{\"a\":\"b\"}".to_owned())],
                    pull_secret: template
                        .place("/spec")
                        .map(|spec| (spec, "kagami-pull".to_owned())),
                }
            });
            let rewrites: Vec<Rewrite> = rewrites.filter(|rewrite| !rewrite.images.is_empty()).collect();
            if rewrites.is_empty() {
                Change::Nothing
            } else {
                Change::Rewritten(rewrites)
            }
        });
        let (out, _) = stream.write(&changes.collect::<Vec<_>>()).ok()?;
        Some(out)
    }

    #[test]
    fn odd_forms_come_out_right_or_not_at_all() {
        let pod = "spec: {containers: [{image: nginx}]}";
        for text in [
            format!("[{pod}]\n"),
            format!("[kind: Pod, {pod}]\n"),
            format!("? kind\n: Pod\n? metadata\n: {{}}\n? spec\n: containers: [image: nginx]\n# {pod}\n"),
            format!("kind: Pod\nmetadata: !!map {{}}\n{pod}"),
            format!("--- !!map\nkind: Pod\nmetadata:\n{pod}\n"),
            "--- {spec: {containers: [{image: nginx}]}}\n---\n- spec:\n    containers: [image: nginx]\n"
                .to_owned(),
        ] {
            let out = rewrite_all(&text).unwrap_or_else(|| panic!("{text}"));
            assert!(out.contains(MIRRORED), "{text}\n{out}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(pieces in proptest::collection::vec(0..PIECES.len(), 0..40)) {
            let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
            drop(rewrite_all(&text));
            drop(rewrite_all(&format!("kind: Pod\nspec:\n  containers:\n  - image: nginx\n{text}")));
        }

        #[test]
        fn only_images_and_our_annotations_differ(sample in sample()) {
            let Sample { text, paths, places } = sample;
            let stream = Stream::read(&text).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
            prop_assert_eq!(stream.documents.len(), paths.len());
            let changes: Vec<Change> = paths.iter().zip(places).map(|(path, places)| {
                let image = |index: usize| {
                    let more = ["spec", "containers", &index.to_string(), "image"].map(ToOwned::to_owned);
                    (path.iter().cloned().chain(more).collect(), MIRRORED.to_owned())
                };
                Change::Rewritten(vec![Rewrite {
                    images: (0..places).map(image).collect(),
                    pod: path.clone(),
                    annotations: vec![
                        ("original-image.kagami.dev/a".to_owned(), IMAGE.to_owned()),
                        ("kagami.dev/decisions".to_owned(), "{\"a\":\"b\"}".to_owned()),
                    ],
                    pull_secret: None,
                }])
            }).collect();
            let (out, anew) = stream.write(&changes).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert!(anew.is_empty(), "{}", text);
            // Every line of the input is there, in order, and the others are ours.
            let mut lines = out.lines();
            for line in text.lines() {
                let expected = line.replace(IMAGE, MIRRORED);
                loop {
                    let Some(line) = lines.next() else {
                        return Err(TestCaseError::fail(format!("no {expected:?} in\n{out}")));
                    };
                    if bare(line) == bare(&expected) || (line.contains("kagami.dev/") && is_with_a_piece(line, &expected)) {
                        break;
                    }
                    let ours = line.contains("kagami.dev/")
                        || ["metadata:", "annotations:"].contains(&bare(line));
                    prop_assert!(ours, "{:?} in\n{}\nof\n{}", line, out, text);
                }
            }
            prop_assert_eq!(lines.filter(|line| !line.contains("kagami.dev/")).count(), 0);
            prop_assert_eq!(out.ends_with('\n') || !text.ends_with('\n'), true);
        }
    }
}
