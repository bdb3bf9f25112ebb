//! The cluster's running Pods: one watch, and the readers that make something of it, each of which
//! keeps of a Pod no more than it needs.
//!
//! A Pod costs what it changes, whatever the number of Pods and images. What must be looked at as a
//! whole is gone through in rounds, which are rare and let others go on in between.

mod demand;
mod pulls;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::Client;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

pub use self::demand::Settings;
use self::{demand::DemandReader, pulls::PullsReader};
use super::{originals::Originals, owners::Owners, rescuer::Ward};
use crate::{
    clock,
    cluster::{
        pods::Pod,
        sources,
        watch::{Event, Pulses, follow},
    },
    companion::mirror::{reports::Reports, wants::Wants},
    domain::{mirror::Mode, routing::Routing, snapshot::Snapshot, time::Timestamp},
    state::{Demand, Store},
};

/// How often everything is gone through.
const GO_THROUGH: Duration = Duration::from_secs(10);

/// The pause after a round, as where the configuration changes all the time: at least so long, and so
/// many times as long as the round took, but no longer than [`GO_THROUGH`].
const PAUSE: (Duration, u32) = (Duration::from_secs(1), 20);

pub(super) struct Pods {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) reports: Reports,
    /// What filled mirrors are to be brought.
    pub(super) wants: Wants,
    pub(super) demand: mpsc::Sender<Demand>,
    /// Where stuck Pods are told; none where they are left to themselves.
    pub(super) ward: Option<Ward>,
    pub(super) owners: Owners,
    pub(super) originals: Originals,
    /// When this leader began: it cannot know of all use before.
    pub(super) since: Timestamp,
    /// Whether it knows what the last leader knew: before, every image would seem to be new.
    pub(super) taken_over: watch::Receiver<bool>,
}

/// What is kept of Pods.
struct Readers {
    demand: DemandReader,
    pulls: PullsReader,
    ward: Option<Ward>,
    owners: Owners,
    originals: Originals,
    /// The mode of namespaces without the label.
    default_mode: Mode,
    /// Whether all Pods were told once.
    complete: watch::Sender<bool>,
    /// Whether new images are handed on: from the first round on, with which those of the first list come.
    hands_on: bool,
}

impl Pods {
    /// Follows the Pods until it is dropped.
    pub(super) async fn run(self, client: Client, pulses: Pulses) {
        let readers = Mutex::new(Readers {
            demand: DemandReader::new(self.settings.clone(), self.since, self.demand.clone()),
            pulls: PullsReader::new(self.since, self.demand.clone()),
            ward: self.ward.clone(),
            owners: self.owners.clone(),
            originals: self.originals.clone(),
            default_mode: self.settings.default_mode,
            complete: watch::Sender::new(false),
            hands_on: false,
        });
        let (relists, wanted) = watch::channel(0);
        let handle = |event| lock(&readers).take(event, &self.store);
        let source = sources::pods();
        let pulse = pulses.of(&source);
        tokio::select! {
            never = follow(client, source, pulse, wanted, handle) => match never {},
            never = self.go_through(&readers, &relists) => match never {},
        }
    }

    /// Goes through everything, again and again; sooner where the configuration changed, or where there
    /// was more to hand on than is handed on in one round.
    async fn go_through(&self, readers: &Mutex<Readers>, relists: &watch::Sender<u64>) -> Infallible {
        let mut read_by = self.store.snapshot();
        let mut complete = lock(readers).complete.subscribe();
        // The sender lives as long as this future.
        drop(complete.wait_for(|complete| *complete).await);
        let mut taken_over = self.taken_over.clone();
        if taken_over.wait_for(|taken_over| *taken_over).await.is_err() {
            // The leader has ended, and this with it.
            return std::future::pending().await;
        }
        lock(readers).hands_on = true;
        let mut snapshots = self.store.subscribe();
        loop {
            let started = Instant::now();
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            // Other mappings prove other originals, also of Pods that tell nothing new for weeks.
            if !maps_alike(&read_by.routing, &snapshot.routing) {
                relists.send_modify(|round| *round += 1);
            }
            read_by = Arc::clone(&snapshot);
            let mut round = demand::go_through(readers, &self.store, &snapshot).await;
            self.wants.replace(round.take_wanted(&snapshot.routing));
            lock(readers)
                .pulls
                .judge(&self.store, &self.reports, clock::now());
            let took = started.elapsed();
            let handed_on = round.hand_on(&self.store, &snapshot, &self.demand).await;
            sleep((took * PAUSE.1).clamp(PAUSE.0, GO_THROUGH)).await;
            let due = started + GO_THROUGH;
            while handed_on && says_the_same(&snapshot, &snapshots.borrow_and_update()) {
                tokio::select! {
                    Ok(()) = snapshots.changed() => {}
                    () = sleep_until(due) => break,
                }
            }
        }
    }
}

