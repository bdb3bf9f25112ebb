//! A small HTTP/1.1 client that shows what a real one hides: which certificate, which protocol, and
//! whether a request that was sent got an answer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kagami::{certificates::Pair, domain::time::Timestamp};
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What a client trusts and offers.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) authority: String,
    /// The server's, where it is not its address.
    pub(crate) name: Option<String>,
    pub(crate) identity: Option<Pair>,
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    pub(crate) protocols: Vec<&'static str>,
    /// The time that certificates must be valid at, where it is not now.
    pub(crate) time: Option<Timestamp>,
}

/// A clock that stands still.
#[derive(Debug)]
struct Still(Timestamp);

impl TimeProvider for Still {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(
            self.0.as_millis(),
        )))
    }
}

impl Settings {
    pub(crate) fn trusting(authority: &str) -> Self {
        Self {
            authority: authority.to_owned(),
            name: None,
            identity: None,
            versions: vec![&TLS13, &TLS12],
            protocols: Vec::new(),
            time: None,
        }
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let time: Arc<dyn TimeProvider> = match self.time {
            Some(time) => Arc::new(Still(time)),
            None => Arc::new(DefaultTimeProvider),
        };
        let builder = ClientConfig::builder_with_details(provider, time)
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = self
            .protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config
    }
}

/// A piece of a long body.
const PIECE: [u8; 16 * 1024] = [b' '; 16 * 1024];

/// One connection.
#[derive(Debug)]
pub(crate) struct Client(BufReader<TlsStream<TcpStream>>);

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Whether the server ends the connection.
    pub(crate) close: bool,
    /// After how many seconds to try again.
    pub(crate) retry_after: Option<u32>,
    pub(crate) body: String,
}

impl Client {
    /// Connects; an error means that no request can have been sent.
    pub(crate) async fn connect(address: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        // As Go's clients do; else the first request waits for an acknowledgement of the handshake.
        stream.set_nodelay(true)?;
        let name = match &settings.name {
            Some(name) => name.clone().try_into().unwrap(),
            None => ServerName::from(address.ip()),
        };
        let connector = TlsConnector::from(Arc::new(settings.config()));
        Ok(Self(BufReader::new(connector.connect(name, stream).await?)))
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn post(&mut self, path: &str, body: impl AsRef<[u8]>) -> io::Result<Reply> {
        let body = body.as_ref();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: kagami\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        self.0.write_all(&[head.as_bytes(), body].concat()).await?;
        self.0.flush().await?;
        read_reply(&mut self.0).await
    }

    /// Sends half of a request's head, and waits for what comes.
    pub(crate) async fn send_half(&mut self, path: &str) -> io::Result<Reply> {
        self.0
            .write_all(format!("POST {path} HTTP/1.1\r\n").as_bytes())
            .await?;
        self.0.flush().await?;
        read_reply(&mut self.0).await
    }

    /// Sends a request's head for a body of this length, and of the body all but its last byte; without
    /// a body, all of the head but its end.
    pub(crate) async fn begin(&mut self, path: &str, length: usize) -> io::Result<()> {
        let mut sent = format!("POST {path} HTTP/1.1\r\nhost: kagami\r\ncontent-length: {length}\r\n");
        if length > 0 {
            sent += "\r\n";
        }
        self.0.write_all(sent.as_bytes()).await?;
        let mut left = length.saturating_sub(1);
        while left > 0 {
            let piece = left.min(PIECE.len());
            self.0.write_all(&PIECE[..piece]).await?;
            left -= piece;
        }
        self.0.flush().await
    }

    /// Sends the last byte of a body that [`Client::begin`] began, and reads the answer.
    pub(crate) async fn finish(&mut self) -> io::Result<Reply> {
        self.0.write_all(b" ").await?;
        self.0.flush().await?;
        read_reply(&mut self.0).await
    }

    pub(crate) fn protocol(&self) -> Option<String> {
        let (_, session) = self.0.get_ref().get_ref();
        session
            .alpn_protocol()
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
    }

    pub(crate) fn version(&self) -> ProtocolVersion {
        self.0.get_ref().get_ref().1.protocol_version().unwrap()
    }

    /// Whether the server showed the certificate of this pair.
    pub(crate) fn saw(&self, pair: &Pair) -> bool {
        let shown = &self.0.get_ref().get_ref().1.peer_certificates().unwrap()[0];
        *shown == CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
    }
}

/// Asks a plain HTTP server; returns the content type with the answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (Reply, String) {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let request = format!("GET {path} HTTP/1.1\r\nhost: kagami\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (reply, head) = read_whole(&mut stream).await.unwrap();
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: "));
    (reply, content_type.unwrap_or_default().to_owned())
}

async fn read_reply<R: tokio::io::AsyncBufRead + Unpin>(stream: &mut R) -> io::Result<Reply> {
    Ok(read_whole(stream).await?.0)
}

async fn read_whole<R: tokio::io::AsyncBufRead + Unpin>(stream: &mut R) -> io::Result<(Reply, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = head.replace('\r', "");
    assert!(head.starts_with("HTTP/1.1 "), "{head}");
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let length = value("content-length: ").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let reply = Reply {
        status: head[9..12].parse().unwrap(),
        close: value("connection: ") == Some("close"),
        retry_after: value("retry-after: ").map(|seconds| seconds.parse().unwrap()),
        body: String::from_utf8(body).unwrap(),
    };
    Ok((reply, head))
}
