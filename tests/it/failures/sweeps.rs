//! What sweeps ask a mirror for, and how often, in hours that pass at once.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::kagami::{
    clock,
    companion::mirror::{
        self,
        reports::{Refusal, Reports},
        wants::Means,
    },
    domain::{
        answer::{Manifest, MediaType},
        image::{Class, ImageKey},
        platform::Platforms,
        presence::{Presence, Proof},
    },
    metrics::Metrics,
    state::{
        Demand, Store, Why,
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

use super::{REPOSITORY, access::secret, image};
use crate::support::{
    faulty::{Action, Behaviour, Faulty, Reply},
    images::{self, Image},
    install_crypto,
    kagami::{mirror, text},
    real::PASSWORD,
    shelf::Shelf,
};

/// How many tags a mirror has where many of them are the point.
const TAGS: usize = 400;

/// What a mirror has, and what is known of it.
struct Setting {
    /// The images' name, without a tag.
    name: String,
    repository: String,
    shelf: Shelf,
    /// Tags, and what is known of each.
    known: Vec<(String, Presence)>,
    /// How many tags are refused to everybody.
    refused: Arc<AtomicUsize>,
    /// Documents beside the mirror's.
    others: Vec<Value>,
}

impl Setting {
    /// So many tags of one image.
    fn of(name: &str, repository: &str, tags: usize) -> Self {
        let (shelf, image) = (Shelf::default(), image("one"));
        let known = (0..tags).map(|tag| {
            shelf.put(repository, &tag.to_string(), &image);
            (tag.to_string(), present(&image))
        });
        Self {
            name: name.to_owned(),
            repository: repository.to_owned(),
            known: known.collect(),
            shelf,
            refused: Arc::default(),
            others: Vec::new(),
        }
    }
}

fn nginx(tags: usize) -> Setting {
    Setting::of("docker.io/library/nginx", REPOSITORY, tags)
}

/// A companion at work, and a mirror that notes when it was asked for what.
struct Scene {
    store: Store,
    feed: Feed,
    reports: Reports,
    demand: mpsc::Sender<Demand>,
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
    started: Instant,
    documents: Vec<Value>,
    peer: Faulty,
    _running: JoinSet<()>,
}

fn key(tag: &str) -> ImageKey {
    format!("docker.io/library/nginx:{tag}").parse().unwrap()
}

fn present(image: &Image) -> Presence {
    let manifest = Manifest {
        digest: image.digest.clone(),
        media_type: image.media_type,
        size: None,
        children: Vec::new(),
        blob: None,
        config: None,
    };
    Presence::Present(Proof::new(&manifest, Platforms::ALL))
}

impl Scene {
    /// Starts with what was last looked at days ago, by another process.
    async fn start(setting: Setting, spec: &Value) -> Self {
        install_crypto();
        let store = Store::default();
        let (now, days_ago) = (clock::now(), clock::now().before(Duration::from_hours(48)));
        let Setting {
            shelf,
            known,
            refused,
            ..
        } = setting;
        for (tag, presence) in known {
            let key: ImageKey = format!("{}:{tag}", setting.name).parse().unwrap();
            store
                .index_mut()
                .write("main", key.by_ref(), presence, days_ago, now);
        }
        shelf.put(&setting.repository, "new", &image("one"));
        let asked = Arc::<Mutex<Vec<(Instant, String)>>>::default();
        let peer = {
            let asked = Arc::clone(&asked);
            Faulty::start(Behaviour::answer(move |request| {
                if let Some((_, reference)) = request.target.split_once("/manifests/") {
                    let entry = (Instant::now(), reference.to_owned());
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                    let number: Option<usize> = reference.parse().ok();
                    if number.is_some_and(|number| number < refused.load(Ordering::Relaxed)) {
                        return Reply::new(403).into();
                    }
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
        let mut running = JoinSet::new();
        let (for_workers, told) = (store.clone(), reports.clone());
        running.spawn(async move {
            let (metrics, _) = Metrics::new();
            match mirror::run(
                for_workers,
                metrics,
                told,
                Means::default(),
                BTreeSet::new(),
                wanted,
            )
            .await {}
        });
        let scene = Self {
            store,
            feed,
            reports,
            demand,
            asked,
            started: Instant::now(),
            documents: [vec![document], setting.others].concat(),
            peer,
            _running: running,
        };
        scene.configure(&json!({}));
        scene
    }

    fn configure(&self, spec: &Value) {
        let mut documents = self.documents.clone();
        json_patch::merge(&mut documents[0]["spec"], spec);
        let configuration = file::load(&text(&documents), "test").unwrap();
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
    let scene = Scene::start(nginx(TAGS), &json!({"kind": "PullThrough"})).await;
    let demand = Demand {
        mirror: "main".to_owned(),
        key: key("new"),
        why: Why::New,
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
    assert_eq!(tags.len(), TAGS + 1);
    // Each once; a machine that stands still makes a question seem to have no answer.
    assert!(asked.len() < tags.len() + TAGS / 10, "{} questions", asked.len());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_goes_by_the_settings_of_now() {
    let scene = Scene::start(nginx(TAGS), &json!({"sweep": {"requestsPerSecond": 1}})).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(scene.reports.of("main").tags, None);
    scene.configure(&json!({"sweep": {"requestsPerSecond": 100}}));
    let took = scene.until_swept(Class::Tag).await;
    // Those who have a turn already keep it.
    assert!(took < Duration::from_mins(1), "{took:?}");
}

/// The password was changed: the registry answers as ever, and gives no image any more.
#[tokio::test(start_paused = true)]
async fn a_mirror_that_refuses_every_image_refuses_the_credentials() {
    let setting = nginx(3);
    let refused = Arc::clone(&setting.refused);
    let scene = Scene::start(setting, &json!({})).await;
    scene.until_swept(Class::Tag).await;
    let told = || scene.reports.of("main").credentials();
    assert_eq!(told(), Some(Ok(())));
    // One alone is refused for its own sake.
    for (count, expected) in [(1, Ok(())), (3, Err(Refusal::Images)), (0, Ok(()))] {
        refused.store(count, Ordering::Relaxed);
        // Two of this mirror's health checks, which are rare here.
        sleep(Duration::from_mins(21)).await;
        assert_eq!(told(), Some(expected), "{count} are refused");
    }
    let index = scene.store.index();
    let found = ["0", "1", "2"].map(|tag| index.get("main", key(tag).by_ref()).unwrap().presence.clone());
    assert!(
        found
            .iter()
            .all(|presence| matches!(presence, Presence::Present(_))),
        "{found:?}"
    );
}

/// Twelve sweeps an hour ask for what is there.
#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_asked_for_by_every_sweep() {
    let scene = Scene::start(nginx(1), &json!({})).await;
    let typo = key("typo");
    let now = clock::now();
    scene
        .store
        .index_mut()
        .write("main", typo.by_ref(), Presence::Missing, now, now);
    sleep(Duration::from_mins(59)).await;
    let asked = scene.by_tag();
    let times = |tag: &str| asked.iter().filter(|(_, asked)| asked == tag).count();
    assert!(times("0") >= 11, "{asked:?}");
    assert!(times("typo") <= 2, "{asked:?}");
    assert_eq!(
        scene.store.index().get("main", typo.by_ref()).unwrap().presence,
        Presence::Missing
    );
}

/// Upstream is asked for five images a second: whoever looks at many waits for his turn, because an image
/// for which nobody asked would count as public for another hour.
#[tokio::test(start_paused = true)]
async fn upstream_is_asked_who_gets_each_image() {
    let open = Shelf::default();
    let upstream = Faulty::start(open.behaviour()).await;
    let host = upstream.address().to_string();
    let tags = 100;
    let repository = format!("{}/app", host.replace(':', "_"));
    let mut setting = Setting::of(&format!("{host}/app"), &repository, tags);
    for (tag, presence) in &mut setting.known {
        open.put("app", tag, &image("one"));
        if let Presence::Present(proof) = presence {
            proof.public = Some(true);
        }
    }
    setting.others.push(secret(PASSWORD));
    let source =
        json!({"prefix": host, "access": "Public", "credentials": {"secretRef": {"name": "reader"}}});
    let scene = Scene::start(setting, &json!({"sources": [source]})).await;
    scene.until_swept(Class::Tag).await;
    let asked = upstream.requests().into_iter().filter_map(|request| {
        let (_, tag) = request.target.split_once("/manifests/")?;
        Some(tag.to_owned())
    });
    assert_eq!(asked.collect::<BTreeSet<_>>().len(), tags);
}

/// Else the heartbeat would take the prober for stalled, and the mirror for unknown.
#[tokio::test(start_paused = true)]
async fn a_slow_round_of_the_prober_ends_before_the_heartbeat_loses_patience() {
    let architectures = ["amd64", "arm64", "arm", "386"];
    let index = images::index(MediaType::OciIndex, &architectures, "slow");
    let mut setting = nginx(0);
    let Presence::Present(mut proof) = present(&index) else {
        unreachable!("it was made as one that is there")
    };
    proof.platforms = Platforms::LINUX;
    setting.known.push(("slow".to_owned(), Presence::Present(proof)));
    setting.shelf.put(REPOSITORY, "slow", &index);
    let shelf = setting.shelf.clone();
    let spec = json!({"health": {"interval": "2s", "timeout": "10s"}});
    let mut scene = Scene::start(setting, &spec).await;
    scene.until_swept(Class::Tag).await;
    // Everything comes late, and its children are not there.
    let children: Vec<String> = index
        .children
        .iter()
        .map(|child| child.digest.to_string())
        .collect();
    let asked = Arc::<Mutex<usize>>::default();
    let counter = Arc::clone(&asked);
    let slow = Behaviour::answer(move |request| {
        let is_child = children
            .iter()
            .any(|child| request.target.ends_with(child.as_str()));
        if is_child {
            *counter.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            return Action::Later(Duration::from_secs(9), Reply::error(404, "MANIFEST_UNKNOWN"));
        }
        Action::Later(Duration::from_secs(9), shelf.answer(request))
    });
    scene.peer.set(slow).await;
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    for _ in 0..600 {
        sleep(Duration::from_secs(1)).await;
        if let Some(probed_at) = scene.reports.of("main").probed_at {
            longest = longest.max(probed_at.saturating_duration_since(last));
            last = last.max(probed_at);
        }
    }
    assert!(*asked.lock().unwrap() > 0, "there was a look at the children");
    // An interval and four looks.
    assert!(longest <= Duration::from_secs(2 + 40), "{longest:?}");
}
