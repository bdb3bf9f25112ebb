use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::domain::{
    examples::{NOW, key, mirror, proof, snapshot},
    health::State,
    mirror::{Kind, Mirror},
    names::{MODE_LABEL, ORIGINAL_VOLUME_PREFIX},
    pod::Owner,
    presence::{Index, Presence},
    rescue::Container,
    snapshot::Snapshot,
};

const UPSTREAM: &str = "ghcr.io/acme/model:1";
const MIRRORED: &str = "a.example.com/ghcr.io/acme/model:1";

/// A Pod of a Deployment that is stuck on an image volume of a mirror which has died.
struct Example {
    pod: Pod<'static>,
    message: String,
    recorded: Option<&'static str>,
    snapshot: Snapshot,
    index: Index,
}

impl Example {
    fn new() -> Self {
        let mut mirror = mirror("a", &["ghcr.io"]);
        mirror.delete_pods = true;
        Self::with(vec![mirror])
    }

    fn with(mirrors: Vec<Mirror>) -> Self {
        let mut snapshot = snapshot(mirrors);
        snapshot.health[0].state = State::Unhealthy;
        let labels = [(MODE_LABEL.to_owned(), "enforce".to_owned())].into();
        snapshot.namespaces = Arc::new([("team".to_owned(), labels)].into());
        Self {
            pod: Pod {
                uid: "u",
                namespace: "team",
                name: "web",
                resource_version: "7",
                // As those of a Deployment are known, which is no UID.
                owner: Some("web"),
                controller: Some(("apps/v1", "ReplicaSet")),
                owners: vec![owner("apps/v1", "ReplicaSet")],
                image_volumes: vec![("other", "x:1"), ("model", MIRRORED)],
                ..Pod::default()
            },
            message: format!("Back-off pulling image \"{MIRRORED}\""),
            recorded: Some(UPSTREAM),
            snapshot,
            index: Index::default(),
        }
    }

    fn take(&self, volumes: &mut Volumes, version: &str) {
        let recorded = self.recorded.map(|recorded| {
            let key = format!("{ORIGINAL_VOLUME_PREFIX}model");
            (key, recorded.to_owned())
        });
        let annotations: BTreeMap<_, _> = recorded.into_iter().collect();
        let container = Container {
            name: "app",
            image: "app:1",
            waiting: Some(("ImagePullBackOff", &self.message)),
            ..Container::default()
        };
        let pod = Pod {
            annotations: Some(&annotations),
            containers: vec![container],
            resource_version: version,
            ..self.pod.clone()
        };
        volumes.take(&pod, &self.snapshot.routing);
    }

    fn ahead(&self) -> Ahead<'_> {
        Ahead {
            snapshot: &self.snapshot,
            index: &self.index,
            registries: &[],
            now: NOW,
        }
    }

    /// Returns what is done, in words.
    fn helped(&self) -> String {
        let mut volumes = Volumes::default();
        self.take(&mut volumes, "7");
        match volumes.next(&self.ahead()) {
            None => "nothing".to_owned(),
            Some(help) => {
                assert_eq!((&*help.stuck.volume, &*help.stuck.image), ("model", MIRRORED));
                help.hindrance
                    .map_or_else(|| "evicted".to_owned(), |hindrance| format!("{hindrance:?}"))
            }
        }
    }
}

fn owner(api_version: &'static str, kind: &'static str) -> Owner<'static> {
    Owner {
        api_version: api_version.into(),
        kind: kind.into(),
        uid: "o".into(),
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Example), expected: &str) {
    let mut example = Example::new();
    change(&mut example);
    assert_eq!(example.helped(), expected);
}

#[track_caller]
fn check_with(change: impl FnOnce(&mut Mirror), expected: &str) {
    let mut mirror = mirror("a", &["ghcr.io"]);
    mirror.delete_pods = true;
    change(&mut mirror);
    assert_eq!(Example::with(vec![mirror]).helped(), expected);
}

#[test]
fn a_pod_is_evicted_where_nothing_is_lost_and_a_new_one_gets_upstreams_image() {
    check(|_| {}, "evicted");
    for (api_version, kind, expected) in [
        ("apps/v1", "DaemonSet", "evicted"),
        ("v1", "ReplicationController", "evicted"),
        ("apps/v1", "StatefulSet", "Owner"),
        ("batch/v1", "Job", "Owner"),
        ("evil.test/v1", "ReplicaSet", "Owner"),
    ] {
        check(
            |example| example.pod.controller = Some((api_version, kind)),
            expected,
        );
    }
    // An owner that does not control it makes no other.
    check(|example| example.pod.controller = None, "Owner");
    check(|example| example.pod.has_begun = true, "Begun");
    check(|example| example.pod.has_claim = true, "Claim");
    check_with(|mirror| mirror.delete_pods = false, "NotAsked");
    check_with(|mirror| mirror.rescue = RescuePolicy::Audit, "TellOnly");
    check_with(|mirror| mirror.rescue = RescuePolicy::Off, "nothing");
    check(|example| example.pod.mode_label = Some("audit"), "TellOnly");
    check(|example| example.pod.mode_label = Some("off"), "nothing");
    check(
        |example| example.snapshot.namespaces = Arc::default(),
        "NotEnforced",
    );
    check(
        |example| example.snapshot.left_alone = Arc::new(["team".to_owned()].into()),
        "nothing",
    );
    check(|example| example.snapshot.paused = true, "nothing");
}

