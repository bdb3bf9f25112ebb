use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::domain::{
    answer::{Ambiguity, Child, Limit, Manifest, MediaType, Particulars, Party, Unreachable},
    examples::{NOW, digest, key, manifest, mirror, place, proof, snapshot, source},
    health::Health,
    mapping::MirrorRegistry,
    mirror::{Access, OwnerPattern, Pin, Source, Tags},
    names::ORIGINAL_IMAGE_PREFIX,
    owners::LeftAlone,
    platform::{Label, Landing},
    pod::{Annotations, Owner},
    presence::Presence,
    selector::{Labels, Operator, Requirement, Selector},
    standing::Standing,
};

const NGINX: &str = "docker.io/library/nginx:1";

/// A Pod with one container `app` of `nginx:1` in namespace `team`, in front of some mirrors.
struct Scene<'a> {
    snapshot: Snapshot,
    index: Index,
    request: Request<'a>,
    probing: Probing,
    findings: Vec<Option<Finding>>,
}

fn scene<'a>(mirrors: Vec<Mirror>) -> Scene<'a> {
    let pod = Pod {
        places: vec![place(PlaceKind::Container, 0, "app", "nginx:1")],
        ..Pod::default()
    };
    Scene {
        snapshot: snapshot(mirrors),
        index: Index::default(),
        request: Request {
            namespace: "team",
            mode: Mode::Enforce,
            operation: Operation::Create,
            heal: true,
            pod,
        },
        probing: Probing::Hosted,
        findings: Vec::new(),
    }
}

/// One mirror `a` of Docker Hub, healthy, with `nginx:1`.
fn known<'a>() -> Scene<'a> {
    known_on(mirror("a", &["docker.io"]))
}

fn known_on<'a>(mirror: Mirror) -> Scene<'a> {
    let name = mirror.name.clone();
    scene(vec![mirror]).with(&name, NGINX, Presence::Present(proof('a')))
}

/// The same without anything known of the image.
fn unknown<'a>() -> Scene<'a> {
    scene(vec![mirror("a", &["docker.io"])])
}

impl<'a> Scene<'a> {
    fn with(mut self, mirror: &str, image: &str, presence: Presence) -> Self {
        self.index.write(mirror, key(image), presence, NOW, NOW);
        self
    }

    fn image(mut self, image: &'a str) -> Self {
        self.request.pod.places = vec![place(PlaceKind::Container, 0, "app", image)];
        self
    }

    fn found(mut self, finding: Finding) -> Self {
        self.findings.push(Some(finding));
        self
    }

    fn edit(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    fn health(self, mirror: usize, state: State) -> Self {
        self.edit(|scene| scene.snapshot.health[mirror].state = state)
    }

    fn standing(self, mirror: &str, standing: Standing) -> Self {
        self.edit(|scene| {
            let snapshot = &mut scene.snapshot;
            snapshot
                .standings
                .resize_with(snapshot.routing.len(), Arc::default);
            let mirror = snapshot.routing.by_name()[mirror];
            snapshot.standings[mirror.index()] = Arc::new(standing);
        })
    }

    fn plan(&self) -> Plan<'_> {
        decide(&self.snapshot, &self.index, &self.request, self.probing, NOW)
    }

    fn decisions(&self) -> Vec<Decision<'_>> {
        self.plan().settle(&self.snapshot, &self.findings)
    }

    /// Returns the first decision: outcome, reason, mirror, and what is written into the Pod.
    fn told(&self) -> String {
        let decisions = self.decisions();
        let decision = &decisions[0];
        let mut text = format!("{} {}", decision.outcome, decision.reason);
        if let Some(mirror) = decision.mirror {
            text.push(' ');
            text.push_str(&self.snapshot.routing.mirror(mirror).name);
        }
        if let Some(rewritten) = &decision.rewritten {
            text.push_str(" → ");
            text.push_str(rewritten);
        }
        text
    }

    /// Returns what was decided of each candidate.
    fn details(&self) -> Vec<String> {
        let told = |candidate: &CandidateDecision| {
            let mirror = &self.snapshot.routing.mirror(candidate.mirror).name;
            let closed_by = candidate
                .closed_by
                .map(|keeper| self.snapshot.routing.keeper(keeper));
            let closed_by = closed_by.map_or_else(String::new, |name| format!(" by {name}"));
            format!("{mirror} {} {}{closed_by}", candidate.outcome, candidate.reason)
        };
        self.decisions()[0].candidates.iter().map(told).collect()
    }
}

fn placed_in(namespaces: &[&str]) -> Standing {
    Standing {
        pull_secret_namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        ..Standing::NONE
    }
}

/// Notes in which an owner is left alone until a millisecond, and a controller `c-1` is of a resource.
fn noted(owner: &str, until: u64, resource: [&str; 3]) -> LeftAlone {
    let [uid, api_version, kind] = resource;
    let owner = serde_json::json!([[owner, "team", "example.com/v1", "Web", "web"], 1, 0, until]);
    let controller = serde_json::json!([
        ["c-1", "StatefulSet", "web"],
        [uid, "team", api_version, kind, "web"]
    ]);
    LeftAlone::read(&owner.to_string(), &controller.to_string())
}

#[track_caller]
fn check(scene: &Scene<'_>, expected: &str) {
    assert_eq!(scene.told(), expected);
}

/// Checks that the image is kept for this reason, because of mirror `a`, and that no probe is wanted.
#[track_caller]
fn check_kept(scene: &Scene<'_>, reason: Reason) {
    assert_eq!(scene.told(), format!("Kept {reason} a"));
    assert_eq!(scene.plan().probes, [], "{reason}");
}

/// Checks that the image is kept for this reason before any mirror is asked.
#[track_caller]
fn check_standing(scene: &Scene<'_>, reason: Reason) {
    assert_eq!(scene.told(), format!("Kept {reason}"));
    assert_eq!(scene.details(), [""; 0], "{reason}");
    assert_eq!(scene.plan().probes, []);
    assert_eq!(scene.plan().unknown, []);
}

fn platform(architecture: &str) -> Platforms {
    Platforms::of("linux", architecture, "")
}

fn index_of(platforms: Platforms) -> Presence {
    Presence::Present(Proof {
        media_type: MediaType::OciIndex,
        platforms,
        ..proof('a')
    })
}

fn only(label: &str) -> Selector {
    let key = label.to_owned();
    Selector {
        requirements: vec![Requirement {
            key,
            operator: Operator::Exists,
        }],
    }
}

