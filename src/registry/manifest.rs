//! Reads the body of a manifest: its digest, its form, and what it names.

use std::borrow::Cow;

use serde::Deserialize;
use sha2::{Sha256, Sha512, digest::DynDigest};

use super::SAMPLE_BYTES;
use crate::domain::{
    answer::{Ambiguity, Blob, Child, Manifest, MediaType},
    digest::{Algorithm, Digest},
    platform::{self, Platforms},
};

/// Returns the hash function of a digest, to be fed.
pub(super) fn hasher(algorithm: Algorithm) -> Box<dyn DynDigest + Send> {
    match algorithm {
        Algorithm::Sha256 => Box::new(Sha256::default()),
        Algorithm::Sha512 => Box::new(Sha512::default()),
    }
}

/// Returns the digest of what a hash function was fed.
pub(super) fn finish(algorithm: Algorithm, hasher: Box<dyn DynDigest + Send>) -> Digest {
    Digest::from_hash(algorithm, &hasher.finalize())
        .expect("the hash function gives as many bytes as its digest holds")
}

fn hash(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = hasher(algorithm);
    hasher.update(bytes);
    finish(algorithm, hasher)
}

/// Returns what a manifest's body holds, if it has the digest asked for and the one that the headers
/// told, and the form that its media type promises.
pub(super) fn read(
    media_type: MediaType,
    body: &[u8],
    asked: Option<&Digest>,
    told: Option<&Digest>,
) -> Result<Manifest, Ambiguity> {
    let digest = hash(asked.or(told).map_or(Algorithm::Sha256, Digest::algorithm), body);
    if asked.is_some_and(|asked| *asked != digest) {
        return Err(Ambiguity::DigestMismatch);
    }
    if let Some(told) = told
        && *told != digest
        && (told.algorithm() == digest.algorithm() || *told != hash(told.algorithm(), body))
    {
        return Err(Ambiguity::DigestMismatch);
    }

    let document: Document<'_> = serde_json::from_slice(body).map_err(|_| Ambiguity::Malformed)?;
    // The specification wants a body that contradicts its Content-Type rejected; one that could be
    // read as either form is how two readers come to see two images in one digest.
    if document
        .media_type
        .is_some_and(|inner| inner != media_type.as_str())
    {
        return Err(Ambiguity::Malformed);
    }
    let (children, blob, config) = match (document.manifests, document.config, document.layers) {
        (Some(entries), None, None) if media_type.is_index() => (children(&entries)?, None, None),
        (None, Some(config), layers) if !media_type.is_index() => {
            let read = blob(&config);
            let layers = layers.unwrap_or_default();
            (Vec::new(), sample(config, layers), read)
        }
        _ => return Err(Ambiguity::Malformed),
    };
    Ok(Manifest {
        digest,
        media_type,
        size: Some(body.len() as u64),
        children,
        blob,
        config,
    })
}

/// Returns the platform that an image's configuration says it is for; none if it is none of an image.
pub(super) fn platform_of(config: &[u8]) -> Option<Platforms> {
    let config: Platform<'_> = serde_json::from_slice(config).ok()?;
    config.platform()
}

fn children(entries: &[Entry<'_>]) -> Result<Vec<Child>, Ambiguity> {
    let named = |entry: &Entry<'_>| {
        let platform = entry.platform.as_ref()?;
        // What names something that is no platform is for no node.
        Some(platform.platform().unwrap_or(Platforms::NONE))
    };
    let platforms: Vec<_> = entries.iter().map(named).collect();
    let of_entry = |(entry, takers): (&Entry<'_>, Platforms)| {
        let digest = entry.digest.parse().map_err(|_| Ambiguity::Malformed)?;
        // Caches list what is no manifest at all. Whoever takes that pulls nothing.
        let media_type = entry.media_type.as_deref().map(MediaType::from_content_type);
        let is_manifest = media_type.is_none_or(|known| known.is_some());
        let is_index = media_type.flatten().is_some_and(MediaType::is_index);
        Ok(Child {
            digest,
            takers: if is_manifest { takers } else { Platforms::NONE },
            is_whole: entry.platform.is_some() && !is_index,
        })
    };
    let takers = platform::takers(&platforms);
    entries.iter().zip(takers).map(of_entry).collect()
}

fn blob(descriptor: &Descriptor<'_>) -> Option<Blob> {
    Some(Blob {
        digest: descriptor.digest.parse().ok()?,
        size: descriptor.size,
    })
}

