//! Rows in which the mirror fails.

use std::{fs, process::Command, time::Duration};

use serde_json::{Value, json};

use super::{REPOSITORY, SOON, image, knowing, stock, stocked, unaware};
use crate::support::{
    certificates::Authority,
    faulty::{Action, Behaviour, Faulty, Reply},
    images,
    kagami::{Kagami, Setup, mirror},
    shelf::Shelf,
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
        assert_eq!(first.reasons, ["Mirrored", self.before], "before the state knows");

        let both = [self.after; 2];
        let meanwhile = aware.until(&BOTH, &both, SOON).await;
        for reasons in meanwhile {
            assert!(
                ["Mirrored", self.after].contains(&&*reasons[0]),
                "the known image: {reasons:?}"
            );
            assert!(
                [self.before, self.after].contains(&&*reasons[1]),
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

/// Worse than a dead mirror: everything Kagami asks for in passing works, and nodes wait for layers.
#[tokio::test]
async fn the_mirror_hangs_in_blobs_alone() {
    let row = Row {
        before: "Mirrored",
        after: "MirrorUnhealthy",
    };
    let shelf = stock();
    let fault = Behaviour::answer(move |request| {
        if request.target.contains("/blobs/") {
            Reply::new(200).hanging_body("half").into()
        } else {
            shelf.answer(request).into()
        }
    });
    row.check_behaviour_with(&json!({"health": {"interval": "100ms"}}), fault)
        .await;
}

/// The same where all known images are indexes, as most are: the blobs are one step further away.
#[tokio::test]
async fn blobs_behind_indexes_are_looked_at_too() {
    let (mut peer, shelf) = stocked().await;
    let kagami = Kagami::start(&[mirror(&peer.url(), &json!({"health": {"interval": "100ms"}}))]).await;
    kagami.until_known("nginx:2", 1).await;
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

#[tokio::test]
async fn the_certificate_of_the_mirror_is_no_good() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.leaf(&["127.0.0.1"]);
    let faults = [
        authority.expired(&["127.0.0.1"]),
        authority.leaf(&["mirror.example.com"]),
        other.leaf(&["127.0.0.1"]),
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
    assert_eq!(unaware.ask(&BOTH).await.reasons, ["Mirrored", "MirrorUnhealthy"]);
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
    for _ in 0..5 {
        peer.set(Behaviour::Refuse).await;
        kagami.until(&BOTH, &["MirrorUnhealthy"; 2], SOON).await;
        peer.set(shelf.behaviour()).await;
        kagami.until(&BOTH, &RECOVERED, SOON).await;
    }
    let changes = kagami.log().matches("mirror health changed").count();
    assert!((11..=15).contains(&changes), "{changes} lines:\n{}", kagami.log());
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
