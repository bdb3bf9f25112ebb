//! Pods that stay stuck though they were helped, or though nothing hinders them any more. Nothing is done for them, so
//! people are told, once.
//!
//! - One that went back, and whose own image cannot be pulled either. An earlier reference keeps its back-off of up to
//!   five minutes, so that is said no sooner.
//! - One whose kubelet does not try again though the mirror gives the image by now (kubernetes#119891). Each attempt
//!   changes the status, so of a Pod that tells nothing for longer than the longest back-off its own Events are asked
//!   for, and only if these tell of no attempt either it is so. One that may be turned is, just after its next failure;
//!   where that does not come, nobody knows whether kubelet idles or is inside a pull that no Event tells of any more, and
//!   so it is told like the others.

use std::time::Duration;

use super::{
    Failure, Judgement, Known, Left, Pod, PodId, StuckContainer, StuckPod, by_pod::ByPod, hang::PodEvent,
};
use crate::domain::{
    health::State,
    image::Reference,
    original::{candidate, mirrors_named_by},
    pod::PlaceKind,
    presence::{self, Index, Rules},
    snapshot::Snapshot,
    time::Timestamp,
};

/// The longest pause between two attempts of kubelet to pull an image.
pub const LONGEST_BACK_OFF: Duration = Duration::from_mins(5);

/// After so long without an attempt there should have been one: kubelet looks at a Pod that waits once a minute.
pub const IDLE: Duration = Duration::from_secs(6 * 60 + 30);

/// How many Pods are kept in mind.
const LIMIT: usize = 10_000;

/// How long after a Pod was looked at it is again.
const AGAIN: Duration = Duration::from_mins(1);

/// How many images are asked about at once.
const LOOKS: usize = 100;

/// Pods that stay stuck.
#[derive(Debug, Default)]
pub struct Lasting {
    pods: ByPod<Suspect>,
}

#[derive(Debug)]
struct Suspect {
    pod: PodId,
    node: Box<str>,
    containers: Vec<Waiting>,
    /// Since when it is known as it is now.
    since: Timestamp,
    asked_at: Option<Timestamp>,
}

/// A container that stays stuck, as it seems.
#[derive(Clone, Debug)]
struct Waiting {
    kind: PlaceKind,
    name: Box<str>,
    image: Box<str>,
    cause: Cause,
    since: Timestamp,
    told: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// It went back.
    WentBack,
    /// It names a mirror, and is not turned.
    Waits(Missed),
}

/// What a container waits for that is not turned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    pub mirror: Box<str>,
    /// The image that the mirror is asked for.
    pub original: Box<str>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Somebody is to be told.
    Tell(Lasts),
    /// The Events of a Pod are to be asked for.
    Look(PodId),
}

/// A container that stays stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lasts {
    pub pod: PodId,
    pub kind: PlaceKind,
    pub container: Box<str>,
    pub image: Box<str>,
    pub node: Box<str>,
    pub since: Timestamp,
    /// The mirror that gives the image, where kubelet does not try; none where it went back in vain.
    pub mirror: Option<Box<str>>,
}

impl Lasts {
    /// Returns the reason, in one word.
    pub const fn reason(&self) -> &'static str {
        match self.mirror {
            Some(_) => "KubeletIdle",
            None => "DidNotHelp",
        }
    }

    /// Returns what people are told.
    pub fn describe(&self) -> String {
        let Self {
            container,
            image,
            node,
            since,
            mirror,
            ..
        } = self;
        match mirror {
            None => format!(
                "Container {container} went back to its own image {image}, and node {node} cannot pull that either since \
                 {since}, for longer than an earlier back-off lasts. Kagami does nothing more for it: the Pod's events \
                 tell what its registry says"
            ),
            Some(mirror) => format!(
                "Mirror {mirror} gives {image} by now, and the kubelet of node {node} has told of no attempt to pull it \
                 for container {container} since {since}, which is longer than its longest back-off. Write another \
                 reference of the image into the Pod, which makes kubelet try at once unless it is inside a pull, delete \
                 the Pod, or restart kubelet"
            ),
        }
    }
}

