//! Every place that names an image, through every way a Pod comes to be.

use serde_json::{Value, json};

use crate::support::{
    admission::{annotation, decision, image, original, pod},
    cluster::Cluster,
    eventually,
    injector::{Injector, SIDECAR, WAITING},
    scene::Scene,
};

const NGINX: &str = "mirror.test/docker.io/library/nginx:1.29";
const BUSYBOX: &str = "mirror.test/docker.io/library/busybox:1.37";
const REDIS: &str = "mirror.test/docker.io/library/redis:8";

pub(crate) fn kubectl_run_gets_the_mirrors_image(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let output = scene.namespace.kubectl(&["run", "web", "--image=nginx:1.29"]);
    assert!(output.status.success(), "{output:?}");
    let pod = scene.namespace.pod("web");
    assert_eq!(image(&pod, "web"), NGINX);
    assert_eq!(original(&pod, "web"), Some("nginx:1.29"));
    let decision = decision(&pod, "web");
    assert_eq!(decision["outcome"], "Rewritten");
    assert_eq!(decision["reason"], "Mirrored");
    assert_eq!(decision["mirror"], "main");
}

pub(crate) fn init_containers_and_sidecars_are_rewritten(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let mut wanted = pod("places", "nginx:1.29");
    wanted["spec"]["initContainers"] = json!([
        {"name": "prepare", "image": "docker.io/library/busybox:1.37"},
        {"name": "proxy", "image": "redis:8", "restartPolicy": "Always"},
    ]);
    scene.namespace.create_pod(&wanted).success();
    let stored = scene.namespace.pod("places");
    assert_eq!(image(&stored, "app"), NGINX);
    assert_eq!(image(&stored, "prepare"), BUSYBOX);
    assert_eq!(
        original(&stored, "prepare"),
        Some("docker.io/library/busybox:1.37")
    );
    assert_eq!(image(&stored, "proxy"), REDIS);
    assert_eq!(stored["spec"]["initContainers"][1]["restartPolicy"], "Always");
}

pub(crate) fn image_volumes_are_rewritten(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let mut wanted = pod("model", "nginx:1.29");
    wanted["spec"]["volumes"] = json!([
        {"name": "scratch", "emptyDir": {}},
        {"name": "weights", "image": {"reference": "ghcr.io/acme/models/small:v1"}},
    ]);
    scene.namespace.create_pod(&wanted).success();
    let stored = scene.namespace.pod("model");
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    let weights = volumes.iter().find(|volume| volume["name"] == "weights").unwrap();
    assert_eq!(
        weights["image"]["reference"],
        "mirror.test/ghcr.io/acme/models/small:v1"
    );
    assert_eq!(
        annotation(&stored, "original-volume.kagami.dev/weights"),
        Some("ghcr.io/acme/models/small:v1")
    );
}

pub(crate) fn every_form_of_a_reference_is_kept(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let digest = &cluster.mirror.nginx;
    for (name, suffix) in [
        ("digest", format!("@{digest}")),
        ("tag-and-digest", format!(":1.29@{digest}")),
    ] {
        let created = scene
            .namespace
            .create_pod(&pod(name, &format!("nginx{suffix}")))
            .success();
        assert_eq!(
            image(&created, "app"),
            format!("mirror.test/docker.io/library/nginx{suffix}")
        );
    }
}

pub(crate) fn generated_names_are_rewritten(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let mut wanted = pod("unused", "nginx:1.29");
    wanted["metadata"] = json!({"generateName": "web-"});
    let created = scene.namespace.create_pod(&wanted).success();
    assert!(
        created["metadata"]["name"].as_str().unwrap().starts_with("web-"),
        "{created}"
    );
    assert_eq!(image(&created, "app"), NGINX);
}

pub(crate) fn debug_containers_are_rewritten_once(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    scene.namespace.create_pod(&pod("web", "nginx:1.29")).success();
    let debug = |container: &str, image: &str| {
        let (container, image) = (format!("--container={container}"), format!("--image={image}"));
        let output = scene.namespace.kubectl(&[
            "debug",
            "web",
            &container,
            &image,
            "--profile=general",
            "--",
            "sh",
        ]);
        assert!(output.status.success(), "{output:?}");
    };
    debug("first", "busybox:1.37");
    let pod = scene.namespace.pod("web");
    assert_eq!(image(&pod, "first"), BUSYBOX);

    // The API server refuses any change of an ephemeral container that is there already.
    debug("second", "redis:8");
    let pod = scene.namespace.pod("web");
    assert_eq!(image(&pod, "first"), BUSYBOX);
    assert_eq!(image(&pod, "second"), REDIS);
}

