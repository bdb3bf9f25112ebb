//! Pulls from a mirror that falls silent in the middle. What its node is inside of holds up others, so these tests have
//! the node for themselves.

use std::{
    collections::BTreeMap,
    slice::from_ref,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    shared::{
        admission::{annotation, image},
        chart::stdout,
        cluster::Namespace,
        companion::MIRRORS,
        eventually, within,
    },
    support::{
        chart::{Use, kubectl, until_rolled_out},
        front::{Front, Passing},
        images::{self, FOREVER},
        kagami::{Mirrored, image_mirror},
        node::Node,
        pods::{dry_run, pod, run, until, until_rewritten},
        registry::Registry,
    },
};

/// The mirrors' `spec.rescue.hangAfter`.
const HANG_AFTER: Duration = Duration::from_secs(10);

/// How long after that a pull may take to be told, and how long a Pod may take from its error to running.
const BAR: Duration = Duration::from_secs(10);

/// After how long the front end closes that does so by itself.
const CLOSES_AFTER: Duration = Duration::from_secs(5);

/// A pull that takes its time, and the rate and size that make it so: containerd gives up where no further MiB comes within
/// its timeout, 10 s here.
const SLOW: Duration = Duration::from_mins(3);
const SLOW_RATE: u32 = 200_000;
const SLOW_BALLAST: usize = 36_000_000;

/// So much of an answer that a manifest comes through, and of a layer the beginning.
const HEADERS: Passing = Passing::First(24 * 1024);

/// A mirror behind a front end, with one image.
struct Behind<'a> {
    mirror: Registry,
    front: Front,
    written: String,
    mirrored: String,
    object: String,
    _mirrored: Mirrored<'a>,
}

impl<'a> Behind<'a> {
    fn new(node: &'a Node, upstream: &Registry, name: &str, ballast: usize) -> Self {
        let mirror = Registry::start(node, &format!("{name}.{}", upstream.host()));
        Self::before(node, upstream, mirror, name, ballast)
    }

    fn before(node: &'a Node, upstream: &Registry, mirror: Registry, name: &str, ballast: usize) -> Self {
        let cluster = &node.cluster;
        let front = Front::before(node, &mirror);
        let image = images::large_shell(&mirror.host(), FOREVER, ballast);
        let repository = format!("{name}/app");
        upstream.push(cluster, &repository, "1", &image);
        let prefix = format!("{}/{name}", upstream.host());
        mirror.push(cluster, &format!("{prefix}/app"), "1", &image);
        let mut object = image_mirror(node, &mirror, &[&prefix]);
        object["spec"]["rescue"] = json!({"hangAfter": format!("{}s", HANG_AFTER.as_secs())});
        let written = format!("{prefix}/app:1");
        Self {
            mirrored: format!("{}/{written}", mirror.host()),
            written,
            object: format!("{MIRRORS}/{}", mirror.name),
            _mirrored: Mirrored::new(node, &object),
            mirror,
            front,
        }
    }

    fn condition(&self, node: &Node, condition: &str) -> Option<Value> {
        let object = node.cluster.get(&self.object).success();
        let mut conditions = object["status"]["conditions"].as_array()?.clone().into_iter();
        conditions.find(|known| known["type"] == condition)
    }
}

