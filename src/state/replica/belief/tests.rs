use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    api::SEEN_WELL,
    certificates,
    cluster::objects::Annotations,
    domain::{
        health::{Fault, State},
        image::Reference,
        platform::Platforms,
        routing::Keeper,
        standing::Standing,
    },
};

const MIRROR: &str = "main";

/// A belief, and a clock that tests move on by hand.
struct Scene {
    belief: Belief,
    store: Store,
    started: Instant,
}

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn mirror(state: &str, stale_after: &str) -> Object {
    object(json!({
        "metadata": {"name": MIRROR},
        "spec": {
            "registry": "mirror.test", "kind": "Hosted", "sources": [{"prefix": "docker.io"}],
            "endpoint": {"url": "http://127.0.0.1:1", "credentials": {"secretRef": {"name": "read"}}},
            "health": {"staleAfter": stale_after},
            "namespaceSelector": {"matchLabels": {"team": "blue"}},
        },
        "status": {"health": {"state": state, "provenSince": "2026-01-02T03:04:05.000000Z"}},
    }))
}

fn lease(number: u32) -> Object {
    object(json!({"spec": {"renewTime": format!("2026-01-02T03:04:{number:02}.000000Z")}}))
}

fn now() -> Timestamp {
    Timestamp::from_millis(2_000_000_000_000)
}

