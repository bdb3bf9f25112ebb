//! Pods that a policy refuses where images are rewritten.
//!
//! A rule about images that does not know the mirror's name denies rewritten Pods. Who creates a Deployment is
//! not told: its ReplicaSet tries again and again, and says so in its Events only.

use std::collections::{BTreeMap, btree_map::Entry};

use anyhow::Context as _;
use kube::Client;
use serde::{Deserialize, Serialize};

use super::super::pages::Pages;
use crate::domain::{foreign::Foreign, mirror::Mirror, routing::Routing};

/// What whoever makes Pods of a template says of one that it could not create.
const FAILED: &str = "reason=FailedCreate";

/// How many pages of Events are read at most; Events live for an hour, and one counts how often it happened.
const PAGES: usize = 20;

/// How much of a policy's message is shown.
const SHOWN: usize = 300;

/// A maker of Pods whose Pods a policy refuses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Refusal {
    pub(super) namespace: String,
    kind: String,
    name: String,
    /// The webhook or ValidatingAdmissionPolicy that refused.
    policy: String,
    /// Whether its words name a mirror, which nobody wrote but Kagami.
    names_mirror: bool,
    message: String,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<String>,
}

/// What the Events tell.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    pub(super) found: Vec<Refusal>,
    /// There were more Events than are read.
    pub(super) incomplete: bool,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    involved_object: Object,
    #[serde(default)]
    message: String,
    count: Option<u64>,
    last_timestamp: Option<String>,
    #[serde(rename = "eventTime")]
    noted_at: Option<String>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
}

/// Reads the Events of one namespace or, with none, of all, and keeps for each maker of Pods what it said last.
pub(super) async fn read(
    client: &Client,
    namespace: Option<&str>,
    routing: &Routing,
    is_served: impl Fn(&str) -> bool,
) -> anyhow::Result<Refusals> {
    let mut latest = BTreeMap::new();
    let mut pages = Pages::new(client, "events", namespace, FAILED);
    for _ in 0..PAGES {
        let Some(page) = pages.next().await? else {
            return Ok(Refusals::of(latest, false));
        };
        let List { items } = serde_json::from_str(&page).context("an Event cannot be read")?;
        let served = items
            .into_iter()
            .filter(|event| is_served(&event.involved_object.namespace));
        for refusal in served.filter_map(|event| refusal(event, routing)) {
            keep(&mut latest, refusal);
        }
    }
    Ok(Refusals::of(latest, true))
}

type Latest = BTreeMap<(String, String, String), Refusal>;

fn keep(latest: &mut Latest, refusal: Refusal) {
    let Refusal {
        namespace,
        kind,
        name,
        ..
    } = &refusal;
    match latest.entry((namespace.clone(), kind.clone(), name.clone())) {
        Entry::Vacant(entry) => drop(entry.insert(refusal)),
        Entry::Occupied(mut entry) => {
            // Times in UTC, to the second: they sort as text.
            if entry.get().last_seen <= refusal.last_seen {
                entry.insert(refusal);
            }
        }
    }
}

/// Returns what an Event tells of a policy; none if something else stood in the way, such as a quota.
fn refusal(event: Event, routing: &Routing) -> Option<Refusal> {
    let policy = policy(&event.message)?;
    let is_named = |mirror: &Mirror| event.message.contains(&format!("{}/", mirror.mapping.registry));
    let Object {
        namespace,
        kind,
        name,
    } = event.involved_object;
    Some(Refusal {
        namespace,
        kind,
        name,
        policy,
        names_mirror: routing.mirrors().any(|(_, mirror)| is_named(mirror)),
        // Policies like to make paragraphs.
        message: event.message.split_whitespace().collect::<Vec<_>>().join(" "),
        count: event.count.unwrap_or(1),
        last_seen: event.last_timestamp.or(event.noted_at),
    })
}

/// Returns who refused, in the API server's words for it.
fn policy(message: &str) -> Option<String> {
    let between = |start: &str, end: &str| {
        let (_, rest) = message.split_once(start)?;
        rest.split_once(end).map(|(name, _)| name.to_owned())
    };
    between("admission webhook \"", "\" denied the request").or_else(|| {
        between("ValidatingAdmissionPolicy '", "'").map(|name| format!("ValidatingAdmissionPolicy {name}"))
    })
}

