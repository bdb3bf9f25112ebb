//! A companion of a very large cluster, which a generator plays.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kagami::{api::v1alpha1::MirroredImage, clock};
use serde_json::{Value, json};

use super::{
    super::{
        bench::Bench,
        cluster::{objects::mirrored_image, place::lasting},
        e2e::{mirror::image_mirror, process::cpu_time},
        payload,
        registry::Registry,
        report::Bars,
        roles::{Build, Companion},
    },
    generator::{Generator, Name, Store, cluster_wide},
    rewritten_pod,
};

const PODS: &str = "api/v1/pods";
const NAMESPACES: &str = "api/v1/namespaces";
const NODES: &str = "api/v1/nodes";
const DEFINITIONS: &str = "apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const MIRRORS: &str = "apis/kagami.dev/v1alpha1/imagemirrors";
const IMAGES: &str = "apis/kagami.dev/v1alpha1/mirroredimages";

/// Kagami's own namespace.
const OWN: &str = "kagami-system";

/// The upstream registries, each with a mirror of its own.
const UPSTREAMS: [&str; 3] = ["docker.io", "quay.io", "ghcr.io"];

/// Pods on each node.
const ON_NODE: usize = 100;

/// Events a second: of Pods and of nodes; and how many of those of Pods are a new one with a new image. As many are
/// the end of one, and the others are a change of status.
const POD_EVENTS: u32 = 100;
const HEARTBEATS: u32 = 20;
const NEW_IMAGES: u32 = 5;

/// How long a companion may take to lead, to read everything and to look at every image once.
const PATIENCE: Duration = Duration::from_mins(6);

/// How long it is left alone with what it has read.
const SETTLES: Duration = Duration::from_secs(5);

/// How long the last new images may take.
const LAST_ONES: Duration = Duration::from_secs(30);

/// What became of it with one build.
#[derive(Debug)]
struct Outcome {
    /// MiB.
    peak: f64,
    /// Pod events a second that came.
    rate: f64,
    /// Percent of a core.
    cpu: f64,
    /// Seconds, sorted.
    waits: Vec<f64>,
}

impl Bench {
    /// Memory, CPU time and how soon new images are known.
    pub fn large(&self, bars: &mut Bars) -> Result<()> {
        let sizes = &self.plan.scale;
        let (pods, images) = (sizes.pods, sizes.images);
        println!(
            "\nA companion of {pods} Pods in {} namespaces with {images} images on {} mirrors. No API server: a \
             generator\nspeaks its protocol over HTTPS and has the objects in memory. Proofs last, so that no sweep \
             falls into the\nmeasurement but the first; then {POD_EVENTS} Pod events ({NEW_IMAGES} of them new images) \
             and {HEARTBEATS} Node heartbeats a second",
            sizes.namespaces,
            UPSTREAMS.len()
        );
        let builds = self.builds_in_turn()?;
        let mut outcomes = Vec::new();
        for build in builds {
            let outcome = self.large_of(build)?;
            println!(
                "  {}: memory at its peak {:.1} MiB; {:.1} % of a core at {:.0} Pod events a second; new images known \
                 after {:.2} s (p50), {:.2} s (p99)",
                build.name,
                outcome.peak,
                outcome.cpu,
                outcome.rate,
                percentile(&outcome.waits, 50),
                percentile(&outcome.waits, 99)
            );
            outcomes.push(outcome);
        }
        let [other, own] = [&outcomes[0], &outcomes[1]];
        let name = format!("{pods} Pods, {images} images: the companion's peak memory");
        bars.at_most(name, own.peak, 256.0, "MiB");
        // A machine that is too busy for them has nothing to say of the rest.
        bars.at_least(
            "Pod events a second that came",
            own.rate.min(other.rate),
            0.95 * f64::from(POD_EVENTS),
            "",
        );
        bars.at_most(
            format!("{POD_EVENTS} Pod events a second: CPU, of a core"),
            own.cpu,
            10.0,
            "%",
        );
        bars.at_most(
            format!(
                "{POD_EVENTS} Pod events a second: CPU against {}'s",
                builds[0].name
            ),
            own.cpu / other.cpu,
            0.1,
            "×",
        );
        bars.at_most(
            "from a new image's first Pod to its MirroredImage, p99",
            percentile(&own.waits, 99),
            3.0,
            "s",
        );
        Ok(())
    }

