//! The companion copies what Pods use: the real program with its configuration from a file, which is asked about Pods
//! as an API server asks.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kagami::domain::answer::{Answer, MediaType};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    fake::{self, Act, Fake, Kind},
    host, image, noise,
    real::{assert_whole, place},
};
use crate::{
    shared::mirror::image_mirror,
    support::{
        images::{Image, index, single},
        kagami::{Kagami, eventually, text},
        real::{ALICE, PASSWORD, Registry, Setup, USERNAME},
        soon,
    },
};

/// What a busy machine may take for a small copy and the looks before and after it.
pub(super) const LONG: Duration = Duration::from_mins(1);

pub(super) const COPIED: &str = "kagami_copies_total{mirror=\"main\",result=\"Copied\"}";

/// A mirror that is filled, with this in its spec besides.
pub(super) fn filled(from: &str, to: &str, more: &Value) -> Value {
    let mut spec = json!({
        "copy": {"policy": "OnDemand"},
        "health": {"interval": "200ms", "timeout": "500ms"},
        "freshness": {"missing": "1s"},
    });
    json_patch::merge(&mut spec, more);
    image_mirror("main", "mirror.test", &[host(from)], to, &spec)
}

fn basic_auth(name: &str, password: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "type": "kubernetes.io/basic-auth",
        "stringData": {"username": USERNAME, "password": password},
    })
}

pub(super) fn name(of: &str, image: &str) -> String {
    format!("{}/team/{image}", host(of))
}

/// Asks about Pods with these images until the answer gives these reasons.
pub(super) async fn until(kagami: &Kagami, images: &[&str], expected: &[&str]) {
    let mut caller = kagami.connect().await.in_no_hurry();
    kagami.until_by(&mut caller, images, expected, LONG).await;
}

/// Waits until a reason why an image is not copied was counted.
async fn until_counted(kagami: &Kagami, reason: &str) {
    let metric = format!("kagami_copies_total{{mirror=\"main\",result=\"{reason}\"}}");
    eventually(&format!("{reason} is counted"), LONG, async || {
        let copies = kagami.metric(&metric).await;
        (copies > 0.5).then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
}

#[tokio::test]
async fn what_pods_use_is_copied_with_logins_from_secrets_and_then_rewritten() {
    let htpasswd = Setup {
        htpasswd: true,
        ..Setup::default()
    };
    let (Some(source), Some(mirror)) = (Registry::start(&htpasswd), Registry::start(&htpasswd)) else {
        return;
    };
    let image = index(MediaType::OciIndex, &["amd64", "arm64"], "wanted");
    let target = source.target(Some(ALICE.basic()));
    target.push("team/app", "1", &image).await;
    target
        .push("team/audit", "1", &single(MediaType::OciManifest, "audit"))
        .await;
    let auth = BASE64_STANDARD.encode(format!("{USERNAME}:{PASSWORD}"));
    let config = json!({"auths": {"mirror.test": {"auth": auth}}}).to_string();
    let push = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "push"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config},
    });
    let team = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    let spec = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}},
        "sources": [{"prefix": host(source.url()), "credentials": {"secretRef": {"name": "upstream"}}}],
        "endpoint": {"credentials": {"secretRef": {"name": "push"}}},
        "copy": {"credentials": {"secretRef": {"name": "push"}}},
    });
    let with = |password: &str| {
        let mirror = filled(source.url(), mirror.url(), &spec);
        [
            mirror,
            team.clone(),
            push.clone(),
            basic_auth("upstream", password),
        ]
    };
    let kagami = Kagami::start(&with("looking-glass")).await;
    kagami
        .until_status("/mirrors/main/health/state", &json!("Healthy"), LONG)
        .await;
    // A namespace in which nothing is rewritten gets nothing copied.
    let (wanted, audit) = (name(source.url(), "app:1"), name(source.url(), "audit:1"));
    let mut auditor = kagami.connect().await.in_no_hurry().in_mode("audit");
    assert_eq!(auditor.ask(&[&audit]).await.reasons, ["ImageMissing"]);

    until(&kagami, &[&wanted], &["ImageMissing"]).await;
    until_counted(&kagami, "SourceUnauthorized").await;
    // Another password is tried at once, whatever the image waits for.
    kagami.configure(&text(&with(PASSWORD)));
    until(&kagami, &[&wanted], &["Mirrored"]).await;
    let mut caller = kagami.connect().await.in_no_hurry();
    assert_eq!(
        caller.ask(&[&wanted]).await.images,
        [format!("mirror.test/{}:1", place(&source, "team/app"))]
    );
    let client = mirror.client(Some(kagami::registry::Credentials {
        username: USERNAME.to_owned(),
        password: PASSWORD.to_owned(),
    }));
    let found = client.get(&place(&source, "team/app"), "1", soon()).await;
    assert!(
        matches!(&found, Answer::Exists(found) if found.digest == image.digest),
        "{found}"
    );
    assert_eq!(auditor.ask(&[&audit]).await.reasons, ["ImageMissing"]);
    let found = client.get(&place(&source, "team/audit"), "1", soon()).await;
    assert_eq!(found, Answer::Missing);
    assert!((kagami.metric(COPIED).await - 1.0).abs() < 0.1);
    assert!(kagami.metric("kagami_copied_bytes_total{mirror=\"main\"}").await > 100.0);
    let log = kagami.log();
    assert!(!log.contains(PASSWORD) && !log.contains(&auth), "{log}");
}

