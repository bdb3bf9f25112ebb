//! One connection: its HTTP, its limits and its end.
//!
//! hyper's `header_read_timeout` also closes idle connections, which the API server keeps open for
//! 90 s and does not retry on. So hyper gets no timer, and [`Limited`] holds the limits where the
//! bytes pass: what a connection waits for ([`Phase`]) decides how long it may wait. A request that
//! arrives in one piece costs no timer at all, for timers are set only when a wait begins and are
//! moved only when they would fire too late.

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

use super::Limits;
use crate::tasks::{Shutdown, Stage};

/// The most bytes of a request's head, and of a body that are read at once.
const BUFFER: usize = 64 * 1024;

/// Serves the requests of one connection until it ends.
///
/// Each answer that is given after `close_after` or while the process drains carries
/// `Connection: close`. When the process stops, an idle connection is closed, and one that is not
/// idle ends with its answer; so does one that never carried a request, because its first may be
/// under way and nothing told the client to go elsewhere. `cut` counts connections whose head, body
/// or taking of an answer took too long.
pub(super) async fn serve<IO, S, B>(
    io: IO,
    service: S,
    progress: Arc<Progress>,
    limits: &Limits,
    cut: &Counter,
    close_after: Instant,
    mut shutdown: Shutdown,
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let stage = shutdown.clone();
    let service = service_fn(|request: Request<Incoming>| {
        progress.begin(request.body().is_end_stream());
        let request = request.map(|body| RequestBody {
            body,
            progress: progress.clone(),
        });
        let answer = service.call(request);
        let (progress, stage) = (progress.clone(), &stage);
        async move {
            let mut response = answer.await?;
            let now = Instant::now();
            progress.answered(now);
            if stage.stage() > Stage::Running || now >= close_after {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(Limited::new(io, limits.clone(), cut.clone(), progress.clone()));
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(BUFFER)
            .serve_connection(io, service)
    );
    // Unconstrained: else it might return without waiting, because a task's budget is used up.
    let mut stopping = pin!(unconstrained(shutdown.reached(Stage::Stopping)));
    let mut waiting: Option<Waker> = None;
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        // What waits for the end once is woken by it. To ask again would take a lock that all
        // connections share, several times for each request.
        let waits = waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if waits && stage.stage() < Stage::Stopping {
            return Poll::Pending;
        }
        waiting = Some(cx.waker().clone());
        stopping.as_mut().poll(cx).map(|()| None)
    });
    if let Some(ended) = ended.await {
        return ended;
    }
    if progress.phase() == Phase::Idle && progress.requests() > 0 {
        connection.as_mut().graceful_shutdown();
    }
    connection.await
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The handshake, the first byte of the next request, or room to send the last answer.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The rest of a request's body.
    Body,
    /// The service.
    Busy,
    /// Its end: it makes way for another connection.
    Displaced,
}

/// How far a connection has come. Its own task tells, and whoever looks for the connection that keeps
/// the server waiting longest asks.
#[derive(Debug)]
pub(super) struct Progress {
    /// Times are counted from here; the same for all connections of a server.
    epoch: Instant,
    phase: AtomicU8,
    requests: AtomicU64,
    /// Since when the client is waited for, in nanoseconds after `epoch`. Means nothing while the client
    /// waits.
    waiting_since: AtomicU64,
}

impl Progress {
    /// Returns the progress of a connection that has just begun.
    pub(super) fn new(epoch: Instant) -> Self {
        let progress = Self {
            epoch,
            phase: AtomicU8::new(Phase::Idle as u8),
            requests: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
        };
        progress.wait_from(Instant::now());
        progress
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Body,
            3 => Phase::Busy,
            _ => Phase::Displaced,
        }
    }

    /// Moves on, unless the connection has made way meanwhile; then it does not.
    fn enter(&self, from: Phase, to: Phase) -> bool {
        let moved = self
            .phase
            .compare_exchange(from as u8, to as u8, Ordering::Relaxed, Ordering::Relaxed);
        moved.is_ok()
    }

    /// The client is waited for from now on.
    pub(super) fn wait_from(&self, now: Instant) {
        let nanos = u64::try_from((now - self.epoch).as_nanos()).unwrap_or(u64::MAX);
        self.waiting_since.store(nanos, Ordering::Relaxed);
    }

    fn waiting_since(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.waiting_since.load(Ordering::Relaxed))
    }

    /// Returns since when the client is waited for, as a number that compares among the connections of a
    /// server; none while the client waits.
    pub(super) fn waits(&self) -> Option<u64> {
        match self.phase() {
            Phase::Idle | Phase::Head | Phase::Body => Some(self.waiting_since.load(Ordering::Relaxed)),
            Phase::Busy | Phase::Displaced => None,
        }
    }

    /// Ends the connection's say if its client is still waited for since then: from now on no request
    /// of it is begun. Returns whether it was.
    pub(super) fn displace(&self, since: u64) -> bool {
        let phase = self.phase();
        self.waits() == Some(since) && self.enter(phase, Phase::Displaced)
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// A request's head is complete.
    fn begin(&self, without_body: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let next = if without_body { Phase::Busy } else { Phase::Body };
        // What follows the last request at once is in memory already, so it was never waited for.
        let _ = self.enter(Phase::Head, next) || self.enter(Phase::Idle, next);
    }

    /// The service is done with a request.
    fn answered(&self, now: Instant) {
        self.wait_from(now);
        let _ = self.enter(Phase::Busy, Phase::Idle) || self.enter(Phase::Body, Phase::Idle);
    }

    /// A request's body is complete.
    fn body_done(&self) {
        self.enter(Phase::Body, Phase::Busy);
    }
}

