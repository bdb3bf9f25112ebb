//! `kagami webhook` reads its state from the API server; the test is the companion.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use kagami::clock;
use serde_json::{Value, json};

use crate::support::{
    cluster::Cluster,
    eventually,
    images::push,
    reader::{Heart, Reader, install, time},
};

const REWRITTEN: &str = "Rewritten Mirrored";

pub(crate) fn known_images_cost_no_request_and_unknown_ones_one(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let _heart = Heart::start(&reader);
    reader.wait_until_fresh();
    reader.share_healthy(clock::now());
    let (known, other) = (reader.image("known:1"), reader.image("other:1"));

    reader.know(&known, clock::now());
    reader.decides(&known, REWRITTEN);
    let before = reader.requests(&known);
    for _ in 0..20 {
        assert_eq!(reader.decide("probe", &known), REWRITTEN);
    }
    assert_eq!(reader.requests(&known), before);

    push(&cluster.http, &reader.mirror.url, &reader.image("other"), "1");
    let before = reader.requests(&other);
    for _ in 0..20 {
        assert_eq!(reader.decide("probe", &other), REWRITTEN);
    }
    eventually("the registry has logged the probe", || {
        (reader.requests(&other) == before + 1).then_some(())
    });

    reader.forget(&known);
    reader.decides(&known, "Kept ImageMissing");
}

pub(crate) fn without_a_companion_only_own_probes_count(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let (code, text) = reader.ready();
    assert!(code == 503 && text.contains("heartbeat"), "{code} {text}");
    let image = reader.image("known:1");
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&image, clock::now().before(Duration::from_secs(50)));
    // The entry's proof is older than what this replica saw of the mirror, so the mirror is asked.
    reader.decides(&image, "Kept ImageMissing");
    push(&cluster.http, &reader.mirror.url, &reader.image("known"), "1");
    reader.decides(&image, REWRITTEN);
    assert_eq!(reader.status()["cluster"]["mirrors"][&reader.name]["stale"], true);

    // A companion that begins, and dies.
    let heart = Heart::start(&reader);
    reader.wait_until_fresh();
    reader.share(
        &json!({"health": {"state": "Unhealthy", "reason": "Timeout", "provenSince": time(clock::now())}}),
    );
    reader.decides(&image, "Kept MirrorUnhealthy");
    drop(heart);
    reader.decides(&image, REWRITTEN);
    reader.mirror.kill();
    reader.decides(&image, "Kept MirrorUnhealthy");
}

pub(crate) fn a_pull_through_mirror_is_left_alone_while_the_state_is_stale(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "PullThrough", |_| ());
    let image = reader.image("known:1");
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&image, clock::now());
    reader.decides(&image, "Kept StateStale");
    let heart = Heart::start(&reader);
    reader.wait_until_fresh();
    reader.decides(&image, REWRITTEN);
    drop(heart);
    reader.decides(&image, "Kept StateStale");
    assert_eq!(reader.requests(&image), 0);
}

pub(crate) fn a_proof_older_than_the_last_outage_is_none(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let _heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    let verified_at = clock::now();
    reader.know(&image, verified_at);
    reader.share_healthy(verified_at);
    reader.decides(&image, REWRITTEN);
    reader.share_healthy(verified_at.after(Duration::from_millis(1)));
    assert_eq!(reader.decide("probe", &image), "Kept ImageMissing");
}

pub(crate) fn a_sweep_counts_once_all_images_it_covers_have_arrived(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let _heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    let long_ago = clock::now().before(Duration::from_hours(2));
    let version: u64 = reader.know(&image, long_ago).parse().unwrap();
    let share = |through: u64, number: u64| {
        let proven_since = time(long_ago.after(Duration::from_millis(number)));
        let now = time(clock::now());
        reader.share(&json!({
            "health": {"state": "Healthy", "provenSince": proven_since},
            "sweeps": {"tag": {
                "startedAt": now, "finishedAt": now, "throughResourceVersion": through.to_string(),
                "present": 1, "missing": 0, "unknown": 0,
            }},
        }));
    };
    share(version + 1_000_000, 0);
    assert_eq!(reader.decide("probe", &image), "Kept ImageMissing");
    // A sweep that ended before the image was written says nothing of it.
    share(version - 1, 1);
    reader.decides(&image, "Kept ImageMissing");
    share(version, 2);
    reader.decides(&image, REWRITTEN);
}

