//! Against peers that fail: the failure table of a mirror, as the client sees it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use kagami::domain::answer::{
    Ambiguity::{self, DigestMismatch, Html, InvalidName, Malformed, NotAManifest, Oversized, Redirect},
    Answer, Blob, Failure, Limit, MediaType, Particulars, Unreachable,
};
use kagami::registry::{Error, MANIFEST_BYTES};
use serde_json::json;
use tokio::time::Instant;

use super::{Client, REPOSITORY, client, client_with, good, read, seen, serve};
use crate::support::{
    certificates::Authority,
    faulty::{Action, Behaviour, Faulty, Reply, Request},
    images::{self, Image},
    real::credentials,
    soon,
};

fn image() -> Image {
    images::single(MediaType::OciManifest, "nginx")
}

fn ambiguous(why: Ambiguity) -> Failure {
    Failure::Ambiguous(why)
}

fn status(status: u16) -> Failure {
    ambiguous(Ambiguity::Status(status, Particulars::default()))
}

fn in_a_moment() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

/// Asks a peer for everything. Hangs are given up, so the deadline is near.
async fn check(what: &str, client: &Client, ping: Result<(), Failure>, head: Answer, get: Answer) {
    let answers = tokio::join!(
        client.ping(in_a_moment()),
        client.head(REPOSITORY, "1.25", in_a_moment()),
        client.get(REPOSITORY, "1.25", in_a_moment()),
    );
    assert_eq!(answers, (ping, head, get), "ping, HEAD and GET: {what}");
}

/// A peer whose every answer is the same kind of failure.
async fn check_all(what: &str, behaviour: Behaviour, failure: Failure) {
    let peer = Faulty::start(behaviour).await;
    let client = client(&peer.url());
    let answer = Answer::from(failure.clone());
    check(what, &client, Err(failure), answer.clone(), answer).await;
}

#[tokio::test]
async fn peers_without_http_are_unreachable() {
    use Unreachable::{Refused, Reset, Timeout};
    let unreachable = |why| Failure::Unreachable(why, Particulars::default());
    tokio::join!(
        check_all("refuses", Behaviour::Refuse, unreachable(Refused)),
        check_all("black hole", Behaviour::BlackHole, unreachable(Timeout)),
        check_all("never answers", Behaviour::Silent, unreachable(Timeout)),
        check_all("hangs", Behaviour::answer(|_| Action::Hang), unreachable(Timeout)),
        check_all("closes", Behaviour::answer(|_| Action::Close), unreachable(Reset)),
    );
    let garbage = Behaviour::answer(|_| Action::Raw(b"220 smtp.example.com\r\n\r\n".to_vec()));
    check_all("speaks no HTTP", garbage, unreachable(Reset)).await;

    let gone = client("https://registry.invalid");
    assert_eq!(gone.ping(soon()).await, Err(unreachable(Unreachable::Dns)));
}

#[tokio::test]
async fn refusals_and_errors_are_told_apart() {
    let all = |status, code: &str| Behaviour::always(Reply::error(status, code));
    let server_error = |status| Failure::ServerError(status, Particulars::default());
    check_all("500", all(500, "UNKNOWN"), server_error(500)).await;
    check_all("502 HTML", Behaviour::always(Reply::html(502)), server_error(502)).await;
    check_all(
        "200 HTML",
        Behaviour::always(Reply::html(200)),
        ambiguous(Html(Particulars::default())),
    )
    .await;
    check_all(
        "404 HTML",
        Behaviour::always(Reply::html(404)),
        ambiguous(Html(Particulars::default())),
    )
    .await;
    check_all("418", all(418, "TEAPOT"), status(418)).await;

    // No registry answers `/v2/` so, hence nobody knows who refuses.
    for code in [401, 403] {
        let peer = Faulty::start(all(code, "DENIED")).await;
        let ping = Err(status(code));
        let refused = Answer::Unauthorized;
        check(
            "refuses everybody",
            &client(&peer.url()),
            ping,
            refused.clone(),
            refused,
        )
        .await;
    }
    let challenge = Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\"");
    check_all(
        "asks for a password",
        Behaviour::always(challenge),
        Failure::Unauthorized,
    )
    .await;
    let version = Reply::new(401).header("Docker-Distribution-Api-Version", "registry/2.0");
    check_all("is a registry", Behaviour::always(version), Failure::Unauthorized).await;
}

