use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::{
    examples::{NOW, mirror},
    mirror::Mirror,
    names::ORIGINAL_IMAGE_PREFIX,
};

const UPSTREAM: &str = "nginx:1.29";
const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1.29";

fn back_off(image: &str) -> String {
    format!("Back-off pulling image \"{image}\"")
}

/// A Pod with one container `app`, which waits because its image cannot be pulled from the mirror.
struct Example {
    pod: Pod<'static>,
    image: String,
    reason: &'static str,
    message: String,
    annotations: BTreeMap<String, String>,
}

impl Example {
    fn new() -> Self {
        Self {
            pod: Pod {
                uid: "u",
                namespace: "team",
                name: "web",
                resource_version: "7",
                node: "node",
                ..Pod::default()
            },
            image: MIRRORED.to_owned(),
            reason: "ImagePullBackOff",
            message: back_off(MIRRORED),
            annotations: [(format!("{ORIGINAL_IMAGE_PREFIX}app"), UPSTREAM.to_owned())].into(),
        }
    }

    /// Returns the Pod where it is stuck.
    fn stuck(&self) -> Option<StuckPod> {
        let container = Container {
            name: "app",
            image: &self.image,
            waiting: Some((self.reason, &self.message)),
            ..Container::default()
        };
        let pod = Pod {
            annotations: Some(&self.annotations),
            containers: vec![container],
            ..self.pod.clone()
        };
        StuckPod::of(&pod)
    }
}

/// Returns what becomes of the container `app`, in words.
fn judged_by(mirrors: Vec<Mirror>, former: &[Former], example: &Example) -> String {
    let routing = Routing::compile(mirrors);
    let left_alone = ["kube-system".to_owned()].into();
    let known = Known {
        routing: &routing,
        former,
        left_alone: &left_alone,
    };
    let Some(stuck) = example.stuck() else {
        return "not stuck".to_owned();
    };
    match stuck.judge(&stuck.containers[0], &known) {
        Judgement::Back { mirror, to, policy } => format!("{} from {mirror} to {to}", policy.as_str()),
        Judgement::Left(left) => left.as_str().to_owned(),
    }
}

/// Checks what becomes of a Pod that is stuck, but for one difference.
#[track_caller]
fn check(change: impl FnOnce(&mut Example), expected: &str) {
    let mut example = Example::new();
    change(&mut example);
    let mirrors = vec![mirror("a", &["docker.io"])];
    assert_eq!(judged_by(mirrors, &[], &example), expected);
}

const BACK: &str = "Enforce from a to nginx:1.29";

#[test]
fn a_container_goes_back_where_its_own_image_failed() {
    check(|_| {}, BACK);
    for reason in REASONS {
        check(|example| example.reason = reason, BACK);
    }
    for reason in [
        "ContainerCreating",
        "PodInitializing",
        "CrashLoopBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "",
    ] {
        check(|example| example.reason = reason, "not stuck");
    }
    // Runtimes complete names and leave a tag beside a digest out.
    let digest = format!("sha256:{}", "a".repeat(64));
    let name = MIRRORED.strip_suffix(":1.29").unwrap();
    check(
        |example| {
            example.image = name.to_owned();
            example.message = back_off(&format!("{name}:latest"));
            example
                .annotations
                .values_mut()
                .for_each(|original| *original = "nginx".to_owned());
        },
        "Enforce from a to nginx",
    );
    check(
        |example| {
            example.image = format!("{MIRRORED}@{digest}");
            example.message = back_off(&format!("{name}@{digest}"));
        },
        BACK,
    );
}

