//! Fills a mirror with the images that Pods use and that it lacks.
//!
//! Some copies are under way at once, each with connections of its own: what decides about serving is asked over
//! others. What comes next, and what waits for how long, is planned by
//! [`Queue`](crate::domain::copying::queue::Queue);
//! whether the mirror takes anything is a health of its own ([`Writing`]) and says nothing about serving. After a copy
//! the image is looked at like any other: that alone is proof.
//!
//! A copy goes on only while this process may write, which is looked at whenever there is something to do for it.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::OwnedSemaphorePermit,
    task::{self, JoinError, JoinSet},
    time::{Instant, interval, sleep_until},
};

use super::{
    context::{Context, CurrentMirror},
    look::locate,
    reports::Copies,
    upstream,
    wants::Means,
};
use crate::{
    credentials::Held,
    domain::{
        answer::Answer,
        copying::{Place, Reason, Writing, place, queue::Share},
        health::State,
        image::{Class, ImageKey},
        mirror::{self, Mode, Source},
    },
    registry::{
        Client, Endpoint,
        copy::{self, Copied, Job, Meter, Settings, Trouble, Upstream},
        pool,
    },
    state::logins::{Login, OfMirror},
    tasks::panic_message,
    telemetry::{Throttle, chain},
};

/// How many images are copied into a mirror at once, where [`Slots`](super::wants::Slots) are left.
const AT_ONCE: usize = 4;

/// How many are where the further ones are each of a namespace that has nothing else under way: it is to wait for no other
/// ones, however large their images are.
const WITH_NEWCOMERS: usize = 2 * AT_ONCE;

/// How many of them one namespace may have, so that others never wait for all that one of them wants.
const OF_NAMESPACE: usize = AT_ONCE - 1;

/// The most bytes of what refers to an image, all together, where the settings bound nothing.
const REFERRERS: u64 = 1 << 30;

/// For how long nothing is wanted before nothing is known any more of whether the mirror takes copies.
const IDLE: Duration = Duration::from_mins(15);

/// How many images are taken out of the queue at a time: some need no copy, and others cannot have one.
const AT_A_TIME: usize = 64;

/// How long one copy waits for a registry that asks to be asked less; for longer it makes room for others.
const LIMITED: Duration = Duration::from_secs(30);

/// How often it is looked at least whether copies may go on, and how far they are.
const LOOK_AT_LEASE: Duration = Duration::from_millis(250);
const SHOW: Duration = Duration::from_secs(5);

/// How often at most all that waits is counted, for people.
const COUNT: Duration = Duration::from_secs(1);

/// How long upstream may take to say whether everybody gets an image.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a copy.
#[derive(Debug)]
enum Ended {
    Copied(Copied),
    Failed(Trouble),
    /// This process may not write any more.
    Stopped,
}

/// How the mirror is filled, from which sources and with which logins.
struct Filling {
    copying: mirror::Copying,
    sources: Vec<Source>,
    logins: OfMirror,
}

struct Copier {
    context: Context,
    settings: Settings,
    /// None while the mirror is not filled.
    filling: Option<Filling>,
    mirror: Option<Arc<copy::Mirror>>,
    /// By the prefix of the source.
    upstreams: BTreeMap<String, Arc<Upstream>>,
    writing: Writing,
    copies: JoinSet<Ended>,
    under_way: HashMap<task::Id, (ImageKey, Arc<Meter>)>,
    /// How many bytes were sent by copies that have ended, and how many of all that were sent the metrics have.
    sent: u64,
    counted: u64,
    faults: Throttle<Reason>,
    /// How many images waited when they were counted last, and when that was.
    waiting: Option<(usize, Instant)>,
    /// Whether something happened since.
    is_outdated: bool,
    /// Since when nothing is wanted.
    idle_since: Option<Instant>,
}

