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

use super::send::NotInstalled;
use crate::{
    api::{
        self,
        v1alpha1::{MirroredImage, MirroredImageSpec},
    },
    cluster::objects::Entry,
    companion::cluster::status,
    domain::{
        image::{Class, ImageKey},
        presence::{FUTURE, Index, Presence, Version},
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

/// Whether what an object says was seen later than clocks differ: nobody believes it.
fn is_of_the_future(found: &Entry, now: Timestamp) -> bool {
    found.verified_at > now.after(FUTURE)
}

/// Returns a number that differs where anything but the times differs.
fn fingerprint(spec: &MirroredImageSpec) -> u64 {
    let mut hasher = DefaultHasher::new();
    let MirroredImageSpec {
        mirror,
        image,
        presence,
        reason,
        not_copied,
        digest,
        upstream_digest,
        media_type,
        platforms,
        size,
        access,
        verified_at: _,
        last_used: _,
    } = spec;
    (
        mirror,
        image,
        reason,
        not_copied,
        digest,
        upstream_digest,
        media_type,
        platforms,
        size,
    )
        .hash(&mut hasher);
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
    Changed(Option<Box<Entry>>),
    /// Something else is there under its name.
    Taken(Version),
    /// The API server will not have it, for this reason.
    Refused(String),
    /// No answer, or one that says to try again later.
    Failed(String),
    /// The API server has no images, whatever they are.
    NotInstalled,
}

/// A write that was in vain, of something that the API server has.
#[derive(Debug)]
struct Hindrance {
    key: ImageKey,
    cause: String,
}

/// What the watch told of an image while a write of it was under way.
#[derive(Debug)]
enum News {
    /// And the listing that was the last when it was told.
    Found(Box<Entry>, u32),
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
    written: HashMap<ImageKey, Written>,
    /// What the API server has and should not have so.
    updates: BTreeSet<ImageKey>,
    /// What the API server does not have and should.
    creates: BTreeSet<ImageKey>,
    /// What came by other hands and waits for a look.
    unseen: BTreeSet<ImageKey>,
    busy: BTreeMap<ImageKey, Busy>,
    /// What the listing in progress has named as it was before what is known of it: too early, or the API server
    /// has an older state than it had.
    older: BTreeMap<ImageKey, Entry>,
    /// What was deleted, as it was, until the watch has told of it.
    leaving: BTreeMap<ImageKey, Written>,
    /// What is tried again later.
    aside: BTreeMap<ImageKey, Instant>,
    /// One of those that the API server has otherwise than it should: the same one until that ends.
    hindrance: Option<Hindrance>,
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
            older: BTreeMap::new(),
            leaving: BTreeMap::new(),
            aside: BTreeMap::new(),
            hindrance: None,
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
                let new: Vec<ImageKey> = new
                    .filter(|key| !self.written.contains_key(key.as_str()))
                    .map(ImageKey::from)
                    .collect();
                let known: Vec<ImageKey> = self.written.keys().cloned().collect();
                for key in known.into_iter().chain(new) {
                    self.sort(&key, index);
                }
            }
        }
    }

    /// Takes in an object of the first listing: the last leader wrote it, so it is believed.
    pub(super) fn inherit(&mut self, found: Entry, listing: u32, index: &mut Index, now: Timestamp) {
        let is_void = is_of_the_future(&found, now);
        let used = found.last_used.max(found.verified_at).min(now);
        let (presence, verified_at) = if is_void {
            (Presence::Unknown(None), Timestamp::default())
        } else {
            (found.presence.clone(), found.verified_at)
        };
        index.write(&self.mirror, found.key.by_ref(), presence, verified_at, used);
        let not_copied = found.spec.as_ref().and_then(|spec| spec.not_copied.as_deref());
        index.learn_not_copied(&self.mirror, found.key.by_ref(), not_copied);
        let upstream = found
            .spec
            .as_ref()
            .and_then(|spec| spec.upstream_digest.as_deref());
        index.learn_upstream(&self.mirror, found.key.by_ref(), upstream);
        let content = match &found.spec {
            _ if is_void => Content::Void,
            Some(spec) => Content::Own(fingerprint(spec)),
            None => Content::Foreign,
        };
        self.note(found, content, Some(listing), now);
    }

    /// Takes in that a listing begins.
    pub(super) fn begin_listing(&mut self) {
        self.older.clear();
    }

    /// Takes in an object of a listing after the first.
    pub(super) fn list(&mut self, found: Entry, listing: u32, index: &mut Index, now: Timestamp) {
        match self.written.get_key_value(&found.key) {
            Some((key, written)) if found.version < written.version => {
                self.older.insert(key.clone(), found.clone());
            }
            _ => drop(self.older.remove(&found.key)),
        }
        self.take(found, listing, index, now);
    }

    /// Takes in an object that the watch told. What is not newer than what is known is known already.
    pub(super) fn take(&mut self, found: Entry, listing: u32, index: &mut Index, now: Timestamp) {
        if let Some(busy) = self.busy.get_mut(&found.key) {
            busy.news = Some(News::Found(Box::new(found), listing));
            busy.changes = true;
            return;
        }
        self.take_idle(found, Some(listing), index, now);
    }

    /// The same where no write is under way; `listing` is none for what the watch did not tell.
    fn take_idle(&mut self, found: Entry, listing: Option<u32>, index: &mut Index, now: Timestamp) {
        if let Some(written) = self.written.get_mut(&found.key)
            && found.version <= written.version
        {
            written.listing = listing.or(written.listing);
            return;
        }
        let is_void = is_of_the_future(&found, now);
        if self.standing == Standing::InForce && !index.contains(&self.mirror, found.key.by_ref()) {
            // From now on it is looked at like any other.
            let (unknown, used) = (Presence::Unknown(None), found.last_used.min(now));
            index.write(
                &self.mirror,
                found.key.by_ref(),
                unknown,
                Timestamp::default(),
                used,
            );
        }
        let content = if is_void { Content::Void } else { Content::Foreign };
        let key = self.note(found, content, listing, now);
        self.sort(&key, index);
    }

    fn note(&mut self, found: Entry, content: Content, listing: Option<u32>, now: Timestamp) -> ImageKey {
        self.through = self.through.max(found.version);
        let times = [found.verified_at, found.last_used].into_iter();
        let believable = times.filter(|time| *time <= now.after(FUTURE));
        self.newest = believable.fold(self.newest, Timestamp::max);
        let known = self.written.get_key_value(&found.key);
        let key = known.map(|(key, _)| key.clone()).unwrap_or(found.key);
        self.leaving.remove(&key);
        let written = Written {
            version: found.version,
            content,
            last_used: found.last_used,
            listing,
        };
        self.written.insert(key.clone(), written);
        key
    }

    /// Takes in that the watch told of a deletion.
    pub(super) fn gone(&mut self, key: &ImageKey, version: Version, index: &Index) {
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

    /// Takes in the end of a listing: what it did not name is gone. Returns whether the API server has an older
    /// state than it had.
    pub(super) fn listed(&mut self, listing: Listing, index: &mut Index, now: Timestamp) -> bool {
        let Listing {
            number,
            version,
            is_older,
        } = listing;
        let mut went_back = is_older;
        for (key, found) in std::mem::take(&mut self.older) {
            // Else it was written after the list was read.
            let is_lost = |written: &Written| found.version < written.version && written.version <= version;
            if !self.written.get(&key).is_some_and(is_lost) {
                continue;
            }
            went_back = true;
            // Whoever writes it now is told by a conflict.
            if !self.busy.contains_key(&key) {
                self.written.remove(&key);
                self.take_idle(found, Some(number), index, now);
            }
        }
        let gone: Vec<ImageKey> = self
            .written
            .iter()
            .filter(|(_, written)| listing.lacks(written.version, written.listing))
            .map(|(key, _)| key.clone())
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
            let later: Vec<ImageKey> = later
                .map(|(key, written)| {
                    written.content = Content::Foreign;
                    key.clone()
                })
                .collect();
            for key in later {
                self.sort(&key, index);
            }
        }
        went_back
    }

    /// Takes in that what is known of an image may have changed.
    pub(super) fn changed(&mut self, key: &ImageKey, index: &Index) {
        let known = self.written.get_key_value(key).map(|(key, _)| key.clone());
        self.sort(&known.unwrap_or_else(|| key.clone()), index);
    }

    /// Takes in the end of a sweep. It looked at what the index has; what else the API server has is to go
    /// first.
    pub(super) fn swept(&mut self, class: Class, index: &Index) {
        let unswept = self.written.keys();
        let unswept = unswept
            .filter(|key| key.by_ref().class() == class && !index.contains(&self.mirror, key.by_ref()));
        let unswept: Vec<ImageKey> = unswept.cloned().collect();
        for key in unswept {
            self.sort(&key, index);
        }
    }

    /// Has what waits for a look written as `Unknown`, because the end of a sweep is to be told.
    pub(super) fn hurry(&mut self, class: Class) {
        let hurried = self.unseen.extract_if(.., |key| key.by_ref().class() == class);
        self.updates.extend(hurried);
    }

    /// Whether the API server has nothing that is known not to be true, and of these classes nothing that
    /// waits for a look.
    pub(super) fn is_settled(&self, mut swept: impl Iterator<Item = Class>) -> bool {
        let is_unseen = |class| self.unseen.iter().any(|key| key.by_ref().class() == class);
        self.updates.is_empty()
            && !swept.any(is_unseen)
            && self.leaving.is_empty()
            && !self.busy.values().any(|busy| busy.changes)
            && !self.aside.keys().any(|key| self.written.contains_key(key))
    }

    /// Returns which object cannot be written although it is not true, and why, if there is one.
    pub(super) fn hindrance(&self) -> Option<String> {
        let Hindrance { key, cause } = self
            .hindrance
            .as_ref()
            .filter(|hindrance| self.holds(hindrance))?;
        let name = MirroredImage::object_name(&self.mirror, key.as_str());
        Some(format!("MirroredImage {name} ({key}): {cause}"))
    }

    fn holds(&self, Hindrance { key, .. }: &Hindrance) -> bool {
        let waits = self.updates.contains(key) || self.busy.contains_key(key) || self.aside.contains_key(key);
        waits && self.written.contains_key(key)
    }

    /// Notes what became of the last write of an image: why it was in vain, or that it was not.
    fn note_hindrance(&mut self, key: &ImageKey, cause: Option<String>) {
        let other = self.hindrance.as_ref().filter(|known| known.key != *key);
        if other.is_some_and(|other| self.holds(other)) {
            return;
        }
        let is_known = self.hindrance.as_ref().is_some_and(|known| known.key == *key);
        match cause {
            Some(_) if is_known => {}
            Some(cause) => {
                let key = key.clone();
                self.hindrance = Some(Hindrance { key, cause });
            }
            None => self.hindrance = None,
        }
    }

    /// Puts an image where its kind of change belongs; nowhere if it is as it should be.
    fn sort(&mut self, key: &ImageKey, index: &Index) {
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
        list.insert(key.clone());
    }

    fn wanted(&self, key: &ImageKey, index: &Index) -> Wanted {
        match self.standing {
            Standing::Gone => return Wanted::Nothing,
            Standing::Open => return Wanted::Open,
            Standing::InForce => {}
        }
        let Some(entry) = index.get(&self.mirror, key.by_ref()) else {
            return Wanted::Nothing;
        };
        let looked = if entry.presence == Presence::Unknown(None) {
            Looked::NotYet
        } else {
            Looked::Yes
        };
        // What was only noted, and not looked at yet, is worth no object.
        if key.as_str().len() > LONGEST_IMAGE || (looked == Looked::NotYet && !self.written.contains_key(key))
        {
            return Wanted::Nothing;
        }
        let verified_at = index.verified_at(&self.mirror, key.by_ref()).unwrap_or_default();
        let mut spec = api::image::spec(&self.mirror, key.by_ref(), &entry.presence, verified_at);
        spec.last_used = Some(status::time(entry.last_used()));
        let not_copied = index.not_copied(&self.mirror, key.by_ref());
        spec.not_copied = not_copied.map(|reason| reason.as_str().to_owned());
        let upstream = index.moved(&self.mirror, key.by_ref());
        spec.upstream_digest = upstream.map(ToString::to_string);
        Wanted::This(Box::new(spec), looked)
    }

    /// Returns the next write, and notes that it is under way.
    pub(super) fn next(&mut self, index: &Index, now: Instant) -> Option<(ImageKey, Action)> {
        let due = self.aside.extract_if(.., |_, until| *until <= now);
        let due: Vec<ImageKey> = due.map(|(key, _)| key).collect();
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
                self.busy.insert(key.clone(), busy);
                return Some((key, action));
            }
        }
    }

    /// Whether the API server has something of the image, and it is not what it should have.
    fn is_untrue(&self, key: &ImageKey, index: &Index) -> bool {
        self.written.contains_key(key) && self.action(key, index).is_some()
    }

    fn action(&self, key: &ImageKey, index: &Index) -> Option<Action> {
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
    pub(super) fn uses<'a>(&'a self, index: &'a Index) -> impl Iterator<Item = (Timestamp, ImageKey)> + 'a {
        let written = self.written.iter();
        let old = written.filter(|(key, written)| self.use_is_old(key, written, index));
        old.map(|(key, written)| (written.last_used, key.clone()))
    }

    fn use_is_old(&self, key: &ImageKey, written: &Written, index: &Index) -> bool {
        let entry = index.get(&self.mirror, key.by_ref());
        let used = entry.map(crate::domain::presence::Entry::last_used);
        self.standing == Standing::InForce
            && used.is_some_and(|used| used.since(written.last_used) >= USE_AGE)
    }

    /// Returns the write of an image's time of use if it still is too old, and notes that it is under way.
    pub(super) fn next_use(&mut self, key: &ImageKey, index: &Index) -> Option<Action> {
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
        self.busy.insert(key.clone(), busy);
        Some(Action::Replace(spec, version))
    }

    /// Takes in what became of a write.
    pub(super) fn done(
        &mut self,
        key: &ImageKey,
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
            self.aside.insert(key.clone(), instant + ASIDE);
        }
        let cause = match &outcome {
            Outcome::Refused(cause) | Outcome::Failed(cause) => Some(cause.clone()),
            Outcome::NotInstalled => Some(NotInstalled.to_string()),
            _ => is_in_vain.then(|| "a conflict, though nobody else writes it".to_owned()),
        };
        self.note_hindrance(key, cause);
        match outcome {
            Outcome::Wrote(spec, version) => {
                self.through = self.through.max(version);
                self.leaving.remove(key);
                self.newest = self.newest.max(api::image::verified_at(&spec));
                let written = Written {
                    version,
                    // As it was sent: what an older definition drops would look like a change that is
                    // still to be written.
                    content: Content::Own(fingerprint(&spec)),
                    last_used: api::image::last_used(&spec),
                    listing: None,
                };
                self.written.insert(key.clone(), written);
            }
            Outcome::Deleted | Outcome::Changed(None) => {
                // A deletion has a version too, which only the watch tells; until then no sweep may
                // speak for those who have not heard of it.
                if let Some(written) = self.written.remove(key)
                    && !matches!(news, Some(News::Gone(_)))
                {
                    self.leaving.insert(key.clone(), written);
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
                self.written.insert(key.clone(), written);
            }
            Outcome::Refused(_) => match self.written.get_mut(key) {
                Some(written) if written.content != Content::Stuck => written.content = Content::Stuck,
                _ => drop(self.aside.insert(key.clone(), instant + REFUSED)),
            },
            Outcome::Failed(_) | Outcome::NotInstalled => {
                self.aside.insert(key.clone(), instant + ASIDE);
            }
        }
        match news {
            Some(News::Found(found, listing)) => self.take_idle(*found, Some(listing), index, now),
            Some(News::Gone(version)) => self.gone(key, version, index),
            None => {}
        }
        self.sort(key, index);
    }
}
