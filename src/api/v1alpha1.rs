//! `kagami.dev/v1alpha1`: types only. Doc comments of fields are what `kubectl explain` shows.
//!
//! Defaults are in the schema and in the types, from one source: schemars writes what serde's
//! default is. Durations stay text here, and so does whatever else needs parsing: one bad value
//! must be reported with its field, not make a resource undecodable.

use std::time::Duration as StdDuration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ManagedFieldsEntry, MicroTime, Time},
    jiff,
};
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::rules;
use crate::domain::{
    mirror::{Freshness, HANG_AFTER, HealthSettings, Tags},
    time::Timestamp,
};

/// A length of time: whole numbers with the units h, m, s and ms, such as 90s, 10m or 1h30m.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

impl Duration {
    /// Returns the time that this text names; nothing if it is not of the documented form.
    pub fn parse(&self) -> Option<StdDuration> {
        rules::parse_duration(&self.0)
    }
}

impl From<StdDuration> for Duration {
    fn from(duration: StdDuration) -> Self {
        Self(rules::to_text(duration))
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": rules::DURATION_PATTERN, "maxLength": 28})
    }
}

/// What the mirror holds, and how Kagami uses it.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kagami.dev",
    version = "v1alpha1",
    kind = "ImageMirror",
    shortname = "im",
    doc = "A registry that holds copies of images, and how Kagami uses it. The images of Pods are rewritten to a mirror only while it is healthy and was seen to hold the very image; every doubt leaves them as written.",
    status = "ImageMirrorStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name": "Mode", "type": "string", "jsonPath": ".spec.mode", "description": "The most that this mirror may do."}"#,
    printcolumn = r#"{"name": "Registry", "type": "string", "jsonPath": ".spec.registry", "description": "What is written into Pods."}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status", "description": "Whether the resource is in force as it stands."}"#,
    printcolumn = r#"{"name": "Health", "type": "string", "jsonPath": ".status.health.state", "description": "What the companion knows of the mirror."}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.health.reason", "description": "What was last observed of it."}"#,
    printcolumn = r#"{"name": "Credentials", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"CredentialsValid\")].reason", "description": "Whether the mirror takes Kagami's credentials, or why it does not."}"#,
    printcolumn = r#"{"name": "Message", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].message", "priority": 1, "description": "Why it is not in force as it stands, if it is not."}"#,
    printcolumn = r#"{"name": "Kind", "type": "string", "jsonPath": ".spec.kind", "priority": 1}"#,
    printcolumn = r#"{"name": "Prefer", "type": "string", "jsonPath": ".spec.prefer", "priority": 1}"#,
    printcolumn = r#"{"name": "Images", "type": "integer", "jsonPath": ".status.images", "description": "Images seen in the mirror at the end of the last sweep."}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::validations(&[
    rules::PRIVATE_NEEDS_SELECTOR,
    rules::TEMPLATE_NEEDS_REGISTRY,
    rules::COPY_NEEDS_HOSTED,
])))]
pub struct ImageMirrorSpec {
    /// The most that this mirror may do. Enforce: rewrite images. Warn: change nothing, but warn
    /// whoever creates the Pod. Audit: change nothing, note the decision in the audit log, the
    /// metrics and `kagami report`. Off: nothing is decided (write "Off" in quotes: YAML reads the
    /// bare word as false). The weakest of mirror, namespace and Pod counts.
    #[serde(default)]
    pub mode: Mode,

    /// What is written into Pods: host, optional port, optional path, as in mirror.example.com or
    /// mirror.example.com:5000/cache. Nodes must be able to pull from here. Cannot be changed.
    #[schemars(length(min = 1, max = 255), extend("x-kubernetes-validations" = rules::validations(&rules::REGISTRY)))]
    pub registry: String,

