//! A peer that behaves as a test says: a TCP, TLS and HTTP/1.1 server that can refuse, swallow, hang,
//! lie and never end, and that records what it was asked. Its behaviour may change while it runs, its
//! address does not. What stands in for a registry, a token service or an API server in these tests is this with a
//! script.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::certificates::Pair;

/// A port of loopback that the kernel chooses.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How the peer treats those who come.
#[derive(Clone)]
pub enum Behaviour {
    /// Nobody listens: connections are refused, open ones are cut.
    Refuse,
    /// Packets are dropped: connections do not open, open ones say nothing more.
    BlackHole,
    /// Connections open, and nothing is ever said.
    Silent,
    /// Requests are answered by a script.
    Answer(Script),
}

type Script = Arc<dyn Fn(&Request) -> Action + Send + Sync>;

impl Behaviour {
    /// Answers each request with what a function returns for it.
    pub fn answer(script: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Self {
        Self::Answer(Arc::new(script))
    }

    /// Answers each request alike.
    pub fn always(reply: Reply) -> Self {
        Self::answer(move |_| Action::Reply(reply.clone()))
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The other end of its connection.
    #[allow(dead_code, reason = "for the bench, which shares this")]
    pub peer: SocketAddr,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Returns a header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }
}

/// What happens to one request.
pub enum Action {
    Reply(Reply),
    /// An answer that takes its time.
    Later(Duration, Reply),
    /// Nothing more is said on this connection.
    Hang,
    /// The connection ends without an answer.
    Close,
    /// These bytes, and the connection ends.
    Raw(Vec<u8>),
}

impl From<Reply> for Action {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// An HTTP answer.
#[derive(Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Whole(Vec<u8>),
    /// Some bytes of more, and then silence.
    Hanging(Vec<u8>),
    Endless,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Whole(Vec::new()),
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn content_type(self, value: &str) -> Self {
        self.header("Content-Type", value)
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Whole(body.into());
        self
    }

    /// Announces a megabyte, sends these bytes of it, and hangs.
    pub fn hanging_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Hanging(body.into());
        self
    }

    /// Sends bytes without end.
    pub fn endless_body(mut self) -> Self {
        self.body = Body::Endless;
        self
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the value of a header.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn html(status: u16) -> Self {
        Self::new(status)
            .content_type("text/html; charset=utf-8")
            .body("<!DOCTYPE html><title>Please log in</title>")
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status)
            .content_type("application/json")
            .body(body.to_string())
    }

    /// A registry's error.
    pub fn error(status: u16, code: &str) -> Self {
        Self::json(
            status,
            &serde_json::json!({"errors": [{"code": code, "message": "no"}]}),
        )
    }

    pub fn redirect(location: &str) -> Self {
        Self::new(307).header("Location", location)
    }
}

/// A running peer. It ends when dropped.
pub struct Faulty {
    address: SocketAddr,
    shared: Arc<Shared>,
    door: Door,
    #[expect(
        dead_code,
        reason = "held, bound alone, so that nobody else gets the port while the door changes"
    )]
    port: TcpSocket,
}

struct Shared {
    tls: Mutex<Option<Arc<ServerConfig>>>,
    behaviour: Mutex<Behaviour>,
    /// How long a connection may be idle; none: for ever.
    idle: Mutex<Option<Duration>>,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    open: Mutex<JoinSet<()>>,
}

/// What holds the port.
enum Door {
    Open(JoinHandle<()>),
    /// Nobody listens, so connections are refused.
    Shut,
    /// A listener whose queue is full of the connections beside it.
    Full(
        #[expect(dead_code, reason = "held to stay full")] TcpListener,
        #[expect(dead_code, reason = "likewise")] Vec<TcpStream>,
    ),
    Moving,
}

