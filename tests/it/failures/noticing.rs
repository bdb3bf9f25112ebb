//! How soon a fault is noticed, what that costs the mirror, and what is no fault.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{REPOSITORY, SOON, image, know_more, stock, stocked};
use ::kagami::domain::answer::MediaType;

use crate::support::{
    faulty::{Action, Behaviour, Faulty, Reply},
    images,
    kagami::{Kagami, eventually, mirror},
    shelf::Shelf,
};

const KNOWN: [&str; 1] = ["nginx:1"];

/// What a machine that is busy with other tests adds to times.
const BUSY: Duration = Duration::from_secs(2);

/// Starts Kagami so that it looks at the mirror only if something makes it, and makes `nginx:1` known.
async fn at_rest(peer: &Faulty) -> Kagami {
    at_rest_before(&peer.url(), std::slice::from_ref(peer)).await
}

/// The same where one address stands for several peers.
async fn at_rest_before(url: &str, peers: &[Faulty]) -> Kagami {
    let spec = json!({"health": {"interval": "10m", "timeout": "1s"}, "freshness": {"tag": "10m"}});
    let kagami = Kagami::start(&[mirror(url, &spec)]).await;
    kagami.until_known("nginx:1", 1).await;
    eventually("a connection is held open", SOON, async || {
        let asked: usize = peers.iter().map(pings).sum();
        if asked >= 2 {
            Ok(())
        } else {
            Err(asked.to_string())
        }
    })
    .await;
    kagami
}

fn pings(peer: &Faulty) -> usize {
    let requests = peer.requests();
    requests.iter().filter(|request| request.target == "/v2/").count()
}

fn health(status: &Value) -> (String, String) {
    let of = |what: &str| {
        let value = status.pointer(&format!("/mirrors/main/health/{what}"));
        value.and_then(Value::as_str).unwrap().to_owned()
    };
    (of("state"), of("provenSince"))
}

#[tokio::test]
async fn a_mirror_that_dies_is_noticed_without_any_review() {
    let (mut peer, shelf) = stocked().await;
    let kagami = at_rest(&peer).await;
    let before = health(&kagami.status().await);
    peer.set(Behaviour::Refuse).await;
    kagami
        .until_status("/mirrors/main/health/suspected", &json!(true), BUSY)
        .await;
    assert_ne!(kagami.ask(&KNOWN).await.reasons, ["Mirrored"]);
    kagami
        .until_status("/mirrors/main/health/state", &json!("Unhealthy"), BUSY + BUSY)
        .await;
    assert_eq!(health(&kagami.status().await).1, before.1, "nothing is void yet");
    drop(shelf);
}

/// One whose fault no connection tells: a review a few times a second, and each of them asks for a look.
#[tokio::test]
async fn a_mirror_that_falls_silent_is_noticed_by_who_sends_pods_there() {
    let faults = [
        Behaviour::BlackHole,
        Behaviour::Silent,
        Behaviour::always(Reply::error(500, "UNKNOWN")),
        Behaviour::always(Reply::html(200)),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let (mut peer, _shelf) = stocked().await;
        let kagami = at_rest(&peer).await;
        let mut caller = kagami.connect().await;
        // It is used for a while; on a busy machine a look may take long enough for a suspicion.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            caller.ask(&KNOWN).await;
            sleep(Duration::from_millis(50)).await;
        }
        kagami.until(&KNOWN, &["Mirrored"], SOON).await;
        peer.set(fault).await;
        let began = Instant::now();
        while caller.ask(&KNOWN).await.reasons == ["Mirrored"] {
            let lasted = began.elapsed();
            assert!(
                lasted < Duration::from_secs(1) + BUSY,
                "fault {number}: {lasted:?}"
            );
            sleep(Duration::from_millis(50)).await;
        }
        // A second later nothing has changed for the better.
        sleep(Duration::from_secs(1)).await;
        assert_ne!(caller.ask(&KNOWN).await.reasons, ["Mirrored"], "fault {number}");
    }
}

#[tokio::test]
async fn a_mirror_is_asked_as_often_as_it_is_used_and_no_more() {
    let (peer, _shelf) = stocked().await;
    let kagami = at_rest(&peer).await;
    // What reviews of the beginning asked for is over.
    sleep(Duration::from_secs(1)).await;
    let before = pings(&peer);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(pings(&peer), before, "nobody uses it");
    let mut caller = kagami.connect().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        caller.ask(&KNOWN).await;
    }
    let (asked, millis) = (pings(&peer) - before, began.elapsed().as_millis());
    // Three a second at most, and a busy machine makes them fewer.
    let most = usize::try_from(millis * 3 / 1000).unwrap() + 2;
    assert!((3..=most).contains(&asked), "{asked} in {millis} ms");
}