#[tokio::test]
async fn only_a_registry_says_that_something_is_missing() {
    let not_found = |reply: Reply, missing: bool| async move {
        let what = format!("404, missing: {missing}");
        let peer = Faulty::start(Behaviour::always(reply)).await;
        let no_registry = status(404);
        let answer = if missing {
            Answer::Missing
        } else {
            no_registry.clone().into()
        };
        check(
            &what,
            &client(&peer.url()),
            Err(no_registry),
            answer.clone(),
            answer,
        )
        .await;
    };
    not_found(Reply::error(404, "MANIFEST_UNKNOWN"), true).await;
    not_found(Reply::new(404), true).await;
    // What proxies say of a host that they do not know.
    not_found(text_404(), false).await;

    // A login, which is asked for no more than twice for each.
    let (_, peer) = lying_behind(Reply::html(200), |_, _| text_404()).await;
    let client_of_login = client(&peer.url());
    for answer in [
        client_of_login.head(REPOSITORY, "1.25", soon()).await,
        client_of_login.get(REPOSITORY, "1.25", soon()).await,
    ] {
        assert_eq!(answer, status(404).into());
    }
    let asked = peer
        .requests()
        .into_iter()
        .map(|request| request.method + &request.target);
    let manifest = format!("/v2/{REPOSITORY}/manifests/1.25");
    let get = format!("GET{manifest}");
    assert_eq!(
        asked.collect::<Vec<_>>(),
        [format!("HEAD{manifest}"), get.clone(), "GET/v2/".to_owned(), get]
    );

    let other_json = Reply::json(404, &json!({"message": "no route"}));
    let peer = Faulty::start(Behaviour::always(other_json)).await;
    let answer = client(&peer.url()).get(REPOSITORY, "1.25", soon()).await;
    assert_eq!(answer, status(404).into());
}

fn text_404() -> Reply {
    let text = Reply::new(404).content_type("text/plain; charset=utf-8");
    text.body("404 page not found\n")
}

