//! Objects as they come from the API server, read so that none of them can stop a watch.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::Value;

use super::watch::{Versioned, version};
use crate::{
    api::{
        self, FORWARD_ALLOWED,
        mirror::Connection,
        newer::{self, Reading},
        schema,
        v1alpha1::{ImageMirrorStatus, MirroredImage, MirroredImageSpec, SweepStatus, timestamp},
    },
    domain::{
        health::Health,
        image::{ImageKey, KeyRef},
        lent::Lent,
        mirror::Mirror,
        owners::{LeftAlone, Owner},
        platform::Platforms,
        presence::{Presence, Swept, Version},
        selector::Labels,
        standing::Standing,
        time::Timestamp,
    },
};

/// The part of an object's metadata that matters here. The rest, `managedFields` first of all, is
/// passed over while reading.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub resource_version: String,
    #[serde(default)]
    pub generation: i64,
    #[serde(default)]
    pub labels: Option<Labels>,
    #[serde(default)]
    pub annotations: Option<Annotations>,
    /// Since when it is being deleted, if it is.
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
}

/// The annotations that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Annotations {
    /// [`api::SEEN_WELL`].
    #[serde(default, rename = "kagami.dev/seen-well")]
    pub seen_well: Option<String>,
    /// [`api::PAUSED`].
    #[serde(default, rename = "kagami.dev/paused")]
    pub paused: Option<String>,
}

/// Any object: its contents are looked at apart, so that none makes it undecodable.
#[derive(Clone, Debug, Deserialize)]
pub struct Object {
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: Value,
    #[serde(default)]
    pub status: Value,
}

impl Versioned for Object {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// An object's metadata alone.
#[derive(Clone, Debug, Deserialize)]
pub struct Outline {
    #[serde(default)]
    pub metadata: Metadata,
}

impl Versioned for Outline {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// The part of an object that tells whose it is.
#[derive(Clone, Debug, Deserialize)]
pub struct Owned {
    #[serde(default)]
    pub metadata: OwnedMetadata,
}

/// Its metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnedMetadata {
    pub uid: String,
    pub generation: i64,
    owner_references: Vec<OwnerReference>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OwnerReference {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    controller: bool,
}

impl Owned {
    /// Returns the owner that controls it, if one does and can be.
    pub fn owner(&self) -> Option<Owner<'_>> {
        let mut owners = self.metadata.owner_references.iter();
        let owner = owners.find(|owner| owner.controller)?;
        let owner = Owner {
            api_version: &owner.api_version,
            kind: &owner.kind,
            name: &owner.name,
            uid: &owner.uid,
        };
        owner.can_be().then_some(owner)
    }
}

/// The part of a Node that is read of one alone.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub spec: NodeSpec,
}

/// Its spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// It is cordoned.
    pub unschedulable: bool,
}

/// A ConfigMap.
#[derive(Clone, Debug, Deserialize)]
pub struct ConfigMap {
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub data: Option<BTreeMap<String, String>>,
}

impl Versioned for ConfigMap {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// The keys under which it is noted in a ConfigMap which owners are left alone.
pub const LOOPS_KEY: &str = "loops";
pub const CONTROLLERS_KEY: &str = "controllers";

/// Returns what a ConfigMap notes of owners that fight rewrites.
pub fn owners(data: Option<&BTreeMap<String, String>>) -> LeftAlone {
    let of = |key: &str| data.and_then(|data| data.get(key)).map_or("", String::as_str);
    LeftAlone::read(of(LOOPS_KEY), of(CONTROLLERS_KEY))
}

/// The key under which it is noted in a ConfigMap which originals Pods record.
pub const ORIGINALS_KEY: &str = "originals";

/// Returns the originals that a ConfigMap notes.
pub fn lent(data: Option<&BTreeMap<String, String>>) -> Lent {
    let text = data.and_then(|data| data.get(ORIGINALS_KEY));
    text.map(|text| Lent::read(text)).unwrap_or_default()
}

/// The part of a Secret that is read. `Debug` names it only.
#[derive(Clone, Deserialize)]
pub struct Secret {
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default, rename = "type")]
    pub type_: String,
    #[serde(default)]
    pub data: Option<BTreeMap<String, ByteString>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.metadata.name)
            .finish_non_exhaustive()
    }
}

impl Versioned for Secret {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// What of a Secret in a tenant's namespace is read. `Debug` names it only.
#[derive(Clone, Deserialize)]
pub struct PullSecret {
    #[serde(default)]
    pub metadata: PullSecretMetadata,
    #[serde(default, rename = "type")]
    pub type_: String,
    #[serde(default)]
    pub immutable: Option<bool>,
    #[serde(default)]
    pub data: Option<PullSecretData>,
}

/// Its metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PullSecretMetadata {
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub labels: Option<Labels>,
    pub deletion_timestamp: Option<String>,
}

/// Its Docker configuration alone.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct PullSecretData {
    #[serde(rename = ".dockerconfigjson")]
    pub config: Option<ByteString>,
}

impl fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSecret")
            .field("namespace", &self.metadata.namespace)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PullSecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSecretData").finish_non_exhaustive()
    }
}

