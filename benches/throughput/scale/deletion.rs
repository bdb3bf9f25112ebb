//! A mirror is deleted that had very many images, while another one is swept.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::super::{
    bench::Bench,
    cluster::{
        objects::{Write, create_images, mirrored_image, write_all},
        place::{COMPANION, Place, lasting},
    },
    e2e::{
        cluster::Cluster,
        companion::{IMAGES, MIRRORS},
        mirror::image_mirror,
        tools::Tools,
    },
    payload,
    registry::Registry,
    report::Bars,
    roles::Companion,
};

/// The mirror that is deleted.
const GONE: &str = "gone";

/// Images of the mirror that stays.
const STAYING: usize = 200;

/// How often the mirror that stays is swept: half of its freshness.
const PERIOD: Duration = Duration::from_secs(10);

/// How long sweeps are watched after the deletion: as long as the images are cleaned up, within these bounds.
const WATCHED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(4));

/// How long everything may take until it runs.
const PATIENCE: Duration = Duration::from_mins(3);

/// How often it is looked at sweeps, and at what is left of the images.
const LOOK: Duration = Duration::from_millis(200);
const COUNTED: Duration = Duration::from_secs(2);

impl Bench {
    /// The longest time between two ends of sweeps of the other mirror that are told.
    pub fn deletion(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let count = self.plan.scale.deleted;
        println!(
            "\nA mirror with {count} images is deleted; another is swept every {} s",
            PERIOD.as_secs()
        );
        let registry = Registry::start()?;
        let cluster = Cluster::start(tools.clone());
        let freshness = format!("{}s", 2 * PERIOD.as_secs());
        let settings = json!({"freshness": {"tag": freshness}, "sweep": {"requestsPerSecond": 0}});
        let place = Place::new(&cluster, &self.own, registry.address, &settings)?;
        let now = kagami::clock::now();
        create_images(&cluster, 0..STAYING, now, now)?;
        let mut settings = lasting();
        settings["sweep"] = json!({"requestsPerSecond": 0});
        let endpoint = format!("http://{}", registry.address);
        let gone = image_mirror(GONE, "gone.example.com", &["quay.io"], &endpoint, &settings);
        cluster.create(MIRRORS, &gone).success();
        write_all(&cluster, 0..count, move |number| {
            let key = format!("quay.io/{}", payload::image(number));
            let object = mirrored_image(GONE, &key, now, now)?;
            Ok(Write::create(IMAGES, serde_json::to_string(&object)?))
        })?;
        let _companion = Companion::start(
            &self.own,
            self.folder.path(),
            &place.kubeconfig(COMPANION),
            &place.own.name,
            &[],
        );
        let gone = format!("{MIRRORS}/{GONE}");
        until("both mirrors are swept", || {
            let swept = [cluster.get(&gone).success(), place.mirror()];
            swept.iter().all(|mirror| end_of_sweep(mirror).is_some())
        })?;
        // From the end of a sweep on, so that the first gap is whole.
        let last = end_of_sweep(&place.mirror());
        until("another sweep is told", || end_of_sweep(&place.mirror()) != last)?;
        cluster.delete(&gone).success();
        let told = Told::of(&place)?;
        println!(
            "  {} ends of sweeps told in {} s, {:.1} s apart at most; {} images are left to be cleaned up",
            told.ends,
            told.took.as_secs(),
            told.longest.as_secs_f64(),
            told.left
        );
        bars.at_most(
            format!("a mirror with {count} images deleted: another's sweeps apart"),
            told.longest.as_secs_f64() / PERIOD.as_secs_f64(),
            2.0,
            "per.",
        );
        Ok(())
    }
}

/// What was told of the sweeps of the mirror that stays, from the deletion of the other on.
#[derive(Debug)]
struct Told {
    ends: u32,
    /// The longest time between two of them, or since the last one.
    longest: Duration,
    took: Duration,
    /// Images of the deleted mirror.
    left: usize,
}

impl Told {
    /// Watches the sweeps while images are cleaned up.
    fn of(place: &Place<'_>) -> Result<Self> {
        let start = Instant::now();
        let (mut last, mut since) = (end_of_sweep(&place.mirror()), start);
        let (mut ends, mut longest) = (0, Duration::ZERO);
        let mut counted = start;
        loop {
            thread::sleep(LOOK);
            let end = end_of_sweep(&place.mirror());
            longest = longest.max(since.elapsed());
            if end != last {
                ends += 1;
                (last, since) = (end, Instant::now());
            }
            let took = start.elapsed();
            // Counting costs the API server something.
            if took < WATCHED.0 || counted.elapsed() < COUNTED {
                continue;
            }
            counted = Instant::now();
            let left = images(place.cluster)?.saturating_sub(STAYING);
            if left == 0 || took > WATCHED.1 {
                return Ok(Self {
                    ends,
                    longest,
                    took,
                    left,
                });
            }
        }
    }
}

/// Waits until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_so() {
        ensure!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Returns when the last sweep ended that an ImageMirror tells of.
fn end_of_sweep(mirror: &Value) -> Option<String> {
    let end = &mirror["status"]["sweeps"]["tag"]["finishedAt"];
    end.as_str().map(ToOwned::to_owned)
}

/// Returns how many MirroredImages there are.
fn images(cluster: &Cluster) -> Result<usize> {
    let list = cluster.get(&format!("{IMAGES}?limit=1")).success();
    let rest = &list["metadata"]["remainingItemCount"];
    let listed = list["items"].as_array().map_or(0, Vec::len);
    Ok(listed + usize::try_from(rest.as_u64().unwrap_or_default())?)
}