#[test]
fn what_the_message_speaks_of_decides() {
    // The message of the image before, and that of an image volume.
    check(
        |example| example.message = back_off("nginx:1.29"),
        "OtherReference",
    );
    check(
        |example| example.message = back_off("a.example.com/docker.io/acme/model:1"),
        "OtherReference",
    );
    check(
        |example| example.message = back_off("Not An Image"),
        "OtherReference",
    );
    check(
        |example| example.message = "pull QPS exceeded".to_owned(),
        "NodeLimit",
    );
    check(
        |example| example.message = format!("{}: ErrImagePull: pull QPS exceeded", back_off(MIRRORED)),
        "NodeLimit",
    );
    check(
        |example| example.message = "rpc error: code = Canceled desc = context canceled".to_owned(),
        "Unnamed",
    );
    check(|example| example.message.clear(), "Unnamed");
}

#[test]
fn pods_that_are_nobodys_to_help_are_left_alone() {
    check(|example| example.pod.is_static = true, "not stuck");
    check(|example| example.pod.is_deleted = true, "not stuck");
    check(|example| example.pod.is_done = true, "not stuck");
    check(
        |example| example.pod.namespace = "kube-system",
        "NamespaceLeftAlone",
    );
    check(|example| example.pod.mode_label = Some("off"), "PodOff");
    check(|example| example.pod.mode_label = Some("no such mode"), "PodOff");
    check(
        |example| example.pod.mode_label = Some("audit"),
        "Audit from a to nginx:1.29",
    );
    check(
        |example| example.pod.mode_label = Some("warn"),
        "Audit from a to nginx:1.29",
    );
    check(|example| example.pod.mode_label = Some("enforce"), BACK);
}

#[test]
fn only_a_record_that_maps_to_the_image_leads_back() {
    let record = |example: &mut Example, original: &str| {
        example.annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), original.to_owned())].into();
    };
    check(
        |example| record(example, "docker.io/library/nginx:1.29"),
        "Enforce from a to docker.io/library/nginx:1.29",
    );
    for forged in [
        "evil.example.com/nginx:1.29",
        "nginx:1.28",
        "nginx",
        "nginx:1.29 ",
        "redis:1.29",
        MIRRORED,
        "Not An Image",
    ] {
        check(|example| record(example, forged), "RecordDiffers");
    }
    check(|example| record(example, ""), "RecordDiffers");
    check(
        |example| record(example, &"n".repeat(LONGEST_REFERENCE + 1)),
        "NoRecord",
    );
    check(|example| example.annotations.clear(), "NoRecord");
    // Another container's, and a volume's.
    for key in [
        "original-image.kagami.dev/other",
        "original-volume.kagami.dev/app",
        "original-image.kagami.dev/",
    ] {
        check(
            |example| example.annotations = [(key.to_owned(), UPSTREAM.to_owned())].into(),
            "NoRecord",
        );
    }
    // What is no mirror's is none of Kagami's business, whatever is recorded.
    check(
        |example| {
            example.image = "b.example.com/docker.io/library/nginx:1.29".to_owned();
            example.message = back_off(&example.image);
        },
        "Upstream",
    );
    // A mirror that pins writes the digest that it saw.
    check(
        |example| {
            example.image = format!("{MIRRORED}@sha256:{}", "a".repeat(64));
            example.message = back_off(&example.image);
        },
        BACK,
    );
}

/// With such a template every host's image of that path becomes the same one.
#[test]
fn without_the_registry_in_its_name_an_image_leads_back_to_its_sources_host_alone() {
    let template = "{repository}".parse().unwrap();
    let mapping = Mapping {
        template,
        ..mirror("a", &[]).mapping
    };
    let alone = Mirror {
        mapping: mapping.clone(),
        ..mirror("a", &["ghcr.io/acme"])
    };
    let mut example = Example::new();
    example.image = "a.example.com/acme/app:1".to_owned();
    example.message = back_off(&example.image);
    let former = Former {
        name: "gone".to_owned(),
        mapping,
        rescue: RescuePolicy::Enforce,
    };
    for (recorded, expected) in [
        ("ghcr.io/acme/app:1", "Enforce from a to ghcr.io/acme/app:1"),
        ("evil.example.com/acme/app:1", "RecordDiffers"),
        ("acme/app:1", "RecordDiffers"),
    ] {
        example.annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), recorded.to_owned())].into();
        assert_eq!(judged_by(vec![alone.clone()], &[], &example), expected);
        assert_eq!(
            judged_by(Vec::new(), std::slice::from_ref(&former), &example),
            "Upstream"
        );
    }
}

