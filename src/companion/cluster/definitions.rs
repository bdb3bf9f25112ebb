//! Whether the installed definitions know what this program writes and reads. Helm never upgrades
//! them, and an API server drops what its definition does not know without a word to the companion.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, api::ApiResource, core::DynamicObject};
use tokio::{sync::watch, time::sleep};

use super::leader::Leader;
use crate::{
    api::{self, schema},
    cluster::request::bounded,
    telemetry::chain,
};

/// How often the definitions are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The same while something lacks: whoever installs them waits to see the condition change.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What the installed definitions lack; none while nobody can tell.
pub(super) type Lacking = Option<Vec<String>>;

/// Looks at the definitions for ever.
pub(super) async fn run(leader: Leader, published: watch::Sender<Lacking>) {
    let resource = ApiResource::erase::<CustomResourceDefinition>(&());
    let installed = Api::<DynamicObject>::all_with(leader.client, &resource);
    let mut fault = None;
    loop {
        let mut pause = LOOK;
        match lacking(&installed).await {
            Ok(lacking) => {
                fault = None;
                if !lacking.is_empty() {
                    pause = LOOK_AGAIN;
                }
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
        sleep(pause).await;
    }
}

async fn lacking(installed: &Api<DynamicObject>) -> kube::Result<Vec<String>> {
    let mut lacking = Vec::new();
    for own in api::crds() {
        let name = own.metadata.name.clone().unwrap_or_default();
        let Some(installed) = bounded(installed.get_opt(&name)).await? else {
            lacking.push(format!("all of {name}, which is not installed"));
            continue;
        };
        let own = serde_json::to_value(&own).unwrap_or_default();
        for field in schema::lacking(&own, &installed.data) {
            lacking.push(format!("{name} {field}"));
        }
    }
    Ok(lacking)
}
