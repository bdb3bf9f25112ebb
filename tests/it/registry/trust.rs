//! Whose certificate is believed, and what is told of one that is not, and of token services that are not
//! asked.

use kagami::domain::answer::{Answer, Failure};
use serde_json::json;

use super::{REPOSITORY, client_with, good, seen, serve};
use crate::support::{
    certificates::{Authority, Pair},
    commands::run_on_machine,
    faulty::{Action, Behaviour, Faulty, Reply, Request},
    images::{Image, single},
    kagami::mirror,
    soon,
};
use kagami::domain::answer::MediaType;

fn image() -> Image {
    single(MediaType::OciManifest, "any")
}

async fn start(pair: &Pair) -> Faulty {
    let script = move |request: &Request| Action::Reply(serve(&image(), request));
    Faulty::start_tls(Behaviour::answer(script), pair).await
}

/// Returns what a look at a peer with this certificate says to who trusts this bundle.
async fn look(pair: &Pair, bundle: &str) -> Answer {
    let peer = start(pair).await;
    let client = client_with(&peer.url(), Some(bundle.to_owned()), None);
    client.head(REPOSITORY, "1", soon()).await
}

#[tokio::test]
async fn each_fault_of_a_certificate_is_told_apart() {
    let authority = Authority::new();
    let (bundle, names) = (authority.pem(), &["127.0.0.1"][..]);
    let stranger = Authority::new();
    let own = |is_authority| Authority::of_its_own(names, is_authority);
    let (ended, elsewhere) = (
        Authority::of_its_own_and_expired(names),
        Authority::of_its_own(&["registry.example.com"], true),
    );
    let cases = [
        (
            authority.expired(names),
            &*bundle,
            vec![
                "the certificate has ended (subject ",
                "issuer CN=Kagami test CA, valid from 2001-01-01T00:00:00",
                "until 2002-01-01T00:00:00",
                "for 127.0.0.1)",
            ],
        ),
        (
            authority.not_valid_yet(names),
            &*bundle,
            vec![
                "the certificate is not valid yet (",
                "valid from 2901-01-01T00:00:00",
            ],
        ),
        (
            authority.issue_for(&["registry.example.com", "10.0.0.1", "fd00::1"]),
            &*bundle,
            vec![
                "the certificate is for other names than 127.0.0.1 (",
                "for registry.example.com, 10.0.0.1, fd00::1)",
            ],
        ),
        (
            authority.issue_for(&[
                "a.test", "b.test", "c.test", "d.test", "e.test", "f.test", "g.test",
            ]),
            &*bundle,
            vec!["e.test, f.test and 1 more)"],
        ),
        (
            stranger.issue_for(names),
            &*bundle,
            vec![
                "is not signed by an authority in caBundle",
                "issuer CN=Kagami test CA",
            ],
        ),
        (
            own(false),
            &*bundle,
            vec!["is signed by itself, and does not stand in caBundle (subject CN=mirror, signed by itself"],
        ),
        (
            own(true),
            &*bundle,
            vec![
                "is an authority's (CA:TRUE)",
                "where it stands in caBundle itself: put it there",
                "CA:FALSE",
            ],
        ),
        (
            authority.issue_client("alice", "readers"),
            &*bundle,
            vec!["for no name at all"],
        ),
    ];
    for (pair, bundle, expected) in &cases {
        let told = look(pair, bundle).await.to_string();
        assert!(
            told.starts_with("TLS handshake failed: the certificate "),
            "{told}"
        );
        for expected in expected {
            assert!(told.contains(expected), "{expected:?} is not in {told:?}");
        }
    }
    for (pair, expected) in [
        (&ended, "the certificate has ended (subject "),
        (
            &elsewhere,
            "the certificate is for other names than 127.0.0.1 (subject CN=mirror, signed by itself",
        ),
    ] {
        let told = look(pair, &pair.pem()).await.to_string();
        assert!(told.contains(expected), "{expected:?} is not in {told:?}");
    }
}

