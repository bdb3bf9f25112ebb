//! The logins with which mirrors are filled, and those with which Pods pull from them, for who fills mirrors and places
//! pull secrets, and nobody else: replicas of the webhook have none.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::watch, time::Instant};

use crate::{
    credentials::{Fault, Held},
    registry::Endpoint,
};

/// Those of one mirror.
#[derive(Clone, Debug)]
pub struct OfMirror {
    /// How the mirror is reached, without credentials.
    pub endpoint: Endpoint,
    /// What writes to it.
    pub push: Login,
    /// What reads upstream, by the prefix of the source; sources without a Secret are not among them.
    pub sources: BTreeMap<String, Login>,
}

/// How many Secrets that give no login are told of.
const TROUBLES: usize = 3;

impl OfMirror {
    /// Returns what is wrong with the Secrets, of the first few with which something is.
    pub fn troubles(&self) -> Result<(), String> {
        let all = std::iter::once(&self.push).chain(self.sources.values());
        let mut troubles: Vec<String> = all.filter_map(Login::trouble).collect();
        // One may be named for several things.
        troubles.sort_unstable();
        troubles.dedup();
        let more = troubles.len().saturating_sub(TROUBLES);
        troubles.truncate(TROUBLES);
        if more > 0 {
            troubles.push(format!("and {more} more"));
        }
        if troubles.is_empty() {
            Ok(())
        } else {
            Err(troubles.join("; "))
        }
    }
}

/// What a Secret gives now.
#[derive(Clone, Debug, Default)]
pub struct Login {
    pub held: Held,
    /// Why it gives nothing good, if it does not; people know the Secret by what this says.
    pub fault: Option<Arc<Fault>>,
    /// The Secret, if there is none of that name.
    pub missing: Option<Arc<str>>,
}

impl Login {
    /// Returns what is wrong with it, if something is.
    pub fn trouble(&self) -> Option<String> {
        let missing = |name| format!("there is no Secret {name} in Kagami's namespace");
        let fault = self.fault.as_ref().map(ToString::to_string);
        fault.or_else(|| self.missing.as_ref().map(missing))
    }

    /// Whether there is something to log in with.
    pub fn gives_something(&self) -> bool {
        let is_over = self.held.until().is_some_and(|until| until <= Instant::now());
        self.held.credentials().is_some() && !is_over
    }

    /// Whether both ask in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        self.held == other.held
    }
}

/// The logins of all mirrors that are filled. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Logins(Arc<watch::Sender<Arc<BTreeMap<String, OfMirror>>>>);

impl Logins {
    /// Returns those of one mirror, if it is filled.
    pub fn of(&self, mirror: &str) -> Option<OfMirror> {
        self.0.borrow().get(mirror).cloned()
    }

    /// Returns those to come.
    pub fn subscribe(&self) -> watch::Receiver<Arc<BTreeMap<String, OfMirror>>> {
        self.0.subscribe()
    }

    pub(super) fn publish(&self, logins: BTreeMap<String, OfMirror>) {
        // While nothing is copied nobody need wake up.
        self.0.send_if_modified(|before| {
            let differs = !(before.is_empty() && logins.is_empty());
            *before = Arc::new(logins);
            differs
        });
    }
}

/// The logins with which Pods may pull, of all mirrors that have one, by mirror. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PullLogins(Arc<watch::Sender<Arc<BTreeMap<String, Login>>>>);

impl PullLogins {
    /// Returns those to come.
    pub fn subscribe(&self) -> watch::Receiver<Arc<BTreeMap<String, Login>>> {
        self.0.subscribe()
    }

    pub(super) fn publish(&self, logins: BTreeMap<String, Login>) {
        self.0.send_if_modified(|before| {
            let is_same = |(name, login): (&String, &Login)| {
                before.get(name).is_some_and(|before| {
                    before.is_same(login) && before.fault == login.fault && before.missing == login.missing
                })
            };
            let differs = before.len() != logins.len() || !logins.iter().all(is_same);
            if differs {
                *before = Arc::new(logins);
            }
            differs
        });
    }
}