/// A full disk, as distribution 3 shows it: everything is answered, and nothing taken.
#[tokio::test]
async fn a_mirror_that_takes_nothing_serves_what_it_has_and_is_left_alone() {
    let source = Fake::usual().await;
    let mirror = Fake::start(|ask| {
        let full = fake::Answer::error(405, "UNSUPPORTED", "the registry is read-only");
        Act::when(ask.kind == Kind::Begin, Act::Early(full))
    })
    .await;
    let image = single(MediaType::OciManifest, "one");
    let into = format!("{}/team", host(source.url()).replace(':', "_"));
    mirror.hold(&format!("{into}/there"), "1", &image);
    for app in ["a", "b"] {
        source.hold(&format!("team/{app}"), "1", &image);
    }
    let kagami = Kagami::start(&[filled(source.url(), mirror.url(), &json!({}))]).await;
    let there = name(source.url(), "there:1");
    until(&kagami, &[&there], &["Mirrored"]).await;
    let (a, b) = (name(source.url(), "a:1"), name(source.url(), "b:1"));
    until(&kagami, &[&a], &["ImageMissing"]).await;
    kagami
        .until_status("/mirrors/main/copies/reason", &json!("MirrorReadOnly"), LONG)
        .await;
    let begun = mirror.count("POST", Kind::Begin);
    // What comes next waits for the mirror, and is no business of upstream.
    until(&kagami, &[&b], &["ImageMissing"]).await;
    kagami
        .until_status("/mirrors/main/copies/waiting", &json!(1), LONG)
        .await;
    assert_eq!(mirror.count("POST", Kind::Begin), begun);
    assert!(!source.asked().iter().any(|ask| ask.path().contains("/team/b/")));
    kagami
        .until_status("/mirrors/main/health/state", &json!("Healthy"), LONG)
        .await;
    let mut caller = kagami.connect().await.in_no_hurry();
    assert_eq!(
        caller.ask(&[&there, &a]).await.reasons,
        ["Mirrored", "ImageMissing"]
    );
    let log = kagami.log();
    assert_eq!(log.matches("the mirror takes no copies").count(), 1, "{log}");
    // It takes copies again, and other settings are reason enough to try: one minute is not waited for here.
    mirror.set(|_| Act::Usual);
    let settings = json!({"copy": {"referrers": false}});
    kagami.configure(&text(&[filled(source.url(), mirror.url(), &settings)]));
    until(&kagami, &[&a, &b], &["Mirrored", "Mirrored"]).await;
    kagami
        .until_status("/mirrors/main/copies/writable", &json!(true), LONG)
        .await;
}

