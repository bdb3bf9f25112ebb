//! Pulls that last: a node is inside one and neither says nor hears anything until it ends.
//!
//! Nobody can tell a slow pull from one that hangs, and no patch gets through to a kubelet that pulls. So this is
//! told and nothing is done. The status of such a Pod says no more than that of one that just begins, which is why
//! its own Events are asked for, of one Pod at a time, and of no Pod that has not been like that for long.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{Pod, PodId, same_image, tried};
use crate::domain::{
    mirror::RescuePolicy, original::mirrors_named_by, pod::PlaceKind, routing::Routing, time::Timestamp,
};

/// How many Pods are kept in mind.
const LIMIT: usize = 10_000;

/// How long after the Events of a Pod were asked for they are again.
const AGAIN: Duration = Duration::from_mins(1);

/// The reasons for which a container waits whose image may be being pulled.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Pods that have begun and do not get on.
#[derive(Debug, Default)]
pub struct Hangs {
    /// By namespace and name.
    pods: HashMap<(Box<str>, Box<str>), Suspect>,
    /// The number of the last list of all Pods.
    listing: u32,
}

/// A Pod of which a container waits that may be a mirror's.
#[derive(Debug)]
struct Suspect {
    pod: PodId,
    node: Box<str>,
    since: Timestamp,
    containers: Vec<Beginning>,
    asked_at: Option<Timestamp>,
    /// The pull that was told.
    told: Option<Hang>,
    listing: u32,
}

/// A container that has not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Beginning {
    kind: PlaceKind,
    name: Box<str>,
    image: Box<str>,
    mirror: Box<str>,
    /// How long it may take.
    patience: Duration,
}

/// A pull that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    pub pod: PodId,
    pub node: Box<str>,
    pub kind: PlaceKind,
    pub container: Box<str>,
    pub image: Box<str>,
    pub mirror: Box<str>,
    /// When the pull began.
    pub since: Timestamp,
}

/// One Event of a Pod, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent<'a> {
    pub reason: &'a str,
    pub message: &'a str,
    /// `spec.containers{name}`; empty where it speaks of no container.
    pub field_path: &'a str,
    /// When it was last so.
    pub at: Timestamp,
}

impl Hang {
    /// Returns what people are told.
    pub fn describe(&self) -> String {
        let Self {
            pod,
            node,
            container,
            image,
            mirror,
            since,
            ..
        } = self;
        format!(
            "Node {node} has been pulling {image} from mirror {mirror} since {since}, for container {container} of \
             Pod {}/{}. Until that ends, with an error or well, kubelet hears nothing: neither a patch nor a deletion \
             gets through, and with serial pulls nothing else is pulled there. What ends it: a write timeout of the \
             mirror's front end, containerd's image_pull_progress_timeout, or a restart of kubelet. A pull that \
             fails is turned back by itself",
            pod.namespace, pod.name
        )
    }
}

