//! Rows in which the review is the fault.

use serde_json::{Value, json};

use super::{REPOSITORY, SOON, image, knowing, stocked};
use crate::{shared::reviews::review, support::kagami::Caller};

/// 8 MiB, as `webhook::routes::BODY_LIMIT`.
const LIMIT: usize = 8 * 1024 * 1024;

/// Posts a body and returns the answer's reason for the whole review, none if it has none.
async fn unchanged(caller: &mut Caller, what: &str, body: impl AsRef<[u8]>) -> Option<String> {
    let reply = caller.post(body).await;
    assert_eq!(reply.status, 200, "{what}: {}", reply.body);
    let answer: Value = serde_json::from_str(&reply.body).unwrap();
    let response = &answer["response"];
    assert_eq!(response["allowed"], true, "{what}");
    assert_eq!(response["uid"], review(&[""; 0])["request"]["uid"], "{what}");
    assert_eq!(response.get("patch"), None, "{what}");
    let said = response["auditAnnotations"]["review"].as_str()?;
    said.split(' ').nth(1).map(str::to_owned)
}

/// Whoever can be answered is: the API server asks for its `uid` back, and gets it with a reason.
#[tokio::test]
async fn reviews_that_cannot_be_read_change_nothing() {
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let mut caller = kagami.connect().await;
    let good = review(&["nginx:1"]).to_string();
    let internal = Some("Internal".to_owned());

    let mut invalid = good.clone().into_bytes();
    let position = good.find("nginx:1").unwrap();
    invalid[position] = 0xff;
    assert_eq!(unchanged(&mut caller, "invalid UTF-8", &invalid).await, internal);

    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    let where_it_decides = good.replace("\"containers\":", &format!("\"containers\":{nested},\"x\":"));
    assert_eq!(
        unchanged(&mut caller, "deep nesting", &where_it_decides).await,
        internal
    );
    // Where nothing is decided by it, it is passed over.
    let elsewhere = good.replace("\"containers\":", &format!("\"nested\":{nested},\"containers\":"));
    assert!(caller.post(elsewhere).await.body.contains("Rewritten Mirrored"));

    for key in ["containers", "metadata", "object"] {
        let name = format!("\"{key}\":");
        let twice = good.replace(&name, &format!("{name}null,{name}"));
        assert_eq!(
            unchanged(&mut caller, "a key twice", &twice).await,
            internal,
            "{key}"
        );
    }
    let half = &good[..good.len() - 3];
    assert_eq!(unchanged(&mut caller, "half of a review", half).await, internal);

    // Well-formed, and nothing that Kagami decides.
    let without = |pointer: &str, key: &str| {
        let mut review = review(&["nginx:1"]);
        review
            .pointer_mut(pointer)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(key);
        review.to_string()
    };
    let with = |pointer: &str, value: Value| {
        let mut review = review(&["nginx:1"]);
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string()
    };
    for (what, body) in [
        ("no object", without("/request", "object")),
        ("object null", with("/request/object", Value::Null)),
        (
            "unknown version",
            with("/apiVersion", json!("admission.k8s.io/v9")),
        ),
        (
            "another version of Pods",
            with("/request/kind/version", json!("v9")),
        ),
        ("another kind", with("/request/kind/kind", json!("Service"))),
        ("another operation", with("/request/operation", json!("DELETE"))),
    ] {
        assert_eq!(unchanged(&mut caller, what, &body).await, None, "{what}");
    }

    // Without a `uid` there is nobody to answer to.
    for body in [
        "",
        "{}",
        "null",
        "[]",
        "GET / HTTP/1.1",
        &without("/request", "uid"),
    ] {
        let reply = caller.post(body).await;
        assert_eq!(reply.status, 400, "{body:?}: {}", reply.body);
    }

    // And after all that the connection, and the program, work as before.
    assert_eq!(caller.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
    let refused = kagami
        .metric("kagami_reviews_total{mode=\"enforce\",answer=\"refused\"}")
        .await;
    assert!((refused - 6.0).abs() < 0.1, "{refused}");
}

#[tokio::test]
async fn unknown_fields_are_passed_over() {
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let mut strange = review(&["nginx:1"]);
    for pointer in [
        "",
        "/request",
        "/request/kind",
        "/request/object",
        "/request/object/metadata",
    ] {
        let object = strange.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("fieldOfTomorrow".to_owned(), json!({"a": [1, {"b": null}]}));
    }
    for pointer in ["/request/object/spec", "/request/object/spec/containers/0"] {
        let object = strange.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("fieldOfTomorrow".to_owned(), json!("\u{1f600}\\\"\n"));
    }
    let reply = kagami.connect().await.post(strange.to_string()).await;
    assert!(reply.body.contains("Rewritten Mirrored"), "{}", reply.body);
}

#[tokio::test]
async fn eight_mebibytes_are_read_and_no_more() {
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let mut caller = kagami.connect().await;
    let good = review(&["nginx:1"]).to_string();
    let padded = |size: usize| {
        let padding = "x".repeat(size - good.len() - "\"pad\":\"\",".len());
        good.replacen('{', &format!("{{\"pad\":\"{padding}\","), 1)
    };
    let reply = caller.post(padded(LIMIT)).await;
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("Rewritten Mirrored"), "{}", reply.body);

    // The answer may come before all was sent, and ends the connection then.
    let mut caller = kagami.connect().await;
    let reply = caller.post(padded(LIMIT + 1)).await;
    assert_eq!(reply.status, 413);
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
}

