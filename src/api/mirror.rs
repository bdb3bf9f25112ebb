//! From an ImageMirror resource to the core's [`Mirror`] and the [`Connection`] to it.
//!
//! All faults of a resource are told at once. The API server finds most of them with the schema and
//! its CEL rules; files have no API server, and rules may be younger than an object in a cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::ResourceExt as _;

use super::{
    Fault,
    rules::{self, Range},
    v1alpha1::{self as api, ImageMirror, ImageMirrorSpec},
};
use crate::domain::{
    mirror::{
        Access, Drift, Freshness, HealthSettings, Kind, Mirror, Mode, OwnerPattern, Prefer, Source, Tags,
    },
    selector::{Operator, Requirement, Selector},
};

/// How Kagami reaches a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Scheme, host and port, without a slash at the end: `https://mirror.example.com:5000`.
    pub endpoint: String,
    /// The authorities that may sign the endpoint's certificate, in PEM; none are the system's.
    pub ca_bundle: Option<Vec<u8>>,
    /// Name of the Secret with which the mirror may be read.
    pub probe_secret: Option<String>,
}

/// Returns what a resource says, or everything that is wrong with it.
pub fn mirror(resource: &ImageMirror) -> Result<(Mirror, Connection), Vec<Fault>> {
    let spec = &resource.spec;
    let status = resource.status.clone().unwrap_or_default();
    let mut faults = Faults::default();

    let connection = connection(spec, &mut faults);
    let mirror = Mirror {
        name: resource.name_any(),
        mode: spec.mode.into(),
        registry: spec.registry.clone(),
        repository: spec.repository.clone(),
        kind: match spec.kind {
            api::Kind::Hosted => Kind::Hosted,
            api::Kind::PullThrough => Kind::PullThrough,
        },
        priority: spec.priority,
        prefer: match spec.prefer {
            api::Prefer::Mirror => Prefer::Mirror,
            api::Prefer::Upstream => Prefer::Upstream,
        },
        namespaces: selector(&spec.namespace_selector, &mut faults),
        sources: sources(spec, &mut faults),
        health: HealthSettings {
            interval: faults.duration("spec.health.interval", &spec.health.interval, &rules::INTERVAL),
            timeout: faults.duration("spec.health.timeout", &spec.health.timeout, &rules::TIMEOUT),
            failure_threshold: faults.count("spec.health.failureThreshold", spec.health.failure_threshold),
            success_threshold: faults.count("spec.health.successThreshold", spec.health.success_threshold),
            stale_after: faults.duration(
                "spec.health.staleAfter",
                &spec.health.stale_after,
                &rules::STALE_AFTER,
            ),
        },
        freshness: Freshness {
            tag: faults.duration("spec.freshness.tag", &spec.freshness.tag, &rules::FRESHNESS),
            digest: faults.duration("spec.freshness.digest", &spec.freshness.digest, &rules::FRESHNESS),
            missing: faults.duration(
                "spec.freshness.missing",
                &spec.freshness.missing,
                &rules::FRESHNESS,
            ),
        },
        sweep_rate: u32::try_from(spec.sweep.requests_per_second)
            .ok()
            .filter(|rate| *rate > 0),
        tags: Tags {
            pin_digest: spec.tags.pin == api::Pin::Digest,
            refresh: faults.duration("spec.tags.refresh", &spec.tags.refresh, &rules::FRESHNESS),
            drift: match spec.tags.drift {
                api::Drift::Sync => Drift::Sync,
                api::Drift::Warn => Drift::Warn,
                api::Drift::Keep => Drift::Keep,
            },
        },
        pull_secret: spec.pull_secret.is_some(),
        exclude_owners: spec
            .exclude_owners
            .as_ref()
            .map_or_else(OwnerPattern::built_in, |owners| {
                let pattern = |owner: &api::Owner| OwnerPattern {
                    group: owner.group.clone(),
                    kind: owner.kind.clone(),
                };
                owners.iter().map(pattern).collect()
            }),
        pull_secret_namespaces: status.pull_secret_namespaces,
        platforms: status.platforms,
        owners_left_alone: status.owners_left_alone,
    };

    faults.check_registry(spec);
    faults.check_rest(spec);
    let selector = &spec.namespace_selector;
    let selects_all = selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if selects_all
        && mirror
            .sources
            .iter()
            .any(|source| source.access == Access::Private)
    {
        faults.add("spec.namespaceSelector", rules::PRIVATE_NEEDS_SELECTOR.message);
    }
    if faults.0.is_empty() {
        Ok((mirror, connection))
    } else {
        Err(faults.0)
    }
}

/// Returns every Secret that a resource names, with the path of the field that does.
pub fn secret_references(spec: &ImageMirrorSpec) -> Vec<(String, &str)> {
    let endpoint = spec
        .endpoint
        .as_ref()
        .and_then(|endpoint| endpoint.credentials.as_ref());
    let mut references = vec![
        ("spec.endpoint.credentials".to_owned(), endpoint),
        ("spec.copy.credentials".to_owned(), spec.copy.credentials.as_ref()),
        ("spec.pullSecret".to_owned(), spec.pull_secret.as_ref()),
    ];
    for (index, source) in spec.sources.iter().enumerate() {
        references.push((
            format!("spec.sources[{index}].credentials"),
            source.credentials.as_ref(),
        ));
    }
    references
        .into_iter()
        .filter_map(|(field, credentials)| {
            Some((
                format!("{field}.secretRef.name"),
                credentials?.secret_ref.name.as_str(),
            ))
        })
        .collect()
}

