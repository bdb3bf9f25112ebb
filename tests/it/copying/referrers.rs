//! Signatures, SBOMs and what else refers to an image, in every way that two registries can speak.

use kagami::{
    domain::{answer::MediaType, copying::Reason},
    registry::copy::Job,
};
use serde_json::{Value, json};

use super::{
    FROM, INTO,
    fake::{Act, Answer, Fake, Features, Kind, OCI_INDEX},
    image, job, noise, of_size, run,
};
use crate::support::images::{Image, index};

fn of(subject: &Image, seed: u64) -> Image {
    let refers = json!({
        "artifactType": "application/vnd.example.sbom",
        "annotations": {"made": "by a test"},
        "subject": {"mediaType": subject.media_type.as_str(), "digest": subject.digest.to_string(), "size": subject.manifest.len()},
    });
    image(vec![noise(seed, 300)], &refers)
}

fn list_tag(image: &Image) -> String {
    image.digest.to_string().replace(':', "-")
}

/// Puts a list of what refers to an image under its tag, as whoever pushes to a registry without lists does.
fn list(fake: &Fake, subject: &Image, referrers: &[&Image]) {
    let entries: Vec<Value> = referrers
        .iter()
        .map(|image| json!({"mediaType": image.media_type.as_str(), "digest": image.digest.to_string(), "size": image.manifest.len()}))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    let list = Image {
        media_type: MediaType::OciIndex,
        digest: crate::support::images::digest(manifest.as_bytes()),
        manifest: manifest.into_bytes(),
        blobs: Vec::new(),
        children: Vec::new(),
    };
    fake.hold(FROM, &list_tag(subject), &list);
}

fn listed(fake: &Fake, subject: &Image) -> Vec<Value> {
    let list = fake.manifest(INTO, &list_tag(subject));
    let list: Value = list.map_or_else(
        || json!({"manifests": []}),
        |list| serde_json::from_slice(&list).unwrap(),
    );
    list["manifests"].as_array().unwrap().clone()
}

async fn registry(lists: bool) -> Fake {
    Fake::with(
        Features {
            lists,
            ..Features::default()
        },
        |_| Act::Usual,
    )
    .await
}

#[tokio::test]
async fn they_come_along_each_way_the_two_sides_speak() {
    for (source_lists, mirror_lists) in [(false, false), (false, true), (true, false), (true, true)] {
        let (source, mirror) = (registry(source_lists).await, registry(mirror_lists).await);
        let all = index(MediaType::OciIndex, &["amd64", "arm64"], "signed");
        let (of_index, of_child) = (of(&all, 1), of(&all.children[0], 2));
        let of_sbom = of(&of_child, 3);
        let tagged = image(vec![noise(4, 50)], &json!({}));
        source.hold(FROM, "1", &all);
        source.hold(FROM, &format!("{}.sig", list_tag(&all)), &tagged);
        for (subject, referrer) in [
            (&all, &of_index),
            (&all.children[0], &of_child),
            (&of_child, &of_sbom),
        ] {
            source.hold(FROM, &referrer.digest.to_string(), referrer);
            if !source_lists {
                list(&source, subject, &[referrer]);
            }
        }
        let job = Job {
            referrers: true,
            ..job(&source, &mirror)
        };
        let done = run(&job).await.unwrap_or_else(|trouble| panic!("{trouble}"));
        let which = format!("{source_lists} {mirror_lists}");
        assert_eq!((done.referrers, &*done.incomplete), (4, &[][..]), "{which}");
        assert!(mirror.holds(INTO, "1", &all), "{which}");
        assert!(
            mirror.holds(INTO, &format!("{}.sig", list_tag(&all)), &tagged),
            "{which}"
        );
        for (subject, referrer) in [
            (&all, &of_index),
            (&all.children[0], &of_child),
            (&of_child, &of_sbom),
        ] {
            assert!(
                mirror.holds(INTO, &referrer.digest.to_string(), referrer),
                "{which}"
            );
            let entries = listed(&mirror, subject);
            if mirror_lists {
                // No list is made where the registry has one.
                assert!(entries.is_empty(), "{which}");
                continue;
            }
            assert_eq!(entries.len(), 1, "{which}");
            assert_eq!(entries[0]["digest"], referrer.digest.to_string());
            assert_eq!(entries[0]["artifactType"], "application/vnd.example.sbom");
            assert_eq!(entries[0]["annotations"], json!({"made": "by a test"}));
        }
    }
}

#[tokio::test]
async fn a_registry_that_only_seems_to_list_gets_a_list() {
    // 200 and an empty list to anything, and a word on the subject that means nothing.
    let (source, mirror) = (registry(true).await, registry(false).await);
    mirror.set(|ask| {
        let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
        match ask.kind {
            Kind::Referrers => Act::Early(Answer::new(200).header("Content-Type", OCI_INDEX).body(empty)),
            _ => Act::Usual,
        }
    });
    let signed = of_size(1000);
    let signature = of(&signed, 1);
    source.hold(FROM, "1", &signed);
    source.hold(FROM, &signature.digest.to_string(), &signature);
    let job = Job {
        referrers: true,
        ..job(&source, &mirror)
    };
    let done = run(&job).await.unwrap();
    assert_eq!((done.referrers, &*done.incomplete), (1, &[][..]));
    assert_eq!(
        listed(&mirror, &signed)[0]["digest"],
        signature.digest.to_string()
    );
}

