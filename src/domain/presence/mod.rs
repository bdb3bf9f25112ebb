//! What is known of images on mirrors, and when that is proof.
//!
//! The companion's knowledge (`known`) is written by one feeder alone; what a replica saw itself
//! (`seen`) stands beside it, bounded. An entry is proof only from the later of its own
//! `verified_at` and the start of the last complete sweep that covered it, not before the mirror's
//! `proven_since`, not past the freshness bound and not from the future. Time is wall-clock time
//! and may jump: every jump makes proofs void, none makes them longer than the bound.

mod entries;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use self::entries::Entries;
use super::{
    answer::{Answer, Manifest, MediaType},
    copying,
    digest::Digest,
    image::{BoxedKey, Class, ImageKey, KeyRef},
    mirror::{Freshness, Kind, Mirror},
    platform::Platforms,
    reason::Reason,
    time::Timestamp,
};

/// How far ahead of this machine's clock a proof may be. What lies further in the future is void.
pub const FUTURE: Duration = Duration::from_secs(5);

/// Of how many images of one mirror it is remembered why they were not copied.
const NOT_COPIED_LIMIT: usize = 20_000;

/// Of how many tags of one mirror it is remembered that they mean another image upstream.
const MOVED_LIMIT: usize = 20_000;

/// How many images one replica remembers of its own probes.
pub const SEEN_LIMIT: usize = 10_000;

/// Whether a mirror has an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    Present(Proof),
    Missing,
    /// Not known, with the reason if somebody looked in vain.
    Unknown(Option<Reason>),
}

/// What was seen of an image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub digest: Digest,
    pub media_type: MediaType,
    /// The platforms of the nodes that could pull it. A single manifest counts for every architecture.
    pub platforms: Platforms,
    /// Size of the manifest in bytes, where the registry told.
    pub size: Option<u64>,
    /// Whether an anonymous client gets the image upstream; absent if nobody asked.
    pub public: Option<bool>,
}

impl Proof {
    /// Returns what a seen manifest proves, given the platforms of the nodes that could pull it.
    pub fn new(manifest: &Manifest, platforms: Platforms) -> Self {
        Self {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type,
            platforms,
            size: manifest.size,
            public: None,
        }
    }
}

impl Proof {
    /// Returns the names of what the image is there for: platforms for an index, for a single manifest its
    /// operating system, or none if that is only assumed.
    pub fn there_for(&self) -> Vec<&'static str> {
        if self.media_type.is_index() {
            return self.platforms.names().collect();
        }
        let known = |(_, os): &(&str, Platforms)| self.platforms.contains(*os);
        let systems = [("linux", Platforms::LINUX), ("windows", Platforms::WINDOWS)];
        match self.platforms {
            Platforms::ASSUMED => Vec::new(),
            Platforms::NONE => vec!["other"],
            _ => systems.into_iter().filter(known).map(|(name, _)| name).collect(),
        }
    }

    /// Takes over from another look at the same image what this one only assumes.
    fn learn(&mut self, other: &Self) {
        if self.platforms == Platforms::ASSUMED && self.digest == other.digest {
            self.platforms = other.platforms;
        }
    }
}

impl Presence {
    /// Takes over from another look at the same image what this one only assumes.
    fn learn(&mut self, other: &Self) {
        if let (Self::Present(proof), Self::Present(other)) = (self, other) {
            proof.learn(other);
        }
    }
}

/// When an entry was written, as a number that only grows: what a sweep uses to tell which entries
/// it covered. In one process it is a counter; in a cluster the resource version of MirroredImages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

impl Version {
    /// The version of an entry that no sweep covers.
    pub const NEVER_SWEPT: Self = Self(u64::MAX);
}

/// What is known of one image on one mirror.
#[derive(Debug)]
pub struct Entry {
    pub presence: Presence,
    pub verified_at: Timestamp,
    pub version: Version,
    /// Seconds since the epoch; written by readers, so atomic.
    last_used: AtomicU32,
    /// The listing that last named this entry.
    listing: u32,
}

impl Entry {
    /// Returns when a Pod last named this image, to the second.
    pub fn last_used(&self) -> Timestamp {
        Timestamp::from_millis(u64::from(self.last_used.load(Ordering::Relaxed)) * 1000)
    }

