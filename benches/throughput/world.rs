//! A state in memory in which a mirror is healthy and holds so many images.

use std::{borrow::Cow, time::Duration};

use anyhow::{Result, anyhow};
use kagami::{
    clock,
    domain::{
        answer::MediaType,
        decision::{Operation, Probing, Request, decide},
        health::{Health, State},
        image::KeyRef,
        mirror::{Mirror, Mode},
        patch,
        platform::Platforms,
        pod::{Place, PlaceKind, Pod},
        presence::{Index, Presence, Proof},
        routing::Routing,
        snapshot::Snapshot,
        time::Timestamp,
    },
    metrics::Metrics,
    state::{Configured, Store, file},
    webhook::{Admission, Limits, Probes},
};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{image, payload};

const MIRROR: &str = "bench";

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
    snapshot: Snapshot,
    index: Index,
    now: Timestamp,
}

impl World {
    pub fn new(known: usize) -> Result<Self> {
        let now = clock::now();
        let routing = Routing::compile(mirrors()?).into();
        let snapshot = Snapshot {
            routing,
            health: vec![Health {
                state: State::Healthy,
                ..Health::unknown(now)
            }],
            ..Snapshot::default()
        };
        let mut index = Index::default();
        fill(&mut index, known, now)?;
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
        let pod = Pod {
            places: images.iter().enumerate().map(place).collect(),
            size: 9000,
            ..Pod::default()
        };
        Request {
            namespace: "shop",
            mode: Mode::Enforce,
            operation: Operation::Create,
            heal: true,
            pod,
        }
    }

    /// Returns the patch of a Pod whose images are all known.
    pub fn decide(&self, request: &Request<'_>) -> Option<String> {
        let plan = decide(&self.snapshot, &self.index, request, Probing::Hosted, self.now);
        let decisions = plan.settle(&self.snapshot, &[]);
        patch::patch(request, &self.snapshot.routing, &decisions).ok()?
    }
}

/// Returns what answers reviews from the same state.
pub fn admission(known: usize) -> Result<Admission> {
    let World { snapshot, index, now } = World::new(known)?;
    let store = Store::default();
    let configured = Configured {
        routing: Routing::compile(mirrors()?),
        ..Configured::default()
    };
    store.configure(configured, now);
    store.set_health(MIRROR, snapshot.health[0].clone());
    *store.index_mut() = index;
    let (metrics, _) = Metrics::new();
    let (want, _) = mpsc::channel(1);
    let probes = Probes::new(store.clone(), metrics.clone(), TaskTracker::new());
    let limits = Limits {
        budget: Duration::from_millis(300),
        probing: Probing::Hosted,
        heal: true,
        recent: 50,
    };
    Ok(Admission::new(store, probes, metrics, Some(want), limits))
}

fn mirrors() -> Result<Vec<Mirror>> {
    let configuration = file::load(CONFIGURATION, MIRROR).map_err(|faults| anyhow!("{faults:?}"))?;
    Ok(configuration
        .mirrors
        .into_iter()
        .map(|(mirror, _)| mirror)
        .collect())
}

fn fill(index: &mut Index, known: usize, now: Timestamp) -> Result<()> {
    let proof = Proof {
        digest: image::digest(image::manifest().as_bytes()).parse()?,
        media_type: MediaType::OciManifest,
        platforms: Platforms::ALL,
        size: Some(400),
        public: None,
    };
    for number in 0..known {
        let key = format!("docker.io/{}", payload::image(number));
        index.write(
            MIRROR,
            KeyRef::parse(&key)?,
            Presence::Present(proof.clone()),
            now,
            now,
        );
    }
    Ok(())
}
