//! Images that somebody asks about: new ones are noted and looked at for the first time, known ones again because a node
//! could not pull them.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};

use super::{context::Context, look::locate};
use crate::{
    clock,
    domain::{
        answer::Answer,
        health::State,
        image::{ImageKey, KeyRef},
        presence::Presence,
        reason::Reason,
    },
    state::{Demand, Why},
};

/// How many images of one mirror are kept in mind. Past it, those used longest ago are forgotten.
const IMAGES: usize = 150_000;

/// How many new images are looked at at once.
const AT_ONCE: usize = 16;

/// How many namespaces are kept in mind that want the same image while it is looked at.
const WAITING: usize = 16;

/// Takes in new images until the task is dropped.
pub(super) async fn run(context: Context, mut wanted: mpsc::Receiver<Demand>) {
    // With the namespaces that want it.
    let mut under_way: HashMap<ImageKey, Vec<Box<str>>> = HashMap::new();
    let mut looks: JoinSet<ImageKey> = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = looks.join_next() => match ended {
                Ok(key) => {
                    for namespace in under_way.remove(&key).unwrap_or_default() {
                        want(&context, &namespace, &key);
                    }
                }
                Err(error) => {
                    // Without its key there is no telling which image it was.
                    tracing::error!(%error, mirror = context.mirror, "a look at a new image ended");
                    under_way.clear();
                }
            },
            Some(demand) = wanted.recv(), if looks.len() < AT_ONCE => {
                let key = demand.key.by_ref();
                let is_due = match &demand.why {
                    Why::New | Why::Wanted { .. } => is_due(&context, key),
                    Why::PullFailed { .. } => true,
                };
                let by = match &demand.why {
                    Why::Wanted { by } => Some(by.clone()),
                    Why::New | Why::PullFailed { .. } => None,
                };
                if let Some(waiting) = under_way.get_mut(&demand.key) {
                    if let Some(by) = by
                        && waiting.len() < WAITING
                        && !waiting.contains(&by)
                    {
                        waiting.push(by);
                    }
                    continue;
                }
                if !is_due {
                    if let Some(by) = by {
                        want(&context, &by, &demand.key);
                    }
                    continue;
                }
                under_way.insert(demand.key.clone(), by.into_iter().collect());
                let context = context.clone();
                looks.spawn(async move {
                    match demand.why {
                        Why::New | Why::Wanted { .. } => context.first_look(demand.key.by_ref()).await,
                        Why::PullFailed { is_believed } => {
                            look_again(&context, demand.key.by_ref(), is_believed).await;
                        }
                    }
                    demand.key
                });
            }
        }
    }
}

/// Whether an image was not looked at for as long as an absence is remembered. Notes it if new.
fn is_due(context: &Context, key: KeyRef<'_>) -> bool {
    let Some(present) = context.present() else {
        return false;
    };
    let now = clock::now();
    let mut index = context.store.index_mut();
    if let Some(entry) = index.get(&context.mirror, key) {
        let bound: Duration = present.settings().freshness.missing;
        entry.presence == Presence::Unknown(None) || now.since(entry.verified_at) > bound
    } else {
        index.make_room(&context.mirror, IMAGES);
        index.write(&context.mirror, key, Presence::Unknown(None), now, now);
        true
    }
}

/// Notes that a namespace wants an image, where the mirror is filled and is known to lack it.
fn want(context: &Context, namespace: &str, key: &ImageKey) {
    let fills = context
        .present()
        .is_some_and(|present| present.settings().copying.is_some());
    let is_missing = || {
        let index = context.store.index();
        let entry = index.get(&context.mirror, key.by_ref());
        entry.is_some_and(|entry| entry.presence == Presence::Missing)
    };
    if fills && is_missing() {
        context.means.wants.add(&context.mirror, namespace, key);
    }
}

/// Looks at an image that a node could not pull, while it is known to be there. Unless it is believed it is unknown from
/// now on until there is an answer.
async fn look_again(context: &Context, key: KeyRef<'_>, is_believed: bool) {
    let Some(present) = context.present() else { return };
    // While the mirror fails nothing that is known of its images counts anyhow.
    if present.health().state != State::Healthy {
        return;
    }
    let Some(located) = locate(present.settings(), key) else {
        return;
    };
    let asked_at = clock::now();
    let write = |presence| {
        let mut index = context.store.index_mut();
        // One that went away meanwhile, or that another look found to be gone, says nothing new.
        let entry = index.get(&context.mirror, key);
        if entry.is_some_and(|entry| entry.presence != Presence::Missing) {
            index.write(&context.mirror, key, presence, asked_at, clock::now());
        }
    };
    if !is_believed {
        write(Presence::Unknown(Some(Reason::ImageUnknown)));
    }
    match context.inspect(&present, &located, None).await {
        Ok(presence) | Err((Answer::Unauthorized | Answer::Ambiguous(_), presence)) => write(presence),
        // Of an image that is believed, no answer says nothing.
        Err((_, presence)) if !is_believed => write(presence),
        Err(_) => {}
    }
}
