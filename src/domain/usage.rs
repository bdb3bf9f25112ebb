//! What running Pods use, and what they would use if they were created now: audit mode's answer,
//! by what is known alone.

use std::collections::BTreeMap;

use super::{
    decision::{Decision, Finding, Probing, Request, decide},
    presence::Index,
    reason::{Outcome, Reason},
    routing::MirrorId,
    snapshot::Snapshot,
    time::Timestamp,
};

/// Decides about a Pod's images by what is known, without a question to any mirror.
pub fn decide_known<'a>(
    snapshot: &Snapshot,
    index: &Index,
    request: &'a Request<'a>,
    now: Timestamp,
) -> Vec<Decision<'a>> {
    let plan = decide(snapshot, index, request, Probing::Hosted, now);
    let nobody_looked = vec![Some(Finding::Not(Reason::ImageUnknown)); plan.probes.len()];
    plan.settle(snapshot, &nobody_looked)
}

/// What the Pods of a namespace, or of several, use and would use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub pods: usize,
    /// Places that name an image: each is a pull.
    pub images: usize,
    /// Those that name a mirror at present.
    pub on_mirror: usize,
    /// Those that would, in a Pod created now, if the mode allowed it.
    pub to_mirror: usize,
    /// Why the others would not.
    pub kept: BTreeMap<Reason, usize>,
}

impl Summary {
    /// Takes in one Pod: the mirrors that its places name, and what was decided of each.
    pub fn add_pod(&mut self, on: &[Option<MirrorId>], decisions: &[Decision<'_>]) {
        self.pods += 1;
        self.images += decisions.len();
        self.on_mirror += on.iter().flatten().count();
        for decision in decisions {
            let stays = decision.reason == Reason::AlreadyMirrored;
            if decision.outcome != Outcome::Kept || stays {
                self.to_mirror += 1;
            } else {
                *self.kept.entry(decision.reason).or_default() += 1;
            }
        }
    }

    /// Takes in another summary.
    pub fn add(&mut self, other: &Self) {
        self.pods += other.pods;
        self.images += other.images;
        self.on_mirror += other.on_mirror;
        self.to_mirror += other.to_mirror;
        for (reason, count) in &other.kept {
            *self.kept.entry(*reason).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        decision::Operation,
        examples::{NOW, key, mirror, place, proof, snapshot},
        mirror::Mode,
        names::ORIGINAL_IMAGE_PREFIX,
        original::restore,
        pod::{Annotations, PlaceKind, Pod},
        presence::Presence,
    };

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

    /// A Pod with one container, and what is recorded as its original.
    fn pod<'a>(image: &'a str, original: Option<&'a str>) -> Pod<'a> {
        let record = |original: &'a str| (format!("{ORIGINAL_IMAGE_PREFIX}app").into(), original.into());
        Pod {
            places: vec![place(PlaceKind::Container, 0, "app", image)],
            annotations: Annotations::new(0, original.map(record).into_iter().collect()),
            ..Pod::default()
        }
    }

    /// Checks what is told of one Pod: its image as decided about, the mirror it is on, the decision.
    #[track_caller]
    fn check(mode: Mode, known: &str, mut pod: Pod<'_>, expected: &str) {
        let snapshot = snapshot(vec![mirror("a", &["docker.io"])]);
        let mut index = Index::default();
        index.write("a", key(known), Presence::Present(proof('a')), NOW, NOW);
        let on = restore(&mut pod, &snapshot.routing);
        let request = Request {
            namespace: "team",
            mode,
            operation: Operation::Create,
            heal: true,
            pod,
        };
        let decisions = decide_known(&snapshot, &index, &request, NOW);
        let decision = &decisions[0];
        let on_mirror = on[0].map_or("upstream", |id| &snapshot.routing.mirror(id).name);
        let told = format!(
            "{} on {on_mirror}: {} {}",
            decision.image, decision.outcome, decision.reason
        );
        assert_eq!(told, expected);
    }

    #[test]
    fn a_rewritten_image_is_decided_about_as_its_user_wrote_it() {
        let nginx = "docker.io/library/nginx:1";
        let rewritten = || pod(MIRRORED, Some("nginx:1"));
        check(
            Mode::Enforce,
            nginx,
            rewritten(),
            "nginx:1 on a: Rewritten Mirrored",
        );
        check(
            Mode::Audit,
            nginx,
            rewritten(),
            "nginx:1 on a: WouldRewrite Mirrored",
        );
        check(Mode::Off, nginx, rewritten(), "nginx:1 on a: Kept ModeOff");
        check(
            Mode::Enforce,
            "docker.io/library/other:1",
            rewritten(),
            "nginx:1 on a: Kept ImageUnknown",
        );
    }

    #[test]
    fn an_original_that_does_not_map_to_the_image_is_none() {
        let forged = pod(MIRRORED, Some("redis:1"));
        let told = format!("{MIRRORED} on a: Kept AlreadyMirrored");
        check(Mode::Enforce, "docker.io/library/redis:1", forged, &told);
        let upstream = pod("nginx:1", Some("redis:1"));
        let told = "nginx:1 on upstream: Rewritten Mirrored";
        let nginx = "docker.io/library/nginx:1";
        check(Mode::Enforce, nginx, upstream, told);
        let invalid = pod("Not An Image", None);
        let told = "Not An Image on upstream: Kept InvalidReference";
        check(Mode::Enforce, nginx, invalid, told);
    }

    #[test]
    fn a_summary_counts_pulls_that_are_and_would_be_on_a_mirror() {
        let snapshot = snapshot(vec![mirror("a", &["docker.io"])]);
        let mut index = Index::default();
        let known = Presence::Present(proof('a'));
        index.write("a", key("docker.io/library/nginx:1"), known, NOW, NOW);
        let mut pod = pod(MIRRORED, Some("nginx:1"));
        for (number, image) in [MIRRORED, "nginx:1", "redis:1", "ghcr.io/x/y:1", "redis:2"]
            .into_iter()
            .enumerate()
        {
            pod.places
                .push(place(PlaceKind::Container, number + 1, "other", image));
        }
        let on = restore(&mut pod, &snapshot.routing);
        let request = Request {
            namespace: "team",
            mode: Mode::Audit,
            operation: Operation::Create,
            heal: true,
            pod,
        };
        let decisions = decide_known(&snapshot, &index, &request, NOW);
        let mut one = Summary::default();
        one.add_pod(&on, &decisions);
        let mut expected = Summary {
            pods: 1,
            images: 6,
            on_mirror: 2,
            to_mirror: 3,
            kept: [(Reason::ImageUnknown, 2), (Reason::NoMirror, 1)].into(),
        };
        assert_eq!(one, expected);
        one.add(&expected.clone());
        expected.pods = 2;
        expected.kept.insert(Reason::ImageUnknown, 4);
        assert_eq!(
            (one.pods, one.images, one.on_mirror, one.to_mirror),
            (2, 12, 4, 6)
        );
        assert_eq!(
            one.kept[&Reason::ImageUnknown],
            expected.kept[&Reason::ImageUnknown]
        );
    }
}
