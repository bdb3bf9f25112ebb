//! Between real registries, by the command as a person runs it.

use kagami::domain::answer::{Answer, MediaType};
use serde_json::json;

use super::{copy, host};
use crate::support::{
    images::{Image, single},
    real::{Registry, Setup},
    soon,
};

/// Returns an image's repository in the mirror.
fn place(source: &Registry, repository: &str) -> String {
    format!("{}/{repository}", host(source.url()).replace(':', "_"))
}

/// Checks that a registry has an image, to the last byte.
async fn assert_whole(registry: &Registry, repository: &str, reference: &str, image: &Image) {
    let target = registry.target(None);
    let read = async |path: String, accept: &str| {
        let url = format!("{}/v2/{repository}/{path}", target.url);
        let request = target
            .request(reqwest::Method::GET, &url)
            .header("Accept", accept);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap()
    };
    let media_type = image.media_type.as_str();
    assert_eq!(
        read(format!("manifests/{reference}"), media_type).await,
        image.manifest
    );
    let found = registry.client(None).get(repository, reference, soon()).await;
    let Answer::Exists(found) = found else {
        panic!("{found}")
    };
    assert_eq!(
        (found.digest, found.media_type),
        (image.digest.clone(), image.media_type)
    );
    for blob in &image.blobs {
        let digest = crate::support::images::digest(blob);
        assert_eq!(read(format!("blobs/{digest}"), "*/*").await, *blob);
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

#[tokio::test]
async fn an_image_is_copied() {
    let (Some(source), Some(mirror)) = (
        Registry::start(&Setup::default()),
        Registry::start(&Setup::default()),
    ) else {
        return;
    };
    for media_type in [MediaType::OciManifest, MediaType::DockerManifest] {
        let image = single(media_type, media_type.as_str());
        source.target(None).push("team/app", "1", &image).await;
        let name = format!("{}/team/app:1", host(source.url()));
        let told = copy(source.url(), mirror.url(), &json!({}), &[&name]).await;
        assert_eq!(told.code, 0, "{told:?}");
        assert!(told.out.contains(&format!("{} copied", image.digest)), "{told:?}");
        assert_whole(&mirror, &place(&source, "team/app"), "1", &image).await;
        let told = copy(source.url(), mirror.url(), &json!({}), &[&name]).await;
        assert!(
            told.code == 0 && told.out.contains(&format!("{} is there", image.digest)),
            "{told:?}"
        );
    }
}
