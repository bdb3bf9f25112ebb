//! What is still to be written for every mirror, and whose turn it is. A plan; nothing here speaks to
//! anybody.
//!
//! Each mirror has a queue of its own, and they are served in turn, so that none waits for another. The
//! images of a mirror that is gone come last: no sweep of it is told any more, so nobody waits for them. The
//! times of use trickle, so that each is written about once a day however many there are.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    images::{Action, Images, Listing, Outcome, Standing},
    statuses::Status,
};
use crate::{
    cluster::{objects::Entry, watch::Event},
    companion::cluster::mirrors::ClusterView,
    domain::{
        image::ImageKey,
        presence::{Index, Version},
        time::Timestamp,
    },
};

/// The time in which every time of use is written once.
const USE_ROUND: Duration = Duration::from_hours(23);

/// The shortest and the longest interval between two of them.
const TRICKLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));

/// How often images are looked through for times of use to write, where there was none.
const LOOK_AT_USE: Duration = Duration::from_mins(10);

/// A write of an image.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ImageWrite {
    pub(super) mirror: Arc<str>,
    pub(super) key: ImageKey,
    pub(super) action: Action,
}

/// What is to be written for one mirror.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) images: Images,
    pub(super) status: Status,
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    mirrors: BTreeMap<Arc<str>, Mirror>,
    /// The number of the present or last listing.
    listing: u32,
    /// All objects of a listing were told, but not yet its version.
    is_listed: bool,
    /// How far the watch of images has come; none before everything was listed once.
    reached: Option<Version>,
    /// A listing told that the API server has an older state than it had, and nobody has asked yet.
    went_back: bool,
    /// The mirror that had the last turn.
    last: Option<Arc<str>>,
    /// Times of use to write, the oldest first.
    uses: VecDeque<(Arc<str>, ImageKey)>,
    look_at_use: Option<Instant>,
    next_use: Option<Instant>,
}

impl Queues {
    /// Returns how far the watch of images has come; none before everything was listed once.
    pub(super) const fn reached(&self) -> Option<Version> {
        self.reached
    }

    /// Returns the latest time that any image tells.
    pub(super) fn newest(&self) -> Timestamp {
        let times = self.mirrors.values().map(|mirror| mirror.images.newest());
        times.max().unwrap_or_default()
    }

    /// Returns the number of images that the API server has.
    pub(super) fn len(&self) -> usize {
        self.mirrors.values().map(|mirror| mirror.images.len()).sum()
    }

    pub(super) fn get(&self, mirror: &str) -> Option<&Mirror> {
        self.mirrors.get(mirror)
    }

    pub(super) fn get_mut(&mut self, mirror: &str) -> Option<&mut Mirror> {
        self.mirrors.get_mut(mirror)
    }

    fn mirror(&mut self, name: &str) -> &mut Mirror {
        let through = self.reached.unwrap_or_default();
        self.mirrors.entry(name.into()).or_insert_with(|| Mirror {
            images: Images::new(name, through),
            status: Status::default(),
        })
    }

    /// Takes in what the watch of images tells.
    pub(super) fn take(&mut self, event: Event<Option<Entry>>, index: &mut Index, now: Timestamp) {
        let listing = self.listing;
        match event {
            Event::Listing => {
                self.listing = listing.wrapping_add(1);
                self.is_listed = false;
                for mirror in self.mirrors.values_mut() {
                    mirror.images.begin_listing();
                }
            }
            Event::Listed(Some(found)) if self.reached.is_none() => {
                let mirror = self.mirror(&found.mirror);
                mirror.images.inherit(found, listing, index, now);
            }
            Event::Listed(Some(found)) => {
                let mirror = self.mirror(&found.mirror);
                mirror.images.list(found, listing, index, now);
            }
            Event::Changed(Some(found)) => {
                let mirror = self.mirror(&found.mirror);
                mirror.images.take(found, listing, index, now);
            }
            Event::Deleted(Some(found)) => {
                if let Some(mirror) = self.mirrors.get_mut(found.mirror.as_str()) {
                    mirror.images.gone(&found.key, found.version, index);
                }
            }
            Event::Listed(None) | Event::Changed(None) | Event::Deleted(None) => {}
            Event::ListedAll { .. } => self.is_listed = true,
            Event::Reached(version) => {
                if std::mem::take(&mut self.is_listed) {
                    let is_older = self.reached.is_some_and(|reached| version < reached);
                    let listing = Listing {
                        number: listing,
                        version,
                        is_older,
                    };
                    for mirror in self.mirrors.values_mut() {
                        self.went_back |= mirror.images.listed(listing, index, now);
                    }
                }
                self.reached = Some(version);
            }
        }
    }