/// Before the headers, after 2 MiB of a layer, and after the headers with a front end that never closes or that closes after
/// 5 s. Of the last no byte of the layer comes through: with every byte containerd begins to count anew how often it has
/// tried, and such a pull has no end.
#[expect(clippy::too_many_lines, reason = "one story, whose pulls hang side by side")]
pub(crate) fn a_pull_that_hangs_is_told_and_its_pod_runs_once_it_fails(node: &Node) {
    let kagami = Use::alone(node);
    let upstream = Registry::start(node, "hangs.test");
    let namespace = node.cluster.namespace(Some("enforce"));
    let side = side(node, &namespace, &upstream);
    let cases = [
        ("never", HEADERS, 0),
        ("silent", Passing::Nothing, 0),
        ("partial", Passing::First(2 << 20), 8 << 20),
        ("closing", Passing::Headers(CLOSES_AFTER), 0),
    ];
    let mut behind: Vec<_> = cases
        .iter()
        .map(|(name, passing, ballast)| match passing {
            Passing::Headers(_) => {
                let mirror = Registry::start_plain(node, &format!("{name}.{}", upstream.host()));
                Behind::before(node, &upstream, mirror, name, *ballast)
            }
            _ => Behind::new(node, &upstream, name, *ballast),
        })
        .collect();
    for ((name, ..), behind) in cases.iter().zip(&behind) {
        until_rewritten(&namespace, from_ref(&behind.written), from_ref(&behind.mirrored));
        let created = namespace.create_pod(&gated(name, &[("side", &side), ("app", &behind.written)]));
        assert_eq!(image(&created.success(), "app"), behind.mirrored);
    }
    let mut began: BTreeMap<&str, Instant> = BTreeMap::new();
    for ((name, passing, ..), behind) in cases.iter().zip(&behind) {
        behind.front.pass(*passing);
        open(&namespace, name);
        began.insert(name, Instant::now());
        until_pulling(&namespace, name);
    }

    let [never, others @ ..] = &mut behind[..] else {
        unreachable!()
    };
    let told_from = Instant::now();
    let mut failed: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut ran: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut told = None;
    within(
        Duration::from_mins(2),
        "all but the first run, which is told",
        || {
            for (name, ..) in &cases[1..] {
                let pod = namespace.pod(name);
                let state = &status(&pod, "app")["state"];
                let fails = event(&namespace, name, "Failed", "spec.containers{app}").is_some();
                if fails {
                    failed.entry(name).or_insert_with(Instant::now);
                } else {
                    assert!(
                        annotation(&pod, "kagami.dev/rescued").is_none(),
                        "patched while it pulls: {pod}"
                    );
                }
                if state["running"].is_object() {
                    ran.entry(name).or_insert_with(Instant::now);
                }
            }
            let is_told = event(&namespace, "never", "PullLasts", "spec.containers{app}").is_some();
            if is_told && told.is_none() {
                told = Some(told_from.elapsed());
            }
            (ran.len() == others.len() && told.is_some()).then_some(())
        },
    );
    for (name, ran) in &ran {
        let took = ran.saturating_duration_since(failed[name]);
        let lasted = failed[name].saturating_duration_since(began[name]);
        eprintln!("hangs: {name} pulls for {lasted:?}, and runs {took:?} after kubelet's error");
        assert!(took < BAR, "{name}: {took:?}");
    }
    // Containerd alone, as Kagami looks at layers too, and but for the configuration.
    let pulls = others.last().unwrap().mirror.pulls("hangs.test/closing/app");
    let layers = pulls.iter().filter(|pull| pull.contains("/blobs/")).count() - 1;
    eprintln!("hangs: containerd asked {layers} times for a layer of which no byte came");
    assert!(layers > 0, "{pulls:?}");
    // Its pull began before, by as long as it took to begin the others'.
    let told = told.unwrap();
    eprintln!("hangs: told {told:?} after the last pull began");
    assert!(told < HANG_AFTER + BAR, "{told:?}");
    let condition = eventually("the condition says so", || {
        let condition = never.condition(node, "NodesCanPull")?;
        (condition["reason"] == "PullLasts").then_some(condition)
    });
    for part in ["node1", &never.mirrored] {
        assert!(
            condition["message"].as_str().unwrap().contains(part),
            "{condition}"
        );
    }
    let pod = namespace.pod("never");
    assert_eq!(image(&pod, "app"), never.mirrored);
    assert!(annotation(&pod, "kagami.dev/rescued").is_none(), "{pod}");
    eventually("new Pods stay upstream", || {
        (image(&dry_run(&namespace, &never.written), "app") == never.written).then_some(())
    });

    never.mirror.kill();
    never.front.close();
    eventually("kubelet's error", || {
        event(&namespace, "never", "Failed", "spec.containers{app}")
    });
    let failed = Instant::now();
    until(&namespace, "never", "it runs from upstream", |pod| {
        status(pod, "app")["state"]["running"].is_object() && image(pod, "app") == never.written
    });
    let took = failed.elapsed();
    eprintln!("hangs: never runs {took:?} after kubelet's error");
    assert!(took < BAR, "{took:?}");
    for (name, ..) in &cases {
        assert_never_restarted(&namespace, name);
    }
    drop(kagami);
}

