//! Keeps the webhook's certificates: authority and serving pair in Secrets, the bundle in its own
//! webhook configuration. What to do next is `domain::rotation`'s; this does it.
//!
//! Each step notes its time before it acts, so a step that was cut off is never taken for an old
//! one.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{ObjectReference, Secret},
    },
    jiff,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::leader::Leader;
use crate::{
    api::{AUTHORITY_SECRET, FORMER_AUTHORITY_SECRET},
    certificates::{Authority, BEFORE, Name},
    clock,
    cluster::{
        events::{Events, Message},
        request::bounded,
        writer::{NotWritten, Writer},
    },
    domain::{
        rotation::{Action, Facts, Leaf, Period, next},
        time::Timestamp,
    },
    server::tls::validity_of,
    telemetry::chain,
};

/// How often the cluster is looked at, because others may change what is there.
const LOOK: Duration = Duration::from_secs(5);

/// The pause after something failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the same failure is not logged again.
const LOG_AGAIN: Duration = Duration::from_mins(10);

/// How long renewals fail before an Event may tell it.
const TELL_AFTER: Duration = Duration::from_secs(30);

/// How long an Event is not repeated; API servers keep Events for an hour.
const TELL_AGAIN: Duration = Duration::from_mins(50);

/// How many times longer than a serving certificate an authority is valid.
const AUTHORITY: u32 = 4;

/// Annotation of the authority's Secret: when a step of a renewal was last taken.
const CHANGED_AT: &str = "kagami.dev/changed-at";

/// Annotation of the serving certificate's Secret: what it is good for.
const NAMES: &str = "kagami.dev/names";

const TLS_TYPE: &str = "kubernetes.io/tls";

const OPAQUE: &str = "Opaque";

/// Where in the authority's Secret those are that callers are to trust, in the order in which they sign: another
/// one that begins to sign is no other bundle.
const AUTHORITIES: [&str; 3] = ["previous.crt", "ca.crt", "next.crt"];

