use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::domain::{
    decision::{Probing, decide},
    examples::{NOW, digest, key, mirror, place, proof, snapshot, source},
    mapping::Mapping,
    mirror::{Access, Mirror, Pin, Source, Tags},
    pod::PlaceKind,
    presence::{Index, Presence},
    selector::{Operator, Requirement, Selector},
    snapshot::Snapshot,
    standing::Standing,
};

const NGINX: &str = "docker.io/library/nginx:1";
const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";
const PLAIN: &str = r#"{"containers.app":{"outcome":"Rewritten","reason":"Mirrored","mirror":"a","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}"#;

fn request<'a>(places: &[(PlaceKind, &'a str, &'a str)]) -> Request<'a> {
    let places = places.iter().enumerate();
    let places = places
        .map(|(index, (kind, name, image))| place(*kind, index, name, image))
        .collect();
    let pod = Pod {
        places,
        ..Pod::default()
    };
    Request {
        namespace: "team",
        mode: Mode::Enforce,
        operation: Operation::Create,
        heal: true,
        pod,
    }
}

/// The Pod with one container `app` of `nginx:1`.
fn nginx<'a>() -> Request<'a> {
    request(&[(PlaceKind::Container, "app", "nginx:1")])
}

fn annotated<'a>(request: Request<'a>, annotations: &[(&'a str, &'a str)]) -> Request<'a> {
    let borrowed = |(key, value): &(&'a str, &'a str)| (Cow::Borrowed(*key), Cow::Borrowed(*value));
    let size = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    let annotations = Annotations::new(size, annotations.iter().map(borrowed).collect());
    assert!(annotations.is_some());
    Request {
        pod: Pod {
            annotations,
            ..request.pod
        },
        ..request
    }
}

/// Mirror `a` of Docker Hub has `nginx:1`.
fn state() -> (Snapshot, Index) {
    state_of(mirror("a", &["docker.io"]))
}

fn state_of(mirror: Mirror) -> (Snapshot, Index) {
    let mut index = Index::default();
    index.write("a", key(NGINX), Presence::Present(proof('a')), NOW, NOW);
    (snapshot(vec![mirror]), index)
}

fn patch_of((snapshot, index): &(Snapshot, Index), request: &Request<'_>) -> Result<Value, TooLarge> {
    let plan = decide(snapshot, index, request, Probing::Hosted, NOW);
    let decisions = plan.settle(snapshot, &[]);
    let patch = patch(request, &snapshot.routing, &decisions)?;
    Ok(patch.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap()))
}

#[track_caller]
fn check(state: &(Snapshot, Index), request: &Request<'_>, expected: &Value) {
    assert_eq!(patch_of(state, request).as_ref(), Ok(expected));
}

fn replace(path: &str, value: &str) -> Value {
    json!({"op": "replace", "path": path, "value": value})
}

fn add(path: &str, value: impl Into<Value>) -> Value {
    json!({"op": "add", "path": path, "value": value.into()})
}

#[test]
fn a_pod_without_annotations_gets_all_of_them_at_once() {
    check(
        &state(),
        &nginx(),
        &json!([
            replace("/spec/containers/0/image", MIRRORED),
            add(
                "/metadata/annotations",
                json!({"original-image.kagami.dev/app": "nginx:1", "kagami.dev/decisions": PLAIN})
            ),
        ]),
    );
}

#[test]
fn a_pod_with_annotations_gets_each_by_itself() {
    check(
        &state(),
        &annotated(nginx(), &[]),
        &json!([
            replace("/spec/containers/0/image", MIRRORED),
            add("/metadata/annotations/original-image.kagami.dev~1app", "nginx:1"),
            add("/metadata/annotations/kagami.dev~1decisions", PLAIN),
        ]),
    );
}

