//! Basic and Bearer authentication: challenges, tokens and who may see which credentials.
//!
//! A challenge once learned is met before it is made again, because some registries answer 404 to those
//! who come without authentication. Tokens are kept by repository and actions; they belong to the realm,
//! service and scope that they were asked from, and to the credentials that they were asked with: other
//! credentials leave none of them, and a request that was refused meanwhile is sent once more.
//! Deliberately absent: refresh tokens and the OAuth2 form of the token request, which credentials in
//! Docker's form do not need.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Method, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use tokio::time::{Instant, timeout_at};

use super::{
    waits::Matter,
    wire::{Call, REDIRECTS, Reply, Wire, address_for_people, for_people},
};
use crate::{
    credentials::Credentials,
    domain::{
        answer::{Ambiguity, Failure, Particulars},
        foreign::Foreign,
    },
};

/// The life of a token whose service names none, and the shortest that clients are promised
/// (distribution `docs/content/spec/auth/token.md`).
const DEFAULT_LIFE: Duration = Duration::from_mins(1);

/// No token is trusted longer, whatever its service says.
const LONGEST_LIFE: Duration = Duration::from_hours(24);

/// Nobody means a life as long as that: it counts in another unit, or is a date.
const ODD_LIFE: Duration = Duration::from_hours(24 * 366);

/// Tokens kept at once; each may be some kilobytes long.
const TOKENS: usize = 1024;

/// The longest answer of a token service that is read.
const TOKEN_BYTES: usize = 256 * 1024;

/// How one endpoint's requests are authenticated.
pub(super) struct Authority {
    base: Url,
    known: Mutex<Known>,
    current: Mutex<Current>,
}

/// What requests are authenticated with now.
struct Current {
    login: Arc<Login>,
    /// From then on nothing.
    until: Option<Instant>,
}

/// Credentials, and the tokens that they were given.
#[derive(Default)]
struct Login {
    credentials: Option<Credentials>,
    /// The value of `Authorization` for Basic.
    basic: Option<HeaderValue>,
    slots: Mutex<HashMap<Box<str>, Arc<Slot>>>,
}

/// What the registry is known to ask for.
#[derive(Clone)]
enum Known {
    /// Not asked yet.
    Nothing,
    /// `/v2/` needs no authentication.
    Open,
    Basic,
    Bearer(Arc<Realm>),
}

/// The right that a request needs.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    /// Empty for `/v2/`, which needs none.
    repository: &'a str,
    actions: &'static str,
    /// Another repository to be read as well.
    from: Option<&'a str>,
}

impl<'a> Right<'a> {
    /// What `/v2/` needs.
    pub(super) const NONE: Self = Self {
        repository: "",
        actions: "",
        from: None,
    };

    /// The right to read a repository.
    pub(super) const fn pull(repository: &'a str) -> Self {
        Self {
            repository,
            actions: "pull",
            from: None,
        }
    }

    /// The right to read a repository and to write to it.
    pub(super) const fn push(repository: &'a str) -> Self {
        Self {
            repository,
            actions: "pull,push",
            from: None,
        }
    }

    /// The right to take over what another repository has.
    pub(super) const fn mount(repository: &'a str, from: &'a str) -> Self {
        Self {
            from: Some(from),
            ..Self::push(repository)
        }
    }

    /// Returns the right as token services read it.
    fn scope(&self) -> Option<String> {
        let Self {
            repository,
            actions,
            from,
        } = self;
        // Some look at the first one alone.
        let other = from
            .map(|from| format!(" repository:{from}:pull"))
            .unwrap_or_default();
        (!repository.is_empty()).then(|| format!("repository:{repository}:{actions}{other}"))
    }
}

/// Where tokens come from.
#[derive(PartialEq, Eq)]
struct Realm {
    url: Url,
    service: Option<String>,
}

/// The token for one right, and those who wait for it.
#[derive(Default)]
struct Slot {
    token: Mutex<Option<Arc<Token>>>,
    /// How many requests for a token have ended.
    attempts: AtomicU64,
    /// Held while a token is being asked for; the failure of the last attempt.
    flight: tokio::sync::Mutex<Option<Failure>>,
}

#[derive(Clone)]
struct Token {
    /// The value of `Authorization`.
    header: HeaderValue,
    realm: Arc<Realm>,
    scope: Option<String>,
    refresh_at: Instant,
    expires_at: Instant,
}