impl Lasting {
    /// Begins a list of all Pods: those not taken in before [`Lasting::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.pods.begin_listing();
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.pods.end_listing();
    }

    /// Takes in a Pod.
    pub fn take(&mut self, pod: &Pod<'_>, known: &Known<'_>, now: Timestamp) {
        let waiting = StuckPod::of(pod).map(|stuck| waiting(&stuck, known, now));
        let waiting = waiting.filter(|waiting| !waiting.is_empty());
        let Some(mut containers) = waiting else {
            return self.remove(pod);
        };
        let mut suspect = match self.pods.take_out(pod) {
            Some(suspect) => suspect,
            None if self.pods.len() >= LIMIT => return,
            None => Suspect {
                pod: pod.id(),
                node: pod.node.into(),
                containers: Vec::new(),
                since: now,
                asked_at: None,
            },
        };
        if &*suspect.pod.uid != pod.uid {
            suspect.containers.clear();
        }
        if *suspect.pod.resource_version != *pod.resource_version {
            (suspect.since, suspect.asked_at) = (now, None);
        }
        (suspect.pod, suspect.node) = (pod.id(), pod.node.into());
        for container in &mut containers {
            let same = |before: &&Waiting| {
                (before.kind, &before.name, &before.image, &before.cause)
                    == (
                        container.kind,
                        &container.name,
                        &container.image,
                        &container.cause,
                    )
            };
            if let Some(before) = suspect.containers.iter().find(same) {
                (container.since, container.told) = (before.since, before.told);
            }
        }
        suspect.containers = containers;
        self.pods.put_in(pod, suspect);
    }

    /// Forgets a Pod that is gone, or has its images.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        self.pods.take_out(pod);
    }

    /// Returns what is to be done now; none if there is nothing. `gives` tells whether a mirror gives an image.
    pub fn next(&mut self, gives: impl Fn(&Missed) -> bool, now: Timestamp) -> Option<Due> {
        let mut looks = LOOKS;
        for suspect in self.pods.values_mut() {
            let in_vain = suspect.containers.iter().position(|container| {
                let is_old = now.since(container.since) >= LONGEST_BACK_OFF;
                is_old && !container.told && container.cause == Cause::WentBack
            });
            if let Some(index) = in_vain {
                return suspect.tell(index).map(Due::Tell);
            }
            let is_due = now.since(suspect.since) >= IDLE
                && suspect.asked_at.is_none_or(|at| now.since(at) >= AGAIN)
                && suspect.containers.iter().any(|container| !container.told);
            if !is_due || looks == 0 {
                continue;
            }
            looks -= 1;
            suspect.asked_at = Some(now);
            if suspect.idle(&gives).is_some() {
                return Some(Due::Look(suspect.pod.clone()));
            }
        }
        None
    }

    /// Takes in the Events of a Pod that [`Lasting::next`] asked for. Returns what is to be told.
    pub fn judge(
        &mut self,
        pod: &PodId,
        events: &[PodEvent<'_>],
        gives: impl Fn(&Missed) -> bool,
        now: Timestamp,
    ) -> Option<Lasts> {
        let suspect = self.pods.get_mut(pod)?;
        let is_same = suspect.pod == *pod;
        // `BackOff`, and `Failed` with it, come again and again between two attempts. Another node's kubelet knows nothing
        // of it.
        let mut attempts = events
            .iter()
            .filter(|event| event.host == &*suspect.node && event.reason == "Pulling");
        let has_tried = attempts.any(|event| now.since(event.at) < IDLE);
        if !is_same || has_tried {
            return None;
        }
        let index = suspect.idle(gives)?;
        suspect.tell(index)
    }
}

impl Suspect {
    /// Returns the container that was not told of yet, and whose image the mirror gives.
    fn idle(&self, gives: impl Fn(&Missed) -> bool) -> Option<usize> {
        let mut containers = self.containers.iter();
        containers.position(|container| match &container.cause {
            Cause::Waits(missed) => !container.told && gives(missed),
            Cause::WentBack => false,
        })
    }