    /// Whether a complete sweep renewed what is known. What is not there, sweeps look for ever more seldom.
    const fn is_renewed_by(&self, swept: &Swept) -> bool {
        matches!(self.presence, Presence::Present(_)) && self.version.0 <= swept.through.0
    }

    fn touch(&self, now: Timestamp) {
        let now = seconds(now);
        // Writing what is there already would take the memory away from other cores.
        if self.last_used.load(Ordering::Relaxed) != now {
            self.last_used.store(now, Ordering::Relaxed);
        }
    }
}

fn seconds(now: Timestamp) -> u32 {
    u32::try_from(now.as_millis() / 1000).unwrap_or(u32::MAX)
}

/// The end of a complete sweep of one class: whatever was there of it, up to `through`, was seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    pub started_at: Timestamp,
    pub through: Version,
}

/// What is known of the images of one mirror.
#[derive(Debug, Default)]
struct Table {
    entries: Entries,
    tags: OfClass,
    digests: OfClass,
}

/// What is known of the images of one class.
#[derive(Debug, Default)]
struct OfClass {
    sweeps: Sweeps,
    /// How many entries there are, counted as they come and go.
    counts: Counts,
}

/// Tables by the mirror's name.
type Tables = HashMap<Box<str>, Table, RandomState>;

/// The last complete sweeps of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Sweeps {
    believed: Option<Swept>,
    /// Told of already, but entries that were written before its end have not arrived here yet.
    pending: Option<Swept>,
}

impl Sweeps {
    fn told(&mut self, swept: Swept, reached: Version) {
        self.pending = Some(swept);
        self.reached(reached);
    }

    fn reached(&mut self, reached: Version) {
        if self.pending.is_some_and(|swept| swept.through <= reached) {
            self.believed = self.pending.take();
        }
    }
}

impl Table {
    const fn of(&self, class: Class) -> &OfClass {
        match class {
            Class::Tag => &self.tags,
            Class::Digest => &self.digests,
        }
    }

    const fn of_mut(&mut self, class: Class) -> &mut OfClass {
        match class {
            Class::Tag => &mut self.tags,
            Class::Digest => &mut self.digests,
        }
    }

    const fn swept(&self, class: Class) -> Option<Swept> {
        self.of(class).sweeps.believed
    }

    /// Puts an entry in the place of the one before, whose use stays noted. Returns whether there was one.
    fn put(&mut self, key: KeyRef<'_>, entry: Entry) -> bool {
        let counts = &mut self.of_mut(key.class()).counts;
        *counts.of_mut(&entry.presence) += 1;
        let Some(slot) = self.entries.get_mut(key) else {
            self.entries.insert_new(key, entry);
            return false;
        };
        let last_used = std::mem::take(&mut slot.last_used);
        let before = std::mem::replace(slot, Entry { last_used, ..entry });
        self.uncount(key, &before.presence);
        true
    }

    fn remove(&mut self, key: KeyRef<'_>) -> bool {
        let Some(entry) = self.entries.remove(key) else {
            return false;
        };
        self.uncount(key, &entry.presence);
        true
    }

    fn retain(&mut self, mut keep: impl FnMut(KeyRef<'_>, &Entry) -> bool) {
        let Self {
            entries,
            tags,
            digests,
        } = self;
        entries.retain(|key, entry| {
            let stays = keep(key, entry);
            if !stays {
                let of_class = match key.class() {
                    Class::Tag => &mut *tags,
                    Class::Digest => &mut *digests,
                };
                *of_class.counts.of_mut(&entry.presence) -= 1;
            }
            stays
        });
    }

    fn uncount(&mut self, key: KeyRef<'_>, presence: &Presence) {
        let counts = &mut self.of_mut(key.class()).counts;
        *counts.of_mut(presence) -= 1;
    }
}

/// What the index says of one image, judged at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement<'a> {
    /// There, proven at that time.
    Proven(&'a Proof, Timestamp),
    /// Not there, seen recently enough.
    Absent(Timestamp),
    /// No valid proof either way; the reason if somebody looked in vain.
    Unproven(Option<Reason>),
}

/// The rules by which proofs of one mirror are judged.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub kind: Kind,
    pub freshness: Freshness,
    /// Replaces `freshness.tag` for pull-through mirrors, which are asked by tag only this often.
    pub refresh: Duration,
    pub proven_since: Timestamp,
}

