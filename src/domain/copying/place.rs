//! Where an image comes from and where it goes.

use crate::domain::{
    digest::Digest,
    image::{Class, KeyRef},
    mapping::{MapError, Mapping},
};

/// Where an image stands on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The repository at its own registry.
    pub repository: String,
    /// Tag or digest there.
    pub reference: String,
    /// The repository at the mirror.
    pub into: String,
    /// The tag there.
    pub tag: String,
}

/// Whose the tags are by which digests stay in a mirror, whatever becomes of the tags that people know: registries collect
/// what has no tag, and some delete the manifest that a tag moved away from.
///
/// Such a tag is `kagami-` with the first 32 digits of the digest, and the cluster that wants it to stay: what several
/// clusters have in one mirror has a tag of each, so that none takes it away from the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    cluster: Option<Box<str>>,
}

/// How many digits of a digest stand in its own tag.
const DIGITS: usize = 32;

impl Own {
    /// Returns the tags of the cluster whose namespace kube-system has this UID.
    pub fn of_cluster(uid: &str) -> Self {
        // A tag has room for 128 characters, and not every character is allowed.
        let digits = uid.chars().filter(char::is_ascii_alphanumeric).take(32);
        let cluster: String = digits.collect();
        Self {
            cluster: (!cluster.is_empty()).then(|| cluster.into()),
        }
    }

    /// Returns the tag by which a digest stays. Not of the form that lists of referrers have.
    pub fn tag(&self, digest: &Digest) -> String {
        self.tag_of(&digest.to_string())
    }

    fn tag_of(&self, digest: &str) -> String {
        let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
        let hex = hex.get(..DIGITS).unwrap_or(hex);
        match &self.cluster {
            Some(cluster) => format!("kagami-{hex}-{cluster}"),
            None => format!("kagami-{hex}"),
        }
    }
}

/// Returns where an image comes from and goes to. One that is asked for by its digest alone goes to its own tag.
pub fn place(mapping: &Mapping, key: KeyRef<'_>, own: &Own) -> Result<Place, MapError> {
    let reference = key.reference();
    let into = mapping.repository_path(&reference)?;
    let asked = reference.manifest_reference().to_owned();
    let name = key.name();
    Ok(Place {
        repository: name.split_once('/').map_or(name, |(_, path)| path).to_owned(),
        tag: match key.class() {
            Class::Tag => asked.clone(),
            Class::Digest => own.tag_of(&asked),
        },
        reference: asked,
        into,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::examples::{key, mirror};

    #[test]
    fn an_image_goes_where_the_mapping_puts_it_and_keeps_its_tag() {
        let mapping = mirror("a", &["docker.io"]).mapping;
        let placed = place(&mapping, key("docker.io/library/nginx:1.27"), &Own::default()).unwrap();
        assert_eq!(
            placed,
            Place {
                repository: "library/nginx".to_owned(),
                reference: "1.27".to_owned(),
                into: "docker.io/library/nginx".to_owned(),
                tag: "1.27".to_owned(),
            }
        );
    }

    #[test]
    fn a_digest_alone_is_anchored_by_a_tag_that_is_no_list_of_referrers() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let mapping = mirror("a", &["docker.io"]).mapping;
        let image = format!("docker.io/library/nginx@{digest}");
        let placed = place(&mapping, key(&image), &Own::default()).unwrap();
        assert_eq!(
            (&placed.reference, placed.tag),
            (&digest, format!("kagami-{}", "ab".repeat(16)))
        );
        let own = Own::of_cluster("01234567-89ab-cdef-0123-456789abcdef");
        let tag = format!("kagami-{}-0123456789abcdef0123456789abcdef", "ab".repeat(16));
        assert_eq!(place(&mapping, key(&image), &own).unwrap().tag, tag);
        assert_eq!(own.tag(&digest.parse().unwrap()), tag);
    }
}
