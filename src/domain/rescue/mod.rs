//! Pods that do not get their images: which of their containers go back to what their user wrote, and why the
//! others stay as they are.
//!
//! A container is turned only where its own status says that its own image could not be pulled ([`message`] tells
//! which one it speaks of), and only to the recorded original that the mapping alone of some mirror, whatever its
//! mode and health, turns into that image. So nothing that runs is ever touched, nobody's annotation leads
//! anywhere but where their own image came from, and it works while the mirror is off or gone. One turn back for
//! each container of a Pod, and one forward, which [`forward`] tells of: also for one that went back and is not served
//! there.

mod by_pod;
mod former;
pub mod forward;
pub mod hang;
pub mod lasting;
mod marks;
pub mod message;
mod queue;
mod starting;
pub mod unrecorded;
pub mod volumes;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{
    former::Register,
    marks::Marks,
    queue::{Dead, Ending, Id, Next, Queue, Seen, Sight},
    starting::Starting,
};
use self::{
    forward::{Newcomer, refuses_signature},
    message::{Cause, Said, cause, said},
};
use super::{
    image::Reference,
    mapping::Mapping,
    mirror::{Mode, RescuePolicy},
    names::{DECISIONS_ANNOTATION, RESCUED_ANNOTATION},
    original::{self, Original, RecordedDecisions, mirrors_named_by},
    platform::Landing,
    pod::{Owner, PlaceKind, PlaceLabel},
    routing::Routing,
    time::Timestamp,
};

/// The reasons for which kubelet lets a container wait because of its image. Those of a malformed name and of a
/// policy that forbids to pull are not among them: another registry would not help.
const REASONS: [&str; 5] = [
    "ErrImagePull",
    BACK_OFF,
    "RegistryUnavailable",
    "SignatureValidationFailed",
    INSPECTION,
];

/// The one for which it waits between two attempts.
const BACK_OFF: &str = "ImagePullBackOff";

/// The one for which it waits where its node cannot tell whether it has the image.
const INSPECTION: &str = "ImageInspectError";

/// How many containers a Pod has at most that is turned: where it has more, the policy that guards the companion's
/// patches refuses them.
const CONTAINERS: usize = 64;

/// The longest recorded original that is kept in mind; no reference is longer.
const LONGEST_REFERENCE: usize = 1024;

/// The longest record of turns that is read, and how many it may tell of: anybody may have written it, and it is kept
/// for each stuck Pod.
const LONGEST_RECORD: usize = 4 * 1024;
const TURNS: usize = 16;

/// The longest name of a mirror, or of what an owner is, that is kept in mind; nothing has a longer one.
const LONGEST_NAME: usize = 253;

/// What a Pod says of itself, as far as it decides whether it is turned.
#[derive(Clone, Debug, Default)]
pub struct Pod<'a> {
    pub uid: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub resource_version: &'a str,
    pub created: Option<Timestamp>,
    /// When it was bound to its node.
    pub bound: Option<Timestamp>,
    /// Since when its volumes and its network are there, and containers may begin.
    pub started: Option<Timestamp>,
    /// The node that it is on; empty where it is on none yet.
    pub node: &'a str,
    /// What in its namespace stands for those that serve together: the UID of the controller that made it, or the name
    /// of a Deployment, all of whose ReplicaSets count.
    pub owner: Option<&'a str>,
    /// All of its owners.
    pub owners: Vec<Owner<'a>>,
    /// It lists the pull secret that Kagami places.
    pub lists_pull_secret: bool,
    /// Where it may land, as far as its own words tell without its affinity.
    pub landing: Landing,
    /// Its own `kagami.dev/mode` label.
    pub mode_label: Option<&'a str>,
    /// It only shows a static Pod of its node.
    pub is_static: bool,
    /// Its deletion was asked for.
    pub is_deleted: bool,
    /// All of its containers have ended for good.
    pub is_done: bool,
    /// It serves.
    pub is_ready: bool,
    /// Some container of it has begun, now or before.
    pub has_begun: bool,
    /// `apiVersion` and kind of the controller that made it.
    pub controller: Option<(&'a str, &'a str)>,
    /// It has a volume that outlives it, or dies with it: a claim, its own or another's.
    pub has_claim: bool,
    /// Its image volumes: name and image.
    pub image_volumes: Vec<(&'a str, &'a str)>,
    pub annotations: Option<&'a BTreeMap<String, String>>,
    pub init_containers: Vec<Container<'a>>,
    pub containers: Vec<Container<'a>>,
    /// Its node has not taken in its last change: `status.observedGeneration` is behind `metadata.generation`.
    pub is_unheard: bool,
}