#[test]
fn every_mirror_leads_back_whatever_its_mode_and_sources() {
    for mode in Mode::ALL {
        let mirrors = vec![Mirror {
            mode,
            ..mirror("a", &["ghcr.io"])
        }];
        assert_eq!(judged_by(mirrors, &[], &Example::new()), BACK, "{mode:?}");
    }
}

#[test]
fn of_two_mirrors_in_one_registry_the_weaker_policy_holds() {
    use RescuePolicy::{Audit, Enforce, Off};
    for (one, other, expected) in [
        (Enforce, Enforce, BACK),
        (Enforce, Audit, "Audit from a to nginx:1.29"),
        (Audit, Enforce, "Audit from a to nginx:1.29"),
        (Off, Enforce, "PolicyOff"),
        (Enforce, Off, "PolicyOff"),
        (Audit, Off, "PolicyOff"),
    ] {
        let with = |name: &str, rescue| Mirror {
            mapping: mirror("a", &[]).mapping,
            rescue,
            ..mirror(name, &["docker.io"])
        };
        let mirrors = vec![with("a", one), with("second", other)];
        assert_eq!(
            judged_by(mirrors, &[], &Example::new()),
            expected,
            "{one:?} {other:?}"
        );
    }
}

#[test]
fn a_mirror_that_is_gone_leads_back_too() {
    let former = |name: &str, rescue| Former {
        name: name.to_owned(),
        mapping: mirror("a", &[]).mapping,
        rescue,
    };
    let example = Example::new();
    let judged = |former: &[Former]| judged_by(vec![mirror("b", &["docker.io"])], former, &example);
    assert_eq!(judged(&[]), "Upstream");
    assert_eq!(
        judged(&[former("gone", RescuePolicy::Enforce)]),
        "Enforce from gone to nginx:1.29"
    );
    let two = [
        former("gone", RescuePolicy::Enforce),
        former("weaker", RescuePolicy::Off),
    ];
    assert_eq!(judged(&two), "PolicyOff");
    // One that is there decides alone.
    let mirrors = vec![mirror("a", &["docker.io"])];
    assert_eq!(judged_by(mirrors, &two, &example), BACK);
}

#[test]
fn a_container_is_turned_once() {
    let turned = |text: &str, expected: &str| {
        let change = |example: &mut Example| {
            example
                .annotations
                .insert(RESCUED_ANNOTATION.to_owned(), text.to_owned());
        };
        check(change, expected);
    };
    let turn = json!({"from": MIRRORED, "to": UPSTREAM, "at": "2030-01-01T00:00:00.000Z"});
    turned(&json!({"containers.app": turn}).to_string(), "TurnedBefore");
    turned(&json!({"containers.other": turn}).to_string(), BACK);
    turned(&json!({"initContainers.app": turn}).to_string(), BACK);
    // A copy of a Pod that was turned was not.
    let of = |pod: &str| {
        let mut turn = turn.clone();
        turn["pod"] = pod.into();
        json!({"containers.app": turn}).to_string()
    };
    turned(&of("u"), "TurnedBefore");
    turned(&of("another"), BACK);
    turned("{}", BACK);
    for odd in ["", "[]", r#"{"containers.app":1}"#, "?"] {
        turned(odd, "TurnsUnreadable");
    }
    turned(&format!("{{{}}}", " ".repeat(LONGEST_RECORD)), "TurnsUnreadable");
}

