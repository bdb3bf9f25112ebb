//! Single requests, and the end of each: a connection on which no answer comes is noticed without the other side's help.

use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use kube::{
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::{Value, json};
use tokio::time::timeout;

/// How long the answer to one request may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the answer to a request, or an error if there is none within [`PATIENCE`]. What was sent may still
/// arrive.
pub async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    timeout(PATIENCE, request)
        .await
        .unwrap_or_else(|elapsed| Err(kube::Error::Service(Box::new(elapsed))))
}

/// Returns the request that changes an object by a JSON patch, within that time after it came to the API server, which
/// gives it up then, whatever it waits for: its queue, others' webhooks, the store (`WithRequestDeadline` of
/// k8s.io/apiserver, a `time.ParseDuration`; zero, or more than its own limit of a minute, means that limit). The answer is
/// the object's metadata alone.
pub fn json_patch(
    path: &str,
    name: &str,
    operations: &Value,
    within: Duration,
) -> kube::Result<hyper::Request<Vec<u8>>> {
    let request = Request::new(path).patch_metadata(name, &PatchParams::default(), &Patch::Merge(operations));
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    let content = HeaderValue::from_static("application/json-patch+json");
    request.headers_mut().insert(CONTENT_TYPE, content);
    let uri = request.uri().to_string();
    let separator = if uri.ends_with('?') {
        ""
    } else if uri.contains('?') {
        "&"
    } else {
        "?"
    };
    let uri = format!("{uri}{separator}timeout={}ms", within.as_millis());
    *request.uri_mut() = uri
        .parse()
        .map_err(|error: hyper::http::uri::InvalidUri| kube::Error::HttpError(error.into()))?;
    Ok(request)
}

/// Returns the request that evicts the very Pod that was looked at, within its own grace period.
pub fn evict(namespace: &str, name: &str, uid: &str, version: &str) -> kube::Result<hyper::Request<Vec<u8>>> {
    let eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": namespace, "name": name},
        "deleteOptions": {"preconditions": {"uid": uid, "resourceVersion": version}},
    });
    let pods = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
    let body = eviction.to_string().into_bytes();
    let request = pods.create_subresource("eviction", name, &PostParams::default(), body);
    request.map_err(kube::Error::BuildRequest)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// As Go's `time.ParseDuration` reads it.
    #[test]
    fn a_patch_says_how_long_the_api_server_may_take() {
        let request = json_patch(
            "/api/v1/namespaces/a/pods",
            "b",
            &json!([]),
            Duration::from_millis(1500),
        );
        let uri = request.unwrap().uri().to_string();
        assert_eq!(uri, "/api/v1/namespaces/a/pods/b?timeout=1500ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_nobody_answers_ends() {
        let started = Instant::now();
        let answer = bounded(std::future::pending::<kube::Result<()>>()).await;
        assert!(matches!(answer, Err(kube::Error::Service(_))));
        assert_eq!(started.elapsed(), PATIENCE);
        assert!(bounded(std::future::ready(Ok(7))).await.is_ok());
    }
}