/// What a request was sent with.
enum Pass {
    Nothing,
    Basic(HeaderValue),
    /// A token that an earlier request already used.
    Kept(Arc<Token>),
    New(Arc<Token>),
}

impl Pass {
    fn header(&self) -> Option<&HeaderValue> {
        match self {
            Self::Nothing => None,
            Self::Basic(header) => Some(header),
            Self::Kept(token) | Self::New(token) => Some(&token.header),
        }
    }
}

impl Authority {
    pub(super) fn new(base: Url, credentials: Option<&Credentials>) -> Self {
        Self {
            base,
            known: Mutex::new(Known::Nothing),
            current: Mutex::new(Current {
                login: Arc::new(Login::new(credentials.cloned())),
                until: None,
            }),
        }
    }

    /// Takes other credentials for the requests to come, or the same for another time. Returns whether they
    /// are others.
    pub(super) fn set_credentials(&self, credentials: Option<&Credentials>, until: Option<Instant>) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let others = current.login.credentials.as_ref() != credentials;
        if others {
            current.login = Arc::new(Login::new(credentials.cloned()));
        }
        current.until = until;
        others
    }

    fn login(&self) -> Arc<Login> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.until.is_some_and(|until| until <= Instant::now()) {
            *current = Current {
                login: Arc::default(),
                until: None,
            };
        }
        Arc::clone(&current.login)
    }

    pub(super) fn has_credentials(&self) -> bool {
        self.login().basic.is_some()
    }

    /// Sends a request that needs a right with the authentication known to be asked for;
    /// once more with other authentication where that may help, and anew if there are other credentials
    /// by the time that it is refused.
    pub(super) async fn send(
        &self,
        wire: &Wire,
        call: &Call,
        right: Right<'_>,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let login = self.login();
        let sent = self.send_as(&login, wire, call, right, deadline).await;
        let refused = match &sent {
            Ok(reply) => reply.direct && is_refusal(reply.status()),
            Err(failure) => *failure == Failure::Unauthorized,
        };
        let now = self.login();
        if refused && !Arc::ptr_eq(&login, &now) {
            return Box::pin(self.send_as(&now, wire, call, right, deadline)).await;
        }
        sent
    }

    async fn send_as(
        &self,
        login: &Login,
        wire: &Wire,
        call: &Call,
        right: Right<'_>,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        if login.basic.is_some() && matches!(self.known(), Known::Nothing) {
            Box::pin(self.learn(wire)).await?;
        }
        let pass = match self.known() {
            Known::Basic => login.basic.clone().map_or(Pass::Nothing, Pass::Basic),
            Known::Bearer(realm) => {
                let token = login.token(wire, &realm, right, None, None, deadline);
                token.await.map_err(|failure| self.realm_failed(failure))?
            }
            Known::Nothing | Known::Open => Pass::Nothing,
        };
        let reply = wire.send(call, pass.header()).await?;
        if !is_refusal(reply.status()) {
            return Ok(reply);
        }
        match Box::pin(self.next_pass(login, wire, &reply, pass, right, deadline)).await? {
            Some(pass) => wire.send(call, pass.header()).await,
            None => Ok(reply),
        }
    }

    /// Returns what a request that is sent but once is sent with, by what earlier ones met.
    pub(super) async fn pass(
        &self,
        wire: &Wire,
        right: Right<'_>,
        deadline: Instant,
    ) -> Result<Option<HeaderValue>, Failure> {
        let login = self.login();
        Ok(match self.known() {
            Known::Basic => login.basic.clone(),
            Known::Bearer(realm) => {
                let pass = login.token(wire, &realm, right, None, None, deadline).await;
                let pass = pass.map_err(|failure| self.realm_failed(failure))?;
                pass.header().cloned()
            }
            Known::Nothing | Known::Open => None,
        })
    }

    /// Takes the token for a right out of use: it was refused.
    pub(super) fn drop_token(&self, right: Right<'_>) {
        let slot = self.login().slot(&right.scope().unwrap_or_default());
        drop(slot.token.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Asks `/v2/` for its challenge, so that it can be met before it is made.
    async fn learn(&self, wire: &Wire) -> Result<(), Failure> {
        let reply = wire.send(&self.ping_call(), None).await?;
        match reply.status() {
            // Whether it can be met, the request itself will tell.
            StatusCode::UNAUTHORIZED => drop(self.challenged(&reply)),
            StatusCode::OK if !reply.is_html() => self.opened(),
            status if status.is_server_error() => return Err(reply.failure()),
            // What is no registry's answer says nothing of challenges; the request itself will tell.
            _ => {}
        }
        Ok(())
    }

    pub(super) fn ping_call(&self) -> Call {
        Call {
            method: Method::GET,
            url: self.base.join("/v2/").unwrap_or_else(|_| self.base.clone()),
            accept: HeaderValue::from_static("application/json"),
            redirects: 0,
            matter: Matter::Registry,
            anew: false,
            beginning: None,
            from: 0,
            content: None,
        }
    }

    /// Notes that `/v2/` answered without authentication. Repositories may still ask for it.
    pub(super) fn opened(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*known, Known::Nothing) {
            *known = Known::Open;
        }
    }

    /// Notes the challenge that an answer holds, or returns why it cannot be met.
    pub(super) fn challenged(&self, reply: &Reply) -> Result<(), Failure> {
        let known = match Challenge::read(reply.response.headers()) {
            Some(Challenge::Basic) => Known::Basic,
            Some(Challenge::Bearer { realm, service, .. }) => Known::Bearer(self.realm(&realm, service)?),
            None => {
                let asked = reply.header(header::WWW_AUTHENTICATE).map(challenges);
                let scheme = asked.and_then(|asked| Some(asked.first()?.0));
                return Err(scheme.map_or(Failure::Unauthorized, |scheme| {
                    let scheme = for_people(scheme);
                    unmet(&format!(
                        "the registry asks for authentication by {}, and Kagami knows Basic and Bearer",
                        Foreign(&scheme)
                    ))
                }));
            }
        };
        self.set_known(known);
        Ok(())
    }

    /// Returns what to try a refused request with, if anything.
    async fn next_pass(
        &self,
        login: &Login,
        wire: &Wire,
        reply: &Reply,
        pass: Pass,
        right: Right<'_>,
        deadline: Instant,
    ) -> Result<Option<Pass>, Failure> {
        // Only the registry's own refusal counts: the storage it redirects to has other rules.
        if !reply.direct {
            return Ok(None);
        }
        let challenge = match reply.status() {
            StatusCode::UNAUTHORIZED => Challenge::read(reply.response.headers()),
            // ECR says 403 or 400 to an expired token, without a challenge.
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST if matches!(pass, Pass::Kept(_)) => None,
            _ => return Ok(None),
        };
        match (challenge, pass) {
            (Some(Challenge::Bearer { .. }), Pass::New(_)) => Ok(None),
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                pass,
            ) => {
                let realm = self.realm(&realm, service)?;
                self.set_known(Known::Bearer(Arc::clone(&realm)));
                let refused = match &pass {
                    Pass::Kept(token) => Some(token),
                    _ => None,
                };
                let token = login.token(wire, &realm, right, scope, refused, deadline);
                token
                    .await
                    .map(Some)
                    .map_err(|failure| self.realm_failed(failure))
            }
            // Harbor answers with a Basic challenge to a token that it does not like.
            (_, Pass::Kept(token)) => {
                let (realm, scope) = (Arc::clone(&token.realm), token.scope.clone());
                let token = login.token(wire, &realm, right, scope, Some(&token), deadline);
                token
                    .await
                    .map(Some)
                    .map_err(|failure| self.realm_failed(failure))
            }
            (Some(Challenge::Basic), Pass::Nothing) => {
                self.set_known(Known::Basic);
                Ok(login.basic.clone().map(Pass::Basic))
            }
            _ => Ok(None),
        }
    }

    /// Returns the realm of a challenge if it may be asked: over HTTPS, or plain on the registry's own
    /// host where the registry itself is reached over plain HTTP.
    fn realm(&self, text: &str, service: Option<String>) -> Result<Arc<Realm>, Failure> {
        if text.is_empty() {
            return Err(unmet("the registry asks for a token, and names no token service"));
        }
        let url = Url::parse(text).ok();
        let Some(url) = url.filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host()) else {
            let named = address_for_people(text);
            return Err(unmet(&format!(
                "the registry names the token service {}, which is no https:// or http:// address",
                Foreign(&named)
            )));
        };
        let objection = match (url.scheme(), self.base.scheme()) {
            ("https", _) => None,
            (_, "https") => Some(
                "the registry itself is reached over https, and over plain http others on the way could read \
                 passwords and tokens. Behind a proxy that ends TLS a registry has to be told its own https \
                 address",
            ),
            _ if url.host() != self.base.host() => Some(
                "it is another host than the registry, and over plain http others on the way could read \
                 passwords and tokens",
            ),
            _ => None,
        };
        match objection {
            None => Ok(Arc::new(Realm { url, service })),
            Some(objection) => {
                let mut named = url;
                // What stands there besides is nobody's business.
                named.set_query(None);
                named.set_fragment(None);
                let _ = (named.set_username(""), named.set_password(None));
                let named = for_people(named.as_str());
                Err(unmet(&format!(
                    "the registry names the token service {named}, which is not asked: {objection}"
                )))
            }
        }
    }

    /// Notes that a realm gave no token: the registry may have another one by now, or none.
    fn realm_failed(&self, failure: Failure) -> Failure {
        if !matches!(failure, Failure::Unauthorized | Failure::RateLimited { .. }) {
            self.set_known(Known::Nothing);
        }
        failure
    }

    fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_known(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

impl Login {
    fn new(credentials: Option<Credentials>) -> Self {
        let basic = credentials.as_ref().map(|Credentials { username, password }| {
            let encoded = STANDARD.encode(format!("{username}:{password}"));
            secret(&format!("Basic {encoded}")).expect("base64 may stand in a header")
        });
        Self {
            credentials,
            basic,
            slots: Mutex::default(),
        }
    }

    /// Returns a token for a right: the one kept, or a new one if that was refused or has expired. At most
    /// one request for each is under way.
    async fn token(
        &self,
        wire: &Wire,
        realm: &Arc<Realm>,
        right: Right<'_>,
        scope: Option<String>,
        refused: Option<&Arc<Token>>,
        deadline: Instant,
    ) -> Result<Pass, Failure> {
        let own_scope = right.scope();
        let slot = self.slot(own_scope.as_deref().unwrap_or_default());
        let usable = || {
            let token = slot
                .token
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()?;
            let refused = refused.is_some_and(|refused| Arc::ptr_eq(refused, &token));
            (!refused && token.realm == *realm && Instant::now() < token.expires_at).then_some(token)
        };
        let scope = scope.or(own_scope);
        let keep = |token: Token| {
            let token = Arc::new(token);
            *slot.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
            token
        };

        if let Some(token) = usable() {
            let now = Instant::now();
            if now < token.refresh_at {
                return Ok(Pass::Kept(token));
            }
            // Still good for a while: whoever comes first renews it, and spends but half of its time.
            let Ok(mut failure) = slot.flight.try_lock() else {
                return Ok(Pass::Kept(token));
            };
            let half = now + deadline.saturating_duration_since(now) / 2;
            let result = timeout_at(half, Box::pin(self.fetch(wire, realm, token.scope.clone()))).await;
            slot.attempts.fetch_add(1, Ordering::Relaxed);
            *failure = None;
            return Ok(if let Ok(Ok(new)) = result {
                Pass::New(keep(new))
            } else {
                let mut last = Token::clone(&token);
                last.refresh_at = last.expires_at;
                Pass::Kept(keep(last))
            });
        }

        let attempts = slot.attempts.load(Ordering::Relaxed);
        let mut failure = slot.flight.lock().await;
        if let Some(token) = usable() {
            return Ok(Pass::New(token));
        }
        if let Some(failure) = &*failure
            && attempts != slot.attempts.load(Ordering::Relaxed)
        {
            return Err(failure.clone());
        }
        let result = Box::pin(self.fetch(wire, realm, scope)).await;
        slot.attempts.fetch_add(1, Ordering::Relaxed);
        *failure = result.as_ref().err().cloned();
        result.map(|token| Pass::New(keep(token)))
    }

    /// Asks a realm for a token. Fewer rights than asked for are no error: the registry will say so.
    async fn fetch(&self, wire: &Wire, realm: &Arc<Realm>, scope: Option<String>) -> Result<Token, Failure> {
        let mut url = realm.url.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &realm.service {
                query.append_pair("service", service);
            }
            // A challenge may name several scopes; the service wants each in its own parameter.
            for scope in scope.iter().flat_map(|scope| scope.split_ascii_whitespace()) {
                query.append_pair("scope", scope);
            }
        }
        let call = Call {
            method: Method::GET,
            matter: Matter::Token(url.as_str().into()),
            anew: false,
            beginning: None,
            from: 0,
            content: None,
            url,
            accept: HeaderValue::from_static("application/json"),
            redirects: REDIRECTS,
        };
        let asked_at = Instant::now();
        let reply = wire.send(&call, self.basic.as_ref()).await?;
        if reply.status() != StatusCode::OK {
            return Err(reply.failure());
        }
        let (html, particulars) = (reply.is_html(), reply.particulars());
        let body = reply.body(TOKEN_BYTES).await?;
        let (header, life) = read_token(&body).ok_or(Failure::Ambiguous(if html {
            Ambiguity::Html(particulars)
        } else {
            Ambiguity::NoToken(particulars)
        }))?;
        Ok(Token {
            header,
            realm: Arc::clone(realm),
            scope,
            refresh_at: asked_at + life * 4 / 5,
            expires_at: asked_at + life,
        })
    }

    fn slot(&self, scope: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(scope) {
            return Arc::clone(slot);
        }
        if slots.len() >= TOKENS {
            let now = Instant::now();
            slots.retain(|_, slot| {
                let token = slot.token.lock().unwrap_or_else(PoisonError::into_inner);
                token.as_ref().is_some_and(|token| now < token.refresh_at)
            });
        }
        if slots.len() >= TOKENS {
            slots.clear();
        }
        let slot = Arc::<Slot>::default();
        slots.insert(scope.into(), Arc::clone(&slot));
        slot
    }
}

