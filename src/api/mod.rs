//! The custom resources of Kagami and every name it writes into or reads from a cluster.
//!
//! This is a contract with users, not the model: the core works with `domain::mirror::Mirror`,
//! which [`mirror`] makes from a resource. Nothing here talks to an API server.

pub mod health;
pub mod image;
pub mod mirror;
pub mod newer;
mod rules;
pub mod schema;
pub mod v1alpha1;

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

pub use crate::domain::names::{
    DECISIONS_ANNOTATION, MODE_LABEL, ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX, PULL_SECRET,
    PULL_SECRET_LABEL,
};

/// The API group of the custom resources, and the domain of the labels.
pub const GROUP: &str = "kagami.dev";

/// Name of the Secret in Kagami's namespace with the read credentials for live probes.
pub const PROBE_SECRET: &str = "kagami-probe";

/// Name of the Lease that the leading companion renews.
pub const HEALTH_LEASE: &str = "kagami-health";

/// Annotation of that Lease: when each mirror was last seen well, as a JSON object of milliseconds since the Unix epoch
/// by the mirror's name. Replicas compare what they are told with each other, never with their own clocks.
pub const SEEN_WELL: &str = "kagami.dev/seen-well";

/// Annotation of that Lease: the brake. While it is there, and neither empty nor `false`, no image is rewritten and no
/// stuck Pod is turned.
pub const PAUSED: &str = "kagami.dev/paused";

/// Its value where it is the companion's own settings that ask for it, and take it away again; people write `true`.
pub const PAUSED_BY_SETTINGS: &str = "settings";

/// Condition of an ImageMirror: whether Pods that are stuck upstream may be turned to it.
pub const FORWARD_ALLOWED: &str = "ForwardAllowed";

/// Name of the Lease that says which companion leads.
pub const LEADER_LEASE: &str = "kagami-companion";

/// Name of the ConfigMap in Kagami's namespace with the mappings of the mirrors that are there, or were within a day.
pub const MIRRORS_CONFIG_MAP: &str = "kagami-mirrors";

/// Name of the ConfigMap, in Kagami's own namespace, in which it is noted whose Pods are left alone because their owners
/// fight rewrites.
pub const OWNERS_CONFIG_MAP: &str = "kagami-owners";

/// Name of the ConfigMap, in Kagami's own namespace, in which the originals are noted that Pods record, for others of
/// their namespace that lost theirs.
pub const ORIGINALS_CONFIG_MAP: &str = "kagami-originals";

/// Name of the Secret in Kagami's namespace with the companion's certificate authority and its key.
pub const AUTHORITY_SECRET: &str = "kagami-authority";

/// Its name in earlier versions. Where the certificates are cert-manager's, so is the Secret of this name.
pub const FORMER_AUTHORITY_SECRET: &str = "kagami-ca";

/// One thing that is wrong with a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field from the resource's root, as `kubectl` writes it: `spec.sources[0].prefix`.
    /// Empty for the resource as a whole.
    pub field: String,
    pub message: String,
    /// Whether it is a field or a value that this program does not know, as of a newer definition.
    pub is_unknown: bool,
}

impl Fault {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
            is_unknown: false,
        }
    }

    pub(crate) fn unknown(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            is_unknown: true,
            ..Self::new(field, message)
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            formatter.write_str(&self.message)
        } else {
            write!(formatter, "{}: {}", self.field, self.message)
        }
    }
}

impl std::error::Error for Fault {}

/// Returns the definitions of all custom resources.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![v1alpha1::ImageMirror::crd(), v1alpha1::MirroredImage::crd()];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            tidy(schema);
        }
    }
    crds
}

/// Makes a generated schema one that a person would write.
///
/// Optional fields are not nullable: API servers then take a null for an absent field, and
/// `kubectl explain` does not list null among the values of an enum. Descriptions lose the line
/// breaks of the source code, which `kubectl explain` would keep.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.title = None;
    schema.nullable = None;
    if let Some(values) = &mut schema.enum_ {
        values.retain(|value| !value.0.is_null());
    }
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<String> = description
            .split("\n\n")
            .map(|text| text.replace('\n', " "))
            .collect();
        *description = paragraphs.join("\n\n");
    }
    schema
        .properties
        .iter_mut()
        .flatten()
        .for_each(|(_, field)| tidy(field));
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut schema.items {
        tidy(item);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut schema.additional_properties {
        tidy(value);
    }
}

/// Returns the definitions of all custom resources as one stream of YAML documents.
pub fn crds_yaml() -> String {
    let documents: Vec<String> = crds().iter().map(crd_yaml).collect();
    documents.join("---\n")
}

/// Returns one definition as a YAML document.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> String {
    serde_saphyr::to_string(crd).expect("a definition is a tree of maps, lists and scalars")
}
