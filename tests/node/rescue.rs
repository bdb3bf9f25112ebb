//! Pods that were sent to a mirror which cannot serve them when their node pulls.

use std::{
    collections::BTreeMap,
    mem,
    slice::from_ref,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    hangs::{assert_never_restarted, gated, open, status},
    shared::{
        admission::{annotation, image},
        chart::stdout,
        cluster::Namespace,
        companion::MIRRORS,
        eventually, within,
    },
    support::{
        chart::{FORWARD, MOMENT, OWN, Use},
        images::{self, FOREVER},
        kagami::{Mirrored, image_mirror},
        node::Node,
        pods::{dry_run, pod, until, until_kept, until_pull_fails, until_rewritten, until_running},
        registry::{ALICE, Registry},
        scene::Scene,
    },
};

/// How long after its first failed pull a Pod may take until all of it runs, or has ended well. An init container and
/// what comes after it are two pulls.
const BAR: Duration = Duration::from_secs(30);

/// The Pods of each workload.
const DEPLOYMENT: usize = 30;
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
    // One like them that Kagami does not help: it was not called for it, and nobody recorded what its user wrote.
    let alone = node.cluster.namespace(None);
    alone
        .create_pod(&gated("alone", &[("app", &scene.mirrored[0])]))
        .success();
    let is_of_a_mirror = |image: &str| [&scene.mirrored[0], &mirrored_task].contains(&&image.to_owned());
    for pod in pods(namespace) {
        for (container, image) in images_of(&pod) {
            assert_eq!(is_of_a_mirror(&image), container != "side", "{pod}");
        }
    }

    scene.mirror.kill();
    let namespace = &scene.namespace;
    open(&alone, "alone");
    let opened = Instant::now();
    // The first run while the last are sent.
    let times = thread::scope(|threads| {
        threads.spawn(|| names.iter().for_each(|name| open(namespace, name)));
        times_to_run(namespace)
    });
    let mut sorted: Vec<_> = times.iter().map(|(name, time)| (*time, name)).collect();
    sorted.sort_unstable();
    let (Some((median, _)), Some((worst, slowest))) = (sorted.get(sorted.len() / 2), sorted.last()) else {
        panic!("no pull failed")
    };
    eprintln!(
        "rescue: {} of {ALL} Pods saw a failed pull; from there until all of a Pod runs or has ended: median \
         {median:?}, worst {worst:?} ({slowest})",
        sorted.len(),
    );
    let unhelped = alone.pod("alone");
    assert!(
        !status(&unhelped, "app")["state"]["running"].is_object(),
        "{unhelped}"
    );
    eprintln!(
        "rescue: a Pod without Kagami's help waits still, {:?} after it was sent",
        opened.elapsed()
    );
    assert_eq!(times.len(), ALL, "each was sent to the dead mirror: {times:?}");
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

