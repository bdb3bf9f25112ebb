//! The bare echo: the same stack as Kagami's (axum, hyper, rustls) with nothing in it. It reads the
//! body and answers a constant as long as Kagami's answer: the limit that Kagami is measured by.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::{HeaderValue, header},
    routing::post,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

/// Serves until the process is killed; tells its address on standard output as Kagami does.
pub fn run(certificate: &Path, key: &Path, answers: &[usize]) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut router = Router::new();
    for length in answers {
        let answer = Bytes::from(vec![b'x'; *length]);
        let handler = async move |body: Bytes| {
            std::hint::black_box(body);
            (
                [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
                answer.clone(),
            )
        };
        router = router.route(&path(*length), post(handler));
    }
    let service = TowerToHyperService::new(router.layer(DefaultBodyLimit::max(8 << 20)));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        println!("admission https://{}", listener.local_addr()?);
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.context("cannot take a connection")?;
            stream.set_nodelay(true)?;
            let (acceptor, service) = (acceptor.clone(), service.clone());
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let served = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                // A client that is done closes as it likes.
                drop(served);
            });
        }
    })
}

/// Returns the path that answers so many bytes.
pub fn path(length: usize) -> String {
    format!("/mutate/{length}")
}