impl Rules {
    /// Returns the rules of a mirror whose proofs count since `proven_since`.
    pub const fn of(mirror: &Mirror, proven_since: Timestamp) -> Self {
        Self {
            kind: mirror.kind,
            freshness: mirror.freshness,
            refresh: mirror.tags.refresh,
            proven_since,
        }
    }

    /// Returns how long a proof of this class lasts.
    pub const fn bound(&self, class: Class) -> Duration {
        match (class, self.kind) {
            (Class::Digest, _) => self.freshness.digest,
            (Class::Tag, Kind::Hosted) => self.freshness.tag,
            (Class::Tag, Kind::PullThrough) => self.refresh,
        }
    }

    /// Whether something seen at `seen_at` may be believed at `now`.
    fn believable(&self, seen_at: Timestamp, bound: Duration, now: Timestamp) -> bool {
        seen_at >= self.proven_since && seen_at <= now.after(FUTURE) && now.since(seen_at) <= bound
    }

    /// Judges an entry. Returns also when somebody last looked, however long ago; none if nobody has.
    fn judge<'a>(
        &self,
        entry: &'a Entry,
        class: Class,
        swept: Option<Swept>,
        now: Timestamp,
    ) -> (Option<Timestamp>, Judgement<'a>) {
        let times = [
            Some(entry.verified_at).filter(|_| entry.presence != Presence::Unknown(None)),
            swept
                .filter(|swept| entry.is_renewed_by(swept))
                .map(|swept| swept.started_at),
        ];
        let times = times.into_iter().flatten();
        let looked_at = times.clone().filter(|at| *at <= now.after(FUTURE)).max();
        let latest = |bound| {
            times
                .filter(|seen_at| self.believable(*seen_at, bound, now))
                .max()
        };
        let judgement = match &entry.presence {
            Presence::Present(proof) => match latest(self.bound(class)) {
                Some(seen_at) => Judgement::Proven(proof, seen_at),
                None => Judgement::Unproven(None),
            },
            Presence::Missing if self.kind == Kind::Hosted => match latest(self.freshness.missing) {
                Some(seen_at) => Judgement::Absent(seen_at),
                None => Judgement::Unproven(None),
            },
            Presence::Missing => Judgement::Unproven(Some(Reason::ImageMissing)),
            Presence::Unknown(reason) => Judgement::Unproven(*reason),
        };
        (looked_at, judgement)
    }
}

/// Counts of what is known of one mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub present: usize,
    pub missing: usize,
    pub unknown: usize,
}

impl Counts {
    /// Returns the numbers with their names, as metrics and `/status` show them.
    pub const fn by_name(self) -> [(&'static str, usize); 3] {
        [
            ("present", self.present),
            ("missing", self.missing),
            ("unknown", self.unknown),
        ]
    }

    const fn of_mut(&mut self, presence: &Presence) -> &mut usize {
        match presence {
            Presence::Present(_) => &mut self.present,
            Presence::Missing => &mut self.missing,
            Presence::Unknown(_) => &mut self.unknown,
        }
    }

    const fn and(self, other: Self) -> Self {
        Self {
            present: self.present + other.present,
            missing: self.missing + other.missing,
            unknown: self.unknown + other.unknown,
        }
    }
}

/// What is known of one image on one mirror: the companion's knowledge, and what this replica saw itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found<'a> {
    known: Option<(&'a Table, &'a Entry)>,
    own: Option<(&'a Table, &'a Entry)>,
}

impl<'a> Found<'a> {
    /// Judges them as [`Index::judge`] does. `class` is that of the image's key.
    pub fn judge(self, class: Class, rules: &Rules, now: Timestamp) -> Judgement<'a> {
        let judge = |found: Option<(&'a Table, &'a Entry)>| {
            let (table, entry) = found?;
            entry.touch(now);
            Some(rules.judge(entry, class, table.swept(class), now))
        };
        match (judge(self.known), judge(self.own)) {
            (Some((known_at, _)), Some((own_at, own))) if own_at > known_at => own,
            (Some((_, judgement)), _) | (None, Some((_, judgement))) => judgement,
            (None, None) => Judgement::Unproven(None),
        }
    }
}