/// Twenty Pods are told of, by the mirror's policy, and then the mirror is set Off and lets them go; twenty others are
/// stuck on one that is deleted.
pub(crate) fn stuck_pods_are_let_go_by_a_mirror_that_is_off_or_deleted(node: &Node) {
    let cluster = &node.cluster;
    let mut scene = Scene::new(Use::shared(node), "released", |spec| {
        spec["rescue"] = json!({"policy": "Audit"});
    });
    let theirs = format!("{}/team/theirs:1", scene.upstream.host());
    scene
        .upstream
        .push(cluster, "team/theirs", "1", &images::shell("theirs", FOREVER));
    let names = |kind: &str| -> Vec<String> { (0..20).map(|number| format!("{kind}-{number}")).collect() };
    let (off, deleted) = (names("off"), names("deleted"));
    for name in off.iter().chain(&deleted) {
        let created = scene
            .namespace
            .create_pod(&gated(name, &[("app", &scene.written[0])]));
        assert_eq!(image(&created.success(), "app"), scene.mirrored[0]);
    }
    scene.mirror.kill();
    let namespace = &scene.namespace;
    for name in &off {
        open(namespace, name);
    }
    for name in &off {
        until_pull_fails(namespace, name);
    }
    // One of them is helped by its owner.
    let patch = json!({"spec": {"containers": [{"name": "app", "image": theirs}]}}).to_string();
    stdout(&namespace.kubectl(&["patch", "pod", &off[0], "--patch", &patch]));
    for name in &off {
        assert_ne!(
            image(&namespace.pod(name), "app"),
            scene.written[0],
            "it may only be told"
        );
    }
    let path = format!("{MIRRORS}/{}", scene.mirror.name);
    let change = json!({"spec": {"mode": "Off", "rescue": {"policy": "Enforce"}}}).to_string();
    let arguments = [
        "patch",
        "imagemirror",
        &scene.mirror.name,
        "--type=merge",
        "--patch",
        &change,
    ];
    stdout(&cluster.kubectl(&arguments));
    let run_from = |names: &[String], expected: &str| {
        for name in names {
            let pod = until_running(namespace, name);
            assert_eq!(image(&pod, "app"), expected);
            assert_never_restarted(namespace, name);
        }
    };
    run_from(&off[..1], &theirs);
    run_from(&off[1..], &scene.written[0]);
    for name in &off {
        cluster.delete(&namespace.path(&format!("pods/{name}")));
    }

    // It is noted in the form in which it is in force before it goes.
    eventually("the mirror's policy is noted", || {
        let map = cluster
            .get(&format!("/api/v1/namespaces/{OWN}/configmaps/kagami-mirrors"))
            .success();
        let mut lines = map["data"]["mirrors"].as_str()?.lines();
        let is_it = |line: &str| line.contains(&scene.mirror.name) && !line.contains("Audit");
        lines.any(is_it).then_some(())
    });
    cluster.delete(&path).success();
    for name in &deleted {
        open(namespace, name);
    }
    // An image that the node has by now is not pulled: these are stuck on the mirror's name.
    run_from(&deleted, &scene.written[0]);
}

/// Nothing would lead to this mirror again, so once some that went back are seen to fail there the others stay; each is
/// turned once, and all come when upstream is back.
pub(crate) fn where_mirror_and_upstream_are_dead_each_pod_is_patched_once(node: &Node) {
    let mut scene = Scene::new(Use::shared(node), "bothdead", |_| ());
    let names: Vec<_> = (0..10).map(|number| format!("web-{number}")).collect();
    for name in &names {
        let created = scene
            .namespace
            .create_pod(&gated(name, &[("app", &scene.written[0])]));
        assert_eq!(image(&created.success(), "app"), scene.mirrored[0]);
    }
    scene.mirror.kill();
    scene.upstream.kill();
    let namespace = &scene.namespace;
    for name in &names {
        open(namespace, name);
    }
    for name in &names {
        until(namespace, name, "it fails to pull", |pod| {
            [&scene.written[0], &scene.mirrored[0]]
                .into_iter()
                .any(|image| backs_off(pod, image))
        });
    }
    eventually("some fail to pull from upstream too", || {
        let mut pods = pods(namespace).into_iter();
        pods.any(|pod| backs_off(&pod, &scene.written[0])).then_some(())
    });
    scene.upstream.bring_back();
    let namespace = &scene.namespace;
    for name in &names {
        let pod = until_running(namespace, name);
        assert_eq!(image(&pod, "app"), scene.written[0]);
        assert_never_restarted(namespace, name);
    }
    let [patches, accepted] = patches(namespace);
    eprintln!(
        "rescue: with both dead, {patches} patches of {} Pods, {accepted} accepted",
        names.len()
    );
    assert_eq!(accepted, names.len());
    assert!(patches <= 3 * names.len(), "{patches}");
}

