//! Pods that are stuck on a mirror's name while nothing proves what their user wrote. Nothing is done for them, since
//! upstream's name may be a stranger's; so people are told once what the mapping would make that name of, who know
//! whether it is that.

use std::collections::BTreeMap;

use super::{Judgement, Known, Left, Pod, PodId, StuckContainer, StuckPod, by_pod::ByPod};
use crate::domain::{
    original::{candidate, mirrors_named_by},
    pod::PlaceKind,
};

/// How many Pods are kept in mind.
const LIMIT: usize = 1_000;

/// The Pods of a cluster that are stuck so.
#[derive(Debug, Default)]
pub struct Unrecorded {
    pods: ByPod<Lost>,
}

/// One of them.
#[derive(Debug)]
struct Lost {
    pod: PodId,
    /// Each with whether it was told.
    containers: Vec<(Nameless, bool)>,
}

/// A container whose original nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nameless {
    pub kind: PlaceKind,
    pub name: Box<str>,
    pub image: Box<str>,
    /// The mirror that the image names.
    pub mirror: Box<str>,
    /// What that mirror would make the image of.
    pub candidate: Box<str>,
}

impl Nameless {
    /// Returns it where the mirror would make the image of something: else the registry has images of its own, and this
    /// one has nothing to do with Kagami.
    fn of(container: &StuckContainer, known: &Known<'_>) -> Option<Self> {
        let mirror = *mirrors_named_by(known.routing, &container.image).first()?;
        Some(Self {
            kind: container.kind,
            name: container.name.clone(),
            image: container.image.clone(),
            mirror: known.routing.mirror(mirror).name.as_str().into(),
            candidate: candidate(known.routing, &container.image)?.into(),
        })
    }

    /// Returns what people are told on the Pod.
    pub fn describe(&self) -> String {
        let Self {
            name,
            image,
            mirror,
            candidate,
            ..
        } = self;
        format!(
            "Container {name} cannot pull {image}, a name of mirror {mirror}, and nothing tells what its user wrote, so \
             Kagami leaves it alone. The mirror's mapping would make it of {candidate}: write upstream's name into the \
             Pod, if it is that"
        )
    }
}

