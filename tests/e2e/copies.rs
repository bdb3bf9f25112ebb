//! Copies on demand: the companion fills a mirror from upstream, and webhooks rewrite to what is there then.

use std::{net::SocketAddr, process::Command};

use reqwest::Method;
use serde_json::{Value, json};

use ::kagami::domain::answer::MediaType;

use crate::{
    secrets::create_or_replace,
    support::{
        admission::{image, pod},
        cluster::{Cluster, Namespace, User},
        command::run,
        companion::{Companion, Place},
        eventually,
        images::{Image, Target, index, named},
        kagami::{self, Kagami, Registration},
        mirror::REGISTRY,
        process::reserve_port,
        registry::{BOB, Registry},
    },
};

const SECRET: &str = "upstream";

/// A registry of a test's own.
struct Peer {
    registry: Registry,
    address: SocketAddr,
    configuration: Value,
    target: Target,
}

impl Peer {
    /// Starts it, for Bob alone or for everybody.
    fn start(cluster: &Cluster, name: &str, for_bob: bool) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], reserve_port()));
        let program = cluster.tools.path("registry");
        let mut registry = Registry::new(name, &program, cluster.folder(), address);
        let mut configuration = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": cluster.folder().join(format!("{name}-data"))}},
            "http": {"addr": address.to_string()},
        });
        if for_bob {
            configuration["auth"] = registry.htpasswd(BOB);
        }
        registry.start(&configuration);
        let mut target = Target::of(&cluster.http, &format!("http://{address}"));
        target.authorization = for_bob.then(|| BOB.basic());
        Self {
            registry,
            address,
            configuration,
            target,
        }
    }

    /// The same registry, which writes or does not.
    fn restart(&mut self, read_only: bool) {
        self.registry.kill();
        self.configuration["storage"]["maintenance"] = json!({"readonly": {"enabled": read_only}});
        self.registry.start(&self.configuration);
    }

    fn push(&self, cluster: &Cluster, repository: &str, image: &Image) {
        cluster.http.wait(self.target.push(repository, "1", image));
    }

    /// The name of an image here.
    fn image(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.address)
    }

    /// Where it stands in a mirror.
    fn mirrored(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address.to_string().replace(':', "_"))
    }
}

/// Makes the mirror one that is filled from `upstream`, for these namespaces.
fn fill(place: &Place<'_>, upstream: &Peer, namespaces: &[&str], source: &Value) {
    let mut source = source.clone();
    source["prefix"] = upstream.address.to_string().into();
    place.patch_mirror(&json!({"spec": {
        "namespaceSelector": {"matchLabels": null, "matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces},
        ]},
        "sources": [source],
        "copy": {"policy": "OnDemand"},
    }}));
}

fn put_secret(place: &Place<'_>, password: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
        "type": "kubernetes.io/basic-auth",
        "stringData": {"username": BOB.user, "password": password},
    });
    create_or_replace(place, &secret);
}

/// Starts a webhook, which the API server calls for a namespace.
pub(crate) fn webhook<'a>(place: &Place<'a>, namespace: &Namespace<'a>) -> (Registration<'a>, Kagami) {
    let mut command = kagami::command("webhook");
    let kubeconfig = place.cluster.folder().join("companion-b.kubeconfig");
    command
        .env("KUBECONFIG", kubeconfig)
        .args(["--namespace", &place.own.name]);
    let name = format!("webhook-{}", place.own.name);
    let kagami = Kagami::admitting(place.cluster, &name, &mut command).until_ready();
    (Registration::new(namespace, &[], &kagami), kagami)
}