    fn large_of(&self, build: &Build) -> Result<Outcome> {
        let sizes = &self.plan.scale;
        let registries = [Registry::start()?, Registry::start()?, Registry::start()?];
        let generator = Generator::start(self.folder.path(), &format!("large-{}", build.name))?;
        let world = World {
            store: generator.store.clone(),
            namespaces: sizes.namespaces,
            images: sizes.images,
            nodes: sizes.pods.div_ceil(ON_NODE),
        };
        world.fill(build, sizes.pods, &registries)?;
        let start = Instant::now();
        let companion = Companion::start(build, self.folder.path(), &generator.kubeconfig, OWN, &[]);
        while !world.is_swept() {
            ensure!(start.elapsed() < PATIENCE, "not every mirror was swept");
            thread::sleep(Duration::from_millis(200));
        }
        println!(
            "  {}: everything read and looked at after {:.1} s",
            build.name,
            start.elapsed().as_secs_f64()
        );
        thread::sleep(SETTLES);
        generator.relist(&[PODS, MIRRORS], PATIENCE)?;
        thread::sleep(SETTLES);
        let peak = companion.process.memory("VmHWM");

        let (start, before) = (Instant::now(), cpu_time(companion.process.id()));
        let new = world.events(sizes.pods, sizes.events)?;
        let used = cpu_time(companion.process.id()).saturating_sub(before);
        let took = start.elapsed().as_secs_f64();
        Ok(Outcome {
            peak,
            rate: f64::from(POD_EVENTS) * sizes.events.as_secs_f64() / took,
            cpu: 100.0 * used.as_secs_f64() / took,
            waits: world.waits(&new),
        })
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let position = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(position).copied().unwrap_or(f64::NAN)
}

/// A new image: its MirroredImage's name, and when its first Pod came.
type New = (Name, Instant);

/// What there is in the generator.
#[derive(Debug)]
struct World {
    store: Store,
    namespaces: usize,
    images: usize,
    nodes: usize,
}

impl World {
    /// Puts everything there, as it is where Kagami has worked for long.
    fn fill(&self, build: &Build, pods: usize, registries: &[Registry; 3]) -> Result<()> {
        let Self { store, .. } = self;
        let start = Instant::now();
        for definition in build.definitions()? {
            let name = definition["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            store.put(DEFINITIONS, cluster_wide(&name), definition);
        }
        store.put(NAMESPACES, cluster_wide(OWN), json!({}));
        for number in 0..self.namespaces {
            let labels = json!({"kagami.dev/mode": "enforce", "kubernetes.io/metadata.name": team(number)});
            store.put(
                NAMESPACES,
                cluster_wide(&team(number)),
                json!({"metadata": {"labels": labels}}),
            );
        }
        for number in 0..self.nodes {
            store.put(NODES, cluster_wide(&format!("node-{number}")), node(0));
        }
        let mut settings = lasting();
        settings["sweep"] = json!({"requestsPerSecond": 0});
        for (number, registry) in registries.iter().enumerate() {
            let name = mirror(number);
            let object = image_mirror(
                &name,
                &format!("{name}.example.com"),
                &[UPSTREAMS[number]],
                &format!("http://{}", registry.address),
                &settings,
            );
            store.put(MIRRORS, cluster_wide(&name), object);
        }
        let now = clock::now();
        for number in 0..self.images {
            let object = mirrored_image(&mirror(number), &image(number), now, now)?;
            let name = object.metadata.name.clone().unwrap_or_default();
            store.put(IMAGES, cluster_wide(&name), serde_json::to_value(&object)?);
        }
        for number in 0..pods {
            store.put(PODS, self.name(number), self.pod(number, 0));
        }
        println!(
            "  {} objects in memory after {:.1} s",
            [NAMESPACES, NODES, MIRRORS, IMAGES, PODS]
                .map(|all| store.count(all))
                .iter()
                .sum::<usize>(),
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    fn name(&self, pod: usize) -> Name {
        (
            team(pod % self.namespaces).into(),
            format!("payments-{pod:06}").into(),
        )
    }

    /// Returns a Pod that runs, after so many restarts.
    fn pod(&self, number: usize, restarts: usize) -> Value {
        let (namespace, name) = self.name(number);
        let number = number % self.images;
        let mirror = mirror(number);
        let registry = format!("{mirror}.example.com");
        let mut pod = rewritten_pod(&namespace, &name, &image(number), &mirror, &registry);
        let at = "2026-11-03T09:12:44Z";
        let conditions = [
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
        ];
        pod["spec"]["nodeName"] = format!("node-{}", number % self.nodes).into();
        pod["status"] = json!({
            "phase": "Running",
            "conditions": conditions.map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": at})),
            "hostIP": "10.0.0.7",
            "podIP": "10.1.2.3",
            "podIPs": [{"ip": "10.1.2.3"}],
            "startTime": at,
            "qosClass": "Burstable",
            "containerStatuses": [{
                "name": "app-0",
                "ready": true,
                "started": true,
                "restartCount": restarts,
                "state": {"running": {"startedAt": at}},
                "image": pod["spec"]["containers"][0]["image"],
                "imageID": format!("{registry}/acme/payments@sha256:{:064x}", number),
                "containerID": format!("containerd://{:064x}", number),
            }],
        });
        pod
    }

    /// Whether every mirror's status tells of a sweep of tags that ended.
    fn is_swept(&self) -> bool {
        (0..UPSTREAMS.len()).all(|number| {
            let mirror = self.store.get(MIRRORS, &cluster_wide(&mirror(number)));
            mirror.is_some_and(|mirror| mirror.value()["status"]["sweeps"]["tag"]["finishedAt"].is_string())
        })
    }

    /// Lets events come for so long, at an even pace; returns the new images.
    fn events(&self, pods: usize, duration: Duration) -> Result<Vec<New>> {
        let start = Instant::now();
        let mut new = Vec::new();
        let (mut changed, mut deleted) = (0_usize, 0_usize);
        for event in 0.. {
            let due = Duration::from_secs(1) / POD_EVENTS * event;
            if due >= duration {
                break;
            }
            thread::sleep((start + due).saturating_duration_since(Instant::now()));
            let every = POD_EVENTS / NEW_IMAGES;
            if event % every == 0 {
                // The number of a new image is above those of all Pods, and so is that of its Pod.
                let number = pods.max(self.images) + new.len();
                let (namespace, name) = self.name(number);
                let pod = payload::pod_with(&namespace, &name, &image(number));
                self.store.put(PODS, (namespace, name), pod);
                let object = MirroredImage::object_name(&mirror(number), &image(number));
                new.push((cluster_wide(&object), Instant::now()));
            } else if event % every == every / 2 {
                deleted += 1;
                self.store.delete(PODS, self.name(pods - deleted));
            } else {
                // In an order that no cache can guess; below those that are deleted.
                changed += 1;
                let number = changed * 7_919 % (pods / 2);
                self.store.put(PODS, self.name(number), self.pod(number, changed));
            }
            if event % (POD_EVENTS / HEARTBEATS) == 0 {
                let number = usize::try_from(event)? % self.nodes;
                self.store
                    .put(NODES, cluster_wide(&format!("node-{number}")), node(event));
            }
        }
        thread::sleep((start + duration).saturating_duration_since(Instant::now()));
        Ok(new)
    }

    /// Returns how many seconds new images waited, sorted; one that is never known waits for ever.
    fn waits(&self, new: &[New]) -> Vec<f64> {
        let start = Instant::now();
        let known = |(name, _): &New| self.store.get(IMAGES, name).map(|object| object.created_at);
        while !new.iter().all(|new| known(new).is_some()) && start.elapsed() < LAST_ONES {
            thread::sleep(Duration::from_millis(200));
        }
        let waited = |new: &New| {
            known(new).map_or(f64::INFINITY, |known| {
                known.saturating_duration_since(new.1).as_secs_f64()
            })
        };
        let mut waits: Vec<f64> = new.iter().map(waited).collect();
        waits.sort_by(f64::total_cmp);
        waits
    }
}

fn team(number: usize) -> String {
    format!("team-{number:04}")
}

fn mirror(image: usize) -> String {
    format!("mirror-{}", image % UPSTREAMS.len())
}

/// Returns an image as users write it, and as the companion does.
fn image(number: usize) -> String {
    format!(
        "{}/{}",
        UPSTREAMS[number % UPSTREAMS.len()],
        payload::image(number)
    )
}

/// Returns a node that told so often that it is alive.
fn node(beats: u32) -> Value {
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(|kind| {
        let status = if kind == "Ready" { "True" } else { "False" };
        let at = "2026-11-03T09:12:44Z";
        json!({"type": kind, "status": status, "lastHeartbeatTime": at, "message": beats.to_string()})
    });
    json!({
        "metadata": {"labels": {
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "standard-8",
            "topology.kubernetes.io/zone": "a",
        }},
        "status": {"conditions": conditions},
    })
}
