//! Every metric with something in it, as Prometheus reads it.

use std::{collections::BTreeMap, time::Duration};

use kagami::{
    domain::{
        health::State,
        mirror::Mode,
        presence::Counts,
        reason::{Outcome, Reason},
        time::Timestamp,
    },
    metrics::{Metrics, ReviewAnswer},
};

/// Returns the text of all metrics, with a sample of each.
pub fn all_metrics() -> String {
    let (metrics, registry) = Metrics::new();
    metrics.decided(Mode::Enforce, Outcome::Kept, Reason::NoMirror, 1);
    metrics.reviewed(Mode::Enforce, ReviewAnswer::Unchanged, Duration::ZERO);
    metrics.probed("main", "exists");
    metrics.set_health("main", State::Healthy);
    metrics.set_images("main", Counts::default());
    metrics.swept("main", "tag", true);
    metrics.sweep_finished("main", "tag", Timestamp::from_millis(1));
    metrics.configured(true);
    metrics.set_stale("main", false);
    metrics.set_watch("pods", None, 0);
    metrics.set_condition("main", "Ready", Some(true));
    metrics.rescued("main", "back", "done");
    metrics.set_stuck(0);
    metrics.set_pull_secrets(0, 0, 0);
    metrics.wrote("ImageMirror", "ok");
    metrics.copied("main", "Copied");
    metrics.copied_bytes("main", 1);
    metrics.set_copies("main", Some((0, 0)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// Returns the names of all samples with those of their labels, but for what tells the parts of a histogram apart.
pub fn samples(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
        let names = labels
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.0));
        samples
            .entry(name)
            .or_insert_with(|| names.filter(|name| *name != "le").collect());
    }
    samples
}