/// Nodes wait for data that does not come, so it is read every few rounds, of one image after the other; and that costs
/// the mirror hardly more than a look at manifests alone.
#[tokio::test]
async fn data_is_read_often_and_at_little_cost() {
    let (peer, shelf) = stocked().await;
    let spec = json!({"health": {"interval": "100ms"}, "freshness": {"tag": "10m"}});
    let kagami = Kagami::start(&[mirror(&peer.url(), &spec)]).await;
    kagami.until_known("nginx:1", 1).await;
    let index = |seed: &str| images::index(MediaType::OciIndex, &["amd64", "arm64"], seed);
    know_more(&kagami, &shelf, index).await;
    let rounds = async |count| {
        let goal = pings(&peer) + count;
        eventually("there are more rounds", SOON + BUSY, async || {
            let asked = pings(&peer);
            if asked >= goal {
                Ok(())
            } else {
                Err(asked.to_string())
            }
        })
        .await;
    };
    // At first it is not known where data is.
    rounds(40).await;
    let before = peer.requests().len();
    rounds(60).await;
    let requests = peer.requests().split_off(before);
    let pings = requests.iter().filter(|request| request.target == "/v2/").count();
    let mut data: Vec<_> = requests.iter().map(|request| request.target.as_str()).collect();
    data.retain(|target| target.contains("/blobs/"));
    assert!(data.len() * 3 >= pings, "{} of {pings}", data.len());
    assert!(
        requests.len() * 10 <= pings * 24,
        "{} in {pings} rounds",
        requests.len()
    );
    data.sort_unstable();
    data.dedup();
    assert!(data.len() >= 3, "{data:?}");
    drop(kagami);
}

/// Returns what a mirror answers from now on whose images are these.
async fn restart(peer: &mut Faulty, shelf: &Shelf) {
    peer.set(Behaviour::Refuse).await;
    sleep(Duration::from_millis(300)).await;
    peer.set(shelf.behaviour()).await;
}

#[tokio::test]
async fn a_restart_costs_no_proof_if_the_images_are_still_there() {
    let (mut peer, shelf) = stocked().await;
    let kagami = at_rest(&peer).await;
    let before = health(&kagami.status().await);
    for _ in 0..3 {
        restart(&mut peer, &shelf).await;
        kagami.until(&KNOWN, &["Mirrored"], SOON).await;
        assert_eq!(health(&kagami.status().await), before);
        // The connection that is held is another one.
        sleep(Duration::from_millis(500)).await;
    }
}

/// Three that hold the same images behind one address, each away for a moment: connections end, and nothing is void.
#[tokio::test]
async fn a_rolling_restart_behind_one_address_costs_no_proof() {
    let shelf = stock();
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(Faulty::start(shelf.behaviour()).await);
    }
    let balancer = Balancer::start(peers.iter().map(Faulty::address).collect()).await;
    let kagami = at_rest_before(&format!("http://{}", balancer.address), &peers).await;
    let before = health(&kagami.status().await);
    let mut caller = kagami.connect().await;
    let (mut asked, mut mirrored) = (0, 0);
    for peer in &mut peers {
        peer.set(Behaviour::Refuse).await;
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            asked += 1;
            mirrored += usize::from(caller.ask(&KNOWN).await.reasons == ["Mirrored"]);
            sleep(Duration::from_millis(20)).await;
        }
        peer.set(shelf.behaviour()).await;
    }
    kagami.until(&KNOWN, &["Mirrored"], SOON).await;
    assert_eq!(health(&kagami.status().await), before);
    // Somebody answers all the time.
    assert!(mirrored * 10 >= asked * 9, "{mirrored} of {asked}");
}

/// Hands each connection to the next peer that takes it, byte by byte, as a Service or a load balancer does.
struct Balancer {
    address: SocketAddr,
    _running: JoinSet<()>,
}

impl Balancer {
    async fn start(peers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            let mut turns = (0..peers.len()).cycle();
            while let Ok((mut inside, _)) = listener.accept().await {
                for turn in turns.by_ref().take(peers.len()) {
                    if let Ok(mut outside) = TcpStream::connect(peers[turn]).await {
                        connections.spawn(async move {
                            // Either end may end it.
                            drop(copy_bidirectional(&mut inside, &mut outside).await);
                        });
                        break;
                    }
                }
            }
        });
        Self {
            address,
            _running: running,
        }
    }
}