pub(crate) fn pods_of_a_deployment_are_rewritten(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let output = scene.namespace.kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=nginx:1.29",
        "--replicas=2",
    ]);
    assert!(output.status.success(), "{output:?}");
    let pods: Vec<Value> = eventually("the deployment has two pods", || {
        let list = cluster.get(&scene.namespace.path("pods")).success();
        list["items"].as_array().filter(|items| items.len() == 2).cloned()
    });
    for pod in &pods {
        assert_eq!(image(pod, "nginx"), NGINX);
        assert_eq!(original(pod, "nginx"), Some("nginx:1.29"));
    }

    let path = format!(
        "/apis/apps/v1/namespaces/{}/deployments/web",
        scene.namespace.name
    );
    let deployment = eventually("the deployment counts its pods", || {
        let deployment = cluster.get(&path).success();
        (deployment["status"]["updatedReplicas"] == 2).then_some(deployment)
    });
    assert_eq!(
        deployment["spec"]["template"]["spec"]["containers"][0]["image"],
        "nginx:1.29"
    );
    assert_eq!(
        deployment["status"]["replicas"], 2,
        "nobody fights over the pods: {deployment}"
    );
}

pub(crate) fn server_side_dry_run_shows_the_rewrite(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let output = scene.namespace.kubectl(&[
        "run",
        "web",
        "--image=nginx:1.29",
        "--dry-run=server",
        "--output=json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(image(&shown, "web"), NGINX);
    assert_eq!(cluster.get(&scene.namespace.path("pods/web")).status, 404);
}

pub(crate) fn a_sidecar_injected_later_is_rewritten(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let _injector = Injector::start(&scene.namespace, "zzz-sidecar-injector", "busybox:1.37");
    let pod = eventually("the sidecar is injected", || {
        let dry_run = format!("{}?dryRun=All", scene.namespace.path("pods"));
        let created = cluster.create(&dry_run, &pod("web", "nginx:1.29")).success();
        let containers = created["spec"]["containers"].as_array()?;
        (containers.len() == 2).then_some(created)
    });
    assert_eq!(image(&pod, SIDECAR), BUSYBOX);
    assert_eq!(original(&pod, SIDECAR), Some("busybox:1.37"));
    // What the first round decided is still there after the second.
    assert_eq!(image(&pod, "app"), NGINX);
    assert_eq!(original(&pod, "app"), Some("nginx:1.29"));
    assert_eq!(decision(&pod, "app")["outcome"], "Rewritten");
    assert_eq!(decision(&pod, SIDECAR)["outcome"], "Rewritten");
}

pub(crate) fn a_placeholder_is_left_to_its_injector(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let _injector = Injector::start(&scene.namespace, "zzz-sidecar-injector", "busybox:1.37");
    let (name, placeholder) = WAITING;
    let pod = eventually("the image is injected", || {
        let dry_run = format!("{}?dryRun=All", scene.namespace.path("pods"));
        let mut pod = pod("web", placeholder);
        pod["spec"]["containers"][0]["name"] = name.into();
        let created = cluster.create(&dry_run, &pod).success();
        (created["spec"]["containers"][0]["image"] != placeholder).then_some(created)
    });
    assert_eq!(image(&pod, name), BUSYBOX);
    assert_eq!(original(&pod, name), Some("busybox:1.37"));
    assert_eq!(decision(&pod, name)["outcome"], "Rewritten");
    // Nobody asked for the placeholder, and nothing tells of it.
    assert_eq!(cluster.mirror.requests("library/auto"), 0);
    let annotations = pod["metadata"]["annotations"].to_string();
    assert!(!annotations.contains(placeholder), "{annotations}");
}

/// Of those that people run, none sorts after Kagami.
pub(crate) fn a_sidecar_injected_before_is_rewritten_in_the_first_round(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let prefix = "webhook.example.com";
    let _injector = Injector::start(&scene.namespace, prefix, "busybox:1.37");
    let dry_run = format!("{}?dryRun=All", scene.namespace.path("pods"));
    let mut wanted = pod("web", "nginx:1.29");
    // Else the API server itself changes the sidecar, and asks Kagami again for that.
    wanted["spec"]["automountServiceAccountToken"] = false.into();
    let create = || cluster.create(&dry_run, &wanted).success();
    eventually("the sidecar is injected", || {
        (create()["spec"]["containers"].as_array()?.len() == 2).then_some(())
    });
    let before = scene.registration.calls("enforce").answered;
    let created = create();
    assert_eq!(image(&created, SIDECAR), BUSYBOX);
    assert_eq!(image(&created, "app"), NGINX);
    assert_eq!(scene.registration.calls("enforce").answered, before + 1);
}