/// What is known of all images on all mirrors.
#[derive(Debug, Default)]
pub struct Index {
    known: Tables,
    seen: Tables,
    seen_order: std::collections::VecDeque<(Box<str>, BoxedKey)>,
    version: Version,
    listing: u32,
    /// Why images that are missing were not copied, where that was tried. Empty as long as nothing is copied.
    not_copied: BTreeMap<Box<str>, HashMap<ImageKey, copying::Reason>>,
    /// What tags mean upstream, where the mirror was seen with another image under them. Empty as long as upstream is not
    /// asked.
    moved: BTreeMap<Box<str>, HashMap<ImageKey, Digest>>,
    /// Mirror and key of what changed in `known` since it was last asked; none if nobody asks.
    changes: Option<BTreeSet<(Box<str>, ImageKey)>>,
}

/// Takes so many images out of a table, whichever they are, but for one.
fn let_go<T>(table: &mut HashMap<ImageKey, T>, mut count: usize, but: KeyRef<'_>) {
    table.retain(|key, _| {
        let goes = count > 0 && key.as_str() != but.as_str();
        count -= usize::from(goes);
        !goes
    });
}

impl Index {
    /// Returns what is known of an image on a mirror, and notes that a Pod names it.
    ///
    /// The latest look decides, the companion's or the replica's own. So an absence that is too old
    /// to be believed still ends the proof before it.
    pub fn judge(&self, mirror: &str, key: KeyRef<'_>, rules: &Rules, now: Timestamp) -> Judgement<'_> {
        self.find_one(mirror, key).judge(key.class(), rules, now)
    }

    /// Returns what is known of an image on a mirror.
    pub fn find_one(&self, mirror: &str, key: KeyRef<'_>) -> Found<'_> {
        let found = self.find([(mirror, key)]);
        found.first().copied().unwrap_or_default()
    }

    /// Returns what is known of images, each on a mirror, in their order. They are looked up at the same time: it costs
    /// hardly more than to look for one, while one after the other is waited for each.
    pub fn find<'k>(
        &self,
        asked: impl IntoIterator<Item = (&'k str, KeyRef<'k>)>,
    ) -> SmallVec<[Found<'_>; 8]> {
        // Mostly all are asked of one mirror.
        let mut last: Option<(&str, Option<&Table>, Option<&Table>)> = None;
        let asked = asked.into_iter().map(|(mirror, key)| {
            let (_, known, own) = match last {
                Some(last) if last.0 == mirror => last,
                _ => {
                    let own = self.seen.get(mirror).filter(|table| !table.entries.is_empty());
                    (mirror, self.known.get(mirror), own)
                }
            };
            last = Some((mirror, known, own));
            (known, own, key, known.map_or(0, |table| table.entries.hash(key)))
        });
        let asked: SmallVec<[_; 8]> = asked.collect();
        let near: SmallVec<[_; 8]> = asked
            .iter()
            .map(|(known, _, _, hash)| known.and_then(|table| table.entries.near(*hash)))
            .collect();
        let found = asked.iter().zip(near).map(|((known, own, key, _), near)| Found {
            known: known.and_then(|table| Some((table, table.entries.entry(near, *key)?))),
            own: own.and_then(|table| Some((table, table.entries.get(*key)?))),
        });
        found.collect()
    }

    /// Returns whether the companion's knowledge has an entry for this image, of whatever kind.
    pub fn contains(&self, mirror: &str, key: KeyRef<'_>) -> bool {
        self.known
            .get(mirror)
            .is_some_and(|table| table.entries.get(key).is_some())
    }

    /// Returns the entry of the companion's knowledge.
    pub fn get(&self, mirror: &str, key: KeyRef<'_>) -> Option<&Entry> {
        self.known.get(mirror)?.entries.get(key)
    }

    /// Returns whether the companion knows that the mirror lacks an image.
    pub fn lacks(&self, mirror: &str, key: KeyRef<'_>) -> bool {
        let entry = self.get(mirror, key);
        entry.is_some_and(|entry| entry.presence == Presence::Missing)
    }

    /// Returns what a tag means upstream, where that is known to be another image than what the mirror has.
    pub fn moved(&self, mirror: &str, key: KeyRef<'_>) -> Option<&Digest> {
        let upstream = self.moved.get(mirror)?.get(key.as_str())?;
        match &self.get(mirror, key)?.presence {
            Presence::Present(proof) if proof.digest != *upstream => Some(upstream),
            _ => None,
        }
    }

    /// Whether a tag is known to mean another image upstream than this one, which the mirror was seen with; any, if that
    /// is not known.
    pub fn has_moved(&self, mirror: &str, key: KeyRef<'_>, seen: Option<&Digest>) -> bool {
        let upstream = self.moved.get(mirror).and_then(|moved| moved.get(key.as_str()));
        upstream.is_some_and(|upstream| seen != Some(upstream))
    }

    /// Returns how many tags of a mirror are known to mean another image upstream.
    pub fn moved_count(&self, mirror: &str) -> usize {
        let moved = self.moved.get(mirror).into_iter().flatten();
        moved
            .filter(|(key, _)| self.moved(mirror, key.by_ref()).is_some())
            .count()
    }

    /// Whether a mirror is to be brought an image: it lacks it, or has an older one under a tag that it follows.
    pub fn needs_copy(&self, mirror: &Mirror, key: KeyRef<'_>) -> bool {
        self.lacks(&mirror.name, key)
            || (mirror.copies_moved_tags() && self.moved(&mirror.name, key).is_some())
    }

    /// Notes what a tag means upstream, or that nobody can tell. Returns whether that is news: the tag is known to have
    /// moved, or is not any more.
    pub fn set_upstream(&mut self, mirror: &str, key: KeyRef<'_>, upstream: Option<&Digest>) -> bool {
        let before = self.moved(mirror, key).cloned();
        let seen = match self.get(mirror, key).map(|entry| &entry.presence) {
            Some(Presence::Present(proof)) => Some(&proof.digest),
            _ => None,
        };
        match (upstream, seen) {
            (Some(upstream), Some(seen)) if upstream != seen => {
                self.note_moved(mirror, key, upstream.clone());
            }
            // What the mirror has is not known now, so neither is whether it is that.
            (Some(_), None) => {}
            _ => self.forget_moved(mirror, key),
        }
        let is_news = self.moved(mirror, key) != before.as_ref();
        if is_news {
            self.note_change(mirror, key);
        }
        is_news
    }

    /// Takes in what somebody else noted of it. What is no digest says nothing.
    pub fn learn_upstream(&mut self, mirror: &str, key: KeyRef<'_>, upstream: Option<&str>) {
        // Mostly there is none, and reviews wait meanwhile.
        if upstream.is_some() || self.moved.contains_key(mirror) {
            let upstream = upstream.and_then(|upstream| upstream.parse().ok());
            self.set_upstream(mirror, key, upstream.as_ref());
        }
    }

    fn note_moved(&mut self, mirror: &str, key: KeyRef<'_>, upstream: Digest) {
        if !self.moved.contains_key(mirror) {
            self.moved.insert(mirror.into(), HashMap::new());
        }
        let known = self.known.get(mirror);
        let Some(moved) = self.moved.get_mut(mirror) else {
            return;
        };
        moved.insert(key.into(), upstream);
        if moved.len() > MOVED_LIMIT {
            // What is not there any more goes first. Whatever else goes is asked for again.
            moved.retain(|key, _| known.is_some_and(|table| table.entries.get(key.by_ref()).is_some()));
            let to_go = moved.len().saturating_sub(MOVED_LIMIT - MOVED_LIMIT / 16);
            let_go(moved, to_go, key);
        }
    }

    fn forget_moved(&mut self, mirror: &str, key: KeyRef<'_>) {
        if let Some(moved) = self.moved.get_mut(mirror) {
            moved.remove(key.as_str());
        }
    }

    /// Writes an entry of the companion's knowledge, where this process alone counts the versions.
    /// Returns the index's version after that.
    pub fn write(
        &mut self,
        mirror: &str,
        key: KeyRef<'_>,
        presence: Presence,
        verified_at: Timestamp,
        now: Timestamp,
    ) -> Version {
        self.version.0 += 1;
        self.note_change(mirror, key);
        self.write_at(mirror, key, presence, verified_at, self.version, now);
        self.version
    }

    /// Writes an entry of the companion's knowledge that was written elsewhere, as `version`. How
    /// far the index has come is told apart, with [`Index::reached`].
    pub fn write_at(
        &mut self,
        mirror: &str,
        key: KeyRef<'_>,
        presence: Presence,
        verified_at: Timestamp,
        version: Version,
        now: Timestamp,
    ) {
        let listing = self.listing;
        self.forget_older_look(mirror, key, &presence, verified_at);
        let before = self.get(mirror, key).map(|entry| entry.version);
        if before.is_some_and(|before| version < before && before != Version::NEVER_SWEPT) {
            self.forget_sweeps();
        }
        // What the mirror has now may be what upstream has, and what it lacks is copied as upstream has it then.
        let has_moved = match &presence {
            Presence::Present(proof) => self.has_moved(mirror, key, Some(&proof.digest)),
            Presence::Missing => false,
            Presence::Unknown(_) => true,
        };
        if !has_moved {
            self.forget_moved(mirror, key);
        }
        if matches!(presence, Presence::Present(_))
            && !has_moved
            && let Some(reasons) = self.not_copied.get_mut(mirror)
        {
            reasons.remove(key.as_str());
        }
        let table = table_mut(&mut self.known, mirror);
        table.put(
            key,
            Entry {
                presence,
                verified_at,
                version,
                last_used: AtomicU32::new(seconds(now)),
                listing,
            },
        );
    }

    /// Notes that every write up to `version` has arrived: sweeps through it are believed from now on.
    pub fn reached(&mut self, version: Version) {
        if version < self.version {
            self.forget_sweeps();
        }
        self.version = version;
        for table in self.known.values_mut() {
            table.tags.sweeps.reached(version);
            table.digests.sweeps.reached(version);
        }
    }

    /// Forgets the sweeps of all mirrors: who wrote the entries has an older state than it had, as after a restored
    /// backup, and those sweeps looked at another one.
    fn forget_sweeps(&mut self) {
        for table in self.known.values_mut() {
            table.tags.sweeps = Sweeps::default();
            table.digests.sweeps = Sweeps::default();
        }
    }

    /// Begins to take in all entries anew. Those that are there stay until [`Index::end_listing`].
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it: what was not written since [`Index::begin_listing`] is gone.
    pub fn end_listing(&mut self) {
        let listing = self.listing;
        for table in self.known.values_mut() {
            table.retain(|_, entry| entry.listing == listing);
        }
    }

    /// Forgets what this replica saw itself where newer knowledge says more: it would never win, and
    /// looking for it would cost every review.
    fn forget_older_look(&mut self, mirror: &str, key: KeyRef<'_>, newer: &Presence, verified_at: Timestamp) {
        if matches!(newer, Presence::Unknown(_)) {
            return;
        }
        let Some(table) = self.seen.get_mut(mirror) else {
            return;
        };
        let Some(own) = table.entries.get_mut(key) else {
            return;
        };
        if own.verified_at <= verified_at {
            table.remove(key);
        } else {
            own.presence.learn(newer);
        }
    }

    /// Removes an entry of the companion's knowledge.
    pub fn remove(&mut self, mirror: &str, key: KeyRef<'_>) {
        if let Some(table) = self.known.get_mut(mirror)
            && table.remove(key)
        {
            self.note_change(mirror, key);
            self.forget_moved(mirror, key);
        }
    }

    /// Returns why an image that is missing, or has moved, was not copied, if that was tried in vain.
    pub fn not_copied(&self, mirror: &str, key: KeyRef<'_>) -> Option<copying::Reason> {
        let reason = *self.not_copied.get(mirror)?.get(key.as_str())?;
        (self.lacks(mirror, key) || self.moved(mirror, key).is_some()).then_some(reason)
    }

    /// Notes why an image was not copied, or that there is no such reason any more.
    pub fn set_not_copied(&mut self, mirror: &str, key: KeyRef<'_>, reason: Option<copying::Reason>) {
        let before = self.not_copied(mirror, key);
        let of_mirror = self.not_copied.get_mut(mirror);
        match (of_mirror, reason) {
            (Some(reasons), Some(reason)) => {
                reasons.insert(key.into(), reason);
            }
            (Some(reasons), None) => {
                reasons.remove(key.as_str());
            }
            (None, Some(reason)) => {
                let reasons = HashMap::from([(key.into(), reason)]);
                self.not_copied.insert(mirror.into(), reasons);
            }
            (None, None) => return,
        }
        let known = self.known.get(mirror);
        let moved = self.moved.get(mirror);
        if let Some(reasons) = self.not_copied.get_mut(mirror)
            && reasons.len() > NOT_COPIED_LIMIT
        {
            // Those that say nothing any more go first; at worst people are told of fewer.
            reasons.retain(|key, _| {
                let entry = known.and_then(|table| table.entries.get(key.by_ref()));
                entry.is_some_and(|entry| entry.presence == Presence::Missing)
                    || moved.is_some_and(|moved| moved.contains_key(key))
            });
            if reasons.len() > NOT_COPIED_LIMIT {
                // Some at once, so that the next ones need no look at all of them.
                let_go(reasons, NOT_COPIED_LIMIT / 16, key);
            }
        }
        if self.not_copied(mirror, key) != before {
            self.note_change(mirror, key);
        }
    }

    /// Takes in what somebody else noted of it, by the reason's name. What has an unknown name says nothing.
    pub fn learn_not_copied(&mut self, mirror: &str, key: KeyRef<'_>, reason: Option<&str>) {
        // Mostly there is none, and reviews wait meanwhile.
        if reason.is_some() || self.not_copied.contains_key(mirror) {
            self.set_not_copied(mirror, key, reason.and_then(copying::Reason::from_name));
        }
    }

    /// Notes from now on which of the companion's entries change, for [`Self::take_changes`].
    pub fn track_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// Returns mirror and key of every entry that was written or removed since the last call, each
    /// once; so there are never more than entries that are or were. A mirror that went with all its
    /// entries is not among them.
    pub fn take_changes(&mut self) -> BTreeSet<(Box<str>, ImageKey)> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note_change(&mut self, mirror: &str, key: KeyRef<'_>) {
        if let Some(changes) = &mut self.changes {
            changes.insert((mirror.into(), key.into()));
        }
    }

    /// Notes that a Pod uses an image. Returns whether there is an entry for it.
    pub fn touch(&self, mirror: &str, key: KeyRef<'_>, now: Timestamp) -> bool {
        let entry = self.get(mirror, key);
        entry.inspect(|entry| entry.touch(now)).is_some()
    }

    /// Returns when an entry was last seen to be as it is: the later of its own time and the start
    /// of the last complete sweep that covered it.
    pub fn verified_at(&self, mirror: &str, key: KeyRef<'_>) -> Option<Timestamp> {
        let table = self.known.get(mirror)?;
        let entry = table.entries.get(key)?;
        let swept = table
            .swept(key.class())
            .filter(|swept| entry.is_renewed_by(swept));
        Some(
            entry
                .verified_at
                .max(swept.map(|swept| swept.started_at).unwrap_or_default()),
        )
    }

    /// Makes room for one more image of a mirror: past `limit` entries, the sixteenth part that was
    /// used longest ago goes. Walks all entries, but so rarely that it does not matter.
    pub fn make_room(&mut self, mirror: &str, limit: usize) {
        let Some(table) = self
            .known
            .get_mut(mirror)
            .filter(|table| table.entries.len() >= limit)
        else {
            return;
        };
        let mut times: Vec<u32> = table
            .entries
            .iter()
            .map(|(_, entry)| entry.last_used.load(Ordering::Relaxed))
            .collect();
        let position = times.len() / 16;
        let (_, oldest_kept, _) = times.select_nth_unstable(position);
        let oldest_kept = *oldest_kept;
        let mut to_go = position + 1;
        let mut changes = self.changes.as_mut();
        table.retain(|key, entry| {
            let goes = to_go > 0 && entry.last_used.load(Ordering::Relaxed) <= oldest_kept;
            to_go -= usize::from(goes);
            if goes && let Some(changes) = &mut changes {
                changes.insert((mirror.into(), key.into()));
            }
            !goes
        });
    }

    /// Keeps only what belongs to the named mirrors.
    pub fn retain_mirrors(&mut self, keep: impl Fn(&str) -> bool) {
        self.known.retain(|mirror, _| keep(mirror));
        self.not_copied.retain(|mirror, _| keep(mirror));
        self.moved.retain(|mirror, _| keep(mirror));
        self.retain_seen(keep);
    }

    /// Keeps only what this replica saw itself of the named mirrors.
    pub fn retain_seen(&mut self, keep: impl Fn(&str) -> bool) {
        self.seen.retain(|mirror, _| keep(mirror));
        self.seen_order.retain(|(mirror, _)| keep(mirror));
    }

    /// Notes the end of a complete sweep. It is believed once [`Index::reached`] has come to its
    /// `through`; until then the sweep before it is.
    pub fn swept(&mut self, mirror: &str, class: Class, swept: Swept) {
        let reached = self.version;
        let table = table_mut(&mut self.known, mirror);
        table.of_mut(class).sweeps.told(swept, reached);
    }

    /// Returns the version up to which every write has arrived.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Completes what was seen of an image by what is known of the same digest.
    pub fn complete(&self, mirror: &str, key: KeyRef<'_>, proof: &mut Proof) {
        if let Some(Presence::Present(known)) = self.get(mirror, key).map(|entry| &entry.presence) {
            proof.learn(known);
        }
    }

    /// Remembers what this replica saw itself, forgetting its oldest look past the limit. What
    /// proves nothing is not remembered.
    pub fn see(&mut self, mirror: &str, key: KeyRef<'_>, mut presence: Presence, now: Timestamp) {
        if matches!(presence, Presence::Unknown(_)) {
            return;
        }
        if let Presence::Present(proof) = &mut presence {
            self.complete(mirror, key, proof);
        }
        let table = table_mut(&mut self.seen, mirror);
        let entry = Entry {
            presence,
            verified_at: now,
            version: Version::default(),
            last_used: AtomicU32::new(seconds(now)),
            listing: 0,
        };
        if table.put(key, entry) {
            return;
        }
        self.seen_order.push_back((mirror.into(), key.into()));
        if self.seen_order.len() > SEEN_LIMIT
            && let Some((mirror, key)) = self.seen_order.pop_front()
            && let Some(table) = self.seen.get_mut(&mirror)
        {
            table.remove(key.by_ref());
        }
    }

    /// Returns the companion's entries of one mirror, in no order.
    pub fn entries(&self, mirror: &str) -> impl Iterator<Item = (KeyRef<'_>, &Entry)> {
        self.known
            .get(mirror)
            .into_iter()
            .flat_map(|table| table.entries.iter())
    }

    /// Returns the number of the companion's entries of one mirror.
    pub fn len(&self, mirror: &str) -> usize {
        self.known.get(mirror).map_or(0, |table| table.entries.len())
    }

    /// Returns how many entries of the companion's each mirror has. Costs nothing for each of them.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        self.known
            .iter()
            .map(|(mirror, table)| (mirror.to_string(), table.tags.counts.and(table.digests.counts)))
            .collect()
    }

