//! From decisions to the JSON Patch of a Pod.
//!
//! A patch that cannot be applied denies the Pod whatever the failure policy says: the API server takes
//! it for an internal error of its own, not for a failed call. So there is only `replace` of image paths
//! that were seen in this very request, `add` of annotations, and `add` of one pull secret at the end of
//! the list; never `test`, never `remove`.
//!
//! So an annotation of ours that is not true any more cannot go, and is made true instead: the decisions
//! are those of now, and the original of an image that is none of Kagami's rewrites is the image itself.

use std::borrow::Cow;

use memchr::memchr2;

use super::{
    decision::{Decision, Earlier, Operation, Request},
    json,
    mirror::Mode,
    names::{DECISIONS_ANNOTATION, PULL_SECRET},
    pod::{ANNOTATIONS_LIMIT, Annotations, Pod},
    reason::Outcome,
    routing::{Keeper, Routing},
};

/// How large a Pod may become; etcd's own limit is 1.5 MiB.
const POD_LIMIT: usize = 1024 * 1024;

/// How long a patch gets for each image, about.
const EXPECTED: usize = 512;

/// The Pod or its annotations would become too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Pod would become too large")]
pub struct TooLarge;

/// Returns the JSON Patch that carries out decisions; none if nothing changes.
pub fn patch(
    request: &Request<'_>,
    routing: &Routing,
    decisions: &[Decision<'_>],
) -> Result<Option<String>, TooLarge> {
    let pod = &request.pod;
    let left_alone = decisions.iter().any(|decision| decision.left_alone);
    if left_alone || pod.weaken(request.mode) != Mode::Enforce {
        return Ok(None);
    }
    let mut operations = Operations::new(EXPECTED * decisions.len());
    for decision in decisions {
        if let Some(image) = decision.replacement() {
            operations.replace_image(decision, image);
        }
    }
    if request.operation == Operation::Create {
        operations.annotate(pod, routing, decisions)?;
        let wanted = decisions.iter().any(|decision| decision.wants_pull_secret);
        if wanted && !pod.lists_pull_secret(PULL_SECRET) {
            operations.append_pull_secret(pod);
        }
    }
    let patch = operations.finish();
    match &patch {
        Some(text) if pod.size + text.len() > POD_LIMIT => Err(TooLarge),
        _ => Ok(patch),
    }
}

/// An annotation that the Pod needs and does not have.
struct Annotation<'a> {
    /// Prefix and name, to be joined.
    key: [&'a str; 2],
    /// As the inside of a JSON string literal.
    value: Literal<'a>,
}

/// The inside of a JSON string literal.
enum Literal<'a> {
    /// To be escaped.
    Plain(Cow<'a, str>),
    Escaped(Cow<'a, str>),
}

impl Annotation<'_> {
    /// Returns the bytes that the API server counts, escapes included: never too few.
    fn bound(&self) -> usize {
        let (Literal::Plain(value) | Literal::Escaped(value)) = &self.value;
        self.key[0].len() + self.key[1].len() + value.len()
    }

    /// Returns the bytes that the API server counts.
    fn size(&self) -> usize {
        let escapes = match &self.value {
            Literal::Plain(_) => 0,
            Literal::Escaped(value) => value.len() - json::unescaped_length(value),
        };
        self.bound() - escapes
    }

    fn push_value(&self, out: &mut String) {
        out.push('"');
        match &self.value {
            Literal::Plain(value) => json::push_escaped(out, value),
            Literal::Escaped(value) => out.push_str(value),
        }
        out.push('"');
    }
}

/// Returns the annotations that the Pod needs and does not have, keys in no particular order.
fn annotations<'a>(pod: &Pod<'_>, routing: &Routing, decisions: &'a [Decision<'_>]) -> Vec<Annotation<'a>> {
    let mut wanted = Vec::with_capacity(decisions.len() + 1);
    for (decision, place) in decisions.iter().zip(&pod.places) {
        let rewritten_now = decision.outcome == Outcome::Rewritten && !decision.carried;
        let recorded = pod.original(place);
        // Kagami did, and the record was lost.
        let rewritten_before = decision.outcome == Outcome::Rewritten && decision.is_lent;
        // A recorded original that does not map to the image was not written by Kagami.
        let foreign = recorded.is_some() && (!decision.carried || decision.is_lent);
        if (rewritten_now || rewritten_before || foreign) && recorded != Some(decision.image) {
            wanted.push(Annotation {
                key: [place.kind.original_prefix(), decision.name],
                value: Literal::Plain(decision.image.into()),
            });
        }
    }
    let present = pod.annotation("", DECISIONS_ANNOTATION);
    // Where one stands and there is nothing to tell, this is told.
    let summary = summary(routing, decisions).or_else(|| present.map(|_| "{}".to_owned()));
    if let Some(summary) = summary {
        let stands = present.is_some_and(|present| {
            let mut literal = String::with_capacity(summary.len());
            json::push_escaped(&mut literal, present);
            literal == summary
        });
        if !stands {
            wanted.push(Annotation {
                key: [DECISIONS_ANNOTATION, ""],
                value: Literal::Escaped(summary.into()),
            });
        }
    }
    wanted
}

