//! Kagami in a cluster: a real API server over etcd, started for each part, and the bench in the place of
//! everybody else: of the companion for webhooks, of users and controllers for the companion.

mod companion;
mod creates;
pub mod objects;
pub mod place;
pub mod replica;

use anyhow::{Result, anyhow};

use super::e2e::tools::Tools;

/// Finds the programs that a cluster is made of.
pub fn tools() -> Result<Tools> {
    let programs = ["etcd", "kube-apiserver", "kube-controller-manager", "registry"];
    Tools::find_some(&programs).map_err(|missing| {
        anyhow!("{missing}, or leave out the parts about a cluster (--help names the parts)")
    })
}
