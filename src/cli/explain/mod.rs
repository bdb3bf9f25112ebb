//! `kagami explain`: the whole decision for one image.
//!
//! Against a cluster it tells three things apart: what the companion shares, what a webhook decides
//! by it, and what is seen from here.

mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    arguments::{ExplainArguments, ExplainOutput},
    oneshot::{self, Asked, Once},
    output,
};
use crate::{
    clock,
    domain::{
        decision::{Decision, Probing},
        health::{Fault, Health},
        image::{Class, ImageKey, KeyRef, Reference},
        mirror::{Mirror, Mode},
        presence::{Index, Judgement, Presence, Rules},
        reason::Outcome,
        routing::MirrorId,
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::replica::{Images, Replica},
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
    /// The namespace's mode.
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterExplanation>,
    mirrors: Vec<MirrorExplanation>,
    decision: DecisionExplanation,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterExplanation {
    /// How long ago the companion gave a sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_age_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MirrorExplanation {
    name: String,
    registry: String,
    kind: &'static str,
    priority: i32,
    mode: &'static str,
    /// The health's state, as it decides.
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    /// What else is known of the fault, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_cause: Option<Box<str>>,
    outcome: &'static str,
    reason: &'static str,
    /// Another mirror, whose private source keeps the image from the namespace, where that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_by: Option<String>,
    /// What it answered, where that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(flatten)]
    sight: Sight,
    /// What the tag means upstream, where that is known to be another image.
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<Moved>,
    /// Why the image was not copied there, where that was tried in vain.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_copied: Option<NotCopied>,
    /// What the companion shares of the mirror.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<SharedExplanation>,
    /// What was seen of the mirror by this command itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_here: Option<FromHere>,
}

/// That a tag means another image upstream.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Moved {
    /// The digest there.
    upstream: String,
    /// What `tags.drift` says of it.
    drift: &'static str,
}

/// What is known of the image on a mirror.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sight {
    presence: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// The platforms that it is there for; of an image that is no index, the operating system.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    platforms: Vec<&'static str>,
    /// How long ago that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    proof_age_seconds: Option<f64>,
    /// What was seen there, if it proves nothing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    void: Option<String>,
}

/// Why the mirror was not brought an image that it lacks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NotCopied {
    reason: &'static str,
    explanation: &'static str,
    /// What to change.
    advice: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SharedExplanation {
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    /// What else is known of the fault, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_cause: Option<Box<str>>,
    /// Older proofs are void.
    proven_since: String,
    /// Too old to be believed.
    stale: bool,
    /// How long ago the last complete sweep over images of this class began.
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep_age_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FromHere {
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    /// What else is known of the fault, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_cause: Option<Box<str>>,
    /// Why it is proven, or not.
    reason: &'static str,
    /// What the mirror answered, where that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(flatten)]
    sight: Sight,
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
    /// What it would pull if the mode allowed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_be: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

pub(super) async fn run(arguments: ExplainArguments) -> anyhow::Result<()> {
    let ExplainArguments {
        image,
        once: settings,
        namespace,
        output,
    } = arguments;
    let images = [image];
    let asked = Asked {
        images: Images::These(images.to_vec()),
        namespace,
        probing: Probing::Hosted,
        heal: true,
    };
    let mut once = Once::start(&settings, asked).await?;
    let notes = std::mem::take(&mut once.notes);
    let mode = once.mode_of(&once.namespace);
    // Without it nothing would be said of the mirrors; that nobody asks is said apart.
    let deciding = if mode == Mode::Off { Mode::Audit } else { mode };
    // What is shared, before this command's own looks become the latest word.
    let shared = once
        .cluster
        .as_ref()
        .map(|cluster| shared(cluster, &once, &images[0], clock::now()));
    let (explanation, here) = tokio::join!(explained(&once, &images, deciding), async {
        let here = once.own_eyes(&settings).await?;
        explained(&here, &images, Mode::Enforce).await
    });
    let Some(mut explanation) = explanation else {
        anyhow::bail!("nothing was decided")
    };
    explanation.mode = mode.as_label();
    explanation.notes.extend(notes);
    if let Some(cluster) = &once.cluster {
        let age = cluster.heartbeat_age();
        explanation.cluster = Some(ClusterExplanation {
            heartbeat_age_seconds: age.map(|age| age.as_secs_f64()),
        });
    }
    let mut seen: BTreeMap<_, _> = here
        .into_iter()
        .flat_map(|here| here.mirrors)
        .map(|mirror| (mirror.name.clone(), mirror))
        .collect();
    let mut shared = shared.unwrap_or_default();
    for mirror in &mut explanation.mirrors {
        if let Some((told, sight)) = shared.remove(&mirror.name) {
            mirror.shared = Some(told);
            mirror.sight = sight;
        }
        mirror.from_here = seen.remove(&mirror.name).map(|seen| FromHere {
            health: seen.health,
            fault: seen.fault,
            fault_cause: seen.fault_cause,
            reason: seen.reason,
            cause: seen.cause,
            sight: seen.sight,
        });
    }
    if mode == Mode::Off {
        let why = "Kagami is not asked about Pods of this namespace: label it kagami.dev/mode=enforce, or warn, or audit";
        explanation.notes.push(why.to_owned());
    }
    match output {
        ExplainOutput::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(&explanation)?)),
        ExplainOutput::Text => output::print(&text::of(&explanation)),
    }
}

async fn explained(once: &Once, images: &[String; 1], mode: Mode) -> Option<Explanation> {
    once.decide(images, mode, |snapshot, decisions| {
        let index = once.store.index();
        let explain = |decision| explain(snapshot, &index, decision, &once.namespace, clock::now());
        decisions.first().map(explain)
    })
    .await
}