fn explain(place: &Place<'_>, namespace: &str, image: &str) -> String {
    let mut command: Command = kagami::command("explain");
    command
        .env(
            "KUBECONFIG",
            place.cluster.folder().join("companion-b.kubeconfig"),
        )
        .args([
            "--namespace",
            namespace,
            "--kagami-namespace",
            &place.own.name,
            image,
        ]);
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn metric(companion: &Companion, text: &str) -> bool {
    let (_, metrics) = companion.listeners.get("/metrics").unwrap();
    metrics.lines().any(|line| line.starts_with(text))
}

pub(crate) fn what_enforcing_namespaces_use_is_copied_and_then_rewritten(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let upstream = Peer::start(cluster, &format!("upstream-{}", place.own.name), true);
    let all = index(MediaType::OciIndex, &["amd64", "arm64"], "wanted");
    upstream.push(cluster, "team/app", &all);
    upstream.push(cluster, "team/audit", &named("audit"));
    // The Secret that the source names is not there yet.
    let enforced = cluster.namespace(Some("enforce"));
    let credentials = json!({"credentials": {"secretRef": {"name": SECRET}}});
    // The place's own namespace is one in mode audit.
    fill(
        &place,
        &upstream,
        &[&enforced.name, &place.served.name],
        &credentials,
    );
    let companion = place.start("companion-a", &[]);
    place.wait_for_health("Healthy");
    let (_registration, _webhook) = webhook(&place, &enforced);

    let (app, audit) = (upstream.image("team/app"), upstream.image("team/audit"));
    place.served.create_pod(&pod("audit", &audit)).success();
    place.wait_for_image(&audit, "Missing");
    let first = enforced.create_pod(&pod("first", &app)).success();
    assert_eq!(image(&first, "app"), app, "it is not there yet");
    // Why it does not come is told where people look.
    let reason = || {
        let known = place.wait_for_image(&app, "Missing");
        known["spec"]["notCopied"].as_str().map(str::to_owned)
    };
    eventually("it is told why it is not copied", || {
        (reason()? == "SourceUnauthorized").then_some(())
    });
    let told = explain(&place, &enforced.name, &app);
    assert!(
        told.contains("no copy") && told.contains("SourceUnauthorized"),
        "{told}"
    );
    let logins_are = |expected: [&str; 2], words: &str| {
        eventually(&format!("CopyCredentialsValid is {expected:?}"), || {
            let mirror = place.mirror();
            let conditions = mirror["status"]["conditions"].as_array()?.clone();
            let condition = conditions
                .iter()
                .find(|condition| condition["type"] == "CopyCredentialsValid")?;
            let is_so = condition["status"] == expected[0] && condition["reason"] == expected[1];
            (is_so && condition["message"].as_str()?.contains(words)).then_some(())
        });
    };
    logins_are(["False", "SecretFaulty"], &format!("there is no Secret {SECRET}"));
    // What it says of the image is the Secret, for nobody was asked without it.
    assert!(
        companion
            .process
            .log()
            .contains(&format!("there is no Secret {SECRET}"))
    );
    put_secret(&place, "wrong");
    logins_are(["True", "Given"], "");

    // Another login is reason enough to try at once, and the Secret is followed without anything else.
    put_secret(&place, BOB.password);
    let known = place.wait_for_image(&app, "Present");
    assert_eq!(
        (&known["spec"]["digest"], &known["spec"]["notCopied"]),
        (&json!(all.digest.to_string()), &Value::Null)
    );
    let expected = format!("{REGISTRY}/{}:1", upstream.mirrored("team/app"));
    let mut number = 0;
    eventually("new Pods are rewritten", || {
        number += 1;
        let pod = enforced
            .create_pod(&pod(&format!("next-{number}"), &app))
            .success();
        (image(&pod, "app") == expected).then_some(())
    });
    assert!(metric(
        &companion,
        &format!(
            "kagami_copies_total{{mirror=\"{}\",result=\"Copied\"}} 1",
            place.name
        )
    ));
    eventually("the mirror takes copies", || {
        let mirror = place.mirror();
        let conditions = mirror["status"]["conditions"].as_array()?.clone();
        conditions
            .iter()
            .find(|condition| condition["type"] == "Writable" && condition["status"] == "True")
            .map(drop)
    });
    // The image of the other namespace was there to be copied all the time.
    place.wait_for_image(&audit, "Missing");
    let target = Target::of(&cluster.http, &cluster.mirror.url);
    let url = format!("{}/v2/{}/tags/list", target.url, upstream.mirrored("team/audit"));
    let tags = cluster.http.send(target.request(Method::GET, &url)).unwrap();
    assert_eq!(tags.status, 404, "{}", tags.body);
    assert!(!companion.process.log().contains(BOB.password));

    // Labelled anew, it is its turn.
    let path = format!("/api/v1/namespaces/{}", place.served.name);
    let mut namespace = cluster.get(&path).success();
    namespace["metadata"]["labels"]["kagami.dev/mode"] = "enforce".into();
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&namespace))
        .success();
    place.wait_for_image(&audit, "Present");
}

