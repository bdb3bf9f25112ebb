//! The listeners with real sockets and real TLS.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use hyper_util::service::TowerToHyperService;
use kagami::{
    certificates::{Authority, Name, Pair},
    clock,
    domain::time::Timestamp,
    server::{
        Counts, Limits, Server,
        admin::{self, Admin, Readiness},
        tls::{self, Certificate, Reloader, Settings, Source, Tls},
    },
    tasks::{Drain, Error, Shutdown, Signal, Signals, Stage, Tasks, Trigger, shutdown},
};
use rustls::{
    ProtocolVersion,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::support::tls_client::{self, Client, get};

const DAY: Duration = Duration::from_hours(24);
const LONG: Duration = Duration::from_secs(30);

/// A running server and what a client needs to talk to it.
struct Fixture {
    address: SocketAddr,
    client: tls_client::Settings,
    authority: Authority,
    pair: Pair,
    counts: Counts,
    trigger: Trigger,
    shutdown: Shutdown,
    running: JoinSet<io::Result<()>>,
}

fn loopback() -> [Name; 1] {
    ["127.0.0.1".into()]
}

fn issue(authority: &Authority) -> Pair {
    authority.issue(&loopback(), clock::now(), DAY).unwrap()
}

fn in_memory(pair: &Pair) -> Settings {
    Settings {
        pair: Source::Memory(pair.clone()),
        client_authorities: None,
    }
}

async fn start(limits: Limits) -> Fixture {
    let authority = Authority::new(clock::now(), DAY).unwrap();
    let pair = issue(&authority);
    let (tls, _) = tls::load(in_memory(&pair), clock::now()).await.unwrap();
    start_with(authority, pair, tls, limits).await
}

async fn start_with(authority: Authority, pair: Pair, tls: Tls, limits: Limits) -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counts = Counts::default();
    let (trigger, shutdown) = shutdown();
    let server = Server {
        name: "test",
        listener,
        tls: Some(tls),
        service: TowerToHyperService::new(echo()),
        limits,
        counts: counts.clone(),
    };
    let mut running = JoinSet::new();
    running.spawn(server.run(shutdown.clone()));
    Fixture {
        address,
        client: tls_client::Settings::trusting(authority.certificate()),
        authority,
        pair,
        counts,
        trigger,
        shutdown,
        running,
    }
}

fn echo() -> Router {
    Router::new()
        .route("/echo", post(async |body: String| body))
        .route(
            "/slow",
            post(async |body: String| {
                sleep(Duration::from_millis(300)).await;
                body
            }),
        )
        .route(
            "/panic",
            post(async || -> &'static str { panic!("as asked by the test") }),
        )
}

impl Fixture {
    async fn connect(&self) -> io::Result<Client> {
        Client::connect(self.address, &self.client).await
    }

    /// Waits for the server's end.
    async fn ended(&mut self) {
        let ended = timeout(LONG, self.running.join_next()).await.expect("no end");
        ended.unwrap().unwrap().unwrap();
    }
}

#[track_caller]
fn assert_echoed(reply: io::Result<tls_client::Reply>, body: &str) {
    let reply = reply.unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (200, body));
}

/// Waits for something that nothing tells of.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn both_tls_versions_are_spoken_and_only_http_1() {
    let server = start(Limits::default()).await;
    for (version, expected) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let mut settings = server.client.clone();
        settings.versions = vec![version];
        settings.protocols = vec!["h2", "http/1.1"];
        let mut client = Client::connect(server.address, &settings).await.unwrap();
        assert_eq!(client.version(), expected);
        assert_eq!(client.protocol().as_deref(), Some("http/1.1"));
        assert_echoed(client.post("/echo", "one").await, "one");
        assert_echoed(client.post("/echo", "two").await, "two");
        assert!(client.saw(&server.pair));
    }
    let mut settings = server.client.clone();
    settings.protocols = vec!["h2"];
    assert!(Client::connect(server.address, &settings).await.is_err());
    eventually("the failed handshake counts", || {
        server.counts.handshakes_failed.get() == 1
    })
    .await;
}