impl Unrecorded {
    /// Begins a list of all Pods: those not taken in before [`Unrecorded::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.pods.begin_listing();
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.pods.end_listing();
    }

    /// Takes in a Pod.
    pub fn take(&mut self, pod: &Pod<'_>, known: &Known<'_>) {
        let Some(stuck) = StuckPod::of(pod) else {
            return self.remove(pod);
        };
        let before = self.pods.take_out(pod);
        let before = before.filter(|lost| *lost.pod.uid == *pod.uid);
        let is_known = |container: &Nameless| {
            let mut known = before.iter().flat_map(|lost| &lost.containers);
            known.any(|(known, _)| known == container)
        };
        let containers = stuck.containers.iter().filter_map(|container| {
            let Judgement::Left(left) = stuck.judge(container, known) else {
                return None;
            };
            let nameless = || Nameless::of(container, known);
            match left {
                Left::NoRecord | Left::RecordDiffers => nameless(),
                // Kubelet speaks of something else for a moment, and will speak of it again.
                Left::OtherReference | Left::NodeLimit | Left::Unnamed => nameless().filter(is_known),
                _ => None,
            }
        });
        let containers: Vec<_> = containers.collect();
        if containers.is_empty() || self.pods.len() >= LIMIT {
            return;
        }
        let was_told = |container: &Nameless| {
            let mut known = before.iter().flat_map(|lost| &lost.containers);
            known.any(|(known, told)| *told && known == container)
        };
        let containers = containers.into_iter().map(|container| {
            let told = was_told(&container);
            (container, told)
        });
        let lost = Lost {
            pod: pod.id(),
            containers: containers.collect(),
        };
        self.pods.put_in(pod, lost);
    }

    /// Forgets a Pod that is gone, or is not stuck so.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        self.pods.take_out(pod);
    }

    /// Returns a container that was not told of, if there is one; it is told from now on.
    pub fn news(&mut self) -> Option<(PodId, Nameless)> {
        self.pods.values_mut().find_map(|lost| {
            let (container, told) = lost.containers.iter_mut().find(|(_, told)| !told)?;
            *told = true;
            Some((lost.pod.clone(), container.clone()))
        })
    }

    /// Returns what is to be said of each mirror that such Pods name, to everybody who may read ImageMirrors: an image, and
    /// no Pod. Of several images it is the first by name, so that it stays the same while that one is stuck.
    pub fn by_mirror(&self) -> BTreeMap<Box<str>, String> {
        let mut mirrors: BTreeMap<&str, &Nameless> = BTreeMap::new();
        let lost = self.pods.values().flat_map(|lost| &lost.containers);
        for (container, _) in lost {
            let named = mirrors.entry(&container.mirror).or_insert(container);
            if container.image < named.image {
                *named = container;
            }
        }
        let told = mirrors.into_iter().map(|(mirror, container)| {
            let Nameless { image, candidate, .. } = container;
            let text = format!(
                "Containers are stuck on names of this mirror, and nothing tells what their users wrote, among them {image}. \
                 The mirror's mapping would make it of {candidate}; Kagami makes up no original, so write upstream's \
                 name into the Pod, if it is that."
            );
            (mirror.into(), text)
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::{
        examples::mirror, mirror::RescuePolicy, names::ORIGINAL_IMAGE_PREFIX, rescue::Container,
        routing::Routing,
    };

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

    #[derive(Default)]
    struct Ward {
        unrecorded: Unrecorded,
        /// What the Pods are labelled, and the mirror's policy; none as users leave it.
        label: Option<&'static str>,
        policy: Option<RescuePolicy>,
    }

    impl Ward {
        /// Takes in a Pod that is stuck on an image, with what it records as its original.
        fn take(&mut self, name: &str, image: &str, original: Option<&str>) {
            self.take_with(name, "u", image, original, Some("ImagePullBackOff"));
        }

        fn take_with(
            &mut self,
            name: &str,
            uid: &str,
            image: &str,
            original: Option<&str>,
            reason: Option<&str>,
        ) {
            let message = format!("Back-off pulling image \"{image}\"");
            self.take_saying((name, uid), image, original, reason, &message);
        }

        fn take_saying(
            &mut self,
            (name, uid): (&str, &str),
            image: &str,
            original: Option<&str>,
            reason: Option<&str>,
            message: &str,
        ) {
            let record = |original: &str| (format!("{ORIGINAL_IMAGE_PREFIX}app"), original.to_owned());
            let annotations: BTreeMap<_, _> = original.map(record).into_iter().collect();
            let pod = Pod {
                mode_label: self.label,
                uid,
                namespace: "team",
                name,
                annotations: Some(&annotations),
                containers: vec![Container {
                    name: "app",
                    image,
                    waiting: reason.map(|reason| (reason, message)),
                    ..Container::default()
                }],
                ..Pod::default()
            };
            let mut mirror = mirror("a", &["docker.io"]);
            mirror.rescue = self.policy.unwrap_or(mirror.rescue);
            let known = Known {
                routing: &Routing::compile(vec![mirror]),
                former: &[],
                left_alone: &BTreeSet::new(),
            };
            self.unrecorded.take(&pod, &known);
        }

        fn news(&mut self) -> Option<String> {
            self.unrecorded.news().map(|(_, container)| container.describe())
        }

        fn said(&self) -> Option<String> {
            self.unrecorded.by_mirror().remove("a")
        }
    }

    #[test]
    fn who_is_stuck_without_a_record_is_told_once_what_the_name_would_be_made_of() {
        for original in [None, Some("redis:8")] {
            let mut ward = Ward::default();
            ward.take("web", MIRRORED, original);
            let told = ward.news().unwrap();
            assert!(
                told.contains("would make it of docker.io/library/nginx:1:"),
                "{told}"
            );
            ward.take("web", MIRRORED, original);
            assert_eq!(ward.news(), None);
            let said = ward.said().unwrap();
            assert!(
                said.contains("among them a.example.com/docker.io/library/nginx:1. The mirror's"),
                "{said}"
            );
            assert!(said.contains("docker.io/library/nginx:1;"), "{said}");
            assert!(!said.contains("team"), "everybody may read it: {said}");
            // Another Pod of that name is another one.
            ward.take_with("web", "v", MIRRORED, original, Some("ErrImagePull"));
            assert!(ward.news().is_some());
            // It got its image.
            ward.take_with("web", "v", MIRRORED, original, None);
            assert_eq!(ward.said(), None);
        }
    }

    /// A registry that is a mirror may have images of its own.
    #[test]
    fn what_the_mirror_would_make_of_nothing_is_none_of_ours() {
        let mut ward = Ward::default();
        ward.take("own", "a.example.com/elsewhere/app:1", None);
        assert_eq!((ward.news(), ward.said()), (None, None));
    }

    /// A node's limit, or another container's volume, is what kubelet speaks of now and then.
    #[test]
    fn who_is_stuck_for_another_reason_in_between_is_told_once() {
        let mut ward = Ward::default();
        ward.take("web", MIRRORED, None);
        assert!(ward.news().is_some());
        let said = ward.said();
        for message in [
            "pull QPS exceeded",
            "rpc error: code = Canceled desc = context canceled",
            "Back-off pulling image \"redis:8\"",
        ] {
            ward.take_saying(("web", "u"), MIRRORED, None, Some("ErrImagePull"), message);
            assert_eq!(ward.said(), said, "{message}");
            ward.take("web", MIRRORED, None);
            assert_eq!((ward.news(), ward.said()), (None, said.clone()), "{message}");
        }
        // Of one that was never known to be stuck on it nothing is told for that.
        ward.take_saying(
            ("other", "u"),
            MIRRORED,
            None,
            Some("ErrImagePull"),
            "pull QPS exceeded",
        );
        assert_eq!(ward.news(), None);
    }

    #[test]
    fn where_people_said_off_nothing_is_told() {
        for original in [None, Some("redis:8")] {
            let mut ward = Ward {
                label: Some("off"),
                ..Ward::default()
            };
            ward.take("web", MIRRORED, original);
            assert_eq!((ward.news(), ward.said()), (None, None));
            (ward.label, ward.policy) = (None, Some(RescuePolicy::Off));
            ward.take("web", MIRRORED, original);
            assert_eq!((ward.news(), ward.said()), (None, None));
            ward.policy = Some(RescuePolicy::Audit);
            ward.take("web", MIRRORED, original);
            assert!(ward.news().is_some());
            // It is left alone from now on.
            ward.label = Some("off");
            ward.take("web", MIRRORED, original);
            assert_eq!(ward.said(), None);
        }
    }

    /// What is said is the same whichever Pods come and go.
    #[test]
    fn of_a_mirror_one_image_is_named_while_it_is_stuck() {
        let mut ward = Ward::default();
        ward.take("web", MIRRORED, None);
        let said = ward.said();
        ward.take("another", MIRRORED, None);
        ward.take("later", "a.example.com/docker.io/library/redis:8", None);
        assert_eq!(ward.said(), said);
    }

    #[test]
    fn nobody_else_is_told() {
        let mut ward = Ward::default();
        ward.take("recorded", MIRRORED, Some("nginx:1"));
        ward.take("upstream", "nginx:1", None);
        ward.take_with("runs", "u", MIRRORED, None, None);
        assert_eq!((ward.news(), ward.said()), (None, None));
    }

    #[test]
    fn a_list_forgets_those_that_it_does_not_name_and_all_have_a_bound() {
        let mut ward = Ward::default();
        for number in 0..LIMIT + 10 {
            ward.take(&format!("web-{number:04}"), MIRRORED, None);
        }
        assert_eq!(ward.unrecorded.pods.len(), LIMIT);
        ward.unrecorded.begin_listing();
        ward.take("web-0001", MIRRORED, None);
        ward.unrecorded.end_listing();
        assert_eq!(ward.unrecorded.pods.len(), 1);
    }
}
