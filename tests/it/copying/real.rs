//! Between real registries, by the command as a person runs it.

use std::fs;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kagami::domain::answer::{Answer, MediaType};
use reqwest::{Method, header};
use serde_json::{Value, json};

use super::{copy, host, image, noise};
use crate::support::{
    commands::Told,
    images::{Image, Target, chart, digest, index, listing, single},
    real::{PASSWORD, Registry, Setup, USERNAME},
    soon,
    tokens::TokenService,
};

/// Returns an image's repository in the mirror.
pub(super) fn place(source: &Registry, repository: &str) -> String {
    format!("{}/{repository}", host(source.url()).replace(':', "_"))
}

async fn read(target: &Target, repository: &str, path: &str, accept: &str) -> Vec<u8> {
    let url = format!("{}/v2/{repository}/{path}", target.url);
    let request = target.request(Method::GET, &url).header(header::ACCEPT, accept);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.bytes().await.unwrap().to_vec()
}

/// Checks that a registry for everybody has an image, to the last byte.
pub(super) async fn assert_whole(registry: &Registry, repository: &str, reference: &str, image: &Image) {
    let target = registry.target(None);
    let media_type = image.media_type.as_str();
    let manifest = read(&target, repository, &format!("manifests/{reference}"), media_type).await;
    assert_eq!(manifest, image.manifest, "{reference}");
    let found = registry.client(None).get(repository, reference, soon()).await;
    let Answer::Exists(found) = found else {
        panic!("{found}")
    };
    assert_eq!(
        (found.digest, found.media_type),
        (image.digest.clone(), image.media_type)
    );
    for blob in &image.blobs {
        let path = format!("blobs/{}", digest(blob));
        assert_eq!(read(&target, repository, &path, "*/*").await, *blob);
    }
    for child in &image.children {
        Box::pin(assert_whole(
            registry,
            repository,
            &child.digest.to_string(),
            child,
        ))
        .await;
    }
}

