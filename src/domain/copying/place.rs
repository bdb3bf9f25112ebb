//! Where an image comes from and where it goes.

use crate::domain::{
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

/// Returns where an image comes from and goes to.
pub fn place(mapping: &Mapping, key: KeyRef<'_>) -> Result<Place, MapError> {
    let reference = key.reference();
    let into = mapping.repository_path(&reference)?;
    let asked = reference.manifest_reference().to_owned();
    let name = key.name();
    Ok(Place {
        repository: name.split_once('/').map_or(name, |(_, path)| path).to_owned(),
        tag: match key.class() {
            Class::Tag => asked.clone(),
            Class::Digest => anchor(&asked),
        },
        reference: asked,
        into,
    })
}

/// Returns the tag by which an image stays that is asked for by its digest alone: registries collect what has none. Not
/// of the form that lists of referrers have.
fn anchor(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    format!("kagami-{}", hex.get(..32).unwrap_or(hex))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::examples::{key, mirror};

    #[test]
    fn an_image_goes_where_the_mapping_puts_it_and_keeps_its_tag() {
        let mapping = mirror("a", &["docker.io"]).mapping;
        let placed = place(&mapping, key("docker.io/library/nginx:1.27")).unwrap();
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
        let placed = place(&mapping, key(&image)).unwrap();
        assert_eq!(
            (placed.reference, placed.tag),
            (digest, format!("kagami-{}", "ab".repeat(16)))
        );
    }
}