/// Returns the blob by which the data path is looked at: the smallest that is no smaller than [`SAMPLE_BYTES`], or
/// else the largest. Layers with `urls` are kept elsewhere (foreign layers) and no registry need hold them.
fn sample(config: Descriptor<'_>, layers: Vec<Descriptor<'_>>) -> Option<Blob> {
    layers
        .into_iter()
        .chain([config])
        .filter(|descriptor| descriptor.urls.as_ref().is_none_or(Vec::is_empty))
        .filter_map(|descriptor| blob(&descriptor))
        .min_by_key(|blob| {
            let missing = SAMPLE_BYTES.saturating_sub(blob.size);
            (missing, blob.size)
        })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    manifests: Option<Vec<Entry<'a>>>,
    #[serde(borrow)]
    config: Option<Descriptor<'a>>,
    #[serde(borrow)]
    layers: Option<Vec<Descriptor<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    #[serde(borrow)]
    platform: Option<Platform<'a>>,
}

/// Of an entry, or of an image's configuration, which has the same fields among others.
#[derive(Deserialize)]
struct Platform<'a> {
    #[serde(borrow)]
    os: Option<Cow<'a, str>>,
    #[serde(borrow)]
    architecture: Option<Cow<'a, str>>,
    #[serde(borrow)]
    variant: Option<Cow<'a, str>>,
}

impl Platform<'_> {
    fn platform(&self) -> Option<Platforms> {
        let architecture = self.architecture.as_deref().filter(|name| !name.is_empty())?;
        let text = |field: &Option<Cow<'_, str>>| field.as_deref().unwrap_or_default().to_owned();
        Some(Platforms::of(&text(&self.os), architecture, &text(&self.variant)))
    }
}

