//! The way to a cluster.

use std::time::Duration;

use anyhow::Context as _;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::{BadSettings, arguments::ClusterArguments};
use crate::telemetry::chain;

/// The longest that opening a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Returns a client of the cluster that a Pod runs in, or that a person's settings name. It never
/// sends a request a second time by itself. Also returns where the API server is.
pub(super) async fn client() -> anyhow::Result<(Client, String)> {
    let config = Config::infer().await;
    let config =
        config.map_err(|error| BadSettings::one(format!("no way to an API server: {}", chain(&error))))?;
    let server = config.cluster_url.to_string();
    Ok((client_of(config)?, server))
}

/// Returns a client of the cluster that a person means, and the namespace that its context names.
pub(super) async fn client_for(arguments: &ClusterArguments) -> anyhow::Result<(Client, String)> {
    let config = config_for(arguments).await.map_err(|error| {
        BadSettings::one(format!(
            "no cluster: {error}; name one with --kubeconfig or --context, or give --config FILE"
        ))
    })?;
    let namespace = config.default_namespace.clone();
    Ok((client_of(config)?, namespace))
}

async fn config_for(arguments: &ClusterArguments) -> Result<Config, KubeconfigError> {
    let ClusterArguments {
        kubeconfig, context, ..
    } = arguments;
    let read = match kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    let options = KubeConfigOptions {
        context: context.clone(),
        ..KubeConfigOptions::default()
    };
    let config = match read {
        Ok(read) => Config::from_custom_kubeconfig(read, &options).await,
        Err(error) => Err(error),
    };
    match config {
        // A Pod has no such file. That this is no Pod either needs no mention.
        Err(error) if kubeconfig.is_none() && context.is_none() => Config::incluster().map_err(|_| error),
        config => config,
    }
}

fn client_of(mut config: Config) -> anyhow::Result<Client> {
    config.connect_timeout = Some(CONNECT);
    config.default_retry = false;
    Client::try_from(config).context("cannot make a client for the API server")
}