pub(crate) fn a_source_whose_secret_is_missing_is_not_read_as_nobody(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    // It would give the image to everybody.
    let upstream = Peer::start(cluster, &format!("upstream-{}", place.own.name), false);
    upstream.push(cluster, "team/app", &named("app"));
    let enforced = cluster.namespace(Some("enforce"));
    let credentials = json!({"credentials": {"secretRef": {"name": SECRET}}});
    fill(&place, &upstream, &[&enforced.name], &credentials);
    let _companion = place.start("companion-a", &[]);
    place.wait_for_health("Healthy");
    let app = upstream.image("team/app");
    enforced.create_pod(&pod("app", &app)).success();
    eventually("it is told why it is not copied", || {
        let known = place.wait_for_image(&app, "Missing");
        (known["spec"]["notCopied"] == "SourceUnauthorized").then_some(())
    });
    put_secret(&place, BOB.password);
    place.wait_for_image(&app, "Present");
}

pub(crate) fn a_mirror_that_takes_no_copies_is_told_and_serves_what_it_has(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let upstream = Peer::start(cluster, &format!("upstream-{}", place.own.name), false);
    let mut mirror = Peer::start(cluster, &format!("full-{}", place.own.name), false);
    upstream.push(cluster, "team/app", &named("app"));
    mirror.push(cluster, &upstream.mirrored("team/there"), &named("there"));
    mirror.restart(true);
    let enforced = cluster.namespace(Some("enforce"));
    place.patch_mirror(&json!({"spec": {"endpoint": {"url": format!("http://{}", mirror.address)}}}));
    fill(&place, &upstream, &[&enforced.name], &json!({}));
    let _companion = place.start("companion-a", &[]);
    place.wait_for_health("Healthy");
    let (app, there) = (upstream.image("team/app"), upstream.image("team/there"));
    enforced.create_pod(&pod("app", &app)).success();
    enforced.create_pod(&pod("there", &there)).success();
    place.wait_for_image(&there, "Present");
    let writable = |expected: [&str; 2]| {
        eventually(&format!("Writable is {expected:?}"), || {
            let mirror = place.mirror();
            let conditions = mirror["status"]["conditions"].as_array()?.clone();
            let condition = conditions
                .iter()
                .find(|condition| condition["type"] == "Writable")?;
            let is_so = condition["status"] == expected[0] && condition["reason"] == expected[1];
            is_so.then_some(())
        });
    };
    let told = |reason: &str| {
        eventually(&format!("Event {reason}"), || {
            let shown = cluster.kubectl(&["events", "--namespace", "default"]);
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            let mut lines = shown.lines();
            let is_told = |line: &str| {
                let mut words = line.split_whitespace();
                words.any(|word| word == reason) && line.contains(&place.name)
            };
            lines.any(is_told).then_some(())
        });
    };
    writable(["False", "MirrorReadOnly"]);
    told("NotWritable");
    let known = place.wait_for_image(&app, "Missing");
    assert_eq!(known["spec"]["notCopied"], "MirrorReadOnly");
    // Serving is another matter.
    let health = place.mirror()["status"]["health"]["state"].clone();
    assert_eq!(health, "Healthy");
    place.wait_for_image(&there, "Present");

    mirror.restart(false);
    place.wait_for_health("Healthy");
    // Other settings start all tries anew; else a minute would be waited for here.
    place.patch_mirror(&json!({"spec": {"copy": {"referrers": false}}}));
    place.wait_for_image(&app, "Present");
    writable(["True", "Writable"]);
    told("Writable");
    place.patch_mirror(&json!({"spec": {"copy": {"policy": "Off"}}}));
    writable(["Unknown", "NotFilled"]);
}