/// The names of the containers that are judged.
fn judged(init_containers: Vec<Container<'_>>, containers: Vec<Container<'_>>) -> Vec<String> {
    let pod = Pod {
        init_containers,
        containers,
        ..Pod::default()
    };
    let stuck = StuckPod::of(&pod).map(|stuck| stuck.containers);
    let stuck = stuck.unwrap_or_default();
    stuck
        .iter()
        .map(|container| format!("{}.{}", container.kind.list(), container.name))
        .collect()
}

#[test]
fn only_containers_whose_image_was_tried_are_judged() {
    let container = |name| Container {
        name,
        image: MIRRORED,
        ..Container::default()
    };
    let stuck = |name| Container {
        waiting: Some(("ErrImagePull", "x")),
        ..container(name)
    };
    let done = |name| Container {
        has_succeeded: true,
        ..container(name)
    };
    let running = |name| Container {
        is_running: true,
        ..container(name)
    };
    let sidecar = |container| Container {
        is_sidecar: true,
        ..container
    };
    let nothing: [String; 0] = [];
    assert_eq!(
        judged(vec![], vec![running("a"), stuck("b"), stuck("c")]),
        ["containers.b", "containers.c"]
    );
    assert_eq!(judged(vec![stuck("a"), stuck("b")], vec![]), ["initContainers.a"]);
    assert_eq!(
        judged(vec![done("a"), stuck("b")], vec![container("c")]),
        ["initContainers.b"]
    );
    assert_eq!(judged(vec![container("a"), stuck("b")], vec![]), nothing);
    assert_eq!(judged(vec![running("a"), stuck("b")], vec![]), nothing);
    assert_eq!(
        judged(vec![sidecar(running("a")), stuck("b")], vec![]),
        ["initContainers.b"]
    );
    assert_eq!(
        judged(vec![sidecar(stuck("a")), stuck("b")], vec![]),
        ["initContainers.a"]
    );
    assert_eq!(judged(vec![sidecar(done("a")), stuck("b")], vec![]), nothing);
    assert_eq!(
        judged(vec![done("a"), sidecar(running("b"))], vec![stuck("c")]),
        ["containers.c"]
    );
    // A status that says both is not to be trusted.
    let both = Container {
        is_running: true,
        ..stuck("a")
    };
    assert_eq!(judged(vec![], vec![both]), nothing);
    let many = (0..2 * CONTAINERS).map(|_| stuck("a")).collect();
    assert_eq!(judged(vec![], many).len(), CONTAINERS);
}

/// What holds up the news of a failure: what kubelet may start after it in one round, or a container that crashes.
#[test]
fn what_follows_a_container_in_its_round_is_known() {
    let message = back_off(MIRRORED);
    let stuck = Container {
        name: "app",
        image: MIRRORED,
        waiting: Some(("ErrImagePull", &message)),
        ..Container::default()
    };
    let other = |reason| Container {
        name: "other",
        waiting: Some((reason, "")),
        ..Container::default()
    };
    let runs = Container {
        is_running: true,
        waiting: None,
        ..other("")
    };
    let ended = Container {
        is_running: false,
        has_succeeded: true,
        ..runs
    };
    let again = Container {
        will_run_again: true,
        ..ended
    };
    let sidecar = Container {
        is_sidecar: true,
        ..stuck
    };
    let check = |init_containers: Vec<Container<'_>>, containers: Vec<Container<'_>>, expected: [bool; 2]| {
        let pod = Pod {
            init_containers,
            containers,
            ..Pod::default()
        };
        let known = StuckPod::of(&pod).unwrap();
        let container = &known.containers[0];
        assert_eq!(
            [container.has_followers, container.is_followed],
            expected,
            "{pod:?}"
        );
    };
    let creating = other("ContainerCreating");
    check(vec![], vec![stuck], [false, false]);
    check(vec![], vec![stuck, creating], [true, true]);
    check(vec![], vec![creating, stuck], [false, false]);
    check(vec![], vec![stuck, runs], [true, false]);
    check(vec![], vec![stuck, ended], [true, false]);
    check(vec![], vec![stuck, again], [true, true]);
    check(vec![], vec![other("CrashLoopBackOff"), stuck], [false, true]);
    check(vec![stuck], vec![creating], [false, false]);
    check(vec![sidecar], vec![creating], [true, true]);
    check(vec![sidecar], vec![runs], [true, false]);
}