    /// Takes in which mirrors there are and which are in force. Returns those of which nothing counts that was
    /// written before: they are not the ones that were known by their names, or the API server has an older
    /// state than it had, as after a restored backup.
    pub(super) fn stand(
        &mut self,
        cluster: &ClusterView,
        in_force: &BTreeSet<&str>,
        index: &Index,
    ) -> Vec<String> {
        let mut others = Vec::new();
        let went_back = std::mem::take(&mut self.went_back);
        if went_back {
            tracing::warn!(
                "the API server has an older state than it had; what was written there proves nothing"
            );
        }
        for (name, resource) in &cluster.mirrors {
            let mirror = self.mirror(name);
            let was_gone = mirror.images.standing() == Standing::Gone;
            if went_back {
                mirror.status.forget();
            }
            if mirror.status.watched(resource) || was_gone || went_back {
                others.push(name.clone());
            }
            let standing = if in_force.contains(name.as_str()) {
                Standing::InForce
            } else {
                Standing::Open
            };
            mirror.images.stand(standing, index);
        }
        self.mirrors.retain(|name, mirror| {
            if cluster.mirrors.contains_key(&**name) {
                return true;
            }
            mirror.images.stand(Standing::Gone, index);
            mirror.status = Status::default();
            !mirror.images.is_empty()
        });
        others
    }

    /// Takes in that what is known of images may have changed.
    pub(super) fn changed(&mut self, changes: &BTreeSet<(Box<str>, ImageKey)>, index: &Index) {
        for (mirror, key) in changes {
            if let Some(mirror) = self.mirrors.get_mut(&**mirror) {
                mirror.images.changed(key, index);
            }
        }
    }

    /// Returns the next write of an image, and notes that it is under way.
    pub(super) fn next(&mut self, index: &Index, now: Instant) -> Option<ImageWrite> {
        self.next_of(|standing| standing != Standing::Gone, index, now)
            .or_else(|| self.next_use(index, now))
            .or_else(|| self.next_of(|standing| standing == Standing::Gone, index, now))
    }

    fn next_of(
        &mut self,
        whose: impl Fn(Standing) -> bool,
        index: &Index,
        now: Instant,
    ) -> Option<ImageWrite> {
        let last = self.last.as_deref();
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let upto = last.map_or(Bound::Excluded(""), Bound::Included);
        let later = self.mirrors.range::<str, _>((after, Bound::Unbounded));
        let names = later.chain(self.mirrors.range::<str, _>((Bound::Unbounded, upto)));
        let names = names.filter(|(_, mirror)| whose(mirror.images.standing()));
        let names: Vec<Arc<str>> = names.map(|(name, _)| Arc::clone(name)).collect();
        names.into_iter().find_map(|name| {
            let (key, action) = self.mirrors.get_mut(&name)?.images.next(index, now)?;
            self.last = Some(Arc::clone(&name));
            Some(ImageWrite {
                mirror: name,
                key,
                action,
            })
        })
    }

    fn next_use(&mut self, index: &Index, now: Instant) -> Option<ImageWrite> {
        if self.next_use.is_some_and(|due| due > now) {
            return None;
        }
        if self.uses.is_empty() && self.look_at_use.is_none_or(|due| due <= now) {
            self.look_at_use = Some(now + LOOK_AT_USE);
            let mirrors = self.mirrors.iter();
            let uses = mirrors.flat_map(|(name, mirror)| {
                let uses = mirror.images.uses(index);
                uses.map(|(used, key)| (used, Arc::clone(name), key))
            });
            let mut uses: Vec<_> = uses.collect();
            uses.sort_unstable();
            self.uses = uses.into_iter().map(|(_, name, key)| (name, key)).collect();
        }
        while let Some((name, key)) = self.uses.pop_front() {
            let mirror = self.mirrors.get_mut(&name);
            if let Some(action) = mirror.and_then(|mirror| mirror.images.next_use(&key, index)) {
                let images = u32::try_from(self.len()).unwrap_or(u32::MAX).max(1);
                // From when it was due: turns come a little late, each of them.
                let due = self.next_use.unwrap_or(now);
                let due = due.max(now.checked_sub(TRICKLE.0).unwrap_or(now));
                self.next_use = Some(due + (USE_ROUND / images).clamp(TRICKLE.0, TRICKLE.1));
                return Some(ImageWrite {
                    mirror: name,
                    key,
                    action,
                });
            }
        }
        None
    }

    /// Takes in what became of a write.
    pub(super) fn done(
        &mut self,
        mirror: &str,
        key: &ImageKey,
        outcome: Outcome,
        index: &mut Index,
        now: (Instant, Timestamp),
    ) {
        if let Some(mirror) = self.mirrors.get_mut(mirror) {
            mirror.images.done(key, outcome, index, now);
        }
    }
}