impl Pod<'_> {
    fn id(&self) -> PodId {
        PodId {
            uid: self.uid.into(),
            namespace: self.namespace.into(),
            name: self.name.into(),
            resource_version: self.resource_version.into(),
        }
    }
}

/// A container of a Pod and its status.
#[derive(Clone, Copy, Debug, Default)]
pub struct Container<'a> {
    pub name: &'a str,
    pub image: &'a str,
    /// An init container that runs as long as the Pod.
    pub is_sidecar: bool,
    /// Reason and message of its waiting.
    pub waiting: Option<(&'a str, &'a str)>,
    pub is_running: bool,
    /// It ended, and well.
    pub has_succeeded: bool,
    /// It ended, and is to be started once more.
    pub will_run_again: bool,
    /// It runs, or did.
    pub has_begun: bool,
}

impl Container<'_> {
    /// Whether the init containers after this one had their turn, or have it now.
    const fn has_passed(&self) -> bool {
        if self.is_sidecar {
            self.is_running
        } else {
            self.has_succeeded
        }
    }

    /// Whether kubelet has nothing to start of it.
    const fn rests(&self) -> bool {
        self.is_running || (self.has_succeeded && !self.will_run_again)
    }

    /// Returns reason and message of a container that itself waits because of its image.
    fn failed_pull(&self) -> Option<(&str, &str)> {
        let waiting = self.waiting.filter(|_| !self.is_running);
        waiting.filter(|(reason, _)| REASONS.contains(reason))
    }
}

/// A Pod of which a container waits because its image could not be pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckPod {
    pub id: PodId,
    pub created: Option<Timestamp>,
    /// Since when its node may have tried anything for it.
    bound: Option<Timestamp>,
    pub node: Box<str>,
    /// What its own label leaves.
    pub mode: Mode,
    pub containers: Vec<StuckContainer>,
    /// It has more containers than a Pod that is turned.
    is_large: bool,
    /// More than one of its containers may be started in a round: what kubelet has started of them is shown as waiting
    /// until the last one is pulled.
    starts_several: bool,
    /// What was turned before; none where that cannot be read.
    turns: Option<Turns>,
    /// What admission would look at; none where that is too much to be kept.
    newcomer: Option<Newcomer>,
    has_annotations: bool,
}

/// Turns by place; those forward have the way behind it.
type Turns = BTreeMap<String, Turn>;

/// One version of one Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodId {
    pub uid: Box<str>,
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub resource_version: Box<str>,
}

/// A container that waits because its image could not be pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckContainer {
    pub kind: PlaceKind,
    /// Position in its list.
    pub index: usize,
    pub name: Box<str>,
    /// As it stands in the Pod.
    pub image: Box<str>,
    pub failure: Failure,
    /// Kubelet's round in which it first fails may begin nothing: an init container has begun, in a round before, or this
    /// container has, or the Pod was turned.
    is_alone_in_its_round: bool,
    /// Others may be pulled and started after it in one round, which tells what came of it only in the end.
    has_followers: bool,
    /// Some of those are still to start, so in the next round they may be; or another container crashes again and again,
    /// for which kubelet lets rounds wait.
    is_followed: bool,
    /// An attempt to pull has just ended; after it kubelet waits before the next. After a failed look at what the node
    /// has it does not.
    has_just_failed: bool,
    /// What is recorded as its original, unless it is too long to be an image.
    recorded: Option<Box<str>>,
    /// Something is, whatever it is.
    has_record: bool,
    /// Its node does not accept the image's signature.
    is_refused_by_node: bool,
    /// Why it failed.
    cause: Cause,
    /// The mirror that was decided on for it.
    decided: Option<Box<str>>,
}