#[test]
fn every_kind_of_place_has_its_path_and_its_annotation() {
    let request = request(&[
        (PlaceKind::InitContainer, "i~/", "nginx:1"),
        (PlaceKind::Container, "c", "nginx:1"),
        (PlaceKind::EphemeralContainer, "e", "nginx:1"),
        (PlaceKind::Volume, "v", "nginx:1"),
    ]);
    let patch = patch_of(&state(), &annotated(request, &[])).unwrap();
    let paths: Vec<_> = patch
        .as_array()
        .unwrap()
        .iter()
        .map(|operation| operation["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "/spec/initContainers/0/image",
            "/spec/containers/1/image",
            "/spec/ephemeralContainers/2/image",
            "/spec/volumes/3/image/reference",
            "/metadata/annotations/original-image.kagami.dev~1i~0~1",
            "/metadata/annotations/original-image.kagami.dev~1c",
            "/metadata/annotations/original-image.kagami.dev~1e",
            "/metadata/annotations/original-volume.kagami.dev~1v",
            "/metadata/annotations/kagami.dev~1decisions",
        ]
    );
}

#[test]
fn what_is_kept_is_explained_where_a_mirror_was_a_candidate() {
    let mut unhealthy = state();
    unhealthy.0.health.clear();
    let summary = r#"{"containers.app":{"outcome":"Kept","reason":"MirrorUnknown","mirror":"a"}}"#;
    check(
        &unhealthy,
        &annotated(nginx(), &[]),
        &json!([add("/metadata/annotations/kagami.dev~1decisions", summary)]),
    );
    let elsewhere = request(&[(PlaceKind::Container, "app", "quay.io/a/b")]);
    check(&state(), &elsewhere, &Value::Null);
}

#[test]
fn the_explanation_names_every_mirror_that_was_asked() {
    let mut index = state().1;
    index.write("b", key(NGINX), Presence::Present(proof('a')), NOW, NOW);
    index.write("a", key(NGINX), Presence::Missing, NOW, NOW);
    let state = (
        snapshot(vec![mirror("a", &["docker.io"]), mirror("b", &["docker.io"])]),
        index,
    );
    let patch = patch_of(&state, &nginx()).unwrap();
    let summary: Value =
        serde_json::from_str(patch[1]["value"][DECISIONS_ANNOTATION].as_str().unwrap()).unwrap();
    assert_eq!(
        summary,
        json!({"containers.app": {
            "outcome": "Rewritten", "reason": "Mirrored", "mirror": "b", "digest": digest('a').to_string(),
            "candidates": [
                {"mirror": "a", "outcome": "Kept", "reason": "ImageMissing"},
                {"mirror": "b", "outcome": "Rewritten", "reason": "Mirrored"},
            ],
        }})
    );
}

#[test]
fn the_explanation_names_the_mirror_that_keeps_an_image_for_others() {
    let at_one_place = |registry: &str, template: &str, mirror: Mirror| Mirror {
        mapping: Mapping {
            registry: registry.parse().unwrap(),
            template: template.parse().unwrap(),
        },
        ..mirror
    };
    let a = at_one_place("m.io", "{registry}/{repository}", mirror("a", &["docker.io"]));
    let others = Requirement {
        key: "team".to_owned(),
        operator: Operator::Exists,
    };
    let private = Source {
        access: Access::Private,
        ..source("quay.io/library", &[])
    };
    // It is not asked for this image, which lies where its own would.
    let b = Mirror {
        sources: vec![private],
        namespaces: Selector {
            requirements: vec![others],
        },
        ..at_one_place("m.io/docker.io", "{repository}", mirror("b", &[]))
    };
    let (_, index) = state();
    let summary =
        r#"{"containers.app":{"outcome":"Kept","reason":"NamespaceNotServed","mirror":"a","closedBy":"b"}}"#;
    check(
        &(snapshot(vec![a, b]), index),
        &annotated(nginx(), &[]),
        &json!([add("/metadata/annotations/kagami.dev~1decisions", summary)]),
    );
}

#[test]
fn nothing_changes_outside_of_enforce_mode() {
    for mode in [Mode::Off, Mode::Audit, Mode::Warn] {
        check(&state(), &Request { mode, ..nginx() }, &Value::Null);
        let mut labelled = nginx();
        labelled.pod.mode_label = Some(mode.as_label().into());
        check(&state(), &labelled, &Value::Null);
        check(
            &state_of(Mirror {
                mode,
                ..mirror("a", &["docker.io"])
            }),
            &nginx(),
            &Value::Null,
        );
    }
}