/// The body of a request; reading it fails if it is not complete in time ([`Limits::body`]).
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    progress: Arc<Progress>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.progress.body_done();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream on which waiting is limited by what is waited for.
struct Limited<IO> {
    io: IO,
    limits: Limits,
    cut: Counter,
    progress: Arc<Progress>,
    /// Since when this head or body is waited for.
    waiting: Option<(Phase, Instant)>,
    /// Whether the client leaves no room for more of an answer.
    stalled: bool,
    alarm: Pin<Box<Sleep>>,
}

impl<IO> Limited<IO> {
    fn new(io: IO, limits: Limits, cut: Counter, progress: Arc<Progress>) -> Self {
        let alarm = Box::pin(sleep_until(progress.waiting_since() + limits.head));
        Self {
            io,
            limits,
            cut,
            progress,
            waiting: None,
            stalled: false,
            alarm,
        }
    }

    /// Returns when the present wait is over its limit.
    fn due(&mut self) -> Instant {
        let phase = self.progress.phase();
        let limit = match phase {
            // Whoever connects has something to ask.
            Phase::Idle if self.progress.requests() == 0 => {
                return self.progress.waiting_since() + self.limits.head;
            }
            Phase::Idle => return self.progress.waiting_since() + self.limits.idle,
            // Never, but the alarm has to ring at some time: hyper does not poll again when the
            // answer is sent, if it has polled before.
            Phase::Busy | Phase::Displaced => return Instant::now() + self.limits.idle,
            Phase::Head => self.limits.head,
            Phase::Body => self.limits.body,
        };
        let since = match self.waiting {
            Some((waiting, since)) if waiting == phase => since,
            _ => {
                let now = Instant::now();
                self.progress.wait_from(now);
                now
            }
        };
        self.waiting = Some((phase, since));
        since + limit
    }