/// Registries that are known as such may say it as they like: their 404 is asked for by GET.
#[tokio::test]
async fn a_registry_says_in_any_type_that_something_is_missing() {
    let challenge = |scheme: &str| Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", scheme);
    let version = |reply: Reply| reply.header("Docker-Distribution-Api-Version", "registry/2.0");
    let typed = |content_type: &str, body: &str| Reply::new(404).content_type(content_type).body(body);
    let registry = || Reply::json(200, &json!({}));
    let errors = r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#;
    // `/v2/`, manifests, whether it is asked for `/v2/`, and whether an image is missing.
    for (ping, not_found, asks, missing) in [
        (registry(), text_404(), true, true),
        (version(Reply::new(200)), text_404(), true, true),
        (challenge(r#"Basic realm="x""#), text_404(), true, true),
        (registry(), typed("application/octet-stream", "no"), true, true),
        (
            registry(),
            Reply::json(404, &json!({"message": "no image"})),
            true,
            true,
        ),
        (registry(), typed("application/xml", "<Error/>"), true, true),
        (Reply::html(200), version(text_404()), false, true),
        (Reply::html(200), typed("text/plain", errors), false, true),
        (Reply::new(200).body("fine"), text_404(), true, false),
        (Reply::new(401), text_404(), true, false),
        (Reply::html(200), text_404(), true, false),
        (registry(), Reply::html(404), false, false),
        (
            registry(),
            typed("text/plain", "<html>nginx</html>"),
            false,
            false,
        ),
    ] {
        let (_, peer) = lying_behind(ping, move |_, _| not_found.clone()).await;
        let client = client(&peer.url());
        for number in 0..2 {
            let answer = client.get(REPOSITORY, "1.25", soon()).await;
            assert_eq!(answer == Answer::Missing, missing, "{number}: {answer}");
        }
        let answer = client.head(REPOSITORY, "1.25", soon()).await;
        assert_eq!(answer == Answer::Missing, missing, "HEAD: {answer}");
        let pings = peer
            .requests()
            .into_iter()
            .filter(|request| request.target == "/v2/");
        assert_eq!(pings.count(), usize::from(asks));
    }
}

/// Many images are looked for at once, and one question about the registry is enough for all.
#[tokio::test]
async fn whether_it_is_a_registry_is_asked_once_for_a_minute() {
    let (_, peer) = lying_behind(Reply::json(200, &json!({})), |_, _| text_404()).await;
    let client = client(&peer.url());
    let pings = || {
        let requests = peer.requests().into_iter();
        requests.filter(|request| request.target == "/v2/").count()
    };
    for round in 1..=2 {
        let mut looks = tokio::task::JoinSet::new();
        for number in 0..20 {
            let client = client.clone();
            looks.spawn(async move { client.get(REPOSITORY, &number.to_string(), soon()).await });
        }
        for answer in looks.join_all().await {
            assert_eq!(answer, Answer::Missing);
        }
        assert_eq!(pings(), round);
        skip(Duration::from_mins(1)).await;
    }
}

/// Names that a registry cannot have are not there, although it says 400 and not 404.
#[tokio::test]
async fn names_that_are_refused_are_missing() {
    for (code, expected) in [
        ("NAME_INVALID", Answer::Missing),
        ("TAG_INVALID", Answer::Missing),
        ("DENIED", status(400).into()),
    ] {
        let (_, peer) = lying(move |_, _| Reply::error(400, code)).await;
        let client = client(&peer.url());
        for answer in [
            client.head("docker.io/a__b/c--d", "1", soon()).await,
            client.get("docker.io/a__b/c--d", "1", soon()).await,
        ] {
            assert_eq!(answer, expected, "{code}");
            if answer != Answer::Missing {
                let words = format!("unexpected status 400 {code}, of type application/json");
                assert_eq!(answer.to_string(), words);
            }
        }
        assert_eq!(peer.requests().len(), 3);
    }
}

/// Answers `/v2/` well, and requests for manifests as a script says.
async fn lying(manifests: impl Fn(&Image, &Request) -> Reply + Send + Sync + 'static) -> (Image, Faulty) {
    lying_behind(Reply::json(200, &json!({})), manifests).await
}

/// Answers `/v2/` like this, and requests for manifests as a script says.
async fn lying_behind(
    ping: Reply,
    manifests: impl Fn(&Image, &Request) -> Reply + Send + Sync + 'static,
) -> (Image, Faulty) {
    let image = image();
    let of_script = image.clone();
    let script = move |request: &Request| match request.target.as_str() {
        "/v2/" => ping.clone().into(),
        _ => manifests(&of_script, request).into(),
    };
    (image, Faulty::start(Behaviour::answer(script)).await)
}

fn manifest(image: &Image) -> Reply {
    Reply::new(200).content_type(image.media_type.as_str())
}

#[tokio::test]
async fn what_is_not_proven_does_not_exist() {
    let other = images::digest(b"other");
    let wrong_digest = other.to_string();
    let (image, peer) = lying(move |image, _| {
        let reply = manifest(image).header("Docker-Content-Digest", &wrong_digest);
        reply.body(image.manifest.clone())
    })
    .await;
    let client_of_liar = client(&peer.url());
    let by_digest = &image.digest.to_string();
    let mismatch = Answer::from(ambiguous(DigestMismatch));
    assert_eq!(
        client_of_liar.get(REPOSITORY, "1.25", soon()).await,
        mismatch,
        "told is not that of the body"
    );
    assert_eq!(
        client_of_liar.head(REPOSITORY, by_digest, soon()).await,
        mismatch,
        "asked is not told"
    );
    assert_eq!(
        client_of_liar.get(REPOSITORY, by_digest, soon()).await,
        mismatch,
        "asked is not told"
    );

    let (_, peer) = lying(|image, _| manifest(image).body(image.manifest.clone())).await;
    let answer = client(&peer.url())
        .get(REPOSITORY, &other.to_string(), soon())
        .await;
    assert_eq!(answer, mismatch, "asked is not that of the body");

    let (_, peer) = lying(|image, _| {
        let reply = Reply::new(200).content_type("application/vnd.docker.distribution.manifest.v1+prettyjws");
        reply.body(image.manifest.clone())
    })
    .await;
    let answer = Answer::from(ambiguous(NotAManifest(Particulars::default())));
    check("schema 1", &client(&peer.url()), Ok(()), answer.clone(), answer).await;

    let (_, peer) = lying(|image, _| Reply::new(200).body(image.manifest.clone())).await;
    let answer = Answer::from(ambiguous(NotAManifest(Particulars::default())));
    check(
        "no media type",
        &client(&peer.url()),
        Ok(()),
        answer.clone(),
        answer,
    )
    .await;

    let (_, peer) = lying(|image, _| {
        let reply = manifest(image).header("Docker-Content-Digest", "sha256:0");
        reply.body(image.manifest.clone())
    })
    .await;
    let answer = Answer::from(ambiguous(Malformed));
    check(
        "no digest's form",
        &client(&peer.url()),
        Ok(()),
        answer.clone(),
        answer,
    )
    .await;

    let (image, peer) = lying(|image, _| {
        let reply = Reply::new(200).content_type(MediaType::DockerManifest.as_str());
        let reply = reply.header("Docker-Content-Digest", &image.digest.to_string());
        reply.body(image.manifest.clone())
    })
    .await;
    let answer = client(&peer.url())
        .get(REPOSITORY, &image.digest.to_string(), soon())
        .await;
    assert_eq!(answer, ambiguous(Malformed).into(), "two media types");
}

#[tokio::test]
async fn headers_that_do_not_suffice_lead_to_the_body() {
    let (image, peer) = lying(|image, _| manifest(image).body(image.manifest.clone())).await;
    let whole = read(&image, &[]);
    assert_eq!(
        client(&peer.url()).head(REPOSITORY, "1.25", soon()).await,
        whole,
        "no digest"
    );

    for status in [405, 501] {
        let (_, peer) = lying(move |image, request| {
            if request.method == "HEAD" {
                return Reply::error(status, "UNSUPPORTED");
            }
            manifest(image).body(image.manifest.clone())
        })
        .await;
        assert_eq!(
            client(&peer.url()).head(REPOSITORY, "1.25", soon()).await,
            whole,
            "HEAD: {status}"
        );
    }
}

#[tokio::test]
async fn bodies_end_in_time_and_size() {
    let timeout = Failure::Unreachable(Unreachable::Timeout, Particulars::default());
    let digest =
        |image: &Image, reply: Reply| reply.header("Docker-Content-Digest", &image.digest.to_string());
    let (image, peer) = lying(move |image, _| digest(image, manifest(image)).hanging_body("{")).await;
    let client_of = |peer: &Faulty| client(&peer.url());
    let Answer::Exists(head) = client_of(&peer).head(REPOSITORY, "1.25", soon()).await else {
        panic!("headers prove it");
    };
    assert_eq!(head.digest, image.digest);
    let get = client_of(&peer).get(REPOSITORY, "1.25", in_a_moment()).await;
    assert_eq!(get, timeout.into());

    let (_, peer) = lying(|image, _| manifest(image).endless_body()).await;
    let answer = Answer::from(ambiguous(Oversized));
    check("endless body", &client_of(&peer), Ok(()), answer.clone(), answer).await;

    let (_, peer) = lying(|image, _| manifest(image).body(vec![b' '; MANIFEST_BYTES + 1])).await;
    let answer = client_of(&peer).get(REPOSITORY, "1.25", soon()).await;
    assert_eq!(answer, ambiguous(Oversized).into());

    // The longest that containerd takes is taken.
    let (_, peer) = lying(|image, _| {
        let mut body = image.manifest.clone();
        body.resize(MANIFEST_BYTES, b' ');
        manifest(image).body(body)
    })
    .await;
    let answer = client_of(&peer).get(REPOSITORY, "1.25", soon()).await;
    assert!(matches!(answer, Answer::Exists(_)), "{answer}");
}

#[tokio::test]
async fn redirects_are_followed_a_few_times() {
    let (_, peer) = lying(|_, _| Reply::new(307)).await;
    let answer = Answer::from(ambiguous(Redirect(Particulars::default())));
    check("no target", &client(&peer.url()), Ok(()), answer.clone(), answer).await;

    let (_, peer) = lying(|_, request| Reply::redirect(&request.target)).await;
    let answer = Answer::from(ambiguous(Redirect(Particulars::default())));
    check("loop", &client(&peer.url()), Ok(()), answer.clone(), answer).await;
    // One for `/v2/`, six for each of the others.
    assert_eq!(peer.requests().len(), 13);

    let (image, peer) = lying(|image, request| match request.target.split_once("?step=") {
        None => Reply::redirect(&format!("{}?step=1", request.target)),
        Some((target, "4")) => Reply::redirect(&format!("{target}?step=5")),
        Some((_, "5")) => serve(image, request),
        Some((target, step)) => {
            Reply::redirect(&format!("{target}?step={}", step.parse::<u8>().unwrap() + 1))
        }
    })
    .await;
    assert_eq!(
        client(&peer.url()).head(REPOSITORY, "1.25", soon()).await,
        seen(&image)
    );

    let elsewhere = Faulty::start(Behaviour::always(Reply::redirect("/login"))).await;
    let ping = client(&elsewhere.url()).ping(soon()).await;
    assert_eq!(ping, Err(status(307)), "`/v2/` is here or nowhere");
}

#[tokio::test]
async fn only_a_valid_certificate_is_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let image = image();
    let start = async |leaf| {
        let image = image.clone();
        let script = move |request: &Request| Action::Reply(serve(&image, request));
        Faulty::start_tls(Behaviour::answer(script), &leaf).await
    };
    let look = async |peer: &Faulty, trusted: &Authority| {
        let client = client_with(&peer.url(), Some(trusted.pem()), None);
        client.head(REPOSITORY, "1.25", soon()).await
    };
    let good = start(authority.issue_for(&["127.0.0.1"])).await;
    assert_eq!(look(&good, &authority).await, seen(&image));

    let tls = Answer::Unreachable(Unreachable::Tls, Particulars::default());
    assert_eq!(look(&good, &stranger).await, tls, "unknown issuer");
    assert_eq!(
        client(&good.url()).head(REPOSITORY, "1.25", soon()).await,
        tls,
        "not the system's"
    );
    let expired = start(authority.expired(&["127.0.0.1"])).await;
    assert_eq!(look(&expired, &authority).await, tls, "expired");
    let other = start(authority.issue_for(&["registry.example.com"])).await;
    assert_eq!(look(&other, &authority).await, tls, "another name");

    let (_, plain) = lying(serve).await;
    let url = plain.url().replace("http://", "https://");
    assert_eq!(
        client(&url).head(REPOSITORY, "1.25", soon()).await,
        tls,
        "no TLS at all"
    );
}

#[tokio::test]
async fn https_never_becomes_plain_http() {
    let authority = Authority::new();
    let storage = good(&image()).await;
    let location = format!("{}/v2/", storage.url());
    let behaviour = Behaviour::answer(move |_| Reply::redirect(&location).into());
    let peer = Faulty::start_tls(behaviour, &authority.issue_for(&["127.0.0.1"])).await;
    let client = client_with(&peer.url(), Some(authority.pem()), None);
    let answer = client.head(REPOSITORY, "1.25", soon()).await;
    assert_eq!(answer, ambiguous(Redirect(Particulars::default())).into());
    assert_eq!(storage.requests().len(), 0);
}

fn limited(of: Limit, seconds: u64) -> Failure {
    Failure::RateLimited {
        of,
        retry_after: Some(Duration::from_secs(seconds)),
    }
}

fn wait() -> Reply {
    Reply::new(429).header("Retry-After", "7")
}

#[tokio::test]
async fn nobody_is_asked_while_a_wait_is_not_over() {
    let image = image();
    let mut peer = Faulty::start(Behaviour::always(wait())).await;
    let client = client(&peer.url());
    let answer = client.head(REPOSITORY, "1.25", soon()).await;
    assert_eq!(answer, limited(Limit::Repository, 7).into());

    let of_script = image.clone();
    peer.set(Behaviour::answer(move |request| {
        serve(&of_script, request).into()
    }))
    .await;
    let answer = client.clone().get(REPOSITORY, "1.25", soon()).await;
    assert!(matches!(
        answer,
        Answer::RateLimited {
            retry_after: Some(_),
            ..
        }
    ));
    assert_eq!(peer.requests().len(), 1);
    // A limit on one repository says nothing of others and of `/v2/`; one on `/v2/` speaks for everything.
    assert_eq!(client.ping(soon()).await, Ok(()));
    assert_eq!(client.head("other", "1.25", soon()).await, seen(&image));
    assert_eq!(peer.requests().len(), 3);

    skip(Duration::from_secs(7)).await;
    assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, seen(&image));

    peer.set(Behaviour::always(wait())).await;
    assert_eq!(client.ping(soon()).await, Err(limited(Limit::Registry, 7)));
    for repository in [REPOSITORY, "other"] {
        let answer = client.head(repository, "1.25", soon()).await;
        assert!(matches!(
            answer,
            Answer::RateLimited {
                of: Limit::Registry,
                ..
            }
        ));
    }
    assert!(matches!(
        client.ping(soon()).await,
        Err(Failure::RateLimited {
            retry_after: Some(_),
            ..
        })
    ));
    assert_eq!(peer.requests().len(), 5);
}