    fn tell(&mut self, index: usize) -> Option<Lasts> {
        let container = self.containers.get_mut(index)?;
        container.told = true;
        let (since, mirror) = match &container.cause {
            Cause::WentBack => (container.since, None),
            Cause::Waits(missed) => (self.since, Some(missed.mirror.clone())),
        };
        Some(Lasts {
            pod: self.pod.clone(),
            kind: container.kind,
            container: container.name.clone(),
            image: container.image.clone(),
            node: self.node.clone(),
            since,
            mirror,
        })
    }
}

/// Returns the containers of a Pod that nothing more is done for.
fn waiting(stuck: &StuckPod, known: &Known<'_>, now: Timestamp) -> Vec<Waiting> {
    let containers = stuck.containers.iter().filter_map(|container| {
        let cause = if stuck.went_back(container).is_some() {
            Cause::WentBack
        } else {
            Cause::Waits(missed(stuck, container, known)?)
        };
        Some(Waiting {
            kind: container.kind,
            name: container.name.clone(),
            image: container.image.clone(),
            cause,
            since: now,
            told: false,
        })
    });
    containers.collect()
}

/// Returns what a container waits for that names a mirror, cannot be pulled, and is not turned, or not before it fails
/// again; none of those whom people told Kagami to leave alone.
pub fn missed(stuck: &StuckPod, container: &StuckContainer, known: &Known<'_>) -> Option<Missed> {
    let is_left = match stuck.judge(container, known) {
        Judgement::Back { .. } => true,
        Judgement::Left(left) => matches!(
            left,
            Left::NoRecord
                | Left::RecordDiffers
                | Left::TurnedBefore
                | Left::TurnsUnreadable
                | Left::TooManyContainers
        ),
    };
    if !is_left || container.failure != Failure::Image {
        return None;
    }
    let mirror = *mirrors_named_by(known.routing, &container.image).first()?;
    Some(Missed {
        mirror: known.routing.mirror(mirror).name.as_str().into(),
        original: candidate(known.routing, &container.image)?.into(),
    })
}