impl StuckContainer {
    /// Whether another image is recorded as its original: Kagami rewrote it, or somebody says so.
    pub fn is_recorded(&self) -> bool {
        self.recorded
            .as_ref()
            .is_some_and(|recorded| *recorded != self.image)
    }
}

/// What a container's message says could not be pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The image that stands there.
    Image,
    /// Something else: the image that stood there before, or an image volume.
    Other,
    /// The node pulls too much at once.
    Limit,
    /// It does not say.
    Unnamed,
}

/// Which way a container is turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To what its user wrote.
    Back,
    /// To a mirror.
    Forward,
}

impl Way {
    /// Returns its name as metrics have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Back => "back",
            Self::Forward => "forward",
        }
    }
}

/// One turn of a container, as it is recorded on its Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub from: String,
    pub to: String,
    pub at: String,
    /// UID of the Pod that was turned: a copy of it, as a manifest that was saved, has not been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

impl Turn {
    /// Returns whether it was before a time or after it. Times are written to the millisecond, in one form, so their texts
    /// have their order.
    fn compared_to(&self, time: Timestamp) -> Ordering {
        (*self.at).cmp(&*time.to_string())
    }
}

/// A mirror that was there not long ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub name: String,
    pub mapping: Mapping,
    pub rescue: RescuePolicy,
}

/// What stuck Pods are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub routing: &'a Routing,
    /// Mirrors that are in force no more.
    pub former: &'a [Former],
    /// Namespaces whose Pods are never touched.
    pub left_alone: &'a BTreeSet<String>,
}

/// What becomes of a stuck container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement<'a> {
    /// It goes back to what its user wrote, as far as the policy allows.
    Back {
        mirror: &'a str,
        to: &'a str,
        policy: RescuePolicy,
    },
    /// It stays as it is.
    Left(Left),
}

/// Why a stuck container stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its image is no mirror's.
    Upstream,
    /// The message speaks of another image.
    OtherReference,
    /// The node will try again.
    NodeLimit,
    /// The message does not tell which image it speaks of.
    Unnamed,
    /// Nothing tells what the user wrote.
    NoRecord,
    /// What is recorded would not become this image on any mirror.
    RecordDiffers,
    /// It was turned before.
    TurnedBefore,
    /// What was turned before cannot be read.
    TurnsUnreadable,
    /// The Pod has more containers than the guard of the companion's patches lets it change.
    TooManyContainers,
    /// The Pod's own label says so.
    PodOff,
    /// The namespace is never touched.
    NamespaceLeftAlone,
    /// The mirror's policy says so.
    PolicyOff,
}

impl Left {
    /// Returns the reason as people see it: one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "Upstream",
            Self::OtherReference => "OtherReference",
            Self::NodeLimit => "NodeLimit",
            Self::Unnamed => "Unnamed",
            Self::NoRecord => "NoRecord",
            Self::RecordDiffers => "RecordDiffers",
            Self::TurnedBefore => "TurnedBefore",
            Self::TurnsUnreadable => "TurnsUnreadable",
            Self::TooManyContainers => "TooManyContainers",
            Self::PodOff => "PodOff",
            Self::NamespaceLeftAlone => "NamespaceLeftAlone",
            Self::PolicyOff => "PolicyOff",
        }
    }
}

/// What is to be done with one Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub pod: PodId,
    /// What is to be turned.
    pub turned: Vec<Turning>,
    /// What would be, where mirrors' policies allow to tell only.
    pub told: Vec<Turning>,
    /// Until when it has to be done: later kubelet may have begun to pull again, and what it starts would be restarted.
    /// None where that has no end, as where the mirror is dead.
    pub until: Option<Timestamp>,
    turns_before: Turns,
    has_annotations: bool,
}

/// One container's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turning {
    pub way: Way,
    pub kind: PlaceKind,
    pub index: usize,
    pub container: Box<str>,
    pub from: Box<str>,
    pub to: Box<str>,
    pub mirror: Box<str>,
}