pub(crate) fn sync_brings_what_running_pods_use(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let upstream = Peer::start(cluster, &format!("upstream-{}", place.own.name), false);
    for repository in ["app", "audit", "off", "rewritten", "unlabelled"] {
        upstream.push(cluster, &format!("team/{repository}"), &named(repository));
    }
    let (enforced, unlabelled) = (cluster.namespace(Some("enforce")), cluster.namespace(None));
    let served = [&*enforced.name, &*place.served.name, &*unlabelled.name];
    // Nobody but the command copies: no companion runs.
    fill(&place, &upstream, &served, &json!({}));
    let of = |repository: &str| upstream.image(&format!("team/{repository}"));
    let mapped = |repository: &str| {
        let path = upstream.mirrored(&format!("team/{repository}"));
        format!("{REGISTRY}/{path}:1")
    };
    let create = |namespace: &Namespace<'_>, name: &str, image: &str, metadata: &Value| {
        let mut wanted = pod(name, image);
        json_patch::merge(&mut wanted["metadata"], metadata);
        namespace.create_pod(&wanted).success();
    };
    create(&enforced, "one", &of("app"), &json!({}));
    create(&enforced, "two", &of("app"), &json!({}));
    let off = json!({"labels": {"kagami.dev/mode": "off"}});
    create(&enforced, "off", &of("off"), &off);
    let record = json!({"annotations": {"original-image.kagami.dev/app": of("rewritten")}});
    create(&enforced, "rewritten", &mapped("rewritten"), &record);
    create(&place.served, "audit", &of("audit"), &json!({}));
    create(&unlabelled, "unlabelled", &of("unlabelled"), &json!({}));
    let others = cluster.namespace(Some("enforce"));
    create(&others, "elsewhere", &of("off"), &json!({}));

    let sync = |arguments: &[&str]| sync(&place, arguments);
    let to = ["--to", &place.name];
    let expected = [of("app"), of("audit"), of("rewritten")];
    let (code, told, sum) = sync(&[&to[..], &["--dry-run"]].concat());
    assert_eq!((code, copied(&told)), (0, expected.to_vec()), "{told}{sum}");
    assert!(sum.contains("3 images: 3 would be copied"), "{sum}");
    let (code, told, sum) = sync(&to);
    assert_eq!((code, copied(&told)), (0, expected.to_vec()), "{told}{sum}");
    assert!(
        sum.contains("3 images: 3 copied") && sum.contains("0 there already, 0 failed"),
        "{sum}"
    );
    let target = Target::of(&cluster.http, &cluster.mirror.url);
    let manifest = |repository: &str| {
        let path = upstream.mirrored(&format!("team/{repository}"));
        let url = format!("{}/v2/{path}/manifests/1", target.url);
        let accept = MediaType::OciManifest.as_str();
        let request = target.request(Method::GET, &url).header("accept", accept);
        cluster.http.send(request).unwrap().status
    };
    assert_eq!(["app", "audit", "rewritten"].map(manifest), [200; 3]);
    assert_eq!(["off", "unlabelled"].map(manifest), [404; 2]);
    let (code, _, sum) = sync(&to);
    assert_eq!(code, 0, "{sum}");
    assert!(
        sum.contains("0 copied") && sum.contains("3 there already"),
        "{sum}"
    );

    // A namespace that is named may be about to be labelled; it must be one that the mirror serves.
    let (code, told, sum) = sync(&[&to[..], &["--namespace", &unlabelled.name]].concat());
    assert_eq!((code, copied(&told)), (0, vec![of("unlabelled")]), "{told}{sum}");
    let (code, told, sum) = sync(&[&to[..], &["--namespace", &others.name]].concat());
    assert_eq!((code, &*told), (0, ""), "{sum}");
    assert!(sum.contains("no running Pod uses"), "{sum}");
    assert_eq!(manifest("off"), 404);

    // What fails is told, and holds up nothing else.
    create(&enforced, "missing", &of("missing"), &json!({}));
    let (code, told, sum) = sync(&to);
    assert_eq!((code, copied(&told)), (1, expected.to_vec()), "{told}{sum}");
    assert!(
        sum.contains("ImageMissing") && sum.contains("3 there already, 1 failed"),
        "{sum}"
    );
    let (code, _, told) = sync(&["--to", "nobody"]);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("there is no mirror nobody"), "{told}");
    let (code, _, told) = sync(&["--namespace", "kube-system"]);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("never acts in namespace kube-system"), "{told}");
}

