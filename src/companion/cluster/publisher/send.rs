//! Sends what is planned, one request for each write, and tells what became of it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::DynamicObject,
};
use serde::Deserialize as _;
use tokio::time::Instant;

use super::{
    images::{Action, Found, Key, Outcome},
    queues::ImageWrite,
    statuses::{StatusOutcome, StatusWrite},
};
use crate::{
    api::v1alpha1::{ImageMirror, ImageMirrorStatus, MirroredImage},
    cluster::{
        events::{Events, Message},
        objects::Object,
        request::bounded,
        sources,
        watch::{self, version},
        writer::{NotWritten, Writer},
    },
    companion::cluster::{leader::Leader, status},
    domain::{health::State, presence::Version},
    telemetry::{Throttle, chain},
};

/// How many lines a second tell of what was not written, for each kind of failure: each write is tried again
/// for ever, and there may be many.
const LOGGED: u32 = 1;

/// A kind of failure that is logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    Refused,
    NotWritten,
    NotRead,
    /// A status was not written.
    Status,
}

/// What became of a write.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) what: What,
    /// Whether this process may write still.
    pub(super) may_write: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Image {
        mirror: Arc<str>,
        key: Key,
        outcome: Outcome,
        /// How long the API server took.
        took: Duration,
    },
    Status {
        mirror: String,
        write: Box<StatusWrite>,
        outcome: StatusOutcome,
    },
    Event,
}

/// Sends. Clones share the rate, of writes and of what is logged.
#[derive(Clone)]
pub(super) struct Sender {
    client: Client,
    images: Api<MirroredImage>,
    /// The same, read in no way: what is deleted may say what this program does not know.
    unread: Api<DynamicObject>,
    mirrors: Api<DynamicObject>,
    writer: Writer,
    events: Events,
    throttle: Arc<Throttle<Fault>>,
}

impl Sender {
    pub(super) fn new(leader: &Leader) -> Self {
        let client = &leader.client;
        let erased = ApiResource::erase::<MirroredImage>(&());
        Self {
            client: client.clone(),
            images: Api::all(client.clone()),
            unread: Api::all_with(client.clone(), &erased),
            mirrors: Api::all_with(client.clone(), &ApiResource::erase::<ImageMirror>(&())),
            writer: leader.writer.clone(),
            events: leader.events.clone(),
            throttle: Arc::new(Throttle::new(LOGGED)),
        }
    }

