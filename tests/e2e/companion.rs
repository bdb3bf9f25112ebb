//! The writing side: `kagami companion` against a real API server, with the chart's rights only.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kagami::{clock, domain::time::Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    admission::pod,
    certificates::Authority,
    chart::stdout,
    cluster::{Cluster, User, received_at},
    companion::{Companion, DEFINITIONS, IMAGES, MIRRORS, Place},
    eventually,
    images::{Target, named, push},
    mirror::Mirror,
    reader::time,
    within,
};

const NGINX: &str = "docker.io/library/nginx:1.29";
const MISSING: &str = "docker.io/library/nginx:no-such-tag";

pub(crate) fn what_is_known_can_be_read_with_kubectl(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    create_node(cluster, &place.name);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    place
        .served
        .create_pod(&pod("gone", "nginx:no-such-tag"))
        .success();
    place
        .served
        .create_pod(&rewritten("rewritten", "busybox:1.37"))
        .success();
    let companion = place.start("companion-a", &[]);

    let image = place.wait_for_image(NGINX, "Present");
    assert_eq!(image["spec"]["digest"], json!(cluster.mirror.nginx));
    place.wait_for_image(MISSING, "Missing");
    place.wait_for_image("docker.io/library/busybox:1.37", "Present");
    place.wait_for_health("Healthy");
    // A sweep may end before everything that a condition or the platforms need has come in.
    let conditions = [
        "Ready",
        "Healthy",
        "CredentialsValid",
        "SweepInTime",
        "SchemaCurrent",
    ];
    let mirror = eventually("a sweep ends, and every condition is true", || {
        let mirror = place.mirror();
        let status = &mirror["status"];
        let holds = status["sweeps"]["tag"]["present"] == 2
            && conditions
                .iter()
                .all(|condition| state_of(&mirror, condition) == "True")
            && status["platforms"].as_array()?.contains(&json!("linux/arm64"));
        holds.then_some(mirror)
    });
    let status = &mirror["status"];
    // Readers must be able to reach the version: a MirroredImage has it, or was written again since.
    let number = |version: &Value| version.as_str().unwrap().parse::<u64>().unwrap();
    let through = number(&status["sweeps"]["tag"]["throughResourceVersion"]);
    let images = cluster.get(IMAGES).success();
    let items = images["items"].as_array().unwrap().iter();
    let newest = items
        .map(|item| number(&item["metadata"]["resourceVersion"]))
        .max();
    assert!(newest >= Some(through), "{through} is past {newest:?}");

    let shown = kubectl(&place, &["get", "imagemirrors"]);
    assert!(shown.contains("Enforce") && shown.contains("Healthy"), "{shown}");
    let shown = kubectl(&place, &["get", "mirroredimages"]);
    assert!(shown.contains(NGINX) && shown.contains("Present"), "{shown}");
    eventually("the change of health is told", || {
        let shown = kubectl(&place, &["events", "--namespace", "default"]);
        shown
            .contains("The mirror went from Unknown to Healthy")
            .then_some(())
    });
    let (_, metrics) = companion.listeners.get("/metrics").unwrap();
    assert!(
        metrics.contains("kagami_writes_total{kind=\"ImageMirror\",result=\"ok\"}"),
        "{metrics}"
    );
    // The leader shows them every few seconds.
    for watch in [
        "imagemirrors",
        "mirroredimages",
        "namespaces",
        "nodes",
        "pods",
        "secrets",
    ] {
        let silence = format!("kagami_watch_silence_seconds{{watch=\"{watch}\"}} ");
        eventually(&format!("{watch} was heard of"), || {
            let (_, metrics) = companion.listeners.get("/metrics").unwrap();
            let (_, seconds) = metrics.split_once(&silence)?;
            (!seconds.starts_with('-')).then_some(())
        });
    }
    let (_, status) = companion.listeners.get("/status").unwrap();
    assert!(status.contains("\"leading\":true"), "{status}");
    assert_only_allowed(&place, &companion);
}