impl StuckPod {
    /// Returns a Pod if it is stuck, and Kagami may ever help one like it: no static Pod, and none that is done or on
    /// its way out.
    pub fn of(pod: &Pod<'_>) -> Option<Self> {
        if pod.is_static || pod.is_deleted || pod.is_done {
            return None;
        }
        let stuck = tried(pod).filter_map(|(kind, index, container)| {
            let (reason, message) = container.failed_pull()?;
            // No node tries to pull what is longer.
            let is_reference = container.image.len() <= LONGEST_REFERENCE;
            let is_refused = refuses_signature(reason, message);
            is_reference.then(|| {
                let failure = failure(container.image, message);
                (kind, index, container, failure, (is_refused, cause(message)))
            })
        });
        let stuck: Vec<_> = stuck.take(CONTAINERS).collect();
        if stuck.is_empty() {
            return None;
        }
        let annotation = |key: &str| Some(pod.annotations?.get(key)?.as_str());
        let decisions = RecordedDecisions::new(annotation(DECISIONS_ANNOTATION));
        let was_known = annotation(RESCUED_ANNOTATION).is_some()
            || pod.init_containers.iter().any(|container| container.has_begun);
        let crashes = pod
            .init_containers
            .iter()
            .chain(&pod.containers)
            .any(|container| {
                let waiting = container.waiting;
                waiting.is_some_and(|(reason, _)| reason == "CrashLoopBackOff")
            });
        let containers =
            stuck
                .into_iter()
                .map(|(kind, index, container, failure, (is_refused_by_node, cause))| {
                    let label = PlaceLabel::new(kind, container.name);
                    let recorded = annotation(&label.original_annotation());
                    // An init container that is done lets what follows begin in the next round.
                    let followers = match kind {
                        PlaceKind::Container => pod.containers.get(index + 1..).unwrap_or_default(),
                        _ if container.is_sidecar => &pod.containers,
                        _ => &[],
                    };
                    StuckContainer {
                        kind,
                        index,
                        name: container.name.into(),
                        image: container.image.into(),
                        failure,
                        is_alone_in_its_round: container.has_begun || was_known,
                        has_followers: !followers.is_empty(),
                        is_followed: crashes || !followers.iter().all(Container::rests),
                        has_just_failed: container
                            .waiting
                            .is_some_and(|(reason, _)| ![BACK_OFF, INSPECTION].contains(&reason)),
                        has_record: recorded.is_some(),
                        is_refused_by_node,
                        cause,
                        recorded: recorded
                            .filter(|recorded| recorded.len() <= LONGEST_REFERENCE)
                            .map(Into::into),
                        decided: decisions
                            .mirror(label)
                            .filter(|mirror| mirror.len() <= LONGEST_NAME)
                            .map(Into::into),
                    }
                });
        let mode = pod.mode_label.map(Mode::from_label);
        let has_passed = pod.init_containers.iter().all(Container::has_passed);
        let containers_left = pod.containers.iter();
        let mut waiting =
            containers_left.filter(|container| !container.is_running && !container.has_succeeded);
        Some(Self {
            starts_several: has_passed && waiting.nth(1).is_some(),
            id: pod.id(),
            created: pod.created,
            bound: pod.bound.or(pod.created),
            node: pod.node.into(),
            is_large: pod.init_containers.len() + pod.containers.len() > CONTAINERS,
            // A value that nobody knows means off, as at admission.
            mode: mode.map_or(Mode::Enforce, |mode| mode.unwrap_or(Mode::Off)),
            containers: containers.collect(),
            turns: turns(annotation(RESCUED_ANNOTATION), pod.uid),
            newcomer: Newcomer::of(pod),
            has_annotations: pod.annotations.is_some_and(|annotations| !annotations.is_empty()),
        })
    }