/// Three repositories that are limited at once stand for all, but not for `/v2/`.
#[tokio::test]
async fn several_limited_repositories_stand_for_all() {
    let peer = Faulty::start(Behaviour::answer(|request| {
        Action::Reply(match request.target.as_str() {
            "/v2/" => Reply::json(200, &json!({})),
            _ => wait(),
        })
    }))
    .await;
    let client = client(&peer.url());
    let limits = [Limit::Repository, Limit::Repository, Limit::Registry];
    for (repository, of) in ["a", "b", "c"].into_iter().zip(limits) {
        let answer = client.head(repository, "1", soon()).await;
        assert_eq!(answer, limited(of, 7).into());
    }
    let answer = client.head("d", "1", soon()).await;
    assert!(matches!(
        answer,
        Answer::RateLimited {
            of: Limit::Registry,
            ..
        }
    ));
    assert_eq!(client.ping(soon()).await, Ok(()));
    assert_eq!(peer.requests().len(), 4);
}

/// A limit without a word of how long is kept for moments, and for longer each time.
#[tokio::test]
async fn a_limit_without_a_wait_gets_one_that_grows() {
    for reply in [
        Reply::new(429),
        Reply::new(429).header("Retry-After", "soon"),
        Reply::new(429).header("Retry-After", "1.16ms"),
        Reply::new(429).header("Retry-After", "0"),
    ] {
        let image = image();
        let mut peer = Faulty::start(Behaviour::always(reply)).await;
        let client = client(&peer.url());
        for (number, seconds) in [1, 2, 4].into_iter().enumerate() {
            let answer = client.head(REPOSITORY, "1.25", soon()).await;
            assert_eq!(answer, limited(Limit::Repository, seconds).into());
            let answer = client.head(REPOSITORY, "1.25", soon()).await;
            assert!(matches!(answer, Answer::RateLimited { .. }));
            assert_eq!(peer.requests().len(), number + 1);
            skip(Duration::from_secs(seconds)).await;
        }
        let of_script = image.clone();
        peer.set(Behaviour::answer(move |request| {
            serve(&of_script, request).into()
        }))
        .await;
        assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, seen(&image));
        // Nobody asked for pings to wait.
        peer.set(Behaviour::always(Reply::new(429))).await;
        let of = Limit::Registry;
        for _ in 0..2 {
            let ping = client.ping(soon()).await;
            assert_eq!(
                ping,
                Err(Failure::RateLimited {
                    of,
                    retry_after: None
                })
            );
        }
        let answer = client.head(REPOSITORY, "1.25", soon()).await;
        assert_eq!(answer, limited(Limit::Repository, 1).into(), "it begins anew");
    }
}

