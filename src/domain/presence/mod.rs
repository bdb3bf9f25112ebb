//! What is known of images on mirrors, and when that is proof.
//!
//! The companion's knowledge (`known`) is written by one feeder alone; what a replica saw itself
//! (`seen`) stands beside it, bounded. An entry is proof only from the later of its own
//! `verified_at` and the start of the last complete sweep that covered it, not before the mirror's
//! `proven_since`, not past the freshness bound and not from the future. Time is wall-clock time
//! and may jump: every jump makes proofs void, none makes them longer than the bound.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{
    answer::{Answer, Manifest, MediaType},
    digest::Digest,
    image::Class,
    mirror::{Freshness, Kind, Mirror},
    platform::Architectures,
    reason::Reason,
    time::Timestamp,
};

/// How far ahead of this machine's clock a proof may be (design: "Proofs more than 5 s in the future").
const FUTURE: Duration = Duration::from_secs(5);

/// How many images one replica remembers of its own probes.
pub const SEEN_LIMIT: usize = 10_000;

/// Returns the class of an image's key (`name:tag` or `name@digest`).
pub fn class_of(key: &str) -> Class {
    if key.contains('@') {
        Class::Digest
    } else {
        Class::Tag
    }
}

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
    pub architectures: Architectures,
    /// Size of the manifest in bytes, where the registry told.
    pub size: Option<u64>,
    /// Whether an anonymous client gets the image upstream; absent if nobody asked.
    pub public: Option<bool>,
}

impl Proof {
    /// Returns what a seen manifest proves, given the architectures whose children are there too.
    pub fn new(manifest: &Manifest, architectures: Architectures) -> Self {
        Self {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type,
            architectures: if manifest.media_type.is_index() {
                architectures
            } else {
                Architectures::ALL
            },
            size: manifest.size,
            public: None,
        }
    }
}

/// The version of the index after a write: what a sweep uses to tell which entries it covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// What is known of one image on one mirror.
#[derive(Debug)]
pub struct Entry {
    pub presence: Presence,
    pub verified_at: Timestamp,
    pub version: Version,
    /// Seconds since the epoch; written by readers, so atomic.
    last_used: AtomicU32,
}

impl Entry {
    /// Returns when a Pod last named this image, to the second.
    pub fn last_used(&self) -> Timestamp {
        Timestamp::from_millis(u64::from(self.last_used.load(Ordering::Relaxed)) * 1000)
    }

    fn touch(&self, now: Timestamp) {
        self.last_used.store(seconds(now), Ordering::Relaxed);
    }
}

fn seconds(now: Timestamp) -> u32 {
    u32::try_from(now.as_millis() / 1000).unwrap_or(u32::MAX)
}

/// The end of a complete sweep of one class: every entry up to `through` was seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    pub started_at: Timestamp,
    pub through: Version,
}

/// What is known of the images of one mirror.
#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Box<str>, Entry>,
    swept_tags: Option<Swept>,
    swept_digests: Option<Swept>,
}

impl Table {
    const fn swept(&self, class: Class) -> Option<Swept> {
        match class {
            Class::Tag => self.swept_tags,
            Class::Digest => self.swept_digests,
        }
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
                .filter(|swept| entry.version <= swept.through)
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

/// What is known of all images on all mirrors.
#[derive(Debug, Default)]
pub struct Index {
    known: HashMap<Box<str>, Table>,
    seen: HashMap<Box<str>, Table>,
    seen_order: std::collections::VecDeque<(Box<str>, Box<str>)>,
    version: Version,
}

impl Index {
    /// Returns what is known of an image on a mirror, and notes that a Pod names it.
    ///
    /// The latest look decides, the companion's or the replica's own. So an absence that is too old
    /// to be believed still ends the proof before it.
    pub fn judge(&self, mirror: &str, key: &str, rules: &Rules, now: Timestamp) -> Judgement<'_> {
        let class = class_of(key);
        let known = Self::judge_in(&self.known, mirror, key, class, rules, now);
        let own = Self::judge_in(&self.seen, mirror, key, class, rules, now);
        match (known, own) {
            (Some((known_at, _)), Some((own_at, own))) if own_at > known_at => own,
            (Some((_, judgement)), _) | (None, Some((_, judgement))) => judgement,
            (None, None) => Judgement::Unproven(None),
        }
    }

    fn judge_in<'a>(
        tables: &'a HashMap<Box<str>, Table>,
        mirror: &str,
        key: &str,
        class: Class,
        rules: &Rules,
        now: Timestamp,
    ) -> Option<(Option<Timestamp>, Judgement<'a>)> {
        let table = tables.get(mirror)?;
        let entry = table.entries.get(key)?;
        entry.touch(now);
        Some(rules.judge(entry, class, table.swept(class), now))
    }

