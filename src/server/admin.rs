//! What operators and the kubelet ask: alive, ready, metrics, status. Plain HTTP, on its own port.
//!
//! Nothing here decides; it shows what other parts tell. Nothing secret may be told to it.

use std::{fmt, fmt::Write as _, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use hyper_util::service::TowerToHyperService;

use crate::tasks::{Shutdown, Stage};

/// The format that prometheus-client encodes.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether this process should get requests: all conditions hold, and it is not on its way out.
///
/// The health of a mirror is no condition: with the mirror gone, Pods are still to be answered.
pub struct Readiness {
    shutdown: Shutdown,
    conditions: Vec<(&'static str, Check)>,
}

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

impl Readiness {
    /// Returns a readiness with the one condition `draining`: it ends when the process drains.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            conditions: Vec::new(),
        }
    }

    /// Adds a condition, asked at each request; where it does not hold it says why, in one line.
    #[must_use]
    pub fn with(
        mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.conditions.push((name, Box::new(check)));
        self
    }

    /// Returns whether all conditions hold, and a line for each.
    pub fn report(&self) -> (bool, String) {
        let draining = match self.shutdown.stage() {
            Stage::Running => Ok(()),
            Stage::Draining | Stage::Stopping => Err("the process is ending".to_owned()),
        };
        let checked = self.conditions.iter().map(|(name, check)| (*name, check()));
        let mut ready = true;
        let mut text = String::new();
        for (name, result) in checked.chain([("draining", draining)]) {
            // Writing to a string cannot fail.
            let _ = match result {
                Ok(()) => writeln!(text, "[+] {name}: ok"),
                Err(why) => {
                    ready = false;
                    writeln!(text, "[-] {name}: {why}")
                }
            };
        }
        text.push_str(if ready { "ready\n" } else { "not ready\n" });
        (ready, text)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("report", &self.report().1)
            .finish()
    }
}

/// Where the answers come from.
pub struct Admin {
    pub readiness: Readiness,
    /// Returns the metrics in OpenMetrics text format.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// Returns what `/status` shows.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

/// What answers on the admin listener.
pub type AdminService = TowerToHyperService<Router>;

/// Returns the service with the routes `/livez`, `/readyz`, `/metrics` and `/status`.
pub fn service(admin: Admin) -> AdminService {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(Arc::new(admin));
    TowerToHyperService::new(router)
}

async fn readyz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let (ready, text) = admin.readiness.report();
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, text)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], (admin.metrics)())
}

async fn status(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    Json((admin.status)())
}