/// A project whose quota is used up, as Harbor says so, while the other ones have room.
#[tokio::test]
async fn an_image_that_the_mirror_does_not_take_holds_up_no_other_one() {
    let source = Fake::usual().await;
    let mirror = Fake::start(|ask| {
        let full = fake::Answer::error(
            403,
            "DENIED",
            "adding 8 GiB will exceed the configured upper limit quota",
        );
        let is_large = ask.kind == Kind::Begin && ask.path().contains("/team/large/");
        Act::when(is_large, Act::Early(full))
    })
    .await;
    source.hold("team/large", "1", &image(vec![noise(1, 1 << 10)], &json!({})));
    source.hold("team/small", "1", &image(vec![noise(2, 1 << 10)], &json!({})));
    let kagami = Kagami::start(&[filled(source.url(), mirror.url(), &json!({}))]).await;
    let (large, small) = (name(source.url(), "large:1"), name(source.url(), "small:1"));
    until(&kagami, &[&large], &["ImageMissing"]).await;
    until_counted(&kagami, "QuotaExceeded").await;
    // No pause of the mirror is waited for, which would be a minute.
    let began = Instant::now();
    until(&kagami, &[&large, &small], &["ImageMissing", "Mirrored"]).await;
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    assert!(
        !kagami.log().contains("the mirror takes no copies"),
        "{}",
        kagami.log()
    );
}

/// The login that looks may see less than the one that pushes.
#[tokio::test]
async fn what_cannot_be_seen_after_its_copy_is_not_copied_again_and_again() {
    let source = Fake::usual().await;
    let mirror = Fake::start(|ask| {
        let hidden = fake::Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        let is_anonymous = !ask.headers.contains_key("authorization");
        let login = fake::Answer::error(401, "UNAUTHORIZED", "authentication required")
            .header("WWW-Authenticate", "Basic realm=\"x\"");
        match ask.kind {
            Kind::Manifest if is_anonymous && ask.method != "PUT" => Act::Early(hidden),
            Kind::Ping => Act::Usual,
            _ => Act::when(is_anonymous, Act::Early(login)),
        }
    })
    .await;
    source.hold("team/app", "1", &image(vec![noise(1, 1 << 10)], &json!({})));
    let push = json!({"copy": {"credentials": {"secretRef": {"name": "push"}}}});
    let documents = [
        filled(source.url(), mirror.url(), &push),
        basic_auth("push", PASSWORD),
    ];
    let kagami = Kagami::start(&documents).await;
    let wanted = name(source.url(), "app:1");
    until(&kagami, &[&wanted], &["ImageMissing"]).await;
    until_counted(&kagami, "NotReadBack").await;
    assert!(kagami.metric(COPIED).await < 0.5);
    let log = kagami.log();
    assert!(
        log.contains("may the login of spec.endpoint.credentials read"),
        "{log}"
    );
}

/// Tokens of sources are renewed all the time.
#[tokio::test]
async fn another_login_of_a_source_ends_no_pause_of_a_mirror_that_takes_nothing() {
    let source = Fake::usual().await;
    let mirror = Fake::start(|ask| {
        let full = fake::Answer::error(405, "UNSUPPORTED", "the registry is read-only");
        Act::when(ask.kind == Kind::Begin, Act::Early(full))
    })
    .await;
    for (app, seed) in [("a", 1), ("b", 2)] {
        let image = image(vec![noise(seed, 1 << 10)], &json!({}));
        source.hold(&format!("team/{app}"), "1", &image);
    }
    let team = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    let spec = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}},
        "sources": [{"prefix": host(source.url()), "credentials": {"secretRef": {"name": "upstream"}}}],
    });
    let with = |password: &str| {
        let mirror = filled(source.url(), mirror.url(), &spec);
        [mirror, team.clone(), basic_auth("upstream", password)]
    };
    let kagami = Kagami::start(&with("first")).await;
    let (a, b) = (name(source.url(), "a:1"), name(source.url(), "b:1"));
    until(&kagami, &[&a], &["ImageMissing"]).await;
    until_counted(&kagami, "MirrorReadOnly").await;
    let begun = mirror.count("POST", Kind::Begin);
    kagami.configure(&text(&with("second")));
    eventually("the other login is in use", LONG, async || {
        let log = kagami.log();
        let changed = log.contains("configuration changed");
        changed.then_some(()).ok_or(log)
    })
    .await;
    until(&kagami, &[&b], &["ImageMissing"]).await;
    kagami
        .until_status("/mirrors/main/copies/waiting", &json!(1), LONG)
        .await;
    assert_eq!(mirror.count("POST", Kind::Begin), begun);
}

/// A registry that answers nobody without a login.
async fn asks_for_a_login() -> Fake {
    Fake::start(|ask| {
        let login = fake::Answer::error(401, "UNAUTHORIZED", "authentication required")
            .header("WWW-Authenticate", "Basic realm=\"x\"");
        Act::when(!ask.headers.contains_key("authorization"), Act::Early(login))
    })
    .await
}