pub(crate) fn a_tag_that_moves_upstream_is_followed_and_what_it_meant_can_be_pulled(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let upstream = Peer::start(cluster, &format!("upstream-{}", place.own.name), false);
    let (old, new) = (named("old"), named("new"));
    upstream.push(cluster, "team/app", &old);
    let enforced = cluster.namespace(Some("enforce"));
    let tags = |drift: &str| {
        let tags = json!({"pin": "Digest", "refresh": "1s", "drift": drift});
        place.patch_mirror(&json!({"spec": {"tags": tags}}));
    };
    tags("Warn");
    fill(&place, &upstream, &[&enforced.name], &json!({}));
    let companion = place.start("companion-a", &[]);
    place.wait_for_health("Healthy");
    let (_registration, _webhook) = webhook(&place, &enforced);
    let app = upstream.image("team/app");
    let mut number = 0;
    let mut next = || {
        number += 1;
        enforced
            .create_pod(&pod(&format!("pod-{number}"), &app))
            .success()
    };
    let mut until_pulled = |expected: &str| {
        eventually(&format!("new Pods get {expected}"), || {
            let pod = next();
            (image(&pod, "app") == expected).then_some(pod)
        })
    };
    let mirrored = upstream.mirrored("team/app");
    let at = |of: &Image| format!("{REGISTRY}/{mirrored}:1@{}", of.digest);
    let known = |shown: &Image, upstream: Option<&Image>| {
        let upstream = json!(upstream.map(|image| image.digest.to_string()));
        eventually("the MirroredImage tells both digests", || {
            let known = place.wait_for_image(&app, "Present");
            let spec = &known["spec"];
            let is_so = spec["digest"] == shown.digest.to_string() && spec["upstreamDigest"] == upstream;
            is_so.then_some(())
        });
    };
    until_pulled(&at(&old));
    known(&old, None);

    // With Warn it stays upstream's, and nobody copies it.
    upstream.push(cluster, "team/app", &new);
    known(&old, Some(&new));
    let kept = until_pulled(&app);
    let decisions = kept["metadata"]["annotations"]["kagami.dev/decisions"]
        .as_str()
        .unwrap();
    assert!(decisions.contains("ImageMoved"), "{decisions}");
    let told = explain(&place, &enforced.name, &app);
    assert!(
        told.contains("moved") && told.contains(&new.digest.to_string()) && told.contains("ImageMoved"),
        "{told}"
    );
    let moved = format!("kagami_tags_moved{{mirror=\"{}\"}} 1", place.name);
    eventually("it is counted", || metric(&companion, &moved).then_some(()));
    tags("Keep");
    until_pulled(&at(&old));
    assert!(metric(
        &companion,
        &format!(
            "kagami_copies_total{{mirror=\"{}\",result=\"Copied\"}} 1",
            place.name
        )
    ));

    tags("Sync");
    until_pulled(&at(&new));
    known(&new, None);
    // Both stay by tags of this cluster's own, so the Pods of before can be pulled.
    let target = Target::of(&cluster.http, &cluster.mirror.url);
    let get = |what: &str| {
        let url = format!("{}/v2/{mirrored}/{what}", target.url);
        // Distribution shows a manifest only to who takes its kind.
        let request = target.request(Method::GET, &url);
        let request = request.header("Accept", old.media_type.as_str());
        cluster.http.send(request).unwrap()
    };
    for image in [&old, &new] {
        assert_eq!(get(&format!("manifests/{}", image.digest)).status, 200);
    }
    let cluster_uid = cluster.get("/api/v1/namespaces/kube-system").success()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .replace('-', "");
    let own = |of: &Image| {
        let hex = of.digest.to_string().replace("sha256:", "");
        format!("kagami-{}-{cluster_uid}", &hex[..32])
    };
    let listed = get("tags/list");
    let listed: Value = serde_json::from_str(&listed.body).unwrap();
    let mut tags: Vec<String> = serde_json::from_value(listed["tags"].clone()).unwrap();
    tags.sort();
    let mut expected = ["1".to_owned(), own(&old), own(&new)];
    expected.sort();
    assert_eq!(tags, expected);
}

