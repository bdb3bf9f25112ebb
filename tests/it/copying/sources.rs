//! Sources that break, lie and change while they are read.

use std::sync::atomic::{AtomicUsize, Ordering};

use kagami::domain::{answer::MediaType, copying::Reason, digest::Digest};
use serde_json::{Value, json};

use super::{
    FROM, INTO,
    fake::{Act, Answer, Ask, Fake, Features, Kind},
    image, job, noise, of_size, run, settings,
};
use crate::support::images::{Image, digest, index};

const SIZE: usize = 2 << 20;

fn large() -> (Image, String) {
    let image = of_size(SIZE);
    let digest = digest(&image.blobs[0]).to_string();
    (image, digest)
}

fn asks_for(ask: &Ask, digest: &str) -> bool {
    ask.is("GET", Kind::Blob) && ask.last() == digest
}

#[tokio::test]
async fn a_body_that_breaks_goes_on_where_it_stopped() {
    for no_ranges in [false, true] {
        let features = Features {
            no_ranges,
            ..Features::default()
        };
        let (source, mirror) = (Fake::with(features, |_| Act::Usual).await, Fake::usual().await);
        let (image, layer) = large();
        source.hold(FROM, "1", &image);
        let (times, of) = (AtomicUsize::new(0), layer.clone());
        source.set(move |ask| {
            Act::when(
                asks_for(ask, &of) && times.fetch_add(1, Ordering::Relaxed) < 2,
                Act::Cut(SIZE * 4 / 10),
            )
        });
        run(&job(&source, &mirror))
            .await
            .unwrap_or_else(|trouble| panic!("{trouble}"));
        assert!(mirror.holds(INTO, "1", &image));
        // The mirror has noticed nothing.
        let sent = mirror
            .asked()
            .into_iter()
            .filter(|ask| ask.is("PUT", Kind::Upload) && ask.length() == SIZE);
        assert_eq!(sent.count(), 1);
        let ranges = source.asked().into_iter().filter(|ask| asks_for(ask, &layer));
        let ranges: Vec<Option<String>> = ranges.map(|ask| ask.headers.get("range").cloned()).collect();
        let part = |bytes: usize| Some(format!("bytes={bytes}-"));
        let second = if no_ranges {
            SIZE * 4 / 10
        } else {
            SIZE * 4 / 10 * 2
        };
        assert_eq!(ranges, [None, part(SIZE * 4 / 10), part(second)]);
    }
}

#[tokio::test]
async fn a_body_that_breaks_for_ever_ends_the_copy() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let (image, layer) = large();
    source.hold(FROM, "1", &image);
    source.set(move |ask| Act::when(asks_for(ask, &layer), Act::Cut(0)));
    let trouble = run(&job(&source, &mirror)).await.unwrap_err();
    assert!(trouble.is_passing, "{trouble}");
    assert!(mirror.shows_nothing());
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_never_gets_whole_to_the_mirror() {
    let (image, layer) = large();
    let right = image.blobs[0].clone();
    let longer = [right.clone(), b"x".to_vec()].concat();
    let mut changed = right.clone();
    changed[SIZE - 100] ^= 1;
    let shorter = right[..SIZE - 1].to_vec();
    for (act, expected) in [
        (Act::Body(changed.clone()), Reason::DigestMismatch),
        (Act::Unmeasured(longer), Reason::DigestMismatch),
        (Act::Unmeasured(changed), Reason::DigestMismatch),
        (Act::Unmeasured(shorter), Reason::DigestMismatch),
    ] {
        let (source, mirror) = (Fake::usual().await, Fake::usual().await);
        source.hold(FROM, "1", &image);
        let of = layer.clone();
        source.set(move |ask| Act::when(asks_for(ask, &of), act.clone()));
        let trouble = run(&job(&source, &mirror)).await.unwrap_err();
        assert_eq!(trouble.reason, expected, "{trouble}");
        assert!(mirror.shows_nothing());
        // The last piece of it never went out.
        assert!(!mirror.received(SIZE));
    }
}

#[tokio::test]
async fn an_address_that_has_ended_is_asked_for_anew() {
    let (source, storage, mirror) = (Fake::usual().await, Fake::usual().await, Fake::usual().await);
    let (image, layer) = large();
    source.hold(FROM, "1", &image);
    storage.hold("x", "1", &image);
    // Each address is good for one request.
    let (place, times) = (storage.url().to_owned(), AtomicUsize::new(0));
    let of = layer.clone();
    source.set(move |ask| {
        if asks_for(ask, &of) {
            let serial = times.fetch_add(1, Ordering::Relaxed);
            let place = format!("{place}/v2/x/blobs/{of}?serial={serial}");
            return Act::Early(Answer::new(307).header("Location", place));
        }
        Act::Usual
    });
    storage.set(|ask| match ask.query("serial").as_deref() {
        Some("0") => Act::Cut(SIZE / 2),
        Some("1") => Act::Early(
            Answer::new(403)
                .header("Content-Type", "application/xml")
                .body("<Error/>"),
        ),
        _ => Act::Usual,
    });
    run(&job(&source, &mirror))
        .await
        .unwrap_or_else(|trouble| panic!("{trouble}"));
    assert!(mirror.holds(INTO, "1", &image));
}

