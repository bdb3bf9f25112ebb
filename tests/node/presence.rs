//! What a mirror holds changes while nobody looks.

use std::{thread, time::Duration};

use serde_json::json;

use crate::{
    shared::{
        admission::{self, decision},
        companion::MIRRORS,
        eventually,
    },
    support::{
        chart::{OWN, Use},
        images::{self, FOREVER},
        kagami::{Mirrored, image_mirror},
        node::Node,
        pods::{failed_pulls, last_rewritten, pod, run, until_kept, until_rewritten, until_running},
        registry::{ALICE, Registry},
        scene::Scene,
    },
};

/// What was seen there before the outage is no proof.
pub(crate) fn a_mirror_that_comes_back_empty_is_proven_anew(node: &Node) {
    let mut scene = Scene::new(Use::shared(node), "emptied", |_| ());
    scene.mirror.kill();
    // One replica may see it by itself long before; all of them go by what the companion saw.
    scene.until_health("Unhealthy");
    until_kept(&scene.namespace, &scene.written[0], "MirrorUnhealthy");
    scene.mirror.lose_everything();
    scene.mirror.bring_back();
    until_kept(&scene.namespace, &scene.written[0], "ImageMissing");
    run(&scene.namespace, "web", &scene.written, &scene.written);
    assert_ne!(scene.upstream.pulls("team/web"), [""; 0]);
    assert_eq!(failed_pulls(&scene.namespace), [""; 0]);

    scene.push_to_mirror();
    until_rewritten(&scene.namespace, &scene.written, &scene.mirrored);
}

pub(crate) fn a_deleted_image_is_not_rewritten_past_the_freshness_bound(node: &Node) {
    let bound = Duration::from_secs(8);
    let scene = Scene::new(Use::shared(node), "deleted", |spec| {
        spec["freshness"] = json!({"tag": "8s", "missing": "1s"});
    });
    // A running Pod is why the companion looks again and again.
    run(&scene.namespace, "before", &scene.written, &scene.mirrored);

    scene.delete_from_mirror();
    let last = last_rewritten(&scene.namespace, &scene.written[0], bound + bound / 2);
    assert!(last < bound, "still rewritten after {last:?}");
    let pods = run(&scene.namespace, "after", &scene.written, &scene.written);
    assert_eq!(decision(&pods[0], "app")["reason"], "ImageMissing");
}

/// Kagami has the mirror's password, and the nodes do not.
pub(crate) fn it_is_told_where_nodes_cannot_pull(node: &Node) {
    let cluster = &node.cluster;
    let _kagami = Use::shared(node);
    let upstream = Registry::start(node, "up.nodes.test");
    let mirror = Registry::start_for(node, "mirror.nodes.test", ALICE);
    let image = images::shell("nodes", FOREVER);
    upstream.push(cluster, "team/web", "1", &image);
    mirror.push(cluster, "up.nodes.test/team/web", "1", &image);
    mirror.place_credentials(cluster, OWN);
    let mut object = image_mirror(node, &mirror, &["up.nodes.test"]);
    object["spec"]["endpoint"]["credentials"] = json!({"secretRef": {"name": mirror.host()}});
    let _mirrored = Mirrored::new(node, &object);
    let namespace = cluster.namespace(Some("enforce"));
    let [written, mirrored] = [
        "up.nodes.test/team/web:1",
        "mirror.nodes.test/up.nodes.test/team/web:1",
    ];
    let nodes_can_pull = |expected: &str| {
        eventually(&format!("NodesCanPull is {expected}"), || {
            let object = cluster.get(&format!("{MIRRORS}/{}", mirror.name)).success();
            let mut conditions = object["status"]["conditions"].as_array()?.iter();
            let found = conditions.find(|condition| condition["type"] == "NodesCanPull")?;
            (found["status"] == expected).then(|| found["message"].as_str().unwrap().to_owned())
        })
    };

    // The first Pod makes the companion look.
    namespace.create_pod(&pod("first", written)).success();
    until_rewritten(&namespace, &[written.to_owned()], &[mirrored.to_owned()]);
    // Each fails once, and runs from upstream then. A secret is its namespace's, so it takes two of them.
    let other = cluster.namespace(Some("enforce"));
    let strangers = [(&namespace, "stranger"), (&other, "another")];
    for (namespace, name) in strangers {
        let created = namespace.create_pod(&pod(name, written)).success();
        assert_eq!(admission::image(&created, "app"), mirrored);
        let pod = until_running(namespace, name);
        assert_eq!(admission::image(&pod, "app"), written);
        thread::sleep(Duration::from_secs(6));
    }
    let message = nodes_can_pull("False");
    for part in ["node1", written, "credentials refused"] {
        assert!(message.contains(part), "{message}");
    }

    for (namespace, name) in strangers {
        cluster.delete(&namespace.path(&format!("pods/{name}")));
    }
    mirror.place_pull_secret(&namespace);
    let mut known = pod("known", written);
    known["spec"]["imagePullSecrets"] = json!([{"name": mirror.host()}]);
    namespace.create_pod(&known).success();
    until_running(&namespace, "known");
    nodes_can_pull("True");
}
