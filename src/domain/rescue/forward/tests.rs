use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::json;

use super::*;
use crate::domain::{
    examples::{NOW, digest, key, mirror, proof, snapshot},
    health::State,
    image::Class,
    mapping::Mapping,
    mirror::{Access, Mirror, Pin, Prefer, Tags},
    names::{ORIGINAL_IMAGE_PREFIX, RESCUED_ANNOTATION},
    owners::LeftAlone,
    platform::{Label, Platforms},
    presence::{Presence, Swept},
    rescue::{Container, Dead, Known, Next, Queue, Seen, Sight},
    selector::{Operator, Requirement},
    standing::Standing,
};

const UPSTREAM: &str = "nginx:1.29";
const KEY: &str = "docker.io/library/nginx:1.29";
const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1.29";

/// A Pod of a namespace labelled enforce with one container `app` that upstream does not give its image, and a mirror
/// that has it.
struct Example {
    pod: Pod<'static>,
    image: String,
    reason: &'static str,
    message: String,
    annotations: BTreeMap<String, String>,
    snapshot: Snapshot,
    index: Index,
    registries: Vec<String>,
}

impl Example {
    fn new() -> Self {
        Self::with(mirror("a", &["docker.io"]))
    }

    fn with(mirror: Mirror) -> Self {
        let mut snapshot = snapshot(vec![mirror]);
        let labels = [(MODE_LABEL.to_owned(), "enforce".to_owned())].into();
        snapshot.namespaces = Arc::new([("team".to_owned(), labels)].into());
        let mut index = Index::default();
        index.write("a", key(KEY), Presence::Present(proof('a')), NOW, NOW);
        Self {
            pod: Pod {
                uid: "u",
                namespace: "team",
                name: "web",
                resource_version: "7",
                ..Pod::default()
            },
            image: UPSTREAM.to_owned(),
            reason: "ErrImagePull",
            message: format!("Back-off pulling image \"{UPSTREAM}\""),
            annotations: BTreeMap::new(),
            snapshot,
            index,
            registries: vec!["a.example.com".to_owned()],
        }
    }

    fn pod(&self) -> Pod<'_> {
        let container = Container {
            name: "app",
            image: &self.image,
            waiting: Some((self.reason, &self.message)),
            ..Container::default()
        };
        Pod {
            annotations: Some(&self.annotations),
            containers: vec![container],
            ..self.pod.clone()
        }
    }

    fn ahead(&self) -> Ahead<'_> {
        Ahead {
            snapshot: &self.snapshot,
            index: &self.index,
            registries: &self.registries,
            now: NOW,
        }
    }

    fn sight(&self) -> Sight<'_> {
        Sight {
            snapshot: &self.snapshot,
            index: &self.index,
            registries: &self.registries,
        }
    }

    fn judged(&self) -> Result<(String, RescuePolicy), Stays> {
        let stuck = StuckPod::of(&self.pod()).unwrap();
        let judged = stuck.forward(&stuck.containers[0], &self.ahead());
        judged.map(|(turning, policy)| (turning.to.to_string(), policy))
    }

    fn turned(&mut self, label: &str, at: &str) {
        let record = json!({label: {"from": "x", "to": "y", "at": at, "pod": "u"}});
        self.annotations
            .insert(RESCUED_ANNOTATION.to_owned(), record.to_string());
    }

    fn image(&mut self, image: &str, key_of: &str) {
        self.image = image.to_owned();
        self.message = format!("Back-off pulling image \"{image}\"");
        self.index
            .write("a", key(key_of), Presence::Present(proof('a')), NOW, NOW);
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Example), expected: Result<&str, Stays>) {
    let mut example = Example::new();
    change(&mut example);
    let judged = example.judged();
    let expected = expected.map(|to| (to.to_owned(), RescuePolicy::Enforce));
    assert_eq!(judged, expected);
}