    /// Where an image lies in the mirror, below `registry`. {registry} stands for the upstream host
    /// (a port becomes _port) and {repository} for the path: nginx becomes
    /// docker.io/library/nginx. Without {registry} only one source is possible. Cannot be changed.
    #[serde(default = "default_repository")]
    #[schemars(length(max = 255), extend("x-kubernetes-validations" = rules::validations(&[
        rules::IMMUTABLE,
        rules::TEMPLATE_NEEDS_REPOSITORY,
    ])))]
    pub repository: String,

    /// What the mirror does with an image that nobody has asked it for. Hosted: it holds copies,
    /// and looking for one is cheap. PullThrough: it fetches from upstream on demand, so that
    /// looking may download the image; Kagami then looks in the background only.
    pub kind: Kind,

    /// Of several mirrors that may serve an image, the one with the higher number is asked first;
    /// then the one with the longer prefix, then by name.
    #[serde(default = "default_priority")]
    #[schemars(range(min = -10_000, max = 10_000))]
    pub priority: i32,

    /// Which side Pods pull from while both work. Upstream: from the mirror only while the upstream
    /// registry fails.
    #[serde(default)]
    pub prefer: Prefer,

    /// Which namespaces this mirror serves, among those that opted in with the label
    /// kagami.dev/mode. Empty: all of them; not allowed with a Private source.
    #[serde(default)]
    pub namespace_selector: LabelSelector,

    /// What it mirrors. At least one.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["prefix"])
    )]
    pub sources: Vec<Source>,

    /// How Kagami itself reaches the mirror. Absent: https:// and the host of `registry`, the
    /// system's certificate authorities, no credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,

    /// How the mirror's health is judged.
    #[serde(default)]
    pub health: Health,

    /// How old the proof that an image is in the mirror may be.
    #[serde(default)]
    pub freshness: FreshnessLimits,

    /// The background check of all known images.
    #[serde(default)]
    pub sweep: Sweep,

    /// Images that Pods use and this mirror lacks. Absent: nothing is copied.
    // No default in the definition: it would be written into every object, and a program that does not know it yet, as
    // after a rollback, would tell of it in each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copying>,

    /// Tags, which may move.
    #[serde(default)]
    pub tags: TagSettings,

    /// The credentials that Pods need to pull from this mirror. Absent: none are needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<Credentials>,

    /// Pods that were sent to this mirror and cannot be pulled from it.
    #[serde(default)]
    pub rescue: Rescue,

    /// Owners whose Pods are left alone, because they compare the images of their Pods and recreate
    /// those that differ. Absent: those known to do so (CloudNativePG, OLM's CatalogSource). An
    /// empty list: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub exclude_owners: Option<Vec<Owner>>,
}

pub(super) fn default_repository() -> String {
    "{registry}/{repository}".to_owned()
}

const fn default_priority() -> i32 {
    100
}

/// How far Kagami goes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Enforce,
    Warn,
    Audit,
    Off,
}

/// What a mirror does on demand.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Hosted,
    PullThrough,
}

/// Which side is preferred.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    #[default]
    Mirror,
    Upstream,
}

/// Whose certificates are trusted at the endpoint.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Bundle,
    BundleAndSystem,
}

/// One part of the upstream world.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A registry host, or a host and leading components of a path: docker.io, ghcr.io/kubewarden,
    /// docker.io/library. The longest matching prefix of a mirror wins; ghcr.io/kube does not match
    /// ghcr.io/kubewarden. Docker Hub's other addresses (registry-1.docker.io, hub.docker.com) count as
    /// docker.io, and docker.io/nginx as docker.io/library/nginx too; images that are written with such an
    /// address themselves are not Docker Hub's.
    #[schemars(length(min = 1, max = 255), extend("x-kubernetes-validations" = rules::validations(&rules::PREFIX)))]
    pub prefix: String,

    /// Images that this mirror leaves alone: globs on the full name without tag and digest, such as
    /// docker.io/library/postgres or docker.io/bitnami/**. * stays within a component, ** crosses.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 512)))]
    pub exclude: Vec<String>,

    /// Credentials for the upstream registry, used for copying only: the Secret's entry for `prefix`, or for
    /// its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,

    /// Who may read these images upstream. Private: only the namespaces that the mirror's
    /// namespaceSelector names are sent to the mirror for them, also by other mirrors of the same registry;
    /// the registry itself must keep them from Pods that name it themselves. Public: everybody; where
    /// credentials are given, only images that an anonymous client gets upstream too. Absent: Private where
    /// credentials are given, else Public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
}

