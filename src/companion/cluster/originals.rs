//! Keeps the originals that Pods record in a ConfigMap, which is how webhooks know them for Pods of the same namespace
//! that lost theirs: `domain::lent` tells which are lent.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::leader::{Keeping, Leader};
use crate::{
    api::{MODE_LABEL, ORIGINALS_CONFIG_MAP},
    clock,
    cluster::{
        objects::ORIGINALS_KEY,
        pods::{self, Pod},
        request::bounded,
        writer::NotWritten,
    },
    domain::{lent::Lenders, mirror::Mode, snapshot::Snapshot},
};

/// The time between two writes at least: every webhook reads all of it with each change.
const BETWEEN: Duration = Duration::from_secs(5);

/// How often it is looked at whether Namespaces or people changed what is lent.
const LOOK: Duration = Duration::from_mins(1);

/// The originals that the cluster's Pods record. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Originals {
    lenders: Arc<Mutex<Lenders>>,
    /// Another original may be lent, or one less.
    due: Arc<Notify>,
}

impl Originals {
    pub(super) fn begin_listing(&self) {
        self.lock().begin_listing();
    }

    pub(super) fn end_listing(&self) {
        self.lock().end_listing(clock::now());
        self.due.notify_one();
    }

    pub(super) fn take(&self, pod: &Pod, snapshot: &Snapshot) {
        let recorded = pods::originals(pod, &snapshot.routing);
        self.change(|lenders| lenders.take(pod.id(), &recorded, clock::now()));
    }

    pub(super) fn remove(&self, namespace: &str, pod: &str) {
        self.change(|lenders| lenders.remove(namespace, pod, clock::now()));
    }

    fn change(&self, change: impl FnOnce(&mut Lenders)) {
        let mut lenders = self.lock();
        let before = lenders.version();
        change(&mut lenders);
        if lenders.version() != before {
            self.due.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lenders> {
        self.lenders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the notes until this process may not write any more.
pub(super) async fn run(leader: Leader, originals: Originals, default_mode: Mode) {
    let maps = Api::<ConfigMap>::namespaced(leader.client.clone(), &leader.namespace);
    let mut keeping = Keeping::of(ORIGINALS_CONFIG_MAP);
    // The number of what was written last.
    let mut written = None;
    loop {
        let started = Instant::now();
        let kept = keep(&leader, &maps, &originals, default_mode).await;
        let pause = match kept {
            Ok(version) => {
                keeping.went_well();
                written = version;
                LOOK
            }
            Err(NotWritten::NotLeading) => return,
            Err(error) => keeping.failed(
                &error,
                "the originals that Pods record: a copy of a Pod that lost its own keeps the mirror's name",
                LOOK,
            ),
        };
        let due = started + pause;
        sleep(BETWEEN).await;
        // After a failure it is tried again in its own time.
        while keeping.has_failed() || written == Some(originals.lock().version()) {
            tokio::select! {
                () = originals.due.notified() => {}
                () = sleep_until(due) => break,
            }
        }
    }
}

/// Reads the notes, brings them up to date, and writes them where that changes them. Returns the number of what they
/// hold; nothing while that is not known.
async fn keep(
    leader: &Leader,
    maps: &Api<ConfigMap>,
    originals: &Originals,
    default_mode: Mode,
) -> Result<Option<u64>, NotWritten> {
    let snapshot = leader.store.snapshot();
    let is_rewritten = |namespace: &str| {
        let labels = snapshot.namespaces.get(namespace);
        let label = labels.and_then(|labels| labels.get(MODE_LABEL));
        let mode = Mode::of_namespace(label.map(String::as_str), default_mode);
        mode == Mode::Enforce && !snapshot.left_alone.contains(namespace)
    };
    let Some((lent, version)) = originals.lock().lent(is_rewritten, clock::now()) else {
        return Ok(None);
    };
    let mut map = bounded(maps.get(ORIGINALS_CONFIG_MAP)).await?;
    let text = lent.write();
    let data = map.data.get_or_insert_default();
    if data.get(ORIGINALS_KEY).map_or("", String::as_str) != text {
        data.insert(ORIGINALS_KEY.to_owned(), text);
        let parameters = PostParams::default();
        let request = maps.replace(ORIGINALS_CONFIG_MAP, &parameters, &map);
        leader.writer.write("ConfigMap", request).await?;
    }
    Ok(Some(version))
}
