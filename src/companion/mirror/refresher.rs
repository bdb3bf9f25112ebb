//! Asks upstream what the tags mean that mirrors are filled with: by their headers, each once in `tags.refresh`, once for
//! all mirrors that read it with the same login.
//!
//! What moved is noted in the index, and so reaches the decisions and whoever fills the mirror. Nothing is asked of a
//! mirror, and while upstream does not answer what it said before holds. Registries wait for each other in nothing: each
//! has a queue of its own, and the pace that everybody has who asks it as nobody.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    copier::{client, login_of},
    wants::Means,
};
use crate::{
    clock,
    credentials::Held,
    domain::{
        answer::Answer,
        copying::refresh::{Window, due, is_there},
        digest::Digest,
        health::State,
        image::ImageKey,
        mirror::{Drift, Mirror, Mode, Trust},
        presence::reason_of,
        reason::Reason,
        snapshot::Snapshot,
        time::Timestamp,
    },
    metrics::Metrics,
    registry::{
        Client, Endpoint,
        pool::{Pool, url},
    },
    state::{Store, logins::Login},
    telemetry::Throttle,
};

/// How often it is looked which tags are due.
const ROUND: Duration = Duration::from_secs(15);

/// The same where a mirror wants its tags refreshed more often than that.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);

/// For how long before the start tags are asked for as well: whoever did it before may have been on its way out.
const BEFORE: Duration = Duration::from_mins(1);

/// How many questions one registry has at once.
const AT_ONCE: usize = 4;

/// How many wait for one registry at most. What finds no room has its time again.
const WAITING: usize = 50_000;

/// How often one tag is asked for in its time, where the registry asks to be asked less.
const TRIES: usize = 2;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a registry is left alone at most because it asks to be asked less.
const LONGEST_WAIT: Duration = Duration::from_mins(15);

/// Refreshes tags until it is dropped.
#[derive(Clone, Debug)]
pub(super) struct Refresher {
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) means: Means,
    pub(super) upstreams: Pool,
    clients: Clients,
    faults: Arc<Throttle<Reason>>,
}

/// The images of one registry that wait to be asked for.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<ImageKey>,
    /// The same and those under way, each once.
    all: BTreeSet<ImageKey>,
    under_way: usize,
}

impl Refresher {
    pub(super) fn new(store: &Store, metrics: &Metrics, means: &Means, upstreams: &Pool) -> Self {
        Self {
            store: store.clone(),
            metrics: metrics.clone(),
            means: means.clone(),
            upstreams: upstreams.clone(),
            clients: Clients::default(),
            faults: Arc::new(Throttle::each_minute()),
        }
    }

    pub(super) async fn run(self) {
        let mut lanes: BTreeMap<Box<str>, Lane> = BTreeMap::new();
        let mut questions: JoinSet<ImageKey> = JoinSet::new();
        let mut counted = BTreeSet::new();
        let (mut after, mut next) = (clock::now().before(BEFORE), Instant::now());
        loop {
            tokio::select! {
                Some(ended) = questions.join_next() => {
                    let key = match ended {
                        Ok(key) => key,
                        // The whole task ends, and is started anew by who watches over it.
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    };
                    if let Some(lane) = lanes.get_mut(key.by_ref().host()) {
                        lane.under_way -= 1;
                        lane.all.remove(&key);
                    }
                }
                () = sleep_until(next) => {
                    let snapshot = self.store.snapshot();
                    next = Instant::now() + self.round(&snapshot, &mut after, &mut lanes);
                    self.count(&snapshot, &mut counted);
                }
            }
            lanes.retain(|_, lane| {
                while lane.under_way < AT_ONCE
                    && let Some(key) = lane.waiting.pop_front()
                {
                    lane.under_way += 1;
                    let refresher = self.clone();
                    questions.spawn(async move {
                        refresher.refresh(&key).await;
                        key
                    });
                }
                lane.under_way > 0
            });
        }
    }

