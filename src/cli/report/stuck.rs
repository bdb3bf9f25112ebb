//! Pods whose images cannot be pulled: why, and what would help.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::{Deserialize, Serialize};

use crate::{
    api::v1alpha1::timestamp,
    cli::output::Table,
    clock, cluster,
    domain::{
        foreign::Foreign,
        mirror::RescuePolicy,
        original,
        pod::PlaceLabel,
        presence::Index,
        rescue::{
            self, Judgement, Known, Left, StuckContainer, StuckPod, Turn,
            forward::Ahead,
            hang,
            lasting::{IDLE, LONGEST_BACK_OFF, gives, missed},
        },
        snapshot::Snapshot,
        time::Timestamp,
    },
};

/// How many containers the table has.
const SHOWN: usize = 50;

/// What to say of a container that takes long to begin.
const LATE: &str = "it takes longer to begin than spec.rescue.hangAfter of its mirror. If `kubectl describe pod` tells \
                    Pulling of it and nothing after, kubelet is inside the pull, and hears nothing until that ends: a \
                    write timeout of the mirror's front end, containerd's image_pull_progress_timeout or a restart of \
                    kubelet ends it";

/// What to say of one that kubelet does not try.
const IDLE_KUBELET: &str = "the mirror gives the image by now, and kubelet wrote nothing of the Pod for longer than its \
                            longest back-off: write another reference of the image into the Pod, which makes kubelet \
                            try at once, delete the Pod, or restart kubelet";

/// What to say of one whose image no mirror that is there explains, though a record does.
const NO_SUCH_MIRROR: &str = "the Pod records another image as its original, and no mirror that is there turns that into \
                              this one: if an ImageMirror was deleted within the last day, a companion with \
                              rescue.enabled turns the Pod back within seconds; else write upstream's name into the Pod";

/// A Pod, as far as it tells when its status was last written.
#[derive(Debug, Deserialize)]
struct Written {
    metadata: Managed,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Managed {
    #[serde(default)]
    managed_fields: Vec<Manager>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Manager {
    subresource: String,
    time: Option<MicroTime>,
}

/// A container that waits because its image could not be pulled.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stuck {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) place: String,
    /// As it stands in the Pod.
    pub(super) image: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) node: String,
    /// Why it stays as it is, or what becomes of it, in one word.
    pub(super) why: &'static str,
    /// What that means, and what would help.
    pub(super) help: String,
    /// Since when it does not begin, where kubelet says nothing of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<String>,
    /// The mirror, and what goes back to where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mirror: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) goes_back_to: Option<String>,
    /// The mirror's name of the image, where it goes forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) goes_forward_to: Option<String>,
}

/// What is said of one container.
struct Told {
    why: &'static str,
    help: String,
    mirror: Option<String>,
    back: Option<String>,
    forward: Option<String>,
}

impl Told {
    fn new(why: &'static str, help: impl Into<String>) -> Self {
        Self {
            why,
            help: help.into(),
            mirror: None,
            back: None,
            forward: None,
        }
    }
}