/// Whether a mirror gives an image, as far as is known: it is healthy, and the image was seen there since it is.
pub fn gives(snapshot: &Snapshot, index: &Index, missed: &Missed, now: Timestamp) -> bool {
    let Some(id) = snapshot.routing.find(&missed.mirror) else {
        return false;
    };
    let health = snapshot.health_of(id);
    if health.state != State::Healthy || snapshot.is_stale(id) || snapshot.is_suspected(id) {
        return false;
    }
    let Ok(original) = Reference::parse(&missed.original) else {
        return false;
    };
    let rules = Rules::of(snapshot.routing.mirror(id), health.proven_since);
    let judgement = index.judge(&missed.mirror, original.key().by_ref(), &rules, now);
    matches!(judgement, presence::Judgement::Proven(..))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::json;

    use super::*;
    use crate::domain::{
        examples::{NOW, mirror},
        mirror::RescuePolicy,
        names::{ORIGINAL_IMAGE_PREFIX, RESCUED_ANNOTATION},
        rescue::Container,
        routing::Routing,
    };

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";
    const OWN: &str = "nginx:1";

    /// Pods that stay stuck, and what they are judged by.
    struct Ward {
        lasting: Lasting,
        routing: Routing,
        now: Timestamp,
        given: bool,
    }

    impl Ward {
        fn new() -> Self {
            Self {
                lasting: Lasting::default(),
                routing: Routing::compile(vec![mirror("a", &["docker.io"])]),
                now: NOW,
                given: true,
            }
        }

        /// Takes in a Pod with one container, which is stuck on an image; it was turned to its own one before.
        fn take(&mut self, version: &str, image: &str, reason: &str) {
            let turn = json!({"containers.app": {"from": MIRRORED, "to": OWN, "at": "x", "pod": "u"}});
            let annotations = BTreeMap::from([
                (format!("{ORIGINAL_IMAGE_PREFIX}app"), OWN.to_owned()),
                (RESCUED_ANNOTATION.to_owned(), turn.to_string()),
            ]);
            self.take_with(version, image, reason, &annotations);
        }

        fn take_with(
            &mut self,
            version: &str,
            image: &str,
            reason: &str,
            annotations: &BTreeMap<String, String>,
        ) {
            let message = format!("Back-off pulling image \"{image}\"");
            let pod = Pod {
                uid: "u",
                namespace: "team",
                name: "web",
                resource_version: version,
                node: "node-1",
                annotations: Some(annotations),
                containers: vec![Container {
                    name: "app",
                    image,
                    waiting: Some((reason, &message)),
                    ..Container::default()
                }],
                ..Pod::default()
            };
            let known = Known {
                routing: &self.routing,
                former: &[],
                left_alone: &BTreeSet::new(),
            };
            self.lasting.take(&pod, &known, self.now);
        }

        fn later(&mut self, duration: Duration) {
            self.now = self.now.after(duration);
        }

        fn next(&mut self) -> Option<Due> {
            let given = self.given;
            self.lasting.next(|_| given, self.now)
        }

        /// Whether it is told of once a look at these Events is done.
        fn looked(&mut self, events: &[PodEvent<'_>]) -> Option<Lasts> {
            let Some(Due::Look(pod)) = self.next() else {
                return None;
            };
            self.lasting.judge(&pod, events, |_| true, self.now)
        }
    }

    #[test]
    fn that_it_did_not_help_is_told_once_an_earlier_back_off_is_over() {
        let mut ward = Ward::new();
        ward.take("1", OWN, "ErrImagePull");
        ward.later(LONGEST_BACK_OFF.saturating_sub(Duration::from_millis(1)));
        ward.take("2", OWN, "ImagePullBackOff");
        assert_eq!(ward.next(), None);
        ward.later(Duration::from_millis(1));
        let Some(Due::Tell(lasts)) = ward.next() else {
            panic!("it is told")
        };
        assert_eq!(
            (lasts.reason(), &*lasts.container, lasts.since),
            ("DidNotHelp", "app", NOW)
        );
        assert!(lasts.describe().contains(OWN) && lasts.describe().contains("node-1"));
        ward.take("3", OWN, "ErrImagePull");
        assert_eq!(ward.next(), None, "once");
        // It runs, and later fails again: that is another matter.
        ward.take("4", OWN, "Running");
        assert!(ward.lasting.pods.is_empty());
    }

    /// Until kubelet has tried it, the status speaks of the image before.
    #[test]
    fn what_the_status_says_of_the_image_before_counts_for_nothing() {
        let mut ward = Ward::new();
        let annotations = BTreeMap::from([(format!("{ORIGINAL_IMAGE_PREFIX}app"), OWN.to_owned())]);
        ward.take_with("1", OWN, "ErrImagePull", &annotations);
        assert!(ward.lasting.pods.is_empty(), "nobody turned it");
        ward.take("2", "redis:8", "ErrImagePull");
        assert!(ward.lasting.pods.is_empty(), "to another image");
    }

    #[test]
    fn a_kubelet_that_does_not_try_is_told_where_the_mirror_gives_the_image() {
        let mut ward = Ward::new();
        ward.take("1", MIRRORED, "ImagePullBackOff");
        ward.later(IDLE.saturating_sub(Duration::from_millis(1)));
        assert_eq!(ward.next(), None);
        // An attempt shows in the status.
        ward.take("2", MIRRORED, "ErrImagePull");
        ward.later(IDLE.saturating_sub(Duration::from_millis(1)));
        ward.take("2", MIRRORED, "ErrImagePull");
        assert_eq!(ward.next(), None);
        ward.later(Duration::from_millis(1));
        ward.given = false;
        assert_eq!(ward.next(), None, "its cause is still there");
        ward.later(AGAIN);
        ward.given = true;
        let event = |reason, before| PodEvent {
            reason,
            message: "",
            field_path: "",
            host: "node-1",
            at: ward.now.before(before),
        };
        let tried = [
            event("Pulling", IDLE.saturating_sub(Duration::from_secs(1))),
            event("BackOff", Duration::ZERO),
        ];
        let idle = [
            event("Pulling", IDLE),
            event("BackOff", Duration::ZERO),
            event("Failed", Duration::ZERO),
            // Another node's kubelet knows nothing of it.
            PodEvent {
                host: "node-2",
                ..event("Pulling", Duration::ZERO)
            },
        ];
        assert_eq!(ward.looked(&tried), None);
        assert_eq!(ward.next(), None, "it was looked at just now");
        ward.later(AGAIN);
        let lasts = ward.looked(&idle).unwrap();
        assert_eq!(
            (lasts.reason(), lasts.mirror.as_deref()),
            ("KubeletIdle", Some("a"))
        );
        assert!(lasts.describe().contains(MIRRORED) && lasts.describe().contains("node-1"));
        ward.later(AGAIN);
        assert_eq!(ward.next(), None, "once");
    }

    /// What may be turned is, just after its next failure: where there is none, somebody has to know.
    #[test]
    fn one_that_would_be_turned_is_told_of_where_it_fails_no_more() {
        let mut ward = Ward::new();
        let annotations = BTreeMap::from([(format!("{ORIGINAL_IMAGE_PREFIX}app"), OWN.to_owned())]);
        ward.take_with("1", MIRRORED, "ImagePullBackOff", &annotations);
        ward.later(IDLE);
        assert_eq!(ward.looked(&[]).unwrap().reason(), "KubeletIdle");
        let mut audit = mirror("a", &["docker.io"]);
        audit.rescue = RescuePolicy::Audit;
        ward.routing = Routing::compile(vec![audit]);
        ward.take_with("1", MIRRORED, "ImagePullBackOff", &annotations);
        assert_eq!(ward.lasting.pods.len(), 1);
        ward.take_with("1", MIRRORED, "ImagePullBackOff", &BTreeMap::new());
        assert_eq!(ward.lasting.pods.len(), 1);
        let mut off = mirror("a", &["docker.io"]);
        off.rescue = RescuePolicy::Off;
        ward.routing = Routing::compile(vec![off]);
        ward.take_with("1", MIRRORED, "ImagePullBackOff", &annotations);
        assert!(ward.lasting.pods.is_empty(), "people told so");
    }

    #[test]
    fn a_list_forgets_who_is_gone() {
        let mut ward = Ward::new();
        ward.take("1", OWN, "ErrImagePull");
        ward.lasting.begin_listing();
        ward.lasting.end_listing();
        assert!(ward.lasting.pods.is_empty());
    }

    /// As the shared state has it: a proof that counts, of a mirror that is well.
    #[test]
    fn a_mirror_gives_what_was_proven_since_it_is_healthy() {
        use crate::domain::{
            examples::{key, proof, snapshot},
            health::Health,
            presence::Presence,
        };
        let mut snapshot = snapshot(vec![mirror("a", &["docker.io"])]);
        let missed = Missed {
            mirror: "a".into(),
            original: OWN.into(),
        };
        let mut index = Index::default();
        let given = |snapshot: &Snapshot, index: &Index| gives(snapshot, index, &missed, NOW);
        let healthy = Health {
            state: State::Healthy,
            proven_since: NOW,
            ..Health::unknown(NOW)
        };
        snapshot.health = vec![healthy.clone()];
        assert!(!given(&snapshot, &index));
        index.write(
            "a",
            key("docker.io/library/nginx:1"),
            Presence::Present(proof('a')),
            NOW,
            NOW,
        );
        assert!(given(&snapshot, &index));
        let id = snapshot.routing.find("a").unwrap();
        snapshot.suspected = [id].into();
        assert!(!given(&snapshot, &index));
        snapshot.suspected.clear();
        snapshot.health = vec![Health {
            proven_since: NOW.after(Duration::from_millis(1)),
            ..healthy
        }];
        assert!(!given(&snapshot, &index), "it may have come back empty");
    }
}
