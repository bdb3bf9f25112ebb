//! Demand: the images of the cluster's Pods, handed to the mirrors that serve them; and whether the
//! Pods that were sent to a mirror get their images.
//!
//! Of a Pod nothing is kept but the keys of its images, and which of them it fails to pull.

mod read;

use std::{collections::BTreeSet, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client, ResourceExt as _,
    api::ApiResource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::read::{Pod, images, name_of, pulled};
use super::mirrors::endless;
use crate::{
    api::MODE_LABEL,
    clock,
    companion::mirror::reports::Reports,
    domain::{
        demand::Used, health::State, mirror::Mode, presence::Presence, pulls::Pulls, snapshot::Snapshot,
        time::Timestamp,
    },
    state::{Demand, Store},
};

/// Pods a page of the initial list.
const PAGE: u32 = 500;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(100);

/// How often everything is gone through: new images that found no room, times of use.
const GO_THROUGH: Duration = Duration::from_secs(10);

/// How many new images are handed on at once; the rest comes with the next round.
const AT_ONCE: usize = 500;

/// What decides about demand.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mode of namespaces without the label, as the webhook configuration has it.
    pub default_mode: Mode,
    /// An image that no Pod has used for so long is forgotten.
    pub forget_after: Duration,
}

/// What is known of all Pods.
#[derive(Default)]
struct Known {
    used: Used,
    pulls: Pulls,
}

pub(super) struct Pods {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) reports: Reports,
    pub(super) demand: mpsc::Sender<Demand>,
    /// When this leader began: it cannot know of all use before.
    pub(super) since: Timestamp,
}

impl Pods {
    pub(super) async fn run(self, client: Client) {
        let resource = ApiResource::erase::<core::Pod>(&());
        let api = Api::<Pod>::all_with(client, &resource);
        let config = watcher::Config::default().page_size(PAGE);
        let mut pods = endless("pods", watcher(api, config).default_backoff());
        let mut snapshots = self.store.subscribe();
        let mut ticks = interval(GO_THROUGH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut known, mut listing) = (Known::default(), Known::default());
        let mut complete = false;
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = pods.next() => match event {
                    Event::Init => listing = Known::default(),
                    Event::InitApply(pod) => self.take(&mut listing, &pod),
                    Event::InitDone => {
                        known = std::mem::take(&mut listing);
                        complete = true;
                    }
                    Event::Apply(pod) => self.take(&mut known, &pod),
                    Event::Delete(pod) => {
                        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
                        known.used.remove(&namespace, &name);
                        known.pulls.remove(&namespace, &name);
                        continue;
                    }
                },
                Ok(()) = snapshots.changed() => {}
                _ = ticks.tick() => {
                    if complete {
                        self.forget(&known.used);
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    self.hand_on(&known.used);
                    self.judge(&known.pulls);
                    continue;
                }
            }
            if complete {
                due.get_or_insert_with(|| Instant::now() + GATHER);
            }
        }
    }

    fn take(&self, known: &mut Known, pod: &Pod) {
        let snapshot = self.store.snapshot();
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let pulled = pulled(pod, &snapshot.routing);
        known.pulls.set(&namespace, &name, &pulled, clock::now());
        let images = images(pod, &snapshot.routing);
        known.used.set(&namespace, &name, images);
    }

    /// Tells of each healthy mirror whether nodes get its images.
    fn judge(&self, pulls: &Pulls) {
        let snapshot = self.store.snapshot();
        for (id, mirror) in snapshot.routing.mirrors() {
            let health = snapshot.health_of(id);
            if health.state != State::Healthy {
                continue;
            }
            let is_there = |key: &str| {
                let index = self.store.index();
                let entry = index.get(&mirror.name, key);
                entry.is_some_and(|entry| matches!(entry.presence, Presence::Present(_)))
            };
            if let Some(can_pull) = pulls.verdict(&mirror.name, health.since, is_there) {
                self.reports.nodes(&mirror.name, can_pull);
            }
        }
    }

    /// Hands new images on and notes the use of known ones.
    fn hand_on(&self, used: &Used) {
        let snapshot = self.store.snapshot();
        let now = clock::now();
        let mut handed_on = 0;
        for (mirror, key) in self.wanted(&snapshot, used) {
            let known = {
                let index = self.store.index();
                index.touch(mirror, key, now);
                index.contains(mirror, key)
            };
            if known || handed_on >= AT_ONCE {
                continue;
            }
            let demand = Demand {
                mirror: mirror.to_owned(),
                key: key.to_owned(),
            };
            if self.demand.try_send(demand).is_err() {
                break;
            }
            handed_on += 1;
        }
    }

    /// Returns mirror and key of every image that a mirror should hold for the Pods it serves.
    fn wanted<'a>(&self, snapshot: &'a Snapshot, used: &'a Used) -> BTreeSet<(&'a str, &'a str)> {
        let mut wanted = BTreeSet::new();
        for (namespace, key) in used.images() {
            if !self.is_on(snapshot, namespace) {
                continue;
            }
            let Some(name) = name_of(key) else { continue };
            for candidate in snapshot.routing.candidates(name).ordered {
                let mirror = snapshot.routing.mirror(candidate.mirror);
                if mirror.mode != Mode::Off && snapshot.serves(candidate.mirror, namespace) {
                    wanted.insert((mirror.name.as_str(), key));
                }
            }
        }
        wanted
    }

    fn is_on(&self, snapshot: &Snapshot, namespace: &str) -> bool {
        if snapshot.left_alone.contains(namespace) {
            return false;
        }
        let labels = snapshot.namespaces.get(namespace);
        let label = labels.and_then(|labels| labels.get(MODE_LABEL));
        Mode::of_namespace(label.map(String::as_str), self.settings.default_mode) != Mode::Off
    }

    /// Forgets images that no Pod has used for long.
    fn forget(&self, used: &Used) {
        let snapshot = self.store.snapshot();
        let wanted = self.wanted(&snapshot, used);
        let now = clock::now();
        for (_, mirror) in snapshot.routing.mirrors() {
            let unused: Vec<Box<str>> = {
                let index = self.store.index();
                for (key, _) in index.entries(&mirror.name) {
                    if wanted.contains(&(mirror.name.as_str(), key)) {
                        index.touch(&mirror.name, key, now);
                    }
                }
                index
                    .entries(&mirror.name)
                    .filter(|(_, entry)| {
                        now.since(entry.last_used().max(self.since)) > self.settings.forget_after
                    })
                    .map(|(key, _)| Box::from(key))
                    .collect()
            };
            let mut index = self.store.index_mut();
            for key in unused {
                index.remove(&mirror.name, &key);
            }
        }
    }
}