impl Hangs {
    /// Begins a list of all Pods: those not taken in before [`Hangs::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.pods.retain(|_, suspect| suspect.listing == self.listing);
    }

    /// Takes in a Pod.
    pub fn take(&mut self, pod: &Pod<'_>, routing: &Routing, now: Timestamp) {
        let containers = beginning(pod, routing);
        if containers.is_empty() {
            self.remove(pod);
            return;
        }
        let id = (Box::from(pod.namespace), Box::from(pod.name));
        let before = self.pods.remove(&id);
        let is_same = |before: &Suspect| &*before.pod.uid == pod.uid && before.containers == containers;
        let mut suspect = match before.filter(is_same) {
            Some(before) => before,
            None if self.pods.len() >= LIMIT => return,
            None => Suspect {
                pod: pod.id(),
                node: pod.node.into(),
                since: pod.started.unwrap_or(now).min(now),
                containers,
                asked_at: None,
                told: None,
                listing: 0,
            },
        };
        suspect.pod.resource_version = pod.resource_version.into();
        suspect.listing = self.listing;
        self.pods.insert(id, suspect);
    }

    /// Forgets a Pod that is gone, or has begun.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        if !self.pods.is_empty() {
            self.pods.remove(&(Box::from(pod.namespace), Box::from(pod.name)));
        }
    }

    /// Returns the Pod whose Events are to be asked for: of those that take too long the one that was asked about
    /// longest ago. None if there is none now.
    pub fn next(&mut self, now: Timestamp) -> Option<PodId> {
        let is_due = |suspect: &&mut Suspect| {
            let patience = suspect
                .containers
                .iter()
                .map(|container| container.patience)
                .min();
            let took_long = patience.is_some_and(|patience| now.since(suspect.since) >= patience);
            took_long && suspect.asked_at.is_none_or(|at| now.since(at) >= AGAIN)
        };
        let due = self.pods.values_mut().filter(is_due);
        let suspect = due.min_by_key(|suspect| (suspect.asked_at, suspect.since))?;
        suspect.asked_at = Some(now);
        Some(suspect.pod.clone())
    }

    /// Takes in the Events of a Pod. Returns its pull that lasts, if that was not told yet.
    pub fn judge(&mut self, pod: &PodId, events: &[PodEvent<'_>], now: Timestamp) -> Option<Hang> {
        let id = (pod.namespace.clone(), pod.name.clone());
        let suspect = self
            .pods
            .get_mut(&id)
            .filter(|suspect| suspect.pod.uid == pod.uid)?;
        let mut containers = suspect.containers.iter();
        let pulling =
            containers.find_map(|container| Some((container, pulling_since(container, events, now)?)));
        let Some((container, since)) = pulling else {
            // It has ended, though the Pod's status may not say so yet.
            suspect.told = None;
            return None;
        };
        let hang = Hang {
            pod: suspect.pod.clone(),
            node: suspect.node.clone(),
            kind: container.kind,
            container: container.name.clone(),
            image: container.image.clone(),
            mirror: container.mirror.clone(),
            since,
        };
        let is_told = suspect
            .told
            .as_ref()
            .is_some_and(|told| (&told.container, told.since) == (&hang.container, hang.since));
        suspect.told = Some(hang.clone());
        (!is_told).then_some(hang)
    }

    /// Returns the pulls that were told and last: of each mirror the longest.
    pub fn longest(&self) -> BTreeMap<&str, &Hang> {
        let mut longest: BTreeMap<&str, &Hang> = BTreeMap::new();
        for hang in self.pods.values().filter_map(|suspect| suspect.told.as_ref()) {
            let known = longest.entry(&hang.mirror).or_insert(hang);
            let order = |hang: &&Hang| (hang.since, hang.pod.namespace.clone(), hang.pod.name.clone());
            if order(&hang) < order(known) {
                *known = hang;
            }
        }
        longest
    }
}

/// Returns the containers of a Pod that take longer to begin than a pull from their mirror should, with since when: as
/// its status alone tells, which says nothing of a pull.
pub fn late(pod: &Pod<'_>, routing: &Routing, now: Timestamp) -> Vec<(PlaceKind, String, String, Timestamp)> {
    let since = pod.started.unwrap_or(now);
    let late = beginning(pod, routing).into_iter();
    late.filter(|container| now.since(since) >= container.patience)
        .map(|container| {
            (
                container.kind,
                container.name.into(),
                container.image.into(),
                since,
            )
        })
        .collect()
}

/// Returns the containers of a Pod that have not begun, whose turn it is, and that a mirror is named for.
fn beginning(pod: &Pod<'_>, routing: &Routing) -> Vec<Beginning> {
    // Before, volumes and network are not there yet, and no image is pulled.
    if pod.is_static || pod.is_done || pod.is_deleted || pod.started.is_none() || pod.node.is_empty() {
        return Vec::new();
    }
    let begins = |container: &super::Container<'_>| {
        container
            .waiting
            .is_some_and(|(reason, _)| BEGINNING.contains(&reason))
    };
    let is_init = |kind| kind == PlaceKind::InitContainer;
    let mut tried = tried(pod).peekable();
    // While an init container has not passed, the others wait for it.
    let init_first = tried
        .peek()
        .is_some_and(|(kind, _, container)| is_init(*kind) && !container.is_running);
    let whose_turn = tried.filter(|(kind, ..)| is_init(*kind) || !init_first);
    let beginning = whose_turn.filter(|(.., container)| begins(container));
    let beginning = beginning.filter_map(|(kind, _, container)| {
        let mirror = routing.mirror(*mirrors_named_by(routing, container.image).first()?);
        if mirror.rescue == RescuePolicy::Off {
            return None;
        }
        Some(Beginning {
            kind,
            name: container.name.into(),
            image: container.image.into(),
            mirror: mirror.name.as_str().into(),
            patience: mirror.hang_after,
        })
    });
    beginning.take(super::CONTAINERS).collect()
}