    /// Sends a write of an image. Its turn has come: how many a second there are is the caller's affair.
    pub(super) async fn image(self, write: ImageWrite) -> Sent {
        let ImageWrite { mirror, key, action } = write;
        let name = MirroredImage::object_name(&mirror, &key);
        let begun = Instant::now();
        let result = self.act(&name, action).await;
        let took = begun.elapsed();
        let mut may_write = true;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(NotWritten::Conflict | NotWritten::Gone) => self.look(&name, &mirror, &key).await,
            Err(NotWritten::Refused(error)) => {
                self.log(Fault::Refused, &mirror, Some(&key), &error);
                Outcome::Refused
            }
            Err(error) => {
                may_write = !matches!(error, NotWritten::NotLeading);
                self.log(Fault::NotWritten, &mirror, Some(&key), &error);
                Outcome::Failed
            }
        };
        let what = What::Image {
            mirror,
            key,
            outcome,
            took,
        };
        Sent { what, may_write }
    }

    async fn act(&self, name: &str, action: Action) -> Result<Outcome, NotWritten> {
        let parameters = PostParams::default();
        let (spec, answer) = match action {
            Action::Create(spec) => {
                let object = MirroredImage::new(name, (*spec).clone());
                let request = self.images.create(&parameters, &object);
                (spec, self.writer.write_at_once("MirroredImage", request).await?)
            }
            Action::Replace(spec, version) => {
                let mut object = MirroredImage::new(name, (*spec).clone());
                object.metadata.resource_version = Some(version.0.to_string());
                let request = self.images.replace(name, &parameters, &object);
                (spec, self.writer.write_at_once("MirroredImage", request).await?)
            }
            Action::Delete(version) => {
                let parameters = DeleteParams {
                    preconditions: Some(Preconditions {
                        resource_version: Some(version.0.to_string()),
                        uid: None,
                    }),
                    ..DeleteParams::default()
                };
                let request = self.unread.delete(name, &parameters);
                self.writer.write_at_once("MirroredImage", request).await?;
                return Ok(Outcome::Deleted);
            }
        };
        let version = answer.metadata.resource_version.as_deref().and_then(version);
        Ok(Outcome::Wrote(spec, version.unwrap_or(Version::NEVER_SWEPT)))
    }

    /// Returns what is there instead of what was expected.
    async fn look(&self, name: &str, mirror: &str, key: &str) -> Outcome {
        match watch::get::<Object>(&self.client, &sources::images(), name).await {
            Ok(None) => Outcome::Changed(None),
            Ok(Some(object)) => match Found::of(&object) {
                Some(found) if found.mirror == mirror && found.key == key => {
                    Outcome::Changed(Some(Box::new(found)))
                }
                _ => Outcome::Taken(version(&object.metadata.resource_version).unwrap_or_default()),
            },
            Err(error) => {
                self.log(Fault::NotRead, mirror, Some(key), &error);
                Outcome::Failed
            }
        }
    }

    fn log(&self, fault: Fault, mirror: &str, image: Option<&str>, error: &dyn std::error::Error) {
        let what = match fault {
            Fault::Refused => "the API server refuses a MirroredImage",
            Fault::NotWritten => "cannot write a MirroredImage",
            Fault::NotRead => "cannot read a MirroredImage",
            Fault::Status => "cannot write a status",
        };
        if let Some(suppressed) = self.throttle.admit(fault, std::time::Instant::now()) {
            tracing::warn!(mirror, image, error = chain(error), suppressed, "{what}");
        }
    }

    /// Sends a status.
    pub(super) async fn status(self, mirror: String, write: StatusWrite) -> Sent {
        let patch = status::patch(&write.current, &write.next, write.version);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = self.mirrors.patch_status(&mirror, &parameters, &patch);
        let mut may_write = true;
        let outcome = match self.writer.write("ImageMirror", request).await {
            Ok(answer) => {
                let (status, version) = read(&answer);
                StatusOutcome::Stored(status, version)
            }
            Err(NotWritten::Conflict) => match bounded(self.mirrors.get_opt(&mirror)).await {
                Ok(Some(object)) => {
                    let (status, version) = read(&object);
                    StatusOutcome::Changed(status, version)
                }
                _ => StatusOutcome::Failed,
            },
            // The watch will tell that it is gone.
            Err(NotWritten::Gone) => StatusOutcome::Failed,
            Err(NotWritten::Refused(error)) => {
                let error = chain(&error);
                tracing::error!(mirror, error, "the API server refuses the status");
                StatusOutcome::Refused
            }
            Err(error) => {
                may_write = !matches!(error, NotWritten::NotLeading);
                self.log(Fault::Status, &mirror, None, &error);
                StatusOutcome::Failed
            }
        };
        let write = Box::new(write);
        let what = What::Status {
            mirror,
            write,
            outcome,
        };
        Sent { what, may_write }
    }

    /// Sends an Event about a mirror.
    pub(super) async fn event(self, name: String, uid: String, message: Message) -> Sent {
        let told = {
            let mirror = ObjectReference {
                api_version: Some("kagami.dev/v1alpha1".to_owned()),
                kind: Some("ImageMirror".to_owned()),
                name: Some(name),
                uid: Some(uid),
                ..ObjectReference::default()
            };
            self.events.tell(mirror, message).await
        };
        Sent {
            what: What::Event,
            may_write: told.is_ok(),
        }
    }
}

/// Returns what the API server made of a status that was sent, and the object's version.
fn read(object: &DynamicObject) -> (Box<ImageMirrorStatus>, u64) {
    let status = ImageMirrorStatus::deserialize(&object.data["status"]).unwrap_or_default();
    let version = object.metadata.resource_version.as_deref().and_then(version);
    (Box::new(status), version.unwrap_or_default().0)
}

/// Returns what to tell people of the change from one status to the next; nothing if the health is the same.
pub(super) fn message(before: &ImageMirrorStatus, after: &ImageMirrorStatus) -> Option<Message> {
    let state = |status| status::health(status).map(|health| health.state);
    let (before, now) = (state(before).unwrap_or(State::Unknown), state(after)?);
    if before == now {
        return None;
    }
    let reason = after.health.as_ref().map(|health| health.reason.as_str());
    Some(Message {
        action: "Probe",
        reason: now.as_str(),
        note: format!(
            "The mirror went from {} to {}: {}",
            before.as_str(),
            now.as_str(),
            reason.unwrap_or_default()
        ),
        is_warning: now == State::Unhealthy,
    })
}
