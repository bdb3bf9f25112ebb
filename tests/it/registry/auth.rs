//! Tokens, and who sees which credentials.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kagami::{
    domain::answer::{Ambiguity, Answer, Failure, Limit, MediaType, Particulars, Unreachable},
    registry::Credentials,
};
use serde_json::json;
use tokio::time::Instant;

use super::{Client, REPOSITORY, client_with, faults::skip, seen, serve};
use crate::support::{
    certificates::Authority,
    faulty::{Action, Behaviour, Faulty, Reply, Request},
    images::{self, Image},
    real::credentials,
    soon,
    tokens::query,
};

/// `alice:wonderland`.
const BASIC: &str = "Basic YWxpY2U6d29uZGVybGFuZA==";

/// A registry and its token service, each on its own port of one host.
struct Pair {
    registry: Faulty,
    realm: Faulty,
    image: Image,
    /// The token that the registry takes.
    accepted: Arc<Mutex<String>>,
    /// How the registry refuses others.
    refusal: Arc<Mutex<Option<Reply>>>,
}

impl Pair {
    /// Starts a service that gives out `token-1`, `token-2`, … with a life, and a registry that takes
    /// any of them until told otherwise.
    async fn start(expires_in: Option<u64>) -> Self {
        let image = images::single(MediaType::OciManifest, "nginx");
        let accepted = Arc::new(Mutex::new("token-".to_owned()));
        let refusal = Arc::new(Mutex::new(None));
        let issued = AtomicUsize::new(0);
        let realm = Faulty::start(Behaviour::answer(move |_| {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            let mut answer = json!({"access_token": format!("token-{number}")});
            if let Some(life) = expires_in {
                answer["expires_in"] = life.into();
            }
            Reply::json(200, &answer).into()
        }))
        .await;
        let challenge = format!(r#"Bearer realm="{}/token?account=x",service="test""#, realm.url());
        let (taken, refused, of_script) = (Arc::clone(&accepted), Arc::clone(&refusal), image.clone());
        let registry = Faulty::start(Behaviour::answer(move |request| {
            let prefix = format!("Bearer {}", taken.lock().unwrap());
            if request
                .authorization()
                .is_some_and(|token| token.starts_with(&prefix))
            {
                return serve(&of_script, request).into();
            }
            let refusal: Option<Reply> = refused.lock().unwrap().clone();
            let usual = || Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", &challenge);
            refusal.unwrap_or_else(usual).into()
        }))
        .await;
        Self {
            registry,
            realm,
            image,
            accepted,
            refusal,
        }
    }

    fn client(&self) -> Client {
        client_with(&self.registry.url(), None, Some(credentials()))
    }

    fn accept(&self, token: &str) {
        token.clone_into(&mut self.accepted.lock().unwrap());
    }

    #[track_caller]
    fn check(&self, answer: &Answer, asked_registry: usize, asked_realm: usize) {
        assert_eq!(*answer, seen(&self.image));
        let asked = (self.registry.requests().len(), self.realm.requests().len());
        assert_eq!(
            asked,
            (asked_registry, asked_realm),
            "requests to registry and realm"
        );
    }
}

async fn head(client: &Client) -> Answer {
    client.head(REPOSITORY, "1.25", soon()).await
}

#[tokio::test]
async fn one_token_serves_everybody_who_asks_at_once() {
    let pair = Pair::start(None).await;
    let client = pair.client();
    client.ping(soon()).await.unwrap();
    assert_eq!(pair.registry.requests().len(), 2);

    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        calls.spawn(async move { head(&client).await });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer, seen(&pair.image));
    }
    // The challenge is met before it is made: no request is refused.
    pair.check(&head(&client).await, 23, 2);
    let requests = pair.realm.requests();
    assert!(
        requests
            .iter()
            .all(|request| request.authorization() == Some(BASIC))
    );
    assert_eq!(
        query(&requests[0].target).len(),
        2,
        "no scope for `/v2/`: {}",
        requests[0].target
    );
    let asked = query(&requests[1].target);
    assert_eq!(asked["account"], "x");
    assert_eq!(asked["service"], "test");
    assert_eq!(asked["scope"], format!("repository:{REPOSITORY}:pull"));
}

#[tokio::test]
async fn challenge_is_learned_before_the_first_request_with_credentials() {
    let pair = Pair::start(None).await;
    pair.check(&head(&pair.client()).await, 2, 1);
    let requests = pair.registry.requests();
    assert_eq!(requests[0].target, "/v2/");

    // Without credentials there is nothing to hide behind a 404: the request itself is asked.
    let pair = Pair::start(None).await;
    let anonymous = client_with(&pair.registry.url(), None, None);
    pair.check(&head(&anonymous).await, 2, 1);
    assert_eq!(pair.realm.requests()[0].authorization(), None);
    pair.check(&head(&anonymous).await, 3, 1);
}