/// Moves the clock, which goes on from there.
pub async fn skip(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_peer_that_comes_back_is_found_again() {
    let image = image();
    let mut peer = good(&image).await;
    let client = client(&peer.url());
    assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, seen(&image));
    for (fault, expected) in [
        (Behaviour::Refuse, Unreachable::Refused),
        (Behaviour::BlackHole, Unreachable::Timeout),
        (Behaviour::Silent, Unreachable::Timeout),
    ] {
        peer.set(fault).await;
        let answer = client.head(REPOSITORY, "1.25", in_a_moment()).await;
        assert_eq!(answer, Answer::Unreachable(expected, Particulars::default()));
        let of_script = image.clone();
        peer.set(Behaviour::answer(move |request| {
            serve(&of_script, request).into()
        }))
        .await;
        assert_eq!(
            client.head(REPOSITORY, "1.25", soon()).await,
            seen(&image),
            "after {expected}"
        );
    }
}

#[tokio::test]
async fn connections_are_kept_and_shared() {
    let image = image();
    let peer = good(&image).await;
    let client = client(&peer.url());
    for _ in 0..50 {
        assert_eq!(
            client.clone().head(REPOSITORY, "1.25", soon()).await,
            seen(&image)
        );
        assert_eq!(client.get(REPOSITORY, "1.25", soon()).await, read(&image, &[]));
        client.ping(soon()).await.unwrap();
    }
    assert_eq!(peer.connections(), 1);
}