impl Scene {
    /// One healthy mirror was listed, and the Lease found.
    fn new(stale_after: &str) -> Self {
        // In the process the command line does it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let store = Store::default();
        let mut belief = Belief::new(store.clone(), BTreeSet::new(), Metrics::new().0);
        belief.take_mirror(Event::Listed(mirror("Healthy", stale_after)), now());
        belief.take_mirror(Event::ListedAll { round: 0 }, now());
        belief.lease_listed(&lease(0));
        Self {
            belief,
            store,
            started: Instant::now(),
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.started + Duration::from_secs(seconds)
    }

    fn beat(&mut self, number: u32, seconds: u64) {
        let at = self.at(seconds);
        self.belief.lease_changed(&lease(number), at, now());
    }

    /// Lets time pass while all watches are in contact, and returns state and staleness.
    fn tick(&mut self, seconds: u64) -> (State, bool) {
        let at = self.at(seconds);
        let contacts = Contacts {
            mirrors: Some(at),
            namespaces: Some(at),
        };
        self.belief.tick(contacts, at, now());
        self.view()
    }

    fn view(&self) -> (State, bool) {
        let snapshot = self.store.snapshot();
        let (id, _) = snapshot.routing.mirrors().next().unwrap();
        (snapshot.health_of(id).state, snapshot.is_stale(id))
    }

    /// Answers the list that is wanted, with a state.
    fn relist(&mut self, state: &str) {
        let round = *self.belief.relists().borrow();
        self.belief.take_mirror(Event::Listing, now());
        self.belief
            .take_mirror(Event::Listed(mirror(state, "10s")), now());
        self.belief.take_mirror(Event::ListedAll { round }, now());
    }
}

const STALE: (State, bool) = (State::Unknown, true);
const FRESH: (State, bool) = (State::Healthy, false);

#[test]
fn a_lease_that_is_only_there_is_no_sign_of_life() {
    let mut scene = Scene::new("10s");
    assert_eq!(scene.tick(0), STALE);
    scene.beat(0, 1);
    scene.relist("Healthy");
    assert_eq!(scene.tick(1), STALE);
    assert!(!scene.belief.heard());
}

#[test]
fn after_a_pause_the_mirrors_are_listed_before_anything_is_believed() {
    let mut scene = Scene::new("10s");
    // The list that was under way before the sign of life says nothing.
    scene.beat(1, 1);
    scene.belief.take_mirror(Event::Listing, now());
    scene
        .belief
        .take_mirror(Event::Listed(mirror("Healthy", "10s")), now());
    scene.belief.take_mirror(Event::ListedAll { round: 0 }, now());
    assert_eq!(scene.tick(1), STALE);
    scene.relist("Healthy");
    assert_eq!(scene.tick(1), FRESH);
    // While it goes on, no list is needed.
    scene.beat(2, 6);
    assert_eq!(scene.tick(16), FRESH);
    assert_eq!(scene.tick(17), STALE);
    scene.beat(3, 20);
    assert_eq!(scene.tick(20), STALE);
    scene.relist("Unhealthy");
    assert_eq!(scene.tick(20), (State::Unhealthy, false));
}

#[test]
fn each_mirror_has_its_own_bound() {
    let mut scene = Scene::new("10s");
    let mut other = mirror("Healthy", "1m");
    "other".clone_into(&mut other.metadata.name);
    scene.beat(1, 0);
    let round = *scene.belief.relists().borrow();
    scene.belief.take_mirror(Event::Listing, now());
    scene
        .belief
        .take_mirror(Event::Listed(mirror("Healthy", "10s")), now());
    scene.belief.take_mirror(Event::Listed(other), now());
    scene.belief.take_mirror(Event::ListedAll { round }, now());
    scene.tick(30);
    let snapshot = scene.store.snapshot();
    let by_name = snapshot.routing.by_name();
    assert!(snapshot.is_stale(by_name[MIRROR]));
    assert!(!snapshot.is_stale(by_name["other"]));
}

#[test]
fn a_silent_watch_of_mirrors_is_not_believed_whatever_the_heartbeat_says() {
    let mut scene = Scene::new("10s");
    scene.beat(1, 0);
    scene.relist("Healthy");
    for second in (5..=40).step_by(5) {
        scene.beat(u32::try_from(second).unwrap(), second);
    }
    assert_eq!(scene.tick(40), FRESH);
    let at = scene.at(40);
    let contacts = Contacts {
        mirrors: Some(scene.at(9)),
        namespaces: Some(at),
    };
    scene.belief.tick(contacts, at, now());
    assert_eq!(scene.view(), STALE);
}

#[test]
fn a_silent_watch_of_namespaces_leaves_none_known() {
    let mut scene = Scene::new("10s");
    let namespace = |labels: Value| {
        serde_json::from_value::<Outline>(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    };
    scene.tick(0);
    scene.belief.take_namespace(Event::Listing);
    scene
        .belief
        .take_namespace(Event::Listed(namespace(json!({"team": "blue"}))));
    let serves = |scene: &Scene| {
        let snapshot = scene.store.snapshot();
        let (id, _) = snapshot.routing.mirrors().next().unwrap();
        snapshot.serves(id, "shop")
    };
    assert!(!serves(&scene));
    scene.belief.take_namespace(Event::ListedAll { round: 0 });
    assert!(serves(&scene));
    let at = scene.at(200);
    let contacts = |namespaces| Contacts {
        mirrors: Some(at),
        namespaces: Some(namespaces),
    };
    scene.belief.tick(contacts(scene.at(49)), at, now());
    assert!(!serves(&scene));
    // A mirror that changes meanwhile does not bring them back.
    scene
        .belief
        .take_mirror(Event::Changed(mirror("Healthy", "1m")), now());
    assert!(!serves(&scene));
    scene.belief.tick(contacts(at), at, now());
    assert!(serves(&scene));
    scene.belief.take_namespace(Event::Deleted(namespace(json!({}))));
    assert!(!serves(&scene));
}

#[test]
fn mirrors_come_and_go_with_lists_and_deletions() {
    let mut scene = Scene::new("10s");
    let mirrors = |scene: &Scene| scene.store.snapshot().routing.len();
    assert_eq!(mirrors(&scene), 1);
    scene.belief.take_mirror(Event::Listing, now());
    scene.belief.take_mirror(Event::ListedAll { round: 0 }, now());
    assert_eq!(mirrors(&scene), 0);
    scene
        .belief
        .take_mirror(Event::Changed(mirror("Healthy", "10s")), now());
    assert_eq!(mirrors(&scene), 1);
    scene
        .belief
        .take_mirror(Event::Deleted(mirror("Healthy", "10s")), now());
    assert_eq!(mirrors(&scene), 0);
}

/// Else it would give the private copies of one that became faulty to everybody.
#[test]
fn a_replica_that_begins_keeps_closed_what_it_cannot_understand() {
    let scene = Scene::new("30s");
    let mut belief = scene.belief;
    let acme = object(json!({
        "metadata": {"name": "acme"},
        "spec": {
            "registry": "mirror.test", "kind": "Hosted", "mode": "Sometimes",
            "sources": [{"prefix": "docker.io/acme", "access": "Private"}],
        },
    }));
    let keeper = |image: &str| {
        let routing = &scene.store.snapshot().routing;
        let image = Reference::parse(image).unwrap();
        let key = image.key();
        let candidates = routing.candidates(key.by_ref().name());
        let access = routing.access(&candidates.ordered[0], &image);
        let closed = access.closed.map(|id| routing.keeper(Keeper::Closed(id)));
        closed.map(ToOwned::to_owned)
    };
    assert_eq!(keeper("acme/secret:1"), None);
    belief.take_mirror(Event::Changed(acme.clone()), now());
    assert_eq!(keeper("acme/secret:1").as_deref(), Some("acme"));
    assert_eq!(keeper("nginx:1"), None);
    belief.take_mirror(Event::Deleted(acme), now());
    assert_eq!(keeper("acme/secret:1"), None);
}

#[test]
fn whatever_becomes_of_credentials_the_mirror_stays_what_it_is() {
    let mut scene = Scene::new("10s");
    scene.beat(1, 0);
    scene.relist("Healthy");
    assert_eq!(scene.tick(0), FRESH);
    let now_is = |scene: &Scene| (scene.store.client(MIRROR).unwrap(), scene.store.snapshot());
    let (client, before) = now_is(&scene);
    let faults = |scene: &Scene| {
        let status = scene.belief.status(scene.at(0)).1;
        status[MIRROR].credentials_fault.clone()
    };
    let file = |content: &str| Secret::docker_config(content.as_bytes().to_vec());
    let good = r#"{"auths": {"mirror.test": {"username": "u", "password": "p"}}}"#;
    let renewed = r#"{"auths": {"mirror.test": {"username": "u", "password": "q"}}}"#;
    let other = r#"{"auths": {"other.test": {"username": "u", "password": "p"}}}"#;
    for (content, fault) in [
        (Some(good), None),
        (Some("{"), Some("cannot read Secret main: ")),
        (Some(renewed), None),
        (
            Some(other),
            Some("Secret main has no credentials for mirror.test, only for other.test"),
        ),
        (None, None),
        (Some(good), None),
    ] {
        let files = content.map(|content| (MIRROR.to_owned(), file(content)));
        scene.belief.set_credentials(files.into_iter().collect());
        let (same, after) = now_is(&scene);
        assert!(same.is(&client), "{content:?}");
        assert!(Arc::ptr_eq(&before, &after), "{content:?}: {after:?}");
        assert_eq!(faults(&scene).is_some(), fault.is_some(), "{content:?}");
        assert!(
            faults(&scene)
                .unwrap_or_default()
                .starts_with(fault.unwrap_or_default())
        );
    }
    // A Secret by another name is no other mirror either.
    let mut renamed = mirror("Healthy", "10s");
    renamed.spec["endpoint"]["credentials"]["secretRef"]["name"] = "other".into();
    scene.belief.take_mirror(Event::Changed(renamed.clone()), now());
    let (same, after) = now_is(&scene);
    assert!(same.is(&client));
    assert_eq!(after.health, before.health);
    renamed.spec["endpoint"]
        .as_object_mut()
        .unwrap()
        .remove("credentials");
    scene.belief.take_mirror(Event::Changed(renamed), now());
    let (same, after) = now_is(&scene);
    assert!(same.is(&client));
    assert_eq!(after.health, before.health);
}

#[test]
fn another_endpoint_authority_kind_or_place_voids_what_was_proven() {
    let authority = certificates::issue(&[], now(), Duration::from_hours(1))
        .unwrap()
        .authority;
    for (field, value) in [
        ("/spec/endpoint/url", json!("http://127.0.0.1:2")),
        ("/spec/endpoint/caBundle", json!(authority)),
        ("/spec/kind", json!("PullThrough")),
        ("/spec/registry", json!("mirror.test/cache")),
        ("/spec/repository", json!("x/{registry}/{repository}")),
    ] {
        let mut scene = Scene::new("10s");
        scene.beat(1, 0);
        scene.relist("Healthy");
        assert_eq!(scene.tick(0), FRESH);
        let client = scene.store.client(MIRROR).unwrap();
        let mut moved = mirror("Healthy", "10s");
        let (parent, name) = field["/spec".len()..].rsplit_once('/').unwrap();
        moved.spec.pointer_mut(parent).unwrap()[name] = value;
        scene.belief.take_mirror(Event::Changed(moved), now());
        let health = scene.store.snapshot().health[0].clone();
        let expected = (State::Healthy, now());
        assert_eq!((health.state, health.proven_since), expected, "{field}");
        assert!(!scene.store.client(MIRROR).unwrap().is(&client), "{field}");
    }
}

#[test]
fn what_a_status_tells_compiles_no_routing() {
    let mut scene = Scene::new("10s");
    let snapshot = |scene: &Scene| scene.store.snapshot();
    let told = |scene: &Scene| {
        let snapshot = snapshot(scene);
        let (id, _) = snapshot.routing.mirrors().next().unwrap();
        snapshot.standing(id).clone()
    };
    assert_eq!(told(&scene), Standing::NONE);
    let routing = Arc::clone(&snapshot(&scene).routing);
    let mut object = mirror("Healthy", "10s");
    object.status["platforms"] = json!(["linux/arm64"]);
    object.status["pullSecretNamespaces"] = json!(["shop"]);
    object.status["conditions"] = json!([{
        "type": "ForwardAllowed", "status": "True", "reason": "Listed", "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    }]);
    let standing = Standing {
        platforms: Platforms::of("linux", "arm64", ""),
        pull_secret_namespaces: BTreeSet::from(["shop".to_owned()]),
        forward_allowed: true,
    };
    scene.belief.take_mirror(Event::Changed(object.clone()), now());
    assert_eq!(told(&scene), standing);
    assert!(Arc::ptr_eq(&routing, &snapshot(&scene).routing));
    // Another configuration has it from the beginning.
    let mut snapshots = scene.store.subscribe();
    object.spec["priority"] = 7.into();
    scene.belief.take_mirror(Event::Changed(object.clone()), now());
    assert_eq!(told(&scene), standing);
    assert!(!Arc::ptr_eq(&routing, &snapshot(&scene).routing));
    object.status = mirror("Healthy", "10s").status;
    scene.belief.take_mirror(Event::Changed(object.clone()), now());
    assert_eq!(told(&scene), Standing::NONE);
    // The same again is no news.
    snapshots.mark_unchanged();
    scene.belief.take_mirror(Event::Changed(object), now());
    assert!(!snapshots.has_changed().unwrap());
}

#[test]
fn own_pings_are_alone_only_while_nobody_else_counts_or_they_see_otherwise() {
    let mut scene = Scene::new("10s");
    scene.tick(0);
    assert!(scene.belief.need(MIRROR).unwrap().alone);
    scene.beat(1, 0);
    scene.relist("Healthy");
    scene.tick(0);
    let pinged = |scene: &mut Scene, ping: Ping, millis: u64| {
        let at = now().after(Duration::from_millis(millis));
        scene.belief.pinged(MIRROR, ping, at, at)
    };
    pinged(&mut scene, Ping::good(), 0);
    assert!(!scene.belief.need(MIRROR).unwrap().alone);
    let bad = || Ping {
        observation: Observation::Bad(Fault::Timeout, None),
        speaks: true,
    };
    pinged(&mut scene, bad(), 1000);
    assert_eq!(scene.view(), (State::Healthy, false));
    let suspected = |scene: &Scene| !scene.store.snapshot().suspected.is_empty();
    assert!(suspected(&scene));
    pinged(&mut scene, bad(), 3000);
    assert_eq!(scene.view(), (State::Unhealthy, false));
    assert!(scene.belief.need(MIRROR).unwrap().alone);
    // It answers again: what it holds is looked at before it is believed.
    assert_eq!(pinged(&mut scene, Ping::good(), 4000), Outcome::Returned);
    assert_eq!(scene.view(), (State::Unhealthy, false));
    scene.belief.returned(MIRROR, true, now());
    assert_eq!(scene.view(), (State::Healthy, false));
    assert!(!suspected(&scene));
}

#[test]
fn who_renews_the_lease_ends_a_doubt_by_what_it_saw_since() {
    let mut scene = Scene::new("60s");
    scene.beat(1, 0);
    scene.relist("Healthy");
    scene.tick(0);
    let later = |seconds| now().after(Duration::from_secs(seconds));
    scene.belief.pinged(MIRROR, Ping::good(), now(), now());
    for seconds in [10, 12] {
        let bad = Ping {
            observation: Observation::Bad(Fault::Timeout, None),
            speaks: true,
        };
        scene.belief.pinged(MIRROR, bad, later(seconds), later(seconds));
    }
    assert_eq!(scene.view(), (State::Unhealthy, false));
    // Its clock is another one.
    let sign = |number| renewed_at(&lease(number)).unwrap().as_millis();
    for (number, round, expected) in [
        (2, json!({"main": sign(2) - 1}).to_string(), State::Unhealthy),
        (
            3,
            json!({"main": sign(2) - 1, "other": 9}).to_string(),
            State::Unhealthy,
        ),
        (4, "junk".to_owned(), State::Unhealthy),
        (5, json!({"main": sign(2) + 1}).to_string(), State::Healthy),
    ] {
        let mut lease = lease(number);
        let annotations = json!({SEEN_WELL: round, "of-others": "x"});
        lease.metadata.annotations = serde_json::from_value(annotations).unwrap();
        let at = scene.at(number.into());
        scene.belief.lease_changed(&lease, at, later(number.into()));
        assert_eq!(scene.view().0, expected, "{number}");
    }
}

/// Whoever pulls it renews nothing, and it counts whether the companion lives or not.
#[test]
fn the_brake_is_heard_without_a_sign_of_life() {
    let mut scene = Scene::new("30s");
    let braked = |word: Option<&str>| {
        let mut lease = lease(0);
        lease.metadata.annotations = Some(Annotations {
            paused: word.map(ToOwned::to_owned),
            ..Annotations::default()
        });
        lease
    };
    let at = scene.at(1);
    scene.belief.lease_changed(&braked(Some("true")), at, now());
    assert!(scene.store.snapshot().paused);
    assert!(!scene.belief.heard());
    scene.belief.lease_changed(&braked(None), at, now());
    assert!(!scene.store.snapshot().paused);
    scene.belief.lease_listed(&braked(Some("yes")));
    assert!(scene.store.snapshot().paused);
}
