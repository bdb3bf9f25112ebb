//! Rows in which the mirror fails.

use std::{
    fs,
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{REPOSITORY, SOON, access::secret, image, know_more, knowing, stock, stocked, unaware};
use ::kagami::domain::answer::MediaType;

use crate::support::{
    certificates::Authority,
    commands::run_on_machine,
    faulty::{Action, Behaviour, Faulty, Reply},
    images,
    kagami::{Kagami, Setup, eventually, mirror, text},
    real::{self, PASSWORD, Registry},
    shelf::Shelf,
    tokens::query,
};

/// The reasons of one row of the table.
struct Row {
    /// For a new image before the state knows.
    before: &'static str,
    /// For every image once it knows.
    after: &'static str,
}

const BOTH: [&str; 2] = ["nginx:1", "nginx:2"];
const RECOVERED: [&str; 2] = ["Mirrored", "Mirrored"];

impl Row {
    /// Lets the fault begin and end, and checks what is said meanwhile.
    async fn check(
        &self,
        peer: &mut Faulty,
        spec: &Value,
        begin: impl AsyncFnOnce(&mut Faulty),
        end: impl AsyncFnOnce(&mut Faulty),
    ) {
        let url = peer.url();
        let (unaware, aware) = tokio::join!(unaware(&url, spec), knowing(&url, spec));
        begin(peer).await;
        let first = unaware.ask(&BOTH).await;
        // A connection that is held open may have told of the fault already. The look at the new image raises a
        // doubt; what the prober saw of the known one by then counts.
        assert!(
            [self.before, "MirrorSuspected"].contains(&&*first.reasons[1]),
            "before the state knows: {:?}",
            first.reasons
        );
        assert!(
            ["Mirrored", self.before, "MirrorSuspected"].contains(&&*first.reasons[0]),
            "before the state knows: {:?}",
            first.reasons
        );

        let both = [self.after; 2];
        let meanwhile = aware.until(&BOTH, &both, SOON).await;
        for reasons in meanwhile {
            // A look of the prober at the known image, which the fault overtook after `/v2/` was good, tells
            // of the image what it saw.
            assert!(
                ["Mirrored", "MirrorSuspected", self.before, self.after].contains(&&*reasons[0]),
                "the known image: {reasons:?}"
            );
            assert!(
                ["MirrorSuspected", self.before, self.after].contains(&&*reasons[1]),
                "the new image: {reasons:?}"
            );
        }
        let mut caller = aware.connect().await;
        for _ in 0..5 {
            assert_eq!(caller.ask(&BOTH).await.reasons, both, "once the state knows");
        }

        end(peer).await;
        aware.until(&BOTH, &RECOVERED, SOON).await;
    }

    /// The fault is another behaviour of the mirror.
    async fn check_behaviour(&self, fault: Behaviour) {
        self.check_behaviour_with(&json!({}), fault).await;
    }

    async fn check_behaviour_with(&self, spec: &Value, fault: Behaviour) {
        let (mut peer, shelf) = stocked().await;
        let begin = async |peer: &mut Faulty| peer.set(fault).await;
        let end = async |peer: &mut Faulty| peer.set(shelf.behaviour()).await;
        self.check(&mut peer, spec, begin, end).await;
    }
}

/// A mirror that answers `/v2/` and blobs as it should, and manifests like this.
fn manifests(shelf: &Shelf, reply: impl Fn(Reply) -> Action + Send + Sync + 'static) -> Behaviour {
    let shelf = shelf.clone();
    Behaviour::answer(move |request| {
        let answer = shelf.answer(request);
        if request.target.contains("/manifests/") {
            reply(answer)
        } else {
            answer.into()
        }
    })
}

#[tokio::test]
async fn the_mirror_refuses_connections() {
    let row = Row {
        before: "MirrorUnhealthy",
        after: "MirrorUnhealthy",
    };
    row.check_behaviour(Behaviour::Refuse).await;
}

#[tokio::test]
async fn the_mirror_is_a_black_hole() {
    let row = Row {
        before: "BudgetExhausted",
        after: "MirrorUnhealthy",
    };
    row.check_behaviour(Behaviour::BlackHole).await;
}

#[tokio::test]
async fn the_mirror_accepts_and_never_answers() {
    let row = Row {
        before: "BudgetExhausted",
        after: "MirrorUnhealthy",
    };
    row.check_behaviour(Behaviour::Silent).await;
}

#[tokio::test]
async fn the_mirror_answers_500() {
    let row = Row {
        before: "RegistryError",
        after: "MirrorUnhealthy",
    };
    row.check_behaviour(Behaviour::always(Reply::error(500, "UNKNOWN")))
        .await;
}

#[tokio::test]
async fn the_mirror_answers_429_with_retry_after() {
    let row = Row {
        before: "RateLimited",
        after: "MirrorUnhealthy",
    };
    let wait = Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "1");
    row.check_behaviour(Behaviour::always(wait)).await;
}