    /// Returns whether the companion's knowledge has an entry for this image, of whatever kind.
    pub fn contains(&self, mirror: &str, key: &str) -> bool {
        self.known
            .get(mirror)
            .is_some_and(|table| table.entries.contains_key(key))
    }

    /// Returns the entry of the companion's knowledge.
    pub fn get(&self, mirror: &str, key: &str) -> Option<&Entry> {
        self.known.get(mirror)?.entries.get(key)
    }

    /// Writes an entry of the companion's knowledge. Returns the index's version after that.
    pub fn write(
        &mut self,
        mirror: &str,
        key: &str,
        presence: Presence,
        verified_at: Timestamp,
        now: Timestamp,
    ) -> Version {
        self.version.0 += 1;
        let version = self.version;
        let table = table_mut(&mut self.known, mirror);
        if let Some(entry) = table.entries.get_mut(key) {
            entry.presence = presence;
            entry.verified_at = verified_at;
            entry.version = version;
        } else {
            let last_used = AtomicU32::new(seconds(now));
            table.entries.insert(
                key.into(),
                Entry {
                    presence,
                    verified_at,
                    version,
                    last_used,
                },
            );
        }
        version
    }

    /// Removes an entry of the companion's knowledge.
    pub fn remove(&mut self, mirror: &str, key: &str) {
        if let Some(table) = self.known.get_mut(mirror) {
            table.entries.remove(key);
        }
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
            .values()
            .map(|entry| entry.last_used.load(Ordering::Relaxed))
            .collect();
        let position = times.len() / 16;
        let (_, oldest_kept, _) = times.select_nth_unstable(position);
        let oldest_kept = *oldest_kept;
        let mut to_go = position + 1;
        table.entries.retain(|_, entry| {
            let goes = to_go > 0 && entry.last_used.load(Ordering::Relaxed) <= oldest_kept;
            to_go -= usize::from(goes);
            !goes
        });
    }

    /// Keeps only what belongs to the named mirrors.
    pub fn retain_mirrors(&mut self, keep: impl Fn(&str) -> bool) {
        self.known.retain(|mirror, _| keep(mirror));
        self.seen.retain(|mirror, _| keep(mirror));
        self.seen_order.retain(|(mirror, _)| keep(mirror));
    }

    /// Notes the end of a complete sweep.
    pub fn swept(&mut self, mirror: &str, class: Class, swept: Swept) {
        let table = table_mut(&mut self.known, mirror);
        match class {
            Class::Tag => table.swept_tags = Some(swept),
            Class::Digest => table.swept_digests = Some(swept),
        }
    }

    /// Returns the version of the last write.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Remembers what this replica saw itself, forgetting its oldest look past the limit. What
    /// proves nothing is not remembered.
    pub fn see(&mut self, mirror: &str, key: &str, presence: Presence, now: Timestamp) {
        if matches!(presence, Presence::Unknown(_)) {
            return;
        }
        let table = table_mut(&mut self.seen, mirror);
        let entry = Entry {
            presence,
            verified_at: now,
            version: Version::default(),
            last_used: AtomicU32::new(seconds(now)),
        };
        if table.entries.insert(key.into(), entry).is_some() {
            return;
        }
        self.seen_order.push_back((mirror.into(), key.into()));
        if self.seen_order.len() > SEEN_LIMIT
            && let Some((mirror, key)) = self.seen_order.pop_front()
            && let Some(table) = self.seen.get_mut(&mirror)
        {
            table.entries.remove(&key);
        }
    }

    /// Returns the companion's entries of one mirror, in no order.
    pub fn entries(&self, mirror: &str) -> impl Iterator<Item = (&str, &Entry)> {
        self.known
            .get(mirror)
            .into_iter()
            .flat_map(|table| &table.entries)
            .map(|(key, entry)| (&**key, entry))
    }

    /// Returns the number of the companion's entries of one mirror.
    pub fn len(&self, mirror: &str) -> usize {
        self.known.get(mirror).map_or(0, |table| table.entries.len())
    }

    /// Counts the companion's entries of every mirror. Walks all of them.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        let count = |table: &Table| {
            let mut counts = Counts::default();
            for entry in table.entries.values() {
                match entry.presence {
                    Presence::Present(_) => counts.present += 1,
                    Presence::Missing => counts.missing += 1,
                    Presence::Unknown(_) => counts.unknown += 1,
                }
            }
            counts
        };
        self.known
            .iter()
            .map(|(mirror, table)| (mirror.to_string(), count(table)))
            .collect()
    }
}

fn table_mut<'a>(tables: &'a mut HashMap<Box<str>, Table>, mirror: &str) -> &'a mut Table {
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
        Answer::Unreachable(_) => Some(Reason::MirrorUnhealthy),
        Answer::Ambiguous(Ambiguity::DigestMismatch) => Some(Reason::DigestMismatch),
        Answer::ServerError(_) | Answer::Ambiguous(_) => Some(Reason::RegistryError),
    }
}

#[cfg(test)]
mod tests;
