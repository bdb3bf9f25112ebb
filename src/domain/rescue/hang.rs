//! Pulls that last: a node is inside one and neither says nor hears anything until it ends.
//!
//! Nobody can tell a slow pull from one that hangs, and no patch gets through to a kubelet that pulls. So this is
//! told and nothing is done. The status of such a Pod stays as it was when the pull began, which is why its own Events
//! are asked for, of one Pod at a time, and of no Pod that has not been like that for long.
//!
//! A kubelet that pulls one image after the other, as it does by default, writes `Pulling` of those that wait too. So of
//! a node only the pull that began first is told as one; the others wait behind it, whatever registry it is from.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use super::{
    Container, Pod, PodId,
    by_pod::{ByPod, Key},
    same_image, tried,
};
use crate::domain::{
    mirror::RescuePolicy, original::mirrors_named_by, pod::PlaceKind, routing::Routing, time::Timestamp,
};

/// How many Pods are kept in mind; of those that no mirror is named in, half as many.
const LIMIT: usize = 10_000;

/// How long after the Events of a Pod were asked for they are again, at most and at least. Sooner where a pull may take
/// less: none is to begin and be late unseen.
const AGAIN: (Duration, Duration) = (Duration::from_mins(1), Duration::from_secs(5));

/// How many Pods of a node, those that began first, are asked about before a pull there is told.
const RIVALS: usize = 8;

/// The reasons for which a container waits that was never started.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Those for which one waits whose image may be pulled again, or is while that still stands there.
const AGAIN_SOON: [&str; 6] = [
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "ImageInspectError",
];

/// Pods that have begun and do not get on.
#[derive(Debug, Default)]
pub struct Hangs {
    pods: ByPod<Suspect>,
}

/// A Pod with an image that may be being pulled.
#[derive(Debug)]
struct Suspect {
    pod: PodId,
    node: Box<str>,
    /// Since when its status may be as it is because its node pulls.
    since: Timestamp,
    places: Vec<Place>,
    /// Kubelet has not taken in its last change.
    is_unheard: bool,
    asked_at: Option<Timestamp>,
    /// When it was asked about what its Events said last.
    seen_at: Option<Timestamp>,
    /// Which of the places its Events say is being pulled, and since when.
    pulling: Option<(usize, Timestamp)>,
    /// Until when it was seen to wait behind another Pod's pull.
    waited_until: Option<Timestamp>,
    /// What was told of it.
    told: Option<Hang>,
}

/// A container or a volume whose image may be being pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    kind: PlaceKind,
    name: Box<str>,
    image: Box<str>,
    /// What its status says: why it waits, or nothing if it ended.
    state: Box<str>,
    /// The mirror that is named, and how long a pull from it may take; none where nothing is to be told of it.
    from: Option<(Box<str>, Duration)>,
}

/// A pull that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    pub pod: PodId,
    pub node: Box<str>,
    pub kind: PlaceKind,
    /// The container's name, or the volume's.
    pub container: Box<str>,
    pub image: Box<str>,
    pub mirror: Box<str>,
    /// When the pull began, as its node says.
    pub since: Timestamp,
    /// Another pull of its node began before and has not ended.
    pub waits: bool,
    /// Its node has not taken in the Pod's last change.
    pub is_unheard: bool,
}

/// One Event of a Pod that its kubelet wrote, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent<'a> {
    pub reason: &'a str,
    pub message: &'a str,
    /// `spec.containers{name}`; empty where it speaks of no container.
    pub field_path: &'a str,
    /// The node whose kubelet wrote it.
    pub host: &'a str,
    /// When it was last so.
    pub at: Timestamp,
}

impl Hang {
    /// Returns what people are told who may read the Pod.
    pub fn describe(&self) -> String {
        let Self {
            pod,
            node,
            kind,
            container,
            image,
            mirror,
            since,
            waits,
            is_unheard,
        } = self;
        let what = if *kind == PlaceKind::Volume {
            "volume"
        } else {
            "container"
        };
        let place = format!("{what} {container} of Pod {}/{}", pod.namespace, pod.name);
        if *waits {
            return format!(
                "Node {node} has said since {since} that it pulls {image} from mirror {mirror}, for {place}, but a \
                 pull that it began before has not ended: with serial pulls, kubelet's default, this one waits behind \
                 it"
            );
        }
        let unheard = if *is_unheard {
            ". The Pod was changed meanwhile, which kubelet has not taken in"
        } else {
            ""
        };
        format!("{}, for {place}. {ENDS}{unheard}", self.began())
    }

    /// Returns what everybody is told: nothing of whose Pod it is.
    pub fn describe_to_all(&self) -> String {
        format!("{}. {ENDS}", self.began())
    }

    fn began(&self) -> String {
        let Self {
            node,
            image,
            mirror,
            since,
            ..
        } = self;
        format!("Node {node} has been pulling {image} from mirror {mirror} since {since}")
    }
}