    /// Returns how many entries of one class the companion has of one mirror.
    pub fn counts_of(&self, mirror: &str, class: Class) -> Counts {
        self.known
            .get(mirror)
            .map(|table| table.of(class).counts)
            .unwrap_or_default()
    }
}

fn table_mut<'a>(tables: &'a mut Tables, mirror: &str) -> &'a mut Table {
    if !tables.contains_key(mirror) {
        tables.insert(mirror.into(), Table::default());
    }
    tables
        .get_mut(mirror)
        .expect("it was there or has just been inserted")
}

/// Returns the reason that an answer without proof leaves on an image; none for one with proof.
pub const fn reason_of(answer: &Answer) -> Option<Reason> {
    use super::answer::Ambiguity;
    match answer {
        Answer::Exists(_) => None,
        Answer::Missing => Some(Reason::ImageMissing),
        Answer::Unauthorized => Some(Reason::Unauthorized),
        Answer::RateLimited { .. } => Some(Reason::RateLimited),
        Answer::Unreachable(..) => Some(Reason::MirrorUnhealthy),
        Answer::Ambiguous(Ambiguity::DigestMismatch) => Some(Reason::DigestMismatch),
        Answer::ServerError(..) | Answer::Ambiguous(_) => Some(Reason::RegistryError),
    }
}

#[cfg(test)]
mod tests;
