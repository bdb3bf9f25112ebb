//! From decisions to the JSON Patch of a Pod.
//!
//! A patch that cannot be applied denies the Pod whatever the failure policy says (facts: section
//! 1.1). So there is only `replace` of image paths that were seen in this very request, `add` of
//! annotations, and `add` of one pull secret at the end of the list; never `test`, never `remove`.

use std::borrow::Cow;

use super::{
    decision::{Decision, Operation, Request},
    json,
    mirror::Mode,
    names::{DECISIONS_ANNOTATION, PULL_SECRET},
    pod::{Annotations, Place, Pod},
    reason::Outcome,
    routing::Routing,
};

/// How large all annotations of a Pod may become; the API server's own limit is 256 KiB.
const ANNOTATIONS_LIMIT: usize = 200 * 1024;

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
    let mut operations = Operations {
        text: String::with_capacity(EXPECTED * decisions.len()),
    };
    for decision in decisions {
        if decision.outcome == Outcome::Rewritten
            && let Some(rewritten) = &decision.rewritten
        {
            operations.replace_image(decision, rewritten);
        }
    }
    if request.operation == Operation::Create {
        operations.annotate(pod, &annotations(pod, routing, decisions))?;
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

/// Returns the annotations that the Pod needs and does not have, keys in no particular order.
fn annotations<'a>(
    pod: &Pod<'_>,
    routing: &Routing,
    decisions: &'a [Decision<'_>],
) -> Vec<(String, Cow<'a, str>)> {
    let mut wanted: Vec<(String, Cow<'a, str>)> = Vec::with_capacity(decisions.len() + 1);
    for (decision, place) in decisions.iter().zip(&pod.places) {
        let rewritten_now = decision.outcome == Outcome::Rewritten && !decision.carried;
        // A recorded original that does not map to the image was not written by Kagami.
        let foreign = pod.original(place).is_some() && !decision.carried;
        if rewritten_now || foreign {
            let key = [place.kind.original_prefix(), &place.name].concat();
            wanted.push((key, decision.image.into()));
        }
    }
    if let Some(summary) = summary(pod, routing, decisions) {
        wanted.push((DECISIONS_ANNOTATION.to_owned(), summary.into()));
    }
    wanted.retain(|(key, value)| pod.annotation("", key) != Some(&**value));
    wanted
}

/// Returns the value of the annotation that tells the decisions: a JSON object from place to
/// outcome, reason and mirror. None if no mirror was a candidate for any image.
fn summary(pod: &Pod<'_>, routing: &Routing, decisions: &[Decision<'_>]) -> Option<String> {
    use std::fmt::Write as _;

    let told = |decision: &Decision<'_>| {
        decision.carried || (decision.mode == Mode::Enforce && !decision.candidates.is_empty())
    };
    if !decisions.iter().any(told) {
        return None;
    }
    let earlier = if decisions.iter().any(|decision| decision.carried) {
        pod.earlier_decisions()
    } else {
        None
    };
    let mut text = String::with_capacity(192 * decisions.len());
    for (decision, place) in decisions
        .iter()
        .zip(&pod.places)
        .filter(|(decision, _)| told(decision))
    {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push('"');
        for part in place.label().parts() {
            json::push_escaped(&mut text, part);
        }
        text.push_str("\":");
        let mirror = decision.mirror.map(|mirror| routing.mirror(mirror).name.as_str());
        match earlier
            .as_ref()
            .and_then(|earlier| earlier_entry(earlier, place, decision, mirror))
        {
            Some(entry) => {
                let written = write!(text, "{entry}");
                debug_assert!(written.is_ok(), "writing to a String cannot fail");
            }
            None => push_entry(&mut text, routing, decision, mirror),
        }
    }
    text.push('}');
    Some(text)
}

fn push_entry(text: &mut String, routing: &Routing, decision: &Decision<'_>, mirror: Option<&str>) {
    text.push_str("{\"outcome\":\"");
    text.push_str(decision.outcome.as_str());
    text.push_str("\",\"reason\":\"");
    text.push_str(decision.reason.as_str());
    text.push('"');
    if let Some(mirror) = mirror {
        text.push_str(",\"mirror\":");
        json::push_string(text, mirror);
    }
    if let Some(digest) = &decision.digest {
        text.push_str(",\"digest\":\"");
        digest.push_to(text);
        text.push('"');
    }
    if decision.candidates.len() > 1 {
        text.push_str(",\"candidates\":[");
        for (position, candidate) in decision.candidates.iter().enumerate() {
            text.push_str(if position == 0 {
                "{\"mirror\":"
            } else {
                ",{\"mirror\":"
            });
            json::push_string(text, &routing.mirror(candidate.mirror).name);
            text.push_str(",\"outcome\":\"");
            text.push_str(candidate.outcome.as_str());
            text.push_str("\",\"reason\":\"");
            text.push_str(candidate.reason.as_str());
            text.push_str("\"}");
        }
        text.push(']');
    }
    text.push('}');
}