/// Ten Pods were sent to the mirror before it died, ten others were not because it was dead; upstream dies too. The
/// first are turned back, and all of them forward once the mirror returns, while upstream stays dead.
pub(crate) fn pods_stuck_on_a_dead_upstream_move_to_the_mirror(node: &Node) {
    let mut scene = Scene::new(Use::shared(node), "forward", |_| ());
    assert_eq!(scene.mirror.host(), FORWARD, "the registry that is listed");
    let names = |kind: &str| -> Vec<String> { (0..10).map(|number| format!("{kind}-{number}")).collect() };
    let (sent, kept) = (names("sent"), names("kept"));
    let create = |scene: &Scene<'_>, names: &[String], stored: &str| {
        for name in names {
            let wanted = gated(name, &[("app", &scene.written[0])]);
            let created = scene.namespace.create_pod(&wanted).success();
            assert_eq!(image(&created, "app"), stored, "{created}");
        }
    };
    create(&scene, &sent, &scene.mirrored[0]);
    scene.mirror.kill();
    scene.upstream.kill();
    until_kept(&scene.namespace, &scene.written[0], "MirrorUnhealthy");
    create(&scene, &kept, &scene.written[0]);
    let namespace = &scene.namespace;
    for name in sent.iter().chain(&kept) {
        open(namespace, name);
    }
    for name in sent.iter().chain(&kept) {
        until(namespace, name, "it fails to pull from upstream", |pod| {
            backs_off(pod, &scene.written[0])
        });
    }
    let [_, back] = patches(namespace);
    assert_eq!(
        back,
        sent.len(),
        "who was not sent to the mirror is not turned back"
    );

    scene.mirror.bring_back();
    let returned = Instant::now();
    let namespace = &scene.namespace;
    // An order may wait for kubelet's next attempt, whose back-off has grown meanwhile.
    within(Duration::from_mins(3), "all run from the mirror", || {
        let runs = |pod: &Value| status(pod, "app")["state"]["running"].is_object();
        let pods = pods(namespace);
        (pods.len() == sent.len() + kept.len() && pods.iter().all(runs)).then_some(())
    });
    for name in sent.iter().chain(&kept) {
        let pod = namespace.pod(name);
        assert_eq!(image(&pod, "app"), scene.mirrored[0], "{pod}");
        assert_never_restarted(namespace, name);
    }
    let [patches, accepted] = patches(namespace);
    eprintln!(
        "rescue: with upstream dead, {} Pods run from the mirror {:?} after it returned; {patches} patches, {accepted} \
         accepted",
        sent.len() + kept.len(),
        returned.elapsed(),
    );
    assert_eq!(accepted, 2 * sent.len() + kept.len());
    scene.upstream.bring_back();
}

/// The mirror dies for ten seconds while upstream refuses everybody. What goes back meanwhile comes forward again by itself.
pub(crate) fn after_a_moment_without_the_mirror_all_pods_run_though_upstream_refuses(node: &Node) {
    let mut scene = Scene::new(Use::shared(node), "moment", |_| ());
    assert_eq!(scene.mirror.host(), MOMENT, "the registry that is listed");
    let names: Vec<_> = (0..10).map(|number| format!("web-{number}")).collect();
    for name in &names {
        let wanted = gated(name, &[("app", &scene.written[0])]);
        let created = scene.namespace.create_pod(&wanted).success();
        assert_eq!(image(&created, "app"), scene.mirrored[0], "{created}");
    }
    scene.upstream.kill();
    scene.mirror.kill();
    let died = Instant::now();
    for name in &names {
        open(&scene.namespace, name);
    }
    thread::sleep(Duration::from_secs(10));
    scene.mirror.bring_back();
    let returned = Instant::now();
    let namespace = &scene.namespace;
    let runs = |pod: &Value| status(pod, "app")["state"]["running"].is_object();
    let took = within(Duration::from_secs(90), "all run from the mirror", || {
        let pods = pods(namespace);
        (pods.len() == names.len() && pods.iter().all(runs)).then(|| returned.elapsed())
    });
    let mut back = 0;
    for name in &names {
        let pod = namespace.pod(name);
        assert_eq!(image(&pod, "app"), scene.mirrored[0], "{pod}");
        assert_never_restarted(namespace, name);
        back += usize::from(annotation(&pod, "kagami.dev/rescued").is_some());
    }
    let [_, accepted] = patches(namespace);
    eprintln!(
        "rescue: after {:?} without the mirror, and with upstream dead, {} Pods run {took:?} after it returned; {back} \
         went back and forward",
        returned.duration_since(died),
        names.len(),
    );
    assert_eq!(accepted, 2 * back);
    assert!(back > 0, "the mirror was away for long enough");
    scene.upstream.bring_back();
}