impl From<api::Mode> for Mode {
    fn from(mode: api::Mode) -> Self {
        match mode {
            api::Mode::Enforce => Self::Enforce,
            api::Mode::Warn => Self::Warn,
            api::Mode::Audit => Self::Audit,
            api::Mode::Off => Self::Off,
        }
    }
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault::new(field, message));
    }

    fn duration(&mut self, field: &str, text: &api::Duration, range: &Range) -> std::time::Duration {
        let Some(duration) = text.parse() else {
            self.add(
                field,
                format!("{:?} is not a duration: write 90s, 10m or 1h30m", text.0),
            );
            return range.shortest;
        };
        if !(range.shortest..=range.longest).contains(&duration) {
            self.add(field, range.message());
        }
        duration
    }

    fn count(&mut self, field: &str, number: i32) -> u32 {
        u32::try_from(number)
            .ok()
            .filter(|count| *count > 0)
            .unwrap_or_else(|| {
                self.add(field, "must be at least 1");
                1
            })
    }

    fn check_registry(&mut self, spec: &ImageMirrorSpec) {
        if let Err(message) = prefix(&spec.registry) {
            self.add("spec.registry", message);
        }
        if !spec.repository.contains("{repository}") {
            self.add("spec.repository", rules::TEMPLATE_NEEDS_REPOSITORY.message);
        }
        if !spec.repository.contains("{registry}") && spec.sources.len() != 1 {
            self.add("spec.repository", rules::TEMPLATE_NEEDS_REGISTRY.message);
        }
    }

    /// Checks the fields that the core does not hold yet.
    fn check_rest(&mut self, spec: &ImageMirrorSpec) {
        for (index, platform) in spec.copy.platforms.iter().enumerate() {
            if !is_platform(platform) {
                let message = format!("{platform:?} is not a platform: write linux/amd64 or linux/arm64/v8");
                self.add(format!("spec.copy.platforms[{index}]"), message);
            }
        }
        self.duration(
            "spec.rescue.hangAfter",
            &spec.rescue.hang_after,
            &rules::HANG_AFTER,
        );
        if let Some(unused_for) = spec
            .retention
            .as_ref()
            .and_then(|retention| retention.unused_for.as_ref())
        {
            self.duration("spec.retention.unusedFor", unused_for, &rules::UNUSED_FOR);
        }
    }
}

fn connection(spec: &ImageMirrorSpec, faults: &mut Faults) -> Connection {
    let endpoint = spec.endpoint.clone().unwrap_or_default();
    let host = spec.registry.split('/').next().unwrap_or_default();
    let url = endpoint.url.map_or_else(
        || format!("https://{}", host.to_lowercase()),
        |url| {
            if !is_base_url(&url) {
                faults.add("spec.endpoint.url", rules::ENDPOINT_URL.message);
            }
            url.trim_end_matches('/').to_owned()
        },
    );
    if let Some(bundle) = &endpoint.ca_bundle
        && !bundle.contains("-----BEGIN CERTIFICATE-----")
    {
        faults.add(
            "spec.endpoint.caBundle",
            "must hold certificates in PEM: -----BEGIN CERTIFICATE-----",
        );
    }
    Connection {
        endpoint: url,
        ca_bundle: endpoint.ca_bundle.map(String::into_bytes),
        probe_secret: endpoint
            .credentials
            .map(|credentials| credentials.secret_ref.name),
    }
}

fn is_base_url(url: &str) -> bool {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| host(rest.strip_suffix('/').unwrap_or(rest)).is_ok())
}

fn is_platform(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let plain = |part: &&str| {
        let known = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '.' | '_');
        !part.is_empty() && part.chars().all(known)
    };
    matches!(parts.len(), 2 | 3) && parts.iter().all(plain)
}

fn sources(spec: &ImageMirrorSpec, faults: &mut Faults) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for (index, source) in spec.sources.iter().enumerate() {
        let field = format!("spec.sources[{index}]");
        let prefix = prefix(&source.prefix).unwrap_or_else(|message| {
            faults.add(format!("{field}.prefix"), message);
            source.prefix.clone()
        });
        if let Some(first) = sources.iter().position(|other| other.prefix == prefix) {
            faults.add(
                format!("{field}.prefix"),
                format!("{prefix} is there already, as sources[{first}]"),
            );
        }
        for (index, glob) in source.exclude.iter().enumerate() {
            if let Err(message) = check_glob(glob) {
                faults.add(format!("{field}.exclude[{index}]"), message);
            }
        }
        let with_credentials = source.credentials.is_some();
        sources.push(Source {
            prefix,
            exclude: source.exclude.clone(),
            access: match source.access {
                Some(api::Access::Private) => Access::Private,
                Some(api::Access::Public) => Access::Public,
                None => default_access(with_credentials),
            },
            with_credentials,
        });
    }
    sources
}

