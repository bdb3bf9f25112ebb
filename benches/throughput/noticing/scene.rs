//! A cluster with Kagami as it runs in one: two companions, replicas of the webhook, and ImageMirrors side by side,
//! each with images and Pods of its own.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{
    super::{
        bench::{Bench, PATH, one_connection},
        client::{Expected, Target},
        cluster::{
            objects::{Write, write_all},
            place::{COMPANION, Place},
        },
        e2e::{
            cluster::{Cluster, Namespace},
            companion::MIRRORS,
            tools::Tools,
        },
        payload::{self, Images, Payload},
        roles::{Admin, Build, Companion, Kagami},
    },
    load::rewrites,
    mirrors::{IMAGES, Mirror},
};

/// Where the Pods are.
const NAMESPACE: &str = "shop";

/// How long it may take until everything is well, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(100);

/// How long everything must be well: whoever noticed a fault late says so late.
const CALM: Duration = Duration::from_secs(3);

/// Everything that takes part.
pub struct Scene<'a> {
    bench: &'a Bench,
    build: &'a Build,
    // Dropped in this order: who asks before who answers.
    pub replicas: Vec<Kagami>,
    pub companions: Vec<Companion>,
    place: Place<'a>,
    _served: Namespace<'a>,
    pub mirrors: Vec<Mirror>,
    pub runtime: Runtime,
}

/// Measures something in a cluster of its own, with one replica, once all is well.
pub fn with_scene<T>(
    bench: &Bench,
    tools: &Tools,
    build: &Build,
    (runtime, mirrors): (Runtime, Vec<Mirror>),
    measure: impl FnOnce(&mut Scene<'_>) -> Result<T>,
) -> Result<T> {
    let cluster = Cluster::start(tools.clone());
    let place = Place::without_mirrors(&cluster, build)?;
    let served = cluster.namespace_named(NAMESPACE, Some("enforce"));
    for mirror in &mirrors {
        cluster.create(MIRRORS, &mirror.object()).success();
    }
    let hosts: Vec<_> = mirrors
        .iter()
        .map(|mirror| (mirror.name.clone(), mirror.host()))
        .collect();
    write_all(&cluster, 0..hosts.len() * IMAGES, move |number| {
        let (name, host) = &hosts[number / IMAGES];
        let number = number % IMAGES;
        let image = format!("{host}/{}", payload::image(number));
        let pod = payload::pod_called(&format!("{name}-{number}"), &image)?;
        Ok(Write::create(format!("/api/v1/namespaces/{NAMESPACE}/pods"), pod))
    })?;
    let mut scene = Scene {
        bench,
        build,
        replicas: Vec::new(),
        companions: Vec::new(),
        place,
        _served: served,
        mirrors,
        runtime,
    };
    scene.add_companion();
    scene.add_companion();
    scene.add_replica();
    let images = u64::try_from(IMAGES)?;
    let leader = scene.leader()?;
    scene.wait(leader, "the companion to know all images", |mirror| {
        mirror["images"]["present"].as_u64() >= Some(images)
    })?;
    scene.settle()?;
    measure(&mut scene)
}

impl Scene<'_> {
    /// Starts another companion.
    pub fn add_companion(&mut self) {
        let kubeconfig = self.place.kubeconfig(COMPANION);
        let (folder, namespace) = (self.bench.folder.path(), &self.place.own.name);
        let companion = Companion::start(self.build, folder, &kubeconfig, namespace, &[]);
        self.companions.push(companion);
    }

    /// Starts another replica.
    pub fn add_replica(&mut self) {
        let name = format!("noticing-{}", self.replicas.len());
        let kubeconfig = self.place.kubeconfig("admin");
        let (folder, namespace) = (self.bench.folder.path(), &self.place.own.name);
        let replica = Kagami::replica_called(&name, self.build, folder, &kubeconfig, namespace);
        self.replicas.push(replica);
    }

    /// Returns the position of the companion that leads, once one does.
    pub fn leading(&self) -> Result<usize> {
        let start = Instant::now();
        loop {
            for (position, companion) in self.companions.iter().enumerate() {
                if companion.admin.status()?["leading"] == true {
                    return Ok(position);
                }
            }
            ensure!(start.elapsed() < PATIENCE, "no companion leads");
            thread::sleep(LOOK);
        }
    }

    /// Returns the admin listener of that companion.
    pub fn leader(&self) -> Result<Admin> {
        Ok(self.companions[self.leading()?].admin)
    }

    /// Returns the process that takes reviews, as a target of those for one mirror.
    pub fn target(&self, replica: usize, mirror: usize) -> Result<Target> {
        let payload = Payload::of_host(PATH, &self.mirrors[mirror].host())?;
        let images = Images {
            first: 0,
            count: IMAGES,
        };
        let kagami = &self.replicas[replica];
        Ok(Target {
            tls: Arc::clone(&self.bench.tls),
            ..self.bench.target(kagami, &payload, images, Expected::Allowed)
        })
    }

    /// Waits until everybody says of every mirror that it is well, and every replica rewrites every image, and until
    /// that is so still a while later.
    pub fn settle(&self) -> Result<()> {
        self.all_well()?;
        thread::sleep(CALM);
        self.all_well()
    }

    fn all_well(&self) -> Result<()> {
        self.wait(self.leader()?, "the leader to find every mirror healthy", is_well)?;
        for (number, replica) in self.replicas.iter().enumerate() {
            self.wait(replica.admin, "a replica to find every mirror healthy", is_well)?;
            for mirror in 0..self.mirrors.len() {
                self.until_rewritten(number, mirror)?;
            }
        }
        Ok(())
    }

    /// Waits until `/status` says of every mirror what is wished.
    fn wait(&self, admin: Admin, what: &str, wished: impl Fn(&Value) -> bool) -> Result<()> {
        admin.wait_long(what, PATIENCE, |status| {
            let of = |mirror: &Mirror| wished(&status["mirrors"][&mirror.name]);
            self.mirrors.iter().all(of)
        })
    }

    /// Waits until a replica rewrites all images of a mirror.
    fn until_rewritten(&self, replica: usize, mirror: usize) -> Result<()> {
        let start = Instant::now();
        one_connection(&self.target(replica, mirror)?, async |connection| {
            for number in 0..IMAGES {
                loop {
                    let answer = connection.answer(number, false).await?;
                    if rewrites(answer)? {
                        break;
                    }
                    if start.elapsed() > PATIENCE {
                        let answer = String::from_utf8_lossy(answer).into_owned();
                        bail!("image {number} is not rewritten: {answer}");
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
            Ok(())
        })
        .with_context(|| self.mirrors[mirror].name.clone())
    }
}

/// Whether a mirror is healthy and nothing speaks against it. Who knows no suspicion has none.
fn is_well(mirror: &Value) -> bool {
    let health = &mirror["health"];
    health["state"] == "Healthy" && health["stale"] != true && health["suspected"] != true
}