/// Returns the containers of a Pod, given as the API server wrote it, that are stuck.
pub(super) fn of(text: &str, snapshot: &Snapshot, index: &Index) -> Vec<Stuck> {
    let now = clock::now();
    // What admission can read and this cannot is told by nobody's watch either.
    let Ok(pod) = serde_json::from_str::<cluster::pods::Pod>(text) else {
        return Vec::new();
    };
    let patient = pod.as_patient();
    let Some(stuck) = StuckPod::of(&patient) else {
        return late(&patient, snapshot, now);
    };
    let known = Known {
        routing: &snapshot.routing,
        // Who asks may not read what the companion noted.
        former: &[],
        left_alone: &snapshot.left_alone,
    };
    let last_written = last_written(text);
    let is_idle = last_written.is_some_and(|at| now.since(at) >= IDLE);
    let registries = registries(snapshot);
    // While the brake is on nothing goes anywhere; what would be said without it is.
    let without_brake = snapshot.paused.then(|| Snapshot {
        paused: false,
        ..snapshot.clone()
    });
    let ahead = Ahead {
        snapshot: without_brake.as_ref().unwrap_or(snapshot),
        index,
        registries: &registries,
        now,
    };
    let container = |container: &StuckContainer| {
        let told = match stuck.judge(container, &known) {
            _ if is_idle
                && missed(&stuck, container, &known)
                    .is_some_and(|missed| gives(snapshot, index, &missed, now)) =>
            {
                Told::new("KubeletIdle", IDLE_KUBELET)
            }
            Judgement::Left(Left::Upstream)
                if let Ok((turning, policy)) = stuck.forward(container, &ahead) =>
            {
                Told {
                    mirror: Some(turning.mirror.to_string()),
                    forward: Some(turning.to.to_string()),
                    ..goes_forward(policy, &turning.mirror, snapshot.paused)
                }
            }
            Judgement::Left(Left::Upstream) if let Some(turn) = stuck.went_back(container) => {
                went_back(turn, now)
            }
            Judgement::Back { mirror, to, policy } => Told {
                mirror: Some(mirror.to_owned()),
                back: Some(to.to_owned()),
                ..goes_back(policy, mirror, snapshot.paused)
            },
            Judgement::Left(Left::Upstream) if container.is_recorded() => {
                Told::new("NoSuchMirror", NO_SUCH_MIRROR)
            }
            Judgement::Left(left) => {
                let mut help = help(left).to_owned();
                let is_unrecorded = matches!(left, Left::NoRecord | Left::RecordDiffers);
                let candidate = original::candidate(&snapshot.routing, &container.image);
                if let Some(candidate) = candidate.filter(|_| is_unrecorded) {
                    help = format!("{help} (the mirror's mapping would make it of {candidate})");
                }
                Told::new(left.as_str(), help)
            }
        };
        let Told {
            why,
            help,
            mirror,
            back,
            forward,
        } = told;
        Stuck {
            namespace: stuck.id.namespace.to_string(),
            pod: stuck.id.name.to_string(),
            place: PlaceLabel::new(container.kind, &container.name).to_string(),
            image: container.image.to_string(),
            node: stuck.node.to_string(),
            why,
            help,
            since: None,
            mirror,
            goes_back_to: back,
            goes_forward_to: forward,
        }
    };
    stuck.containers.iter().map(container).collect()
}

/// Returns the containers of a Pod that take long to begin.
fn late(patient: &rescue::Pod<'_>, snapshot: &Snapshot, now: Timestamp) -> Vec<Stuck> {
    let late = hang::late(patient, &snapshot.routing, now).into_iter();
    let late = late.map(|(kind, name, image, since)| Stuck {
        namespace: patient.namespace.to_owned(),
        pod: patient.name.to_owned(),
        place: PlaceLabel::new(kind, &name).to_string(),
        image,
        node: patient.node.to_owned(),
        why: "PullLasts?",
        help: LATE.to_owned(),
        since: Some(since.to_string()),
        mirror: None,
        goes_back_to: None,
        goes_forward_to: None,
    });
    late.collect()
}

/// Returns the registries that Pods may be turned forward to, as the statuses of mirrors tell.
fn registries(snapshot: &Snapshot) -> Vec<String> {
    let allowed = snapshot.routing.mirrors();
    let allowed = allowed.filter(|(id, _)| snapshot.standing(*id).forward_allowed);
    allowed
        .map(|(_, mirror)| mirror.mapping.registry.to_string())
        .collect()
}

/// Returns what to say of one that goes forward, or would.
fn goes_forward(policy: RescuePolicy, mirror: &str, paused: bool) -> Told {
    match policy {
        RescuePolicy::Enforce if paused => Told::new(
            "Paused",
            "upstream does not give the image, a mirror does, and the brake is on: remove the annotation \
             kagami.dev/paused from the Lease kagami-health, and set the chart's value paused to false",
        ),
        RescuePolicy::Enforce => Told::new(
            "GoesForward",
            "upstream does not give the image, a mirror does, and the companion turns the Pod to that one just after \
             kubelet's next try fails, which comes within some five minutes",
        ),
        RescuePolicy::Audit | RescuePolicy::Off => Told::new(
            "WouldGoForward",
            format!(
                "upstream does not give the image, mirror {mirror} does, and that mirror's policy or the Pod's label lets \
                 Kagami only tell: set spec.rescue.policy of ImageMirror {mirror} to Enforce, or make the Pod anew"
            ),
        ),
    }
}