#[tokio::test]
async fn tokens_are_renewed_before_they_expire() {
    // Without a life said it is a minute.
    for (expires_in, kept, renewed) in [(None, 47, 2), (Some(300), 239, 2)] {
        let mut pair = Pair::start(expires_in).await;
        let client = pair.client();
        head(&client).await;
        skip(Duration::from_secs(kept)).await;
        pair.check(&head(&client).await, 3, 1);
        skip(Duration::from_secs(renewed)).await;
        pair.check(&head(&client).await, 4, 2);
        assert_eq!(
            pair.registry.requests()[3].authorization(),
            Some("Bearer token-2")
        );

        // A service that is down is asked once, and noticed only when the token is over.
        pair.realm.set(Behaviour::answer(|_| Action::Hang)).await;
        skip(Duration::from_secs(kept + renewed)).await;
        for asked in [5, 6] {
            let soon = Instant::now() + Duration::from_secs(1);
            let answer = client.head(REPOSITORY, "1.25", soon).await;
            pair.check(&answer, asked, 3);
        }
        skip(Duration::from_secs(70)).await;
        pair.realm.set(Behaviour::Refuse).await;
        assert_eq!(
            head(&client).await,
            Answer::Unreachable(Unreachable::Refused, Particulars::default())
        );
    }
}

/// Home-made token services send all sorts of lives, and types that are not JSON's: the token is good.
#[tokio::test]
async fn odd_answers_of_token_services_cost_no_token_and_no_more_requests() {
    for expires_in in [
        json!(0),
        json!(-1),
        json!("300"),
        json!(300.5),
        json!("soon"),
        json!(1e12),
    ] {
        let mut pair = Pair::start(None).await;
        let answer = json!({"token": "token-x", "expires_in": expires_in}).to_string();
        for content_type in ["text/plain", "text/html"] {
            let reply = Reply::new(200).content_type(content_type).body(answer.clone());
            pair.realm.set(Behaviour::always(reply)).await;
            let (client, before) = (pair.client(), pair.realm.requests().len());
            for _ in 0..5 {
                let answer = head(&client).await;
                assert_eq!(answer, seen(&pair.image), "{expires_in} as {content_type}");
            }
            assert_eq!(pair.realm.requests().len() - before, 1, "{expires_in}");
        }
    }
}

#[tokio::test]
async fn refused_tokens_are_renewed_once() {
    let refusals = [
        None,
        // ECR, ECR Public, Harbor.
        Some(Reply::error(403, "DENIED")),
        Some(Reply::error(400, "DENIED")),
        Some(Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"harbor\"")),
        Some(Reply::new(401)),
    ];
    for refusal in refusals {
        let pair = Pair::start(Some(300)).await;
        let client = pair.client();
        head(&client).await;
        pair.accept("token-2");
        pair.refusal.lock().unwrap().clone_from(&refusal);
        pair.check(&head(&client).await, 4, 2);

        // A new one that is refused as well is not asked for again.
        pair.accept("none");
        let answer = head(&client).await;
        let bad_request = matches!(&refusal, Some(reply) if reply.status() == 400);
        let expected = if bad_request {
            Answer::Ambiguous(Ambiguity::Status(400, Particulars::default()))
        } else {
            Answer::Unauthorized
        };
        assert_eq!(answer, expected);
        // What a 400 is about, its body tells: it is asked for once more, by GET.
        let again = usize::from(bad_request);
        assert_eq!(pair.registry.requests().len(), 6 + 2 * again);
        assert_eq!(pair.realm.requests().len(), 3 + again);
    }
}

#[tokio::test]
async fn a_first_token_that_is_refused_is_not_asked_for_again() {
    let pair = Pair::start(None).await;
    pair.accept("none");
    assert_eq!(head(&pair.client()).await, Answer::Unauthorized);
    assert_eq!(pair.registry.requests().len(), 2, "`/v2/` and the manifest");
    assert_eq!(pair.realm.requests().len(), 1);
}

