//! The images of one mirror: what the API server has of each, and what is still to be written.
//!
//! A plan; nothing here speaks to anybody. What the API server has is known from its own answers and from
//! the watch, by version. A version that is not ours came by other hands (a backup, `kubectl`, a leader that
//! was paused): nobody looked at the mirror for it, so what it says is not believed. It is written anew once
//! a look told what is true, or as `Unknown` before the end of any sweep would cover it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    api::{self, v1alpha1::MirroredImageSpec},
    cluster::{
        objects::{self, Object},
        watch::version,
    },
    companion::cluster::status,
    domain::{
        image::Class,
        presence::{FUTURE, Index, Presence, Version, class_of},
        time::Timestamp,
    },
};

/// The longest image that a MirroredImage can name.
const LONGEST_IMAGE: usize = 1024;

/// How old a written time of use gets while the image is used.
const USE_AGE: Duration = Duration::from_hours(24);

/// How long an image is set aside after a write without success, and after one that the API server refused.
const ASIDE: Duration = Duration::from_secs(2);
const REFUSED: Duration = Duration::from_mins(1);

/// An image's key in the presence index, held once for all that is noted here.
pub(super) type Key = Arc<str>;

/// What is to become of a mirror's images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    InForce,
    /// Nobody can tell now.
    #[default]
    Open,
    /// There is no such mirror: its images go.
    Gone,
}

/// How an image came to be what the API server has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// As this leader wrote or took it over: a number that differs where anything but the times differs.
    Own(u64),
    /// By other hands: not to be believed before somebody looked.
    Foreign,
    /// Not to be believed whatever a look tells, such as one from the future.
    Void,
    /// The API server does not let it be replaced.
    Stuck,
}

/// What the API server has of one image.
#[derive(Clone, Copy, Debug)]
struct Written {
    version: Version,
    content: Content,
    /// When a Pod last used it, as written.
    last_used: Timestamp,
    /// The listing that last named it; none if none did since it was written.
    listing: Option<u32>,
}

/// A listing that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listing {
    pub(super) number: u32,
    pub(super) version: Version,
    /// The API server now has an older state than it had, as after a restored backup.
    pub(super) is_older: bool,
}

impl Listing {
    /// Whether the listing tells that this is gone: it is not named, though old enough to be.
    fn lacks(self, version: Version, named_by: Option<u32>) -> bool {
        named_by != Some(self.number) && (self.is_older || version <= self.version)
    }
}

/// A MirroredImage as the API server has it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) mirror: String,
    pub(super) key: String,
    pub(super) version: Version,
    presence: Presence,
    verified_at: Timestamp,
    last_used: Timestamp,
    /// None if it says what this program cannot read.
    fingerprint: Option<u64>,
}

impl Found {
    /// Returns what an object tells; nothing if it is not the one of its mirror and image.
    pub(super) fn of(object: &Object) -> Option<Self> {
        let (mirror, key, spec) = objects::image(object)?;
        let presence = spec.as_ref().map(api::image::presence);
        let last_used = spec.as_ref().and_then(|spec| spec.last_used.as_ref());
        Some(Self {
            mirror: mirror.to_owned(),
            key: key.to_owned(),
            version: version(&object.metadata.resource_version).unwrap_or(Version::NEVER_SWEPT),
            presence: presence.unwrap_or(Presence::Unknown(None)),
            verified_at: spec.as_ref().map(api::image::verified_at).unwrap_or_default(),
            last_used: last_used
                .map(|time| millis(time.0.as_millisecond()))
                .unwrap_or_default(),
            fingerprint: spec.as_ref().map(fingerprint),
        })
    }
}

fn millis(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// Returns a number that differs where anything but the times differs.
fn fingerprint(spec: &MirroredImageSpec) -> u64 {
    let mut hasher = DefaultHasher::new();
    let MirroredImageSpec {
        mirror,
        image,
        presence,
        reason,
        digest,
        media_type,
        platforms,
        size,
        access,
        verified_at: _,
        last_used: _,
    } = spec;
    (mirror, image, reason, digest, media_type, platforms, size).hash(&mut hasher);
    (*presence as u8, access.map(|access| access as u8)).hash(&mut hasher);
    hasher.finish()
}

/// What is sent to the API server about one image.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Create(Box<MirroredImageSpec>),
    Replace(Box<MirroredImageSpec>, Version),
    Delete(Version),
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was written as it was sent, and has this version.
    Wrote(Box<MirroredImageSpec>, Version),
    Deleted,
    /// Somebody else was faster: this is there, or nothing.
    Changed(Option<Box<Found>>),
    /// Something else is there under its name.
    Taken(Version),
    /// The API server will not have it.
    Refused,
    /// No answer, or one that says to try again later.
    Failed,
}

