//! `kagami report`: what every running Pod uses, what it would use if it were created now, and which are stuck.
//!
//! By the shared state alone: no mirror is asked anything. Pods are read a page at a time, and of
//! each only what is told is kept.

mod owners;
mod refusals;
mod stuck;
mod table;

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::Instant;

use self::{
    owners::OwnerLeftAlone,
    refusals::{Refusal, Refusals},
    stuck::Stuck,
};
use super::{
    arguments::{ReportArguments, ReportOutput},
    oneshot::{self, Read},
    output,
    passed_on::{self, PassedOn},
    pods,
};
use crate::{
    clock,
    domain::{
        decision::{Decision, Operation, Request},
        mirror::Mode,
        original::restore,
        pod::Pod,
        reason::Reason,
        routing::{MirrorId, Routing},
        usage::{self, Summary},
    },
    state::replica::{Images, Namespaces, Scope},
    telemetry::chain,
};

/// How many mirrors a note names, and how many refusals have a note.
const SHOWN: usize = 5;

/// The answer as a program reads it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    namespaces: Vec<NamespaceReport>,
    total: Counts,
    pods: Vec<PodReport>,
    /// Containers that wait because their image cannot be pulled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stuck: Vec<Stuck>,
    /// Owners whose Pods are left alone because they kept recreating rewritten ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    owners_left_alone: Vec<OwnerLeftAlone>,
    /// Makers of Pods whose Pods a policy refuses, in namespaces where images are rewritten.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refusals: Vec<Refusal>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceReport {
    namespace: String,
    /// What the API server asks Kagami about its Pods, if anything.
    mode: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    pods: usize,
    images: usize,
    on_mirror: usize,
    would_use_mirror: usize,
    /// Reason → how many images would not.
    kept: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodReport {
    namespace: String,
    pod: String,
    /// The weaker of the namespace's mode and the Pod's own.
    mode: &'static str,
    images: Vec<ImageReport>,
    /// Images whose names it also gives to its programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_on: Vec<PassedOn>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageReport {
    place: String,
    /// As the user wrote it.
    image: String,
    /// As it stands in the Pod, where that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<String>,
    /// The mirror that the Pod's image names.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_mirror: Option<String>,
    outcome: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<String>,
    /// What a Pod created now would have, or would have if the mode allowed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_be: Option<String>,
    /// What is wrong with an image that is no reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
    /// The whole Pod is none of Kagami's business.
    #[serde(skip)]
    left_alone: bool,
}

pub(super) async fn run(arguments: ReportArguments) -> anyhow::Result<()> {
    let ReportArguments {
        namespace,
        output,
        left_alone,
        cluster,
    } = arguments;
    let scope = |_| Scope {
        images: Images::All,
        namespaces: namespace.clone().map_or(Namespaces::All, Namespaces::One),
    };
    let read = oneshot::read_cluster(&cluster, &left_alone, scope).await?;
    let default_mode = Mode::from(cluster.default_mode.default_mode);
    let report = Reporter { read, default_mode }
        .report(namespace.as_deref())
        .await?;
    match output {
        ReportOutput::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
        ReportOutput::Table => {
            for note in &report.notes {
                output::complain(note);
            }
            output::print(&table::of(&report, namespace.is_some()))
        }
    }
}

struct Reporter {
    read: Read,
    default_mode: Mode,
}

impl Reporter {
    async fn report(mut self, namespace: Option<&str>) -> anyhow::Result<Report> {
        let mut report = Report {
            notes: std::mem::take(&mut self.read.notes),
            ..Report::default()
        };
        let snapshot = self.read.store.snapshot();
        report.owners_left_alone = owners::of(&snapshot, namespace, clock::now());
        let stale: Vec<&str> = snapshot
            .routing
            .mirrors()
            .filter(|(id, _)| snapshot.is_stale(*id))
            .map(|(_, mirror)| mirror.name.as_str())
            .collect();
        if !stale.is_empty() {
            let age = self.read.cluster.heartbeat_age();
            let (shown, rest) = stale.split_at(stale.len().min(SHOWN));
            let more = match rest.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            report.notes.push(format!(
                "{}: what it knows of {}{more} is too old to be believed. Webhooks look at hosted mirrors themselves \
                 then, which is not done here; kagami explain does it for one image",
                oneshot::sign_of_life(age.map(|age| age.as_secs_f64())),
                shown.join(", ")
            ));
        }
        let mut summaries: BTreeMap<String, Summary> = BTreeMap::new();
        let mut unreadable = 0_usize;
        let started = Instant::now();
        let mut pages = pods::RunningPods::new(&self.read.client, namespace);
        while let Some(page) = pages.next().await? {
            for item in page.pods()? {
                let index = self.read.store.index();
                report.stuck.append(&mut stuck::of(item.text, &snapshot, &index));
                drop(index);
                match item.pod() {
                    Some(pod) => {
                        let summary = summaries.entry(item.namespace.to_owned()).or_default();
                        report.pods.push(self.pod(&item, pod, summary));
                    }
                    None => unreadable += 1,
                }
            }
        }
        tracing::debug!(took = ?started.elapsed(), pods = report.pods.len(), "read all Pods");
        if unreadable > 0 {
            report
                .notes
                .push(format!("{unreadable} Pods cannot be read and are left out"));
        }
        report
            .pods
            .sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        report
            .stuck
            .sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        let mut total = Summary::default();
        let left_alone = &self.read.store.snapshot().left_alone;
        for (namespace, summary) in summaries {
            total.add(&summary);
            report.namespaces.push(NamespaceReport {
                mode: if left_alone.contains(&namespace) {
                    Mode::Off.as_label()
                } else {
                    self.mode_of(&namespace).as_label()
                },
                counts: Counts::of(&summary),
                namespace,
            });
        }
        report.total = Counts::of(&total);
        self.refusals(namespace, &mut report).await;
        Ok(report)
    }

