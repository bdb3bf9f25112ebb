//! The HTTP side of admission: paths, sizes, the caller's timeout.

use std::{
    convert::Infallible,
    error::Error as StdError,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
    service::{Service, service_fn},
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Admission, scan};
use crate::{domain::mirror::Mode, metrics::ReviewAnswer};

/// The longest review that is read. The API server sends 3 MiB at most, twice for an update.
pub const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// What large reviews may cost of memory, all that are read or answered at one time.
const ROOM: usize = 64 * 1024 * 1024;

/// Up to this size a review needs no room: so much is read for each connection anyway, and hardly a Pod
/// is larger. So large reviews, of whoever it be, keep no ordinary one from its answer.
const SMALL: usize = 64 * 1024;

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
    let shared = Arc::new((admission, Semaphore::new(ROOM)));
    service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok(answer(&shared.0, &shared.1, request).await) }
    })
}

async fn answer<B>(admission: &Admission, room: &Semaphore, request: Request<B>) -> Response<Full<Bytes>>
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
    let started = Instant::now();
    let (body, _room) = match read(body, room).await {
        Ok(read) => read,
        Err(unread) => {
            let (how, refusal) = unread.refusal();
            admission.refused(mode, how, started.elapsed());
            return refusal;
        }
    };
    let timeout = parts.uri.query().and_then(timeout);
    match admission.review(mode, &body, timeout).await {
        Ok(answer) => with(Response::new(answer.into()), CONTENT_TYPE, "application/json"),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// Why a review was not read.
enum Unread {
    TooLarge,
    NoRoom,
    Broken(Box<dyn StdError + Send + Sync>),
}

impl Unread {
    fn refusal(&self) -> (ReviewAnswer, Response<Full<Bytes>>) {
        match self {
            Self::TooLarge => (
                ReviewAnswer::Refused,
                refusal(StatusCode::PAYLOAD_TOO_LARGE, "the review is too large"),
            ),
            // The API server does as it is told within its timeout, mostly with another replica.
            Self::NoRoom => {
                let refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, "too many large reviews at once");
                (ReviewAnswer::NoRoom, with(refusal, RETRY_AFTER, "1"))
            }
            Self::Broken(error) => (
                ReviewAnswer::Refused,
                refusal(
                    StatusCode::BAD_REQUEST,
                    &format!("cannot read the review: {error}"),
                ),
            ),
        }
    }
}

/// Reads a body, and takes the room that it and the reading of it cost. It is taken for what has come,
/// not for what was announced. Where there is none, the rest is passed over, so that the client gets to
/// the answer.
async fn read<B>(body: B, room: &Semaphore) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Unread>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut body = pin!(Limited::new(body, BODY_LIMIT));
    // Not all that is announced of a large one: it is resident before it comes, and may never come.
    let announced = body.size_hint().lower().try_into().unwrap_or(SMALL).min(SMALL);
    let (mut first, mut whole) = (Bytes::new(), Vec::new());
    let (mut length, mut cost) = (0, 0);
    let mut permit: Option<SemaphorePermit<'_>> = None;
    let mut has_room = true;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Unread::TooLarge
            } else {
                Unread::Broken(error)
            }
        })?;
        let Ok(mut data) = frame.into_data() else {
            continue;
        };
        length += data.remaining();
        if has_room && length > SMALL {
            let costs = scan::cost(length);
            if let Ok(more) = room.try_acquire_many(u32::try_from(costs - cost).unwrap_or(u32::MAX)) {
                permit = Some(match permit.take() {
                    Some(mut permit) => {
                        permit.merge(more);
                        permit
                    }
                    None => more,
                });
            } else {
                has_room = false;
                (first, whole, permit) = (Bytes::new(), Vec::new(), None);
            }
            cost = costs;
        }
        if !has_room {
            continue;
        }
        if first.is_empty() && whole.is_empty() {
            first = data.copy_to_bytes(data.remaining());
            continue;
        }
        if whole.is_empty() {
            whole.reserve_exact(announced.max(length));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        while data.has_remaining() {
            let piece = data.chunk();
            whole.extend_from_slice(piece);
            data.advance(piece.len());
        }
    }
    if !has_room {
        return Err(Unread::NoRoom);
    }
    let text = if whole.is_empty() { first } else { whole.into() };
    Ok((text, permit))
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

/// Returns the `timeout` of a query such as `timeout=2s`: how long the API server waits. It is
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
        assert_eq!(timeout("timeout=2s"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("a=b&timeout=10s&c"), Some(Duration::from_secs(10)));
        assert_eq!(timeout("timeout=3"), None);
        assert_eq!(timeout("timeout=3m"), None);
        assert_eq!(timeout(""), None);
    }
}
