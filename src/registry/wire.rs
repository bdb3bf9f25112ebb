//! HTTP to a registry: one connection pool, redirects by hand, waits that were asked for, and what
//! became of a request, classified.
//!
//! Deliberately absent: proxies from the environment (a mirror is reached directly, or its address
//! says otherwise), decompression (digests are of the bytes sent), cookies, HTTP/2.

use std::{
    error::Error as StdError,
    fmt, io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Request, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{
    USER_AGENT,
    resolver::{NameNotFound, Resolver},
    trust,
    waits::{Matter, Waits},
};
use crate::{
    clock,
    domain::{
        answer::{Ambiguity, Failure, Particulars, Party, Unreachable},
        foreign::{Foreign, visible},
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

/// The longest wait that is obeyed: nobody means to be left alone for ever.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// The longest error body that is read.
pub(super) const ERROR_BYTES: usize = 64 * 1024;

/// How long an error body is waited for, where only people want it.
const ERROR_PATIENCE: Duration = Duration::from_millis(50);

/// How much of a text from outside stands in messages.
const LONGEST_WORD: usize = 100;

/// What one endpoint's requests share.
pub(super) struct Wire {
    http: reqwest::Client,
    /// Opens a connection for each request, and sees the server's certificate each time.
    anew: reqwest::Client,
    waits: Mutex<Waits>,
}

/// One request, before its redirects.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: HeaderValue,
    /// How many redirects to follow.
    pub(super) redirects: usize,
    /// What it asks for.
    pub(super) matter: Matter,
    /// Whether to open a connection of its own.
    pub(super) anew: bool,
    /// How many bytes of the beginning are wanted; all if absent. Not everybody sends less than all.
    pub(super) beginning: Option<u64>,
    /// Where the part begins that is wanted; not everybody sends less than all.
    pub(super) from: u64,
    /// What is sent along.
    pub(super) content: Option<Content>,
}

/// The body of a request that may be sent more than once.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) media_type: Option<HeaderValue>,
    pub(super) bytes: Bytes,
    /// What keeps the requests of one upload together, where somebody between told one.
    pub(super) cookie: Option<HeaderValue>,
}

/// A request whose body is sent while it comes, and so but once.
pub(super) struct Streamed {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: reqwest::Body,
    pub(super) matter: Matter,
}

/// An HTTP answer that is no 429 and no redirect that was to be followed.
pub(super) struct Reply {
    pub(super) response: Response,
    /// Whether the server that was asked gave it, and not one that a redirect led to.
    pub(super) direct: bool,
    /// Who gave it, where that is not the registry.
    party: Option<Party>,
}

impl Wire {
    /// Returns a pool of connections with these TLS settings.
    pub(super) fn new(tls: rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let mut unresumed = tls.clone();
        // Who resumes a session shows no certificate.
        unresumed.resumption = rustls::client::Resumption::disabled();
        let client = |tls, idle| {
            let builder = reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .tls_backend_preconfigured(tls)
                .http1_only()
                .no_proxy()
                .referer(false)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle)
                .dns_resolver(Resolver::default());
            builder.build()
        };
        Ok(Self {
            http: client(tls, IDLE_CONNECTIONS)?,
            anew: client(unresumed, 0)?,
            waits: Mutex::default(),
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
            let party = party(call, &url, direct);
            let response = self
                .request(
                    call,
                    &url,
                    authorization.filter(|_| direct),
                    party.as_ref(),
                    direct,
                )
                .await?;
            if response.status() == StatusCode::TOO_MANY_REQUESTS {
                return Err(self.limited(&call.matter, response.headers()));
            }
            let redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if call.redirects == 0 || !redirect {
                if response.status() != StatusCode::UNAUTHORIZED {
                    self.waits().answered(&call.matter);
                }
                return Ok(Reply {
                    response,
                    direct,
                    party,
                });
            }
            let next = target(&url, response.headers()).map_err(|words| {
                Failure::Ambiguous(Ambiguity::Redirect(Particulars {
                    party,
                    words: Some(words),
                    ..Particulars::default()
                }))
            })?;
            // Once elsewhere always elsewhere: whoever is asked on the way decides where it leads.
            direct = direct && next.origin() == call.url.origin();
            url = next;
        }
        Err(Failure::Ambiguous(Ambiguity::Redirect(Particulars {
            words: Some(format!("more than {}", call.redirects).into()),
            ..Particulars::default()
        })))
    }

    async fn request(
        &self,
        call: &Call,
        url: &Url,
        authorization: Option<&HeaderValue>,
        party: Option<&Party>,
        direct: bool,
    ) -> Result<Response, Failure> {
        let mut tried = false;
        loop {
            let mut request = Request::new(call.method.clone(), url.clone());
            let headers = request.headers_mut();
            headers.insert(header::ACCEPT, call.accept.clone());
            if let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            if let Some(bytes) = call.beginning {
                let range = format!("bytes=0-{}", bytes.saturating_sub(1));
                headers.extend(HeaderValue::try_from(range).map(|range| (header::RANGE, range)));
            }
            if call.from > 0 {
                let range = format!("bytes={}-", call.from);
                headers.extend(HeaderValue::try_from(range).map(|range| (header::RANGE, range)));
            }
            if let Some(content) = &call.content {
                headers.extend(
                    content
                        .media_type
                        .clone()
                        .map(|kind| (header::CONTENT_TYPE, kind)),
                );
                if direct {
                    headers.extend(content.cookie.clone().map(|cookie| (header::COOKIE, cookie)));
                }
                // Said of an empty body too: some proxies refuse requests without.
                headers.insert(header::CONTENT_LENGTH, content.bytes.len().into());
                *request.body_mut() = Some(content.bytes.clone().into());
            }
            let http = if call.anew { &self.anew } else { &self.http };
            match http.execute(request).await {
                Ok(response) => return Ok(response),
                Err(error) => match unreachable(error, party) {
                    // A connection from the pool may end just as it is used again.
                    Failure::Unreachable(Unreachable::Reset, _) if !tried => tried = true,
                    failure => return Err(failure),
                },
            }
        }
    }

    /// Sends a request once, and follows no redirect: what was sent of its body is gone.
    pub(super) async fn stream(&self, streamed: Streamed) -> Result<Reply, Failure> {
        let Streamed {
            method,
            url,
            headers,
            body,
            matter,
        } = streamed;
        let mut request = Request::new(method, url);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body);
        let response = self.http.execute(request).await;
        let response = response.map_err(|error| unreachable(error, None))?;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            return Err(self.limited(&matter, response.headers()));
        }
        Ok(Reply {
            response,
            direct: true,
            party: None,
        })
    }

    fn wait_is_over(&self, call: &Call) -> Result<(), Failure> {
        let left = self.waits().left(&call.matter, Instant::now());
        left.map_or(Ok(()), |(of, wait)| {
            let retry_after = Some(wait);
            Err(Failure::RateLimited { of, retry_after })
        })
    }

    fn limited(&self, matter: &Matter, headers: &HeaderMap) -> Failure {
        let (of, retry_after) = self.waits().limited(matter, asked_wait(headers), Instant::now());
        Failure::RateLimited { of, retry_after }
    }

    /// Forgets who limited tokens: others are asked for now.
    pub(super) fn forget_limits_of_tokens(&self) {
        self.waits().forget_tokens();
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the wait that an answer asks for.
pub(super) fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?;
    retry_after(value.to_str().ok()?, clock::now())
}

