//! Many at once: what is shared, what is bounded, and that nobody is lost at the end.

use std::{fs, path::Path, time::Duration};

use ::kagami::{
    certificates::{Authority, Pair},
    clock,
};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{REPOSITORY, SOON, image, knowing, stocked, unaware};
use crate::{
    shared::reviews::review,
    support::{
        faulty::{Action, Behaviour},
        kagami::{Kagami, Setup, eventually, mirror},
        tls_client::{self, Client},
    },
};

const DAY: Duration = Duration::from_hours(24);

#[tokio::test]
async fn a_hundred_pods_that_ask_for_one_image_make_one_probe() {
    let (mut peer, shelf) = stocked().await;
    let kagami = unaware(&peer.url(), &json!({})).await;
    shelf.put(REPOSITORY, "3", &image("three"));
    let slow = shelf.clone();
    peer.set(Behaviour::answer(move |request| {
        Action::Later(Duration::from_millis(150), slow.answer(request))
    }))
    .await;
    let present = "kagami_probes_total{mirror=\"main\",result=\"present\"}";
    let before = kagami.metric(present).await;
    let callers: Vec<_> = futures_util::future::join_all((0..100).map(|_| kagami.connect())).await;
    let answers = callers
        .into_iter()
        .map(async |mut caller| caller.ask(&["nginx:3"]).await);
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(answer.reasons, ["Mirrored"]);
    }
    let probes = kagami.metric(present).await - before;
    assert!((probes - 1.0).abs() < 0.1, "{probes}");
    let requests = peer
        .requests()
        .into_iter()
        .filter(|request| request.target.ends_with("/manifests/3"));
    // The probe, and the companion's own first look.
    assert!(requests.count() <= 2);
}

#[tokio::test]
async fn a_thousand_images_against_a_black_hole_are_sixty_four_probes() {
    const COUNT: usize = 1000;
    let (mut peer, _) = stocked().await;
    let kagami = unaware(&peer.url(), &json!({"health": {"timeout": "2s"}})).await;
    let descriptors = kagami.process.descriptors();
    peer.set(Behaviour::BlackHole).await;
    let images: Vec<String> = (0..COUNT).map(|number| format!("nginx:t{number}")).collect();
    let mut caller = kagami.connect().await.about_giants();
    let answer = caller.ask(&images).await;
    assert_eq!(answer.reasons, vec!["BudgetExhausted"; COUNT]);
    let not_started = kagami
        .metric("kagami_probes_total{mirror=\"main\",result=\"not_started\"}")
        .await;
    assert!((not_started - 936.0).abs() < 0.1, "{not_started}");
    // The probes, and the companion's looks at new images; and its own connections to this test.
    let open = kagami.process.descriptors();
    assert!(
        open <= descriptors + 64 + 16 + 4,
        "{descriptors} before, {open} now"
    );

    // The probes tell the companion what they saw; from then on nobody waits.
    kagami
        .until_status("/mirrors/main/health/state", &json!("Unhealthy"), SOON)
        .await;
    let answer = caller.ask(&images).await;
    assert_eq!(answer.reasons, vec!["MirrorUnhealthy"; COUNT]);
    drop(caller);
    eventually("the descriptors are back", 2 * SOON, async || {
        match kagami.process.descriptors() {
            now if now <= descriptors => Ok(()),
            now => Err(format!("{descriptors} before, {now} now")),
        }
    })
    .await;
    let lines = kagami.log().lines().count();
    assert!(lines <= 12, "{}", kagami.log());
}

#[tokio::test]
async fn a_caller_in_a_hurry_waits_for_no_probe() {
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let mut caller = kagami.connect().await.with_timeout("1s", Duration::ZERO);
    assert_eq!(
        caller.ask(&["nginx:1", "nginx:2"]).await.reasons,
        ["Mirrored", "BudgetExhausted"]
    );
    // The probe went on without it.
    kagami.until(&["nginx:2"], &["Mirrored"], SOON).await;
    let mut caller = kagami
        .connect()
        .await
        .with_timeout("2s", Duration::from_millis(300));
    assert_eq!(
        caller.ask(&["nginx:1", "nginx:2"]).await.reasons,
        ["Mirrored", "Mirrored"]
    );
}

