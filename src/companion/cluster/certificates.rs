//! Keeps the webhook's certificates: authority and serving pair in Secrets, the bundle in its own
//! webhook configuration. What to do next is `domain::rotation`'s; this does it.
//!
//! Each step notes its time before it acts, so a step that was cut off is never taken for an old
//! one.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    jiff,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Leader;
use crate::{
    api::AUTHORITY_SECRET,
    certificates::{Authority, BEFORE, Name},
    clock,
    cluster::writer::{NotWritten, Writer},
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

/// How many times longer than a serving certificate an authority is valid.
const AUTHORITY: u32 = 4;

/// Annotation of the authority's Secret: when a step of a renewal was last taken.
const CHANGED_AT: &str = "kagami.dev/changed-at";

/// Annotation of the serving certificate's Secret: what it is good for.
const NAMES: &str = "kagami.dev/names";

const TLS_TYPE: &str = "kubernetes.io/tls";

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
    #[error("cannot write")]
    Write(#[from] NotWritten),
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
}

/// What the cluster has now.
struct Found {
    authority: Option<Secret>,
    serving: Option<Secret>,
    configuration: Option<MutatingWebhookConfiguration>,
}

impl Keeper {
    pub(super) fn new(settings: Settings, leader: &Leader) -> Self {
        Self {
            settings,
            writer: leader.writer.clone(),
            secrets: Api::namespaced(leader.client.clone(), &leader.settings.namespace),
            configurations: Api::all(leader.client.clone()),
        }
    }

    pub(super) async fn run(self) {
        loop {
            match self.step().await {
                Ok(Action::Wait(until)) => sleep(until.since(clock::now()).min(LOOK)).await,
                Ok(action) => tracing::info!(?action, "certificates: a step was taken"),
                Err(Failed::Write(NotWritten::NotLeading)) => return,
                // Somebody else was faster, and what there is must be looked at again.
                Err(Failed::Write(NotWritten::Conflict)) => sleep(PAUSE).await,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot keep the webhook's certificates");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes the next step, if there is one to take now.
    async fn step(&self) -> Result<Action, Failed> {
        let found = Found {
            authority: self.secrets.get_opt(AUTHORITY_SECRET).await?,
            serving: self.secrets.get_opt(&self.settings.secret).await?,
            configuration: self.configurations.get_opt(&self.settings.configuration).await?,
        };
        let now = clock::now();
        let facts = self.facts(&found);
        let action = next(&facts, self.settings.step, now);
        let mut data = contents(found.authority.as_ref());
        match action {
            Action::Wait(_) => {}
            Action::Found => {
                let mut fresh = BTreeMap::new();
                put(&mut fresh, "ca", &self.authority(now)?);
                // Replicas go on serving what the lost authority signed until they have the new.
                let before = contents(found.serving.as_ref()).remove("ca.crt");
                let usable = |pem: &Vec<u8>| validity_of(pem).is_some_and(|(_, not_after)| not_after > now);
                if let Some(pem) = before.filter(usable) {
                    fresh.insert("previous.crt".to_owned(), pem);
                }
                self.write_authority(&found, fresh, now).await?;
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

    fn facts(&self, found: &Found) -> Facts {
        let data = contents(found.authority.as_ref());
        let signs = |certificate: &str, key: &str| {
            data.get(key)?;
            period(data.get(certificate)?)
        };
        let serving = contents(found.serving.as_ref());
        let leaf = serving.get("tls.crt").and_then(|certificate| {
            serving.get("tls.key")?;
            let names = annotation(found.serving.as_ref(), NAMES);
            Some(Leaf {
                period: period(certificate)?,
                by_current: serving.contains_key("ca.crt") && serving.get("ca.crt") == data.get("ca.crt"),
                names: names == Some(&self.settings.names.join(",")),
            })
        });
        let wanted = bundle(&data);
        let has_bundle = found.configuration.as_ref().is_none_or(|configuration| {
            let mut webhooks = configuration.webhooks.iter().flatten();
            webhooks.all(|webhook| {
                let bundle = webhook.client_config.ca_bundle.as_ref();
                bundle.is_some_and(|bundle| bundle.0 == wanted)
            })
        });
        let changed_at = annotation(found.authority.as_ref(), CHANGED_AT);
        Facts {
            current: signs("ca.crt", "ca.key"),
            next: signs("next.crt", "next.key"),
            previous: data.contains_key("previous.crt"),
            leaf,
            bundle: has_bundle,
            changed_at: changed_at.and_then(|text| parse(text)).unwrap_or_default(),
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
            "Opaque",
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
            self.writer.write("Secret", request).await?;
        } else {
            let request = self.secrets.create(&parameters, &secret);
            self.writer.write("Secret", request).await?;
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
        self.writer.write("MutatingWebhookConfiguration", request).await?;
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
    let authorities = ["ca.crt", "next.crt", "previous.crt"];
    authorities
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