/// Returns the failure of a challenge that cannot be met.
fn unmet(words: &str) -> Failure {
    Failure::Ambiguous(Ambiguity::Challenge(Particulars {
        words: Some(words.into()),
        ..Particulars::default()
    }))
}

/// Whether an answer may mean that other authentication is wanted.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403)
}

fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the value of `Authorization` and the life that a token service's answer gives. Whatever else
/// is wrong with the answer, a token that is there is taken.
fn read_token(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let token = ["token", "access_token"]
        .into_iter()
        .filter_map(|name| answer.get(name)?.as_str())
        .find(|token| !token.is_empty())?;
    Some((
        secret(&format!("Bearer {token}"))?,
        life(answer.get("expires_in")),
    ))
}

/// Returns how long a token lives whose service says this: a number of seconds, which some write as text.
fn life(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = expires_in.and_then(|said| match said {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    });
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|life| *life < ODD_LIFE)
        .map_or(DEFAULT_LIFE, |life| life.clamp(DEFAULT_LIFE, LONGEST_LIFE))
}

/// A challenge that can be met.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Returns the challenge of an answer, Bearer before Basic.
    fn read(headers: &HeaderMap) -> Option<Self> {
        let all = || {
            headers
                .get_all(header::WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(challenges)
        };
        let is = |name: &'static str| move |(scheme, _): &(&str, _)| scheme.eq_ignore_ascii_case(name);
        if let Some((_, parameters)) = all().find(is("Bearer")) {
            let parameter = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found
                    .map(|(_, value)| value.clone())
                    .filter(|value| !value.is_empty())
            };
            return Some(Self::Bearer {
                realm: parameter("realm").unwrap_or_default(),
                service: parameter("service"),
                scope: parameter("scope"),
            });
        }
        all().find(is("Basic")).map(|_| Self::Basic)
    }
}

