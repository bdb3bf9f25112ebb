//! For which nodes an image counts: what is looked at of an index, and how much at most.

use serde_json::{Value, json};

use super::*;
use crate::support::{shelf::Shelf, soon};

use ::kagami::registry::look::{Extent, Manner};

fn image(os: &str, architecture: &str, seed: &str) -> Image {
    images::of_layer(
        seed.as_bytes().to_vec(),
        &json!({"os": os, "architecture": architecture}),
    )
}

fn platform(os: &str, architecture: &str) -> Value {
    json!({"os": os, "architecture": architecture})
}

/// What a mirror is asked for an image, and for which nodes it counts then.
struct Looked {
    answer: Answer,
    platforms: Platforms,
    asked: usize,
}

impl Looked {
    fn names(&self) -> Vec<&'static str> {
        assert!(matches!(self.answer, Answer::Exists(_)), "{:?}", self.answer);
        self.platforms.names().collect()
    }
}

async fn look_to(shelf: &Shelf, image: &Image, extent: Extent) -> Looked {
    shelf.put(REPOSITORY, "1", image);
    look_at(shelf, extent).await
}

async fn look_at(shelf: &Shelf, extent: Extent) -> Looked {
    let peer = Faulty::start(shelf.behaviour()).await;
    let manner = Manner::AtOnce(soon());
    let (answer, platforms) = client(&peer.url()).look(REPOSITORY, "1", manner, extent).await;
    Looked {
        answer,
        platforms,
        asked: peer.requests().len(),
    }
}

async fn look(image: &Image) -> Looked {
    look_to(&Shelf::default(), image, Extent::Manifests).await
}

#[tokio::test]
async fn an_entry_without_a_platform_is_read() {
    let named = image("linux", "amd64", "named");
    let nameless = image("linux", "arm64", "nameless");
    let mixed = images::listing(vec![
        (nameless.clone(), Value::Null),
        (named, platform("linux", "amd64")),
    ]);
    let looked = look(&mixed).await;
    assert_eq!(looked.names(), ["linux/amd64", "linux/arm64"]);
    // The index, the entry that names a platform, and of the other one manifest and configuration.
    assert_eq!(looked.asked, 4);

    let looked = look(&images::listing(vec![(nameless, Value::Null)])).await;
    assert_eq!(looked.names(), ["linux/arm64"]);
}

/// A node takes the first of them and no other.
#[tokio::test]
async fn of_entries_without_a_platform_only_the_first_is_read() {
    let entries = ["amd64", "s390x", "ppc64le"];
    let entries = entries.map(|architecture| (image("linux", architecture, architecture), Value::Null));
    let looked = look(&images::listing(entries.into())).await;
    assert_eq!(looked.names(), ["linux/amd64"]);
    assert_eq!(looked.asked, 3);
}

#[tokio::test]
async fn an_entry_whose_configuration_is_gone_or_tells_nothing_serves_nobody() {
    let nameless = image("linux", "amd64", "nameless");
    let mut without = nameless.clone();
    without.blobs.clear();
    let looked = look(&images::listing(vec![(without, Value::Null)])).await;
    assert_eq!(looked.names(), [""; 0]);

    let artifact = images::of_layer(b"chart".to_vec(), &json!({"name": "chart"}));
    let looked = look(&images::listing(vec![(artifact, Value::Null)])).await;
    assert_eq!(looked.names(), [""; 0]);

    let long = images::of_layer(
        b"long".to_vec(),
        &json!({"os": "linux", "architecture": "amd64", "author": "x".repeat(300_000)}),
    );
    let looked = look(&images::listing(vec![(long, Value::Null)])).await;
    assert_eq!(looked.names(), [""; 0]);
    assert_eq!(looked.asked, 2, "its size is told");
}