    /// Returns what becomes of one of its containers.
    pub fn judge<'a>(&'a self, container: &'a StuckContainer, known: &Known<'a>) -> Judgement<'a> {
        match self.back(container, known) {
            Ok((mirror, to, policy)) => Judgement::Back { mirror, to, policy },
            Err(left) => Judgement::Left(left),
        }
    }

    fn back<'a>(
        &'a self,
        container: &'a StuckContainer,
        known: &Known<'a>,
    ) -> Result<(&'a str, &'a str, RescuePolicy), Left> {
        let image = &*container.image;
        let named = mirrors_named_by(known.routing, image);
        let recorded = container.recorded.as_deref();
        let former = recorded.and_then(|recorded| former(image, recorded, known.former));
        if named.is_empty() && former.is_none() {
            return Err(Left::Upstream);
        }
        match container.failure {
            Failure::Image => {}
            Failure::Other => return Err(Left::OtherReference),
            Failure::Limit => return Err(Left::NodeLimit),
            Failure::Unnamed => return Err(Left::Unnamed),
        }
        if known.left_alone.contains(&*self.id.namespace) {
            return Err(Left::NamespaceLeftAlone);
        }
        // People's words come first: who said off is not told of what is missing either.
        if self.mode == Mode::Off {
            return Err(Left::PodOff);
        }
        // Nobody can tell which of the mirrors in one registry it was, so the weakest policy holds.
        let policies = named
            .into_iter()
            .map(|mirror| known.routing.mirror(mirror).rescue);
        let weakest = policies.fold(RescuePolicy::Enforce, RescuePolicy::min);
        if weakest == RescuePolicy::Off {
            return Err(Left::PolicyOff);
        }
        let recorded = recorded.ok_or(Left::NoRecord)?;
        let decided = || container.decided.as_deref();
        let original = Original::prove(known.routing, image, recorded, decided);
        let (mirror, policy) = match (original, former) {
            (Some(original), _) => {
                let mirror = known.routing.mirror(original.mirror);
                (mirror.name.as_str(), mirror.rescue)
            }
            (None, Some(former)) => (former.name.as_str(), former.rescue),
            (None, None) => return Err(Left::RecordDiffers),
        };
        let policy = match self.mode {
            Mode::Off | Mode::Audit | Mode::Warn => policy.min(RescuePolicy::Audit),
            Mode::Enforce => policy,
        }
        .min(weakest);
        if policy == RescuePolicy::Off {
            return Err(Left::PolicyOff);
        }
        let turns = self.turns.as_ref().ok_or(Left::TurnsUnreadable)?;
        if turns.contains_key(&turn_label(container.kind, &container.name, Way::Back)) {
            return Err(Left::TurnedBefore);
        }
        if self.is_large {
            return Err(Left::TooManyContainers);
        }
        Ok((mirror, recorded, policy))
    }

    /// Returns the turn by which a container went back to the image that stands there and cannot be pulled either.
    pub fn went_back(&self, container: &StuckContainer) -> Option<&Turn> {
        let turn = self
            .turns
            .as_ref()?
            .get(&turn_label(container.kind, &container.name, Way::Back))?;
        let is_it = container.failure == Failure::Image && *turn.to == *container.image;
        is_it.then_some(turn)
    }

    /// Returns the turn by which a container came forward.
    fn came_forward(&self, kind: PlaceKind, container: &str) -> Option<&Turn> {
        let turns = self.turns.as_ref()?;
        turns.get(&turn_label(kind, container, Way::Forward))
    }

    /// Returns how much text is kept of it, and a little for each thing that has some.
    fn size(&self) -> usize {
        let containers = self.containers.iter().map(|container| {
            let texts =
                [&container.recorded, &container.decided].map(|text| text.as_deref().map_or(0, str::len));
            128 + container.name.len() + container.image.len() + texts.iter().sum::<usize>()
        });
        let turns = self.turns.iter().flatten().map(|(label, turn)| {
            let Turn { from, to, at, pod } = turn;
            256 + label.len() + from.len() + to.len() + at.len() + pod.as_deref().map_or(0, str::len)
        });
        let PodId {
            uid,
            namespace,
            name,
            resource_version,
        } = &self.id;
        let id = uid.len() + 2 * (namespace.len() + name.len()) + 2 * resource_version.len();
        let newcomer = self.newcomer.as_ref().map_or(0, Newcomer::size);
        id + self.node.len() + newcomer + containers.sum::<usize>() + turns.sum::<usize>()
    }
}

/// Returns the containers whose images kubelet may have tried to pull: of the init containers the first that has
/// not passed. What comes after that was not tried, and what comes before is done or runs.
fn tried<'p, 'a>(pod: &'p Pod<'a>) -> impl Iterator<Item = (PlaceKind, usize, &'p Container<'a>)> {
    let first = pod
        .init_containers
        .iter()
        .enumerate()
        .find(|(_, container)| !container.has_passed());
    let init = first.map(|(index, container)| (PlaceKind::InitContainer, index, container));
    let others = pod.containers.iter().enumerate();
    init.into_iter()
        .chain(others.map(|(index, container)| (PlaceKind::Container, index, container)))
}