#[tokio::test]
async fn the_mirror_asks_for_other_credentials() {
    let row = Row {
        before: "Unauthorized",
        after: "Unauthorized",
    };
    let challenge = Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"mirror\"");
    row.check_behaviour(Behaviour::always(challenge)).await;
}

#[tokio::test]
async fn somebody_between_answers_401_or_403() {
    let row = Row {
        before: "Unauthorized",
        after: "MirrorUnhealthy",
    };
    let check = async |status| {
        row.check_behaviour(Behaviour::always(Reply::error(status, "DENIED")))
            .await;
    };
    tokio::join!(check(401), check(403));
}

#[tokio::test]
async fn the_mirror_answers_404_for_everything() {
    let row = Row {
        before: "ImageMissing",
        after: "MirrorUnhealthy",
    };
    row.check_behaviour_with(
        // What is remembered as missing is asked for again so soon that the test sees it.
        &json!({"freshness": {"missing": "1s"}}),
        Behaviour::always(Reply::error(404, "NOT_FOUND")),
    )
    .await;
}

#[tokio::test]
async fn the_mirror_answers_with_html() {
    let row = Row {
        before: "RegistryError",
        after: "MirrorUnhealthy",
    };
    row.check_behaviour(Behaviour::always(Reply::html(200))).await;
}

#[tokio::test]
async fn the_mirror_answers_for_manifests_with_html() {
    let row = Row {
        before: "RegistryError",
        after: "RegistryError",
    };
    let fault = manifests(&stock(), |_| Reply::html(200).into());
    row.check_behaviour(fault).await;
}

#[tokio::test]
async fn the_mirror_answers_with_another_digest_than_asked_for() {
    let shelf = stock();
    // The body of another image, under the digest that the headers tell.
    let other = image("another").manifest;
    let row = Row {
        before: "DigestMismatch",
        after: "DigestMismatch",
    };
    let (mut peer, good) = stocked().await;
    // Tags are believed by their headers; a digest is not.
    let digests = [image("one").digest, image("two").digest].map(|digest| format!("nginx@{digest}"));
    good.put(REPOSITORY, "two", &image("two"));
    shelf.put(REPOSITORY, "two", &image("two"));
    let (url, spec) = (peer.url(), json!({}));
    let (unaware, aware) = tokio::join!(unaware(&url, &spec), knowing(&url, &spec));
    let (known, new) = (digests[0].as_str(), digests[1].as_str());
    for kagami in [&unaware, &aware] {
        kagami.until_known(known, 2).await;
    }
    let lie = images::digest(&other);
    peer.set(manifests(&shelf, move |_| {
        Reply::new(200)
            .content_type("application/vnd.oci.image.manifest.v1+json")
            .header("Docker-Content-Digest", &lie.to_string())
            .body(other.clone())
            .into()
    }))
    .await;
    assert_eq!(unaware.ask(&[known, new]).await.reasons, ["Mirrored", row.before]);
    aware.until(&[known, new], &[row.after; 2], SOON).await;
    peer.set(good.behaviour()).await;
    aware.until(&[known, new], &RECOVERED, SOON).await;
}

#[tokio::test]
async fn the_mirror_hangs_in_the_body() {
    let row = Row {
        before: "BudgetExhausted",
        after: "MirrorUnhealthy",
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let hanging = Reply::new(200).content_type(media_type).hanging_body("{");
    row.check_behaviour(Behaviour::always(hanging)).await;
}

/// A mirror that answers everything and sends no data.
fn without_data(shelf: Shelf) -> Behaviour {
    Behaviour::answer(move |request| {
        if request.target.contains("/blobs/") {
            Reply::new(200).hanging_body("half").into()
        } else {
            shelf.answer(request).into()
        }
    })
}

/// Worse than a dead mirror: everything Kagami asks for in passing works, and nodes wait for layers.
#[tokio::test]
async fn the_mirror_hangs_in_blobs_alone() {
    let (mut peer, shelf) = stocked().await;
    let url = peer.url();
    let spec = json!({"health": {"interval": "100ms"}});
    let nothing = json!({});
    let (unaware, aware) = tokio::join!(unaware(&url, &nothing), knowing(&url, &spec));
    know_more(&aware, &shelf, image).await;
    let good = shelf.behaviour();
    peer.set(without_data(shelf)).await;
    assert_eq!(
        unaware.ask(&BOTH).await.reasons,
        ["Mirrored"; 2],
        "before the state knows"
    );
    aware.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
    aware_of_no_data(&aware).await;
    peer.set(good).await;
    aware.until(&BOTH, &RECOVERED, SOON).await;
}

/// Nodes wait for such data as long as it takes, so one round settles it: several images are asked for their data after
/// the first one's did not come.
#[tokio::test]
async fn data_that_does_not_come_is_settled_in_one_round() {
    let (mut peer, shelf) = stocked().await;
    let kagami = knowing(
        &peer.url(),
        &json!({"health": {"interval": "6s", "timeout": "1s"}}),
    )
    .await;
    know_more(&kagami, &shelf, image).await;
    peer.set(without_data(shelf)).await;
    let blobs = |peer: &Faulty| {
        let requests = peer.requests();
        requests
            .iter()
            .filter(|request| request.target.contains("/blobs/"))
            .count()
    };
    let before = blobs(&peer);
    eventually("data is asked for", Duration::from_secs(20), async || {
        if blobs(&peer) > before {
            Ok(())
        } else {
            Err("none".to_owned())
        }
    })
    .await;
    let asked = Instant::now();
    aware_of_no_data(&kagami).await;
    let took = asked.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "the next round comes after six seconds: {took:?}"
    );
}

