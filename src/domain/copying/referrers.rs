//! Lists of what refers to an image, in registries that keep none themselves.
//!
//! There the list is an index under a tag made of the image's digest (distribution-spec, "Referrers Tag Schema"),
//! which whoever pushes a referrer reads, changes and writes. Entries of others stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::manifest::{Contents, OCI_INDEX, Unsupported};
use crate::domain::digest::Digest;

/// How deep referrers of referrers are followed.
pub const DEPTH: usize = 4;

/// How many things may refer to one image and to what refers to it.
pub const REFERRERS: usize = 1000;

/// The ends of the tags by which cosign before version 3 attaches things.
pub const TAG_ENDS: [&str; 3] = ["sig", "att", "sbom"];

/// Returns the tag under which the list of what refers to a manifest stands.
pub fn list_tag(subject: &Digest) -> String {
    subject.to_string().replace(':', "-")
}

/// Something that refers to an image, as a list has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Referrer {
    pub digest: Digest,
    pub media_type: String,
    pub size: usize,
    /// Clients filter by it, and find nothing where it is missing.
    pub artifact_type: Option<String>,
    pub annotations: Option<BTreeMap<String, Value>>,
}

impl Referrer {
    /// Returns what a list says of a manifest.
    pub fn of(digest: &Digest, size: usize, contents: &Contents) -> Self {
        Self {
            digest: digest.clone(),
            media_type: contents.media_type.clone(),
            size,
            artifact_type: contents.artifact_type.clone(),
            annotations: contents.annotations.clone(),
        }
    }

    fn entry(&self) -> Value {
        let mut entry = json!({
            "mediaType": self.media_type,
            "digest": self.digest.to_string(),
            "size": self.size,
        });
        if let Some(kind) = &self.artifact_type {
            entry["artifactType"] = kind.as_str().into();
        }
        if let Some(annotations) = &self.annotations {
            entry["annotations"] = json!(annotations);
        }
        entry
    }
}

/// Reads the digests in a list, with the media types that it tells.
pub fn read(list: &[u8]) -> Result<Vec<(Digest, Option<String>)>, Unsupported> {
    let contents = Contents::read(Some(OCI_INDEX), list)?;
    let entries = contents.children.into_iter();
    Ok(entries.map(|entry| (entry.digest, entry.media_type)).collect())
}

/// Returns a list with more entries in it; none if all are there already. What cannot be read as a list is replaced.
pub fn with(list: Option<&[u8]>, more: &[Referrer]) -> Option<Vec<u8>> {
    let before = list.and_then(|list| serde_json::from_slice::<Map<String, Value>>(list).ok());
    let mut list = before
        .filter(|list| list.get("manifests").is_some_and(Value::is_array))
        .unwrap_or_else(|| {
            let mut list = Map::new();
            list.insert("schemaVersion".to_owned(), 2.into());
            list.insert("mediaType".to_owned(), OCI_INDEX.into());
            list.insert("manifests".to_owned(), json!([]));
            list
        });
    let entries = list.get_mut("manifests")?.as_array_mut()?;
    let there: BTreeSet<String> = entries
        .iter()
        .filter_map(|entry| entry.get("digest")?.as_str().map(str::to_owned))
        .collect();
    let missing: Vec<Value> = more
        .iter()
        .filter(|referrer| !there.contains(&referrer.digest.to_string()))
        .map(Referrer::entry)
        .collect();
    if missing.is_empty() {
        return None;
    }
    entries.extend(missing);
    Some(Value::Object(list).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(number: u32) -> Referrer {
        Referrer {
            digest: format!("sha256:{number:064x}").parse().unwrap(),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            size: 7,
            artifact_type: Some("application/vnd.example.sbom".to_owned()),
            annotations: Some(BTreeMap::from([("a".to_owned(), "b".into())])),
        }
    }

    #[test]
    fn a_list_grows_and_keeps_what_others_wrote() {
        let first = with(None, &[referrer(1)]).unwrap();
        let read_back: Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(
            read_back,
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": referrer(1).digest.to_string(), "size": 7,
                "artifactType": "application/vnd.example.sbom", "annotations": {"a": "b"},
            }]})
        );
        assert_eq!(with(Some(&first), &[referrer(1)]), None);
        let foreign =
            json!({"manifests": [{"digest": referrer(9).digest.to_string(), "size": 1, "x": 1}], "y": 2});
        let grown = with(Some(foreign.to_string().as_bytes()), &[referrer(1)]).unwrap();
        let grown: Value = serde_json::from_slice(&grown).unwrap();
        assert_eq!((&grown["manifests"][0]["x"], &grown["y"]), (&1.into(), &2.into()));
        let digests: Vec<_> = read(grown.to_string().as_bytes())
            .unwrap()
            .into_iter()
            .map(|(digest, _)| digest)
            .collect();
        assert_eq!(digests, [referrer(9).digest, referrer(1).digest]);
        assert!(with(Some(b"no list"), &[referrer(1)]).is_some());
    }

    #[test]
    fn the_tag_of_a_list_is_the_digest() {
        let digest = referrer(1).digest;
        assert_eq!(list_tag(&digest), format!("sha256-{:064x}", 1));
    }
}
