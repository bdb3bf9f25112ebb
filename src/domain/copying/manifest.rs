//! What a manifest names, as far as a copy of it must have it too.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::domain::{
    digest::Digest,
    platform::{self, Platforms},
};

/// The longest manifest that is read. Registries take 4 MiB or 10 MiB; regclient reads this much.
pub const MANIFEST_BYTES: usize = 8 * 1024 * 1024;

/// The media type of OCI's indexes, and of lists of what refers to an image.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The media types of manifests, those that list others and those that do not.
const INDEXES: [&str; 2] = [
    OCI_INDEX,
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const IMAGES: [&str; 3] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
];

/// What registries call the first form of manifests, which holds its image's history and no descriptors.
const SCHEMA_ONE: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The annotation by which an attestation in an index names the image that it is about (buildkit
/// `docs/attestations/attestation-storage.md`).
const ATTESTS: &str = "vnd.docker.reference.digest";

/// What a manifest names.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The media type under which it is pushed.
    pub media_type: String,
    /// The entries of an index.
    pub children: Vec<Entry>,
    /// Configuration and layers, or the blobs of an artifact, each as often as it is named.
    pub blobs: Vec<Part>,
    /// What this is a signature, an attestation or something else of.
    pub subject: Option<Digest>,
    /// What kind of thing it is, for those who list what refers to an image: as the manifest says, else the media
    /// type of its configuration (distribution-spec, "Listing Referrers").
    pub artifact_type: Option<String>,
    pub annotations: Option<BTreeMap<String, Value>>,
}

/// An entry of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub digest: Digest,
    pub media_type: Option<String>,
    /// Whether it may be a blob: caches list what is no manifest.
    pub may_be_blob: bool,
    pub size: u64,
    /// The nodes that take it; none for attestations. All for one that names no platform.
    pub takers: Platforms,
    /// The image that it attests.
    pub attests: Option<Digest>,
}

/// A blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub digest: Digest,
    pub size: u64,
    /// Whether it names addresses of its own, or a media type that says that others may not spread it: registries
    /// need not hold such a layer, and the addresses are never asked.
    pub is_foreign: bool,
}

/// Why a manifest is not copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("a manifest of schema version 1, which no runtime pulls any more")]
    SchemaOne,
    #[error("a manifest that is no JSON, or lacks what a manifest has")]
    Malformed,
    /// Both forms at once are how two readers come to see two images in one digest (CVE-2021-41190).
    #[error("a manifest that is an index and an image at once")]
    TwoForms,
    #[error("a manifest that says in its body that it is {inner}, and was sent as {outer}")]
    Contradicts { inner: String, outer: String },
    #[error("a digest that is neither sha256 nor sha512")]
    Digest,
}

impl Contents {
    /// Reads a manifest that was sent as a media type, if it was sent as any.
    pub fn read(sent_as: Option<&str>, body: &[u8]) -> Result<Self, Unsupported> {
        let outer = sent_as.filter(|sent_as| !is_generic(sent_as));
        let mut document: Document = serde_json::from_slice(body).map_err(|_| {
            if outer.is_some_and(is_schema_one) {
                Unsupported::SchemaOne
            } else {
                Unsupported::Malformed
            }
        })?;
        let inner = document.media_type.take().filter(|inner| !inner.is_empty());
        if [outer, inner.as_deref()].into_iter().flatten().any(is_schema_one)
            || document.schema_version == Some(1)
        {
            return Err(Unsupported::SchemaOne);
        }
        if let (Some(outer), Some(inner)) = (outer, &inner)
            && outer != inner
        {
            return Err(Unsupported::Contradicts {
                inner: inner.clone(),
                outer: outer.to_owned(),
            });
        }
        let names_blobs = document.config.is_some() || document.layers.is_some() || document.blobs.is_some();
        let media_type = match (outer.map(str::to_owned).or(inner), &document.manifests) {
            (_, Some(_)) if names_blobs => return Err(Unsupported::TwoForms),
            (_, None) if !names_blobs => return Err(Unsupported::Malformed),
            (Some(media_type), manifests) => {
                // A known name must be that of the form at hand.
                let others: &[&str] = if manifests.is_some() { &IMAGES } else { &INDEXES };
                if others.contains(&media_type.as_str()) {
                    return Err(Unsupported::TwoForms);
                }
                media_type
            }
            (None, manifests) => document.inferred(manifests.is_some()).to_owned(),
        };
        let subject = document.subject.as_ref().map(Descriptor::digest).transpose()?;
        let config_type = document
            .config
            .as_ref()
            .and_then(|config| config.media_type.clone());
        let parts = document
            .config
            .iter()
            .chain(document.layers.iter().flatten())
            .chain(document.blobs.iter().flatten());
        Ok(Self {
            blobs: parts.map(Descriptor::part).collect::<Result<_, _>>()?,
            children: entries(document.manifests.as_deref().unwrap_or_default())?,
            artifact_type: document
                .artifact_type
                .filter(|kind| !kind.is_empty())
                .or(config_type),
            annotations: document.annotations,
            media_type,
            subject,
        })
    }

