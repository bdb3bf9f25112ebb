//! The companion of a cluster: memory, sweeps, writes.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use kagami::{clock, domain::time::Timestamp};
use serde_json::json;

use super::{
    super::{
        bench::Bench,
        e2e::{
            cluster::{Cluster, Namespace},
            tools::Tools,
        },
        payload,
        report::Bars,
        roles::{Companion, MIRROR},
        sweep::{Distribution, compare},
    },
    objects::{Write, create_images, write_all},
    place::{COMPANION, Place},
};

/// Namespaces over which the Pods are spread; the companion follows 2,000 images of each at most.
const NAMESPACES: usize = 10;

/// Proofs that are renewed every fifteen seconds, with room for the bare HEADs in between.
const SHORT: &str = "30s";

/// The default.
const USUAL: &str = "10m";

/// What a companion with so many Pods and images may take, in MiB.
const MEMORY: f64 = 96.0;

impl Bench {
    /// Memory, sweeps and writes of a companion with as many Pods as images.
    pub fn companion(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let count = self.plan.swept;
        println!("\nA companion with {count} Pods and {count} images");
        let registry = Distribution::start(&tools.path("registry"), self.folder.path())?;
        registry.push(count)?;
        let cluster = Cluster::start(tools.clone());
        let settings = json!({"freshness": {"tag": SHORT}, "sweep": {"requestsPerSecond": 0}});
        let place = Place::new(&cluster, &self.own, registry.address, &settings)?;
        let start = Instant::now();
        let _namespaces = populate(&cluster, count)?;
        let took = start.elapsed().as_secs_f64();
        println!("  Pods and MirroredImages written after {took:.1} s");

        let start = Instant::now();
        let companion = Companion::start(
            &self.own,
            self.folder.path(),
            &place.kubeconfig(COMPANION),
            &place.own.name,
            &[],
        );
        let present = u64::try_from(count)?;
        companion.admin.wait("the images to be taken over", |status| {
            status["mirrors"][MIRROR]["images"]["present"].as_u64() == Some(present)
        })?;
        println!("  images taken over after {:.2} s", start.elapsed().as_secs_f64());
        companion.admin.wait("the mirror to be healthy", |status| {
            status["mirrors"][MIRROR]["health"]["state"] == "Healthy"
        })?;

        println!("  all of them verified again, HEADs/s over as many connections");
        let ratio = compare(
            "companion",
            registry.address,
            &registry.heads,
            count,
            self.plan.sweeps,
        )?;
        bars.at_least(
            "companion: sweep against bare HEADs, a real registry",
            ratio,
            0.9,
            "",
        );

        place.set(&json!({"freshness": {"tag": USUAL}}));
        // The sweep that the change may have begun is not what is meant by quiet.
        thread::sleep(Duration::from_secs(5));
        let quiet = writes_within(&cluster, self.plan.quiet)?;
        let per_minute = 60.0 / self.plan.quiet.as_secs_f64();
        println!(
            "  API writes, Leases not counted: {quiet} in {} s",
            self.plan.quiet.as_secs()
        );
        bars.at_most(
            "companion: API writes a minute, quiet",
            f64::from(quiet) * per_minute,
            10.0,
            "",
        );
        drop(registry);
        let outage = writes_within(&cluster, self.plan.outage)?;
        println!(
            "  and {outage} in the first {} s of an outage",
            self.plan.outage.as_secs()
        );
        bars.at_most(
            format!(
                "companion: API writes in an outage's first {} s",
                self.plan.outage.as_secs()
            ),
            f64::from(outage),
            60.0,
            "",
        );
        companion.admin.wait("the outage to be seen", |status| {
            status["mirrors"][MIRROR]["health"]["state"] == "Unhealthy"
        })?;

        let (peak, now) = (
            companion.process.memory("VmHWM"),
            companion.process.memory("VmRSS"),
        );
        println!("  memory at its peak {peak:.1} MiB, now {now:.1} MiB");
        let name = format!("companion: peak memory, {count} Pods and images");
        bars.at_most(name, peak, MEMORY, "MiB");
        Ok(())
    }
}

/// Creates so many images and Pods that use one each. By what is written the images were used
/// long ago: so the companion has new times of use to write, the most that it ever writes in quiet.
fn populate(cluster: &Cluster, count: usize) -> Result<Vec<Namespace<'_>>> {
    let now = clock::now();
    let two_days = Duration::from_hours(48);
    let last_used = Timestamp::from_millis(now.as_millis() - u64::try_from(two_days.as_millis())?);
    create_images(cluster, 0..count, now, last_used)?;
    let namespaces = (0..NAMESPACES)
        .map(|number| cluster.namespace_named(&format!("shop-{number}"), Some("enforce")))
        .collect();
    write_all(cluster, 0..count, |number| {
        let path = format!("/api/v1/namespaces/shop-{}/pods", number % NAMESPACES);
        Ok(Write::create(path, payload::pod_of(number)?))
    })?;
    Ok(namespaces)
}

/// Returns how often the companion wrote to the API server within a time, Leases not counted.
fn writes_within(cluster: &Cluster, time: Duration) -> Result<u32> {
    let before = writes(cluster)?;
    thread::sleep(time);
    Ok(writes(cluster)? - before)
}

/// Counts the companion's writes in the API server's audit log.
fn writes(cluster: &Cluster) -> Result<u32> {
    let log = fs::read_to_string(cluster.folder().join("audit.log"))?;
    let user = format!("\"username\":\"{COMPANION}\"");
    let writes = log
        .lines()
        .filter(|line| line.contains(&user) && !line.contains("\"resource\":\"leases\""));
    Ok(u32::try_from(writes.count())?)
}
