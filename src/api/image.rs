//! Between a MirroredImage resource and what the core knows of an image.

use super::v1alpha1::{Access, MirroredImageSpec, Presence as ApiPresence, micro_time, timestamp};
use crate::domain::{
    answer::MediaType,
    image::KeyRef,
    platform::Platforms,
    presence::{Presence, Proof},
    reason::Reason,
    time::Timestamp,
};

/// Returns what a resource says of one image. `last_used`, `not_copied` and `upstream_digest` stay open.
pub fn spec(mirror: &str, key: KeyRef<'_>, presence: &Presence, verified_at: Timestamp) -> MirroredImageSpec {
    let mut spec = MirroredImageSpec {
        mirror: mirror.to_owned(),
        image: key.to_string(),
        presence: ApiPresence::Unknown,
        reason: None,
        not_copied: None,
        digest: None,
        upstream_digest: None,
        media_type: None,
        platforms: Vec::new(),
        size: None,
        access: None,
        verified_at: Some(micro_time(verified_at)),
        last_used: None,
    };
    match presence {
        Presence::Present(proof) => {
            spec.presence = ApiPresence::Present;
            spec.digest = Some(proof.digest.to_string());
            spec.media_type = Some(proof.media_type.as_str().to_owned());
            spec.platforms = proof.there_for().into_iter().map(str::to_owned).collect();
            spec.size = proof.size.and_then(|size| i64::try_from(size).ok());
            spec.access = proof
                .public
                .map(|public| if public { Access::Public } else { Access::Private });
        }
        Presence::Missing => {
            spec.presence = ApiPresence::Missing;
            spec.reason = Some(Reason::ImageMissing.as_str().to_owned());
        }
        Presence::Unknown(reason) => spec.reason = reason.map(|reason| reason.as_str().to_owned()),
    }
    spec
}

/// Returns what the core knows of an image by this resource. What says `Present` or `Missing` without
/// telling what was seen, and when, is no proof, and so `Unknown`.
pub fn presence(spec: &MirroredImageSpec) -> Presence {
    match (spec.presence, &spec.verified_at) {
        (ApiPresence::Present, Some(_)) => proof(spec).map_or(Presence::Unknown(None), Presence::Present),
        (ApiPresence::Missing, Some(_)) => Presence::Missing,
        (ApiPresence::Present | ApiPresence::Missing, None) => Presence::Unknown(None),
        (ApiPresence::Unknown, _) => Presence::Unknown(spec.reason.as_deref().and_then(Reason::from_name)),
    }
}

/// Returns the platform of an index that a name stands for. `linux/arm` is what an older companion wrote for
/// images of any variant, so it says nothing.
fn platform_named(name: &str) -> Option<Platforms> {
    let platform = Platforms::parse(name).filter(|_| name != "linux/arm")?;
    Some(platform.known())
}

fn proof(spec: &MirroredImageSpec) -> Option<Proof> {
    let media_type = MediaType::from_content_type(spec.media_type.as_deref()?)?;
    let named = spec.platforms.iter().map(String::as_str);
    let platforms = if media_type.is_index() {
        let named = named.filter_map(platform_named);
        named.fold(Platforms::NONE, Platforms::or)
    } else {
        match named.map(Platforms::of_os).reduce(Platforms::or) {
            Some(known) => known.and(Platforms::LINUX.or(Platforms::WINDOWS)),
            // An older companion did not look.
            None => Platforms::ASSUMED,
        }
    };
    Some(Proof {
        digest: spec.digest.as_deref()?.parse().ok()?,
        media_type,
        platforms,
        size: spec.size.and_then(|size| u64::try_from(size).ok()),
        public: spec.access.map(|access| access == Access::Public),
    })
}

/// Returns when a resource's image was last seen to be as it says; the epoch if it does not tell.
pub fn verified_at(spec: &MirroredImageSpec) -> Timestamp {
    spec.verified_at.as_ref().map(timestamp).unwrap_or_default()
}

/// Returns when a Pod last used a resource's image; the epoch if it does not tell.
pub fn last_used(spec: &MirroredImageSpec) -> Timestamp {
    let millis = spec.last_used.as_ref().map(|time| time.0.as_millisecond());
    Timestamp::from_millis(
        millis
            .and_then(|millis| u64::try_from(millis).ok())
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "docker.io/library/nginx:1.27";

    fn proof(media_type: MediaType, platforms: Platforms) -> Proof {
        Proof {
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            media_type,
            platforms,
            size: Some(512),
            public: Some(false),
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let three = ["linux/amd64", "linux/arm/v7", "windows/amd64"];
        let three = three.iter().filter_map(|name| Platforms::parse(name));
        let three = three.fold(Platforms::NONE, Platforms::or);
        for known in [
            Presence::Present(proof(MediaType::OciManifest, Platforms::LINUX)),
            Presence::Present(proof(MediaType::OciManifest, Platforms::WINDOWS)),
            Presence::Present(proof(MediaType::OciManifest, Platforms::ASSUMED)),
            Presence::Present(proof(MediaType::OciManifest, Platforms::NONE)),
            Presence::Present(proof(MediaType::OciIndex, three)),
            Presence::Present(proof(MediaType::DockerList, Platforms::NONE)),
            Presence::Missing,
            Presence::Unknown(None),
            Presence::Unknown(Some(Reason::Unauthorized)),
        ] {
            let spec = spec(
                "main",
                KeyRef::parse(KEY).unwrap(),
                &known,
                Timestamp::from_millis(1_800_000_000_123),
            );
            assert_eq!(presence(&spec), known);
            assert_eq!(verified_at(&spec).as_millis(), 1_800_000_000_123);
        }
    }

    #[test]
    fn present_without_what_was_seen_is_no_proof() {
        let known = Presence::Present(proof(MediaType::OciManifest, Platforms::LINUX));
        let mut spec = spec("main", KeyRef::parse(KEY).unwrap(), &known, Timestamp::default());
        spec.digest = Some("sha256:short".to_owned());
        assert_eq!(presence(&spec), Presence::Unknown(None));
    }

    #[test]
    fn a_platform_that_was_not_told_apart_is_not_known() {
        let known = Presence::Present(proof(MediaType::OciIndex, Platforms::NONE));
        let mut spec = spec("main", KeyRef::parse(KEY).unwrap(), &known, Timestamp::default());
        spec.platforms = ["linux/arm", "amd64", "linux/z80", "linux/s390x"]
            .map(str::to_owned)
            .into();
        let Presence::Present(read) = presence(&spec) else {
            panic!("{spec:?}")
        };
        assert_eq!(read.platforms.names().collect::<Vec<_>>(), ["linux/s390x"]);
    }
}
