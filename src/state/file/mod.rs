//! Configuration from a file: a stream of YAML or JSON documents of the kinds a cluster would hold.
//!
//! Everything that is wrong is told at once, with the document and, where known, the line. Nothing
//! here opens a file; the text is an argument. A `status` is not configuration and is dropped.

mod document;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::{self as core, Namespace};
use kube::ResourceExt as _;
use serde_json::Value;

pub(crate) use document::unquoted_start;
use document::{Document, parse};
pub use document::{decode_documents, encode_document};

use crate::{
    api::{
        self,
        mirror::secret_references,
        schema,
        v1alpha1::{ImageMirror, ImageMirrorSpec},
    },
    credentials::{BASIC_AUTH, DOCKER_CFG, DOCKER_CONFIG_JSON, Secret},
    domain::{mirror::Mode, standing::Standing},
    state::configuration::Configuration,
};

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub file: String,
    /// Starts at 1.
    pub line: Option<u64>,
    /// `document 2 (ImageMirror main)`; documents are counted from 1, without empty ones.
    pub subject: String,
    pub fault: api::Fault,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}: {}", self.subject, self.fault)
    }
}

impl std::error::Error for Fault {}

const OPAQUE: &str = "Opaque";

const ALLOWED: &str = "ImageMirror (kagami.dev/v1alpha1), Namespace (v1), Secret (v1)";
const IMAGE_MIRROR: (&str, &str) = ("kagami.dev/v1alpha1", "ImageMirror");
const NAMESPACE: (&str, &str) = ("v1", "Namespace");
const SECRET: (&str, &str) = ("v1", "Secret");

/// Reads a configuration, or returns everything that is wrong with it, in the order of the file.
///
/// Nothing is taken from a file with a fault.
pub fn load(text: &str, file_name: &str) -> Result<Configuration, Vec<Fault>> {
    let (documents, mut faults) = parse(text);
    let documents: Vec<Document> = documents.into_iter().flat_map(Document::items).collect();
    let mut loader = Loader::new(&documents);
    for document in documents {
        let fault = document.faults();
        faults.extend(loader.add(document.value).into_iter().map(fault));
    }
    if faults.is_empty() {
        return Ok(loader.end());
    }
    for fault in &mut faults {
        file_name.clone_into(&mut fault.file);
    }
    faults.sort_by_key(|fault| fault.line);
    Err(faults)
}

/// Collects what documents say, one by one.
struct Loader {
    configuration: Configuration,
    /// Namespaces with a Secret `kagami-pull`: where Pods get it.
    pull_secret_namespaces: BTreeSet<String>,
    mirror_schema: Value,
    namespace_schema: Value,
    secret_schema: Value,
    /// Types of all Secrets of the file by name; a reference may come before its Secret.
    secret_types: BTreeMap<String, String>,
    seen: BTreeSet<(String, String)>,
}

impl Loader {
    fn new(documents: &[Document]) -> Self {
        let secret = |document: &Document| {
            let value = &document.value;
            let name = value["metadata"]["name"]
                .as_str()
                .filter(|_| value["kind"] == SECRET.1)?;
            let type_ = value["type"].as_str().unwrap_or(OPAQUE);
            Some((name.to_owned(), type_.to_owned()))
        };
        Self {
            configuration: Configuration::default(),
            pull_secret_namespaces: BTreeSet::new(),
            mirror_schema: schema::image_mirror(),
            namespace_schema: schema::of::<Namespace>(),
            secret_schema: schema::of::<core::Secret>(),
            secret_types: documents.iter().filter_map(secret).collect(),
            seen: BTreeSet::new(),
        }
    }

    /// Returns what all documents say together.
    fn end(self) -> Configuration {
        let mut configuration = self.configuration;
        let standing = Arc::new(Standing {
            pull_secret_namespaces: self.pull_secret_namespaces,
            ..Standing::NONE
        });
        let names = configuration
            .mirrors
            .iter()
            .map(|(mirror, _)| mirror.name.clone());
        configuration.standings = names.map(|name| (name, Arc::clone(&standing))).collect();
        configuration
    }

    /// Takes what a document says, and returns its faults.
    fn add(&mut self, document: Value) -> Vec<api::Fault> {
        let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let mut faults = match (version.as_str(), kind.as_str()) {
            IMAGE_MIRROR | NAMESPACE | SECRET => self.check_name(&kind, &document),
            _ => return vec![wrong_kind(&version, &kind)],
        };
        faults.extend(match (version.as_str(), kind.as_str()) {
            IMAGE_MIRROR => self.add_mirror(document),
            NAMESPACE => self.add_namespace(document),
            _ => self.add_secret(document),
        });
        faults
    }

