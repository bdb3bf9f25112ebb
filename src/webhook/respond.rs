//! Writing the answer to a review: always `allowed: true`, into one buffer.
//!
//! kube's own response type writes the patch as a list of numbers; the API wants base64 (`[]byte` of
//! k8s.io/api/admission/v1, `AdmissionResponse.Patch`).

use std::fmt::Write as _;

use base64_simd::STANDARD;

use crate::domain::{
    decision::{Decision, Earlier, Operation},
    foreign::Foreign,
    json,
    mirror::Mode,
    pod::{PlaceKind, PlaceLabel},
    reason::{Outcome, Reason},
    routing::Routing,
};

/// The longest name that a qualified name may have after its prefix.
const KEY_LIMIT: usize = 63;

/// What the key ends in under which another decision of a later round stands. The API server refuses
/// another value for the same key, and writes a warning for it.
const AGAIN: &str = ".again";

/// How long one warning should be at most (API: `AdmissionResponse.warnings`).
const WARNING_LIMIT: usize = 120;

/// How long all warnings of one answer may be; the API server cuts at 4,096 characters.
const WARNINGS_LIMIT: usize = 4000;

/// What an answer says besides `allowed: true`.
#[derive(Debug, Default)]
pub(crate) struct AdmissionResponse<'a> {
    pub(crate) api_version: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) patch: Option<&'a str>,
    pub(crate) audit: Audit<'a>,
    pub(crate) warnings: Vec<String>,
}

/// What the audit log is told.
#[derive(Debug, Default)]
pub(crate) enum Audit<'a> {
    #[default]
    Nothing,
    /// Why a review is not decided.
    Fault(Reason, &'a str),
    /// Each decision, under its place.
    Decisions(&'a [Decision<'a>], &'a Routing),
}

impl AdmissionResponse<'_> {
    /// Returns the AdmissionReview as JSON.
    pub(crate) fn write(&self) -> Vec<u8> {
        let size = 256
            + self.patch.map_or(0, |patch| patch.len() * 4 / 3)
            + self.audit.expected_length()
            + self
                .warnings
                .iter()
                .map(|warning| warning.len() + 4)
                .sum::<usize>();
        let mut out = String::with_capacity(size);
        out.push_str("{\"kind\":\"AdmissionReview\",\"apiVersion\":");
        let api_version = if self.api_version.is_empty() {
            "admission.k8s.io/v1"
        } else {
            self.api_version
        };
        json::push_string(&mut out, api_version);
        out.push_str(",\"response\":{\"uid\":");
        json::push_string(&mut out, self.uid);
        out.push_str(",\"allowed\":true");
        if let Some(patch) = self.patch {
            out.push_str(",\"patchType\":\"JSONPatch\",\"patch\":\"");
            STANDARD.encode_append(patch, &mut out);
            out.push('"');
        }
        self.audit.write(&mut out);
        if !self.warnings.is_empty() {
            out.push_str(",\"warnings\":");
            for (position, warning) in self.warnings.iter().enumerate() {
                out.push(if position == 0 { '[' } else { ',' });
                json::push_string(&mut out, warning);
            }
            out.push(']');
        }
        out.push_str("}}");
        out.into_bytes()
    }
}

impl Audit<'_> {
    /// About the longest that it becomes.
    fn expected_length(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Fault(_, why) => 64 + why.len(),
            Self::Decisions(decisions, _) => decisions
                .iter()
                .map(|decision| 160 + decision.rewritten.as_deref().unwrap_or(decision.image).len())
                .sum(),
        }
    }

    /// Appends `auditAnnotations`, if there is something to tell.
    fn write(&self, out: &mut String) {
        match self {
            Self::Nothing => {}
            Self::Fault(reason, why) => {
                out.push_str(",\"auditAnnotations\":{\"review\":\"");
                for part in [Outcome::Kept.as_str(), " ", reason.as_str(), " ", why] {
                    json::push_escaped(out, part);
                }
                out.push_str("\"}");
            }
            Self::Decisions(decisions, routing) => {
                let mut empty = true;
                for decision in *decisions {
                    let Some(suffix) = audit_suffix(decision) else {
                        continue;
                    };
                    out.push_str(if empty { ",\"auditAnnotations\":{\"" } else { ",\"" });
                    empty = false;
                    push_audit_key(out, &decision.label(), suffix);
                    out.push_str("\":\"");
                    push_audit_value(out, decision, routing);
                    out.push('"');
                }
                if !empty {
                    out.push('}');
                }
            }
        }
    }
}