#[derive(Deserialize)]
struct Descriptor<'a> {
    #[serde(borrow)]
    digest: Cow<'a, str>,
    size: u64,
    urls: Option<Vec<serde::de::IgnoredAny>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROS: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    const ONES: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

    fn image(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,{extra}"config":{{"digest":"{ZEROS}","size":300}},
               "layers":[{{"digest":"{ONES}","size":200}},
                         {{"digest":"{ZEROS}","size":1,"urls":["https://example.com/layer"]}}]}}"#
        )
    }

    #[track_caller]
    fn check(media_type: MediaType, body: &str, expected: &Result<(), Ambiguity>) {
        assert_eq!(
            &read(media_type, body.as_bytes(), None, None).map(|_| ()),
            expected
        );
    }

    #[test]
    fn body_must_have_the_form_that_its_media_type_promises() {
        let oci = r#""mediaType":"application/vnd.oci.image.manifest.v1+json","#;
        check(MediaType::OciManifest, &image(""), &Ok(()));
        check(MediaType::OciManifest, &image(oci), &Ok(()));
        check(MediaType::DockerManifest, &image(oci), &Err(Ambiguity::Malformed));
        check(MediaType::OciIndex, &image(""), &Err(Ambiguity::Malformed));
        check(MediaType::OciIndex, r#"{"manifests":[]}"#, &Ok(()));
        check(
            MediaType::OciManifest,
            r#"{"manifests":[]}"#,
            &Err(Ambiguity::Malformed),
        );
        // Both forms at once (CVE-2021-41190).
        check(
            MediaType::OciManifest,
            &image(r#""manifests":[],"#),
            &Err(Ambiguity::Malformed),
        );
        check(
            MediaType::OciIndex,
            &image(r#""manifests":[],"#),
            &Err(Ambiguity::Malformed),
        );
        check(
            MediaType::OciIndex,
            r#"{"manifests":[{"digest":"md5:0"}]}"#,
            &Err(Ambiguity::Malformed),
        );
        check(MediaType::OciManifest, "{", &Err(Ambiguity::Malformed));
        check(MediaType::OciManifest, "", &Err(Ambiguity::Malformed));
        check(
            MediaType::OciManifest,
            &"[".repeat(100_000),
            &Err(Ambiguity::Malformed),
        );
    }

    #[test]
    fn blob_that_the_registry_must_hold_and_that_is_large_enough_is_named() {
        let sample = |body: &str| {
            let manifest = read(MediaType::OciManifest, body.as_bytes(), None, None).unwrap();
            manifest.blob.map(|blob| (blob.digest.to_string(), blob.size))
        };
        // The largest of two small ones; the smallest of two large ones.
        assert_eq!(sample(&image("")), Some((ZEROS.to_owned(), 300)));
        let large = |size: u64| image("").replace(r#""size":200"#, &format!(r#""size":{size}"#));
        assert_eq!(
            sample(&large(SAMPLE_BYTES)),
            Some((ONES.to_owned(), SAMPLE_BYTES))
        );
        let larger = large(1 << 30).replace(r#""size":300"#, r#""size":70000"#);
        assert_eq!(sample(&larger), Some((ZEROS.to_owned(), 70_000)));
    }

    /// Checks which nodes take each entry, and whether it tells by itself.
    #[track_caller]
    fn check_children(entries: &str, expected: &[(&[&str], bool)]) {
        let body = format!(r#"{{"manifests":[{}]}}"#, entries.replace("DIGEST", ONES));
        let manifest = read(MediaType::OciIndex, body.as_bytes(), None, None).unwrap();
        let children: Vec<(Vec<_>, bool)> = manifest
            .children
            .iter()
            .map(|child| (child.takers.names().collect(), child.is_whole))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(names, is_whole)| (names.to_vec(), *is_whole))
            .collect();
        assert_eq!(children, expected);
    }

    #[test]
    fn no_node_takes_an_attestation() {
        check_children(
            r#"{"digest":"DIGEST","platform":{"architecture":"s390x","os":"linux"}},
               {"digest":"DIGEST","platform":{"architecture":"unknown","os":"unknown"}},
               {"digest":"DIGEST","platform":{}}"#,
            &[(&["linux/s390x"], true), (&[], true), (&[], true)],
        );
    }

    #[test]
    fn entries_are_told_apart_by_operating_system_and_variant() {
        check_children(
            r#"{"digest":"DIGEST","platform":{"architecture":"amd64","os":"windows","os.version":"10.0"}},
               {"digest":"DIGEST","platform":{"architecture":"386","os":"linux"}},
               {"digest":"DIGEST","platform":{"architecture":"arm","os":"linux","variant":"v6"}}"#,
            &[
                (&["windows/amd64"], true),
                (&["linux/amd64", "linux/386"], true),
                (
                    &["linux/arm64", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"],
                    true,
                ),
            ],
        );
    }

    #[test]
    fn what_names_no_platform_or_is_an_index_is_not_known_by_its_entry() {
        let index = "application/vnd.oci.image.index.v1+json";
        check_children(
            &format!(
                r#"{{"digest":"DIGEST","mediaType":"{index}","platform":{{"architecture":"s390x","os":"linux"}}}},
                   {{"digest":"DIGEST","mediaType":"application/vnd.buildkit.cacheconfig.v0"}}"#
            ),
            &[(&["linux/s390x"], false), (&[], false)],
        );
        let body = format!(r#"{{"manifests":[{{"digest":"{ONES}"}}]}}"#);
        let manifest = read(MediaType::OciIndex, body.as_bytes(), None, None).unwrap();
        let child = &manifest.children[0];
        assert!(child.takers.contains(Platforms::of("linux", "amd64", "")) && !child.is_whole);
    }

    #[test]
    fn a_configuration_tells_its_platform() {
        let of = |config: &str| platform_of(config.as_bytes());
        assert_eq!(
            of(r#"{"os":"linux","architecture":"arm","variant":"v6","history":[]}"#),
            Some(Platforms::of("linux", "arm", "v6"))
        );
        assert_eq!(of(r#"{"os":"linux"}"#), None);
        assert_eq!(of(r#"{"architecture":"amd64","os":7}"#), None);
        assert_eq!(of("[]"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn digest_asked_and_digest_told_must_be_those_of_the_body() {
        let body = image("");
        let of_body = |algorithm| hash(algorithm, body.as_bytes());
        let (short, long) = (of_body(Algorithm::Sha256), of_body(Algorithm::Sha512));
        let other: Digest = ONES.parse().unwrap();
        let digest = |asked: Option<&Digest>, told: Option<&Digest>| {
            read(MediaType::OciManifest, body.as_bytes(), asked, told).map(|manifest| manifest.digest)
        };
        assert_eq!(digest(None, None), Ok(short.clone()));
        assert_eq!(digest(None, Some(&long)), Ok(long.clone()));
        assert_eq!(digest(Some(&long), Some(&short)), Ok(long.clone()));
        assert_eq!(digest(Some(&other), None), Err(Ambiguity::DigestMismatch));
        assert_eq!(digest(None, Some(&other)), Err(Ambiguity::DigestMismatch));
        assert_eq!(digest(Some(&long), Some(&other)), Err(Ambiguity::DigestMismatch));
    }
}