/// Who may read an image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Private,
    Public,
}

/// Where credentials are.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// A Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/basic-auth in Kagami's own namespace.
    pub secret_ref: SecretReference,
}

/// A Secret in Kagami's own namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SecretReference {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How Kagami reaches a mirror.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::validations(&[rules::TRUST_NEEDS_BUNDLE])))]
pub struct Endpoint {
    /// Scheme, host and port that Kagami connects to instead of those of `registry`; the path of
    /// `registry` stays. Plain http:// must be written out. Absent: https:// and the host of
    /// `registry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules::validations(&rules::ENDPOINT_URL)))]
    pub url: Option<String>,

    /// Certificates, in PEM, of the authorities that may sign the endpoint's certificate, or that
    /// certificate itself. Other hosts that the mirror names, as its token service and storage, may
    /// have one of these or of the system's. Absent: the system's everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144), extend("x-kubernetes-validations" = rules::validations(&rules::CA_BUNDLE)))]
    pub ca_bundle: Option<String>,

    /// Whether the endpoint's own host is trusted by `caBundle` alone. BundleAndSystem: by the system's
    /// authorities as well. Absent: Bundle. Only with `caBundle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,

    /// Credentials that may read the mirror, for looking whether an image is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// `spec.health`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// The time between two probes.
    #[schemars(extend("x-kubernetes-validations" = rules::INTERVAL.validations()))]
    pub interval: Duration,
    /// How long a probe may take.
    #[schemars(extend("x-kubernetes-validations" = rules::TIMEOUT.validations()))]
    pub timeout: Duration,
    /// Failures in a row that make a healthy mirror unhealthy.
    #[schemars(range(min = 1, max = 100))]
    pub failure_threshold: i32,
    /// Successes in a row that make an unhealthy mirror healthy.
    #[schemars(range(min = 1, max = 100))]
    pub success_threshold: i32,
    /// The age past which the shared state is not believed.
    #[schemars(extend("x-kubernetes-validations" = rules::STALE_AFTER.validations()))]
    pub stale_after: Duration,
}

impl Default for Health {
    fn default() -> Self {
        let settings = HealthSettings::default();
        let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Self {
            interval: settings.interval.into(),
            timeout: settings.timeout.into(),
            failure_threshold: count(settings.failure_threshold),
            success_threshold: count(settings.success_threshold),
            stale_after: settings.stale_after.into(),
        }
    }
}

/// `spec.freshness`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct FreshnessLimits {
    /// For images by tag. A PullThrough mirror uses tags.refresh instead.
    #[schemars(extend("x-kubernetes-validations" = rules::FRESHNESS.validations()))]
    pub tag: Duration,
    /// For images by digest, and for the images that an index names, whether the index is written by tag or by
    /// digest.
    #[schemars(extend("x-kubernetes-validations" = rules::FRESHNESS.validations()))]
    pub digest: Duration,
    /// How long it is remembered that an image is not there.
    #[schemars(extend("x-kubernetes-validations" = rules::FRESHNESS.validations()))]
    pub missing: Duration,
}

impl Default for FreshnessLimits {
    fn default() -> Self {
        let freshness = Freshness::default();
        Self {
            tag: freshness.tag.into(),
            digest: freshness.digest.into(),
            missing: freshness.missing.into(),
        }
    }
}

/// `spec.sweep`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Sweep {
    /// Requests a second that the check may make. 0: as many as the mirror answers.
    #[schemars(range(min = 0, max = 100_000))]
    pub requests_per_second: i32,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            requests_per_second: 100,
        }
    }
}