/// Returns whom a URL belongs to, where that is not the registry.
fn party(call: &Call, url: &Url, direct: bool) -> Option<Party> {
    let named = || for_people(&authority(url));
    match call.matter {
        _ if !direct => Some(Party::Redirect(named())),
        Matter::Token(_) => Some(Party::TokenService(named())),
        Matter::Registry | Matter::Repository(_) => None,
    }
}

/// Returns where a redirect leads, or in words why it is not followed.
fn target(url: &Url, headers: &HeaderMap) -> Result<Url, Box<str>> {
    let location = headers.get(header::LOCATION).ok_or("no address to go to")?;
    let next = location
        .to_str()
        .ok()
        .and_then(|location| url.join(location).ok());
    let next = next.filter(|next| matches!(next.scheme(), "https" | "http"));
    let next = next.ok_or_else(|| {
        let location = String::from_utf8_lossy(location.as_bytes());
        format!(
            "{} is no address to go to",
            Foreign(&address_for_people(&location))
        )
    })?;
    if next.scheme() == "http" && url.scheme() == "https" {
        let to = for_people(&authority(&next));
        return Err(format!("from https to http://{to}, which is not followed").into());
    }
    Ok(next)
}

/// Returns a URL's host, with its port where that is not the usual one.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
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

    /// Returns what a status other than 200 means, where no more than the headers need be known.
    pub(super) fn failure(&self) -> Failure {
        match self.status().as_u16() {
            // Who a redirect led to was shown no credentials, and knows none.
            401 | 403 if self.direct => Failure::Unauthorized,
            status @ 500..=599 => Failure::ServerError(status, self.particulars()),
            _ if self.is_html() => Failure::Ambiguous(Ambiguity::Html(self.particulars())),
            status => Failure::Ambiguous(Ambiguity::Status(status, self.particulars())),
        }
    }

    /// Returns the same as [`Self::failure`], with the code that the body names if it comes at once.
    pub(super) async fn failure_with_code(self) -> Failure {
        let mut failure = self.failure();
        if let Failure::ServerError(_, particulars) | Failure::Ambiguous(Ambiguity::Status(_, particulars)) =
            &mut failure
            && let Ok(Ok(body)) = timeout(ERROR_PATIENCE, self.body(ERROR_BYTES)).await
        {
            particulars.code = ErrorBody::read(&body).and_then(|body| body.code);
        }
        failure
    }

    /// Returns who gave this answer, and as what.
    pub(super) fn particulars(&self) -> Particulars {
        Particulars {
            party: self.party.clone(),
            content_type: self.content_type().map(for_people),
            ..Particulars::default()
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
        let Self { response, party, .. } = self;
        Chunks { response, party }
    }
}

