//! Anonymous clients of upstream registries, one for each, so that connections are kept and waits that a
//! registry asked for are obeyed by everybody.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Client, Endpoint, pace::Pace};
use crate::domain::{image::DOCKER_HUB, mirror::Trust};

/// How many images a second one registry is asked for: Docker Hub limits whoever asks more.
const RATE: u32 = 5;

/// Clients by the host as it stands in image names. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<BTreeMap<String, Upstream>>>);

/// One upstream registry.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub client: Client,
    /// The turns of whoever asks it for images.
    pub pace: Arc<Pace>,
}

impl Pool {
    /// Returns the registry behind a host; none if no registry can be there.
    pub fn upstream(&self, host: &str) -> Option<Upstream> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = known.get(host) {
            return Some(upstream.clone());
        }
        let endpoint = Endpoint {
            url: url(host),
            ca_bundle: None,
            trust: Trust::default(),
            credentials: None,
        };
        let upstream = Upstream {
            client: Client::new(&endpoint).ok()?,
            pace: Arc::new(Pace::new(Some(RATE))),
        };
        known.insert(host.to_owned(), upstream.clone());
        Some(upstream)
    }
}

/// Returns where the API of a registry is.
pub fn url(host: &str) -> String {
    match host {
        // The name in references is not the name of the registry's API.
        DOCKER_HUB => "https://registry-1.docker.io".to_owned(),
        // Docker and containerd speak plain HTTP with registries on loopback, and so must who
        // wants to know what they get.
        host if is_loopback(host) => format!("http://{host}"),
        host => format!("https://{host}"),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_where_nodes_look_for_them() {
        for (host, expected) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("quay.io", "https://quay.io"),
            ("registry.example.com:5000", "https://registry.example.com:5000"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
        ] {
            assert_eq!(url(host), expected);
        }
    }

    #[test]
    fn everybody_shares_the_client_of_a_registry() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let pool = Pool::default();
        let client = |host| pool.clone().upstream(host).unwrap().client;
        assert!(client("quay.io").is(&client("quay.io")));
        assert!(!client("quay.io").is(&client("ghcr.io")));
        assert!(pool.upstream("no host").is_none());
    }
}
