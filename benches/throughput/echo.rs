//! The bare echo: the same stack as Kagami's (axum, hyper, rustls) with nothing in it. It reads the
//! body and answers a constant as long as Kagami's answer: the limit that Kagami is measured by.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::{HeaderValue, StatusCode, header},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::roles::{CERTIFICATE, KEY};

/// Serves until the process is killed; tells its address on standard output as Kagami does.
pub fn run(folder: &Path, answers: &[usize]) -> Result<()> {
    let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
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
    let label = json!([{"op": "add", "path": "/metadata/labels/echo", "value": "echo"}]);
    let patched = fs::read_to_string(folder.join(ANSWER)).unwrap_or_else(|_| admitted(None));
    for (path, answer) in [
        (ADMIT, admitted(None)),
        (LABEL, admitted(Some(&label))),
        (PATCH, patched),
    ] {
        let admit = Admit::new(&answer)?;
        let handler = async move |body: Bytes| {
            let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            admit
                .answer(&body)
                .map(|answer| ([json], answer))
                .ok_or(StatusCode::BAD_REQUEST)
        };
        router = router.route(path, post(handler));
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

/// Where an API server gets an answer that it takes: the Pod may come in as it is. This is the bare echo.
pub const ADMIT: &str = "/mutate/enforce";

/// Where every Pod gets a label: the smallest patch that changes something.
pub const LABEL: &str = "/mutate/label";

/// Where it gets Kagami's answer to one review, to every review.
pub const PATCH: &str = "/mutate/patch";

/// The file with that answer in the echo's folder; where it is missing nothing is patched.
pub const ANSWER: &str = "answer.json";

/// The answer that lets a Pod in, patched or as it is.
fn admitted(patch: Option<&Value>) -> String {
    let mut response = json!({"uid": "", "allowed": true});
    if let Some(patch) = patch {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch.to_string()).into();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).to_string()
}

/// Answers reviews with a constant but for the UID, which API servers compare.
#[derive(Clone, Debug)]
struct Admit {
    before: Bytes,
    after: Bytes,
}

impl Admit {
    /// Makes it of an answer, whatever UID that has.
    fn new(answer: &str) -> Result<Self> {
        let start = answer.find(UID).context("no UID")? + UID.len();
        let end = start + answer[start..].find('"').context("no end of the UID")?;
        Ok(Self {
            before: answer[..start].to_owned().into(),
            after: answer[end..].to_owned().into(),
        })
    }

    fn answer(&self, review: &[u8]) -> Option<Vec<u8>> {
        // API servers write the review's own UID before any other.
        let name = UID.as_bytes();
        let start = review.windows(name.len()).position(|window| window == name)?;
        let uid = review[start + name.len()..].split(|byte| *byte == b'"').next()?;
        Some([&self.before, uid, &self.after].concat())
    }
}

const UID: &str = r#""uid":""#;

/// Returns the path that answers so many bytes.
pub fn path(length: usize) -> String {
    format!("/mutate/{length}")
}
