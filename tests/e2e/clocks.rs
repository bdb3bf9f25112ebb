//! The webhook's certificates in processes that sleep, and under clocks that are set.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ::kagami::{clock, domain::time::Timestamp, server::tls::validity_of};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::{
    certificates::{bundle, configure, decode, secret},
    support::{
        admission::pod,
        cluster::Cluster,
        companion::{Companion, Place},
        eventually,
        kagami::{ADMIN_LISTEN, Kagami, LISTEN, command},
        runner::skipped,
        tls_client::{Client, Settings},
    },
};

const DAY: Duration = Duration::from_hours(24);

/// How often the files are brought up to date.
const SYNC: Duration = Duration::from_millis(100);

/// The Secret of the serving certificate.
const SERVING: &str = "kagami-webhook-tls";

/// A companion and a webhook, whose certificate the companion keeps.
struct Scene<'a> {
    place: Place<'a>,
    companion: Companion,
    webhook: Kagami,
    files: Files,
}

/// How often something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Writes {
    serving: usize,
    bundles: usize,
}

/// The webhook's certificate as a kubelet mounts it.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(folder: &Path) -> Self {
        Self {
            certificate: folder.join("mounted.crt"),
            key: folder.join("mounted.key"),
        }
    }

    /// Brings them up to date. Returns the Secret, if it is there.
    fn sync(&self, place: &Place<'_>) -> Option<Value> {
        let secret = secret(place, SERVING)?;
        for (path, name) in [(&self.certificate, "tls.crt"), (&self.key, "tls.key")] {
            let content = decode(&secret["data"][name]);
            if fs::read_to_string(path).ok().as_ref() != Some(&content) {
                fs::write(path, content).unwrap();
            }
        }
        Some(secret)
    }
}

impl<'a> Scene<'a> {
    /// Starts a companion that keeps certificates of this validity, and a webhook with them. `prepare` is done to
    /// both commands.
    fn start(cluster: &'a Cluster, validity: &str, prepare: impl Fn(&mut Command)) -> Self {
        let place = Place::apart(cluster, &cluster.mirror.url);
        configure(&place, None);
        let arguments = [
            "--webhook-configuration",
            &place.name,
            "--certificate-step",
            "2s",
            "--certificate-validity",
            validity,
        ];
        let companion = place.start_as("companion-a", &arguments, &prepare);
        let files = Files::new(cluster.folder());
        eventually("the certificate is made", || files.sync(&place));
        let mut webhook = command("webhook");
        webhook
            .env("KUBECONFIG", cluster.folder().join("admin.kubeconfig"))
            .args(["--namespace", &place.own.name])
            .args(LISTEN)
            .args(ADMIN_LISTEN)
            .arg("--tls-cert")
            .arg(&files.certificate)
            .arg("--tls-key")
            .arg(&files.key);
        prepare(&mut webhook);
        let webhook = Kagami::launch("webhook", &webhook, cluster.folder());
        Self {
            place,
            companion,
            webhook,
            files,
        }
    }

    /// Waits for something that the files are needed for.
    fn until(&mut self, what: &str, is: impl Fn(&Self, &Value) -> bool) {
        eventually(what, || {
            self.companion.process.assert_alive();
            self.webhook.process.assert_alive();
            let secret = self.files.sync(&self.place)?;
            thread::sleep(SYNC);
            is(self, &secret).then_some(())
        });
    }

    /// What the companion wrote so far.
    fn writes(&self) -> Writes {
        let writes = self
            .place
            .cluster
            .writes_of(|user| user["username"] == self.companion.user);
        let count = |field: &str, value: &str| {
            let of = |write: &&Value| {
                write["objectRef"][field] == value && write["responseStatus"]["code"].as_u64() < Some(300)
            };
            writes.iter().filter(of).count()
        };
        Writes {
            serving: count("name", SERVING),
            bundles: count("resource", "mutatingwebhookconfigurations"),
        }
    }

