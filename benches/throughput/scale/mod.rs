//! What has to stay bounded and linear, with very much of everything, and beside another build of Kagami in the
//! same run where a figure alone says little.
//!
//! Pods are cheap here: nobody runs them. Up to ten thousand are objects of a real API server; more are those of a
//! generator that speaks its protocol.

mod believed;
mod bodies;
mod builds;
mod deletion;
mod finished;
mod fresh;
mod generator;
mod large;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    bench::{Bench, median},
    payload,
    roles::Build,
};

impl Bench {
    /// The other build first, and then this one.
    fn builds_in_turn(&self) -> Result<[&Build; 2]> {
        let other = self.other.as_ref().context("there is no other build")?;
        Ok([other, &self.own])
    }
}

/// Returns the ratios of two series of figures that were measured in turn.
fn ratios(own: &[f64], other: &[f64]) -> Vec<f64> {
    own.iter().zip(other).map(|(own, other)| own / other).collect()
}

/// Tells how far figures are spread.
pub fn spread(figures: &[f64]) -> String {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |quarter: usize| {
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * quarter / 4).copied().unwrap_or(f64::NAN)
    };
    format!(
        "median {:.3}, half of {} within {:.3} to {:.3}, all within {:.3} to {:.3}",
        median(figures.iter().copied()),
        sorted.len(),
        at(1),
        at(3),
        at(0),
        at(4)
    )
}

/// Returns a Pod whose only image was rewritten, as an API server has it.
fn rewritten_pod(namespace: &str, name: &str, original: &str, mirror: &str, registry: &str) -> Value {
    let mut pod = payload::pod_with(namespace, name, &format!("{registry}/{original}"));
    let decisions =
        json!({"containers.app-0": {"outcome": "Rewritten", "reason": "Mirrored", "mirror": mirror}});
    pod["metadata"]["annotations"] = json!({
        "original-image.kagami.dev/app-0": original,
        "kagami.dev/decisions": decisions.to_string(),
    });
    pod
}