/// What there is to know of a pull that lasts.
const ENDS: &str = "Until that ends, with an error or well, kubelet hears nothing: neither a patch nor a deletion gets \
                    through, and with serial pulls nothing else is pulled there. What ends it: a write timeout of the \
                    mirror's front end, containerd's image_pull_progress_timeout, or a restart of kubelet. A pull that \
                    fails is turned back, where policy and record allow it";

impl Hangs {
    /// Begins a list of all Pods: those not taken in before [`Hangs::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.pods.begin_listing();
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.pods.end_listing();
    }

    /// Takes in a Pod.
    pub fn take(&mut self, pod: &Pod<'_>, routing: &Routing, now: Timestamp) {
        let places = places(pod, routing);
        if places.is_empty() {
            self.remove(pod);
            return;
        }
        let before = self.pods.take_out(pod);
        let is_same = |before: &Suspect| {
            let says = |place: &Place| {
                (
                    place.kind,
                    place.name.clone(),
                    place.image.clone(),
                    place.state.clone(),
                )
            };
            &*before.pod.uid == pod.uid && before.places.iter().map(says).eq(places.iter().map(says))
        };
        let limit = if places.iter().any(|place| place.from.is_some()) {
            LIMIT
        } else {
            LIMIT / 2
        };
        let mut suspect = match before.filter(is_same) {
            Some(before) => before,
            None if self.pods.len() >= limit => return,
            None => {
                // What was never started is so since the Pod's volumes and its network are there. What says something
                // new was heard of just now.
                let begins = places.iter().all(|place| BEGINNING.contains(&&*place.state));
                let since = pod.started.filter(|_| begins).unwrap_or(now);
                Suspect::new(pod, since.min(now))
            }
        };
        suspect.pod.resource_version = pod.resource_version.into();
        suspect.is_unheard = pod.is_unheard;
        suspect.places = places;
        self.pods.put_in(pod, suspect);
    }

    /// Forgets a Pod that is gone, or has begun.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        self.pods.take_out(pod);
    }

    /// Goes by these mirrors from now on.
    pub fn judge_anew(&mut self, routing: &Routing) {
        for suspect in self.pods.values_mut() {
            for place in &mut suspect.places {
                place.from = from(&place.image, routing);
            }
            let told = suspect.told.as_ref();
            let names = |told: &Hang| {
                let mut mirrors = suspect.places.iter().filter_map(|place| place.from.as_ref());
                mirrors.any(|(mirror, _)| *mirror == told.mirror)
            };
            if !told.is_none_or(names) {
                suspect.told = None;
            }
        }
    }

    /// Returns the Pod whose Events are to be asked for: of those that are due, or on which it depends what is told of
    /// another, the one that was asked about longest ago; those that never ran come first. None if there is none now.
    pub fn next(&mut self, now: Timestamp) -> Option<PodId> {
        let rivals = self.rivals();
        let due = self.pods.iter().filter_map(|(id, suspect)| {
            let is_rival = rivals.contains(id);
            let is_due = is_rival || suspect.due_at().is_some_and(|due| due <= now);
            let goes_on = !suspect.begins();
            is_due.then_some(((goes_on, suspect.asked_at, suspect.since), id))
        });
        let (_, id) = due.min()?;
        let id = id.clone();
        let suspect = self.pods.by_key_mut(&id)?;
        suspect.asked_at = Some(now);
        Some(suspect.pod.clone())
    }

    /// Takes in the Events of a Pod, which its kubelet wrote.
    pub fn judge(&mut self, pod: &PodId, events: &[PodEvent<'_>]) {
        let Some(suspect) = self
            .pods
            .get_mut(pod)
            .filter(|suspect| suspect.pod.uid == pod.uid)
        else {
            return;
        };
        let host = &suspect.node;
        let events: Vec<_> = events.iter().filter(|event| event.host == &**host).collect();
        let places = suspect.places.iter().enumerate();
        let pulling = places.filter_map(|(index, place)| Some((pulling_since(place, &events)?, index)));
        // A Pod's images are pulled one by one.
        suspect.pulling = pulling.max().map(|(since, index)| (index, since));
        suspect.seen_at = suspect.asked_at;
        if suspect.pulling.is_none() {
            // It has ended, though the Pod's status may not say so yet.
            suspect.told = None;
            suspect.waited_until = None;
        }
    }

    /// Returns the pulls that last and were not told yet.
    pub fn news(&mut self, now: Timestamp) -> Vec<Hang> {
        let rivals = self.rivals();
        let unclear: HashSet<Box<str>> = rivals
            .iter()
            .filter_map(|id| Some(self.pods.by_key(id)?.node.clone()))
            .collect();
        let mut first: HashMap<Box<str>, Timestamp> = HashMap::new();
        for suspect in self.pods.values() {
            if let Some((_, since)) = suspect.pulling {
                let oldest = first.entry(suspect.node.clone()).or_insert(since);
                *oldest = since.min(*oldest);
            }
        }
        let mut news = Vec::new();
        for suspect in self.pods.values_mut() {
            let waited = suspect.told.as_ref().is_some_and(|told| told.waits);
            let lasts = suspect.lasts().is_some();
            if !(lasts || waited) || unclear.contains(&suspect.node) {
                continue;
            }
            let Some((index, since)) = suspect.pulling else {
                continue;
            };
            let waits = first.get(&suspect.node).is_some_and(|first| *first < since);
            if waits {
                suspect.waited_until = Some(now);
            } else if !lasts {
                // Its own time has just begun.
                suspect.told = None;
                continue;
            }
            let place = &suspect.places[index];
            let Some((mirror, _)) = &place.from else { continue };
            let hang = Hang {
                pod: suspect.pod.clone(),
                node: suspect.node.clone(),
                kind: place.kind,
                container: place.name.clone(),
                image: place.image.clone(),
                mirror: mirror.clone(),
                since: if waits {
                    since
                } else {
                    suspect.waited_until.unwrap_or(since).max(since)
                },
                waits,
                is_unheard: suspect.is_unheard,
            };
            let same = |told: &Hang| {
                (told.kind, &told.container, told.since, told.waits)
                    == (hang.kind, &hang.container, hang.since, hang.waits)
            };
            if !suspect.told.as_ref().is_some_and(same) {
                news.push(hang.clone());
            }
            suspect.told = Some(hang);
        }
        news
    }

    /// Returns the pulls that were told and last: of each mirror the longest.
    pub fn longest(&self) -> BTreeMap<&str, &Hang> {
        let mut longest: BTreeMap<&str, &Hang> = BTreeMap::new();
        let told = self.pods.values().filter_map(|suspect| suspect.told.as_ref());
        for hang in told.filter(|hang| !hang.waits) {
            let known = longest.entry(&hang.mirror).or_insert(hang);
            let order = |hang: &&Hang| (hang.since, hang.pod.namespace.clone(), hang.pod.name.clone());
            if order(&hang) < order(known) {
                *known = hang;
            }
        }
        longest
    }

    /// Returns the Pods of which it depends what is told of other Pods of their nodes, and that nobody asked about since
    /// those began to pull.
    fn rivals(&self) -> HashSet<Key> {
        let mut lasting: HashMap<&str, Timestamp> = HashMap::new();
        for suspect in self.pods.values() {
            if let Some((_, since)) = suspect.lasts() {
                let latest = lasting.entry(&suspect.node).or_insert(since);
                *latest = since.max(*latest);
            }
        }
        if lasting.is_empty() {
            return HashSet::new();
        }
        let mut first: HashMap<&str, Vec<_>> = HashMap::new();
        for (id, suspect) in self.pods.iter() {
            if lasting
                .get(&*suspect.node)
                .is_some_and(|since| suspect.since <= *since)
            {
                first
                    .entry(&suspect.node)
                    .or_default()
                    .push((suspect.since, id, suspect.asked_at));
            }
        }
        let mut rivals = HashSet::new();
        for (node, mut of_node) in first {
            of_node.sort_unstable();
            of_node.truncate(RIVALS);
            let unknown = |asked_at: Option<Timestamp>| asked_at < lasting.get(node).copied();
            let unknown = of_node.into_iter().filter(|(.., asked_at)| unknown(*asked_at));
            rivals.extend(unknown.map(|(_, id, _)| id.clone()));
        }
        rivals
    }
}

