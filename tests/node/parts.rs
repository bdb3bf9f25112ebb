//! Parts of Kagami fail, as Pods do: Pods are admitted all the same, and it mends itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    shared::{admission::decision, cluster::received_at, eventually},
    support::{
        chart::{
            OWN, REWRITTEN, Replica, SERVING, Use, kubectl, leader, replicas, secret, text_of, trust,
            until_rolled_out,
        },
        node::{self, Node},
        packets::BlackHole,
        pods::{failed_pulls, pod, run, until_kept, until_rewritten},
        scene::Scene,
    },
};

/// How many images there are to look at when a companion is stopped.
const MANY: usize = 30;

/// How long nobody may look after the mirrors once a leader was killed: its lease runs out (15 s), the next one
/// takes it (2 s), and sees a dead mirror twice.
const TAKEOVER: Duration = Duration::from_secs(25);

pub(crate) fn a_killed_companion_is_followed_by_the_other(node: &Node) {
    let mut scene = Scene::new(Use::alone(node), "killed", |_| ());
    let namespace = &scene.namespace;
    // What the companion knows, replicas do not look at themselves.
    run(namespace, "before", &scene.written, &scene.mirrored);
    scene.until_known();
    let (leader_before, identity) = leader(node);
    let begin = Instant::now();
    leader_before.kill("companion");
    // It is not missed as long as the mirror works.
    until_rewritten(namespace, &scene.written, &scene.mirrored);
    scene.mirror.kill();
    until_kept(namespace, &scene.written[0], "MirrorUnhealthy");
    let took = begin.elapsed();
    assert_ne!(leader(node).1, identity);
    assert!(
        took < TAKEOVER,
        "a mirror's death was noticed after {took:?} only"
    );
    run(namespace, "web", &scene.written, &scene.written);
    assert_eq!(failed_pulls(namespace), [""; 0]);

    scene.mirror.bring_back();
    until_rewritten(namespace, &scene.written, &scene.mirrored);
    eprintln!("without its leader, Kagami noticed the mirror's death after {took:.1?}");
    until_rolled_out(node, "companion", 2);
}

/// It is stopped for longer than its lease holds, with much to write.
pub(crate) fn a_paused_companion_writes_nothing_when_it_goes_on(node: &Node) {
    let scene = Scene::new(Use::alone(node), "paused", |_| ());
    let cluster = &node.cluster;
    run(&scene.namespace, "before", &scene.written, &scene.mirrored);
    scene.until_known();
    let (first, identity) = leader(node);
    let second = replicas(node, "companion")
        .into_iter()
        .find(|other| *other != first);
    let second = second.unwrap();
    let image = |number: usize| format!("{}:none-{number}", scene.repository());
    for number in 0..MANY {
        // It waits for a node that never comes: only its image counts.
        let mut waiting = pod(&format!("many-{number}"), &image(number));
        waiting["spec"]["nodeSelector"] = json!({"no": "such"});
        scene.namespace.create_pod(&waiting).success();
    }
    first.freeze("companion");
    eventually("the other companion leads", || {
        (second.status(node)?["leading"] == true).then_some(())
    });
    for number in 0..MANY {
        scene.until_image(&image(number), "Missing");
    }
    let writes = |replica: &Replica| -> Vec<Value> {
        let pod = "authentication.kubernetes.io/pod-name";
        let mut writes = cluster.writes_of(|user| user["extra"][pod][0] == replica.name.as_str());
        writes.retain(|write| write["objectRef"]["resource"] != "leases");
        writes
    };
    let thawed_at = writes(&second).iter().map(received_at).max().unwrap();
    first.thaw("companion");
    eventually("the first sees that it does not lead", || {
        (first.status(node)?["leading"] == false).then_some(())
    });
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{OWN}/leases/kagami-health");
    let beat = || cluster.get(&lease).success()["spec"]["renewTime"].clone();
    // Long enough for whatever the first had in mind.
    for _ in 0..2 {
        let before = beat();
        eventually("the heart beats on", || (beat() != before).then_some(()));
    }
    let mut late = writes(&first);
    assert_ne!(late.len(), 0, "the first wrote before it was stopped");
    // What was in flight when it was stopped had arrived long before. One request may have been past the look at the
    // lease and not yet sent; the API server refuses it.
    late.retain(|write| received_at(write) > thawed_at);
    let refused = |write: &Value| write["responseStatus"]["code"] == 409;
    assert!(late.len() <= 1 && late.iter().all(refused), "{late:#?}");
    assert_eq!(leader(node).0, second);
    let status = first.status(node).unwrap();
    assert_eq!(status["identity"], identity.as_str(), "the same process went on");
}

