//! A state in memory in which a mirror is healthy and holds so many images.

use std::borrow::Cow;

use anyhow::{Result, anyhow};
use kagami::{
    clock,
    domain::{
        answer::MediaType,
        decision::{Operation, Probing, Request, decide},
        health::{Health, State},
        mirror::Mode,
        patch,
        platform::Architectures,
        pod::{Place, PlaceKind, Pod},
        presence::{Index, Presence, Proof},
        routing::Routing,
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::file,
};

use super::{payload, registry};

const CONFIGURATION: &str = "
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: bench}
spec:
  registry: mirror.example.com
  kind: Hosted
  sources: [{prefix: docker.io}]
  freshness: {tag: 1h, digest: 1h}
";

/// What decisions are made from.
#[derive(Debug)]
pub struct World {
    pub snapshot: Snapshot,
    pub index: Index,
    now: Timestamp,
}

impl World {
    pub fn new(known: usize) -> Result<Self> {
        let configuration = file::load(CONFIGURATION, "bench").map_err(|faults| anyhow!("{faults:?}"))?;
        let mirrors = configuration.mirrors.into_iter().map(|(mirror, _)| mirror).collect();
        let now = clock::now();
        let health = Health { state: State::Healthy, ..Health::unknown(now) };
        let snapshot =
            Snapshot { routing: Routing::compile(mirrors).into(), health: vec![health], ..Snapshot::default() };
        let mut index = Index::default();
        let proof = Proof {
            digest: registry::digest(registry::manifest().as_bytes()).parse()?,
            media_type: MediaType::OciManifest,
            architectures: Architectures::ALL,
            size: Some(400),
            public: None,
        };
        for number in 0..known {
            let key = format!("docker.io/{}", payload::image(number));
            index.write("bench", &key, Presence::Present(proof.clone()), now, now);
        }
        Ok(Self { snapshot, index, now })
    }

    /// Returns the request of a Pod with these images.
    pub fn request(images: &[String]) -> Request<'_> {
        let place = |(index, image): (usize, &'_ String)| Place {
            kind: PlaceKind::Container,
            index,
            name: Cow::Borrowed(["app-0", "app-1", "app-2", "app-3", "app-4"][index % 5]),
            image: Cow::Owned(image.clone()),
            never: false,
        };
        let pod = Pod { places: images.iter().enumerate().map(place).collect(), size: 9000, ..Pod::default() };
        Request { namespace: "shop", mode: Mode::Enforce, operation: Operation::Create, pod }
    }

    /// Returns the patch of a Pod whose images are all known.
    pub fn decide(&self, request: &Request<'_>) -> Option<String> {
        let plan = decide(&self.snapshot, &self.index, request, Probing::Hosted, self.now);
        let decisions = plan.settle(&self.snapshot, &[]);
        patch::patch(request, &self.snapshot.routing, &decisions).ok()?
    }
}