/// Returns what is shared of every mirror that may serve an image, and of the image there.
fn shared(
    cluster: &Replica,
    once: &Once,
    image: &str,
    now: Timestamp,
) -> BTreeMap<String, (SharedExplanation, Sight)> {
    let snapshot = once.store.snapshot();
    let index = once.store.index();
    let Some(key) = key(image) else {
        return BTreeMap::new();
    };
    let told = snapshot.routing.mirrors().filter_map(|(id, settings)| {
        let shared = cluster.shared(&settings.name)?;
        let swept = match key.by_ref().class() {
            Class::Tag => shared.tags,
            Class::Digest => shared.digests,
        };
        let explanation = SharedExplanation {
            health: shared.health.state.as_str(),
            fault: shared.health.fault.map(Fault::as_str),
            fault_cause: shared.health.cause.as_deref().map(Into::into),
            proven_since: shared.health.proven_since.to_string(),
            stale: snapshot.is_stale(id),
            sweep_age_seconds: swept.map(|swept| now.since(swept.started_at).as_secs_f64()),
        };
        let sight = sight(&index, settings, &shared.health, key.by_ref(), now);
        Some((settings.name.clone(), (explanation, sight)))
    });
    told.collect()
}

/// Returns an image's key in the index; none if it is no reference.
fn key(image: &str) -> Option<ImageKey> {
    Reference::parse(image).ok().map(|reference| reference.key())
}

fn sight(index: &Index, settings: &Mirror, health: &Health, key: KeyRef<'_>, now: Timestamp) -> Sight {
    let rules = Rules::of(settings, health.proven_since);
    let seconds = |at| Some(now.since(at).as_secs_f64());
    let sight = |presence, digest, at: Option<Timestamp>| Sight {
        presence,
        digest,
        platforms: Vec::new(),
        proof_age_seconds: at.and_then(seconds),
        void: None,
    };
    match index.judge(&settings.name, key, &rules, now) {
        Judgement::Proven(proof, at) => Sight {
            platforms: proof.there_for(),
            ..sight("Present", Some(proof.digest.to_string()), Some(at))
        },
        Judgement::Absent(at) => sight("Missing", None, Some(at)),
        Judgement::Unproven(_) => {
            let presence = index.get(&settings.name, key).map(|entry| &entry.presence);
            let word = match presence {
                Some(Presence::Present(_)) => "Present",
                Some(Presence::Missing) => "Missing",
                Some(Presence::Unknown(_)) | None => return sight("Unknown", None, None),
            };
            let at = index.verified_at(&settings.name, key).unwrap_or_default();
            let why = if at < health.proven_since {
                "before the mirror's last outage"
            } else {
                "too long ago"
            };
            let age = now.since(at).as_secs_f64();
            Sight {
                void: Some(format!("{word} {age:.0} s ago, {why}")),
                ..sight("Unknown", None, None)
            }
        }
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
    let key = key(decision.image);
    let name = |mirror: MirrorId| snapshot.routing.mirror(mirror).name.clone();
    // What is no reference has no candidates either.
    let candidates = key.iter().flat_map(|key| {
        let candidates = decision.candidates.iter();
        candidates.map(move |candidate| (key.by_ref(), candidate))
    });
    let mirrors = candidates.map(|(key, candidate)| {
        let settings = snapshot.routing.mirror(candidate.mirror);
        let health = snapshot.health_of(candidate.mirror);
        MirrorExplanation {
            name: settings.name.clone(),
            registry: settings.mapping.registry.to_string(),
            kind: settings.kind.as_str(),
            priority: settings.priority,
            mode: settings.mode.as_label(),
            health: health.state.as_str(),
            fault: health.fault.map(Fault::as_str),
            fault_cause: health.cause.as_deref().map(Into::into),
            outcome: candidate.outcome.as_str(),
            reason: candidate.reason.as_str(),
            closed_by: candidate
                .closed_by
                .map(|keeper| snapshot.routing.keeper(keeper).to_owned()),
            cause: decision
                .cause
                .as_deref()
                .filter(|_| decision.mirror == Some(candidate.mirror))
                .map(ToOwned::to_owned),
            sight: sight(index, settings, health, key, now),
            moved: index.moved(&settings.name, key).map(|upstream| Moved {
                upstream: upstream.to_string(),
                drift: settings.tags.drift.as_str(),
            }),
            not_copied: index.not_copied(&settings.name, key).map(|reason| NotCopied {
                reason: reason.as_str(),
                explanation: reason.explanation(),
                advice: reason.advice(),
            }),
            shared: None,
            from_here: None,
        }
    });
    let rewritten = decision.rewritten.clone();
    let (image, would_be) = match decision.outcome {
        Outcome::Rewritten => (rewritten, None),
        Outcome::WouldRewrite | Outcome::Kept => (None, rewritten),
    };
    Explanation {
        image: decision.image.to_owned(),
        normalized: reference.as_ref().ok().map(Reference::pulled),
        invalid: oneshot::wrong_with(decision.image),
        namespace: namespace.to_owned(),
        mode: Mode::Enforce.as_label(),
        cluster: None,
        mirrors: mirrors.collect(),
        decision: DecisionExplanation {
            outcome: decision.outcome.as_str(),
            reason: decision.reason.as_str(),
            explanation: decision.reason.explanation(),
            mirror: decision.mirror.map(name),
            image: image.unwrap_or_else(|| decision.image.to_owned()),
            would_be,
            digest: decision.digest.as_ref().map(ToString::to_string),
        },
        notes: Vec::new(),
    }
}