/// A registry's error body.
pub(super) struct ErrorBody {
    /// The first code that it names.
    pub(super) code: Option<Box<str>>,
}

impl ErrorBody {
    /// Reads a body; returns none if it is another's.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<serde_json::Value>,
        }
        let Errors { errors } = serde_json::from_slice(body).ok()?;
        let code = errors.first().and_then(|error| error.get("code")?.as_str());
        Some(Self {
            code: code.map(for_people),
        })
    }
}

/// Returns what should be an address as it may stand in a message: likewise, and without what may be a user's
/// name and password or a signature.
pub(super) fn address_for_people(text: &str) -> Box<str> {
    let shown = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = shown.split_once("://").unwrap_or(("", shown));
    let rest = rest.rsplit('@').next().unwrap_or_default();
    if scheme.is_empty() {
        for_people(rest)
    } else {
        for_people(&format!("{scheme}://{rest}"))
    }
}

/// Returns a text from outside as it may stand in a message: of bounded length and in one line.
pub(super) fn for_people(text: &str) -> Box<str> {
    visible(text)
        .chars()
        .take(LONGEST_WORD)
        .collect::<String>()
        .into()
}

/// The body of a [`Reply`], piece by piece.
pub(super) struct Chunks {
    response: Response,
    party: Option<Party>,
}

impl Chunks {
    /// Returns the next piece, none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.response
            .chunk()
            .await
            .map_err(|error| unreachable(error, self.party.as_ref()))
    }
}

/// Returns the wait that a `Retry-After` asks for. By RFC 9110, 10.2.3, it is a number of seconds or a date;
/// some send fractions, with units as Go writes them, or other forms of a date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let until = || Some(date(value)?.since(now));
    Some(span(value).or_else(until)?.min(LONGEST_WAIT))
}