impl Suspect {
    fn new(pod: &Pod<'_>, since: Timestamp) -> Self {
        Self {
            pod: pod.id(),
            node: pod.node.into(),
            since,
            places: Vec::new(),
            is_unheard: false,
            asked_at: None,
            seen_at: None,
            pulling: None,
            waited_until: None,
            told: None,
        }
    }

    /// Whether none of what may be pulled was ever started.
    fn begins(&self) -> bool {
        self.places.iter().all(|place| BEGINNING.contains(&&*place.state))
    }

    /// Returns what it pulls, and since when it may have done so.
    fn pulls(&self) -> Option<(&Place, Timestamp)> {
        let (index, since) = self.pulling?;
        let since = self.waited_until.unwrap_or(since).max(since);
        Some((self.places.get(index)?, since))
    }

    /// Returns the image that had been pulled from a mirror for too long when it was asked about last, and since when.
    fn lasts(&self) -> Option<(&Place, Timestamp)> {
        let (place, since) = self.pulls()?;
        let (_, patience) = place.from.as_ref()?;
        let took_long = self.seen_at?.since(since) >= *patience;
        took_long.then_some((place, since))
    }

    /// Returns when its Events are to be asked for; none where it depends on nothing what they tell.
    fn due_at(&self) -> Option<Timestamp> {
        let patience = |place: &Place| place.from.as_ref().map(|(_, patience)| *patience);
        let shortest = self.places.iter().filter_map(patience).min();
        let Some(asked_at) = self.asked_at else {
            return Some(self.since.after(shortest?));
        };
        let waits = self.told.as_ref().is_some_and(|told| told.waits);
        let late = self
            .pulls()
            .filter(|_| !waits)
            .and_then(|(place, since)| Some(since.after(patience(place)?)));
        match late {
            Some(late) if late > asked_at => Some(late),
            // Whether it has ended meanwhile.
            _ if self.pulling.is_some() => Some(asked_at.after(AGAIN.0)),
            _ => Some(asked_at.after(AGAIN.0.min(shortest?).max(AGAIN.1))),
        }
    }
}

