//! One TLS connection in the test's own hands, to see when the other side closes it.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::certificates::Authority;

/// A connection to an HTTPS server that is kept open between requests.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    address: SocketAddr,
}

impl Connection {
    /// Opens one to a server with a certificate of the run's authority.
    pub(crate) fn open(authority: &Authority, address: SocketAddr) -> Self {
        Self::open_to(authority.client(), address.ip().into(), address)
    }

    /// Opens one to a server called `name`.
    pub(crate) fn open_to(client: Arc<ClientConfig>, name: ServerName<'static>, address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let tls = ClientConnection::new(client, name).unwrap();
        Self {
            stream: StreamOwned::new(tls, tcp),
            address,
        }
    }

    /// Posts JSON and returns the answer's head and body, or why there was no whole answer.
    pub(crate) fn post(&mut self, path: &str, body: &str) -> io::Result<(String, String)> {
        let (host, length) = (self.address, body.len());
        write!(
            self.stream,
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        self.stream.flush()?;
        let mut received = Vec::new();
        loop {
            if let Some(answer) = split(&received) {
                return Ok(answer);
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            received.extend_from_slice(&chunk[..count]);
        }
    }
}

/// Splits an answer with a `content-length` once it is all there.
fn split(received: &[u8]) -> Option<(String, String)> {
    let (head, body) = str::from_utf8(received).ok()?.split_once("\r\n\r\n")?;
    let head = head.to_ascii_lowercase();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?
        .trim()
        .parse()
        .ok()?;
    (body.len() == length).then(|| (head, body.to_owned()))
}
