//! HTTP to a registry: one connection pool, redirects by hand, waits that were asked for, and what
//! became of a request, classified.
//!
//! Deliberately absent: proxies from the environment (a mirror is reached directly, or its address
//! says otherwise), decompression (digests are of the bytes sent), cookies, HTTP/2.

use std::{
    error::Error as StdError,
    fmt, io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Certificate, ClientBuilder, Method, Request, Response, StatusCode, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{self, HeaderMap, HeaderValue},
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    clock,
    domain::{
        answer::{Ambiguity, Failure, Unreachable},
        time::Timestamp,
    },
};

/// Redirects followed for one request.
pub(super) const REDIRECTS: usize = 5;

/// No connection takes longer to open, whatever the caller's deadline: one that a call left behind for
/// the pool must end too.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Below the 60 s after which common load balancers close a silent connection, so that we close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// As many as probes run at once.
const IDLE_CONNECTIONS: usize = 64;

/// Name look-ups block a thread each and cannot be cancelled.
const LOOKUPS: usize = 4;

/// The longest wait that is obeyed: nobody means to be left alone for ever.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// What one endpoint's requests share.
pub(super) struct Wire {
    http: reqwest::Client,
    quiet: Mutex<Quiet>,
}

/// Until when the registry asked to be left alone. Who limits manifests need not limit `/v2/`, and
/// is not down.
#[derive(Default)]
struct Quiet {
    images_until: Option<Instant>,
    all_until: Option<Instant>,
}

/// One request, before its redirects.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: HeaderValue,
    /// How many redirects to follow.
    pub(super) redirects: usize,
    /// Whether this asks for an image's manifest or blob, and not for `/v2/` or a token.
    pub(super) of_image: bool,
}

/// An HTTP answer that is no 429 and no redirect that was to be followed.
pub(super) struct Reply {
    pub(super) response: Response,
    /// Whether the server that was asked gave it, and not one that a redirect led to.
    pub(super) direct: bool,
}

impl Wire {
    /// Returns a pool that trusts the given certificates, or those of the system if none are given.
    pub(super) fn new(certificates: Option<Vec<Certificate>>, https: bool) -> Result<Self, reqwest::Error> {
        let http = match certificates {
            Some(certificates) => builder().tls_certs_only(certificates).build()?,
            None => match builder().build() {
                // A machine without certificates can still speak plain HTTP.
                Err(_) if !https => builder().tls_certs_only([]).build()?,
                result => result?,
            },
        };
        Ok(Self {
            http,
            quiet: Mutex::default(),
        })
    }

    /// Sends a request and follows redirects. `Authorization` goes to the server first asked alone.
    pub(super) async fn send(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, Failure> {
        let mut url = call.url.clone();
        let mut direct = true;
        for _ in 0..=call.redirects {
            self.wait_is_over(call)?;
            let response = self.request(call, &url, authorization.filter(|_| direct)).await?;
            if response.status() == StatusCode::TOO_MANY_REQUESTS {
                return Err(self.rate_limited(call, response.headers()));
            }
            let redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if call.redirects == 0 || !redirect {
                return Ok(Reply { response, direct });
            }
            let next = response
                .headers()
                .get(header::LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok())
                .filter(|next| {
                    next.scheme() == "https" || (next.scheme() == "http" && url.scheme() == "http")
                })
                .ok_or(Failure::Ambiguous(Ambiguity::Redirect))?;
            // Once elsewhere always elsewhere: whoever is asked on the way decides where it leads.
            direct = direct && next.origin() == call.url.origin();
            url = next;
        }
        Err(Failure::Ambiguous(Ambiguity::Redirect))
    }

    async fn request(
        &self,
        call: &Call,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut tried = false;
        loop {
            let mut request = Request::new(call.method.clone(), url.clone());
            let headers = request.headers_mut();
            headers.insert(header::ACCEPT, call.accept.clone());
            if let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            match self.http.execute(request).await {
                Ok(response) => return Ok(response),
                Err(error) => match unreachable(error) {
                    // A connection from the pool may end just as it is used again.
                    Unreachable::Reset if !tried => tried = true,
                    why => return Err(Failure::Unreachable(why)),
                },
            }
        }
    }

    fn wait_is_over(&self, call: &Call) -> Result<(), Failure> {
        let quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let until = quiet.all_until.max(quiet.images_until.filter(|_| call.of_image));
        let wait = until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        });
        if wait.is_zero() {
            return Ok(());
        }
        Err(Failure::RateLimited {
            retry_after: Some(wait),
        })
    }

    fn rate_limited(&self, call: &Call, headers: &HeaderMap) -> Failure {
        let wait = headers
            .get(header::RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, clock::now()));
        if let Some(wait) = wait {
            let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
            let until = if call.of_image {
                &mut quiet.images_until
            } else {
                &mut quiet.all_until
            };
            *until = (*until).max(Some(Instant::now() + wait));
        }
        Failure::RateLimited { retry_after: wait }
    }
}