#[tokio::test]
async fn a_kept_connection_that_ends_is_no_failure() {
    let (image, asked) = (image(), AtomicUsize::new(0));
    let of_script = image.clone();
    let script = move |request: &Request| match asked.fetch_add(1, Ordering::Relaxed) {
        1 => Action::Close,
        _ => serve(&of_script, request).into(),
    };
    let peer = Faulty::start(Behaviour::answer(script)).await;
    let client = client(&peer.url());
    for _ in 0..2 {
        assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, seen(&image));
    }
    assert_eq!((peer.requests().len(), peer.connections()), (3, 2));
}

#[tokio::test]
async fn given_up_calls_leave_no_descriptor() {
    let peer = Faulty::start(Behaviour::BlackHole).await;
    let client = client(&peer.url());
    let open = |peer: &Faulty| {
        // Connections to the peer that wait for its first packet (state 02).
        let wanted = format!(" 0100007F:{:04X} 02 ", peer.address().port());
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().filter(|line| line.contains(&wanted)).count()
    };
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let client = client.clone();
        calls.spawn(async move { client.head(REPOSITORY, "1.25", in_a_moment()).await });
    }
    while open(&peer) < 60 {
        tokio::task::yield_now().await;
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(
            answer.unwrap(),
            Answer::Unreachable(Unreachable::Timeout, Particulars::default())
        );
    }
    assert_eq!(open(&peer), 0);
}

