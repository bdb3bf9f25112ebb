//! Who may read what: credentials, private images, and mirrors that fetch by themselves.

use std::time::Duration;

use ::kagami::domain::answer::MediaType;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{REPOSITORY, SOON, image, knowing, stock, stocked};
use crate::support::{
    certificates::Authority,
    faulty::{Action, Behaviour, Faulty, Reply},
    images,
    kagami::{Kagami, eventually, mirror, text},
    real::{ALICE, PASSWORD, Registry, Setup, USERNAME},
    shelf::Shelf,
    tokens::{TokenService, query},
};

/// A Secret with credentials for `mirror.test`.
pub(super) fn secret(password: &str) -> Value {
    let auth = BASE64_STANDARD.encode(format!("{USERNAME}:{password}"));
    let json = json!({"auths": {"mirror.test": {"auth": auth}}}).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "reader"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": BASE64_STANDARD.encode(json)},
    })
}

fn with_credentials() -> Value {
    json!({"endpoint": {"credentials": {"secretRef": {"name": "reader"}}}})
}

/// A registry that wants credentials, with the right ones, wrong ones and the right ones again.
async fn check_credentials(url: &str, spec: &Value) {
    let mut spec = spec.clone();
    json_patch::merge(&mut spec, &with_credentials());
    let with = |password: &str| [mirror(url, &spec), secret(password)];
    let kagami = Kagami::start(&with(PASSWORD)).await;
    kagami.until_known("nginx:1", 1).await;
    kagami.configure(&text(&with("looking-glass")));
    // What was told before to be absent stays so for a while, so the other image is asked for only then.
    kagami.until(&["nginx:1"], &["Unauthorized"], SOON).await;
    kagami
        .until(&["nginx:1", "nginx:2"], &["Unauthorized"; 2], SOON)
        .await;
    // Alive, and refusing: that is no outage.
    kagami
        .until_status("/mirrors/main/health/state", &json!("Healthy"), SOON)
        .await;
    kagami.configure(&text(&with(PASSWORD)));
    kagami
        .until(&["nginx:1", "nginx:2"], &["Mirrored", "ImageMissing"], SOON)
        .await;
    assert!(!kagami.log().contains(PASSWORD), "{}", kagami.log());
}

#[tokio::test]
async fn a_mirror_behind_tls_and_a_password() {
    let authority = Authority::new();
    let setup = Setup {
        tls: Some(&authority),
        htpasswd: true,
        ..Setup::default()
    };
    let Some(registry) = Registry::start(&setup) else {
        return;
    };
    let target = registry.target(Some(ALICE.basic()));
    target
        .push(
            REPOSITORY,
            "1",
            &images::index(MediaType::OciIndex, &["amd64", "arm64"], "one"),
        )
        .await;
    check_credentials(
        registry.url(),
        &json!({"endpoint": {"caBundle": authority.pem()}}),
    )
    .await;
}

#[tokio::test]
async fn a_mirror_behind_tokens() {
    let service = TokenService::start(USERNAME, PASSWORD).await;
    let setup = Setup {
        tokens: Some(&service),
        ..Setup::default()
    };
    let Some(registry) = Registry::start(&setup) else {
        return;
    };
    let target = registry.target(Some(format!("Bearer {}", service.push_token(REPOSITORY))));
    target.push(REPOSITORY, "1", &image("one")).await;
    check_credentials(registry.url(), &json!({})).await;
}