pub(crate) fn a_mirror_stands_in_while_its_upstream_fails(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |mirror| {
        mirror["spec"]["prefer"] = "Upstream".into();
    });
    let heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    reader.know(&image, clock::now());
    let proven_since = clock::now().before(Duration::from_mins(1));
    let share = |failing: &[&str], number: u64| {
        let since = time(proven_since.after(Duration::from_millis(number)));
        reader.share(&json!({
            "health": {"state": "Healthy", "provenSince": since}, "failingUpstreams": failing,
        }));
    };
    share(&[], 0);
    reader.decides(&image, "Kept UpstreamPreferred");
    share(&["other.example"], 1);
    reader.decides(&image, "Kept UpstreamPreferred");
    share(&["other.example", &reader.name], 2);
    reader.decides(&image, REWRITTEN);
    share(&[], 3);
    reader.decides(&image, "Kept UpstreamPreferred");
    // Without a companion nobody knows that it fails still.
    share(&[&reader.name], 4);
    reader.decides(&image, REWRITTEN);
    push(&cluster.http, &reader.mirror.url, &reader.image("known"), "1");
    drop(heart);
    reader.decides(&image, "Kept UpstreamPreferred");
}

/// A registry that is there and answers 500 for every manifest; ends with the process.
fn registry_of_broken_images() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            // One that says nothing holds up no other.
            thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    match stream.read(&mut byte) {
                        Ok(1) => head.extend(byte),
                        _ => break,
                    }
                }
                let status = if head.starts_with(b"GET /v2/ ") {
                    "200 OK"
                } else {
                    "500 Broken"
                };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                drop(stream.write_all(answer.as_bytes()));
            });
        }
    });
    url
}

pub(crate) fn a_broken_image_switches_no_mirror_off(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |mirror| {
        mirror["spec"]["endpoint"]["url"] = registry_of_broken_images().into();
    });
    let _heart = Heart::start(&reader);
    let (known, broken) = (reader.image("known:1"), reader.image("broken:1"));
    reader.wait_until_fresh();
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&known, clock::now());
    reader.decides(&known, REWRITTEN);
    let mut decisions = Vec::new();
    for _ in 0..3 {
        reader.decides(&broken, "Kept RegistryError");
        // As long as an answer that tells nothing is remembered, and as own pings take.
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            decisions.push(reader.decide("probe", &known));
            thread::sleep(Duration::from_millis(100));
        }
    }
    reader.decides(&broken, "Kept RegistryError");
    // A ping that a busy machine makes slow is a suspicion, for as long as it is out.
    let suspected = |decision: &&String| *decision == "Kept MirrorSuspected";
    let rewritten = |decision: &&String| *decision == REWRITTEN;
    let (all, kept) = (decisions.len(), decisions.iter().filter(suspected).count());
    assert_eq!(
        decisions.iter().filter(rewritten).count() + kept,
        all,
        "{decisions:?}"
    );
    assert!(kept * 10 <= all, "{kept} of {all}");
}

