//! What sweeps ask a mirror for, and how often, in hours that pass at once.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::kagami::{
    clock,
    companion::mirror::{self, reports::Reports},
    domain::{
        answer::{Manifest, MediaType},
        image::Class,
        platform::Architectures,
        presence::{Presence, Proof},
    },
    metrics::Metrics,
    state::{
        Demand, Store,
        feed::{Feed, Keep},
        file,
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{REPOSITORY, image};
use crate::support::{
    faulty::{Action, Behaviour, Faulty},
    images::Image,
    install_crypto,
    kagami::{mirror, text},
    shelf::Shelf,
};

/// How many tags are known.
const TAGS: usize = 400;

/// A companion at work, and a mirror that notes when it was asked for what.
struct Scene {
    store: Store,
    feed: Feed,
    reports: Reports,
    demand: mpsc::Sender<Demand>,
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
    started: Instant,
    document: Value,
    _peer: Faulty,
    _running: JoinSet<()>,
}

fn key(tag: impl std::fmt::Display) -> String {
    format!("docker.io/library/nginx:{tag}")
}

fn present(image: &Image) -> Presence {
    let manifest = Manifest {
        digest: image.digest.clone(),
        media_type: MediaType::OciManifest,
        size: None,
        children: Vec::new(),
        blob: None,
    };
    Presence::Present(Proof::new(&manifest, Architectures::ALL))
}

impl Scene {
    /// Starts with many tags that were last looked at days ago by another process, and that are all there;
    /// so is `new`, which nobody knows.
    async fn start(spec: &Value) -> Self {
        install_crypto();
        let (shelf, image) = (Shelf::default(), image("one"));
        let store = Store::default();
        let (now, days_ago) = (clock::now(), clock::now().before(Duration::from_hours(48)));
        for tag in 0..TAGS {
            shelf.put(REPOSITORY, &tag.to_string(), &image);
            let mut index = store.index_mut();
            index.write("main", &key(tag), present(&image), days_ago, now);
        }
        shelf.put(REPOSITORY, "new", &image);
        let asked = Arc::<Mutex<Vec<(Instant, String)>>>::default();
        let peer = {
            let asked = Arc::clone(&asked);
            Faulty::start(Behaviour::answer(move |request| {
                if let Some((_, reference)) = request.target.split_once("/manifests/") {
                    let entry = (Instant::now(), reference.to_owned());
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                }
                Action::Reply(shelf.answer(request))
            }))
            .await
        };
        let mut document = mirror(
            &peer.url(),
            &json!({"health": {"interval": "10m", "timeout": "1m"}}),
        );
        json_patch::merge(&mut document["spec"], spec);
        let feed = Feed::new(store.clone(), [].into());
        let reports = Reports::default();
        let (demand, wanted) = mpsc::channel(64);
        let (_, observed) = mpsc::channel(1);
        let mut running = JoinSet::new();
        let (for_workers, told) = (store.clone(), reports.clone());
        running.spawn(async move {
            let (metrics, _) = Metrics::new();
            match mirror::run(for_workers, metrics, told, BTreeSet::new(), observed, wanted).await {}
        });
        let scene = Self {
            store,
            feed,
            reports,
            demand,
            asked,
            started: Instant::now(),
            document,
            _peer: peer,
            _running: running,
        };
        scene.configure(&json!({}));
        scene
    }

    fn configure(&self, spec: &Value) {
        let mut document = self.document.clone();
        json_patch::merge(&mut document["spec"], spec);
        let configuration = file::load(&text(&[document]), "test").unwrap();
        self.feed.apply(configuration, Keep::All, clock::now()).unwrap();
    }

    /// Waits until a sweep has ended, and returns how long that took.
    async fn until_swept(&self, class: Class) -> Duration {
        while self.reports.of("main").sweep(class).is_none() {
            assert!(self.started.elapsed() < Duration::from_hours(1), "no sweep ends");
            sleep(Duration::from_secs(1)).await;
        }
        self.started.elapsed()
    }

    /// Returns when the mirror was asked for something by tag.
    fn by_tag(&self) -> Vec<(Instant, String)> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let by_tag = asked.iter().filter(|(_, reference)| !reference.contains(':'));
        by_tag.cloned().collect()
    }
}

/// After a change of the leader no tag was resolved lately, as far as this process knows. Each may be a
/// download, so they are resolved one a second, together with what is new; and no sweep waits for that.
#[tokio::test(start_paused = true)]
async fn a_pull_through_mirrors_sweeps_do_not_wait_for_its_tags() {
    let scene = Scene::start(&json!({"kind": "PullThrough"})).await;
    let demand = Demand {
        mirror: "main".to_owned(),
        key: key("new"),
    };
    scene.until_swept(Class::Digest).await;
    scene.demand.send(demand).await.unwrap();
    let took = scene.until_swept(Class::Tag).await;
    assert!(
        took < Duration::from_secs(30),
        "{took:?} for {TAGS} HEADs by digest"
    );
    let end = scene.reports.of("main").tags.unwrap();
    assert_eq!(end.counts.present, TAGS);
    assert_eq!(end.period, Duration::from_mins(30), "half of spec.tags.refresh");
    assert_eq!(end.bound, "spec.tags.refresh");
    assert!(!end.tags_wait, "this process has not had an hour for them");

    sleep(Duration::from_secs(TAGS as u64 + 30)).await;
    let asked = scene.by_tag();
    let times: Vec<Instant> = asked.iter().map(|(at, _)| *at).collect();
    let too_soon = times
        .windows(2)
        .find(|pair| pair[1] - pair[0] < Duration::from_millis(990));
    assert_eq!(too_soon, None, "one a second, whoever asks");
    let tags: BTreeSet<&str> = asked.iter().map(|(_, tag)| &**tag).collect();
    assert_eq!((tags.len(), asked.len()), (TAGS + 1, TAGS + 1), "each once");
}

#[tokio::test(start_paused = true)]
async fn a_sweep_goes_by_the_settings_of_now() {
    let scene = Scene::start(&json!({"sweep": {"requestsPerSecond": 1}})).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(scene.reports.of("main").tags, None);
    scene.configure(&json!({"sweep": {"requestsPerSecond": 100}}));
    let took = scene.until_swept(Class::Tag).await;
    // Those who have a turn already keep it.
    assert!(took < Duration::from_mins(1), "{took:?}");
}

/// Twelve sweeps an hour ask for what is there.
#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_asked_for_by_every_sweep() {
    let scene = Scene::start(&json!({})).await;
    let typo = key("typo");
    let now = clock::now();
    scene
        .store
        .index_mut()
        .write("main", &typo, Presence::Missing, now, now);
    sleep(Duration::from_mins(59)).await;
    let asked = scene.by_tag();
    let times = |tag: &str| asked.iter().filter(|(_, asked)| asked == tag).count();
    assert_eq!(times("0"), 12);
    assert_eq!(times("typo"), 1);
    assert_eq!(
        scene.store.index().get("main", &typo).unwrap().presence,
        Presence::Missing
    );
}