/// Kubelet pulls one image after the other, as it does by default: a Pod of a sound mirror waits for the pull that hangs.
pub(crate) fn who_waits_behind_a_pull_that_hangs_is_told_and_left_alone(node: &Node) {
    let kagami = Use::alone(node);
    let upstream = Registry::start(node, "serial.test");
    let namespace = node.cluster.namespace(Some("enforce"));
    let side = side(node, &namespace, &upstream);
    let serial = node.pull_one_by_one();
    until_kubelet_is_back(node, &side);
    let mut hanging = Behind::new(node, &upstream, "hanging", 0);
    let waiting = Behind::new(node, &upstream, "waiting", 0);
    let pods = [("hanging", &hanging), ("waiting", &waiting)];
    for (name, behind) in pods {
        until_rewritten(&namespace, from_ref(&behind.written), from_ref(&behind.mirrored));
        let created = namespace.create_pod(&gated(name, &[("side", &side), ("app", &behind.written)]));
        assert_eq!(image(&created.success(), "app"), behind.mirrored);
    }
    hanging.front.pass(HEADERS);
    for (name, _) in pods {
        open(&namespace, name);
        until_pulling(&namespace, name);
    }
    let began = Instant::now();
    let note = |name: &str| {
        eventually(&format!("{name} is told"), || {
            note(&namespace, name, "PullLasts", "spec.containers{app}")
        })
    };
    let told = note("hanging");
    let took = began.elapsed();
    eprintln!("hangs: with serial pulls, told {took:?} after the last said that it pulls");
    assert!(took < HANG_AFTER + BAR, "{took:?}");
    assert!(!told.contains("waits behind"), "{told}");
    let told = note("waiting");
    assert!(told.contains("waits behind"), "{told}");
    for (name, behind) in pods {
        assert_untouched(&namespace, name, behind);
    }

    hanging.mirror.kill();
    hanging.front.close();
    eventually("kubelet's error", || {
        event(&namespace, "hanging", "Failed", "spec.containers{app}")
    });
    let failed = Instant::now();
    until(&namespace, "hanging", "it runs from upstream", |pod| {
        runs(pod, "app") && image(pod, "app") == hanging.written
    });
    let took = failed.elapsed();
    eprintln!("hangs: with serial pulls, it runs {took:?} after kubelet's error");
    assert!(took < BAR, "{took:?}");
    until(&namespace, "waiting", "it runs", |pod| runs(pod, "app"));
    assert_untouched(&namespace, "waiting", &waiting);
    for name in ["hanging", "waiting"] {
        assert_never_restarted(&namespace, name);
    }
    drop(serial);
    until_kubelet_is_back(node, &side);
    drop(kagami);
}

/// Slow and hung cannot be told apart from outside, so it is told like one that hangs, and nothing else happens to it.
pub(crate) fn a_pull_of_three_minutes_that_ends_well_is_left_alone(node: &Node) {
    let kagami = Use::shared(node);
    let upstream = Registry::start(node, "slow.test");
    let namespace = node.cluster.namespace(Some("enforce"));
    let side = side(node, &namespace, &upstream);
    let slow = Behind::new(node, &upstream, "slow", SLOW_BALLAST);
    until_rewritten(&namespace, from_ref(&slow.written), from_ref(&slow.mirrored));
    let created = namespace.create_pod(&gated("slow", &[("side", &side), ("app", &slow.written)]));
    assert_eq!(image(&created.success(), "app"), slow.mirrored);
    slow.front.pass(Passing::Slowly(SLOW_RATE));
    open(&namespace, "slow");
    until_pulling(&namespace, "slow");
    let began = Instant::now();
    eventually("it is told", || {
        event(&namespace, "slow", "PullLasts", "spec.containers{app}")
    });
    let started = event(&namespace, "slow", "Started", "spec.containers{side}");
    assert!(started.is_some(), "its neighbour runs");
    // Tests that disturb Kagami need not wait for this one: it has had its say.
    drop(kagami);
    within(2 * SLOW, "the pull ends", || {
        let pod = assert_untouched(&namespace, "slow", &slow);
        runs(&pod, "app").then_some(())
    });
    let took = began.elapsed();
    eprintln!("hangs: a pull of {took:?} was left alone");
    assert!(took >= SLOW, "{took:?}");
    assert_eq!(
        event(&namespace, "slow", "Failed", "spec.containers{app}"),
        None,
        "it ended well"
    );
    assert_never_restarted(&namespace, "slow");
    assert_untouched(&namespace, "slow", &slow);
}

