//! Pods that have a mirror's name and no record of what their user wrote.

use kagami::api::ORIGINALS_CONFIG_MAP;
use serde_json::{Value, json};

use crate::{
    companion::assert_only_allowed,
    owners::{start_webhook, until_rewritten},
    support::{
        admission::{annotation, decision, image, original, pod},
        chart::stdout,
        cluster::{Cluster, Namespace},
        companion::Place,
        eventually,
        kagami::Registration,
        mirror::REGISTRY,
    },
};

const NGINX: &str = "docker.io/library/nginx:1.29";

/// What the companion notes: namespace, image and original of each.
fn notes(place: &Place<'_>) -> Vec<[String; 3]> {
    let map = place
        .cluster
        .get(&place.own.path(&format!("configmaps/{ORIGINALS_CONFIG_MAP}")))
        .success();
    let text = map["data"]["originals"].as_str().unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn until_noted(place: &Place<'_>, expected: &[[&str; 3]]) {
    eventually(&format!("{expected:?} is noted"), || {
        (notes(place) == expected).then_some(())
    });
}

/// A Pod as it would be stored.
fn would_be(namespace: &Namespace<'_>, pod: &Value) -> Value {
    let path = format!("{}?dryRun=All", namespace.path("pods"));
    namespace.cluster.create(&path, pod).success()
}

fn forged(name: &str, image: &str, original: &str) -> Value {
    let mut forged = pod(name, image);
    forged["metadata"]["annotations"] = json!({"original-image.kagami.dev/app": original});
    forged
}

fn is_left_as_it_is(namespace: &Namespace<'_>, written: &str) {
    let stored = would_be(namespace, &pod("probe", written));
    assert_eq!(image(&stored, "app"), written);
    assert_eq!(annotation(&stored, "kagami.dev/decisions"), None);
    assert_eq!(original(&stored, "app"), None);
}

/// As `kubectl debug --copy-to` makes them, which drops annotations.
pub(crate) fn a_copy_that_lost_its_record_gets_that_of_another_pod_of_its_namespace(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let first = place.start("companion-a", &[]);
    let (webhook, _registration) = start_webhook(&place);
    until_rewritten(&place);
    let namespace = &place.served;
    let other = cluster.namespace(Some("enforce"));
    let _other = Registration::new(&other, &[], &webhook);

    let stored = namespace.create_pod(&pod("web", NGINX)).success();
    let mirrored = image(&stored, "app").to_owned();
    assert_ne!(mirrored, NGINX);
    let served = [namespace.name.as_str(), mirrored.as_str(), NGINX];
    until_noted(&place, &[served]);
    eventually("the webhook knows", || {
        let stored = would_be(namespace, &pod("probe", &mirrored));
        original(&stored, "app").map(|_| ())
    });

    stdout(&namespace.kubectl(&[
        "debug",
        "web",
        "--copy-to=copy",
        "--container=app",
        "--",
        "sleep",
        "1",
    ]));
    let copy = namespace.pod("copy");
    assert_eq!(copy["spec"]["containers"][0]["command"], json!(["sleep", "1"]));
    assert_eq!(image(&copy, "app"), mirrored);
    assert_eq!(original(&copy, "app"), Some(NGINX));
    assert_eq!(decision(&copy, "app")["reason"], "Mirrored");
    // A second round changes nothing.
    let mut again = copy.clone();
    again["metadata"]["name"] = "again".into();
    for made in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        again["metadata"].as_object_mut().unwrap().remove(made);
    }
    let again = would_be(namespace, &again);
    assert_eq!(again["metadata"]["annotations"], copy["metadata"]["annotations"]);

    // What another namespace records, and what the mapping does not make of what is recorded, is nobody's.
    is_left_as_it_is(&other, &mirrored);
    let on_mirror = |name: &str| format!("{REGISTRY}/docker.io/library/{name}");
    let (redis, secret) = (on_mirror("redis:8"), on_mirror("secret:1"));
    namespace
        .create_pod(&forged("secret", &secret, "docker.io/evil/secret:1"))
        .success();
    is_left_as_it_is(namespace, &secret);
    // One that maps speaks for its own namespace alone: there it leads to what this very image is the mirror's copy of.
    let mut off = forged("redis", &redis, "redis:8");
    off["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
    other.create_pod(&off).success();
    let of_other = [other.name.as_str(), redis.as_str(), "redis:8"];
    let mut expected = [served, of_other];
    expected.sort_unstable();
    until_noted(&place, &expected);
    is_left_as_it_is(namespace, &redis);
    eventually(
        "there it goes back, as the mirror does not serve that namespace",
        || {
            let stored = would_be(&other, &pod("probe", &redis));
            (image(&stored, "app") == "redis:8").then_some(())
        },
    );

    // The next leader knows the same.
    first.process.signal("KILL");
    let second = place.start("companion-b", &[]);
    second.wait_for_lead();
    place.wait_for_health("Healthy");
    assert_eq!(notes(&place), expected);
    // It has read all Pods once it notes another one.
    let more = ["memcached:1", "valkey:8"].map(|original| (on_mirror(original), original));
    let mut expected = expected.to_vec();
    let note = |(image, original): &(String, &str)| {
        let name = original.split(':').next().unwrap();
        let mut off = forged(name, image, original);
        off["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
        other.create_pod(&off).success();
    };
    note(&more[0]);
    expected.push([other.name.as_str(), more[0].0.as_str(), more[0].1]);
    expected.sort_unstable();
    until_noted(&place, &expected);
    // It keeps for a while what Pods recorded that went, as those of a CronJob do, and writes nothing for it.
    for name in ["web", "copy"] {
        cluster.delete(&namespace.path(&format!("pods/{name}"))).success();
    }
    note(&more[1]);
    expected.push([other.name.as_str(), more[1].0.as_str(), more[1].1]);
    expected.sort_unstable();
    until_noted(&place, &expected);
    let stored = would_be(namespace, &pod("probe", &mirrored));
    assert_eq!(original(&stored, "app"), Some(NGINX));
    assert_only_allowed(&place, &second);
}
