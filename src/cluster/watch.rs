//! One watch of the API server: list, then follow, for ever.
//!
//! kube's own watcher tells neither bookmarks nor the version of a list, on which the belief in
//! sweeps depends, and a single object that cannot be decoded ends its list; hence this one. Every
//! request has an end: a connection on which nothing arrives any more is noticed without the help of
//! the other side.
//!
//! A list is taken as a stream, one object after the other, where the API server offers that
//! (KEP-3157), and else in pages: neither side then ever holds a whole list. Of small objects one list of all is
//! asked for, and read while it comes in, which costs an API server least: it writes it so, too (KEP-5116).

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{AsyncBufReadExt as _, Stream, TryStreamExt as _};
use kube::{
    Client,
    api::{GetParams, ListParams, WatchEvent, WatchParams},
    core::Request,
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    items::{Items, ListMeta, Outline},
    request::bounded,
};
use crate::{domain::presence::Version, metrics::Metrics};

/// How many objects a page has where a list of all did not come.
const PAGE: u32 = 5000;

/// The longest that a page, the beginning of a watch, or the next object of a list may take.
const ANSWER: Duration = Duration::from_secs(30);

/// The longest that a list taken as a stream may take altogether.
const STREAM: Duration = Duration::from_mins(10);

/// The annotation of the bookmark that ends a list taken as a stream.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// What is granted beyond the time after which the API server ends a watch by itself.
const GRACE: Duration = Duration::from_secs(5);

/// The shortest and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The pause after a refusal where everything works without what is refused: it is refused until people change a Role.
const WITHHELD: Duration = Duration::from_mins(1);

/// After so many refusals in a row a watch begins anew with a list: its version may be one that the
/// API server does not know, as after a restored backup.
const REFUSALS: u32 = 5;

/// What to watch.
#[derive(Clone, Debug)]
pub struct Source {
    /// The resource's name for people and metrics.
    pub name: &'static str,
    pub path: String,
    /// Only objects that this field selector selects.
    pub fields: Option<String>,
    /// Only the objects' metadata.
    pub metadata_only: bool,
    /// How many objects a page of a list has; if absent, one list of all is asked for.
    pub page: Option<u32>,
    /// Everything works without it, and a Role may say nothing of it: who is refused asks seldom.
    pub dispensable: bool,
    /// How long one request follows, and so how long a dead connection goes unnoticed at most.
    pub renew: Duration,
}

/// Returns the field selector of the one object of that name.
pub fn named(name: &str) -> String {
    format!("metadata.name={name}")
}

/// What a watch tells.
#[derive(Debug)]
pub enum Event<K> {
    /// All objects follow, each as `Listed`; then `ListedAll`. What changes meanwhile may be `Listed`
    /// again, and what goes is `Deleted`. After a failure it begins again.
    Listing,
    Listed(K),
    /// That was all. `round` is the number of the last request to list that it answers.
    ListedAll {
        round: u64,
    },
    Changed(K),
    Deleted(K),
    /// Everything up to this version was told.
    Reached(Version),
}

impl<K> Event<K> {
    /// Returns the same event of what is made of its object.
    pub fn map<T>(self, make: impl FnOnce(K) -> T) -> Event<T> {
        match self {
            Self::Listing => Event::Listing,
            Self::Listed(object) => Event::Listed(make(object)),
            Self::ListedAll { round } => Event::ListedAll { round },
            Self::Changed(object) => Event::Changed(make(object)),
            Self::Deleted(object) => Event::Deleted(make(object)),
            Self::Reached(version) => Event::Reached(version),
        }
    }
}

/// An object that carries its version.
pub trait Versioned {
    fn resource_version(&self) -> &str;
}

/// Returns a resource version as a number that can be compared, as API servers promise (KEP-5504), if it is
/// one.
pub fn version(text: &str) -> Option<Version> {
    text.parse().ok().map(Version)
}

/// How a watch fares. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<Beat>>);

#[derive(Clone, Debug, Default)]
pub struct Beat {
    /// When the API server last answered.
    pub contact: Option<Instant>,
    /// Everything was listed at least once.
    pub listed: bool,
    /// The API server said that there is no such thing, or that this process may not read it, and nothing else
    /// was listed since.
    pub withheld: bool,
    pub failures: u64,
    /// Why it does not get on now.
    pub failure: Option<String>,
}