async fn aware_of_no_data(kagami: &Kagami) {
    kagami
        .until_status("/mirrors/main/health/reason", &json!("BlobNotReadable"), SOON)
        .await;
}

/// The same where all known images are indexes, as most are: the blobs are one step further away.
#[tokio::test]
async fn blobs_behind_indexes_are_looked_at_too() {
    let (mut peer, shelf) = stocked().await;
    let kagami = Kagami::start(&[mirror(&peer.url(), &json!({"health": {"interval": "100ms"}}))]).await;
    kagami.until_known("nginx:2", 1).await;
    let index = |seed: &str| images::index(MediaType::OciIndex, &["amd64", "arm64"], seed);
    know_more(&kagami, &shelf, index).await;
    let good = shelf.behaviour();
    peer.set(Behaviour::answer(move |request| {
        if request.target.contains("/blobs/") {
            Action::Hang
        } else {
            shelf.answer(request).into()
        }
    }))
    .await;
    kagami.until(&["nginx:2"], &["MirrorUnhealthy"], SOON).await;
    kagami
        .until_status("/mirrors/main/health/reason", &json!("BlobNotReadable"), SOON)
        .await;
    peer.set(good).await;
    kagami.until(&["nginx:2"], &["Mirrored"], SOON).await;
}

/// A mirror that answers `/v2/` and for no image is no good, which several images show.
#[tokio::test]
async fn the_mirror_fails_for_every_image() {
    let (mut peer, shelf) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    know_more(&kagami, &shelf, image).await;
    peer.set(manifests(&shelf, |_| Reply::error(500, "UNKNOWN").into()))
        .await;
    kagami.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
    kagami
        .until_status("/mirrors/main/health/reason", &json!("ServerError"), SOON)
        .await;
    peer.set(shelf.behaviour()).await;
    kagami.until(&BOTH, &RECOVERED, SOON).await;
}