    /// Whether it lists other manifests.
    pub fn is_index(&self) -> bool {
        !self.children.is_empty() || INDEXES.contains(&self.media_type.as_str())
    }
}

/// Whether a media type is one that servers give to whatever they do not know.
fn is_generic(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/json" | "text/plain" | "application/octet-stream" | "text/json"
    )
}

fn is_schema_one(media_type: &str) -> bool {
    media_type.starts_with(SCHEMA_ONE)
}

fn entries(manifests: &[Descriptor]) -> Result<Vec<Entry>, Unsupported> {
    let named: Vec<Option<Platforms>> = manifests.iter().map(Descriptor::platform).collect();
    let entry = |(descriptor, takers): (&Descriptor, Platforms)| {
        let known = |media_type: &String| {
            INDEXES.contains(&media_type.as_str()) || IMAGES.contains(&media_type.as_str())
        };
        let attests = descriptor
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(ATTESTS)?.as_str()?.parse().ok());
        Ok(Entry {
            digest: descriptor.digest()?,
            may_be_blob: descriptor
                .media_type
                .as_ref()
                .is_some_and(|media_type| !known(media_type)),
            media_type: descriptor
                .media_type
                .clone()
                .filter(|media_type| !media_type.is_empty()),
            size: descriptor.size,
            // What it holds is not known before it is read.
            takers: if descriptor.platform.is_none() {
                Platforms::ALL
            } else {
                takers
            },
            attests,
        })
    };
    let takers = platform::takers(&named);
    manifests.iter().zip(takers).map(entry).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Of artifact manifests, which the specification had for a while.
    blobs: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, Value>>,
}