impl Versioned for PullSecret {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// Whether the brake is on, as the heartbeat Lease says.
pub fn is_paused(lease: &Object) -> bool {
    let annotations = lease.metadata.annotations.as_ref();
    let written = annotations.and_then(|annotations| annotations.paused.as_deref());
    // Whatever somebody wrote who was in a hurry.
    written.is_some_and(|written| !["", "false"].contains(&written))
}

impl Outline {
    /// Returns the object's name and labels.
    pub fn into_labels(self) -> (String, Labels) {
        let Metadata { name, labels, .. } = self.metadata;
        (name, labels.unwrap_or_default())
    }
}

/// Reads ImageMirrors with the schemas that this program knows.
#[derive(Debug)]
pub struct Reader {
    mirror: Value,
    status: Value,
}

/// What the status of an ImageMirror tells.
#[derive(Clone, Debug)]
pub struct SharedStatus {
    pub health: Health,
    pub tags: Option<Swept>,
    pub digests: Option<Swept>,
    pub standing: Arc<Standing>,
    pub failing_upstreams: Vec<String>,
}

impl Default for Reader {
    fn default() -> Self {
        let mirror = schema::image_mirror();
        let status = mirror["properties"]["status"].clone();
        Self { mirror, status }
    }
}

impl Reader {
    /// Returns the mirror that an ImageMirror describes, or everything that is wrong with it; and what of
    /// it this program does not know. The status is not looked at.
    pub fn mirror(&self, object: &Object) -> Reading<(Mirror, Connection)> {
        let Reading { taken, unknown } = newer::read(&self.mirror, &object.metadata.name, &object.spec);
        Reading {
            taken: taken.and_then(|resource| api::mirror::mirror(&resource)),
            unknown,
        }
    }

    /// Returns a status. What cannot be read, as of a newer companion, is as if it were not there.
    pub fn status(&self, status: &Value) -> ImageMirrorStatus {
        let status = status
            .is_object()
            .then(|| schema::decode(&self.status, status.clone()).0);
        status.flatten().unwrap_or_default()
    }
}

impl From<ImageMirrorStatus> for SharedStatus {
    fn from(status: ImageMirrorStatus) -> Self {
        Self {
            // A mirror of which nobody told since when proofs count has none.
            health: api::health::health(&status).unwrap_or_else(|| Health::unknown(Timestamp::default())),
            tags: status.sweeps.tag.as_ref().and_then(swept),
            digests: status.sweeps.digest.as_ref().and_then(swept),
            standing: Arc::new(Standing {
                platforms: nodes(&status.platforms),
                pull_secret_namespaces: status.pull_secret_namespaces.into_iter().collect(),
                forward_allowed: status
                    .conditions
                    .iter()
                    .any(|condition| condition.type_ == FORWARD_ALLOWED && condition.status == "True"),
            }),
            failing_upstreams: status.failing_upstreams,
        }
    }
}

/// Returns the platforms of nodes. An older companion told no operating systems: what it named is taken for
/// Linux nodes, as there hardly is an architecture without any.
fn nodes(names: &[String]) -> Platforms {
    let named = names
        .iter()
        .map(|name| Platforms::parse(name).unwrap_or_else(|| Platforms::of("linux", name, "")));
    named.fold(Platforms::NONE, Platforms::or)
}

fn swept(status: &SweepStatus) -> Option<Swept> {
    Some(Swept {
        started_at: timestamp(&status.started_at),
        through: version(&status.through_resource_version)?,
    })
}

/// What a MirroredImage tells of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub mirror: String,
    pub key: ImageKey,
    pub presence: Presence,
    pub verified_at: Timestamp,
    /// When a Pod last used it.
    pub last_used: Timestamp,
    pub version: Version,
    /// All that it says. None if this program cannot read it, as of a newer companion; then the rest is as if
    /// nobody had looked.
    pub spec: Option<MirroredImageSpec>,
}

