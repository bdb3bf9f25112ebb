//! Listeners: HTTP/1.1 over TLS for reviews, plain HTTP for operators, and their orderly end.
//!
//! - The caller binds; a server owns its listener and every connection's task.
//! - No connection is cut while a request may be under way: a connection that is to end says so in
//!   an answer first. Idle ones stay open longer than the API server keeps them (90 s), because it
//!   does not repeat a request that met a closed connection.
//! - Connections that only sit there keep nobody out: one that never asks ends soon, and where there
//!   are as many as there may be, the one whose client is waited for longest makes way for a new one.
//! - There is no HTTP/2: the API server speaks HTTP/1.1 to webhooks.

pub mod admin;
mod connection;
mod connections;
pub mod tls;

use std::{convert::Infallible, error::Error as StdError, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Request, Response, body::Body, service::Service};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpStream},
    task::JoinError,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

pub use self::connection::RequestBody;
use self::{connection::Progress, connections::Connections, tls::Tls};
use crate::{
    tasks::{Shutdown, Stage, panic_message},
    telemetry::{Throttle, chain},
};

/// The pause after the system had no descriptor or memory for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether one of too many connections, all of them busy, can make way.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// The most bytes that are read from a TLS connection at once: one whole record. By itself rustls reads
/// 4 KiB, which makes several system calls of one review.
const RECORD: usize = 16 * 1024 + 512;
/// How many faults of one kind are logged a second.
const LOGGED_FAULTS: u32 = 5;

/// How long clients may take and how many may be there.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the connection to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its head; also from the handshake to the first
    /// byte of the first request.
    pub head: Duration,
    /// From the end of a request's head to the end of its body.
    pub body: Duration,
    /// From one request to the next; also for a client that does not take its answer.
    pub idle: Duration,
    /// The age at which a connection ends with its next answer, so that clients spread over new
    /// replicas. It differs by up to a tenth between connections.
    pub age: Duration,
    /// Connections at once. For another one, the one whose client is waited for longest makes way;
    /// while all are busy, others wait in the listener's backlog.
    pub connections: usize,
    /// For requests in flight, once the process stops.
    pub finish: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_mins(2),
            age: Duration::from_mins(10),
            connections: 1024,
            finish: Duration::from_secs(5),
        }
    }
}

/// What a server counts; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Connections taken.
    pub accepted: Counter,
    /// Connections open now.
    pub open: Gauge,
    /// TLS handshakes that failed or took too long.
    pub handshakes_failed: Counter,
    /// Connections cut because a head, a body or the taking of an answer took too long.
    pub cut: Counter,
    /// Connections that made way for new ones.
    pub displaced: Counter,
    /// Connections that a panic of the service ended.
    pub panicked: Counter,
}

/// A listener and what answers on it.
#[derive(Debug)]
pub struct Server<S> {
    /// The name in the log.
    pub name: &'static str,
    pub listener: TcpListener,
    /// Absent: plain HTTP.
    pub tls: Option<Tls>,
    /// Cloned for each connection. A panic in it ends its connection without an answer.
    pub service: S,
    pub limits: Limits,
    pub counts: Counts,
}

/// What is logged at a bounded rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    Accept,
    Handshake,
    Panic,
}

/// What all connections of a server share.
struct Shared<S> {
    name: &'static str,
    tls: Option<Tls>,
    service: S,
    limits: Limits,
    counts: Counts,
    shutdown: Shutdown,
    throttle: Throttle<Fault>,
    /// What the connections' times are counted from.
    epoch: Instant,
}

impl<S> Server<S> {
    /// Serves until the process stops, then finishes the requests in flight.
    ///
    /// While the process drains, it goes on taking connections. Dropping the future cuts them all.
    pub async fn run<B>(self, mut shutdown: Shutdown) -> io::Result<()>
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        let Self {
            name,
            listener,
            tls,
            service,
            limits,
            counts,
        } = self;
        let shared = Arc::new(Shared {
            name,
            tls,
            service,
            limits,
            counts,
            shutdown: shutdown.clone(),
            throttle: Throttle::new(LOGGED_FAULTS),
            epoch: Instant::now(),
        });
        let limit = shared.limits.connections;
        let mut connections = Connections::default();
        // Taken, and not begun before there is room for it.
        let mut next = None;
        loop {
            if next.is_some()
                && shared.make_room(&mut connections)
                && let Some((stream, peer)) = next.take()
            {
                shared.clone().begin(stream, peer, &mut connections);
            }
            tokio::select! {
                () = shutdown.reached(Stage::Stopping) => break,
                Some(ended) = connections.ended() => shared.ended(ended, connections.len()),
                accepted = listener.accept(), if next.is_none() => match accepted {
                    Ok(accepted) => next = Some(accepted),
                    Err(error) if concerns_one_connection(&error) => {}
                    Err(error) => {
                        shared.log(Fault::Accept, &format_args!("cannot take a connection: {error}"));
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = sleep(FULL_PAUSE), if next.is_some() => {}
            }
        }

        // The kernel has completed these connections, so their clients may have sent requests.
        let listener = listener.into_std()?;
        if connections.len() < limit
            && let Some((stream, peer)) = next
        {
            shared.clone().begin(stream, peer, &mut connections);
        }
        while connections.len() < limit {
            let Ok((stream, peer)) = listener.accept() else {
                break;
            };
            stream.set_nonblocking(true)?;
            shared
                .clone()
                .begin(TcpStream::from_std(stream)?, peer, &mut connections);
        }
        drop(listener);

        let finished = timeout(shared.limits.finish, async {
            while let Some(ended) = connections.ended().await {
                shared.ended(ended, connections.len());
            }
        });
        if finished.await.is_err() {
            tracing::warn!(server = name, connections = connections.len(), "cut at the end");
        }
        Ok(())
    }
}

impl<S> Shared<S> {
    /// Returns whether there is room for another connection, which one that is there may make.
    fn make_room(&self, connections: &mut Connections) -> bool {
        if connections.len() < self.limits.connections {
            return true;
        }
        let displaced = connections.displace();
        if displaced {
            self.counts.displaced.inc();
        }
        displaced
    }