/// The same with another mirror.
#[track_caller]
fn check_with(change: impl FnOnce(&mut Mirror), expected: Result<(&str, RescuePolicy), Stays>) {
    let mut mirror = mirror("a", &["docker.io"]);
    change(&mut mirror);
    let judged = Example::with(mirror).judged();
    assert_eq!(judged, expected.map(|(to, policy)| (to.to_owned(), policy)));
}

#[test]
fn a_container_goes_forward_where_a_new_pod_would_be_sent_to_the_mirror() {
    check(|_| {}, Ok(MIRRORED));
    // Whatever upstream says.
    for cause in ["NotFound", "Unknown", "PermissionDenied"] {
        let message = format!(
            "rpc error: code = {cause} desc = failed to pull and unpack image \"{KEY}\": failed to resolve"
        );
        check(
            |example| (example.reason, example.message) = ("ErrImagePull", message),
            Ok(MIRRORED),
        );
    }
    // What was recorded by admission, and is the image again.
    check(
        |example| {
            let key = format!("{ORIGINAL_IMAGE_PREFIX}app");
            example.annotations.insert(key, UPSTREAM.to_owned());
        },
        Ok(MIRRORED),
    );
    for (image, key_of, to) in [
        (
            "docker.io/nginx:1.29",
            KEY,
            "a.example.com/docker.io/library/nginx:1.29",
        ),
        (
            "nginx",
            "docker.io/library/nginx:latest",
            "a.example.com/docker.io/library/nginx",
        ),
    ] {
        check(|example| example.image(image, key_of), Ok(to));
    }
    let by_digest = format!("nginx@{}", digest('a'));
    check(
        |example| example.image(&by_digest, &format!("docker.io/library/nginx@{}", digest('a'))),
        Ok(&format!("a.example.com/docker.io/library/nginx@{}", digest('a'))),
    );
}

#[test]
fn every_doubt_of_admission_keeps_it_where_it_is() {
    let kept = |reason| Err(Stays::Kept(reason));
    check(
        |example| example.index = Index::default(),
        kept(Reason::BudgetExhausted),
    );
    check(
        |example| {
            example.index = Index::default();
            example.index.write("a", key(KEY), Presence::Missing, NOW, NOW);
        },
        kept(Reason::ImageMissing),
    );
    check(
        |example| example.snapshot.health[0].state = State::Unhealthy,
        kept(Reason::MirrorUnhealthy),
    );
    check(
        |example| example.snapshot.health[0].proven_since = NOW.after(Duration::from_millis(1)),
        kept(Reason::BudgetExhausted),
    );
    check(|example| example.snapshot.paused = true, kept(Reason::Paused));
    check(
        |example| example.pod.mode_label = Some("off"),
        kept(Reason::ModeOff),
    );
    check(
        |example| example.snapshot.left_alone = Arc::new(["team".to_owned()].into()),
        kept(Reason::NamespaceNotServed),
    );
    check(
        |example| example.image("quay.io/a/b:1", "quay.io/a/b:1"),
        kept(Reason::NoMirror),
    );
    let owner = |api_version: &'static str, kind: &'static str| Owner {
        api_version: api_version.into(),
        kind: kind.into(),
        uid: "o".into(),
    };
    check(
        |example| example.pod.owners = vec![owner("postgresql.cnpg.io/v1", "Cluster")],
        kept(Reason::OwnerExcluded),
    );
    check(
        |example| {
            example.pod.owners = vec![owner("apps/v1", "ReplicaSet")];
            let until = NOW.after(Duration::from_hours(1)).as_millis();
            let loops = json!([["o", "team", "example.com/v1", "Web", "web"], 1, 0, until]);
            example.snapshot.owners = Arc::new(LeftAlone::read(&loops.to_string(), ""));
        },
        kept(Reason::OwnerLoop),
    );
    // Where it may land counts, or else which nodes there are.
    let amd = Presence::Present(crate::domain::presence::Proof {
        platforms: Platforms::of("linux", "amd64", ""),
        ..proof('a')
    });
    let with = |landing: Landing| {
        let amd = amd.clone();
        move |example: &mut Example| {
            example.pod.landing = landing;
            example.index.write("a", key(KEY), amd, NOW, NOW);
            let nodes = ["amd64", "arm64"].map(|architecture| Platforms::of("linux", architecture, ""));
            let standing = Standing {
                platforms: nodes[0].or(nodes[1]),
                ..Standing::default()
            };
            example.snapshot.standings = vec![Arc::new(standing)];
        }
    };
    let architecture = |name| Landing::of(Label::Architecture, [name]).and(Landing::of(Label::Os, ["linux"]));
    check(with(architecture("amd64")), Ok(MIRRORED));
    check(with(architecture("arm64")), kept(Reason::PlatformMissing));
    check(with(Landing::ANYWHERE), kept(Reason::PlatformMissing));
}

