//! `kagami sync`: what the Pods of a cluster use, into its mirrors, now.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::Context as _;
use tokio::time::timeout;

use super::{
    BadSettings,
    arguments::SyncArguments,
    copy::{self, CLUSTER, Copies, Destination, Secrets, Whose},
    oneshot::{self, Read},
    output,
    pods::{Item, RunningPods},
};
use crate::{
    domain::{
        image::Reference,
        mirror::{Kind, Mode},
        original::restore,
        routing::MirrorId,
        snapshot::Snapshot,
    },
    state::replica::{Images, Namespaces, Scope},
};

pub(super) async fn run(arguments: SyncArguments) -> anyhow::Result<()> {
    let SyncArguments {
        namespace,
        to,
        how,
        left_alone,
        cluster,
    } = arguments;
    let mut copies = Copies::new(how)?;
    let scope = |_| Scope {
        images: Images::These(Vec::new()),
        namespaces: namespace.clone().map_or(Namespaces::All, Namespaces::One),
    };
    let read = timeout(CLUSTER, oneshot::read_cluster(&cluster, &left_alone, scope)).await;
    let read = read.with_context(|| format!("the cluster did not answer within {CLUSTER:?}"))??;
    for note in &read.notes {
        output::complain(note);
    }
    let snapshot = read.store.snapshot();
    if let Some(namespace) = namespace
        .as_ref()
        .filter(|name| snapshot.left_alone.contains(*name))
    {
        return Err(BadSettings::one(format!("Kagami never acts in namespace {namespace}")).into());
    }
    let destinations = destinations(&read, &snapshot, &to, &copies, &cluster.kagami_namespace).await?;
    let default_mode = Mode::from(cluster.default_mode.default_mode);
    // Whoever names a namespace may be about to label it.
    let is_meant = |of: &str| namespace.is_some() || snapshot.mode_of(of, default_mode) != Mode::Off;

    let mut used = Used::default();
    let mut pages = RunningPods::new(&read.client, namespace.as_deref());
    while let Some(page) = pages.next().await? {
        for item in page.pods()? {
            if is_meant(item.namespace) && !snapshot.left_alone.contains(item.namespace) {
                used.take(&item, &snapshot, &destinations);
            }
        }
    }
    if used.unreadable > 0 {
        output::complain(&format!(
            "{} Pods cannot be read and are left out",
            used.unreadable
        ));
    }
    if used.images.is_empty() {
        output::complain("no running Pod uses an image that one of these mirrors has for it");
        return Ok(());
    }
    for (mirror, image) in used.in_order() {
        let Some(into) = destinations.get(&mirror) else {
            continue;
        };
        copies.add(&image, into, Whose::Sources, |job| {
            if let Some(copying) = &into.mirror.copying {
                job.platforms = copying.platforms;
                job.referrers = copying.referrers;
                job.max_size = copying.max_size;
                job.max_referrers = copying.max_size;
            }
        });
    }
    copies.carry_out().await
}

/// Returns the mirrors that are named, or else all that take copies and are in use.
async fn destinations(
    read: &Read,
    snapshot: &Snapshot,
    names: &[String],
    copies: &Copies,
    own_namespace: &str,
) -> anyhow::Result<HashMap<MirrorId, Destination>> {
    let mirrors = read.cluster.configuration().mirrors;
    let found = if names.is_empty() {
        let takes_copies = mirrors
            .iter()
            .filter(|(mirror, _)| mirror.kind == Kind::Hosted && mirror.mode != Mode::Off);
        takes_copies.collect()
    } else {
        let found = names.iter().map(|name| copy::find(&mirrors, name));
        found.collect::<Result<Vec<_>, _>>()?
    };
    if found.is_empty() {
        return Err(BadSettings::one("there is no mirror of kind Hosted that is not Off").into());
    }
    let secrets = Secrets::Cluster {
        client: &read.client,
        namespace: own_namespace,
    };
    let mut destinations = HashMap::new();
    for found in found {
        // What is configured is what the snapshot was made of.
        if let Some(id) = snapshot.routing.find(&found.0.name) {
            let routing = Arc::clone(&snapshot.routing);
            let mut destination = copies.destination(routing, found.clone(), &secrets).await?;
            destination.read_sources(&found.1.source_secrets, &secrets).await;
            destinations.insert(id, destination);
        }
    }
    Ok(destinations)
}

/// The images that Pods use and mirrors have for them, with how many do.
#[derive(Default)]
struct Used {
    images: BTreeMap<(String, MirrorId), usize>,
    unreadable: usize,
}

impl Used {
    fn take(&mut self, item: &Item<'_>, snapshot: &Snapshot, into: &HashMap<MirrorId, Destination>) {
        let Some(mut pod) = item.pod() else {
            self.unreadable += 1;
            return;
        };
        restore(&mut pod, &snapshot.routing);
        // As for a new one.
        snapshot.lent.lend(item.namespace, &mut pod);
        if pod.weaken(Mode::Enforce) == Mode::Off {
            return;
        }
        for place in pod.places.iter().filter(|place| !place.never) {
            let Ok(reference) = Reference::parse(&place.image) else {
                continue;
            };
            let key = reference.key();
            let candidates = snapshot.routing.candidates(key.by_ref().name());
            if candidates.names_mirror {
                continue;
            }
            let meant = candidates.ordered.iter().filter(|of| {
                into.contains_key(&of.mirror) && snapshot.may_fill(of, &reference, item.namespace)
            });
            for candidate in meant {
                let key = (key.to_string(), candidate.mirror);
                *self.images.entry(key).or_default() += 1;
            }
        }
    }

    /// Returns what is to be copied, the most used first.
    fn in_order(self) -> impl Iterator<Item = (MirrorId, String)> {
        let mut images: Vec<_> = self.images.into_iter().collect();
        images.sort_by_key(|(_, uses)| Reverse(*uses));
        images.into_iter().map(|((image, id), _)| (id, image))
    }
}
