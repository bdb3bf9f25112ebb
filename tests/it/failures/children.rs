//! Rows in which a registry keeps an index and loses the images that it names: distribution 2.8 does so
//! whenever its garbage is collected, and rules of retention of other registries do.

use std::time::Duration;

use serde_json::{Value, json};

use super::{REPOSITORY, SOON};
use crate::{
    shared::reviews::{decided, review},
    support::{
        images,
        kagami::{Kagami, eventually, mirror},
        real::{Registry, Setup},
    },
};

use ::kagami::domain::answer::MediaType;

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// Returns the reason that a Pod for one architecture gets.
async fn reason(kagami: &Kagami, architecture: &str) -> String {
    let mut review = review(&["nginx:1"]);
    review["request"]["object"]["spec"]["nodeSelector"] = json!({"kubernetes.io/arch": architecture});
    let reply = kagami.connect().await.post(review.to_string()).await;
    decided(&reply.body).split(' ').nth(1).unwrap().to_owned()
}

async fn until_reasons(kagami: &Kagami, expected: [&str; 2], within: Duration) {
    eventually(&format!("{expected:?}"), within, async || {
        let seen = [
            reason(kagami, ARCHITECTURES[0]).await,
            reason(kagami, ARCHITECTURES[1]).await,
        ];
        if seen == expected {
            Ok(())
        } else {
            Err(format!("{seen:?}\n{}", kagami.log()))
        }
    })
    .await;
}

/// Starts the old registry with an image for two architectures, and Kagami, which knows it.
async fn knowing(spec: &Value) -> Option<(Registry, images::Image, Kagami)> {
    let setup = Setup {
        in_files: true,
        ..Setup::default()
    };
    let registry = Registry::start_old(&setup)?;
    let image = images::index(MediaType::OciIndex, &ARCHITECTURES, "children");
    registry.target(None).push(REPOSITORY, "1", &image).await;
    let kagami = Kagami::start(&[mirror(registry.url(), spec)]).await;
    kagami.until_known("nginx:1", 1).await;
    until_reasons(&kagami, ["Mirrored"; 2], SOON).await;
    Some((registry, image, kagami))
}

/// The prober looks at the mirror once and then not while this lasts: sweeps alone find it.
#[tokio::test]
async fn sweeps_look_again_at_what_an_index_names() {
    let spec = json!({
        "health": {"interval": "10m"},
        "freshness": {"tag": "1s", "digest": "3s"},
    });
    let Some((registry, image, kagami)) = knowing(&spec).await else {
        return;
    };
    let arm = &image.children[1].digest;
    registry.target(None).delete(REPOSITORY, arm).await;
    until_reasons(&kagami, ["Mirrored", "PlatformMissing"], SOON).await;

    registry.collect_garbage();
    let client = registry.client(None);
    let index = client.head(REPOSITORY, "1", crate::support::soon()).await;
    assert!(
        matches!(index, ::kagami::domain::answer::Answer::Exists(_)),
        "{index:?}"
    );
    until_reasons(&kagami, ["PlatformMissing"; 2], SOON).await;

    registry.target(None).push(REPOSITORY, "1", &image).await;
    until_reasons(&kagami, ["Mirrored"; 2], SOON).await;
}

/// No sweep is due while this lasts, and the prober looks at data every three seconds only. When it finds one
/// image's children gone it looks at the next ones at once, and after three all proofs are void.
#[tokio::test]
async fn when_many_children_are_gone_everything_is_looked_at_again() {
    let spec = json!({"freshness": {"tag": "1h", "digest": "1h"}});
    let Some((registry, image, kagami)) = knowing(&spec).await else {
        return;
    };
    let tags: Vec<String> = (2..=16).map(|tag| tag.to_string()).collect();
    for tag in &tags {
        registry.target(None).push(REPOSITORY, tag, &image).await;
    }
    let images: Vec<String> = tags.iter().map(|tag| format!("nginx:{tag}")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let all = |reason| vec![reason; images.len()];
    kagami.until(&images, &all("Mirrored"), SOON).await;
    kagami
        .until_status("/mirrors/main/images/present", &16.into(), SOON)
        .await;
    registry.collect_garbage();
    kagami.until(&images, &all("PlatformMissing"), 2 * SOON).await;
}

/// No sweep comes while this lasts: the prober finds that nothing of its canary can be had.
#[tokio::test]
async fn a_canary_of_which_no_child_is_left_is_gone() {
    let spec = json!({"freshness": {"tag": "1h", "digest": "1h"}});
    let Some((registry, _, kagami)) = knowing(&spec).await else {
        return;
    };
    registry.collect_garbage();
    until_reasons(&kagami, ["PlatformMissing"; 2], 2 * SOON).await;
}