/// A certificate that is no good is told with what is wrong with it, where people look.
pub(crate) fn a_bad_certificate_is_told_in_condition_and_event(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    // The API server's own port: its certificate is signed by nobody whom this bundle has.
    let patch = json!({"spec": {"endpoint": {
        "url": cluster.url,
        "caBundle": Authority::new().pem(),
    }}});
    place.patch_mirror(&patch);
    let companion = place.start("companion-a", &[]);
    let mirror = place.wait_for_health("Unhealthy");
    let status = &mirror["status"];
    let words = "the certificate is not signed by an authority in caBundle";
    let condition = status["conditions"].as_array().unwrap().iter();
    let mut condition = condition.filter(|condition| condition["type"] == "Healthy");
    let condition = condition.next().unwrap();
    assert_eq!(condition["reason"], "TLSHandshakeFailed", "{status}");
    for message in [&condition["message"], &status["health"]["message"]] {
        let message = message.as_str().unwrap();
        assert!(
            message.contains(words)
                && message.contains("valid from")
                && message.contains("kubernetes.default.svc"),
            "{message}"
        );
    }
    eventually("an Event tells of it", || {
        let shown = kubectl(&place, &["events", "--namespace", "default"]);
        let mut lines = shown.lines().filter(|line| line.contains(&place.name));
        lines
            .any(|line| line.contains("to Unhealthy: TLSHandshakeFailed") && line.contains(words))
            .then_some(())
    });
    let (_, status) = companion.listeners.get("/status").unwrap();
    assert!(status.contains(words), "{status}");
    assert_only_allowed(&place, &companion);
}

/// What it used is forgotten as if it were gone; `kagami report` leaves it out by the same words.
pub(crate) fn a_pod_that_is_done_uses_nothing(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    for (name, image) in [("web", "nginx:1.29"), ("job", "busybox:1.37")] {
        place.served.create_pod(&pod(name, image)).success();
    }
    let _companion = place.start("companion-a", &["--forget-after", "5s"]);
    let busybox = "docker.io/library/busybox:1.37";
    place.wait_for_image(NGINX, "Present");
    place.wait_for_image(busybox, "Present");
    let job = place.served.path("pods/job");
    let mut done = place.served.pod("job");
    done["status"]["phase"] = "Succeeded".into();
    cluster
        .request(User::Admin, Method::PUT, &format!("{job}/status"), Some(&done))
        .success();
    let exists = |image: &str| {
        cluster
            .get(&format!("{IMAGES}/{}", object_name(&place, image)))
            .status
            == 200
    };
    eventually("its image is forgotten", || (!exists(busybox)).then_some(()));
    assert!(exists(NGINX), "the other Pod runs on");
    assert_eq!(place.served.pod("job")["status"]["phase"], "Succeeded");
}

