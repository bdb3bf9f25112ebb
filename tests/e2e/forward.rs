//! Pods that their own registry does not give their image, as their statuses say, which these tests write in a kubelet's
//! place: the companion, held by the chart's policies, turns them to a mirror that has proof.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    companion::assert_only_allowed,
    rescue::{
        MOMENT, RESCUES, back_off, failed, metric, patches, report, requests, running, until, until_told,
    },
    support::{
        admission::{annotation, image, original, pod},
        chart::stdout,
        cluster::{Cluster, Namespace},
        companion::{Companion, Place},
        eventually,
        mirror::{Mirror, REGISTRY},
    },
};

const NGINX: &str = "nginx:1.29";
const NGINX_KEY: &str = "docker.io/library/nginx:1.29";
const MIRRORED: &str = "mirror.test/docker.io/library/nginx:1.29";

/// Starts a companion that may send Pods to the mirror's registry.
fn start(place: &Place<'_>, user: &'static str) -> Companion {
    place.start(user, &[RESCUES, &["--rescue-registries", REGISTRY]].concat())
}

/// Labels the served namespace.
fn label(place: &Place<'_>, mode: &str) {
    let label = format!("kagami.dev/mode={mode}");
    let name = place.served.name.as_str();
    stdout(
        &place
            .cluster
            .kubectl(&["label", "--overwrite", "namespace", name, &label]),
    );
}

/// Creates a Pod with one container `app` whose image cannot be pulled.
fn stuck(namespace: &Namespace<'_>, name: &str, image: &str) {
    namespace.create_pod(&pod(name, image)).success();
    fails(namespace, name, image);
}

fn fails(namespace: &Namespace<'_>, name: &str, image: &str) {
    for state in [back_off(image), failed(image)] {
        report(namespace, name, &[("app", state)]).success();
    }
}

fn until_image(namespace: &Namespace<'_>, name: &str, expected: &str) -> Value {
    let what = format!("{name} has {expected}");
    until(&what, namespace, name, |pod| image(pod, "app") == expected)
}

fn forward_allowed(place: &Place<'_>, status: &str) -> String {
    eventually(&format!("ForwardAllowed is {status}"), || {
        let mirror = place.mirror();
        let mut conditions = mirror["status"]["conditions"].as_array()?.iter();
        let condition = conditions.find(|condition| condition["type"] == "ForwardAllowed")?;
        (condition["status"] == status).then(|| condition["message"].as_str().unwrap().to_owned())
    })
}

fn turns(pod: &Value) -> Vec<String> {
    let record: Value = serde_json::from_str(annotation(pod, "kagami.dev/rescued").unwrap()).unwrap();
    record.as_object().unwrap().keys().cloned().collect()
}

pub(crate) fn a_pod_stuck_on_upstream_goes_forward_once_and_back_once(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    label(&place, "enforce");
    let namespace = &place.served;
    stuck(namespace, "web", NGINX);
    let companion = start(&place, "companion-a");
    let pod = until_image(namespace, "web", MIRRORED);
    assert_eq!(original(&pod, "app"), Some(NGINX));
    assert_eq!(turns(&pod), ["containers.app/forward"]);
    let note = until_told(namespace, "web", "Rescued");
    assert!(
        note.contains(MIRRORED) && note.contains(&format!("cannot pull {NGINX}")),
        "{note}"
    );
    let labels = format!(
        "kagami_rescues_total{{mirror=\"{}\",direction=\"forward\",outcome=\"done\"}}",
        place.name
    );
    assert_eq!(metric(&companion, &labels).as_deref(), Some("1"));
    forward_allowed(&place, "True");

    // The mirror fails its node: it waits until another Pod that went back is served there.
    stuck_on_mirror(namespace, "other");
    fails(namespace, "other", MIRRORED);
    until_image(namespace, "other", NGINX);
    fails(namespace, "web", MIRRORED);
    thread::sleep(2 * MOMENT);
    assert_eq!(image(&namespace.pod("web"), "app"), MIRRORED);
    report(namespace, "other", &[("app", running())]).success();
    // Then it goes back to what was recorded. Upstream fails again: that is all.
    let pod = until_image(namespace, "web", NGINX);
    assert_eq!(turns(&pod), ["containers.app", "containers.app/forward"]);
    fails(namespace, "web", NGINX);
    stuck(namespace, "last", NGINX);
    until_image(namespace, "last", MIRRORED);
    thread::sleep(4 * MOMENT);
    assert_eq!(image(&namespace.pod("web"), "app"), NGINX);
    assert_eq!(patches(&place, &companion, namespace, "web").len(), 2);
    assert_only_allowed(&place, &companion);
}