#[test]
fn ephemeral_containers_get_their_image_and_nothing_else() {
    let request = request(&[(PlaceKind::EphemeralContainer, "debug", "nginx:1")]);
    let request = Request {
        operation: Operation::AddEphemeralContainers,
        ..request
    };
    check(
        &state(),
        &request,
        &json!([replace("/spec/ephemeralContainers/0/image", MIRRORED)]),
    );
}

#[test]
fn its_own_output_comes_back_unchanged() {
    let rewritten = || request(&[(PlaceKind::Container, "app", MIRRORED)]);
    let own = [
        ("original-image.kagami.dev/app", "nginx:1"),
        (DECISIONS_ANNOTATION, PLAIN),
    ];
    check(&state(), &annotated(rewritten(), &own), &Value::Null);
}

/// Written before the mirror died, in this review or long ago.
#[test]
fn an_earlier_rewrite_goes_back_with_its_explanation() {
    let own = [
        ("original-image.kagami.dev/app", "nginx:1"),
        (DECISIONS_ANNOTATION, PLAIN),
    ];
    let rewritten = || annotated(request(&[(PlaceKind::Container, "app", MIRRORED)]), &own);
    let mut unhealthy = state();
    unhealthy.0.health.clear();
    let kept = r#"{"containers.app":{"outcome":"Kept","reason":"MirrorUnknown","mirror":"a"}}"#;
    check(
        &unhealthy,
        &rewritten(),
        &json!([
            replace("/spec/containers/0/image", "nginx:1"),
            add("/metadata/annotations/kagami.dev~1decisions", kept),
        ]),
    );
    let healed = [own[0], (DECISIONS_ANNOTATION, kept)];
    check(&unhealthy, &annotated(nginx(), &healed), &Value::Null);

    let debug = request(&[(PlaceKind::EphemeralContainer, "app", MIRRORED)]);
    let debug = Request {
        operation: Operation::AddEphemeralContainers,
        ..annotated(debug, &own)
    };
    let image = replace("/spec/ephemeralContainers/0/image", "nginx:1");
    check(&unhealthy, &debug, &json!([image]));

    // There is no room for the explanation, so nothing changes.
    let mut full = rewritten();
    full.pod.size = POD_LIMIT - 100;
    assert_eq!(patch_of(&unhealthy, &full), Err(TooLarge));
}

#[test]
fn a_forged_decision_is_replaced_and_a_verified_one_stays() {
    let rewritten = |decisions| {
        let request = request(&[(PlaceKind::Container, "app", MIRRORED)]);
        annotated(
            request,
            &[
                ("original-image.kagami.dev/app", "nginx:1"),
                (DECISIONS_ANNOTATION, decisions),
            ],
        )
    };
    let corrected = json!([add("/metadata/annotations/kagami.dev~1decisions", PLAIN)]);
    check(&state(), &rewritten(PLAIN), &Value::Null);
    for forged in [
        "",
        "[]",
        "{",
        "{}",
        r#"{"containers.app":{"outcome":"Kept","reason":"Private","mirror":"a"}}"#,
        r#"{"containers.app":{"outcome":"Rewritten","reason":"Mirrored","mirror":"b"}}"#,
        r#"{"containers.app":7}"#,
        // What nobody has proven is no decision of now.
        r#"{"containers.app":{"outcome":"Rewritten","reason":"Mirrored","mirror":"a"}}"#,
    ] {
        check(&state(), &rewritten(forged), &corrected);
    }
    let more =
        r#"{"containers.app":{"outcome":"Rewritten","reason":"Mirrored","mirror":"a"},"containers.no":{}}"#;
    check(&state(), &rewritten(more), &corrected);
}