impl Readers {
    fn take(&mut self, event: Event<Pod>, store: &Store) {
        match event {
            Event::Listing => {
                self.demand.used.begin_listing();
                self.pulls.pulls.begin_listing();
                self.originals.begin_listing();
                if let Some(ward) = &self.ward {
                    ward.begin_listing();
                }
            }
            Event::ListedAll { .. } => {
                self.demand.used.end_listing();
                self.pulls.pulls.end_listing();
                self.originals.end_listing();
                if let Some(ward) = &self.ward {
                    ward.end_listing();
                }
                self.complete.send_replace(true);
            }
            Event::Listed(pod) => self.take_pod(&pod, true, store),
            Event::Changed(pod) => self.take_pod(&pod, false, store),
            Event::Deleted(pod) => {
                if let Some(ward) = &self.ward {
                    ward.remove(&pod.as_patient());
                }
                self.owners.remove(&pod, &store.snapshot(), clock::now());
                let (namespace, name) = pod.id();
                self.demand.used.remove(namespace, name);
                self.pulls.pulls.remove(namespace, name);
                self.originals.remove(namespace, name);
            }
            Event::Reached(_) => {}
        }
    }

    fn take_pod(&mut self, pod: &Pod, is_listed: bool, store: &Store) {
        let snapshot = store.snapshot();
        let now = clock::now();
        if let Some(ward) = &self.ward {
            ward.take(&pod.as_patient(), is_listed, &snapshot, now);
        }
        let mode = snapshot.mode_of(pod.id().0, self.default_mode);
        self.owners.take(pod, mode, &snapshot, now);
        self.pulls.take(pod, store, &snapshot, now);
        self.originals.take(pod, &snapshot);
        let store = self.hands_on.then_some(store);
        self.demand.take(pod, &snapshot, store);
    }
}

fn lock(readers: &Mutex<Readers>) -> MutexGuard<'_, Readers> {
    readers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the mirrors of two routings name images alike.
fn maps_alike(one: &Routing, other: &Routing) -> bool {
    let mappings = |routing: &Routing| -> Vec<_> {
        let mirrors = routing.mirrors();
        mirrors
            .map(|(_, mirror)| (mirror.name.clone(), mirror.mapping.clone()))
            .collect()
    };
    mappings(one) == mappings(other)
}

/// Whether two snapshots say the same of which images are wanted; health does not matter.
fn says_the_same(one: &Snapshot, other: &Snapshot) -> bool {
    Arc::ptr_eq(&one.routing, &other.routing)
        && Arc::ptr_eq(&one.namespaces, &other.namespaces)
        && Arc::ptr_eq(&one.left_alone, &other.left_alone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{examples::mirror, mirror::Mode};

    #[test]
    fn pods_are_read_again_where_images_are_named_otherwise() {
        let check = |change: fn(&mut Vec<crate::domain::mirror::Mirror>), alike: bool| {
            let one = vec![mirror("a", &["docker.io"]), mirror("b", &["ghcr.io"])];
            let mut other = one.clone();
            change(&mut other);
            assert_eq!(
                maps_alike(&Routing::compile(one), &Routing::compile(other)),
                alike
            );
        };
        check(|_| {}, true);
        check(|mirrors| mirrors[0].mode = Mode::Off, true);
        check(|mirrors| mirrors[0].mapping = mirrors[1].mapping.clone(), false);
        check(|mirrors| mirrors.truncate(1), false);
    }
}