/// Looks at a mirror's health for some rounds of its prober: it must be well all the time, and since it was
/// first known.
async fn stays_healthy(kagami: &Kagami) {
    let (state, healthy) = ("/mirrors/main/health/state", json!("Healthy"));
    for _ in 0..30 {
        let status = kagami.status().await;
        assert_eq!(status.pointer(state), Some(&healthy), "{}", kagami.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = kagami.log();
    assert_eq!(log.matches("mirror health changed").count(), 1, "{log}");
    assert!(!log.contains("proofs are void"), "{log}");
}

/// What a full disk leaves behind: manifests that the registry answers 500 for, for ever.
#[tokio::test]
async fn damaged_images_are_no_fault_of_the_mirror() {
    let setup = real::Setup {
        in_files: true,
        ..real::Setup::default()
    };
    let Some(registry) = Registry::start(&setup) else {
        return;
    };
    let target = registry.target(None);
    let tags = ["0", "1", "2", "3", "4", "5"];
    for tag in tags {
        target.push(REPOSITORY, tag, &image(tag)).await;
    }
    let names = tags.map(|tag| format!("nginx:{tag}"));
    let names = names.each_ref().map(String::as_str);
    // One bad look is enough, so each of the damaged ones is a test of its own.
    let spec = json!({"health": {"failureThreshold": 1, "timeout": "2s"}});
    let kagami = Kagami::start(&[mirror(registry.url(), &spec)]).await;
    kagami.until(&names, &["Mirrored"; 6], SOON).await;
    kagami
        .until_status("/mirrors/main/images/present", &json!(6), SOON)
        .await;
    for tag in ["2", "3"] {
        registry.damage(&image(tag).digest);
    }
    let mut reasons = ["Mirrored"; 6];
    reasons[2..4].fill("RegistryError");
    kagami.until(&names, &reasons, SOON).await;
    stays_healthy(&kagami).await;
    assert_eq!(kagami.ask(&names).await.reasons, reasons);
    assert!(kagami.log().contains("server error 500"), "{}", kagami.log());
}

/// The others, which are looked at beside one that fails, have the time of its three questions: manifest, child
/// and data may each take as long as one answer may. A mirror that is slow is not switched off by one image.
#[tokio::test]
async fn slow_others_speak_for_the_mirror_of_a_damaged_image() {
    let shelf = Shelf::default();
    let tags = ["a", "b", "c"];
    for tag in tags {
        shelf.put(REPOSITORY, tag, &image(tag));
    }
    let mut peer = Faulty::start(shelf.behaviour()).await;
    let spec = json!({"health": {"interval": "100ms", "timeout": "3s", "failureThreshold": 1}});
    let kagami = Kagami::start(&[mirror(&peer.url(), &spec)]).await;
    kagami
        .until(&["nginx:a", "nginx:b", "nginx:c"], &["Mirrored"; 3], SOON)
        .await;
    let images = "/mirrors/main/images";
    let known = json!({"present": 3, "missing": 0, "unknown": 0});
    kagami.until_status(images, &known, SOON).await;
    // The first image of which data is asked for is the damaged one.
    let damaged = Mutex::new(None);
    peer.set(Behaviour::answer(move |request| {
        if request.method != "GET" || request.target == "/v2/" {
            return shelf.answer(request).into();
        }
        if request.target.contains("/manifests/") {
            let mut damaged = damaged.lock().unwrap();
            if *damaged.get_or_insert_with(|| request.target.clone()) == request.target {
                return Reply::error(500, "UNKNOWN").into();
            }
        }
        // Both together are longer than one answer may take.
        Action::Later(Duration::from_secs(2), shelf.answer(request))
    }))
    .await;
    let known = json!({"present": 2, "missing": 0, "unknown": 1});
    let state = "/mirrors/main/health/state";
    kagami.until_status(images, &known, 4 * SOON).await;
    kagami.until_status(state, &json!("Healthy"), SOON).await;
    let log = kagami.log();
    assert_eq!(log.matches("mirror health changed").count(), 1, "{log}");
}

/// With nothing to compare it with, an image that fails says nothing of a mirror that answers pings: neither
/// does one that is limited, hangs, or whose data does not come. It is one image under many names, too.
#[tokio::test]
async fn one_known_image_is_not_the_mirror() {
    let shelf = stock();
    let names = ["nginx:1", "nginx:1.0", "nginx:1.0.0", "nginx:stable"];
    for name in &names[1..] {
        let (_, tag) = name.split_once(':').unwrap();
        shelf.put(REPOSITORY, tag, &image("one"));
    }
    let check = async |fault: Behaviour, interval: &str, reason: &str| {
        let mut peer = Faulty::start(shelf.behaviour()).await;
        let spec = json!({"health": {"failureThreshold": 1, "timeout": "2s", "interval": interval}});
        let kagami = knowing(&peer.url(), &spec).await;
        kagami.until(&names, &["Mirrored"; 4], SOON).await;
        kagami
            .until_status("/mirrors/main/images/present", &json!(4), SOON)
            .await;
        peer.set(fault).await;
        stays_healthy(&kagami).await;
        assert_eq!(kagami.ask(&names).await.reasons, [reason; 4]);
    };
    let broken = |reply: Reply| manifests(&shelf, move |_| reply.clone().into());
    let limit = Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "3600");
    let stored = shelf.clone();
    let no_data = Behaviour::answer(move |request| {
        if request.target.contains("/blobs/") {
            Reply::error(500, "UNKNOWN").into()
        } else {
            stored.answer(request).into()
        }
    });
    let error = Reply::error(500, "UNKNOWN");
    tokio::join!(
        check(broken(error), "200ms", "RegistryError"),
        // What was proven is proven; nothing says otherwise.
        check(broken(limit), "200ms", "Mirrored"),
        check(manifests(&shelf, |_| Action::Hang), "200ms", "Mirrored"),
        check(no_data, "100ms", "Mirrored"),
    );
}

#[tokio::test]
async fn the_certificate_of_the_mirror_is_no_good() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.issue_for(&["127.0.0.1"]);
    let faults = [
        authority.expired(&["127.0.0.1"]),
        authority.issue_for(&["mirror.example.com"]),
        other.issue_for(&["127.0.0.1"]),
    ];
    let spec = json!({"endpoint": {"caBundle": authority.pem()}});
    let row = Row {
        before: "MirrorUnhealthy",
        after: "MirrorUnhealthy",
    };
    for bad in faults {
        let mut peer = Faulty::start_tls(stock().behaviour(), &good).await;
        let begin = async |peer: &mut Faulty| peer.show(&bad).await;
        let end = async |peer: &mut Faulty| peer.show(&good).await;
        row.check(&mut peer, &spec, begin, end).await;
    }
}

#[tokio::test]
async fn the_mirror_redirects_in_a_loop() {
    let row = Row {
        before: "RegistryError",
        after: "MirrorUnhealthy",
    };
    let redirect = Behaviour::answer(|request| Reply::redirect(&request.target).into());
    row.check_behaviour(redirect).await;
}

