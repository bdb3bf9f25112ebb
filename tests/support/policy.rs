//! Policies of others about images, and what they refuse.

use serde_json::{Value, json};

use super::{
    cluster::{Cluster, Namespace},
    eventually,
    http::Answer,
};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// A ValidatingAdmissionPolicy about the Pods of a few namespaces, with its binding.
#[derive(Debug)]
pub(crate) struct AdmissionPolicy<'a> {
    cluster: &'a Cluster,
    pub(crate) name: String,
}

impl<'a> AdmissionPolicy<'a> {
    /// Creates it with one validation, bound with an action: Deny, Warn or Audit.
    pub(crate) fn new(
        cluster: &'a Cluster,
        name: &str,
        namespaces: &[&str],
        action: &str,
        validation: &Value,
    ) -> Self {
        let policy = json!({
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"],
                }]},
                "validations": [validation],
            },
        });
        cluster
            .create(&format!("{GROUP}/validatingadmissionpolicies"), &policy)
            .success();
        let binding = json!({
            "metadata": {"name": name},
            "spec": {
                "policyName": name,
                "validationActions": [action],
                "matchResources": {"namespaceSelector": {"matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces},
                ]}},
            },
        });
        cluster
            .create(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding)
            .success();
        Self {
            cluster,
            name: name.to_owned(),
        }
    }

    /// Waits until creating this Pod is answered so: a policy is in force a moment after it is stored.
    pub(crate) fn until(&self, namespace: &Namespace<'_>, pod: &Value, is_so: impl Fn(&Answer) -> bool) {
        let path = format!("{}?dryRun=All", namespace.path("pods"));
        eventually(&format!("{} is in force", self.name), || {
            is_so(&self.cluster.create(&path, pod)).then_some(())
        });
    }
}

impl Drop for AdmissionPolicy<'_> {
    fn drop(&mut self) {
        for kind in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
            self.cluster.delete(&format!("{GROUP}/{kind}/{}", self.name));
        }
    }
}

/// Waits until somebody says that a Pod could not be created in a namespace, and returns why.
pub(crate) fn failed_create(namespace: &Namespace<'_>) -> String {
    let path = format!("{}?fieldSelector=reason%3DFailedCreate", namespace.path("events"));
    eventually("a Pod could not be created", || {
        let events = namespace.cluster.get(&path).success();
        events["items"][0]["message"].as_str().map(ToOwned::to_owned)
    })
}