#[tokio::test]
async fn blobs_are_read_through_redirects() {
    let blob = b"a small layer".to_vec();
    let digest = images::digest(&blob);
    let stored = Reply::new(200)
        .content_type("application/octet-stream")
        .body(blob.clone());
    let mut storage = Faulty::start(Behaviour::always(stored)).await;
    let location = format!("{}/bucket/key?signature=abc", storage.url());
    let registry = Faulty::start(Behaviour::answer(move |_| Reply::redirect(&location).into())).await;
    let client = client(&registry.url());
    let known = Blob {
        digest: digest.clone(),
        size: blob.len() as u64,
    };
    let read = async |at_most| client.beginning(REPOSITORY, &known, at_most, in_a_moment()).await;
    assert_eq!(read(1 << 20).await, Ok(13));
    let mut stream = client.blob(REPOSITORY, &digest, in_a_moment()).await.unwrap();
    let mut came = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        came.extend_from_slice(&piece);
    }
    assert_eq!(came, blob);
    assert_eq!(stream.next().await, Ok(None));

    let timeout = Failure::Unreachable(Unreachable::Timeout, Particulars::default());
    for (what, reply, expected) in [
        (
            "other bytes",
            Reply::new(200).body("another layer"),
            Err(ambiguous(DigestMismatch)),
        ),
        ("hangs", Reply::new(200).hanging_body("a small"), Err(timeout)),
        (
            "storage's own 404",
            Reply::new(404).content_type("application/xml").body("<Error/>"),
            Err(status(404)),
        ),
        ("storage's own 403", Reply::new(403), Err(status(403))),
        (
            "HTML",
            Reply::html(200),
            Err(ambiguous(Html(Particulars::default()))),
        ),
    ] {
        storage.set(Behaviour::always(reply)).await;
        assert_eq!(read(1 << 20).await, expected, "{what}");
    }
    storage
        .set(Behaviour::always(Reply::new(200).endless_body()))
        .await;
    let count = read(10_000).await.unwrap();
    assert!((10_000..1_000_000).contains(&count), "{count}");
}

/// Only as much of a large blob is asked for as is looked at, also where storage has it; who sends all of it all the same
/// is cut off.
#[tokio::test]
async fn the_beginning_of_a_blob_costs_no_more() {
    let bytes: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
    let blob = Blob {
        digest: images::digest(&bytes),
        size: bytes.len() as u64,
    };
    let sent = bytes.clone();
    let storage = Faulty::start(Behaviour::answer(move |request| {
        let reply = match request.header("range") {
            Some("bytes=0-999") => Reply::new(206).body(sent[..1000].to_vec()),
            Some(other) => panic!("{other}"),
            None => Reply::new(200).body(sent.clone()),
        };
        Action::Reply(reply.content_type("application/octet-stream"))
    }))
    .await;
    let registry = redirecting(&storage).await;
    let ranges = client(&registry.url());
    let read =
        async |client: &Client, at_most| client.beginning(REPOSITORY, &blob, at_most, in_a_moment()).await;
    assert_eq!(read(&ranges, 1000).await, Ok(1000));
    assert_eq!(
        read(&ranges, blob.size).await,
        Ok(blob.size),
        "all of it, and checked"
    );
    let whole = Reply::new(200).body(bytes.clone());
    let simple = Faulty::start(Behaviour::always(whole)).await;
    let count = read(&client(&simple.url()), 1000).await.unwrap();
    assert!((1000..1 << 20).contains(&count), "{count}");
    // A part has no digest of its own, and may be of anything.
    let page = Faulty::start(Behaviour::always(Reply::html(206))).await;
    let answer = read(&client(&page.url()), 1000).await;
    assert_eq!(answer, Err(ambiguous(Html(Particulars::default()))));
}

/// A registry that redirects everything but `/v2/` to a peer.
async fn redirecting(target: &Faulty) -> Faulty {
    let location = format!("{}/object?signature=abc", target.url());
    Faulty::start(Behaviour::answer(move |request| {
        Action::Reply(match request.target.as_str() {
            "/v2/" => Reply::json(200, &json!({})),
            _ => Reply::redirect(&location),
        })
    }))
    .await
}

