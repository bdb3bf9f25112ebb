//! A connection to a registry that is held open, so that its end is noticed: when a registry dies, its machine
//! closes or resets what it had open, long before anybody asks again.
//!
//! An end is a question, never an answer. Registries and what stands before them close connections that were
//! silent for long, and one that dies without a word (a black hole) closes none.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{USER_AGENT, resolver::Resolver, wire::ERROR_BYTES};

/// Opens connections to one endpoint.
pub(super) struct Door {
    base: Url,
    tls: TlsConnector,
    resolver: Resolver,
}

/// A connection that is open. Dropping it closes it.
#[derive(Debug)]
pub struct Held {
    sender: SendRequest<Empty<Bytes>>,
    host: Box<str>,
    /// Speaks HTTP over it, until it ends.
    connection: JoinSet<()>,
}

/// What a connection reads and writes.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Door {
    pub(super) fn new(base: Url, tls: rustls::ClientConfig) -> Self {
        Self {
            base,
            tls: TlsConnector::from(Arc::new(tls)),
            resolver: Resolver::default(),
        }
    }

    /// Opens a connection and asks for `/v2/` over it, as servers close those that say nothing. Returns none if
    /// nobody answers by the deadline, or if who answers keeps no connections.
    pub(super) async fn hold(&self, deadline: Instant) -> Option<Held> {
        let open = async {
            let stream = self.connect(deadline).await?;
            handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let (sender, connection) = timeout_at(deadline, open).await.ok()?.ok()?;
        let mut task = JoinSet::new();
        // How it ends tells nothing: the next ping does.
        task.spawn(async move { drop(connection.await) });
        let mut held = Held {
            sender,
            host: self.authority(),
            connection: task,
        };
        held.refresh(deadline).await.then_some(held)
    }

    async fn connect(&self, deadline: Instant) -> io::Result<Box<dyn Stream>> {
        let host = self.base.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.base.port_or_known_default().unwrap_or_default();
        let mut addresses = if let Ok(address) = bare.parse() {
            vec![SocketAddr::new(address, port)]
        } else {
            self.resolver.look_up(bare).await?
        };
        for address in &mut addresses {
            address.set_port(port);
        }
        let stream = connect(&addresses, deadline).await?;
        stream.set_nodelay(true)?;
        if self.base.scheme() == "http" {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(bare.trim_end_matches('.').to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.tls.connect(name, stream).await?))
    }

    /// Returns the host with its port where that is not the usual one, as `Host` has it.
    fn authority(&self) -> Box<str> {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}").into(),
            None => host.into(),
        }
    }
}

/// Connects to the first address that answers. Each has its share of the time, for one may swallow all of it.
async fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for (position, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - position).unwrap_or(u32::MAX);
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl Held {
    /// Asks for `/v2/` over the connection, so that it is not closed for its silence. Returns whether it stays
    /// open. The answer is not looked at: that is what pings are for.
    pub async fn refresh(&mut self, deadline: Instant) -> bool {
        let request = Request::get("/v2/")
            .header(header::HOST, &*self.host)
            .header(header::USER_AGENT, USER_AGENT)
            .body(Empty::new());
        let Ok(request) = request else { return false };
        let asked = async {
            let answer = self.sender.send_request(request).await.ok()?;
            Limited::new(answer.into_body(), ERROR_BYTES)
                .collect()
                .await
                .ok()?;
            self.sender.ready().await.ok()
        };
        matches!(timeout_at(deadline, asked).await, Ok(Some(())))
    }

    /// Waits until the other side ends the connection. Whoever gives up waiting may wait again.
    pub async fn ended(&mut self) {
        drop(self.connection.join_next().await);
    }
}
