//! The images that mirrors are to be filled with, as whoever knows Pods tells, for who fills them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use crate::{
    cluster::elector::Held,
    domain::{
        copying::{
            Own,
            queue::{Queue, Wanted},
        },
        image::ImageKey,
    },
    state::logins::Logins,
};

/// What it takes to fill mirrors. Clones share it. By default there are no logins, and so nothing is filled.
#[derive(Clone, Debug, Default)]
pub struct Means {
    pub wants: Wants,
    pub logins: Logins,
    /// Without it nothing is written, where several processes could.
    pub lease: Option<Held>,
    pub slots: Slots,
    pub cluster: Cluster,
}

/// The cluster for which mirrors are filled, once it is known; never where there is none. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cluster(Arc<OnceLock<Own>>);

impl Cluster {
    /// Takes in the UID of its namespace kube-system, which is that of the cluster.
    pub fn is(&self, uid: &str) {
        self.0.get_or_init(|| Own::of_cluster(uid));
    }

    /// Returns the tags of its own.
    pub(super) fn own(&self) -> Own {
        self.0.get().cloned().unwrap_or_default()
    }
}

/// Bounds the copies under way into all mirrors together, for the manifests of each are in memory: one of each mirror
/// needs no slot, so that none ever waits for another, and each further one does. Slots of newcomers are apart, so that no
/// namespace waits for what others have several of. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots {
    newcomers: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            newcomers: Arc::new(Semaphore::new(Self::OF_NEWCOMERS)),
            others: Arc::new(Semaphore::new(Self::OF_OTHERS)),
        }
    }
}

impl Slots {
    const OF_NEWCOMERS: usize = 16;
    const OF_OTHERS: usize = 8;

    /// Takes one for a namespace that has nothing under way in its mirror, if one is free, until it is dropped.
    pub(super) fn take_for_newcomer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.newcomers).try_acquire_owned().ok()
    }

    /// Takes one for another namespace.
    pub(super) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.others).try_acquire_owned().ok()
    }
}

impl Means {
    /// Whether this process may write now.
    pub(super) fn may_write(&self) -> bool {
        self.lease.as_ref().is_none_or(Held::may_write)
    }
}

/// What is wanted of every mirror that is filled. Clones share it.
#[derive(Clone, Debug)]
pub struct Wants(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queues: Mutex<BTreeMap<String, Queue>>,
    /// By mirror, for who fills it.
    changed: Mutex<BTreeMap<String, watch::Sender<()>>>,
    /// Times in queues count from here.
    started: Instant,
}

impl Default for Wants {
    fn default() -> Self {
        Self(Arc::new(Inner {
            queues: Mutex::default(),
            changed: Mutex::default(),
            started: Instant::now(),
        }))
    }
}

impl Wants {
    /// Takes in everything that is wanted now, by mirror, in the place of what was before.
    pub fn replace(&self, mut wanted: BTreeMap<String, Vec<Wanted>>) {
        let now = self.now();
        let mut queues = self.queues();
        if queues.is_empty() && wanted.is_empty() {
            return;
        }
        queues.retain(|mirror, _| wanted.contains_key(mirror));
        for (mirror, queue) in &mut *queues {
            queue.replace(wanted.remove(mirror).unwrap_or_default(), now);
        }
        for (mirror, wanted) in wanted {
            queues.entry(mirror).or_default().replace(wanted, now);
        }
        drop(queues);
        let mut changed = self.changed();
        changed.retain(|_, changed| changed.receiver_count() > 0);
        for changed in changed.values() {
            changed.send_replace(());
        }
    }

    /// Takes in that a namespace wants an image in a mirror. Who fills it wakes up where that is news.
    pub(super) fn add(&self, mirror: &str, namespace: &str, key: &ImageKey) {
        let is_news = self.with(mirror, |queue, now| queue.add(namespace, key, now));
        if is_news && let Some(changed) = self.changed().get(mirror) {
            changed.send_replace(());
        }
    }

    /// Takes in that nothing is under way any more for a mirror: whoever was at work has gone.
    pub(super) fn begin_anew(&self, mirror: &str) {
        if let Some(queue) = self.queues().get_mut(mirror) {
            queue.begin_anew();
        }
    }

    /// Works with what is wanted of a mirror, and the time that it is. Not to be held across an await.
    pub(super) fn with<R>(&self, mirror: &str, work: impl FnOnce(&mut Queue, Duration) -> R) -> R {
        let now = self.now();
        let mut queues = self.queues();
        if let Some(queue) = queues.get_mut(mirror) {
            return work(queue, now);
        }
        work(queues.entry(mirror.to_owned()).or_default(), now)
    }

    /// Forgets what is wanted of a mirror that is filled no more.
    pub(super) fn forget(&self, mirror: &str) {
        self.queues().remove(mirror);
    }

    /// Returns what changes when other images of a mirror are wanted.
    pub(super) fn subscribe(&self, mirror: &str) -> watch::Receiver<()> {
        self.changed().entry(mirror.to_owned()).or_default().subscribe()
    }

    fn changed(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<()>>> {
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time as queues have it.
    pub(super) fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Returns a time of a queue as a clock has it.
    pub(super) fn at(&self, time: Duration) -> Instant {
        self.0.started + time
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Queue>> {
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fills_another_mirror_sleeps_on_and_so_does_everybody_where_nothing_is_new() {
        let wants = Wants::default();
        let (mut a, b) = (wants.subscribe("a"), wants.subscribe("b"));
        let nginx: ImageKey = "docker.io/library/nginx:1".parse().unwrap();
        wants.add("a", "team", &nginx);
        assert_eq!(
            (a.has_changed().unwrap(), b.has_changed().unwrap()),
            (true, false)
        );
        a.mark_unchanged();
        wants.add("a", "team", &nginx);
        assert!(!a.has_changed().unwrap(), "that was known");
        wants.add("a", "other", &nginx);
        assert!(a.has_changed().unwrap());
        wants.replace([("b".to_owned(), Vec::new())].into());
        assert!(b.has_changed().unwrap());
    }
}