/// `spec.copy`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Copying {
    /// OnDemand: images that Pods use and the mirror lacks are copied there, where nothing weakens mode Enforce:
    /// neither this mirror's mode nor the namespace's. Off: nothing is copied (write "Off" in quotes: YAML reads the bare
    /// word as false). Only for mirrors of kind Hosted.
    #[serde(default)]
    pub policy: CopyPolicy,
    /// Platforms that are copied: linux/amd64. Empty: all that an image has. Some registries refuse an index without
    /// all that it lists (SparseIndexRefused).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)))]
    pub platforms: Vec<String>,
    /// Whether signatures, SBOMs and what else refers to an image come along.
    #[serde(default = "yes")]
    pub referrers: bool,
    /// Credentials that may push to the mirror. Absent: those of `endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// The most that an image may have, of all platforms that are copied together: 500Mi, 20Gi. Absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_image_size: Option<Size>,
    /// The most that is sent to the mirror within 24 hours for what one namespace wants: 100Gi. What was begun is brought
    /// to its end. Absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_day: Option<Size>,
}

const fn yes() -> bool {
    true
}

/// Whether a mirror is filled.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyPolicy {
    OnDemand,
    #[default]
    Off,
}

/// A number of bytes: a whole number with the unit Mi, Gi or Ti, such as 500Mi.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub String);

impl Size {
    /// Returns the bytes that this text names; nothing if it is not of the documented form.
    pub fn parse(&self) -> Option<u64> {
        rules::parse_size(&self.0)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": rules::SIZE_PATTERN, "maxLength": 8})
    }
}

/// `spec.tags`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct TagSettings {
    /// Digest: a rewritten tag gets the digest that was seen (name:tag@sha256:…), so that all nodes
    /// run the same; CRI-O 1.31.0 and tools like skopeo and buildah refuse that form. DigestOnly: the
    /// digest stands in the tag's place (name@sha256:…), which all take. None: the tag stays as it is.
    pub pin: Pin,
    /// What becomes of a tag that means another image upstream than on a mirror that is filled (copy.policy: OnDemand).
    /// Sync: it is copied anew, whoever pushed what the mirror has; until then Pods keep upstream's name. Warn: they do
    /// until somebody copies it. Keep: the mirror's image is served on. An image that a tag meant before stays in the
    /// mirror by a tag of its own.
    pub drift: Drift,
    /// How often upstream is asked what the tags in use mean now, where the mirror is filled; and who may read an image,
    /// where a source has credentials. On a PullThrough mirror, which compares tags with upstream itself: how old the
    /// proof of an image by tag may be.
    #[schemars(extend("x-kubernetes-validations" = rules::FRESHNESS.validations()))]
    pub refresh: Duration,
}

impl Default for TagSettings {
    fn default() -> Self {
        Self {
            pin: Pin::default(),
            drift: Drift::default(),
            refresh: Tags::default().refresh.into(),
        }
    }
}

/// Whether tags are pinned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    #[default]
    None,
    Digest,
    DigestOnly,
}

/// What becomes of a tag that means another image upstream.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drift {
    #[default]
    Sync,
    Warn,
    Keep,
}

