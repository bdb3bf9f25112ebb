//! Tags that move: what they meant before stays by a tag of its own, and what they mean upstream is asked.

use std::{sync::Arc, time::Duration};

use kagami::{
    domain::{copying::Own, digest::Digest},
    registry::copy::Job,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    FROM, INTO,
    companion::{COPIED, LONG, filled, name, until},
    fake::{Act, Answer, Ask, Fake, Features, Kind},
    host, job, of_size, run,
};
use crate::{
    shared::mirror::image_mirror,
    support::kagami::{Kagami, eventually, text},
};

const CLUSTER: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

fn own() -> Own {
    Own::of_cluster(CLUSTER)
}

/// Returns the tags under which manifests were put, in their order.
fn puts(mirror: &Fake) -> Vec<String> {
    let asked = mirror.asked();
    let puts = asked.iter().filter(|ask| ask.is("PUT", Kind::Manifest));
    puts.map(|ask| ask.last().to_owned()).collect()
}

/// A registry in which a tag that moves takes along what it meant before.
async fn forgetting() -> Fake {
    let features = Features {
        forgets: true,
        ..Features::default()
    };
    Fake::with(features, |_| Act::Usual).await
}

fn owning(source: &Fake, mirror: &Fake) -> Job {
    Job {
        own: Some(own()),
        ..job(source, mirror)
    }
}

#[tokio::test]
async fn what_a_moved_tag_meant_before_can_be_pulled_by_its_digest() {
    let (old, new) = (of_size(1000), of_size(2000));
    // Brought by Kagami, or by somebody else who gave it no other tag.
    for is_foreign in [false, true] {
        let (source, mirror) = (Fake::usual().await, forgetting().await);
        source.hold(FROM, "1", &old);
        if is_foreign {
            mirror.hold(INTO, "1", &old);
        } else {
            run(&owning(&source, &mirror)).await.unwrap();
            assert_eq!(puts(&mirror), [own().tag(&old.digest), "1".to_owned()]);
        }
        let before = puts(&mirror).len();
        source.hold(FROM, "1", &new);
        let done = run(&owning(&source, &mirror)).await.unwrap();
        assert_eq!(done.digest, new.digest);
        assert!(mirror.holds(INTO, "1", &new));
        assert!(mirror.holds(INTO, &old.digest.to_string(), &old));
        assert!(mirror.holds(INTO, &own().tag(&old.digest), &old));
        // Each tag of its own is given once, and before the tag that people know.
        let put = &puts(&mirror)[before..];
        let expected = [&old.digest, &new.digest].map(|digest| own().tag(digest));
        let expected = [&expected[usize::from(!is_foreign)..], &["1".to_owned()]].concat();
        assert_eq!(put, expected);
    }
}

#[tokio::test]
async fn without_a_tag_of_its_own_such_a_registry_loses_what_the_tag_meant_before() {
    let (source, mirror) = (Fake::usual().await, forgetting().await);
    let (old, new) = (of_size(1000), of_size(2000));
    for image in [&old, &new] {
        source.hold(FROM, "1", image);
        run(&job(&source, &mirror)).await.unwrap();
    }
    assert_eq!(mirror.manifest(INTO, &old.digest.to_string()), None);
    assert_eq!(puts(&mirror), ["1", "1"]);
}

#[tokio::test]
async fn a_tag_of_its_own_that_stands_is_not_put_again() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let image = of_size(1000);
    source.hold(FROM, "1", &image);
    let first = owning(&source, &mirror);
    run(&first).await.unwrap();
    // The same image under another tag, and once more as it is.
    let second = Job {
        tag: "2".to_owned(),
        upstream: Arc::clone(&first.upstream),
        mirror: Arc::clone(&first.mirror),
        ..owning(&source, &mirror)
    };
    run(&second).await.unwrap();
    run(&first).await.unwrap();
    assert_eq!(puts(&mirror), [&own().tag(&image.digest), "1", "2"]);
    // Of another cluster it has another one, which the image gets though all of it is there.
    let other = Own::of_cluster("11111111-2222-3333-4444-555555555555");
    let third = Job {
        own: Some(other.clone()),
        ..first
    };
    run(&third).await.unwrap();
    assert_eq!(puts(&mirror)[3..], [other.tag(&image.digest)]);
}

