//! Pods that were sent to a mirror which cannot serve them when their node pulls.

use std::{
    collections::BTreeMap,
    slice::from_ref,
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
        pods::{pod, until_rewritten},
        scene::Scene,
    },
};

/// How long after its first failed pull a Pod may take until all of it runs, or has ended well. An init container and
/// what comes after it are two pulls.
const BAR: Duration = Duration::from_secs(30);

/// The Pods of each workload.
const DEPLOYMENT: usize = 10;
const STATEFUL_SET: usize = 2;
const ALL: usize = DEPLOYMENT + STATEFUL_SET + 2;

/// The mirror dies after admission and before the pull. Pods wait at a gate in between.
pub(crate) fn pods_sent_to_a_mirror_that_died_run_from_upstream(node: &Node) {
    let mut scene = Scene::new(Use::shared(node), "rescued", |_| ());
    // One that the mirror does not have, which runs whatever becomes of the mirror; and one that ends.
    let side = format!("{}/team/side:1", scene.upstream.host());
    let built = images::shell("side", FOREVER);
    scene.upstream.push(&node.cluster, "team/side", "1", &built);
    let task = format!("{}/team/task:1", scene.upstream.host());
    let built = images::shell("task", "exit 0");
    scene.upstream.push(&node.cluster, "team/task", "1", &built);
    let mirrored_task = format!("{}/{task}", scene.mirror.host());
    scene
        .mirror
        .push(&node.cluster, &mirrored_repository(&task), "1", &built);
    let namespace = &scene.namespace;
    until_rewritten(namespace, from_ref(&task), from_ref(&mirrored_task));
    create_all(&scene, &side, &task);
    let names: Vec<String> = eventually("all Pods are there", || {
        let names: Vec<_> = pods(namespace).iter().map(name).collect();
        (names.len() == ALL).then_some(names)
    });
    let is_of_a_mirror = |image: &str| [&scene.mirrored[0], &mirrored_task].contains(&&image.to_owned());
    for pod in pods(namespace) {
        for (container, image) in images_of(&pod) {
            assert_eq!(is_of_a_mirror(&image), container != "side", "{pod}");
        }
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
    let (Some(median), Some(worst)) = (sorted.get(sorted.len() / 2), sorted.last()) else {
        panic!("no pull failed")
    };
    eprintln!(
        "rescue: {} of {ALL} Pods saw a failed pull; until all of a Pod runs or has ended: median {median:?}, worst \
         {worst:?}",
        sorted.len(),
    );
    assert!(*worst < BAR, "{times:?}");
    for pod in pods(namespace) {
        for (container, image) in images_of(&pod) {
            assert!(!image.starts_with(&scene.mirror.host()), "{container}: {pod}");
        }
        let status = &pod["status"];
        for status in ["containerStatuses", "initContainerStatuses"].map(|list| status[list].as_array()) {
            for status in status.into_iter().flatten() {
                assert_eq!(status["restartCount"], 0, "{pod}");
            }
        }
    }
    let mut current: Vec<_> = pods(namespace).iter().map(name).collect();
    let mut before = names;
    current.sort_unstable();
    before.sort_unstable();
    assert_eq!(current, before, "no Pod was made again");
    scene.mirror.bring_back();
}

/// Creates workloads whose Pods are admitted and then wait for somebody to open their gate.
fn create_all(scene: &Scene<'_>, side: &str, task: &str) {
    let namespace = &scene.namespace;
    let app = &scene.written[0];
    let container = |name: &str, image: &str| json!({"name": name, "image": image});
    let spec = |containers: Value| {
        let mut spec = pod("x", "x")["spec"].take();
        spec["containers"] = containers;
        spec["schedulingGates"] = json!([{"name": "kagami.test/closed"}]);
        spec
    };
    let of_apps = |kind: &str, plural: &str, name: &str, replicas: usize| {
        let labels = json!({"app": name});
        let mut object = json!({
            "kind": kind, "apiVersion": "apps/v1", "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": spec(json!([container("side", side), container("app", app)])),
                },
            },
        });
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = name.into();
            object["spec"]["podManagementPolicy"] = "Parallel".into();
        }
        let path = format!("/apis/apps/v1/namespaces/{}/{plural}", namespace.name);
        namespace.cluster.create(&path, &object).success();
    };
    of_apps("Deployment", "deployments", "web", DEPLOYMENT);
    of_apps("StatefulSet", "statefulsets", "store", STATEFUL_SET);

    let mut of_job = spec(json!([container("app", task)]));
    of_job["initContainers"] = json!([container("init", task)]);
    of_job["restartPolicy"] = "Never".into();
    let job = json!({
        "metadata": {"name": "job"},
        "spec": {"backoffLimit": 0, "template": {"spec": of_job}},
    });
    let path = format!("/apis/batch/v1/namespaces/{}/jobs", namespace.name);
    namespace.cluster.create(&path, &job).success();

    let mut with_sidecar = pod("sidecar", "x");
    with_sidecar["spec"] = spec(json!([container("app", app)]));
    let mut sidecar = container("before", app);
    sidecar["restartPolicy"] = "Always".into();
    with_sidecar["spec"]["initContainers"] = json!([sidecar]);
    namespace.create_pod(&with_sidecar).success();
}

/// Waits until all Pods run, or have ended well. Returns how long each took from its first failed pull, where there was
/// one.
fn times_to_run(namespace: &Namespace<'_>) -> BTreeMap<String, Duration> {
    let mut failed: BTreeMap<String, Instant> = BTreeMap::new();
    let mut ran: BTreeMap<String, Instant> = BTreeMap::new();
    within(Duration::from_mins(4), "all Pods run", || {
        for pod in pods(namespace) {
            let status = &pod["status"];
            let list = |list: &str| status[list].as_array().cloned().unwrap_or_default();
            let all = [list("initContainerStatuses"), list("containerStatuses")].concat();
            let fails = |status: &Value| {
                let reason = status["state"]["waiting"]["reason"].as_str();
                ["ErrImagePull", "ImagePullBackOff"].contains(&reason.unwrap_or_default())
            };
            if all.iter().any(fails) {
                failed.entry(name(&pod)).or_insert_with(Instant::now);
            }
            let runs = |status: &Value| {
                let state = &status["state"];
                state["running"].is_object() || state["terminated"]["exitCode"] == 0
            };
            if !all.is_empty() && all.iter().all(runs) {
                ran.entry(name(&pod)).or_insert_with(Instant::now);
            }
        }
        // More often than other waits: what is measured is short.
        thread::sleep(Duration::from_millis(100));
        (ran.len() == ALL).then_some(())
    });
    let took = |(name, failed): (String, Instant)| {
        let ran = ran[&name];
        (name, ran.saturating_duration_since(failed))
    };
    failed.into_iter().map(took).collect()
}

/// The containers of a Pod and their images.
fn images_of(pod: &Value) -> Vec<(String, String)> {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let containers = lists.into_iter().flatten().flatten();
    containers
        .map(|container| {
            let container = container["name"].as_str().unwrap();
            (container.to_owned(), image(pod, container).to_owned())
        })
        .collect()
}

/// The repository of an image on a mirror, of how users write it.
fn mirrored_repository(written: &str) -> String {
    written.rsplit_once(':').unwrap().0.to_owned()
}

fn pods(namespace: &Namespace<'_>) -> Vec<Value> {
    let pods = namespace.cluster.get(&namespace.path("pods")).success();
    pods["items"].as_array().unwrap().clone()
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}