/// A source that is for everybody and has a login, whose registry tells nobody without one what there is.
#[tokio::test]
async fn a_name_that_upstream_does_not_know_is_told_apart_from_a_private_one() {
    let source = asks_for_a_login().await;
    let mirror = Fake::usual().await;
    source.hold("team/app", "1", &image(vec![noise(1, 1 << 10)], &json!({})));
    let spec = json!({
        "endpoint": {"url": mirror.url()},
        "sources": [{
            "prefix": host(source.url()), "access": "Public",
            "credentials": {"secretRef": {"name": "upstream"}},
        }],
    });
    let documents = [
        filled(source.url(), mirror.url(), &spec),
        basic_auth("upstream", PASSWORD),
    ];
    let kagami = Kagami::start(&documents).await;
    let private = name(source.url(), "app:1");
    until(&kagami, &[&private], &["ImageMissing"]).await;
    until_counted(&kagami, "Private").await;
    let mistyped = name(source.url(), "ap:1");
    until(&kagami, &[&mistyped], &["ImageMissing"]).await;
    until_counted(&kagami, "ImageMissing").await;
    assert_eq!(mirror.blobs(), 0, "nothing was copied");
}

#[tokio::test]
async fn what_is_too_large_or_not_to_be_copied_stays_where_it_is() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let large = image(vec![noise(1, 2 << 20)], &json!({}));
    let small = image(vec![noise(2, 1 << 10)], &json!({}));
    source.hold("team/large", "1", &large);
    source.hold("team/small", "1", &small);
    let bounded = json!({"copy": {"maxImageSize": "1Mi"}});
    let kagami = Kagami::start(&[filled(source.url(), mirror.url(), &bounded)]).await;
    let (large, small) = (name(source.url(), "large:1"), name(source.url(), "small:1"));
    until(&kagami, &[&large, &small], &["ImageMissing", "Mirrored"]).await;
    until_counted(&kagami, "ImageTooLarge").await;
    let blobs = source
        .asked()
        .iter()
        .any(|ask| ask.kind == Kind::Blob && ask.path().contains("/team/large/"));
    assert!(!blobs, "nothing of it was read");
    // With the policy off, and with a mirror that may not rewrite, nothing is copied.
    for (tag, weaker) in [
        ("2", json!({"copy": {"policy": "Off"}})),
        ("3", json!({"mode": "Audit"})),
    ] {
        source.hold("team/small", tag, &image(vec![noise(3, 10)], &json!({})));
        kagami.configure(&text(&[filled(source.url(), mirror.url(), &weaker)]));
        kagami
            .until_status("/mirrors/main/copies", &Value::Null, LONG)
            .await;
        let image = name(source.url(), &format!("small:{tag}"));
        until(&kagami, &[&image], &["ImageMissing"]).await;
    }
    kagami.configure(&text(&[filled(source.url(), mirror.url(), &json!({}))]));
    until(
        &kagami,
        &[&large, &name(source.url(), "small:2")],
        &["Mirrored", "Mirrored"],
    )
    .await;
    let asked = |tag: &str| {
        let path = format!("/team/small/manifests/{tag}");
        source.asked().iter().any(|ask| ask.path().ends_with(&path))
    };
    assert!(asked("2") && !asked("3"), "nobody asked for the third since");
}

