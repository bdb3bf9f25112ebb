//! The API server itself is away. Everything on the node needs it, so these tests have the node for themselves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    shared::{admission::decision, cluster::Outage, companion::MIRRORS, eventually, within},
    support::{
        chart::{REWRITTEN, Replica, Use, kubectl, leader, pods, replicas, trust},
        node::Node,
        pods::{failed_pulls, last_rewritten, pod, run, until_kept, until_rewritten},
        scene::Scene,
    },
};

/// Away for longer than a lease holds. Replicas go by what they see themselves, and nobody has to be restarted.
pub(crate) fn a_restarted_api_server_finds_kagami_at_work(node: &Node) {
    let mut scene = Scene::new(Use::alone(node), "restarted", |spec| {
        spec["health"] = json!({"staleAfter": "12s"});
    });
    run(&scene.namespace, "before", &scene.written, &scene.mirrored);
    scene.until_known();
    let (mirror, image) = (scene.mirror.name.clone(), scene.written[0].clone());
    let (webhooks, companions) = (replicas(node, "webhook"), replicas(node, "companion"));
    let restarts_before = restarts(node);
    let trust = trust(node);
    let all_decide = |expected| {
        for webhook in &webhooks {
            webhook.decides(&trust, &image, expected);
        }
    };

    let outage = scene.kagami.without_control_plane();
    eventually("no companion leads", || {
        let leads = |companion: &Replica| companion.status(node).unwrap()["leading"] == true;
        (!companions.iter().any(leads)).then_some(())
    });
    eventually("all replicas know that what they have is old", || {
        webhooks
            .iter()
            .all(|webhook| webhook.is_stale(node, &mirror))
            .then_some(())
    });
    all_decide(REWRITTEN);
    scene.mirror.kill();
    all_decide("Kept MirrorUnhealthy");
    scene.mirror.bring_back();
    all_decide(REWRITTEN);

    end(outage, &scene);
    leader(node);
    eventually("all replicas believe what is shared", || {
        let fresh = |webhook: &Replica| !webhook.is_stale(node, &mirror);
        webhooks.iter().all(fresh).then_some(())
    });
    until_rewritten(&scene.namespace, &scene.written, &scene.mirrored);
    run(&scene.namespace, "after", &scene.written, &scene.mirrored);
    scene.mirror.kill();
    scene.until_health("Unhealthy");
    until_kept(&scene.namespace, &image, "MirrorUnhealthy");
    run(&scene.namespace, "upstream", &scene.written, &scene.written);
    assert_eq!(failed_pulls(&scene.namespace), [""; 0]);
    scene.mirror.bring_back();
    until_rewritten(&scene.namespace, &scene.written, &scene.mirrored);
    assert_eq!(replicas(node, "webhook"), webhooks);
    assert_eq!(replicas(node, "companion"), companions);
    assert_eq!(restarts(node), restarts_before);
}

/// The watches in their worst order: replicas hear that the mirror was swept, and not that an image is gone.
pub(crate) fn an_image_that_replicas_hear_nothing_of_is_not_proven_by_sweeps(node: &Node) {
    let bound = Duration::from_secs(8);
    let cluster = &node.cluster;
    let mut scene = Scene::new(Use::alone(node), "unheard", |spec| {
        spec["freshness"] = json!({"tag": "8s", "missing": "1s"});
    });
    run(&scene.namespace, "before", &scene.written, &scene.mirrored);
    scene.until_known();
    let webhooks = replicas(node, "webhook");
    let watch = |webhook: &Replica, name: &str| {
        let status = webhook.status(node).unwrap();
        status["cluster"]["watches"][name]["failure"].clone()
    };

    // A watch that is open goes on whatever its caller may; the API server's end ends it.
    let right = MayWatchImages::withdraw(node);
    let outage = scene.kagami.without_control_plane();
    end(outage, &scene);
    eventually("the replicas hear of mirrors alone", || {
        let deaf = |webhook: &Replica| {
            watch(webhook, "mirroredimages").is_string()
                && watch(webhook, "imagemirrors").is_null()
                && !webhook.is_stale(node, &scene.mirror.name)
        };
        webhooks.iter().all(deaf).then_some(())
    });
    // What they have is still believed.
    until_rewritten(&scene.namespace, &scene.written, &scene.mirrored);

    scene.delete_from_mirror();
    let last = last_rewritten(&scene.namespace, &scene.written[0], bound + bound / 2);
    assert!(last < bound, "still rewritten after {last:?}");
    scene.until_image(&scene.written[0], "Missing");
    let path = format!("{MIRRORS}/{}", scene.mirror.name);
    let swept = || cluster.get(&path).success()["status"]["sweeps"]["tag"]["startedAt"].clone();
    let before = swept();
    eventually("the mirror is swept once more", || {
        (swept() != before).then_some(())
    });
    let pods = run(&scene.namespace, "after", &scene.written, &scene.written);
    assert_eq!(decision(&pods[0], "app")["reason"], "ImageMissing");
    let trust = trust(node);
    for webhook in &webhooks {
        assert_eq!(webhook.decide(&trust, &scene.written[0]), "Kept ImageMissing");
        assert!(watch(webhook, "mirroredimages").is_string());
    }

    drop(right);
    eventually("the replicas hear of images again", || {
        let hears = |webhook: &Replica| watch(webhook, "mirroredimages").is_null();
        webhooks.iter().all(hears).then_some(())
    });
    scene.push_to_mirror();
    until_rewritten(&scene.namespace, &scene.written, &scene.mirrored);
}

/// Starts the control plane again, and waits until Pods run: scheduler and kubelet try again less and less often.
fn end(outage: Outage<'_>, scene: &Scene<'_>) {
    drop(outage);
    let namespace = &scene.namespace;
    namespace.create_pod(&pod("any", &scene.written[0])).success();
    within(Duration::from_mins(3), "Pods run again", || {
        (namespace.pod("any")["status"]["phase"] == "Running").then_some(())
    });
}

/// How often each container of Kagami was started again, by Pod.
fn restarts(node: &Node) -> Vec<(String, Value)> {
    let all = ["webhook", "companion"].map(|component| pods(node, component));
    let of = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        (
            pod["metadata"]["name"].to_string(),
            container["restartCount"].clone(),
        )
    };
    all.iter().flatten().map(of).collect()
}

/// The right of the webhook's replicas to read MirroredImages, given back when this is dropped.
struct MayWatchImages<'a> {
    node: &'a Node,
}

impl<'a> MayWatchImages<'a> {
    fn withdraw(node: &'a Node) -> Self {
        let right = Self { node };
        right.set(&["imagemirrors"]);
        right
    }

    fn set(&self, resources: &[&str]) {
        let path = "/rules/0/resources";
        let patch = json!([
            // Fails if the role has another order than this takes for granted.
            {"op": "test", "path": "/rules/0/apiGroups", "value": ["kagami.dev"]},
            {"op": "replace", "path": path, "value": resources},
        ]);
        let patch = format!("--patch={patch}");
        kubectl(
            self.node,
            &["patch", "clusterrole/kagami-webhook", "--type=json", &patch],
        );
    }
}

impl Drop for MayWatchImages<'_> {
    fn drop(&mut self) {
        self.set(&["imagemirrors", "mirroredimages"]);
    }
}