    /// Lets those wait in their lanes whose time has come. Returns when to look again.
    fn round(
        &self,
        snapshot: &Snapshot,
        after: &mut Timestamp,
        lanes: &mut BTreeMap<Box<str>, Lane>,
    ) -> Duration {
        let filled = self.filled(snapshot);
        self.clients.keep(filled.iter().map(|mirror| self.logins(mirror)));
        // A clock that was set back is no reason to ask for anything twice.
        let window = Window {
            after: *after,
            until: clock::now(),
        };
        *after = window.until;
        let due = due(&self.store.index(), &filled, window);
        for key in due {
            let lane = lanes.entry(key.by_ref().host().into()).or_default();
            if lane.all.len() < WAITING && lane.all.insert(key.clone()) {
                lane.waiting.push_back(key);
            }
        }
        let shortest = filled.iter().map(|mirror| mirror.tags.refresh / 4).min();
        shortest.map_or(ROUND, |shortest| shortest.clamp(SHORTEST_ROUND, ROUND))
    }

    /// Returns the mirrors that are filled now.
    fn filled<'s>(&self, snapshot: &'s Snapshot) -> Vec<&'s Mirror> {
        if snapshot.paused || !self.means.may_write() {
            return Vec::new();
        }
        let filled = snapshot.routing.mirrors().filter(|(id, mirror)| {
            // While a mirror fails nobody can tell what it has.
            let works = snapshot.health_of(*id).state == State::Healthy;
            works && mirror.copying.is_some() && mirror.mode == Mode::Enforce
        });
        filled.map(|(_, mirror)| mirror).collect()
    }

    /// Returns what the sources of a mirror are read with.
    fn logins(&self, mirror: &Mirror) -> Vec<Held> {
        let logins = self.means.logins.of(&mirror.name);
        let logins = logins.map(|logins| logins.sources).unwrap_or_default();
        logins.into_values().map(|login| login.held).collect()
    }

    /// Tells how many tags of each mirror have moved.
    fn count(&self, snapshot: &Snapshot, counted: &mut BTreeSet<String>) {
        let filled = snapshot.routing.mirrors().map(|(_, mirror)| mirror);
        let filled = filled.filter(|mirror| mirror.copying.is_some());
        let now: BTreeSet<String> = filled.map(|mirror| mirror.name.clone()).collect();
        for gone in counted.difference(&now) {
            self.metrics.set_moved_tags(gone, None);
        }
        let index = self.store.index();
        for mirror in &now {
            self.metrics
                .set_moved_tags(mirror, Some(index.moved_count(mirror)));
        }
        drop(index);
        *counted = now;
    }

    /// Asks upstream what a tag means, once for each login, and notes what came of it for the mirrors that have it.
    async fn refresh(&self, key: &ImageKey) {
        let host = key.by_ref().host().to_owned();
        let Some(pace) = self.upstreams.upstream(&host).map(|upstream| upstream.pace) else {
            return;
        };
        let readers = self.readers(key);
        for (login, mirrors) in readers {
            for _ in 0..TRIES {
                pace.turn().await;
                // There may have been a long wait.
                let is_current = |(now, _): &(Option<Held>, Vec<String>)| *now == login;
                if !self.readers(key).iter().any(is_current) {
                    break;
                }
                let Some(client) = self.client(&host, login.as_ref()) else {
                    break;
                };
                let answer = ask(&client, key).await;
                match &answer {
                    Answer::Exists(manifest) => self.note(key, &mirrors, Some(&manifest.digest)),
                    // What is gone there is no other image.
                    Answer::Missing => self.note(key, &mirrors, None),
                    _ => {}
                }
                self.tell(key, &answer);
                let Answer::RateLimited { retry_after, .. } = answer else {
                    break;
                };
                // What waits behind it waits as well: soon nothing of that registry is asked.
                let wait = retry_after.unwrap_or(Duration::from_mins(1));
                sleep(wait.min(LONGEST_WAIT)).await;
            }
        }
    }

    /// Returns the mirrors that are filled and have an image, by what they read it with; nobody stands for those whose
    /// login gives nothing.
    fn readers(&self, key: &ImageKey) -> Vec<(Option<Held>, Vec<String>)> {
        let snapshot = self.store.snapshot();
        let mut readers: Vec<(Option<Held>, Vec<String>)> = Vec::new();
        let candidates = snapshot.routing.candidates(key.by_ref().name());
        let filled = self.filled(&snapshot);
        for candidate in &candidates.ordered {
            let mirror = snapshot.routing.mirror(candidate.mirror);
            let is_filled = filled.iter().any(|filled| filled.name == mirror.name);
            if !is_filled || !is_there(&self.store.index(), mirror, key.by_ref()) {
                continue;
            }
            let Some(source) = mirror.sources.get(candidate.source) else {
                continue;
            };
            let Some(logins) = self.means.logins.of(&mirror.name) else {
                continue;
            };
            let login = login_of(source, &logins);
            if source.with_credentials && !login.is_some_and(Login::gives_something) {
                continue;
            }
            let held = login.map(|login| login.held.clone());
            match readers.iter_mut().find(|(other, _)| *other == held) {
                Some((_, mirrors)) => mirrors.push(mirror.name.clone()),
                None => readers.push((held, vec![mirror.name.clone()])),
            }
        }
        readers
    }

    fn client(&self, host: &str, login: Option<&Held>) -> Option<Client> {
        match login {
            None => Some(self.upstreams.upstream(host)?.client),
            Some(held) => self.clients.of(host, held),
        }
    }

    /// Notes what a tag means upstream.
    fn note(&self, key: &ImageKey, mirrors: &[String], upstream: Option<&Digest>) {
        let snapshot = self.store.snapshot();
        for name in mirrors {
            let Some(id) = snapshot.routing.find(name) else {
                continue;
            };
            let is_news = self.store.index_mut().set_upstream(name, key.by_ref(), upstream);
            let drift = snapshot.routing.mirror(id).tags.drift;
            let (mirror, digest) = (name.as_str(), upstream.map(ToString::to_string));
            match (is_news, self.store.index().moved(name, key.by_ref()).is_some()) {
                (false, _) => {}
                (true, true) if drift == Drift::Warn => {
                    tracing::warn!(mirror, image = %key, digest, drift = drift.as_str(), "a tag means another image upstream");
                }
                (true, true) => {
                    tracing::info!(mirror, image = %key, digest, drift = drift.as_str(), "a tag means another image upstream");
                }
                (true, false) => {
                    tracing::info!(mirror, image = %key, "a tag means no other image upstream any more");
                }
            }
        }
    }

    fn tell(&self, key: &ImageKey, answer: &Answer) {
        let result = match answer {
            Answer::Exists(_) => "Found",
            Answer::Missing => "Missing",
            Answer::Unauthorized => "Unauthorized",
            Answer::RateLimited { .. } => "RateLimited",
            Answer::ServerError(..) | Answer::Ambiguous(_) => "RegistryError",
            Answer::Unreachable(..) => "Unreachable",
        };
        self.metrics.tag_was_refreshed(result);
        if let Some(reason) = reason_of(answer).filter(|_| *answer != Answer::Missing)
            && let Some(suppressed) = self.faults.admit(reason, Instant::now().into_std())
        {
            tracing::warn!(image = %key, %answer, suppressed, "upstream does not tell what a tag means");
        }
    }
}

