//! What one-shot commands share: a state from a file, mirrors looked at once, one decision.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    BadSettings,
    arguments::{ConfigArguments, OnceArguments},
};
use crate::{
    clock, companion,
    domain::{
        decision::{Decision, Operation, Probing, Request},
        mirror::Mode,
        pod::{Place, PlaceKind, Pod},
        snapshot::Snapshot,
    },
    metrics::Metrics,
    state::{
        Store,
        feed::Feed,
        file::{self, Configuration},
    },
    telemetry::chain,
    webhook::{Admission, Limits, Probes},
};

/// A state for one command.
pub(super) struct Once {
    pub(super) store: Store,
    pub(super) admission: Admission,
    /// When the command has waited long enough.
    pub(super) deadline: Instant,
}

/// Reads a configuration file.
pub(super) fn read(path: &Path) -> anyhow::Result<Configuration> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| BadSettings::one(format!("{name}: {error}")))?;
    let faults = |faults: Vec<file::Fault>| BadSettings(faults.iter().map(ToString::to_string).collect());
    Ok(file::load(&text, &name).map_err(faults)?)
}

/// Returns a feed of a new store, with a configuration put to use.
pub(super) fn feed(arguments: &ConfigArguments) -> anyhow::Result<(Store, Feed)> {
    let ConfigArguments { config, left_alone } = arguments;
    let store = Store::default();
    let feed = Feed::new(store.clone(), left_alone.iter().cloned().collect());
    apply(&feed, read(config)?, config)?;
    Ok((store, feed))
}

/// Puts a configuration to use.
pub(super) fn apply(feed: &Feed, configuration: Configuration, path: &Path) -> anyhow::Result<()> {
    feed.apply(configuration, clock::now()).map_err(|faults| {
        let line = |fault| format!("{}: {}", path.display(), chain(fault));
        BadSettings(faults.iter().map(|fault| line(fault)).collect())
    })?;
    Ok(())
}

impl Once {
    /// Reads the configuration and looks at every mirror once.
    pub(super) async fn start(arguments: &OnceArguments) -> anyhow::Result<Self> {
        let OnceArguments { config, budget } = arguments;
        let deadline = Instant::now() + *budget;
        let (store, _) = feed(config)?;
        // Half of the time for the mirrors themselves, so that something is left for the image.
        companion::look_once(&store, Instant::now() + *budget / 2).await;
        let (metrics, _) = Metrics::new();
        // Nobody listens: what a probe shows of health does not outlive the command.
        let (observations, _) = mpsc::channel(1);
        let probes = Probes::new(store.clone(), metrics.clone(), observations, TaskTracker::new());
        let limits = Limits {
            budget: *budget,
            probing: Probing::All,
            recent: usize::MAX,
        };
        let admission = Admission::new(store.clone(), probes, metrics, None, limits);
        Ok(Self {
            store,
            admission,
            deadline,
        })
    }

    /// Decides about images as if each stood in a container of a Pod of that namespace.
    pub(super) async fn decide<T>(
        &self,
        images: &[String],
        namespace: &str,
        told: impl FnOnce(&Snapshot, &[Decision<'_>]) -> T,
    ) -> anyhow::Result<T> {
        let places = images.iter().enumerate().map(|(index, image)| Place {
            kind: PlaceKind::Container,
            index,
            name: "image".into(),
            image: image.into(),
            never: false,
        });
        let pod = Pod {
            places: places.collect(),
            ..Pod::default()
        };
        let request = Request {
            namespace,
            mode: Mode::Enforce,
            operation: Operation::Create,
            pod,
        };
        let (snapshot, decisions): (Arc<Snapshot>, _) =
            self.admission.decide(&request, true, self.deadline).await;
        Ok(told(&snapshot, &decisions))
    }
}

/// Reads a file, or standard input for `-`.
pub(super) fn read_input(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("cannot read standard input");
    }
    Ok(fs::read_to_string(path).map_err(|error| BadSettings::one(format!("{}: {error}", path.display())))?)
}