    /// Whether somebody at that time, who trusts what callers are to trust, believes the webhook.
    fn is_believed(&self, secret: &Value, time: Timestamp) -> bool {
        let authority = decode(&secret["data"]["ca.crt"]);
        if !bundle(&self.place).contains(&authority) {
            return false;
        }
        let settings = Settings {
            name: Some(format!("kagami-webhook.{}.svc", self.place.own.name)),
            time: Some(time),
            ..Settings::trusting(&authority)
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let connected = Client::connect(self.webhook.listeners.admission(), &settings);
        // Clients read no dates of what they trust.
        let (from, to) = validity_of(authority.as_bytes()).unwrap();
        runtime.block_on(connected).is_ok() && from <= time && time < to
    }
}

/// For longer than an authority is valid.
pub(crate) fn what_ended_while_all_slept_is_renewed_at_once(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    let mut scene = Scene::start(&cluster, "20s", |_| ());
    call(&scene);
    scene.until("the API server believes it", |scene, _| is_called(scene));
    scene.companion.process.freeze();
    scene.webhook.process.freeze();
    let before = scene.writes();
    // What is made last before is valid as long as this.
    thread::sleep(Duration::from_secs(4 * 20 + 1));
    scene.companion.process.thaw();
    scene.webhook.process.thaw();
    let woken = Instant::now();
    // Connections that are open still are asked for no certificate.
    scene.until("the API server believes it again", |scene, secret| {
        scene.is_believed(secret, at(0)) && is_called(scene)
    });
    let (took, after) = (woken.elapsed(), scene.writes());
    assert_eq!(after.serving, before.serving + 1, "{took:?}");
    assert_eq!(after.bundles, before.bundles + 1, "{took:?}");
    // The lease of who was stopped is nobody's until it ends; what is renewed then comes at once.
    assert!(took < Duration::from_secs(40), "{took:?}");
}

/// Has the API server call the webhook, by a Service that leads to it.
fn call(scene: &Scene<'_>) {
    let Scene { place, webhook, .. } = scene;
    let port = webhook.listeners.admission().port();
    let service = json!({
        "metadata": {"name": "kagami-webhook"},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    place
        .cluster
        .create(&place.own.path("services"), &service)
        .success();
    let served = json!({"matchLabels": {"kubernetes.io/metadata.name": place.served.name}});
    let patch = json!([
        {"op": "add", "path": "/webhooks/0/clientConfig/service/port", "value": port},
        {"op": "replace", "path": "/webhooks/0/clientConfig/service/path", "value": "/mutate/enforce"},
        {"op": "replace", "path": "/webhooks/0/namespaceSelector", "value": served},
        {"op": "add", "path": "/webhooks/0/timeoutSeconds", "value": 2},
    ]);
    let patched = place.cluster.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        &place.name,
        "--type=json",
        &format!("--patch={patch}"),
    ]);
    assert!(patched.status.success(), "{patched:?}");
}

/// Whether the API server gets an answer about a new Pod.
fn is_called(scene: &Scene<'_>) -> bool {
    let place = &scene.place;
    let path = format!("{}?dryRun=All", place.served.path("pods"));
    let stored = place.cluster.create(&path, &pod("probe", "nginx:1.29")).success();
    stored["metadata"]["annotations"]["kagami.dev/decisions"].is_string()
}

/// Past the end of the serving certificate, of the authority, and to before both were made, each time and back.
pub(crate) fn a_clock_set_back_and_forth_renews_each_once(shared: &Cluster) {
    let Some(library) = library() else {
        assert!(
            !skipped(
                "of clocks that are set",
                "libfaketime is not there: install Debian's package"
            ),
            "libfaketime is not there"
        );
        return;
    };
    let cluster = Cluster::start(shared.tools.clone());
    let file = cluster.folder().join("clock");
    let set = |days: i64| {
        let new = cluster.folder().join("clock.new");
        fs::write(&new, format!("{days:+}d\n")).unwrap();
        fs::rename(new, &file).unwrap();
    };
    set(0);
    let mut scene = Scene::start(&cluster, "2160h", |command| {
        command
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &file)
            .env("FAKETIME_NO_CACHE", "1")
            // What is measured goes on as it does when a clock is set.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    });
    scene.until("it is believed", |scene, secret| scene.is_believed(secret, at(0)));
    let mut expected = Writes {
        serving: 1,
        bundles: 1,
    };
    assert_eq!(scene.writes(), expected);
    // A renewal of the authority tells callers to trust it, and later no longer to trust the one before; where
    // that has ended, both at once.
    for (days, bundles) in [(100, 0), (-100, 2), (0, 0), (500, 1), (0, 2)] {
        set(days);
        expected.serving += 1;
        expected.bundles += bundles;
        scene.until(&format!("it is believed at {days:+} days"), |scene, secret| {
            scene.is_believed(secret, at(days)) && scene.writes().bundles == expected.bundles
        });
        assert_eq!(scene.writes(), expected, "at {days:+} days");
    }
    // As long as the companion needs for another look.
    thread::sleep(Duration::from_secs(6));
    assert_eq!(scene.writes(), expected);
}

/// The library with which a process reads another clock, where it is installed.
pub(crate) fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    let paths = folders.filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketime.so.1")));
    paths.into_iter().find(|path| path.exists())
}

/// The time in so many days.
fn at(days: i64) -> Timestamp {
    let away = DAY * u32::try_from(days.abs()).unwrap();
    if days < 0 {
        clock::now().before(away)
    } else {
        clock::now().after(away)
    }
}
