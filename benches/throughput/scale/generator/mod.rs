//! A stand-in for an API server, for more objects than a real one is worth filling with: objects in memory, and
//! over real HTTPS as much of the protocol as a companion speaks. Lists in pages; watches, with bookmarks and from
//! the beginning (`sendInitialEvents`); objects' metadata alone; reading, creating, replacing, patching (merge and
//! JSON patch) and deleting objects with the versions that these name. No rights, no schemas, no admission.

mod protocol;
mod store;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{net::TcpListener, runtime::Runtime, task::JoinSet};
use tokio_rustls::TlsAcceptor;

pub use self::store::{Name, Store};
use super::super::e2e::{certificates::Authority, cluster::write_kubeconfig};

/// A running one; it ends when dropped.
#[derive(Debug)]
pub struct Generator {
    pub store: Store,
    pub kubeconfig: PathBuf,
    /// Ends everything.
    _runtime: Runtime,
}

impl Generator {
    /// Starts with nothing in it; its kubeconfig goes to a file of that name in the folder.
    pub fn start(folder: &Path, name: &str) -> Result<Self> {
        let authority = Authority::new();
        let acceptor = TlsAcceptor::from(authority.issue().server());
        let store = Store::default();
        let service = TowerToHyperService::new(protocol::router(store.clone()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move {
                    let nodelay = stream.set_nodelay(true);
                    if let (Ok(()), Ok(stream)) = (nodelay, acceptor.accept(stream).await) {
                        // A client that is done closes as it likes.
                        drop(
                            http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service)
                                .await,
                        );
                    }
                });
            }
        });
        let url = format!("https://{address}");
        let kubeconfig = write_kubeconfig(folder, &url, &authority, name, "companion");
        Ok(Self {
            store,
            kubeconfig,
            _runtime: runtime,
        })
    }

    /// Forgets all changes and waits until whoever follows these resources has listed them anew.
    pub fn relist(&self, resources: &[&str], patience: Duration) -> Result<()> {
        let before: Vec<_> = resources
            .iter()
            .map(|resource| self.store.followers(resource).0)
            .collect();
        self.store.expire();
        let start = Instant::now();
        for (resource, before) in resources.iter().zip(before) {
            loop {
                let (listed, watches) = self.store.followers(resource);
                if listed > before && watches > 0 {
                    break;
                }
                ensure!(start.elapsed() < patience, "nobody lists {resource} anew");
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }
}

/// Returns the name of something cluster-wide.
pub fn cluster_wide(name: &str) -> Name {
    ("".into(), name.into())
}
