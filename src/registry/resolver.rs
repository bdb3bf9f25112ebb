//! Names of registries, looked up by the system, as nodes do it.
//!
//! A Pod's resolver tries a cluster's search domains first (`ndots:5`), and a wildcard in one of them
//! answers to any name, with another machine. So a name with a dot is asked for as it is, and through
//! the search domains only if there is none: a name server that is slow or fails has not said so.
//!
//! The system's own resolver is asked, and no library that reads its files, so that whatever
//! `nsswitch.conf` and `/etc/hosts` say goes on being true.

use std::{fs::File, io, io::Read as _, net::SocketAddr, sync::Arc};

use dns_lookup::{AddrInfoHints, LookupError, LookupErrorKind, getaddrinfo};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

/// Look-ups block a thread each and cannot be cancelled.
const LOOKUPS: usize = 4;

const HOSTS: &str = "/etc/hosts";

/// More of [`HOSTS`] is not read.
const HOSTS_BYTES: u64 = 1 << 20;

/// The system's resolver, a few look-ups at a time.
pub(super) struct Resolver(Arc<Semaphore>);

/// The name did not resolve.
#[derive(Debug, thiserror::Error)]
#[error("name not found")]
pub(super) struct NameNotFound(#[source] io::Error);

impl Default for Resolver {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS)))
    }
}

impl Resolver {
    /// Returns the addresses of a name, with port 0.
    pub(super) async fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let permit = Arc::clone(&self.0)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let name = name.to_owned();
        let looked_up = tokio::task::spawn_blocking(move || {
            let addresses = look_up(&name);
            // The thread holds the permit, since it goes on when the call has been given up.
            drop(permit);
            addresses
        });
        let addresses = looked_up.await.map_err(io::Error::other)?;
        addresses.map_err(|error| io::Error::other(NameNotFound(error.into())))
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = Self(Arc::clone(&self.0));
        Box::pin(async move {
            let addresses = resolver.look_up(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn look_up(name: &str) -> Result<Vec<SocketAddr>, LookupError> {
    if is_absolute_first(name) {
        match ask(&format!("{name}.")) {
            // There is none, or none with an address, which nodes treat alike.
            Err(error) if matches!(error.kind(), LookupErrorKind::NoName | LookupErrorKind::NoData) => {}
            answer => return answer,
        }
    }
    ask(name)
}

/// Whether a name is first asked for with a dot at its end, which keeps the search domains out.
fn is_absolute_first(name: &str) -> bool {
    // A Service's name exists through the search domains only, and its cluster may have no name server for
    // what is outside.
    let is_service = name
        .rsplit_once('.')
        .is_some_and(|(_, last)| last.eq_ignore_ascii_case("svc"));
    name.contains('.') && !name.ends_with('.') && !is_service && !is_in_hosts(name)
}

/// Whether a name is in the file that the system asks first; there it has no dot at its end.
fn is_in_hosts(name: &str) -> bool {
    let mut hosts = Vec::new();
    let read = File::open(HOSTS).and_then(|file| file.take(HOSTS_BYTES).read_to_end(&mut hosts));
    read.is_ok() && names_host(&String::from_utf8_lossy(&hosts), name)
}

fn names_host(hosts: &str, name: &str) -> bool {
    hosts.lines().any(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        entry
            .split_whitespace()
            .skip(1)
            .any(|known| known.eq_ignore_ascii_case(name))
    })
}

fn ask(name: &str) -> Result<Vec<SocketAddr>, LookupError> {
    // One of each address, not one for each kind of socket.
    let hints = AddrInfoHints {
        socktype: dns_lookup::SockType::Stream.into(),
        ..AddrInfoHints::default()
    };
    let addresses = getaddrinfo(Some(name), None, Some(hints))?;
    let addresses: io::Result<Vec<_>> = addresses.map(|address| Ok(address?.sockaddr)).collect();
    Ok(addresses?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_names_whole_words_outside_of_comments() {
        let hosts = "127.0.0.1\tlocalhost\n10.0.0.1 mirror.example.com  Mirror # other.example.com\n#10.0.0.2 gone.example.com\n";
        for (name, expected) in [
            ("mirror.example.com", true),
            ("MIRROR.example.com", true),
            ("mirror", true),
            ("localhost", true),
            ("example.com", false),
            ("other.example.com", false),
            ("gone.example.com", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(names_host(hosts, name), expected, "{name}");
        }
    }
}