#[tokio::test]
async fn a_restart_without_the_images_voids_every_proof() {
    let others = [
        |shelf: &Shelf| shelf.clear(),
        // Under its name stands another one.
        |shelf: &Shelf| shelf.put(REPOSITORY, "1", &image("another")),
    ];
    for (lose, answers_at_once) in others.into_iter().zip([false, true]) {
        let (mut peer, shelf) = stocked().await;
        let kagami = at_rest(&peer).await;
        let (_, before) = health(&kagami.status().await);
        peer.set(Behaviour::Refuse).await;
        if !answers_at_once {
            kagami
                .until_status("/mirrors/main/health/suspected", &json!(true), BUSY)
                .await;
        }
        lose(&shelf);
        peer.set(shelf.behaviour()).await;
        // On a busy machine it may have been away for long enough to be told of; then they are void anyhow.
        eventually("every proof is void", SOON, async || {
            let (state, after) = health(&kagami.status().await);
            if after > before {
                Ok(())
            } else {
                Err(format!("{state}: {before} {after}\n{}", kagami.log()))
            }
        })
        .await;
    }
}

/// One known image that answers no more, as damaged ones do, keeps nobody away from the others.
#[tokio::test]
async fn a_restart_is_over_though_one_image_cannot_be_seen() {
    let (mut peer, shelf) = stocked().await;
    let kagami = at_rest(&peer).await;
    kagami.until(&["nginx:2"], &["Mirrored"], SOON).await;
    let before = health(&kagami.status().await);
    peer.set(Behaviour::Refuse).await;
    kagami
        .until_status("/mirrors/main/health/suspected", &json!(true), BUSY)
        .await;
    peer.set(Behaviour::answer(move |request| {
        if request.target.ends_with("/manifests/2") {
            return Action::Hang;
        }
        Action::Reply(shelf.answer(request))
    }))
    .await;
    kagami
        .until_status("/mirrors/main/health/suspected", &json!(false), SOON)
        .await;
    kagami.until(&KNOWN, &["Mirrored"], SOON).await;
    let after = health(&kagami.status().await);
    assert_eq!(after.0, "Healthy");
    assert!(
        after == before || kagami.log().contains("to=\"Unhealthy\""),
        "{before:?} {after:?}"
    );
}

/// Who closes what says nothing, or every connection, is neither suspected for it nor asked all the time.
#[tokio::test]
async fn a_mirror_that_closes_connections_is_left_in_peace() {
    let (mut peer, shelf) = stocked().await;
    peer.set(Behaviour::answer(move |request| {
        Action::Reply(shelf.answer(request).header("Connection", "close"))
    }))
    .await;
    let spec = json!({"health": {"interval": "10m", "timeout": "1s"}, "freshness": {"tag": "10m"}});
    let kagami = Kagami::start(&[mirror(&peer.url(), &spec)]).await;
    kagami.until_known("nginx:1", 1).await;
    let before = pings(&peer);
    let began = Instant::now();
    let mut suspected = 0;
    while began.elapsed() < Duration::from_secs(4) {
        let status = kagami.status().await;
        if status.pointer("/mirrors/main/health/suspected") != Some(&json!(false)) {
            suspected += 1;
        }
        sleep(Duration::from_millis(100)).await;
    }
    // One look of a busy machine may be.
    assert!(suspected <= 4, "{suspected} times");
    let asked = pings(&peer) - before;
    assert!(asked <= 4, "{asked} in {:?}", began.elapsed());
}

/// Slow now and then, as mirrors are that fetch or collect garbage: seldom suspected, never unhealthy.
#[tokio::test]
async fn a_mirror_that_is_only_slow_stays_in_use() {
    let (mut peer, shelf) = stocked().await;
    let answers = std::sync::atomic::AtomicU64::new(0);
    peer.set(Behaviour::answer(move |request| {
        let number = answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Every tenth takes 400 ms, others up to 90.
        let millis = if number % 10 == 9 { 400 } else { number % 10 * 10 };
        Action::Later(Duration::from_millis(millis), shelf.answer(request))
    }))
    .await;
    let kagami = at_rest(&peer).await;
    let (_, before) = health(&kagami.status().await);
    let mut caller = kagami.connect().await;
    let (mut asked, mut kept) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        asked += 1;
        if caller.ask(&KNOWN).await.reasons != ["Mirrored"] {
            kept += 1;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(health(&kagami.status().await), ("Healthy".to_owned(), before));
    // Before it is known that such answers are usual, one or two are met with suspicion.
    assert!(kept * 20 <= asked, "{kept} of {asked}");
}