async fn ask(client: &Client, key: &ImageKey) -> Answer {
    let (reference, name) = (key.by_ref().reference(), key.by_ref().name());
    let (_, repository) = name.split_once('/').unwrap_or(("", name));
    let deadline = Instant::now() + PATIENCE;
    client
        .head(repository, reference.manifest_reference(), deadline)
        .await
}

/// Clients of registries that are asked with a login. Clones share them.
#[derive(Clone, Debug, Default)]
struct Clients(Arc<Mutex<Vec<(String, Held, Client)>>>);

impl Clients {
    /// Forgets those whose login is none of these.
    fn keep(&self, logins: impl Iterator<Item = Vec<Held>>) {
        let logins: Vec<Held> = logins.flatten().collect();
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|(_, held, _)| logins.contains(held));
    }

    fn of(&self, host: &str, held: &Held) -> Option<Client> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clients.iter().find(|(at, by, _)| at == host && by == held);
        if let Some((_, _, client)) = known {
            return Some(client.clone());
        }
        let endpoint = Endpoint {
            url: url(host),
            ca_bundle: None,
            trust: Trust::default(),
            credentials: None,
        };
        let login = Login {
            held: held.clone(),
            ..Login::default()
        };
        let client = client(&endpoint, Some(&login)).ok()?;
        clients.push((host.to_owned(), held.clone(), client.clone()));
        Some(client)
    }
}
