//! Reviews as large as an API server lets them be, of what a tenant may write.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::{
    bench::{Bench, LASTING, PATH, median, one_connection},
    client::{Expected, Target},
    payload::{self, Images, Payload},
    registry::Registry,
    report::Bars,
};

/// Reviews of each size.
const ROUNDS: usize = 15;

/// After one that took so many milliseconds there are no more rounds.
const SLOW: f64 = 1_000.0;

/// The longest that one is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// Adds so many of something to a Pod.
type Add = fn(&mut Value, usize);

impl Bench {
    /// The time of a review of 3 MiB, and of one of a tenth of that.
    pub fn bodies(&self, bars: &mut Bars) -> Result<()> {
        println!("\nVery large reviews, one at a time");
        let registry = Registry::start()?;
        let shapes: [(&str, usize, Add); 3] = [
            ("annotations of ours", 85_000, annotations),
            ("containers", 100_000, containers),
            ("image volumes", 50_000, volumes),
        ];
        for (what, count, add) in shapes {
            // One each, because what one leaves behind must not slow the next one down.
            let kagami = self.kagami("bodies", registry.address, LASTING)?;
            let target = |count| {
                let payload = Payload::of_body(PATH, &review(add, count))?;
                let bytes = payload.body().len();
                let images = Images { first: 0, count: 1 };
                anyhow::Ok((self.target(&kagami, &payload, images, Expected::Allowed), bytes))
            };
            let ((tenth, _), (whole, bytes)) = (target(count / 10)?, target(count)?);
            let (mut of_tenth, mut of_whole) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                of_tenth.push(time(&tenth)?);
                let took = time(&whole)?;
                of_whole.push(took);
                if took > SLOW {
                    break;
                }
            }
            let typical = median(of_whole.iter().copied());
            // Of what is to be linear the shortest, because all else is noise from outside.
            let [tenth, whole] =
                [of_tenth, of_whole].map(|times| times.into_iter().fold(f64::INFINITY, f64::min));
            let mib = f64::from(u32::try_from(bytes)?) / f64::from(1 << 20);
            println!(
                "  {count} {what}, {mib:.1} MiB: {typical:.2} ms, the shortest {whole:.2} ms and of a tenth {tenth:.2} ms"
            );
            bars.at_most(format!("a review of {count} {what}"), typical, 100.0, "ms");
            bars.at_most(
                format!("{count} {what} against ten times a tenth"),
                whole / (10.0 * tenth),
                1.3,
                "×",
            );
        }
        Ok(())
    }
}

/// Returns how many milliseconds one review takes over a connection that stands; without an answer in time it takes
/// for ever.
fn time(target: &Target) -> Result<f64> {
    one_connection(target, async |connection| {
        let start = Instant::now();
        match timeout(PATIENCE, connection.review(0, true)).await {
            Ok(answered) => answered.map(|_| start.elapsed().as_secs_f64() * 1e3),
            Err(_) => Ok(f64::INFINITY),
        }
    })
}

fn review(add: Add, count: usize) -> String {
    let mut pod = payload::pod_with("shop", "large", "docker.io/acme/large:1");
    add(&mut pod, count);
    payload::review_of(pod).to_string()
}

fn annotations(pod: &mut Value, count: usize) {
    let all = (0..count).map(|number| (format!("original-image.kagami.dev/{number:05}"), "".into()));
    pod["metadata"]["annotations"] = Value::Object(all.collect());
}

fn containers(pod: &mut Value, count: usize) {
    let container = |number| json!({"name": format!("{number:05}"), "image": format!("a{number:05}")});
    pod["spec"]["containers"] = (0..count).map(container).collect();
}

fn volumes(pod: &mut Value, count: usize) {
    let volume = |number| {
        let reference = format!("image:{number:05}");
        json!({"name": format!("volume-{number:05}"), "image": {"reference": reference}})
    };
    pod["spec"]["volumes"] = (0..count).map(volume).collect();
}