/// Returns the containers of a Pod that take longer to begin than a pull from their mirror should, with since when: as
/// its status alone tells, which says nothing of a pull.
pub fn late(pod: &Pod<'_>, routing: &Routing, now: Timestamp) -> Vec<(PlaceKind, String, String, Timestamp)> {
    let since = pod.started.unwrap_or(now);
    let is_late = |place: &Place| {
        let patience = place.from.as_ref().map(|(_, patience)| *patience);
        BEGINNING.contains(&&*place.state) && patience.is_some_and(|patience| now.since(since) >= patience)
    };
    let late = places(pod, routing).into_iter().filter(is_late);
    late.map(|place| (place.kind, place.name.into(), place.image.into(), since))
        .collect()
}

/// Returns what a node may be pulling for a Pod: the images of containers that do not run and whose turn it is, and
/// those of volumes, which are pulled before any of them.
fn places(pod: &Pod<'_>, routing: &Routing) -> Vec<Place> {
    // Before, volumes and network are not there yet, and no image is pulled.
    if pod.is_static || pod.is_done || pod.is_deleted || pod.started.is_none() || pod.node.is_empty() {
        return Vec::new();
    }
    let place = |kind, name: &str, image: &str, state: &str| Place {
        kind,
        name: name.into(),
        image: image.into(),
        state: state.into(),
        from: from(image, routing),
    };
    let is_init = |kind| kind == PlaceKind::InitContainer;
    let mut tried = tried(pod).peekable();
    // While an init container has not passed, the others wait for it.
    let init_first = tried
        .peek()
        .is_some_and(|(kind, _, container)| is_init(*kind) && !container.is_running);
    let whose_turn = tried.filter(|(kind, ..)| is_init(*kind) || !init_first);
    let containers = whose_turn.filter_map(|(kind, _, container)| {
        Some(place(kind, container.name, container.image, state(container)?))
    });
    // No node pulls what is longer.
    let is_reference = |place: &Place| place.image.len() <= super::LONGEST_REFERENCE;
    let mut places: Vec<_> = containers.take(super::CONTAINERS).filter(is_reference).collect();
    if let Some(first) = places.first().map(|place| place.state.clone()) {
        let volumes = pod.image_volumes.iter().take(super::CONTAINERS);
        let volumes = volumes.map(|(name, image)| place(PlaceKind::Volume, name, image, &first));
        places.extend(volumes.filter(is_reference));
    }
    places
}

/// Returns what a container's status says while its image may be being pulled.
fn state<'a>(container: &Container<'a>) -> Option<&'a str> {
    if container.is_running {
        return None;
    }
    match container.waiting {
        Some((reason, _)) => [&BEGINNING[..], &AGAIN_SOON]
            .concat()
            .contains(&reason)
            .then_some(reason),
        None => container.will_run_again.then_some(""),
    }
}

/// Returns the mirror that an image names and how long a pull from it may take; none where nothing is to be told.
fn from(image: &str, routing: &Routing) -> Option<(Box<str>, Duration)> {
    let mirror = routing.mirror(*mirrors_named_by(routing, image).first()?);
    (mirror.rescue != RescuePolicy::Off).then(|| (mirror.name.as_str().into(), mirror.hang_after))
}