#[test]
fn proof_on_a_healthy_mirror_rewrites() {
    check(
        &known(),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    let decisions = known();
    let decisions = decisions.decisions();
    assert_eq!(decisions[0].digest, Some(digest('a')));
    assert_eq!(decisions[0].mode, Mode::Enforce);
    assert!(!decisions[0].carried && !decisions[0].wants_pull_secret);
}

#[test]
fn every_place_is_decided_in_the_order_of_the_pod() {
    let mut scene = known();
    let places = [
        (PlaceKind::InitContainer, 0, "init", "nginx:1"),
        (PlaceKind::Container, 1, "app", "busybox:1"),
        (PlaceKind::EphemeralContainer, 0, "debug", "quay.io/a/b"),
        (PlaceKind::Volume, 3, "data", "docker.io/library/nginx:1"),
    ];
    scene.request.pod.places = places
        .iter()
        .map(|(kind, index, name, image)| place(*kind, *index, name, image))
        .collect();
    scene.findings = vec![Some(Finding::Not(Reason::ImageMissing))];
    let told: Vec<_> = scene
        .decisions()
        .iter()
        .map(|decision| format!("{} {} {}", decision.label(), decision.index, decision.reason))
        .collect();
    assert_eq!(
        told,
        [
            "initContainers.init 0 Mirrored",
            "containers.app 1 ImageMissing",
            "ephemeralContainers.debug 0 NoMirror",
            "volumes.data 3 Mirrored",
        ]
    );
}

#[test]
fn what_stands_before_any_mirror_is_asked() {
    check_standing(&known().image("quay.io/a/b:1"), Reason::NoMirror);
    check_standing(&known().image("no such:image"), Reason::InvalidReference);
    check_standing(
        &known().image("nginx@md5:d41d8cd98f00b204e9800998ecf8427e"),
        Reason::InvalidReference,
    );
    check_standing(
        &known().edit(|scene| scene.request.mode = Mode::Off),
        Reason::ModeOff,
    );
    check_standing(
        &known().edit(|scene| scene.snapshot.paused = true),
        Reason::Paused,
    );
    check_standing(
        &known().edit(|scene| scene.snapshot.left_alone = Arc::new(BTreeSet::from(["team".to_owned()]))),
        Reason::NamespaceNotServed,
    );
    check_standing(
        &known().edit(|scene| {
            let annotations = scene.request.pod.annotations.get_or_insert_default();
            annotations.static_pod = true;
        }),
        Reason::OwnerExcluded,
    );
    check_standing(
        &known().edit(|scene| scene.request.pod.places[0].never = true),
        Reason::PullNever,
    );
    let excluding = Mirror {
        sources: vec![source("docker.io", &["docker.io/library/*"])],
        ..mirror("a", &[])
    };
    check_standing(&known_on(excluding), Reason::Excluded);
}

#[test]
fn a_mirrors_image_is_known_before_routing_and_whatever_the_mirrors_state() {
    let image = "A.example.com/docker.io/library/nginx:1";
    check_standing(&known().image(image), Reason::AlreadyMirrored);
    check_standing(
        &known().image(image).health(0, State::Unhealthy),
        Reason::AlreadyMirrored,
    );
    check_standing(
        &known_on(Mirror {
            mode: Mode::Off,
            ..mirror("a", &["docker.io"])
        })
        .image(image),
        Reason::AlreadyMirrored,
    );
    // A mirror may itself be mirrored by another: that is for people to undo, not to pile up.
    let both = scene(vec![mirror("a", &["docker.io"]), mirror("b", &["a.example.com"])]);
    check_standing(&both.image(image), Reason::AlreadyMirrored);
}

#[test]
fn the_mode_is_the_weakest_of_mirror_namespace_and_pod() {
    let modes = [Mode::Off, Mode::Audit, Mode::Warn, Mode::Enforce];
    for of_mirror in modes {
        for of_namespace in modes {
            for of_pod in modes {
                let mut scene = known_on(Mirror {
                    mode: of_mirror,
                    ..mirror("a", &["docker.io"])
                });
                scene.request.mode = of_namespace;
                scene.request.pod.mode_label = Some(of_pod.as_label().into());
                let weakest = of_mirror.min(of_namespace).min(of_pod);
                let expected = match weakest {
                    Mode::Off => (Outcome::Kept, Reason::ModeOff),
                    Mode::Audit | Mode::Warn => (Outcome::WouldRewrite, Reason::Mirrored),
                    Mode::Enforce => (Outcome::Rewritten, Reason::Mirrored),
                };
                let decisions = scene.decisions();
                let found = (decisions[0].outcome, decisions[0].reason);
                assert_eq!(found, expected, "{of_mirror:?} {of_namespace:?} {of_pod:?}");
                assert_eq!(decisions[0].mode, weakest);
            }
        }
    }
}

#[test]
fn a_pods_label_never_strengthens_and_means_off_if_nobody_knows_it() {
    for (label, expected) in [
        (
            "enforce",
            "WouldRewrite Mirrored a → a.example.com/docker.io/library/nginx:1",
        ),
        ("off", "Kept ModeOff"),
        ("Enforce", "Kept ModeOff"),
        ("", "Kept ModeOff"),
        ("disabled", "Kept ModeOff"),
    ] {
        let scene = known().edit(|scene| {
            scene.request.mode = Mode::Warn;
            scene.request.pod.mode_label = Some(label.into());
        });
        check(&scene, expected);
    }
}

#[test]
fn a_mirror_serves_only_its_namespaces() {
    let selecting = || Mirror {
        namespaces: only("blue"),
        ..mirror("a", &["docker.io"])
    };
    let labelled = |label: &str| {
        let labels = Labels::from([(label.to_owned(), String::new())]);
        known_on(selecting())
            .edit(|scene| scene.snapshot.namespaces = Arc::new([("team".to_owned(), labels)].into()))
    };
    check(
        &labelled("blue"),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    check_kept(&labelled("red"), Reason::NamespaceNotServed);
    check_kept(&known_on(selecting()), Reason::NamespaceNotServed);
    let inside = Mirror {
        runs_in: vec!["team".to_owned()],
        ..mirror("a", &["docker.io"])
    };
    check_kept(&known_on(inside), Reason::NamespaceNotServed);
}

#[test]
fn owners_that_fight_back_are_left_alone() {
    let owned = |mirror: Mirror, api_version: &'static str, kind: &'static str| {
        known_on(mirror).edit(|scene| {
            let (api_version, kind, uid) = (api_version.into(), kind.into(), "u-1".into());
            scene.request.pod.owners = vec![
                Owner {
                    uid: "u-0".into(),
                    ..Owner::default()
                },
                Owner {
                    api_version,
                    kind,
                    uid,
                },
            ];
        })
    };
    let rewritten = "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1";
    let hub = || mirror("a", &["docker.io"]);
    check(&owned(hub(), "apps/v1", "ReplicaSet"), rewritten);
    check_kept(
        &owned(hub(), "postgresql.cnpg.io/v1", "Cluster"),
        Reason::OwnerExcluded,
    );
    check_kept(
        &owned(hub(), "operators.coreos.com/v1alpha1", "CatalogSource"),
        Reason::OwnerExcluded,
    );
    check(
        &owned(hub(), "operators.coreos.com/v1alpha1", "Subscription"),
        rewritten,
    );
    let pattern = OwnerPattern {
        group: String::new(),
        kind: "ReplicationController".to_owned(),
    };
    let own_list = || Mirror {
        exclude_owners: vec![pattern.clone()],
        ..hub()
    };
    check_kept(
        &owned(own_list(), "v1", "ReplicationController"),
        Reason::OwnerExcluded,
    );
    check(&owned(own_list(), "postgresql.cnpg.io/v1", "Cluster"), rewritten);
}

/// The Pod's own owner says it, or the resource that owns the controller which made the Pod.
#[test]
fn owners_that_fight_are_known_through_their_controllers_too() {
    let owned = |uid: &'static str, notes: LeftAlone| {
        known().edit(|scene| {
            scene.request.pod.owners = vec![Owner {
                api_version: "apps/v1".into(),
                kind: "StatefulSet".into(),
                uid: uid.into(),
            }];
            scene.snapshot.owners = Arc::new(notes);
        })
    };
    let rewritten = "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1";
    let (now, later) = (NOW.as_millis(), NOW.as_millis() + 1);
    let web = |uid| [uid, "example.com/v1", "Web"];
    check_kept(&owned("w-1", noted("w-1", later, web("w-2"))), Reason::OwnerLoop);
    check_kept(&owned("c-1", noted("w-1", later, web("w-1"))), Reason::OwnerLoop);
    check(&owned("c-1", noted("w-1", later, web("w-2"))), rewritten);
    check(&owned("c-2", noted("w-1", later, web("w-1"))), rewritten);
    check(&owned("c-1", noted("w-1", now, web("w-1"))), rewritten);
    // A UID says nothing in another namespace.
    for uid in ["w-1", "c-1"] {
        let other =
            owned(uid, noted("w-1", later, web("w-1"))).edit(|scene| scene.request.namespace = "other");
        check(&other, rewritten);
    }
    let listed = ["w-2", "asdb.aerospike.com/v1", "AerospikeCluster"];
    check_kept(&owned("c-1", noted("w-1", later, listed)), Reason::OwnerExcluded);
    let own_list = owned("c-1", noted("w-1", later, listed)).edit(|scene| {
        let mut mirror = mirror("a", &["docker.io"]);
        mirror.exclude_owners.clear();
        scene.snapshot.routing = Arc::new(Routing::compile(vec![mirror]));
    });
    check(&own_list, rewritten);
}

#[test]
fn the_mirrors_health_decides_before_the_image() {
    check_kept(&known().health(0, State::Unhealthy), Reason::MirrorUnhealthy);
    check_kept(&known().health(0, State::Unknown), Reason::MirrorUnknown);
    check_kept(&unknown().health(0, State::Unhealthy), Reason::MirrorUnhealthy);
    check_kept(
        &known().edit(|scene| scene.snapshot.health.clear()),
        Reason::MirrorUnknown,
    );
    let stale = |scene: Scene<'static>| {
        scene.edit(|scene| {
            scene.snapshot.stale = scene.snapshot.routing.mirrors().map(|(id, _)| id).collect();
        })
    };
    check_kept(&stale(known().health(0, State::Unknown)), Reason::StateStale);
    check_kept(
        &stale(known().health(0, State::Unhealthy)),
        Reason::MirrorUnhealthy,
    );
    check(
        &stale(known()),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    let pull_through = Mirror {
        kind: Kind::PullThrough,
        ..mirror("a", &["docker.io"])
    };
    check_kept(&stale(known_on(pull_through)), Reason::StateStale);
    let suspected = |scene: Scene<'static>| {
        scene.edit(|scene| {
            scene.snapshot.suspected = scene.snapshot.routing.mirrors().map(|(id, _)| id).collect();
        })
    };
    // Nobody asks a mirror for images of which it is not known whether it answers at all.
    check_kept(&suspected(known()), Reason::MirrorSuspected);
    check_kept(&suspected(unknown()), Reason::MirrorSuspected);
    check_kept(
        &suspected(known().health(0, State::Unhealthy)),
        Reason::MirrorUnhealthy,
    );
}

