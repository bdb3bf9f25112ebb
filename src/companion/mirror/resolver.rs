//! The tags of a pull-through mirror: resolved anew one by one, each before its own time, because
//! each may be a download. Sweeps ask by digest meanwhile, and wait for none of them.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    context::Context,
    verifier::{Asking, Verified, Verifier},
};
use crate::{
    clock,
    domain::{
        health::State,
        mirror::Kind,
        sweep::{Retries, unresolved},
    },
};

/// How many tags are resolved before it is looked anew which are due: their mirror's settings may change,
/// and there may be others by then.
const AT_ONCE: usize = 60;

/// The longest pause between two looks for tags that are due.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Resolves tags until the task is dropped.
pub(super) async fn run(context: Context) {
    let mut snapshots = context.store.subscribe();
    let mut retries = Retries::default();
    let mut proven_since = None;
    loop {
        let Some(present) = context.present() else { return };
        let (settings, rules) = (present.settings(), present.rules());
        if settings.kind != Kind::PullThrough || present.health().state != State::Healthy {
            if snapshots.changed().await.is_err() {
                return;
            }
            continue;
        }
        if proven_since.replace(rules.proven_since) != Some(rules.proven_since) {
            retries.clear();
        }
        let due = {
            let index = context.store.index();
            retries.tidy(&index, &context.mirror);
            unresolved(&index, &context.mirror, &rules, &retries, clock::now())
        };
        if due.is_empty() {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = sleep((rules.refresh / 8).min(LONGEST_PAUSE)) => {}
            }
            continue;
        }
        let verifier = Verifier {
            context: context.clone(),
            pace: Arc::clone(&context.downloads),
            asking: Asking::Anew,
            proven_since: rules.proven_since,
            period: rules.refresh / 2,
        };
        for key in due.iter().take(AT_ONCE) {
            match verifier.verify(key.by_ref()).await {
                Verified::Known => {}
                Verified::InVain => retries.in_vain(key, settings.freshness.tag / 2, clock::now()),
                Verified::MirrorFails => break,
            }
        }
    }
}
