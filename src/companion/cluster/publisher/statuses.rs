//! The statuses of ImageMirrors, and the Events that tell of changes of health.

use std::{collections::BTreeSet, time::Duration};

use kube::{
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use tokio::time::Instant;

use super::{Apis, PAUSE, Publisher};
use crate::{
    api::v1alpha1::ImageMirrorStatus,
    clock,
    cluster::{
        events::{Message, Subject},
        writer::NotWritten,
    },
    companion::cluster::{
        mirrors::{MirrorResource, status_of, version},
        status::{self, Seen},
    },
    domain::{health::State, mirror::Prefer, routing::MirrorId, snapshot::Snapshot},
    telemetry::chain,
};

/// The pause before a status that the API server refused is tried again.
const REFUSED: Duration = Duration::from_mins(1);

impl Publisher {
    /// Writes the next status that is not as it should be. Returns whether there was one.
    pub(super) async fn step_status(&mut self, apis: &Apis) -> Result<bool, NotWritten> {
        let Some(cluster) = self.cluster.borrow().clone() else {
            return Ok(false);
        };
        let snapshot = self.leader.store.snapshot();
        let by_name = snapshot.routing.by_name();
        let now = clock::now();
        let lacking = self.definitions.borrow().clone();
        for (name, resource) in &cluster.mirrors {
            if self
                .work
                .not_before
                .get(name)
                .is_some_and(|until| *until > Instant::now())
            {
                continue;
            }
            let (version, current) = self
                .work
                .ours
                .get(name)
                .map_or((resource.version, &resource.status), |(version, status)| {
                    (*version, status)
                });
            let report = self.leader.reports.of(name);
            let settled = !self.has_updates(name);
            let waiting = self.work.sweeps.get(name).copied().unwrap_or_default();
            let id = by_name.get(name.as_str()).copied();
            let seen = Seen {
                generation: resource.generation,
                faults: &resource.faults,
                health: id.map(|id| snapshot.health_of(id)),
                failing_upstreams: id.map(|id| failing_upstreams(&snapshot, id)).unwrap_or_default(),
                missing_secret: resource.missing_secret.as_deref(),
                credentials_accepted: report.credentials_accepted,
                nodes_can_pull: report.nodes_can_pull,
                sweeps: waiting.map(|end| end.filter(|_| settled).map(|end| (end, self.through))),
                platforms: &cluster.platforms,
                lacking: lacking.as_deref(),
            };
            let next = status::plan(current, &seen, now);
            if settled {
                self.work.sweeps.remove(name);
            }
            let answered = self.work.answered.get(name);
            if next == *current || answered.is_some_and(|(sent, stored)| *sent == next && stored == current) {
                continue;
            }
            let current = current.clone();
            let written = self.write_status(apis, name, version, (&current, &next)).await;
            if written.is_err() && settled {
                self.work.sweeps.insert(name.clone(), waiting);
            }
            match written {
                Ok(()) => {}
                Err(NotWritten::Refused(error)) => {
                    let error = chain(&error);
                    tracing::error!(mirror = name, error, "the API server refuses the status");
                    self.work
                        .not_before
                        .insert(name.clone(), Instant::now() + REFUSED);
                    continue;
                }
                Err(NotWritten::Conflict) => {
                    self.refresh(apis, name).await?;
                    return Ok(true);
                }
                // The watch will tell that it is gone.
                Err(NotWritten::Gone) => {
                    self.work.not_before.insert(name.clone(), Instant::now() + PAUSE);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.tell(name, resource, &current, &next).await?;
            return Ok(true);
        }
        Ok(false)
    }

    fn has_updates(&self, mirror: &str) -> bool {
        let first = (Box::from(mirror), Box::from(""));
        self.work
            .updates
            .range(first..)
            .next()
            .is_some_and(|(first, _)| &**first == mirror)
    }

    async fn write_status(
        &mut self,
        apis: &Apis,
        name: &str,
        version: u64,
        (current, next): (&ImageMirrorStatus, &ImageMirrorStatus),
    ) -> Result<(), NotWritten> {
        let patch = status::patch(current, next, version);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = apis.mirrors.patch_status(name, &parameters, &patch);
        let answer = self.leader.writer.write("ImageMirror", request).await?;
        let stored = self.took(name, &answer);
        self.work.answered.insert(name.to_owned(), (next.clone(), stored));
        Ok(())
    }

    /// Takes in a mirror as the API server has it, and returns its status.
    fn took(&mut self, name: &str, answer: &DynamicObject) -> ImageMirrorStatus {
        let status = status_of(answer);
        let version = version(answer.metadata.resource_version.as_deref());
        if let Some(health) = status::health(&status) {
            self.published.send_modify(|published| {
                published.insert(name.to_owned(), health);
            });
        }
        self.work.ours.insert(name.to_owned(), (version, status.clone()));
        status
    }

    /// Reads a mirror whose version is not the one expected.
    async fn refresh(&mut self, apis: &Apis, name: &str) -> Result<(), NotWritten> {
        let Some(object) = apis.mirrors.get_opt(name).await? else {
            return Ok(());
        };
        self.took(name, &object);
        Ok(())
    }

    /// Writes an Event if a mirror's health changed.
    async fn tell(
        &self,
        name: &str,
        resource: &MirrorResource,
        before: &ImageMirrorStatus,
        after: &ImageMirrorStatus,
    ) -> Result<(), NotWritten> {
        let state = |status: &ImageMirrorStatus| status::health(status).map(|health| health.state);
        let (before, Some(now)) = (state(before), state(after)) else {
            return Ok(());
        };
        if before.unwrap_or(State::Unknown) == now {
            return Ok(());
        }
        let reason = after.health.as_ref().map(|health| health.reason.clone());
        let from = before.unwrap_or(State::Unknown).as_str();
        let subject = Subject {
            name: name.to_owned(),
            uid: resource.uid.clone(),
        };
        let message = Message {
            action: "Probe",
            reason: now.as_str(),
            note: format!(
                "The mirror went from {from} to {}: {}",
                now.as_str(),
                reason.unwrap_or_default()
            ),
            is_warning: now == State::Unhealthy,
        };
        // The status says the same and is what counts.
        self.leader.events.tell(&subject, message).await
    }
}

/// Returns the upstreams that fail, of a mirror that is used only then.
fn failing_upstreams(snapshot: &Snapshot, mirror: MirrorId) -> Vec<String> {
    let settings = snapshot.routing.mirror(mirror);
    if settings.prefer == Prefer::Mirror {
        return Vec::new();
    }
    let fails = |host: &&str| snapshot.failing_upstreams.contains(*host);
    let failing: BTreeSet<&str> = settings.upstreams().filter(fails).collect();
    failing.into_iter().map(ToOwned::to_owned).collect()
}