fn builder() -> ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("kagami/", env!("CARGO_PKG_VERSION")))
        .tls_backend_rustls()
        .http1_only()
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .dns_resolver(Resolver(Arc::new(Semaphore::new(LOOKUPS))))
}

impl Reply {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Returns the media type of the body, without parameters and as it was written.
    pub(super) fn content_type(&self) -> Option<&str> {
        let value = self.header(header::CONTENT_TYPE)?;
        Some(value.split(';').next().unwrap_or_default().trim())
    }

    pub(super) fn is_html(&self) -> bool {
        self.content_type().is_some_and(|media_type| {
            media_type.eq_ignore_ascii_case("text/html")
                || media_type.eq_ignore_ascii_case("application/xhtml+xml")
        })
    }

    /// Returns what a status other than 200 means, where no more than the status need be known.
    pub(super) fn failure(&self) -> Failure {
        match self.status().as_u16() {
            401 | 403 => Failure::Unauthorized,
            status @ 500..=599 => Failure::ServerError(status),
            _ if self.is_html() => Failure::Ambiguous(Ambiguity::Html),
            status => Failure::Ambiguous(Ambiguity::Status(status)),
        }
    }

    /// Reads the body to its end, which must come within a number of bytes.
    pub(super) async fn body(self, at_most: usize) -> Result<Bytes, Failure> {
        let too_long = Failure::Ambiguous(Ambiguity::Oversized);
        if self
            .response
            .content_length()
            .is_some_and(|length| length > at_most as u64)
        {
            return Err(too_long);
        }
        let mut body = self.into_chunks();
        let Some(first) = body.next().await? else {
            return Ok(Bytes::new());
        };
        let Some(second) = body.next().await? else {
            return if first.len() > at_most {
                Err(too_long)
            } else {
                Ok(first)
            };
        };
        let mut whole = BytesMut::from(first);
        whole.extend_from_slice(&second);
        while whole.len() <= at_most {
            match body.next().await? {
                Some(chunk) => whole.extend_from_slice(&chunk),
                None => return Ok(whole.freeze()),
            }
        }
        Err(too_long)
    }

    pub(super) fn into_chunks(self) -> Chunks {
        Chunks(self.response)
    }
}

/// The body of a [`Reply`], piece by piece.
pub(super) struct Chunks(Response);

impl Chunks {
    /// Returns the next piece, none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.0
            .chunk()
            .await
            .map_err(|error| Failure::Unreachable(unreachable(error)))
    }
}

/// Returns the wait that a `Retry-After` asks for (RFC 9110, 10.2.3: seconds, or a date).
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let wait = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = jiff::fmt::rfc2822::DateTimeParser::new()
            .parse_timestamp(value)
            .ok()?;
        Timestamp::from_millis(u64::try_from(date.as_millisecond()).ok()?).since(now)
    };
    Some(wait.min(LONGEST_WAIT))
}

/// Returns why no HTTP answer came.
fn unreachable(error: reqwest::Error) -> Unreachable {
    // Redirects to blob storage carry a signature in their URL.
    let error = error.without_url();
    let why = cause(&error);
    tracing::debug!(error = %Chain(&error), "no answer from registry");
    why
}

fn cause(error: &reqwest::Error) -> Unreachable {
    if error.is_timeout() {
        return Unreachable::Timeout;
    }
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<NameNotFound>() {
            return Unreachable::Dns;
        }
        if error.is::<rustls::Error>() {
            return Unreachable::Tls;
        }
        let io = error.downcast_ref::<io::Error>();
        match io.map(io::Error::kind) {
            Some(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable,
            ) => return Unreachable::Refused,
            Some(io::ErrorKind::TimedOut) => return Unreachable::Timeout,
            _ => {}
        }
        // `source` of an io::Error skips the error that it wraps, which is where TLS errors are.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    Unreachable::Reset
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// The system's resolver, a few look-ups at a time.
struct Resolver(Arc<Semaphore>);

/// The name did not resolve.
#[derive(Debug, thiserror::Error)]
#[error("name not found")]
struct NameNotFound(#[source] io::Error);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let semaphore = Arc::clone(&self.0);
        Box::pin(async move {
            let permit = semaphore.acquire_owned().await?;
            let addresses = tokio::task::spawn_blocking(move || {
                let addresses = (name.as_str(), 0).to_socket_addrs();
                // The thread holds the permit, since it goes on when the call has been given up.
                drop(permit);
                addresses.map(Iterator::collect::<Vec<SocketAddr>>)
            })
            .await?
            .map_err(NameNotFound)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // 1994-11-06T08:49:37Z, the example of RFC 9110.
        let now = Timestamp::from_millis(784_111_777_000);
        for (value, expected) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("31536000", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                expected.map(Duration::from_secs),
                "{value:?}"
            );
        }
    }
}