pub(crate) fn health_is_written_once_for_each_change(cluster: &Cluster) {
    let name = "mirror-of-the-companion";
    let mut mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), name);
    let place = Place::new(cluster, &mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let companion = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    let before = place.wait_for_health("Healthy");

    mirror.kill();
    let down = place.wait_for_health("Unhealthy");
    assert_eq!(state_of(&down, "Healthy"), "False");
    assert_eq!(down["status"]["health"]["reason"], "ConnectionRefused");
    assert_eq!(
        down["status"]["health"]["provenSince"],
        before["status"]["health"]["provenSince"]
    );
    // A down mirror is no news: nothing is written while it stays down.
    let settled = place.mirror()["metadata"]["resourceVersion"].clone();
    let beats = heartbeat(&place);
    eventually("the heart beats on", || {
        (heartbeat(&place) != beats).then_some(())
    });
    assert_eq!(place.mirror()["metadata"]["resourceVersion"], settled);

    mirror.bring_back();
    let back = place.wait_for_health("Healthy");
    let proven_since = |mirror: &Value| mirror["status"]["health"]["provenSince"].to_string();
    assert!(proven_since(&back) > proven_since(&before));
    let changes: Vec<_> = writes(&place, &companion)
        .into_iter()
        .filter_map(|write| {
            write["requestObject"]["status"]["health"]["since"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    let mut once = changes.clone();
    once.dedup();
    assert!(
        (3..=4).contains(&once.len()),
        "Unknown?, Healthy, Unhealthy, Healthy: {changes:?}"
    );
    let image_writes = writes(&place, &companion)
        .iter()
        .filter(|write| write["objectRef"]["resource"] == "mirroredimages")
        .count();
    assert_eq!(image_writes, 1, "an outage says nothing of images");
    assert_only_allowed(&place, &companion);
}

pub(crate) fn a_second_replica_takes_over_after_a_kill(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let first = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    let before = place.wait_for_health("Healthy");
    eventually("the heart beats", || (!heartbeat(&place).is_null()).then_some(()));
    let second = place.start("companion-b", &[]);
    let killed = Instant::now();
    drop(first);
    second.wait_for_lead();
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");

    // It takes over what is known, and goes on from there.
    place.served.create_pod(&pod("more", "redis:8")).success();
    place.wait_for_image("docker.io/library/redis:8", "Present");
    let after = place.mirror();
    assert_eq!(after["status"]["health"], before["status"]["health"]);
    let rewritten = writes(&place, &second)
        .into_iter()
        .filter(|write| write["objectRef"]["name"] == object_name(&place, NGINX))
        .count();
    assert_eq!(rewritten, 0, "what is known already was written again");

    // Whoever ends as asked gives the lease back, even if somebody else wrote to it: the next waits for a retry only.
    let third = place.start("companion-a", &[]);
    let touch = ["annotate", "lease", "kagami-companion", "touched=true"];
    stdout(&place.own.kubectl(&touch));
    let asked = Instant::now();
    second.process.terminate();
    third.wait_for_lead();
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());

    // Whoever only waits has nothing to give back, and ends as well as a leader.
    let waiting = place.start("companion-b", &[]);
    waiting.process.terminate();
}

pub(crate) fn a_paused_leader_never_writes_again(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let first = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    place.wait_for_health("Healthy");
    let second = place.start("companion-b", &[]);
    // It is stopped with work at hand: many images to look at and to write.
    for number in 0..30 {
        let image = format!("nginx:none-{number}");
        place
            .served
            .create_pod(&pod(&format!("many-{number}"), &image))
            .success();
    }
    first.process.freeze();
    second.wait_for_lead();
    place.wait_for_image("docker.io/library/nginx:none-29", "Missing");
    let thawed_at = newest(&writes(&place, &second));
    first.process.thaw();
    first.wait_for_end_of_lead();
    // Long enough for whatever it had in mind.
    let beats = heartbeat(&place);
    eventually("the heart beats on", || {
        (heartbeat(&place) != beats).then_some(())
    });
    // What was in flight when it was stopped had arrived long before. One request may have been past the look at the
    // lease and not yet sent: nobody can look later than that, and the API server refuses it for its version.
    let mut late = writes(&place, &first);
    late.retain(|write| received_at(write) > thawed_at);
    let refused = |write: &Value| write["responseStatus"]["code"] == 409;
    assert!(late.len() <= 1 && late.iter().all(refused), "{late:#?}");
}

/// Away for longer than a lease holds: the leader steps down, and leads again by itself.
pub(crate) fn a_restarted_api_server_finds_the_companion_at_work(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    let place = Place::new(&cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let mut companion = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    place.wait_for_health("Healthy");
    eventually("the heart beats", || (!heartbeat(&place).is_null()).then_some(()));

    let outage = cluster.without_control_plane();
    companion.wait_for_end_of_lead();
    drop(outage);
    companion.wait_for_lead();
    let beats = heartbeat(&place);
    eventually("the heart beats on", || {
        (heartbeat(&place) != beats).then_some(())
    });
    place.served.create_pod(&pod("more", "redis:8")).success();
    place.wait_for_image("docker.io/library/redis:8", "Present");
    place.wait_for_health("Healthy");
    companion.process.assert_alive();
    assert_only_allowed(&place, &companion);
}

pub(crate) fn certificates_are_made_and_renewed_in_steps(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let webhook = |mode: &str| {
        json!({
            "name": format!("{mode}.{}.kagami.dev", place.own.name),
            "clientConfig": {"service": {"name": "kagami-webhook", "namespace": place.own.name, "path": "/"}},
            // Nobody is there to be called.
            "namespaceSelector": {"matchLabels": {"no": "such"}},
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        })
    };
    let configuration = json!({
        "metadata": {"name": place.name},
        "webhooks": [webhook("enforce"), webhook("audit")],
    });
    cluster.create(configurations, &configuration).success();
    let arguments = [
        "--webhook-configuration",
        &place.name,
        "--certificate-step",
        "2s",
        "--certificate-validity",
        "5s",
    ];
    let companion = place.start("companion-a", &arguments);
    let bundles = || {
        let stored = cluster.get(&format!("{configurations}/{}", place.name)).success();
        let webhooks = stored["webhooks"].as_array().unwrap().clone();
        let bundle = |webhook: &Value| webhook["clientConfig"]["caBundle"].as_str().map(decode);
        assert_eq!(webhooks[0]["clientConfig"]["service"]["path"], "/");
        webhooks.iter().map(bundle).collect::<Option<Vec<_>>>()
    };
    let serving = || {
        let path = place.own.path("secrets/kagami-webhook-tls");
        let answer = cluster.get(&path);
        (answer.status == 200).then(|| answer.success()).map(|secret| {
            assert_eq!(secret["type"], "kubernetes.io/tls");
            let field = |name: &str| decode(secret["data"][name].as_str().unwrap());
            assert!(field("tls.key").contains("PRIVATE KEY"));
            (field("tls.crt"), field("ca.crt"))
        })
    };

    // What is seen over time, each state once.
    let mut seen: Vec<(usize, String, String)> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(50);
    loop {
        // The Secret first: whatever it has must be trusted by the bundle read after.
        if let (Some((leaf, authority)), Some(bundles)) = (serving(), bundles()) {
            assert_eq!(bundles[0], bundles[1]);
            assert!(
                bundles[0].contains(&authority),
                "a certificate is served that nobody trusts"
            );
            let trusted = bundles[0].matches("BEGIN CERTIFICATE").count();
            let state = (trusted, authority, leaf);
            if seen.last() != Some(&state) {
                seen.push(state);
            }
        }
        let authorities: BTreeSet<_> = seen.iter().map(|(_, authority, _)| authority.clone()).collect();
        if authorities.len() == 2 && seen.last().is_some_and(|(trusted, ..)| *trusted == 1) {
            break;
        }
        assert!(Instant::now() < deadline, "no renewal: {} states", seen.len());
        thread::sleep(Duration::from_millis(20));
    }
    let first = seen[0].1.clone();
    let steps: Vec<_> = seen
        .iter()
        .map(|(trusted, authority, _)| (*trusted, *authority == first))
        .collect();
    let mut steps = steps;
    steps.dedup();
    assert_eq!(steps, [(1, true), (2, true), (2, false), (1, false)]);
    let leaves: BTreeSet<_> = seen.iter().map(|(.., leaf)| leaf).collect();
    assert!(leaves.len() > 2, "certificates are renewed by themselves too");
    assert_only_allowed(&place, &companion);
    cluster.delete(&format!("{configurations}/{}", place.name));
}

pub(crate) fn a_failing_upstream_is_told_to_the_webhooks(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let mut upstream = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), "upstream");
    let host = upstream.url.strip_prefix("http://").unwrap().to_owned();
    let mut mirror = place.mirror();
    mirror["spec"]["prefer"] = "Upstream".into();
    mirror["spec"]["sources"] = json!([{"prefix": host}]);
    let path = format!("{MIRRORS}/{}", place.name);
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&mirror))
        .success();
    let first = place.start("companion-a", &[]);
    place.wait_for_health("Healthy");
    let failing = |expected: Value| {
        eventually(&format!("{expected} fail"), || {
            let told = place.mirror()["status"]["failingUpstreams"].clone();
            (told == expected).then_some(())
        });
    };
    failing(json!([]));
    upstream.kill();
    failing(json!([host]));

    // Whoever takes over does not forget it for a moment.
    let told = || {
        let writes = place.cluster.writes_of(|user| user["username"] == "companion-b");
        let told = |write: &Value| write["requestObject"]["status"]["failingUpstreams"].clone();
        writes
            .iter()
            .map(told)
            .filter(|told| !told.is_null())
            .collect::<Vec<_>>()
    };
    let before = told().len();
    let second = place.start("companion-b", &[]);
    first.process.terminate();
    second.wait_for_lead();
    let beats = heartbeat(&place);
    eventually("the heart beats on", || {
        (heartbeat(&place) != beats).then_some(())
    });
    let told_by_second = told().split_off(before);
    assert!(
        told_by_second.iter().all(|told| *told == json!([host])),
        "{told_by_second:?}"
    );
    upstream.bring_back();
    failing(json!([]));
}

