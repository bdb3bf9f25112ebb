//! The Secret with which webhooks look at mirrors themselves: one Docker configuration for each mirror
//! that asks for credentials. Of all that the Secret of its endpoint holds it has the entry that the mirror
//! is asked with, and no other: webhooks are to learn nothing else.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use serde_json::{Map, json};
use tokio::time::sleep;

use super::Leader;
use crate::{
    api::{PROBE_SECRET, mirror::Connection},
    cluster::writer::{NotWritten, Writer},
    credentials::Secret as Held,
    domain::mirror::Mirror,
    state::feed::Feed,
    telemetry::chain,
};

/// The pause after something failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How often it is looked at whether somebody changed the Secret.
const LOOK: Duration = Duration::from_mins(1);

pub(super) async fn run(leader: Leader) {
    let Leader {
        settings,
        client,
        writer,
        mut cluster,
        ..
    } = leader;
    let secrets = Api::<Secret>::namespaced(client, &settings.namespace);
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

/// Returns a Docker configuration with what a mirror is asked with, as whoever reads it finds it again;
/// one without any entry where the Secret has a fault, which is another thing than no Secret: whoever
/// knows a good entry keeps it for a while.
pub(super) fn entry(mirror: &Mirror, connection: &Connection, secret: &Held) -> Vec<u8> {
    let mut auths = Map::new();
    if let Ok(credentials) = Feed::credentials(mirror, connection, secret) {
        let user = json!({"username": credentials.username, "password": credentials.password});
        // By the host alone: that matches whatever path the mirror's images have.
        auths.insert(mirror.mapping.registry.host().to_owned(), user);
    }
    json!({"auths": auths}).to_string().into_bytes()
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
    let Some(mut found) = secrets.get_opt(PROBE_SECRET).await? else {
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::state::file;

    /// Returns the entry that is rendered for a mirror, and the user that a webhook finds in it.
    fn rendered(registry: &str, url: &str, auths: &Value) -> (Value, Option<String>) {
        let config = json!({"auths": auths}).to_string();
        let text = format!(
            "{{apiVersion: kagami.dev/v1alpha1, kind: ImageMirror, metadata: {{name: main}}, spec: {{\
             registry: \"{registry}\", kind: Hosted, sources: [{{prefix: docker.io}}], \
             endpoint: {{url: \"{url}\", credentials: {{secretRef: {{name: read}}}}}}}}}}\n---\n\
             {{apiVersion: v1, kind: Secret, metadata: {{name: read}}, \
             type: kubernetes.io/dockerconfigjson, stringData: {{.dockerconfigjson: {config:?}}}}}\n"
        );
        let configuration = file::load(&text, "mirrors.yaml").unwrap();
        let (mirror, connection) = &configuration.mirrors[0];
        let entry = entry(mirror, connection, &configuration.secrets["read"]);
        let found = Feed::credentials(mirror, connection, &Held::docker_config(entry.clone()));
        let user = found.ok().map(|found| found.username);
        (serde_json::from_slice(&entry).unwrap(), user)
    }

    #[test]
    fn webhooks_get_the_entry_of_the_mirror_and_no_other() {
        let user = |name: &str| json!({"username": name, "password": format!("secret of {name}")});
        let auths = json!({
            "https://index.docker.io/v1/": user("hub"),
            "mirror.test:5000": user("reader"),
            "mirror.test:5000/pushed": user("pusher"),
            "mirror.kagami.svc": user("inside"),
        });
        for (registry, url, expected, host) in [
            (
                "mirror.test:5000",
                "https://mirror.kagami.svc",
                "reader",
                "mirror.test:5000",
            ),
            (
                "mirror.test:5000/pushed/v2",
                "https://mirror.kagami.svc",
                "pusher",
                "mirror.test:5000",
            ),
            // Known only by the name under which Kagami reaches it.
            (
                "images.test/v2/all",
                "https://mirror.kagami.svc",
                "inside",
                "images.test",
            ),
            ("[::1]:5000", "https://mirror.kagami.svc", "inside", "[::1]:5000"),
        ] {
            let (entry, found) = rendered(registry, url, &auths);
            assert_eq!(entry, json!({"auths": {host: user(expected)}}), "{registry}");
            assert_eq!(found.as_deref(), Some(expected), "{registry}");
        }
        // The file stays, so that its end is told from a fault.
        let nothing = (json!({"auths": {}}), None);
        assert_eq!(rendered("mirror.test", "https://other.test", &auths), nothing);
    }
}