/// Runs `kagami sync` as a person. Returns its exit code, and what it says where.
fn sync(place: &Place<'_>, arguments: &[&str]) -> (i32, String, String) {
    let own = ["sync", "--kagami-namespace", &place.own.name];
    let folder = place.cluster.folder();
    let output = run(
        &folder.join("admin.kubeconfig"),
        folder,
        &[&own, arguments].concat(),
    );
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// Returns the images that are told to be in the mirror then, by name.
fn copied(told: &str) -> Vec<String> {
    let arrows = told.lines().filter_map(|line| line.split_once(" -> "));
    let mut copied: Vec<_> = arrows.map(|(image, _)| image.to_owned()).collect();
    copied.sort();
    copied
}

/// Whatever logins a person has: who names the image is anybody that may make Pods.
pub(crate) fn sync_reads_upstream_with_no_login_of_the_person(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let closed = Peer::start(cluster, &format!("closed-{}", place.own.name), true);
    closed.push(cluster, "team/app", &named("closed"));
    let app = closed.image("team/app");
    let auth =
        json!({"auths": {closed.address.to_string(): {"username": BOB.user, "password": BOB.password}}});
    let logins = cluster.folder().join(format!("logins-{}.json", place.own.name));
    std::fs::write(&logins, auth.to_string()).unwrap();
    let enforced = cluster.namespace(Some("enforce"));
    enforced.create_pod(&pod("closed", &app)).success();
    let arguments = ["--to", &place.name, "--docker-config", logins.to_str().unwrap()];
    fill(&place, &closed, &[&enforced.name], &json!({}));
    let (code, told, sum) = sync(&place, &arguments);
    assert_eq!((code, &*told), (1, ""), "{sum}");
    assert!(sum.contains("SourceUnauthorized"), "{sum}");
    // Nor is a login of theirs taken where the mirror serves that namespace alone: it may read more than the source's.
    fill(&place, &closed, &[&enforced.name], &json!({"access": "Private"}));
    let (code, told, sum) = sync(&place, &arguments);
    assert_eq!((code, &*told), (1, ""), "{sum}");
    assert!(sum.contains("SourceUnauthorized"), "{sum}");
    let credentials = json!({"credentials": {"secretRef": {"name": SECRET}}});
    fill(&place, &closed, &[&enforced.name], &credentials);
    let (code, told, sum) = sync(&place, &arguments);
    assert_eq!((code, &*told), (1, ""), "{sum}");
    assert!(sum.contains(&format!("there is no Secret {SECRET}")), "{sum}");
    put_secret(&place, BOB.password);
    let (code, told, sum) = sync(&place, &["--to", &place.name]);
    assert_eq!((code, copied(&told)), (0, vec![app.clone()]), "{told}{sum}");

    // The mirror is written to with the login that is for that.
    let mirror = Peer::start(cluster, &format!("mirror-{}", place.own.name), true);
    let endpoint = json!({"url": format!("http://{}", mirror.address)});
    let to_mirror = |spec: Value| {
        place.patch_mirror(&json!({"spec": spec}));
        sync(&place, &["--to", &place.name])
    };
    let (code, told, sum) = to_mirror(json!({"endpoint": endpoint}));
    assert_eq!((code, &*told), (1, ""), "{sum}");
    assert!(sum.contains("Unauthorized"), "{sum}");
    let (code, told, sum) = to_mirror(json!({"copy": credentials}));
    assert_eq!((code, copied(&told)), (0, vec![app]), "{told}{sum}");
}