/// What the watch told of an image while a write of it was under way.
#[derive(Debug)]
enum News {
    /// And the listing that was the last when it was told.
    Found(Box<Found>, u32),
    Gone(Version),
}

/// A write under way.
#[derive(Debug, Default)]
struct Busy {
    /// The version that it is to replace or delete; none if it creates.
    over: Option<Version>,
    /// The API server has something that is not true any more.
    changes: bool,
    news: Option<News>,
}

/// What the API server should have of an image.
enum Wanted {
    This(Box<MirroredImageSpec>, Looked),
    Nothing,
    /// Nobody can tell now.
    Open,
}

/// Whether anybody has looked at an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looked {
    Yes,
    NotYet,
}

#[derive(Debug)]
pub(super) struct Images {
    mirror: Arc<str>,
    standing: Standing,
    written: HashMap<Key, Written>,
    /// What the API server has and should not have so.
    updates: BTreeSet<Key>,
    /// What the API server does not have and should.
    creates: BTreeSet<Key>,
    /// What came by other hands and waits for a look.
    unseen: BTreeSet<Key>,
    busy: BTreeMap<Key, Busy>,
    /// What was deleted, as it was, until the watch has told of it.
    leaving: BTreeMap<Key, Written>,
    /// What is tried again later.
    aside: BTreeMap<Key, Instant>,
    /// The highest version that concerns this mirror: whoever has reached it has heard everything.
    through: Version,
    /// The latest time that was found or written.
    newest: Timestamp,
    /// Whose turn it is of the first two lists.
    creates_next: bool,
}

impl Images {
    /// Returns the images of a mirror of which the API server has none, up to `through`.
    pub(super) fn new(mirror: &str, through: Version) -> Self {
        Self {
            mirror: mirror.into(),
            standing: Standing::default(),
            written: HashMap::new(),
            updates: BTreeSet::new(),
            creates: BTreeSet::new(),
            unseen: BTreeSet::new(),
            busy: BTreeMap::new(),
            leaving: BTreeMap::new(),
            aside: BTreeMap::new(),
            through,
            newest: Timestamp::default(),
            creates_next: false,
        }
    }

    pub(super) const fn standing(&self) -> Standing {
        self.standing
    }

    pub(super) fn len(&self) -> usize {
        self.written.len()
    }