pub(crate) fn an_older_definition_is_told_until_it_is_upgraded(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    create_node(cluster, &place.name);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let definition = format!("{DEFINITIONS}/imagemirrors.kagami.dev");
    // Without a field that users may set, and without one that the companion writes.
    let make_older = || {
        let mut crd = cluster.get(&definition).success();
        let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        for (part, field) in [("spec", "prefer"), ("status", "platforms")] {
            drop(schema[part]["properties"].as_object_mut().unwrap().remove(field));
        }
        // Whoever installs the definitions at this moment comes first.
        drop(cluster.request(User::Admin, Method::PUT, &definition, Some(&crd)));
    };
    make_older();
    let companion = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    let mirror = eventually("the older definition is told", || {
        let mirror = place.mirror();
        match state_of(&mirror, "SchemaCurrent") {
            "False" => Some(mirror),
            "absent" => None,
            // Another test has installed the definitions in between.
            _ => {
                make_older();
                None
            }
        }
    });
    let conditions = mirror["status"]["conditions"].to_string();
    assert!(
        conditions.contains("imagemirrors.kagami.dev spec.prefer") && conditions.contains("status.platforms"),
        "{conditions}"
    );
    assert!(
        conditions.contains("kagami crds | kubectl apply --server-side --force-conflicts -f -"),
        "{conditions}"
    );
    // What the API server drops is not written again and again.
    let sweeps = |mirror: &Value| mirror["status"]["sweeps"]["tag"]["startedAt"].to_string();
    let mut last = eventually("a sweep ends", || {
        let sweep = sweeps(&place.mirror());
        (sweep != "null").then_some(sweep)
    });
    // Images come and go with the Pods of other tests.
    let statuses_written = || {
        let writes = writes(&place, &companion);
        let of_mirrors = |write: &&Value| write["objectRef"]["resource"] == "imagemirrors";
        writes.iter().filter(of_mirrors).count()
    };
    let before = statuses_written();
    for _ in 0..2 {
        last = eventually("another sweep ends", || {
            let sweep = sweeps(&place.mirror());
            (sweep != last).then_some(sweep)
        });
    }
    let written = statuses_written() - before;
    assert!(written <= 4, "{written} writes for two sweeps");

    // As the message says: whoever installed them, Helm or this test, owns all of `spec.versions`.
    let file = cluster.folder().join("definitions.yaml");
    std::fs::write(&file, kagami::api::crds_yaml()).unwrap();
    let remedy = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename",
        file.to_str().unwrap(),
    ];
    stdout(&cluster.kubectl(&remedy));
    eventually("the upgrade is seen", || {
        let mirror = place.mirror();
        let known = mirror["status"]["platforms"] != Value::Null;
        (known && state_of(&mirror, "SchemaCurrent") == "True").then_some(())
    });
    assert_only_allowed(&place, &companion);
}

