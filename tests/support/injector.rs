//! Somebody else's webhook: it injects a sidecar, or puts its image in place of a placeholder, as service meshes
//! do.

use std::{convert::Infallible, net::Ipv4Addr};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};
use tokio_rustls::TlsAcceptor;

use super::cluster::{Cluster, Namespace};

/// The name of the container that it adds.
pub(crate) const SIDECAR: &str = "injected";

/// The name of the container that waits for its image, and what stands there.
pub(crate) const WAITING: (&str, &str) = ("istio-proxy", "auto");

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// An injecting webhook, registered for one namespace.
#[derive(Debug)]
pub(crate) struct Injector<'a> {
    cluster: &'a Cluster,
    name: String,
    _runtime: Runtime,
}

impl<'a> Injector<'a> {
    /// Serves and registers a webhook that adds a container with this image where it is not there yet, or
    /// puts the image where one waits for it. The API server calls webhooks in the order of their
    /// configurations' names, and this one's begins with `prefix`.
    pub(crate) fn start(namespace: &Namespace<'a>, prefix: &str, image: &'static str) -> Self {
        let cluster = namespace.cluster;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(cluster.authority.issue().server());
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let tls = acceptor.accept(tcp).await.unwrap();
                tokio::spawn(http1::Builder::new().serve_connection(
                    TokioIo::new(tls),
                    service_fn(move |request| answer(request, image)),
                ));
            }
        });

        let name = format!("{prefix}-{}", namespace.name);
        let manifest = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": "sidecar.injector.test",
                "clientConfig": {"url": format!("https://{address}/"), "caBundle": cluster.authority.bundle()},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
                "rules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"],
                }],
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }],
        });
        cluster.create(CONFIGURATIONS, &manifest).success();
        Self {
            cluster,
            name,
            _runtime: runtime,
        }
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        self.cluster.delete(&format!("{CONFIGURATIONS}/{}", self.name));
    }
}

async fn answer(
    request: Request<Incoming>,
    image: &'static str,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let containers = review["request"]["object"]["spec"]["containers"]
        .as_array()
        .unwrap();
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    let named = |name| containers.iter().position(|container| container["name"] == name);
    let operation = match (named(WAITING.0), named(SIDECAR)) {
        (Some(index), _) => (containers[index]["image"] == WAITING.1).then(
            || json!({"op": "replace", "path": format!("/spec/containers/{index}/image"), "value": image}),
        ),
        (None, Some(_)) => None,
        (None, None) => {
            let sidecar = json!({"name": SIDECAR, "image": image});
            Some(json!({"op": "add", "path": "/spec/containers/-", "value": sidecar}))
        }
    };
    if let Some(operation) = operation {
        let patch = json!([operation]);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = BASE64.encode(patch.to_string()).into();
    }
    let answer =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(Bytes::from(answer.to_string()))))
}