    /// Ready when the present wait is over its limit; else the task is woken at the latest then.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.due();
        if self.alarm.deadline() > due {
            self.alarm.as_mut().reset(due);
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            if self.alarm.deadline() >= due {
                return Poll::Ready(());
            }
            // It was set for an earlier wait, which ended in time.
            self.alarm.as_mut().reset(due);
        }
    }

    /// Returns what was polled, or the error that ends the connection if that took too long.
    fn or_overdue<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            ready!(self.poll_overdue(cx));
            self.cut.inc();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.stalled = polled.is_pending();
        self.or_overdue(cx, polled)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Limited<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        let phase = self.progress.phase();
        if phase == Phase::Displaced {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.stalled || phase != Phase::Idle {
            return self.or_overdue(cx, read);
        }
        if read.is_pending() {
            ready!(self.poll_overdue(cx));
            // As if the client had closed it: hyper ends the connection in good order.
            return Poll::Ready(Ok(()));
        }
        if buffer.filled().len() > before {
            if !self.progress.enter(Phase::Idle, Phase::Head) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            self.waiting = None;
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Limited<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.written(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
        task::JoinSet,
        time::{sleep, timeout},
    };

    use super::*;
    use crate::tasks::{Trigger, shutdown};

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const SECOND: Duration = Duration::from_secs(1);

    /// One connection over a pipe, under a clock that jumps to the next timer.
    struct Connection {
        client: DuplexStream,
        trigger: Trigger,
        cut: Counter,
        served: JoinSet<Result<(), hyper::Error>>,
    }

    /// Answers with the body after the milliseconds that the path names; `/big` with 1 MiB.
    async fn echo(request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path()[1..].to_owned();
        let Ok(body) = request.into_body().collect().await else {
            return Ok(Response::new("cut".into()));
        };
        if path == "big" {
            return Ok(Response::new(vec![b'x'; 1 << 20].into()));
        }
        sleep(Duration::from_millis(path.parse().unwrap_or(0))).await;
        Ok(Response::new(body.to_bytes().into()))
    }

    fn connect() -> Connection {
        let (client, server) = tokio::io::duplex(4096);
        let (trigger, shutdown) = shutdown();
        let cut = Counter::default();
        let counter = cut.clone();
        let mut served = JoinSet::new();
        served.spawn(async move {
            let limits = Limits::default();
            let close_after = Instant::now() + limits.age;
            let progress = Arc::new(Progress::new(Instant::now()));
            let service = service_fn(echo);
            serve(
                server,
                service,
                progress,
                &limits,
                &counter,
                close_after,
                shutdown,
            )
            .await
        });
        Connection {
            client,
            trigger,
            cut,
            served,
        }
    }

    impl Connection {
        async fn send(&mut self, bytes: &[u8]) {
            self.client.write_all(bytes).await.unwrap();
        }

        /// Reads up to the end of a head; all answers here have an empty body.
        async fn head(&mut self) -> String {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.client.read_u8().await.unwrap());
            }
            String::from_utf8(head).unwrap()
        }

        /// Waits for the end, which is to come within a second, and returns how
        /// many waits were cut.
        async fn ended(mut self) -> u64 {
            timeout(SECOND, self.served.join_next())
                .await
                .expect("the connection does not end")
                .unwrap()
                .unwrap()
                .ok();
            self.cut.get()
        }

        async fn is_open_after(&mut self, wait: Duration) -> bool {
            timeout(wait, self.served.join_next()).await.is_err()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_stay_longer_than_the_api_server_keeps_them() {
        let mut connection = connect();
        for _ in 0..3 {
            connection.send(GET).await;
            assert!(connection.head().await.starts_with("HTTP/1.1 200"));
            assert!(connection.is_open_after(119 * SECOND).await);
        }
        assert!(connection.is_open_after(Duration::from_millis(990)).await);
        assert_eq!(connection.ended().await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_asks_ends_as_soon_as_a_head_must() {
        let mut connection = connect();
        assert!(connection.is_open_after(Duration::from_millis(9990)).await);
        assert_eq!(connection.ended().await, 0);

        // What comes in time has the time of a head from then on.
        let mut connection = connect();
        assert!(connection.is_open_after(9 * SECOND).await);
        connection.send(&GET[..4]).await;
        assert!(connection.is_open_after(9 * SECOND).await);
        connection.send(&GET[4..]).await;
        assert!(connection.head().await.starts_with("HTTP/1.1 200"));
        assert!(connection.is_open_after(119 * SECOND).await);
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_is_waited_for_makes_way_and_then_begins_nothing() {
        let epoch = Instant::now();
        let progress = Progress::new(epoch);
        let since = progress.waits().unwrap();
        assert!(!progress.displace(since + 1), "something has moved since");
        progress.enter(Phase::Idle, Phase::Head);
        progress.begin(false);
        assert!(progress.waits().is_some(), "its body is waited for");
        progress.body_done();
        assert_eq!((progress.waits(), progress.displace(since)), (None, false));
        progress.answered(epoch + SECOND);
        assert!(!progress.displace(since));
        assert!(progress.displace(1_000_000_000));
        assert_eq!(progress.waits(), None, "it goes once");
        assert!(!progress.enter(Phase::Idle, Phase::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_is_cut_however_it_drips() {
        let mut connection = connect();
        connection.send(GET).await;
        connection.head().await;
        assert!(connection.is_open_after(60 * SECOND).await);
        for byte in &GET[..4] {
            connection.send(&[*byte]).await;
            assert!(connection.is_open_after(Duration::from_millis(2490)).await);
        }
        assert_eq!(connection.ended().await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_cut_and_a_slow_service_is_not() {
        let mut connection = connect();
        connection
            .send(b"POST /60000 HTTP/1.1\r\ncontent-length: 2\r\n\r\n")
            .await;
        assert!(connection.is_open_after(9 * SECOND).await);
        connection.send(b"ab").await;
        assert!(connection.is_open_after(59 * SECOND).await);
        assert!(connection.head().await.contains("content-length: 2"));
        connection.client.read_u16().await.unwrap();

        connection
            .send(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n")
            .await;
        for byte in [b"a", b"b"] {
            connection.send(byte).await;
            assert!(connection.is_open_after(Duration::from_millis(4990)).await);
        }
        assert_eq!(connection.ended().await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_take_its_answer_is_cut() {
        let mut connection = connect();
        connection.send(b"GET /big HTTP/1.1\r\n\r\n").await;
        assert!(connection.is_open_after(Duration::from_millis(119_990)).await);
        assert_eq!(connection.ended().await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_ends_with_an_answer() {
        let mut connection = connect();
        for _ in 0..9 {
            connection.send(GET).await;
            assert!(!connection.head().await.contains("connection: close"));
            assert!(connection.is_open_after(66 * SECOND).await);
        }
        assert!(connection.is_open_after(7 * SECOND).await, "never by cutting");
        connection.send(GET).await;
        assert!(connection.head().await.contains("connection: close"));
        connection.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_draining_server_says_close_and_cuts_nothing() {
        let mut connection = connect();
        connection.send(GET).await;
        connection.head().await;
        connection.trigger.advance(Stage::Draining);
        assert!(connection.is_open_after(100 * SECOND).await);
        connection.send(GET).await;
        assert!(connection.head().await.contains("connection: close"));
        connection.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_idle_connections_and_finishes_the_others() {
        let mut idle = connect();
        idle.send(GET).await;
        idle.head().await;
        idle.trigger.advance(Stage::Stopping);
        idle.ended().await;

        let mut busy = connect();
        busy.send(b"GET /3000 HTTP/1.1\r\n\r\n").await;
        assert!(busy.is_open_after(SECOND).await);
        busy.trigger.advance(Stage::Stopping);
        assert!(busy.head().await.contains("connection: close"));
        busy.ended().await;

        let mut begun = connect();
        begun.send(GET).await;
        begun.head().await;
        begun.send(&GET[..7]).await;
        assert!(begun.is_open_after(SECOND).await);
        begun.trigger.advance(Stage::Stopping);
        assert!(begun.is_open_after(SECOND).await);
        begun.send(&GET[7..]).await;
        assert!(begun.head().await.contains("connection: close"));
        begun.ended().await;

        let mut fresh = connect();
        fresh.trigger.advance(Stage::Stopping);
        assert!(fresh.is_open_after(SECOND).await);
        fresh.send(GET).await;
        assert!(fresh.head().await.contains("connection: close"));
        fresh.ended().await;
    }
}
