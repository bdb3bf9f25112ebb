//! Mirrors that take images in ways of their own, or not at all: each as registries in the field do.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use kagami::{
    domain::{answer::MediaType, copying::Reason, platform::Platforms},
    registry::{
        Credentials,
        copy::{self, Job, Meter, Mirror, Settings},
    },
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    FROM, INTO,
    fake::{Act, Answer, Ask, Fake, Features, Kind},
    image, job, job_as, noise, of_size, run, settings,
};
use crate::support::{
    images::{digest, index, single},
    kagami::eventually,
};

/// Copies an image of so many bytes to a mirror that behaves so, and checks that all of it is there.
async fn copied(bytes: usize, quirk: impl Fn(&Ask) -> Act + Send + Sync + 'static) -> Fake {
    let (source, mirror) = (Fake::usual().await, Fake::start(quirk).await);
    let image = of_size(bytes);
    source.hold(FROM, "1", &image);
    let done = run(&job(&source, &mirror)).await;
    let done = done.unwrap_or_else(|trouble| panic!("{trouble}"));
    assert_eq!(done.digest, image.digest);
    assert!(mirror.holds(INTO, "1", &image));
    mirror
}

/// Copies likewise to a mirror that must not end up with anything to be seen, and returns why.
async fn refused(bytes: usize, quirk: impl Fn(&Ask) -> Act + Send + Sync + 'static) -> (Reason, String) {
    let (source, mirror) = (Fake::usual().await, Fake::start(quirk).await);
    source.hold(FROM, "1", &of_size(bytes));
    let trouble = run(&job(&source, &mirror)).await.unwrap_err();
    assert!(mirror.shows_nothing(), "{trouble}");
    (trouble.reason, trouble.words)
}

#[tokio::test]
async fn an_image_costs_few_requests() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let layers = (0..6).map(|seed| noise(seed, 5000)).collect();
    source.hold(FROM, "1", &image(layers, &json!({})));
    let requests = || source.asked().len() + mirror.asked().len();
    run(&job(&source, &mirror)).await.unwrap();
    assert!(requests() <= 25, "{}", requests());
    let before = (source.asked().len(), mirror.asked().len());
    run(&job(&source, &mirror)).await.unwrap();
    assert_eq!(
        (source.asked().len() - before.0, mirror.asked().len() - before.1),
        (1, 1)
    );
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let layers = (0..6).map(|seed| noise(seed, 5000)).collect();
    source.hold(FROM, "1", &image(layers, &json!({})));
    let job = Job {
        referrers: true,
        ..job(&source, &mirror)
    };
    run(&job).await.unwrap();
    let requests = source.asked().len() + mirror.asked().len();
    assert!(requests <= 30, "{requests}");
}

#[tokio::test]
async fn both_registries_are_asked_at_once_where_nothing_is_there() {
    let source = Fake::usual().await;
    let mirror = Fake::start(|ask| Act::when(ask.is("POST", Kind::Begin), Act::Stall(0))).await;
    source.hold(FROM, "1", &of_size(1000));
    let copying = job(&source, &mirror);
    let copying = tokio::spawn(async move { run(&copying).await });
    eventually("the blobs are asked for", Duration::from_secs(5), async || {
        let begun = mirror.count("POST", Kind::Begin);
        let asked = source.count("GET", Kind::Blob);
        (begun == 4 && asked == 4)
            .then_some(())
            .ok_or_else(|| format!("{begun} uploads begun, {asked} blobs asked for"))
    })
    .await;
    copying.abort();
}

#[tokio::test]
async fn little_is_fetched_where_much_is_there() {
    // As after a copy that was broken off: blobs, and nothing that names them.
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let image = image((0..40).map(|seed| noise(seed, 5000)).collect(), &json!({}));
    source.hold(FROM, "1", &image);
    mirror.hold(INTO, "1", &image);
    mirror.lose(INTO, "1");
    mirror.lose(INTO, &image.digest.to_string());
    run(&job(&source, &mirror)).await.unwrap();
    assert!(mirror.holds(INTO, "1", &image));
    assert_eq!(mirror.count("PUT", Kind::Upload), 0);
    // The first ones are under way before anything is known.
    let fetched = source.count("GET", Kind::Blob);
    assert!(fetched <= settings().blobs, "{fetched}");
}