/// Whoever gives a token to everybody asks everybody for one, at `/v2/` too: that is no refusal.
#[tokio::test]
async fn a_mirror_that_is_open_to_all_by_tokens_wants_no_credentials() {
    let realm = Faulty::start(Behaviour::answer(|request| {
        let scope = query(&request.target).remove("scope");
        Action::Reply(match scope {
            Some(_) => Reply::json(200, &json!({"token": "t"})),
            None => Reply::error(401, "UNAUTHORIZED"),
        })
    }))
    .await;
    let challenge = format!(r#"Bearer realm="{}/token",service="r""#, realm.url());
    let shelf = stock();
    let peer = Faulty::start(Behaviour::answer(move |request| {
        Action::Reply(match request.authorization() {
            Some("Bearer t") if request.target != "/v2/" => shelf.answer(request),
            _ => Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", &challenge),
        })
    }))
    .await;
    let kagami = Kagami::start(&[mirror(&peer.url(), &json!({}))]).await;
    kagami.until(&["nginx:1"], &["Mirrored"], SOON).await;
    kagami
        .until_status("/mirrors/main/credentials/valid", &json!(true), SOON)
        .await;
}

/// The password was changed at the registry: a person must act on it, so the log says once who refuses which
/// Secret, and once that it is over.
#[tokio::test]
async fn a_changed_password_is_told_once() {
    let (mut peer, shelf) = stocked().await;
    let documents = [mirror(&peer.url(), &with_credentials()), secret(PASSWORD)];
    let kagami = Kagami::start(&documents).await;
    kagami.until_known("nginx:1", 1).await;
    peer.set(Behaviour::always(
        Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"r\""),
    ))
    .await;
    let words = format!("{} refuses the credentials of Secret reader", peer.address());
    let told = |words: &str| {
        let log = kagami.log();
        let lines = log.lines().filter(|line| line.contains(words));
        lines.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let until_told = async |words: &str, times: usize| {
        eventually("the log tells it", SOON, async || {
            if told(words).len() < times {
                Err(kagami.log())
            } else {
                Ok(())
            }
        })
        .await;
    };
    until_told(&words, 1).await;
    kagami.until(&["nginx:1"], &["Unauthorized"], SOON).await;
    let asked = peer.requests().len();
    eventually("it is asked again and again", SOON, async || {
        let now = peer.requests().len();
        if now > asked + 10 {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await;
    let lines = told(&words);
    assert!(lines.len() == 1 && lines[0].contains("WARN"), "{lines:?}");

    peer.set(shelf.behaviour()).await;
    // It said so at the start, too.
    until_told("the mirror opens to its credentials", 2).await;
    assert!(!kagami.log().contains(PASSWORD), "{}", kagami.log());
}

/// A request there may download a whole image, so no Pod's admission makes one, and the companion makes
/// one for each tag, and asks by digest from then on.
#[tokio::test]
async fn a_pull_through_mirror_is_never_asked_inside_admission() {
    let (peer, _) = stocked().await;
    let kagami = Kagami::start(&[mirror(&peer.url(), &json!({"kind": "PullThrough"}))]).await;
    kagami
        .until_status("/mirrors/main/health/state", &json!("Healthy"), SOON)
        .await;
    let answer = kagami.ask(&["nginx:2"]).await;
    assert_eq!(answer.reasons, ["ImageUnknown"]);
    kagami.until(&["nginx:2"], &["Mirrored"], SOON).await;
    let probes = "kagami_probes_total{mirror=\"main\",result=\"present\"}";
    assert!(kagami.metric(probes).await < 0.1);
    let manifests = || -> Vec<String> {
        let requests = peer.requests().into_iter();
        let path = |request: crate::support::faulty::Request| {
            let (_, reference) = request.target.split_once("/manifests/")?;
            Some(format!("{} {reference}", request.method))
        };
        requests.filter_map(path).collect()
    };
    let index = images::index(MediaType::OciIndex, &["amd64", "arm64"], "two");
    let by_digest = format!("HEAD {}", index.digest);
    eventually("it is a canary", SOON, async || {
        let asked = manifests();
        if asked.iter().filter(|asked| **asked == by_digest).count() > 3 {
            Ok(())
        } else {
            Err(format!("{asked:?}"))
        }
    })
    .await;
    let mut asked = manifests();
    asked.retain(|asked| *asked != by_digest);
    assert_eq!(asked, ["GET 2"]);
}

/// The upstream of an image is the peer itself: references to loopback are asked over plain HTTP.
fn public_with_credentials(upstream: &Faulty) -> Value {
    json!({
        "sources": [{
            "prefix": upstream.address().to_string(),
            "access": "Public",
            "credentials": {"secretRef": {"name": "reader"}},
        }],
        "freshness": {"tag": "1s"},
        "tags": {"refresh": "1s"},
    })
}

/// Returns the place in the mirror of `app:1` of an upstream.
fn place(upstream: &Faulty) -> String {
    format!("127.0.0.1_{}/app", upstream.address().port())
}

#[tokio::test]
async fn what_upstream_does_not_give_to_everybody_is_private() {
    let (peer, shelf) = (Faulty::start(Behaviour::Silent).await, Shelf::default());
    let mut peer = peer;
    peer.set(shelf.behaviour()).await;
    let open = Shelf::default();
    open.put("app", "1", &image("app"));
    let refuse = || {
        Behaviour::always(Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\""))
    };
    // Nobody can tell at first.
    let mut upstream = Faulty::start(Behaviour::always(Reply::error(503, "UNAVAILABLE"))).await;
    shelf.put(&place(&upstream), "1", &image("app"));
    let image = format!("{}/app:1", upstream.address());
    let documents = [
        mirror(&peer.url(), &public_with_credentials(&upstream)),
        secret(PASSWORD),
    ];
    let kagami = Kagami::start(&documents).await;
    let images = [image.as_str()];
    kagami.until(&images, &["Private"], SOON).await;
    kagami
        .until_status("/mirrors/main/images/present", &1.into(), SOON)
        .await;
    assert_eq!(kagami.ask(&images).await.reasons, ["Private"]);

    // Everybody gets it.
    upstream.set(open.behaviour()).await;
    kagami.until(&images, &["Mirrored"], SOON).await;
    // Upstream fails, which is what mirrors are for: what was public stays so.
    upstream
        .set(Behaviour::always(Reply::error(503, "UNAVAILABLE")))
        .await;
    let asked = upstream.requests().len();
    eventually("upstream was asked in vain", SOON, async || {
        if upstream.requests().len() > asked + 1 {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
    kagami.until(&images, &["Mirrored"], Duration::from_secs(2)).await;
    // Its owner has made it private.
    upstream.set(refuse()).await;
    kagami.until(&images, &["Private"], SOON).await;
}

/// A mirror that limits manifests is asked less often, and does not count as down.
#[tokio::test]
async fn a_rate_limit_on_manifests_is_waited_for() {
    let (mut peer, shelf) = stocked().await;
    let spec = json!({"freshness": {"tag": "4s"}, "sweep": {"requestsPerSecond": 0}});
    let kagami = knowing(&peer.url(), &spec).await;
    let good = shelf.behaviour();
    peer.set(Behaviour::answer(move |request| -> Action {
        if request.target.contains("/manifests/") {
            Reply::error(429, "TOOMANYREQUESTS")
                .header("Retry-After", "1")
                .into()
        } else {
            shelf.answer(request).into()
        }
    }))
    .await;
    let limited = || {
        let requests = peer.requests().into_iter();
        requests
            .filter(|request| request.target.contains("/manifests/"))
            .count()
    };
    let before = limited();
    assert_eq!(kagami.ask(&["nginx:2"]).await.reasons, ["RateLimited"]);
    eventually("the limit was met twice", SOON, async || {
        if limited() >= before + 2 {
            Ok(())
        } else {
            Err(limited().to_string())
        }
    })
    .await;
    let status = kagami.status().await;
    assert_eq!(
        status["mirrors"]["main"]["health"]["state"],
        "Healthy",
        "{}",
        kagami.log()
    );
    assert!(limited() <= before + 4, "{} requests", limited() - before);
    peer.set(good).await;
    kagami
        .until(&["nginx:1", "nginx:2"], &["Mirrored", "Mirrored"], SOON)
        .await;
    assert_eq!(
        kagami.log().matches("mirror health changed").count(),
        1,
        "{}",
        kagami.log()
    );
}

#[tokio::test]
async fn what_pods_run_is_told_only_where_somebody_chose_to() {
    let (peer, _) = stocked().await;
    let documents = [mirror(&peer.url(), &json!({}))];
    let image = "ghcr.io/team/unannounced-product:1";
    let kagami = Kagami::start(&documents).await;
    kagami.ask(&[image]).await;
    let status = kagami.status().await;
    assert_eq!(status["decisions"], Value::Null);
    assert!(!status.to_string().contains("unannounced"), "{status}");

    let setup = crate::support::kagami::Setup {
        arguments: vec!["--show-decisions".to_owned()],
        ..crate::support::kagami::Setup::default()
    };
    let kagami = Kagami::start_with(&documents, setup).await;
    kagami.ask(&[image]).await;
    let status = kagami.status().await;
    assert_eq!(status["decisions"][0]["image"], image, "{status}");
}
