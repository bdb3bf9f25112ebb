//! Pods that were sent to a mirror which cannot serve them when their node pulls.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    shared::{admission::image, chart::stdout, cluster::Namespace, eventually, within},
    support::{
        chart::Use,
        images::{self, FOREVER},
        node::Node,
        pods::pod,
        scene::Scene,
    },
};

/// How long after its first failed pull a Pod may take to run.
const BAR: Duration = Duration::from_secs(30);

const REPLICAS: usize = 10;

/// The mirror dies after admission and before the pull. Pods wait at a gate in between.
pub(crate) fn a_deployment_sent_to_a_mirror_that_died_runs_from_upstream(node: &Node) {
    let mut scene = Scene::new(Use::shared(node), "rescued", |_| ());
    let side = format!("{}/team/side:1", scene.upstream.host());
    let built = images::shell("side", FOREVER);
    scene.upstream.push(&node.cluster, "team/side", "1", &built);
    create_deployment(&scene, &[("side", &side), ("app", &scene.written[0])]);
    let namespace = &scene.namespace;
    let names: Vec<String> = eventually("all Pods are there", || {
        let pods = pods(namespace);
        let names: Vec<_> = pods.iter().map(name).collect();
        (names.len() == REPLICAS).then_some(names)
    });
    for pod in pods(namespace) {
        assert_eq!(image(&pod, "app"), scene.mirrored[0]);
        assert_eq!(image(&pod, "side"), side);
    }

    scene.mirror.kill();
    let namespace = &scene.namespace;
    for name in &names {
        let open = r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#;
        stdout(&namespace.kubectl(&["patch", "pod", name, "--type=json", "--patch", open]));
    }
    let times = times_to_run(namespace);
    let mut sorted: Vec<_> = times.values().copied().collect();
    sorted.sort_unstable();
    eprintln!(
        "rescue: {} of {REPLICAS} Pods saw a failed pull; from there to Running: median {:?}, worst {:?}",
        sorted.len(),
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1]
    );
    assert!(sorted.iter().all(|took| *took < BAR), "{times:?}");
    for pod in pods(namespace) {
        assert_eq!(image(&pod, "app"), scene.written[0]);
        for status in pod["status"]["containerStatuses"].as_array().unwrap() {
            assert_eq!(status["restartCount"], 0, "{pod}");
        }
    }
    let mut current: Vec<_> = pods(namespace).iter().map(name).collect();
    let mut before = names;
    current.sort_unstable();
    before.sort_unstable();
    assert_eq!(current, before, "no Pod was made again");
    scene.mirror.bring_back();
}

/// Creates a Deployment whose Pods are admitted and then wait for somebody to open their gate.
fn create_deployment(scene: &Scene<'_>, containers: &[(&str, &str)]) {
    let mut template = pod("web", "");
    let container = |(name, image): &(&str, &str)| json!({"name": name, "image": image});
    let spec = &mut template["spec"];
    spec["containers"] = containers.iter().map(container).collect();
    spec["schedulingGates"] = json!([{"name": "kagami.test/closed"}]);
    let labels = json!({"app": "web"});
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
        },
    });
    let namespace = &scene.namespace;
    let path = format!("/apis/apps/v1/namespaces/{}/deployments", namespace.name);
    namespace.cluster.create(&path, &deployment).success();
}

/// Waits until all Pods run. Returns how long each took from its first failed pull, where there was one.
fn times_to_run(namespace: &Namespace<'_>) -> BTreeMap<String, Duration> {
    let mut failed: BTreeMap<String, Instant> = BTreeMap::new();
    let mut ran: BTreeMap<String, Instant> = BTreeMap::new();
    within(Duration::from_mins(4), "all Pods run", || {
        for pod in pods(namespace) {
            let statuses = pod["status"]["containerStatuses"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let fails = |status: &Value| {
                let reason = status["state"]["waiting"]["reason"].as_str();
                ["ErrImagePull", "ImagePullBackOff"].contains(&reason.unwrap_or_default())
            };
            if statuses.iter().any(fails) {
                failed.entry(name(&pod)).or_insert_with(Instant::now);
            }
            let runs = |status: &Value| status["state"]["running"].is_object();
            if !statuses.is_empty() && statuses.iter().all(runs) {
                ran.entry(name(&pod)).or_insert_with(Instant::now);
            }
        }
        // More often than other waits: what is measured is short.
        thread::sleep(Duration::from_millis(100));
        (ran.len() == REPLICAS).then_some(())
    });
    let took = |(name, failed): (String, Instant)| {
        let ran = ran[&name];
        (name, ran.saturating_duration_since(failed))
    };
    failed.into_iter().map(took).collect()
}

fn pods(namespace: &Namespace<'_>) -> Vec<Value> {
    let pods = namespace.cluster.get(&namespace.path("pods")).success();
    pods["items"].as_array().unwrap().clone()
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}