/// The mirror had it when the Pod was admitted.
pub(crate) fn a_pod_whose_image_the_mirror_deleted_runs_from_upstream(node: &Node) {
    let scene = Scene::new(Use::shared(node), "withdrawn", |_| ());
    let namespace = &scene.namespace;
    let created = namespace
        .create_pod(&gated("web", &[("app", &scene.written[0])]))
        .success();
    assert_eq!(image(&created, "app"), scene.mirrored[0]);
    scene.delete_from_mirror();
    open(namespace, "web");
    let pod = until_running(namespace, "web");
    assert_eq!(image(&pod, "app"), scene.written[0]);
    assert_never_restarted(namespace, "web");
    until_kept(namespace, &scene.written[0], "ImageMissing");
}

/// The mirror's disk is broken: for the digest that it had when the Pod was admitted it answers with something else.
pub(crate) fn a_pod_whose_mirror_answers_another_digest_runs_from_upstream(node: &Node) {
    let scene = Scene::new(Use::shared(node), "swapped", |_| ());
    let namespace = &scene.namespace;
    let [written, mirrored] = scene.by_digest();
    until_rewritten(namespace, from_ref(&written), from_ref(&mirrored));
    let created = namespace
        .create_pod(&gated("web", &[("app", &written)]))
        .success();
    assert_eq!(image(&created, "app"), mirrored);
    scene.swap_on_mirror();
    open(namespace, "web");
    let pod = until_running(namespace, "web");
    assert_eq!(image(&pod, "app"), written);
    assert_never_restarted(namespace, "web");
    let pulls = scene.mirror.pulls(&scene.repository());
    assert!(!pulls.is_empty(), "the mirror was asked first");
    eventually("new Pods stay upstream", || {
        (image(&dry_run(namespace, &written), "app") == written).then_some(())
    });
}

/// It goes to upstream, and nobody else does.
pub(crate) fn a_pod_whose_pull_secret_was_revoked_runs_from_upstream(node: &Node) {
    let cluster = &node.cluster;
    let _kagami = Use::shared(node);
    let upstream = Registry::start(node, "up.revoked.test");
    let mirror = Registry::start_for(node, "mirror.revoked.test", ALICE);
    let built = images::shell("revoked", FOREVER);
    upstream.push(cluster, "team/web", "1", &built);
    mirror.push(cluster, "up.revoked.test/team/web", "1", &built);
    mirror.place_credentials(cluster, OWN);
    let mut object = image_mirror(node, &mirror, &["up.revoked.test"]);
    object["spec"]["endpoint"]["credentials"] = json!({"secretRef": {"name": mirror.host()}});
    let _mirrored = Mirrored::new(node, &object);
    let namespace = &cluster.namespace(Some("enforce"));
    mirror.place_pull_secret(namespace);
    let [written, mirrored] = [
        "up.revoked.test/team/web:1",
        "mirror.revoked.test/up.revoked.test/team/web:1",
    ];
    let mut wanted = gated("web", &[("app", written)]);
    wanted["spec"]["imagePullSecrets"] = json!([{"name": mirror.host()}]);
    until_rewritten(namespace, &[written.to_owned()], &[mirrored.to_owned()]);
    let created = namespace.create_pod(&wanted).success();
    assert_eq!(image(&created, "app"), mirrored);
    let secret = namespace.path(&format!("secrets/{}", mirror.host()));
    cluster.delete(&secret).success();
    open(namespace, "web");
    let pod = until_running(namespace, "web");
    assert_eq!(image(&pod, "app"), written);
    assert_never_restarted(namespace, "web");
    until_rewritten(namespace, &[written.to_owned()], &[mirrored.to_owned()]);
    let object = cluster.get(&format!("{MIRRORS}/{}", mirror.name)).success();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let nodes = conditions
        .iter()
        .find(|condition| condition["type"] == "NodesCanPull");
    assert_ne!(
        nodes.map(|nodes| &nodes["status"]),
        Some(&json!("False")),
        "{nodes:?}"
    );
}