/// Starts Kagami with its own `/etc/hosts`; returns none, and says so, where that is not permitted.
async fn with_hosts(hosts: &std::path::Path, documents: &[Value]) -> Option<Kagami> {
    let nothing = hosts.with_file_name("resolv.conf");
    // Nobody answers there, and the refusal comes at once.
    fs::write(&nothing, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
    let script =
        "mount --bind \"$0\" /etc/hosts && mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let mut through: Vec<String> = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
    ]
    .map(str::to_owned)
    .to_vec();
    through.extend([path(hosts), path(&nothing)]);
    let tried = Command::new(&through[0]).args(&through[1..]).arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "no namespace of mounts for a name that goes away"
        );
        eprintln!("skipped: no namespace of mounts for a name that goes away");
        return None;
    }
    let setup = Setup {
        through,
        ..Setup::default()
    };
    Some(Kagami::start_with(documents, setup).await)
}

#[tokio::test]
async fn the_name_of_the_mirror_is_gone() {
    let (mut peer, shelf) = stocked().await;
    let files = tempfile::tempdir().unwrap();
    let endpoint = format!("http://mirror.kagami.test:{}", peer.address().port());
    let there = "127.0.0.1 localhost mirror.kagami.test\n";
    let gone = "127.0.0.1 localhost\n";
    let start = async |name: &str, interval: &str| {
        let hosts = files.path().join(name);
        fs::create_dir(&hosts).unwrap();
        let hosts = hosts.join("hosts");
        fs::write(&hosts, there).unwrap();
        let config = mirror(&endpoint, &json!({"health": {"interval": interval}}));
        let kagami = with_hosts(&hosts, &[config]).await?;
        kagami.until_known("nginx:1", 1).await;
        Some((kagami, hosts))
    };
    let (Some((unaware, its_hosts)), Some((aware, hosts))) =
        (start("unaware", "10m").await, start("aware", "200ms").await)
    else {
        return;
    };
    fs::write(&its_hosts, gone).unwrap();
    fs::write(&hosts, gone).unwrap();
    // As long as connections are open nobody asks for names.
    peer.set(Behaviour::Refuse).await;
    peer.set(shelf.behaviour()).await;
    // The connections that were kept have ended, which is noticed.
    unaware.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
    aware.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
    aware
        .until_status("/mirrors/main/health/reason", &json!("NameNotFound"), SOON)
        .await;
    fs::write(&hosts, there).unwrap();
    aware.until(&BOTH, &RECOVERED, SOON).await;
}

/// Puts many images into a mirror and returns their names.
fn many(shelf: &Shelf) -> Vec<String> {
    let tags = (0..MANY).map(|number| format!("t{number}"));
    tags.map(|tag| {
        shelf.put(REPOSITORY, &tag, &image(&tag));
        format!("nginx:{tag}")
    })
    .collect()
}

const MANY: usize = 40;

/// What was proven before an outage is not proven after it.
#[tokio::test]
async fn the_mirror_was_emptied_while_down() {
    let (mut peer, shelf) = stocked().await;
    let images = many(&shelf);
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let kagami = knowing(&peer.url(), &json!({"freshness": {"missing": "1s"}})).await;
    kagami.until(&images, &["Mirrored"; MANY], SOON).await;
    kagami
        .until_status("/mirrors/main/images/present", &(MANY + 1).into(), SOON)
        .await;
    peer.set(Behaviour::Refuse).await;
    kagami.until(&images, &["MirrorUnhealthy"; MANY], SOON).await;
    shelf.clear();
    peer.set(shelf.behaviour()).await;
    let meanwhile = kagami.until(&images, &["ImageMissing"; MANY], SOON).await;
    for reasons in meanwhile {
        assert!(!reasons.contains(&"Mirrored".to_owned()), "{reasons:?}");
    }
    many(&shelf);
    kagami.until(&images, &["Mirrored"; MANY], SOON).await;
}

/// The mirror works all the time, but what it held is gone: three images missing in a row are enough.
#[tokio::test]
async fn the_mirror_was_emptied_while_nobody_looked() {
    let (peer, shelf) = stocked().await;
    let images = many(&shelf);
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let kagami = knowing(&peer.url(), &json!({})).await;
    kagami.until(&images, &["Mirrored"; MANY], SOON).await;
    kagami
        .until_status("/mirrors/main/images/present", &(MANY + 1).into(), SOON)
        .await;
    shelf.clear();
    kagami.until(&images, &["ImageMissing"; MANY], SOON).await;
    kagami
        .until_status("/mirrors/main/health/state", &json!("Healthy"), SOON)
        .await;
    kagami
        .until_status("/mirrors/main/images/missing", &(MANY + 1).into(), SOON)
        .await;
}

/// Slow, but inside the budget, and so inside the mirror's own timeout.
#[tokio::test]
async fn the_mirror_answers_slowly_but_in_time() {
    let (mut peer, shelf) = stocked().await;
    let slow = shelf.clone();
    peer.set(Behaviour::answer(move |request| {
        Action::Later(Duration::from_millis(100), slow.answer(request))
    }))
    .await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let answer = kagami.ask(&["nginx:2@sha256:0"]).await;
    assert_eq!(answer.reasons, ["InvalidReference"]);
    // An index needs two rounds: itself and its children.
    kagami.until(&["nginx:2"], &["Mirrored"], SOON).await;
    kagami
        .until_status("/mirrors/main/health/state", &json!("Healthy"), SOON)
        .await;
}