/// Returns the length of time that a text names, up to the first comma: `7`, `1.5 s`, `1m30s`.
fn span(text: &str) -> Option<Duration> {
    let text = text.split([',', ';']).next()?.to_ascii_lowercase();
    let mut rest = text.trim();
    let mut seconds = 0.0;
    loop {
        let (number, after) = split_at(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, after) = split_at(after, |c| c.is_ascii_digit());
        let number: f64 = number.parse().ok()?;
        let unit = match unit.trim() {
            "" if !after.is_empty() => return None,
            "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        if after.is_empty() {
            return Some(Duration::from_secs_f64(seconds.min(LONGEST_WAIT.as_secs_f64())));
        }
        rest = after;
    }
}

/// Splits a text before the first character for which something is true.
fn split_at(text: &str, is_end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_end).unwrap_or(text.len()))
}

/// Returns the time that a text names, in one of HTTP's three forms of a date or in that of RFC 3339.
fn date(text: &str) -> Option<Timestamp> {
    let obsolete = |form: &str| {
        let time = jiff::civil::DateTime::strptime(form, text).ok()?;
        Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let time = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .or_else(|_| text.parse())
        .ok()
        .or_else(|| obsolete("%A, %d-%b-%y %H:%M:%S GMT"))
        .or_else(|| obsolete("%a %b %e %H:%M:%S %Y"))?;
    u64::try_from(time.as_millisecond())
        .ok()
        .map(Timestamp::from_millis)
}

/// Returns why no HTTP answer came from somebody.
fn unreachable(error: reqwest::Error, party: Option<&Party>) -> Failure {
    // Redirects to blob storage carry a signature in their URL.
    let error = error.without_url();
    let (why, words) = cause(&error);
    tracing::debug!(error = %Chain(&error), "no answer from registry");
    let particulars = Particulars {
        party: party.cloned(),
        words,
        ..Particulars::default()
    };
    Failure::Unreachable(why, particulars)
}

/// Returns the cause of an error, with what is known of it in words.
fn cause(error: &reqwest::Error) -> (Unreachable, Option<Box<str>>) {
    if error.is_timeout() {
        return (Unreachable::Timeout, None);
    }
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<NameNotFound>() {
            return (Unreachable::Dns, None);
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return (Unreachable::Tls, Some(trust::words(error)));
        }
        let io = error.downcast_ref::<io::Error>();
        match io.map(io::Error::kind) {
            Some(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable,
            ) => return (Unreachable::Refused, None),
            Some(io::ErrorKind::TimedOut) => return (Unreachable::Timeout, None),
            _ => {}
        }
        // `source` of an io::Error skips the error that it wraps, which is where TLS errors are.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    (Unreachable::Reset, None)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_a_date_or_a_fraction_with_a_unit() {
        // 1994-11-06T08:49:37Z, the example of RFC 9110.
        let now = Timestamp::from_millis(784_111_777_000);
        for (value, expected) in [
            ("0", Some(0)),
            ("120", Some(120_000)),
            (" 7 ", Some(7000)),
            ("1.5", Some(1500)),
            ("2.25s", Some(2250)),
            ("2 seconds", Some(2000)),
            ("1m30s", Some(90_000)),
            ("250MS", Some(250)),
            ("3000us", Some(3)),
            ("2ms, allowed: 44000/minute", Some(2)),
            ("31536000", Some(3_600_000)),
            ("2h", Some(3_600_000)),
            ("99999999999999999999999999", Some(3_600_000)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10_000)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10_000)),
            ("Sun Nov  6 08:49:47 1994", Some(10_000)),
            ("1994-11-06T08:49:47Z", Some(10_000)),
            ("-1", None),
            ("-1.5s", None),
            ("1..5", None),
            (".", None),
            ("s", None),
            ("1 2", None),
            ("5 parsecs", None),
            ("soon", None),
            ("", None),
            (",", None),
            ("NaN", None),
            ("inf", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                expected.map(Duration::from_millis),
                "{value:?}"
            );
        }
        assert_eq!(retry_after("1.16ms", now), Some(Duration::from_micros(1160)));
    }
}
