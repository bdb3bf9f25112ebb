//! `kagami companion`: keeps the shared state of a cluster.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    arguments::CompanionArguments,
    cluster as way, output,
    serving::{FINISH, bind, mirrors},
};
use crate::{
    clock,
    companion::cluster::{self, CertificateSettings, DemandSettings, RescueSettings, Settings, View},
    metrics::Metrics,
    server::{
        Limits, Server,
        admin::{self, Admin, Readiness},
    },
    tasks::{Drain, Signals, Tasks, shutdown},
};

pub(super) async fn run(arguments: CompanionArguments) -> anyhow::Result<()> {
    let CompanionArguments {
        own,
        left_alone,
        admin,
        default_mode,
        forget_after,
        paused,
        rescue_per_second,
        rescue_registries,
        pull_secrets,
        identity,
        webhook_configuration,
        webhook_service,
        certificate_secret,
        certificate_step,
        certificate_validity,
    } = arguments;
    let namespace = own.namespace;
    let (client, server) = way::client().await?;
    let listener = bind(admin.admin_listen).await?;
    let address = listener.local_addr()?;
    let identity = identity.unwrap_or_else(own_identity);
    let certificates = webhook_configuration.map(|configuration| CertificateSettings {
        configuration,
        secret: certificate_secret,
        names: ["svc", "svc.cluster.local"]
            .map(|domain| format!("{webhook_service}.{namespace}.{domain}"))
            .into(),
        step: certificate_step,
        validity: certificate_validity,
    });
    let settings = Settings {
        server,
        certificates,
        left_alone: left_alone
            .left_alone
            .into_iter()
            .chain([namespace.clone()])
            .collect(),
        namespace,
        identity: identity.clone(),
        demand: DemandSettings {
            default_mode: default_mode.default_mode.into(),
            forget_after,
        },
        paused,
        rescue: NonZeroU32::new(rescue_per_second).map(|per_second| RescueSettings {
            per_second,
            registries: rescue_registries,
        }),
        pull_secrets,
    };

    let (metrics, registry) = Metrics::new();
    let (trigger, shutdown) = shutdown();
    let view = View::default();
    let reached = view.clone();
    let readiness = Readiness::new(shutdown.clone()).with("api server", move || {
        reached
            .reaches_api_server()
            .then_some(())
            .ok_or_else(|| "the API server has not answered".to_owned())
    });
    let seen = view.clone();
    let registry = Arc::new(registry);
    let admin = admin::service(Admin {
        readiness,
        metrics: Box::new(move || {
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
            text
        }),
        status: Box::new(move || status(&seen, &identity)),
    });
    let mut signals = Signals::new().context("cannot take over signals")?;
    let mut tasks = Tasks::default();
    let server = Server {
        name: "admin",
        listener,
        tls: None,
        service: admin,
        limits: Limits::default(),
        counts: metrics.admin_server(),
    };
    tasks.spawn("admin", server.run(shutdown.clone()));
    let companion = cluster::run(settings, client, metrics, view, shutdown);
    tasks.spawn("companion", companion);
    output::print(&format!("admin http://{address}\n"))?;
    let drain = Drain {
        delay: std::time::Duration::ZERO,
        limit: FINISH,
    };
    tasks.run(&trigger, drain, async || signals.next().await).await?;
    Ok(())
}

/// Returns a name that no other process has: the host's and the time.
fn own_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (host, process) = (host.trim(), std::process::id());
    format!("{host}_{process}_{}", clock::now().as_millis())
}

/// Returns what `/status` shows.
fn status(view: &View, identity: &str) -> Value {
    let led = view.led();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "identity": identity,
        "leading": led.is_some(),
        "mirrors": led.map(|(store, reports)| mirrors(&store, Some(&reports), false)),
    })
}