impl Pulse {
    pub fn beat(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows in the metrics how the watch fares.
    pub fn show(&self, name: &'static str, metrics: &Metrics) {
        let beat = self.beat();
        let silence = beat.contact.map(|contact| contact.elapsed());
        metrics.set_watch(name, silence, beat.failures);
    }

    fn contact(&self, name: &str) {
        let mut beat = self.beat();
        beat.contact = Some(Instant::now());
        if beat.failure.take().is_some() {
            tracing::info!(watch = name, "the watch goes on");
        }
    }

    /// Takes in that everything was listed.
    pub(crate) fn listed(&self) {
        let mut beat = self.beat();
        beat.listed = true;
        beat.withheld = false;
    }

    fn failed(&self, name: &str, why: &Failure) {
        let is_withheld = why.is_withheld();
        let why = why.to_string();
        let mut beat = self.beat();
        beat.failures += 1;
        beat.withheld |= is_withheld;
        if beat.failure.is_none() {
            tracing::warn!(watch = name, error = why, "the watch failed and is tried again");
        }
        beat.failure = Some(why);
    }
}

/// The pulses of several watches, by name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Pulses(Arc<Mutex<BTreeMap<&'static str, Pulse>>>);

impl Pulses {
    /// Returns the pulse of a watch; it goes on where another watch of that name ended.
    pub fn of(&self, source: &Source) -> Pulse {
        let mut pulses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.entry(source.name).or_default().clone()
    }

    /// Shows in the metrics how the watches fare.
    pub fn show(&self, metrics: &Metrics) {
        let pulses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, pulse) in &*pulses {
            pulse.show(name, metrics);
        }
    }
}

/// Why a request did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the version to go on from is too old")]
    Gone,
    /// The API server answered with an error.
    #[error("{message} ({code})")]
    Refused { code: u16, message: String },
    #[error("no answer in time")]
    Silent,
    #[error("{0}")]
    Broken(String),
    /// This request cannot be made, or its answer cannot be read: so it will be each time.
    #[error("{0}")]
    Unusable(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(&status),
            kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => {
                Self::Unusable(crate::telemetry::chain(&error))
            }
            error => Self::Broken(crate::telemetry::chain(&error)),
        }
    }
}

impl Failure {
    /// Returns the HTTP status with which the API server refused, if it did.
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Gone | Self::Silent | Self::Broken(_) | Self::Unusable(_) => None,
        }
    }

    /// Whether the API server says that there is no such thing, or that this process may not read it.
    const fn is_withheld(&self) -> bool {
        matches!(self.code(), Some(401 | 403 | 404))
    }

    fn of_status(status: &kube::core::Status) -> Self {
        if status.code == 410 {
            Self::Gone
        } else {
            Self::Refused {
                code: status.code,
                message: status.message.clone(),
            }
        }
    }
}