#[tokio::test]
async fn a_pod_of_three_thousand_containers_is_in_time() {
    let (peer, shelf) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let mut caller = kagami.connect().await.about_giants();

    // More than are decided about, known or not: nothing changes.
    let too_large = Some("PodTooLarge".to_owned());
    let unknown: Vec<String> = (0..3000).map(|number| format!("nginx:t{number}")).collect();
    let body = review(&unknown).to_string();
    assert_eq!(unchanged(&mut caller, "unknown", &body).await, too_large);
    let body = review(&vec!["nginx:1"; 3000]).to_string();
    assert_eq!(unchanged(&mut caller, "known", &body).await, too_large);

    // As many as may be are answered in time; what the mirror says of them by then is its own matter.
    let unknown = &unknown[..1000];
    for tag in unknown {
        shelf.put(REPOSITORY, tag.trim_start_matches("nginx:"), &image("any"));
    }
    let reasons = caller.ask(unknown).await.reasons;
    assert!(!reasons.contains(&"Internal".to_owned()));
    // On a busy machine the companion's work on so many may have cost the mirror its health for a moment.
    kagami.until(&["nginx:1"; 500], &["Mirrored"; 500], SOON).await;
    // The companion gets to all of them in the end.
    kagami.until(&["nginx:t999"], &["Mirrored"], SOON).await;
}

/// Three times 3 MiB, the most that the API server sends: what stands in them took this program, built
/// for use, half a minute before it had bounds.
#[tokio::test]
async fn giant_pods_are_refused_at_once() {
    const SIZE: usize = 3 * 1024 * 1024;
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let mut caller = kagami.connect().await;
    let entries = |count: usize, entry: fn(usize) -> String| {
        let entries: Vec<_> = (0..count).map(entry).collect();
        entries.join(",")
    };
    let annotations = entries(85_000, |number| {
        format!("\"original-image.kagami.dev/{number}\":\"\"")
    });
    let containers = entries(100_000, |number| format!("{{\"image\":\"nginx:t{number}\"}}"));
    let volumes = entries(50_000, |number| {
        format!("{{\"name\":\"v{number}\",\"image\":{{\"reference\":\"nginx:t{number}\"}}}}")
    });
    let good = review(&["nginx:1"]).to_string();
    for (what, field, value) in [
        (
            "annotations",
            "\"metadata\":{",
            format!("\"annotations\":{{{annotations}}},"),
        ),
        (
            "containers",
            "\"spec\":{",
            format!("\"initContainers\":[{containers}],"),
        ),
        ("image volumes", "\"spec\":{", format!("\"volumes\":[{volumes}],")),
    ] {
        assert_eq!(good.matches(field).count(), 1, "{what}");
        let body = good.replace(field, &format!("{field}{value}"));
        assert!(
            body.len() > SIZE * 3 / 4 && body.len() < SIZE * 3 / 2,
            "{what}: {}",
            body.len()
        );
        let started = std::time::Instant::now();
        let reason = unchanged(&mut caller, what, &body).await;
        let took = started.elapsed();
        assert_eq!(reason.as_deref(), Some("PodTooLarge"), "{what}");
        // Built for tests, and on a busy machine, it is a hundred times slower.
        assert!(took < std::time::Duration::from_secs(2), "{what}: {took:?}");
    }
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
}