const fn default_access(with_credentials: bool) -> Access {
    if with_credentials {
        Access::Private
    } else {
        Access::Public
    }
}

fn selector(selector: &LabelSelector, faults: &mut Faults) -> Selector {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        requirements.push(Requirement {
            key: key.clone(),
            operator: Operator::In(vec![value.clone()]),
        });
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        match operator(expression) {
            Ok(operator) => requirements.push(Requirement {
                key: expression.key.clone(),
                operator,
            }),
            Err((field, message)) => {
                faults.add(
                    format!("spec.namespaceSelector.matchExpressions[{index}].{field}"),
                    message,
                );
            }
        }
    }
    Selector { requirements }
}

fn operator(expression: &LabelSelectorRequirement) -> Result<Operator, (&'static str, String)> {
    let values = expression.values.clone().unwrap_or_default();
    let operator = match expression.operator.as_str() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            let message = format!("{other:?} is not one of In, NotIn, Exists, DoesNotExist");
            return Err(("operator", message));
        }
    };
    let count = expression.values.as_ref().map_or(0, Vec::len);
    match (&operator, count) {
        (Operator::In(_) | Operator::NotIn(_), 0) => Err((
            "values",
            format!("{} needs at least one value", expression.operator),
        )),
        (Operator::Exists | Operator::DoesNotExist, 1..) => {
            Err(("values", format!("{} takes no values", expression.operator)))
        }
        _ => Ok(operator),
    }
}

/// Returns a prefix as normalised names begin: host in lower case, Docker Hub under one name.
fn prefix(text: &str) -> Result<String, String> {
    if text.contains("://") {
        return Err(format!("{text:?} must be without a scheme: a host, then a path"));
    }
    let (first, path) = text
        .split_once('/')
        .map_or((text, None), |(host, path)| (host, Some(path)));
    if !is_host(first) {
        return Err(format!(
            "{text:?} must begin with a registry host: {}, for example",
            on_docker_hub(text)
        ));
    }
    let host = host(first)?;
    let host = if host == "index.docker.io" {
        "docker.io"
    } else {
        &host
    };
    let Some(path) = path else {
        return Ok(host.to_owned());
    };
    for component in path.split('/') {
        if !is_component(component) {
            return Err(match component {
                "" => format!("{text:?} has an empty path component"),
                _ if component.contains(['@', ':']) => format!("{text:?} must be without tag and digest"),
                _ => format!(
                    "{component:?} cannot be part of a repository's path: lower case letters, digits and . _ - between them"
                ),
            });
        }
    }
    Ok(format!("{host}/{path}"))
}

/// Returns what a name without a host means to most people.
fn on_docker_hub(name: &str) -> String {
    let official = if name.contains('/') { "" } else { "library/" };
    format!("docker.io/{official}{name}")
}

/// Whether the first component of a reference is a host (distribution's `splitDockerDomain`).
fn is_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.chars().any(|character| character.is_ascii_uppercase())
}

/// Returns a host with its port, if any, in lower case.
fn host(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let (name, port) = match lower.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (lower.as_str(), None),
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let good_name = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(is_label),
    };
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if good_name && good_port {
        Ok(lower)
    } else {
        Err(format!("{text:?} is not a host with at most a port"))
    }
}

fn is_label(label: &str) -> bool {
    let known = |character: char| character.is_ascii_alphanumeric() || character == '-';
    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(known)
}

/// Whether this is a path component of the reference grammar (distribution's `regexp.go`).
fn is_component(component: &str) -> bool {
    let mut rest = component;
    loop {
        let word = rest
            .find(|character: char| !matches!(character, 'a'..='z' | '0'..='9'))
            .unwrap_or(rest.len());
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest
            .find(|character: char| !matches!(character, '.' | '_' | '-'))
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(separator);
        if !matches!(text, "." | "_" | "__") && !text.chars().all(|character| character == '-')
            || text.is_empty()
        {
            return false;
        }
        rest = tail;
    }
}

fn check_glob(glob: &str) -> Result<(), String> {
    let (first, path) = glob
        .split_once('/')
        .map_or((glob, None), |(first, path)| (first, Some(path)));
    if !first.contains('*') && !is_host(first) {
        return Err(format!(
            "{glob:?} must begin with a registry host, or with *: {}, for example",
            on_docker_hub(glob)
        ));
    }
    for component in path.into_iter().flat_map(|path| path.split('/')) {
        if component.is_empty() {
            return Err(format!("{glob:?} has an empty path component"));
        }
        if component.contains(['@', ':']) {
            return Err(format!("{glob:?} must be without tag and digest"));
        }
    }
    let known = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '.' | '_' | '-' | '/' | ':' | '*' | '[' | ']');
    if !glob.chars().all(known) {
        return Err(format!(
            "{glob:?} can never match: names are lower case letters, digits and . _ - / :"
        ));
    }
    if glob.contains("***") {
        return Err(format!("{glob:?} has more than two * in a row"));
    }
    Ok(())
}
