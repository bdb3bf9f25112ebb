//! The HTTP side of admission: paths, sizes, the caller's timeout.

use std::{convert::Infallible, error::Error as StdError, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue},
    service::{Service, service_fn},
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

/// Returns the admission service. Three fixed paths need no router, and this is passed by every Pod.
pub fn service<B>(
    admission: Admission,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
where
    B: Body<Data: Send> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    service_fn(move |request| {
        let admission = admission.clone();
        async move { Ok(answer(&admission, request).await) }
    })
}

async fn answer<B>(admission: &Admission, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let Some((mode, _)) = PATHS.into_iter().find(|(_, path)| *path == parts.uri.path()) else {
        return refusal(StatusCode::NOT_FOUND, "no such path");
    };
    if parts.method != Method::POST {
        let refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent with POST");
        return with(refusal, ALLOW, "POST");
    }
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "the review is too large");
        }
        Err(error) => {
            return refusal(
                StatusCode::BAD_REQUEST,
                &format!("cannot read the review: {error}"),
            );
        }
    };
    let timeout = parts.uri.query().and_then(timeout);
    match admission.review(mode, &body, timeout).await {
        Ok(answer) => with(Response::new(answer.into()), CONTENT_TYPE, "application/json"),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(format!("{why}\n").into());
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn with(mut response: Response<Full<Bytes>>, name: HeaderName, value: &'static str) -> Response<Full<Bytes>> {
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
    response
}

/// Returns the `timeout` of a query such as `timeout=3s`: how long the API server waits. It is
/// always whole seconds there (`timeoutSeconds` is an integer); other keys and forms are passed over.
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
