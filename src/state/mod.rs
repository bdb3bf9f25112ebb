//! The shared health-state, as this process holds it.
//!
//! One [`Store`] for a process: readers take a snapshot once per request and read the presence
//! index under a short lock; feeders (files here, the API server's watches in a cluster) write.
//! No lock is held across an await.

pub mod canaries;
pub mod configuration;
pub mod feed;
pub mod file;
mod interest;
pub mod logins;
pub mod pinger;
pub mod replica;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::watch;

use crate::{
    domain::{
        health::{Health, State},
        image::{ImageKey, KeyRef},
        lent::Lent,
        owners::LeftAlone,
        presence::{Index, Presence},
        routing::{MirrorId, Routing},
        selector::Labels,
        snapshot::Snapshot,
        standing::Standing,
        time::Timestamp,
        witness::View,
    },
    registry::Client,
};

pub use self::interest::Interest;

/// Clients of the mirrors' endpoints, by the mirror's name.
pub type Clients = BTreeMap<String, Client>;

/// The state of one process. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    snapshot: watch::Sender<Arc<Snapshot>>,
    clients: watch::Sender<Arc<Clients>>,
    /// By the mirror's name, for each that has a client.
    interests: RwLock<BTreeMap<String, Arc<Interest>>>,
    index: RwLock<Index>,
}

/// An image that a review named and of which the shared state knows nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    pub mirror: String,
    pub key: ImageKey,
    pub why: Why,
}

/// Why an image is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody knows it yet.
    New,
    /// A namespace in which images are rewritten would have it from the mirror, which lacks it or is not known to have it.
    Wanted { by: Box<str> },
    /// It is known, and a node could not pull it. Until it was looked at, what is known of it is believed or not.
    PullFailed { is_believed: bool },
}

/// What a configuration gives to the state.
#[derive(Debug, Default)]
pub struct Configured {
    pub routing: Routing,
    /// What is told of mirrors, by name; nothing is of those that are absent.
    pub standings: BTreeMap<String, Arc<Standing>>,
    pub clients: Clients,
    pub namespaces: BTreeMap<String, Labels>,
    pub left_alone: BTreeSet<String>,
}

impl Default for Store {
    fn default() -> Self {
        Self(Arc::new(Inner {
            snapshot: watch::Sender::default(),
            clients: watch::Sender::default(),
            interests: RwLock::default(),
            index: RwLock::default(),
        }))
    }
}