#[test]
fn access_and_pull_secrets_count_as_at_admission() {
    let private = |example: &mut Example, matching: &str| {
        let mut mirror = mirror("a", &["docker.io"]);
        mirror.sources[0].access = Access::Private;
        mirror.namespaces.requirements = vec![Requirement {
            key: "team".to_owned(),
            operator: Operator::In(vec![matching.to_owned()]),
        }];
        let namespaces = Arc::clone(&example.snapshot.namespaces);
        let mut labels = namespaces["team"].clone();
        labels.insert("team".to_owned(), "shop".to_owned());
        example.snapshot = Snapshot {
            namespaces: Arc::new([("team".to_owned(), labels)].into()),
            ..snapshot(vec![mirror])
        };
    };
    check(|example| private(example, "shop"), Ok(MIRRORED));
    check(
        |example| private(example, "other"),
        Err(Stays::Kept(Reason::NamespaceNotServed)),
    );
    // A login against limits: what not everybody gets upstream nobody gets from the mirror.
    check_with(
        |mirror| mirror.sources[0].with_credentials = true,
        Err(Stays::Kept(Reason::Private)),
    );
    let secret = |in_place: bool, listed: bool| {
        move |example: &mut Example| {
            let mut mirror = mirror("a", &["docker.io"]);
            mirror.pull_secret = true;
            let standing = Standing {
                pull_secret_namespaces: in_place.then(|| "team".to_owned()).into_iter().collect(),
                ..Standing::default()
            };
            example.snapshot = Snapshot {
                namespaces: Arc::clone(&example.snapshot.namespaces),
                standings: vec![Arc::new(standing)],
                ..snapshot(vec![mirror])
            };
            example.pod.lists_pull_secret = listed;
        }
    };
    check(secret(true, true), Ok(MIRRORED));
    for (in_place, listed) in [(true, false), (false, true)] {
        check(
            secret(in_place, listed),
            Err(Stays::Kept(Reason::PullSecretNotReady)),
        );
    }
    check_with(
        |mirror| mirror.prefer = Prefer::Upstream,
        Err(Stays::Kept(Reason::UpstreamPreferred)),
    );
}

