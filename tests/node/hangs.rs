//! Pulls from a mirror that falls silent in the middle. What its node is inside of holds up others, so these tests have
//! the node for themselves.

use std::{
    collections::BTreeMap,
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
        chart::{Use, kubectl},
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
        let cluster = &node.cluster;
        let mirror = Registry::start(node, &format!("{name}.{}", upstream.host()));
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

/// Before the headers, after 2 MiB of a layer, and after the headers with a front end that never closes. One that closes
/// after a while is left out: with every byte that comes containerd begins to count anew how often it has tried.
#[expect(clippy::too_many_lines, reason = "one story, whose pulls hang side by side")]
pub(crate) fn a_pull_that_hangs_is_told_and_its_pod_runs_once_it_fails(node: &Node) {
    let kagami = Use::alone(node);
    let cluster = &node.cluster;
    let upstream = Registry::start(node, "hangs.test");
    let namespace = cluster.namespace(Some("enforce"));
    let side = format!("{}/team/side:1", upstream.host());
    upstream.push(cluster, "team/side", "1", &images::shell("side", FOREVER));
    run(
        &namespace,
        "side",
        std::slice::from_ref(&side),
        std::slice::from_ref(&side),
    );
    let cases = [
        ("never", HEADERS, 0),
        ("silent", Passing::Nothing, 0),
        ("partial", Passing::First(2 << 20), 8 << 20),
    ];
    let mut behind: Vec<_> = cases
        .iter()
        .map(|(name, _, ballast)| Behind::new(node, &upstream, name, *ballast))
        .collect();
    for ((name, ..), behind) in cases.iter().zip(&behind) {
        until_rewritten(
            &namespace,
            std::slice::from_ref(&behind.written),
            std::slice::from_ref(&behind.mirrored),
        );
        let created = namespace.create_pod(&gated(name, &[("side", &side), ("app", &behind.written)]));
        assert_eq!(image(&created.success(), "app"), behind.mirrored);
    }
    for ((name, passing, ..), behind) in cases.iter().zip(&behind) {
        behind.front.pass(*passing);
        open(&namespace, name);
        let began = eventually("its node pulls", || {
            event(&namespace, name, "Pulling", "spec.containers{app}")
        });
        // Of a node the pull that began first is told, and Events have whole seconds.
        eventually("another second", || {
            let now = kagami::clock::now().to_string();
            (now[..19] > began[..19]).then_some(())
        });
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
        eprintln!("hangs: {name} runs {took:?} after kubelet's error");
        assert!(took < BAR, "{name}: {took:?}");
    }
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

/// The brake is on while two containers of a Pod fail. The mirror comes back, kubelet starts the first and pulls the
/// second: its status calls both waiting. Whoever believes that restarts the first.
pub(crate) fn a_turn_that_comes_late_restarts_nothing(node: &Node) {
    let kagami = Use::alone(node);
    let upstream = Registry::start(node, "late.test");
    let namespace = node.cluster.namespace(Some("enforce"));
    let mut one = Behind::new(node, &upstream, "one", 0);
    let mut two = Behind::new(node, &upstream, "two", 0);
    for behind in [&one, &two] {
        until_rewritten(
            &namespace,
            std::slice::from_ref(&behind.written),
            std::slice::from_ref(&behind.mirrored),
        );
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
    let events = namespace.cluster.get(&namespace.path("events")).success();
    let events = events["items"].as_array()?.clone().into_iter();
    let of = events.filter(|event| {
        let object = &event["involvedObject"];
        object["name"] == pod && object["fieldPath"] == path && event["reason"] == reason
    });
    let at = of.filter_map(|event| {
        let times = [&event["lastTimestamp"], &event["eventTime"]];
        times.iter().find_map(|time| time.as_str().map(str::to_owned))
    });
    at.max()
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
