//! The Secrets that mirrors are asked with: broken, repaired, renewed and deleted, none of it is an outage.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    admission::pod,
    cluster::{Cluster, User},
    companion::{Companion, IMAGES, Place},
    eventually,
    mirror::REGISTRY,
};

const KNOWN: [(&str, &str); 2] = [
    ("docker.io/library/nginx:1.29", "Present"),
    ("docker.io/library/nginx:no-such-tag", "Missing"),
];

const SECRET: &str = "read";

pub(crate) fn a_secret_that_changes_voids_and_rewrites_nothing(cluster: &Cluster) {
    let place = with_known_images(cluster);
    let companion = place.start("companion-a", &[]);
    let mut before = everything(&place);

    for (content, reason) in [
        ("no JSON".to_owned(), "SecretFaulty"),
        (config(REGISTRY, "renewed"), "Accepted"),
        (config("other.test", "renewed"), "SecretFaulty"),
        (config(REGISTRY, "repaired"), "Accepted"),
    ] {
        put(&place, &content);
        until(&place, reason);
        assert_eq!(everything(&place), before, "{reason}");
        until_shown(&place, &companion, i32::from(reason == "Accepted"));
        // The webhooks' file stays too, so that they keep the last good credentials as long.
        let expected = usize::from(reason == "Accepted");
        eventually("the webhooks' file follows", || {
            (users(&handed_on(&place)?) == expected).then_some(())
        });
    }
    // Another kind of Secret is told by what it has.
    let path = place.own.path(&format!("secrets/{SECRET}"));
    let basic = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
        "stringData": {"username": "reader", "password": "geheim"},
    });
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&basic))
        .success();
    until(&place, "SecretFaulty");
    let told = condition(&place.mirror(), "CredentialsValid")["message"].to_string();
    assert!(
        told.contains("no Docker configuration, only password, username"),
        "{told}"
    );
    cluster.delete(&path).success();
    until(&place, "SecretNotFound");
    assert_eq!(everything(&place), before);
    eventually("the webhooks' file goes", || {
        handed_on(&place).is_none().then_some(())
    });
    put(&place, "no JSON");
    until(&place, "SecretFaulty");
    assert_eq!(everything(&place), before);

    // Who takes over has no last good one to fall back on.
    let second = place.start("companion-b", &[]);
    drop(companion);
    second.wait_for_lead();
    until_shown(&place, &second, 0);
    place.served.create_pod(&pod("more", "redis:8")).success();
    place.wait_for_image("docker.io/library/redis:8", "Present");
    let mut after = everything(&place);
    after.images.retain(|image, _| before.images.contains_key(image));
    // A new leader's health counts anew, unless the old one's heart beat just now.
    before.health.clone_from(&after.health);
    assert_eq!(after, before);
    put(&place, &config(REGISTRY, "repaired"));
    until(&place, "Accepted");
    after = everything(&place);
    after.images.retain(|image, _| before.images.contains_key(image));
    assert_eq!(after, before);
}

/// One that is out of force: its fault is found last, and who takes over knows no last good one.
pub(crate) fn images_of_a_mirror_that_is_out_of_force_stay(cluster: &Cluster) {
    let place = with_known_images(cluster);
    let companion = place.start("companion-a", &[]);
    let before = everything(&place).images;
    let set_bundle = |bundle: &Value| {
        let patch = json!({"spec": {"endpoint": {"caBundle": bundle}}});
        place.patch_mirror(&patch);
    };
    set_bundle(&json!(
        "-----BEGIN CERTIFICATE-----\nno certificate\n-----END CERTIFICATE-----\n"
    ));
    until_ready(&place, "False", "The last good form stays in force");
    assert_eq!(everything(&place).images, before);
    let second = place.start("companion-b", &[]);
    drop(companion);
    second.wait_for_lead();
    until_ready(&place, "False", "Nothing is in force");
    set_bundle(&Value::Null);
    until_ready(&place, "True", "in force");
    place.wait_for_health("Healthy");
    place.served.create_pod(&pod("more", "redis:8")).success();
    place.wait_for_image("docker.io/library/redis:8", "Present");
    let mut after = everything(&place).images;
    after.retain(|image, _| before.contains_key(image));
    assert_eq!(after, before);
}

/// A mirror that is asked with a Secret, and Pods of images that it has and that it has not.
fn with_known_images(cluster: &Cluster) -> Place<'_> {
    let place = Place::new(cluster, &cluster.mirror.url);
    put(&place, &config(REGISTRY, "first"));
    place.patch_mirror(&credentials());
    for (number, (image, _)) in KNOWN.iter().enumerate() {
        place
            .served
            .create_pod(&pod(&format!("web-{number}"), image))
            .success();
    }
    place
}

/// The mirror is asked with what Secret `read` holds.
fn credentials() -> Value {
    json!({"spec": {"endpoint": {"credentials": {"secretRef": {"name": SECRET}}}}})
}

