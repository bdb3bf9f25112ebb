//! What one-shot commands share: a state from a file or a cluster, mirrors looked at once, one
//! decision.

use std::{collections::BTreeSet, path::Path, time::Duration};

use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::{
    BadSettings,
    arguments::{ClusterArguments, LeftAloneArguments, OnceArguments},
    cluster, input,
};
use crate::{
    api::MODE_LABEL,
    clock, companion,
    domain::{
        decision::{Decision, Operation, Probing, Request},
        image::Reference,
        mirror::Mode,
        pod::{Place, PlaceKind, Pod},
        reason::Reason,
        snapshot::Snapshot,
    },
    metrics::Metrics,
    state::{
        Store,
        configuration::Configuration,
        feed::{Feed, Keep},
        file,
        replica::{Images, Namespaces, Replica, Scope, Settings},
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
    /// The namespace of what names none.
    pub(super) namespace: String,
    /// The cluster whose state it is.
    pub(super) cluster: Option<Replica>,
    /// The mode of namespaces without a label.
    default_mode: Mode,
    /// What could not be read of the cluster, a sentence for each.
    pub(super) notes: Vec<String>,
}

/// What a command is going to decide about.
pub(super) struct Asked {
    pub(super) images: Images,
    pub(super) namespace: Option<String>,
    /// Which mirrors may be asked in a cluster; of those in a file every one is.
    pub(super) probing: Probing,
    /// Whether images that were rewritten earlier may go back to their originals.
    pub(super) heal: bool,
}

/// Reads a configuration file.
pub(super) fn read(path: &Path) -> anyhow::Result<Configuration> {
    let name = path.display().to_string();
    let text = input::read_file(path)?;
    let faults = |faults: Vec<file::Fault>| BadSettings(faults.iter().map(ToString::to_string).collect());
    Ok(file::load(&text, &name).map_err(faults)?)
}

/// Returns a feed of a new store, with a configuration put to use.
pub(super) fn feed(config: &Path, left_alone: &LeftAloneArguments) -> anyhow::Result<(Store, Feed)> {
    let store = Store::default();
    let feed = Feed::new(store.clone(), left_alone.left_alone.iter().cloned().collect());
    apply(&feed, read(config)?, config)?;
    Ok((store, feed))
}

/// Puts a configuration to use.
pub(super) fn apply(feed: &Feed, configuration: Configuration, path: &Path) -> anyhow::Result<()> {
    let unusable = Feed::check_whole(&configuration);
    let applied = if unusable.is_empty() {
        feed.apply(configuration, Keep::Of(&BTreeSet::new()), clock::now())
            .map(drop)
    } else {
        Err(unusable)
    };
    applied.map_err(|faults| {
        let line = |fault| format!("{}: {}", path.display(), chain(fault));
        BadSettings(faults.iter().map(|fault| line(fault)).collect())
    })?;
    Ok(())
}

/// Reads what a cluster shares. Nothing is asked of mirrors.
pub(super) async fn read_cluster(
    arguments: &ClusterArguments,
    left_alone: &LeftAloneArguments,
    scope: impl FnOnce(String) -> Scope,
) -> anyhow::Result<Read> {
    let (client, namespace) = cluster::client_for(arguments).await?;
    let own = &arguments.kagami_namespace;
    let settings = Settings {
        namespace: own.clone(),
        left_alone: left_alone.left_alone.iter().chain([own]).cloned().collect(),
        probe_credentials: None,
    };
    let store = Store::default();
    let (metrics, _) = Metrics::new();
    let cluster = Replica::new(client.clone(), store.clone(), settings, metrics);
    let notes = cluster.read_once(&scope(namespace.clone())).await?;
    Ok(Read {
        client,
        store,
        cluster,
        namespace,
        notes,
    })
}

/// Returns how long ago a companion gave a sign of life, in words.
pub(super) fn sign_of_life(age_seconds: Option<f64>) -> String {
    match age_seconds {
        Some(age) => format!("the companion's last sign of life was {age:.1} s ago"),
        None => "no sign of life of a companion".to_owned(),
    }
}

/// What was read of a cluster.
pub(super) struct Read {
    pub(super) client: kube::Client,
    pub(super) store: Store,
    pub(super) cluster: Replica,
    /// The namespace that the context names.
    pub(super) namespace: String,
    pub(super) notes: Vec<String>,
}

impl Once {
    /// Reads the file and looks at every mirror once; or reads the cluster, which knows, and looks
    /// at mirrors only where its state is too old. The budget begins here.
    pub(super) async fn start(arguments: &OnceArguments, asked: Asked) -> anyhow::Result<Self> {
        let OnceArguments {
            config,
            left_alone,
            budget,
            cluster,
        } = arguments;
        let Asked {
            images,
            namespace,
            probing,
            heal,
        } = asked;
        let deadline = Instant::now() + *budget;
        let Some(config) = config else {
            let scope = |context: String| Scope {
                namespaces: match images {
                    Images::All => Namespaces::All,
                    Images::These(_) => Namespaces::One(namespace.clone().unwrap_or(context)),
                },
                images,
            };
            let read = timeout_at(deadline, read_cluster(cluster, left_alone, scope)).await;
            let read = read.map_err(|_| {
                anyhow::anyhow!("the cluster did not answer within {budget:?}; --budget gives it more time")
            })??;
            let half = Instant::now() + *budget / 2;
            read.cluster.ping_stale(half.min(deadline)).await;
            return Ok(Self {
                admission: admission(&read.store, *budget, probing, heal),
                store: read.store,
                deadline,
                namespace: namespace.unwrap_or(read.namespace),
                cluster: Some(read.cluster),
                default_mode: cluster.default_mode.default_mode.into(),
                notes: read.notes,
            });
        };
        let (store, _) = feed(config, left_alone)?;
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        Ok(Self::look(store, *budget, heal, deadline, namespace).await)
    }

    /// Looks at every mirror of a configuration once.
    async fn look(store: Store, budget: Duration, heal: bool, deadline: Instant, namespace: String) -> Self {
        // Half of the time for the mirrors themselves, so that something is left for the image.
        let half = Instant::now() + budget / 2;
        companion::mirror::look_once(&store, half.min(deadline)).await;
        Self {
            admission: admission(&store, budget, Probing::All, heal),
            store,
            deadline,
            namespace,
            cluster: None,
            default_mode: Mode::Enforce,
            notes: Vec::new(),
        }
    }

    /// Looks at the mirrors of the cluster as if nobody had told anything of them; none without a
    /// cluster.
    pub(super) async fn own_eyes(&self, arguments: &OnceArguments) -> Option<Self> {
        let configuration = self.cluster.as_ref()?.configuration();
        let store = Store::default();
        let left_alone = self.store.snapshot().left_alone.as_ref().clone();
        // They were put to use once already, so nothing hinders it.
        Feed::new(store.clone(), left_alone)
            .apply(configuration, Keep::All, clock::now())
            .ok()?;
        Some(
            Self::look(
                store,
                arguments.budget,
                true,
                self.deadline,
                self.namespace.clone(),
            )
            .await,
        )
    }

    /// Returns the mode of a namespace; enforce if nothing is known of it.
    pub(super) fn mode_of(&self, namespace: &str) -> Mode {
        let snapshot = self.store.snapshot();
        snapshot
            .namespaces
            .get(namespace)
            .map_or(Mode::Enforce, |labels| {
                Mode::of_namespace(labels.get(MODE_LABEL).map(String::as_str), self.default_mode)
            })
    }

    /// Decides about images as if each stood in a container of a Pod of the command's namespace.
    pub(super) async fn decide<T>(
        &self,
        images: &[String],
        mode: Mode,
        told: impl FnOnce(&Snapshot, &[Decision<'_>]) -> T,
    ) -> T {
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
        let mut request = Request {
            namespace: &self.namespace,
            mode,
            operation: Operation::Create,
            heal: true,
            pod,
        };
        let snapshot = self.admission.begin(&mut request);
        let decisions = self
            .admission
            .decide(&snapshot, &request, true, self.deadline)
            .await;
        told(&snapshot, &decisions)
    }
}

fn admission(store: &Store, budget: Duration, probing: Probing, heal: bool) -> Admission {
    let (metrics, _) = Metrics::new();
    let probes = Probes::new(store.clone(), metrics.clone(), TaskTracker::new());
    let limits = Limits {
        budget,
        probing,
        heal,
        recent: usize::MAX,
    };
    Admission::new(store.clone(), probes, metrics, None, limits)
}

/// Returns why an image was decided about as it was, in words; of one that is no reference, what is wrong
/// with it.
pub(super) fn cause(decision: &Decision<'_>) -> String {
    let explanation = decision.reason.explanation();
    match wrong_with(decision.image).filter(|_| decision.reason == Reason::InvalidReference) {
        Some(wrong) => format!("{explanation} Namely: {wrong}."),
        None => explanation.to_owned(),
    }
}

/// Returns what is wrong with an image that is no reference: what it is instead, or the parser's words.
pub(super) fn wrong_with(image: &str) -> Option<String> {
    let error = Reference::parse(image).err()?;
    let is_blank = !image.is_empty() && image.trim().is_empty();
    Some(if is_blank {
        "it is blank: in OpenShift's templates a trigger fills it in".to_owned()
    } else if image.contains("{{") {
        format!("it is of a template: {RENDER_FIRST}")
    } else if image.contains("${") || image.contains("$(") {
        "it is a parameter that somebody has yet to fill in".to_owned()
    } else {
        error.to_string()
    })
}

/// What to do with a raw template.
pub(super) const RENDER_FIRST: &str = "render it first, as with `helm template`";
