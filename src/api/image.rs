//! Between a MirroredImage resource and what the core knows of an image.

use super::v1alpha1::{Access, MirroredImageSpec, Presence as ApiPresence, micro_time, timestamp};
use crate::domain::{
    answer::MediaType,
    platform::Architectures,
    presence::{Presence, Proof},
    reason::Reason,
    time::Timestamp,
};

/// Returns what a resource says of one image. `last_used` stays open.
pub fn spec(mirror: &str, key: &str, presence: &Presence, verified_at: Timestamp) -> MirroredImageSpec {
    let mut spec = MirroredImageSpec {
        mirror: mirror.to_owned(),
        image: key.to_owned(),
        presence: ApiPresence::Unknown,
        reason: None,
        digest: None,
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
            if proof.media_type.is_index() {
                spec.platforms = proof
                    .architectures
                    .names()
                    .map(|name| format!("linux/{name}"))
                    .collect();
            }
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

fn proof(spec: &MirroredImageSpec) -> Option<Proof> {
    let media_type = MediaType::from_content_type(spec.media_type.as_deref()?)?;
    let architectures = if media_type.is_index() {
        let architecture = |platform: &'_ String| platform.split('/').nth(1).map(Architectures::of);
        let known = spec.platforms.iter().filter_map(architecture);
        known.fold(Architectures::NONE, Architectures::or).known()
    } else {
        Architectures::ALL
    };
    Some(Proof {
        digest: spec.digest.as_deref()?.parse().ok()?,
        media_type,
        architectures,
        size: spec.size.and_then(|size| u64::try_from(size).ok()),
        public: spec.access.map(|access| access == Access::Public),
    })
}

/// Returns when a resource's image was last seen to be as it says; the epoch if it does not tell.
pub fn verified_at(spec: &MirroredImageSpec) -> Timestamp {
    spec.verified_at.as_ref().map(timestamp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "docker.io/library/nginx:1.27";

    fn proof(media_type: MediaType, architectures: Architectures) -> Proof {
        Proof {
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            media_type,
            architectures,
            size: Some(512),
            public: Some(false),
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let two = ["amd64", "arm64"].into_iter().collect();
        for known in [
            Presence::Present(proof(MediaType::OciManifest, Architectures::ALL)),
            Presence::Present(proof(MediaType::OciIndex, two)),
            Presence::Present(proof(MediaType::DockerList, Architectures::NONE)),
            Presence::Missing,
            Presence::Unknown(None),
            Presence::Unknown(Some(Reason::Unauthorized)),
        ] {
            let spec = spec("main", KEY, &known, Timestamp::from_millis(1_800_000_000_123));
            assert_eq!(presence(&spec), known);
            assert_eq!(verified_at(&spec).as_millis(), 1_800_000_000_123);
        }
    }

    #[test]
    fn present_without_what_was_seen_is_no_proof() {
        let known = Presence::Present(proof(MediaType::OciManifest, Architectures::ALL));
        let mut spec = spec("main", KEY, &known, Timestamp::default());
        spec.digest = Some("sha256:short".to_owned());
        assert_eq!(presence(&spec), Presence::Unknown(None));
    }
}