/// Returns what the key of a decision ends in; none if the audit log is told nothing of it, because an
/// earlier round did.
fn audit_suffix(decision: &Decision<'_>) -> Option<&'static str> {
    // Ephemeral containers get no annotations, so a mirror's name may be what the round before wrote.
    let untold = decision.kind == PlaceKind::EphemeralContainer && decision.reason == Reason::AlreadyMirrored;
    if untold || decision.is_repeated() {
        return None;
    }
    Some(match decision.earlier {
        Earlier::Absent | Earlier::Same => "",
        Earlier::Other => AGAIN,
    })
}

/// Appends the key under which a place stands in the audit log, as the inside of a string literal: its
/// label, or the label's beginning and a hash where that would be too long, and a suffix.
fn push_audit_key(out: &mut String, label: &PlaceLabel<'_>, suffix: &str) {
    let limit = KEY_LIMIT - suffix.len();
    let parts @ [list, dot, name] = label.parts();
    if list.len() + dot.len() + name.len() <= limit {
        out.push_str(list);
        out.push_str(dot);
        json::push_escaped(out, name);
        out.push_str(suffix);
        return;
    }
    let mut key = parts.concat();
    // FNV-1a: short, stable, and nobody gains anything from a collision.
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut end = limit - 17;
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    key.truncate(end);
    json::push_escaped(out, &key);
    let written = write!(out, "-{hash:016x}{suffix}");
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
}

/// Appends what the audit log says of a decision, as the inside of a string literal: outcome, reason,
/// mirror and the mirror's image.
fn push_audit_value(out: &mut String, decision: &Decision<'_>, routing: &Routing) {
    out.push_str(decision.outcome.as_str());
    out.push(' ');
    out.push_str(decision.reason.as_str());
    if let Some(mirror) = decision.mirror {
        out.push_str(" mirror=");
        json::push_escaped(out, &routing.mirror(mirror).name);
    }
    out.push_str(" image=");
    json::push_escaped(out, decision.rewritten.as_deref().unwrap_or(decision.image));
}

/// Returns the warnings for the caller: in warn mode one for each image that has a candidate, and
/// for ephemeral containers, whose Pod cannot tell, in enforce mode too.
pub(crate) fn warnings(mode: Mode, operation: Operation, decisions: &[Decision<'_>]) -> Vec<String> {
    let ephemeral = operation == Operation::AddEphemeralContainers;
    let wanted = |decision: &&Decision<'_>| match decision.mode {
        Mode::Enforce => ephemeral && !decision.candidates.is_empty(),
        Mode::Warn => true,
        Mode::Audit | Mode::Off => false,
    };
    if mode < Mode::Warn {
        return Vec::new();
    }
    let mut room = WARNINGS_LIMIT;
    let mut warnings = Vec::new();
    for decision in decisions.iter().filter(wanted) {
        let warning = warning(decision);
        let Some(left) = room.checked_sub(warning.chars().count()) else {
            break;
        };
        room = left;
        warnings.push(warning);
    }
    warnings
}

fn warning(decision: &Decision<'_>) -> String {
    let Decision {
        name,
        image,
        rewritten,
        reason,
        ..
    } = decision;
    let (name, image) = (Foreign(name), Foreign(image));
    let full = match (decision.outcome, rewritten) {
        (Outcome::Rewritten, Some(rewritten)) => format!("kagami: {name}: {image} comes from {rewritten}"),
        (Outcome::WouldRewrite, Some(rewritten)) => {
            format!("kagami: {name}: {image} would come from {rewritten}")
        }
        _ => format!("kagami: {name}: {image} stays upstream: {reason}"),
    };
    if full.chars().count() <= WARNING_LIMIT {
        return full;
    }
    match decision.outcome {
        Outcome::Rewritten => format!("kagami: {name}: comes from the mirror"),
        Outcome::WouldRewrite => format!("kagami: {name}: would come from the mirror"),
        Outcome::Kept => format!("kagami: {name}: stays upstream: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::domain::{
        decision::{Probing, Request, decide},
        examples::{NOW, key, mirror, place, proof, snapshot},
        mirror::Mirror,
        pod::Pod,
        presence::{Index, Presence},
    };

    fn written(answer: &AdmissionResponse<'_>) -> String {
        String::from_utf8(answer.write()).unwrap()
    }

    #[test]
    fn an_answer_always_allows_and_has_a_patch_only_with_its_type() {
        assert_snapshot!(
            written(&AdmissionResponse { uid: "u-1", ..AdmissionResponse::default() }),
            @r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"u-1","allowed":true}}"#
        );
        let answer = AdmissionResponse {
            api_version: "admission.k8s.io/v1",
            uid: "u\"1",
            patch: Some("[]"),
            audit: Audit::Fault(Reason::Internal, "\n"),
            warnings: vec!["one".to_owned(), "\"two\"".to_owned()],
        };
        assert_snapshot!(
            written(&answer),
            @r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"u\"1","allowed":true,"patchType":"JSONPatch","patch":"W10=","auditAnnotations":{"review":"Kept Internal \n"},"warnings":["one","\"two\""]}}"#
        );
    }

    #[test]
    fn keys_of_the_audit_log_are_qualified_names() {
        let key = |name: &str, suffix: &str| {
            let mut key = String::new();
            let label = PlaceLabel::new(PlaceKind::EphemeralContainer, name);
            push_audit_key(&mut key, &label, suffix);
            key
        };
        assert_eq!(key("debug", ""), "ephemeralContainers.debug");
        assert_eq!(key("debug", AGAIN), "ephemeralContainers.debug.again");
        for suffix in ["", AGAIN] {
            let longest = "n".repeat(63 - "ephemeralContainers.".len() - suffix.len());
            assert_eq!(
                key(&longest, suffix),
                format!("ephemeralContainers.{longest}{suffix}")
            );
            let (one, other) = (
                key(&format!("{longest}-1"), suffix),
                key(&format!("{longest}-2"), suffix),
            );
            assert_ne!(one, other);
            assert_eq!(one.len(), 63);
            for key in [one, other, key(&"é".repeat(60), suffix)] {
                assert!(key.len() <= 63, "{key}");
                assert!(key.ends_with(|last: char| last.is_ascii_alphanumeric()), "{key}");
                assert!(key.ends_with(suffix), "{key}");
            }
        }
    }

    /// Returns the warnings for a Pod with these images, of which the mirror has `nginx:1`.
    fn warnings_for(mode: Mode, operation: Operation, images: &[&str], of_mirror: Mode) -> Vec<String> {
        let kind = match operation {
            Operation::Create => PlaceKind::Container,
            Operation::AddEphemeralContainers => PlaceKind::EphemeralContainer,
        };
        let places = images.iter().map(|image| place(kind, 0, "app", image)).collect();
        let pod = Pod {
            places,
            ..Pod::default()
        };
        let request = Request {
            namespace: "team",
            mode,
            operation,
            heal: true,
            pod,
        };
        let snapshot = snapshot(vec![Mirror {
            mode: of_mirror,
            ..mirror("a", &["docker.io"])
        }]);
        let mut index = Index::default();
        index.write(
            "a",
            key("docker.io/library/nginx:1"),
            Presence::Present(proof('a')),
            NOW,
            NOW,
        );
        let plan = decide(&snapshot, &index, &request, Probing::Hosted, NOW);
        warnings(mode, operation, &plan.settle(&snapshot, &[]))
    }

    #[test]
    fn callers_are_warned_in_warn_mode_and_of_ephemeral_containers() {
        let create = Operation::Create;
        let images = ["nginx:1", "redis", "quay.io/a/b"];
        let would = "kagami: app: nginx:1 would come from a.example.com/docker.io/library/nginx:1";
        let kept = "kagami: app: redis stays upstream: BudgetExhausted";
        let rewritten = "kagami: app: nginx:1 comes from a.example.com/docker.io/library/nginx:1";
        let none: [&str; 0] = [];
        for (mode, operation, of_mirror, expected) in [
            (Mode::Warn, create, Mode::Enforce, &[would, kept][..]),
            (Mode::Enforce, create, Mode::Warn, &[would, kept]),
            (Mode::Enforce, create, Mode::Enforce, &none),
            (Mode::Enforce, create, Mode::Audit, &none),
            (Mode::Audit, create, Mode::Enforce, &none),
            (
                Mode::Enforce,
                Operation::AddEphemeralContainers,
                Mode::Enforce,
                &[rewritten, kept],
            ),
        ] {
            assert_eq!(
                warnings_for(mode, operation, &images, of_mirror),
                expected,
                "{mode:?} {operation:?} {of_mirror:?}"
            );
        }
    }

    #[test]
    fn a_name_forges_no_warning() {
        let decision = Decision {
            kind: PlaceKind::Container,
            index: 0,
            name: "a\nWarning: forged\u{1b}[2K",
            image: "nginx:1",
            present: "nginx:1",
            outcome: Outcome::Kept,
            reason: Reason::ImageMissing,
            mirror: None,
            rewritten: None,
            digest: None,
            candidates: smallvec::SmallVec::new(),
            mode: Mode::Warn,
            carried: false,
            is_lent: false,
            cause: None,
            earlier: Earlier::Absent,
            left_alone: false,
            wants_pull_secret: false,
        };
        assert_eq!(
            warning(&decision),
            r#"kagami: "a\nWarning: forged\u{1b}[2K": nginx:1 stays upstream: ImageMissing"#
        );
    }

    #[test]
    fn warnings_stay_short_one_by_one_and_together() {
        let long = format!("docker.io/{}/app:1", "team/".repeat(20).trim_end_matches('/'));
        let many = vec![long.as_str(); 200];
        let warnings = warnings_for(Mode::Warn, Operation::Create, &many, Mode::Enforce);
        assert_eq!(warnings[0], "kagami: app: stays upstream: BudgetExhausted");
        let characters: usize = warnings.iter().map(|warning| warning.chars().count()).sum();
        assert!((3_900..=4_000).contains(&characters), "{characters}");
    }
}