#[test]
fn proof_older_than_the_last_outage_asks_again() {
    let health = Health {
        proven_since: NOW.after(Duration::from_millis(1)),
        ..snapshot(vec![mirror("a", &[])]).health[0].clone()
    };
    let scene = known().edit(|scene| scene.snapshot.health[0] = health.clone());
    check(&scene, "Kept BudgetExhausted a");
    assert_eq!(scene.plan().probes.len(), 1);
    assert_eq!(
        scene.plan().unknown,
        [],
        "the state has an entry, so nobody need be told"
    );
}

#[test]
fn an_absence_is_believed_and_not_asked_again() {
    check_kept(
        &unknown().with("a", NGINX, Presence::Missing),
        Reason::ImageMissing,
    );
}

#[test]
fn an_unknown_image_waits_for_a_probe_of_the_hosted_mirror() {
    let scene = unknown();
    let probe = Probe {
        mirror: scene.snapshot.routing.by_name()["a"],
        key: key(NGINX).into(),
        repository: "docker.io/library/nginx".to_owned(),
        reference: "1".to_owned(),
    };
    assert_eq!(scene.plan().probes, std::slice::from_ref(&probe));
    assert_eq!(scene.plan().unknown, [probe]);
}

#[test]
fn what_a_probe_brought_settles_the_image() {
    let of_type = |media_type| Manifest {
        media_type,
        children: vec![Child {
            digest: digest('c'),
            takers: platform("amd64"),
            is_whole: true,
        }],
        ..manifest('a')
    };
    let rewritten = "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1";
    let single = Answer::Exists(of_type(MediaType::OciManifest));
    let index = Answer::Exists(of_type(MediaType::OciIndex));
    for (answer, children, expected) in [
        (single, Platforms::ASSUMED, rewritten),
        (index.clone(), platform("amd64"), rewritten),
        (index, Platforms::NONE, "Kept PlatformMissing a"),
        (Answer::Missing, Platforms::NONE, "Kept ImageMissing a"),
        (Answer::Unauthorized, Platforms::NONE, "Kept Unauthorized a"),
        (
            Answer::RateLimited {
                of: Limit::Repository,
                retry_after: None,
            },
            Platforms::NONE,
            "Kept RateLimited a",
        ),
        (
            Answer::ServerError(503, Particulars::default()),
            Platforms::NONE,
            "Kept RegistryError a",
        ),
        (
            Answer::Ambiguous(Ambiguity::Html(Particulars::default())),
            Platforms::NONE,
            "Kept RegistryError a",
        ),
        (
            Answer::Ambiguous(Ambiguity::DigestMismatch),
            Platforms::NONE,
            "Kept DigestMismatch a",
        ),
        (
            Answer::Unreachable(Unreachable::Refused, Particulars::default()),
            Platforms::NONE,
            "Kept MirrorUnhealthy a",
        ),
    ] {
        check(&unknown().found(Finding::of(&answer, children)), expected);
    }
    let words = Finding::of(
        &Answer::Ambiguous(Ambiguity::Status(
            403,
            Particulars {
                party: Some(Party::Redirect("storage.example.com".into())),
                content_type: Some("application/xml".into()),
                ..Particulars::default()
            },
        )),
        Platforms::NONE,
    );
    let told = "unexpected status 403 from storage.example.com, where the registry redirects to, of type application/xml";
    assert_eq!(words, Finding::Failed(Reason::RegistryError, told.into()));
    let scene = unknown().found(words);
    assert_eq!(scene.decisions()[0].cause.as_deref(), Some(told));
    check(
        &unknown().found(Finding::Not(Reason::Internal)),
        "Kept Internal a",
    );
    check(
        &unknown().edit(|scene| scene.findings = vec![None]),
        "Kept BudgetExhausted a",
    );
    check(&unknown(), "Kept BudgetExhausted a");
    let pinned = format!("nginx@{}", digest('b'));
    check(
        &unknown().image(&pinned).found(Finding::Present(proof('a'))),
        "Kept DigestMismatch a",
    );
}