#[tokio::test]
async fn a_certificate_in_the_bundle_is_accepted_for_its_own_names() {
    let names = &["127.0.0.1"][..];
    let authority = Authority::new();
    for is_authority in [false, true] {
        let own = Authority::of_its_own(names, is_authority);
        assert_eq!(look(&own, &own.pem()).await, seen(&image()), "{is_authority}");
        // Among others too, and with what people write around them.
        let bundle = format!("# mirror\r\n{}\n{}", authority.pem(), own.pem()).replace('\n', "\r\n");
        assert_eq!(look(&own, &bundle).await, seen(&image()), "{is_authority}");
    }
    // One that somebody else signed, who is not in the bundle.
    let signed = authority.issue_for(names);
    assert_eq!(look(&signed, &signed.pem()).await, seen(&image()));
    // Whoever has the certificate and not its key is not believed.
    let (own, other) = (
        Authority::of_its_own(names, true),
        Authority::of_its_own(names, true),
    );
    let told = look(&other, &own.pem()).await.to_string();
    assert!(told.contains("is an authority's (CA:TRUE)"), "{told}");
}

#[tokio::test]
async fn who_speaks_no_tls_is_told() {
    let plain = good(&image()).await;
    let url = plain.url().replace("http://", "https://");
    let client = client_with(&url, Some(Authority::new().pem()), None);
    let told = client.head(REPOSITORY, "1", soon()).await.to_string();
    assert_eq!(
        told,
        "TLS handshake failed: what answers there does not speak TLS; is it plain http?"
    );
}

fn challenge(value: &str) -> Behaviour {
    Behaviour::always(Reply::new(401).header("WWW-Authenticate", value))
}

#[tokio::test]
async fn which_token_service_is_not_asked_is_told_with_the_reason() {
    let authority = Authority::new();
    let pair = authority.issue_for(&["127.0.0.1"]);
    for (secure, named, expected) in [
        (
            false,
            r#"Bearer realm="http://token.example.com:5001/token?account=a",service="r""#,
            "the registry names the token service http://token.example.com:5001/token, which is not asked: it is \
             another host than the registry, and over plain http others on the way could read passwords and \
             tokens",
        ),
        (
            true,
            r#"Bearer realm="http://127.0.0.1/token""#,
            "the registry names the token service http://127.0.0.1/token, which is not asked: the registry \
             itself is reached over https",
        ),
        (
            true,
            r#"Bearer realm="http://alice:hunter2@token.example.com/""#,
            "the registry names the token service http://token.example.com/, which is not asked: the registry",
        ),
        (
            false,
            r#"Bearer realm="/service/token""#,
            "the registry names the token service /service/token, which is no https:// or http:// address",
        ),
        (
            false,
            r#"Bearer realm="ftp://alice:hunter2@token.example.com/?account=a""#,
            "ftp://token.example.com/, which is no https:// or http:// address",
        ),
        (
            false,
            r#"Bearer service="r""#,
            "the registry asks for a token, and names no token service",
        ),
    ] {
        let peer = if secure {
            Faulty::start_tls(challenge(named), &pair).await
        } else {
            Faulty::start(challenge(named)).await
        };
        let bundle = secure.then(|| authority.pem());
        let client = client_with(&peer.url(), bundle, None);
        let prefix = "an authentication challenge that cannot be met: ";
        for told in [
            client.ping(soon()).await.unwrap_err().to_string(),
            client.head(REPOSITORY, "1", soon()).await.to_string(),
        ] {
            assert!(
                told.starts_with(prefix) && told.contains(expected),
                "{named}: {told}"
            );
            assert!(!told.contains("hunter2") && !told.contains("account"), "{told}");
        }
    }
    let peer = Faulty::start(challenge("Negotiate abc")).await;
    let told = client_with(&peer.url(), None, None).ping(soon()).await;
    let told = told.unwrap_err().to_string();
    assert!(
        told.ends_with("asks for authentication by Negotiate, and Kagami knows Basic and Bearer"),
        "{told}"
    );
    let none = Faulty::start(challenge("")).await;
    let ping = client_with(&none.url(), None, None).ping(soon()).await;
    assert_eq!(ping, Err(Failure::Unauthorized));
}

