//! Rules of state, probes and companion for which a whole program's sockets are awkward.

use std::collections::BTreeSet;
use std::time::Duration;

use ::kagami::{
    clock,
    companion::mirror::{self, reports::Reports, wants::Means},
    domain::{
        answer::Manifest,
        decision::{Finding, Probe},
        health::{Health, State},
        image::KeyRef,
        mirror::Trust,
        platform::Platforms,
        presence::{Judgement, Presence, Proof, Rules},
        reason::Reason,
        routing::MirrorId,
    },
    metrics::Metrics,
    registry::{Client, Endpoint},
    state::{
        Demand, Store, Why,
        feed::{Feed, Keep},
        file,
    },
    webhook::Probes,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::task::TaskTracker;

use super::{REPOSITORY, SOON, image, stocked};
use crate::support::{
    faulty::{Action, Behaviour, Reply},
    install_crypto,
    kagami::{eventually, mirror, text},
    soon,
};

const KEY: &str = "docker.io/library/nginx:1";
/// The same image by its digest, which is a class of its own.
const DIGEST: &str =
    "docker.io/library/nginx@sha256:92c43ea34418e060632477829beeb7f58d6f6c03e370c5400cc6587efa46cea2";

fn key(text: &str) -> KeyRef<'_> {
    KeyRef::parse(text).unwrap()
}

fn apply(feed: &Feed, document: &Value) {
    install_crypto();
    let configuration = file::load(&text(std::slice::from_ref(document)), "test").unwrap();
    feed.apply(configuration, Keep::All, clock::now()).unwrap();
}

/// A state with one mirror that is configured and healthy.
fn healthy(document: &Value) -> (Store, Feed) {
    let store = Store::default();
    let feed = Feed::new(store.clone(), ["kube-system".to_owned()].into());
    apply(&feed, document);
    assert!(store.set_health("main", is(State::Healthy)));
    (store, feed)
}

/// Health that began now.
fn is(state: State) -> Health {
    Health {
        state,
        ..Health::unknown(clock::now())
    }
}

fn only_mirror(store: &Store) -> MirrorId {
    store.snapshot().routing.by_name()["main"]
}

fn state(store: &Store) -> State {
    store.snapshot().health_of(only_mirror(store)).state
}