/// Asks again and again, on new connections too, until told to stop or nobody takes connections.
/// Returns how many reviews were answered; a request that was sent and not answered fails.
async fn ask_on(kagami: &Kagami, stop: watch::Receiver<bool>) -> JoinSet<usize> {
    let body = review(&["nginx:1"]).to_string();
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (address, settings) = (kagami.address(), kagami.client_settings().clone());
        let (body, stop) = (body.clone(), stop.clone());
        callers.spawn(async move {
            let mut answered = 0;
            while !*stop.borrow() {
                let Ok(mut client) = Client::connect(address, &settings).await else {
                    break;
                };
                for _ in 0..20 {
                    let reply = client.post("/mutate/enforce?timeout=2s", &body).await.unwrap();
                    assert_eq!(reply.status, 200);
                    assert!(reply.body.contains("Rewritten Mirrored"), "{}", reply.body);
                    answered += 1;
                    if reply.close {
                        break;
                    }
                }
            }
            answered
        });
    }
    let mut first = kagami.connect().await;
    first.ask(&["nginx:1"]).await;
    callers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_no_review() {
    let (peer, _) = stocked().await;
    let setup = Setup {
        arguments: vec!["--drain-delay".to_owned(), "1s".to_owned()],
        ..Setup::default()
    };
    let mut kagami = Kagami::start_with(&[mirror(&peer.url(), &json!({}))], setup).await;
    kagami.until_known("nginx:1", 1).await;
    let (_stop, stopped) = watch::channel(false);
    let callers = ask_on(&kagami, stopped).await;
    kagami.process.signal("TERM");
    let answered: usize = callers.join_all().await.into_iter().sum();
    assert!(answered > 8, "{answered}");
    let status = eventually("it has ended", SOON, async || {
        kagami.process.ended().ok_or_else(String::new)
    })
    .await;
    assert!(status.success(), "{status}\n{}", kagami.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_is_renewed_under_load() {
    let (peer, _) = stocked().await;
    let authority = Authority::new(clock::now(), DAY).unwrap();
    let issue = || authority.issue(&["127.0.0.1".into()], clock::now(), DAY).unwrap();
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
    let write = |path: &Path, text: &str| fs::write(path, text).unwrap();
    let write_pair = |pair: &Pair| {
        write(&certificate, &pair.certificate);
        write(&key, &pair.key);
    };
    let (old, new) = (issue(), issue());
    write_pair(&old);
    let setup = Setup {
        pair: Some((&certificate, &key, authority.certificate())),
        ..Setup::default()
    };
    let kagami = Kagami::start_with(&[mirror(&peer.url(), &json!({}))], setup).await;
    kagami.until_known("nginx:1", 1).await;
    let mut open = Client::connect(kagami.address(), kagami.client_settings())
        .await
        .unwrap();
    assert!(open.saw(&old));

    let (stop, stopped) = watch::channel(false);
    let callers = ask_on(&kagami, stopped).await;
    // First a key that does not fit: what is in force stays.
    write(&key, &new.key);
    eventually("the fault is told", SOON, async || {
        let status = kagami.status().await;
        status["certificate"]["fault"]
            .as_str()
            .map(|_| ())
            .ok_or_else(|| status.to_string())
    })
    .await;
    assert!(connect(&kagami).await.saw(&old));
    write_pair(&new);
    eventually("the new certificate is shown", SOON, async || {
        if connect(&kagami).await.saw(&new) {
            Ok(())
        } else {
            Err("the old one is".to_owned())
        }
    })
    .await;
    kagami
        .until_status("/certificate/fault", &serde_json::Value::Null, SOON)
        .await;
    // Connections that were open stay.
    let reply = open
        .post("/mutate/enforce", review(&["nginx:1"]).to_string())
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
    let renewed = Instant::now();
    stop.send_replace(true);
    let answered: usize = callers.join_all().await.into_iter().sum();
    assert!(answered > 8, "{answered} until {renewed:?}");
}

async fn connect(kagami: &Kagami) -> Client {
    let settings: &tls_client::Settings = kagami.client_settings();
    Client::connect(kagami.address(), settings).await.unwrap()
}

/// Reviews as large as they may be, whose last byte does not come: what was read of them is
/// held meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_at_once_cost_no_more_memory_than_some() {
    const MIB: usize = 1024 * 1024;
    let (peer, _) = stocked().await;
    let kagami = knowing(&peer.url(), &json!({})).await;
    let before = kagami.process.memory("VmHWM");
    let large = async || {
        let mut client = connect(&kagami).await;
        // On a busy machine some take longer than a body may.
        let begun = client.begin("/mutate/enforce?timeout=2s", 8 * MIB).await;
        begun.ok().map(|()| client)
    };
    let mut clients = futures_util::future::join_all((0..64).map(|_| large())).await;
    // Whoever is as small as Pods are is answered as ever.
    assert_eq!(kagami.ask(&["nginx:1"]).await.reasons, ["Mirrored"]);
    let grown = kagami.process.memory("VmHWM") - before;
    // 64 MiB for bodies, twice that while they grow, and what each connection has read. All of them would be
    // 512 MiB.
    assert!(grown < 220.0, "{grown} MiB");
    // Those that found no room are told to come again, on the same connection.
    let mut again = 0;
    for client in clients.iter_mut().flatten() {
        if let Ok(reply) = client.finish().await
            && reply.status == 503
        {
            let told = (reply.retry_after, reply.close);
            assert_eq!(told, (Some(1), false), "{}", reply.body);
            again += 1;
        }
    }
    assert!(again > 0);
    let large = review(&["nginx:1"]).to_string() + &" ".repeat(4 * MIB);
    let reply = connect(&kagami)
        .await
        .post("/mutate/enforce", large)
        .await
        .unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let refused = "kagami_reviews_total{mode=\"enforce\",answer=\"no_room\"}";
    let refused = kagami.metric(refused).await;
    assert!(
        refused >= f64::from(again),
        "{refused}, of which {again} were told here"
    );
}
