//! Writing the answer to a review: always `allowed: true`, into one buffer.
//!
//! kube's own response type writes the patch as a list of numbers; the API wants base64 (facts:
//! section 1.1).

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::domain::{
    decision::{Decision, Operation},
    json,
    mirror::Mode,
    pod::PlaceLabel,
    reason::{Outcome, Reason},
    routing::Routing,
};

/// The longest name that a qualified name may have after its prefix.
const KEY_LIMIT: usize = 63;

/// How long one warning should be at most (API: `AdmissionResponse.warnings`).
const WARNING_LIMIT: usize = 120;

/// How long all warnings of one answer may be; the API server cuts at 4,096 characters.
const WARNINGS_LIMIT: usize = 4000;

/// What an answer says besides `allowed: true`.
#[derive(Debug, Default)]
pub(crate) struct Answer<'a> {
    pub(crate) api_version: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) patch: Option<&'a str>,
    pub(crate) audit: Vec<(String, String)>,
    pub(crate) warnings: Vec<String>,
}

impl Answer<'_> {
    /// Returns the AdmissionReview as JSON.
    pub(crate) fn write(&self) -> Vec<u8> {
        let size = 256
            + self.patch.map_or(0, |patch| patch.len() * 4 / 3)
            + self
                .audit
                .iter()
                .map(|(key, value)| key.len() + value.len() + 8)
                .sum::<usize>()
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
            STANDARD.encode_string(patch, &mut out);
            out.push('"');
        }
        if !self.audit.is_empty() {
            out.push_str(",\"auditAnnotations\":");
            for (position, (key, value)) in self.audit.iter().enumerate() {
                out.push(if position == 0 { '{' } else { ',' });
                json::push_string(&mut out, key);
                out.push(':');
                json::push_string(&mut out, value);
            }
            out.push('}');
        }
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

/// Returns the key under which a place stands in the audit log: its label, or the label's beginning
/// and a hash where that would be too long.
pub(crate) fn audit_key(label: &PlaceLabel<'_>) -> String {
    let mut key = label.parts().concat();
    if key.len() > KEY_LIMIT {
        // FNV-1a: short, stable, and nobody gains anything from a collision.
        let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut end = KEY_LIMIT - 17;
        while !key.is_char_boundary(end) {
            end -= 1;
        }
        key.truncate(end);
        let written = write!(key, "-{hash:016x}");
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
    key
}

/// Returns what the audit log says of a decision: outcome, reason, mirror and the mirror's image.
pub(crate) fn audit_value(decision: &Decision<'_>, routing: &Routing) -> String {
    let mut value = String::with_capacity(128);
    value.push_str(decision.outcome.as_str());
    value.push(' ');
    value.push_str(decision.reason.as_str());
    if let Some(mirror) = decision.mirror {
        value.push_str(" mirror=");
        value.push_str(&routing.mirror(mirror).name);
    }
    value.push_str(" image=");
    // On re-invocation the image is the mirror's already; the value must stay the same.
    value.push_str(decision.rewritten.as_deref().unwrap_or(decision.image));
    value
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

/// Returns the audit annotation of a review that could not be decided.
pub(crate) fn fault(reason: Reason, message: &str) -> (String, String) {
    (
        "review".to_owned(),
        format!("{} {reason} {message}", Outcome::Kept),
    )
}