type Parameters<'a> = Vec<(&'a str, String)>;

/// Splits a `WWW-Authenticate` value into its challenges (RFC 9110, 11.6.1): each a scheme and its
/// parameters, all of them separated by commas. What is malformed ends the list.
fn challenges(value: &str) -> Vec<(&str, Parameters<'_>)> {
    let mut found: Vec<(&str, Parameters<'_>)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((word, Vec::new()));
            rest = after;
            continue;
        };
        let Some((value, after)) = parameter_value(value.trim_start()) else {
            return found;
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word, value));
        }
        rest = after;
    }
}

/// Returns the value, quoted or not, at the beginning of a text, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(values: &[&'static str], expected: Option<&Challenge>) {
        let headers: HeaderMap = values
            .iter()
            .map(|value| (header::WWW_AUTHENTICATE, HeaderValue::from_static(value)))
            .collect();
        assert_eq!(Challenge::read(&headers).as_ref(), expected, "{values:?}");
    }

    /// Who may pull may not push: a token for the one is not kept for the other.
    #[test]
    fn tokens_are_kept_by_repository_and_actions() {
        let base = Url::parse("https://registry.example.com").unwrap();
        let authority = Authority::new(base, None);
        let slot = |repository, actions| {
            let from = None;
            let scope = Right {
                repository,
                actions,
                from,
            }
            .scope();
            authority.login().slot(scope.as_deref().unwrap_or_default())
        };
        let pull = slot("web", "pull");
        assert!(Arc::ptr_eq(&pull, &slot("web", "pull")));
        assert!(!Arc::ptr_eq(&pull, &slot("web", "pull,push")));
        assert!(!Arc::ptr_eq(&pull, &slot("other", "pull")));
        assert!(!Arc::ptr_eq(&pull, &slot("", "")));
        assert_eq!(Right::NONE.scope(), None);
    }

    #[test]
    fn a_token_that_is_there_is_taken_and_odd_lives_are_a_minute() {
        let life_of = |body: &str| {
            let (header, life) = read_token(body.as_bytes())?;
            assert_eq!(header, "Bearer t", "{body}");
            Some(life.as_secs())
        };
        for (expires_in, expected) in [
            ("300", 300),
            ("300.0", 300),
            ("3e2", 300),
            (r#""300""#, 300),
            (r#"" 300.5 ""#, 300),
            ("59", 60),
            ("0", 60),
            (r#""0""#, 60),
            ("-1", 60),
            ("-0.5", 60),
            ("null", 60),
            ("true", 60),
            ("[300]", 60),
            (r#""soon""#, 60),
            (r#""NaN""#, 60),
            (r#""inf""#, 60),
            (r#""""#, 60),
            // A week is meant, and not relied on; nanoseconds are not meant as seconds.
            ("604800", 24 * 3600),
            ("300000000000", 60),
            ("1e12", 60),
            ("1e300", 60),
            ("18446744073709551616", 60),
        ] {
            let body = format!(r#"{{"token":"t","expires_in":{expires_in}}}"#);
            assert_eq!(life_of(&body), Some(expected), "{body}");
        }
        for body in [
            r#"{"token":"t"}"#,
            r#"{"access_token":"t","token":null}"#,
            r#"{"access_token":"t","token":""}"#,
            r#"{"access_token":"t","token":7}"#,
            r#"{"token":"t","access_token":{}}"#,
            r#"{"token":"t","token":"t"}"#,
            r#"{"token":"t","issued_at":"soon","expires_in":null,"scope":7}"#,
            "\u{feff}{\"token\":\"t\"}",
        ] {
            assert_eq!(life_of(body), Some(60), "{body}");
        }
        for body in [
            "",
            "t",
            "[]",
            r#""t""#,
            "{}",
            r#"{"token":7}"#,
            r#"{"token":"a\nb"}"#,
        ] {
            assert_eq!(read_token(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn authorization_is_not_shown_by_debug() {
        let shown = format!("{:?}", secret("Bearer hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn challenges_are_read() {
        let hub = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:library/nginx:pull,push"),
        );
        check(
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#,
            ],
            Some(&hub),
        );
        check(
            &[
                r#"bearer  scope="repository:library/nginx:pull,push" , REALM = "https://auth.docker.io/token" ,service=registry.docker.io"#,
            ],
            Some(&hub),
        );
        check(&[r#"Basic realm="Registry""#], Some(&Challenge::Basic));
        check(&["Basic"], Some(&Challenge::Basic));
        check(
            &[r#"Negotiate, Basic realm="a, b", Bearer realm="https://r""#],
            Some(&bearer("https://r", None, None)),
        );
        check(
            &[r#"Basic realm="x""#, r#"Bearer realm="a\"b""#],
            Some(&bearer("a\"b", None, None)),
        );
        check(&["Negotiate"], None);
        check(&[""], None);
        check(&[], None);
        check(&[r#"Bearer realm="never closed"#], Some(&bearer("", None, None)));
        check(&["Bearer error=\"\",,,"], Some(&bearer("", None, None)));
    }
}
