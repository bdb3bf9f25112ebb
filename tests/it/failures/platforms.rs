//! Rows in which a mirror holds an image for some platforms only, or its index does not say for which: for
//! Pods that say where they land in every way there is.

use serde_json::{Value, json};

use super::{REPOSITORY, SOON};
use crate::{
    shared::reviews::{decided, review},
    support::{
        faulty::Faulty,
        images::{self, Image},
        kagami::{Kagami, eventually, mirror},
        shelf::Shelf,
    },
};

fn image(os: &str) -> Image {
    let config = json!({"os": os, "architecture": "amd64"});
    images::of_layer(os.as_bytes().to_vec(), &config)
}

/// Waits until Pods with these fields in their `spec` get these reasons.
async fn until_reasons(kagami: &Kagami, expected: &[(Value, &str)]) {
    eventually("the reasons", SOON, async || {
        for (spec, expected) in expected {
            let mut review = review(&["nginx:1"]);
            json_patch::merge(&mut review["request"]["object"]["spec"], spec);
            let reply = kagami.connect().await.post(review.to_string()).await;
            let reason = decided(&reply.body).split(' ').nth(1).unwrap().to_owned();
            if reason != *expected {
                return Err(format!("{spec}: {reason}\n{}", kagami.log()));
            }
        }
        Ok(())
    })
    .await;
}

async fn kagami(shelf: &Shelf) -> (Faulty, Kagami) {
    let peer = Faulty::start(shelf.behaviour()).await;
    let kagami = Kagami::start(&[mirror(&peer.url(), &json!({}))]).await;
    (peer, kagami)
}

/// Waits until Pods for each operating system get the reason for it.
async fn until_reasons_by_system(kagami: &Kagami, of_windows: &str, of_linux: &str) {
    let windows = windows().map(|spec| (spec, of_windows));
    let expected: Vec<_> = windows
        .into_iter()
        .chain(linux().map(|spec| (spec, of_linux)))
        .collect();
    until_reasons(kagami, &expected).await;
}

fn windows() -> [Value; 3] {
    [
        json!({"os": {"name": "windows"}}),
        json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
        json!({"nodeSelector": {"beta.kubernetes.io/os": "windows", "kubernetes.io/arch": "amd64"}}),
    ]
}

fn linux() -> [Value; 3] {
    [
        json!({}),
        json!({"nodeSelector": {"kubernetes.io/arch": "amd64"}}),
        json!({"os": {"name": "linux"}}),
    ]
}

#[tokio::test]
async fn a_half_of_an_index_is_for_pods_of_its_operating_system() {
    let platform = |os: &str| json!({"os": os, "architecture": "amd64"});
    let index = images::listing(vec![
        (image("linux"), platform("linux")),
        (image("windows"), platform("windows")),
    ]);
    for (gone, of_windows, of_linux) in [
        (1, "PlatformMissing", "Mirrored"),
        (0, "Mirrored", "PlatformMissing"),
    ] {
        let shelf = Shelf::default();
        shelf.put(REPOSITORY, "1", &index);
        shelf.remove(REPOSITORY, &index.children[gone].digest);
        let (_peer, kagami) = kagami(&shelf).await;
        until_reasons_by_system(&kagami, of_windows, of_linux).await;
    }
}

#[tokio::test]
async fn a_single_manifest_is_for_pods_of_its_operating_system() {
    for (os, of_windows, of_linux) in [
        ("linux", "PlatformMissing", "Mirrored"),
        ("windows", "Mirrored", "PlatformMissing"),
    ] {
        let shelf = Shelf::default();
        shelf.put(REPOSITORY, "1", &image(os));
        let (_peer, kagami) = kagami(&shelf).await;
        until_reasons_by_system(&kagami, of_windows, of_linux).await;
    }
}

#[tokio::test]
async fn an_index_that_names_no_platform_serves_whom_its_image_is_for() {
    let shelf = Shelf::default();
    shelf.put(
        REPOSITORY,
        "1",
        &images::listing(vec![(image("linux"), Value::Null)]),
    );
    let (_peer, kagami) = kagami(&shelf).await;
    let arm = json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}});
    let expected: Vec<_> = linux()
        .map(|spec| (spec, "Mirrored"))
        .into_iter()
        .chain([(arm, "PlatformMissing")])
        .collect();
    until_reasons(&kagami, &expected).await;
}