/// An image that the mirrors do not have, which is on the node from now on.
fn side(node: &Node, namespace: &Namespace<'_>, upstream: &Registry) -> String {
    let side = format!("{}/team/side:1", upstream.host());
    let built = images::shell("side", FOREVER);
    upstream.push(&node.cluster, "team/side", "1", &built);
    run(namespace, "side", from_ref(&side), from_ref(&side));
    side
}

/// Waits until a kubelet that was started again starts Pods, and Kagami's are as ready as before: it asks them anew.
fn until_kubelet_is_back(node: &Node, image: &str) {
    let namespace = node.cluster.namespace(None);
    run(&namespace, "back", &[image.to_owned()], &[image.to_owned()]);
    until_rolled_out(node, "webhook", 3);
    until_rolled_out(node, "companion", 2);
}

/// Waits until a Pod's node says that it pulls, and for another second: of a node the pull that began first is told, and
/// Events have whole seconds.
fn until_pulling(namespace: &Namespace<'_>, name: &str) {
    let began = eventually("its node pulls", || {
        event(namespace, name, "Pulling", "spec.containers{app}")
    });
    eventually("another second", || {
        let now = kagami::clock::now().to_string();
        (now[..19] > began[..19]).then_some(())
    });
}

fn runs(pod: &Value, container: &str) -> bool {
    status(pod, container)["state"]["running"].is_object()
}

/// Kagami has changed nothing of a Pod since it was admitted. Returns it.
#[track_caller]
fn assert_untouched(namespace: &Namespace<'_>, name: &str, behind: &Behind<'_>) -> Value {
    let pod = namespace.pod(name);
    assert_eq!(image(&pod, "app"), behind.mirrored);
    assert!(annotation(&pod, "kagami.dev/rescued").is_none(), "{pod}");
    pod
}

/// The brake is on while two containers of a Pod fail. The mirror comes back, kubelet starts the first and pulls the
/// second: its status calls both waiting. Whoever believes that restarts the first.
pub(crate) fn a_turn_that_comes_late_restarts_nothing(node: &Node) {
    let kagami = Use::alone(node);
    let upstream = Registry::start(node, "late.test");
    let namespace = node.cluster.namespace(Some("enforce"));
    let mut one = Behind::new(node, &upstream, "one", 0);
    let mut two = Behind::new(node, &upstream, "two", 0);
    for behind in [&one, &two] {
        until_rewritten(&namespace, from_ref(&behind.written), from_ref(&behind.mirrored));
    }
    let pod = gated("web", &[("a", &one.written), ("b", &two.written)]);
    let created = namespace.create_pod(&pod).success();
    assert_eq!(
        [image(&created, "a"), image(&created, "b")],
        [&one.mirrored, &two.mirrored]
    );

    let brake = Brake::on(node);
    let ready = |reason: &str| {
        eventually(&format!("Ready says {reason}"), || {
            (one.condition(node, "Ready")?["reason"] == reason).then_some(())
        });
    };
    ready("Paused");
    one.mirror.kill();
    two.mirror.kill();
    open(&namespace, "web");
    let waits = |pod: &Value, container: &str| {
        let reason = &status(pod, container)["state"]["waiting"]["reason"];
        reason == "ImagePullBackOff"
    };
    until(&namespace, "web", "both wait", |pod| {
        waits(pod, "a") && waits(pod, "b")
    });
    // In that very round kubelet tries once more. Only when that has failed too it surely waits, for twenty seconds.
    until(&namespace, "web", "both were tried again", |pod| {
        let failed = |container: &str| status(pod, container)["state"]["waiting"]["reason"] == "ErrImagePull";
        failed("a") && failed("b")
    });
    // The second image is slow.
    two.front.pass(HEADERS);
    let last_pull = event(&namespace, "web", "Pulling", "spec.containers{b}").unwrap();
    two.mirror.bring_back();
    one.mirror.bring_back();
    within(
        Duration::from_mins(1),
        "the first is started, and the second pulled",
        || {
            event(&namespace, "web", "Started", "spec.containers{a}")?;
            (event(&namespace, "web", "Pulling", "spec.containers{b}")? > last_pull).then_some(())
        },
    );
    let pod = namespace.pod("web");
    assert!(waits(&pod, "a") && waits(&pod, "b"), "{pod}");

    drop(brake);
    eventually("Ready says that the brake is off", || {
        (one.condition(node, "Ready")?["reason"] != "Paused").then_some(())
    });
    // As long as an order that is carried out at once would take, several times.
    thread::sleep(Duration::from_secs(4));
    let pod = namespace.pod("web");
    assert_eq!(
        [image(&pod, "a"), image(&pod, "b")],
        [&one.mirrored, &two.mirrored]
    );
    two.front.pass(Passing::All);
    two.front.close();
    until(&namespace, "web", "both run", |pod| {
        ["a", "b"]
            .iter()
            .all(|container| status(pod, container)["state"]["running"].is_object())
    });
    assert_never_restarted(&namespace, "web");
    drop(kagami);
}

