//! What Kagami is for: Pods come from a mirror while it works, and from upstream while it does not.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    shared::{
        admission::{decision, image, original},
        cluster::Namespace,
        companion::MIRRORS,
    },
    support::{
        chart::{LEFT_ALONE, Use},
        images::{self, FOREVER},
        kagami::{Install, as_a_process, by_chart, image_mirror},
        node::Node,
        object_store::ObjectStore,
        packets::BlackHole,
        pods::{dry_run, failed_pulls, last_rewritten, run, until_kept, until_rewritten},
        registry::{ALICE, BOB, Registry},
        scene::Scene,
    },
};

/// How long a Pod may still be sent to a mirror that refuses connections, and to one that does not answer.
const REFUSED: Duration = Duration::from_secs(3);
const SWALLOWED: Duration = Duration::from_secs(7);

/// How a mirror fails, until it is mended by the same value.
enum Fault {
    Refuses,
    Swallows(Option<BlackHole>),
}

pub(crate) fn pods_of_two_upstreams_outlive_a_mirror_that_refuses_connections(node: &Node) {
    let namespace = node.cluster.namespace(Some("enforce"));
    outage(by_chart, &namespace, "refused", node, Fault::Refuses, REFUSED);
}

pub(crate) fn pods_of_two_upstreams_outlive_a_mirror_in_a_black_hole(node: &Node) {
    let namespace = node.cluster.namespace(Some("enforce"));
    let fault = Fault::Swallows(None);
    outage(by_chart, &namespace, "swallowed", node, fault, SWALLOWED);
}

/// The same with everything in one process that needs no cluster.
pub(crate) fn pods_outlive_a_mirror_without_the_chart_too(node: &Node) {
    let namespace = node.cluster.namespace_named(LEFT_ALONE, Some("enforce"));
    outage(as_a_process, &namespace, "process", node, Fault::Refuses, REFUSED);
}

/// Images of two upstream registries, each with a password of its own, behind one mirror that fails and is
/// mended. `bar` is how long after the beginning of the fault a Pod may still be sent to the mirror.
fn outage<'a>(
    install: Install,
    namespace: &Namespace<'a>,
    name: &str,
    node: &'a Node,
    mut fault: Fault,
    bar: Duration,
) {
    let cluster = &node.cluster;
    let (a, b) = (format!("a.{name}.test"), format!("b.{name}.test"));
    let upstreams = [
        Registry::start_for(node, &a, ALICE),
        Registry::start_for(node, &b, BOB),
    ];
    let mut mirror = Registry::start(node, &format!("mirror.{name}.test"));
    for upstream in &upstreams {
        upstream.place_pull_secret(namespace);
        // One image for each part of the test, so that every Pod has something left to pull.
        for tag in ["before", "during", "after"] {
            let built = images::shell(&format!("{} {tag}", upstream.host()), FOREVER);
            let digest = upstream.push(cluster, "team/app", tag, &built);
            let path = format!("{}/team/app", upstream.host());
            assert_eq!(mirror.push(cluster, &path, tag, &built), digest);
        }
    }
    let from_upstream = |tag: &str| [&a, &b].map(|host| format!("{host}/team/app:{tag}"));
    let from_mirror = |tag: &str| from_upstream(tag).map(|image| format!("{}/{image}", mirror.host()));
    let (mirrored, others) = (from_mirror("before"), from_mirror("after"));
    let _kagami = install(node, namespace, &image_mirror(node, &mirror, &[&a, &b]));
    let pulls = |mirror: &Registry| [&a, &b].map(|host| mirror.pulls(&format!("{host}/team/app")).len());

    // The mirror works.
    until_rewritten(namespace, &from_upstream("before"), &mirrored);
    run(namespace, "before", &from_upstream("before"), &mirrored);
    let pulled = pulls(&mirror);
    assert!(pulled.iter().all(|&count| count > 0), "{pulled:?}");
    for upstream in &upstreams {
        assert_eq!(upstream.pulls("team/app"), [""; 0]);
    }

    // It fails.
    fault.begin(&mut mirror);
    let detected = last_rewritten(namespace, &from_upstream("before")[0], bar + bar / 2);
    assert!(detected < bar, "still rewritten after {detected:?}");
    let kept = from_upstream("during");
    for pod in run(namespace, "during", &kept, &kept) {
        assert_eq!(original(&pod, "app"), None);
        assert_eq!(decision(&pod, "app")["reason"], "MirrorUnhealthy");
    }
    assert_eq!(pulls(&mirror), pulled);
    for upstream in &upstreams {
        assert_ne!(upstream.pulls("team/app"), [""; 0]);
    }

    // It is mended.
    let mended = Instant::now();
    fault.end(&mut mirror);
    let back = mended.elapsed();
    until_rewritten(namespace, &from_upstream("before"), &mirrored);
    let recovered = mended.elapsed();
    until_rewritten(namespace, &from_upstream("after"), &others);
    run(namespace, "after", &from_upstream("after"), &others);
    let more = pulls(&mirror);
    assert!(more[0] > pulled[0] && more[1] > pulled[1], "{pulled:?} {more:?}");

    assert_eq!(
        failed_pulls(namespace),
        [""; 0],
        "no Pod ever waited for its image"
    );
    eprintln!(
        "{name}: the last Pod was sent to the failed mirror {detected:.1?} after it failed, the first one again \
         {recovered:.1?} after it was mended (it answered after {back:.1?})"
    );
}