/// The files that a Secret would be mounted as.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new(pair: &Pair) -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        files.write(pair);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, pair: &Pair) {
        replace(&self.path("tls.crt"), &pair.certificate);
        replace(&self.path("tls.key"), &pair.key);
    }

    fn settings(&self) -> Settings {
        Settings {
            pair: Source::Files {
                certificate: self.path("tls.crt"),
                key: self.path("tls.key"),
            },
            client_authorities: None,
        }
    }
}

/// Replaces a file at once, as mounts do: never half of it can be read.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(&new, path).unwrap();
}

async fn becomes(
    certificate: &mut watch::Receiver<Certificate>,
    what: impl FnMut(&Certificate) -> bool,
) -> Certificate {
    timeout(LONG, certificate.wait_for(what))
        .await
        .expect("never")
        .unwrap()
        .clone()
}

#[tokio::test]
async fn a_new_certificate_is_taken_under_load() {
    let authority = Authority::new(clock::now(), DAY).unwrap();
    let first = issue(&authority);
    let files = Files::new(&first);
    let (tls, reloader) = tls::load(files.settings(), clock::now()).await.unwrap();
    let mut certificate = tls.certificate();
    let mut server = start_with(authority, first.clone(), tls, Limits::default()).await;
    let shutdown = server.shutdown.clone();
    let mut reloading = JoinSet::new();
    reloading.spawn(reloader.run(Duration::from_millis(10), clock::now, shutdown));

    // One client keeps its connection, the others make new ones; none ever fails.
    let stop = Arc::new(Notify::new());
    let answered = Arc::new(AtomicU64::new(0));
    let mut load = JoinSet::new();
    for keeps_connection in [true, false, false] {
        let (address, settings) = (server.address, server.client.clone());
        let (stop, answered) = (stop.clone(), answered.clone());
        load.spawn(async move {
            let requests = async {
                let mut client = Client::connect(address, &settings).await.unwrap();
                loop {
                    assert_echoed(client.post("/echo", "x").await, "x");
                    answered.fetch_add(1, Ordering::Relaxed);
                    if !keeps_connection {
                        client = Client::connect(address, &settings).await.unwrap();
                    }
                }
            };
            tokio::select! {
                () = stop.notified() => {}
                () = requests => {}
            }
        });
    }

    let mut shown = first;
    for round in 1..=3 {
        let before = answered.load(Ordering::Relaxed);
        eventually("load", || answered.load(Ordering::Relaxed) > before + 10).await;
        let next = issue(&server.authority);
        files.write(&next);
        becomes(&mut certificate, |now| {
            now.replacements >= round && now.fault.is_none()
        })
        .await;
        let client = server.connect().await.unwrap();
        assert!(client.saw(&next) && !client.saw(&shown));
        shown = next;
    }

    stop.notify_waiters();
    while let Some(client) = load.join_next().await {
        client.expect("no request may fail");
    }
    server.trigger.advance(Stage::Stopping);
    server.ended().await;
    reloading.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_bad_pair_never_replaces_a_good_one() {
    let now = clock::now();
    let authority = Authority::new(now, 10 * DAY).unwrap();
    let good = issue(&authority);
    let files = Files::new(&good);
    let (tls, mut reloader) = tls::load(files.settings(), now).await.unwrap();
    let certificate = tls.certificate();
    let before = certificate.borrow().clone();
    assert_eq!(
        before.not_after.as_millis() / 1000,
        now.after(DAY).as_millis() / 1000
    );

    let other = issue(&authority);
    let issued = |begin: Timestamp| authority.issue(&loopback(), begin, DAY).unwrap();
    let mixed = |certificate: &str, key: &str| Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
    };
    let half = &other.certificate[..other.certificate.len() / 2];
    let cases = [
        (mixed(&other.certificate, &good.key), "cannot be used together"),
        (
            mixed("", &other.key),
            "no PEM certificates in the serving certificate",
        ),
        (mixed(half, &other.key), "serving certificate"),
        (
            mixed(&other.certificate, "nonsense"),
            "malformed PEM in the serving key",
        ),
        (
            mixed(
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &other.key,
            ),
            "malformed serving certificate",
        ),
        (issued(now.before(2 * DAY)), "has expired"),
        (issued(now.after(DAY)), "is not valid before"),
    ];
    let mut faults = 0;
    for (pair, expected) in cases {
        files.write(&pair);
        faults += 1;
        for _ in 0..2 {
            reloader.look(now).await;
            let state = certificate.borrow().clone();
            let fault = state.fault.clone().unwrap_or_default();
            assert!(fault.contains(expected), "{fault:?} does not say {expected:?}");
            assert_eq!((state.faults, state.replacements), (faults, 0), "{expected}");
            assert_eq!(state.not_after, before.not_after);
        }
    }
    std::fs::remove_file(files.path("tls.key")).unwrap();
    reloader.look(now).await;
    assert!(
        certificate
            .borrow()
            .fault
            .as_ref()
            .unwrap()
            .contains("cannot read")
    );

    let server = start_with(authority, good.clone(), tls, Limits::default()).await;
    assert!(server.connect().await.unwrap().saw(&good));

    files.write(&good);
    reloader.look(now).await;
    assert_eq!(certificate.borrow().fault, None);
    assert_eq!(certificate.borrow().replacements, 0);
    files.write(&other);
    reloader.look(now).await;
    assert_eq!(certificate.borrow().replacements, 1);
    assert!(server.connect().await.unwrap().saw(&other));
}