#[tokio::test]
async fn token_services_fail_as_registries_do() {
    for (reply, expected) in [
        (Reply::error(401, "UNAUTHORIZED"), Failure::Unauthorized),
        (Reply::error(403, "DENIED"), Failure::Unauthorized),
        (Reply::new(503), Failure::ServerError(503, Particulars::default())),
        (
            Reply::new(429).header("Retry-After", "9"),
            Failure::RateLimited {
                of: Limit::Token,
                retry_after: Some(Duration::from_secs(9)),
            },
        ),
        (
            Reply::html(200),
            Failure::Ambiguous(Ambiguity::Html(Particulars::default())),
        ),
        (
            Reply::json(200, &json!({})),
            Failure::Ambiguous(Ambiguity::NoToken(Particulars::default())),
        ),
        (
            Reply::json(200, &json!({"token": "a\nb"})),
            Failure::Ambiguous(Ambiguity::NoToken(Particulars::default())),
        ),
        (
            Reply::new(200).endless_body(),
            Failure::Ambiguous(Ambiguity::Oversized),
        ),
    ] {
        let mut pair = Pair::start(None).await;
        pair.realm.set(Behaviour::always(reply)).await;
        assert_eq!(pair.client().ping(soon()).await, Err(expected.clone()));
        assert_eq!(
            head(&client_with(&pair.registry.url(), None, None)).await,
            expected.into()
        );
    }
}

/// Who has a token goes on with it, and so do pings; who has none is not asked about for an hour.
#[tokio::test]
async fn a_limit_of_tokens_holds_for_one_repository_alone() {
    let mut pair = Pair::start(Some(3600)).await;
    let client = pair.client();
    client.ping(soon()).await.unwrap();
    assert_eq!(head(&client).await, seen(&pair.image));
    pair.realm
        .set(Behaviour::answer(|request| {
            Action::Reply(match query(&request.target).get("scope") {
                Some(scope) if scope.contains("busybox") => Reply::new(429).header("Retry-After", "3600"),
                _ => Reply::json(200, &json!({"token": "token-9", "expires_in": 3600})),
            })
        }))
        .await;
    for _ in 0..2 {
        let answer = client.head("library/busybox", "1", soon()).await;
        let Answer::RateLimited {
            of: Limit::Token,
            retry_after: Some(wait),
        } = answer
        else {
            panic!("{answer}")
        };
        assert!(wait > Duration::from_secs(3590) && wait <= Duration::from_hours(1));
        assert!(
            answer
                .to_string()
                .starts_with("rate limited by the token service for 3")
        );
        assert_eq!(head(&client).await, seen(&pair.image));
        assert_eq!(client.head("library/redis", "1", soon()).await, seen(&pair.image));
        assert_eq!(client.ping(soon()).await, Ok(()));
    }
    let of_busybox = pair.realm.requests().into_iter();
    let of_busybox = of_busybox.filter(|request| request.target.contains("busybox"));
    assert_eq!(of_busybox.count(), 1);

    // Who limits one account need not limit another.
    let others = Credentials {
        username: "bob".to_owned(),
        ..credentials()
    };
    pair.realm
        .set(Behaviour::always(Reply::json(200, &json!({"token": "token-9"}))))
        .await;
    client.set_credentials(Some(&credentials()), None);
    let same = client.head("library/busybox", "1", soon()).await;
    assert!(matches!(same, Answer::RateLimited { .. }));
    client.set_credentials(Some(&others), None);
    assert_eq!(
        client.head("library/busybox", "1", soon()).await,
        seen(&pair.image)
    );
}

#[tokio::test]
async fn a_failing_token_service_is_asked_once_by_all() {
    let mut pair = Pair::start(None).await;
    let client = pair.client();
    client.ping(soon()).await.unwrap();
    pair.realm.set(Behaviour::always(Reply::new(500))).await;
    let before = pair.realm.requests().len();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        calls.spawn(async move { head(&client).await });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer, Answer::ServerError(500, Particulars::default()));
    }
    assert_eq!(pair.realm.requests().len() - before, 1);
}

/// A registry that asks for a password, and redirects to another peer.
async fn redirecting(target: &Faulty) -> Faulty {
    let location = format!("{}/storage", target.url());
    let behaviour = Behaviour::answer(move |request: &Request| match request.authorization() {
        None => Reply::new(401)
            .header("WWW-Authenticate", "Basic realm=\"x\"")
            .into(),
        Some(_) => match request.target.as_str() {
            "/v2/" => Reply::new(200).into(),
            target if target.ends_with("/here") => Reply::redirect("/v2/a/manifests/there").into(),
            _ => Reply::redirect(&location).into(),
        },
    });
    Faulty::start(behaviour).await
}

