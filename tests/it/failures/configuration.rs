//! The configuration changes while Kagami serves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};

use super::{REPOSITORY, SOON, image, knowing, stocked, unaware};
use crate::support::{
    faulty::{Behaviour, Faulty, Reply},
    kagami::{Kagami, eventually, mirror, text},
    shelf::Shelf,
};

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_configuration_and_is_told() {
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let good = text(&[mirror(&peer.url(), &json!({}))]);
    let bad = text(&[mirror(
        &peer.url(),
        &json!({"health": {"interval": "soon"}, "kind": "Hostess"}),
    )]);
    let cut = &good[..good.len() / 2];
    let without_secret = json!({"endpoint": {"credentials": {"secretRef": {"name": "nowhere"}}}});
    let without_secret = text(&[mirror(&peer.url(), &without_secret)]);
    // A Secret that has credentials for another registry alone is found out last.
    let other_secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "nowhere"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": "{\"auths\":{\"other.test\":{\"auth\":\"YTpi\"}}}"},
    });
    let without_credentials = format!("{without_secret}---\n{other_secret}\n");
    for bad in [bad.as_str(), cut, &without_secret, &without_credentials] {
        kagami.configure(bad);
        eventually("the fault is told", SOON, async || {
            let status = kagami.status().await;
            let faults = status["configuration"]["faults"].as_array().unwrap();
            if faults.is_empty() {
                Err(status.to_string())
            } else {
                Ok(())
            }
        })
        .await;
        assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
        kagami.configure(&good);
        kagami
            .until_status("/configuration/faults", &json!([]), SOON)
            .await;
    }
    // What did not change was not touched: no proof was lost, the mirror was never unknown again.
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
    assert_eq!(
        kagami.log().matches("mirror health changed").count(),
        1,
        "{}",
        kagami.log()
    );
    let errors = kagami
        .metric("kagami_configuration_loads_total{result=\"error\"}")
        .await;
    assert!(errors >= 4.0, "{errors}");
}

#[tokio::test]
async fn a_good_edit_is_taken_over() {
    let (peer, shelf) = stocked().await;
    shelf.put("ghcr.io/team/app", "1", &image("app"));
    let kagami = knowing(&peer.url(), &json!({})).await;
    assert_eq!(kagami.ask(&["ghcr.io/team/app:1"]).await.reasons, ["NoMirror"]);
    let sources = json!({"sources": [{"prefix": "docker.io"}, {"prefix": "ghcr.io/team"}]});
    kagami.configure(&text(&[mirror(&peer.url(), &sources)]));
    kagami
        .until(
            &["ghcr.io/team/app:1", "nginx:1"],
            &["Mirrored", "Mirrored"],
            SOON,
        )
        .await;

    let audit = json!({"mode": "Audit"});
    kagami.configure(&text(&[mirror(&peer.url(), &audit)]));
    kagami
        .until_status("/mirrors/main/mode", &json!("audit"), SOON)
        .await;
    let answer = kagami.ask(&["nginx:1"]).await;
    assert_eq!((&*answer.reasons[0], &*answer.images[0]), ("Mirrored", "nginx:1"));
}

/// Asks until the reasons are as expected; once a proof did not count it must not count again.
async fn until_unproven(kagami: &Kagami, reason: &str) {
    let meanwhile = kagami.until(&["nginx:1"], &[reason], SOON).await;
    let reasons: Vec<&str> = meanwhile.iter().map(|reasons| &*reasons[0]).collect();
    let first = reasons
        .iter()
        .position(|reason| *reason != "Mirrored")
        .unwrap_or(reasons.len());
    assert!(!reasons[first..].contains(&"Mirrored"), "{reasons:?}");
}

#[tokio::test]
async fn proofs_of_one_endpoint_do_not_count_for_another() {
    let (peer, _) = stocked().await;
    let empty = Faulty::start(Shelf::default().behaviour()).await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    kagami.configure(&text(&[mirror(&empty.url(), &json!({}))]));
    until_unproven(&kagami, "ImageMissing").await;

    let dead = Faulty::start(Behaviour::Refuse).await;
    kagami.configure(&text(&[mirror(&peer.url(), &json!({}))]));
    kagami.until(&["nginx:1"], &["Mirrored"], SOON).await;
    kagami.configure(&text(&[mirror(&dead.url(), &json!({}))]));
    until_unproven(&kagami, "MirrorUnhealthy").await;
}