/// A backup is restored, or an older leader wrote late: nobody looked at the mirror for it.
pub(crate) fn what_came_by_other_hands_is_looked_at_before_a_sweep_covers_it(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let companion = place.start("companion-a", &[]);
    place.wait_for_image(NGINX, "Present");
    place.wait_for_health("Healthy");
    let last_week = clock::now().before(Duration::from_hours(24 * 7));
    let digest = format!("sha256:{}", "a".repeat(64));
    let restored = present(&place.name, MISSING, &digest, last_week);
    let restored = cluster.create(IMAGES, &restored).success();
    place.served.create_pod(&pod("more", "redis:8")).success();
    place.wait_for_image("docker.io/library/redis:8", "Present");
    let path = format!("{IMAGES}/{}", object_name(&place, MISSING));
    eventually("it is looked at", || {
        // In this order: what the status says holds for the image as it is read after.
        let through = through(&place.mirror());
        let image = cluster.get(&path).success();
        if image["spec"]["presence"] == "Present" {
            assert!(
                through < version(&restored),
                "a sweep covers what nobody looked at"
            );
        }
        (image["spec"]["presence"] == "Missing" && through >= version(&image)).then_some(())
    });
    assert_only_allowed(&place, &companion);
}

pub(crate) fn a_deleted_image_comes_back_while_pods_use_it(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let companion = place.start("companion-a", &[]);
    let before = place.wait_for_image(NGINX, "Present");
    place.wait_for_health("Healthy");
    cluster
        .delete(&format!("{IMAGES}/{}", object_name(&place, NGINX)))
        .success();
    let after = place.wait_for_image(NGINX, "Present");
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_only_allowed(&place, &companion);
}

pub(crate) fn an_image_of_next_year_is_proven_again_by_the_next_leader(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let next_year = clock::now().after(Duration::from_hours(24 * 365));
    let image = present(&place.name, NGINX, &cluster.mirror.nginx, next_year);
    cluster.create(IMAGES, &image).success();
    let companion = place.start("companion-a", &[]);
    eventually("it is proven again", || {
        let through = through(&place.mirror());
        let image = place.wait_for_image(NGINX, "Present");
        let is_believable = image["spec"]["verifiedAt"].as_str().unwrap() <= time(clock::now()).as_str();
        (is_believable && through >= version(&image)).then_some(())
    });
    assert_only_allowed(&place, &companion);
}