/// Slower than any review waits, but inside the mirror's timeout: the next review knows.
#[tokio::test]
async fn the_mirror_answers_after_the_budget() {
    let (mut peer, shelf) = stocked().await;
    let kagami = unaware(&peer.url(), &json!({"health": {"timeout": "5s"}})).await;
    let slow = shelf.clone();
    peer.set(Behaviour::answer(move |request| {
        Action::Later(Duration::from_millis(700), slow.answer(request))
    }))
    .await;
    assert_eq!(kagami.ask(&BOTH).await.reasons, ["Mirrored", "BudgetExhausted"]);
    kagami.until(&BOTH, &RECOVERED, SOON).await;
    let manifests = peer
        .requests()
        .into_iter()
        .filter(|request| request.target.ends_with("/manifests/2"));
    // The review's own probe and the companion's first look, however often Pods asked.
    assert!(manifests.count() <= 2);
}

/// Up and down, many times: never an answer that is late, and in the end everything is as it was.
#[tokio::test]
async fn the_mirror_flaps() {
    let (mut peer, shelf) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({"health": {"interval": "100ms"}})).await;
    // Reviews that look themselves may tell a death before the prober does; what counts here is the state.
    let state = async |state| {
        kagami
            .until_status("/mirrors/main/health/state", &json!(state), SOON)
            .await;
    };
    for _ in 0..5 {
        peer.set(Behaviour::Refuse).await;
        state("Unhealthy").await;
        kagami.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
        peer.set(shelf.behaviour()).await;
        state("Healthy").await;
        kagami.until(&BOTH, &RECOVERED, SOON).await;
    }
    let changes = kagami.log().matches("mirror health changed").count();
    assert!((11..=15).contains(&changes), "{changes} lines:\n{}", kagami.log());
}

