//! Mirrors and Pods for the tests of several modules.

use std::{borrow::Cow, sync::Arc};

use super::{
    answer::{Manifest, MediaType},
    digest::Digest,
    health::{Health, State},
    image::KeyRef,
    mapping::Mapping,
    mirror::{
        Access, Copying, Freshness, HANG_AFTER, HealthSettings, Kind, Mirror, Mode, OwnerPattern, Prefer,
        RescuePolicy, Source, Tags,
    },
    platform::Platforms,
    pod::{Place, PlaceKind},
    presence::Proof,
    routing::Routing,
    selector::Selector,
    snapshot::Snapshot,
    time::Timestamp,
};

/// The moment at which tests decide.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

/// Returns a hosted mirror at `<name>.example.com` for all of these prefixes, with every default.
pub(crate) fn mirror(name: &str, prefixes: &[&str]) -> Mirror {
    Mirror {
        name: name.to_owned(),
        mode: Mode::Enforce,
        mapping: Mapping {
            registry: format!("{name}.example.com").parse().unwrap(),
            template: "{registry}/{repository}".parse().unwrap(),
        },
        kind: Kind::Hosted,
        priority: 100,
        prefer: Prefer::Mirror,
        namespaces: Selector::default(),
        sources: prefixes.iter().map(|prefix| source(prefix, &[])).collect(),
        health: HealthSettings::default(),
        freshness: Freshness::default(),
        sweep_rate: None,
        tags: Tags::default(),
        copying: None,
        read_secret: None,
        pull_secret: false,
        exclude_owners: OwnerPattern::built_in(),
        rescue: RescuePolicy::Enforce,
        hang_after: HANG_AFTER,
        delete_pods: false,
        runs_in: Vec::new(),
    }
}

/// Returns how a mirror is filled with everything.
pub(crate) const fn copying() -> Copying {
    Copying {
        platforms: Platforms::ALL,
        referrers: true,
        max_size: None,
        max_per_day: None,
    }
}

/// Returns a public source without credentials.
pub(crate) fn source(prefix: &str, exclude: &[&str]) -> Source {
    Source {
        prefix: prefix.to_owned(),
        exclude: exclude.iter().map(|glob| (*glob).to_owned()).collect(),
        access: Access::Public,
        with_credentials: false,
    }
}

/// Returns a snapshot in which every mirror has been healthy for long.
pub(crate) fn snapshot(mirrors: Vec<Mirror>) -> Snapshot {
    let routing = Routing::compile(mirrors);
    let proven_since = Timestamp::from_millis(1);
    let health = Health {
        state: State::Healthy,
        fault: None,
        cause: None,
        since: proven_since,
        refused_since: None,
        proven_since,
    };
    Snapshot {
        health: vec![health; routing.len()],
        routing: Arc::new(routing),
        ..Snapshot::default()
    }
}

/// Returns the digest whose hex digits are all the same.
pub(crate) fn digest(hex: char) -> Digest {
    format!("sha256:{}", hex.to_string().repeat(64)).parse().unwrap()
}

/// Returns a single manifest as it is seen in headers.
pub(crate) fn manifest(hex: char) -> Manifest {
    Manifest {
        digest: digest(hex),
        media_type: MediaType::OciManifest,
        size: None,
        children: Vec::new(),
        blob: None,
        config: None,
    }
}

/// Returns the proof of a single manifest.
pub(crate) fn proof(hex: char) -> Proof {
    Proof {
        digest: digest(hex),
        media_type: MediaType::OciManifest,
        platforms: Platforms::ALL,
        size: Some(1234),
        public: None,
    }
}

/// Returns the key that a text is.
#[track_caller]
pub(crate) fn key(text: &str) -> KeyRef<'_> {
    KeyRef::parse(text).unwrap()
}

/// Returns a place in a Pod.
pub(crate) fn place<'a>(kind: PlaceKind, index: usize, name: &'a str, image: &'a str) -> Place<'a> {
    Place {
        kind,
        index,
        name: Cow::Borrowed(name),
        image: Cow::Borrowed(image),
        never: false,
    }
}