    /// Whether nothing is known and nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.written.is_empty() && self.busy.is_empty() && self.leaving.is_empty()
    }

    pub(super) const fn through(&self) -> Version {
        self.through
    }

    pub(super) const fn newest(&self) -> Timestamp {
        self.newest
    }

    /// Takes in what is to become of the mirror's images, and looks through all of them if that is new.
    pub(super) fn stand(&mut self, standing: Standing, index: &Index) {
        if self.standing == standing {
            return;
        }
        self.standing = standing;
        self.updates.clear();
        self.creates.clear();
        self.unseen.clear();
        self.aside.clear();
        match standing {
            Standing::Open => {}
            Standing::Gone => {
                let idle = self.written.keys().filter(|key| !self.busy.contains_key(*key));
                self.updates = idle.cloned().collect();
            }
            Standing::InForce => {
                let new = index.entries(&self.mirror).map(|(key, _)| key);
                let new: Vec<Key> = new
                    .filter(|key| !self.written.contains_key(*key))
                    .map(Key::from)
                    .collect();
                let known: Vec<Key> = self.written.keys().cloned().collect();
                for key in known.into_iter().chain(new) {
                    self.sort(&key, index);
                }
            }
        }
    }

    /// Takes in an object of the first listing: the last leader wrote it, so it is believed.
    pub(super) fn inherit(&mut self, found: Found, listing: u32, index: &mut Index, now: Timestamp) {
        let is_void = found.verified_at > now.after(FUTURE);
        let used = found.last_used.max(found.verified_at).min(now);
        if is_void {
            let unknown = Presence::Unknown(None);
            index.write(&self.mirror, &found.key, unknown, Timestamp::default(), used);
        } else {
            let presence = found.presence.clone();
            index.write(&self.mirror, &found.key, presence, found.verified_at, used);
        }
        let content = match found.fingerprint {
            _ if is_void => Content::Void,
            Some(fingerprint) => Content::Own(fingerprint),
            None => Content::Foreign,
        };
        self.note(found, content, Some(listing), now);
    }

    /// Takes in an object that the watch told. What is not newer than what is known is known already.
    pub(super) fn take(&mut self, found: Found, listing: u32, index: &mut Index, now: Timestamp) {
        if let Some(busy) = self.busy.get_mut(found.key.as_str()) {
            busy.news = Some(News::Found(Box::new(found), listing));
            busy.changes = true;
            return;
        }
        self.take_idle(found, Some(listing), index, now);
    }

    /// The same where no write is under way; `listing` is none for what the watch did not tell.
    fn take_idle(&mut self, found: Found, listing: Option<u32>, index: &mut Index, now: Timestamp) {
        if let Some(written) = self.written.get_mut(found.key.as_str())
            && found.version <= written.version
        {
            written.listing = listing.or(written.listing);
            return;
        }
        let is_void = found.verified_at > now.after(FUTURE);
        if self.standing == Standing::InForce && !index.contains(&self.mirror, &found.key) {
            // From now on it is looked at like any other.
            let (unknown, used) = (Presence::Unknown(None), found.last_used.min(now));
            index.write(&self.mirror, &found.key, unknown, Timestamp::default(), used);
        }
        let content = if is_void { Content::Void } else { Content::Foreign };
        let key = self.note(found, content, listing, now);
        self.sort(&key, index);
    }

    fn note(&mut self, found: Found, content: Content, listing: Option<u32>, now: Timestamp) -> Key {
        self.through = self.through.max(found.version);
        let times = [found.verified_at, found.last_used].into_iter();
        let believable = times.filter(|time| *time <= now.after(FUTURE));
        self.newest = believable.fold(self.newest, Timestamp::max);
        let known = self.written.get_key_value(found.key.as_str());
        let key = known.map_or_else(|| Key::from(found.key), |(key, _)| Arc::clone(key));
        self.leaving.remove(&key);
        let written = Written {
            version: found.version,
            content,
            last_used: found.last_used,
            listing,
        };
        self.written.insert(Arc::clone(&key), written);
        key
    }

    /// Takes in that the watch told of a deletion.
    pub(super) fn gone(&mut self, key: &str, version: Version, index: &Index) {
        self.through = self.through.max(version);
        self.leaving.remove(key);
        if let Some(busy) = self.busy.get_mut(key) {
            busy.news = Some(News::Gone(version));
            return;
        }
        if self
            .written
            .get(key)
            .is_some_and(|written| written.version <= version)
            && let Some((key, _)) = self.written.remove_entry(key)
        {
            self.sort(&key, index);
        }
    }

    /// Takes in the end of a listing: what it did not name is gone.
    pub(super) fn listed(&mut self, listing: Listing, index: &Index) {
        let Listing {
            version, is_older, ..
        } = listing;
        let gone: Vec<Key> = self
            .written
            .iter()
            .filter(|(_, written)| listing.lacks(written.version, written.listing))
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in gone {
            if !self.busy.contains_key(&key) {
                self.written.remove(&key);
                self.sort(&key, index);
            } else if let Some(written) = self.written.get_mut(&key) {
                // Whatever it had before the older state.
                written.version = written.version.min(version);
            }
        }
        // The watch does not tell of what the listing lacks, so whoever writes it now hears it here.
        for (key, busy) in &mut self.busy {
            let is_gone = match &busy.news {
                Some(News::Found(found, told)) => listing.lacks(found.version, Some(*told)),
                Some(News::Gone(_)) => false,
                None => self
                    .written
                    .get(key)
                    .is_some_and(|written| listing.lacks(written.version, written.listing)),
            };
            if is_gone {
                busy.news = Some(News::Gone(version));
            }
        }
        self.leaving
            .retain(|_, written| !listing.lacks(written.version, written.listing));
        self.through = self.through.max(version);
        if is_older {
            self.through = version;
            let later = self.written.iter_mut();
            let later = later.filter(|(_, written)| written.version > version);
            let later: Vec<Key> = later
                .map(|(key, written)| {
                    written.content = Content::Foreign;
                    Arc::clone(key)
                })
                .collect();
            for key in later {
                self.sort(&key, index);
            }
        }
    }

    /// Takes in that what is known of an image may have changed.
    pub(super) fn changed(&mut self, key: &str, index: &Index) {
        let known = self.written.get_key_value(key).map(|(key, _)| Arc::clone(key));
        self.sort(&known.unwrap_or_else(|| key.into()), index);
    }

    /// Takes in the end of a sweep. It looked at what the index has; what else the API server has is to go
    /// first.
    pub(super) fn swept(&mut self, class: Class, index: &Index) {
        let unswept = self.written.keys();
        let unswept = unswept.filter(|key| class_of(key) == class && !index.contains(&self.mirror, key));
        let unswept: Vec<Key> = unswept.cloned().collect();
        for key in unswept {
            self.sort(&key, index);
        }
    }

    /// Has what waits for a look written as `Unknown`, because the end of a sweep is to be told.
    pub(super) fn hurry(&mut self, class: Class) {
        let hurried = self.unseen.extract_if(.., |key| class_of(key) == class);
        self.updates.extend(hurried);
    }

    /// Whether the API server has nothing that is known not to be true, and of these classes nothing that
    /// waits for a look.
    pub(super) fn is_settled(&self, mut swept: impl Iterator<Item = Class>) -> bool {
        let is_unseen = |class| self.unseen.iter().any(|key| class_of(key) == class);
        self.updates.is_empty()
            && !swept.any(is_unseen)
            && self.leaving.is_empty()
            && !self.busy.values().any(|busy| busy.changes)
            && !self.aside.keys().any(|key| self.written.contains_key(key))
    }

    /// Puts an image where its kind of change belongs; nowhere if it is as it should be.
    fn sort(&mut self, key: &Key, index: &Index) {
        if self.busy.contains_key(key) || self.aside.contains_key(key) {
            let is_untrue = self.is_untrue(key, index);
            if let Some(busy) = self.busy.get_mut(key) {
                busy.changes |= is_untrue;
            }
            return;
        }
        for list in [&mut self.updates, &mut self.creates, &mut self.unseen] {
            list.remove(key);
        }
        let content = self.written.get(key).map(|written| written.content);
        let list = match (self.wanted(key, index), content) {
            (Wanted::Open, _) | (Wanted::Nothing, None) => return,
            (Wanted::This(..), None) => &mut self.creates,
            (Wanted::This(spec, _), Some(Content::Own(now))) if fingerprint(&spec) == now => return,
            (Wanted::This(_, Looked::NotYet), Some(Content::Own(_) | Content::Foreign)) => &mut self.unseen,
            (Wanted::This(..) | Wanted::Nothing, Some(_)) => &mut self.updates,
        };
        list.insert(Arc::clone(key));
    }

    fn wanted(&self, key: &str, index: &Index) -> Wanted {
        match self.standing {
            Standing::Gone => return Wanted::Nothing,
            Standing::Open => return Wanted::Open,
            Standing::InForce => {}
        }
        let Some(entry) = index.get(&self.mirror, key) else {
            return Wanted::Nothing;
        };
        let looked = if entry.presence == Presence::Unknown(None) {
            Looked::NotYet
        } else {
            Looked::Yes
        };
        // What was only noted, and not looked at yet, is worth no object.
        if key.len() > LONGEST_IMAGE || (looked == Looked::NotYet && !self.written.contains_key(key)) {
            return Wanted::Nothing;
        }
        let verified_at = index.verified_at(&self.mirror, key).unwrap_or_default();
        let mut spec = api::image::spec(&self.mirror, key, &entry.presence, verified_at);
        spec.last_used = Some(status::time(entry.last_used()));
        Wanted::This(Box::new(spec), looked)
    }

    /// Returns the next write, and notes that it is under way.
    pub(super) fn next(&mut self, index: &Index, now: Instant) -> Option<(Key, Action)> {
        let due = self.aside.extract_if(.., |_, until| *until <= now);
        let due: Vec<Key> = due.map(|(key, _)| key).collect();
        for key in due {
            self.sort(&key, index);
        }
        loop {
            let (first, second) = if self.creates_next {
                (&mut self.creates, &mut self.updates)
            } else {
                (&mut self.updates, &mut self.creates)
            };
            let key = first.pop_first().or_else(|| second.pop_first())?;
            self.creates_next = !self.creates_next;
            if let Some(action) = self.action(&key, index) {
                let over = match &action {
                    Action::Create(_) => None,
                    Action::Replace(_, version) | Action::Delete(version) => Some(*version),
                };
                let busy = Busy {
                    over,
                    changes: over.is_some(),
                    news: None,
                };
                self.busy.insert(Arc::clone(&key), busy);
                return Some((key, action));
            }
        }
    }

    /// Whether the API server has something of the image, and it is not what it should have.
    fn is_untrue(&self, key: &str, index: &Index) -> bool {
        self.written.contains_key(key) && self.action(key, index).is_some()
    }

    fn action(&self, key: &str, index: &Index) -> Option<Action> {
        let written = self.written.get(key);
        match (self.wanted(key, index), written) {
            (Wanted::Open, _) | (Wanted::Nothing, None) => None,
            (Wanted::This(spec, _), None) => Some(Action::Create(spec)),
            (Wanted::This(spec, _), Some(written)) => match written.content {
                Content::Stuck => Some(Action::Delete(written.version)),
                Content::Own(now) if fingerprint(&spec) == now => None,
                Content::Own(_) | Content::Foreign | Content::Void => {
                    Some(Action::Replace(spec, written.version))
                }
            },
            (Wanted::Nothing, Some(written)) => Some(Action::Delete(written.version)),
        }
    }

    /// Returns what is used and has a written time of use that is too old, with that time.
    pub(super) fn uses<'a>(&'a self, index: &'a Index) -> impl Iterator<Item = (Timestamp, Key)> + 'a {
        let written = self.written.iter();
        let old = written.filter(|(key, written)| self.use_is_old(key, written, index));
        old.map(|(key, written)| (written.last_used, Arc::clone(key)))
    }

    fn use_is_old(&self, key: &str, written: &Written, index: &Index) -> bool {
        let entry = index.get(&self.mirror, key);
        let used = entry.map(crate::domain::presence::Entry::last_used);
        self.standing == Standing::InForce
            && used.is_some_and(|used| used.since(written.last_used) >= USE_AGE)
    }

    /// Returns the write of an image's time of use if it still is too old, and notes that it is under way.
    pub(super) fn next_use(&mut self, key: &Key, index: &Index) -> Option<Action> {
        let written = self.written.get(key)?;
        let waits = self.busy.contains_key(key) || self.aside.contains_key(key) || self.unseen.contains(key);
        if waits || !self.use_is_old(key, written, index) {
            return None;
        }
        let Wanted::This(spec, _) = self.wanted(key, index) else {
            return None;
        };
        let version = written.version;
        let changes = self.is_untrue(key, index);
        self.updates.remove(key);
        let busy = Busy {
            over: Some(version),
            changes,
            news: None,
        };
        self.busy.insert(Arc::clone(key), busy);
        Some(Action::Replace(spec, version))
    }

    /// Takes in what became of a write.
    pub(super) fn done(
        &mut self,
        key: &Key,
        outcome: Outcome,
        index: &mut Index,
        (instant, now): (Instant, Timestamp),
    ) {
        let Busy { over, news, .. } = self.busy.remove(key).unwrap_or_default();
        // What is there is what the write was meant for, and yet it was not written: it would go on like
        // that at once.
        let is_in_vain = match &outcome {
            Outcome::Changed(None) => over.is_none(),
            Outcome::Changed(Some(found)) => over == Some(found.version),
            // Next it is deleted, unless that was tried already.
            Outcome::Taken(version) => {
                let written = self.written.get(key);
                over == Some(*version) && written.is_some_and(|written| written.content == Content::Stuck)
            }
            _ => false,
        };
        if is_in_vain {
            self.aside.insert(Arc::clone(key), instant + ASIDE);
        }
        match outcome {
            Outcome::Wrote(spec, version) => {
                self.through = self.through.max(version);
                self.leaving.remove(key);
                self.newest = self.newest.max(api::image::verified_at(&spec));
                let last_used = spec.last_used.as_ref();
                let written = Written {
                    version,
                    // As it was sent: what an older definition drops would look like a change that is
                    // still to be written.
                    content: Content::Own(fingerprint(&spec)),
                    last_used: last_used
                        .map(|time| millis(time.0.as_millisecond()))
                        .unwrap_or_default(),
                    listing: None,
                };
                self.written.insert(Arc::clone(key), written);
            }
            Outcome::Deleted | Outcome::Changed(None) => {
                // A deletion has a version too, which only the watch tells; until then no sweep may
                // speak for those who have not heard of it.
                if let Some(written) = self.written.remove(key)
                    && !matches!(news, Some(News::Gone(_)))
                {
                    self.leaving.insert(Arc::clone(key), written);
                }
            }
            Outcome::Changed(Some(found)) => {
                // Whatever was known of it is not so.
                self.written.remove(key);
                self.take_idle(*found, None, index, now);
            }
            Outcome::Taken(version) => {
                let written = Written {
                    version,
                    content: Content::Stuck,
                    last_used: Timestamp::default(),
                    listing: None,
                };
                self.written.insert(Arc::clone(key), written);
            }
            Outcome::Refused => match self.written.get_mut(key) {
                Some(written) if written.content != Content::Stuck => written.content = Content::Stuck,
                _ => drop(self.aside.insert(Arc::clone(key), instant + REFUSED)),
            },
            Outcome::Failed => drop(self.aside.insert(Arc::clone(key), instant + ASIDE)),
        }
        match news {
            Some(News::Found(found, listing)) => self.take_idle(*found, Some(listing), index, now),
            Some(News::Gone(version)) => self.gone(key, version, index),
            None => {}
        }
        self.sort(key, index);
    }
}
