//! An explanation as a person reads it: one fact a line.

use std::fmt::{self, Write as _};

use super::{ClusterExplanation, Explanation, Sight};
use crate::domain::reason::Reason;

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
        let _ = writeln!(text, "{label:<12}{value}");
    };
    line("image", image);
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
        let heartbeat = match heartbeat_age_seconds {
            Some(age) => format!("the companion's last sign of life was {age:.1} s ago"),
            None => "no sign of life of a companion".to_owned(),
        };
        line("state", &heartbeat);
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
            if let Some(age) = shared.sweep_age_seconds {
                line("  sweep", &format!("the last whole one began {age:.1} s ago"));
            }
        }
        line("  health", &health(mirror.health, mirror.fault));
        line("  image", &mirror.sight.to_string());
        if let Some(here) = &mirror.from_here {
            let (health, sight) = (health(here.health, here.fault), &here.sight);
            line("  from here", &format!("{health}; {sight} ({})", here.reason));
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
    line("pull", &decision.image);
    if let Some(would_be) = &decision.would_be {
        line("would be", would_be);
    }
    for note in notes {
        line("note", note);
    }
    text
}

fn health(state: &str, fault: Option<&str>) -> String {
    match fault {
        Some(fault) => format!("{state}: {fault}"),
        None => state.to_owned(),
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.presence)?;
        if let Some(digest) = &self.digest {
            write!(formatter, " as {digest}")?;
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