impl Faulty {
    /// Starts a plain HTTP peer on a port of loopback.
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::launch(LOOPBACK, behaviour, None).await
    }

    /// The same at any address of the machine.
    #[allow(dead_code, reason = "for the bench, which shares this")]
    pub async fn start_at(address: SocketAddr, behaviour: Behaviour) -> Self {
        Self::launch(address, behaviour, None).await
    }

    /// Starts an HTTPS peer.
    pub async fn start_tls(behaviour: Behaviour, pair: &Pair) -> Self {
        super::install_crypto();
        Self::launch(LOOPBACK, behaviour, Some(pair.server())).await
    }

    async fn launch(address: SocketAddr, behaviour: Behaviour, tls: Option<Arc<ServerConfig>>) -> Self {
        let socket = bind(address);
        let mut peer = Self {
            address: socket.local_addr().unwrap(),
            shared: Arc::new(Shared {
                tls: Mutex::new(tls),
                behaviour: Mutex::new(behaviour.clone()),
                idle: Mutex::default(),
                requests: Mutex::default(),
                connections: AtomicUsize::new(0),
                open: Mutex::default(),
            }),
            door: Door::Shut,
            port: socket,
        };
        peer.set(behaviour).await;
        peer
    }

    /// Changes the behaviour. It holds, for open connections too, when this returns.
    pub async fn set(&mut self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = behaviour.clone();
        let answers = matches!(behaviour, Behaviour::Silent | Behaviour::Answer(_));
        if answers && matches!(self.door, Door::Open(_)) {
            return;
        }
        if let Door::Open(accepting) = std::mem::replace(&mut self.door, Door::Moving) {
            accepting.abort();
            drop(accepting.await);
        }
        self.door = match behaviour {
            Behaviour::Refuse => {
                let mut open = std::mem::take(&mut *lock(&self.shared.open));
                open.shutdown().await;
                Door::Shut
            }
            Behaviour::BlackHole => {
                let listener = bind(self.address).listen(1).unwrap();
                let mut queue = Vec::new();
                while let Ok(connected) =
                    timeout(Duration::from_millis(100), TcpStream::connect(self.address)).await
                {
                    queue.push(connected.unwrap());
                }
                Door::Full(listener, queue)
            }
            Behaviour::Silent | Behaviour::Answer(_) => {
                let listener = bind(self.address).listen(1024).unwrap();
                Door::Open(tokio::spawn(accept(listener, Arc::clone(&self.shared))))
            }
        };
    }

    /// Closes every connection that has been idle for so long from its next request on.
    #[allow(dead_code, reason = "for the bench, which shares this")]
    pub fn close_idle(&self, after: Duration) {
        *lock(&self.shared.idle) = Some(after);
    }

    /// Shows another certificate to connections to come; those that are open go on.
    pub fn show_from_now(&self, pair: &Pair) {
        *lock(&self.shared.tls) = Some(pair.server());
    }

    /// Cuts all connections and shows another certificate from then on.
    pub async fn show(&self, pair: &Pair) {
        self.show_from_now(pair);
        let mut open = std::mem::take(&mut *lock(&self.shared.open));
        open.shutdown().await;
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address as a URL.
    pub fn url(&self) -> String {
        let scheme = if lock(&self.shared.tls).is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Returns how many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if let Door::Open(accepting) = &self.door {
            accepting.abort();
        }
        lock(&self.shared.open).abort_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a port that none but this process's own sockets can share.
fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            continue;
        };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        stream.set_nodelay(true).unwrap();
        let tls = lock(&shared.tls).clone().map(TlsAcceptor::from);
        let of_connection = Arc::clone(&shared);
        let serving = async move {
            if matches!(*lock(&of_connection.behaviour), Behaviour::Silent) {
                std::future::pending::<()>().await;
            }
            // Peers that go away are the rule here.
            drop(match tls {
                None => serve(stream, peer, &of_connection).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, peer, &of_connection).await,
                    Err(error) => Err(error),
                },
            });
        };
        let mut open = lock(&shared.open);
        while open.try_join_next().is_some() {}
        open.spawn(serving);
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let idle = *lock(&shared.idle);
        let reading = read_request(&mut stream, peer);
        let read = match idle {
            None => reading.await,
            Some(idle) => match timeout(idle, reading).await {
                Ok(read) => read,
                Err(_) => return Ok(()),
            },
        };
        let request = match read {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            // So does Go, on which registries are built.
            Err(_) => return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await,
        };
        let head = request.method == "HEAD";
        let behaviour = lock(&shared.behaviour).clone();
        let action = match &behaviour {
            Behaviour::Answer(script) => script(&request),
            _ => Action::Hang,
        };
        lock(&shared.requests).push(request);
        match action {
            Action::Reply(reply) => write_reply(&mut stream, &reply, head).await?,
            Action::Later(after, reply) => {
                tokio::time::sleep(after).await;
                write_reply(&mut stream, &reply, head).await?;
            }
            Action::Hang => std::future::pending().await,
            Action::Close => return Ok(()),
            Action::Raw(bytes) => return stream.write_all(&bytes).await,
        }
    }
}

/// Reads a request without a body; returns none at the end of the connection.
async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
) -> std::io::Result<Option<Request>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        if head.is_empty() && !byte[0].is_ascii_alphabetic() {
            return Err(std::io::Error::other("the client speaks no HTTP"));
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ');
    Ok(Some(Request {
        method: words.next().unwrap().to_owned(),
        target: words.next().unwrap().to_owned(),
        peer,
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
    }))
}

async fn write_reply(
    stream: &mut (impl AsyncWrite + Unpin),
    reply: &Reply,
    head: bool,
) -> std::io::Result<()> {
    use std::fmt::Write as _;
    let mut text = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
    for (name, value) in &reply.headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    match &reply.body {
        Body::Whole(body) => write!(text, "Content-Length: {}\r\n\r\n", body.len()).unwrap(),
        Body::Hanging(_) => text.push_str("Content-Length: 1048576\r\n\r\n"),
        Body::Endless => text.push_str("Transfer-Encoding: chunked\r\n\r\n"),
    }
    stream.write_all(text.as_bytes()).await?;
    match &reply.body {
        _ if head => {}
        Body::Whole(body) => stream.write_all(body).await?,
        Body::Hanging(body) => {
            stream.write_all(body).await?;
            stream.flush().await?;
            std::future::pending::<()>().await;
        }
        Body::Endless => loop {
            stream.write_all(b"400\r\n").await?;
            stream.write_all(&[b' '; 1024]).await?;
            stream.write_all(b"\r\n").await?;
        },
    }
    stream.flush().await
}