impl Document {
    /// Returns the media type that a manifest has which names none.
    fn inferred(&self, is_index: bool) -> &'static str {
        let is_docker = |descriptor: &Descriptor| {
            let media_type = descriptor.media_type.as_deref().unwrap_or_default();
            media_type.starts_with("application/vnd.docker.")
        };
        let first = self.config.as_ref().or_else(|| self.manifests.as_ref()?.first());
        match (is_index, first.is_some_and(is_docker)) {
            (true, false) => INDEXES[0],
            (true, true) => INDEXES[1],
            (false, true) => IMAGES[1],
            (false, false) if self.config.is_none() && self.blobs.is_some() => IMAGES[2],
            (false, false) => IMAGES[0],
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    urls: Option<Vec<Value>>,
    platform: Option<Platform>,
    annotations: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Platform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Descriptor {
    fn digest(&self) -> Result<Digest, Unsupported> {
        self.digest.parse().map_err(|_| Unsupported::Digest)
    }

    fn part(&self) -> Result<Part, Unsupported> {
        let kind = self.media_type.as_deref().unwrap_or_default();
        let names_addresses = self.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        Ok(Part {
            digest: self.digest()?,
            size: self.size,
            is_foreign: names_addresses || kind.contains("nondistributable") || kind.contains(".foreign."),
        })
    }

    fn platform(&self) -> Option<Platforms> {
        let platform = self.platform.as_ref()?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let architecture = text(&platform.architecture);
        // What names something that is no platform is for no node.
        Some(if architecture.is_empty() {
            Platforms::NONE
        } else {
            Platforms::of(&text(&platform.os), &architecture, &text(&platform.variant))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ZEROS: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    const ONES: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

    fn read(sent_as: &str, body: &Value) -> Result<Contents, Unsupported> {
        Contents::read(
            Some(sent_as).filter(|sent_as| !sent_as.is_empty()),
            body.to_string().as_bytes(),
        )
    }

    fn image() -> Value {
        json!({"schemaVersion": 2, "config": {"digest": ZEROS, "size": 2}, "layers": []})
    }

    #[test]
    fn the_media_type_is_the_one_sent_else_the_one_written_else_the_one_of_the_form() {
        let of = |sent_as: &str, body: &Value| read(sent_as, body).map(|contents| contents.media_type);
        let mut written = image();
        written["mediaType"] = IMAGES[0].into();
        let mut docker = image();
        docker["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
        for (sent_as, body, expected) in [
            ("application/json", &written, IMAGES[0]),
            (IMAGES[0], &image(), IMAGES[0]),
            (
                "application/vnd.example+json",
                &image(),
                "application/vnd.example+json",
            ),
            ("", &image(), IMAGES[0]),
            ("text/plain", &docker, IMAGES[1]),
            ("", &json!({"manifests": []}), INDEXES[0]),
            ("", &json!({"blobs": []}), IMAGES[2]),
        ] {
            assert_eq!(of(sent_as, body).as_deref(), Ok(expected), "{sent_as} {body}");
        }
        assert!(matches!(
            of(IMAGES[1], &written),
            Err(Unsupported::Contradicts { .. })
        ));
    }

    #[test]
    fn what_two_readers_would_read_differently_is_not_copied() {
        let both = json!({"config": {"digest": ZEROS, "size": 2}, "manifests": []});
        assert_eq!(read("", &both), Err(Unsupported::TwoForms));
        assert_eq!(read(INDEXES[0], &image()), Err(Unsupported::TwoForms));
        assert_eq!(
            read(IMAGES[0], &json!({"manifests": []})),
            Err(Unsupported::TwoForms)
        );
        assert_eq!(read("", &json!({})), Err(Unsupported::Malformed));
        assert_eq!(Contents::read(None, b"<html>"), Err(Unsupported::Malformed));
        let schema_one = json!({"schemaVersion": 1, "fsLayers": []});
        assert_eq!(read("", &schema_one), Err(Unsupported::SchemaOne));
        let sent_as = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert_eq!(read(sent_as, &schema_one), Err(Unsupported::SchemaOne));
        let weak = json!({"layers": [{"digest": "md5:0", "size": 1}]});
        assert_eq!(read("", &weak), Err(Unsupported::Digest));
    }

    #[test]
    fn foreign_layers_attestations_and_caches_are_told_apart() {
        let layers = json!({"layers": [
            {"digest": ZEROS, "size": 1, "urls": ["https://example.com/layer"]},
            {"digest": ZEROS, "size": 1, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
            {"digest": ZEROS, "size": 1, "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "urls": []},
        ]});
        let foreign: Vec<bool> = read("", &layers)
            .unwrap()
            .blobs
            .iter()
            .map(|part| part.is_foreign)
            .collect();
        assert_eq!(foreign, [true, true, false]);
        let index = json!({"manifests": [
            {"digest": ZEROS, "size": 1, "mediaType": IMAGES[0], "platform": {"os": "linux", "architecture": "s390x"}},
            {"digest": ONES, "size": 1, "mediaType": IMAGES[0], "platform": {"os": "unknown", "architecture": "unknown"},
             "annotations": {ATTESTS: ZEROS}},
            {"digest": ONES, "size": 1, "mediaType": "application/vnd.buildkit.cacheconfig.v0"},
        ]});
        let children = read("", &index).unwrap().children;
        let takers: Vec<_> = children
            .iter()
            .map(|child| child.takers.names().count())
            .collect();
        assert_eq!((takers[0], takers[1]), (1, 0));
        assert_eq!(children[2].takers, Platforms::ALL);
        assert_eq!(children[1].attests, ZEROS.parse().ok());
        let blobs: Vec<bool> = children.iter().map(|child| child.may_be_blob).collect();
        assert_eq!(blobs, [false, false, true]);
    }
}