#[test]
fn where_a_new_pod_would_get_the_same_it_stays() {
    let known = |state: State| {
        move |example: &mut Example| {
            example.snapshot.health[0].state = state;
            let present = Presence::Present(proof('a'));
            example.index.write("a", key(UPSTREAM), present, NOW, NOW);
        }
    };
    check(known(State::Healthy), "InVain");
    check(known(State::Unhealthy), "evicted");
    check(known(State::Unknown), "nothing");
    // Admission would ask, and nobody knows what it is told.
    check(
        |example| example.snapshot.health[0].state = State::Healthy,
        "nothing",
    );
    check(
        |example| {
            example.snapshot.health[0].state = State::Healthy;
            let index = &mut example.index;
            index.write("a", key(UPSTREAM), Presence::Missing, NOW, NOW);
        },
        "evicted",
    );
    // Of a pull-through mirror a proof lapses, and comes again.
    let mut lapsed = mirror("a", &["ghcr.io"]);
    (lapsed.delete_pods, lapsed.kind) = (true, Kind::PullThrough);
    for reason in [None, Some(Reason::RegistryError), Some(Reason::RateLimited)] {
        let mut example = Example::with(vec![lapsed.clone()]);
        example.snapshot.health[0].state = State::Healthy;
        let index = &mut example.index;
        index.write("a", key(UPSTREAM), Presence::Unknown(reason), NOW, NOW);
        assert_eq!(example.helped(), "nothing", "{reason:?}");
    }
    check_with(|mirror| mirror.mode = Mode::Off, "evicted");
    // Of two mirrors in one registry both must ask for it.
    let mut mirrors = vec![mirror("a", &["ghcr.io"]), mirror("b", &["ghcr.io"])];
    mirrors[1].mapping = mirrors[0].mapping.clone();
    mirrors[0].delete_pods = true;
    assert_eq!(Example::with(mirrors).helped(), "NotAsked");
}

#[test]
fn only_a_volume_that_a_mirror_was_written_into_counts() {
    check(|example| example.message = "x".to_owned(), "nothing");
    // The container's own image, and one of nothing that the Pod has.
    for image in ["app:1", "a.example.com/ghcr.io/acme/other:1", "x:1"] {
        check(
            |example| example.message = format!("Back-off pulling image \"{image}\""),
            "nothing",
        );
    }
    check(|example| example.pod.image_volumes.clear(), "nothing");
    check(|example| example.pod.is_deleted = true, "nothing");
    check(|example| example.pod.is_static = true, "nothing");
    check(|example| example.recorded = None, "NoRecord");
    for forged in ["evil.test/acme/model:1", "ghcr.io/acme/model:2", ""] {
        check(|example| example.recorded = Some(forged), "NoRecord");
    }
}

#[test]
fn each_is_told_once_and_evicted_once_for_each_version() {
    let mut example = Example::new();
    let mut volumes = Volumes::default();
    let next = |example: &Example, volumes: &mut Volumes| {
        let help = volumes.next(&example.ahead());
        help.map(|help| help.hindrance)
    };
    example.take(&mut volumes, "1");
    assert_eq!(next(&example, &mut volumes), Some(None));
    assert_eq!(next(&example, &mut volumes), None);
    // The request failed: it is tried again later.
    let id = PodId {
        uid: "u".into(),
        namespace: "team".into(),
        name: "web".into(),
        resource_version: "1".into(),
    };
    volumes.not_evicted(&id, false, NOW);
    assert_eq!(next(&example, &mut volumes), None);
    let later = Ahead {
        now: NOW.after(PAUSE),
        ..example.ahead()
    };
    assert_eq!(volumes.next(&later).map(|help| help.hindrance), Some(None));
    // Its Events tell that a container has begun.
    volumes.not_evicted(&id, true, NOW);
    assert_eq!(
        volumes.next(&later).map(|help| help.hindrance),
        Some(Some(Hindrance::Begun))
    );
    assert_eq!(volumes.next(&later), None);
    // Without the right nobody is evicted for a while, and each is told so once.
    let mut forbidden = Volumes::default();
    example.take(&mut forbidden, "1");
    assert_eq!(next(&example, &mut forbidden), Some(None));
    forbidden.not_evicted(&id, false, NOW);
    forbidden.has_no_right(NOW);
    assert_eq!(next(&example, &mut forbidden), Some(Some(Hindrance::NotAsked)));
    example.take(&mut forbidden, "2");
    let until = |now| Ahead {
        now,
        ..example.ahead()
    };
    let almost = NOW.after(NO_RIGHT.saturating_sub(std::time::Duration::from_millis(1)));
    assert_eq!(forbidden.next(&until(almost)), None);
    let again = forbidden.next(&until(NOW.after(NO_RIGHT)));
    assert_eq!(again.map(|help| help.hindrance), Some(None));
    // Gone, and another one of the name.
    volumes.begin_listing();
    volumes.end_listing();
    assert_eq!(volumes.next(&later), None);
    example.pod.uid = "v";
    example.take(&mut volumes, "2");
    assert_eq!(next(&example, &mut volumes), Some(None));
    volumes.remove(&example.pod);
    assert!(volumes.pods.is_empty());
}