/// Follows a resource and tells everything to `handle`. When `wanted` changes, everything is listed
/// anew.
pub async fn follow<K>(
    client: Client,
    mut source: Source,
    pulse: Pulse,
    mut wanted: watch::Receiver<u64>,
    mut handle: impl FnMut(Event<K>),
) -> Infallible
where
    K: Clone + DeserializeOwned + Versioned,
{
    let mut pause = Pause(PAUSE.0);
    let mut streams = true;
    loop {
        let round = *wanted.borrow_and_update();
        handle(Event::Listing);
        let listed = if streams && source.page.is_some() {
            stream(&client, &source, &pulse, &mut handle).await
        } else {
            list(&client, &source, &pulse, &mut handle).await
        };
        let mut from = match listed {
            Ok(version) => version,
            Err(Failure::Refused { code: 400 | 422, .. }) if streams => {
                tracing::info!(
                    watch = source.name,
                    "the API server does not stream lists; listing in pages"
                );
                streams = false;
                continue;
            }
            Err(failure) => {
                if matches!(failure, Failure::Silent) {
                    // An API server that does not write it while it goes may need too long for all of it.
                    source.page.get_or_insert(PAGE);
                }
                pulse.failed(source.name, &failure);
                if source.dispensable && failure.is_withheld() {
                    sleep(WITHHELD).await;
                } else {
                    pause.wait().await;
                }
                continue;
            }
        };
        pause = Pause(PAUSE.0);
        handle(Event::ListedAll { round });
        if let Some(version) = version(&from) {
            handle(Event::Reached(version));
        }
        pulse.listed();
        let mut refusals = 0;
        while refusals < REFUSALS {
            let started = Instant::now();
            let ended = tokio::select! {
                Ok(()) = wanted.changed() => break,
                ended = watch_on(&client, &source, &pulse, &mut from, &mut handle) => ended,
            };
            match ended {
                Ok(()) => {
                    refusals = 0;
                    pause = Pause(PAUSE.0);
                    // A connection that never lasts must not become a flood of requests.
                    sleep(Duration::from_secs(1).saturating_sub(started.elapsed())).await;
                }
                Err(Failure::Gone) => {
                    // Usual after the API server was away, or nothing changed for long.
                    tracing::info!(watch = source.name, "listing everything anew");
                    break;
                }
                Err(failure) => {
                    refusals += u32::from(matches!(failure, Failure::Refused { .. }));
                    pulse.failed(source.name, &failure);
                    pause.wait().await;
                }
            }
        }
    }
}

/// The pause after the next failure; each is longer than the one before.
struct Pause(Duration);

impl Pause {
    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE.1);
    }
}

