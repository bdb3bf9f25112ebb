//! What happens while the installed definitions are newer than the program: in the middle of an upgrade,
//! and after every rollback, because Helm never takes definitions back.

use std::{thread, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    admission::pod,
    chart::stdout,
    cluster::{Cluster, User},
    command::run,
    companion::{Companion, DEFINITIONS, MIRRORS, Place, install_definitions},
    eventually,
    kagami::{self as program, Kagami, ask},
    reviews::review,
    tls_client::Settings,
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

/// How many images the mirror lacks in the scene of definitions that go.
const MISSING: usize = 60;

/// Whoever removes a definition removes all objects of its kind; nothing here is restarted for that.
pub(crate) fn definitions_deleted_and_made_again_are_followed(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    let place = Place::apart(&cluster, &cluster.mirror.url);
    for number in 0..MISSING {
        let web = pod(&format!("web-{number}"), &format!("nginx:none-{number}"));
        place.served.create_pod(&web).success();
    }
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let mut companion = place.start("companion-a", &[]);
    let mut webhook = start_webhook(&place);
    let (images, mirrors) = ("mirroredimages", "imagemirrors");
    await_all_well(&place, &webhook, "at first");

    // The images alone: what the mirror has is known from looks.
    delete(&cluster, &[images]);
    await_gone(&cluster, &[images]);
    assert_eq!(
        decide(&webhook, &place),
        "Rewritten Mirrored",
        "by a look of its own"
    );
    assert_quiet_while_away(&companion);
    let lacking = eventually("what lacks is told", || {
        let lacking = condition(&place.mirror(), "SchemaCurrent");
        (lacking["status"] == "False").then_some(lacking)
    });
    let message = lacking["message"].as_str().unwrap();
    assert!(
        message.contains("mirroredimages.kagami.dev, which is not installed"),
        "{message}"
    );
    install_definitions(&cluster);
    await_all_well(&place, &webhook, "without the images' definition");

    // All, with the mirror.
    delete(&cluster, &[images, mirrors]);
    await_gone(&cluster, &[images, mirrors]);
    eventually("there is no mirror", || {
        (decide(&webhook, &place) == "Kept NoMirror").then_some(())
    });
    assert_quiet_while_away(&companion);
    install_definitions(&cluster);
    place.create_mirror(&cluster.mirror.url);
    await_all_well(&place, &webhook, "without any definition");

    // At once, as `kubectl replace --force` does it.
    delete(&cluster, &[mirrors, images]);
    await_gone(&cluster, &[mirrors, images]);
    install_definitions(&cluster);
    place.create_mirror(&cluster.mirror.url);
    await_all_well(&place, &webhook, "made again at once");

    for process in [&mut companion.process, &mut webhook.process] {
        process.assert_alive();
        let log = process.log();
        let told = log
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        let told: Vec<_> = told.collect();
        assert!(told.len() <= 16, "{} lines:\n{}", told.len(), told.join("\n"));
    }
}

/// What the API server refuses and what is refused in a file: the same, in the same words.
pub(crate) fn the_api_server_refuses_in_the_words_of_the_program(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    for (field, value) in REFUSED {
        let mut mirror = json!({
            "apiVersion": "kagami.dev/v1alpha1",
            "kind": "ImageMirror",
            "metadata": {"name": "refused"},
            "spec": {
                "registry": "mirror.example.com",
                "kind": "Hosted",
                "sources": [{"prefix": "docker.io"}],
                "endpoint": {},
            },
        });
        let (part, name) = field.rsplit_once('/').unwrap();
        mirror.pointer_mut(&format!("/spec{part}")).unwrap()[name] = json!(value);
        let faults = kagami::state::file::load(&mirror.to_string(), "mirrors.json").unwrap_err();
        let [fault] = &faults[..] else {
            panic!("{faults:?}")
        };
        let path = format!("{MIRRORS}?dryRun=All");
        let told = eventually(&format!("{value} is refused"), || {
            install(&place, |_| ());
            let answer = cluster.create(&path, &mirror);
            (answer.status == 422).then(|| serde_json::from_str::<Value>(&answer.body).unwrap())
        });
        let causes = told["details"]["causes"].as_array().unwrap().clone();
        let causes: Vec<_> = causes
            .iter()
            .map(|cause| {
                (
                    cause["field"].as_str().unwrap(),
                    cause["message"].as_str().unwrap(),
                )
            })
            .collect();
        let [(place, message)] = causes[..] else {
            panic!("{causes:?}")
        };
        assert_eq!(place, fault.fault.field);
        assert!(
            message.ends_with(&fault.fault.message),
            "{message}: {}",
            fault.fault.message
        );
    }
}

/// Starts `kagami webhook` beside the companion of a place.
fn start_webhook(place: &Place<'_>) -> Kagami {
    let mut webhook = program::command("webhook");
    webhook
        .env("KUBECONFIG", place.cluster.folder().join("admin.kubeconfig"))
        .args(["--namespace", &place.own.name]);
    Kagami::admitting(place.cluster, "webhook", &mut webhook).until_ready()
}

/// What the webhook decides of a Pod in the place.
fn decide(webhook: &Kagami, place: &Place<'_>) -> String {
    let trust = Settings::trusting(&place.cluster.authority.pem());
    let mut review = review(&["nginx:1.29"]);
    review["request"]["namespace"] = place.served.name.as_str().into();
    ask(webhook.listeners.admission(), &trust, &review)
}

/// Waits until every condition is as it should be, and all is known and told that was before.
fn await_all_well(place: &Place<'_>, webhook: &Kagami, when: &str) {
    eventually(&format!("all is well, {when}"), || {
        let mirror = place.mirror();
        let is = |type_| condition(&mirror, type_)["status"] == "True";
        let sweep = &mirror["status"]["sweeps"]["tag"];
        let known = &webhook.listeners.status()["mirrors"][&place.name]["images"];
        ([
            "Ready",
            "Healthy",
            "CredentialsValid",
            "SweepInTime",
            "SchemaCurrent",
        ]
        .into_iter()
        .all(is)
            && sweep["present"] == 1
            && sweep["missing"] == MISSING
            && known["present"] == 1
            && known["missing"] == MISSING
            && decide(webhook, place) == "Rewritten Mirrored")
            .then_some(())
    });
}

/// Begins to delete definitions and all their objects.
fn delete(cluster: &Cluster, resources: &[&str]) {
    for resource in resources {
        cluster
            .delete(&format!("{DEFINITIONS}/{resource}.kagami.dev"))
            .success();
    }
}

fn await_gone(cluster: &Cluster, resources: &[&str]) {
    for resource in resources {
        let path = format!("{DEFINITIONS}/{resource}.kagami.dev");
        eventually("the definition is gone", || {
            (cluster.get(&path).status == 404).then_some(())
        });
    }
}

/// Lets some time pass, in which what cannot be written is not tried again and again.
fn assert_quiet_while_away(companion: &Companion) {
    let in_vain = || {
        let (_, metrics) = companion.listeners.get("/metrics").unwrap();
        let writes = metrics
            .lines()
            .filter(|line| line.starts_with("kagami_writes_total{") && !line.contains("\"ok\""));
        let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        let writes: Vec<_> = writes.map(str::to_owned).collect();
        (writes.iter().map(|line| count(line)).sum::<u64>(), writes)
    };
    let (before, _) = in_vain();
    thread::sleep(Duration::from_secs(8));
    let (after, writes) = in_vain();
    let tried = after - before;
    assert!(tried <= 100, "{tried} writes in vain: {writes:#?}");
}

/// Values that are refused, with the place in `spec`.
const REFUSED: &[(&str, &str)] = &[
    ("/registry", "https://mirror.example.com/"),
    ("/registry", "https://mirror.example.com/v2/"),
    ("/registry", "mirror.example.com/"),
    ("/registry", "mirror"),
    ("/registry", "mirror.example.com./x"),
    ("/registry", "mirror.example.com/Cache"),
    ("/registry", "Docker.io"),
    ("/registry", "hub.docker.com/team"),
    ("/sources/0/prefix", "https://ghcr.io/team/"),
    ("/sources/0/prefix", "https://ghcr.io/v2/"),
    ("/sources/0/prefix", "*"),
    ("/sources/0/prefix", "*.example.com"),
    ("/sources/0/prefix", "ghcr.io/team/**"),
    ("/sources/0/prefix", "library"),
    ("/sources/0/prefix", "nginx"),
    ("/sources/0/prefix", "bitnami/redis"),
    ("/sources/0/prefix", "docker.io./x"),
    ("/sources/0/prefix", "docker.io/"),
    ("/sources/0/prefix", "ghcr.io/team:1@sha256:0"),
    ("/sources/0/prefix", "ghcr.io/Team"),
    ("/endpoint/url", "mirror.example.com:5000"),
    ("/endpoint/url", "https://user:word@mirror.test/v2/?x"),
    ("/endpoint/url", "https://mirror.test/v2/?x"),
    ("/endpoint/url", "https://mirror.test?x"),
    ("/endpoint/url", "https://mirror.test/v2/"),
    ("/endpoint/url", "https://mirror.test//"),
    ("/endpoint/url", "https://mirror.test."),
    ("/endpoint/url", "https://mirror.test.:5000/"),
    ("/endpoint/url", "https://mirror.test:65536"),
    ("/endpoint/url", "https://mirror.-test"),
    ("/endpoint/url", "https://"),
    ("/endpoint/url", "https://mir ror"),
    ("/endpoint/trust", "BundleAndSystem"),
    ("/endpoint/caBundle", "LS0tLS1CRUdJTg=="),
    ("/endpoint/caBundle", "-----BEGIN RSA PRIVATE KEY-----"),
    (
        "/endpoint/caBundle",
        "-----BEGIN CERTIFICATE----- -----BEGIN PRIVATE KEY-----",
    ),
];

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
    next.wait_for_lead();
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