/// Such as after a later webhook, or a person with a copied manifest, replaced the image.
#[test]
fn a_decision_that_is_not_that_of_now_is_replaced() {
    let decisions = "/metadata/annotations/kagami.dev~1decisions";
    let with = |image, text| {
        annotated(
            request(&[(PlaceKind::Container, "app", image)]),
            &[(DECISIONS_ANNOTATION, text)],
        )
    };
    let elsewhere = "quay.io/a/b";
    let kept = r#"{"containers.app":{"outcome":"Kept","reason":"NoMirror"}}"#;
    check(&state(), &with(elsewhere, PLAIN), &json!([add(decisions, kept)]));
    check(&state(), &with(elsewhere, kept), &Value::Null);
    // What is told of no image that there is goes, and what has no form.
    for text in [r#"{"containers.gone":{"outcome":"Rewritten"}}"#, "", "7"] {
        check(&state(), &with(elsewhere, text), &json!([add(decisions, "{}")]));
    }
    check(&state(), &with(elsewhere, "{}"), &Value::Null);
    // Nothing proves that this was rewritten.
    let named = r#"{"containers.app":{"outcome":"Kept","reason":"AlreadyMirrored"}}"#;
    check(&state(), &with(MIRRORED, PLAIN), &json!([add(decisions, named)]));
    // A mirror that may only warn is told of as it is now.
    let warning = state_of(Mirror {
        mode: Mode::Warn,
        ..mirror("a", &["docker.io"])
    });
    let patch = patch_of(&warning, &with("nginx:1", PLAIN)).unwrap();
    assert_eq!(
        patch,
        json!([add(decisions, PLAIN.replace("Rewritten", "WouldRewrite"))])
    );
}

#[test]
fn a_forged_original_is_replaced_by_what_stands_there() {
    let original = "original-image.kagami.dev/app";
    let path = "/metadata/annotations/original-image.kagami.dev~1app";
    // The image has no mirror: the forgery goes, and nothing else is said.
    let elsewhere = request(&[(PlaceKind::Container, "app", "quay.io/a/b")]);
    check(
        &state(),
        &annotated(elsewhere, &[(original, "quay.io/x/y")]),
        &json!([add(path, "quay.io/a/b")]),
    );
    // The image is rewritten now: the original is what the user wrote.
    let patch = patch_of(&state(), &annotated(nginx(), &[(original, "redis")])).unwrap();
    assert_eq!(patch[1], add(path, "nginx:1"));
    // The image is a mirror's already, but the recorded original is not the one it comes from.
    let mirrored = request(&[(PlaceKind::Container, "app", MIRRORED)]);
    check(
        &state(),
        &annotated(mirrored, &[(original, "redis")]),
        &json!([add(path, MIRRORED)]),
    );
}

#[test]
fn a_pod_that_is_left_alone_keeps_even_its_forgeries() {
    let forged = || annotated(nginx(), &[("original-image.kagami.dev/app", "redis")]);
    let mut static_pod = forged();
    static_pod.pod.annotations.as_mut().unwrap().static_pod = true;
    check(&state(), &static_pod, &Value::Null);
    let mut system = state();
    system.0.left_alone = Arc::new(BTreeSet::from(["team".to_owned()]));
    check(&system, &forged(), &Value::Null);
}

#[test]
fn a_pinned_image_comes_back_unchanged_after_pinning_is_switched_off() {
    let tags = Tags {
        pin: Pin::Digest,
        ..Tags::default()
    };
    let pinning = state_of(Mirror {
        tags,
        ..mirror("a", &["docker.io"])
    });
    let pinned = format!("{MIRRORED}@{}", digest('a'));
    let patch = patch_of(&pinning, &nginx()).unwrap();
    assert_eq!(patch[0], replace("/spec/containers/0/image", &pinned));
    let again = request(&[(PlaceKind::Container, "app", &pinned)]);
    let own = [
        ("original-image.kagami.dev/app", "nginx:1"),
        (DECISIONS_ANNOTATION, PLAIN),
    ];
    check(&state(), &annotated(again, &own), &Value::Null);
}

