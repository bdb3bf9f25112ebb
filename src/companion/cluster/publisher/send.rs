//! Sends what is planned, one request for each write, and tells what became of it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::DynamicObject,
};
use tokio::time::Instant;

use super::{
    images::{Action, Outcome},
    queues::ImageWrite,
    statuses::{StatusOutcome, StatusWrite},
};
use crate::{
    api::v1alpha1::{ImageMirror, ImageMirrorStatus, MirroredImage},
    cluster::{
        events::{Events, Message},
        objects::{self, Object, Reader},
        request::bounded,
        sources,
        watch::{self, version},
        writer::{NotWritten, Writer},
    },
    companion::cluster::{
        leader::Leader,
        status::{self, ConditionType},
    },
    domain::{
        health::State,
        image::{ImageKey, KeyRef},
        presence::Version,
    },
    telemetry::{Throttle, chain},
};

/// Nothing can be created.
#[derive(Debug, thiserror::Error)]
#[error("the definition of MirroredImages is not installed")]
pub(super) struct NotInstalled;

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
        key: ImageKey,
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
    reader: Arc<Reader>,
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
            reader: Arc::default(),
            throttle: Arc::new(Throttle::each_minute()),
        }
    }

    /// Sends a write of an image. Its turn has come: how many a second there are is the caller's affair.
    pub(super) async fn image(self, write: ImageWrite) -> Sent {
        let ImageWrite { mirror, key, action } = write;
        let name = MirroredImage::object_name(&mirror, key.as_str());
        let begun = Instant::now();
        let creates = matches!(action, Action::Create(_));
        let result = self.act(&name, action).await;
        let took = begun.elapsed();
        let mut may_write = true;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(NotWritten::Gone) if creates => {
                self.log(Fault::NotWritten, &mirror, Some(key.by_ref()), &NotInstalled);
                Outcome::NotInstalled
            }
            Err(NotWritten::Conflict | NotWritten::Gone) => self.look(&name, &mirror, key.by_ref()).await,
            Err(NotWritten::Refused(error)) => {
                self.log(Fault::Refused, &mirror, Some(key.by_ref()), &error);
                Outcome::Refused(chain(&error))
            }
            Err(error) => {
                may_write = !matches!(error, NotWritten::NotLeading);
                self.log(Fault::NotWritten, &mirror, Some(key.by_ref()), &error);
                Outcome::Failed(chain(&error))
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
                let object = MirroredImage::to_write(name, (*spec).clone(), None);
                let request = self.images.create(&parameters, &object);
                (spec, self.writer.write_at_once("MirroredImage", request).await?)
            }
            Action::Replace(spec, version) => {
                let object = MirroredImage::to_write(name, (*spec).clone(), Some(version.0.to_string()));
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
                let answer = self.writer.write_at_once("MirroredImage", request).await?;
                return Ok(deletion(answer.left()));
            }
        };
        let version = answer.metadata.resource_version.as_deref().and_then(version);
        Ok(Outcome::Wrote(spec, version.unwrap_or(Version::NEVER_SWEPT)))
    }

    /// Returns what is there instead of what was expected.
    async fn look(&self, name: &str, mirror: &str, key: KeyRef<'_>) -> Outcome {
        match watch::get::<Object>(&self.client, &sources::images(), name).await {
            Ok(None) => Outcome::Changed(None),
            Ok(Some(object)) => match objects::entry(&object) {
                Some(found) if found.mirror == mirror && found.key.by_ref() == key => {
                    Outcome::Changed(Some(Box::new(found)))
                }
                _ => Outcome::Taken(version(&object.metadata.resource_version).unwrap_or_default()),
            },
            Err(error) => {
                self.log(Fault::NotRead, mirror, Some(key), &error);
                Outcome::Failed(chain(&error))
            }
        }
    }

    fn log(
        &self,
        fault: Fault,
        mirror: &str,
        image: Option<KeyRef<'_>>,
        error: &(dyn std::error::Error + 'static),
    ) {
        let what = match fault {
            Fault::Refused => "the API server refuses a MirroredImage",
            Fault::NotWritten => "cannot write a MirroredImage",
            Fault::NotRead => "cannot read a MirroredImage",
            Fault::Status => "cannot write a status",
        };
        let image = image.map(KeyRef::as_str);
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
                let (status, version) = read(&self.reader, &answer);
                StatusOutcome::Stored(status, version)
            }
            Err(NotWritten::Conflict) => match bounded(self.mirrors.get_opt(&mirror)).await {
                Ok(Some(object)) => {
                    let (status, version) = read(&self.reader, &object);
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

/// Returns what came of a deletion, given what is left of the object if something is.
fn deletion(left: Option<DynamicObject>) -> Outcome {
    let finalizers = left
        .and_then(|object| object.metadata.finalizers)
        .unwrap_or_default();
    if finalizers.is_empty() {
        Outcome::Deleted
    } else {
        Outcome::Refused(format!(
            "it is deleted, but held by finalizers: {}",
            finalizers.join(", ")
        ))
    }
}

/// Returns what the API server made of a status that was sent, and the object's version.
fn read(reader: &Reader, object: &DynamicObject) -> (Box<ImageMirrorStatus>, u64) {
    let status = reader.status(&object.data["status"]);
    let version = object.metadata.resource_version.as_deref().and_then(version);
    (Box::new(status), version.unwrap_or_default().0)
}

/// What was done where an Event tells of health.
pub(super) const PROBE: &str = "Probe";

/// Returns what to tell people of the change from one status to the next.
pub(super) fn messages(
    before: &ImageMirrorStatus,
    after: &ImageMirrorStatus,
) -> impl Iterator<Item = Message> + use<> {
    let of = |type_| {
        let condition = |status| status::condition_of(status, type_);
        Some((condition(before), condition(after)?))
    };
    let credentials = of(ConditionType::CredentialsValid)
        .filter(|(before, now)| is_news(*before, now) || is_otherwise(*before, now))
        .map(|(_, now)| of_condition("Authenticate", ["CredentialsInvalid", "CredentialsValid"], now));
    // How many they are differs from sweep to sweep.
    let images = of(ConditionType::ImagesReadable)
        .filter(|(before, now)| is_news(*before, now))
        .map(|(_, now)| of_condition("Sweep", ["ImagesNotReadable", "ImagesReadable"], now));
    let writable = of(ConditionType::Writable)
        .filter(|(before, now)| now.status != "Unknown" && is_news(*before, now))
        .map(|(_, now)| of_condition("Copy", ["NotWritable", "Writable"], now));
    [of_health(before, after), credentials, images, writable]
        .into_iter()
        .flatten()
}

/// Whether a condition holds no more, or again; that it holds at first is no news.
fn is_news(before: Option<&Condition>, now: &Condition) -> bool {
    before.map_or("True", |before| before.status.as_str()) != now.status
}

/// Whether a condition that does not hold is explained otherwise now.
fn is_otherwise(before: Option<&Condition>, now: &Condition) -> bool {
    now.status == "False" && before.is_none_or(|before| before.message != now.message)
}

fn of_condition(action: &'static str, [bad, good]: [&'static str; 2], now: &Condition) -> Message {
    let is_warning = now.status == "False";
    Message {
        action,
        reason: if is_warning { bad } else { good },
        note: format!("{}: {}", now.reason, now.message),
        is_warning,
    }
}

/// Returns what to tell of the health; nothing if it is the same, for the same cause.
fn of_health(before: &ImageMirrorStatus, after: &ImageMirrorStatus) -> Option<Message> {
    let (before, now) = (status::health(before), status::health(after)?);
    let (state, cause) = before.map_or((State::Unknown, None), |before| (before.state, before.cause));
    if state == now.state && cause == now.cause {
        return None;
    }
    let change = if state == now.state {
        format!("The mirror is {} still", now.state.as_str())
    } else {
        format!(
            "The mirror went from {} to {}",
            state.as_str(),
            now.state.as_str()
        )
    };
    let reason = after.health.as_ref().map(|health| health.reason.as_str());
    let reason = reason.unwrap_or_default();
    Some(Message {
        action: PROBE,
        reason: now.state.as_str(),
        note: match now.cause {
            Some(cause) => format!("{change}: {reason}: {cause}"),
            None => format!("{change}: {reason}"),
        },
        is_warning: now.state == State::Unhealthy,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_changed_is_told_with_its_cause_and_nothing_else_is() {
        let status = |health: [&str; 3], credentials: [&str; 2]| {
            let [state, reason, message] = health;
            let condition = |type_: &str, [status, message]: [&str; 2]| {
                json!({"type": type_, "status": status, "reason": "R", "message": message,
                       "lastTransitionTime": "2026-01-01T00:00:00Z"})
            };
            let mut health =
                json!({"state": state, "reason": reason, "provenSince": "2026-01-01T00:00:00.000000Z"});
            if !message.is_empty() {
                health["message"] = message.into();
            }
            let status =
                json!({"health": health, "conditions": [condition("CredentialsValid", credentials)]});
            serde_json::from_value::<ImageMirrorStatus>(status).unwrap()
        };
        let told = |before: &ImageMirrorStatus, after: &ImageMirrorStatus| {
            let message =
                |message: Message| (message.is_warning, format!("{} {}", message.reason, message.note));
            messages(before, after).map(message).collect::<Vec<_>>()
        };
        let warning = |text: &str| (true, text.to_owned());
        let good = status(["Healthy", "Healthy", ""], ["True", "fine"]);
        let ended = status(
            ["Unhealthy", "TLSHandshakeFailed", "it has ended"],
            ["False", "no realm"],
        );
        assert_eq!(
            told(&ImageMirrorStatus::default(), &good),
            [(
                false,
                "Healthy The mirror went from Unknown to Healthy: Healthy".to_owned()
            )]
        );
        assert_eq!(
            told(&good, &ended),
            [
                warning(
                    "Unhealthy The mirror went from Healthy to Unhealthy: TLSHandshakeFailed: it has ended"
                ),
                warning("CredentialsInvalid R: no realm"),
            ]
        );
        assert_eq!(told(&ended, &ended), []);
        let other = status(
            ["Unhealthy", "TLSHandshakeFailed", "another name"],
            ["False", "other realm"],
        );
        assert_eq!(
            told(&ended, &other),
            [
                warning("Unhealthy The mirror is Unhealthy still: TLSHandshakeFailed: another name"),
                warning("CredentialsInvalid R: other realm"),
            ]
        );
        assert_eq!(told(&other, &good).len(), 2);
    }

    #[test]
    fn that_a_mirror_takes_no_copies_is_told_and_that_it_does_again() {
        let status = |writable: Option<(&str, &str)>| {
            let conditions: Vec<_> = writable
                .iter()
                .map(|(status, reason)| {
                    json!({"type": "Writable", "status": status, "reason": reason, "message": "words",
                           "lastTransitionTime": "2026-01-01T00:00:00Z"})
                })
                .collect();
            serde_json::from_value::<ImageMirrorStatus>(json!({"conditions": conditions})).unwrap()
        };
        let check = |before, after, expected: &[&str]| {
            let told = messages(&status(before), &status(after));
            let told: Vec<_> = told
                .map(|message| format!("{} {} {}", message.action, message.reason, message.note))
                .collect();
            assert_eq!(told, expected);
        };
        let (good, full) = (Some(("True", "Writable")), Some(("False", "QuotaExceeded")));
        let read_only = Some(("False", "MirrorReadOnly"));
        check(None, good, &[]);
        check(None, full, &["Copy NotWritable QuotaExceeded: words"]);
        check(good, full, &["Copy NotWritable QuotaExceeded: words"]);
        check(full, read_only, &[]);
        check(full, good, &["Copy Writable Writable: words"]);
        check(full, Some(("Unknown", "NotFilled")), &[]);
    }

    #[test]
    fn what_finalizers_hold_is_not_deleted_yet() {
        let left = |metadata| {
            let object =
                json!({"apiVersion": "kagami.dev/v1alpha1", "kind": "MirroredImage", "metadata": metadata});
            deletion(Some(serde_json::from_value(object).unwrap()))
        };
        assert!(matches!(deletion(None), Outcome::Deleted));
        assert!(matches!(left(json!({"name": "a"})), Outcome::Deleted));
        let held = left(json!({"name": "a", "finalizers": ["backup.test/keep", "b.test/c"]}));
        let Outcome::Refused(cause) = held else {
            panic!("{held:?}")
        };
        assert!(
            cause.ends_with("finalizers: backup.test/keep, b.test/c"),
            "{cause}"
        );
    }

    /// What others wrote in between is read as the watch reads it.
    #[test]
    fn a_status_that_is_known_in_part_is_read_in_part() {
        let answer = json!({
            "apiVersion": "kagami.dev/v1alpha1",
            "kind": "ImageMirror",
            "metadata": {"name": "main", "resourceVersion": "7"},
            "status": {"health": {"state": "Splendid"}, "platforms": ["arm64"]},
        });
        let answer = serde_json::from_value(answer).unwrap();
        let (status, version) = read(&Reader::default(), &answer);
        assert_eq!(
            (status.platforms.as_slice(), version),
            (&["arm64".to_owned()][..], 7)
        );
    }
}