/// Two of three: what they believe they must see for themselves.
pub(crate) fn replicas_cut_from_the_api_server_believe_their_own_eyes_only(node: &Node) {
    let mut scene = Scene::new(Use::alone(node), "cut", |spec| {
        spec["health"] = json!({"staleAfter": "12s"});
    });
    let all = replicas(node, "webhook");
    assert_eq!(all.len(), 3);
    let (cut, whole) = all.split_at(2);
    let (mirror, image) = (scene.mirror.name.clone(), scene.written[0].clone());
    let stale = |replica: &Replica| replica.is_stale(node, &mirror);
    let trust = trust(node);
    let decides = |replica: &Replica, expected| replica.decides(&trust, &image, expected);
    eventually("all replicas believe what is shared", || {
        (!all.iter().any(stale)).then_some(())
    });

    let holes: Vec<_> = cut
        .iter()
        .map(|replica| BlackHole::between(replica.address, node::ADDRESS, node.api_server_port()))
        .collect();
    eventually("the replicas know that they are cut off", || {
        cut.iter().all(stale).then_some(())
    });
    assert!(!whole.iter().any(stale));
    for replica in &all {
        decides(replica, REWRITTEN);
    }
    scene.mirror.kill();
    for replica in &all {
        decides(replica, "Kept MirrorUnhealthy");
    }
    run(&scene.namespace, "web", &scene.written, &scene.written);
    assert_eq!(failed_pulls(&scene.namespace), [""; 0]);
    scene.mirror.bring_back();
    for replica in &all {
        decides(replica, REWRITTEN);
    }

    drop(holes);
    eventually("the replicas believe what is shared again", || {
        (!all.iter().any(stale)).then_some(())
    });
    for replica in &all {
        decides(replica, REWRITTEN);
    }
    assert_eq!(replicas(node, "webhook"), all, "nobody was restarted for it");
}

/// With nobody there to mend it, a certificate that is none changes nothing.
pub(crate) fn a_broken_certificate_keeps_the_old_pair(node: &Node) {
    let scene = Scene::new(Use::alone(node), "broken", |_| ());
    kubectl(node, &["scale", "deployment/kagami-companion", "--replicas=0"]);
    until_rolled_out(node, "companion", 0);
    let certificates = || -> Vec<Value> {
        let all = replicas(node, "webhook");
        let certificate = |replica: &Replica| replica.status(node).unwrap()["certificate"].clone();
        all.iter().map(certificate).collect()
    };
    let before = certificates();
    kubectl(
        node,
        &[
            "patch",
            "secret",
            SERVING,
            r#"--patch={"stringData": {"tls.crt": "nonsense"}}"#,
        ],
    );
    eventually("all replicas have seen it", || {
        let told = |certificate: &Value| certificate["fault"].is_string();
        certificates().iter().all(told).then_some(())
    });
    // On new connections, too.
    let trust = trust(node);
    for replica in replicas(node, "webhook") {
        assert_eq!(replica.decide(&trust, &scene.written[0]), REWRITTEN);
    }
    let pods = run(&scene.namespace, "web", &scene.written, &scene.mirrored);
    assert_eq!(decision(&pods[0], "app")["outcome"], "Rewritten");

    kubectl(node, &["scale", "deployment/kagami-companion", "--replicas=2"]);
    until_rolled_out(node, "companion", 2);
    eventually("all replicas serve a new certificate", || {
        let mended =
            |(now, before): (&Value, &Value)| now["fault"].is_null() && now["notAfter"] != before["notAfter"];
        certificates().iter().zip(&before).all(mended).then_some(())
    });
    let serving = text_of(&secret(node, SERVING).unwrap(), "tls.crt");
    assert!(serving.starts_with("-----BEGIN CERTIFICATE-----"), "{serving}");
}
