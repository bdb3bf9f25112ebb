//! `kagami explain`: the whole decision for one image.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    arguments::{ExplainArguments, ExplainOutput},
    once::Once,
    output,
};
use crate::{
    clock,
    domain::{
        decision::Decision,
        image::Reference,
        presence::{Index, Judgement, Rules},
        reason::Reason,
        routing::MirrorId,
        snapshot::Snapshot,
        time::Timestamp,
    },
};

/// The answer as a program reads it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    normalized: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid: Option<String>,
    namespace: String,
    mirrors: Vec<MirrorExplanation>,
    decision: DecisionExplanation,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MirrorExplanation {
    name: String,
    registry: String,
    kind: &'static str,
    priority: i32,
    /// The health's state.
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    outcome: &'static str,
    reason: &'static str,
    presence: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// How long ago the image was seen there.
    #[serde(skip_serializing_if = "Option::is_none")]
    proof_age_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DecisionExplanation {
    outcome: &'static str,
    reason: &'static str,
    explanation: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<String>,
    /// What a node would pull.
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

pub(super) async fn run(arguments: ExplainArguments) -> anyhow::Result<()> {
    let ExplainArguments {
        image,
        once,
        namespace,
        output,
    } = arguments;
    let once = Once::start(&once).await?;
    let images = [image];
    let explanation = once
        .decide(&images, &namespace, |snapshot, decisions| {
            let index = once.store.index();
            decisions
                .first()
                .map(|decision| explain(snapshot, &index, decision, &namespace, clock::now()))
        })
        .await?;
    let Some(explanation) = explanation else {
        anyhow::bail!("nothing was decided")
    };
    match output {
        ExplainOutput::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(&explanation)?)),
        ExplainOutput::Text => output::print(&text(&explanation)),
    }
}

fn explain(
    snapshot: &Snapshot,
    index: &Index,
    decision: &Decision<'_>,
    namespace: &str,
    now: Timestamp,
) -> Explanation {
    let reference = Reference::parse(decision.image);
    let mut key = String::new();
    if let Ok(reference) = &reference {
        reference.write_key(&mut key);
    }
    let name = |mirror: MirrorId| snapshot.routing.mirror(mirror).name.clone();
    let mirrors = decision.candidates.iter().map(|candidate| {
        let settings = snapshot.routing.mirror(candidate.mirror);
        let health = snapshot.health_of(candidate.mirror);
        let rules = Rules::of(settings, health.proven_since);
        let (presence, digest, seen_at) = match index.judge(&settings.name, &key, &rules, now) {
            Judgement::Proven(proof, at) => ("Present", Some(proof.digest.to_string()), Some(at)),
            Judgement::Absent(at) => ("Missing", None, Some(at)),
            Judgement::Unproven(_) => ("Unknown", None, None),
        };
        MirrorExplanation {
            name: settings.name.clone(),
            registry: settings.mapping.registry.to_string(),
            kind: settings.kind.as_str(),
            priority: settings.priority,
            health: health.state.as_str(),
            fault: health.fault.map(crate::domain::health::Fault::as_str),
            outcome: candidate.outcome.as_str(),
            reason: candidate.reason.as_str(),
            presence,
            digest,
            proof_age_seconds: seen_at.map(|at| now.since(at).as_secs_f64()),
        }
    });
    Explanation {
        image: decision.image.to_owned(),
        normalized: reference.as_ref().ok().map(ToString::to_string),
        invalid: reference.as_ref().err().map(ToString::to_string),
        namespace: namespace.to_owned(),
        mirrors: mirrors.collect(),
        decision: DecisionExplanation {
            outcome: decision.outcome.as_str(),
            reason: decision.reason.as_str(),
            explanation: decision.reason.explanation(),
            mirror: decision.mirror.map(name),
            image: decision
                .rewritten
                .clone()
                .unwrap_or_else(|| decision.image.to_owned()),
            digest: decision.digest.as_ref().map(ToString::to_string),
        },
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        image,
        normalized,
        invalid,
        namespace,
        mirrors,
        decision,
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
    line("namespace", namespace);
    if mirrors.is_empty() && decision.reason != Reason::InvalidReference.as_str() {
        line("mirrors", "none was asked");
    }
    for mirror in mirrors {
        line(
            "mirror",
            &format!(
                "{} ({}, {}, priority {})",
                mirror.name, mirror.registry, mirror.kind, mirror.priority
            ),
        );
        let fault = mirror.fault.map(|fault| format!(": {fault}")).unwrap_or_default();
        line("  health", &format!("{}{fault}", mirror.health));
        let mut presence = mirror.presence.to_owned();
        if let Some(digest) = &mirror.digest {
            presence = format!("{presence} as {digest}");
        }
        if let Some(age) = mirror.proof_age_seconds {
            presence = format!("{presence}, seen {age:.1} s ago");
        }
        line("  image", &presence);
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
    text
}