/// Addresses are signed for one method: what storage says to another is not the registry's word.
#[tokio::test]
async fn storage_that_takes_get_alone_is_asked_by_get() {
    let image = image();
    for refusal in [403, 401, 400, 405, 501] {
        let stored = image.clone();
        let storage = Faulty::start(Behaviour::answer(move |request| {
            Action::Reply(match request.method.as_str() {
                "HEAD" => Reply::new(refusal).content_type("application/xml"),
                // Storage knows the type, and nothing of digests.
                _ => manifest(&stored).body(stored.manifest.clone()),
            })
        }))
        .await;
        let registry = redirecting(&storage).await;
        let client = client(&registry.url());
        let methods = || -> Vec<String> {
            let requests = storage.requests();
            requests.into_iter().map(|request| request.method).collect()
        };
        let whole = read(&image, &[]);
        assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, whole, "{refusal}");
        assert_eq!(methods(), ["HEAD", "GET"]);
        // It is known by now, for every image; HEADs are tried again now and then.
        for reference in ["1.25", &image.digest.to_string()] {
            assert_eq!(client.head(REPOSITORY, reference, soon()).await, whole);
        }
        assert_eq!(methods()[2..], ["GET", "GET"]);
        skip(Duration::from_mins(10)).await;
        for _ in 0..2 {
            assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, whole);
        }
        assert_eq!(methods()[4..], ["HEAD", "GET", "GET"]);
    }
}

/// What the storage says is told with its name, and is neither about credentials nor about absence.
#[tokio::test]
async fn storage_speaks_for_itself_alone() {
    let image = image();
    let xml = |status| {
        Reply::new(status)
            .content_type("application/xml")
            .body("<Error/>")
    };
    let octets = Reply::new(200)
        .content_type("binary/octet-stream")
        .body(image.manifest);
    for (reply, expected, words) in [
        (xml(403), status(403), "unexpected status 403"),
        (xml(401), status(401), "unexpected status 401"),
        (xml(404), status(404), "unexpected status 404"),
        (
            xml(503),
            Failure::ServerError(503, Particulars::default()),
            "server error 503",
        ),
        (
            octets,
            ambiguous(NotAManifest(Particulars::default())),
            "the answer is no manifest",
        ),
    ] {
        let content_type = reply.header_value("Content-Type").unwrap().to_owned();
        let storage = Faulty::start(Behaviour::always(reply)).await;
        let registry = redirecting(&storage).await;
        let client = client_with(&registry.url(), None, Some(credentials()));
        let words = format!(
            "{words} from {}, where the registry redirects to, of type {content_type}",
            storage.address()
        );
        for answer in [
            client.head(REPOSITORY, "1.25", soon()).await,
            client.get(REPOSITORY, "1.25", soon()).await,
        ] {
            assert_eq!(answer, expected.clone().into());
            assert_eq!(answer.to_string(), words);
        }
    }
    // Nothing at all is what storage says of what it lost. A registry that another one redirects to says
    // that it does not know the image.
    for (reply, expected) in [
        (Reply::new(404), status(404).into()),
        (Reply::error(404, "MANIFEST_UNKNOWN"), Answer::Missing),
    ] {
        let storage = Faulty::start(Behaviour::always(reply)).await;
        let registry = redirecting(&storage).await;
        let client = client(&registry.url());
        assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, expected);
        assert_eq!(client.get(REPOSITORY, "1.25", soon()).await, expected);
    }
}

#[tokio::test]
async fn names_lead_nowhere_else() {
    let peer = good(&image()).await;
    let client = client(&peer.url());
    for (repository, reference) in [
        ("../../secret", "1"),
        ("a//b", "1"),
        ("a", "1?x=y"),
        ("a", "../x"),
        ("", "1"),
    ] {
        let answer = client.head(repository, reference, soon()).await;
        assert_eq!(answer, ambiguous(InvalidName).into(), "{repository} {reference}");
    }
    assert_eq!(peer.requests().len(), 0);
}

#[test]
fn endpoints_are_checked() {
    crate::support::install_crypto();
    let new = |url: &str, ca_bundle: Option<&str>| {
        Client::new(&kagami::registry::Endpoint {
            url: url.to_owned(),
            ca_bundle: ca_bundle.map(|pem| pem.as_bytes().to_vec()),
            trust: kagami::domain::mirror::Trust::default(),
            credentials: None,
        })
    };
    for url in [
        "",
        "registry.example.com",
        "ftp://a.io",
        "https://a.io/path",
        "https://a.io/?q",
        "https://",
    ] {
        assert!(matches!(new(url, None), Err(Error::Url)), "{url:?}");
    }
    let error = new("https://alice:wonderland@a.io", None).unwrap_err();
    assert!(matches!(error, Error::UrlWithCredentials));
    assert!(!format!("{error} {error:?}").contains("wonderland"));
    assert!(matches!(new("https://a.io", Some("")), Err(Error::NoCertificate)));
    assert!(new("https://[::1]:5000", Some(&Authority::new().pem())).is_ok());
    assert!(new("http://a.io:5000/", None).is_ok());
}
