//! Somebody else's webhook: it injects a sidecar, as service meshes do.

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

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// An injecting webhook, registered for one namespace so that it is called after Kagami.
#[derive(Debug)]
pub(crate) struct Injector<'a> {
    cluster: &'a Cluster,
    name: String,
    _runtime: Runtime,
}

impl<'a> Injector<'a> {
    /// Serves and registers a webhook that adds a container with this image where it is not there yet.
    pub(crate) fn start(namespace: &Namespace<'a>, image: &'static str) -> Self {
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

        // The API server calls webhooks in the order of their configurations' names: kagami-… comes first.
        let name = format!("sidecar-injector-{}", namespace.name);
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
    if containers.iter().all(|container| container["name"] != SIDECAR) {
        let sidecar = json!({"name": SIDECAR, "image": image});
        let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": sidecar}]);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = BASE64.encode(patch.to_string()).into();
    }
    let answer =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(Bytes::from(answer.to_string()))))
}
