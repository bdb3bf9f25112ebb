//! What stands before a registry, as a load balancer does: it passes bytes on, or falls silent in the middle.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
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
}

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
        let to = SocketAddr::from((registry.address.unwrap(), 443));
        let address: Ipv4Addr = node.new_address(&registry.name);
        let listener = TcpListener::bind((address, 443)).unwrap();
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
        while let Ok(length @ 1..) = registry.read(&mut piece) {
            if !self.passes(passed) {
                self.be_silent();
                return;
            }
            passed += length;
            if caller.write_all(&piece[..length]).is_err() {
                return;
            }
        }
    }

    fn passes(&self, passed: usize) -> bool {
        match *self.passing.lock().unwrap_or_else(PoisonError::into_inner) {
            Passing::All => true,
            Passing::Nothing => self.pieces.load(Ordering::Relaxed) < 2,
            Passing::First(bytes) => passed < bytes,
        }
    }

    fn be_silent(&self) {
        let closed = self.closed.load(Ordering::Relaxed);
        while self.closed.load(Ordering::Relaxed) == closed {
            thread::sleep(LOOK);
        }
    }
}