/// Returns an index with a nested index, an image with an empty layer, and an attestation of that.
fn everything() -> Image {
    let empty = image(vec![noise(1, 3 << 20), Vec::new(), noise(2, 10)], &json!({}));
    let nested = index(MediaType::OciIndex, &["amd64", "arm64"], "nested");
    let attestation = image(
        vec![br#"{"predicateType": "https://slsa.dev/provenance/v1"}"#.to_vec()],
        &json!({}),
    );
    let platform = |architecture: &str, os: &str| json!({"architecture": architecture, "os": os});
    listing(vec![
        (empty, platform("s390x", "linux")),
        (nested, Value::Null),
        (attestation, platform("unknown", "unknown")),
    ])
}

fn both() -> Option<(Registry, Registry)> {
    Some((
        Registry::start(&Setup::default())?,
        Registry::start(&Setup::default())?,
    ))
}

#[tokio::test]
async fn images_of_every_kind_are_copied_between_new_and_old_registries() {
    let (Some(new), Some(other), Some(old), Some(older)) = (
        Registry::start(&Setup::default()),
        Registry::start(&Setup::default()),
        Registry::start_old(&Setup::default()),
        Registry::start_old(&Setup::default()),
    ) else {
        return;
    };
    let images = [
        ("oci", single(MediaType::OciManifest, "oci")),
        ("docker", single(MediaType::DockerManifest, "docker")),
        ("list", index(MediaType::DockerList, &["amd64", "arm64"], "list")),
        ("index", index(MediaType::OciIndex, &["amd64", "arm64"], "index")),
        ("chart", chart("chart")),
        ("everything", everything()),
    ];
    for (source, mirror) in [(&new, &other), (&old, &new), (&new, &older)] {
        let mut names = Vec::new();
        for (tag, image) in &images {
            source.target(None).push("team/app", tag, image).await;
            names.push(format!("{}/team/app:{tag}", host(source.url())));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let told = copy(source.url(), mirror.url(), &json!({}), &names).await;
        assert_eq!(told.code, 0, "{told:?}");
        for (tag, image) in &images {
            assert!(told.out.contains(&format!("{} copied", image.digest)), "{told:?}");
            assert_whole(mirror, &place(source, "team/app"), tag, image).await;
        }
        // Nothing of it is copied twice.
        let told = copy(source.url(), mirror.url(), &json!({}), &names).await;
        let there = told.out.lines().filter(|line| line.ends_with("is there")).count();
        assert_eq!((told.code, there), (0, images.len()), "{told:?}");
    }
}

#[tokio::test]
async fn an_image_by_its_digest_alone_keeps_a_tag_of_its_own() {
    let Some((source, mirror)) = both() else { return };
    let image = single(MediaType::OciManifest, "pinned");
    source.target(None).push("team/app", "1", &image).await;
    let name = format!("{}/team/app@{}", host(source.url()), image.digest);
    let told = copy(source.url(), mirror.url(), &json!({}), &[&name]).await;
    assert_eq!(told.code, 0, "{told:?}");
    let tag = format!("kagami-{}", &image.digest.to_string()["sha256:".len()..][..32]);
    assert_whole(&mirror, &place(&source, "team/app"), &tag, &image).await;
    assert_whole(
        &mirror,
        &place(&source, "team/app"),
        &image.digest.to_string(),
        &image,
    )
    .await;
}

#[tokio::test]
async fn signatures_come_along_and_a_lost_child_comes_back() {
    let Some((source, mirror)) = both() else { return };
    let all = index(MediaType::OciIndex, &["amd64", "arm64"], "signed");
    let refers = json!({
        "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "subject": {"mediaType": all.media_type.as_str(), "digest": all.digest.to_string(), "size": all.manifest.len()},
    });
    let signature = image(vec![b"{}".to_vec()], &refers);
    let target = source.target(None);
    target.push("team/app", "1", &all).await;
    target
        .push("team/app", &signature.digest.to_string(), &signature)
        .await;
    // As cosign does it in a registry without lists, and as it did before.
    let list_tag = all.digest.to_string().replace(':', "-");
    let list = listing(vec![(signature.clone(), Value::Null)]);
    target.push("team/app", &list_tag, &list).await;
    let attached = single(MediaType::OciManifest, "attached");
    target
        .push("team/app", &format!("{list_tag}.sig"), &attached)
        .await;

    let name = format!("{}/team/app:1", host(source.url()));
    let told = copy(source.url(), mirror.url(), &json!({}), &[&name]).await;
    assert!(
        told.code == 0 && told.out.contains("with 2 referrers"),
        "{told:?}"
    );
    let repository = place(&source, "team/app");
    assert_whole(&mirror, &repository, "1", &all).await;
    assert_whole(&mirror, &repository, &signature.digest.to_string(), &signature).await;
    assert_whole(&mirror, &repository, &format!("{list_tag}.sig"), &attached).await;
    let list = read(
        &mirror.target(None),
        &repository,
        &format!("manifests/{list_tag}"),
        "application/vnd.oci.image.index.v1+json",
    )
    .await;
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list["manifests"][0]["digest"], signature.digest.to_string());
    assert_eq!(list["manifests"][0]["artifactType"], refers["artifactType"]);

    mirror
        .target(None)
        .delete(&repository, &all.children[1].digest)
        .await;
    let told = copy(source.url(), mirror.url(), &json!({}), &[&name]).await;
    assert_eq!(told.code, 0, "{told:?}");
    assert_whole(&mirror, &repository, "1", &all).await;
}

#[tokio::test]
async fn logins_are_those_of_the_docker_configuration() {
    let tokens = TokenService::start(USERNAME, PASSWORD).await;
    let (Some(source), Some(mirror)) = (
        Registry::start(&Setup {
            htpasswd: true,
            ..Setup::default()
        }),
        Registry::start(&Setup {
            tokens: Some(&tokens),
            ..Setup::default()
        }),
    ) else {
        return;
    };
    let image = single(MediaType::OciManifest, "private");
    let basic = BASE64_STANDARD.encode(format!("{USERNAME}:{PASSWORD}"));
    source
        .target(Some(format!("Basic {basic}")))
        .push("team/app", "1", &image)
        .await;
    let name = format!("{}/team/app:1", host(source.url()));
    let login = json!({"auth": basic});
    let only = |url: &str| json!({"auths": {host(url): login}});

    let told = copy(source.url(), mirror.url(), &json!({}), &[&name]).await;
    assert!(
        told.code == 1 && told.complaints.contains("nauthorized"),
        "{told:?}"
    );
    let told = copy(source.url(), mirror.url(), &only(mirror.url()), &[&name]).await;
    assert!(
        told.code == 1 && told.complaints.contains("SourceUnauthorized"),
        "{told:?}"
    );
    assert!(
        !told.complaints.contains(PASSWORD) && !told.complaints.contains(&basic),
        "{told:?}"
    );
    let all = json!({"auths": {host(source.url()): login, "mirror.test": login}});
    let told = copy(source.url(), mirror.url(), &all, &[&name]).await;
    assert_eq!(told.code, 0, "{told:?}");
    let token = format!("Bearer {}", tokens.push_token(&place(&source, "team/app")));
    let manifest = read(
        &mirror.target(Some(token)),
        &place(&source, "team/app"),
        "manifests/1",
        image.media_type.as_str(),
    )
    .await;
    assert_eq!(manifest, image.manifest);
}

#[tokio::test]
async fn some_fail_and_the_others_are_copied() {
    let Some((source, mirror)) = both() else { return };
    let image = single(MediaType::OciManifest, "list");
    source.target(None).push("team/app", "1", &image).await;
    source.target(None).push("team/app", "2", &image).await;
    let (good, missing) = (
        format!("{}/team/app:1", host(source.url())),
        format!("{}/team/none:1", host(source.url())),
    );
    let told = copy(source.url(), mirror.url(), &json!({}), &["--dry-run", &good]).await;
    assert!(
        told.code == 0 && told.out.contains("would be copied, 1 manifest and 2 blobs"),
        "{told:?}"
    );
    let nothing = mirror
        .client(None)
        .get(&place(&source, "team/app"), "1", soon())
        .await;
    assert_eq!(nothing, Answer::Missing);
    let told = copy(
        source.url(),
        mirror.url(),
        &json!({}),
        &[&good, &missing, "quay.io/a/b:1", "No Image"],
    )
    .await;
    assert_eq!(told.code, 1, "{told:?}");
    assert_eq!(told.out.lines().count(), 1, "{told:?}");
    for part in [
        format!("{missing}: ImageMissing: "),
        "quay.io/a/b:1: NoMirror: ".to_owned(),
        "\"No Image\": InvalidReference: ".to_owned(),
        "3 of 4 failed".to_owned(),
    ] {
        assert!(told.complaints.contains(&part), "{part}: {told:?}");
    }
    assert_whole(&mirror, &place(&source, "team/app"), "1", &image).await;
    let told = copy_listed(&source, &mirror, "# the second\n\n  TWO  \nTWO\n").await;
    assert_eq!((told.code, told.out.lines().count()), (0, 1), "{told:?}");
    assert_whole(&mirror, &place(&source, "team/app"), "2", &image).await;
}

/// Copies what stands in a list on standard input.
async fn copy_listed(source: &Registry, mirror: &Registry, list: &str) -> Told {
    let list = list.replace("TWO", &format!("{}/team/app:2", host(source.url())));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), list).unwrap();
    super::copy_reading(source.url(), mirror.url(), &json!({}), &["-"], Some(file.path())).await
}

#[tokio::test]
async fn a_mirror_that_fetches_by_itself_takes_no_copies() {
    let mirror = json!({
        "apiVersion": "kagami.dev/v1alpha1", "kind": "ImageMirror", "metadata": {"name": "cache"},
        "spec": {"registry": "mirror.test", "kind": "PullThrough", "sources": [{"prefix": "docker.io"}]},
    });
    for (to, expected) in [
        ("cache", "PullThrough"),
        ("none", "there is no mirror none; there is: cache"),
    ] {
        let told = super::copy_into(&mirror, to, &["nginx"]).await;
        assert!(told.code == 2 && told.complaints.contains(expected), "{told:?}");
    }
}