pub(crate) fn a_deleted_mirror_holds_up_no_other(cluster: &Cluster) {
    const LEFT: usize = 800;
    let name = "mirror-beside-one-that-goes";
    let mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), name);
    let place = Place::new(cluster, &mirror.url);
    let repository = "docker.io/library/moving";
    push(&cluster.http, &mirror.url, repository, "1");
    place.served.create_pod(&pod("web", "moving:1")).success();
    // Its name sorts before the other's.
    let gone = format!("gone-{}", place.name);
    create_mirror_like(&place, &gone, "gone.test");
    let now = clock::now();
    let mut left = BTreeSet::new();
    for number in 0..LEFT {
        let image = format!("docker.io/library/left-{number}:1");
        let image = present(&gone, &image, &cluster.mirror.nginx, now);
        left.insert(image["metadata"]["name"].to_string());
        cluster.create(IMAGES, &image).success();
    }
    let companion = place.start("companion-a", &[]);
    let moving = format!("{repository}:1");
    let before = place.wait_for_image(&moving, "Present");
    eventually("a sweep ends", || (through(&place.mirror()) > 0).then_some(()));

    cluster.delete(&format!("{MIRRORS}/{gone}")).success();
    let image = named("another");
    let digest = image.digest.to_string();
    let target = Target {
        http: cluster.http.client.clone(),
        url: mirror.url.clone(),
        authorization: None,
    };
    cluster.http.wait(target.push(repository, "1", &image));
    assert_ne!(before["spec"]["digest"], digest);
    // Long before everything that is left could be deleted one after the other at ten a second.
    let started = || place.mirror()["status"]["sweeps"]["tag"]["startedAt"].clone();
    within(Duration::from_secs(20), "the moved tag is known", || {
        let image = place.wait_for_image(&moving, "Present");
        (image["spec"]["digest"] == digest).then_some(())
    });
    for _ in 0..2 {
        let last = started();
        within(Duration::from_secs(20), "another sweep ends", || {
            (started() != last).then_some(())
        });
    }
    eventually("what is left goes", || {
        let images = cluster.get(IMAGES).success();
        let mut items = images["items"].as_array()?.iter();
        items
            .all(|image| image["spec"]["mirror"] != gone.as_str())
            .then_some(())
    });
    // A deletion tells the audit log no more than a name. What its last sweep found was written before.
    let mut writes = cluster.writes_of(|user| user["username"] == companion.user);
    writes.retain(|write| {
        let is_left = left.contains(&write["objectRef"]["name"].to_string());
        is_left && write["requestObject"]["spec"]["presence"] != "Missing"
    });
    assert_eq!(writes.len(), LEFT, "one write for each");
    assert_only_allowed(&place, &companion);
}

pub(crate) fn a_mirror_made_again_under_its_name_inherits_no_proof(cluster: &Cluster) {
    const LEFT: usize = 300;
    let place = Place::new(cluster, &cluster.mirror.url);
    place.served.create_pod(&pod("web", "nginx:1.29")).success();
    let again = format!("again-{}", place.name);
    create_mirror_like(&place, &again, "before.test");
    // Nobody's clock is quite right.
    let verified_at = clock::now().after(Duration::from_secs(2));
    for number in 0..LEFT {
        let image = format!("docker.io/library/left-{number}:1");
        let image = present(&again, &image, &cluster.mirror.nginx, verified_at);
        cluster.create(IMAGES, &image).success();
    }
    let path = format!("{MIRRORS}/{again}");
    // Made again while it had no leader at all, and while it has one.
    cluster.delete(&path).success();
    create_mirror_like(&place, &again, "after.test");
    let companion = place.start("companion-a", &[]);
    place.wait_for_health("Healthy");
    cluster.delete(&path).success();
    create_mirror_like(&place, &again, "later.test");
    eventually("nothing is left of the former one", || {
        let mirror = cluster.get(&path).success();
        let status = &mirror["status"];
        let images = cluster.get(IMAGES).success();
        let left = images["items"].as_array()?.iter().filter(|image| {
            let image = &image["spec"];
            image["mirror"] == again.as_str() && image["presence"] == "Present" && image["image"] != NGINX
        });
        let left: Vec<_> = left.collect();
        for image in &left {
            if status["health"]["state"] == "Healthy" {
                let proven_since = status["health"]["provenSince"].as_str().unwrap();
                assert!(image["spec"]["verifiedAt"].as_str().unwrap() < proven_since);
            }
            assert!(through(&mirror) < version(image), "a sweep covers what is left");
        }
        (left.is_empty() && through(&mirror) > 0).then_some(())
    });
    cluster.delete(&path).success();
    assert_only_allowed(&place, &companion);
}

