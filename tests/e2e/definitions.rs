//! What happens while the installed definitions are newer than the program: in the middle of an upgrade,
//! and after every rollback, because Helm never takes definitions back.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    admission::pod,
    chart::stdout,
    cluster::{Cluster, User},
    command::run,
    companion::{Companion, DEFINITIONS, MIRRORS, Place},
    eventually,
};

const NGINX: &str = "docker.io/library/nginx:1.29";

/// One more field with a default, below each kind of part: the API server shows it in every mirror, also in
/// those that were there before.
pub(crate) fn a_field_of_a_newer_definition_does_what_its_part_says(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let mirror = format!("{MIRRORS}/{}", place.name);
    let mut pinned = place.mirror();
    pinned["spec"]["tags"] = json!({"pin": "Digest"});
    cluster
        .request(User::Admin, Method::PUT, &mirror, Some(&pinned))
        .success();
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let first = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    place.wait_for_health("Healthy");
    assert_eq!(condition(&place.mirror(), "UnknownFields"), Value::Null);
    let by_tag = format!("{}/{NGINX}", crate::support::mirror::REGISTRY);
    let by_digest = format!("{by_tag}@{}", cluster.mirror.nginx);
    would_be(&place, &json!(by_digest));

    // It only tunes.
    let mood = |spec: &mut Value| add_field(&mut spec["properties"]["health"], "mood");
    let told = await_told(&place, mood, "Ignored");
    assert_eq!(condition(&told, "Ready")["status"], "True");
    assert_tells(&told, "UnknownFields", "spec.health.mood is ignored");
    let second = restart(&place, first, "companion-b");
    await_told(&place, mood, "Ignored");
    assert_eq!(condition(&place.mirror(), "Ready")["status"], "True");
    assert_at_work(&place);
    would_be(&place, &json!(by_digest));

    // What is done to tags is not understood any more, so nothing is.
    let follow = |spec: &mut Value| add_field(&mut spec["properties"]["tags"], "follow");
    let told = await_told(&place, follow, "CapabilityOff");
    assert_eq!(condition(&told, "Ready")["status"], "True");
    assert_tells(
        &told,
        "UnknownFields",
        "spec.tags is off because of spec.tags.follow",
    );
    would_be(&place, &json!(by_tag));

    // It may be what keeps the mirror from an image.
    let only_for = |spec: &mut Value| add_field(&mut spec["properties"]["sources"]["items"], "onlyFor");
    let told = await_told(&place, only_for, "NotTaken");
    assert_tells(
        &told,
        "UnknownFields",
        "the resource is not taken because of spec.sources[0].onlyFor",
    );
    assert_tells(
        &told,
        "Ready",
        "The last good form stays in force: spec.sources[0].onlyFor",
    );
    assert_at_work(&place);
    let third = restart(&place, second, "companion-a");
    let nothing = eventually("nothing is in force", || {
        install(&place, only_for);
        let mirror = place.mirror();
        let state = &mirror["status"]["health"]["state"];
        (condition(&mirror, "Ready")["status"] == "False" && state == "Unknown").then_some(mirror)
    });
    assert_tells(&nothing, "Ready", "Nothing is in force: spec.sources[0].onlyFor");
    would_be(&place, &Value::Null);

    install(&place, |_| ());
    let well = eventually("all is well again", || {
        let mirror = place.mirror();
        (condition(&mirror, "UnknownFields")["status"] == "False").then_some(mirror)
    });
    assert_eq!(condition(&well, "Ready")["status"], "True");
    assert_at_work(&place);
    would_be(&place, &json!(by_digest));
    drop(third);
}

/// Installs this program's definition of ImageMirrors with a change of the schema of `spec`, unless it is
/// there: other tests install the one of today.
fn install(place: &Place<'_>, change: impl Fn(&mut Value)) {
    let definition = format!("{DEFINITIONS}/imagemirrors.kagami.dev");
    let mut crd = place.cluster.get(&definition).success();
    let own = kagami::api::crds().remove(0);
    let mut versions = serde_json::to_value(own.spec.versions).unwrap();
    change(&mut versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]);
    let schema = &mut versions[0]["schema"];
    let installed = &mut crd["spec"]["versions"][0]["schema"];
    if installed != schema {
        *installed = schema.take();
        // Whoever installs the definitions at this moment comes first.
        drop(
            place
                .cluster
                .request(User::Admin, Method::PUT, &definition, Some(&crd)),
        );
    }
}

fn add_field(schema: &mut Value, name: &str) {
    schema["properties"][name] = json!({"type": "string", "default": "as-ever"});
}

/// Keeps a newer definition installed until the companion tells this consequence.
fn await_told(place: &Place<'_>, change: impl Fn(&mut Value) + Copy, reason: &str) -> Value {
    eventually(&format!("{reason} is told"), || {
        install(place, change);
        let mirror = place.mirror();
        (condition(&mirror, "UnknownFields")["reason"] == reason).then_some(mirror)
    })
}

fn condition(mirror: &Value, type_: &str) -> Value {
    let conditions = mirror["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == type_)
        .cloned()
        .unwrap_or_default()
}

#[track_caller]
fn assert_tells(mirror: &Value, type_: &str, expected: &str) {
    let message = condition(mirror, type_)["message"].to_string();
    assert!(message.contains(expected), "{message}");
}

fn restart(place: &Place<'_>, companion: Companion, user: &'static str) -> Companion {
    companion.process.terminate();
    let next = place.start(user, &[]);
    place.wait_for_lead(&next);
    next
}

/// Waits until the companion has looked at the images once more.
fn assert_at_work(place: &Place<'_>) {
    let swept = || place.mirror()["status"]["sweeps"]["tag"]["startedAt"].clone();
    let before = swept();
    eventually("another sweep ends", || (swept() != before).then_some(()));
}

/// Waits until whoever reads the cluster now would send the image there.
fn would_be(place: &Place<'_>, expected: &Value) {
    let folder = place.cluster.folder();
    let arguments = [
        "explain",
        "--output",
        "json",
        "--namespace",
        &place.served.name,
        "--kagami-namespace",
        &place.own.name,
        "nginx:1.29",
    ];
    eventually(&format!("it would be {expected}"), || {
        let told = stdout(&run(&folder.join("admin.kubeconfig"), folder, &arguments));
        let told: Value = serde_json::from_str(&told).unwrap();
        (told["decision"]["wouldBe"] == *expected).then_some(())
    });
}
