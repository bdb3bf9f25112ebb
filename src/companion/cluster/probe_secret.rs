//! The Secret with which webhooks look at mirrors themselves: one Docker configuration for each mirror
//! that asks for credentials (`probe_entry`).

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::sleep;

use super::{leader::Leader, probe_entry::is_entry};
use crate::{
    api::PROBE_SECRET,
    cluster::{
        request::bounded,
        writer::{NotWritten, Writer},
    },
    credentials,
    telemetry::{Reminder, chain},
};

/// The pause after something failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How often it is looked at whether somebody changed the Secret.
const LOOK: Duration = Duration::from_mins(1);

/// Why the Secret is not as it should be.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
    /// What it holds cannot be Kagami's, so it is somebody's who does not know of the name.
    #[error(
        "it holds what Kagami did not write; Kagami keeps in it what webhooks look at mirrors with: give yours \
         another name and delete this one"
    )]
    Foreign,
}

pub(super) async fn run(leader: Leader) {
    let Leader {
        namespace,
        client,
        writer,
        mut cluster,
        ..
    } = leader;
    let secrets = Api::<Secret>::namespaced(client, &namespace);
    let mut failures = Reminder::default();
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
                failures.ended();
                tokio::select! {
                    Ok(()) = cluster.changed() => {}
                    () = sleep(LOOK) => {}
                }
            }
            Err(Fault::NotWritten(NotWritten::NotLeading)) => return,
            Err(error) => {
                let error = chain(&error);
                if failures.failed(&error, std::time::Instant::now()) {
                    let secret = PROBE_SECRET;
                    tracing::warn!(
                        secret,
                        error,
                        "cannot keep the credentials of webhooks; trying again"
                    );
                }
                sleep(PAUSE).await;
            }
        }
    }
}

async fn write(
    secrets: &Api<Secret>,
    writer: &Writer,
    wanted: BTreeMap<String, Vec<u8>>,
) -> Result<(), Fault> {
    let wanted: BTreeMap<_, _> = wanted
        .into_iter()
        .map(|(name, json)| (name, ByteString(json)))
        .collect();
    let parameters = PostParams::default();
    let Some(mut found) = bounded(secrets.get_opt(PROBE_SECRET))
        .await
        .map_err(NotWritten::from)?
    else {
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
    let present = found.data.as_ref();
    // No mirror's name begins with a dot.
    let is_foreign = |(key, content): (&String, &ByteString)| {
        credentials::Secret::is_of_docker(key) || !is_entry(&content.0)
    };
    if present.is_some_and(|present| present.iter().any(is_foreign)) {
        return Err(Fault::Foreign);
    }
    if present.is_none_or(BTreeMap::is_empty) && wanted.is_empty() || present == Some(&wanted) {
        return Ok(());
    }
    found.data = Some(wanted);
    let request = secrets.replace(PROBE_SECRET, &parameters, &found);
    writer.write("Secret", request).await?;
    Ok(())
}