/// Nobody who has the old image by its digest is to lose it.
#[tokio::test]
async fn a_tag_does_not_move_while_what_it_means_has_no_tag_of_its_own() {
    let (source, mirror) = (Fake::usual().await, forgetting().await);
    let (old, new) = (of_size(1000), of_size(2000));
    source.hold(FROM, "1", &new);
    mirror.hold(INTO, "1", &old);
    let refused: Digest = old.digest.clone();
    mirror.set(move |ask| {
        let is_own = ask.is("PUT", Kind::Manifest) && ask.last() == own().tag(&refused);
        let no = Answer::error(403, "DENIED", "no");
        Act::when(is_own, Act::Swallow(no))
    });
    run(&owning(&source, &mirror)).await.unwrap_err();
    assert!(mirror.holds(INTO, "1", &old));
    // What nobody can have any more holds up nothing.
    mirror.set(|_| Act::Usual);
    let lost = old.blobs.last().map(|blob| crate::support::images::digest(blob));
    mirror.lose_blob(INTO, &lost.unwrap());
    run(&owning(&source, &mirror)).await.unwrap();
    assert!(mirror.holds(INTO, "1", &new));
}

const MOVED: &str = "kagami_tags_moved{mirror=\"main\"}";
const FOUND: &str = "kagami_tag_refreshes_total{result=\"Found\"}";

/// The place of an image in a mirror.
fn mirrored(source: &Fake) -> String {
    format!("{}/team/app", host(source.url()).replace(':', "_"))
}

/// A mirror that is filled and asks upstream every second.
fn refreshing(source: &Fake, mirror: &Fake, drift: &str, more: &Value) -> Value {
    let mut spec = json!({"tags": {"pin": "Digest", "refresh": "1s", "drift": drift}});
    json_patch::merge(&mut spec, more);
    filled(source.url(), mirror.url(), &spec)
}

async fn until_metric(kagami: &Kagami, name: &str, is_so: impl Fn(f64) -> bool) {
    eventually(name, LONG, async || {
        let value = kagami.metric(name).await;
        is_so(value)
            .then_some(())
            .ok_or_else(|| format!("{value}\n{}", kagami.log()))
    })
    .await;
}