#[test]
fn a_turn_forward_asks_for_more_than_admission() {
    for label in ["warn", "audit", "off", "Enforce", ""] {
        check(
            |example| {
                let labels = [(MODE_LABEL.to_owned(), label.to_owned())].into();
                example.snapshot.namespaces = Arc::new([("team".to_owned(), labels)].into());
            },
            Err(Stays::NotEnforced),
        );
    }
    check(
        |example| example.snapshot.namespaces = Arc::default(),
        Err(Stays::NotEnforced),
    );
    check(
        |example| example.message = "Back-off pulling image \"redis:8\"".to_owned(),
        Err(Stays::OtherFailure),
    );
    for (reason, message) in [
        (
            "SignatureValidationFailed",
            "image pull failed for nginx:1.29 because x",
        ),
        (
            "ImagePullBackOff",
            "Back-off pulling image \"nginx:1.29\": SignatureValidationFailed: x",
        ),
    ] {
        check(
            |example| (example.reason, example.message) = (reason, message.to_owned()),
            Err(Stays::Signature),
        );
    }
    for registries in [
        &[][..],
        &["b.example.com"],
        &["a.example.co"],
        &["a.example.com/team"],
    ] {
        check(
            |example| example.registries = registries.iter().map(ToString::to_string).collect(),
            Err(Stays::NotListed),
        );
    }
    check_with(|mirror| mirror.rescue = RescuePolicy::Off, Err(Stays::PolicyOff));
    check_with(
        |mirror| mirror.rescue = RescuePolicy::Audit,
        Ok((MIRRORED, RescuePolicy::Audit)),
    );
    // A weaker word of the Pod's own, or of the mirror, lets it be told only.
    check_with(
        |mirror| mirror.mode = Mode::Audit,
        Ok((MIRRORED, RescuePolicy::Audit)),
    );
    // Where a mirror pins, the tag is written all the same.
    for pin in [Pin::Digest, Pin::DigestOnly] {
        check_with(
            |mirror| {
                mirror.tags = Tags {
                    pin,
                    ..Tags::default()
                }
            },
            Ok((MIRRORED, RescuePolicy::Enforce)),
        );
    }
}

#[test]
fn a_mirror_in_a_part_of_a_registry_is_listed_with_it() {
    let listed = |registries: &[&str], registry: &str| {
        let registries: Vec<_> = registries.iter().map(ToString::to_string).collect();
        is_listed(&registries, registry)
    };
    assert!(listed(&["x.test", "m.test:5000"], "m.test:5000"));
    assert!(listed(&["m.test:5000"], "m.test:5000/team"));
    assert!(!listed(&["m.test:5000/team"], "m.test:5000"));
    assert!(!listed(&["m.test:5000/team"], "m.test:5000/team-b"));
    assert!(!listed(&["m.test"], "m.test:5000"));
    assert!(!listed(&[], "m.test"));
}

/// What the policy of the API server asks of the names too.
#[test]
fn the_end_of_a_name_is_the_path_that_was_written() {
    for (mirrored, image, expected) in [
        ("m.test/docker.io/library/nginx:1", "nginx:1", true),
        ("m.test/docker.io/library/nginx:1", "docker.io/nginx:1", true),
        ("m.test/docker.io/acme/app:1", "acme/app:1", true),
        ("m.test/x/acme/app", "localhost/acme/app", true),
        ("m.test/localhost_5000/app:1", "localhost:5000/app:1", true),
        ("m.test/docker.io/library/xnginx:1", "nginx:1", false),
        ("m.test/docker.io/library/nginx:2", "nginx:1", false),
        ("m.test/docker.io/library/nginx:1@sha256:a", "nginx:1", false),
        ("m.test/docker.io/other/app:1", "acme/app:1", false),
    ] {
        assert_eq!(ends_as(mirrored, image), expected, "{mirrored} {image}");
    }
}

#[test]
fn each_way_is_gone_once_and_forward_after_back_by_proof_from_after_that() {
    check(
        |example| example.turned("containers.app/forward", "2026-01-01T00:00:00.000Z"),
        Err(Stays::TurnedBefore),
    );
    check(
        |example| {
            let record = "{".to_owned();
            example.annotations.insert(RESCUED_ANNOTATION.to_owned(), record);
        },
        Err(Stays::TurnsUnreadable),
    );
    // The image was seen now; whether the mirror was out of use since the turn does not matter.
    let second = Duration::from_secs(1);
    for proven_since in [NOW, NOW.before(second), NOW.before(second * 100)] {
        let back_at = |at: Timestamp| {
            move |example: &mut Example| {
                example.turned("containers.app", &at.to_string());
                example.snapshot.health[0].proven_since = proven_since;
            }
        };
        check(back_at(NOW.before(second)), Ok(MIRRORED));
        let unseen = ("a".into(), key(KEY).into());
        check(back_at(NOW), Err(Stays::NotSince(unseen)));
    }
    // A later sweep that covers the image counts as a look at it.
    check(
        |example| {
            example.turned("containers.app", &NOW.to_string());
            let swept = Swept {
                started_at: NOW.after(second),
                through: example.index.version(),
            };
            example.index.swept("a", Class::Tag, swept);
        },
        Ok(MIRRORED),
    );
    // Another container's turn, and another Pod's.
    check(
        |example| example.turned("containers.other", "9999-01-01T00:00:00.000Z"),
        Ok(MIRRORED),
    );
    check(
        |example| {
            let record =
                json!({"containers.app/forward": {"from": "x", "to": "y", "at": "z", "pod": "other"}});
            let record = record.to_string();
            example.annotations.insert(RESCUED_ANNOTATION.to_owned(), record);
        },
        Ok(MIRRORED),
    );
}