/// `spec.rescue`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Rescue {
    /// What becomes of a Pod that waits because its image cannot be pulled from this mirror. Enforce:
    /// the image goes back to what the user wrote, as Kagami recorded it when it rewrote it; once for
    /// each container. So it is for one that cannot be pulled from upstream, the other way. Audit: an Event and a metric tell that it would. Off: nothing (write "Off" in
    /// quotes: YAML reads the bare word as false). Of two mirrors in one registry the weaker policy holds.
    pub policy: RescuePolicy,
    /// How long a node may be inside a pull before that is told, by an Event and condition NodesCanPull. While it
    /// pulls, nobody gets through to it: nothing else is done.
    #[schemars(extend("x-kubernetes-validations" = rules::HANG_AFTER.validations()))]
    pub hang_after: Duration,
    /// Whether a Pod is evicted that is stuck on an image volume of this mirror, which nobody can change: only where the
    /// chart's value rescue.deletePods gives the right, and only a Pod whose ReplicaSet or DaemonSet makes it anew, with
    /// no claim, of which no container has begun, where a new one would get upstream's image. Disruption budgets count.
    /// Else, and where nothing is written here, an Event tells what to do.
    // No default in the definition: it would be written into every object, and a program that does not know the field
    // yet, as after a rollback, would take all of `rescue` for newer than itself and turn it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_pods: Option<bool>,
}

impl Default for Rescue {
    fn default() -> Self {
        Self {
            policy: RescuePolicy::default(),
            hang_after: HANG_AFTER.into(),
            delete_pods: None,
        }
    }
}

/// How far a rescue goes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RescuePolicy {
    #[default]
    Enforce,
    Audit,
    Off,
}

/// The kind of an owner reference.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// API group of the owner, without version: postgresql.cnpg.io. Empty for the core group.
    #[schemars(length(max = 253))]
    pub group: String,
    /// Kind of the owner; * for every kind of the group.
    #[serde(default = "every_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
}

fn every_kind() -> String {
    "*".to_owned()
}

/// What the companion knows of a mirror. Written on transitions and at the ends of sweeps only.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageMirrorStatus {
    /// Ready, Healthy, CredentialsValid, NodesCanPull, SweepInTime, Writable and others.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The mirror's health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// The last complete sweep of each class of images.
    pub sweeps: Sweeps,
    /// Images seen in the mirror at the end of the last sweeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<i64>,
    /// Namespaces in which the pull secret is in place.
    pub pull_secret_namespaces: Vec<String>,
    /// Platforms of the cluster's nodes: linux/amd64.
    pub platforms: Vec<String>,
    /// Hosts of the upstream registries that fail, where spec.prefer is Upstream: until they are back,
    /// Pods pull from the mirror.
    #[schemars(length(max = 64))]
    pub failing_upstreams: Vec<String>,
    /// Owners that kept recreating rewritten Pods, and until when their Pods are therefore left alone: those of last.
    #[schemars(length(max = 100))]
    pub owners_left_alone: Vec<String>,
}

/// `status.health`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    /// Unknown, Healthy or Unhealthy.
    pub state: HealthState,
    /// What was last observed, in one word.
    #[serde(default)]
    pub reason: String,
    /// What else is known of it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the mirror came into this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<MicroTime>,
    /// Proofs older than this are void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_since: Option<MicroTime>,
}

/// The health of a mirror.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    Unknown,
    Healthy,
    Unhealthy,
}

/// `status.sweeps`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Sweeps {
    /// Of images by tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<SweepStatus>,
    /// Of images by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<SweepStatus>,
}

/// One complete sweep: each image of the class was answered for, or first noted as Unknown.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SweepStatus {
    /// When it began: the time from which it proves what it saw.
    pub started_at: MicroTime,
    /// When it ended.
    pub finished_at: MicroTime,
    /// The version of MirroredImages that a reader must have seen before believing this sweep.
    pub through_resource_version: String,
    /// Images that were there.
    pub present: i64,
    /// Images that were not there.
    pub missing: i64,
    /// Images of which the mirror gave no clear answer.
    pub unknown: i64,
}