pub(crate) fn without_its_registry_listed_nothing_goes_forward_and_the_mirror_says_so(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    label(&place, "enforce");
    let namespace = &place.served;
    stuck(namespace, "web", NGINX);
    let companion = place.start(
        "companion-a",
        &[RESCUES, &["--rescue-registries", "other.test"]].concat(),
    );
    let message = forward_allowed(&place, "False");
    for part in ["rescue.registries", REGISTRY] {
        assert!(message.contains(part), "{message}");
    }
    place.wait_for_image(NGINX_KEY, "Present");
    fails(namespace, "web", NGINX);
    thread::sleep(6 * MOMENT);
    assert_eq!(image(&namespace.pod("web"), "app"), NGINX);
    assert!(requests(&place, &companion, namespace, "web").is_empty());
    companion.process.terminate();
    // With it listed, the same Pod goes, once it fails again.
    let companion = start(&place, "companion-b");
    until_image(namespace, "web", MIRRORED);
    forward_allowed(&place, "True");
    assert_only_allowed(&place, &companion);
}

pub(crate) fn what_admission_would_keep_stays(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let companion = start(&place, "companion-a");
    let create = |name: &str, change: fn(&mut Value)| {
        let mut pod = pod(name, NGINX);
        change(&mut pod);
        namespace.create_pod(&pod).success();
        fails(namespace, name, NGINX);
    };
    // The namespace is labelled audit.
    create("audited", |_| ());
    // No Pod makes more of its namespace's mode.
    create("strengthened", |pod| {
        pod["metadata"]["labels"] = json!({"kagami.dev/mode": "enforce"});
    });
    place.wait_for_image(NGINX_KEY, "Present");
    let audited = ["audited", "strengthened"];
    for name in audited {
        fails(namespace, name, NGINX);
    }
    thread::sleep(4 * MOMENT);
    for name in audited {
        assert_eq!(image(&namespace.pod(name), "app"), NGINX, "{name}");
        assert!(requests(&place, &companion, namespace, name).is_empty(), "{name}");
    }
    label(&place, "enforce");
    for name in audited {
        until_image(namespace, name, MIRRORED);
    }

    create("off", |pod| {
        pod["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
    });
    create("told", |pod| {
        pod["metadata"]["labels"] = json!({"kagami.dev/mode": "audit"});
    });
    create("owned", |pod| {
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster", "name": "x", "uid": "1"}]);
    });
    create("recorded", |pod| {
        pod["metadata"]["annotations"] = json!({"original-image.kagami.dev/app": "evil.test/nginx:1.29"});
    });
    create("turned", |pod| {
        let turn = r#"{"containers.app/forward": {"from": "a", "to": "b", "at": "c"}}"#;
        pod["metadata"]["annotations"] = json!({"kagami.dev/rescued": turn});
    });
    create("unreadable", |pod| {
        pod["metadata"]["annotations"] = json!({"kagami.dev/rescued": "{"});
    });
    stuck(namespace, "missing", "nginx:no-such-tag");
    stuck(namespace, "nobodys", "quay.io/acme/app:1");
    // A name like a mirror's, below a tenant's own registry.
    let alike = format!("evil.test/{MIRRORED}");
    stuck(namespace, "alike", &alike);
    // Forged names: kubelet speaks of what is not this container's image.
    namespace.create_pod(&pod("other", "redis:8")).success();
    fails(namespace, "other", NGINX);
    place.wait_for_image("docker.io/library/nginx:no-such-tag", "Missing");
    let note = until_told(namespace, "told", "WouldRescue");
    assert!(note.contains(MIRRORED), "{note}");
    stuck(namespace, "last", NGINX);
    until_image(namespace, "last", MIRRORED);
    thread::sleep(4 * MOMENT);
    for (name, expected) in [
        ("off", NGINX),
        ("told", NGINX),
        ("owned", NGINX),
        ("recorded", NGINX),
        ("turned", NGINX),
        ("unreadable", NGINX),
        ("missing", "nginx:no-such-tag"),
        ("nobodys", "quay.io/acme/app:1"),
        ("alike", alike.as_str()),
        ("other", "redis:8"),
    ] {
        assert_eq!(image(&namespace.pod(name), "app"), expected, "{name}");
        assert!(requests(&place, &companion, namespace, name).is_empty(), "{name}");
    }
    assert_only_allowed(&place, &companion);
}

/// The mirror dies, then upstream, then both return and die again: no Pod is turned more than once each way.
pub(crate) fn with_both_dead_each_pod_is_turned_twice_at_most(cluster: &Cluster) {
    let name = "mirror-of-both-dead";
    let mut mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), name);
    let place = Place::guarded(cluster, &mirror.url);
    label(&place, "enforce");
    let namespace = &place.served;
    let names: Vec<_> = (0..10).map(|number| format!("web-{number}")).collect();
    for name in &names {
        let mut pod = pod(name, MIRRORED);
        pod["metadata"]["annotations"] = json!({"original-image.kagami.dev/app": NGINX});
        namespace.create_pod(&pod).success();
    }
    let companion = start(&place, "companion-a");
    place.wait_for_image(NGINX_KEY, "Present");
    mirror.kill();
    place.wait_for_health("Unhealthy");
    for name in &names {
        fails(namespace, name, MIRRORED);
    }
    for name in &names {
        until_image(namespace, name, NGINX);
    }
    // Upstream is dead too. Kubelet says so again and again, and nothing is to be done.
    for _ in 0..3 {
        for name in &names {
            fails(namespace, name, NGINX);
        }
        thread::sleep(2 * MOMENT);
    }
    for name in &names {
        assert_eq!(patches(&place, &companion, namespace, name).len(), 1, "{name}");
    }
    mirror.bring_back();
    place.wait_for_health("Healthy");
    for name in &names {
        until_image(namespace, name, MIRRORED);
    }
    // It dies once more, and returns once more.
    for _ in 0..2 {
        mirror.kill();
        place.wait_for_health("Unhealthy");
        for name in &names {
            fails(namespace, name, MIRRORED);
        }
        mirror.bring_back();
        place.wait_for_health("Healthy");
    }
    thread::sleep(Duration::from_secs(3));
    for name in &names {
        assert_eq!(image(&namespace.pod(name), "app"), MIRRORED, "{name}");
        assert_eq!(patches(&place, &companion, namespace, name).len(), 2, "{name}");
    }
    assert_only_allowed(&place, &companion);
}