#[tokio::test]
async fn authorization_stays_with_the_registry() {
    let image = images::single(MediaType::OciManifest, "nginx");
    let of_script = image.clone();
    let storage = Faulty::start(Behaviour::answer(move |request| {
        serve(&of_script, request).into()
    }))
    .await;
    let registry = redirecting(&storage).await;
    let client = client_with(&registry.url(), None, Some(credentials()));
    assert_eq!(client.head("a", "here", soon()).await, seen(&image));
    let sent: Vec<_> = registry
        .requests()
        .iter()
        .map(|r| r.authorization().map(str::to_owned))
        .collect();
    let basic = || Some(BASIC.to_owned());
    assert_eq!(sent, [None, basic(), basic()], "`/v2/`, here, there");
    let requests = storage.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].authorization(), None);

    // The storage's own refusal is no challenge of the registry's.
    let realm = Faulty::start(Behaviour::always(Reply::json(200, &json!({"token": "t"})))).await;
    let challenge = format!("Bearer realm=\"{}/token\"", realm.url());
    let refusal = Reply::new(401).header("WWW-Authenticate", &challenge);
    let strict = Faulty::start(Behaviour::always(refusal)).await;
    let registry = redirecting(&strict).await;
    let client = client_with(&registry.url(), None, Some(credentials()));
    let refused = Ambiguity::Status(401, Particulars::default());
    assert_eq!(client.head("a", "1", soon()).await, Answer::Ambiguous(refused));
    let requests = strict.requests();
    assert_eq!(requests.len(), 2, "by HEAD and by GET");
    assert!(requests.iter().all(|request| request.authorization().is_none()));
    assert_eq!(realm.requests().len(), 0);
}

#[tokio::test]
async fn credentials_go_to_no_realm_in_the_open() {
    let realm = Faulty::start(Behaviour::always(Reply::json(200, &json!({"token": "t"})))).await;
    let port = realm.address().port();
    let challenge =
        |realm: String| Reply::new(401).header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""));
    let refused = || Answer::Ambiguous(Ambiguity::Challenge(Particulars::default()));

    // Another host.
    let behaviour = Behaviour::always(challenge(format!("http://localhost:{port}/token")));
    let plain = Faulty::start(behaviour).await;
    let client = client_with(&plain.url(), None, Some(credentials()));
    assert_eq!(head(&client).await, refused());

    // The registry's own host, but without the registry's TLS.
    let authority = Authority::new();
    let behaviour = Behaviour::always(challenge(format!("http://127.0.0.1:{port}/token")));
    let secure = Faulty::start_tls(behaviour, &authority.issue_for(&["127.0.0.1"])).await;
    let client = client_with(&secure.url(), Some(authority.pem()), Some(credentials()));
    assert_eq!(head(&client).await, refused());

    // No realm at all.
    let nowhere = Faulty::start(Behaviour::always(challenge("token".to_owned()))).await;
    let client = client_with(&nowhere.url(), None, Some(credentials()));
    assert_eq!(head(&client).await, refused());
    assert_eq!(realm.requests().len(), 0);

    // HTTPS anywhere.
    let behaviour = Behaviour::always(Reply::json(200, &json!({"token": "t"})));
    let far = Faulty::start_tls(behaviour, &authority.issue_for(&["localhost"])).await;
    let behaviour = Behaviour::always(challenge(format!(
        "https://localhost:{}/token",
        far.address().port()
    )));
    let secure = Faulty::start_tls(behaviour, &authority.issue_for(&["127.0.0.1"])).await;
    let client = client_with(&secure.url(), Some(authority.pem()), Some(credentials()));
    assert_eq!(head(&client).await, Answer::Unauthorized);
    assert_eq!(far.requests()[0].authorization(), Some(BASIC));
}

#[tokio::test]
async fn nothing_shows_a_secret() {
    let pair = Pair::start(None).await;
    let secret = Credentials {
        username: "the-name-is-a-token".to_owned(),
        password: "hunter2".to_owned(),
    };
    let endpoint = kagami::registry::Endpoint {
        url: pair.registry.url(),
        ca_bundle: None,
        trust: kagami::domain::mirror::Trust::default(),
        credentials: Some(secret.clone()),
    };
    let client = Client::new(&endpoint).unwrap();
    assert_eq!(head(&client).await, seen(&pair.image));
    let config = br#"{"a.io":{"username":"the-name-is-a-token","password":"hunter2"}}"#;
    let keyring = kagami::credentials::Keyring::from_dockercfg(config).unwrap();
    let bad = kagami::registry::Endpoint {
        url: "https://the-name-is-a-token:hunter2@a.io".to_owned(),
        ..endpoint.clone()
    };
    let error = Client::new(&bad).unwrap_err();
    let shown = format!("{client:#?} {secret:#?} {endpoint:#?} {bad:#?} {keyring:#?} {error:#?} {error}");
    for hidden in ["hunter2", "the-name-is-a-token", "token-1", "dGhlLW5hbWU"] {
        assert!(!shown.contains(hidden), "{hidden} in {shown}");
    }
}
