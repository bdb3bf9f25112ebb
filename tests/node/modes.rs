//! What the modes do where Kagami is installed by its chart. `tests/e2e/modes.rs` has the details.

use serde_json::json;

use crate::{
    e2e::{
        admission::{annotation, image},
        cluster::Namespace,
    },
    support::{
        chart::Use,
        node::Node,
        pods::{pod, run, until_running},
        scene::Scene,
    },
};

pub(crate) fn each_mode_does_what_it_says(node: &Node) {
    let scene = Scene::new(Use::shared(node), "modes", |_| ());
    let [written, mirrored] = [&scene.written[0], &scene.mirrored[0]];
    run(&scene.namespace, "enforced", &scene.written, &scene.mirrored);
    let pulls = scene.mirror.pulls("up.modes.test/team/web").len();
    assert_ne!(pulls, 0);

    let mut off = pod("off", written);
    off["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
    let off = scene.namespace.create_pod(&off).success();
    assert_eq!(image(&off, "app"), written);
    until_running(&scene.namespace, "off");

    let in_mode = |mode| node.cluster.namespace(mode);
    let (warn, audit, unlabelled) = (in_mode(Some("warn")), in_mode(Some("audit")), in_mode(None));
    let create = |namespace: &Namespace<'_>| {
        let answer = namespace.create_pod(&pod("web", written));
        let created = answer.success();
        assert_eq!(image(&created, "app"), written, "{}", namespace.name);
        assert_eq!(annotation(&created, "kagami.dev/decisions"), None);
        until_running(namespace, "web");
        answer.warnings().join(" ")
    };
    let told = create(&warn);
    assert!(told.contains(mirrored), "{told}");
    assert_eq!(create(&audit), "");
    assert_eq!(create(&unlabelled), "");
    let decided = |namespace: &Namespace<'_>| {
        let event = namespace.audit_event("web");
        let annotations = event["annotations"].as_object().unwrap().clone();
        let ours = annotations
            .into_iter()
            .find(|(key, _)| key.starts_with("audit.kagami.dev/"));
        ours.map(|(_, decision)| decision.to_string()).unwrap_or_default()
    };
    assert!(
        decided(&audit).contains("WouldRewrite Mirrored"),
        "{}",
        decided(&audit)
    );
    assert_eq!(decided(&unlabelled), "");
    // They all pulled from upstream.
    assert_eq!(scene.mirror.pulls("up.modes.test/team/web").len(), pulls);
}
