//! Kagami beside others that look at images: their real programs, in one API server. `scripts/neighbours` runs this;
//! no other run does.

mod admission_policies;
mod cert_manager;
mod flux;
mod gatekeeper;
mod kyverno;
mod signature;

use std::{env, fmt::Write as _, fs, path::Path};

use serde_json::{Value, json};

pub(crate) use self::{
    admission_policies::admission_policies, cert_manager::cert_manager, flux::flux, gatekeeper::gatekeeper,
    kyverno::kyverno,
};
use crate::support::{
    admission::{image, pod},
    cluster::{Cluster, Namespace},
    eventually,
    http::Answer,
    kagami::{Kagami, Registration},
    mirror::{REGISTRY, image_mirror},
    tools::Tools,
};

/// Folder for the lines of the table.
pub(crate) const LINES: &str = "KAGAMI_NEIGHBOURS";

/// An image that mirror and tests have, and where its owner keeps others.
const OURS: &str = "ghcr.io/acme/models/small:v1";

/// Which versions `scripts/tools` builds.
const MODULES: [&str; 4] = [
    include_str!("../tools/policies/go.mod"),
    include_str!("../tools/flux/go.mod"),
    include_str!("../tools/cert-manager/go.mod"),
    include_str!("../tools/kubernetes/go.mod"),
];

/// What was seen of one neighbour: lines of the table, which are written once all of it was seen.
struct Sightings {
    neighbour: &'static str,
    version: &'static str,
    lines: String,
}

impl Sightings {
    /// Begins with none; `module` is where the neighbour comes from.
    fn of(neighbour: &'static str, module: &str) -> Self {
        let mut lines = MODULES.iter().flat_map(|module| module.lines());
        let version = lines.find_map(|line| {
            let mut words = line.trim_start_matches("require ").split_whitespace();
            (words.next() == Some(module)).then(|| words.next().unwrap())
        });
        Self {
            neighbour,
            version: version.unwrap().trim_start_matches('v'),
            lines: String::new(),
        }
    }

    /// Adds what was just asserted.
    fn add(&mut self, what: &str, outcome: &str) {
        let Self {
            neighbour,
            version,
            lines,
        } = self;
        writeln!(lines, "| {neighbour} {version} | {what} | {outcome} |").unwrap();
    }

    fn write(self) {
        let folder = env::var_os(LINES).unwrap();
        let file = self.neighbour.replace([' ', '/'], "-");
        fs::write(Path::new(&folder).join(file), self.lines).unwrap();
    }
}

/// Kagami, and two namespaces: in one it rewrites, and about the other it is not asked.
struct Beside<'a> {
    // Dropped in this order: Kagami must be there until the API server no longer calls it.
    registration: Registration<'a>,
    labelled: Namespace<'a>,
    unlabelled: Namespace<'a>,
    registry: String,
    _kagami: Kagami,
}

impl<'a> Beside<'a> {
    /// Sets it up for images of Docker Hub and of GitHub.
    fn new(cluster: &'a Cluster) -> Self {
        Self::with(cluster, "zz-kagami", REGISTRY, &[])
    }

    /// The same with a configuration whose name begins so, for images of these hosts too, and with the name that
    /// the mirror has in Pods.
    fn with(cluster: &'a Cluster, prefix: &str, registry: &str, hosts: &[&str]) -> Self {
        let labelled = cluster.namespace(Some("enforce"));
        let settings = json!({"health": {"interval": "1s", "timeout": "1s"}, "freshness": {"missing": "1s"}});
        let hosts = [&["docker.io", "ghcr.io"], hosts].concat();
        let mirror = image_mirror("main", registry, &hosts, &cluster.mirror.url, &settings);
        let kagami = Kagami::start_with(cluster, &format!("kagami-{}", labelled.name), &mirror);
        let name = format!("{prefix}-{}", labelled.name);
        let beside = Self {
            registration: Registration::called(&name, &labelled, &[], &kagami),
            unlabelled: cluster.namespace(None),
            labelled,
            registry: registry.to_owned(),
            _kagami: kagami,
        };
        eventually("Kagami rewrites", || {
            let answer = tried(&beside.labelled, OURS).success();
            (image(&answer, "app") == beside.mirrored(OURS)).then_some(())
        });
        beside
    }

    /// The mirror's name of an image.
    fn mirrored(&self, image: &str) -> String {
        let (host, path) = image.split_once('/').unwrap();
        format!("{}/{}/{path}", self.registry, host.replace(':', "_"))
    }

    /// Both namespaces.
    fn names(&self) -> [&str; 2] {
        [&self.labelled, &self.unlabelled].map(|namespace| namespace.name.as_str())
    }
}

/// What the API server answers to a Pod of an image, which it does not keep.
fn tried(namespace: &Namespace<'_>, image: &str) -> Answer {
    let path = format!("{}?dryRun=All", namespace.path("pods"));
    namespace.cluster.create(&path, &pod("tried", image))
}

/// The same when it does, and the image that the Pod then has.
fn created(namespace: &Namespace<'_>, name: &str, wanted: &str) -> String {
    let stored = namespace.create_pod(&pod(name, wanted)).success();
    image(&stored, "app").to_owned()
}

#[track_caller]
fn assert_denied(answer: &Answer, by: &str) {
    assert!(
        (400..500).contains(&answer.status) && answer.body.contains(by),
        "{by}: {answer:?}"
    );
}

/// A cluster of its own for a neighbour whose reach is the whole of it.
fn cluster_with(shared: &Cluster, programs: &[&str]) -> Cluster {
    Cluster::start(tools_with(shared, programs))
}

fn tools_with(shared: &Cluster, programs: &[&str]) -> Tools {
    shared.tools.clone().with(programs).unwrap()
}

/// Where `scripts/tools` put what a neighbour brings for the API server.
fn brought(cluster: &Cluster, path: &str) -> String {
    cluster
        .tools
        .path("neighbours")
        .join(path)
        .to_str()
        .unwrap()
        .to_owned()
}

/// Creates an object once its definition is served and whoever checks it listens.
fn create(cluster: &Cluster, path: &str, object: &Value) {
    eventually(&format!("{path} takes {}", object["metadata"]["name"]), || {
        let answer = cluster.create(path, object);
        (answer.status == 201 || answer.status == 409).then_some(())
    });
}