#[test]
fn the_pull_secret_is_appended_once_and_at_the_end() {
    let needing = || {
        let mut needing = state_of(Mirror {
            pull_secret: true,
            ..mirror("a", &["docker.io"])
        });
        needing.0.standings = vec![Arc::new(Standing {
            pull_secret_namespaces: BTreeSet::from(["team".to_owned()]),
            ..Standing::NONE
        })];
        needing
    };
    let with = |secrets: Option<&[&'static str]>| {
        let mut request = annotated(nginx(), &[]);
        request.pod.pull_secrets = secrets.map(|names| names.iter().map(|name| (*name).into()).collect());
        let patch = patch_of(&needing(), &request).unwrap();
        patch.as_array().unwrap()[3..].to_vec()
    };
    let secret = json!({"name": "kagami-pull"});
    assert_eq!(with(None), [add("/spec/imagePullSecrets", json!([secret]))]);
    assert_eq!(with(Some(&[])), [add("/spec/imagePullSecrets/-", secret.clone())]);
    assert_eq!(with(Some(&["mine"])), [add("/spec/imagePullSecrets/-", secret)]);
    assert_eq!(with(Some(&["mine", "kagami-pull"])), [] as [Value; 0]);
    let ephemeral = request(&[(PlaceKind::EphemeralContainer, "debug", "nginx:1")]);
    let mut ephemeral = Request {
        operation: Operation::AddEphemeralContainers,
        ..ephemeral
    };
    check(&needing(), &ephemeral, &Value::Null);
    ephemeral.pod.pull_secrets = Some(vec!["kagami-pull".into()]);
    check(
        &needing(),
        &ephemeral,
        &json!([replace("/spec/ephemeralContainers/0/image", MIRRORED)]),
    );
}

#[test]
fn a_pod_near_the_limits_stays_as_it_is() {
    let with_annotations = |size| {
        let mut request = annotated(nginx(), &[]);
        request.pod.annotations.as_mut().unwrap().size = size;
        patch_of(&state(), &request)
    };
    let added =
        "original-image.kagami.dev/app".len() + "nginx:1".len() + DECISIONS_ANNOTATION.len() + PLAIN.len();
    assert!(with_annotations(ANNOTATIONS_LIMIT - added).is_ok());
    assert_eq!(with_annotations(ANNOTATIONS_LIMIT - added + 1), Err(TooLarge));
    let of_size = |size| {
        let mut request = nginx();
        request.pod.size = size;
        patch_of(&state(), &request)
    };
    assert!(of_size(POD_LIMIT - 1000).is_ok());
    assert_eq!(of_size(POD_LIMIT - 100), Err(TooLarge));
}

fn time(work: impl FnOnce()) -> std::time::Duration {
    let started = std::time::Instant::now();
    work();
    started.elapsed()
}

/// Ten times as much may take a little more than ten times as long; a hundred times is what comparing
/// everything with everything would take.
#[test]
fn deciding_and_patching_take_time_in_proportion() {
    let took = |count: usize| {
        let names: Vec<_> = (0..count).map(|number| format!("c{number:05}")).collect();
        let keys: Vec<_> = names
            .iter()
            .map(|name| format!("original-image.kagami.dev/{name}"))
            .collect();
        let images: Vec<_> = names
            .iter()
            .map(|name| format!("docker.io/library/{name}:1"))
            .collect();
        let places: Vec<_> = names
            .iter()
            .zip(&images)
            .map(|(name, image)| (PlaceKind::Container, name.as_str(), image.as_str()))
            .collect();
        let originals: Vec<_> = keys.iter().map(|key| (key.as_str(), "redis")).collect();
        let request = annotated(request(&places), &originals);
        let state = state();
        time(|| {
            let decided = decide(&state.0, &state.1, &request, Probing::Hosted, NOW);
            assert_eq!(decided.probes.len(), count);
            let patch = patch(&request, &state.0.routing, &decided.settle(&state.0, &[]));
            assert!(matches!(patch, Ok(Some(_)) | Err(TooLarge)));
        })
    };
    // A machine that is busy with other things may spoil a round, but hardly every one.
    let rounds: Vec<_> = (0..8).map(|_| (took(1000), took(10_000))).collect();
    assert!(
        rounds.iter().any(|(few, many)| *many < *few * 35),
        "for 1,000 and 10,000: {rounds:?}"
    );
}
