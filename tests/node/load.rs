//! Pods are created all the time, and the API server counts no review that failed.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    shared::{chart::stdout, cluster::Namespace, eventually},
    support::{
        chart::{AUTHORITY, SERVING, Use, chart, kubectl, pods, replicas, secret, text_of, until_rolled_out},
        node::Node,
        pods::dry_run,
        scene::Scene,
    },
};

/// How many callers there are, and how long each waits between two Pods.
const CALLERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(60);

/// How long replicas answer after they were told to end, and what ending takes besides.
const DRAINING: Duration = Duration::from_secs(95 + 35);

/// Replicas are restarted one after another, the certificates renewed, the chart upgraded; the last replica that
/// had to go has gone at the end.
pub(crate) fn no_review_fails_whatever_is_replaced(node: &Node) {
    let mut scene = Scene::new(Use::alone(node), "load", |_| ());
    let (namespace, image) = (&scene.namespace, &scene.written[0]);
    let load = Load::default();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| load.create_pods(namespace, image));
        }
        let _stop = Stop(&load);
        let began = Instant::now();
        let done = |what: &str| {
            eprintln!(
                "{what}: after {:.0?}, {} Pods so far",
                began.elapsed(),
                load.created()
            );
        };

        let first = replicas(node, "webhook");
        kubectl(node, &["rollout", "restart", "deployment/kagami-webhook"]);
        until_rolled_out(node, "webhook", 3);
        let second = replicas(node, "webhook");
        assert!(second.iter().all(|replica| !first.contains(replica)));
        done("replicas restarted");

        renew_certificates(node);
        done("certificates renewed");

        stdout(&chart(node, "2").helm("upgrade", &[]));
        until_rolled_out(node, "webhook", 3);
        until_rolled_out(node, "companion", 2);
        let third = replicas(node, "webhook");
        assert!(third.iter().all(|replica| !second.contains(replica)));
        done("chart upgraded");

        // Others may go on while the replicas before answer to the end of their time.
        scene.kagami.give_back();
        let deadline = Instant::now() + DRAINING;
        while pods(node, "webhook").len() > third.len() {
            assert!(Instant::now() < deadline, "the replicas before are not gone");
            thread::sleep(Duration::from_millis(500));
        }
        done("the last replica gone");
    });
    // Nobody was kept waiting either: a review has 2 s, and this machine is busy.
    let slowest = Duration::from_millis(load.slowest.load(Ordering::Relaxed));
    assert!(slowest < Duration::from_secs(3), "a Pod took {slowest:?}");
    eprintln!("the slowest Pod took {slowest:?}");
}

/// Takes the authority away, as somebody would who fears for its key, and waits until a new one is all that is
/// served and trusted.
fn renew_certificates(node: &Node) {
    let serving = || secret(node, SERVING).unwrap();
    let before = text_of(&serving(), "ca.crt");
    let served_until = || -> Vec<Value> {
        let replicas = replicas(node, "webhook");
        let status = |replica: &crate::support::chart::Replica| replica.status(node).unwrap();
        replicas
            .iter()
            .map(|replica| status(replica)["certificate"]["notAfter"].clone())
            .collect()
    };
    let old = served_until();
    kubectl(node, &["delete", "secret", AUTHORITY]);
    eventually("all replicas serve a new certificate", || {
        let replaced = |(now, old): (&Value, &Value)| now != old;
        served_until().iter().zip(&old).all(replaced).then_some(())
    });
    let after = text_of(&serving(), "ca.crt");
    assert_ne!(after, before);
    eventually("the old authority is not trusted any more", || {
        let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-kagami";
        let webhooks = node.cluster.get(path).success()["webhooks"].clone();
        let trusted = |webhook: &Value| text_of(&webhook["clientConfig"], "caBundle");
        webhooks
            .as_array()?
            .iter()
            .all(|webhook| trusted(webhook) == after)
            .then_some(())
    });
}

#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    created: AtomicU64,
    /// In milliseconds.
    slowest: AtomicU64,
}

impl Load {
    fn create_pods(&self, namespace: &Namespace<'_>, image: &str) {
        while !self.stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            dry_run(namespace, image);
            let took = u64::try_from(begin.elapsed().as_millis()).unwrap();
            self.slowest.fetch_max(took, Ordering::Relaxed);
            self.created.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
    }

    fn created(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }
}

/// Ends the load, also where the test fails.
struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