#[tokio::test]
async fn an_empty_list_at_the_source_is_not_believed() {
    let (source, mirror) = (registry(false).await, registry(false).await);
    let signed = of_size(1000);
    let signature = of(&signed, 1);
    source.hold(FROM, "1", &signed);
    source.hold(FROM, &signature.digest.to_string(), &signature);
    list(&source, &signed, &[&signature]);
    source.set(|ask| {
        let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
        match ask.kind {
            Kind::Referrers => Act::Early(Answer::new(200).header("Content-Type", OCI_INDEX).body(empty)),
            _ => Act::Usual,
        }
    });
    let job = Job {
        referrers: true,
        ..job(&source, &mirror)
    };
    assert_eq!(run(&job).await.unwrap().referrers, 1);
}

#[tokio::test]
async fn past_the_bound_nobody_is_asked_for_more() {
    let (source, mirror) = (registry(false).await, registry(false).await);
    let subject = index(MediaType::OciIndex, &["amd64", "arm64"], "1");
    source.hold(FROM, "1", &subject);
    let entries: Vec<Value> = (0..2000)
        .map(|entry| json!({"digest": format!("sha256:{entry:064x}"), "mediaType": MediaType::OciManifest.as_str(), "size": 1}))
        .collect();
    let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let manifest = list.to_string().into_bytes();
    let list = Image {
        media_type: MediaType::OciIndex,
        digest: crate::support::images::digest(&manifest),
        manifest,
        blobs: Vec::new(),
        children: Vec::new(),
    };
    source.hold(FROM, &list_tag(&subject), &list);
    let job = Job {
        referrers: true,
        ..job(&source, &mirror)
    };
    let copied = run(&job).await.unwrap();
    assert!(mirror.holds(INTO, "1", &subject));
    assert_eq!(copied.referrers, 0);
    let mut told = copied.incomplete.iter();
    assert!(told.any(|trouble| trouble.words.contains("more than 1000")));
    let asked = source.asked();
    let child = list_tag(&subject.children[0]);
    assert!(
        !asked.iter().any(|ask| ask.last() == child),
        "its child was asked for"
    );
    let reads = asked.iter().filter(|ask| ask.last().starts_with("sha256:0000"));
    assert_eq!(reads.count(), 1000);
}

#[tokio::test]
async fn a_signature_made_later_comes_with_the_next_copy() {
    let (source, mirror) = (registry(true).await, registry(false).await);
    let signed = of_size(1000);
    source.hold(FROM, "1", &signed);
    let job = Job {
        referrers: true,
        ..job(&source, &mirror)
    };
    assert_eq!(run(&job).await.unwrap().referrers, 0);
    let (first, second) = (of(&signed, 1), of(&signed, 2));
    for signature in [&first, &second] {
        source.hold(FROM, &signature.digest.to_string(), signature);
        let done = run(&job).await.unwrap();
        assert_eq!(&*done.incomplete, &[][..]);
    }
    // What was listed before stays.
    assert_eq!(listed(&mirror, &signed).len(), 2);
}

#[tokio::test]
async fn what_cannot_be_brought_leaves_the_image_served() {
    let (source, mirror) = (registry(true).await, registry(true).await);
    let signed = of_size(1000);
    let signature = of(&signed, 1);
    source.hold(FROM, "1", &signed);
    source.hold(FROM, &signature.digest.to_string(), &signature);
    source.lose_blob(FROM, &crate::support::images::digest(&signature.blobs[0]));
    let job = Job {
        referrers: true,
        ..job(&source, &mirror)
    };
    let done = run(&job).await.unwrap();
    assert_eq!(done.incomplete.len(), 1, "{done:?}");
    assert!(mirror.holds(INTO, "1", &signed));
    assert!(mirror.manifest(INTO, &signature.digest.to_string()).is_none());
}

fn bytes_of(image: &Image) -> u64 {
    let blobs: usize = image.blobs.iter().map(Vec::len).sum();
    (blobs + image.manifest.len()) as u64
}

#[tokio::test]
async fn what_refers_to_an_image_has_a_bound_with_it_or_of_its_own() {
    let whole = of_size(1000);
    let [one, two, three] = [1, 2, 3].map(|seed| of(&whole, seed));
    let each = bytes_of(&one);
    for (max_size, max_referrers, expected) in [
        (None, None, 3),
        (None, Some(2 * each + 100), 2),
        (
            Some(bytes_of(&whole) + each + 100),
            Some(bytes_of(&whole) + each + 100),
            1,
        ),
    ] {
        let (source, mirror) = (registry(true).await, registry(true).await);
        source.hold(FROM, "1", &whole);
        for referrer in [&one, &two, &three] {
            source.hold(FROM, &referrer.digest.to_string(), referrer);
        }
        let job = Job {
            referrers: true,
            max_size,
            max_referrers,
            ..job(&source, &mirror)
        };
        // A second copy, which finds the image there, is as strict.
        for _ in 0..2 {
            let done = run(&job).await.unwrap_or_else(|trouble| panic!("{trouble}"));
            let which = format!("{max_size:?} {max_referrers:?} {:?}", done.incomplete);
            assert_eq!(done.referrers, expected, "{which}");
            assert_eq!(done.incomplete.len() as u64, 3 - expected, "{which}");
            let mut incomplete = done.incomplete.iter();
            assert!(
                incomplete.all(|trouble| trouble.reason == Reason::ImageTooLarge),
                "{which}"
            );
            let there = [&one, &two, &three]
                .into_iter()
                .filter(|image| mirror.manifest(INTO, &image.digest.to_string()).is_some());
            assert_eq!(there.count() as u64, expected, "{which}");
            assert!(mirror.holds(INTO, "1", &whole), "{which}");
        }
    }
}
