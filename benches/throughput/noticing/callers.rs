//! Whose requests a mirror gets: what tells processes of one machine apart is the port of their end of the connection.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts requests by the process that sends them. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Callers(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    processes: Vec<u32>,
    /// By process; none where it cannot be told.
    requests: BTreeMap<Option<u32>, u32>,
}

impl Callers {
    /// Says which processes may ask.
    pub fn know(&self, processes: Vec<u32>) {
        self.lock(|counts| counts.processes = processes);
    }

    /// Notes a request to a mirror over a connection that is open.
    pub fn note(&self, mirror: SocketAddr, peer: SocketAddr) {
        self.lock(|counts| {
            let process = process_behind(mirror, peer, &counts.processes);
            *counts.requests.entry(process).or_default() += 1;
        });
    }

    /// Returns how many requests there were since this was asked last.
    pub fn take(&self) -> BTreeMap<Option<u32>, u32> {
        self.lock(|counts| std::mem::take(&mut counts.requests))
    }

    fn lock<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Finds out which of these processes has a connection to a mirror open, by the kernel's table of sockets.
fn process_behind(mirror: SocketAddr, peer: SocketAddr, processes: &[u32]) -> Option<u32> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let (peer, mirror) = (as_kernel(peer)?, as_kernel(mirror)?);
    let inode = table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let is_it = fields.nth(1)? == peer && fields.next()? == mirror;
        is_it.then(|| fields.nth(6))?
    })?;
    let socket = format!("socket:[{inode}]");
    let has_it = |process: &u32| {
        let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        open.flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|link| link.to_str() == Some(socket.as_str()))
    };
    processes.iter().copied().find(has_it)
}

/// Returns an address as the kernel's table has it: the number as it lies in memory, and the port (proc(5)).
fn as_kernel(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let number = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{number:08X}:{:04X}", address.port()))
}