impl Refusals {
    fn of(latest: Latest, incomplete: bool) -> Self {
        Self {
            found: latest.into_values().collect(),
            incomplete,
        }
    }
}

impl Refusal {
    /// The same as a sentence for a person.
    pub(super) fn note(&self) -> String {
        let Self {
            namespace,
            kind,
            name,
            policy,
            message,
            count,
            ..
        } = self;
        let last = self.last_seen.as_deref().unwrap_or("at an unknown time");
        let cut = message
            .char_indices()
            .nth(SHOWN)
            .map_or(message.len(), |(at, _)| at);
        let more = if cut < message.len() { "…" } else { "" };
        let advice = if self.names_mirror {
            "It names the mirror, so it is a rule about images: let it match both names"
        } else {
            "If it is a rule about images, let it match both names"
        };
        format!(
            "{policy} refuses the Pods of {kind} {} in {} ({count} times, last {last}): {}{more}. {advice}, upstream's \
             and the mirror's",
            Foreign(name),
            Foreign(namespace),
            message.get(..cut).unwrap_or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str, last: &str) -> Event {
        Event {
            involved_object: Object {
                namespace: "shop".to_owned(),
                kind: "ReplicaSet".to_owned(),
                name: "web-1".to_owned(),
            },
            message: message.to_owned(),
            count: Some(3),
            last_timestamp: Some(last.to_owned()),
            noted_at: None,
        }
    }

    #[test]
    fn policies_are_known_by_the_words_of_the_api_server() {
        for (message, expected) in [
            (
                "Error creating: admission webhook \"validate.kyverno.svc-fail\" denied the request: \n\nresource",
                Some("validate.kyverno.svc-fail"),
            ),
            (
                "create Pod web-0 in StatefulSet web failed error: admission webhook \
                 \"validation.gatekeeper.sh\" denied the request: [repos] no",
                Some("validation.gatekeeper.sh"),
            ),
            (
                "(combined from similar events): Error creating: pods \"web-1-x\" is forbidden: \
                 ValidatingAdmissionPolicy 'upstream-only' with binding 'b' denied request: no",
                Some("ValidatingAdmissionPolicy upstream-only"),
            ),
            (
                "Error creating: pods \"web-1-x\" is forbidden: exceeded quota: q, requested: pods=1",
                None,
            ),
            (
                "Error creating: pods \"web-1-x\" is forbidden: violates PodSecurity \"restricted:latest\"",
                None,
            ),
            (
                "Error creating: Internal error occurred: failed calling webhook \"a.b\": no route to host",
                None,
            ),
        ] {
            assert_eq!(policy(message).as_deref(), expected, "{message}");
        }
    }

    #[test]
    fn the_latest_of_each_maker_is_kept() {
        let denied = |by: &str| format!("Error creating: admission webhook \"{by}\" denied the request: no");
        let mut latest = Latest::new();
        for (by, last) in [
            ("first", "2026-11-28T01:00:00Z"),
            ("last", "2026-11-28T01:02:00Z"),
            ("second", "2026-11-28T01:01:00Z"),
        ] {
            keep(
                &mut latest,
                refusal(event(&denied(by), last), &Routing::default()).unwrap(),
            );
        }
        let found = Refusals::of(latest, false).found;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].policy, "last");
    }

    #[test]
    fn a_note_is_one_line_of_bounded_length() {
        let message = format!(
            "admission webhook \"w\" denied the request: \n\n{}",
            "很长 text\n".repeat(10_000)
        );
        let note = refusal(event(&message, "2026-11-28T01:00:00Z"), &Routing::default())
            .unwrap()
            .note();
        assert!(!note.contains('\n') && note.chars().count() < 600, "{note}");
        assert!(
            note.starts_with(
                "w refuses the Pods of ReplicaSet web-1 in shop (3 times, last 2026-11-28T01:00:00Z): "
            ),
            "{note}"
        );
        assert!(
            note.ends_with(
                "If it is a rule about images, let it match both names, upstream's and the mirror's"
            ),
            "{note}"
        );
    }
}
