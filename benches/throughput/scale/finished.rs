//! Pods that are done: many, and large.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kagami::{api::v1alpha1::MirroredImage, clock, domain::time::Timestamp};
use serde_json::{Value, json};

use super::{
    super::{
        bench::Bench,
        cluster::{
            objects::{Write, mirrored_image, write_all},
            place::{COMPANION, Place, lasting},
        },
        e2e::{cluster::Cluster, companion::IMAGES, tools::Tools},
        payload,
        registry::Registry,
        report::Bars,
        roles::{Build, Companion, MIRROR, REGISTRY},
    },
    rewritten_pod,
};

/// Where those are that are done.
const NAMESPACE: &str = "jobs";

/// Where those run whose images tell that the companion has read all: its list comes last.
const LAST: &str = "zz-last";

/// Different images of Pods that are done.
const IMAGES_USED: usize = 50;

/// Bytes of a Pod that is done.
const SIZE: usize = 20_000;

/// How long after its last use an image is forgotten here.
const FORGET_AFTER: &str = "20s";

/// How long it may take until images that nothing uses are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(90);

/// How long a companion may take to lead and to read all Pods.
const PATIENCE: Duration = Duration::from_mins(2);

/// How long a companion is left alone before its memory is looked at.
const SETTLES: Duration = Duration::from_secs(5);

impl Bench {
    /// What Pods that are done cost the companion, and what they count for.
    pub fn finished(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let count = self.plan.scale.finished;
        println!(
            "\n{count} Pods of {} kB that are done, half of them rewritten",
            SIZE / 1_000
        );
        let registry = Registry::start()?;
        let cluster = Cluster::start(tools.clone());
        let place = Place::new(&cluster, &self.own, registry.address, &lasting())?;
        let _namespaces = [NAMESPACE, LAST].map(|name| cluster.namespace_named(name, Some("enforce")));

        let (companion, without) = self.companion_that_read(&place, 0)?;
        drop(companion);
        let now = clock::now();
        let long_ago = now.before(Duration::from_hours(1));
        write_all(&cluster, 0..IMAGES_USED, move |number| {
            let object = mirrored_image(MIRROR, &key(number), now, long_ago)?;
            Ok(Write::create(IMAGES, serde_json::to_string(&object)?))
        })?;
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let path = pods.clone();
        let took = write_all(&cluster, 0..count, move |number| {
            Ok(Write::create(path.clone(), finished_pod(number).to_string()))
        })?;
        let ended = status_of_the_done(now).to_string();
        let also = write_all(&cluster, 0..count, move |number| {
            Ok(Write::merge(
                format!("{pods}/{}/status", name(number)),
                ended.clone(),
            ))
        })?;
        println!("  written after {:.1} s", (took + also).as_secs_f64());
        let (companion, with) = self.companion_that_read(&place, 1)?;

        let start = Instant::now();
        let mut held = IMAGES_USED;
        while held > 0 && start.elapsed() < FORGOTTEN {
            thread::sleep(Duration::from_secs(1));
            held = (0..IMAGES_USED)
                .filter(|number| is_there(&cluster, &key(*number)))
                .count();
        }
        let later = companion.process.memory("VmHWM");
        let running = 2;
        let counted = report(&self.own, &place.kubeconfig("admin"))?;
        println!(
            "  memory at its peak without them {without:.1} MiB, with them {with:.1} MiB, later {later:.1} MiB; \
             their images forgotten after {:.0} s but for {held}; {counted} Pods reported as running, {running} do",
            start.elapsed().as_secs_f64()
        );
        let figure = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        bars.at_most(
            format!("{count} finished Pods: the companion's peak memory more"),
            with.max(later) - without,
            24.0,
            "MiB",
        );
        bars.at_most(
            "finished Pods: counted as running",
            figure(counted.abs_diff(running)),
            0.0,
            "",
        );
        bars.at_most(
            "finished Pods: images held in use for ever",
            figure(held),
            0.0,
            "",
        );
        Ok(())
    }

    /// Starts a companion, waits until it has read all Pods, which it shows by the image of one that runs and is the
    /// last of all; returns it with its peak memory in MiB.
    fn companion_that_read(&self, place: &Place<'_>, number: usize) -> Result<(Companion, f64)> {
        let cluster = place.cluster;
        let image = IMAGES_USED + number;
        let mut pod = payload::pod_with(LAST, &name(image), &key(image));
        payload::as_user(&mut pod);
        let pods = format!("/api/v1/namespaces/{LAST}/pods");
        cluster.create(&pods, &pod).success();
        let companion = Companion::start(
            &self.own,
            self.folder.path(),
            &place.kubeconfig(COMPANION),
            &place.own.name,
            &["--forget-after", FORGET_AFTER],
        );
        let start = Instant::now();
        while !is_there(cluster, &key(image)) {
            ensure!(
                start.elapsed() < PATIENCE,
                "the image of the last Pod is not looked at"
            );
            thread::sleep(Duration::from_millis(200));
        }
        thread::sleep(SETTLES);
        let peak = companion.process.memory("VmHWM");
        Ok((companion, peak))
    }
}

fn key(number: usize) -> String {
    format!("docker.io/{}", payload::image(number))
}

fn name(number: usize) -> String {
    format!("payments-{number:06}")
}

/// Returns a Pod as its user created it, or as Kagami rewrote that.
fn finished_pod(number: usize) -> Value {
    let image = key(number % IMAGES_USED);
    let mut pod = if number.is_multiple_of(2) {
        rewritten_pod(NAMESPACE, &name(number), &image, MIRROR, REGISTRY)
    } else {
        payload::pod_with(NAMESPACE, &name(number), &image)
    };
    payload::as_user(&mut pod);
    pod["spec"]["restartPolicy"] = "Never".into();
    let missing = SIZE.saturating_sub(pod.to_string().len());
    pod["metadata"]["annotations"]["acme.example.com/result"] = "x".repeat(missing).into();
    pod
}

/// Returns the status of a Pod that is done since then.
fn status_of_the_done(since: Timestamp) -> Value {
    let at = since.to_string();
    let terminated = json!({"exitCode": 0, "reason": "Completed", "startedAt": at, "finishedAt": at});
    json!({"status": {
        "phase": "Succeeded",
        "containerStatuses": [{
            "name": "app-0", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": terminated},
        }],
    }})
}

/// Whether there is a MirroredImage of an image.
fn is_there(cluster: &Cluster, key: &str) -> bool {
    let name = MirroredImage::object_name(MIRROR, key);
    cluster.get(&format!("{IMAGES}/{name}")).status == 200
}

/// Returns how many Pods `kagami report` counts as running.
fn report(build: &Build, kubeconfig: &Path) -> Result<usize> {
    let mut command = build.command();
    command
        .env_clear()
        .args(["report", "--output", "json", "--kubeconfig"]);
    let output = command.arg(kubeconfig).output()?;
    ensure!(
        output.status.success(),
        "kagami report: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let pods = report["total"]["pods"].as_u64().context("no number of Pods")?;
    Ok(usize::try_from(pods)?)
}