    /// Adds what policies refuse where images are rewritten. Who may not read Events is told so.
    async fn refusals(&self, namespace: Option<&str>, report: &mut Report) {
        let snapshot = self.read.store.snapshot();
        let is_served = |namespace: &str| {
            !snapshot.left_alone.contains(namespace) && self.mode_of(namespace) == Mode::Enforce
        };
        let read = refusals::read(&self.read.client, namespace, &snapshot.routing, is_served).await;
        let Refusals { found, incomplete } = match read {
            Ok(refusals) => refusals,
            Err(error) => {
                report.notes.push(format!(
                    "{}: whether a policy refuses Pods is not known",
                    chain(&*error)
                ));
                return;
            }
        };
        report.notes.extend(found.iter().take(SHOWN).map(Refusal::note));
        if let Some(more @ 1..) = found.len().checked_sub(SHOWN) {
            report.notes.push(format!(
                "policies refuse the Pods of {more} more (--output json lists them)"
            ));
        }
        if incomplete {
            report.notes.push(
                "there are more Events of Pods that could not be created than are read; policies may refuse others"
                    .to_owned(),
            );
        }
        report.refusals = found;
    }

    fn mode_of(&self, namespace: &str) -> Mode {
        let snapshot = self.read.store.snapshot();
        snapshot.mode_of(namespace, self.default_mode)
    }

    fn pod(&self, item: &pods::Item<'_>, mut pod: Pod<'_>, summary: &mut Summary) -> PodReport {
        let namespace = item.namespace;
        let snapshot = self.read.store.snapshot();
        let now: Vec<String> = pod.places.iter().map(|place| place.image.to_string()).collect();
        let on = restore(&mut pod, &snapshot.routing);
        // As for a new one.
        snapshot.lent.lend(namespace, &mut pod);
        let request = Request {
            namespace,
            mode: self.mode_of(namespace),
            operation: Operation::Create,
            heal: true,
            pod,
        };
        let decisions = usage::decide_known(&snapshot, &self.read.store.index(), &request, clock::now());
        summary.add_pod(&on, &decisions);
        let asked = decisions.iter().filter(|decision| !decision.left_alone);
        let mut written = asked.map(|decision| decision.image).peekable();
        let passed_on = if written.peek().is_some() {
            passed_on::of(item.text, written, &snapshot.routing)
        } else {
            Vec::new()
        };
        let images = decisions.iter().zip(now).zip(on);
        PodReport {
            namespace: namespace.to_owned(),
            pod: request.pod.name.to_string(),
            mode: request.pod.weaken(request.mode).as_label(),
            images: images
                .map(|((decision, now), on)| image(&snapshot.routing, decision, now, on))
                .collect(),
            passed_on,
        }
    }
}

fn image(routing: &Routing, decision: &Decision<'_>, now: String, on: Option<MirrorId>) -> ImageReport {
    let name = |mirror: MirrorId| routing.mirror(mirror).name.clone();
    ImageReport {
        place: decision.label().to_string(),
        image: decision.image.to_owned(),
        now: (now != decision.image).then_some(now),
        on_mirror: on.map(name),
        outcome: decision.outcome.as_str(),
        reason: decision.reason.as_str(),
        mirror: decision.mirror.map(name),
        would_be: decision.rewritten.clone(),
        wrong: oneshot::wrong_with(decision.image).filter(|_| decision.reason == Reason::InvalidReference),
        left_alone: decision.left_alone,
    }
}

impl Counts {
    fn of(summary: &Summary) -> Self {
        let Summary {
            pods,
            images,
            on_mirror,
            to_mirror,
            kept,
        } = summary;
        Self {
            pods: *pods,
            images: *images,
            on_mirror: *on_mirror,
            would_use_mirror: *to_mirror,
            kept: kept
                .iter()
                .map(|(reason, count)| (reason.as_str(), *count))
                .collect(),
        }
    }
}