/// Returns since when a container's image has been pulled for too long; none where its Events tell of no such pull.
fn pulling_since(container: &Beginning, events: &[PodEvent<'_>], now: Timestamp) -> Option<Timestamp> {
    let path = field_path(container.kind, &container.name);
    let mut last: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for event in events.iter().filter(|event| event.field_path == path) {
        let is_pull = event.reason == "Pulling";
        if is_pull && !pulled_image(event.message).is_some_and(|image| same_image(image, &container.image)) {
            continue;
        }
        let at = last.entry(if is_pull { "Pulling" } else { "" }).or_default();
        *at = event.at.max(*at);
    }
    let since = last.remove("Pulling")?;
    // Times are whole seconds: of two that are the same nobody knows which was first.
    let has_ended = last.values().any(|at| *at >= since);
    (!has_ended && now.since(since) >= container.patience).then_some(since)
}

/// Whether a node is inside a pull for a Pod, as the Pod's Events tell, whatever its status says. While it is, the status
/// shows the failure before, and a container that runs already is shown as waiting: one that is patched then is
/// restarted.
pub fn is_pulling(events: &[PodEvent<'_>]) -> bool {
    let mut last: BTreeMap<&str, [Option<Timestamp>; 3]> = BTreeMap::new();
    for event in events {
        let which = match event.reason {
            "Pulling" => 0,
            "BackOff" => 1,
            // `Failed`, `Pulled` and whatever else becomes of it.
            _ => 2,
        };
        let at = &mut last.entry(event.field_path).or_default()[which];
        *at = (*at).max(Some(event.at));
    }
    // Times are whole seconds. A pull that is refused begins and fails within one; none begins and waits again.
    last.values()
        .any(|[pulling, back_off, other]| pulling.is_some() && pulling > other && pulling >= back_off)
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
    }

    #[test]
    fn who_begins_on_a_mirror_for_long_is_asked_about() {
        let mut scene = Scene::new();
        let begins = || container("ContainerCreating");
        assert!(scene.suspects(&pod(vec![begins()])));
        assert!(!scene.suspects(&pod(vec![container("ErrImagePull")])));
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
        let event = |reason, message, field_path, seconds| PodEvent {
            reason,
            message,
            field_path,
            at: at(seconds),
        };
        let judge = |events: &[PodEvent<'_>]| {
            let mut scene = Scene::new();
            scene.take(&pod(vec![container("ContainerCreating")]), 0);
            let id = scene.hangs.next(at(300)).unwrap();
            let hang = scene.hangs.judge(&id, events, at(300));
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
    }

    #[test]
    fn a_node_is_inside_a_pull_where_its_beginning_is_the_last_that_was_told() {
        let check = |told: &[(&str, u64, &str)], expected| {
            let event = |(reason, seconds, path): &(&'static str, u64, &'static str)| PodEvent {
                reason,
                message: "",
                field_path: path,
                at: at(*seconds),
            };
            let told: Vec<(&'static str, u64, &'static str)> = told
                .iter()
                .map(|(reason, seconds, path)| {
                    let reasons = ["Pulling", "Failed", "BackOff", "Pulled"];
                    let reason = reasons.into_iter().find(|known| known == reason).unwrap();
                    (
                        reason,
                        *seconds,
                        if path.is_empty() {
                            APP
                        } else {
                            "spec.containers{b}"
                        },
                    )
                })
                .collect();
            let events: Vec<_> = told.iter().map(event).collect();
            assert_eq!(is_pulling(&events), expected, "{told:?}");
        };
        check(&[], false);
        check(&[("Pulling", 1, "")], true);
        check(&[("Pulling", 1, ""), ("Failed", 1, "")], false);
        check(
            &[("Pulling", 1, ""), ("Failed", 2, ""), ("BackOff", 12, "")],
            false,
        );
        check(
            &[("Failed", 2, ""), ("BackOff", 12, ""), ("Pulling", 20, "")],
            true,
        );
        check(
            &[("Failed", 2, ""), ("BackOff", 20, ""), ("Pulling", 20, "")],
            true,
        );
        check(&[("Pulling", 20, ""), ("Pulled", 21, "")], false);
        // One container of two is enough: the other may run already.
        check(&[("BackOff", 12, ""), ("Pulling", 20, "b")], true);
    }

    #[test]
    fn a_pull_is_told_once_until_it_ends() {
        let mut scene = Scene::new();
        let begins = pod(vec![container("ContainerCreating")]);
        scene.take(&begins, 0);
        let id = scene.hangs.next(at(300)).unwrap();
        let events = [PodEvent {
            reason: "Pulling",
            message: PULLING,
            field_path: APP,
            at: at(10),
        }];
        let hang = scene.hangs.judge(&id, &events, at(300)).unwrap();
        assert_eq!((&*hang.container, &*hang.mirror), ("app", "a"));
        for part in [IMAGE, "node-1", "team/web", "mirror a"] {
            assert!(hang.describe().contains(part), "{}", hang.describe());
        }
        assert_eq!(scene.hangs.judge(&id, &events, at(400)), None);
        scene.take(&begins, 500);
        assert_eq!(scene.hangs.longest(), [("a", &hang)].into());
        assert_eq!(late(&begins, &scene.routing, at(119)), []);
        assert_eq!(late(&begins, &scene.routing, at(120)).len(), 1);
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
