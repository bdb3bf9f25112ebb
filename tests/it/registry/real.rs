//! Against real registries.

use kagami::domain::{
    answer::{Answer, Blob, Failure, MediaType},
    digest::Digest,
};
use kagami::registry::{Client, Credentials};

use super::{REPOSITORY, read, seen};
use crate::support::{
    certificates::Authority,
    images::{self, Target},
    real::{ALICE, PASSWORD, Registry, Setup, USERNAME, credentials},
    soon,
    tokens::TokenService,
};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// Pushes an image of each of the four types and looks for them by tag, by digest, and in vain.
async fn check_images(client: &Client, target: &Target) {
    client.ping(soon()).await.unwrap();
    for media_type in MediaType::ALL {
        let seed = format!("{media_type:?}");
        let image = if media_type.is_index() {
            images::index(media_type, &ARCHITECTURES, &seed)
        } else {
            images::single(media_type, &seed)
        };
        let tag = seed.as_str();
        target.push(REPOSITORY, tag, &image).await;
        for reference in [tag, &image.digest.to_string()] {
            let head = client.head(REPOSITORY, reference, soon()).await;
            assert_eq!(head, seen(&image), "HEAD {reference} of {tag}");
            let get = client.get(REPOSITORY, reference, soon()).await;
            assert_eq!(get, read(&image, &ARCHITECTURES), "GET {reference} of {tag}");
        }
        if let Answer::Exists(manifest) = client.get(REPOSITORY, tag, soon()).await
            && let Some(blob) = manifest.blob
        {
            let bytes = client.beginning(REPOSITORY, &blob, u64::MAX, soon()).await;
            assert_eq!(bytes, Ok(blob.size));
            let beginning = client.beginning(REPOSITORY, &blob, 10, soon()).await;
            assert_eq!(beginning, Ok(10), "no more is sent than was asked for");
        }
        target.delete(REPOSITORY, &image.digest).await;
        let gone = client.head(REPOSITORY, &image.digest.to_string(), soon()).await;
        assert_eq!(gone, Answer::Missing, "{tag} is deleted");
    }
    let zeros: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    for (repository, reference) in [(REPOSITORY, "no-such-tag"), (REPOSITORY, &zeros.to_string())] {
        assert_eq!(client.head(repository, reference, soon()).await, Answer::Missing);
        assert_eq!(client.get(repository, reference, soon()).await, Answer::Missing);
    }
    let missing = Blob {
        digest: zeros,
        size: 2,
    };
    assert_eq!(
        client.beginning(REPOSITORY, &missing, 1, soon()).await,
        Err(Failure::Missing)
    );
}

#[tokio::test]
async fn images_in_a_plain_registry_are_found() {
    let Some(registry) = Registry::start(&Setup::default()) else {
        return;
    };
    let client = registry.client(None);
    check_images(&client, &registry.target(None)).await;
    let nowhere = client.head("no/such/repository", "latest", soon()).await;
    assert_eq!(nowhere, Answer::Missing);
}

#[tokio::test]
async fn images_in_the_old_registry_are_found() {
    let Some(registry) = Registry::start_old(&Setup::default()) else {
        return;
    };
    check_images(&registry.client(None), &registry.target(None)).await;
}

#[tokio::test]
async fn images_behind_tls_and_a_password_are_found() {
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
    check_images(&registry.client(Some(credentials())), &target).await;

    let wrong = Credentials {
        password: "looking-glass".to_owned(),
        ..credentials()
    };
    for client in [registry.client(None), registry.client(Some(wrong))] {
        assert_eq!(client.ping(soon()).await, Err(Failure::Unauthorized));
        assert_eq!(client.head(REPOSITORY, "a", soon()).await, Answer::Unauthorized);
        assert_eq!(client.get(REPOSITORY, "a", soon()).await, Answer::Unauthorized);
    }
}

#[tokio::test]
async fn images_behind_tokens_are_found() {
    let service = TokenService::start(USERNAME, PASSWORD).await;
    let setup = Setup {
        tokens: Some(&service),
        ..Setup::default()
    };
    let Some(registry) = Registry::start(&setup) else {
        return;
    };
    let target = registry.target(Some(format!("Bearer {}", service.push_token(REPOSITORY))));
    check_images(&registry.client(Some(credentials())), &target).await;
    // One for `/v2/`, one for the repository.
    assert_eq!(service.server.requests().len(), 2);

    let anonymous = registry.client(None);
    assert_eq!(anonymous.ping(soon()).await, Err(Failure::Unauthorized));
    assert_eq!(
        anonymous.head(REPOSITORY, "a", soon()).await,
        Answer::Unauthorized
    );
}

#[tokio::test]
async fn images_are_found_through_a_pull_through_cache() {
    let Some(upstream) = Registry::start(&Setup::default()) else {
        return;
    };
    let image = images::index(MediaType::OciIndex, &ARCHITECTURES, "upstream");
    upstream.target(None).push(REPOSITORY, "1", &image).await;
    let setup = Setup {
        upstream: Some(upstream.url()),
        ..Setup::default()
    };
    let Some(cache) = Registry::start(&setup) else {
        return;
    };
    let client = cache.client(None);
    client.ping(soon()).await.unwrap();
    assert_eq!(
        client.get(REPOSITORY, "1", soon()).await,
        read(&image, &ARCHITECTURES)
    );
    assert_eq!(
        client.head(REPOSITORY, &image.digest.to_string(), soon()).await,
        seen(&image)
    );
    assert_eq!(client.head(REPOSITORY, "2", soon()).await, Answer::Missing);
    drop(upstream);
    // What the cache holds it still answers by digest.
    assert_eq!(
        client.head(REPOSITORY, &image.digest.to_string(), soon()).await,
        seen(&image)
    );
}
