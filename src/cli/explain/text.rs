//! An explanation as a person reads it: one fact a line.

use std::fmt::{self, Write as _};

use super::{ClusterExplanation, Explanation, MirrorExplanation, Moved, NotCopied, Sight};
use crate::{
    cli::oneshot::sign_of_life,
    domain::{
        foreign::{Foreign, visible},
        reason::Reason,
    },
};

pub(super) fn of(explanation: &Explanation) -> String {
    let Explanation {
        image,
        normalized,
        invalid,
        namespace,
        mode,
        cluster,
        mirrors,
        decision,
        notes,
    } = explanation;
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:<12}{}", visible(value));
    };
    line("image", &Foreign(image).to_string());
    if let Some(normalized) = normalized {
        line("means", normalized);
    }
    if let Some(invalid) = invalid {
        line("but", invalid);
    }
    line("namespace", &format!("{namespace}, mode {mode}"));
    if let Some(ClusterExplanation {
        heartbeat_age_seconds,
    }) = cluster
    {
        line("state", &sign_of_life(*heartbeat_age_seconds));
    }
    if mirrors.is_empty() && decision.reason != Reason::InvalidReference.as_str() {
        line("mirrors", "none was asked");
    }
    for mirror in mirrors {
        line(
            "mirror",
            &format!(
                "{} ({}, {}, priority {}, mode {})",
                mirror.name, mirror.registry, mirror.kind, mirror.priority, mirror.mode
            ),
        );
        if let Some(shared) = &mirror.shared {
            let old = if shared.stale {
                "; too old to be believed"
            } else {
                ""
            };
            let health = health(shared.health, shared.fault);
            let since = &shared.proven_since;
            line("  shared", &format!("{health}, proofs count from {since}{old}"));
            if let Some(cause) = &shared.fault_cause {
                line("  cause", cause);
            }
            if let Some(age) = shared.sweep_age_seconds {
                line("  sweep", &format!("the last whole one began {age:.1} s ago"));
            }
        }
        line("  health", &health(mirror.health, mirror.fault));
        let told = mirror
            .shared
            .as_ref()
            .and_then(|shared| shared.fault_cause.as_ref());
        if let Some(cause) = mirror.fault_cause.as_ref().filter(|cause| told != Some(*cause)) {
            line("  cause", cause);
        }
        line("  image", &mirror.sight.to_string());
        tell_copy(mirror, &mut line);
        if let Some(here) = &mirror.from_here {
            let (health, sight) = (health(here.health, here.fault), &here.sight);
            line("  from here", &format!("{health}; {sight} ({})", here.reason));
            if let Some(cause) = here.fault_cause.as_ref().filter(|cause| told != Some(*cause)) {
                line("  cause", cause);
            }
        }
        let here = mirror.from_here.as_ref();
        if let Some(cause) = mirror.cause.as_ref().or_else(|| here?.cause.as_ref()) {
            line("  answer", cause);
        }
        if let Some(other) = &mirror.closed_by {
            let kept = "keeps what lies at this place for the namespaces that it serves";
            line("  closed by", &format!("{other}, which {kept}"));
        }
        line("  verdict", &format!("{} {}", mirror.outcome, mirror.reason));
    }
    line(
        "decision",
        &format!(
            "{} {}: {}",
            decision.outcome, decision.reason, decision.explanation
        ),
    );
    line("pull", &Foreign(&decision.image).to_string());
    if let Some(would_be) = &decision.would_be {
        line("would be", would_be);
    }
    for note in notes {
        line("note", note);
    }
    text
}

/// Tells how the copy in a mirror stands beside what upstream has.
fn tell_copy(mirror: &MirrorExplanation, line: &mut impl FnMut(&str, &str)) {
    if let Some(Moved { upstream, drift }) = &mirror.moved {
        line(
            "  moved",
            &format!("upstream it is {upstream} by now (tags.drift: {drift})"),
        );
    }
    if let Some(why) = &mirror.not_copied {
        line("  no copy", &why.to_string());
    }
}

fn health(state: &str, fault: Option<&str>) -> String {
    match fault {
        Some(fault) => format!("{state}: {fault}"),
        None => state.to_owned(),
    }
}

impl fmt::Display for NotCopied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reason,
            explanation,
            advice,
        } = self;
        let explanation = explanation.trim_end_matches('.');
        write!(formatter, "{reason}: {explanation}; {advice}")
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.presence)?;
        if let Some(digest) = &self.digest {
            write!(formatter, " as {digest}")?;
        }
        if !self.platforms.is_empty() {
            write!(formatter, " for {}", self.platforms.join(", "))?;
        }
        if let Some(age) = self.proof_age_seconds {
            write!(formatter, ", seen {age:.1} s ago")?;
        }
        if let Some(void) = &self.void {
            write!(formatter, " now ({void})")?;
        }
        Ok(())
    }
}