/// Returns what to say of one that goes back, or would.
fn goes_back(policy: RescuePolicy, mirror: &str, paused: bool) -> Told {
    match policy {
        RescuePolicy::Enforce if paused => Told::new(
            "Paused",
            "the mirror does not give the image, and the brake is on: remove the annotation kagami.dev/paused from the \
             Lease kagami-health, and set the chart's value paused to false, or write the Pod's own image",
        ),
        RescuePolicy::Enforce => Told::new(
            "GoesBack",
            "the mirror does not give the image, and the companion turns the Pod back to its own just after kubelet's \
             next try fails, which comes within some five minutes, if its own registry serves nodes: while the mirror \
             gives the image as far as Kagami sees, or nothing leads there again, a few Pods go alone until one of \
             them has its image, and none where they fail (the companion's log tells where), where that registry \
             refused this very image to the namespace, or where it came forward within ten minutes. Else: is there \
             a companion that leads, and is the chart's value rescue.enabled true?",
        ),
        RescuePolicy::Audit | RescuePolicy::Off => Told::new(
            "WouldGoBack",
            format!(
                "the mirror does not give the image, and its policy or the Pod's label lets Kagami only tell: set \
                 spec.rescue.policy of ImageMirror {mirror} to Enforce, or write the Pod's own image"
            ),
        ),
    }
}

/// Returns what to say of one that went back, and whose own image cannot be pulled either.
fn went_back(turn: &Turn, now: Timestamp) -> Told {
    let at = serde_json::from_value::<MicroTime>(turn.at.as_str().into()).ok();
    let at = at.map(|at| timestamp(&at));
    if at.is_some_and(|at| now.since(at) < LONGEST_BACK_OFF) {
        let help = "it went back to its own image less than five minutes ago, which an earlier failure of that name may \
                    last: wait";
        return Told::new("WentBack", help);
    }
    let help = "it went back to its own image, and that cannot be pulled either: the Pod's events tell what its registry \
                says";
    Told::new("DidNotHelp", help)
}

/// Returns when the status of a Pod was last written, as its managed fields tell: each attempt to pull changes it.
fn last_written(text: &str) -> Option<Timestamp> {
    let pod: Written = serde_json::from_str(text).ok()?;
    let managers = pod.metadata.managed_fields.into_iter();
    let of_status = managers.filter(|manager| manager.subresource == "status");
    of_status
        .filter_map(|manager| manager.time)
        .map(|time| timestamp(&time))
        .max()
}

/// Returns what a reason means, and what would help.
const fn help(left: Left) -> &'static str {
    match left {
        Left::Upstream => {
            "no mirror is named, so it is upstream that does not give the image: the Pod's events tell why. Where a \
             mirror has proof of it, condition ForwardAllowed of that ImageMirror tells whether Pods go there"
        }
        Left::OtherReference => {
            "kubelet speaks of another image: of an image volume, which nobody can change (delete the Pod, or let it be \
             evicted by spec.rescue.deletePods: Event VolumeStuck tells more), or of the one that stood there before, \
             until it has tried this one"
        }
        Left::NodeLimit => "the node pulls too much at once, and tries again by itself",
        Left::Unnamed => "kubelet does not say which image it speaks of; it does when it tries again",
        Left::NoRecord => {
            "the image is a mirror's, and nothing tells what its user wrote: write upstream's name into the Pod"
        }
        Left::RecordDiffers => {
            "what the Pod records as its original would not become this image on any mirror, so somebody else wrote \
             it: write upstream's name into the Pod"
        }
        Left::TurnedBefore => {
            "it went back once, and somebody wrote the mirror's name again: write upstream's name into the Pod, or \
             label it kagami.dev/mode: off and make it again"
        }
        Left::TurnsUnreadable => "annotation kagami.dev/rescued is not as Kagami writes it: remove it",
        Left::TooManyContainers => {
            "the Pod has more than 64 containers, and no companion changes such a Pod: write upstream's name into it"
        }
        Left::PodOff => {
            "the Pod's label kagami.dev/mode forbids it: remove the label, or write upstream's name"
        }
        Left::NamespaceLeftAlone => "Kagami leaves this namespace alone: write upstream's name into the Pod",
        Left::PolicyOff => {
            "spec.rescue.policy of the ImageMirror, or of another one in the same registry, is Off: set it to Enforce, \
             or write upstream's name into the Pod"
        }
    }
}