/// Fills the mirror until the task is dropped, where its settings say so.
pub(super) async fn run(context: Context) {
    let mut snapshots = context.store.subscribe();
    let mut logins = context.means.logins.subscribe();
    let mut wants = context.means.wants.subscribe(&context.mirror);
    let mut copier = Copier::new(context);
    loop {
        snapshots.mark_unchanged();
        logins.mark_unchanged();
        wants.mark_unchanged();
        let Some(present) = copier.context.present() else {
            return;
        };
        copier.follow(&present);
        let due = copier.begin(&present);
        copier.show();
        let soon = (!copier.copies.is_empty()).then(|| Instant::now() + SHOW);
        let wake = due.into_iter().chain(soon).chain(copier.tells_more_at()).min();
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            // All senders are in the context.
            Ok(()) = logins.changed() => {}
            Ok(()) = wants.changed() => {}
            Some(ended) = copier.copies.join_next_with_id() => copier.take(ended),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

impl Copier {
    fn new(context: Context) -> Self {
        // Whoever was at work before has gone.
        context.means.wants.begin_anew(&context.mirror);
        Self {
            context,
            settings: Settings {
                limited: LIMITED,
                images: WITH_NEWCOMERS,
                ..Settings::default()
            },
            filling: None,
            mirror: None,
            upstreams: BTreeMap::new(),
            writing: Writing::default(),
            copies: JoinSet::new(),
            under_way: HashMap::new(),
            sent: 0,
            counted: 0,
            faults: Throttle::each_minute(),
            waiting: None,
            is_outdated: false,
            idle_since: None,
        }
    }

    /// Takes in the settings and logins of now.
    fn follow(&mut self, present: &CurrentMirror) {
        let settings = present.settings();
        let may = settings.mode == Mode::Enforce && !present.snapshot.paused;
        let copying = settings.copying.as_ref().filter(|_| may);
        let logins = self.context.means.logins.of(&self.context.mirror);
        let Some((copying, logins)) = copying.cloned().zip(logins) else {
            self.stop(settings.copying.is_none());
            return;
        };
        let sources = settings.sources.clone();
        let (other_settings, other_push, other_sources, is_narrower) = match &self.filling {
            Some(had) => (
                had.copying != copying,
                !had.logins.push.is_same(&logins.push),
                !are_same(&had.logins.sources, &logins.sources),
                // Whatever a source became, what is under way may have begun with rights that it has no more. Another
                // login for the same source is taken in as it goes.
                had.sources != sources || loses_login(&had.logins.sources, &logins.sources),
            ),
            None => (true, true, true, false),
        };
        if let Some(mirror) = &self.mirror {
            renew(mirror.client(), Some(&logins.push));
        }
        // Each time, whatever seems to have changed: what is taken away is out of use at once.
        self.upstreams.retain(|prefix, upstream| {
            let source = sources.iter().find(|source| source.prefix == *prefix);
            renew(
                upstream.client(),
                source.and_then(|source| login_of(source, &logins)),
            );
            source.is_some()
        });
        self.filling = Some(Filling {
            copying,
            sources,
            logins,
        });
        if is_narrower {
            // What they were for is begun anew, as it is allowed now.
            self.copies.abort_all();
        }
        if other_settings || other_push {
            // What the mirror asked for or lacks is no matter of sources, whose tokens are renewed all the time.
            self.writing.forgive();
        } else if !other_sources && !is_narrower {
            return;
        }
        // What failed may go well now.
        self.context.means.wants.with(&self.context.mirror, |queue, _| {
            if other_settings {
                queue.forgive();
            } else {
                queue.forgive_logins();
            }
        });
    }

    /// Breaks off what is under way: the brake is on, the mirror is weakened, or filled no more.
    fn stop(&mut self, for_good: bool) {
        if self.filling.take().is_none() {
            return;
        }
        self.copies.abort_all();
        self.writing = Writing::default();
        if for_good {
            self.context.means.wants.forget(&self.context.mirror);
            self.mirror = None;
            self.upstreams.clear();
        }
    }

    /// Begins what may be begun. Returns when to look again, if that is known.
    fn begin(&mut self, present: &CurrentMirror) -> Option<Instant> {
        self.filling.as_ref()?;
        // While the mirror fails nothing is known to be missing.
        if present.health().state != State::Healthy || !self.context.means.may_write() {
            return None;
        }
        let wants = self.context.means.wants.clone();
        for _ in 0..AT_A_TIME {
            let now = wants.now();
            let under_way = self.copies.len();
            if under_way >= self.writing.at_once(WITH_NEWCOMERS, now) {
                return self.writing.paused_until(now).map(|until| wants.at(until));
            }
            let is_first = under_way == 0;
            let slots = &self.context.means.slots;
            let of_others = (under_way < AT_ONCE).then(|| slots.take()).flatten();
            let of_newcomer = slots.take_for_newcomer();
            let mirror = self.context.mirror.clone();
            let mut share = self.share();
            if !is_first && of_others.is_none() {
                // Without either, it is looked again after the next copy of this mirror, and now and then.
                of_newcomer.as_ref()?;
                share.at_once = 1;
            }
            let next = wants.with(&mirror, |queue, now| {
                let next = queue.next(share, now).map(|key| {
                    let namespace: Box<str> = queue.turn_of(&key).unwrap_or_default().into();
                    let slot = if is_first {
                        None
                    } else if queue.is_only_one(&key) {
                        of_newcomer.or(of_others)
                    } else {
                        of_others
                    };
                    (key, namespace, slot)
                });
                next.ok_or_else(|| queue.next_due(share, now))
            });
            let (key, namespace, slot) = match next {
                Ok(next) => next,
                Err(due) => return due.map(|due| wants.at(due)),
            };
            if !may_fill(present, &key, &namespace) {
                // What is served has changed since it was wanted.
                wants.with(&mirror, |queue, _| queue.declined(&key));
                continue;
            }
            match self.job(present, &key) {
                Ok(Some((job, asks_upstream))) => self.start(key, job, asks_upstream, slot),
                // It came by itself, or nobody is to have it.
                Ok(None) => wants.with(&mirror, |queue, _| queue.settled(&key)),
                Err(trouble) => self.failed(&key, &trouble),
            }
        }
        // Others go on in between.
        Some(Instant::now())
    }

    /// Returns what one namespace may have.
    fn share(&self) -> Share {
        let filling = self.filling.as_ref();
        Share {
            at_once: OF_NAMESPACE,
            per_day: filling.and_then(|filling| filling.copying.max_per_day),
        }
    }

    /// Tells of the images that wait since their namespaces had their share of a day.
    fn tell_exhausted(&self) {
        let Context {
            mirror,
            metrics,
            means,
            store,
            ..
        } = &self.context;
        let reason = Reason::NamespaceLimitReached;
        let share = self.share();
        let exhausted = means.wants.with(mirror, |queue, now| queue.exhausted(share, now));
        for key in exhausted {
            if store.index().not_copied(mirror, key.by_ref()) != Some(reason) {
                store
                    .index_mut()
                    .set_not_copied(mirror, key.by_ref(), Some(reason));
                metrics.copied(mirror, reason.as_str());
                if let Some(suppressed) = self.faults.admit(reason, Instant::now().into_std()) {
                    tracing::warn!(mirror, image = %key, %reason, suppressed, "an image was not copied");
                }
            }
        }
    }

    /// Returns how an image is copied, and whether upstream must give it to everybody for that; none if it needs no copy.
    fn job(&mut self, present: &CurrentMirror, key: &ImageKey) -> Result<Option<(Job, bool)>, Trouble> {
        let Some(Filling { copying, logins, .. }) = &self.filling else {
            return Ok(None);
        };
        let name = key.by_ref().name();
        let settings = present.settings();
        let candidates = present.snapshot.routing.candidates(name);
        let candidate = candidates
            .ordered
            .iter()
            .find(|candidate| candidate.mirror == present.id);
        let source = candidate.and_then(|candidate| settings.sources.get(candidate.source));
        let is_needed = self.context.needs_copy(key.by_ref());
        let Some(source) = source.filter(|_| is_needed) else {
            return Ok(None);
        };
        // Nothing is copied as somebody else than who is named for it.
        let login = login_of(source, logins);
        if source.with_credentials && !login.is_some_and(Login::gives_something) {
            let words = login.and_then(Login::trouble);
            let words = words.unwrap_or_else(|| format!("there is no login for {}", source.prefix));
            return Err(Trouble::new(Reason::SourceUnauthorized, words));
        }
        if let Some(words) = logins.push.trouble().filter(|_| !logins.push.gives_something()) {
            return Err(Trouble::new(Reason::Unauthorized, words));
        }
        let own = self.context.means.cluster.own();
        let Place {
            repository,
            reference,
            into,
            tag,
        } = place(&settings.mapping, key.by_ref(), &own)
            .map_err(|error| Trouble::new(Reason::NameTooLong, chain(&error)))?;
        let asks_upstream =
            locate(settings, key.by_ref()).is_some_and(|located| present.asks_upstream(&located));
        let mirror = if let Some(mirror) = &self.mirror {
            Arc::clone(mirror)
        } else {
            let client = client(&logins.endpoint, Some(&logins.push))?;
            Arc::clone(
                self.mirror
                    .insert(Arc::new(copy::Mirror::new(client, &self.settings))),
            )
        };
        let upstream = if let Some(upstream) = self.upstreams.get(&source.prefix) {
            Arc::clone(upstream)
        } else {
            let endpoint = Endpoint {
                url: pool::url(key.by_ref().host()),
                ca_bundle: None,
                trust: mirror::Trust::default(),
                credentials: None,
            };
            let client = client(&endpoint, login)?;
            let upstream = Arc::new(Upstream::new(client, &self.settings));
            let prefix = source.prefix.clone();
            self.upstreams.insert(prefix, Arc::clone(&upstream));
            upstream
        };
        let job = Job {
            upstream,
            repository,
            reference,
            mirror,
            into,
            tag,
            platforms: copying.platforms,
            referrers: copying.referrers,
            verify: false,
            max_size: copying.max_size,
            max_referrers: Some(copying.max_size.unwrap_or(REFERRERS)),
            // What somebody brought meanwhile is left as it is, but not what is known to be older than upstream's.
            keeps_tag: !self.has_moved(key),
            // One by its digest alone goes to that tag anyhow.
            own: Some(own).filter(|_| key.by_ref().class() == Class::Tag),
        };
        Ok(Some((job, asks_upstream)))
    }

    fn has_moved(&self, key: &ImageKey) -> bool {
        let index = self.context.store.index();
        index.moved(&self.context.mirror, key.by_ref()).is_some()
    }

    fn start(&mut self, key: ImageKey, job: Job, asks_upstream: bool, slot: Option<OwnedSemaphorePermit>) {
        let (context, settings) = (self.context.clone(), self.settings.clone());
        let meter = Arc::<Meter>::default();
        let (metered, image) = (Arc::clone(&meter), key.clone());
        let copy = async move {
            let _slot = slot;
            // A large future.
            let bring = Box::pin(bring(&context, &image, &job, &settings, &metered, asks_upstream));
            match while_allowed(&context.means, bring).await {
                Some(Ok(copied)) => {
                    if !job.keeps_tag {
                        // It is what upstream has, which may be newer than what it had when it was asked.
                        let mut index = context.store.index_mut();
                        index.set_upstream(&context.mirror, image.by_ref(), Some(&copied.digest));
                    }
                    context.first_look(image.by_ref()).await;
                    let was_looked_at = || {
                        context
                            .present()
                            .is_some_and(|now| now.health().state == State::Healthy)
                    };
                    if context.needs_copy(image.by_ref()) && was_looked_at() {
                        Ended::Failed(not_shown(&copied))
                    } else {
                        Ended::Copied(copied)
                    }
                }
                Some(Err(trouble)) => Ended::Failed(trouble),
                None => Ended::Stopped,
            }
        };
        let task = self.copies.spawn(copy).id();
        self.under_way.insert(task, (key, meter));
    }

    /// Takes in the end of a copy.
    fn take(&mut self, ended: Result<(task::Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Ok(ended)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some((key, meter)) = self.under_way.remove(&id) else {
            return;
        };
        let sent = meter.bytes_sent.load(Ordering::Relaxed);
        self.sent += sent;
        // Whatever came of it.
        let (wants, mirror) = (&self.context.means.wants, &self.context.mirror);
        wants.with(mirror, |queue, now| queue.spend(&key, sent, now));
        match ended {
            Ok(Ended::Copied(copied)) => self.copied(&key, &copied),
            Ok(Ended::Failed(trouble)) => self.failed(&key, &trouble),
            Err(error) if error.is_panic() => {
                let trouble = Trouble::new(Reason::Internal, panic_message(error));
                self.failed(&key, &trouble);
            }
            Ok(Ended::Stopped) | Err(_) => {
                let (wants, mirror) = (&self.context.means.wants, &self.context.mirror);
                wants.with(mirror, |queue, _| queue.broken_off(&key));
            }
        }
    }

    fn copied(&mut self, key: &ImageKey, copied: &Copied) {
        let Context {
            mirror,
            metrics,
            means,
            store,
            ..
        } = &self.context;
        means.wants.with(mirror, |queue, _| queue.settled(key));
        // One that was there already tells nothing of writing.
        if copied.manifests > 0 && self.writing.took() {
            means.wants.with(mirror, |queue, _| queue.forgive_mirror());
        }
        store.index_mut().set_not_copied(mirror, key.by_ref(), None);
        metrics.copied(mirror, "Copied");
        tracing::info!(
            mirror,
            image = %key,
            digest = %copied.digest,
            manifests = copied.manifests,
            blobs = copied.uploaded,
            bytes = copied.bytes,
            referrers = copied.referrers,
            "copied an image"
        );
        if let Some(trouble) = copied.incomplete.first() {
            let more = copied.incomplete.len() - 1;
            tracing::warn!(mirror, image = %key, %trouble, more, "SignaturesIncomplete: the image is there without them");
        }
    }

    fn failed(&mut self, key: &ImageKey, trouble: &Trouble) {
        let Context {
            mirror,
            metrics,
            means,
            store,
            ..
        } = &self.context;
        let words = match (&self.filling, trouble.reason) {
            (Some(Filling { logins, .. }), Reason::Unauthorized) => {
                because_of(trouble, logins.push.trouble())
            }
            (Some(Filling { logins, .. }), Reason::SourceUnauthorized) => {
                let login = login_for(&logins.sources, key.by_ref().name());
                because_of(trouble, login.and_then(Login::trouble))
            }
            _ => trouble.words.clone(),
        };
        let Trouble {
            reason,
            is_passing,
            wait,
            ..
        } = *trouble;
        let now = means.wants.now();
        let is_left_alone = self.writing.failed(key, reason, &words, wait, now);
        means.wants.with(mirror, |queue, now| {
            if is_left_alone {
                queue.broken_off(key);
            } else {
                queue.failed(key, reason, is_passing, wait, now);
            }
        });
        store
            .index_mut()
            .set_not_copied(mirror, key.by_ref(), Some(reason));
        metrics.copied(mirror, reason.as_str());
        if let Some(suppressed) = self.faults.admit(reason, Instant::now().into_std()) {
            tracing::warn!(mirror, image = %key, %reason, words, suppressed, "an image was not copied");
        }
    }

    /// Returns when there is more to tell although nothing happens.
    fn tells_more_at(&self) -> Option<Instant> {
        let again = self
            .waiting
            .filter(|_| self.is_outdated)
            .map(|(_, at)| at + COUNT);
        let idle = self.idle_since.map(|since| since + IDLE);
        let idle = idle.filter(|at| *at > Instant::now());
        again.into_iter().chain(idle).min()
    }

    /// Shows how it goes.
    fn show(&mut self) {
        let Context {
            mirror,
            metrics,
            means,
            reports,
            ..
        } = &self.context;
        let under_way = self.under_way.values();
        let under_way = under_way.map(|(_, meter)| meter.bytes_sent.load(Ordering::Relaxed));
        let sent = self.sent + under_way.sum::<u64>();
        metrics.copied_bytes(mirror, sent.saturating_sub(self.counted));
        self.counted = sent;
        let now = Instant::now();
        let is_filled = self.filling.is_some();
        let counted = self.waiting.filter(|(_, at)| is_filled && *at + COUNT > now);
        self.is_outdated = counted.is_some();
        if is_filled && counted.is_none() {
            self.tell_exhausted();
        }
        let waiting = if let Some((waiting, _)) = counted {
            waiting
        } else {
            let (waiting, is_empty) = means
                .wants
                .with(mirror, |queue, now| (queue.waiting(now), queue.is_empty()));
            self.waiting = Some((waiting, now));
            let idle_since = self.idle_since.unwrap_or(now);
            self.idle_since = (is_filled && is_empty && self.copies.is_empty()).then_some(idle_since);
            waiting
        };
        let is_idle = self.idle_since.is_some_and(|since| now >= since + IDLE);
        if is_idle && matches!(self.writing.state(), Some(Err(_))) {
            // Nobody tries whether it takes any by now.
            self.writing.forgive();
        }
        let copies = is_filled.then(|| Copies {
            under_way: self.copies.len(),
            waiting,
            writing: self.writing.state(),
            is_idle,
        });
        metrics.set_copies(
            mirror,
            copies.as_ref().map(|copies| (copies.under_way, copies.waiting)),
        );
        if let Some(news) = reports.copies(mirror, copies) {
            match news {
                Ok(()) => tracing::info!(mirror, "the mirror takes copies"),
                Err((reason, words)) => {
                    tracing::warn!(mirror, %reason, %words, "the mirror takes no copies; it serves what it has");
                }
            }
        }
    }
}

/// Whether the mirror may be filled with an image for a namespace; also where it has no source for it any more, which
/// is found out later.
fn may_fill(present: &CurrentMirror, key: &ImageKey, namespace: &str) -> bool {
    let snapshot = &present.snapshot;
    let candidates = snapshot.routing.candidates(key.by_ref().name());
    let mut candidates = candidates.ordered.iter();
    candidates
        .find(|candidate| candidate.mirror == present.id)
        .is_none_or(|candidate| snapshot.may_fill(candidate, &key.by_ref().reference(), namespace))
}

/// Copies an image, if everybody may have it.
async fn bring(
    context: &Context,
    key: &ImageKey,
    job: &Job,
    settings: &Settings,
    meter: &Meter,
    asks_upstream: bool,
) -> Result<Copied, Trouble> {
    if asks_upstream {
        let (reference, name) = (key.by_ref().reference(), key.by_ref().name());
        let told = upstream::gives_to_everybody(&context.upstreams, &reference, name, PATIENCE).await;
        let host = key.by_ref().host();
        match told {
            Some(true) => {}
            Some(false) => {
                // With its login it may say that there is no such image at all.
                let client = job.upstream.client();
                let deadline = Instant::now() + PATIENCE;
                if client.head(&job.repository, &job.reference, deadline).await == Answer::Missing {
                    let words = format!("{host} has no {}:{}", job.repository, job.reference);
                    return Err(Trouble::new(Reason::ImageMissing, words));
                }
                let words = format!("{host} does not give it to everybody, and its source is Public");
                return Err(Trouble::new(Reason::Private, words));
            }
            None => {
                let words = format!("{host} does not tell whether everybody gets it");
                return Err(Trouble {
                    is_passing: true,
                    ..Trouble::new(Reason::Unreachable, words)
                });
            }
        }
    }
    copy::copy(job, settings, meter).await
}

/// Returns what there is to say where the mirror does not show an image that was just brought there.
fn not_shown(copied: &Copied) -> Trouble {
    let words = format!(
        "the mirror took {} and says that it is not there: may the login of spec.endpoint.credentials read what that of \
         spec.copy.credentials writes?",
        copied.digest
    );
    Trouble {
        is_passing: true,
        ..Trouble::new(Reason::NotReadBack, words)
    }
}

/// Goes on with something only while this process may write: looked at before each step of it, so that one that was
/// paused, as a whole or by the loss of its lease, takes none any more.
async fn while_allowed<T>(means: &Means, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut ticks = interval(LOOK_AT_LEASE);
    poll_fn(|context| {
        while ticks.poll_tick(context).is_ready() {}
        if means.may_write() {
            work.as_mut().poll(context).map(Some)
        } else {
            Poll::Ready(None)
        }
    })
    .await
}

/// Returns a client of its own for copies.
pub(super) fn client(endpoint: &Endpoint, login: Option<&Login>) -> Result<Client, Trouble> {
    let client = Client::new(endpoint).map_err(|error| {
        Trouble::new(
            Reason::Unreachable,
            format!("{}: {}", endpoint.url, chain(&error)),
        )
    })?;
    renew(&client, login);
    Ok(client)
}

/// Returns the login with which a source is read: that of its Secret, if its settings name one now. They decide too
/// whether upstream is asked first if everybody gets an image, and the logins may come sooner or later than they do.
pub(super) fn login_of<'l>(source: &Source, logins: &'l OfMirror) -> Option<&'l Login> {
    logins
        .sources
        .get(&source.prefix)
        .filter(|_| source.with_credentials)
}

/// Returns the login of the source that an image is from, by its longest prefix.
fn login_for<'l>(sources: &'l BTreeMap<String, Login>, name: &str) -> Option<&'l Login> {
    let of_image = |(prefix, _): &(&String, &Login)| {
        let rest = name.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let fitting = sources.iter().filter(of_image);
    fitting
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|(_, login)| login)
}