/// Asks until this is what a Pod gets.
async fn until_image(kagami: &Kagami, image: &str, expected: &str) {
    let mut caller = kagami.connect().await.in_no_hurry();
    let deadline = Instant::now() + LONG;
    loop {
        let answer = caller.ask(&[image]).await;
        if answer.images == [expected] {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{:?} {:?}\n{}",
            answer.images,
            answer.reasons,
            kagami.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_tag_that_moves_upstream_is_copied_anew_for_one_question_in_its_time() {
    let (source, mirror) = (Fake::usual().await, forgetting().await);
    let (old, new) = (of_size(1000), of_size(2000));
    source.hold(FROM, "1", &old);
    let kagami = Kagami::start(&[refreshing(&source, &mirror, "Sync", &json!({}))]).await;
    let wanted = name(source.url(), "app:1");
    let at = |digest: &Digest| format!("mirror.test/{}:1@{digest}", mirrored(&source));
    until_image(&kagami, &wanted, &at(&old.digest)).await;

    // While nothing changes upstream is asked by headers, and the mirror is written to by nobody.
    let found = kagami.metric(FOUND).await;
    let before = (source.asked().len(), mirror.asked().len());
    until_metric(&kagami, FOUND, |now| now >= found + 3.0).await;
    let (asked, answered) = (source.asked(), mirror.asked());
    let (asked, answered) = (&asked[before.0..], &answered[before.1..]);
    // One may have been answered and not be counted yet.
    let counted = kagami.metric(FOUND).await - found;
    let asks = f64::from(u32::try_from(asked.len()).unwrap());
    assert!(asks <= counted + 1.0, "{asked:?}");
    assert!(
        asked.iter().all(|ask| ask.is("HEAD", Kind::Manifest)),
        "{asked:?}"
    );
    // Beyond what its health takes, with each ping one look at the most.
    let is_read = |ask: &Ask| matches!(ask.method.as_str(), "GET" | "HEAD");
    assert!(answered.iter().all(is_read), "{answered:?}");
    let count = |kind| answered.iter().filter(|ask| ask.kind == kind).count();
    assert!(count(Kind::Manifest) <= count(Kind::Ping), "{answered:?}");

    source.hold(FROM, "1", &new);
    until_image(&kagami, &wanted, &at(&new.digest)).await;
    assert!(mirror.holds(&mirrored(&source), "1", &new));
    // Whoever has the old one by its digest can pull it.
    assert!(mirror.holds(&mirrored(&source), &old.digest.to_string(), &old));
    assert!((kagami.metric(COPIED).await - 2.0).abs() < 0.1);
    until_metric(&kagami, MOVED, |moved| moved < 0.5).await;
    let log = kagami.log();
    assert_eq!(
        log.matches("a tag means another image upstream").count(),
        1,
        "{log}"
    );
}

#[tokio::test]
async fn a_tag_that_moved_is_upstreams_or_the_mirrors_as_the_mirror_says() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let (old, new) = (of_size(1000), of_size(2000));
    source.hold(FROM, "1", &old);
    let with = |drift| {
        [refreshing(
            &source,
            &mirror,
            drift,
            &json!({"freshness": {"tag": "2s"}}),
        )]
    };
    let kagami = Kagami::start(&with("Warn")).await;
    let wanted = name(source.url(), "app:1");
    until(&kagami, &[&wanted], &["Mirrored"]).await;
    let before = puts(&mirror).len();
    source.hold(FROM, "1", &new);
    until(&kagami, &[&wanted], &["ImageMoved"]).await;
    until_metric(&kagami, MOVED, |moved| moved > 0.5).await;
    // Further questions change nothing.
    let found = kagami.metric(FOUND).await;
    until_metric(&kagami, FOUND, |now| now >= found + 2.0).await;
    until(&kagami, &[&wanted], &["ImageMoved"]).await;

    kagami.configure(&text(&with("Keep")));
    let expected = format!("mirror.test/{}:1@{}", mirrored(&source), old.digest);
    until_image(&kagami, &wanted, &expected).await;
    kagami.configure(&text(&with("Warn")));
    until(&kagami, &[&wanted], &["ImageMoved"]).await;
    assert_eq!(puts(&mirror).len(), before, "nobody copied it");

    // Somebody does, by hand.
    mirror.hold(&mirrored(&source), "1", &new);
    let expected = format!("mirror.test/{}:1@{}", mirrored(&source), new.digest);
    until_image(&kagami, &wanted, &expected).await;
    until_metric(&kagami, MOVED, |moved| moved < 0.5).await;
    // What upstream has no more is no other image.
    source.hold(FROM, "1", &old);
    until(&kagami, &[&wanted], &["ImageMoved"]).await;
    source.lose(FROM, "1");
    until(&kagami, &[&wanted], &["Mirrored"]).await;
}

#[tokio::test]
async fn upstream_is_asked_once_for_all_mirrors() {
    let source = Fake::usual().await;
    let mirrors = [Fake::usual().await, Fake::usual().await];
    let image = of_size(1000);
    source.hold(FROM, "1", &image);
    let spec = json!({
        "copy": {"policy": "OnDemand"}, "tags": {"refresh": "2s"},
        "health": {"interval": "200ms", "timeout": "500ms"}, "freshness": {"missing": "1s"},
    });
    let documents: Vec<Value> = ["first", "second"]
        .iter()
        .zip(&mirrors)
        .map(|(name, mirror)| {
            let registry = format!("{name}.test");
            image_mirror(name, &registry, &[host(source.url())], mirror.url(), &spec)
        })
        .collect();
    // What the first one lacks is looked for at the second one, and copied.
    mirrors[1].hold(&mirrored(&source), "1", &image);
    let kagami = Kagami::start(&documents).await;
    let wanted = name(source.url(), "app:1");
    for mirror in ["second", "first"] {
        let expected = format!("{mirror}.test/{}:1", mirrored(&source));
        until_image(&kagami, &wanted, &expected).await;
    }
    let began = Instant::now();
    let before = kagami.metric(FOUND).await;
    until_metric(&kagami, FOUND, |now| now >= before + 4.0).await;
    let asked = kagami.metric(FOUND).await - before;
    let periods = began.elapsed().as_secs_f64() / 2.0;
    assert!(asked <= periods + 1.1, "{asked} in {periods}");
}
