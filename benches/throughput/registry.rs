//! The mirror: a registry that has every image (all the same manifest), fast enough not to be what
//! is measured, and able to turn into a black hole.
//!
//! Apart from the scripted peer of `tests/it`, which reads, keeps and answers each request as a test
//! says: that work would be measured.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{
    answers::end_of_head,
    image::{BLOB, MANIFEST, digest, manifest},
};

/// How many connections the kernel takes for a registry that does not.
const BACKLOG: u32 = 32;

/// How long a connection on loopback takes at most, unless packets are dropped.
const LOOPBACK: Duration = Duration::from_millis(100);

/// A running registry; it ends with the process.
#[derive(Clone, Debug)]
pub struct Registry {
    pub address: SocketAddr,
    frozen: watch::Sender<bool>,
    /// Fills the backlog while frozen.
    fillers: Arc<Mutex<Vec<std::net::TcpStream>>>,
    heads: Heads,
    /// How many manifests were asked for.
    gets: Arc<AtomicUsize>,
}

/// When HEADs of manifests came.
#[derive(Clone, Debug, Default)]
pub struct Heads(Arc<Mutex<Vec<Instant>>>);

impl Heads {
    pub fn note(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Instant::now());
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns the time that the fastest `count` HEADs in a row took, and forgets all.
    pub fn take(&self, count: usize) -> Option<Duration> {
        let times = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        times
            .windows(count)
            .filter_map(|run| Some(*run.last()? - *run.first()?))
            .min()
    }
}

/// What is answered, rendered once.
struct Answers {
    ping: Vec<u8>,
    head: Vec<u8>,
    get: Vec<u8>,
    blob: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let manifest = manifest();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: {}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\r\n",
            manifest.len(),
            digest(manifest.as_bytes())
        );
        let blob = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: {}\r\n\r\n{{}}",
            BLOB.len(),
            digest(BLOB)
        );
        let ping = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                    Docker-Distribution-Api-Version: registry/2.0\r\n\r\n{}";
        let get = head.clone() + &manifest;
        Self {
            ping: ping.into(),
            head: head.into(),
            get: get.into(),
            blob: blob.into(),
        }
    }
}

impl Registry {
    /// Starts a registry on a thread of its own.
    pub fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = socket.local_addr()?;
        let registry = Self {
            address,
            frozen: watch::Sender::new(false),
            fillers: Arc::default(),
            heads: Heads::default(),
            gets: Arc::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _context = runtime.enter();
            socket.listen(BACKLOG)?
        };
        let (frozen, heads) = (registry.frozen.clone(), registry.heads.clone());
        let gets = Arc::clone(&registry.gets);
        thread::spawn(move || {
            runtime.block_on(async {
                let answers = Arc::new(Answers::new());
                let mut connections = JoinSet::new();
                let mut freezing = frozen.subscribe();
                loop {
                    let serves = !*freezing.borrow_and_update();
                    tokio::select! {
                        Some(_) = connections.join_next() => {}
                        changed = freezing.changed() => if changed.is_err() { return },
                        accepted = listener.accept(), if serves => {
                            let Ok((stream, _)) = accepted else { continue };
                            let (answers, heads) = (Arc::clone(&answers), heads.clone());
                            let gets = Arc::clone(&gets);
                            connections.spawn(serve(stream, answers, heads, gets, frozen.subscribe()));
                        }
                    }
                }
            });
        });
        Ok(registry)
    }

    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Returns how many manifests were asked for so far, by GET: what a live probe does.
    pub fn gets(&self) -> usize {
        self.gets.load(Ordering::Relaxed)
    }

    /// Turns into a black hole: on connections that stand nothing is answered any more, and no new ones
    /// come about, because the backlog is full and the kernel drops what is sent to open more.
    pub fn freeze(&self) -> Result<()> {
        self.frozen.send_replace(true);
        let mut fillers = self.fillers.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&self.address, LOOPBACK) {
            fillers.push(stream);
            anyhow::ensure!(
                fillers.len() < 4 * BACKLOG as usize,
                "the backlog does not fill up"
            );
        }
        Ok(())
    }

    /// Serves again.
    pub fn thaw(&self) {
        self.fillers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.frozen.send_replace(false);
    }
}

/// Waits until the registry serves; false if it is gone.
async fn thawed(frozen: &mut watch::Receiver<bool>) -> bool {
    frozen.wait_for(|frozen| !frozen).await.is_ok()
}

async fn serve(
    mut stream: TcpStream,
    answers: Arc<Answers>,
    heads: Heads,
    gets: Arc<AtomicUsize>,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    if stream.set_nodelay(true).is_err() {
        return;
    }
    loop {
        let end = loop {
            if let Some(end) = end_of_head(&buffer[..filled]) {
                break end;
            }
            match stream.read(&mut buffer[filled..]).await {
                Ok(0) | Err(_) => return,
                Ok(read) => filled += read,
            }
        };
        if *frozen.borrow() && !thawed(&mut frozen).await {
            return;
        }
        let line = buffer[..end]
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        let answer = match line {
            line if line.starts_with(b"GET /v2/ ") => &answers.ping,
            line if line.windows(7).any(|window| window == b"/blobs/") => &answers.blob,
            line if line.starts_with(b"HEAD ") => {
                heads.note();
                &answers.head
            }
            _ => {
                gets.fetch_add(1, Ordering::Relaxed);
                &answers.get
            }
        };
        let sent = timeout(Duration::from_secs(10), stream.write_all(answer)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        buffer.copy_within(end..filled, 0);
        filled -= end;
    }
}
