//! Parts that are away or broken: Pods are admitted all the same.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    PATIENCE,
    admission::{Calls, decision, image, original, pod},
    cluster::Cluster,
    eventually,
    kagami::PATH,
    mirror::Mirror,
    reviews::review,
    scene::Scene,
    tls_client::{Client, Reply, Settings},
};

const NGINX: &str = "mirror.test/docker.io/library/nginx:1.29";

/// The API server keeps idle connections for 90 s and does not repeat a request that met a closing one; so
/// Kagami must keep them longer.
pub(crate) fn connections_idle_for_95_seconds_are_still_usable(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let (address, trust) = (
        scene.kagami.listeners.admission(),
        Settings::trusting(&cluster.authority.pem()),
    );
    let mut client = cluster.http.wait(Client::connect(address, &trust)).unwrap();
    let review = review(&["nginx:1.29"]).to_string();
    let mut post = || {
        let answer = async { timeout(PATIENCE, client.post(PATH, &review)).await };
        cluster.http.wait(answer)
    };
    let reply = post().unwrap().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);

    thread::sleep(Duration::from_secs(95));

    let Reply { status, body, .. } = post().unwrap().unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("JSONPatch"), "{body}");
    // The API server's own connection has been idle as long.
    let created = scene.namespace.create_pod(&pod("web", "nginx:1.29")).success();
    assert_eq!(image(&created, "app"), NGINX);
}

pub(crate) fn a_missing_image_stays_upstream(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let created = scene
        .namespace
        .create_pod(&pod("web", "nginx:no-such-tag"))
        .success();
    assert_eq!(image(&created, "app"), "nginx:no-such-tag");
    assert_eq!(original(&created, "app"), None);
    assert_eq!(decision(&created, "app")["outcome"], "Kept");
    assert_eq!(decision(&created, "app")["reason"], "ImageMissing");
}

pub(crate) fn a_dead_mirror_keeps_pods_upstream_until_it_is_back(cluster: &Cluster) {
    let mut mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), "mortal-mirror");
    let scene = Scene::with_mirror(cluster, "enforce", &mirror.url);
    let create = |image: &str| {
        let mut wanted = pod("unused", image);
        wanted["metadata"] = json!({"generateName": "web-"});
        scene.namespace.create_pod(&wanted).success()
    };
    assert_eq!(image(&create("nginx:1.29"), "app"), NGINX);

    mirror.kill();
    // An image that Kagami has not seen yet: nothing but a live look could prove it.
    assert_eq!(image(&create("redis:8"), "app"), "redis:8");
    let kept = eventually("Kagami knows that the mirror is dead", || {
        let created = create("nginx:1.29");
        (decision(&created, "app")["reason"] == "MirrorUnhealthy").then_some(created)
    });
    assert_eq!(image(&kept, "app"), "nginx:1.29");
    assert_eq!(decision(&kept, "app")["outcome"], "Kept");
    assert_eq!(original(&kept, "app"), None);
    mirror.bring_back();
    eventually("Kagami rewrites again", || {
        let created = create("nginx:1.29");
        (image(&created, "app") == NGINX).then_some(())
    });
}

pub(crate) fn a_dead_webhook_does_not_stop_pods(cluster: &Cluster) {
    let Scene {
        registration,
        namespace,
        kagami,
    } = Scene::new(cluster, "enforce");
    let before = registration.calls("enforce");
    assert_eq!(
        before,
        Calls {
            answered: before.answered,
            ..Calls::default()
        }
    );
    registration.announce_failures();
    drop(kagami);

    let created = namespace.create_pod(&pod("web", "nginx:1.29")).success();
    assert_eq!(image(&created, "app"), "nginx:1.29");
    let after = registration.calls("enforce");
    assert_eq!(after.failed_open, 1);
    assert_eq!(after.rejected, 0);
    assert_eq!(after.answered, before.answered);
    let event = namespace.audit_event("web");
    let annotations = event["annotations"].as_object().unwrap();
    let mut failed_open = annotations
        .iter()
        .filter(|(key, _)| key.starts_with("failed-open.mutation.webhook.admission.k8s.io/"));
    assert_eq!(
        failed_open.next().unwrap().1,
        &registration.webhook("enforce"),
        "{event}"
    );
}

pub(crate) fn a_hanging_webhook_delays_pods_by_its_timeout_only(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    scene.registration.announce_failures();
    scene.kagami.process.freeze();

    let begin = Instant::now();
    let created = scene.namespace.create_pod(&pod("web", "nginx:1.29")).success();
    assert_eq!(image(&created, "app"), "nginx:1.29");
    // `timeoutSeconds: 2` and what a busy machine adds.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let after = scene.registration.calls("enforce");
    assert_eq!((after.failed_open, after.rejected), (1, 0));
}