    fn check_name(&mut self, kind: &str, document: &Value) -> Vec<api::Fault> {
        let message = match document["metadata"]["name"].as_str() {
            // The schema tells of names that are no text.
            None if !document["metadata"]["name"].is_null() => return Vec::new(),
            None => "is required".to_owned(),
            Some(name) if !is_name(name) => {
                format!(
                    "{name:?} is not a name: lower case letters, digits, - and . between them, at most 253"
                )
            }
            Some(name) if !self.seen.insert((kind.to_owned(), identity(name, document))) => {
                format!("there is another {kind} of this name in the file")
            }
            Some(_) => return Vec::new(),
        };
        vec![api::Fault::new("metadata.name", message)]
    }

    fn add_mirror(&mut self, mut document: Value) -> Vec<api::Fault> {
        if let Some(fields) = document.as_object_mut() {
            fields.shift_remove("status");
        }
        let (resource, mut faults) = schema::decode::<ImageMirror>(&self.mirror_schema, document);
        let Some(resource) = resource else {
            return faults;
        };
        let mut found = self.check_references(&resource.spec);
        match api::mirror::mirror(&resource) {
            Ok(mirror) => self.configuration.mirrors.push(mirror),
            Err(more) => found.extend(more),
        }
        schema::add_faults(&mut faults, found);
        faults
    }

    fn check_references(&self, spec: &ImageMirrorSpec) -> Vec<api::Fault> {
        let mut faults = Vec::new();
        for (field, name) in secret_references(spec) {
            match self.secret_types.get(name).map(String::as_str) {
                Some(DOCKER_CONFIG_JSON | DOCKER_CFG | BASIC_AUTH) => {}
                Some(other) => {
                    let message =
                        format!("Secret {name} is of type {other}, not {DOCKER_CONFIG_JSON} or {BASIC_AUTH}");
                    faults.push(api::Fault::new(field, message));
                }
                None => faults.push(api::Fault::new(
                    field,
                    format!("there is no Secret {name} in the file"),
                )),
            }
        }
        faults
    }

    fn add_namespace(&mut self, document: Value) -> Vec<api::Fault> {
        let (namespace, mut faults) = schema::decode::<Namespace>(&self.namespace_schema, document);
        let Some(namespace) = namespace else { return faults };
        let name = namespace.name_any();
        let mut labels = namespace.metadata.labels.unwrap_or_default();
        if let Some(mode) = labels.get(api::MODE_LABEL)
            && Mode::from_label(mode).is_none()
        {
            let field = schema::join("metadata.labels", api::MODE_LABEL);
            faults.push(api::Fault::new(
                field,
                format!("{mode:?} is not one of enforce, warn, audit, off"),
            ));
        }
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
        self.configuration.namespaces.insert(name, labels);
        faults
    }

    fn add_secret(&mut self, document: Value) -> Vec<api::Fault> {
        let (secret, mut faults) = schema::decode::<Value>(&self.secret_schema, document);
        let Some(secret) = secret else { return faults };
        let fields = |name: &str| secret[name].as_object().into_iter().flatten();
        let mut data = BTreeMap::new();
        for (key, value) in fields("data") {
            let text: String = value
                .as_str()
                .unwrap_or_default()
                .split_ascii_whitespace()
                .collect();
            match BASE64_STANDARD.decode(text) {
                Ok(bytes) => {
                    data.insert(key.clone(), bytes);
                }
                Err(_) => faults.push(api::Fault::new(
                    schema::join("data", key),
                    "is not base64: put plain text under stringData",
                )),
            }
        }
        for (key, value) in fields("stringData") {
            data.insert(
                key.clone(),
                value.as_str().unwrap_or_default().as_bytes().to_vec(),
            );
        }
        let name = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = secret["metadata"]["namespace"].as_str().map(str::to_owned);
        let secret = Secret {
            namespace,
            type_: secret["type"].as_str().unwrap_or(OPAQUE).to_owned(),
            data,
        };
        if faults.is_empty()
            && let Some((key, message)) = secret.malformed()
        {
            faults.push(api::Fault::new(schema::join("data", key), message));
        }
        if name == api::PULL_SECRET
            && let Some(namespace) = secret.namespace
        {
            self.pull_secret_namespaces.insert(namespace);
            return faults;
        }
        self.configuration.secrets.insert(name, secret);
        faults
    }
}

/// Returns what must be unique among documents of one kind: the name, as Secrets are found by name
/// alone; but each namespace has a pull secret of its own.
fn identity(name: &str, document: &Value) -> String {
    match document["metadata"]["namespace"]
        .as_str()
        .filter(|_| name == api::PULL_SECRET)
    {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Whether this is a DNS subdomain, as names of objects are.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let known = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '-');
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(known)
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn wrong_kind(version: &str, kind: &str) -> api::Fault {
    let expected = [IMAGE_MIRROR, NAMESPACE, SECRET]
        .into_iter()
        .find(|(_, known)| *known == kind);
    match (expected, kind) {
        (Some((expected, _)), _) => api::Fault::new(
            "apiVersion",
            format!("must be {expected} for this kind, not {version:?}"),
        ),
        (None, "") => api::Fault::new("kind", format!("is required: one of {ALLOWED}")),
        (None, _) => api::Fault::new("kind", format!("{kind} is not read from files: only {ALLOWED}")),
    }
}