/// The annotation that stops everything, as long as this lives.
struct Brake<'a>(&'a Node);

impl<'a> Brake<'a> {
    fn on(node: &'a Node) -> Self {
        Self::annotate(node, "kagami.dev/paused=true");
        Self(node)
    }

    fn annotate(node: &Node, word: &str) {
        kubectl(node, &["annotate", "--overwrite", "lease", "kagami-health", word]);
    }
}

impl Drop for Brake<'_> {
    fn drop(&mut self) {
        Self::annotate(self.0, "kagami.dev/paused-");
    }
}

/// A Pod that is admitted and then waits for somebody to open its gate.
pub(crate) fn gated(name: &str, containers: &[(&str, &str)]) -> Value {
    let mut pod = pod(name, "x");
    let container = |(name, image): &(&str, &str)| json!({"name": name, "image": image});
    pod["spec"]["containers"] = containers.iter().map(container).collect();
    pod["spec"]["schedulingGates"] = json!([{"name": "kagami.test/closed"}]);
    pod
}

pub(crate) fn open(namespace: &Namespace<'_>, name: &str) {
    let open = r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#;
    stdout(&namespace.kubectl(&["patch", "pod", name, "--type=json", "--patch", open]));
}

/// When an Event of a Pod's container was last so.
fn event(namespace: &Namespace<'_>, pod: &str, reason: &str, path: &str) -> Option<String> {
    let events = events(namespace, pod, reason, path).into_iter();
    let at = events.filter_map(|event| {
        let times = [&event["lastTimestamp"], &event["eventTime"]];
        times.iter().find_map(|time| time.as_str().map(str::to_owned))
    });
    at.max()
}

/// What an Event of a Pod's container says.
fn note(namespace: &Namespace<'_>, pod: &str, reason: &str, path: &str) -> Option<String> {
    let events = events(namespace, pod, reason, path);
    Some(events.first()?["message"].as_str()?.to_owned())
}

/// The Events of a Pod's container with a reason.
pub(crate) fn events(namespace: &Namespace<'_>, pod: &str, reason: &str, path: &str) -> Vec<Value> {
    let events = namespace.cluster.get(&namespace.path("events")).success();
    let mut events = events["items"].as_array().cloned().unwrap_or_default();
    events.retain(|event| {
        let object = &event["involvedObject"];
        object["name"] == pod && object["fieldPath"] == path && event["reason"] == reason
    });
    events
}

pub(crate) fn status<'p>(pod: &'p Value, container: &str) -> &'p Value {
    let mut statuses = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    statuses
        .find(|status| status["name"] == container)
        .unwrap_or(&Value::Null)
}

#[track_caller]
pub(crate) fn assert_never_restarted(namespace: &Namespace<'_>, name: &str) {
    let pod = namespace.pod(name);
    let statuses = ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].as_array());
    for status in statuses.into_iter().flatten().flatten() {
        assert_eq!(status["restartCount"], 0, "{pod}");
    }
}