/// A token service that limits new repositories says nothing of the mirror, nor of images whose token is
/// kept; and where it limits the mirror's own pings, the mirror still lives.
#[tokio::test]
async fn the_token_service_limits() {
    let check = async |with_credentials: bool| {
        let shelf = stock();
        for name in ["redis", "busybox"] {
            shelf.put(&format!("docker.io/library/{name}"), "1", &image(name));
        }
        let realm = Faulty::start(Behaviour::answer(move |request| {
            let scope = query(&request.target).remove("scope").unwrap_or_default();
            Action::Reply(if scope.contains("nginx") || scope.contains("redis") {
                Reply::json(200, &json!({"token": "t", "expires_in": 3600}))
            } else {
                Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "3600")
            })
        }))
        .await;
        let challenge = format!(r#"Bearer realm="{}/token",service="r""#, realm.url());
        let peer = Faulty::start(Behaviour::answer(move |request| {
            Action::Reply(match request.authorization() {
                Some("Bearer t") => shelf.answer(request),
                _ => Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", &challenge),
            })
        }))
        .await;
        let mut documents = vec![mirror(&peer.url(), &json!({"freshness": {"tag": "1s"}}))];
        if with_credentials {
            documents[0]["spec"]["endpoint"]["credentials"] = json!({"secretRef": {"name": "reader"}});
            documents.push(secret(PASSWORD));
        }
        let kagami = Kagami::start(&documents).await;
        let images = ["nginx:1", "redis:1", "busybox:1"];
        let reasons = ["Mirrored", "Mirrored", "RateLimited"];
        kagami.until(&images, &reasons, SOON).await;
        let (state, healthy) = ("/mirrors/main/health/state", json!("Healthy"));
        for _ in 0..20 {
            assert_eq!(kagami.status().await.pointer(state), Some(&healthy));
            assert_eq!(kagami.ask(&images).await.reasons, reasons);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // One for each repository, and at most one for pings.
        assert!(realm.requests().len() <= 4, "{}", realm.requests().len());
    };
    tokio::join!(check(false), check(true));
}

/// Addresses of storage are signed for GET alone, and sweeps and canaries ask by HEAD: what reviews have
/// proven by GET stays what it is.
#[tokio::test]
async fn storage_takes_get_alone() {
    let shelf = stock();
    let stored = shelf.clone();
    let storage = Faulty::start(Behaviour::answer(move |request| {
        Action::Reply(match request.method.as_str() {
            "HEAD" => Reply::new(403).content_type("application/xml"),
            _ => stored.answer(request),
        })
    }))
    .await;
    let location = storage.url();
    let registry = Faulty::start(Behaviour::answer(move |request| {
        Action::Reply(match request.target.as_str() {
            "/v2/" => shelf.answer(request),
            target => Reply::redirect(&format!("{location}{target}")),
        })
    }))
    .await;
    let check = async |kind: &str| {
        let spec = json!({"kind": kind, "freshness": {"tag": "1s"}});
        let kagami = knowing(&registry.url(), &spec).await;
        let known = json!({"present": 1, "missing": 0, "unknown": 0});
        for _ in 0..20 {
            let status = kagami.status().await;
            assert_eq!(status.pointer("/mirrors/main/images"), Some(&known), "{kind}");
            assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"], "{kind}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(check("Hosted"), check("PullThrough"));
}

/// What is not there stays known as such, and an index whose images are there in part can be pulled.
#[tokio::test]
async fn the_registry_says_in_text_what_is_not_there() {
    let shelf = stock();
    let index = images::index(MediaType::OciIndex, &["amd64", "arm64"], "half");
    shelf.put(REPOSITORY, "half", &index);
    let gone = format!("/manifests/{}", index.children[1].digest);
    let peer = Faulty::start(Behaviour::answer(move |request| {
        let answer = shelf.answer(request);
        let is_there = answer.status() == 200 && !request.target.ends_with(&gone);
        Action::Reply(if is_there {
            answer
        } else {
            let text = Reply::new(404).content_type("text/plain; charset=utf-8");
            text.body("manifest unknown\n")
        })
    }))
    .await;
    let spec = json!({"freshness": {"tag": "1s", "missing": "1s"}});
    let kagami = Kagami::start(&[mirror(&peer.url(), &spec)]).await;
    let images = ["nginx:half", "nginx:gone"];
    let reasons = ["Mirrored", "ImageMissing"];
    kagami.until(&images, &reasons, SOON).await;
    let known = json!({"present": 1, "missing": 1, "unknown": 0});
    kagami.until_status("/mirrors/main/images", &known, SOON).await;
    for _ in 0..20 {
        let status = kagami.status().await;
        assert_eq!(status.pointer("/mirrors/main/images"), Some(&known));
        assert_eq!(kagami.ask(&images).await.reasons, reasons);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Storage that knows nothing of manifests' types: the reason is steady, and who gave the answer is told.
#[tokio::test]
async fn storage_names_another_type() {
    let shelf = stock();
    let manifest = image("one").manifest;
    let stored = Reply::new(200).content_type("binary/octet-stream").body(manifest);
    let storage = Faulty::start(Behaviour::always(stored)).await;
    let location = storage.url();
    let registry = Faulty::start(Behaviour::answer(move |request| {
        Action::Reply(match request.target.as_str() {
            "/v2/" => shelf.answer(request),
            target => Reply::redirect(&format!("{location}{target}")),
        })
    }))
    .await;
    let spec = json!({"freshness": {"tag": "1s"}});
    let document = mirror(&registry.url(), &spec);
    let setup = Setup {
        arguments: vec!["--show-decisions".to_owned()],
        ..Setup::default()
    };
    let kagami = Kagami::start_with(std::slice::from_ref(&document), setup).await;
    kagami.until(&["nginx:1"], &["RegistryError"], SOON).await;
    stays_healthy(&kagami).await;
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["RegistryError"]);
    let words = format!(
        "the answer is no manifest from {}, where the registry redirects to, of type binary/octet-stream",
        storage.address()
    );
    assert!(kagami.log().contains(&words), "{}", kagami.log());

    let files = tempfile::tempdir().unwrap();
    let config = files.path().join("mirrors.yaml");
    fs::write(&config, text(std::slice::from_ref(&document))).unwrap();
    let mut explain = Command::new(env!("CARGO_BIN_EXE_kagami"));
    explain.args(["explain", "nginx:1", "--config"]).arg(config);
    let output = tokio::task::spawn_blocking(move || explain.output().unwrap());
    let told = String::from_utf8(output.await.unwrap().stdout).unwrap();
    assert!(told.contains(&format!("  answer    {words}\n")), "{told}");
    let status = kagami.status().await;
    let unproven = status.pointer("/mirrors/main/unproven").unwrap();
    assert_eq!(*unproven, format!("docker.io/library/nginx:1: {words}"));
    // Names of images are for whoever may see decisions.
    let kagami = Kagami::start(std::slice::from_ref(&document)).await;
    kagami.until(&["nginx:1"], &["RegistryError"], SOON).await;
    let status = kagami.status().await;
    assert!(!status.to_string().contains("nginx"), "{status}");
}

/// What is known inside is told outside, everywhere in the same words.
#[tokio::test]
async fn the_certificate_that_is_no_good_is_told_with_what_is_wrong_with_it() {
    let authority = Authority::new();
    let pair = authority.expired(&["127.0.0.1"]);
    let peer = Faulty::start_tls(stock().behaviour(), &pair).await;
    let document = mirror(&peer.url(), &json!({"endpoint": {"caBundle": authority.pem()}}));
    let kagami = Kagami::start(std::slice::from_ref(&document)).await;
    let reason = "/mirrors/main/health/reason";
    kagami
        .until_status(reason, &json!("TLSHandshakeFailed"), SOON)
        .await;
    let words = "TLS handshake failed: the certificate has ended (subject CN=rcgen self signed cert, issuer \
                 CN=Kagami test CA, valid from 2001-01-01T00:00:00";
    let status = kagami.status().await;
    let cause = status.pointer("/mirrors/main/health/cause").unwrap().clone();
    assert!(cause.as_str().unwrap().starts_with(words), "{cause}");
    let lines = |words: &str| kagami.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!(lines(words), 1, "{}", kagami.log());

    let arguments = ["explain", "nginx:1", "--output", "json"];
    let told = run_on_machine("", &document, &arguments, b"").await;
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["mirrors"][0]["fault"], "TLSHandshakeFailed");
    assert_eq!(told["mirrors"][0]["faultCause"], cause);
    let told = run_on_machine("", &document, &arguments[..2], b"").await;
    let line = format!("  cause     {}\n", cause.as_str().unwrap());
    assert!(told.out.contains(&line), "{}", told.out);

    // Another fault of the same kind is another cause; the state stays.
    peer.show(&authority.issue_for(&["mirror.example.com"])).await;
    let words = "the certificate is for other names than 127.0.0.1";
    eventually("the other cause is told", SOON, async || {
        let status = kagami.status().await;
        let cause = status.pointer("/mirrors/main/health/cause").unwrap();
        let is_told = cause.as_str().is_some_and(|cause| cause.contains(words));
        is_told.then_some(()).ok_or_else(|| cause.to_string())
    })
    .await;
    assert!(lines(words) <= 1, "{}", kagami.log());
}

/// Connections that are kept go on for ever, and nodes open their own.
#[tokio::test]
async fn the_certificate_that_ends_is_noticed_over_open_connections() {
    let authority = Authority::new();
    let good = authority.issue_for(&["127.0.0.1"]);
    let shelf = stock();
    let peer = Faulty::start_tls(shelf.behaviour(), &good).await;
    let spec = json!({"endpoint": {"caBundle": authority.pem()}, "health": {"interval": "100ms"}});
    let kagami = knowing(&peer.url(), &spec).await;
    peer.show_from_now(&authority.expired(&["127.0.0.1"]));
    kagami.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
    let cause = kagami.status().await["mirrors"]["main"]["health"]["cause"].to_string();
    assert!(cause.contains("the certificate has ended"), "{cause}");
    peer.show_from_now(&good);
    kagami.until(&BOTH, &RECOVERED, SOON).await;
}

#[tokio::test]
async fn the_token_service_that_is_not_asked_is_told_with_the_reason() {
    let challenge = r#"Bearer realm="http://token.example.com/token""#;
    let refusal = Reply::new(401).header("WWW-Authenticate", challenge);
    let peer = Faulty::start(Behaviour::always(refusal)).await;
    let document = mirror(&peer.url(), &json!({}));
    let kagami = Kagami::start(std::slice::from_ref(&document)).await;
    let valid = "/mirrors/main/credentials/reason";
    kagami.until_status(valid, &json!("ChallengeNotMet"), SOON).await;
    let words = "the registry names the token service http://token.example.com/token, which is not asked: it is \
                 another host than the registry";
    let status = kagami.status().await;
    let cause = status
        .pointer("/mirrors/main/credentials/cause")
        .unwrap()
        .as_str()
        .unwrap();
    assert!(cause.contains(words), "{cause}");
    assert_eq!(status.pointer("/mirrors/main/health/state").unwrap(), "Healthy");
    let lines = kagami.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!(lines, 1, "{}", kagami.log());
    let told = run_on_machine("", &document, &["explain", "nginx:1"], b"").await;
    let line = format!("  answer    an authentication challenge that cannot be met: {words}");
    assert!(told.out.contains(&line), "{}", told.out);
    assert!(told.out.contains("Kept RegistryError"), "{}", told.out);
}

/// Whoever names such an image often must not take the mirror away from all others, not even where one
/// failed look is enough.
#[tokio::test]
async fn one_broken_image_switches_no_mirror_off() {
    let (mut peer, shelf) = stocked().await;
    let kagami = unaware(&peer.url(), &json!({"health": {"failureThreshold": 1}})).await;
    peer.set(Behaviour::answer(move |request| {
        if request.target.contains("/broken/") {
            Reply::error(500, "UNKNOWN").into()
        } else {
            shelf.answer(request).into()
        }
    }))
    .await;
    for _ in 0..10 {
        let broken = kagami.ask(&["broken/app:1"]).await.reasons;
        assert_eq!(broken, ["RegistryError"]);
        assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
    }
    let state = "/mirrors/main/health/state";
    kagami.until_status(state, &json!("Healthy"), SOON).await;
    // And one look is enough for as long as a burst of its Pods takes.
    let probes = "kagami_probes_total{mirror=\"main\",result=\"RegistryError\"}";
    let probes = kagami.metric(probes).await;
    assert!((1.0..=3.0).contains(&probes), "{probes}");
}