    fn begin<B>(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, connections: &mut Connections)
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        let number = self.counts.accepted.inc();
        let close_after = Instant::now() + age(self.limits.age, number);
        let progress = Arc::new(Progress::new(self.epoch));
        let open = self.counts.open.clone();
        let connection = {
            let progress = progress.clone();
            async move { self.connection(stream, peer, progress, close_after).await }
        };
        connections.begin(progress, connection);
        open.set(i64::try_from(connections.len()).unwrap_or(i64::MAX));
    }

    async fn connection<B>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        progress: Arc<Progress>,
        close_after: Instant,
    ) where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone,
        B: Body<Error: Into<Box<dyn StdError + Send + Sync>>> + 'static,
    {
        // An answer is one small packet, to be sent at once. Where that cannot be had it is slower.
        stream.set_nodelay(true).ok();
        let (service, shutdown) = (self.service.clone(), self.shutdown.clone());
        let (limits, cut) = (&self.limits, &self.counts.cut);
        let served = match &self.tls {
            None => connection::serve(stream, service, progress, limits, cut, close_after, shutdown).await,
            Some(tls) => {
                let handshake =
                    TlsAcceptor::from(tls.config()).accept(BufReader::with_capacity(RECORD, stream));
                let stream = match timeout(limits.handshake, handshake).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return self.handshake_failed(peer, &error),
                    Err(_) => return self.handshake_failed(peer, &io::ErrorKind::TimedOut.into()),
                };
                progress.wait_from(Instant::now());
                connection::serve(stream, service, progress, limits, cut, close_after, shutdown).await
            }
        };
        if let Err(error) = served {
            tracing::debug!(server = self.name, %peer, error = chain(&error), "connection broke");
        }
    }

    fn handshake_failed(&self, peer: SocketAddr, error: &io::Error) {
        self.counts.handshakes_failed.inc();
        // Clients that only look whether somebody listens are no fault; one that does not trust the
        // certificate, or shows none, is.
        if error.kind() == io::ErrorKind::InvalidData {
            self.log(
                Fault::Handshake,
                &format_args!("TLS handshake with {peer} failed: {error}"),
            );
        } else {
            tracing::debug!(server = self.name, %peer, %error, "no TLS handshake");
        }
    }

    fn ended(&self, ended: Result<(), JoinError>, open: usize) {
        self.counts.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        if let Err(error) = ended
            && error.is_panic()
        {
            self.counts.panicked.inc();
            let message = panic_message(error);
            self.log(Fault::Panic, &format_args!("a request panicked: {message}"));
        }
    }

    fn log(&self, fault: Fault, what: &std::fmt::Arguments<'_>) {
        if let Some(suppressed) = self.throttle.admit(fault, std::time::Instant::now()) {
            tracing::warn!(server = self.name, suppressed, "{what}");
        }
    }
}

/// Whether `accept` failed because of the client it was about to return.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Returns the age at which the connection of this number ends: 0.9 to 1.1 of `mean`. Multiples of
/// the golden ratio lie evenly between 0 and 1, whatever their number, and need no randomness.
fn age(mean: Duration, number: u64) -> Duration {
    let fraction = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let fraction = f64::from(u32::try_from(fraction).unwrap_or_default()) / f64::from(u32::MAX);
    mean.mul_f64(0.9 + 0.2 * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_moment_end_at_different_times() {
        let mean = Duration::from_mins(10);
        let mut ages: Vec<_> = (0..100).map(|number| age(mean, number)).collect();
        ages.sort();
        assert!(ages[0] >= Duration::from_mins(9) && ages[99] <= Duration::from_mins(11));
        // Of 120 s in all, no two neighbours are far apart, and none end together.
        for pair in ages.windows(2) {
            let gap = pair[1].abs_diff(pair[0]);
            assert!(
                gap > Duration::from_millis(100) && gap < Duration::from_secs(4),
                "{gap:?}"
            );
        }
    }
}