/// Returns what a MirroredImage tells. Nothing if its image is no key, or its name is not the one that belongs
/// to its mirror and image, so that there is never a second one for the same.
pub fn entry(object: &Object) -> Option<Entry> {
    let text = |field: &str| object.spec[field].as_str();
    let (mirror, image) = (text("mirror")?, text("image")?);
    if object.metadata.name != MirroredImage::object_name(mirror, image) {
        return None;
    }
    let key = KeyRef::parse(image).ok()?;
    let spec = MirroredImageSpec::deserialize(&object.spec).ok();
    let presence = spec.as_ref().map(api::image::presence);
    Some(Entry {
        mirror: mirror.to_owned(),
        key: key.into(),
        presence: presence.unwrap_or(Presence::Unknown(None)),
        verified_at: spec.as_ref().map(api::image::verified_at).unwrap_or_default(),
        last_used: spec.as_ref().map(api::image::last_used).unwrap_or_default(),
        version: version(&object.metadata.resource_version).unwrap_or(Version::NEVER_SWEPT),
        spec,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::health::State;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn image(change: impl FnOnce(&mut Value)) -> Object {
        let (mirror, image) = ("main", "docker.io/library/nginx:1.27");
        let mut value = json!({
            "metadata": {
                "name": MirroredImage::object_name(mirror, image),
                "resourceVersion": "17",
                "managedFields": [{"manager": "kagami", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "mirror": mirror,
                "image": image,
                "presence": "Present",
                "digest": DIGEST,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "platforms": ["linux/amd64", "linux/arm64/v8"],
                "access": "Public",
                "verifiedAt": "2026-01-02T03:04:05.678000Z",
            },
        });
        change(&mut value);
        object(value)
    }

    #[test]
    fn an_image_becomes_an_entry() {
        let entry = entry(&image(|_| ())).unwrap();
        let Presence::Present(proof) = &entry.presence else {
            panic!("{entry:?}")
        };
        assert_eq!(entry.key.as_str(), "docker.io/library/nginx:1.27");
        assert_eq!(entry.version, Version(17));
        assert_eq!(entry.verified_at.to_string(), "2026-01-02T03:04:05.678Z");
        assert_eq!(proof.digest.to_string(), DIGEST);
        assert_eq!(
            proof.platforms.names().collect::<Vec<_>>(),
            ["linux/amd64", "linux/arm64"]
        );
        assert_eq!(proof.public, Some(true));
    }

    #[test]
    fn what_cannot_be_read_is_not_known() {
        let check = |change: fn(&mut Value)| {
            let entry = entry(&image(change)).unwrap();
            assert_eq!(entry.presence, Presence::Unknown(None), "{entry:?}");
        };
        check(|image| image["spec"]["presence"] = "Perhaps".into());
        check(|image| image["spec"]["digest"] = "sha256:short".into());
        check(|image| image["spec"]["mediaType"] = "text/html".into());
        check(|image| image["spec"]["verifiedAt"] = json!({"seconds": 5}));
        check(|image| image["spec"]["verifiedAt"] = Value::Null);
    }

    #[test]
    fn the_brake_is_on_unless_it_says_that_it_is_not() {
        let lease =
            |annotations: Value| object(json!({"metadata": {"name": "x", "annotations": annotations}}));
        let check = |annotations: Value, expected: bool| {
            assert_eq!(is_paused(&lease(annotations.clone())), expected, "{annotations}");
        };
        for on in ["true", "yes", "TRUE", "until monday", api::PAUSED_BY_SETTINGS] {
            check(json!({api::PAUSED: on}), true);
        }
        check(json!({api::PAUSED: "false"}), false);
        check(json!({api::PAUSED: ""}), false);
        check(json!({api::SEEN_WELL: "{}"}), false);
        check(Value::Null, false);
    }

    #[test]
    fn an_image_by_another_name_is_none() {
        assert_eq!(
            entry(&image(|image| image["metadata"]["name"] = "nginx".into())),
            None
        );
        assert_eq!(
            entry(&image(|image| image["spec"]["image"] = "redis:8".into())),
            None
        );
        assert_eq!(entry(&image(|image| image["spec"] = Value::Null)), None);
    }

    /// There is one object for an image, and it is known by the image's key.
    #[test]
    fn an_image_that_is_not_written_as_its_key_is_none() {
        for written in [
            "nginx:1.27",
            "docker.io/library/nginx",
            "docker.io/nginx:1.27",
            "Docker.io/library/nginx:1.27",
            "not an image",
            "",
        ] {
            let object = image(|image| {
                image["spec"]["image"] = written.into();
                image["metadata"]["name"] = MirroredImage::object_name("main", written).into();
            });
            assert_eq!(entry(&object), None, "{written}");
        }
    }

    #[test]
    fn a_status_of_a_newer_companion_is_read_as_far_as_it_is_known() {
        let told = |status: Value| SharedStatus::from(Reader::default().status(&status));
        let status = told(json!({
            "health": {"state": "Healthy", "provenSince": "2026-01-02T03:04:05.000000Z", "mood": "good"},
            "sweeps": {"tag": {
                "startedAt": "2026-01-02T03:05:05.000000Z", "finishedAt": "2026-01-02T03:05:06.000000Z",
                "throughResourceVersion": "99", "present": 1, "missing": 0, "unknown": 0,
            }},
            "platforms": ["arm64", "linux/amd64"],
            "weather": {"sunny": true},
        }));
        assert_eq!(status.health.state, State::Healthy);
        assert_eq!(status.tags.unwrap().through, Version(99));
        let both = ["arm64", "amd64"].map(|architecture| Platforms::of("linux", architecture, ""));
        assert_eq!(status.standing.platforms, both[0].or(both[1]));
        // A state that this program does not know, or a health without its date, is none.
        let unknown = json!({"state": "Splendid", "provenSince": "2026-01-02T03:04:05.000000Z"});
        let status = told(json!({"health": unknown, "platforms": ["windows/amd64"]}));
        assert_eq!(
            (status.health.state, status.standing.platforms),
            (State::Unknown, Platforms::of("windows", "amd64", ""))
        );
        for status in [json!({"health": {"state": "Healthy"}}), json!("?"), Value::Null] {
            assert_eq!(told(status).health.state, State::Unknown);
        }
    }
}