impl Store {
    /// Returns routing, health and namespaces as they are now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.snapshot.borrow())
    }

    /// Returns the snapshots to come.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshot.subscribe()
    }

    /// Returns the client of a mirror's endpoint.
    pub fn client(&self, mirror: &str) -> Option<Client> {
        self.0.clients.borrow().get(mirror).cloned()
    }

    /// Returns the clients to come, of all mirrors.
    pub fn subscribe_clients(&self) -> watch::Receiver<Arc<Clients>> {
        self.0.clients.subscribe()
    }

    /// Returns the interest in a mirror, for who pings it.
    pub fn interest(&self, mirror: &str) -> Option<Arc<Interest>> {
        self.interests().get(mirror).cloned()
    }

    /// Notes that a Pod was rewritten to a mirror.
    pub fn used(&self, mirror: &str) {
        if let Some(interest) = self.interests().get(mirror) {
            interest.used();
        }
    }

    /// Notes that a look for an image on a mirror failed in a way that every image may meet: a reason to ping it.
    pub fn doubted(&self, mirror: &str) {
        if let Some(interest) = self.interests().get(mirror) {
            interest.doubted();
        }
    }

    fn interests(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Interest>>> {
        self.0.interests.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the presence index for reading. Not to be held across an await.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        // A panic while writing leaves at worst one entry half told, which judging tolerates.
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the presence index for writing. Not to be held across an await.
    pub fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.0.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what this replica saw of an image itself, unless the mirror's proofs began anew since
    /// it asked: until then they counted from `proven_since` on.
    pub fn see(
        &self,
        mirror: &str,
        key: KeyRef<'_>,
        presence: Presence,
        asked_at: Timestamp,
        proven_since: Timestamp,
    ) {
        let mut index = self.index_mut();
        // Looked at under the lock, so that whoever lets proofs begin anew comes wholly before or after.
        let snapshot = self.snapshot();
        let known = snapshot.routing.find(mirror);
        if known.is_some_and(|id| snapshot.health_of(id).proven_since <= proven_since) {
            index.see(mirror, key, presence, asked_at);
        }
    }

    /// Forgets what this replica saw of a mirror itself, because proofs begin anew. When it saw it is a
    /// time of its own clock, and `proven_since` may be one of another's.
    fn forget_seen(&self, mirror: &str) {
        self.index_mut().retain_seen(|name| name != mirror);
    }

    /// Takes in a configuration. The health of a mirror whose client stays is kept; what has another
    /// client is another mirror, of which nothing is known.
    pub fn configure(&self, configured: Configured, now: Timestamp) {
        let Configured {
            routing,
            standings,
            clients,
            namespaces,
            left_alone,
        } = configured;
        let before = Arc::clone(&self.0.clients.borrow());
        let stays = |name: &str| match (before.get(name), clients.get(name)) {
            (Some(before), Some(now)) => before.is(now),
            _ => false,
        };
        let staying: BTreeSet<&str> = clients
            .keys()
            .map(String::as_str)
            .filter(|name| stays(name))
            .collect();
        let same_clients = staying.len() == before.len() && staying.len() == clients.len();
        if !same_clients {
            let mut interests = self.0.interests.write().unwrap_or_else(PoisonError::into_inner);
            interests.retain(|mirror, _| clients.contains_key(mirror));
            for mirror in clients.keys() {
                interests.entry(mirror.clone()).or_default();
            }
        }
        self.0.clients.send_replace(Arc::new(clients.clone()));
        self.0.snapshot.send_if_modified(|current| {
            let same_routing = *current.routing == routing;
            let same_namespaces = *current.namespaces == namespaces;
            let same_left_alone = *current.left_alone == left_alone;
            let standings: Vec<_> = routing
                .mirrors()
                .map(|(_, mirror)| standings.get(&mirror.name).cloned().unwrap_or_default())
                .collect();
            let same_standings = current.standings == standings;
            if same_clients && same_routing && same_namespaces && same_left_alone && same_standings {
                return false;
            }
            let known = current.routing.by_name();
            let health_of = |name: &str| {
                known.get(name).filter(|_| staying.contains(name)).map_or_else(
                    || Health::unknown(now),
                    |mirror| current.health_of(*mirror).clone(),
                )
            };
            let health = routing
                .mirrors()
                .map(|(_, mirror)| health_of(&mirror.name))
                .collect();
            let still = |marked: &BTreeSet<MirrorId>| {
                let was = |name: &str| known.get(name).is_some_and(|mirror| marked.contains(mirror));
                let mirrors = routing.mirrors().filter(|(_, mirror)| was(&mirror.name));
                mirrors.map(|(id, _)| id).collect()
            };
            let (stale, suspected) = (still(&current.stale), still(&current.suspected));
            // Readers tell by these whether there is something new for them.
            *current = Arc::new(Snapshot {
                health,
                standings,
                routing: as_before_or(same_routing, &current.routing, routing),
                namespaces: as_before_or(same_namespaces, &current.namespaces, namespaces),
                left_alone: as_before_or(same_left_alone, &current.left_alone, left_alone),
                stale,
                suspected,
                failing_upstreams: Arc::clone(&current.failing_upstreams),
                paused: current.paused,
                owners: Arc::clone(&current.owners),
                lent: Arc::clone(&current.lent),
            });
            true
        });
        if !same_clients {
            self.index_mut().retain_seen(|mirror| staying.contains(mirror));
        }
    }

    /// Publishes a mirror's health. Returns whether the mirror is known.
    pub fn set_health(&self, mirror: &str, health: Health) -> bool {
        let mut begins_anew = false;
        let known = self.0.snapshot.send_if_modified(|current| {
            let Some(id) = current.routing.find(mirror) else {
                return false;
            };
            begins_anew = health.proven_since > current.health_of(id).proven_since;
            let mut next = Snapshot::clone(current);
            if let Some(slot) = next.health.get_mut(id.index()) {
                *slot = health;
            }
            *current = Arc::new(next);
            true
        });
        if begins_anew {
            self.forget_seen(mirror);
        }
        known
    }

    /// Publishes what this replica believes of a mirror, which may be another thing than what is
    /// shared. Returns whether the mirror is known.
    pub fn set_view(&self, mirror: &str, view: View) -> bool {
        let (mut known, mut begins_anew) = (false, false);
        self.0.snapshot.send_if_modified(|current| {
            let Some(id) = current.routing.find(mirror) else {
                return false;
            };
            known = true;
            let View {
                health,
                stale,
                suspected,
            } = view;
            let same_marks = current.is_stale(id) == stale && current.is_suspected(id) == suspected;
            if *current.health_of(id) == health && same_marks {
                return false;
            }
            begins_anew = health.proven_since > current.health_of(id).proven_since;
            let mut next = Snapshot::clone(current);
            if let Some(slot) = next.health.get_mut(id.index()) {
                *slot = health;
            }
            mark(&mut next.stale, id, stale);
            mark(&mut next.suspected, id, suspected);
            *current = Arc::new(next);
            true
        });
        if begins_anew {
            self.forget_seen(mirror);
        }
        known
    }

    /// Publishes whether it is being asked if a mirror still answers.
    pub fn set_suspected(&self, mirror: &str, suspected: bool) {
        self.0.snapshot.send_if_modified(|current| {
            let Some(id) = current.routing.find(mirror) else {
                return false;
            };
            if current.is_suspected(id) == suspected {
                return false;
            }
            let mut next = Snapshot::clone(current);
            mark(&mut next.suspected, id, suspected);
            *current = Arc::new(next);
            true
        });
    }

    /// Publishes what the status of a mirror tells, if the mirror is known.
    pub fn set_standing(&self, mirror: &str, standing: &Arc<Standing>) {
        self.0.snapshot.send_if_modified(|current| {
            let Some(id) = current.routing.find(mirror) else {
                return false;
            };
            if current.standing(id) == &**standing {
                return false;
            }
            let mut next = Snapshot::clone(current);
            if let Some(slot) = next.standings.get_mut(id.index()) {
                *slot = Arc::clone(standing);
            }
            *current = Arc::new(next);
            true
        });
    }

    /// Publishes the namespaces that are known.
    pub fn set_namespaces(&self, namespaces: BTreeMap<String, Labels>) {
        self.0.snapshot.send_if_modified(|current| {
            if *current.namespaces == namespaces {
                return false;
            }
            *current = Arc::new(Snapshot {
                namespaces: Arc::new(namespaces),
                ..Snapshot::clone(current)
            });
            true
        });
    }

    /// Publishes whether the brake is on. Returns whether that is another thing than before.
    pub fn set_paused(&self, paused: bool) -> bool {
        self.0.snapshot.send_if_modified(|current| {
            if current.paused == paused {
                return false;
            }
            *current = Arc::new(Snapshot {
                paused,
                ..Snapshot::clone(current)
            });
            true
        })
    }

    /// Publishes what is known of owners that fight rewrites.
    pub fn set_owners(&self, owners: Arc<LeftAlone>) {
        self.0.snapshot.send_if_modified(|current| {
            if current.owners == owners {
                return false;
            }
            *current = Arc::new(Snapshot {
                owners,
                ..Snapshot::clone(current)
            });
            true
        });
    }

    /// Publishes the originals that Pods record, for others of their namespace.
    pub fn set_lent(&self, lent: Arc<Lent>) {
        self.0.snapshot.send_if_modified(|current| {
            if current.lent == lent {
                return false;
            }
            *current = Arc::new(Snapshot {
                lent,
                ..Snapshot::clone(current)
            });
            true
        });
    }

    /// Publishes which upstream registries fail, all of them.
    pub fn set_failing_upstreams(&self, failing: BTreeSet<String>) {
        self.0.snapshot.send_if_modified(|current| {
            if *current.failing_upstreams == failing {
                return false;
            }
            *current = Arc::new(Snapshot {
                failing_upstreams: Arc::new(failing),
                ..Snapshot::clone(current)
            });
            true
        });
    }

    /// Publishes whether an upstream registry fails.
    pub fn set_upstream(&self, host: &str, state: State) {
        self.0.snapshot.send_if_modified(|current| {
            let fails = state == State::Unhealthy;
            if current.failing_upstreams.contains(host) == fails {
                return false;
            }
            let mut failing = BTreeSet::clone(&current.failing_upstreams);
            if fails {
                failing.insert(host.to_owned());
            } else {
                failing.remove(host);
            }
            *current = Arc::new(Snapshot {
                failing_upstreams: Arc::new(failing),
                ..Snapshot::clone(current)
            });
            true
        });
    }
}

fn mark(marked: &mut BTreeSet<MirrorId>, id: MirrorId, is: bool) {
    if is {
        marked.insert(id);
    } else {
        marked.remove(&id);
    }
}

fn as_before_or<T>(same: bool, before: &Arc<T>, now: T) -> Arc<T> {
    if same { Arc::clone(before) } else { Arc::new(now) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        examples::{key, mirror, proof},
        presence::{Judgement, Presence, Rules},
    };

    const KEY: &str = "docker.io/library/nginx:1.27";

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn healthy(proven_since: u64) -> Health {
        Health {
            state: State::Healthy,
            fault: None,
            cause: None,
            since: at(proven_since),
            refused_since: None,
            proven_since: at(proven_since),
        }
    }

    fn proven(store: &Store) -> bool {
        let snapshot = store.snapshot();
        let id = snapshot.routing.find("main").unwrap();
        let rules = Rules::of(snapshot.routing.mirror(id), snapshot.health_of(id).proven_since);
        let index = store.index();
        matches!(
            index.judge("main", key(KEY), &rules, at(130)),
            Judgement::Proven(..)
        )
    }

    /// The clock of this replica is a minute ahead of the companion's: what it saw at 70 bears 130.
    #[test]
    fn own_looks_go_when_proofs_begin_anew_whatever_clocks_say() {
        let publish: [fn(&Store, Health); 2] = [
            |store, health| {
                store.set_health("main", health);
            },
            |store, health| {
                let view = View {
                    health,
                    stale: false,
                    suspected: false,
                };
                store.set_view("main", view);
            },
        ];
        for publish in publish {
            let store = Store::default();
            let routing = Routing::compile(vec![mirror("main", &["docker.io"])]);
            store.configure(
                Configured {
                    routing,
                    ..Configured::default()
                },
                at(1),
            );
            publish(&store, healthy(1));
            store
                .index_mut()
                .see("main", key(KEY), Presence::Present(proof('a')), at(130));
            publish(&store, healthy(1));
            assert!(proven(&store));
            publish(&store, healthy(120));
            assert!(!proven(&store));
        }
    }
}
