//! What a user wrote where Kagami rewrote it: the one proof that an image is Kagami's own rewrite, and
//! the one way back.
//!
//! Anybody may write annotations. A recorded original is believed only where the mapping of a mirror,
//! whatever its mode and its health, turns it into the present image. That says where the image comes
//! from, and nothing of what the mirror holds.

use std::{borrow::Cow, cell::OnceCell, collections::HashMap};

use foldhash::fast::RandomState;
use serde::Deserialize;

use super::{
    image::{ImageKey, Reference},
    names::DECISIONS_ANNOTATION,
    pod::{ANNOTATIONS_LIMIT, PlaceLabel, Pod},
    routing::{MirrorId, Routing},
};

/// A recorded original that a mirror turned into the present image.
#[derive(Clone, Copy, Debug)]
pub struct Original<'r> {
    /// What the user wrote.
    pub reference: Reference<'r>,
    /// The mirror that the present image names.
    pub mirror: MirrorId,
}

/// How many components of a path are tried as the beginning of an image's own name.
const TEMPLATE_DEPTH: usize = 8;

/// The longest text of decisions that is read: Kagami writes no longer one.
const LONGEST: usize = ANNOTATIONS_LIMIT;

/// What an earlier round of admission left of one decision. All else that stands there is passed over.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RecordedDecision<'a> {
    #[serde(borrow, default)]
    pub outcome: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub mirror: Option<Cow<'a, str>>,
}

/// The decisions that an earlier round of admission left on a Pod, read once and only where somebody
/// asks. Anybody may have written them, so they prove nothing by themselves.
#[derive(Clone, Debug, Default)]
pub struct RecordedDecisions<'a> {
    text: Option<&'a str>,
    entries: OnceCell<HashMap<Cow<'a, str>, RecordedDecision<'a>, RandomState>>,
}

impl<'a> RecordedDecisions<'a> {
    /// Returns what an annotation's value tells; nothing if it is absent or has not the right form.
    pub const fn new(text: Option<&'a str>) -> Self {
        Self {
            text,
            entries: OnceCell::new(),
        }
    }

    /// Returns what stands on a Pod.
    pub fn of(pod: &'a Pod<'_>) -> Self {
        Self::new(pod.annotation("", DECISIONS_ANNOTATION))
    }

    /// Returns what was decided of a place.
    pub fn entry(&self, place: PlaceLabel<'_>) -> Option<&RecordedDecision<'a>> {
        let text = self.text.filter(|text| text.len() <= LONGEST)?;
        let entries = self
            .entries
            .get_or_init(|| serde_json::from_str(text).unwrap_or_default());
        entries.get(place.to_string().as_str())
    }

    /// Returns the mirror that was decided on for a place.
    pub fn mirror(&self, place: PlaceLabel<'_>) -> Option<&str> {
        self.entry(place)?.mirror.as_deref()
    }
}

impl<'r> Original<'r> {
    /// Returns the recorded original of an image if a mirror turns it into that image. An original that
    /// somebody else wrote, for whatever reason, does not map to the image and so proves nothing.
    ///
    /// Where mirrors share a registry, only the decision tells which of them it was: `decided` is its name.
    pub fn prove<'d>(
        routing: &Routing,
        image: &str,
        recorded: &'r str,
        decided: impl FnOnce() -> Option<&'d str>,
    ) -> Option<Self> {
        let present = Reference::parse(image).ok()?;
        let reference = Reference::parse(recorded).ok()?;
        let mut room = String::new();
        let mut mirrors = routing
            .mirrors_named_by(present.write_key(&mut room).name())
            .filter(|mirror| routing.mirror(*mirror).maps_to(&reference, image));
        let first = mirrors.next()?;
        let mirror = match mirrors.next() {
            None => first,
            Some(second) => {
                let decided = decided();
                let mut mirrors = [first, second].into_iter().chain(mirrors);
                let found = mirrors.find(|mirror| decided == Some(routing.mirror(*mirror).name.as_str()));
                found.unwrap_or(first)
            }
        };
        Some(Self { reference, mirror })
    }
}