#[tokio::test]
async fn the_next_image_is_read_while_one_is_brought_and_waits_for_its_turn() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let settings = Settings {
        images: 1,
        ..settings()
    };
    let images: Vec<_> = (0..2)
        .map(|number| {
            image(
                vec![noise(number, 5000)],
                &json!({"annotations": {"of": number.to_string()}}),
            )
        })
        .collect();
    for (number, image) in images.iter().enumerate() {
        source.hold(FROM, &number.to_string(), image);
    }
    let read = Arc::new(AtomicBool::new(false));
    let is_read = Arc::clone(&read);
    // No upload of the first one comes to pass before the second one is read.
    mirror.set(move |ask| {
        let waits = ask.is("PUT", Kind::Upload) && !is_read.load(Ordering::Relaxed);
        Act::when(waits, Act::Early(Answer::new(503)))
    });
    source.set(move |ask| {
        if ask.is("GET", Kind::Manifest) && ask.nth == 1 {
            read.store(true, Ordering::Relaxed);
        }
        Act::Usual
    });
    let first = Job {
        mirror: Arc::new(Mirror::new(mirror.client(None), &settings)),
        ..job(&source, &mirror)
    };
    let jobs: Vec<Job> = (0..2)
        .map(|number| Job {
            reference: number.to_string(),
            tag: number.to_string(),
            ..first.clone()
        })
        .collect();
    let meter = Meter::default();
    let done = join_all(jobs.iter().map(|job| copy::copy(job, &settings, &meter))).await;
    for (done, image) in done.into_iter().zip(&images) {
        assert_eq!(done.unwrap().digest, image.digest);
    }
    // The second one begins when the first one's tag is there.
    let asked = mirror.asked();
    let tagged = asked
        .iter()
        .position(|ask| ask.is("PUT", Kind::Manifest))
        .unwrap();
    let of = |layer: u64| digest(&noise(layer, 5000)).to_string();
    let begun = |layer: u64| {
        let mut asked = asked.iter();
        asked.position(|ask| ask.query("mount").is_some_and(|digest| digest == of(layer)))
    };
    let (first, second) = (begun(0).unwrap(), begun(1).unwrap());
    assert!(
        (first < tagged) != (second < tagged),
        "{first}, {second}, tag {tagged}"
    );
}

#[tokio::test]
async fn one_body_is_sent_whole_with_its_length_and_no_range() {
    // Google's takes no pieces; GitHub's says 416 to a Content-Range beyond 4 MiB; ECR drops the second piece.
    let mirror = copied(5 << 20, |ask| {
        if ask.method == "PATCH" || ask.headers.contains_key("content-range") {
            return Act::Early(Answer::error(416, "UNSUPPORTED", "no pieces"));
        }
        Act::Usual
    })
    .await;
    let uploads = mirror
        .asked()
        .into_iter()
        .filter(|ask| ask.is("PUT", Kind::Upload));
    let lengths: Vec<usize> = uploads
        .map(|ask| ask.headers["content-length"].parse().unwrap())
        .collect();
    assert_eq!(lengths.len(), 4);
    assert!(lengths.contains(&(5 << 20)) && lengths.contains(&0));
}

#[tokio::test]
async fn who_takes_no_long_body_gets_pieces() {
    // A CDN closes the connection with a page of its own before the body is sent.
    let limit = 300_000;
    let mirror = copied(3 << 20, move |ask| {
        if ask.kind == Kind::Upload && ask.length() > limit {
            return Act::Early(Answer::html(413));
        }
        Act::Usual
    })
    .await;
    let pieces = mirror
        .asked()
        .into_iter()
        .filter(|ask| ask.is("PATCH", Kind::Upload) && ask.length() <= limit);
    let ranges: Vec<String> = pieces.map(|ask| ask.headers["content-range"].clone()).collect();
    assert_eq!(ranges.len(), 12);
    assert_eq!((&*ranges[0], &*ranges[11]), ("0-262143", "2883584-3145727"));
}