/// Creates a mirror like the place's under another name.
fn create_mirror_like(place: &Place<'_>, name: &str, registry: &str) {
    let mut mirror = place.mirror();
    mirror["metadata"] = json!({"name": name});
    mirror["spec"]["registry"] = registry.into();
    drop(mirror.as_object_mut().unwrap().remove("status"));
    place.cluster.create(MIRRORS, &mirror).success();
}

/// A MirroredImage that says that the mirror has the image.
fn present(mirror: &str, image: &str, digest: &str, verified_at: Timestamp) -> Value {
    json!({
        "apiVersion": "kagami.dev/v1alpha1",
        "kind": "MirroredImage",
        "metadata": {"name": kagami::api::v1alpha1::MirroredImage::object_name(mirror, image)},
        "spec": {
            "mirror": mirror,
            "image": image,
            "presence": "Present",
            "digest": digest,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "verifiedAt": time(verified_at),
            "lastUsed": format!("{:.19}Z", time(verified_at)),
        },
    })
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// The version through which the last sweep over tags holds; zero if none is told.
fn through(mirror: &Value) -> u64 {
    let through = &mirror["status"]["sweeps"]["tag"]["throughResourceVersion"];
    through.as_str().map_or(0, |through| through.parse().unwrap())
}

fn decode(text: &str) -> String {
    String::from_utf8(BASE64.decode(text).unwrap()).unwrap()
}

/// A Pod as Kagami leaves it.
fn rewritten(name: &str, image: &str) -> Value {
    let mut pod = pod(name, &format!("mirror.test/docker.io/library/{image}"));
    pod["metadata"]["annotations"] = json!({"original-image.kagami.dev/app": image});
    pod
}

fn create_node(cluster: &Cluster, name: &str) {
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}}});
    cluster.create("/api/v1/nodes", &node).success();
}

fn state_of<'a>(mirror: &'a Value, condition: &str) -> &'a str {
    let conditions = mirror["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|entry| entry["type"] == condition);
    found.map_or("absent", |entry| entry["status"].as_str().unwrap())
}

fn object_name(place: &Place<'_>, image: &str) -> String {
    kagami::api::v1alpha1::MirroredImage::object_name(&place.name, image)
}

fn heartbeat(place: &Place<'_>) -> Value {
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/kagami-health",
        place.own.name
    );
    let answer = place.cluster.get(&path);
    if answer.status == 200 {
        answer.success()["spec"]["renewTime"].clone()
    } else {
        Value::Null
    }
}

/// What a companion wrote in this test, Leases left out.
fn writes(place: &Place<'_>, companion: &Companion) -> Vec<Value> {
    let mut writes = place.cluster.writes_of(|user| user["username"] == companion.user);
    // Tests follow each other; what they write differs by the mirror's name or the namespace.
    writes.retain(|write| {
        let mine = write.to_string();
        write["objectRef"]["resource"] != "leases"
            && (mine.contains(&place.name) || write["objectRef"]["namespace"] == place.own.name)
    });
    writes
}

fn newest(writes: &[Value]) -> String {
    writes.iter().map(received_at).max().unwrap()
}

/// Nothing was tried that the rights do not give.
pub(crate) fn assert_only_allowed(place: &Place<'_>, companion: &Companion) {
    let mut refused = writes(place, companion);
    // Whoever writes into a namespace of another test, which is just being deleted, may do so all the same.
    let is_leaving = |write: &Value| {
        write["responseStatus"]["message"]
            .to_string()
            .contains("being terminated")
    };
    refused.retain(|write| write["responseStatus"]["code"] == 403 && !is_leaving(write));
    assert!(refused.is_empty(), "{refused:#?}");
}

fn kubectl(place: &Place<'_>, arguments: &[&str]) -> String {
    let output = place.served.kubectl(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
