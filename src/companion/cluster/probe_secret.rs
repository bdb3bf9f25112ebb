//! The Secret with which webhooks look at mirrors themselves: one Docker configuration for each mirror
//! that asks for credentials (`probe_entry`).

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::sleep;

use super::leader::Leader;
use crate::{
    api::PROBE_SECRET,
    cluster::{
        request::bounded,
        writer::{NotWritten, Writer},
    },
    telemetry::chain,
};

/// The pause after something failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How often it is looked at whether somebody changed the Secret.
const LOOK: Duration = Duration::from_mins(1);

pub(super) async fn run(leader: Leader) {
    let Leader {
        namespace,
        client,
        writer,
        mut cluster,
        ..
    } = leader;
    let secrets = Api::<Secret>::namespaced(client, &namespace);
    loop {
        let wanted = cluster
            .borrow_and_update()
            .as_ref()
            .map(|cluster| cluster.probe_credentials.clone());
        let written = match wanted {
            Some(wanted) => write(&secrets, &writer, wanted).await,
            None => Ok(()),
        };
        match written {
            Ok(()) => {
                tokio::select! {
                    Ok(()) = cluster.changed() => {}
                    () = sleep(LOOK) => {}
                }
            }
            Err(NotWritten::NotLeading) => return,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot write Secret {PROBE_SECRET}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn write(
    secrets: &Api<Secret>,
    writer: &Writer,
    wanted: BTreeMap<String, Vec<u8>>,
) -> Result<(), NotWritten> {
    let wanted: BTreeMap<_, _> = wanted
        .into_iter()
        .map(|(name, json)| (name, ByteString(json)))
        .collect();
    let parameters = PostParams::default();
    let Some(mut found) = bounded(secrets.get_opt(PROBE_SECRET)).await? else {
        if wanted.is_empty() {
            return Ok(());
        }
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(PROBE_SECRET.to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(wanted),
            ..Secret::default()
        };
        let request = secrets.create(&parameters, &secret);
        writer.write("Secret", request).await?;
        return Ok(());
    };
    if found.data.clone().unwrap_or_default() == wanted {
        return Ok(());
    }
    found.data = Some(wanted);
    let request = secrets.replace(PROBE_SECRET, &parameters, &found);
    writer.write("Secret", request).await?;
    Ok(())
}