#[tokio::test]
async fn pieces_that_are_dropped_in_silence_are_noticed() {
    let (reason, words) = refused(3 << 20, |ask| match (&*ask.method, ask.nth) {
        ("PUT", _) if ask.length() > 1 << 20 => Act::Early(Answer::html(413)),
        ("PATCH", nth) if nth % 3 == 1 => {
            let kept = Answer::new(201)
                .header("Location", &ask.target)
                .header("Range", "0-1048575");
            Act::Swallow(kept)
        }
        _ => Act::Usual,
    })
    .await;
    assert_eq!(reason, Reason::UploadLost, "{words}");
    assert!(words.contains("0-1048575"), "{words}");
}

#[tokio::test]
async fn who_takes_no_body_at_all_is_told_by_name() {
    let (reason, words) = refused(1 << 20, |ask| {
        if ask.kind == Kind::Upload && ask.length() > 10_000 {
            return Act::Early(Answer::html(413));
        }
        Act::Usual
    })
    .await;
    assert_eq!(reason, Reason::BodyTooLarge, "{words}");
    assert!(words.contains("413") && reason.advice().contains("client_max_body_size"));
}

#[tokio::test]
async fn who_cuts_long_bodies_without_a_word_gets_pieces() {
    copied(3 << 20, |ask| {
        // Its answer was lost on the way.
        if ask.kind == Kind::Upload && ask.length() > 2 << 20 {
            return Act::Close(100_000);
        }
        Act::Usual
    })
    .await;
}

#[tokio::test]
async fn a_mount_may_be_answered_by_anything() {
    for status in [401, 403, 404, 405, 400, 500] {
        let mirror = copied(1000, move |ask| {
            if ask.query("mount").is_some() {
                return Act::Early(Answer::error(status, "DENIED", "no"));
            }
            Act::Usual
        })
        .await;
        let mounts = mirror
            .asked()
            .iter()
            .filter(|ask| ask.query("mount").is_some())
            .count();
        // Whoever was under way together asks once each.
        assert!(mounts <= 4, "{status}: {mounts}");
    }
    // What a refused mount has opened is used.
    let mirror = copied(1000, |_| Act::Usual).await;
    assert_eq!(mirror.count("POST", Kind::Begin), 4);
    assert_eq!(mirror.count("PUT", Kind::Upload), 4);
}

#[tokio::test]
async fn blobs_are_taken_over_from_where_they_are() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let (one, other) = (
        of_size(5000),
        image(vec![noise(1, 5000), noise(7, 100)], &json!({})),
    );
    source.hold(FROM, "1", &one);
    source.hold(FROM, "2", &other);
    let first = job(&source, &mirror);
    run(&first).await.unwrap();
    let second = Job {
        reference: "2".to_owned(),
        into: "copies/other".to_owned(),
        ..first
    };
    let done = run(&second).await.unwrap();
    assert!(mirror.holds("copies/other", "1", &other));
    assert_eq!((done.mounted, done.uploaded), (2, 1));
}

#[tokio::test]
async fn a_blob_that_is_there_by_word_alone_is_sent_all_the_same() {
    // What the garbage collector took away, and the cache still has: by HEAD, and by mount.
    let mirror = copied(2 << 20, |ask| {
        if ask.is("HEAD", Kind::Blob) {
            return Act::Early(Answer::new(200).header("Content-Length", 2 << 20));
        }
        if ask.query("mount").is_some() {
            return Act::Early(Answer::new(201));
        }
        Act::Usual
    })
    .await;
    assert_eq!(mirror.count("PUT", Kind::Upload), 4);
}

#[tokio::test]
async fn a_mirror_that_contradicts_itself_is_told_by_name() {
    let (reason, words) = refused(1000, |ask| {
        if ask.is("PUT", Kind::Manifest) {
            return Act::Swallow(Answer::error(
                400,
                "MANIFEST_BLOB_UNKNOWN",
                "blob unknown to registry",
            ));
        }
        Act::Usual
    })
    .await;
    assert_eq!(reason, Reason::MirrorInconsistent, "{words}");
}