/// Both registries die and return in turn: a turn back, one forward, and no third.
#[test]
fn both_ways_together_end() {
    let mut example = Example::new();
    let left_alone = BTreeSet::new();
    let mut queue = Queue::default();
    queue.begin_listing();
    queue.end_listing();
    let mut turns = Vec::new();
    let mut now = NOW;
    example.image = MIRRORED.to_owned();
    example
        .annotations
        .insert(format!("{ORIGINAL_IMAGE_PREFIX}app"), UPSTREAM.to_owned());
    for round in 0..20_u64 {
        now = now.after(Duration::from_mins(10));
        // The mirror has just come back, and has the image.
        example.snapshot.health[0].proven_since = now;
        example
            .index
            .write("a", key(KEY), Presence::Present(proof('a')), now, now);
        now = now.after(Duration::from_secs(1));
        example.message = format!("Back-off pulling image \"{}\"", example.image);
        let version = round.to_string();
        for (reason, version) in [("ImagePullBackOff", "between"), ("ErrImagePull", &version)] {
            example.reason = reason;
            let pod = Pod {
                resource_version: version,
                ..example.pod()
            };
            let known = Known {
                routing: &example.snapshot.routing,
                former: &[],
                left_alone: &left_alone,
            };
            queue.take(&pod, &known, Seen::Told { after: Some(now) }, now);
        }
        queue.look_ahead(
            &queue.upstream(),
            &Ahead {
                now,
                ..example.ahead()
            },
            &mut BTreeSet::new(),
        );
        let Next::Order(order) = queue.next(&example.sight(), now) else {
            continue;
        };
        let [turning] = &order.turned[..] else {
            panic!("{order:?}")
        };
        turns.push(turning.way);
        let patch = order.patch(now);
        let mut object = json!({
            "metadata": {"uid": "u", "resourceVersion": version, "annotations": example.annotations},
            "spec": {"containers": [{"name": "app", "image": example.image}]},
        });
        apply(&mut object, &patch);
        let annotations = &object["metadata"]["annotations"];
        example.annotations = serde_json::from_value(annotations.clone()).unwrap();
        let image = &object["spec"]["containers"][0]["image"];
        example.image = image.as_str().unwrap().to_owned();
    }
    assert_eq!(turns, [Way::Back, Way::Forward]);
    assert_eq!(example.image, MIRRORED);
}

