//! What stands before a registry, as a load balancer does: it passes bytes on, slowly if need be, or falls silent in the
//! middle.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{node::Node, registry::Registry};

/// How often who is silent looks whether that is over.
const LOOK: Duration = Duration::from_millis(50);

/// What becomes of what the registry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    All,
    /// Nothing, once the caller has asked for something.
    Nothing,
    /// The first bytes of each connection.
    First(usize),
    /// So many bytes a second on each connection.
    Slowly(u32),
    /// Of large answers the headers and nothing more, after which the connection is closed in so long. Only where nothing
    /// is encrypted.
    Headers(Duration),
}

/// From this length on an answer is a layer's and no manifest's.
const LARGE: usize = 64 * 1024;

/// A front end under the registry's name, with an address of its own. It ends with the process.
#[derive(Debug)]
pub(crate) struct Front {
    passing: Arc<Mutex<Passing>>,
    /// Connections that are silent are closed whenever this changes.
    closed: Arc<AtomicUsize>,
}

/// One connection.
struct Connection {
    passing: Arc<Mutex<Passing>>,
    closed: Arc<AtomicUsize>,
    /// How many pieces the caller has sent. The first opens the TLS session.
    pieces: Arc<AtomicUsize>,
}

impl Front {
    /// Takes a registry's place.
    pub(crate) fn before(node: &Node, registry: &Registry) -> Self {
        let to = SocketAddr::from((registry.address.unwrap(), registry.port));
        let address: Ipv4Addr = node.new_address(&registry.name);
        let listener = TcpListener::bind((address, registry.port)).unwrap();
        let front = Self {
            passing: Arc::new(Mutex::new(Passing::All)),
            closed: Arc::default(),
        };
        let (passing, closed) = (Arc::clone(&front.passing), Arc::clone(&front.closed));
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let connection = Connection {
                    passing: Arc::clone(&passing),
                    closed: Arc::clone(&closed),
                    pieces: Arc::default(),
                };
                // A registry that is dead refuses: the caller is told by an end.
                if let Ok(registry) = TcpStream::connect(to) {
                    thread::spawn(move || connection.serve(&caller, registry));
                }
            }
        });
        front
    }

    /// Passes on so much from now on.
    pub(crate) fn pass(&self, passing: Passing) {
        *self.passing.lock().unwrap_or_else(PoisonError::into_inner) = passing;
    }

    /// Closes all connections that are silent.
    pub(crate) fn close(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Connection {
    fn serve(&self, caller: &TcpStream, registry: TcpStream) {
        let pieces = Arc::clone(&self.pieces);
        let (mut from, mut to) = (caller.try_clone().unwrap(), registry.try_clone().unwrap());
        thread::spawn(move || {
            let mut piece = [0; 16 * 1024];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                pieces.fetch_add(1, Ordering::Relaxed);
                if to.write_all(&piece[..length]).is_err() {
                    break;
                }
            }
            drop(to.shutdown(Shutdown::Both));
        });
        self.answer(registry, caller);
        drop(caller.shutdown(Shutdown::Both));
    }

    /// Passes on what the registry says until one of the two ends.
    fn answer(&self, mut registry: TcpStream, mut caller: &TcpStream) {
        let mut passed = 0;
        let mut piece = [0; 16 * 1024];
        // When the next piece may be passed on. A thread that is late catches up.
        let mut due = Instant::now();
        while let Ok(length @ 1..) = registry.read(&mut piece) {
            let passing = *self.passing.lock().unwrap_or_else(PoisonError::into_inner);
            let passes = match passing {
                Passing::All => length,
                Passing::Nothing if self.pieces.load(Ordering::Relaxed) < 2 => length,
                Passing::First(bytes) if passed < bytes => length,
                Passing::Nothing | Passing::First(_) => 0,
                Passing::Slowly(per_second) => {
                    due = due.max(Instant::now().checked_sub(LOOK * 20).unwrap_or(due));
                    due += Duration::from_secs(1) * u32::try_from(length).unwrap() / per_second;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    length
                }
                Passing::Headers(_) => end_of_large_headers(&piece[..length]).unwrap_or(length),
            };
            passed += passes;
            if caller.write_all(&piece[..passes]).is_err() {
                return;
            }
            if passes < length {
                let longest = match passing {
                    Passing::Headers(longest) => longest,
                    _ => Duration::MAX,
                };
                self.be_silent(longest);
                return;
            }
        }
    }

    fn be_silent(&self, longest: Duration) {
        let (closed, began) = (self.closed.load(Ordering::Relaxed), Instant::now());
        while self.closed.load(Ordering::Relaxed) == closed && began.elapsed() < longest {
            thread::sleep(LOOK);
        }
    }
}

/// Where the headers end of an answer that begins with this piece and has a large body.
fn end_of_large_headers(piece: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(piece);
    // As many characters as bytes: headers are ASCII.
    let (headers, _) = text.split_once("\r\n\r\n")?;
    if !headers.starts_with("HTTP/1.1 ") {
        return None;
    }
    let length = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    })?;
    (length >= LARGE).then_some(headers.len() + 4)
}