/// Returns the key of what the user wrote where `image` stands now, and the mirror that it was sent to, if
/// it was. None where the image names a mirror and nothing proves what it was before. `decided` as for
/// [`Original::prove`].
pub fn key_of<'d>(
    routing: &Routing,
    image: &str,
    recorded: Option<&str>,
    decided: impl FnOnce() -> Option<&'d str>,
) -> Option<(ImageKey, Option<MirrorId>)> {
    let key = Reference::parse(image).ok()?.key();
    if routing.mirrors_named_by(key.by_ref().name()).next().is_none() {
        return Some((key, None));
    }
    let original = Original::prove(routing, image, recorded?, decided)?;
    Some((original.reference.key(), Some(original.mirror)))
}

/// Returns the mirrors that an image names.
pub(super) fn mirrors_named_by(routing: &Routing, image: &str) -> Vec<MirrorId> {
    let Ok(reference) = Reference::parse(image) else {
        return Vec::new();
    };
    let mut room = String::new();
    let key = reference.write_key(&mut room);
    routing.mirrors_named_by(key.name()).collect()
}

/// Returns what a mirror would make into an image, for people to look at who know whether it is that. It proves
/// nothing: nobody may have written it, and upstream's name may be a stranger's.
pub fn candidate(routing: &Routing, image: &str) -> Option<String> {
    let mut found = mirrors_named_by(routing, image).into_iter().filter_map(|mirror| {
        let mirror = routing.mirror(mirror);
        let rest = image.strip_prefix(&format!("{}/", mirror.mapping.registry))?;
        // What a template says before the image's own name is a few components at most.
        let starts = std::iter::once(0).chain(rest.match_indices('/').map(|(slash, _)| slash + 1));
        starts.take(TEMPLATE_DEPTH).find_map(|start| {
            let rest = &rest[start..];
            let named = rest
                .split_once('/')
                .map(|(host, path)| format!("{}/{path}", with_port(host)));
            let hosts = mirror.upstreams().map(|host| format!("{host}/{rest}"));
            let mut candidates = named.into_iter().chain(hosts);
            candidates.find_map(|candidate| {
                let original = Reference::parse(&candidate).ok()?;
                let is_mirrored = mirror.upstreams().any(|host| host == original.host());
                (is_mirrored && mirror.maps_to(&original, image)).then(|| original.to_string())
            })
        })
    });
    found.next()
}

/// Returns a host as it is written where references name it, of how it stands in a path.
fn with_port(host: &str) -> String {
    match host.rsplit_once('_') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{name}:{port}")
        }
        _ => host.to_owned(),
    }
}

