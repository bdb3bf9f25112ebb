//! What nodes say of pulls, in statuses that these tests write in kubelets' place.

use std::{thread, time::Duration};

use kagami::clock;
use serde_json::{Value, json};

use crate::{
    companion::assert_only_allowed,
    rescue::{mirrored, report, rewritten, waiting, written},
    support::{
        admission::pod,
        chart::stdout,
        cluster::{Cluster, Namespace},
        companion::Place,
        eventually,
        images::{Target, named},
    },
};

/// An image with its name as its only content, under the mirror's tag 1.
fn push(cluster: &Cluster, name: &str, content: &str) -> String {
    let image = named(content);
    let target = Target::of(&cluster.http, &cluster.mirror.url);
    let repository = format!("docker.io/library/{name}");
    cluster.http.wait(target.push(&repository, "1", &image));
    image.digest.to_string()
}

fn failed(name: &str, why: &str) -> Value {
    let image = mirrored(name);
    let message = format!(
        "failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": {why}"
    );
    waiting("ErrImagePull", &message)
}

/// A Pod that was sent to the mirror, on a node that is none.
fn on(namespace: &Namespace<'_>, name: &str, image: &str, node: &str) {
    let mut pod = rewritten(name, &[], &[image]);
    pod["spec"]["nodeName"] = node.into();
    namespace.create_pod(&pod).success();
}

fn force_deletion(namespace: &Namespace<'_>, name: &str) {
    // No kubelet says that it is gone.
    stdout(&namespace.kubectl(&["delete", "pod", name, "--force", "--grace-period=0"]));
}

const REFUSED: &str =
    "pull access denied, repository does not exist or may require authorization: authorization failed";
const NO_WAY: &str = "failed to do request: Head \"https://mirror.test/v2/\": dial tcp: i/o timeout";

/// Nobody would look at it again for an hour.
pub(crate) fn a_failed_pull_asks_for_one_look_and_refused_credentials_for_none(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let seldom = json!({"tag": "1h", "digest": "1h", "missing": "1h"});
    place.patch_mirror(&json!({"spec": {"freshness": seldom}}));
    let before = push(cluster, "doubted", "doubted one");
    let companion = place.start("companion-a", &[]);
    let namespace = &place.served;
    namespace.create_pod(&pod("first", &written("doubted"))).success();
    let image = place.wait_for_image(&written("doubted"), "Present");
    assert_eq!(image["spec"]["digest"], before);
    let after = push(cluster, "doubted", "doubted two");
    on(namespace, "web", "doubted", "node-a");
    let digest = || place.wait_for_image(&written("doubted"), "Present")["spec"]["digest"].clone();

    report(namespace, "web", &[("doubted", failed("doubted", REFUSED))]).success();
    // The node's own limit, and a message of another image.
    report(
        namespace,
        "web",
        &[("doubted", waiting("ErrImagePull", "pull QPS exceeded"))],
    )
    .success();
    report(namespace, "web", &[("doubted", failed("other", NO_WAY))]).success();
    // A look takes milliseconds.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(digest(), before);
    report(namespace, "web", &[("doubted", failed("doubted", NO_WAY))]).success();
    eventually("somebody looks", || (digest() == after).then_some(()));
    force_deletion(namespace, "web");
    assert_only_allowed(&place, &companion);
}

pub(crate) fn nodes_that_cannot_pull_are_told_by_two_of_them(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    push(cluster, "unreached", "unreached");
    let companion = place.start("companion-a", &[]);
    let namespace = &place.served;
    namespace
        .create_pod(&pod("first", &written("unreached")))
        .success();
    place.wait_for_image(&written("unreached"), "Present");
    let says = |expected: &str| {
        eventually(&format!("NodesCanPull is {expected}"), || {
            let mirror = place.mirror();
            let mut conditions = mirror["status"]["conditions"].as_array()?.iter();
            let condition = conditions.find(|condition| condition["type"] == "NodesCanPull")?;
            (condition["status"] == expected).then(|| condition["message"].as_str().unwrap().to_owned())
        })
    };
    let fails = |name: &str, node: &str| {
        on(namespace, name, "unreached", node);
        report(namespace, name, &[("unreached", failed("unreached", NO_WAY))]).success();
    };
    fails("one", "node-a");
    // Failures that come together are one event, and one node says nothing of the mirror, however often it is judged: once
    // in ten seconds.
    thread::sleep(Duration::from_secs(6));
    report(
        namespace,
        "one",
        &[("unreached", waiting("ImagePullBackOff", "x"))],
    )
    .success();
    report(namespace, "one", &[("unreached", failed("unreached", NO_WAY))]).success();
    thread::sleep(Duration::from_secs(11));
    let mirror = place.mirror();
    let conditions = mirror["status"]["conditions"].as_array().unwrap();
    let is_false = |condition: &Value| condition["type"] == "NodesCanPull" && condition["status"] == "False";
    assert!(!conditions.iter().any(is_false), "{mirror}");
    fails("two", "node-b");
    let message = says("False");
    for part in [&written("unreached"), "node-b", "ErrImagePull"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        !message.contains("i/o timeout"),
        "the registry's words: {message}"
    );
    // A container that was started since then tells that its node has got it.
    let started = format!("{:.19}Z", clock::now().after(Duration::from_secs(1)).to_string());
    report(
        namespace,
        "two",
        &[("unreached", json!({"running": {"startedAt": started}}))],
    )
    .success();
    says("True");
    for name in ["one", "two"] {
        force_deletion(namespace, name);
    }
    assert_only_allowed(&place, &companion);
}