async fn until_state(store: &Store, expected: State) {
    let mut snapshots = store.subscribe();
    let waiting = async {
        while state(store) != expected {
            snapshots.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "not {expected:?} but {:?}", state(store));
}

#[tokio::test]
async fn another_endpoint_or_place_ends_health_and_proofs_at_once() {
    let before = mirror("http://127.0.0.1:1", &json!({}));
    for (spec, stays) in [
        (json!({"priority": 7, "health": {"interval": "1s"}}), true),
        (json!({"endpoint": {"url": "http://127.0.0.1:2"}}), false),
        (json!({"registry": "mirror.test/cache"}), false),
        (json!({"repository": "x/{registry}/{repository}"}), false),
        (json!({"kind": "PullThrough"}), false),
    ] {
        let (store, feed) = healthy(&before);
        let mut after = before.clone();
        json_patch::merge(&mut after["spec"], &spec);
        let proven_since = store.snapshot().health_of(only_mirror(&store)).proven_since;
        eventually("the clock goes on", SOON, async || {
            if clock::now() > proven_since {
                Ok(())
            } else {
                Err(String::new())
            }
        })
        .await;
        apply(&feed, &after);
        let health = store.snapshot().health_of(only_mirror(&store)).clone();
        let expected = if stays { State::Healthy } else { State::Unknown };
        assert_eq!(health.state, expected, "{spec}");
        assert_eq!(health.proven_since == proven_since, stays, "{spec}");
    }
}

/// A probe that was begun before an outage proves nothing after it, whatever clocks say: that of whoever
/// saw the outage is behind this one.
#[tokio::test]
async fn a_probe_from_before_an_outage_is_no_proof_after_it() {
    let (mut peer, shelf) = stocked().await;
    peer.set(Behaviour::answer(move |request| {
        Action::Later(Duration::from_millis(300), shelf.answer(request))
    }))
    .await;
    let (store, _feed) = healthy(&mirror(&peer.url(), &json!({"health": {"timeout": "10s"}})));
    let (metrics, _) = Metrics::new();
    let tasks = TaskTracker::new();
    let probes = Probes::new(store.clone(), metrics, tasks.clone());
    let main = only_mirror(&store);
    let probe = [Probe {
        mirror: main,
        key: KEY.parse().unwrap(),
        repository: REPOSITORY.to_owned(),
        reference: "1".to_owned(),
    }];
    // Long before what this test sees, so that times alone would let all of it count.
    let proven_since = clock::now().before(Duration::from_mins(1));
    let health = store.snapshot().health_of(main).clone();
    store.set_health(
        "main",
        Health {
            proven_since,
            ..health
        },
    );
    let proven = || {
        let snapshot = store.snapshot();
        let rules = Rules::of(
            snapshot.routing.mirror(main),
            snapshot.health_of(main).proven_since,
        );
        let index = store.index();
        matches!(
            index.judge("main", key(KEY), &rules, clock::now()),
            Judgement::Proven(..)
        )
    };
    let back = || {
        let before = store.snapshot().health_of(main).clone();
        let proven_since = before.proven_since.after(Duration::from_millis(1));
        store.set_health(
            "main",
            Health {
                proven_since,
                ..before
            },
        );
    };
    // It begins, and nobody waits for it.
    let begin = async || probes.make(&store.snapshot(), &probe, Instant::now()).await;
    let asked = async |times: usize| {
        eventually("the mirror is asked", SOON, async || {
            match peer.requests().len() {
                now if now == times => Ok(()),
                now => Err(now.to_string()),
            }
        })
        .await;
    };
    assert_eq!(begin().await, [None]);
    asked(1).await;
    back();
    tasks.close();
    tasks.wait().await;
    assert!(!proven());

    // Nor is one waited for that is still under way.
    assert_eq!(begin().await, [None]);
    asked(2).await;
    back();
    let findings = probes.make(&store.snapshot(), &probe, soon()).await;
    assert!(
        matches!(findings[..], [Some(Finding::Present(_))]),
        "{findings:?}"
    );
    asked(3).await;
    assert!(proven());
}

/// Nobody reads an image's configuration while a review waits: what the companion read before of the very same
/// image is taken over, for the first Pod as well; of another image nothing is.
#[tokio::test]
async fn a_probe_takes_over_what_is_known_of_the_same_image() {
    let (peer, _) = stocked().await;
    for (seed, expected) in [("one", Platforms::WINDOWS), ("another", Platforms::ASSUMED)] {
        let (store, _feed) = healthy(&mirror(&peer.url(), &json!({"health": {"timeout": "10s"}})));
        let image = image(seed);
        let manifest = Manifest {
            digest: image.digest,
            media_type: image.media_type,
            size: None,
            children: Vec::new(),
            blob: None,
            config: None,
        };
        let known = Presence::Present(Proof::new(&manifest, Platforms::WINDOWS));
        let long_ago = clock::now().before(Duration::from_hours(48));
        store
            .index_mut()
            .write("main", key(KEY), known, long_ago, long_ago);
        let (metrics, _) = Metrics::new();
        let probes = Probes::new(store.clone(), metrics, TaskTracker::new());
        let probe = [Probe {
            mirror: only_mirror(&store),
            key: KEY.parse().unwrap(),
            repository: REPOSITORY.to_owned(),
            reference: "1".to_owned(),
        }];
        let findings = probes.make(&store.snapshot(), &probe, soon()).await;
        let [Some(Finding::Present(proof))] = &findings[..] else {
            panic!("{findings:?}");
        };
        assert_eq!(proof.platforms, expected, "{seed}");
    }
}

/// The companion, at work on a state until it is dropped.
struct Companion {
    demand: mpsc::Sender<Demand>,
    _running: JoinSet<()>,
}

fn start(store: &Store) -> Companion {
    let (want, demand) = mpsc::channel(64);
    let (metrics, _) = Metrics::new();
    let store = store.clone();
    let mut running = JoinSet::new();
    running.spawn(async move {
        let reports = Reports::default();
        match mirror::run(store, metrics, reports, Means::default(), BTreeSet::new(), demand).await {}
    });
    Companion {
        demand: want,
        _running: running,
    }
}

/// Who says of a mirror that nobody knows, while a slow look at it is under way, is not contradicted by
/// that look: what it saw is older.
#[tokio::test]
async fn what_others_wrote_during_a_look_is_not_undone_by_it() {
    let (mut peer, shelf) = stocked().await;
    let store = Store::default();
    let feed = Feed::new(store.clone(), [].into());
    apply(
        &feed,
        &mirror(&peer.url(), &json!({"health": {"timeout": "10s"}})),
    );
    let companion = start(&store);
    until_state(&store, State::Healthy).await;
    peer.set(Behaviour::answer(move |request| {
        Action::Later(Duration::from_millis(500), shelf.answer(request))
    }))
    .await;
    let asked = peer.requests().len();
    eventually("a slow look is under way", SOON, async || {
        if peer.requests().len() > asked {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
    let unknown = Health::unknown(clock::now());
    store.set_health("main", unknown.clone());
    let looks = peer.requests().len();
    until_state(&store, State::Healthy).await;
    let health = store.snapshot().health_of(only_mirror(&store)).clone();
    assert!(health.proven_since > unknown.since, "{health:?} {unknown:?}");
    assert!(peer.requests().len() > looks, "it took a look that began later");
    drop(companion);
}

/// Something bad that a probe saw brings the next look forward; one hiccup is not an outage.
#[tokio::test]
async fn bad_news_is_confirmed_before_it_counts() {
    let (mut peer, shelf) = stocked().await;
    let store = Store::default();
    let feed = Feed::new(store.clone(), [].into());
    apply(
        &feed,
        &mirror(&peer.url(), &json!({"health": {"interval": "10m"}})),
    );
    let _companion = start(&store);
    until_state(&store, State::Healthy).await;
    let asked = || peer.requests().len();
    for _ in 0..3 {
        let before = asked();
        for _ in 0..8 {
            store.doubted("main");
        }
        eventually("the prober looks itself", SOON, async || {
            if asked() > before {
                Ok(())
            } else {
                Err(String::new())
            }
        })
        .await;
        assert_eq!(state(&store), State::Healthy);
    }
    peer.set(Behaviour::always(Reply::error(503, "UNAVAILABLE")))
        .await;
    store.doubted("main");
    until_state(&store, State::Unhealthy).await;
    drop(shelf);
}

/// After an outage nothing is proven until it is seen again, and all that is known is looked at at once:
/// nobody asks for it here, and the next regular sweep is minutes away.
#[tokio::test]
async fn a_recovery_is_followed_by_a_sweep() {
    let (mut peer, shelf) = stocked().await;
    let store = Store::default();
    let feed = Feed::new(store.clone(), [].into());
    apply(&feed, &mirror(&peer.url(), &json!({})));
    let proven = || {
        let snapshot = store.snapshot();
        let mirror = only_mirror(&store);
        let rules = Rules::of(
            snapshot.routing.mirror(mirror),
            snapshot.health_of(mirror).proven_since,
        );
        let index = store.index();
        [KEY, DIGEST].map(|image| {
            matches!(
                index.judge("main", key(image), &rules, clock::now()),
                Judgement::Proven(..)
            )
        })
    };
    let until_proven = async || {
        eventually("both are proven", SOON, async || match proven() {
            [true, true] => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    };
    let companion = start(&store);
    until_state(&store, State::Healthy).await;
    for key in [KEY, DIGEST] {
        let demand = Demand {
            mirror: "main".to_owned(),
            key: key.parse().unwrap(),
            why: Why::New,
        };
        companion.demand.send(demand).await.unwrap();
    }
    until_proven().await;
    for _ in 0..3 {
        peer.set(Behaviour::Refuse).await;
        until_state(&store, State::Unhealthy).await;
        let unhealthy_at = clock::now();
        peer.set(shelf.behaviour()).await;
        until_state(&store, State::Healthy).await;
        assert!(store.snapshot().health_of(only_mirror(&store)).proven_since >= unhealthy_at);
        until_proven().await;
    }
}

/// With an unbounded rate too, a sweep waits as long as the mirror asks, and gives up no image for it.
#[tokio::test]
async fn a_sweep_waits_as_it_is_asked_to() {
    let (mut peer, shelf) = stocked().await;
    let spec = json!({
        "health": {"interval": "10m"},
        "freshness": {"tag": "2s"},
        "sweep": {"requestsPerSecond": 0},
    });
    let store = Store::default();
    let feed = Feed::new(store.clone(), [].into());
    let document = mirror(&peer.url(), &spec);
    apply(&feed, &document);
    let client = Client::new(&Endpoint {
        url: peer.url(),
        ca_bundle: None,
        trust: Trust::default(),
        credentials: None,
    })
    .unwrap();
    let answer = client.get(REPOSITORY, "1", soon()).await;
    let ::kagami::domain::answer::Answer::Exists(manifest) = answer else {
        panic!("{answer:?}")
    };
    let present = Presence::Present(Proof::new(&manifest, Platforms::ALL));
    let limited_until = Instant::now() + Duration::from_millis(1500);
    peer.set(Behaviour::answer(move |request| {
        if request.target.contains("/manifests/") && Instant::now() < limited_until {
            Reply::error(429, "TOOMANYREQUESTS")
                .header("Retry-After", "1")
                .into()
        } else {
            shelf.answer(request).into()
        }
    }))
    .await;
    let now = clock::now();
    store
        .index_mut()
        .write("main", key(KEY), present.clone(), now, now);
    let _companion = start(&store);
    let manifests = || {
        peer.requests()
            .into_iter()
            .filter(|request| request.target.ends_with("/manifests/1"))
    };
    let before = manifests().count();
    eventually("the sweep came through", SOON, async || {
        assert_eq!(store.index().get("main", key(KEY)).unwrap().presence, present);
        let asked = manifests().count() - before;
        if asked >= 3 {
            Ok(())
        } else {
            Err(format!("{asked} requests"))
        }
    })
    .await;
    assert_eq!(store.index().get("main", key(KEY)).unwrap().presence, present);
}

/// What a node could not pull is looked at again. Until there is an answer it counts as before, or not at all.
#[tokio::test]
async fn a_failed_pull_is_answered_by_a_look() {
    let (mut peer, shelf) = stocked().await;
    let store = Store::default();
    let feed = Feed::new(store.clone(), [].into());
    let spec = json!({"health": {"interval": "10m"}, "freshness": {"tag": "1h", "digest": "1h"}});
    apply(&feed, &mirror(&peer.url(), &spec));
    let companion = start(&store);
    until_state(&store, State::Healthy).await;
    let ask = async |image: &str, why| {
        let demand = Demand {
            mirror: "main".to_owned(),
            key: image.parse().unwrap(),
            why,
        };
        companion.demand.send(demand).await.unwrap();
    };
    let presence = |image: &str| {
        let index = store.index();
        let presence = index.get("main", key(image)).map(|entry| entry.presence.clone());
        match presence {
            Some(Presence::Present(_)) => "present",
            Some(Presence::Missing) => "missing",
            Some(Presence::Unknown(Some(Reason::ImageUnknown))) => "unknown",
            _ => "something else",
        }
    };
    let until = async |image: &str, expected: &str| {
        eventually(&format!("{image} is {expected}"), SOON, async || {
            let found = presence(image);
            if found == expected {
                Ok(())
            } else {
                Err(found.to_owned())
            }
        })
        .await;
    };
    for image in [KEY, DIGEST] {
        ask(image, Why::New).await;
        until(image, "present").await;
    }
    let slow = shelf.clone();
    peer.set(Behaviour::answer(move |request| {
        if request.target.contains("/manifests/") {
            Action::Later(Duration::from_secs(1), slow.answer(request))
        } else {
            slow.answer(request).into()
        }
    }))
    .await;
    let asked = peer.requests().len();
    ask(KEY, Why::PullFailed { is_believed: true }).await;
    ask(DIGEST, Why::PullFailed { is_believed: false }).await;
    until(DIGEST, "unknown").await;
    eventually("both are asked for", SOON, async || {
        match peer.requests().len() - asked {
            2.. => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    assert_eq!((presence(KEY), presence(DIGEST)), ("present", "unknown"));
    until(DIGEST, "present").await;

    // No answer says nothing of an image that is believed.
    peer.set(Behaviour::always(Reply::error(500, "UNKNOWN"))).await;
    let asked = peer.requests().len();
    ask(KEY, Why::PullFailed { is_believed: true }).await;
    eventually("it is asked for", SOON, async || {
        if peer.requests().len() > asked {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
    ask(DIGEST, Why::PullFailed { is_believed: false }).await;
    until(DIGEST, "something else").await;
    assert_eq!(presence(KEY), "present");
    peer.set(Behaviour::always(Reply::error(404, "MANIFEST_UNKNOWN")))
        .await;
    eventually("it is gone", SOON, async || {
        ask(KEY, Why::PullFailed { is_believed: true }).await;
        let found = presence(KEY);
        if found == "missing" {
            Ok(())
        } else {
            Err(found.to_owned())
        }
    })
    .await;
}