/// What is known of one image in one mirror. Written by Kagami's companion only.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kagami.dev",
    version = "v1alpha1",
    kind = "MirroredImage",
    shortname = "mi",
    doc = "What is known of one image in one mirror. Written by Kagami's companion only, when something changes.",
    derive = "PartialEq",
    selectable = ".spec.mirror",
    selectable = ".spec.presence",
    printcolumn = r#"{"name": "Mirror", "type": "string", "jsonPath": ".spec.mirror"}"#,
    printcolumn = r#"{"name": "Image", "type": "string", "jsonPath": ".spec.image"}"#,
    printcolumn = r#"{"name": "Presence", "type": "string", "jsonPath": ".spec.presence"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".spec.reason", "priority":1}"#,
    printcolumn = r#"{"name": "Not Copied", "type": "string", "jsonPath": ".spec.notCopied", "priority":1}"#,
    printcolumn = r#"{"name": "Last Used", "type": "date", "jsonPath": ".spec.lastUsed", "priority":1}"#,
    printcolumn = r#"{"name": "Digest", "type": "string", "jsonPath": ".spec.digest", "priority":1}"#,
    printcolumn = r#"{"name": "Upstream Digest", "type": "string", "jsonPath": ".spec.upstreamDigest", "priority":1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
// It is written as a whole, by one alone. To keep a book for each field of who wrote it would be a third of what there is of
// an image in etcd, and nearly half of what a list costs an API server.
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct MirroredImageSpec {
    /// Name of the ImageMirror.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::validations(&[rules::IMMUTABLE_ENTRY])))]
    pub mirror: String,
    /// The upstream reference, in full: docker.io/library/nginx:1.27. One by tag and digest is
    /// stored by digest.
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = rules::validations(&[rules::IMMUTABLE_ENTRY])))]
    pub image: String,
    /// Whether the mirror has it: Present, Missing, or Unknown where it gave no clear answer.
    pub presence: Presence,
    /// Why, in one word, unless it is Present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// Why it was not copied to the mirror, in one word, where that was tried in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub not_copied: Option<String>,
    /// Digest of the manifest that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub digest: Option<String>,
    /// Digest of what the tag means upstream, where that is known to be another image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub upstream_digest: Option<String>,
    /// Media type of the manifest that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub media_type: Option<String>,
    /// Platforms of the nodes that could pull it: linux/amd64. For an image that is not an index its
    /// operating system, empty where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 64)))]
    pub platforms: Vec<String>,
    /// Bytes of the manifest and what it names, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub size: Option<i64>,
    /// Who may read it upstream, where that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// When the mirror last answered for it, apart from sweeps that found nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<MicroTime>,
    /// When a Pod last used it, to the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Time>,
}

/// Whether a mirror has an image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Present,
    Missing,
    Unknown,
}

impl MirroredImage {
    /// Returns the object as the companion writes it: in the place of that version, or anew.
    ///
    /// It tells the API server to keep no record of who set which field (Kubernetes' documentation, "Server-Side
    /// Apply", Clearing managedFields): only the companion writes these objects, and each replica that starts reads all
    /// of them, of which that record would be a quarter. An API server (1.36) listens to that where an object is
    /// written again, as one that is used is each day, and not where it is created.
    pub fn to_write(name: &str, spec: MirroredImageSpec, version: Option<String>) -> Self {
        let mut object = Self::new(name, spec);
        object.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        object.metadata.resource_version = version;
        object
    }

    /// Returns the name of the object for this mirror and normalised upstream reference: the first
    /// 40 hexadecimal digits of SHA-256 over both, with a line feed between.
    pub fn object_name(mirror: &str, image: &str) -> String {
        let hash = Sha256::digest(format!("{mirror}\n{image}"));
        let mut name = String::with_capacity(40);
        for byte in &hash[..20] {
            for nibble in [byte >> 4, byte & 15] {
                name.push(char::from_digit(nibble.into(), 16).unwrap_or_default());
            }
        }
        name
    }
}

/// Returns a time of a resource as the core has it; whole milliseconds, not before 1970.
pub fn timestamp(time: &MicroTime) -> Timestamp {
    Timestamp::from_millis(u64::try_from(time.0.as_millisecond()).unwrap_or(0))
}

/// Returns a time of the core as resources have it, at most the end of the year 9999.
pub fn micro_time(time: Timestamp) -> MicroTime {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    MicroTime(jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX))
}
