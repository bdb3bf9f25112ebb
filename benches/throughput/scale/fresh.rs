//! A new cluster: Pods with images that nobody knows.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::{
    bench::Bench,
    cluster::{
        objects::{Write, write_all},
        place::{COMPANION, Place, lasting},
    },
    e2e::process::cpu_time,
    e2e::{cluster::Cluster, tools::Tools},
    payload,
    registry::Registry,
    report::Bars,
    roles::{Build, Companion, Kagami, MIRROR},
};

/// Pods of each namespace, all with other images; a companion follows 2,000 images of each.
const IN_NAMESPACE: usize = 1_000;

/// What a write may take that is done one at a time, and what the rest may.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_mins(2));

/// What became of it with one build.
#[derive(Debug)]
struct Outcome {
    took: f64,
    api_server: f64,
    refused: f64,
}

impl Bench {
    /// Until all images are looked at, written, and known to a replica.
    pub fn fresh(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let builds = self.builds_in_turn()?;
        let count = self.plan.scale.new;
        println!(
            "\nA new cluster with {count} Pods of {count} images, a companion and a replica of the webhook"
        );
        let mut outcomes = Vec::new();
        for build in builds {
            let outcome = self.fresh_of(build, tools)?;
            println!(
                "  {}: all known and written after {:.1} s, for {:.1} s of the API server's CPU; {:.0} answers 429",
                build.name, outcome.took, outcome.api_server, outcome.refused
            );
            outcomes.push(outcome);
        }
        let [other, own] = [&outcomes[0], &outcomes[1]];
        let beside = &builds[0].name;
        bars.at_most(
            format!("new cluster, {count} images: time against {beside}'s"),
            own.took / other.took,
            1.0 / 3.0,
            "×",
        );
        bars.at_most("new cluster: answers 429", own.refused, 0.0, "");
        bars.at_most(
            format!("new cluster: the API server's CPU against {beside}'s"),
            own.api_server / other.api_server,
            1.0,
            "×",
        );
        Ok(())
    }

    fn fresh_of(&self, build: &Build, tools: &Tools) -> Result<Outcome> {
        let count = self.plan.scale.new;
        let mirror = Registry::start()?;
        let cluster = Cluster::start(tools.clone());
        let place = Place::new(&cluster, build, mirror.address, &lasting())?;
        let _namespaces: Vec<_> = (0..count.div_ceil(IN_NAMESPACE))
            .map(|number| cluster.namespace_named(&format!("shop-{number}"), Some("enforce")))
            .collect();
        write_all(&cluster, 0..count, |number| {
            let path = format!("/api/v1/namespaces/shop-{}/pods", number / IN_NAMESPACE);
            Ok(Write::create(path, payload::pod_of(number)?))
        })?;
        let api_server = cluster.api_server();
        let refused = refused(&cluster);
        let (start, before) = (Instant::now(), cpu_time(api_server));
        let (folder, namespace) = (self.folder.path(), &place.own.name);
        let replica = Kagami::replica(build, folder, &place.kubeconfig("admin"), namespace);
        let _companion = Companion::start(build, folder, &place.kubeconfig(COMPANION), namespace, &[]);
        let patience = PATIENCE.0 * u32::try_from(count)? + PATIENCE.1;
        let present = u64::try_from(count)?;
        replica
            .admin
            .wait_long("a replica to know all images", patience, |status| {
                status["mirrors"][MIRROR]["images"]["present"] == present
            })?;
        Ok(Outcome {
            took: start.elapsed().as_secs_f64(),
            api_server: cpu_time(api_server).saturating_sub(before).as_secs_f64(),
            refused: self::refused(&cluster) - refused,
        })
    }
}

/// Returns how often the API server told somebody that it has too much to do.
fn refused(cluster: &Cluster) -> f64 {
    let metrics = cluster.metrics();
    let requests = metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{") && line.contains("code=\"429\""));
    let count = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
    requests.filter_map(count).sum()
}