/// What certificates are to be kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The webhook configuration whose bundle is kept.
    pub configuration: String,
    /// The Secret with the serving pair.
    pub secret: String,
    /// The DNS names that it is good for.
    pub names: Vec<String>,
    /// The time between two steps of a renewal.
    pub step: Duration,
    /// How long a serving certificate is valid.
    pub validity: Duration,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("cannot write {object}")]
    Write {
        object: String,
        #[source]
        source: NotWritten,
    },
    #[error("cannot read")]
    Read(#[from] kube::Error),
    #[error("cannot make a certificate")]
    Make(#[from] crate::certificates::Error),
    #[error("Secret {AUTHORITY_SECRET} has no {0}")]
    Without(&'static str),
}

pub(super) struct Keeper {
    pub(super) settings: Settings,
    pub(super) writer: Writer,
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    events: Events,
}

/// Failures in a row, and what was said of them.
#[derive(Debug, Default)]
struct Failures {
    since: Option<Instant>,
    logged: Option<(String, Instant)>,
    told: Option<Instant>,
}

impl Failures {
    /// Takes in one, and returns whether it is logged.
    fn failed(&mut self, text: &str, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let known = self
            .logged
            .as_ref()
            .is_some_and(|(logged, at)| logged == text && now.duration_since(*at) < LOG_AGAIN);
        if !known {
            self.logged = Some((text.to_owned(), now));
        }
        !known
    }

    /// Whether it is time for an Event, which counts as told then. `is_late` says whether what is served
    /// should have been renewed.
    fn is_to_tell(&mut self, is_late: bool, now: Instant) -> bool {
        let is_older = |time: Option<Instant>, age| time.is_some_and(|time| now.duration_since(time) >= age);
        let due = is_late
            && is_older(self.since, TELL_AFTER)
            && (self.told.is_none() || is_older(self.told, TELL_AGAIN));
        if due {
            self.told = Some(now);
        }
        due
    }

    fn ended(&mut self) {
        // Whatever comes and goes is told no more often for it.
        self.since = None;
    }
}

/// What the cluster has now.
struct Found {
    authority: Option<Secret>,
    /// The Secret in which earlier versions keep the authority; cert-manager's is none.
    former: Option<Secret>,
    serving: Option<Secret>,
    configuration: Option<MutatingWebhookConfiguration>,
}

impl Keeper {
    pub(super) fn new(settings: Settings, leader: &Leader) -> Self {
        Self {
            settings,
            writer: leader.writer.clone(),
            secrets: Api::namespaced(leader.client.clone(), &leader.namespace),
            configurations: Api::all(leader.client.clone()),
            events: leader.events.clone(),
        }
    }

    pub(super) async fn run(self) {
        let mut failures = Failures::default();
        loop {
            let mut served = None;
            match self.step(&mut served).await {
                Ok(Action::Wait(until)) => {
                    failures.ended();
                    sleep(until.since(clock::now()).min(LOOK)).await;
                }
                Ok(action) => tracing::info!(?action, "certificates: a step was taken"),
                Err(Failed::Write {
                    source: NotWritten::NotLeading,
                    ..
                }) => return,
                // Somebody else was faster, and what there is must be looked at again.
                Err(Failed::Write {
                    source: NotWritten::Conflict,
                    ..
                }) => sleep(PAUSE).await,
                Err(error) => {
                    let text = chain(&error);
                    if failures.failed(&text, Instant::now()) {
                        tracing::warn!(error = text, "cannot keep the webhook's certificates");
                    }
                    let is_late = served.is_none_or(|leaf| leaf.is_late(clock::now()));
                    if failures.is_to_tell(is_late, Instant::now()) {
                        self.tell(served, &text).await;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Writes an Event: the certificate is not renewed, and ends.
    async fn tell(&self, served: Option<Period>, why: &str) {
        let until = served.map_or_else(
            || "there is none".to_owned(),
            |leaf| format!("the one that is served ends at {}", leaf.not_after),
        );
        let name = &self.settings.configuration;
        let configuration = bounded(self.configurations.get_opt(name)).await.ok().flatten();
        let regarding = ObjectReference {
            api_version: Some("admissionregistration.k8s.io/v1".to_owned()),
            kind: Some("MutatingWebhookConfiguration".to_owned()),
            name: Some(name.clone()),
            uid: configuration.and_then(|configuration| configuration.metadata.uid),
            ..ObjectReference::default()
        };
        let message = Message {
            action: "RenewCertificate",
            reason: "CertificateNotRenewed",
            note: format!("The webhook's certificate cannot be renewed, and {until}: {why}"),
            is_warning: true,
        };
        // Whoever may not write any more hears of it at the next step.
        drop(self.events.tell(regarding, message).await);
    }

    /// Takes the next step, if there is one to take now; notes from when to when what is served is valid.
    async fn step(&self, served: &mut Option<Period>) -> Result<Action, Failed> {
        let found = Found {
            authority: bounded(self.secrets.get_opt(AUTHORITY_SECRET)).await?,
            former: bounded(self.secrets.get_opt(FORMER_AUTHORITY_SECRET))
                .await?
                .filter(is_companions),
            serving: bounded(self.secrets.get_opt(&self.settings.secret)).await?,
            configuration: bounded(self.configurations.get_opt(&self.settings.configuration)).await?,
        };
        let now = clock::now();
        let facts = self.facts(&found, now);
        *served = facts.leaf.map(|leaf| leaf.period);
        let action = next(&facts, self.settings.step, now);
        let mut data = contents(found.authority.as_ref());
        match action {
            Action::Wait(_) => {}
            Action::Found => {
                let mut fresh = BTreeMap::new();
                put(&mut fresh, "ca", &self.authority(now)?);
                self.write_authority(&found, fresh, now).await?;
            }
            Action::TakeOver => {
                let data = contents(found.former.as_ref());
                self.write_authority(&found, data, changed_at(found.former.as_ref()))
                    .await?;
            }
            Action::Trust => {
                let before = take(&mut contents(found.serving.as_ref()), "ca.crt")?;
                data.insert("previous.crt".to_owned(), before);
                self.write_authority(&found, data, now).await?;
            }
            Action::Announce => {
                put(&mut data, "next", &self.authority(now)?);
                self.write_authority(&found, data, now).await?;
            }
            Action::Switch => {
                let previous = take(&mut data, "ca.crt")?;
                let (certificate, key) = (take(&mut data, "next.crt")?, take(&mut data, "next.key")?);
                data.extend([
                    ("previous.crt".to_owned(), previous),
                    ("ca.crt".to_owned(), certificate),
                    ("ca.key".to_owned(), key),
                ]);
                self.write_authority(&found, data, facts.changed_at).await?;
            }
            Action::Retire => {
                data.remove("previous.crt");
                self.write_authority(&found, data, now).await?;
            }
            Action::Publish => {
                let bundle = bundle(&data);
                self.write_authority(&found, data, now).await?;
                self.publish(&found, &bundle).await?;
            }
            Action::Issue => {
                let authority = load(&data)?;
                self.write_authority(&found, data, now).await?;
                self.issue(&found, &authority, now).await?;
            }
        }
        Ok(action)
    }

    fn facts(&self, found: &Found, now: Timestamp) -> Facts {
        let data = contents(found.authority.as_ref());
        let serving = contents(found.serving.as_ref());
        let leaf = serving.get("tls.crt").and_then(|certificate| {
            serving.get("tls.key")?;
            let by_current = serving.contains_key("ca.crt") && serving.get("ca.crt") == data.get("ca.crt");
            Some(Leaf {
                period: period(certificate)?,
                by_current,
                // What others issued says no names; it goes on being served until callers trust ours.
                names: annotation(found.serving.as_ref(), NAMES)
                    .map_or(!by_current, |names| *names == self.settings.names.join(",")),
            })
        });
        let stranger = serving.get("ca.crt").is_some_and(|authority| {
            let valid = period(authority).is_some_and(|period| period.not_after > now);
            valid && !AUTHORITIES.iter().any(|name| data.get(*name) == Some(authority))
        });
        let wanted = bundle(&data);
        let has_bundle = found.configuration.as_ref().is_none_or(|configuration| {
            let mut webhooks = configuration.webhooks.iter().flatten();
            webhooks.all(|webhook| {
                let bundle = webhook.client_config.ca_bundle.as_ref();
                bundle.is_some_and(|bundle| bundle.0 == wanted)
            })
        });
        let former = found.former.as_ref().filter(|_| found.authority.is_none());
        Facts {
            current: signs(&data, "ca.crt", "ca.key"),
            former: signs(&contents(former), "ca.crt", "ca.key"),
            next: signs(&data, "next.crt", "next.key"),
            previous: data.contains_key("previous.crt"),
            leaf,
            stranger,
            bundle: has_bundle,
            changed_at: changed_at(found.authority.as_ref()),
        }
    }

    fn authority(&self, now: Timestamp) -> Result<Authority, Failed> {
        Ok(Authority::new(now, self.settings.validity * AUTHORITY)?)
    }

    async fn write_authority(
        &self,
        found: &Found,
        data: BTreeMap<String, Vec<u8>>,
        changed_at: Timestamp,
    ) -> Result<(), Failed> {
        let annotation = (CHANGED_AT, changed_at.to_string());
        self.write(
            found.authority.as_ref(),
            AUTHORITY_SECRET,
            OPAQUE,
            annotation,
            data,
        )
        .await
    }

    async fn issue(&self, found: &Found, authority: &Authority, now: Timestamp) -> Result<(), Failed> {
        let names: Vec<_> = self
            .settings
            .names
            .iter()
            .map(|name| Name::Dns(name.clone()))
            .collect();
        let pair = authority.issue(&names, now, self.settings.validity)?;
        let data = [
            ("tls.crt", pair.certificate.as_str()),
            ("tls.key", pair.key.as_str()),
            ("ca.crt", authority.certificate()),
        ];
        let data = data.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
        let annotation = (NAMES, self.settings.names.join(","));
        self.write(
            found.serving.as_ref(),
            &self.settings.secret,
            TLS_TYPE,
            annotation,
            data.into(),
        )
        .await
    }

    /// Creates a Secret or replaces the very version that was read.
    async fn write(
        &self,
        found: Option<&Secret>,
        name: &str,
        type_: &str,
        (key, value): (&str, String),
        data: BTreeMap<String, Vec<u8>>,
    ) -> Result<(), Failed> {
        let data = data
            .into_iter()
            .map(|(name, bytes)| (name, ByteString(bytes)))
            .collect();
        let failed = |source| Failed::Write {
            object: format!("Secret {name}"),
            source,
        };
        let parameters = PostParams::default();
        let mut secret = found.cloned().unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some(type_.to_owned()),
            ..Secret::default()
        });
        secret.data = Some(data);
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(key.to_owned(), value);
        if found.is_some() {
            let request = self.secrets.replace(name, &parameters, &secret);
            self.writer.write("Secret", request).await.map_err(failed)?;
        } else {
            let request = self.secrets.create(&parameters, &secret);
            self.writer.write("Secret", request).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Writes the bundle into every webhook of the configuration, and nothing else.
    async fn publish(&self, found: &Found, bundle: &[u8]) -> Result<(), Failed> {
        let Some(configuration) = &found.configuration else {
            return Ok(());
        };
        let bundle = ByteString(bundle.to_vec());
        let webhooks: Vec<Value> = configuration
            .webhooks
            .iter()
            .flatten()
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({
            "metadata": {"resourceVersion": configuration.metadata.resource_version},
            "webhooks": webhooks,
        });
        // The list of webhooks is merged by name (its patch strategy), so all else stays as it is.
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(&patch));
        let name = &self.settings.configuration;
        let request = self.configurations.patch(name, &parameters, &patch);
        let written = self.writer.write("MutatingWebhookConfiguration", request).await;
        written.map_err(|source| Failed::Write {
            object: format!("MutatingWebhookConfiguration {name}"),
            source,
        })?;
        Ok(())
    }
}

fn contents(secret: Option<&Secret>) -> BTreeMap<String, Vec<u8>> {
    let data = secret.and_then(|secret| secret.data.as_ref());
    let entries = data.into_iter().flatten();
    entries
        .map(|(name, bytes)| (name.clone(), bytes.0.clone()))
        .collect()
}

fn annotation<'a>(secret: Option<&'a Secret>, name: &str) -> Option<&'a String> {
    secret?.metadata.annotations.as_ref()?.get(name)
}

/// Whether a companion made this Secret of an authority: cert-manager, which also writes into Secrets that it
/// finds, has the key elsewhere.
fn is_companions(secret: &Secret) -> bool {
    let has_their_key = secret
        .data
        .as_ref()
        .is_some_and(|data| data.contains_key("tls.key"));
    secret.type_.as_deref() == Some(OPAQUE) && !has_their_key
}

/// Returns when a step of a renewal was last taken, as the authority's Secret tells.
fn changed_at(secret: Option<&Secret>) -> Timestamp {
    let time = annotation(secret, CHANGED_AT).and_then(|text| parse(text));
    time.unwrap_or_default()
}

/// Returns the time of an authority that is there with its key.
fn signs(data: &BTreeMap<String, Vec<u8>>, certificate: &str, key: &str) -> Option<Period> {
    data.get(key)?;
    period(data.get(certificate)?)
}

fn put(data: &mut BTreeMap<String, Vec<u8>>, name: &str, authority: &Authority) {
    data.insert(format!("{name}.crt"), authority.certificate().as_bytes().to_vec());
    data.insert(format!("{name}.key"), authority.key().into_bytes());
}

fn take(data: &mut BTreeMap<String, Vec<u8>>, name: &'static str) -> Result<Vec<u8>, Failed> {
    data.remove(name).ok_or(Failed::Without(name))
}

fn load(data: &BTreeMap<String, Vec<u8>>) -> Result<Authority, Failed> {
    let text = |name: &'static str| {
        let bytes = data.get(name).ok_or(Failed::Without(name))?;
        Ok::<_, Failed>(String::from_utf8_lossy(bytes).into_owned())
    };
    Ok(Authority::load(text("ca.crt")?, &text("ca.key")?)?)
}

/// Returns the authorities that callers are to trust.
fn bundle(data: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    AUTHORITIES
        .iter()
        .filter_map(|name| data.get(*name))
        .flatten()
        .copied()
        .collect()
}

/// Returns a certificate's time, counted from when it was made.
fn period(pem: &[u8]) -> Option<Period> {
    let (not_before, not_after) = validity_of(pem)?;
    Some(Period {
        not_before: not_before.after(BEFORE),
        not_after,
    })
}

fn parse(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp::from_millis(u64::try_from(time.as_millisecond()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_logged_once_and_told_while_it_matters() {
        let mut failures = Failures::default();
        let start = Instant::now();
        let mut logged = Vec::new();
        let mut told = Vec::new();
        // Every two seconds for two hours; what is served should have been renewed after ten minutes.
        for seconds in (0..7200).step_by(2) {
            let now = start + Duration::from_secs(seconds);
            if failures.failed("refused", now) {
                logged.push(seconds);
            }
            if failures.is_to_tell(seconds >= 600, now) {
                told.push(seconds);
            }
        }
        assert_eq!(logged, (0..12).map(|times| times * 600).collect::<Vec<_>>());
        assert_eq!(told, [600, 3600, 6600]);
    }

    #[test]
    fn only_an_earlier_companions_authority_is_taken_over() {
        let secret = |type_: &str, keys: &[&str]| Secret {
            type_: Some(type_.to_owned()),
            data: Some(
                keys.iter()
                    .map(|&key| (key.to_owned(), ByteString::default()))
                    .collect(),
            ),
            ..Secret::default()
        };
        assert!(is_companions(&secret(OPAQUE, &["ca.crt", "ca.key"])));
        assert!(!is_companions(&secret(
            TLS_TYPE,
            &["ca.crt", "tls.crt", "tls.key"]
        )));
        // cert-manager wrote over what a companion had there: the key belongs to no certificate.
        assert!(!is_companions(&secret(
            OPAQUE,
            &["ca.crt", "ca.key", "tls.crt", "tls.key"]
        )));
    }

    #[test]
    fn a_moment_is_not_told() {
        let mut failures = Failures::default();
        let start = Instant::now();
        for seconds in [0, 20, 40, 60] {
            let now = start + Duration::from_secs(seconds);
            failures.failed("no answer", now);
            assert!(!failures.is_to_tell(true, now));
            failures.ended();
        }
    }
}