#[test]
fn equal_images_share_one_probe_and_are_told_once() {
    let mut scene = unknown();
    scene.request.pod.places = vec![
        place(PlaceKind::InitContainer, 0, "init", "nginx:1"),
        place(PlaceKind::Container, 0, "app", "docker.io/library/nginx:1"),
        place(PlaceKind::Container, 1, "other", "index.docker.io/nginx:1"),
        place(PlaceKind::Container, 2, "redis", "redis"),
    ];
    let keys = |probes: &[Probe]| {
        probes
            .iter()
            .map(|probe| probe.key.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        keys(&scene.plan().probes),
        [NGINX, "docker.io/library/redis:latest"]
    );
    assert_eq!(
        keys(&scene.plan().unknown),
        [NGINX, "docker.io/library/redis:latest"]
    );
    scene.findings = vec![Some(Finding::Present(proof('a'))), None];
    let reasons: Vec<_> = scene.decisions().iter().map(|decision| decision.reason).collect();
    assert_eq!(
        reasons,
        [
            Reason::Mirrored,
            Reason::Mirrored,
            Reason::Mirrored,
            Reason::BudgetExhausted
        ]
    );
}

#[test]
fn a_pull_through_mirror_is_never_probed_for_a_pod() {
    let pull_through = || Mirror {
        kind: Kind::PullThrough,
        ..mirror("a", &["docker.io"])
    };
    let mut scene = scene(vec![pull_through()]);
    check_kept(&scene, Reason::ImageUnknown);
    assert_eq!(scene.plan().unknown.len(), 1);
    scene
        .request
        .pod
        .places
        .push(place(PlaceKind::Container, 1, "same", "nginx:1"));
    assert_eq!(scene.plan().unknown.len(), 1, "told once");
    for reason in [Reason::Unauthorized, Reason::RateLimited, Reason::RegistryError] {
        check_kept(
            &known_on(pull_through()).with("a", NGINX, Presence::Unknown(Some(reason))),
            reason,
        );
    }
    check_kept(
        &known_on(pull_through()).with("a", NGINX, Presence::Missing),
        Reason::ImageMissing,
    );
    check(
        &known_on(pull_through()),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    // A person who asks about this very image may cause the download.
    scene.probing = Probing::All;
    assert_eq!(scene.plan().probes.len(), 1);
}

#[test]
fn what_upstream_does_not_give_to_everybody_stays_private() {
    let with = |access, with_credentials| {
        let source = Source {
            access,
            with_credentials,
            ..source("docker.io", &[])
        };
        Mirror {
            sources: vec![source],
            ..mirror("a", &[])
        }
    };
    let rewritten = "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1";
    let public = |public| Presence::Present(Proof { public, ..proof('a') });
    let half_public = || with(Access::Public, true);
    check_kept(&known_on(half_public()), Reason::Private);
    check_kept(
        &known_on(half_public()).with("a", NGINX, public(Some(false))),
        Reason::Private,
    );
    check(
        &known_on(half_public()).with("a", NGINX, public(Some(true))),
        rewritten,
    );
    check(&known_on(with(Access::Public, false)), rewritten);
    check(&known_on(with(Access::Private, true)), rewritten);
    // Only the companion can tell, so no probe of the mirror is made for it.
    let nothing_known = scene(vec![half_public()]);
    check_kept(&nothing_known, Reason::Private);
    assert_eq!(nothing_known.plan().unknown.len(), 1);
}

#[test]
fn the_digest_asked_for_must_be_the_one_proven() {
    let (same, other) = (
        format!("nginx:1@{}", digest('a')),
        format!("nginx:1@{}", digest('b')),
    );
    let key = |digest| format!("docker.io/library/nginx@{digest}");
    let present = || Presence::Present(proof('a'));
    let digest_known = |image| {
        unknown()
            .image(image)
            .with("a", &key(digest('a')), present())
            .with("a", &key(digest('b')), present())
    };
    check(
        &digest_known(&same),
        &format!(
            "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1@{}",
            digest('a')
        ),
    );
    check_kept(&digest_known(&other), Reason::DigestMismatch);
}

#[test]
fn an_image_counts_only_for_the_platforms_the_pod_may_land_on() {
    let rewritten = "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1";
    let missing = "Kept PlatformMissing a";
    let set = |names: &[&str]| {
        let platforms = names.iter().filter_map(|name| Platforms::parse(name));
        platforms.fold(Platforms::NONE, Platforms::or)
    };
    let amd = set(&["linux/amd64"]);
    let both = set(&["linux/amd64", "linux/arm64"]);
    let windows = set(&["windows/amd64"]);
    let anywhere = Landing::ANYWHERE;
    let on = |values: &[&'static str]| Landing::of(Label::Architecture, values.iter().copied());
    let os = |value| Landing::of(Label::Os, [value]);
    let single = Platforms::ASSUMED;
    for (there, of_pod, of_cluster, expected) in [
        (amd, anywhere, Platforms::NONE, rewritten),
        (amd, anywhere, amd, rewritten),
        (amd, anywhere, both, missing),
        (both, anywhere, both, rewritten),
        (amd, on(&["amd64"]), both, rewritten),
        (amd, on(&["amd64", "arm64"]), amd, missing),
        (amd, on(&["z80"]), Platforms::NONE, missing),
        (single, on(&["z80"]), set(&["linux/arm64"]), rewritten),
        (Platforms::NONE, anywhere, Platforms::NONE, missing),
        // One operating system never stands for the other.
        (amd, os("windows"), Platforms::NONE, missing),
        (windows, os("windows"), Platforms::NONE, rewritten),
        (windows, anywhere, Platforms::NONE, missing),
        (windows, on(&["amd64"]), Platforms::NONE, missing),
        (windows, anywhere, amd, missing),
        (amd, anywhere, amd.or(windows), missing),
        (amd, os("linux"), amd.or(windows), rewritten),
        (single, os("windows"), Platforms::NONE, missing),
        (Platforms::WINDOWS, os("windows"), windows, rewritten),
        (Platforms::WINDOWS, anywhere, Platforms::NONE, missing),
        (set(&["linux/arm/v5"]), on(&["arm"]), Platforms::NONE, missing),
    ] {
        let standing = Standing {
            platforms: of_cluster,
            ..Standing::NONE
        };
        let mut scene = known().standing("a", standing).with("a", NGINX, index_of(there));
        scene.request.pod.landing = of_pod;
        assert_eq!(scene.told(), expected, "{there:?} {of_pod:?} {of_cluster:?}");
    }
}

#[test]
fn upstream_is_preferred_while_it_works() {
    let preferring = || {
        known_on(Mirror {
            prefer: Prefer::Upstream,
            ..mirror("a", &["docker.io"])
        })
    };
    let failing = |host: &str| {
        let hosts = BTreeSet::from([host.to_owned()]);
        preferring().edit(|scene| scene.snapshot.failing_upstreams = Arc::new(hosts))
    };
    check_kept(&preferring(), Reason::UpstreamPreferred);
    check_kept(&failing("quay.io"), Reason::UpstreamPreferred);
    check(
        &failing("docker.io"),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    check_kept(
        &failing("docker.io").health(0, State::Unhealthy),
        Reason::MirrorUnhealthy,
    );
}

#[test]
fn pinning_adds_the_digest_that_was_proven() {
    let pinning = || {
        let tags = Tags {
            pin: Pin::Digest,
            ..Tags::default()
        };
        Mirror {
            tags,
            ..mirror("a", &["docker.io"])
        }
    };
    let a = digest('a');
    let expected = format!("Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1@{a}");
    check(&known_on(pinning()), &expected);
    let image = format!("nginx@{a}");
    let own = scene(vec![pinning()])
        .image(&image)
        .found(Finding::Present(proof('a')));
    check(
        &own,
        &format!("Rewritten Mirrored a → a.example.com/docker.io/library/nginx@{a}"),
    );
    let latest = scene(vec![pinning()])
        .image("nginx")
        .found(Finding::Present(proof('a')));
    check(
        &latest,
        &format!("Rewritten Mirrored a → a.example.com/docker.io/library/nginx:latest@{a}"),
    );
}

#[test]
fn a_pinned_digest_takes_the_place_of_the_tag_where_runtimes_refuse_both() {
    let pinning = || Mirror {
        tags: Tags {
            pin: Pin::DigestOnly,
            ..Tags::default()
        },
        ..mirror("a", &["docker.io"])
    };
    let a = digest('a');
    let expected = format!("Rewritten Mirrored a → a.example.com/docker.io/library/nginx@{a}");
    check(&known_on(pinning()), &expected);
    for image in ["nginx".to_owned(), format!("nginx@{a}"), format!("nginx:1@{a}")] {
        let found = scene(vec![pinning()])
            .image(&image)
            .found(Finding::Present(proof('a')));
        check(&found, &expected);
    }
}

#[test]
fn a_name_that_would_be_too_long_stays_upstream() {
    let path = "x".repeat(245);
    let image = format!("docker.io/a/{path}");
    let key = format!("{image}:latest");
    let nothing_known = unknown().image(&image);
    check(&nothing_known, "Kept NameTooLong a");
    assert_eq!(nothing_known.plan().probes, []);
    check(
        &unknown()
            .image(&image)
            .with("a", &key, Presence::Present(proof('a'))),
        "Kept NameTooLong a",
    );
}

#[test]
fn a_mirror_that_needs_a_pull_secret_waits_for_it() {
    let needing = || Mirror {
        pull_secret: true,
        ..mirror("a", &["docker.io"])
    };
    let known_in = |namespaces: &[&str]| known_on(needing()).standing("a", placed_in(namespaces));
    let wants = |scene: &Scene<'_>| scene.decisions()[0].wants_pull_secret;
    let rewritten = "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1";
    check_kept(&known_on(needing()), Reason::PullSecretNotReady);
    check_kept(&known_in(&["other"]), Reason::PullSecretNotReady);
    let in_place = known_in(&["other", "team"]);
    check(&in_place, rewritten);
    assert!(wants(&in_place));
    assert!(!wants(&known_in(&["other"])));
    // Rescue may need it later, whatever the mirror's state is now.
    assert!(wants(&in_place.health(0, State::Unhealthy)));
    assert!(wants(&unknown_on(needing()).standing("a", placed_in(&["team"]))));
    let weaker = known_on(Mirror {
        mode: Mode::Warn,
        ..needing()
    })
    .standing("a", placed_in(&["team"]));
    assert!(!wants(&weaker));
    assert!(!wants(&known()));
    // Rescue goes to the mirrors after the one that won, too.
    let two = scene(vec![
        Mirror {
            priority: 200,
            ..mirror("b", &["docker.io"])
        },
        needing(),
    ])
    .standing("a", placed_in(&["team"]))
    .with("b", NGINX, Presence::Present(proof('a')));
    check(
        &two,
        "Rewritten Mirrored b → b.example.com/docker.io/library/nginx:1",
    );
    assert_eq!(two.details(), ["b Rewritten Mirrored"]);
    assert!(wants(&two));
}

fn unknown_on<'a>(mirror: Mirror) -> Scene<'a> {
    scene(vec![mirror])
}

#[test]
fn an_ephemeral_container_needs_the_pull_secret_on_the_pod_already() {
    let mirror = Mirror {
        pull_secret: true,
        ..mirror("a", &["docker.io"])
    };
    let debug = |secrets: Option<&[&'static str]>| {
        known_on(mirror.clone())
            .standing("a", placed_in(&["team"]))
            .edit(|scene| {
                scene.request.operation = Operation::AddEphemeralContainers;
                scene.request.pod.places = vec![place(PlaceKind::EphemeralContainer, 0, "debug", "nginx:1")];
                scene.request.pod.pull_secrets =
                    secrets.map(|names| names.iter().map(|name| (*name).into()).collect());
            })
    };
    check_kept(&debug(None), Reason::PullSecretNotReady);
    check_kept(&debug(Some(&["mine"])), Reason::PullSecretNotReady);
    check(
        &debug(Some(&["mine", PULL_SECRET])),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
}

#[test]
fn the_reason_is_the_first_candidates_and_the_details_are_everybodys() {
    let mirrors = || {
        vec![
            mirror("a", &["docker.io"]),
            mirror("b", &["docker.io"]),
            mirror("c", &["docker.io"]),
        ]
    };
    let scene = || scene(mirrors()).with("a", NGINX, Presence::Missing);
    let all_kept = scene()
        .health(1, State::Unhealthy)
        .with("c", NGINX, Presence::Missing);
    check(&all_kept, "Kept ImageMissing a");
    assert_eq!(
        all_kept.details(),
        [
            "a Kept ImageMissing",
            "b Kept MirrorUnhealthy",
            "c Kept ImageMissing"
        ]
    );
    let second_has_it = scene().with("b", NGINX, Presence::Present(proof('a')));
    check(
        &second_has_it,
        "Rewritten Mirrored b → b.example.com/docker.io/library/nginx:1",
    );
    assert_eq!(
        second_has_it.details(),
        ["a Kept ImageMissing", "b Rewritten Mirrored"]
    );
    assert_eq!(second_has_it.plan().probes, [], "c need not be asked");
}

#[test]
fn a_probe_of_the_first_mirror_is_waited_for_before_the_second_is_taken() {
    let both = || {
        scene(vec![mirror("a", &["docker.io"]), mirror("b", &["docker.io"])]).with(
            "b",
            NGINX,
            Presence::Present(proof('a')),
        )
    };
    assert_eq!(both().plan().probes.len(), 1);
    check(
        &both().found(Finding::Present(proof('a'))),
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    let late = both();
    check(
        &late,
        "Rewritten Mirrored b → b.example.com/docker.io/library/nginx:1",
    );
    assert_eq!(late.details(), ["a Kept BudgetExhausted", "b Rewritten Mirrored"]);
}

#[test]
fn a_weaker_mirror_is_decided_apart_and_blocks_nobody() {
    let weak = |mode| Mirror {
        mode,
        priority: 200,
        ..mirror("w", &["docker.io"])
    };
    let scene = |mode| {
        scene(vec![mirror("a", &["docker.io"]), weak(mode)]).with("w", NGINX, Presence::Present(proof('a')))
    };
    let present = || Presence::Present(proof('a'));
    for mode in [Mode::Audit, Mode::Warn] {
        let both = scene(mode).with("a", NGINX, present());
        check(
            &both,
            "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
        );
        assert_eq!(
            both.details(),
            ["w WouldRewrite Mirrored", "a Rewritten Mirrored"]
        );
        let weak_alone = scene(mode).with("a", NGINX, Presence::Missing);
        check(
            &weak_alone,
            "WouldRewrite Mirrored w → w.example.com/docker.io/library/nginx:1",
        );
        assert_eq!(
            weak_alone.details(),
            ["w WouldRewrite Mirrored", "a Kept ImageMissing"]
        );
    }
    let off = scene(Mode::Off).with("a", NGINX, present());
    check(
        &off,
        "Rewritten Mirrored a → a.example.com/docker.io/library/nginx:1",
    );
    assert_eq!(off.details(), ["w Kept ModeOff", "a Rewritten Mirrored"]);
    check(
        &scene(Mode::Off).with("a", NGINX, Presence::Missing),
        "Kept ModeOff w",
    );
    // In a namespace that only wants warnings, neither is weaker.
    let warned = scene(Mode::Warn)
        .with("a", NGINX, present())
        .edit(|scene| scene.request.mode = Mode::Warn);
    check(
        &warned,
        "WouldRewrite Mirrored w → w.example.com/docker.io/library/nginx:1",
    );
    assert_eq!(warned.details(), ["w WouldRewrite Mirrored"]);
}

/// A Pod that an earlier round of admission rewrote: the present image and the recorded original.
fn rewritten<'a>(image: &'a str, original: &'a str) -> Scene<'a> {
    known().image(image).edit(|scene| {
        let ours = vec![("original-image.kagami.dev/app".into(), original.into())];
        scene.request.pod.annotations = Annotations::new(0, ours);
    })
}

const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

/// Checks what becomes of an earlier rewrite: the decision, and what is written in its place.
#[track_caller]
fn check_carried(scene: &Scene<'_>, expected: &str, replaced_by: Option<&str>) {
    let decisions = scene.decisions();
    let decision = &decisions[0];
    assert!(decision.carried);
    let reason = format!("{} {}", decision.outcome, decision.reason);
    assert_eq!((reason.as_str(), decision.replacement()), (expected, replaced_by));
    if decision.reason == Reason::AlreadyMirrored {
        assert_eq!(decision.image, decision.present);
        assert!(decision.candidates.is_empty() && decision.mirror.is_none());
    } else {
        assert_eq!(decision.image, "nginx:1");
    }
}

/// The Pod that mirror `a` rewrote `nginx:1` for, in front of these mirrors.
fn carried_by<'a>(mirrors: Vec<Mirror>) -> Scene<'a> {
    scene(mirrors)
        .with("a", NGINX, Presence::Present(proof('a')))
        .edit(|scene| scene.request.pod = rewritten(MIRRORED, "nginx:1").request.pod)
}

const STAYS: &str = "Kept AlreadyMirrored";

#[test]
fn an_earlier_rewrite_is_known_by_its_mapping_alone() {
    check_carried(&rewritten(MIRRORED, "nginx:1"), "Rewritten Mirrored", None);
    for other in ["nginx:2", "no such:image", "", MIRRORED] {
        check_standing(&rewritten(MIRRORED, other), Reason::AlreadyMirrored);
        assert!(!rewritten(MIRRORED, other).decisions()[0].carried, "{other}");
    }
    let not_rewritten = rewritten("nginx:1", "nginx:1");
    check(&not_rewritten, &format!("Rewritten Mirrored a → {MIRRORED}"));
    assert_eq!(not_rewritten.decisions()[0].replacement(), Some(MIRRORED));
}

/// What another Pod records counts as long as somebody notes whether it does still.
#[test]
fn what_is_lent_is_not_believed_of_a_state_that_is_too_old() {
    let copy = carried_by(vec![mirror("a", &["docker.io"])]).edit(|scene| {
        let pod = &mut scene.request.pod;
        *pod = Pod {
            places: std::mem::take(&mut pod.places),
            lent: [Some("nginx:1".into())].into(),
            ..Pod::default()
        };
    });
    assert!(copy.decisions()[0].is_lent);
    let stale = copy.edit(|scene| {
        scene.snapshot.stale = scene.snapshot.routing.mirrors().map(|(id, _)| id).collect();
    });
    check_standing(&stale, Reason::AlreadyMirrored);
}

#[test]
fn an_earlier_rewrite_is_decided_about_as_its_original() {
    let hub = || mirror("a", &["docker.io"]);
    let of = |mirror: Mirror| carried_by(vec![mirror]);
    let present = || of(hub());
    let missing = |presence| present().with("a", NGINX, presence);
    let found = |finding| {
        scene(vec![hub()])
            .edit(|scene| scene.request.pod = rewritten(MIRRORED, "nginx:1").request.pod)
            .found(finding)
    };
    let stale = present().health(0, State::Unknown).edit(|scene| {
        scene.snapshot.stale = scene.snapshot.routing.mirrors().map(|(id, _)| id).collect();
    });
    let private = Source {
        with_credentials: true,
        ..source("docker.io", &[])
    };
    let back = [
        (present().health(0, State::Unhealthy), Reason::MirrorUnhealthy),
        (present().health(0, State::Unknown), Reason::MirrorUnknown),
        (stale, Reason::StateStale),
        (missing(Presence::Missing), Reason::ImageMissing),
        (missing(index_of(Platforms::NONE)), Reason::PlatformMissing),
        (
            of(Mirror {
                sources: vec![private],
                ..hub()
            }),
            Reason::Private,
        ),
        (found(Finding::Not(Reason::Unauthorized)), Reason::Unauthorized),
        (found(Finding::Not(Reason::RateLimited)), Reason::RateLimited),
        (found(Finding::Not(Reason::RegistryError)), Reason::RegistryError),
        (
            scene(vec![hub()]).edit(|scene| scene.request.pod = rewritten(MIRRORED, "nginx:1").request.pod),
            Reason::BudgetExhausted,
        ),
        (
            of(Mirror {
                pull_secret: true,
                ..hub()
            }),
            Reason::PullSecretNotReady,
        ),
        (
            of(Mirror {
                namespaces: only("blue"),
                ..hub()
            }),
            Reason::NamespaceNotServed,
        ),
        (
            of(Mirror {
                prefer: Prefer::Upstream,
                ..hub()
            }),
            Reason::UpstreamPreferred,
        ),
        (
            of(Mirror {
                mode: Mode::Off,
                ..hub()
            }),
            Reason::ModeOff,
        ),
        // The mirror is there, and not for this image any more.
        (of(mirror("a", &["quay.io"])), Reason::NoMirror),
        (
            of(Mirror {
                sources: vec![source("docker.io", &["**"])],
                ..hub()
            }),
            Reason::Excluded,
        ),
    ];
    for (scene, reason) in back {
        check_carried(&scene, &format!("Kept {reason}"), Some("nginx:1"));
        let unhealed = scene.edit(|scene| scene.request.heal = false);
        check_carried(&unhealed, STAYS, None);
    }
    // What is known of it, or brought by a probe as for any other image, keeps it where it is.
    for scene in [present(), found(Finding::Present(proof('b')))] {
        check_carried(&scene, "Rewritten Mirrored", None);
        check_carried(
            &scene.edit(|scene| scene.request.heal = false),
            "Rewritten Mirrored",
            None,
        );
    }
}

#[test]
fn an_earlier_rewrite_stays_where_nothing_may_change() {
    let dead = || carried_by(vec![mirror("a", &["docker.io"])]).health(0, State::Unhealthy);
    let never = |scene: &mut Scene<'_>| scene.request.pod.places[0].never = true;
    let owner = |kind: &'static str| Owner {
        api_version: "operators.coreos.com/v1alpha1".into(),
        kind: kind.into(),
        uid: "u-1".into(),
    };
    let looping = |scene: &mut Scene<'_>| {
        let later = NOW.as_millis() + 1;
        scene.snapshot.owners = Arc::new(noted("u-1", later, ["w-1", "example.com/v1", "Web"]));
        scene.request.pod.owners = vec![owner("Other")];
    };
    let scenes = [
        dead().edit(|scene| scene.request.pod.mode_label = Some("off".into())),
        dead().edit(|scene| scene.request.mode = Mode::Off),
        dead().edit(|scene| scene.request.mode = Mode::Warn),
        dead().edit(|scene| scene.request.pod.mode_label = Some("audit".into())),
        dead().edit(|scene| scene.snapshot.left_alone = Arc::new(BTreeSet::from(["team".to_owned()]))),
        dead().edit(never),
        dead().edit(|scene| scene.request.pod.owners = vec![owner("CatalogSource")]),
        carried_by(vec![mirror("a", &["docker.io"])]).edit(looping),
        // One that may only warn changes nothing either.
        carried_by(vec![Mirror {
            mode: Mode::Warn,
            ..mirror("a", &["docker.io"])
        }]),
        // The first mirror is merely dead, but the owner is known to fight.
        carried_by(vec![mirror("0", &["docker.io"]), mirror("a", &["docker.io"])])
            .health(0, State::Unhealthy)
            .edit(looping),
    ];
    for (number, scene) in scenes.iter().enumerate() {
        check_carried(scene, STAYS, None);
        assert_eq!(scene.plan().probes, [], "{number}");
    }
    let scene = dead();
    let mut decisions = scene.decisions();
    keep_all(&mut decisions, Reason::PodTooLarge);
    let kept = (decisions[0].reason, decisions[0].replacement());
    assert_eq!(kept, (Reason::AlreadyMirrored, None));
}

#[test]
fn an_earlier_rewrite_moves_to_the_mirror_that_has_it() {
    let both = || {
        carried_by(vec![mirror("a", &["docker.io"]), mirror("b", &["docker.io"])]).with(
            "b",
            NGINX,
            Presence::Present(proof('a')),
        )
    };
    check_carried(&both(), "Rewritten Mirrored", None);
    let moved = both().health(0, State::Unhealthy);
    let on_b = "b.example.com/docker.io/library/nginx:1";
    check_carried(&moved, "Rewritten Mirrored", Some(on_b));
    assert_eq!(
        moved.details(),
        ["a Kept MirrorUnhealthy", "b Rewritten Mirrored"]
    );
    check_carried(
        &moved.health(1, State::Unknown),
        "Kept MirrorUnhealthy",
        Some("nginx:1"),
    );
}

/// Who tries out the next mirror in audit mode still wants the Pods of the dead one to go back.
#[test]
fn a_weaker_mirror_says_nothing_of_an_earlier_rewrite_for_another() {
    let trial = Mirror {
        mode: Mode::Audit,
        priority: 200,
        ..mirror("w", &["docker.io"])
    };
    let with = |a: Mirror| carried_by(vec![a, trial.clone()]).with("w", NGINX, Presence::Present(proof('a')));
    let hub = || mirror("a", &["docker.io"]);
    check_carried(&with(hub()), "Rewritten Mirrored", None);
    let dead = with(hub()).edit(|scene| {
        let a = scene.snapshot.routing.find("a").unwrap();
        scene.snapshot.health[a.index()].state = State::Unhealthy;
    });
    let would = "WouldRewrite Mirrored";
    check_carried(&dead, would, Some("nginx:1"));
    assert_eq!(
        dead.details(),
        ["w WouldRewrite Mirrored", "a Kept MirrorUnhealthy"]
    );
    let mode = |mode| with(Mirror { mode, ..hub() });
    check_carried(&mode(Mode::Off), would, Some("nginx:1"));
    // Its own weaker mode is no doubt about what it holds.
    check_carried(&mode(Mode::Audit), STAYS, None);
    let elsewhere = with(mirror("a", &["ghcr.io"]));
    check_carried(&elsewhere, would, Some("nginx:1"));
}

#[test]
fn only_the_digest_that_is_proven_may_stand_beside_the_tag() {
    let (a, b) = (
        format!("{MIRRORED}@{}", digest('a')),
        format!("{MIRRORED}@{}", digest('b')),
    );
    let scene = |image: &'static str, pin| {
        let mut scene = carried_by(vec![Mirror {
            tags: Tags {
                pin,
                ..Tags::default()
            },
            ..mirror("a", &["docker.io"])
        }]);
        scene.request.pod.places[0].image = image.into();
        scene
    };
    let rewritten = "Rewritten Mirrored";
    let (a, b): (&'static str, &'static str) = (a.leak(), b.leak());
    check_carried(&scene(a, Pin::Digest), rewritten, None);
    check_carried(&scene(a, Pin::None), rewritten, None);
    check_carried(&scene(b, Pin::Digest), rewritten, Some(a));
    check_carried(&scene(b, Pin::None), rewritten, Some(MIRRORED));
    check_carried(&scene(MIRRORED, Pin::Digest), rewritten, Some(a));
    // The same without the tag, which was given up for runtimes that refuse both.
    let only = |digest: char| -> &'static str {
        let name = MIRRORED.rsplit_once(':').unwrap().0;
        format!("{name}@{}", self::digest(digest)).leak()
    };
    for pin in [Pin::None, Pin::Digest, Pin::DigestOnly] {
        check_carried(&scene(only('a'), pin), rewritten, None);
    }
    check_carried(&scene(only('b'), Pin::None), rewritten, Some(MIRRORED));
    check_carried(&scene(only('b'), Pin::DigestOnly), rewritten, Some(only('a')));
    check_carried(&scene(a, Pin::DigestOnly), rewritten, Some(only('a')));
    check_carried(
        &scene(b, Pin::Digest).health(0, State::Unhealthy),
        "Kept MirrorUnhealthy",
        Some("nginx:1"),
    );
}

#[test]
fn a_mirrors_image_of_a_mirrors_image_stays() {
    // `b` mirrors `a`, which is for people to undo.
    let image = "b.example.com/a.example.com/docker.io/library/nginx:1";
    let both = scene(vec![mirror("a", &["docker.io"]), mirror("b", &["a.example.com"])]);
    let pod = rewritten(image, MIRRORED).request.pod;
    check_carried(&both.edit(|scene| scene.request.pod = pod), STAYS, None);
}

#[test]
fn keeping_all_takes_back_every_rewrite() {
    let scene = known();
    let mut decisions = scene.decisions();
    keep_all(&mut decisions, Reason::PodTooLarge);
    assert_eq!(
        (decisions[0].outcome, decisions[0].reason),
        (Outcome::Kept, Reason::PodTooLarge)
    );
    assert_eq!((&decisions[0].rewritten, &decisions[0].digest), (&None, &None));
}

#[test]
fn what_one_mirror_copies_for_some_no_other_mirror_of_its_registry_gives_to_others() {
    let registry: MirrorRegistry = "m.io".parse().unwrap();
    let at_one_place = |mut mirror: Mirror| {
        mirror.mapping.registry = registry.clone();
        mirror
    };
    let acme = |access, with_credentials, selector: bool| {
        let team = Requirement {
            key: "team".to_owned(),
            operator: Operator::In(vec!["blue".to_owned()]),
        };
        at_one_place(Mirror {
            sources: vec![Source {
                access,
                with_credentials,
                ..source("ghcr.io/acme", &[])
            }],
            namespaces: Selector {
                requirements: selector.then_some(team).into_iter().collect(),
            },
            // Asked last.
            priority: 1,
            ..mirror("acme", &[])
        })
    };
    let secret = "ghcr.io/acme/secret:1";
    let before = |acme: Mirror, team: &'static str, public| {
        let main = at_one_place(mirror("main", &["docker.io", "ghcr.io"]));
        scene(vec![main, acme])
            .image(secret)
            .with("main", secret, Presence::Present(Proof { public, ..proof('a') }))
            .edit(|scene| {
                let labels = Labels::from([("team".to_owned(), team.to_owned())]);
                scene.snapshot.namespaces = Arc::new([("team".to_owned(), labels)].into());
            })
    };
    let rewritten = "Rewritten Mirrored main → m.io/ghcr.io/acme/secret:1";

    let private = || acme(Access::Private, true, true);
    let of_red = before(private(), "red", None);
    check(&of_red, "Kept NamespaceNotServed main");
    assert_eq!(
        of_red.details(),
        [
            "main Kept NamespaceNotServed by acme",
            "acme Kept NamespaceNotServed"
        ]
    );
    check(&before(private(), "blue", None), rewritten);
    // It is not even looked for, though main knows nothing of it, nor what its mode is by now.
    let unknown = before(private(), "red", None).edit(|scene| scene.index = Index::default());
    check(&unknown, "Kept NamespaceNotServed main");
    assert_eq!(unknown.plan().probes.len(), 0);
    let off = Mirror {
        mode: Mode::Off,
        ..private()
    };
    check(&before(off, "red", None), "Kept NamespaceNotServed main");
    // What was rewritten goes back.
    let mapped = "m.io/ghcr.io/acme/secret:1";
    let rewritten_before = before(private(), "red", None).image(mapped).edit(|scene| {
        let record = (format!("{ORIGINAL_IMAGE_PREFIX}app").into(), secret.into());
        scene.request.pod.annotations = Annotations::new(0, [record].into_iter().collect());
    });
    assert_eq!(rewritten_before.decisions()[0].replacement(), Some(secret));
    // Other images of main are anybody's.
    let other = before(private(), "red", None).image("nginx:1");
    check(
        &other.with("main", NGINX, Presence::Present(proof('a'))),
        "Rewritten Mirrored main → m.io/docker.io/library/nginx:1",
    );

    // Of two with the same source, each with a login of its own, nobody knows whose copy it is.
    let open = || Mirror {
        name: "open".to_owned(),
        priority: 2,
        ..acme(Access::Private, true, false)
    };
    for (team, expected) in [
        ("red", "Kept NamespaceNotServed open"),
        ("blue", "Rewritten Mirrored open → m.io/ghcr.io/acme/secret:1"),
    ] {
        let of_two = before(private(), team, None).edit(|scene| {
            scene.snapshot = Snapshot {
                namespaces: Arc::clone(&scene.snapshot.namespaces),
                ..snapshot(vec![open(), private()])
            };
        });
        check(
            &of_two.with("open", secret, Presence::Present(proof('a'))),
            expected,
        );
    }

    // It has a login for what is for everybody, perhaps to be asked less often to wait: that closes nothing.
    check(&before(acme(Access::Public, true, false), "red", None), rewritten);
    // What it pulls through with a login is for whom upstream gives it to.
    let half_public = || Mirror {
        kind: Kind::PullThrough,
        ..acme(Access::Public, true, false)
    };
    check(&before(half_public(), "red", None), "Kept Private main");
    check(&before(half_public(), "red", Some(false)), "Kept Private main");
    check(&before(half_public(), "red", Some(true)), rewritten);
    check(
        &before(acme(Access::Public, false, false), "red", None),
        rewritten,
    );
}

/// Returns the shortest of several times of a decision, where each of so many teams has a mirror of its own for private
/// images at one registry.
fn time_with_teams(count: usize) -> Duration {
    let team = |number: usize| {
        let team = Requirement {
            key: "team".to_owned(),
            operator: Operator::In(vec![format!("team-{number}")]),
        };
        let private = Source {
            access: Access::Private,
            with_credentials: true,
            ..source("ghcr.io", &[])
        };
        let mut mirror = Mirror {
            sources: vec![private],
            namespaces: Selector {
                requirements: vec![team],
            },
            ..mirror(&format!("team-{number}"), &[])
        };
        mirror.mapping.registry = "m.io".parse().unwrap();
        mirror
    };
    let scene = scene((0..count).map(team).collect())
        .image("ghcr.io/acme/app:1")
        .edit(|scene| {
            let labels = Labels::from([("team".to_owned(), "team-0".to_owned())]);
            scene.snapshot.namespaces = Arc::new([("team".to_owned(), labels)].into());
        });
    let times = (0..20).map(|_| {
        let started = Instant::now();
        let plan = scene.plan();
        let took = started.elapsed();
        assert_eq!((plan.places[0].candidates.len(), plan.probes.len()), (count, 0));
        took
    });
    times.min().unwrap_or_default()
}

#[test]
fn mirrors_of_one_registry_that_do_not_serve_a_namespace_cost_it_little() {
    let (few, many) = (time_with_teams(30), time_with_teams(300));
    // Ten times as many; squared it would be a hundred times.
    assert!(many < few * 40, "{few:?} with 30 mirrors, {many:?} with 300");
}

/// A mirror that is filled and has an older image than upstream.
#[test]
fn a_tag_that_moved_upstream_stays_there_until_the_mirror_has_it() {
    use crate::domain::{examples::copying, mirror::Drift};

    let b = proof('b').digest;
    let digest = format!("nginx@{}", proof('a').digest);
    let scene = |copies: bool, drift| {
        let tags = Tags {
            drift,
            ..Tags::default()
        };
        known_on(Mirror {
            copying: copies.then(copying),
            tags,
            ..mirror("a", &["docker.io"])
        })
        .edit(|scene| {
            scene
                .index
                .set_upstream("a", key(NGINX), Some(&proof('b').digest));
        })
    };
    let served = format!("Rewritten Mirrored a → {MIRRORED}");
    for (copies, drift, expected) in [
        (true, Drift::Sync, "Kept ImageMoved a"),
        (true, Drift::Warn, "Kept ImageMoved a"),
        (true, Drift::Keep, &served),
        // Nobody asks upstream any more.
        (false, Drift::Sync, &served),
    ] {
        assert_eq!(scene(copies, drift).told(), expected, "{copies} {drift:?}");
    }
    // Upstream's has come; by another look than the companion's as well.
    let came = |own: bool| {
        scene(true, Drift::Sync).edit(|scene| {
            let present = Presence::Present(proof('b'));
            if own {
                scene
                    .index
                    .see("a", key(NGINX), present, NOW.after(Duration::from_secs(1)));
            } else {
                scene.index.write("a", key(NGINX), present, NOW, NOW);
            }
        })
    };
    for own in [false, true] {
        assert_eq!(came(own).told(), served);
        assert_eq!(came(own).decisions()[0].digest, Some(b.clone()));
    }
    // Without a proof the mirror is not asked: the companion knows sooner.
    let old = scene(true, Drift::Warn).edit(|scene| {
        scene
            .index
            .write("a", key(NGINX), Presence::Unknown(None), NOW, NOW);
    });
    assert_eq!(
        (old.told(), old.plan().probes.len()),
        ("Kept ImageMoved a".to_owned(), 0)
    );
    // A digest is what it is.
    let pinned = scene(true, Drift::Sync)
        .with(
            "a",
            &format!("docker.io/library/nginx@{}", proof('a').digest),
            Presence::Present(proof('a')),
        )
        .edit(|scene| scene.request.pod.places[0].image = digest.as_str().into());
    assert!(
        pinned.told().starts_with("Rewritten Mirrored"),
        "{}",
        pinned.told()
    );
}