/// What is true of all that the other tests did, after which this one runs: kubelet started no container anew because
/// its image was changed. Events tell, which stand in the audit log for good.
pub(crate) fn nothing_that_ran_was_restarted_for_its_image(node: &Node) {
    let restarted = || -> Vec<String> {
        let mut events = node.cluster.events_of_nodes();
        events.retain(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            message.contains("definition changed, will be restarted")
        });
        let about = |event: &Value| {
            let object = &event["involvedObject"];
            format!("{}/{}", object["namespace"], object["name"])
        };
        events.iter().map(about).collect()
    };
    assert_eq!(restarted(), [""; 0]);

    // Such an Event would be seen: somebody changes what runs.
    let registry = Registry::start(node, "changed.test");
    registry.push(&node.cluster, "team/app", "1", &images::shell("changed", FOREVER));
    let namespace = node.cluster.namespace(None);
    namespace
        .create_pod(&pod("web", "changed.test/team/app:1"))
        .success();
    until_running(&namespace, "web");
    let change =
        json!({"spec": {"containers": [{"name": "app", "image": "changed.test/team/app:2"}]}}).to_string();
    stdout(&namespace.kubectl(&["patch", "pod", "web", "--patch", &change]));
    eventually("its container is ended for it", || {
        (restarted() == [format!("\"{}\"/\"web\"", namespace.name)]).then_some(())
    });
}

/// Whether a Pod's container waits because it could not pull this image, and not for the first time.
fn backs_off(pod: &Value, image: &str) -> bool {
    let message = &status(pod, "app")["state"]["waiting"]["message"];
    message
        .as_str()
        .is_some_and(|message| message.starts_with("Back-off") && message.contains(&format!("\"{image}\"")))
}

/// How many patches the companion sent of a namespace's Pods, and how many of them were accepted.
fn patches(namespace: &Namespace<'_>) -> [usize; 2] {
    let companion = format!("system:serviceaccount:{OWN}:kagami-companion");
    let mut patches = namespace
        .cluster
        .writes_of(|user| user["username"] == companion.as_str());
    patches.retain(|write| {
        let object = &write["objectRef"];
        object["resource"] == "pods" && object["namespace"] == namespace.name.as_str()
    });
    let accepted = patches
        .iter()
        .filter(|write| write["responseStatus"]["code"] == 200)
        .count();
    [patches.len(), accepted]
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

/// Waits until all Pods run, or have ended well. Returns how long each took at most from its first failed pull, where
/// there was one: from the look before the first that showed it to the first that showed all of it running.
fn times_to_run(namespace: &Namespace<'_>) -> BTreeMap<String, Duration> {
    let mut failed: BTreeMap<String, Instant> = BTreeMap::new();
    let mut ran: BTreeMap<String, Instant> = BTreeMap::new();
    let mut looked = Instant::now();
    within(Duration::from_mins(4), "all Pods run", || {
        let before = mem::replace(&mut looked, Instant::now());
        for pod in pods(namespace) {
            let status = &pod["status"];
            let list = |list: &str| status[list].as_array().cloned().unwrap_or_default();
            let all = [list("initContainerStatuses"), list("containerStatuses")].concat();
            let fails = |status: &Value| {
                let reason = status["state"]["waiting"]["reason"].as_str();
                ["ErrImagePull", "ImagePullBackOff"].contains(&reason.unwrap_or_default())
            };
            // The turn may be quicker than a look.
            let is_turned = annotation(&pod, "kagami.dev/rescued").is_some();
            if is_turned || all.iter().any(fails) {
                failed.entry(name(&pod)).or_insert(before);
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