/// Asks for one object; none if there is none of that name.
pub async fn get<K>(client: &Client, source: &Source, name: &str) -> Result<Option<K>, Failure>
where
    K: DeserializeOwned,
{
    let request = Request::new(&source.path);
    let request = if source.metadata_only {
        request.get_metadata(name, &GetParams::default())
    } else {
        request.get(name, &GetParams::default())
    };
    let request = request.map_err(|error| Failure::Unusable(error.to_string()))?;
    let answer = timeout(ANSWER, client.request(request))
        .await
        .map_err(|_| Failure::Silent)?;
    match answer.map_err(Failure::from) {
        Err(Failure::Refused { code: 404, .. }) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Returns the version that was the newest of all objects of a kind after this was called, whatever part of them the path
/// names: what has a higher one was written after that.
pub async fn newest(client: &Client, path: &str) -> Result<Version, Failure> {
    // Without a version it is asked of the store itself, or of what is known to have caught up with it.
    let request = Request::new(path)
        .list_metadata(&ListParams::default().limit(1))
        .map_err(|error| Failure::Unusable(error.to_string()))?;
    let answer = bounded(client.request::<Outline>(request)).await?;
    let text = answer.metadata.resource_version;
    version(&text).ok_or_else(|| Failure::Unusable(format!("the version {text:?} is no number")))
}

/// Lists everything, page by page or at once, and returns the version of the list.
pub async fn list<K>(
    client: &Client,
    source: &Source,
    pulse: &Pulse,
    handle: &mut impl FnMut(Event<K>),
) -> Result<String, Failure>
where
    K: DeserializeOwned,
{
    let mut params = ListParams {
        limit: source.page,
        field_selector: source.fields.clone(),
        ..ListParams::default()
    };
    loop {
        let request = Request::new(&source.path);
        let request = if source.metadata_only {
            request.list_metadata(&params)
        } else {
            request.list(&params)
        };
        let request = request.map_err(|error| Failure::Broken(error.to_string()))?;
        let page = timeout(STREAM, read_list(client, request, source, pulse, handle))
            .await
            .map_err(|_| Failure::Silent)??;
        if page.next.is_empty() {
            return Ok(page.resource_version);
        }
        params = params.continue_token(&page.next);
    }
}

/// Reads a list while it comes in.
async fn read_list<K>(
    client: &Client,
    request: hyper::Request<Vec<u8>>,
    source: &Source,
    pulse: &Pulse,
    handle: &mut impl FnMut(Event<K>),
) -> Result<ListMeta, Failure>
where
    K: DeserializeOwned,
{
    let answer = timeout(ANSWER, client.request_stream(request)).await;
    let mut answer = pin!(answer.map_err(|_| Failure::Silent)??);
    let mut items = Items::default();
    loop {
        let came = timeout(ANSWER, answer.fill_buf())
            .await
            .map_err(|_| Failure::Silent)?;
        let bytes = came.map_err(|error| Failure::Broken(crate::telemetry::chain(&error)))?;
        pulse.contact(source.name);
        if bytes.is_empty() {
            return items.end();
        }
        items.feed(bytes, |item| {
            let object = serde_json::from_slice(item)
                .map_err(|error| Failure::Broken(format!("an object cannot be read: {error}")))?;
            handle(Event::Listed(object));
            Ok(())
        })?;
        let taken = bytes.len();
        answer.consume_unpin(taken);
    }
}

/// Lists everything as a stream and returns the version of the list.
async fn stream<K>(
    client: &Client,
    source: &Source,
    pulse: &Pulse,
    handle: &mut impl FnMut(Event<K>),
) -> Result<String, Failure>
where
    K: Clone + DeserializeOwned,
{
    // Without a version the list is as new as this request.
    let params = WatchParams {
        timeout: u32::try_from(STREAM.as_secs()).ok(),
        send_initial_events: true,
        ..WatchParams::default()
    };
    let mut events = pin!(events(client, source, params, "").await?);
    loop {
        let event = timeout(ANSWER, events.try_next())
            .await
            .map_err(|_| Failure::Silent)??;
        pulse.contact(source.name);
        match event {
            None => return Err(Failure::Broken("the list ended too early".to_owned())),
            Some(WatchEvent::Error(status)) => return Err(Failure::of_status(&status)),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => handle(Event::Listed(object)),
            Some(WatchEvent::Deleted(object)) => handle(Event::Deleted(object)),
            Some(WatchEvent::Bookmark(bookmark)) => {
                if bookmark.metadata.annotations.contains_key(LIST_ENDS) {
                    return Ok(bookmark.metadata.resource_version);
                }
            }
        }
    }
}

/// Follows from a version, which moves on, until the API server ends the request.
async fn watch_on<K>(
    client: &Client,
    source: &Source,
    pulse: &Pulse,
    from: &mut String,
    handle: &mut impl FnMut(Event<K>),
) -> Result<(), Failure>
where
    K: Clone + DeserializeOwned + Versioned,
{
    let params = WatchParams {
        timeout: u32::try_from(source.renew.as_secs()).ok(),
        ..WatchParams::default()
    };
    let mut events = pin!(events::<K>(client, source, params, from).await?);
    pulse.contact(source.name);
    loop {
        let event = timeout(source.renew + GRACE, events.try_next())
            .await
            .map_err(|_| Failure::Silent)??;
        pulse.contact(source.name);
        let reached = match event {
            None => return Ok(()),
            Some(WatchEvent::Error(status)) => return Err(Failure::of_status(&status)),
            Some(WatchEvent::Bookmark(bookmark)) => bookmark.metadata.resource_version,
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let reached = object.resource_version().to_owned();
                handle(Event::Changed(object));
                reached
            }
            Some(WatchEvent::Deleted(object)) => {
                let reached = object.resource_version().to_owned();
                handle(Event::Deleted(object));
                reached
            }
        };
        if let Some(version) = version(&reached) {
            handle(Event::Reached(version));
        }
        *from = reached;
    }
}

/// Begins a watch from a version.
async fn events<K>(
    client: &Client,
    source: &Source,
    mut params: WatchParams,
    from: &str,
) -> Result<impl Stream<Item = kube::Result<WatchEvent<K>>> + use<K>, Failure>
where
    K: Clone + DeserializeOwned,
{
    params.field_selector.clone_from(&source.fields);
    let request = Request::new(&source.path);
    let request = if source.metadata_only {
        request.watch_metadata(&params, from)
    } else {
        request.watch(&params, from)
    };
    let request = request.map_err(|error| Failure::Broken(error.to_string()))?;
    let events = timeout(ANSWER, client.request_events::<K>(request))
        .await
        .map_err(|_| Failure::Silent)??;
    Ok(events)
}