/// A registry at 127.0.0.1 with a token service at another host, and who signed the certificate of which.
struct Two {
    registry: Faulty,
    _tokens: Faulty,
}

impl Two {
    async fn start(of_registry: &Authority, of_tokens: &Authority) -> Self {
        let tokens = Behaviour::always(Reply::json(200, &json!({"token": "t"})));
        let tokens = Faulty::start_tls(tokens, &of_tokens.issue_for(&["localhost"])).await;
        let realm = format!("https://localhost:{}/token", tokens.address().port());
        let script = move |request: &Request| {
            Action::Reply(if request.authorization() == Some("Bearer t") {
                serve(&image(), request)
            } else {
                Reply::new(401).header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))
            })
        };
        let pair = of_registry.issue_for(&["127.0.0.1"]);
        Self {
            registry: Faulty::start_tls(Behaviour::answer(script), &pair).await,
            _tokens: tokens,
        }
    }

    /// Returns what `kagami explain` says on a machine whose system trusts one authority, given another in
    /// the bundle.
    async fn explain(&self, system: &Authority, bundle: &Authority, trust: Option<&str>) -> String {
        let spec = json!({"endpoint": {"caBundle": bundle.pem(), "trust": trust}});
        let document = mirror(&self.registry.url(), &spec);
        let arguments = ["explain", "nginx:1", "--budget", "10s"];
        let told = run_on_machine(&system.pem(), &document, &arguments, b"").await;
        assert_eq!(told.code, 0, "{}", told.complaints);
        told.out
    }
}

#[tokio::test]
async fn a_bundle_alone_counts_for_the_endpoint_and_the_system_too_for_hosts_that_it_names() {
    let (private, public) = (Authority::new(), Authority::new());
    let rewritten = "Rewritten Mirrored";
    // A private registry that names a public token service.
    let told = Two::start(&private, &public)
        .await
        .explain(&public, &private, None)
        .await;
    assert!(told.contains(rewritten), "{told}");
    // The bundle goes on counting there.
    let told = Two::start(&private, &private)
        .await
        .explain(&public, &private, None)
        .await;
    assert!(told.contains(rewritten), "{told}");

    // A public registry that names a private token service: who says so trusts the system's for it.
    let reverse = Two::start(&public, &private).await;
    let told = reverse.explain(&public, &private, None).await;
    assert!(told.contains("Kept MirrorUnhealthy"), "{told}");
    assert!(
        told.contains("health      Unhealthy: TLSHandshakeFailed") || told.contains("TLSHandshakeFailed"),
        "{told}"
    );
    assert!(
        told.contains(
            "not signed by an authority in caBundle but by one of the system, which \
                       spec.endpoint.trust: BundleAndSystem trusts as well"
        ),
        "{told}"
    );
    let told = reverse.explain(&public, &private, Some("Bundle")).await;
    assert!(told.contains("Kept MirrorUnhealthy"), "{told}");
    let told = reverse.explain(&public, &private, Some("BundleAndSystem")).await;
    assert!(told.contains(rewritten), "{told}");

    // Who is trusted by nobody is told as the token service.
    let stranger = Authority::new();
    let told = Two::start(&private, &stranger)
        .await
        .explain(&public, &private, None)
        .await;
    assert!(
        told.contains("the registry's token service: the certificate is not signed by an authority in caBundle or of the system"),
        "{told}"
    );
    assert!(told.contains("TLS handshake failed at localhost:"), "{told}");
}