/// Creates a Pod as Kagami leaves it, whose image the mirror does not give.
fn stuck_on_mirror(namespace: &Namespace<'_>, name: &str) {
    let mut pod = pod(name, MIRRORED);
    pod["metadata"]["annotations"] = json!({"original-image.kagami.dev/app": NGINX});
    namespace.create_pod(&pod).success();
}

/// The Pods among these that have an image.
fn with_image<'n>(namespace: &Namespace<'_>, names: &'n [String], expected: &str) -> Vec<&'n String> {
    let names = names.iter();
    names
        .filter(|name| image(&namespace.pod(name), "app") == expected)
        .collect()
}

/// A companion of a mirror that it looks at rarely, so that only what is asked for is seen anew.
fn start_at_rest(place: &Place<'_>) -> Companion {
    label(place, "enforce");
    place.patch_mirror(&json!({"spec": {"freshness": {"tag": "1h"}}}));
    let companion = start(place, "companion-a");
    place.served.create_pod(&pod("known", NGINX)).success();
    place.wait_for_image(NGINX_KEY, "Present");
    companion
}

/// Nodes do not get the image for a moment, of which Kagami sees nothing, and upstream refuses them. A few Pods go back and
/// come forward again, and the others stay.
pub(crate) fn after_a_blip_of_the_mirror_no_pod_stays_stuck_where_upstream_refuses(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let companion = start_at_rest(&place);
    let names: Vec<_> = (0..20).map(|number| format!("web-{number}")).collect();
    for name in &names {
        stuck_on_mirror(namespace, name);
    }
    for name in &names {
        fails(namespace, name, MIRRORED);
    }
    let first = eventually("some go back", || with_image(namespace, &names, NGINX).pop());
    fails(namespace, first, NGINX);
    thread::sleep(2 * MOMENT);
    let gone = with_image(namespace, &names, NGINX);
    assert!(gone.len() < names.len(), "{gone:?}");
    for name in with_image(namespace, &names, MIRRORED) {
        fails(namespace, name, MIRRORED);
    }
    thread::sleep(4 * MOMENT);
    assert_eq!(
        with_image(namespace, &names, NGINX),
        gone,
        "none goes where one failed"
    );
    // The blip is over: kubelet tries again, and the others get it.
    for name in with_image(namespace, &names, MIRRORED) {
        report(namespace, name, &[("app", running())]).success();
    }
    for name in &gone {
        report(namespace, name, &[("app", failed(NGINX))]).success();
    }
    for name in &gone {
        let pod = until_image(namespace, name, MIRRORED);
        assert_eq!(turns(&pod), ["containers.app", "containers.app/forward"]);
        assert_eq!(original(&pod, "app"), Some(NGINX));
        report(namespace, name, &[("app", running())]).success();
    }
    for name in &names {
        let expected = if gone.contains(&name) { 2 } else { 0 };
        let patches = patches(&place, &companion, namespace, name);
        assert_eq!(patches.len(), expected, "{name}");
    }
    assert_only_allowed(&place, &companion);
}

pub(crate) fn to_a_registry_that_fails_pods_go_back_from_a_dead_mirror_alone(cluster: &Cluster) {
    let name = "mirror-of-few";
    let mut mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), name);
    let place = Place::guarded(cluster, &mirror.url);
    let namespace = &place.served;
    let companion = start_at_rest(&place);
    stuck_on_mirror(namespace, "first");
    fails(namespace, "first", MIRRORED);
    until_image(namespace, "first", NGINX);
    fails(namespace, "first", NGINX);
    let names: Vec<_> = (0..5).map(|number| format!("web-{number}")).collect();
    for name in &names {
        stuck_on_mirror(namespace, name);
        fails(namespace, name, MIRRORED);
    }
    for _ in 0..3 {
        thread::sleep(2 * MOMENT);
        for name in &names {
            fails(namespace, name, MIRRORED);
        }
    }
    for name in &names {
        assert!(requests(&place, &companion, namespace, name).is_empty(), "{name}");
    }
    mirror.kill();
    place.wait_for_health("Unhealthy");
    for name in &names {
        until_image(namespace, name, NGINX);
    }
    assert_only_allowed(&place, &companion);
}