#[test]
fn a_patch_holds_for_the_pod_that_was_judged_alone() {
    let turning = |kind, index, container: &str| Turning {
        way: Way::Back,
        kind,
        index,
        container: container.into(),
        from: MIRRORED.into(),
        to: UPSTREAM.into(),
        mirror: "a".into(),
    };
    let before = Turn {
        from: "x".to_owned(),
        to: "y".to_owned(),
        at: "z".to_owned(),
        pod: None,
    };
    let order = Order {
        pod: PodId {
            uid: "u".into(),
            namespace: "team".into(),
            name: "web".into(),
            resource_version: "7".into(),
        },
        turned: vec![
            turning(PlaceKind::Container, 1, "app"),
            turning(PlaceKind::InitContainer, 0, "init"),
        ],
        told: vec![turning(PlaceKind::Container, 2, "told")],
        until: None,
        turns_before: [("containers.before".to_owned(), before)].into(),
        has_annotations: true,
    };
    let patch = order.patch(NOW);
    let at = NOW.to_string();
    let turn = json!({"from": MIRRORED, "to": UPSTREAM, "at": at, "pod": "u"});
    let record = json!({
        "containers.app": turn,
        "containers.before": {"from": "x", "to": "y", "at": "z"},
        "initContainers.init": turn,
    });
    let expected = json!([
        {"op": "test", "path": "/metadata/uid", "value": "u"},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "test", "path": "/spec/containers/1/name", "value": "app"},
        {"op": "test", "path": "/spec/containers/1/image", "value": MIRRORED},
        {"op": "replace", "path": "/spec/containers/1/image", "value": UPSTREAM},
        {"op": "test", "path": "/spec/initContainers/0/name", "value": "init"},
        {"op": "test", "path": "/spec/initContainers/0/image", "value": MIRRORED},
        {"op": "replace", "path": "/spec/initContainers/0/image", "value": UPSTREAM},
        {"op": "add", "path": "/metadata/annotations/kagami.dev~1rescued", "value": record.to_string()},
    ]);
    assert_eq!(patch, expected);
    // It is read as it was written.
    let text = patch[8]["value"].as_str().unwrap();
    assert_eq!(turns(Some(text), "u").unwrap().len(), 3);
    assert_eq!(turns(Some(text), "another").unwrap().len(), 1);
}

proptest! {
    /// Whatever anybody writes into annotations and messages: what a container goes back to is what its own image was
    /// made from.
    #[test]
    fn nothing_forged_leads_anywhere_else(
        image in "(a\\.example\\.com/)?(docker\\.io/)?(library/)?[a-c]{1,2}(:[12])?",
        recorded in "(a\\.example\\.com/|docker\\.io/|evil\\.test/)?(library/)?[a-c]{1,2}(:[12])?",
        message in "(Back-off pulling image |failed to pull and unpack image )?\\PC{0,20}",
        tells_its_own in any::<bool>(),
    ) {
        let mut example = Example::new();
        example.message = if tells_its_own { back_off(&image) } else { message };
        example.image = image.clone();
        example.annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), recorded.clone())].into();
        let mirror = mirror("a", &["docker.io"]);
        let told = judged_by(vec![mirror.clone()], &[], &example);
        if told.starts_with("Enforce") {
            prop_assert!(told.ends_with(&format!(" to {recorded}")), "{}", told);
            let original = Reference::parse(&recorded).unwrap();
            prop_assert!(mirror.maps_to(&original, &image), "{} {}", image, recorded);
        }
    }
}
