//! Copying images from one registry to another.
//!
//! One [`copy`] brings one image: it resolves the tag once and reads everything by digest from then on, plans by
//! [`domain::copying`](crate::domain::copying), pushes blobs, children, index and at last the tag, and reads back
//! what it wrote. A copy that breaks leaves nothing that anybody can see but whole parts; the next one finds them and
//! goes on. What the registries have shown of themselves stays with [`Upstream`] and [`Mirror`], which many copies
//! share: how much at once, whether blobs can be taken over from other repositories, whether bodies must come in
//! pieces.

pub mod blobs;
pub mod gate;
pub mod referrers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use self::gate::Gate;
use super::{
    Client,
    exchange::{Fault, Raw, Wish},
    push::{Patience, Target},
    source::{Source, verdict},
};
use crate::domain::{
    copying::{
        Own, Part, Plan, Reason, Step, Verdict, Wait, Wanted,
        plan::{self, Manifest},
        refusal,
    },
    digest::{Algorithm, Digest},
    platform::Platforms,
};

/// How many manifests of one image are under way at once, each with its blobs.
const CHILDREN: usize = 4;

/// How often a mirror is brought what it lacks although it said otherwise: what it names, and then everything.
const MENDED: u32 = 2;

/// How long things may take, and how much goes on at once.
#[derive(Clone, Debug)]
pub struct Settings {
    pub patience: Patience,
    /// The first pause before something is tried again; each further one is twice as long.
    pub pause: Duration,
    /// How often something is tried that may go better the next time.
    pub tries: u32,
    /// How long to wait for a registry, all waits of one step together, that asks to be asked less.
    pub limited: Duration,
    /// The pauses before each look at what was written, until it is there.
    pub read_back: Vec<Duration>,
    /// How many images are brought to one mirror at once. More are made ready meanwhile, and looked at afterwards.
    pub images: usize,
    /// How many blobs are under way at once with one registry.
    pub blobs: usize,
    /// How many other requests are.
    pub requests: usize,
    /// Blobs of this size on are looked for before an upload is begun.
    pub look_from: u64,
    /// The first size of pieces, where a registry takes no whole, and the least.
    pub pieces: (u64, u64),
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = |all: &[u64]| all.iter().copied().map(Duration::from_secs).collect();
        Self {
            patience: Patience::default(),
            pause: Duration::from_secs(1),
            tries: 5,
            limited: Duration::from_mins(10),
            read_back: seconds(&[0, 1, 2, 4, 8, 15]),
            images: 4,
            blobs: 6,
            requests: 12,
            look_from: 1 << 20,
            pieces: (64 << 20, 1 << 20),
        }
    }
}

/// A registry that images come from, with what was learned of it.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    blobs: Gate,
    requests: Gate,
    /// Whether it lists referrers, as far as is known.
    lists: referrers::Lists,
}

impl Upstream {
    /// Returns a registry of which nothing is known yet.
    pub fn new(client: Client, settings: &Settings) -> Self {
        Self {
            client,
            blobs: Gate::new(settings.blobs),
            requests: Gate::new(settings.requests),
            lists: referrers::Lists::default(),
        }
    }

    /// Returns its client.
    pub const fn client(&self) -> &Client {
        &self.client
    }
}