/// Puts back what the user wrote wherever Kagami rewrote it. Returns the mirror that each place names
/// at present, whoever wrote it there.
pub fn restore(pod: &mut Pod<'_>, routing: &Routing) -> Vec<Option<MirrorId>> {
    let decisions = RecordedDecisions::of(pod);
    let originals = pod.places.iter().map(|place| {
        let recorded = pod.original(place)?;
        Original::prove(routing, &place.image, recorded, || {
            decisions.mirror(place.label())
        })
    });
    let originals: Vec<_> = originals
        .map(|original| {
            original.map(|Original { reference, mirror }| (reference.written().to_owned(), mirror))
        })
        .collect();
    let places = pod.places.iter_mut().zip(originals);
    let restored = places.map(|(place, original)| match original {
        Some((original, mirror)) => {
            place.image = original.into();
            Some(mirror)
        }
        None => mirrors_named_by(routing, &place.image).first().copied(),
    });
    restored.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{examples::mirror, mapping::Mapping, mirror::Mirror, pod::PlaceKind};

    #[test]
    fn what_was_rewritten_counts_as_its_original_where_the_mapping_proves_it() {
        let routing = Routing::compile(vec![mirror("a", &["docker.io"])]);
        let check = |image: &str, recorded: Option<&str>, expected: Option<(&str, bool)>| {
            let found = key_of(&routing, image, recorded, || None);
            let found = found.map(|(key, mirror)| (key.to_string(), mirror.is_some()));
            let expected = expected.map(|(key, mirrored)| (key.to_owned(), mirrored));
            assert_eq!(found, expected, "{image} {recorded:?}");
        };
        let nginx = "docker.io/library/nginx:1.29";
        check("nginx:1.29", None, Some((nginx, false)));
        // Somebody else's annotation on an image that is no mirror's means nothing.
        check("nginx:1.29", Some("redis:8"), Some((nginx, false)));
        let mirrored = "a.example.com/docker.io/library/nginx:1.29";
        check(mirrored, Some("nginx:1.29"), Some((nginx, true)));
        check(mirrored, Some("redis:8"), None);
        check(mirrored, None, None);
        check("not an image", None, None);
    }

    #[test]
    fn what_a_mirrors_name_may_be_made_of_is_told() {
        let literal = Mirror {
            mapping: Mapping {
                template: "all/{registry}/x/{repository}".parse().unwrap(),
                ..mirror("b", &[]).mapping
            },
            ..mirror("b", &["docker.io"])
        };
        let alone = Mirror {
            mapping: Mapping {
                template: "{repository}".parse().unwrap(),
                ..mirror("c", &[]).mapping
            },
            ..mirror("c", &["ghcr.io/acme"])
        };
        let sources = ["docker.io", "ghcr.io", "localhost:5000"];
        let routing = Routing::compile(vec![mirror("a", &sources), literal, alone]);
        let check = |image: &str, expected: Option<&str>| {
            let found = candidate(&routing, image);
            assert_eq!(found.as_deref(), expected, "{image}");
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        check(
            "a.example.com/docker.io/library/nginx:1",
            Some("docker.io/library/nginx:1"),
        );
        check("a.example.com/localhost_5000/app", Some("localhost:5000/app"));
        check(
            &format!("a.example.com/ghcr.io/a/b:1@{digest}"),
            Some(&format!("ghcr.io/a/b:1@{digest}")),
        );
        check(
            "b.example.com/all/docker.io/x/library/nginx",
            Some("docker.io/library/nginx"),
        );
        check("c.example.com/acme/app:1", Some("ghcr.io/acme/app:1"));
        check("b.example.com/other/docker.io/library/nginx", None);
        check("a.example.com/quay.io/a/b:1", None);
        check("a.example.com/nginx:1", None);
        check("nginx:1", None);
        check("not an image", None);
    }

    /// What anybody may have written costs no more than Kagami's own.
    #[test]
    fn of_recorded_decisions_only_what_kagami_writes_is_read() {
        let place = PlaceLabel::new(PlaceKind::Container, "app");
        let of = |text: &str| {
            let recorded = RecordedDecisions::new(Some(text));
            recorded.mirror(place).map(ToOwned::to_owned)
        };
        let entry = |rest: &str| format!(r#"{{"containers.app":{{"mirror":"a"{rest}}}}}"#);
        assert_eq!(of(&entry("")).as_deref(), Some("a"));
        assert_eq!(of(&entry(r#","other":[0,{"deep":[1]}]"#)).as_deref(), Some("a"));
        assert_eq!(of(&entry(r#","reason":7"#)), None);
        assert_eq!(of(r#"{"containers.app":[0,0,0,0]}"#), None);
        let padded = entry(&" ".repeat(ANNOTATIONS_LIMIT));
        assert_eq!(of(&padded), None);
    }

    #[test]
    fn of_two_mirrors_in_one_registry_the_decision_tells_which_it_was() {
        let shared = |name| {
            let mapping = mirror("shared", &[]).mapping;
            Mirror {
                mapping,
                ..mirror(name, &["docker.io"])
            }
        };
        let routing = Routing::compile(vec![shared("a"), shared("b")]);
        let image = "shared.example.com/docker.io/library/nginx:1";
        let place = PlaceLabel::new(PlaceKind::Container, "app");
        for (text, expected) in [
            (
                Some(r#"{"containers.app":{"outcome":"Rewritten","mirror":"b"}}"#),
                "b",
            ),
            (
                Some(r#"{"containers.app":{"outcome":"Rewritten","mirror":"a"}}"#),
                "a",
            ),
            (
                Some(r#"{"containers.app":{"outcome":"Rewritten","mirror":"x"}}"#),
                "a",
            ),
            (Some(r#"{"initContainers.app":{"mirror":"b"}}"#), "a"),
            (Some("["), "a"),
            (None, "a"),
        ] {
            let decisions = RecordedDecisions::new(text);
            let original = Original::prove(&routing, image, "nginx:1", || decisions.mirror(place));
            let found = &routing.mirror(original.unwrap().mirror).name;
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