#[tokio::test]
async fn a_tag_that_moves_while_it_is_read_makes_no_mixture() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let old = index(MediaType::OciIndex, &["amd64", "arm64"], "old");
    let new = index(MediaType::OciIndex, &["amd64", "arm64"], "new");
    source.hold(FROM, "1", &old);
    let lost = old.children[0].digest.to_string();
    let gone = lost.clone();
    source.hold(FROM, "new", &new);
    // Upstream moves the tag and deletes what it named, right after it was read.
    let (name, body) = (new.digest.to_string(), new.manifest.clone());
    source.set(move |ask| {
        if ask.kind == Kind::Manifest && ask.last() == gone {
            return Act::Early(Answer::error(404, "MANIFEST_UNKNOWN", "deleted"));
        }
        if ask.kind == Kind::Manifest && ask.last() == "1" && ask.nth + 1 > 1
            || ask.is("HEAD", Kind::Manifest)
        {
            let moved = Answer::new(200)
                .header("Content-Type", MediaType::OciIndex.as_str())
                .header("Docker-Content-Digest", &name)
                .header("Content-Length", body.len());
            return Act::Early(moved.body(body.clone()));
        }
        Act::Usual
    });
    let done = run(&job(&source, &mirror))
        .await
        .unwrap_or_else(|trouble| panic!("{trouble}"));
    assert_eq!(done.digest, new.digest);
    assert!(mirror.holds(INTO, "1", &new));
    assert!(mirror.manifest(INTO, &old.digest.to_string()).is_none());
}

#[tokio::test]
async fn a_child_that_is_gone_is_told_and_shows_nothing() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let all = index(MediaType::OciIndex, &["amd64", "arm64"], "gone");
    source.hold(FROM, "1", &all);
    source.lose(FROM, &all.children[1].digest.to_string());
    let trouble = run(&job(&source, &mirror)).await.unwrap_err();
    assert_eq!(trouble.reason, Reason::ImageVanished, "{trouble}");
    assert!(
        trouble.words.contains(&all.children[1].digest.to_string()),
        "{trouble}"
    );
    assert!(mirror.shows_nothing());
    source.lose(FROM, "1");
    let trouble = run(&job(&source, &mirror)).await.unwrap_err();
    assert_eq!(trouble.reason, Reason::ImageMissing, "{trouble}");
}

/// Returns an index of these manifests, each with the size that is told of it.
fn listed(children: &[(Digest, usize)]) -> Image {
    let entries: Vec<Value> = children
        .iter()
        .map(|(digest, size)| {
            let media_type = MediaType::OciManifest.as_str();
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
        })
        .collect();
    let media_type = MediaType::OciIndex;
    let list = json!({"schemaVersion": 2, "mediaType": media_type.as_str(), "manifests": entries});
    let manifest = list.to_string().into_bytes();
    Image {
        media_type,
        digest: digest(&manifest),
        manifest,
        blobs: Vec::new(),
        children: Vec::new(),
    }
}

#[tokio::test]
async fn manifests_that_are_too_large_together_are_not_all_read() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let children: Vec<Image> = (0..40_u8)
        .map(|child| {
            let fields = json!({"annotations": {"large": "x".repeat(1 << 20), "child": child}});
            image(vec![vec![child]], &fields)
        })
        .collect();
    for child in &children {
        source.hold(FROM, &child.digest.to_string(), child);
    }
    let index = |tells_size: bool| {
        let size = |child: &Image| if tells_size { child.manifest.len() } else { 0 };
        let entries = children.iter().map(|child| (child.digest.clone(), size(child)));
        listed(&entries.collect::<Vec<_>>())
    };
    let read = || {
        let asked = source.asked();
        let reads = |ask: &&Ask| ask.is("GET", Kind::Manifest) && ask.last().starts_with("sha256:");
        asked.iter().filter(reads).count()
    };
    for (tells_size, at_most) in [(true, 0), (false, 17 + settings().requests)] {
        source.hold(FROM, "1", &index(tells_size));
        let trouble = run(&job(&source, &mirror)).await.unwrap_err();
        assert_eq!(trouble.reason, Reason::UnsupportedManifest, "{trouble}");
        assert!(trouble.words.contains("16 MiB"), "{trouble}");
        assert!(read() <= at_most, "{} were read", read());
    }
    assert!(mirror.shows_nothing());
}

#[tokio::test]
async fn a_manifest_of_another_size_than_its_index_tells_is_not_taken() {
    let child = image(vec![noise(1, 100)], &json!({}));
    for size in [child.manifest.len() - 1, child.manifest.len() + 1] {
        let (source, mirror) = (Fake::usual().await, Fake::usual().await);
        source.hold(FROM, "other", &child);
        source.hold(FROM, "1", &listed(&[(child.digest.clone(), size)]));
        let trouble = run(&job(&source, &mirror)).await.unwrap_err();
        assert!(trouble.words.contains("has not the size"), "{trouble}");
        assert!(mirror.shows_nothing());
    }
}

#[tokio::test]
async fn a_source_that_asks_to_wait_is_left_alone() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let (image, layer) = large();
    source.hold(FROM, "1", &image);
    let times = AtomicUsize::new(0);
    source.set(move |ask| {
        if asks_for(ask, &layer) && times.fetch_add(1, Ordering::Relaxed) < 1 {
            let limit = Answer::error(403, "DENIED", "secondary rate limit").header("Retry-After", "1");
            return Act::Early(limit);
        }
        Act::Usual
    });
    run(&job(&source, &mirror))
        .await
        .unwrap_or_else(|trouble| panic!("{trouble}"));
    assert!(mirror.holds(INTO, "1", &image));
}