/// A registry that images go to, with what was learned of it.
#[derive(Debug)]
pub struct Mirror {
    client: Client,
    images: Semaphore,
    blobs: Gate,
    requests: Gate,
    lists: referrers::Lists,
    learned: Mutex<blobs::Learned>,
    /// One at a time for each digest that is uploaded, and for each list of referrers that is changed.
    flights: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Mirror {
    /// Returns a registry of which nothing is known yet.
    pub fn new(client: Client, settings: &Settings) -> Self {
        Self {
            client,
            images: Semaphore::new(settings.images.max(1)),
            blobs: Gate::new(settings.blobs),
            requests: Gate::new(settings.requests),
            lists: referrers::Lists::default(),
            learned: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// Returns its client.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    fn learned(&self) -> MutexGuard<'_, blobs::Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what one holds who works on something that nobody else may work on.
    fn flight(&self, of: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&of).and_then(Weak::upgrade) {
            return flight;
        }
        // What nobody holds is forgotten, so that no more is kept than is under way.
        if flights.len() > 1024 {
            flights.retain(|_, flight| flight.strong_count() > 0);
        }
        let flight = Arc::default();
        flights.insert(of, Arc::downgrade(&flight));
        flight
    }
}

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Job {
    pub upstream: Arc<Upstream>,
    /// The repository there.
    pub repository: String,
    /// Tag or digest there.
    pub reference: String,
    pub mirror: Arc<Mirror>,
    /// The repository here.
    pub into: String,
    /// The tag here.
    pub tag: String,
    /// The nodes for which it is wanted.
    pub platforms: Platforms,
    /// Whether what refers to it comes along.
    pub referrers: bool,
    /// Whether blobs are looked at too where their manifest is there.
    pub verify: bool,
    /// The most bytes that it may have; none is unbounded.
    pub max_size: Option<u64>,
    /// The most bytes that what refers to it may have, all together; none is unbounded. What the image has counts with it
    /// where the image has a bound.
    pub max_referrers: Option<u64>,
    /// Whether a tag that is at the mirror stays as it is, whatever it means.
    pub keeps_tag: bool,
    /// The tags by which its digest stays, and that of the image which the tag meant before; none where the tag is all.
    pub own: Option<Own>,
}

/// How far a copy has come, for people. All counts only rise.
#[derive(Debug, Default)]
pub struct Meter {
    pub blobs: AtomicU64,
    pub blobs_done: AtomicU64,
    pub bytes: AtomicU64,
    /// Of bytes that were there already, too.
    pub bytes_done: AtomicU64,
    /// Those that were sent, while they are.
    pub bytes_sent: Arc<AtomicU64>,
}

/// A copy that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub digest: Digest,
    /// How many manifests were pushed; none if all was there.
    pub manifests: u64,
    /// How many blobs were uploaded, taken over, and there.
    pub uploaded: u64,
    pub mounted: u64,
    /// How many bytes were sent.
    pub bytes: u64,
    /// How many things that refer to it were brought along, and what became of those that were not.
    pub referrers: u64,
    pub incomplete: Vec<Trouble>,
    /// Whether entries of an index were left out.
    pub is_sparse: bool,
}

/// Why an image, or something of it, was not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: Reason,
    /// What happened, in words.
    pub words: String,
    /// Whether it may go better by itself the next time.
    pub is_passing: bool,
    /// For how long somebody asked to be left alone.
    pub wait: Option<Wait>,
}

impl Trouble {
    /// Returns a trouble that lasts until something is changed.
    pub fn new(reason: Reason, words: impl Into<String>) -> Self {
        Self {
            reason,
            words: words.into(),
            is_passing: false,
            wait: None,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.words)
    }
}

impl From<plan::Fault> for Trouble {
    fn from(fault: plan::Fault) -> Self {
        let reason = match fault {
            plan::Fault::NoPlatform => Reason::PlatformMissing,
            _ => Reason::UnsupportedManifest,
        };
        Self::new(reason, fault.to_string())
    }
}

/// Copies an image, and tells how far it has come.
pub async fn copy(job: &Job, settings: &Settings, meter: &Meter) -> Result<Copied, Trouble> {
    // A tag that moves meanwhile is followed, but not for ever.
    const MOVES: usize = 3;
    let copying = Copying::new(job, settings, meter);
    let mut last = None;
    for _ in 0..MOVES {
        // A large future.
        let Err(trouble) = Box::pin(copying.once()).await else {
            return Ok(copying.copied());
        };
        let vanished = trouble.reason == Reason::ImageVanished && job.reference.parse::<Digest>().is_err();
        if !vanished {
            return Err(trouble);
        }
        let before = copying.root();
        let now = copying.resolve().await?;
        if before.as_ref() == Some(&now) {
            return Err(trouble);
        }
        last = Some(trouble);
    }
    Err(last.unwrap_or_else(|| Trouble::new(Reason::Internal, "nothing was tried")))
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Mirror,
}