/// Returns the value of the annotation that tells the decisions: a JSON object from place to
/// outcome, reason and mirror, as the inside of a string literal. It tells of each image that has a
/// candidate or goes back, and of what it told before. None if there is no such image.
///
/// It is written with its escapes at once, because half of it would need some.
fn summary(routing: &Routing, decisions: &[Decision<'_>]) -> Option<String> {
    let told = |decision: &Decision<'_>| {
        let changed = decision.carried && decision.replacement().is_some();
        let stands = decision.earlier != Earlier::Absent;
        stands || changed || (decision.mode == Mode::Enforce && !decision.candidates.is_empty())
    };
    if !decisions.iter().any(told) {
        return None;
    }
    let mut text = String::with_capacity(256 * decisions.len());
    for decision in decisions.iter().filter(|decision| told(decision)) {
        text.push_str(if text.is_empty() { r#"{\""# } else { r#",\""# });
        let [list, dot, name] = decision.label().parts();
        text.push_str(list);
        text.push_str(dot);
        push_escaped_twice(&mut text, name);
        text.push_str(r#"\":"#);
        let mirror = decision.mirror.map(|mirror| routing.mirror(mirror).name.as_str());
        push_entry(&mut text, routing, decision, mirror);
    }
    text.push('}');
    Some(text)
}

/// Appends what stands in a string of JSON that itself stands in one.
fn push_escaped_twice(out: &mut String, text: &str) {
    if json::is_plain(text) {
        out.push_str(text);
    } else {
        let mut once = String::with_capacity(2 * text.len());
        json::push_escaped(&mut once, text);
        json::push_escaped(out, &once);
    }
}

fn push_entry(text: &mut String, routing: &Routing, decision: &Decision<'_>, mirror: Option<&str>) {
    text.push_str(r#"{\"outcome\":\""#);
    text.push_str(decision.outcome.as_str());
    text.push_str(r#"\",\"reason\":\""#);
    text.push_str(decision.reason.as_str());
    text.push_str(r#"\""#);
    if let Some(mirror) = mirror {
        text.push_str(r#",\"mirror\":\""#);
        push_escaped_twice(text, mirror);
        text.push_str(r#"\""#);
    }
    push_closed_by(text, routing, decision.closed_by());
    if let Some(digest) = &decision.digest {
        text.push_str(r#",\"digest\":\""#);
        digest.push_to(text);
        text.push_str(r#"\""#);
    }
    if decision.candidates.len() > 1 {
        text.push_str(r#",\"candidates\":["#);
        for (position, candidate) in decision.candidates.iter().enumerate() {
            text.push_str(if position == 0 {
                r#"{\"mirror\":\""#
            } else {
                r#",{\"mirror\":\""#
            });
            push_escaped_twice(text, &routing.mirror(candidate.mirror).name);
            text.push_str(r#"\",\"outcome\":\""#);
            text.push_str(candidate.outcome.as_str());
            text.push_str(r#"\",\"reason\":\""#);
            text.push_str(candidate.reason.as_str());
            text.push_str(r#"\""#);
            push_closed_by(text, routing, candidate.closed_by);
            text.push('}');
        }
        text.push(']');
    }
    text.push('}');
}

/// Appends which other mirror keeps an image from the namespace, if one does.
fn push_closed_by(text: &mut String, routing: &Routing, keeper: Option<Keeper>) {
    if let Some(keeper) = keeper {
        text.push_str(r#",\"closedBy\":\""#);
        push_escaped_twice(text, routing.keeper(keeper));
        text.push_str(r#"\""#);
    }
}

/// A JSON Patch in the making: a bracket, and operations that each end in a comma.
#[derive(Debug)]
struct Operations {
    text: String,
}

impl Operations {
    fn new(expected: usize) -> Self {
        let mut text = String::with_capacity(expected);
        text.push('[');
        Self { text }
    }

    fn replace_image(&mut self, decision: &Decision<'_>, image: &str) {
        self.text.push_str(r#"{"op":"replace","path":"/spec/"#);
        self.text.push_str(decision.kind.list());
        self.text.push('/');
        json::push_number(&mut self.text, decision.index);
        self.text.push('/');
        self.text.push_str(decision.kind.image_path());
        self.text.push_str(r#"","value":"#);
        json::push_string(&mut self.text, image);
        self.text.push_str("},");
    }

    fn annotate(
        &mut self,
        pod: &Pod<'_>,
        routing: &Routing,
        decisions: &[Decision<'_>],
    ) -> Result<(), TooLarge> {
        let wanted = annotations(pod, routing, decisions);
        if wanted.is_empty() {
            return Ok(());
        }
        let present = pod.annotations.as_ref().map_or(0, |annotations| annotations.size);
        let replaced: usize = wanted
            .iter()
            .filter_map(
                |Annotation {
                     key: [prefix, name], ..
                 }| {
                    let value = pod.annotation(prefix, name)?;
                    Some(prefix.len() + name.len() + value.len())
                },
            )
            .sum();
        let too_large = |added: usize| (present + added).saturating_sub(replaced) > ANNOTATIONS_LIMIT;
        // The exact size is looked at only where it matters.
        if too_large(wanted.iter().map(Annotation::bound).sum())
            && too_large(wanted.iter().map(Annotation::size).sum())
        {
            return Err(TooLarge);
        }
        match &pod.annotations {
            None => self.add_all_annotations(&wanted),
            Some(Annotations { .. }) => {
                for annotation in &wanted {
                    self.text
                        .push_str(r#"{"op":"add","path":"/metadata/annotations/"#);
                    for part in annotation.key {
                        self.push_pointer(part);
                    }
                    self.text.push_str(r#"","value":"#);
                    annotation.push_value(&mut self.text);
                    self.text.push_str("},");
                }
            }
        }
        Ok(())
    }

    /// Appends one part of a JSON Pointer (RFC 6901).
    fn push_pointer(&mut self, part: &str) {
        let mut rest = part;
        while let Some(position) = memchr2(b'~', b'/', rest.as_bytes()) {
            json::push_escaped(&mut self.text, &rest[..position]);
            self.text.push_str(if rest.as_bytes()[position] == b'~' {
                "~0"
            } else {
                "~1"
            });
            rest = &rest[position + 1..];
        }
        json::push_escaped(&mut self.text, rest);
    }

    fn add_all_annotations(&mut self, wanted: &[Annotation<'_>]) {
        self.text
            .push_str(r#"{"op":"add","path":"/metadata/annotations","value":{"#);
        for (position, annotation) in wanted.iter().enumerate() {
            self.text.push_str(if position > 0 { ",\"" } else { "\"" });
            for part in annotation.key {
                json::push_escaped(&mut self.text, part);
            }
            self.text.push_str("\":");
            annotation.push_value(&mut self.text);
        }
        self.text.push_str("}},");
    }

    fn append_pull_secret(&mut self, pod: &Pod<'_>) {
        let (path, before, after) = match pod.pull_secrets {
            None => ("/spec/imagePullSecrets", "[", "]"),
            Some(_) => ("/spec/imagePullSecrets/-", "", ""),
        };
        self.text.push_str(r#"{"op":"add","path":""#);
        self.text.push_str(path);
        self.text.push_str(r#"","value":"#);
        self.text.push_str(before);
        self.text.push_str("{\"name\":");
        json::push_string(&mut self.text, PULL_SECRET);
        self.text.push('}');
        self.text.push_str(after);
        self.text.push_str("},");
    }

    fn finish(mut self) -> Option<String> {
        // Without an operation there is no last comma.
        self.text.pop().filter(|last| *last == ',')?;
        self.text.push(']');
        Some(self.text)
    }
}

#[cfg(test)]
mod tests;