/// What is lost is sent again a moment later: no reason to think that the mirror died, nor to leave it alone.
pub(crate) fn a_mirror_that_loses_packets_stays_in_use(node: &Node) {
    let scene = Scene::new(Use::shared(node), "lossy", |_| ());
    run(&scene.namespace, "before", &scene.written, &scene.mirrored);
    scene.until_known();
    let health = || {
        let path = format!("{MIRRORS}/{}", scene.mirror.name);
        node.cluster.get(&path).success()["status"]["health"].clone()
    };
    let before = health();
    let loss = scene.mirror.loss(0.02);
    let (mut asked, mut rewritten) = (0, 0);
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        asked += 1;
        let stored = dry_run(&scene.namespace, &scene.written[0]);
        rewritten += usize::from(image(&stored, "app") == scene.mirrored[0]);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(health(), before);
    assert!(rewritten * 10 >= asked * 9, "{rewritten} of {asked}");
    drop(loss);
    eprintln!("of {asked} Pods, {rewritten} went to a mirror that loses every fiftieth packet");
}

/// The mirror is called 127.0.0.1 on every node, and otherwise by Kagami. Its data is in S3: it sends whoever
/// wants data on to another address.
pub(crate) fn a_mirror_in_s3_may_have_a_name_that_only_nodes_know(node: &Node) {
    let cluster = &node.cluster;
    let upstream = Registry::start(node, "registry-1.docker.io");
    let store = ObjectStore::start(node);
    let mut mirror = Registry::start_on_every_address(node, "node-local", &store);
    let namespace = cluster.namespace(Some("enforce"));
    for tag in ["before", "during"] {
        let built = [
            images::shell(&format!("web {tag}"), FOREVER),
            images::of_another_architecture(),
        ];
        let digest = upstream.push_index(cluster, "library/web", tag, &built);
        let path = "docker.io/library/web";
        assert_eq!(mirror.push_index(cluster, path, tag, &built), digest);
    }
    let _kagami = by_chart(node, &namespace, &image_mirror(node, &mirror, &["docker.io"]));

    let mirrored = [format!("{}/docker.io/library/web:before", mirror.host())];
    assert!(mirrored[0].starts_with("127.0.0.1:"));
    until_rewritten(&namespace, &["web:before".to_owned()], &mirrored);
    run(&namespace, "before", &["web:before".to_owned()], &mirrored);
    let pulls = mirror.pulls("docker.io/library/web");
    assert!(
        pulls.iter().all(|line| line.starts_with("127.0.0.1 ")),
        "{pulls:?}"
    );
    let (blobs, others): (Vec<_>, Vec<_>) = pulls.iter().partition(|line| line.contains("/blobs/"));
    assert_ne!((blobs.len(), others.len()), (0, 0));
    let sent_on = |line: &&String| line.contains(" 307 ");
    assert!(
        blobs.iter().all(sent_on) && !others.iter().any(sent_on),
        "{pulls:?}"
    );
    assert_eq!(upstream.pulls("library/web"), [""; 0]);

    mirror.kill();
    let kept = ["web:during".to_owned()];
    until_kept(&namespace, &kept[0], "MirrorUnhealthy");
    run(&namespace, "during", &kept, &kept);
    assert_ne!(upstream.pulls("library/web"), [""; 0]);
    assert_eq!(failed_pulls(&namespace), [""; 0]);
}

impl Fault {
    fn begin(&mut self, mirror: &mut Registry) {
        match self {
            Self::Refuses => mirror.kill(),
            Self::Swallows(black_hole) => *black_hole = Some(mirror.black_hole()),
        }
    }

    fn end(&mut self, mirror: &mut Registry) {
        match self {
            Self::Refuses => mirror.bring_back(),
            Self::Swallows(black_hole) => drop(black_hole.take()),
        }
    }
}