#[tokio::test]
async fn a_bad_pair_is_refused_at_the_start() {
    let now = clock::now();
    let authority = Authority::new(now, DAY).unwrap();
    let pair = issue(&authority);
    let expired = tls::load(in_memory(&pair), now.after(2 * DAY)).await;
    let told = expired.map(|_| ()).unwrap_err().to_string();
    assert!(
        told.starts_with("the serving certificate has expired at 20"),
        "{told}"
    );
}

/// Whether the server answers a client; with TLS 1.3 a refusal shows only at the first answer.
async fn is_served(server: &Fixture, identity: Option<Pair>) -> bool {
    let mut settings = server.client.clone();
    settings.identity = identity;
    match Client::connect(server.address, &settings).await {
        Ok(mut client) => client.post("/echo", "x").await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_present_authority() {
    let now = clock::now();
    let clients = Authority::new(now, DAY).unwrap();
    let strangers = Authority::new(now, DAY).unwrap();
    let authority = Authority::new(now, DAY).unwrap();
    let pair = issue(&authority);
    let files = Files::new(&pair);
    let path = files.path("clients.crt");
    replace(&path, clients.certificate());
    let mut settings = files.settings();
    settings.client_authorities = Some(path.clone());
    let (tls, mut reloader): (Tls, Reloader) = tls::load(settings, now).await.unwrap();
    let server = start_with(authority, pair, tls, Limits::default()).await;

    assert!(!is_served(&server, None).await);
    assert!(!is_served(&server, Some(issue(&strangers))).await);
    assert!(is_served(&server, Some(issue(&clients))).await);

    replace(&path, "");
    reloader.look(now).await;
    assert!(
        is_served(&server, Some(issue(&clients))).await,
        "an empty file is refused"
    );
    replace(&path, strangers.certificate());
    reloader.look(now).await;
    assert!(!is_served(&server, Some(issue(&clients))).await);
    assert!(is_served(&server, Some(issue(&strangers))).await);
    assert!(!is_served(&server, None).await);
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let server = start(Limits {
        handshake: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(&[22, 3, 1]).await.unwrap();
    for stream in [&mut silent, &mut slow] {
        let read = timeout(LONG, stream.read(&mut [0])).await.expect("not cut");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
    eventually("both count", || server.counts.handshakes_failed.get() == 2).await;
}

#[tokio::test]
async fn a_slow_head_is_cut_and_an_idle_connection_is_not() {
    let server = start(Limits {
        head: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let mut idle = server.connect().await.unwrap();
    assert_echoed(idle.post("/echo", "x").await, "x");
    let mut slow = server.connect().await.unwrap();
    let answer = timeout(LONG, slow.send_half("/echo")).await.expect("not cut");
    assert!(answer.is_err());
    assert_eq!(server.counts.cut.get(), 1);
    assert_echoed(idle.post("/echo", "y").await, "y");
}

/// How many connections there may be where a test fills them all.
const FEW: usize = 100;

/// Asks once on each of three new connections while there is room for none of them.
async fn assert_answered_at_once(server: &Fixture) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let since = Instant::now();
        let mut client = timeout(LONG, server.connect())
            .await
            .expect("nobody listens")
            .unwrap();
        assert_echoed(client.post("/echo", "x").await, "x");
        took.push(since.elapsed());
    }
    // What makes one wait makes all wait; a busy machine slows down some of them.
    let (soonest, latest) = (took.iter().min().unwrap(), took.iter().max().unwrap());
    assert!(
        *soonest < Duration::from_millis(100) && *latest < Duration::from_secs(2),
        "{took:?}"
    );
}

#[tokio::test]
async fn silent_connections_make_way_for_a_request() {
    let server = start(Limits {
        connections: FEW,
        ..Limits::default()
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..FEW {
        silent.push(server.connect().await.unwrap());
    }
    assert_answered_at_once(&server).await;
}

#[tokio::test]
async fn handshakes_that_never_end_make_way_for_a_request() {
    let server = start(Limits {
        connections: FEW,
        ..Limits::default()
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..FEW {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert_answered_at_once(&server).await;
}

#[tokio::test]
async fn heads_and_bodies_that_never_end_make_way_for_a_request() {
    let server = start(Limits {
        connections: FEW,
        ..Limits::default()
    })
    .await;
    let mut slow = Vec::new();
    for number in 0..FEW {
        let mut client = server.connect().await.unwrap();
        client
            .begin("/echo", if number % 2 == 0 { 10 } else { 0 })
            .await
            .unwrap();
        slow.push(client);
    }
    assert_answered_at_once(&server).await;
}

#[tokio::test]
async fn the_connection_that_is_idle_longest_makes_way_and_no_busy_one() {
    let server = start(Limits {
        connections: 3,
        ..Limits::default()
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(server.connect().await.unwrap());
    }
    // The first is busy, the third was used last.
    let [mut busy, mut second, mut third] = <[Client; 3]>::try_from(clients).ok().unwrap();
    assert_echoed(third.post("/echo", "3").await, "3");
    assert_echoed(second.post("/echo", "2").await, "2");
    assert_echoed(third.post("/echo", "3").await, "3");
    let (busy_reply, new) = tokio::join!(busy.post("/slow", "1"), async {
        sleep(Duration::from_millis(50)).await;
        let mut new = server.connect().await.unwrap();
        assert_echoed(new.post("/echo", "4").await, "4");
        new
    });
    assert_echoed(busy_reply, "1");
    assert!(second.post("/echo", "2").await.is_err());
    assert_echoed(third.post("/echo", "3").await, "3");
    assert_eq!(server.counts.displaced.get(), 1);
    drop(new);
}

#[tokio::test]
async fn where_all_are_busy_a_new_connection_waits_for_its_turn() {
    let server = start(Limits {
        connections: 2,
        ..Limits::default()
    })
    .await;
    let (mut first, mut second) = (server.connect().await.unwrap(), server.connect().await.unwrap());
    let since = Instant::now();
    let (first, second, third) = tokio::join!(first.post("/slow", "a"), second.post("/slow", "b"), async {
        sleep(Duration::from_millis(50)).await;
        let mut client = server.connect().await.unwrap();
        let reply = client.post("/echo", "third").await;
        (reply, since.elapsed())
    });
    assert_echoed(first, "a");
    assert_echoed(second, "b");
    assert_echoed(third.0, "third");
    assert!(third.1 >= Duration::from_millis(300), "{:?}", third.1);
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_only() {
    let server = start(Limits::default()).await;
    let mut bystander = server.connect().await.unwrap();
    assert_echoed(bystander.post("/echo", "x").await, "x");
    let mut victim = server.connect().await.unwrap();
    assert!(victim.post("/panic", "").await.is_err());
    assert_echoed(bystander.post("/echo", "y").await, "y");
    eventually("the panic counts", || server.counts.panicked.get() == 1).await;
    assert_echoed(server.connect().await.unwrap().post("/echo", "z").await, "z");
}

/// What the clients of a drain saw.
#[derive(Debug, Default)]
struct Seen {
    answered: AtomicU64,
    closes: AtomicU64,
    /// Why requests sent on an open connection got no answer.
    lost: Mutex<Vec<String>>,
}

/// Sends requests without a pause, obeys `Connection: close`, ends when nobody listens.
async fn hammer(address: SocketAddr, settings: tls_client::Settings, path: &'static str, seen: Arc<Seen>) {
    while let Ok(mut client) = Client::connect(address, &settings).await {
        loop {
            match client.post(path, "x").await {
                Ok(reply) => {
                    assert_eq!((reply.status, reply.body.as_str()), (200, "x"));
                    seen.answered.fetch_add(1, Ordering::Relaxed);
                    if reply.close {
                        seen.closes.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                }
                Err(error) => {
                    seen.lost.lock().unwrap().push(error.to_string());
                    break;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_under_load_loses_no_request() {
    let mut server = start(Limits::default()).await;
    let seen = Arc::new(Seen::default());
    let mut load = JoinSet::new();
    for path in ["/echo", "/echo", "/echo", "/echo", "/slow", "/slow"] {
        load.spawn(hammer(server.address, server.client.clone(), path, seen.clone()));
    }
    eventually("load", || seen.answered.load(Ordering::Relaxed) > 200).await;
    assert_eq!(seen.closes.load(Ordering::Relaxed), 0);
    server.trigger.advance(Stage::Draining);
    // Many more than there are clients: new connections are taken while draining.
    eventually("drain", || seen.closes.load(Ordering::Relaxed) > 50).await;
    server.trigger.advance(Stage::Stopping);
    let since = Instant::now();
    server.ended().await;
    assert!(
        since.elapsed() < Limits::default().finish,
        "the deadline was needed"
    );
    while let Some(client) = load.join_next().await {
        client.unwrap();
    }
    assert!(seen.lost.lock().unwrap().is_empty(), "{seen:?}");
}

#[tokio::test]
async fn silent_connections_do_not_hold_the_end_past_the_deadline() {
    let mut server = start(Limits {
        finish: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    let _no_handshake = TcpStream::connect(server.address).await.unwrap();
    let mut never_used = server.connect().await.unwrap();
    eventually("both taken", || server.counts.accepted.get() == 2).await;
    server.trigger.advance(Stage::Stopping);
    server.ended().await;
    assert!(never_used.post("/echo", "x").await.is_err());
}

/// How many descriptors of this process are TCP sockets on this local port.
fn sockets_on(port: u16) -> usize {
    let own: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let local = format!(":{port:04X}");
    std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1].ends_with(&local) && own.iter().any(|inode| inode == fields[9]))
        .count()
}

#[tokio::test]
async fn open_connections_are_counted_from_their_beginning() {
    let server = start(Limits::default()).await;
    let mut client = server.connect().await.unwrap();
    assert_echoed(client.post("/echo", "x").await, "x");
    assert_eq!(server.counts.open.get(), 1);
    drop(client);
}

#[tokio::test]
async fn a_thousand_closed_connections_leave_nothing() {
    let server = start(Limits::default()).await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    for _ in 0..20 {
        let mut clients = Vec::new();
        for number in 0..50 {
            // Some go away before a handshake, some without a request, some after one.
            if number % 3 == 0 {
                drop(TcpStream::connect(server.address).await.unwrap());
                continue;
            }
            let mut client = server.connect().await.unwrap();
            if number % 3 == 1 {
                assert_echoed(client.post("/echo", "x").await, "x");
            }
            clients.push(client);
        }
        assert!(sockets_on(server.address.port()) > 30);
        assert!(tasks.num_alive_tasks() > before + 30);
    }
    eventually("all are gone", || {
        server.counts.accepted.get() == 1000 && server.counts.open.get() == 0
    })
    .await;
    assert_eq!(tasks.num_alive_tasks(), before);
    assert_eq!(sockets_on(server.address.port()), 1, "only the listener is left");
}

#[tokio::test]
async fn operators_see_readiness_metrics_and_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, shutdown) = shutdown();
    let (state, loaded) = watch::channel(false);
    let readiness = Readiness::new(shutdown.clone())
        .with("certificate", || Ok(()))
        .with("state", move || {
            if *loaded.borrow() {
                Ok(())
            } else {
                Err("nothing loaded yet".to_owned())
            }
        });
    let server = Server {
        name: "admin",
        listener,
        tls: None,
        service: admin::service(Admin {
            readiness,
            metrics: Box::new(|| "# EOF\n".to_owned()),
            status: Box::new(|| serde_json::json!({"mirrors": []})),
        }),
        limits: Limits::default(),
        counts: Counts::default(),
    };
    let mut running = JoinSet::new();
    running.spawn(server.run(shutdown));

    let (live, _) = get(address, "/livez").await;
    assert_eq!((live.status, live.body.as_str()), (200, "ok\n"));
    let (ready, _) = get(address, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert_eq!(
        ready.body,
        "[+] certificate: ok\n[-] state: nothing loaded yet\n[+] draining: ok\nnot ready\n"
    );
    state.send_replace(true);
    let (ready, _) = get(address, "/readyz").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (
            200,
            "[+] certificate: ok\n[+] state: ok\n[+] draining: ok\nready\n"
        )
    );
    let (metrics, content_type) = get(address, "/metrics").await;
    assert_eq!((metrics.status, metrics.body.as_str()), (200, "# EOF\n"));
    assert_eq!(
        content_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let (status, content_type) = get(address, "/status").await;
    assert_eq!(
        (status.body.as_str(), content_type.as_str()),
        (r#"{"mirrors":[]}"#, "application/json")
    );

    trigger.advance(Stage::Draining);
    let (ready, _) = get(address, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[-] draining: the process is ending"));
    assert_eq!(get(address, "/livez").await.0.status, 200);
}

/// Runs a server under [`Tasks`] with the signals given, each after the stage before it is reached.
async fn end_with(
    signals: &'static [Signal],
    path: &'static str,
) -> (Result<(), Error>, Result<(), JoinError>) {
    let authority = Authority::new(clock::now(), DAY).unwrap();
    let pair = issue(&authority);
    let (tls, _) = tls::load(in_memory(&pair), clock::now()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, shutdown) = shutdown();
    let begun = Arc::new(Notify::new());
    let notify = begun.clone();
    let service = echo().route(
        "/forever",
        post(async move || -> &'static str {
            notify.notify_one();
            std::future::pending().await
        }),
    );
    let server = Server {
        name: "test",
        listener,
        tls: Some(tls),
        service: TowerToHyperService::new(service),
        limits: Limits::default(),
        counts: Counts::default(),
    };
    let mut tasks = Tasks::default();
    tasks.spawn("server", server.run(shutdown.clone()));
    let mut client = Client::connect(address, &tls_client::Settings::trusting(authority.certificate()))
        .await
        .unwrap();
    let mut request = JoinSet::new();
    request.spawn(async move {
        assert_echoed(client.post(path, "x").await, "x");
    });
    let mut left = signals.iter();
    let drain = Drain {
        delay: LONG,
        limit: LONG,
    };
    let ended = tasks.run(&trigger, drain, async || {
        if left.len() == signals.len() && path == "/forever" {
            begun.notified().await;
        }
        match left.next() {
            Some(signal) => *signal,
            None => std::future::pending().await,
        }
    });
    let ended = timeout(LONG / 2, ended).await.expect("no end");
    (ended, request.join_next().await.unwrap())
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (ended, request) = end_with(&[Signal::Terminate, Signal::Terminate], "/forever").await;
    assert_eq!(
        ended.unwrap_err().to_string(),
        "ended at once by a second signal, before server finished"
    );
    assert!(request.is_err(), "the request was cut");
    let (ended, _) = end_with(&[Signal::Interrupt, Signal::Interrupt], "/forever").await;
    ended.unwrap_err();
}

#[tokio::test]
async fn an_interrupt_finishes_requests_without_a_drain() {
    let (ended, request) = end_with(&[Signal::Interrupt], "/slow").await;
    ended.unwrap();
    request.unwrap();
}

#[tokio::test]
async fn signals_of_the_system_are_heard() {
    let mut signals = Signals::new().unwrap();
    for (name, expected) in [("TERM", Signal::Terminate), ("INT", Signal::Interrupt)] {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &std::process::id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        assert_eq!(timeout(LONG, signals.next()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn any_service_can_be_served() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_trigger, shutdown) = shutdown();
    let server = Server {
        name: "test",
        listener,
        tls: None,
        service: hyper::service::service_fn(async |_| {
            Ok::<_, Infallible>(hyper::Response::new("hello".to_owned()))
        }),
        limits: Limits::default(),
        counts: Counts::default(),
    };
    let mut running = JoinSet::new();
    running.spawn(server.run(shutdown));
    assert_eq!(get(address, "/").await.0.body, "hello");
}
