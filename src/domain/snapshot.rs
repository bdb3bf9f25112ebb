//! What a decision needs of the world, besides the images: one value, swapped whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    health::Health,
    image::Reference,
    lent::Lent,
    mirror::Mode,
    names::MODE_LABEL,
    owners::LeftAlone,
    routing::{Access, Candidate, Keeper, MirrorId, Routing},
    selector::Labels,
    standing::Standing,
    time::Timestamp,
};

/// The standing of a mirror of which nothing is told.
static NOTHING_TOLD: Standing = Standing::NONE;

/// The health of such a one.
static NOBODY_TOLD: Health = Health::unknown(Timestamp::from_millis(0));

/// Routing, what is known of mirrors, and namespaces at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub routing: Arc<Routing>,
    /// One for each mirror of the routing, in its order.
    pub health: Vec<Health>,
    /// Mirrors of which the shared state is too old to be believed; what `health` then says is
    /// what this replica saw itself.
    pub stale: BTreeSet<MirrorId>,
    /// Mirrors of which it is being asked whether they still answer.
    pub suspected: BTreeSet<MirrorId>,
    /// What the statuses of mirrors tell, in the routing's order.
    pub standings: Vec<Arc<Standing>>,
    /// Labels of the namespaces that are known.
    pub namespaces: Arc<BTreeMap<String, Labels>>,
    /// Hosts of upstream registries that fail now; only those in front of which a mirror stands
    /// that prefers upstream are looked at.
    pub failing_upstreams: Arc<BTreeSet<String>>,
    /// The brake is on: nothing is done to any Pod.
    pub paused: bool,
    /// Namespaces whose Pods are never touched: kube-system and Kagami's own.
    pub left_alone: Arc<BTreeSet<String>>,
    /// What is known of owners that fight rewrites.
    pub owners: Arc<LeftAlone>,
    /// Originals that Pods record, for others of their namespace.
    pub lent: Arc<Lent>,
}

impl Snapshot {
    /// Returns the health of a mirror; unknown if nobody told.
    pub fn health_of(&self, mirror: MirrorId) -> &Health {
        self.health.get(mirror.index()).unwrap_or(&NOBODY_TOLD)
    }

    /// Whether the shared state of a mirror is too old to be believed.
    pub fn is_stale(&self, mirror: MirrorId) -> bool {
        self.stale.contains(&mirror)
    }

    /// Whether it is being asked if a mirror still answers.
    pub fn is_suspected(&self, mirror: MirrorId) -> bool {
        self.suspected.contains(&mirror)
    }

    /// Returns what a mirror's status tells.
    pub fn standing(&self, mirror: MirrorId) -> &Standing {
        self.standings
            .get(mirror.index())
            .map_or(&NOTHING_TOLD, |standing| standing)
    }

    /// Returns the mode of a namespace; `default` is that of one without the label. One whose labels are not known counts as
    /// without any.
    pub fn mode_of(&self, namespace: &str, default: Mode) -> Mode {
        let labels = self.namespaces.get(namespace);
        let label = labels.and_then(|labels| labels.get(MODE_LABEL));
        Mode::of_namespace(label.map(String::as_str), default)
    }

    /// Whether a mirror serves a namespace. One that is not known matches an empty selector only.
    pub fn serves(&self, mirror: MirrorId, namespace: &str) -> bool {
        let mirror = &self.routing.mirror(mirror);
        if mirror.runs_in.iter().any(|own| own == namespace) {
            return false;
        }
        let selector = &mirror.namespaces;
        selector.is_empty()
            || self
                .namespaces
                .get(namespace)
                .is_some_and(|labels| selector.matches(labels))
    }

    /// Returns who keeps from a namespace what lies at a place of a registry; none where the namespace may have it.
    pub fn closed_by(&self, access: &Access, namespace: &str) -> Option<Keeper> {
        let mut private = access.private.iter();
        let mirror = private.find(|mirror| !self.serves(**mirror, namespace));
        let mirror = mirror.copied().map(Keeper::Mirror);
        mirror.or_else(|| access.closed.map(Keeper::Closed))
    }

    /// Whether a mirror may be filled with an image for a namespace: it may serve it there.
    pub fn may_fill(&self, candidate: &Candidate, image: &Reference<'_>, namespace: &str) -> bool {
        let access = self.routing.access(candidate, image);
        self.serves(candidate.mirror, namespace) && self.closed_by(&access, namespace).is_none()
    }
}