fn config(registry: &str, password: &str) -> String {
    json!({"auths": {registry: {"username": "reader", "password": password}}}).to_string()
}

/// Somebody's own Secret may have the name that Kagami keeps its own under.
pub(crate) fn a_secret_of_somebody_else_is_left_alone(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let path = place.own.path("secrets/kagami-probe");
    let theirs = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "kagami-probe"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config(REGISTRY, "theirs")},
    });
    cluster.create(&place.own.path("secrets"), &theirs).success();
    let data = || cluster.get(&path).success()["data"].clone();
    let before = data();
    put(&place, &config(REGISTRY, "reader"));
    place.patch_mirror(&credentials());
    let companion = place.start("companion-a", &[]);
    eventually("the log tells of it", || {
        companion
            .process
            .log()
            .contains("it holds what Kagami did not write")
            .then_some(())
    });
    assert_eq!(data(), before);
    cluster.delete(&path).success();
    eventually("the webhooks' file is made", || handed_on(&place).map(drop));
}

/// Makes the Secret have this content.
fn put(place: &Place<'_>, content: &str) {
    // The type is one that lets everything through.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": {".dockerconfigjson": content},
    });
    create_or_replace(place, &secret);
}

/// Makes a Secret of Kagami's namespace be this one.
pub(crate) fn create_or_replace(place: &Place<'_>, secret: &Value) {
    let path = place.own.path("secrets");
    let created = place.cluster.create(&path, secret);
    if created.status == 409 {
        let path = format!("{path}/{}", secret["metadata"]["name"].as_str().unwrap());
        let replaced = place
            .cluster
            .request(User::Admin, Method::PUT, &path, Some(secret));
        replaced.success();
    } else {
        created.success();
    }
}

/// Returns the mirror's file for webhooks, in base64, if there is such a file.
fn handed_on(place: &Place<'_>) -> Option<String> {
    let answer = place.cluster.get(&place.own.path("secrets/kagami-probe"));
    let secret = (answer.status == 200).then(|| answer.success())?;
    secret["data"][&place.name].as_str().map(str::to_owned)
}

/// Returns how many users such a file has.
fn users(file: &str) -> usize {
    let config: Value = serde_json::from_slice(&BASE64.decode(file).unwrap()).unwrap();
    config["auths"].as_object().unwrap().len()
}

/// What must not change by itself: the mirror's health, and of each image what tells one object from
/// another.
#[derive(Clone, Debug, PartialEq)]
struct Everything {
    health: Value,
    ready: Value,
    images: BTreeMap<String, (String, String)>,
}

/// Returns what there is, once all known images are told and the mirror's credentials are.
fn everything(place: &Place<'_>) -> Everything {
    for (image, presence) in KNOWN {
        place.wait_for_image(image, presence);
    }
    let mirror = place.wait_for_health("Healthy");
    let images = place.cluster.get(IMAGES).success();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let images = images["items"].as_array().unwrap().iter();
    Everything {
        health: mirror["status"]["health"].clone(),
        ready: condition(&mirror, "Ready")["status"].clone(),
        images: images
            .filter(|image| image["spec"]["mirror"] == place.name)
            .map(|image| {
                let metadata = &image["metadata"];
                let version = (text(&metadata["uid"]), text(&metadata["resourceVersion"]));
                (text(&image["spec"]["image"]), version)
            })
            .collect(),
    }
}

fn condition(mirror: &Value, type_: &str) -> Value {
    let conditions = mirror["status"]["conditions"].as_array();
    let mut found = conditions
        .into_iter()
        .flatten()
        .filter(|entry| entry["type"] == type_);
    found.next().cloned().unwrap_or_default()
}

/// Waits until the mirror's credentials are told to be so.
fn until(place: &Place<'_>, reason: &str) {
    eventually(&format!("CredentialsValid is {reason}"), || {
        let told = condition(&place.mirror(), "CredentialsValid");
        (told["reason"] == reason).then_some(())
    });
}

/// Waits until the leader's metrics say the same.
fn until_shown(place: &Place<'_>, companion: &Companion, value: i32) {
    let sample = format!(
        "kagami_mirror_condition{{mirror=\"{}\",condition=\"CredentialsValid\"}} {value}\n",
        place.name
    );
    eventually(&sample, || {
        let (_, metrics) = companion.listeners.get("/metrics").unwrap();
        metrics.contains(&sample).then_some(())
    });
}

fn until_ready(place: &Place<'_>, status: &str, message: &str) {
    eventually(&format!("Ready is {status}: {message}"), || {
        let told = condition(&place.mirror(), "Ready");
        let says = |told: &Value| {
            told["message"]
                .as_str()
                .is_some_and(|text| text.contains(message))
        };
        (told["status"] == status && says(&told)).then_some(())
    });
}
