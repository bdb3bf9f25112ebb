//! What webhooks are given of a mirror's credentials. Of all that the Secret of its endpoint holds it is the
//! entry that the mirror is asked with, and no other: webhooks are to learn nothing else.

use serde_json::{Map, Value, json};

use crate::{api::mirror::Connection, credentials::Secret, domain::mirror::Mirror, state::feed::Feed};

/// Returns a Docker configuration with what a mirror is asked with, as whoever reads it finds it again;
/// one without any entry where the Secret has a fault, which is another thing than no Secret: whoever
/// knows a good entry keeps it for a while.
pub(super) fn entry(mirror: &Mirror, connection: &Connection, secret: &Secret) -> Vec<u8> {
    let mut auths = Map::new();
    let name = connection.probe_secret.as_deref().unwrap_or_default();
    if let Ok(credentials) = Feed::credentials(mirror, connection, name, secret) {
        let user = json!({"username": credentials.username, "password": credentials.password});
        // By the host alone: that matches whatever path the mirror's images have.
        auths.insert(mirror.mapping.registry.host().to_owned(), user);
    }
    json!({"auths": auths}).to_string().into_bytes()
}

/// Whether this is such a configuration, as opposed to what others keep in Secrets.
pub(super) fn is_entry(content: &[u8]) -> bool {
    let document: Result<Value, _> = serde_json::from_slice(content);
    document.is_ok_and(|document| document.get("auths").is_some_and(Value::is_object))
}

#[cfg(test)]
mod tests {

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
        assert!(is_entry(&entry));
        let found = Feed::credentials(mirror, connection, "read", &Secret::docker_config(entry.clone()));
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