/// Returns the earlier entry of a carried place if it tells what is true.
fn earlier_entry<'e>(
    earlier: &'e serde_json::Map<String, serde_json::Value>,
    place: &Place<'_>,
    decision: &Decision<'_>,
    mirror: Option<&str>,
) -> Option<&'e serde_json::Value> {
    let entry = earlier
        .get(&place.label().to_string())
        .filter(|_| decision.carried)?;
    let text = |field: &str| entry.get(field).and_then(serde_json::Value::as_str);
    (text("outcome") == Some(Outcome::Rewritten.as_str()) && text("mirror") == mirror).then_some(entry)
}

/// A JSON Patch in the making.
#[derive(Debug)]
struct Operations {
    text: String,
}

impl Operations {
    /// Begins an operation; the caller writes the value.
    fn begin(&mut self, operation: &str) {
        self.text.push_str(if self.text.is_empty() {
            "[{\"op\":\""
        } else {
            ",{\"op\":\""
        });
        self.text.push_str(operation);
        self.text.push_str("\",\"path\":\"");
    }

    fn replace_image(&mut self, decision: &Decision<'_>, rewritten: &str) {
        use std::fmt::Write as _;
        self.begin("replace");
        let written = write!(
            self.text,
            "/spec/{}/{}/{}\",\"value\":",
            decision.kind.list(),
            decision.index,
            decision.kind.image_path()
        );
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
        json::push_string(&mut self.text, rewritten);
        self.text.push('}');
    }

    fn annotate(&mut self, pod: &Pod<'_>, wanted: &[(String, Cow<'_, str>)]) -> Result<(), TooLarge> {
        if wanted.is_empty() {
            return Ok(());
        }
        let present = pod.annotations.as_ref().map_or(0, |annotations| annotations.size);
        let added: usize = wanted.iter().map(|(key, value)| key.len() + value.len()).sum();
        let replaced: usize = wanted
            .iter()
            .filter_map(|(key, _)| pod.annotation("", key).map(|value| key.len() + value.len()))
            .sum();
        if (present + added).saturating_sub(replaced) > ANNOTATIONS_LIMIT {
            return Err(TooLarge);
        }
        match &pod.annotations {
            None => self.add_all_annotations(wanted),
            Some(Annotations { .. }) => {
                for (key, value) in wanted {
                    self.begin("add");
                    self.text.push_str("/metadata/annotations/");
                    self.push_pointer(key);
                    self.text.push_str("\",\"value\":");
                    json::push_string(&mut self.text, value);
                    self.text.push('}');
                }
            }
        }
        Ok(())
    }

    /// Appends one part of a JSON Pointer (RFC 6901).
    fn push_pointer(&mut self, part: &str) {
        for piece in part.split_inclusive(['~', '/']) {
            let (plain, escape) = match piece.as_bytes().last() {
                Some(b'~') => (&piece[..piece.len() - 1], "~0"),
                Some(b'/') => (&piece[..piece.len() - 1], "~1"),
                _ => (piece, ""),
            };
            json::push_escaped(&mut self.text, plain);
            self.text.push_str(escape);
        }
    }

    fn add_all_annotations(&mut self, wanted: &[(String, Cow<'_, str>)]) {
        self.begin("add");
        self.text.push_str("/metadata/annotations\",\"value\":{");
        for (position, (key, value)) in wanted.iter().enumerate() {
            if position > 0 {
                self.text.push(',');
            }
            json::push_string(&mut self.text, key);
            self.text.push(':');
            json::push_string(&mut self.text, value);
        }
        self.text.push_str("}}");
    }

    fn append_pull_secret(&mut self, pod: &Pod<'_>) {
        self.begin("add");
        let (path, before, after) = match pod.pull_secrets {
            None => ("/spec/imagePullSecrets", "[", "]"),
            Some(_) => ("/spec/imagePullSecrets/-", "", ""),
        };
        self.text.push_str(path);
        self.text.push_str("\",\"value\":");
        self.text.push_str(before);
        self.text.push_str("{\"name\":");
        json::push_string(&mut self.text, PULL_SECRET);
        self.text.push('}');
        self.text.push_str(after);
        self.text.push('}');
    }

    fn finish(mut self) -> Option<String> {
        if self.text.is_empty() {
            return None;
        }
        self.text.push(']');
        Some(self.text)
    }
}

#[cfg(test)]
mod tests;
