//! What the modes do where Kagami is installed by its chart. `tests/e2e/modes.rs` has the details.

use serde_json::{Value, json};

use crate::{
    shared::{admission::image, chart::stdout, cluster::Namespace, command},
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
    // It asks for more than its namespace gives, which changes nothing.
    let mut wanted = pod("web", written);
    wanted["metadata"]["labels"] = json!({"kagami.dev/mode": "enforce"});
    let create = |namespace: &Namespace<'_>| {
        let answer = namespace.create_pod(&wanted);
        until_running(namespace, "web");
        (answer.success(), answer.warnings().join(" "))
    };
    let (untouched, told) = create(&unlabelled);
    assert_eq!((image(&untouched, "app"), &*told), (&**written, ""));
    let (warned, told) = create(&warn);
    assert!(told.contains(mirrored), "{told}");
    let (audited, told) = create(&audit);
    assert_eq!(told, "");
    for created in [warned, audited] {
        assert_eq!(authored(created), authored(untouched.clone()));
    }

    let decided = |namespace: &Namespace<'_>| {
        let event = namespace.audit_event("web");
        let annotations = event["annotations"].as_object().unwrap().clone();
        let ours = annotations
            .into_iter()
            .find(|(key, _)| key.starts_with("audit.kagami.dev/"));
        ours.map(|(_, decision)| decision.to_string()).unwrap_or_default()
    };
    let logged = decided(&audit);
    assert!(logged.contains("WouldRewrite Mirrored"), "{logged}");
    assert_eq!(decided(&unlabelled), "");
    // They all pulled from upstream.
    assert_eq!(scene.mirror.pulls("up.modes.test/team/web").len(), pulls);

    scene.until_known();
    let folder = node.cluster.folder();
    let arguments = ["report", "--namespace", &audit.name, "--output", "json"];
    let report = command::run(&folder.join("admin.kubeconfig"), folder, &arguments);
    let report: Value = serde_json::from_str(&stdout(&report)).unwrap();
    let counts = json!({
        "namespace": audit.name, "mode": "audit", "pods": 1, "images": 1,
        "onMirror": 0, "wouldUseMirror": 1, "kept": {},
    });
    assert_eq!(report["namespaces"], json!([counts]));
}

/// A Pod without what differs between any two of one author's: its namespace, its time, and random names.
fn authored(mut pod: Value) -> Value {
    let token = pod["spec"]["volumes"][0]["name"].as_str().unwrap().to_owned();
    assert!(token.starts_with("kube-api-access-"), "{pod}");
    let metadata = pod["metadata"].as_object_mut().unwrap();
    for field in [
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
    ] {
        metadata.remove(field);
    }
    serde_json::from_str(&pod.to_string().replace(&token, "token")).unwrap()
}