/// Returns the table of those that are stuck, the first ones, and what each reason means.
pub(super) fn table(stuck: &[Stuck]) -> Vec<String> {
    let (shown, more) = stuck.split_at(stuck.len().min(SHOWN));
    let mut table = Table::new(&["NAMESPACE", "STUCK POD", "PLACE", "IMAGE", "NODE", "WHY"]);
    let mut meanings = BTreeSet::new();
    for stuck in shown {
        table.row([
            &Foreign(&stuck.namespace),
            &Foreign(&stuck.pod),
            &Foreign(&stuck.place),
            &Foreign(&stuck.image),
            &Foreign(if stuck.node.is_empty() { "-" } else { &stuck.node }),
            &stuck.why,
        ]);
        meanings.insert((stuck.why, stuck.help.as_str()));
    }
    if table.is_empty() {
        return Vec::new();
    }
    let mut lines = table.lines();
    if !more.is_empty() {
        lines.push(format!("and {} more (--output json lists them)", more.len()));
    }
    lines.extend(meanings.iter().map(|(why, help)| format!("{why}: {help}")));
    lines.push(String::new());
    lines
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::{
        api::v1alpha1::micro_time,
        domain::{
            examples::{key, mirror, proof, snapshot},
            health::{Health, State},
            presence::Presence,
            standing::Standing,
        },
    };

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

    fn stuck(policy: RescuePolicy, image: &str, recorded: bool) -> Vec<Stuck> {
        of(&pod(image, recorded), &mirrors(policy), &Index::default())
    }

    fn mirrors(policy: RescuePolicy) -> Snapshot {
        let mut example = mirror("a", &["docker.io"]);
        example.rescue = policy;
        snapshot(vec![example])
    }

    fn pod(image: &str, recorded: bool) -> String {
        let annotations = if recorded {
            json!({"original-image.kagami.dev/app": "nginx:1"})
        } else {
            json!({})
        };
        let message = format!("Back-off pulling image \"{image}\"");
        let pod = json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "u", "annotations": annotations},
            "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": image}, {"name": "x", "image": "x"}]},
            "status": {"phase": "Pending", "containerStatuses": [
                {"name": "app", "state": {"waiting": {"reason": "ImagePullBackOff", "message": message}}},
                {"name": "x", "state": {"running": {}}},
            ]},
        });
        pod.to_string()
    }

    #[test]
    fn those_that_are_stuck_are_told_with_what_would_help() {
        use RescuePolicy::{Audit, Enforce, Off};
        let why = |stuck: &[Stuck]| {
            let [stuck] = stuck else { panic!("{stuck:?}") };
            assert!(!stuck.help.is_empty());
            (stuck.why, stuck.goes_back_to.clone())
        };
        let back = Some("nginx:1".to_owned());
        assert_eq!(why(&stuck(Enforce, MIRRORED, true)), ("GoesBack", back.clone()));
        assert_eq!(why(&stuck(Audit, MIRRORED, true)), ("WouldGoBack", back));
        assert_eq!(why(&stuck(Off, MIRRORED, true)), ("PolicyOff", None));
        assert_eq!(why(&stuck(Enforce, MIRRORED, false)), ("NoRecord", None));
        assert_eq!(why(&stuck(Enforce, "redis:8", false)), ("Upstream", None));
        // Such as one of a mirror that was deleted, which the companion remembers.
        assert_eq!(
            why(&stuck(Enforce, "gone.test/nginx:1", true)),
            ("NoSuchMirror", None)
        );
        let paused = Snapshot {
            paused: true,
            ..mirrors(Enforce)
        };
        assert_eq!(
            why(&of(&pod(MIRRORED, true), &paused, &Index::default())).0,
            "Paused"
        );
        let mut many: serde_json::Value = serde_json::from_str(&pod(MIRRORED, true)).unwrap();
        let containers = many["spec"]["containers"].as_array_mut().unwrap();
        containers.extend((2..65).map(|number| json!({"name": format!("c{number}"), "image": "x"})));
        assert_eq!(
            why(&of(&many.to_string(), &mirrors(Enforce), &Index::default())),
            ("TooManyContainers", None)
        );
        many["spec"]["containers"].as_array_mut().unwrap().pop();
        assert_eq!(
            why(&of(&many.to_string(), &mirrors(Enforce), &Index::default())).0,
            "GoesBack"
        );
        assert!(of("{", &Snapshot::default(), &Index::default()).is_empty());
    }

    #[test]
    fn those_that_stay_stuck_are_told_by_what_was_done_and_when() {
        let now = clock::now();
        let ago = |duration| micro_time(now.before(duration));
        // It went back at that time.
        let went_back = |at: &str| {
            let turn = json!({"containers.app": {"from": MIRRORED, "to": "nginx:1", "at": at, "pod": "u"}});
            let mut pod: serde_json::Value = serde_json::from_str(&pod("nginx:1", true)).unwrap();
            pod["metadata"]["annotations"]["kagami.dev/rescued"] = turn.to_string().into();
            of(
                &pod.to_string(),
                &mirrors(RescuePolicy::Enforce),
                &Index::default(),
            )[0]
            .why
        };
        let minute = Duration::from_mins(1);
        assert_eq!(went_back(&now.before(minute).to_string()), "WentBack");
        assert_eq!(went_back(&now.before(LONGEST_BACK_OFF).to_string()), "DidNotHelp");
        assert_eq!(went_back("yesterday"), "DidNotHelp");

        // The mirror gives it by now, and its status was last written at that time.
        let mut snapshot = mirrors(RescuePolicy::Enforce);
        let since = now.before(60 * minute);
        snapshot.health = vec![Health {
            state: State::Healthy,
            proven_since: since,
            ..Health::unknown(since)
        }];
        let mut index = Index::default();
        let seen_at = now.before(minute);
        index.write(
            "a",
            key("docker.io/library/nginx:1"),
            Presence::Present(proof('a')),
            seen_at,
            seen_at,
        );
        let waits = |recorded, written: MicroTime, index: &Index| {
            let mut pod: serde_json::Value = serde_json::from_str(&pod(MIRRORED, recorded)).unwrap();
            pod["metadata"]["managedFields"] = json!([
                {"manager": "kubelet", "subresource": "status", "time": written},
                {"manager": "kubectl", "time": ago(Duration::ZERO)},
            ]);
            of(&pod.to_string(), &snapshot, index)[0].why
        };
        assert_eq!(waits(false, ago(IDLE), &index), "KubeletIdle");
        assert_eq!(
            waits(false, ago(minute), &index),
            "NoRecord",
            "it tried not long ago"
        );
        assert_eq!(
            waits(false, ago(IDLE), &Index::default()),
            "NoRecord",
            "the mirror has it not"
        );
        // It is turned just after a failure, and there is none.
        assert_eq!(waits(true, ago(IDLE), &index), "KubeletIdle");
        assert_eq!(waits(true, ago(minute), &index), "GoesBack");
    }

    /// As the companion judges it.
    #[test]
    fn those_that_go_forward_are_told_with_the_mirror_and_its_name_of_the_image() {
        let now = clock::now();
        let told = |allowed, label, image: &str, change: fn(&mut Snapshot)| {
            let mut snapshot = mirrors(RescuePolicy::Enforce);
            snapshot.health = vec![Health {
                state: State::Healthy,
                proven_since: now.before(Duration::from_mins(9)),
                ..Health::unknown(now)
            }];
            let labels = [(crate::api::MODE_LABEL.to_owned(), "enforce".to_owned())].into();
            snapshot.namespaces = Arc::new([("shop".to_owned(), labels)].into());
            snapshot.standings = vec![Arc::new(Standing {
                forward_allowed: allowed,
                ..Standing::NONE
            })];
            change(&mut snapshot);
            let mut index = Index::default();
            let seen_at = now.before(Duration::from_mins(1));
            let seen = Presence::Present(proof('a'));
            index.write("a", key("docker.io/library/nginx:1"), seen, seen_at, seen_at);
            let mut pod: serde_json::Value = serde_json::from_str(&pod(image, false)).unwrap();
            pod["metadata"]["labels"] = json!({"kagami.dev/mode": label});
            let Stuck {
                why,
                mirror,
                goes_forward_to,
                ..
            } = of(&pod.to_string(), &snapshot, &index).remove(0);
            (why, mirror.is_some(), goes_forward_to)
        };
        let to = Some(MIRRORED.to_owned());
        assert_eq!(
            told(true, "enforce", "nginx:1", |_| ()),
            ("GoesForward", true, to.clone())
        );
        assert_eq!(
            told(true, "audit", "nginx:1", |_| ()),
            ("WouldGoForward", true, to.clone())
        );
        assert_eq!(
            told(true, "enforce", "nginx:1", |snapshot| snapshot.paused = true),
            ("Paused", true, to)
        );
        assert_eq!(
            told(false, "enforce", "nginx:1", |_| ()),
            ("Upstream", false, None)
        );
        assert_eq!(
            told(true, "enforce", "nginx:2", |_| ()),
            ("Upstream", false, None)
        );
    }

    #[test]
    fn the_table_has_an_end_and_tells_each_meaning_once() {
        let mut all = Vec::new();
        for _ in 0..SHOWN + 2 {
            all.append(&mut stuck(RescuePolicy::Enforce, MIRRORED, false));
        }
        let lines = table(&all);
        assert_eq!(lines.len(), 1 + SHOWN + 3, "{lines:#?}");
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["shop", "web", "containers.app", MIRRORED, "node-1", "NoRecord"]
        );
        assert_eq!(lines[SHOWN + 1], "and 2 more (--output json lists them)");
        assert!(lines[SHOWN + 2].starts_with("NoRecord: the image is a mirror's"));
        assert!(table(&[]).is_empty());
    }
}
