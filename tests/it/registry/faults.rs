//! Against peers that fail: the failure table of a mirror, as the client sees it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use kagami::domain::answer::{
    Ambiguity::{self, DigestMismatch, Html, InvalidName, Malformed, NotAManifest, Oversized, Redirect},
    Answer, Failure, MediaType, Unreachable,
};
use kagami::registry::{Error, MANIFEST_BYTES};
use serde_json::json;
use tokio::time::Instant;

use super::{Client, REPOSITORY, client, client_with, good, read, seen, serve};
use crate::support::{
    certificates::Authority,
    faulty::{Action, Behaviour, Faulty, Reply, Request},
    images::{self, Image},
    soon,
};

fn image() -> Image {
    images::single(MediaType::OciManifest, "nginx")
}

fn ambiguous(why: Ambiguity) -> Failure {
    Failure::Ambiguous(why)
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
    check(what, &client, Err(failure), failure.into(), failure.into()).await;
}

#[tokio::test]
async fn peers_without_http_are_unreachable() {
    use Unreachable::{Refused, Reset, Timeout};
    let unreachable = Failure::Unreachable;
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
    let server_error = Failure::ServerError;
    check_all("500", all(500, "UNKNOWN"), server_error(500)).await;
    check_all("502 HTML", Behaviour::always(Reply::html(502)), server_error(502)).await;
    check_all("200 HTML", Behaviour::always(Reply::html(200)), ambiguous(Html)).await;
    check_all("404 HTML", Behaviour::always(Reply::html(404)), ambiguous(Html)).await;
    check_all("418", all(418, "TEAPOT"), ambiguous(Ambiguity::Status(418))).await;

    // No registry answers `/v2/` so, hence nobody knows who refuses.
    for status in [401, 403] {
        let peer = Faulty::start(all(status, "DENIED")).await;
        let ping = Err(ambiguous(Ambiguity::Status(status)));
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
        let no_registry = ambiguous(Ambiguity::Status(404));
        let answer = if missing {
            Answer::Missing
        } else {
            no_registry.into()
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
    let text = Reply::new(404).content_type("text/plain; charset=utf-8");
    not_found(text.body("404 page not found\n"), false).await;

    let other_json = Reply::json(404, &json!({"message": "no route"}));
    let peer = Faulty::start(Behaviour::always(other_json)).await;
    let answer = client(&peer.url()).get(REPOSITORY, "1.25", soon()).await;
    assert_eq!(answer, ambiguous(Ambiguity::Status(404)).into());
}

/// Answers `/v2/` well, and requests for manifests as a script says.
async fn lying(manifests: impl Fn(&Image, &Request) -> Reply + Send + Sync + 'static) -> (Image, Faulty) {
    let image = image();
    let of_script = image.clone();
    let script = move |request: &Request| match request.target.as_str() {
        "/v2/" => serve(&of_script, request).into(),
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
    let answer = Answer::from(ambiguous(NotAManifest));
    check("schema 1", &client(&peer.url()), Ok(()), answer.clone(), answer).await;

    let (_, peer) = lying(|image, _| Reply::new(200).body(image.manifest.clone())).await;
    let answer = Answer::from(ambiguous(NotAManifest));
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
    let timeout = Failure::Unreachable(Unreachable::Timeout);
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
    let answer = Answer::from(ambiguous(Redirect));
    check("no target", &client(&peer.url()), Ok(()), answer.clone(), answer).await;

    let (_, peer) = lying(|_, request| Reply::redirect(&request.target)).await;
    let answer = Answer::from(ambiguous(Redirect));
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
    assert_eq!(
        ping,
        Err(ambiguous(Ambiguity::Status(307))),
        "`/v2/` is here or nowhere"
    );
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
    let good = start(authority.leaf(&["127.0.0.1"])).await;
    assert_eq!(look(&good, &authority).await, seen(&image));

    let tls = Answer::Unreachable(Unreachable::Tls);
    assert_eq!(look(&good, &stranger).await, tls, "unknown issuer");
    assert_eq!(
        client(&good.url()).head(REPOSITORY, "1.25", soon()).await,
        tls,
        "not the system's"
    );
    let expired = start(authority.expired(&["127.0.0.1"])).await;
    assert_eq!(look(&expired, &authority).await, tls, "expired");
    let other = start(authority.leaf(&["registry.example.com"])).await;
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
    let peer = Faulty::start_tls(behaviour, &authority.leaf(&["127.0.0.1"])).await;
    let client = client_with(&peer.url(), Some(authority.pem()), None);
    let answer = client.head(REPOSITORY, "1.25", soon()).await;
    assert_eq!(answer, ambiguous(Redirect).into());
    assert_eq!(storage.requests().len(), 0);
}

#[tokio::test]
async fn nobody_is_asked_while_a_wait_is_not_over() {
    let image = image();
    let mut peer = Faulty::start(Behaviour::always(Reply::new(429).header("Retry-After", "7"))).await;
    let client = client(&peer.url());
    let answer = client.head(REPOSITORY, "1.25", soon()).await;
    assert_eq!(
        answer,
        Answer::RateLimited {
            retry_after: Some(Duration::from_secs(7))
        }
    );

    let of_script = image.clone();
    peer.set(Behaviour::answer(move |request| {
        serve(&of_script, request).into()
    }))
    .await;
    let answer = client.clone().get(REPOSITORY, "1.25", soon()).await;
    assert!(matches!(answer, Answer::RateLimited { retry_after: Some(_) }));
    assert_eq!(peer.requests().len(), 1);
    // A limit on manifests says nothing of `/v2/`; one on `/v2/` speaks for everything.
    assert_eq!(client.ping(soon()).await, Ok(()));
    assert_eq!(peer.requests().len(), 2);

    skip(Duration::from_secs(7)).await;
    assert_eq!(client.head(REPOSITORY, "1.25", soon()).await, seen(&image));

    peer.set(Behaviour::always(Reply::new(429).header("Retry-After", "7")))
        .await;
    let limited = Err(Failure::RateLimited {
        retry_after: Some(Duration::from_secs(7)),
    });
    assert_eq!(client.ping(soon()).await, limited);
    let answer = client.head(REPOSITORY, "1.25", soon()).await;
    assert!(matches!(answer, Answer::RateLimited { retry_after: Some(_) }));
    assert!(matches!(
        client.ping(soon()).await,
        Err(Failure::RateLimited { retry_after: Some(_) })
    ));
    assert_eq!(peer.requests().len(), 4);
    skip(Duration::from_secs(7)).await;

    peer.set(Behaviour::always(Reply::new(429))).await;
    for _ in 0..2 {
        let answer = client.head(REPOSITORY, "1.25", soon()).await;
        assert_eq!(answer, Answer::RateLimited { retry_after: None });
    }
    assert_eq!(
        peer.requests().len(),
        6,
        "a limit without a wait is the caller's to judge"
    );
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
        assert_eq!(answer, Answer::Unreachable(expected));
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
        assert_eq!(answer.unwrap(), Answer::Unreachable(Unreachable::Timeout));
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
    let read = async |at_most| {
        client
            .beginning(REPOSITORY, &digest, at_most, in_a_moment())
            .await
    };
    assert_eq!(read(1 << 20).await, Ok(13));
    let mut stream = client.blob(REPOSITORY, &digest, in_a_moment()).await.unwrap();
    let mut came = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        came.extend_from_slice(&piece);
    }
    assert_eq!(came, blob);
    assert_eq!(stream.next().await, Ok(None));

    let timeout = Failure::Unreachable(Unreachable::Timeout);
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
            Err(ambiguous(Ambiguity::Status(404))),
        ),
        ("storage's own 403", Reply::new(403), Err(Failure::Unauthorized)),
        ("HTML", Reply::html(200), Err(ambiguous(Html))),
    ] {
        storage.set(Behaviour::always(reply)).await;
        assert_eq!(read(1 << 20).await, expected, "{what}");
    }
    storage
        .set(Behaviour::always(Reply::new(200).endless_body()))
        .await;
    let count = read(10_000).await.unwrap();
    assert!((10_001..1_000_000).contains(&count), "{count}");
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