/// One copy under way.
struct Copying<'c> {
    job: &'c Job,
    settings: &'c Settings,
    meter: &'c Meter,
    source: Source,
    target: Target,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    root: Option<Digest>,
    manifests: u64,
    uploaded: u64,
    mounted: u64,
    bytes: u64,
    referrers: u64,
    incomplete: Vec<Trouble>,
    is_sparse: bool,
    /// Blobs that were seen or put in the target's repository by this copy.
    there: BTreeSet<Digest>,
    /// Whether the mirror has nothing of the image, as far as is known.
    is_new: bool,
    /// Blobs that the registry lacks although it said otherwise.
    lied_about: BTreeSet<Digest>,
    /// How many bytes the image has, as far as it was read, and what refers to it.
    size: u64,
    referring: u64,
}

impl<'c> Copying<'c> {
    fn new(job: &'c Job, settings: &'c Settings, meter: &'c Meter) -> Self {
        Self {
            source: Source {
                client: job.upstream.client.clone(),
                repository: job.repository.clone(),
                answer: settings.patience.answer,
                stall: settings.patience.stall,
                pause: settings.pause,
            },
            target: Target::new(job.mirror.client.clone(), job.into.clone(), settings.patience),
            job,
            settings,
            meter,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> Option<Digest> {
        self.state().root.clone()
    }

    fn copied(&self) -> Copied {
        let state = self.state();
        Copied {
            digest: state.root.clone().unwrap_or(Digest::Sha256([0; 32])),
            manifests: state.manifests,
            uploaded: state.uploaded,
            mounted: state.mounted,
            bytes: state.bytes,
            referrers: state.referrers,
            incomplete: state.incomplete.clone(),
            is_sparse: state.is_sparse,
        }
    }

    /// Does something until it comes to pass, or until trying again does not help.
    async fn until<T, F>(
        &self,
        side: Side,
        step: Step,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut again = Again::default();
        loop {
            let gate = match side {
                Side::Source => &self.job.upstream.requests,
                Side::Mirror => &self.job.mirror.requests,
            };
            let fault = {
                let _permit = gate.enter().await;
                match attempt().await {
                    Ok(done) => return Ok(done),
                    Err(fault) => fault,
                }
            };
            self.once_more(&mut again, side, step, what, &fault).await?;
        }
    }

    /// Waits until something may be tried again after a fault, or returns why it should not.
    async fn once_more(
        &self,
        again: &mut Again,
        side: Side,
        step: Step,
        what: &str,
        fault: &Fault,
    ) -> Result<(), Trouble> {
        let trouble = |reason, is_passing| Trouble {
            is_passing,
            ..self.trouble(side, reason, what, fault)
        };
        match verdict(fault, step) {
            Verdict::Wait(wait) => {
                let wait = wait.unwrap_or_else(|| self.pause(again.waits + 4));
                again.waits += 1;
                again.waited += wait;
                if again.waited > self.settings.limited {
                    let wait = Wait {
                        of_mirror: side == Side::Mirror,
                        time: wait,
                    };
                    return Err(Trouble {
                        wait: Some(wait),
                        ..trouble(Reason::RateLimited, true)
                    });
                }
                // The whole registry is left alone meanwhile, by every copy.
                let (blobs, requests) = match side {
                    Side::Source => (&self.job.upstream.blobs, &self.job.upstream.requests),
                    Side::Mirror => (&self.job.mirror.blobs, &self.job.mirror.requests),
                };
                blobs.limited(wait);
                requests.limited(wait);
                sleep(wait).await;
                Ok(())
            }
            Verdict::Again(reason) => {
                again.tries += 1;
                if again.tries >= self.settings.tries {
                    return Err(trouble(reason, true));
                }
                sleep(self.pause(again.tries - 1)).await;
                Ok(())
            }
            Verdict::Never(reason) => Err(trouble(reason, false)),
            Verdict::Missing if side == Side::Source => Err(trouble(Reason::ImageMissing, false)),
            Verdict::Missing | Verdict::UploadGone | Verdict::TooLarge | Verdict::Incomplete => {
                Err(trouble(Reason::RegistryError, false))
            }
        }
    }

    /// Returns the pause before a further try, anything up to twice as long each time, so that many who broke together
    /// do not come back together.
    fn pause(&self, tries: u32) -> Duration {
        use std::hash::{BuildHasher as _, RandomState};
        let most = self.settings.pause.saturating_mul(1 << tries.min(6));
        let part = u32::try_from(RandomState::new().hash_one(0) % 1000).unwrap_or(0);
        most / 2 + most / 2 * part / 1000
    }

    fn host(&self, side: Side) -> &str {
        match side {
            Side::Source => self.source.client.host(),
            Side::Mirror => self.target.client().host(),
        }
    }

    fn trouble(&self, side: Side, reason: Reason, what: &str, fault: &Fault) -> Trouble {
        let host = self.host(side);
        Trouble::new(reason, format!("{host}, asked for {what}: {fault}"))
    }

    /// Asks the source what a tag means now.
    async fn resolve(&self) -> Result<Digest, Trouble> {
        let reference = &self.job.reference;
        let found = self.until(Side::Source, Step::Read, reference, || {
            let deadline = Instant::now() + self.settings.patience.answer;
            let source = &self.source;
            let room = self.target.room();
            source
                .client
                .digest(source.right(), &source.repository, reference, room, deadline)
        });
        found.await?.ok_or_else(|| self.missing())
    }

    fn missing(&self) -> Trouble {
        let (host, repository) = (self.source.client.host(), &self.source.repository);
        Trouble::new(
            Reason::ImageMissing,
            format!("{host} has no {repository}:{}", self.job.reference),
        )
    }

    /// Copies what the source has now.
    async fn once(&self) -> Result<(), Trouble> {
        let tag = &self.job.tag;
        let there = self
            .until(Side::Mirror, Step::Look, tag, || self.target.raw(tag, None))
            .await?;
        // Where nothing is, the manifest is read at once; else it is enough to know whether it is the same.
        let (root, at_source) = if there.is_some() {
            (self.resolve().await?, None)
        } else {
            let raw = self.read(&self.job.reference, Wish::default()).await?;
            let raw = raw.ok_or_else(|| self.missing())?;
            (raw.digest.clone(), Some(raw))
        };
        {
            let mut state = self.state();
            state.root = Some(root.clone());
            state.is_new = there.is_none();
        }
        if let Some(other) = there.as_ref().filter(|there| there.digest != root)
            && self.job.keeps_tag
        {
            // Somebody brought it meanwhile.
            self.state().root = Some(other.digest.clone());
            return Ok(());
        }
        let (same, other) = match there {
            Some(there) if there.digest == root => (Some(there), None),
            other => (None, other),
        };
        if let Some(same) = &same
            && !self.job.verify
            && let Some(whole) = self.is_whole(same).await?
        {
            self.give_own_tag(same).await?;
            if self.job.referrers {
                self.state().size = size_of(&whole);
                // Signatures come later than what they sign.
                self.bring_referrers(&whole).await;
            }
            return Ok(());
        }
        let plan = self.plan(&root, at_source).await?;
        self.check_size(&plan)?;
        self.state().size = size_of(&plan);
        self.state().is_sparse = plan.is_sparse();
        if let Some(other) = &other {
            // Pods may have it by its digest, and a tag that moves away may take it along.
            self.give_own_tag(other).await?;
        }
        self.push(&plan, same.is_some()).await
    }

    /// Gives an image that is at the mirror a tag of its own, where it has none.
    async fn give_own_tag(&self, raw: &Raw) -> Result<(), Trouble> {
        let Some(tag) = self.lacking_own_tag(&raw.digest).await? else {
            return Ok(());
        };
        let Ok(plan) = self.known_plan(raw) else {
            // What nobody understands nobody was sent to.
            return Ok(());
        };
        let Some(root) = plan.manifest(&raw.digest) else {
            return Ok(());
        };
        match self.push_manifest(&plan, root, Some(&tag)).await? {
            Ok(()) => self.read_back(Some(&tag), &raw.digest).await,
            // It lost a part of it, so that nobody can have it anyhow.
            Err(_) => Ok(()),
        }
    }

    /// Returns the tag by which a digest is to stay, if it does not stand there.
    async fn lacking_own_tag(&self, digest: &Digest) -> Result<Option<String>, Trouble> {
        let Some(own) = &self.job.own else {
            return Ok(None);
        };
        let tag = own.tag(digest);
        // A registry may refuse to be told again what a tag is.
        let there = self.until(Side::Mirror, Step::Look, &tag, || self.target.digest(&tag));
        Ok((there.await?.as_ref() != Some(digest)).then_some(tag))
    }

    /// Fails where the image is larger than is wanted. Sizes are those that its manifests promise; more of a blob than
    /// was promised is never taken.
    fn check_size(&self, plan: &Plan) -> Result<(), Trouble> {
        let size = size_of(plan);
        match self.job.max_size {
            Some(most) if size > most => Err(Trouble::new(
                Reason::ImageTooLarge,
                format!("it has {size} bytes, and {most} are copied at most"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns a plan of what is known of an image that is there: its own manifest.
    fn known_plan(&self, raw: &Raw) -> Result<Plan, Trouble> {
        let mut plan = Plan::new(raw.digest.clone(), self.job.platforms);
        for wanted in plan.to_read() {
            plan.read(&wanted, raw.media_type.as_deref(), Arc::clone(&raw.bytes))?;
        }
        Ok(plan)
    }

    /// Looks whether all that is wanted of an image is at the mirror, to the last child: it may have lost some. Returns
    /// what belongs to it if so.
    async fn is_whole(&self, raw: &Raw) -> Result<Option<Plan>, Trouble> {
        let Ok(mut plan) = self.known_plan(raw) else {
            return Ok(None);
        };
        loop {
            let wanted = plan.to_read();
            if wanted.is_empty() {
                self.state().is_sparse = plan.is_sparse();
                return Ok(Some(plan));
            }
            let mut all = Box::pin(self.each(wanted, |wanted| self.at_mirror(wanted)));
            while let Some(found) = all.next().await {
                match found? {
                    (wanted, AtMirror::Index(raw)) => {
                        let read = plan.read(&wanted, raw.media_type.as_deref(), raw.bytes);
                        if read.is_err() {
                            return Ok(None);
                        }
                    }
                    (_, AtMirror::There) => {}
                    (_, AtMirror::Missing) => return Ok(None),
                }
            }
        }
    }

    async fn at_mirror(&self, wanted: Wanted) -> Result<(Wanted, AtMirror), Trouble> {
        let reference = wanted.digest.to_string();
        // What an index may list in turn must be read; of all else it is enough that it is there.
        let may_list = wanted
            .media_type
            .as_deref()
            .is_none_or(|kind| kind.contains("index") || kind.contains("list"));
        if may_list {
            let raw = self.until(Side::Mirror, Step::Look, &reference, || {
                self.target.raw(&reference, wanted.size)
            });
            let found = raw.await?.map_or(AtMirror::Missing, AtMirror::Index);
            return Ok((wanted, found));
        }
        let digest = self.until(Side::Mirror, Step::Look, &reference, || {
            self.target.digest(&reference)
        });
        if digest.await?.is_some() {
            return Ok((wanted, AtMirror::There));
        }
        if let Some(size) = wanted.blob {
            let part = Part {
                digest: wanted.digest.clone(),
                size,
                is_foreign: false,
            };
            if self
                .until(Side::Mirror, Step::Look, &reference, || self.target.has(&part))
                .await?
            {
                return Ok((wanted, AtMirror::There));
            }
        }
        Ok((wanted, AtMirror::Missing))
    }

    /// Does something for each of several, some at once. What came of one is given out before more is begun, so that
    /// whoever has enough can stop.
    fn each<T, R, F>(&self, of: Vec<T>, call: impl FnMut(T) -> F) -> impl Stream<Item = R>
    where
        F: Future<Output = R>,
    {
        stream::iter(of)
            .map(call)
            .buffer_unordered(self.settings.requests)
    }

    /// Reads a manifest at the source; none if it is not there.
    async fn read(&self, reference: &str, wish: Wish<'_>) -> Result<Option<Raw>, Trouble> {
        let read = self.until(Side::Source, Step::Read, reference, || {
            let deadline = Instant::now() + self.settings.patience.answer;
            let Source {
                client, repository, ..
            } = &self.source;
            let room = self.target.room();
            client.raw(self.source.right(), repository, reference, wish, room, deadline)
        });
        read.await
    }

    /// Reads everything that belongs to a manifest.
    async fn plan(&self, root: &Digest, mut known: Option<Raw>) -> Result<Plan, Trouble> {
        let mut plan = Plan::new(root.clone(), self.job.platforms);
        loop {
            let wanted = plan.to_read();
            if wanted.is_empty() {
                return Ok(plan);
            }
            if let (Some(raw), [first]) = (known.take(), &wanted[..]) {
                plan.read(first, raw.media_type.as_deref(), raw.bytes)?;
                continue;
            }
            let mut all = Box::pin(self.each(wanted, |wanted: Wanted| async move {
                let wish = Wish {
                    media_type: wanted.media_type.as_deref(),
                    size: wanted.size,
                };
                let raw = self.read(&wanted.digest.to_string(), wish).await;
                (wanted, raw)
            }));
            // Each counts at once, so that no more is read where it is too much already.
            while let Some((wanted, raw)) = all.next().await {
                match raw? {
                    Some(raw) => plan.read(&wanted, raw.media_type.as_deref(), raw.bytes)?,
                    None if wanted.blob.is_some() => plan.is_blob(&wanted),
                    None => {
                        return Err(self.vanished(&wanted.digest));
                    }
                }
            }
        }
    }

    fn vanished(&self, digest: &Digest) -> Trouble {
        let words = format!(
            "{} does not have {digest}, which the image needs",
            self.source.client.host()
        );
        Trouble::new(Reason::ImageVanished, words)
    }

    /// Pushes everything in its order, the tag last.
    async fn push(&self, plan: &Plan, is_tagged: bool) -> Result<(), Trouble> {
        // Fails only where it was closed, which nobody does.
        let turn = self.job.mirror.images.acquire().await;
        let root = self.push_below(plan).await?;
        let own = self.lacking_own_tag(&root.digest).await?;
        if let Some(own) = &own {
            // Before the tag that people know: nobody is sent to a digest that nothing holds.
            self.write(plan, root, Some(own)).await?;
        }
        if self.job.referrers {
            let found = self.find_referrers(plan).await;
            if !found.is_empty() {
                // What refers to it must find it, and the tag shows it only with all that belongs to it.
                match &own {
                    Some(own) => self.read_back(Some(own), &root.digest).await?,
                    None => self.put(plan, root, None).await?,
                }
                self.push_referrers(found).await;
            }
        }
        // A registry may refuse to be told again what a tag is.
        let tag = Some(self.job.tag.as_str()).filter(|_| !is_tagged);
        if let Some(tag) = tag.filter(|_| self.job.keeps_tag) {
            // It may have come while the image was brought.
            let now = self.until(Side::Mirror, Step::Look, tag, || self.target.digest(tag));
            if let Some(other) = now.await?.filter(|now| *now != root.digest) {
                self.state().root = Some(other);
                return Ok(());
            }
        }
        match self.write(plan, root, tag).await {
            Err(trouble) if trouble.reason == Reason::TagImmutable => {
                // By its digest it can be used all the same.
                if own.is_none() {
                    self.put(plan, root, None).await?;
                }
                return Err(trouble);
            }
            written => written?,
        }
        // The next image need not wait for a look at this one.
        drop(turn);
        self.read_back(tag, &root.digest).await
    }

    /// Pushes something that is none of the image's own manifests, under a tag or its digest.
    async fn push_plan(&self, plan: &Plan, tag: Option<&str>) -> Result<(), Trouble> {
        let root = self.push_below(plan).await?;
        self.put(plan, root, tag).await
    }

    /// Pushes everything that a manifest needs, and returns it.
    async fn push_below<'p>(&self, plan: &'p Plan) -> Result<&'p Manifest, Trouble> {
        let (mut blobs, mut bytes) = (0, 0_u64);
        for part in plan.blobs() {
            blobs += 1;
            bytes = part.size.saturating_add(bytes);
        }
        self.meter.blobs.fetch_add(blobs, Ordering::Relaxed);
        self.meter.bytes.fetch_add(bytes, Ordering::Relaxed);

        let steps = plan.steps();
        let (root, below) = match steps.split_last() {
            Some((last, below)) => (last.first(), below),
            None => (None, &[][..]),
        };
        let root = root.and_then(|root| plan.manifest(root));
        let root = root.ok_or_else(|| Trouble::new(Reason::Internal, "a plan without an end"))?;
        for step in below {
            // A few at once, so that a manifest follows its last blob soon.
            let mut calls = stream::iter(0..step.len())
                .map(|position| self.push_child(plan, &step[position]))
                .buffer_unordered(CHILDREN);
            while let Some(done) = calls.next().await {
                done?;
            }
        }
        self.bring_blobs(root, false).await?;
        Ok(root)
    }

    async fn push_child(&self, plan: &Plan, digest: &Digest) -> Result<(), Trouble> {
        let Some(manifest) = plan.manifest(digest) else {
            return Ok(());
        };
        let reference = manifest.digest.to_string();
        if !self.job.verify {
            let digest = self.until(Side::Mirror, Step::Look, &reference, || {
                self.target.digest(&reference)
            });
            if digest.await?.is_some() {
                for part in &manifest.blobs {
                    self.blob_done(part);
                }
                return Ok(());
            }
        }
        self.bring_blobs(manifest, false).await?;
        self.put(plan, manifest, None).await
    }

    /// Pushes a manifest whose blobs are there, under a tag or its digest, and looks whether it can be read.
    async fn put(&self, plan: &Plan, manifest: &Manifest, tag: Option<&str>) -> Result<(), Trouble> {
        self.write(plan, manifest, tag).await?;
        self.read_back(tag, &manifest.digest).await
    }

    /// Pushes a manifest whose blobs are there, under a tag or its digest.
    async fn write(&self, plan: &Plan, manifest: &Manifest, tag: Option<&str>) -> Result<(), Trouble> {
        let by_digest = manifest.digest.to_string();
        let reference = tag.unwrap_or(&by_digest);
        let mut mended = 0;
        while let Err(fault) = self.push_manifest(plan, manifest, tag).await? {
            mended += 1;
            if mended > MENDED {
                return Err(self.trouble(Side::Mirror, Reason::MirrorInconsistent, reference, &fault));
            }
            // Some name one thing at a time that they lack.
            self.mend(plan, manifest, &fault, mended == MENDED).await?;
        }
        Ok(())
    }

    /// Pushes a manifest under a tag or its digest. Returns the fault if the registry lacks what it names.
    async fn push_manifest(
        &self,
        plan: &Plan,
        manifest: &Manifest,
        tag: Option<&str>,
    ) -> Result<Result<(), Fault>, Trouble> {
        let digest = manifest.digest.to_string();
        let reference = tag.unwrap_or(&digest);
        let step = Step::Manifest(refusal::Manifest {
            by_tag: tag.is_some(),
            is_sparse: plan.is_sparse() && manifest.contents.is_index(),
            names_foreign: manifest.blobs.iter().any(|part| part.is_foreign),
            algorithm: manifest.digest.algorithm(),
        });
        let mut again = Again::default();
        loop {
            let fault = {
                let _permit = self.job.mirror.requests.enter().await;
                let put = self
                    .target
                    .put(reference, &manifest.media_type, &manifest.bytes, &manifest.digest);
                match put.await {
                    Ok(_) => break,
                    Err(fault) => fault,
                }
            };
            if verdict(&fault, step) == Verdict::Incomplete {
                return Ok(Err(fault));
            }
            self.once_more(&mut again, Side::Mirror, step, reference, &fault)
                .await?;
        }
        self.state().manifests += 1;
        Ok(Ok(()))
    }

    /// Brings what a registry says that it lacks, although it said otherwise before.
    async fn mend(
        &self,
        plan: &Plan,
        manifest: &Manifest,
        fault: &Fault,
        everything: bool,
    ) -> Result<(), Trouble> {
        let named: BTreeSet<&Digest> = match fault {
            Fault::Refused(_, named) if !everything => named.iter().collect(),
            _ => BTreeSet::new(),
        };
        let is_meant = |digest: &Digest| named.contains(digest);
        let any = manifest.blobs.iter().any(|part| is_meant(&part.digest));
        self.job.mirror.learned().forget(self.target.repository());
        {
            let mut state = self.state();
            for part in &manifest.blobs {
                // What was sent for this reason already is there.
                let is_sent = everything && state.lied_about.contains(&part.digest);
                if (!any || is_meant(&part.digest)) && !is_sent {
                    state.there.remove(&part.digest);
                    state.lied_about.insert(part.digest.clone());
                }
            }
        }
        for child in manifest
            .contents
            .children
            .iter()
            .filter_map(|entry| plan.manifest(&entry.digest))
        {
            if named.is_empty() || is_meant(&child.digest) {
                self.bring_blobs(child, false).await?;
                Box::pin(self.put(plan, child, None)).await?;
            }
        }
        self.bring_blobs(manifest, true).await
    }

    /// Looks whether what was written can be read: some show it after a while only.
    async fn read_back(&self, tag: Option<&str>, digest: &Digest) -> Result<(), Trouble> {
        let (by_digest, mut seen) = (digest.to_string(), None);
        let reference = tag.unwrap_or(&by_digest);
        for pause in &self.settings.read_back {
            sleep(*pause).await;
            seen = self
                .until(Side::Mirror, Step::Look, reference, || {
                    self.target.digest(reference)
                })
                .await?;
            if seen.as_ref() == Some(digest) {
                return Ok(());
            }
        }
        let seen = seen.map_or_else(|| "nothing".to_owned(), |seen| seen.to_string());
        let words = format!(
            "{} took {digest} as {reference} and shows {seen}",
            self.target.client().host()
        );
        Err(Trouble {
            is_passing: true,
            ..Trouble::new(Reason::NotReadBack, words)
        })
    }
}

/// Returns how many bytes all has that a plan names.
fn size_of(plan: &Plan) -> u64 {
    let manifests = plan.manifests().map(|manifest| manifest.bytes.len() as u64);
    let sizes = plan.blobs().map(|part| part.size).chain(manifests);
    sizes.fold(0_u64, u64::saturating_add)
}

/// Returns what is asked for where an ordinary manifest is pushed under a tag.
const fn tag_step() -> Step {
    Step::Manifest(refusal::Manifest {
        by_tag: true,
        is_sparse: false,
        names_foreign: false,
        algorithm: Algorithm::Sha256,
    })
}

enum AtMirror {
    There,
    Index(Raw),
    Missing,
}

/// How often something was tried again.
#[derive(Default)]
struct Again {
    tries: u32,
    waits: u32,
    waited: Duration,
}

/// What a copy would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreseen {
    pub digest: Digest,
    /// Whether all of it is at the mirror already.
    pub is_there: bool,
    /// What it consists of; nothing is told of what is there.
    pub manifests: u64,
    pub blobs: u64,
    pub bytes: u64,
}

/// Looks what a copy would do. Nothing is written.
pub async fn foresee(job: &Job, settings: &Settings) -> Result<Foreseen, Trouble> {
    let meter = Meter::default();
    let copying = Copying::new(job, settings, &meter);
    let tag = &job.tag;
    let there = copying
        .until(Side::Mirror, Step::Look, tag, || copying.target.raw(tag, None))
        .await?;
    let root = copying.resolve().await?;
    if let Some(there) = there.filter(|there| there.digest == root)
        && copying.is_whole(&there).await?.is_some()
    {
        return Ok(Foreseen {
            digest: root,
            is_there: true,
            manifests: 0,
            blobs: 0,
            bytes: 0,
        });
    }
    let plan = copying.plan(&root, None).await?;
    let sizes: Vec<u64> = plan.blobs().map(|part| part.size).collect();
    Ok(Foreseen {
        digest: root,
        is_there: false,
        manifests: plan.manifests().count() as u64,
        blobs: sizes.len() as u64,
        bytes: sizes.iter().fold(0, |all, size| size.saturating_add(all)),
    })
}
