use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[path = "../../../tests/it/support/pods.rs"]
#[expect(unreachable_pub, reason = "shared with tests/it")]
mod pods;

fn review_of(object: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "team",
            "operation": "CREATE",
            "userInfo": {"username": "admin", "groups": ["a", "b"]},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn pod_of(text: &str) -> Option<(Operation, Pod<'_>)> {
    let mut review = Review::default();
    review.read(text).unwrap();
    match review.question() {
        Question::Pod(operation, pod) => Some((operation, pod)),
        Question::Nothing => None,
    }
}

/// What is read of a Pod, as text to compare.
fn told(pod: &Pod<'_>) -> Value {
    let annotations = pod.annotations.as_ref().map(|annotations| {
        let ours: Value = annotations
            .ours()
            .iter()
            .map(|(key, value)| (key.to_string(), Value::from(&**value)))
            .collect();
        json!({"ours": ours, "static": annotations.static_pod})
    });
    let owner = |owner: &Owner<'_>| json!([owner.api_version, owner.kind, owner.uid]);
    let place = |place: &Place<'_>| {
        json!([
            place.kind.list(),
            place.index,
            place.name,
            place.image,
            place.never
        ])
    };
    json!({
        "name": pod.name,
        "mode": pod.mode_label,
        "annotations": annotations,
        "owners": pod.owners.iter().map(owner).collect::<Value>(),
        "places": pod.places.iter().map(place).collect::<Value>(),
        "secrets": pod.pull_secrets,
        "landing": format!("{:?}", pod.landing),
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The same, read with serde.
fn expected(pod: &Value) -> Value {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let annotations = metadata["annotations"].as_object().map(|annotations| {
        let prefixes = [
            "kagami.dev/",
            "original-image.kagami.dev/",
            "original-volume.kagami.dev/",
        ];
        let ours = |key: &str| prefixes.iter().any(|prefix| key.starts_with(prefix));
        let ours: Value = annotations
            .iter()
            .filter(|(key, _)| ours(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        json!({"ours": ours, "static": annotations.contains_key("kubernetes.io/config.mirror")})
    });
    let place = |kind: &str, index: usize, entry: &Value, image: &Value, policy: &str| {
        let image = text(image).to_owned();
        (!image.is_empty()).then(|| json!([kind, index, text(&entry["name"]), image, policy == "Never"]))
    };
    // Of the lists, in the order in which they stand in the text.
    let mut places = Vec::new();
    for (key, entries) in spec.as_object().into_iter().flatten() {
        let entries = list(entries).enumerate();
        let found = |(index, entry): (usize, &Value)| match key.as_str() {
            "containers" | "initContainers" | "ephemeralContainers" => place(
                key,
                index,
                entry,
                &entry["image"],
                text(&entry["imagePullPolicy"]),
            ),
            "volumes" => {
                let image = &entry["image"];
                place(key, index, entry, &image["reference"], text(&image["pullPolicy"]))
            }
            _ => None,
        };
        places.extend(entries.filter_map(found));
    }
    let name = Some(&metadata["name"])
        .filter(|name| name.is_string())
        .unwrap_or_else(|| &metadata["generateName"]);
    json!({
        "name": text(name),
        "mode": metadata["labels"]["kagami.dev/mode"],
        "annotations": annotations,
        "owners": list(&metadata["ownerReferences"]).map(|owner| json!([owner["apiVersion"], owner["kind"], owner["uid"]])).collect::<Value>(),
        "places": places,
        "secrets": spec["imagePullSecrets"].as_array().map(|secrets| secrets.iter().map(|secret| secret["name"].clone()).collect::<Vec<_>>()),
        "landing": format!("{:?}", expected_landing(spec)),
    })
}

fn expected_landing(spec: &Value) -> Landing {
    let of = |key: &str, value: &Value| {
        let label = if key.ends_with("kubernetes.io/os") {
            Label::Os
        } else {
            Label::Architecture
        };
        let known = key.ends_with("kubernetes.io/os") || key.ends_with("kubernetes.io/arch");
        let values: Vec<_> = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        known.then_some((label, values))
    };
    let mut landing = Landing::ANYWHERE;
    for (key, value) in spec["nodeSelector"].as_object().into_iter().flatten() {
        if let Some((label, values)) = of(key, value) {
            landing = landing.and(Landing::of(label, values.iter().map(text)));
        }
    }
    if let Some(name) = spec["os"]["name"].as_str() {
        landing = landing.and(Landing::of(Label::Os, [name]));
    }
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let of_term = |term: &Value| {
        let mut landing = Landing::ANYWHERE;
        for expression in list(&term["matchExpressions"]) {
            let Some((label, values)) = of(text(&expression["key"]), &expression["values"]) else {
                continue;
            };
            let values = values.iter().map(text);
            landing = landing.and(match text(&expression["operator"]) {
                "In" => Landing::of(label, values),
                _ => Landing::not_of(label, values),
            });
        }
        landing
    };
    let required = list(terms).map(of_term).reduce(Landing::or);
    landing.and(required.unwrap_or_default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_pod_is_read_as_serde_reads_it(object in pods::pod(), pretty in any::<bool>()) {
        let review = review_of(&object);
        let text = if pretty { serde_json::to_string_pretty(&review) } else { serde_json::to_string(&review) }.unwrap();
        let (operation, pod) = pod_of(&text).unwrap();
        prop_assert_eq!(operation, Operation::Create);
        prop_assert_eq!(told(&pod), expected(&object));
        if !pretty {
            prop_assert_eq!(pod.size, object.to_string().len());
        }
    }
}

#[test]
fn of_the_request_what_decides_is_read() {
    let mut review = review_of(&json!({"metadata": {}}));
    review["request"]["dryRun"] = true.into();
    let text = review.to_string();
    let mut read = Review::default();
    read.read(&text).unwrap();
    assert_eq!(
        (&*read.uid, &*read.namespace, read.dry_run),
        ("u-1", "team", true)
    );
    assert_eq!(
        (&*read.api_version, &*read.kind),
        ("admission.k8s.io/v1", "AdmissionReview")
    );
}

/// Checks whether a review with one changed field asks for a decision.
#[track_caller]
fn check_asks(pointer: &str, value: impl Into<Value>, asks: bool) {
    let mut review = review_of(&json!({"metadata": {}, "spec": {}}));
    let value = value.into();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    review.pointer_mut(parent).unwrap()[field] = value.clone();
    assert_eq!(pod_of(&review.to_string()).is_some(), asks, "{pointer} = {value}");
}

#[test]
fn only_new_pods_and_new_ephemeral_containers_are_decided() {
    check_asks("/request/name", "x", true);
    check_asks("/apiVersion", "admission.k8s.io/v1beta1", false);
    check_asks("/kind", "Other", false);
    check_asks("/request/kind/kind", "Service", false);
    check_asks("/request/kind/version", "v2", false);
    check_asks("/request/kind/group", "apps", false);
    check_asks("/request/operation", "UPDATE", false);
    check_asks("/request/operation", "DELETE", false);
    check_asks("/request/subResource", "ephemeralcontainers", false);
    check_asks("/request/subResource", "resize", false);
    check_asks("/request/object", Value::Null, false);
    check_asks("/request/object", json!({"spec": {}}), false);
    // There is nothing that annotations could be added to.
    check_asks("/request/object", json!({"metadata": null, "spec": {}}), false);
}

#[test]
fn of_ephemeral_containers_only_the_new_ones_are_decided() {
    let containers = |names: &[&str]| {
        let containers: Value = names
            .iter()
            .map(|name| json!({"name": name, "image": "nginx"}))
            .collect();
        json!({"metadata": {}, "spec": {"containers": [{"name": "app", "image": "nginx"}], "ephemeralContainers": containers}})
    };
    let check = |old: Value, expected: &[&str]| {
        let mut review = review_of(&containers(&["app", "one", "two"]));
        review["request"]["operation"] = "UPDATE".into();
        review["request"]["subResource"] = "ephemeralcontainers".into();
        review["request"]["oldObject"] = old;
        let text = review.to_string();
        let (operation, pod) = pod_of(&text).unwrap();
        assert_eq!(operation, Operation::AddEphemeralContainers);
        assert_eq!(
            pod.places.iter().map(|place| &*place.name).collect::<Vec<_>>(),
            expected
        );
    };
    check(containers(&[]), &["app", "one", "two"]);
    check(containers(&["one"]), &["app", "two"]);
    check(containers(&["app", "one", "two"]), &[]);
    check(Value::Null, &["app", "one", "two"]);
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let check = |text: &str| {
        let error = Review::default().read(text).unwrap_err();
        assert!(matches!(error, ScanError::Duplicate(_)), "{text}: {error}");
    };
    let object = |fields: &str| format!(r#"{{"request":{{"object":{{{fields}}}}}}}"#);
    check(r#"{"kind":"a","kind":"a"}"#);
    check(r#"{"request":{"uid":"a","uid":"b"}}"#);
    check(r#"{"request":{"object":null,"object":null}}"#);
    check(&object(r#""spec":{},"spec":{}"#));
    check(&object(
        r#""metadata":{"labels":{"kagami.dev/mode":"off","kagami.dev/mode":"warn"}}"#,
    ));
    check(&object(
        r#""metadata":{"annotations":{"kagami.dev/decisions":"","kagami.dev/decisions":""}}"#,
    ));
    check(&object(r#""spec":{"containers":[],"containers":[]}"#));
    check(&object(r#""spec":{"containers":[{"image":"a","image":"b"}]}"#));
    check(&object(
        r#""spec":{"containers":[{"image":"a","im\u0061ge":"b"}]}"#,
    ));
    check(&object(r#""spec":{"containers":[{"image":null,"image":"b"}]}"#));
    check(&object(
        r#""spec":{"volumes":[{"image":{"reference":"a","reference":"b"}}]}"#,
    ));
    check(&object(
        r#""spec":{"volumes":[{"image":{"reference":"a"},"image":{}}]}"#,
    ));
    check(&object(r#""spec":{"imagePullSecrets":[],"imagePullSecrets":[]}"#));
}

#[test]
fn the_uid_survives_a_fault_that_comes_after_it() {
    let mut review = Review::default();
    assert!(
        review
            .read(r#"{"apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","object":{"spec":[]}}}"#)
            .is_err()
    );
    assert_eq!(
        (&*review.uid, &*review.api_version),
        ("u-1", "admission.k8s.io/v1")
    );
}

#[test]
fn no_truncated_review_is_read_or_panics() {
    let object = json!({"metadata": {"annotations": {"é": "\u{1}"}}, "spec": {"containers": [{"name": "é", "image": "nginx"}]}});
    let text = review_of(&object).to_string();
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        assert!(Review::default().read(&text[..end]).is_err(), "{end}");
    }
    assert_eq!(Review::default().read(&text), Ok(()));
    assert!(Review::default().read(&format!("{text} x")).is_err());
}

#[test]
fn a_review_of_8_mib_is_read() {
    let filler = "x".repeat(8 * 1024 * 1024);
    let object = json!({"metadata": {"annotations": {"filler": filler}}, "spec": {"containers": [{"name": "app", "image": "nginx"}]}});
    let text = review_of(&object).to_string();
    let (_, pod) = pod_of(&text).unwrap();
    assert_eq!(pod.places.len(), 1);
    assert!(pod.annotations.unwrap().size > filler.len());
}

/// A Pod with these annotations, lists and volumes.
fn pod_with(annotations: usize, containers: [usize; 3], volumes: usize, owners: usize) -> Value {
    let annotations: serde_json::Map<_, _> = (0..annotations)
        .map(|number| (format!("original-image.kagami.dev/c{number}"), Value::from("x")))
        .collect();
    let entries = |count: usize, entry: &dyn Fn(usize) -> Value| (0..count).map(entry).collect::<Value>();
    let container = |number: usize| json!({"name": format!("c{number}"), "image": "nginx"});
    json!({
        "metadata": {"annotations": annotations, "ownerReferences": entries(owners, &|_| json!({}))},
        "spec": {
            "containers": entries(containers[0], &container),
            "initContainers": entries(containers[1], &container),
            "ephemeralContainers": entries(containers[2], &container),
            "volumes": entries(volumes, &|_| json!({"name": "v", "image": {"reference": "nginx"}})),
        },
    })
}

#[test]
fn more_than_a_pod_may_have_ends_the_reading() {
    let read = |pod: &Value| Review::default().read(&review_of(pod).to_string());
    assert_eq!(read(&pod_with(2000, [400, 300, 200], 100, 1000)), Ok(()));
    let images = Err(ScanError::TooMany("images"));
    assert_eq!(read(&pod_with(0, [1001, 0, 0], 0, 0)), images);
    assert_eq!(read(&pod_with(0, [400, 300, 200], 101, 0)), images);
    let ours = Err(ScanError::TooMany("annotations of Kagami's"));
    assert_eq!(read(&pod_with(2001, [1, 0, 0], 0, 0)), ours);
    let owners = Err(ScanError::TooMany("owners"));
    assert_eq!(read(&pod_with(0, [1, 0, 0], 0, 1001)), owners);
    // What was there before counts as well.
    let mut review = review_of(&pod_with(0, [1, 0, 0], 0, 0));
    review["request"]["oldObject"] = pod_with(0, [0, 0, 1001], 0, 0);
    assert_eq!(Review::default().read(&review.to_string()), images);
    // Containers without an image are none, however many.
    let none: Value = (0..3000).map(|_| json!({})).collect();
    let mut pod = pod_with(0, [1, 0, 0], 0, 0);
    pod["spec"]["containers"] = none;
    assert_eq!(read(&pod), Ok(()));
}

#[test]
fn a_giant_affinity_is_not_parsed() {
    let affinity = |padding: usize| {
        let term = json!({"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]});
        let terms = json!({"nodeSelectorTerms": [term], "padding": "x".repeat(padding)});
        let pod = json!({"metadata": {}, "spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}});
        let text = review_of(&pod).to_string();
        pod_of(&text).unwrap().1.landing
    };
    assert_eq!(affinity(0), Landing::of(Label::Architecture, ["arm64"]));
    assert_eq!(affinity(AFFINITY_LIMIT), Landing::ANYWHERE);
}

#[track_caller]
fn check_landing(spec: &Value, expected: Landing) {
    let text = review_of(&json!({"metadata": {}, "spec": spec})).to_string();
    assert_eq!(pod_of(&text).unwrap().1.landing, expected);
}

#[test]
fn a_pod_says_where_it_may_land_in_many_ways() {
    let windows = Landing::of(Label::Os, ["windows"]);
    let arm = Landing::of(Label::Architecture, ["arm64"]);
    check_landing(&json!({"os": {"name": "windows"}}), windows);
    check_landing(&json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), windows);
    check_landing(
        &json!({"nodeSelector": {"beta.kubernetes.io/os": "windows"}}),
        windows,
    );
    check_landing(
        &json!({"nodeSelector": {"beta.kubernetes.io/arch": "arm64"}}),
        arm,
    );
    check_landing(
        &json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}, "os": {"name": "windows"}}),
        windows.and(arm),
    );
    let affinity = |terms: Value| {
        let terms = json!({"nodeSelectorTerms": terms});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
    };
    let expression =
        |key: &str, operator: &str, value: &str| json!({"key": key, "operator": operator, "values": [value]});
    let (os, architecture) = ("kubernetes.io/os", "beta.kubernetes.io/arch");
    // All of one alternative hold, and two of them on one label as well.
    check_landing(
        &affinity(json!([{"matchExpressions": [
            expression("zone", "In", "a"), expression(os, "In", "windows"), expression(architecture, "In", "arm64"),
        ]}])),
        windows.and(arm),
    );
    check_landing(
        &affinity(json!([{"matchExpressions": [expression(os, "NotIn", "windows")]}])),
        Landing::not_of(Label::Os, ["windows"]),
    );
    // Any of the alternatives holds, so one that says nothing leaves everything open.
    check_landing(
        &affinity(json!([
            {"matchExpressions": [expression(os, "In", "windows")]},
            {"matchExpressions": [expression(architecture, "In", "arm64")]},
        ])),
        windows.or(arm),
    );
    check_landing(
        &affinity(json!([
            {"matchExpressions": [expression(os, "In", "windows")]},
            {"matchFields": [expression("metadata.name", "In", "node-1")]},
        ])),
        Landing::ANYWHERE,
    );
}