/// Returns what a message says could not be pulled, where this image stands.
pub fn failure(image: &str, message: &str) -> Failure {
    match said(message) {
        Said::Limit => Failure::Limit,
        Said::Nothing => Failure::Unnamed,
        Said::Failed(reference) if same_image(reference, image) => Failure::Image,
        Said::Failed(_) => Failure::Other,
    }
}

/// Whether two references name one image: kubelet and runtimes complete names, and drop the tag beside a digest.
fn same_image(one: &str, other: &str) -> bool {
    let key = |text| Reference::parse(text).ok().map(|reference| reference.key());
    key(one).is_some_and(|one| Some(one) == key(other))
}

/// Returns the mirror of old that turns an original into an image: of several the one with the weakest policy.
fn former<'a>(image: &str, recorded: &str, former: &'a [Former]) -> Option<&'a Former> {
    let original = Reference::parse(recorded).ok()?;
    former
        .iter()
        // Of one that does not keep registries apart nothing tells any more which host was its.
        .filter(|former| former.mapping.template.keeps_registries_apart())
        .filter(|former| former.mapping.maps_to(&original, image))
        .min_by_key(|former| former.rescue)
}

/// Returns the turns of a Pod that stand in an annotation; none if it has not the form in which Kagami writes them.
fn turns(text: Option<&str>, uid: &str) -> Option<Turns> {
    let Some(text) = text else {
        return Some(BTreeMap::new());
    };
    if text.len() > LONGEST_RECORD {
        return None;
    }
    let mut turns: Turns = serde_json::from_str(text).ok()?;
    turns.retain(|_, turn| turn.pod.as_deref().is_none_or(|pod| pod == uid));
    (turns.len() <= TURNS).then_some(turns)
}

/// Returns what a container's turn is recorded by. No container has a slash in its name.
fn turn_label(kind: PlaceKind, container: &str, way: Way) -> String {
    let place = PlaceLabel::new(kind, container);
    match way {
        Way::Back => place.to_string(),
        Way::Forward => format!("{place}/{}", way.as_str()),
    }
}

/// Returns where an annotation stands, as a JSON patch names it.
fn annotation_path(key: &str) -> String {
    format!("/metadata/annotations/{}", key.replace('/', "~1"))
}

impl Order {
    /// Returns the JSON patch that turns the Pod's containers: only if it still is what was judged.
    pub fn patch(&self, now: Timestamp) -> Value {
        let mut operations = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": self.pod.uid}),
            json!({"op": "test", "path": "/metadata/resourceVersion", "value": self.pod.resource_version}),
        ];
        if !self.has_annotations {
            // There is nothing to replace: the version is tested.
            operations.push(json!({"op": "add", "path": "/metadata/annotations", "value": {}}));
        }
        let mut turns = self.turns_before.clone();
        for turning in &self.turned {
            let Turning {
                way,
                kind,
                index,
                container,
                from,
                to,
                mirror: _,
            } = turning;
            let at = format!("/spec/{}/{index}", kind.list());
            operations.extend([
                json!({"op": "test", "path": format!("{at}/name"), "value": container}),
                json!({"op": "test", "path": format!("{at}/image"), "value": from}),
                json!({"op": "replace", "path": format!("{at}/image"), "value": to}),
            ]);
            if *way == Way::Forward {
                let original = PlaceLabel::new(*kind, container).original_annotation();
                operations.push(json!({"op": "add", "path": annotation_path(&original), "value": from}));
            }
            let turn = Turn {
                from: from.to_string(),
                to: to.to_string(),
                at: now.to_string(),
                pod: Some(self.pod.uid.to_string()),
            };
            turns.insert(turn_label(*kind, container, *way), turn);
        }
        let path = annotation_path(RESCUED_ANNOTATION);
        operations.push(json!({"op": "add", "path": path, "value": json!(turns).to_string()}));
        Value::Array(operations)
    }
}

#[cfg(test)]
mod tests;