pub(crate) fn a_mirror_with_a_fault_stays_as_it_was(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let _heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    reader.know(&image, clock::now());
    reader.share_healthy(clock::now().before(Duration::from_secs(5)));
    reader.decides(&image, REWRITTEN);
    reader.change_mirror(|mirror| {
        mirror["spec"]["endpoint"]["futureField"] = 1.into();
        mirror["spec"]["mode"] = "Off".into();
    });
    let faults = eventually("the fault is told", || {
        let faults = reader.status()["cluster"]["mirrors"][&reader.name]["faults"].clone();
        (faults != json!([])).then_some(faults)
    });
    assert!(
        faults[0].as_str().unwrap().contains("spec.endpoint.futureField"),
        "{faults}"
    );
    assert_eq!(reader.decide("probe", &image), REWRITTEN);
    // Its status is still listened to.
    reader.share(&json!({"health": {"state": "Unhealthy", "provenSince": time(clock::now())}}));
    assert_eq!(reader.decide("probe", &image), "Kept MirrorUnhealthy");
    reader.change_mirror(|mirror| mirror["spec"]["endpoint"]["futureField"] = Value::Null);
    reader.decides(&image, "Kept ModeOff");
}

pub(crate) fn the_brake_keeps_every_image_as_it_is_written(cluster: &Cluster) {
    let (reader, _heart, image) = Reader::fresh(cluster);
    reader.decides(&image, REWRITTEN);
    let brake = |word: &str| {
        let annotate = ["annotate", "lease", "kagami-health", word];
        let output = reader.namespace.kubectl(&annotate);
        assert!(output.status.success(), "{output:?}");
    };
    brake("kagami.dev/paused=true");
    reader.decides(&image, "Kept Paused");
    brake("kagami.dev/paused-");
    reader.decides(&image, REWRITTEN);
}

pub(crate) fn a_mirror_serves_the_namespaces_that_it_selects(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |mirror| {
        mirror["spec"]["namespaceSelector"] = json!({"matchLabels": {"team": "blue"}});
    });
    let _heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    reader.know(&image, clock::now());
    reader.share_healthy(clock::now().before(Duration::from_secs(5)));
    let namespace = cluster.namespace(None);
    assert_eq!(reader.decide("no-such", &image), "Kept NamespaceNotServed");
    assert_eq!(reader.decide(&namespace.name, &image), "Kept NamespaceNotServed");
    let decided = |label: &str, expected: &str| {
        let output = namespace.kubectl(&["label", "namespace", &namespace.name, label]);
        assert!(output.status.success(), "{output:?}");
        eventually(expected, || {
            (reader.decide(&namespace.name, &image) == expected).then_some(())
        });
    };
    decided("team=blue", REWRITTEN);
    decided("team-", "Kept NamespaceNotServed");
}

pub(crate) fn a_restarted_api_server_is_followed_again(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    install(&cluster);
    let mut reader = Reader::start(&cluster, "Hosted", |_| ());
    let _heart = Heart::start(&reader);
    let (known, gone) = (reader.image("known:1"), reader.image("gone:1"));
    reader.wait_until_fresh();
    reader.know(&known, clock::now());
    reader.share_healthy(clock::now().before(Duration::from_secs(5)));
    reader.decides(&known, REWRITTEN);

    let outage = cluster.without_control_plane();
    // What is known stays known for a while, without anybody to ask.
    assert_eq!(reader.decide("probe", &known), REWRITTEN);
    let until_watches = |what: &str, is_true: fn(&Value) -> bool| {
        eventually(what, || {
            let watches = reader.status()["cluster"]["watches"].clone();
            watches.as_object().unwrap().values().all(is_true).then_some(())
        });
    };
    until_watches("the watches have failed", |watch| watch["failure"].is_string());
    drop(outage);
    until_watches("the watches go on", |watch| watch["failure"].is_null());
    reader.wait_until_fresh();
    reader.know(&gone, clock::now());
    reader.decides(&gone, REWRITTEN);
    reader.forget(&gone);
    reader.decides(&gone, "Kept ImageMissing");
    reader.share(&json!({"health": {"state": "Unhealthy", "provenSince": time(clock::now())}}));
    assert_eq!(reader.decide("probe", &known), "Kept MirrorUnhealthy");
}