#[tokio::test]
async fn proofs_of_one_place_in_the_mirror_do_not_count_for_another() {
    let (peer, shelf) = stocked().await;
    // No look at the mirror's health shows by chance that the image is not there.
    let kagami = unaware(&peer.url(), &json!({})).await;
    let elsewhere = json!({"repository": "cache/{registry}/{repository}", "health": {"interval": "10m"}});
    kagami.configure(&text(&[mirror(&peer.url(), &elsewhere)]));
    until_unproven(&kagami, "ImageMissing").await;
    let elsewhere = json!({"registry": "mirror.test/other", "freshness": {"missing": "1s"}});
    kagami.configure(&text(&[mirror(&peer.url(), &elsewhere)]));
    kagami
        .until_status("/mirrors/main/registry", &json!("mirror.test/other"), SOON)
        .await;
    kagami.until(&["nginx:1"], &["ImageMissing"], SOON).await;
    shelf.put(&format!("other/{REPOSITORY}"), "1", &image("one"));
    kagami.until(&["nginx:1"], &["Mirrored"], SOON).await;
}

#[tokio::test]
async fn a_mirror_goes_and_comes_back() {
    let (peer, shelf) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    kagami.configure(&text(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}),
    ]));
    kagami.until(&["nginx:1"], &["NoMirror"], SOON).await;
    kagami.until_status("/mirrors", &json!({}), SOON).await;
    let asked = peer.requests().len();
    shelf.clear();
    kagami.configure(&text(&[mirror(&peer.url(), &json!({}))]));
    let meanwhile = kagami.until(&["nginx:1"], &["ImageMissing"], SOON).await;
    let allowed = |reasons: &Vec<String>| ["NoMirror", "MirrorUnknown"].contains(&&*reasons[0]);
    assert!(meanwhile.iter().all(allowed), "{meanwhile:?}");
    assert!(peer.requests().len() > asked);
}

/// Neither another password nor none at all is another mirror.
#[tokio::test]
async fn credentials_that_change_void_no_proof() {
    let (mut peer, shelf) = stocked().await;
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    peer.set(Behaviour::answer(move |request| {
        if request.authorization().is_none() && !is_open.load(Ordering::Relaxed) {
            let challenge = "Basic realm=\"mirror\"";
            return Reply::error(401, "UNAUTHORIZED")
                .header("WWW-Authenticate", challenge)
                .into();
        }
        shelf.answer(request).into()
    }))
    .await;
    let asked_with = json!({"endpoint": {"credentials": {"secretRef": {"name": "read"}}}});
    let with_password = |password: &str| {
        let auths = json!({"auths": {"mirror.test": {"username": "reader", "password": password}}});
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "read"},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": auths.to_string()},
        });
        [mirror(&peer.url(), &asked_with), secret]
    };
    let until_asked_with = async |expected: Option<&str>| {
        let expected =
            expected.map(|password| format!("Basic {}", BASE64.encode(format!("reader:{password}"))));
        eventually("the mirror is asked with it", SOON, async || {
            let requests = peer.requests();
            let mut looks = requests
                .iter()
                .filter(|request| request.target.contains("/manifests/"));
            let last = looks.next_back().and_then(|request| request.authorization());
            if last == expected.as_deref() {
                Ok(())
            } else {
                Err(format!("{last:?}"))
            }
        })
        .await;
    };
    let kagami = Kagami::start(&with_password("first")).await;
    kagami.until_known("nginx:1", 1).await;
    until_asked_with(Some("first")).await;
    let proven_since = kagami.status().await["mirrors"]["main"]["health"]["provenSince"].clone();
    assert!(proven_since.is_string());

    kagami.configure(&text(&with_password("second")));
    until_asked_with(Some("second")).await;
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);

    open.store(true, Ordering::Relaxed);
    kagami.configure(&text(&[mirror(&peer.url(), &json!({}))]));
    until_asked_with(None).await;
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
    assert_eq!(
        kagami.status().await["mirrors"]["main"]["health"]["provenSince"],
        proven_since
    );
    let log = kagami.log();
    assert_eq!(log.matches("mirror health changed").count(), 1, "{log}");
}

/// The health interval was ten minutes: nobody waits that long to begin with the new one.
#[tokio::test]
async fn a_shorter_interval_holds_at_once() {
    let (mut peer, shelf) = stocked().await;
    let kagami = unaware(&peer.url(), &json!({})).await;
    kagami.configure(&text(&[mirror(&peer.url(), &json!({}))]));
    let healthy = |state: &str| Value::from(state);
    peer.set(Behaviour::Refuse).await;
    // Nobody asks for an image meanwhile, so no probe tells.
    kagami
        .until_status("/mirrors/main/health/state", &healthy("Unhealthy"), SOON)
        .await;
    peer.set(shelf.behaviour()).await;
    kagami
        .until_status("/mirrors/main/health/state", &healthy("Healthy"), SOON)
        .await;
}