/// Returns since when an image has been pulled; none where its Events tell of no pull that has not ended.
fn pulling_since(place: &Place, events: &[&PodEvent<'_>]) -> Option<Timestamp> {
    let is_volume = place.kind == PlaceKind::Volume;
    // Those of a volume name none, and others speak of the whole Pod.
    let path = if is_volume {
        String::new()
    } else {
        field_path(place.kind, &place.name)
    };
    let mut last: [Option<Timestamp>; 2] = [None; 2];
    for event in events.iter().filter(|event| event.field_path == path) {
        let is_pull = event.reason == "Pulling";
        if is_pull && !pulled_image(event.message).is_some_and(|image| same_image(image, &place.image)) {
            continue;
        }
        if is_volume && !is_pull && !["Pulled", "Failed", "BackOff"].contains(&event.reason) {
            continue;
        }
        let last = &mut last[usize::from(!is_pull)];
        *last = (*last).max(Some(event.at));
    }
    let [since, ended] = last;
    // Times are whole seconds: of two that are the same nobody knows which was first.
    since.filter(|_| ended < since)
}

/// Returns the image that the message of an Event `Pulling` names.
fn pulled_image(message: &str) -> Option<&str> {
    message.strip_prefix("Pulling image \"")?.strip_suffix('"')
}

/// Returns a container's name as Events have it.
pub fn field_path(kind: PlaceKind, container: &str) -> String {
    format!("spec.{}{{{container}}}", kind.list())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        examples::{NOW, mirror},
        rescue::Container,
    };

    const IMAGE: &str = "a.example.com/docker.io/library/nginx:1";
    const PULLING: &str = "Pulling image \"a.example.com/docker.io/library/nginx:1\"";
    const APP: &str = "spec.containers{app}";

    fn at(seconds: u64) -> Timestamp {
        NOW.after(Duration::from_secs(seconds))
    }

    fn container(waiting: &'static str) -> Container<'static> {
        Container {
            name: "app",
            image: IMAGE,
            waiting: Some((waiting, "")),
            ..Container::default()
        }
    }

    fn pod(containers: Vec<Container<'static>>) -> Pod<'static> {
        Pod {
            uid: "u",
            namespace: "team",
            name: "web",
            node: "node-1",
            started: Some(NOW),
            containers,
            ..Pod::default()
        }
    }

    /// A cluster in which a mirror's pulls may take two minutes.
    struct Scene {
        hangs: Hangs,
        routing: Routing,
    }

    fn event<'a>(reason: &'a str, message: &'a str, field_path: &'a str, seconds: u64) -> PodEvent<'a> {
        PodEvent {
            reason,
            message,
            field_path,
            host: "node-1",
            at: at(seconds),
        }
    }

    impl Scene {
        fn new() -> Self {
            Self {
                hangs: Hangs::default(),
                routing: Routing::compile(vec![mirror("a", &["docker.io"])]),
            }
        }

        fn take(&mut self, pod: &Pod<'_>, seconds: u64) {
            self.hangs.take(pod, &self.routing, at(seconds));
        }

        /// Whether a Pod is asked about, ten minutes after it began.
        fn suspects(&mut self, pod: &Pod<'_>) -> bool {
            self.hangs = Hangs::default();
            self.take(pod, 0);
            self.hangs.next(at(600)).is_some()
        }

        /// Asks twice a second, and is told by the Pods' own Events, until something is to be told. Returns when that
        /// is, of which Pod, since when, and whether it waits for another.
        fn told(
            &mut self,
            events: &[(&str, PodEvent<'_>)],
            seconds: std::ops::Range<u64>,
        ) -> Option<(u64, String, u64, bool)> {
            for half in seconds.start * 2..seconds.end * 2 {
                let now = NOW.after(Duration::from_millis(half * 500));
                if let Some(id) = self.hangs.next(now) {
                    let of_pod = events
                        .iter()
                        .filter(|(pod, event)| *pod == &*id.name && event.at <= now);
                    let of_pod: Vec<_> = of_pod.map(|(_, event)| event.clone()).collect();
                    self.hangs.judge(&id, &of_pod);
                }
                if let Some(hang) = self.hangs.news(now).pop() {
                    let since = hang.since.since(NOW).as_secs();
                    return Some((half / 2, hang.pod.name.to_string(), since, hang.waits));
                }
            }
            None
        }
    }

    fn named<'a>(name: &'a str, image: &'a str, started: u64) -> Pod<'a> {
        Pod {
            name,
            uid: name,
            started: Some(at(started)),
            containers: vec![Container {
                name: "app",
                image,
                waiting: Some(("ContainerCreating", "")),
                ..Container::default()
            }],
            ..pod(Vec::new())
        }
    }

    #[test]
    fn who_begins_on_a_mirror_for_long_is_asked_about() {
        let mut scene = Scene::new();
        let begins = || container("ContainerCreating");
        assert!(scene.suspects(&pod(vec![begins()])));
        let upstream = Container {
            image: "nginx:1",
            ..begins()
        };
        assert!(!scene.suspects(&pod(vec![upstream])));
        for change in [
            (|pod| pod.is_static = true) as fn(&mut Pod<'_>),
            |pod| pod.is_done = true,
            |pod| pod.is_deleted = true,
            |pod| pod.started = None,
            |pod| pod.node = "",
            |pod| pod.containers[0].is_running = true,
            |pod| pod.containers[0].waiting = Some(("CreateContainerConfigError", "")),
            |pod| pod.containers[0].waiting = None,
        ] {
            let mut pod = pod(vec![begins()]);
            change(&mut pod);
            assert!(!scene.suspects(&pod));
        }
        // The others wait for the init container.
        let mut waits = pod(vec![container("PodInitializing")]);
        waits.init_containers = vec![Container {
            image: "nginx:1",
            ..container("PodInitializing")
        }];
        assert!(!scene.suspects(&waits));
        waits.init_containers[0].image = IMAGE;
        assert!(scene.suspects(&waits));
        waits.init_containers[0] = Container {
            waiting: None,
            has_succeeded: true,
            ..waits.init_containers[0]
        };
        assert!(scene.suspects(&waits));
        // Volumes are pulled before any container.
        let mut mounts = pod(vec![Container {
            image: "nginx:1",
            ..begins()
        }]);
        mounts.image_volumes = vec![("model", IMAGE)];
        assert!(scene.suspects(&mounts));
    }

    /// What was started before keeps what its status said then while its image is pulled once more.
    #[test]
    fn who_is_to_be_started_again_is_asked_about_once_nothing_was_heard_for_long() {
        let ended = Container {
            waiting: None,
            will_run_again: true,
            ..container("")
        };
        let again = AGAIN_SOON.iter().map(|reason| container(reason)).chain([ended]);
        for container in again {
            let mut scene = Scene::new();
            scene.take(&pod(vec![container]), 1000);
            assert_eq!(scene.hangs.next(at(1119)), None, "{container:?}");
            assert!(scene.hangs.next(at(1120)).is_some(), "{container:?}");
        }
        // Who says something else was heard.
        let mut scene = Scene::new();
        scene.take(&pod(vec![container("ErrImagePull")]), 1000);
        scene.take(&pod(vec![container("ImagePullBackOff")]), 1100);
        scene.take(&pod(vec![container("ImagePullBackOff")]), 1200);
        assert_eq!(scene.hangs.next(at(1219)), None);
        assert!(scene.hangs.next(at(1220)).is_some());
    }

    #[test]
    fn a_pod_is_asked_about_once_a_minute_and_the_longest_first() {
        let mut scene = Scene::new();
        scene.take(&pod(vec![container("ContainerCreating")]), 0);
        let mut second = pod(vec![container("ContainerCreating")]);
        (second.name, second.uid, second.started) = ("second", "v", Some(at(30)));
        scene.take(&second, 30);
        let mut asked = |seconds| scene.hangs.next(at(seconds)).map(|pod| pod.name.to_string());
        assert_eq!(asked(119), None);
        assert_eq!(asked(120).as_deref(), Some("web"));
        assert_eq!(asked(120), None);
        assert_eq!(asked(150).as_deref(), Some("second"));
        assert_eq!(asked(179), None);
        assert_eq!(asked(180).as_deref(), Some("web"));
    }

    #[test]
    fn what_its_events_tell_decides() {
        let judge = |events: &[PodEvent<'_>]| {
            let mut scene = Scene::new();
            scene.take(&pod(vec![container("ContainerCreating")]), 0);
            let id = scene.hangs.next(at(300)).unwrap();
            scene.hangs.judge(&id, events);
            let hang = scene.hangs.news(at(300)).pop();
            hang.map(|hang| hang.since.since(NOW).as_secs())
        };
        let pulls = || event("Pulling", PULLING, APP, 10);
        assert_eq!(judge(&[pulls()]), Some(10));
        assert_eq!(judge(&[pulls(), event("Failed", "x", APP, 5), pulls()]), Some(10));
        assert_eq!(judge(&[pulls(), event("Scheduled", "x", "", 20)]), Some(10));
        assert_eq!(
            judge(&[pulls(), event("Started", "x", "spec.containers{other}", 20)]),
            Some(10)
        );
        assert_eq!(judge(&[]), None);
        for reason in ["Pulled", "Failed", "BackOff", "Created"] {
            for seconds in [10, 20] {
                assert_eq!(
                    judge(&[event(reason, "x", APP, seconds), pulls()]),
                    None,
                    "{reason}"
                );
            }
        }
        assert_eq!(
            judge(&[event("Pulling", PULLING, APP, 200)]),
            None,
            "not for long"
        );
        assert_eq!(
            judge(&[event("Pulling", PULLING, "spec.initContainers{app}", 10)]),
            None
        );
        assert_eq!(
            judge(&[event("Pulling", "Pulling image \"nginx:1\"", APP, 10)]),
            None
        );
        assert_eq!(judge(&[event("Pulling", "Pulling", APP, 10)]), None);
        // Another node's kubelet knows nothing of it.
        let elsewhere = PodEvent {
            host: "node-2",
            ..pulls()
        };
        assert_eq!(judge(std::slice::from_ref(&elsewhere)), None);
        let ended = PodEvent {
            reason: "Pulled",
            ..elsewhere
        };
        assert_eq!(judge(&[pulls(), ended]), Some(10));
    }

    #[test]
    fn a_volumes_pull_is_told_by_events_that_name_no_container() {
        let judge = |ended: Option<PodEvent<'static>>| {
            let mut scene = Scene::new();
            let mut pod = pod(vec![Container {
                image: "nginx:1",
                ..container("ContainerCreating")
            }]);
            pod.image_volumes = vec![("model", IMAGE)];
            scene.take(&pod, 0);
            let id = scene.hangs.next(at(300)).unwrap();
            let events: Vec<_> = [event("Pulling", PULLING, "", 10)]
                .into_iter()
                .chain(ended)
                .collect();
            scene.hangs.judge(&id, &events);
            let hang = scene.hangs.news(at(300)).pop()?;
            assert!(hang.describe().contains("volume model"), "{}", hang.describe());
            Some(hang.kind)
        };
        assert_eq!(judge(None), Some(PlaceKind::Volume));
        assert_eq!(
            judge(Some(event("Scheduled", "x", "", 20))),
            Some(PlaceKind::Volume)
        );
        for reason in ["Pulled", "Failed", "BackOff"] {
            assert_eq!(judge(Some(event(reason, "x", "", 20))), None);
        }
    }

    /// Whenever it begins, and whatever else was pulled for the Pod before.
    #[test]
    fn a_pull_is_told_soon_after_it_took_too_long() {
        for begins in [1, 30, 61, 119, 121, 200, 333] {
            let mut scene = Scene::new();
            scene.take(&pod(vec![container("ContainerCreating")]), 0);
            let events = [("web", event("Pulling", PULLING, APP, begins))];
            let (told, _, since, _) = scene.told(&events, 0..600).unwrap();
            assert_eq!(since, begins);
            assert!((begins + 120..=begins + 121).contains(&told), "{begins}: {told}");
        }
    }

    #[test]
    fn of_a_node_the_pull_that_began_first_is_told_and_the_others_wait_for_it() {
        let upstream = "Pulling image \"quay.io/large:1\"";
        let mut scene = Scene::new();
        scene.take(&named("large", "quay.io/large:1", 0), 0);
        scene.take(&named("web", IMAGE, 2), 2);
        let elsewhere = Pod {
            node: "node-2",
            ..named("elsewhere", "quay.io/large:1", 0)
        };
        scene.take(&elsewhere, 0);
        let events = [
            ("large", event("Pulling", upstream, APP, 1)),
            ("web", event("Pulling", PULLING, APP, 3)),
        ];
        let told = scene.told(&events, 0..200);
        assert_eq!(told, Some((123, "web".to_owned(), 3, true)));
        let note = scene
            .hangs
            .pods
            .values()
            .find_map(|suspect| suspect.told.clone())
            .unwrap();
        assert!(note.describe().contains("waits behind"), "{}", note.describe());
        assert!(scene.hangs.longest().is_empty(), "nothing is said of the mirror");
        assert_eq!(scene.told(&events, 124..400), None, "once");
        // Its turn has come, and its own time begins.
        scene.hangs.remove(&named("large", "", 0));
        let (told, _, since, waits) = scene.told(&events, 400..600).unwrap();
        assert!(
            (519..522).contains(&told) && (399..401).contains(&since),
            "{told} {since}"
        );
        assert!(!waits);
        assert_eq!(scene.hangs.longest().len(), 1);
    }

    /// Nothing tells how many a kubelet pulls at once (`maxParallelImagePulls`): those that are inside a pull as well are
    /// told like those that wait, in words that leave it open.
    #[test]
    fn of_several_pulls_of_a_node_one_is_told_as_one_that_lasts_however_many_it_makes_at_once() {
        let mut scene = Scene::new();
        let names = ["one", "two", "three"];
        for (number, name) in (0..).zip(names) {
            scene.take(&named(name, IMAGE, number), number);
        }
        let events: Vec<_> = (0..)
            .zip(names)
            .map(|(number, name)| (name, event("Pulling", PULLING, APP, 1 + number)))
            .collect();
        let mut told = Vec::new();
        let mut from = 0;
        while let Some((at, name, _, waits)) = scene.told(&events, from..400) {
            told.push((name, waits));
            from = at;
        }
        told.sort_unstable();
        let expected = [("one", false), ("three", true), ("two", true)];
        assert_eq!(told, expected.map(|(name, waits)| (name.to_owned(), waits)));
        for suspect in scene.hangs.pods.values() {
            let told = suspect.told.as_ref().unwrap();
            let note = told.describe();
            assert_eq!(
                note.contains("with serial pulls, kubelet's default, this one waits"),
                told.waits,
                "{note}"
            );
        }
        assert_eq!(scene.hangs.longest().len(), 1);
    }

    #[test]
    fn a_pull_that_ended_before_it_took_too_long_is_not_told() {
        let mut scene = Scene::new();
        scene.take(&pod(vec![container("ContainerCreating")]), 0);
        let events = [
            ("web", event("Pulling", PULLING, APP, 30)),
            ("web", event("Pulled", "x", APP, 140)),
        ];
        assert_eq!(scene.told(&events, 0..600), None);
    }

    #[test]
    fn who_began_before_and_pulls_nothing_holds_up_nobody() {
        let mut scene = Scene::new();
        for (name, image) in [("other", "quay.io/large:1"), ("web", IMAGE)] {
            scene.take(&named(name, image, 0), 0);
        }
        let events = [("web", event("Pulling", PULLING, APP, 3))];
        assert_eq!(
            scene.told(&events, 0..200),
            Some((123, "web".to_owned(), 3, false))
        );
    }

    #[test]
    fn many_that_began_before_hold_up_what_is_told_for_seconds() {
        let names: Vec<_> = (0..100).map(|number| format!("other-{number}")).collect();
        let mut scene = Scene::new();
        for name in &names {
            scene.take(&named(name, "quay.io/large:1", 0), 0);
        }
        scene.take(&named("web", IMAGE, 2), 2);
        // Others are due all the time.
        let due: Vec<_> = (0..200).map(|number| format!("due-{number}")).collect();
        for name in &due {
            let elsewhere = Pod {
                node: "node-2",
                ..named(name, IMAGE, 62)
            };
            scene.take(&elsewhere, 62);
        }
        let events = [("web", event("Pulling", PULLING, APP, 3))];
        let (told, ..) = scene.told(&events, 0..200).unwrap();
        assert!((123..=128).contains(&told), "{told}");
    }

    #[test]
    fn other_settings_of_a_mirror_reach_who_pulls_from_it() {
        let mut scene = Scene::new();
        let change = |scene: &mut Scene, change: fn(&mut crate::domain::mirror::Mirror)| {
            let mut mirror = mirror("a", &["docker.io"]);
            change(&mut mirror);
            scene.hangs.judge_anew(&Routing::compile(vec![mirror]));
        };
        scene.take(&pod(vec![container("ContainerCreating")]), 0);
        assert_eq!(scene.hangs.next(at(30)), None);
        change(&mut scene, |mirror| mirror.hang_after = Duration::from_secs(10));
        let id = scene.hangs.next(at(30)).unwrap();
        let events = [event("Pulling", PULLING, APP, 10)];
        scene.hangs.judge(&id, &events);
        assert_eq!(scene.hangs.news(at(30)).len(), 1);
        change(&mut scene, |mirror| mirror.rescue = RescuePolicy::Off);
        assert!(scene.hangs.longest().is_empty());
        scene.hangs.judge(&id, &[]);
        assert_eq!(scene.hangs.next(at(900)), None);
        change(&mut scene, |_| ());
        assert!(scene.hangs.next(at(900)).is_some());
    }

    #[test]
    fn a_pull_is_told_once_until_it_ends() {
        let mut scene = Scene::new();
        let begins = pod(vec![container("ContainerCreating")]);
        scene.take(&begins, 0);
        let id = scene.hangs.next(at(300)).unwrap();
        let events = [event("Pulling", PULLING, APP, 10)];
        scene.hangs.judge(&id, &events);
        let hang = scene.hangs.news(at(300)).pop().unwrap();
        assert_eq!((&*hang.container, &*hang.mirror), ("app", "a"));
        for part in [IMAGE, "node-1", "team/web", "mirror a"] {
            assert!(hang.describe().contains(part), "{}", hang.describe());
        }
        for part in [IMAGE, "node-1", "mirror a"] {
            assert!(
                hang.describe_to_all().contains(part),
                "{}",
                hang.describe_to_all()
            );
        }
        assert!(!hang.describe_to_all().contains("team"));
        scene.hangs.judge(&id, &events);
        assert_eq!(scene.hangs.news(at(400)), []);
        let unheard = Pod {
            is_unheard: true,
            ..begins.clone()
        };
        scene.take(&unheard, 500);
        assert_eq!(scene.hangs.longest(), [("a", &hang)].into());
        assert_eq!(scene.hangs.news(at(500)), []);
        let note = scene.hangs.longest()["a"].describe();
        assert!(note.contains("has not taken in"), "{note}");
        assert_eq!(late(&begins, &scene.routing, at(119)), []);
        assert_eq!(late(&begins, &scene.routing, at(120)).len(), 1);
        scene
            .hangs
            .judge(&id, &[event("Pulled", "x", APP, 600), events[0].clone()]);
        assert!(scene.hangs.longest().is_empty());
        scene.hangs.judge(&id, &events);
        assert_eq!(scene.hangs.news(at(600)).len(), 1);
        scene.take(&pod(vec![container("ErrImagePull")]), 600);
        assert!(scene.hangs.longest().is_empty());
    }

    #[test]
    fn a_list_forgets_who_is_gone() {
        let mut scene = Scene::new();
        scene.take(&pod(vec![container("ContainerCreating")]), 0);
        scene.hangs.begin_listing();
        scene.hangs.end_listing();
        assert_eq!(scene.hangs.next(at(600)), None);
    }
}