/// What weakens a mirror takes its copies away at once, as the brake does; what they were for is not forgotten.
#[tokio::test]
async fn a_copy_under_way_is_broken_off_with_its_mirrors_mode_and_begun_anew() {
    let source = Fake::usual().await;
    // It takes the beginning of a layer, and then nothing for a minute and more.
    let mirror = Fake::start(|ask| Act::when(ask.is("PUT", Kind::Upload), Act::Stall(1000))).await;
    source.hold("team/app", "1", &image(vec![noise(1, 1 << 20)], &json!({})));
    let kagami = Kagami::start(&[filled(source.url(), mirror.url(), &json!({}))]).await;
    let wanted = name(source.url(), "app:1");
    until(&kagami, &[&wanted], &["ImageMissing"]).await;
    eventually("an upload hangs", LONG, async || {
        let uploads = mirror.count("PUT", Kind::Upload);
        (uploads > 0).then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
    let audit = json!({"mode": "Audit"});
    kagami.configure(&text(&[filled(source.url(), mirror.url(), &audit)]));
    kagami
        .until_status("/mirrors/main/copies", &Value::Null, LONG)
        .await;
    mirror.set(|_| Act::Usual);
    kagami.configure(&text(&[filled(source.url(), mirror.url(), &json!({}))]));
    // Nobody asks again, and the hanging one would have been waited for longer.
    eventually("it is copied", Duration::from_secs(30), async || {
        let copied = kagami.metric(COPIED).await;
        (copied > 0.5).then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
    until(&kagami, &[&wanted], &["Mirrored"]).await;
}

/// What is in memory has a bound, and no mirror waits for another.
#[tokio::test]
async fn copies_into_all_mirrors_together_have_a_bound_and_each_mirror_has_one() {
    const MIRRORS: usize = 4;
    let source = Fake::usual().await;
    let mut mirrors = Vec::new();
    let mut documents = Vec::new();
    for mirror in 0..MIRRORS {
        let fake = Fake::start(|ask| Act::when(ask.is("PUT", Kind::Upload), Act::Stall(1000))).await;
        let prefix = format!("{}/team{mirror}", host(source.url()));
        let spec = json!({"copy": {"policy": "OnDemand"}});
        let (name, at) = (format!("m{mirror}"), format!("mirror{mirror}.test"));
        documents.push(image_mirror(&name, &at, &[&prefix], fake.url(), &spec));
        mirrors.push(fake);
        for tag in 0..5_u8 {
            let seed = u64::from(tag) + 10 * mirror as u64 + 1;
            let image = image(vec![noise(seed, 1 << 20)], &json!({}));
            source.hold(&format!("team{mirror}/app"), &tag.to_string(), &image);
        }
    }
    let kagami = Kagami::start(&documents).await;
    let all = async |metric: &str| {
        let mut all = Vec::new();
        for mirror in 0..MIRRORS {
            all.push(kagami.metric(&format!("{metric}{{mirror=\"m{mirror}\"}}")).await);
        }
        all
    };
    let asks = async |tag: u8| {
        for mirror in 0..MIRRORS {
            let wanted = format!("{}/team{mirror}/app:{tag}", host(source.url()));
            until(&kagami, &[&wanted], &["ImageMissing"]).await;
        }
    };
    for tag in 0..4 {
        asks(tag).await;
    }
    eventually("all slots are taken", LONG, async || {
        let under_way = all("kagami_copies_under_way").await;
        let sum: f64 = under_way.iter().sum();
        (sum > 11.5).then_some(()).ok_or_else(|| format!("{under_way:?}"))
    })
    .await;
    // What is wanted then waits, with what found no place before.
    asks(4).await;
    eventually("what has no slot waits", LONG, async || {
        let waiting = all("kagami_copies_waiting").await;
        let sum: f64 = waiting.iter().sum();
        (sum > 7.5).then_some(()).ok_or_else(|| format!("{waiting:?}"))
    })
    .await;
    let under_way = all("kagami_copies_under_way").await;
    assert!(
        (under_way.iter().sum::<f64>() - 12.0).abs() < 0.1,
        "{under_way:?}"
    );
    assert!(under_way.iter().all(|copies| *copies > 0.5), "{under_way:?}");
}

/// However many large images others have under way.
#[tokio::test]
async fn a_namespace_that_has_nothing_under_way_waits_for_no_other_one() {
    let source = Fake::usual().await;
    let hangs = |ask: &fake::Ask| {
        let is_layer = ask
            .headers
            .get("content-length")
            .is_some_and(|length| length.len() > 6);
        ask.is("PUT", Kind::Upload) && is_layer && !ask.path().contains("/team/new/")
    };
    let mirror = Fake::start(move |ask| Act::when(hangs(ask), Act::Stall(1000))).await;
    for (seed, image_of) in (1..).zip(["a1", "a2", "a3", "b", "b2", "new"]) {
        let image = image(vec![noise(seed, 1 << 20)], &json!({}));
        source.hold(&format!("team/{image_of}"), "1", &image);
    }
    let kagami = Kagami::start(&[filled(source.url(), mirror.url(), &json!({}))]).await;
    let asks = async |namespace: &'static str, images: &[&str], expected: &str| {
        let names: Vec<String> = images
            .iter()
            .map(|image| name(source.url(), &format!("{image}:1")))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let caller = kagami.connect().await.in_no_hurry();
        let mut caller = caller.in_namespace(namespace);
        let expected = vec![expected; names.len()];
        kagami.until_by(&mut caller, &names, &expected, LONG).await;
    };
    let under_way = async |expected: f64| {
        eventually(&format!("{expected} are under way"), LONG, async || {
            let copies = kagami.metric("kagami_copies_under_way{mirror=\"main\"}").await;
            ((copies - expected).abs() < 0.1)
                .then_some(())
                .ok_or_else(|| kagami.log())
        })
        .await;
    };
    asks("a", &["a1", "a2", "a3"], "ImageMissing").await;
    under_way(3.0).await;
    asks("b", &["b"], "ImageMissing").await;
    under_way(4.0).await;
    asks("c", &["new"], "Mirrored").await;
    // Who has something under way waits.
    asks("b", &["b2"], "ImageMissing").await;
    eventually("it waits", LONG, async || {
        let waiting = kagami.metric("kagami_copies_waiting{mirror=\"main\"}").await;
        (waiting > 0.5).then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
    under_way(4.0).await;
}

/// What is taken away is out of use at once, for what is under way too.
#[tokio::test]
async fn a_source_that_loses_its_login_is_read_without_from_then_on() {
    let source = asks_for_a_login().await;
    let mirror = Fake::usual().await;
    for tag in [1, 2, 3_u32] {
        let image = image(vec![noise(tag.into(), 1 << 20)], &json!({}));
        source.hold("team/app", &tag.to_string(), &image);
    }
    let team = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    let with = |credentials: &Value| {
        let mut of_source = json!({"prefix": host(source.url())});
        json_patch::merge(&mut of_source, credentials);
        let spec = json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}},
            "sources": [of_source],
        });
        [
            filled(source.url(), mirror.url(), &spec),
            team.clone(),
            basic_auth("upstream", PASSWORD),
        ]
    };
    let login = json!({"credentials": {"secretRef": {"name": "upstream"}}});
    let kagami = Kagami::start(&with(&login)).await;
    let [one, two, three] = [1, 2, 3].map(|tag| name(source.url(), &format!("app:{tag}")));
    until(&kagami, &[&one], &["Mirrored"]).await;
    // The next one hangs.
    mirror.set(|ask| Act::when(ask.is("PUT", Kind::Upload), Act::Stall(1000)));
    let uploads = mirror.count("PUT", Kind::Upload);
    until(&kagami, &[&two], &["ImageMissing"]).await;
    eventually("an upload hangs", LONG, async || {
        let hangs = mirror.count("PUT", Kind::Upload) > uploads;
        hangs.then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
    kagami.configure(&text(&with(&json!({}))));
    // It would have hung for longer than this.
    let refused = "kagami_copies_total{mirror=\"main\",result=\"SourceUnauthorized\"}";
    eventually("it is refused", Duration::from_secs(30), async || {
        let copies = kagami.metric(refused).await;
        (copies > 0.5).then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
    mirror.set(|_| Act::Usual);
    until(&kagami, &[&three], &["ImageMissing"]).await;
    eventually("it is refused too", LONG, async || {
        let copies = kagami.metric(refused).await;
        (copies > 1.5).then_some(()).ok_or_else(|| kagami.log())
    })
    .await;
    let asked = source.asked();
    let mut of_third = asked.iter().filter(|ask| ask.last() == "3");
    assert!(of_third.all(|ask| !ask.headers.contains_key("authorization")));
    assert!((kagami.metric(COPIED).await - 1.0).abs() < 0.1);
}

/// What was wanted while it might be served is not copied any more once another mirror keeps it from that namespace.
#[tokio::test]
async fn a_mirror_is_filled_with_nothing_that_it_may_not_serve_by_then() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    for repository in ["acme/secret", "team/a", "team/b"] {
        source.hold(repository, "1", &image(vec![noise(1, 1 << 10)], &json!({})));
    }
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let host = host(source.url());
    let serving = |namespace: &str, prefix: &str| {
        json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "sources": [{"prefix": prefix, "access": "Private"}],
        })
    };
    let main = |largest: &str| {
        let mut spec = serving("team", host);
        spec["copy"] = json!({"maxImageSize": largest});
        filled(source.url(), mirror.url(), &spec)
    };
    let none = || Act::Early(fake::Answer::error(404, "MANIFEST_UNKNOWN", "unknown"));
    source.set(move |ask| Act::when(ask.path().contains("/acme/"), none()));
    let kagami = Kagami::start(&[main("1Gi"), namespace("team"), namespace("other")]).await;
    let secret = format!("{host}/acme/secret:1");
    until(&kagami, &[&secret], &["ImageMissing"]).await;
    until_counted(&kagami, "ImageMissing").await;

    // Other settings let all that failed be tried anew.
    source.set(|_| Act::Usual);
    let before = source.asked().len();
    let below = format!("{host}/acme");
    let acme = image_mirror(
        "acme",
        "mirror.test",
        &[],
        mirror.url(),
        &serving("other", &below),
    );
    kagami.configure(&text(&[main("2Gi"), acme, namespace("team"), namespace("other")]));
    // It would have been the turn of the first one long ago.
    for image in ["a:1", "b:1"] {
        let other = name(source.url(), image);
        until(&kagami, &[&secret, &other], &["NamespaceNotServed", "Mirrored"]).await;
    }
    let asked = source.asked().split_off(before);
    assert!(
        !asked.iter().any(|ask| ask.path().contains("/acme/")),
        "{asked:?}"
    );
}

/// With `kill -9`, at another moment each time: nothing half is to be seen, and who comes next brings it to its end.
#[tokio::test]
async fn a_companion_that_was_killed_leaves_nothing_half_and_the_next_one_goes_on() {
    let (Some(source), Some(mirror)) = (
        Registry::start(&Setup::default()),
        Registry::start(&Setup::default()),
    ) else {
        return;
    };
    let repository = place(&source, "team/app");
    let mut broken = 0;
    for round in 0..6_u32 {
        let layers = |child: u64| {
            let seed = u64::from(round) * 100 + child * 10;
            (0..3).map(|layer| noise(seed + layer + 1, 3 << 20)).collect()
        };
        let children: Vec<(Image, Value)> = [(1, "amd64"), (2, "arm64")]
            .map(|(child, architecture)| {
                let platform = json!({"architecture": architecture, "os": "linux"});
                (
                    image(
                        layers(child),
                        &json!({"annotations": {"round": round.to_string()}}),
                    ),
                    platform,
                )
            })
            .into();
        let all = crate::support::images::listing(children);
        let tag = round.to_string();
        source.target(None).push("team/app", &tag, &all).await;
        let wanted = name(source.url(), &format!("app:{tag}"));
        let documents = [filled(source.url(), mirror.url(), &json!({}))];
        let kagami = Kagami::start(&documents).await;
        until(&kagami, &[&wanted], &["ImageMissing"]).await;
        let bytes = "kagami_copies_under_way{mirror=\"main\"}";
        let began = Instant::now();
        eventually("a copy is under way, or done", LONG, async || {
            let under_way = kagami.metric(bytes).await + kagami.metric(COPIED).await;
            (under_way > 0.5).then_some(()).ok_or_else(|| kagami.log())
        })
        .await;
        // A moment that differs from round to round, whatever the machine does.
        sleep(Duration::from_millis(u64::from(round) * 70) + began.elapsed() / 3).await;
        broken += u32::from(kagami.metric(COPIED).await < 0.5);
        // As `kill -9` does.
        drop(kagami);
        let found = mirror.client(None).get(&repository, &tag, soon()).await;
        match found {
            Answer::Missing => {}
            Answer::Exists(_) => assert_whole(&mirror, &repository, &tag, &all).await,
            other => panic!("{other}"),
        }
        for child in &all.children {
            let digest = child.digest.to_string();
            let found = mirror.client(None).get(&repository, &digest, soon()).await;
            if let Answer::Exists(_) = found {
                assert_whole(&mirror, &repository, &digest, child).await;
            }
        }
        let kagami = Kagami::start(&documents).await;
        until(&kagami, &[&wanted], &["Mirrored"]).await;
        assert_whole(&mirror, &repository, &tag, &all).await;
    }
    assert!(broken > 0, "no copy was broken off: nothing was tested");
}