/// Whether the same sources have logins that ask in the same way.
fn are_same(before: &BTreeMap<String, Login>, now: &BTreeMap<String, Login>) -> bool {
    before.len() == now.len()
        && before
            .iter()
            .all(|(prefix, login)| now.get(prefix).is_some_and(|now| now.is_same(login)))
}

/// Whether a source that had credentials has none any more.
fn loses_login(before: &BTreeMap<String, Login>, now: &BTreeMap<String, Login>) -> bool {
    let has = |login: &Login| login.held.credentials().is_some();
    before
        .iter()
        .any(|(prefix, login)| has(login) && !now.get(prefix).is_some_and(has))
}

fn renew(client: &Client, login: Option<&Login>) {
    let held = login.map(|login| &login.held);
    client.set_credentials(held.and_then(Held::credentials), held.and_then(Held::until));
}

/// Returns what to say of a refused login: what is wrong with its Secret, where that is known.
fn because_of(trouble: &Trouble, fault: Option<String>) -> String {
    match fault {
        Some(fault) if trouble.words != fault => format!("{} ({fault})", trouble.words),
        _ => trouble.words.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::{sync::watch, time::sleep};

    use super::*;
    use crate::cluster::elector;

    fn means(lease: Option<elector::Held>) -> Means {
        Means {
            wants: crate::companion::mirror::wants::Wants::default(),
            logins: crate::state::logins::Logins::default(),
            lease,
            ..Means::default()
        }
    }

    #[test]
    fn an_image_has_the_login_of_its_longest_prefix() {
        let login = |secret: &str| Login {
            missing: Some(secret.into()),
            ..Login::default()
        };
        let sources = ["ghcr.io", "ghcr.io/acme", "ghcr.io/acme/a"];
        let sources = sources.map(|prefix| (prefix.to_owned(), login(prefix))).into();
        for (name, expected) in [
            ("ghcr.io/acme/secret", Some("ghcr.io/acme")),
            ("ghcr.io/acme/a", Some("ghcr.io/acme/a")),
            ("ghcr.io/acmes/a", Some("ghcr.io")),
            ("quay.io/acme/a", None),
        ] {
            let found = login_for(&sources, name).and_then(|login| login.missing.as_deref());
            assert_eq!(found, expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_takes_no_further_step_once_the_lease_was_not_renewed_for_10_s() {
        let steps = AtomicUsize::new(0);
        let work = async {
            for _ in 0..60 {
                sleep(Duration::from_millis(500)).await;
                steps.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (renewed, lease) = watch::channel(Some(Instant::now()));
        let began = Instant::now();
        let means_of_leader = means(Some(elector::Held::of(lease)));
        let (ended, ()) = tokio::join!(while_allowed(&means_of_leader, work), async {
            sleep(Duration::from_secs(4)).await;
            renewed.send_replace(Some(Instant::now()));
        });
        assert_eq!(ended, None);
        let took = began.elapsed();
        assert!(
            took >= Duration::from_secs(14) && took <= Duration::from_secs(14) + LOOK_AT_LEASE,
            "{took:?}"
        );
        assert!(steps.load(Ordering::Relaxed) <= 28, "{steps:?}");

        let (_renewed, lease) = watch::channel(None);
        let never = async { panic!("who does not lead takes no step") };
        assert_eq!(
            while_allowed(&means(Some(elector::Held::of(lease))), never).await,
            None::<()>
        );
        // Where there is but one process, nobody else could write.
        assert_eq!(while_allowed(&means(None), async { 1 }).await, Some(1));
    }
}