#[test]
fn a_patch_forward_records_what_stood_there() {
    let mut example = Example::new();
    let order = |example: &Example| {
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &example.snapshot.routing,
            former: &[],
            left_alone: &left_alone,
        };
        let mut queue = Queue::default();
        queue.begin_listing();
        queue.end_listing();
        queue.take(&example.pod(), &known, Seen::Told { after: Some(NOW) }, NOW);
        queue.look_ahead(&queue.upstream(), &example.ahead(), &mut BTreeSet::new());
        match queue.next(&example.sight(), NOW) {
            Next::Order(order) => order.patch(NOW),
            other => panic!("{other:?}"),
        }
    };
    let record = json!({"containers.app/forward": {
        "from": UPSTREAM, "to": MIRRORED, "at": NOW.to_string(), "pod": "u",
    }});
    let original = "/metadata/annotations/original-image.kagami.dev~1app";
    let mut expected = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": "u"}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": "7"}),
        json!({"op": "add", "path": "/metadata/annotations", "value": {}}),
        json!({"op": "test", "path": "/spec/containers/0/name", "value": "app"}),
        json!({"op": "test", "path": "/spec/containers/0/image", "value": UPSTREAM}),
        json!({"op": "replace", "path": "/spec/containers/0/image", "value": MIRRORED}),
        json!({"op": "add", "path": original, "value": UPSTREAM}),
        json!({"op": "add", "path": "/metadata/annotations/kagami.dev~1rescued", "value": record.to_string()}),
    ];
    assert_eq!(order(&example), json!(expected));
    // What stands there already is never emptied.
    example.annotations.insert("a".to_owned(), "b".to_owned());
    expected.remove(2);
    assert_eq!(order(&example), json!(expected));
}

/// Where upstream fails for everybody each node fails to pull several images, and waiting brings nothing.
#[test]
fn what_goes_forward_waits_for_no_node() {
    let mut example = Example::new();
    let left_alone = BTreeSet::new();
    let mut queue = Queue::default();
    queue.begin_listing();
    queue.end_listing();
    let own = example.pod.namespace;
    for (namespace, name, image) in [
        ("one", "one", "ghcr.io/a/b:1"),
        ("two", "two", "quay.io/a/b:1"),
        (own, "web", UPSTREAM),
    ] {
        example.pod.namespace = namespace;
        example.pod.name = name;
        example.pod.uid = name;
        example.pod.node = "node";
        example.image = image.to_owned();
        example.message = format!("Back-off pulling image \"{image}\"");
        let known = Known {
            routing: &example.snapshot.routing,
            former: &[],
            left_alone: &left_alone,
        };
        queue.take(&example.pod(), &known, Seen::Told { after: Some(NOW) }, NOW);
    }
    assert!(queue.look_ahead(&queue.upstream(), &example.ahead(), &mut BTreeSet::new()));
    assert!(matches!(queue.next(&example.sight(), NOW), Next::Order(order) if &*order.pod.name == "web"));
    // It is no more due where the proof has gone.
    example.index = Index::default();
    assert!(!queue.look_ahead(&queue.upstream(), &example.ahead(), &mut BTreeSet::new()));
    assert_eq!(queue.next(&example.sight(), NOW), Next::Nothing);
}

/// Names, records and owners that anybody may write lead nowhere else.
#[test]
fn nothing_forged_leads_anywhere_else() {
    let original = format!("{ORIGINAL_IMAGE_PREFIX}app");
    for forged in [
        "evil.test/nginx:1.29",
        "",
        "nginx",
        "docker.io/library/nginx:1.29",
    ] {
        check(
            |example| drop(example.annotations.insert(original.clone(), forged.to_owned())),
            Err(Stays::Recorded),
        );
    }
    let long = "x".repeat(2000);
    check(
        |example| drop(example.annotations.insert(original.clone(), long)),
        Err(Stays::Recorded),
    );
    // A name like a mirror's below the tenant's own registry is an image of that registry.
    for image in [
        "evil.test/a.example.com/docker.io/library/nginx:1.29",
        "a.example.com.evil.test/docker.io/library/nginx:1.29",
    ] {
        check(
            |example| {
                example.image = image.to_owned();
                example.message = format!("Back-off pulling image \"{image}\"");
            },
            Err(Stays::Kept(Reason::NoMirror)),
        );
    }
    let owner = |word: &str| Owner {
        api_version: word.to_owned().into(),
        ..Owner::default()
    };
    check(
        |example| example.pod.owners = (0..10_000).map(|_| owner("v1")).collect(),
        Err(Stays::Owners),
    );
    check(
        |example| example.pod.owners = vec![owner(&"x".repeat(1000))],
        Err(Stays::Owners),
    );
    // Ten thousand annotations and turns.
    check(
        |example| {
            let annotations =
                (0..10_000).map(|number| (format!("{ORIGINAL_IMAGE_PREFIX}{number}"), String::new()));
            example.annotations = annotations.collect();
        },
        Ok(MIRRORED),
    );
    check(
        |example| {
            let turn = json!({"from": "", "to": "", "at": ""});
            let turns: BTreeMap<_, _> = (0..10_000).map(|number| (number.to_string(), &turn)).collect();
            let record = json!(turns).to_string();
            example.annotations.insert(RESCUED_ANNOTATION.to_owned(), record);
        },
        Err(Stays::TurnsUnreadable),
    );
    // A mirror that does not keep registries apart takes no stranger's image for one of its source's.
    let mut mirror = mirror("a", &["ghcr.io/acme"]);
    mirror.mapping = Mapping {
        template: "{repository}".parse().unwrap(),
        ..mirror.mapping
    };
    let mut example = Example::with(mirror);
    example.image("evil.test/acme/app:1", "ghcr.io/acme/app:1");
    assert_eq!(example.judged(), Err(Stays::Kept(Reason::NoMirror)));
    example.image("ghcr.io/acme/app:1", "ghcr.io/acme/app:1");
    let to = "a.example.com/acme/app:1".to_owned();
    assert_eq!(example.judged(), Ok((to, RescuePolicy::Enforce)));
}