#[tokio::test]
async fn an_answer_that_gets_lost_does_not_send_it_twice() {
    // One that takes nothing over: then it would be told by that.
    let features = Features {
        no_mounts: true,
        ..Features::default()
    };
    let source = Fake::usual().await;
    let mirror = Fake::with(features, |ask| {
        if ask.is("PUT", Kind::Upload) && ask.length() > 1 << 20 {
            return Act::Instead(Answer::html(504));
        }
        Act::Usual
    })
    .await;
    let image = of_size(2 << 20);
    source.hold(FROM, "1", &image);
    let done = run(&job(&source, &mirror)).await;
    done.unwrap_or_else(|trouble| panic!("{trouble}"));
    assert!(mirror.holds(INTO, "1", &image));
    let asked = mirror.asked().into_iter();
    let sent = asked.filter(|ask| ask.is("PUT", Kind::Upload) && ask.length() > 1 << 20);
    assert_eq!(sent.count(), 1);
}

#[tokio::test]
async fn who_reads_no_more_is_not_waited_for() {
    let started = Instant::now();
    // More than the buffers of both ends.
    let (reason, words) = refused(24 << 20, |ask| {
        if ask.is("PUT", Kind::Upload) && ask.length() > 1 << 20 {
            return Act::Stall(1 << 20);
        }
        Act::Usual
    })
    .await;
    assert_eq!(reason, Reason::MirrorNotWritable, "{words}");
    assert!(words.contains("nothing moved"), "{words}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn what_was_written_may_be_shown_later() {
    let mirror = copied(1000, |ask| match (&*ask.method, &ask.kind) {
        ("HEAD", Kind::Manifest) if ask.nth < 3 => {
            Act::Early(Answer::error(404, "MANIFEST_UNKNOWN", "not yet"))
        }
        _ => Act::Usual,
    })
    .await;
    assert_eq!(mirror.count("PUT", Kind::Manifest), 1);
    assert_eq!(mirror.count("HEAD", Kind::Manifest), 4);
}

#[tokio::test]
async fn what_is_never_shown_was_not_copied() {
    for answer in [Answer::new(200), Answer::new(201)] {
        let (reason, words) = refused(1000, move |ask| {
            Act::when(ask.is("PUT", Kind::Manifest), Act::Swallow(answer.clone()))
        })
        .await;
        // Web servers say 200 to anything.
        assert!(
            matches!(reason, Reason::NotReadBack | Reason::ManifestRefused),
            "{words}"
        );
    }
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_is_renewed() {
    let source = Fake::usual().await;
    let image = of_size(2 << 20);
    source.hold(FROM, "1", &image);
    let mirror = Fake::usual().await;
    let (realm, serial, ended) = (
        format!("{}/token", mirror.url()),
        Arc::new(AtomicUsize::new(0)),
        AtomicBool::new(false),
    );
    mirror.set(move |ask| {
        if ask.path() == "/token" {
            let token = format!("token {}", serial.fetch_add(1, Ordering::Relaxed)).replace(' ', "-");
            let body = json!({"token": token, "expires_in": 3600}).to_string();
            return Act::Early(
                Answer::new(200)
                    .header("Content-Type", "application/json")
                    .body(body),
            );
        }
        let challenge = || {
            let challenge =
                format!("Bearer realm=\"{realm}\",service=\"x\",scope=\"repository:{INTO}:pull,push\"");
            Answer::error(401, "UNAUTHORIZED", "token has expired").header("WWW-Authenticate", challenge)
        };
        let Some(shown) = ask
            .headers
            .get("authorization")
            .filter(|shown| shown.starts_with("Bearer "))
        else {
            return Act::Early(challenge());
        };
        // The first token ends once a long body was sent.
        let is_first = shown.ends_with("-0");
        if ask.is("PUT", Kind::Upload) && ask.length() > 1 << 20 && is_first {
            ended.store(true, Ordering::Relaxed);
            return Act::Swallow(challenge());
        }
        if is_first && ended.load(Ordering::Relaxed) {
            return Act::Early(challenge());
        }
        Act::Usual
    });
    let login = Credentials {
        username: "pusher".to_owned(),
        password: "geheim".to_owned(),
    };
    run(&job_as(&source, &mirror, Some(login)))
        .await
        .unwrap_or_else(|trouble| panic!("{trouble}"));
    assert!(mirror.holds(INTO, "1", &image));
}

#[tokio::test]
async fn an_upload_may_go_on_at_another_host_and_is_shown_no_login() {
    let (source, mirror, storage) = (Fake::usual().await, Fake::usual().await, Fake::usual().await);
    let image = of_size(1000);
    source.hold(FROM, "1", &image);
    let kept: Arc<Mutex<Vec<Ask>>> = Arc::default();
    let seen = Arc::clone(&kept);
    storage.set(move |ask| {
        seen.lock().unwrap().push(ask.clone());
        Act::Swallow(Answer::new(201))
    });
    let place = storage.url().to_owned();
    mirror.hold(INTO, "other", &image);
    mirror.lose(INTO, "other");
    mirror.lose(INTO, &image.digest.to_string());
    mirror.set(move |ask| {
        if !ask.headers.contains_key("authorization") {
            return Act::Early(Answer::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        if ask.kind == Kind::Begin {
            let place = format!("{place}/upload?signature=a%2Fb");
            return Act::Early(Answer::new(202).header("Location", place));
        }
        Act::Usual
    });
    let login = Credentials {
        username: "pusher".to_owned(),
        password: "geheim".to_owned(),
    };
    run(&job_as(&source, &mirror, Some(login)))
        .await
        .unwrap_or_else(|trouble| panic!("{trouble}"));
    let seen = kept.lock().unwrap();
    assert_eq!(seen.len(), 4);
    for ask in seen.iter() {
        assert!(
            ask.target.starts_with("/upload?signature=a%2Fb&digest=sha256%3A"),
            "{}",
            ask.target
        );
        assert!(!ask.headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn a_tag_that_may_not_be_moved_leaves_the_image_by_its_digest() {
    for (status, code, words) in [
        (
            400,
            "TAG_INVALID",
            "the tag already exists and cannot be overwritten because the tag is immutable",
        ),
        (403, "MANIFEST_INVALID", "manifest invalid"),
        (409, "TAG_IMMUTABLE", "tag is immutable"),
        (412, "PRECONDITION", "configured as immutable"),
    ] {
        let (source, mirror) = (Fake::usual().await, Fake::usual().await);
        let (old, new) = (of_size(1000), of_size(2000));
        mirror.hold(INTO, "1", &old);
        source.hold(FROM, "1", &new);
        mirror.set(move |ask| {
            if ask.is("PUT", Kind::Manifest) && ask.last() == "1" {
                return Act::Swallow(Answer::error(status, code, words));
            }
            Act::Usual
        });
        let trouble = run(&job(&source, &mirror)).await.unwrap_err();
        assert_eq!(trouble.reason, Reason::TagImmutable, "{trouble}");
        assert!(mirror.holds(INTO, "1", &old) && mirror.holds(INTO, &new.digest.to_string(), &new));
        // The same image again is no fault, and nothing is pushed.
        source.hold(FROM, "1", &old);
        let before = mirror.count("PUT", Kind::Manifest);
        run(&job(&source, &mirror)).await.unwrap();
        assert_eq!(mirror.count("PUT", Kind::Manifest), before);
    }
}

#[tokio::test]
async fn whoever_asks_to_wait_is_left_alone() {
    for limit in [
        Answer::error(429, "TOOMANYREQUESTS", "slow down").header("Retry-After", "1.16ms"),
        Answer::error(403, "DENIED", "You have exceeded a secondary rate limit").header("Retry-After", "1"),
        Answer::error(400, "TOOMANYREQUESTS", "Rate exceeded").header("Retry-After", "1"),
    ] {
        for kind in [Kind::Begin, Kind::Upload, Kind::Manifest] {
            let (limit, times) = (limit.clone(), AtomicUsize::new(0));
            let started = Instant::now();
            drop(
                copied(1000, move |ask| {
                    let writes = !matches!(&*ask.method, "GET" | "HEAD") && ask.kind == kind;
                    match (writes, ask.query("mount")) {
                        // Which is no more than no mount.
                        (true, Some(_)) => Act::Early(Answer::new(405)),
                        (true, None) if times.fetch_add(1, Ordering::Relaxed) < 2 => {
                            Act::Swallow(limit.clone())
                        }
                        _ => Act::Usual,
                    }
                })
                .await,
            );
            assert!(started.elapsed() >= Duration::from_millis(900));
        }
    }
}

#[tokio::test]
async fn docker_images_are_refused_by_name() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    source.hold(FROM, "1", &single(MediaType::DockerManifest, "docker"));
    mirror.set(|ask| {
        let is_docker = ask
            .headers
            .get("content-type")
            .is_some_and(|kind| kind.contains("docker"));
        Act::when(
            ask.is("PUT", Kind::Manifest) && is_docker,
            Act::Swallow(Answer::error(415, "MANIFEST_INVALID", "manifest invalid")),
        )
    });
    let trouble = run(&job(&source, &mirror)).await.unwrap_err();
    assert_eq!(trouble.reason, Reason::MediaTypeRefused);
    assert!(trouble.reason.advice().contains("docker2s2"));
    assert!(mirror.shows_nothing());
}

#[tokio::test]
async fn some_platforms_alone_are_copied_or_refused_by_name() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let all = index(MediaType::OciIndex, &["amd64", "arm64", "s390x"], "sparse");
    source.hold(FROM, "1", &all);
    let sparse = Job {
        platforms: Platforms::of("linux", "arm64", ""),
        ..job(&source, &mirror)
    };
    // This one asks for all that an index lists, as distribution does.
    let trouble = run(&sparse).await.unwrap_err();
    assert_eq!(trouble.reason, Reason::SparseIndexRefused, "{trouble}");
    assert!(mirror.manifest(INTO, "1").is_none());
    mirror.set({
        let own = all.digest.to_string();
        move |ask| match ask.is("PUT", Kind::Manifest) && ask.last() == "1" {
            true => Act::Swallow(Answer::new(201).header("Docker-Content-Digest", &own)),
            false if ask.is("HEAD", Kind::Manifest) && ask.last() == "1" => {
                let found = Answer::new(200).header("Docker-Content-Digest", &own);
                Act::Early(found.header("Content-Type", MediaType::OciIndex.as_str()))
            }
            false => Act::Usual,
        }
    });
    let done = run(&sparse).await.unwrap_or_else(|trouble| panic!("{trouble}"));
    assert!(done.is_sparse);
    let there = |child: usize| {
        mirror.holds(
            INTO,
            &all.children[child].digest.to_string(),
            &all.children[child],
        )
    };
    assert_eq!([there(0), there(1), there(2)], [false, true, false]);
}

#[tokio::test]
async fn a_child_that_was_lost_comes_back() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let all = index(MediaType::DockerList, &["amd64", "arm64"], "lost");
    source.hold(FROM, "1", &all);
    run(&job(&source, &mirror)).await.unwrap();
    assert!(mirror.holds(INTO, "1", &all));
    mirror.lose(INTO, &all.children[1].digest.to_string());
    run(&job(&source, &mirror)).await.unwrap();
    assert!(mirror.holds(INTO, "1", &all));
    // A blob that was lost is seen by whoever looks for it.
    let lost = digest(&all.children[0].blobs[1]);
    mirror.lose_blob(INTO, &lost);
    let look = Job {
        verify: true,
        ..job(&source, &mirror)
    };
    run(&look).await.unwrap();
    assert!(mirror.holds(INTO, "1", &all));
}

#[tokio::test]
async fn one_blob_is_uploaded_once_however_many_want_it() {
    let (source, mirror) = (Fake::usual().await, Fake::usual().await);
    let shared = noise(3, 400_000);
    for number in 0..4 {
        // The same layer twice in one image, too.
        let layers = vec![shared.clone(), noise(10 + number, 100), shared.clone()];
        source.hold(FROM, &number.to_string(), &image(layers, &json!({})));
    }
    let first = job(&source, &mirror);
    let jobs: Vec<Job> = (0..4)
        .map(|number| Job {
            reference: number.to_string(),
            tag: number.to_string(),
            ..first.clone()
        })
        .collect();
    for done in join_all(jobs.iter().map(run)).await {
        done.unwrap_or_else(|trouble| panic!("{trouble}"));
    }
    let sent = mirror
        .asked()
        .into_iter()
        .filter(|ask| ask.is("PUT", Kind::Upload) && ask.length() == shared.len());
    assert_eq!(sent.count(), 1);
    assert_eq!(mirror.blobs(), 4 + 1 + 1);
}

#[tokio::test]
async fn layers_that_are_kept_elsewhere_are_not_fetched_from_there() {
    let elsewhere = Fake::usual().await;
    for refuses in [false, true] {
        let (source, mirror) = (Fake::usual().await, Fake::usual().await);
        let layer = noise(5, 100);
        let foreign = json!({"layers": [{
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": digest(&layer).to_string(), "size": layer.len(), "urls": [format!("{}/layer", elsewhere.url())],
        }]});
        let mut all = image(Vec::new(), &foreign);
        all.blobs.truncate(1);
        source.hold(FROM, "1", &all);
        let own = all.digest.to_string();
        mirror.set(move |ask| match ask.is("PUT", Kind::Manifest) {
            true if refuses => Act::Swallow(Answer::error(500, "UNKNOWN", "unknown error")),
            true => Act::Swallow(Answer::new(201)),
            false if ask.is("HEAD", Kind::Manifest) => Act::Early(
                Answer::new(200)
                    .header("Docker-Content-Digest", &own)
                    .header("Content-Type", "a/b"),
            ),
            false => Act::Usual,
        });
        let done = run(&job(&source, &mirror))
            .await
            .map_err(|trouble| trouble.reason);
        assert_eq!(done.is_ok(), !refuses, "{done:?}");
        assert!(done.is_ok() || done == Err(Reason::ForeignLayersRefused));
        assert!(elsewhere.asked().is_empty());
    }
}

#[tokio::test]
async fn a_registry_without_mounts_takes_everything_by_upload() {
    let source = Fake::usual().await;
    let mirror = Fake::with(
        Features {
            no_mounts: true,
            ..Features::default()
        },
        |_| Act::Usual,
    )
    .await;
    let image = of_size(1000);
    source.hold(FROM, "1", &image);
    run(&job(&source, &mirror)).await.unwrap();
    assert!(mirror.holds(INTO, "1", &image));
    // Nothing had to be brought later.
    assert_eq!(mirror.count("PUT", Kind::Manifest), 1);
}

#[tokio::test]
async fn a_tag_that_somebody_else_pushed_stays_as_it_is_where_that_is_wished() {
    let (ours, theirs) = (of_size(1000), image(vec![noise(9, 100)], &json!({})));
    let source = Fake::usual().await;
    source.hold(FROM, "1", &ours);
    let mirror = Fake::usual().await;
    mirror.hold(INTO, "1", &theirs);
    let keeping = Job {
        keeps_tag: true,
        ..job(&source, &mirror)
    };
    let done = run(&keeping).await.unwrap();
    assert_eq!((done.digest, done.manifests), (theirs.digest.clone(), 0));
    assert!(mirror.holds(INTO, "1", &theirs));
    // Without the wish it is replaced, as `kagami copy` does.
    let done = run(&job(&source, &mirror)).await.unwrap();
    assert_eq!(done.digest, ours.digest);

    // It comes while the image is brought.
    let digest = theirs.digest.to_string();
    let mirror = Fake::start(move |ask| {
        let there = Answer::new(200)
            .header("Docker-Content-Digest", &digest)
            .header("Content-Type", MediaType::OciManifest.as_str());
        Act::when(
            ask.is("HEAD", Kind::Manifest) && ask.last() == "1",
            Act::Early(there),
        )
    })
    .await;
    let keeping = Job {
        keeps_tag: true,
        ..job(&source, &mirror)
    };
    let done = run(&keeping).await.unwrap();
    assert_eq!(done.digest, theirs.digest);
    assert_eq!(mirror.manifest(INTO, "1"), None);
}
