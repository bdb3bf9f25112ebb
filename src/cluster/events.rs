//! Events: what people see with `kubectl describe`.
//!
//! Unlike kube's recorder it writes as everything is written: only while leading, at a bounded rate. An
//! Event that cannot be written holds up nothing; whatever it tells stands in a status as well.

use k8s_openapi::api::{core::v1::ObjectReference, events::v1::Event};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::writer::{NotWritten, Writer};
use crate::{
    api::v1alpha1::micro_time,
    clock,
    domain::{foreign::visible, time::Timestamp},
    telemetry::chain,
};

/// Namespace of Events about objects without one (apimachinery's event validation asks for it).
const NAMESPACE: &str = "default";

/// Who tells.
const REPORTER: &str = "kagami.dev/companion";

/// How long a note may be.
const LONGEST_NOTE: usize = 1000;

/// How long the name of who tells may be.
const LONGEST_INSTANCE: usize = 128;

/// What an Event tells.
#[derive(Clone, Debug)]
pub struct Message {
    /// What was done, in one word.
    pub action: &'static str,
    /// What came of it, in one word.
    pub reason: &'static str,
    pub note: String,
    pub is_warning: bool,
}

/// Writes Events. Clones share the rate.
#[derive(Clone)]
pub struct Events {
    client: Client,
    writer: Writer,
    instance: String,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl Events {
    /// Returns who writes Events in the name of `identity`.
    pub fn new(client: Client, writer: Writer, identity: &str) -> Self {
        Self {
            client,
            writer,
            instance: identity.chars().take(LONGEST_INSTANCE).collect(),
        }
    }

    /// Writes an Event about an object. Fails only if nothing may be written any more.
    pub async fn tell(&self, regarding: ObjectReference, message: Message) -> Result<(), NotWritten> {
        let event = self.event(regarding, &message);
        written(self.writer.write("Event", self.create(&event)).await)
    }

    async fn create(&self, event: &Event) -> kube::Result<Event> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or(NAMESPACE);
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        events.create(&PostParams::default(), event).await
    }

    fn event(&self, regarding: ObjectReference, message: &Message) -> Event {
        let name = regarding.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(name, message.reason, clock::now())),
                namespace: regarding.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some(message.action.to_owned()),
            event_time: Some(micro_time(clock::now())),
            // Longer ones are refused.
            note: Some(note(&message.note)),
            reason: Some(message.reason.to_owned()),
            regarding: Some(regarding),
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if message.is_warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

/// Passes on that nothing may be written any more. Else an Event that is not there is no fault.
fn written(result: Result<Event, NotWritten>) -> Result<(), NotWritten> {
    match result {
        Err(NotWritten::NotLeading) => Err(NotWritten::NotLeading),
        Err(error) => {
            tracing::debug!(error = chain(&error), "cannot write an Event");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// Returns the name of an Event. Unlike the object's it may be cut, and two of one moment have two reasons.
fn event_name(object: &str, reason: &str, now: Timestamp) -> String {
    let reason = reason.to_ascii_lowercase();
    format!("{object:.200}.{reason:.32}.{:x}", now.as_millis())
}

/// Returns a note as people may see it in a terminal, and no longer than notes may be.
fn note(text: &str) -> String {
    visible(text).chars().take(LONGEST_NOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_one_moment_have_names_of_their_own() {
        let name = |object: &str, reason| event_name(object, reason, Timestamp::from_millis(255));
        assert_eq!(name("main", "CredentialsInvalid"), "main.credentialsinvalid.ff");
        assert_eq!(name(&"m".repeat(253), "Unhealthy").len(), 200 + 1 + 9 + 3);
    }

    #[test]
    fn a_note_is_one_line_and_has_a_bound() {
        assert_eq!(
            note("it said \u{1b}[2Ka\nb: \"é\""),
            r#"it said \u{1b}[2Ka\nb: "é""#
        );
        assert_eq!(note(&"\n".repeat(LONGEST_NOTE)).len(), LONGEST_NOTE);
    }
}