/// Applies the operations of a patch as RFC 6902 has them, as far as they are used.
fn apply(object: &mut serde_json::Value, patch: &serde_json::Value) {
    for operation in patch.as_array().unwrap() {
        let path = operation["path"].as_str().unwrap();
        let value = operation["value"].clone();
        if operation["op"] == "test" {
            assert_eq!(object.pointer(path), Some(&value), "{path}");
            continue;
        }
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap();
        parent[key.replace("~1", "/")] = value;
    }
}

/// What a look has to be asked for is told, and only where the mirror would be gone to.
#[test]
fn a_look_is_asked_for_where_one_went_back_and_is_not_served() {
    let unseen = |change: fn(&mut Example)| {
        let mut example = Example::new();
        example.turned("containers.app", &NOW.to_string());
        change(&mut example);
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &example.snapshot.routing,
            former: &[],
            left_alone: &left_alone,
        };
        let mut queue = Queue::default();
        queue.begin_listing();
        queue.end_listing();
        queue.take(&example.pod(), &known, Seen::Told { after: Some(NOW) }, NOW);
        let mut unseen = BTreeSet::new();
        queue.look_ahead(&queue.upstream(), &example.ahead(), &mut unseen);
        unseen
    };
    assert_eq!(unseen(|_| ()), [("a".into(), key(KEY).into())].into());
    assert!(unseen(|example| example.snapshot.health[0].state = State::Unhealthy).is_empty());
    assert!(unseen(|example| example.registries.clear()).is_empty());
    assert!(
        unseen(|example| example.turned("containers.app", &NOW.before(Duration::from_secs(1)).to_string()))
            .is_empty()
    );
}

/// The mirror that it would go to has died since it was looked ahead: what it fails to pull from is another registry, whose
/// next try may go well.
#[test]
fn a_dead_mirror_makes_no_turn_to_it_due() {
    let mut example = Example::new();
    let left_alone = BTreeSet::new();
    let mut queue = Queue::default();
    queue.begin_listing();
    queue.end_listing();
    example.reason = "ImagePullBackOff";
    let known = Known {
        routing: &example.snapshot.routing,
        former: &[],
        left_alone: &left_alone,
    };
    queue.take(&example.pod(), &known, Seen::Told { after: Some(NOW) }, NOW);
    assert!(queue.look_ahead(&queue.upstream(), &example.ahead(), &mut BTreeSet::new()));
    assert_eq!(queue.waiting(), 1);
    queue.set_dead(Dead::from([("a".into(), NOW)]), NOW);
    assert_eq!(queue.next(&example.sight(), NOW), Next::Nothing);
}