#[tokio::test]
async fn one_operating_system_never_vouches_for_the_other() {
    let (linux, windows) = (image("linux", "amd64", "l"), image("windows", "amd64", "w"));
    let both = images::listing(vec![
        (linux.clone(), platform("linux", "amd64")),
        (windows.clone(), platform("windows", "amd64")),
    ]);
    for (gone, expected) in [(&linux, "windows/amd64"), (&windows, "linux/amd64")] {
        let shelf = Shelf::default();
        shelf.put(REPOSITORY, "1", &both);
        shelf.remove(REPOSITORY, &gone.digest);
        assert_eq!(look_at(&shelf, Extent::Manifests).await.names(), [expected]);
        // What an index names is there for a mirror that fetches it.
        let named = look_at(&shelf, Extent::Named).await;
        assert_eq!(named.names(), ["linux/amd64", "windows/amd64"]);
        assert_eq!(named.asked, 1);
    }
}

/// The node takes the best entry, whether it is there or not.
#[tokio::test]
async fn an_older_variant_does_not_vouch_for_a_newer_one_that_is_listed() {
    let arm = |variant: &str| {
        let mut platform = platform("linux", "arm");
        platform["variant"] = json!(variant);
        (image("linux", "arm", variant), platform)
    };
    let (five, seven) = (arm("v5"), arm("v7"));
    let shelf = Shelf::default();
    shelf.put(
        REPOSITORY,
        "1",
        &images::listing(vec![five.clone(), seven.clone()]),
    );
    shelf.remove(REPOSITORY, &seven.0.digest);
    let looked = look_at(&shelf, Extent::Manifests).await;
    assert_eq!(looked.names(), ["linux/arm/v5", "linux/arm/v6"]);

    let looked = look(&images::listing(vec![five])).await;
    assert!(looked.names().contains(&"linux/arm/v7"), "{:?}", looked.names());
}

#[tokio::test]
async fn an_index_in_an_index_is_followed_once() {
    let inner = images::listing(vec![
        (image("linux", "amd64", "a"), platform("linux", "amd64")),
        (image("linux", "arm64", "b"), platform("linux", "arm64")),
    ]);
    for platform in [Value::Null, platform("linux", "amd64")] {
        let outer = images::listing(vec![(inner.clone(), platform.clone())]);
        let looked = look(&outer).await;
        let expected: &[&str] = if platform.is_null() {
            &["linux/amd64", "linux/arm64"]
        } else {
            &["linux/amd64"]
        };
        let names = looked.names();
        assert!(expected.iter().all(|name| names.contains(name)), "{names:?}");
        assert_eq!(names.contains(&"linux/arm64"), platform.is_null());
        // What is gone in there is gone.
        let shelf = Shelf::default();
        shelf.put(REPOSITORY, "1", &outer);
        shelf.remove(REPOSITORY, &inner.children[0].digest);
        let looked = look_at(&shelf, Extent::Manifests).await;
        assert!(!looked.names().contains(&"linux/amd64"));

        let deeper = images::listing(vec![(outer, Value::Null)]);
        assert_eq!(look(&deeper).await.names(), [""; 0]);
    }
}

#[tokio::test]
async fn nobody_makes_a_mirror_answer_many_requests() {
    let mut inner = Vec::new();
    for number in 0..40 {
        let entry = (
            image("linux", "amd64", &number.to_string()),
            platform("windows", "amd64"),
        );
        inner.push(entry);
    }
    let nested = images::listing(inner);
    let outer = vec![(nested, platform("windows", "amd64")); 40];
    let looked = look(&images::listing(outer)).await;
    assert_eq!(looked.names(), [""; 0]);
    assert!(looked.asked <= 1 + 4 * (1 + 8), "{}", looked.asked);
}

#[tokio::test]
async fn a_single_manifest_counts_for_its_operating_system() {
    let look = async |os, extent| {
        let image = image(os, "amd64", os);
        look_to(&Shelf::default(), &image, extent).await
    };
    let looked = look("windows", Extent::Configurations).await;
    assert_eq!((looked.platforms, looked.asked), (Platforms::WINDOWS, 2));
    let looked = look("linux", Extent::Named).await;
    assert_eq!(looked.platforms, Platforms::LINUX);
    // A review has no time for that.
    let looked = look("windows", Extent::Manifests).await;
    assert_eq!((looked.platforms, looked.asked), (Platforms::ASSUMED, 1));
}
