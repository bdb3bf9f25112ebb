//! Whether the installed definitions know what this program writes and reads. Helm never upgrades
//! them, and an API server drops what its definition does not know without a word to the companion.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, api::ApiResource, core::DynamicObject};
use serde_json::Value;
use tokio::{sync::watch, time::sleep};

use super::leader::Leader;
use crate::{
    api::{self, schema},
    cluster::request::bounded,
    telemetry::chain,
};

/// How often the definitions are looked at. Whoever upgrades them waits to see the condition change.
const LOOK: Duration = Duration::from_secs(30);

/// What the installed definitions lack; none while nobody can tell.
pub(super) type Lacking = Option<Vec<String>>;

/// Looks at the definitions for ever.
pub(super) async fn run(leader: Leader, published: watch::Sender<Lacking>) {
    let resource = ApiResource::erase::<CustomResourceDefinition>(&());
    let installed = Api::<DynamicObject>::all_with(leader.client, &resource);
    let mut fault = None;
    loop {
        match lacking(&installed).await {
            Ok(lacking) => {
                fault = None;
                published.send_if_modified(|known| {
                    let differs = known.as_ref() != Some(&lacking);
                    *known = Some(lacking);
                    differs
                });
            }
            Err(error) => {
                let text = chain(&error);
                if fault.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "cannot read the installed definitions");
                    fault = Some(text);
                }
            }
        }
        sleep(LOOK).await;
    }
}

async fn lacking(installed: &Api<DynamicObject>) -> kube::Result<Vec<String>> {
    let mut lacking = Vec::new();
    for own in api::crds() {
        let name = own.metadata.name.clone().unwrap_or_default();
        let installed = bounded(installed.get_opt(&name)).await?;
        let installed = installed.map_or(Value::Null, |object| object.data);
        let own = serde_json::to_value(&own).unwrap_or_default();
        for field in schema::lacking(&own, &installed) {
            lacking.push(format!("{name} {field}"));
        }
    }
    Ok(lacking)
}
