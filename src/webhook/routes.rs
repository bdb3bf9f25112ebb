//! The HTTP side of admission: paths, sizes, the caller's timeout.

use std::time::Duration;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};

use super::Admission;
use crate::domain::mirror::Mode;

/// The longest review that is read. The API server sends 3 MiB at most, twice for an update.
pub const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// The modes that have a webhook of their own, with its path.
pub const PATHS: [(Mode, &str); 3] = [
    (Mode::Enforce, "/mutate/enforce"),
    (Mode::Warn, "/mutate/warn"),
    (Mode::Audit, "/mutate/audit"),
];

/// Returns the admission service.
pub fn router(admission: Admission) -> Router {
    let mut router = Router::new();
    for (mode, path) in PATHS {
        let handler =
            async move |State(admission): State<Admission>, RawQuery(query): RawQuery, body: Bytes| {
                mutate(&admission, mode, query.as_deref(), &body).await
            };
        router = router.route(path, post(handler));
    }
    router
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(admission)
}

async fn mutate(admission: &Admission, mode: Mode, query: Option<&str>, body: &[u8]) -> Response {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    match admission.review(mode, body, query.and_then(timeout)).await {
        Ok(answer) => ([(header::CONTENT_TYPE, JSON)], answer).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// Returns the `timeout` of a query such as `timeout=3s`: how long the API server waits. It is
/// always whole seconds there (facts: section 1.2); other keys and forms are passed over.
fn timeout(query: &str) -> Option<Duration> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("timeout="))?;
    value.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_read_as_the_api_server_writes_it() {
        assert_eq!(timeout("timeout=3s"), Some(Duration::from_secs(3)));
        assert_eq!(timeout("a=b&timeout=10s&c"), Some(Duration::from_secs(10)));
        assert_eq!(timeout("timeout=3"), None);
        assert_eq!(timeout("timeout=3m"), None);
        assert_eq!(timeout(""), None);
    }
}
