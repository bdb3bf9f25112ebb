//! From an ImageMirror resource to the core's [`Mirror`] and the [`Connection`] to it.
//!
//! All faults of a resource are told at once. The API server finds most of them with the schema and
//! its CEL rules; files have no API server, and rules may be younger than an object in a cluster.

use std::{collections::BTreeMap, error::Error};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    Fault,
    rules::{self, Range, Rule},
    v1alpha1::{self as api, ImageMirror, ImageMirrorSpec},
};
use crate::domain::{
    mapping::{Mapping, MirrorRegistry, Template},
    mirror::{
        Access, Copying, Drift, Freshness, HealthSettings, Kind, Mirror, Mode, OwnerPattern, Pin, Prefer,
        RescuePolicy, Source, Tags, Trust,
    },
    platform::Platforms,
    routing::Closed,
    selector::{Operator, Requirement, Selector},
    source::{also_meant, check_glob, is_host, may_match_below, normalise_prefix},
};

/// How Kagami reaches a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Scheme, host and port, without a slash at the end: `https://mirror.example.com:5000`.
    pub endpoint: String,
    /// The authorities that may sign the endpoint's certificate, in PEM; none are the system's.
    pub ca_bundle: Option<Vec<u8>>,
    pub trust: Trust,
    /// Name of the Secret with which the mirror may be read.
    pub probe_secret: Option<String>,
    /// Name of the Secret with which it may be written to, where that is another one.
    pub copy_secret: Option<String>,
    /// Name of the Secret with which Pods may pull from it.
    pub pull_secret: Option<String>,
    /// Names of the Secrets with which upstream registries may be read, by the prefix of their source.
    pub source_secrets: BTreeMap<String, String>,
}

/// Returns what a resource says, or everything that is wrong with it.
pub fn mirror(resource: &ImageMirror) -> Result<(Mirror, Connection), Vec<Fault>> {
    let spec = &resource.spec;
    let mut faults = Faults::default();
    let mapping = mapping(spec, &mut faults);
    let connection = connection(spec, &mut faults);
    let namespaces = selector(&spec.namespace_selector, &mut faults);
    let (sources, source_secrets) = sources(spec, &mut faults);
    let health = health(&spec.health, &mut faults);
    let freshness = freshness(&spec.freshness, &mut faults);
    let tags = tags(&spec.tags, &mut faults);
    let copying = copying(spec, &mut faults);
    let hang_after = &spec.rescue.hang_after;
    let hang_after = faults.duration("spec.rescue.hangAfter", hang_after, &rules::HANG_AFTER);
    if selects_all(&spec.namespace_selector) && sources.iter().any(|source| source.access == Access::Private)
    {
        faults.add("spec.namespaceSelector", rules::PRIVATE_NEEDS_SELECTOR.message);
    }
    let (Some(mapping), Some(mut connection), []) = (mapping, connection, faults.0.as_slice()) else {
        return Err(faults.0);
    };
    connection.source_secrets = source_secrets;

    let runs_in = [mapping.registry.host(), &connection.endpoint]
        .into_iter()
        .filter_map(namespace_of)
        .collect();
    let mirror = Mirror {
        name: resource.name_any(),
        mode: match spec.mode {
            api::Mode::Enforce => Mode::Enforce,
            api::Mode::Warn => Mode::Warn,
            api::Mode::Audit => Mode::Audit,
            api::Mode::Off => Mode::Off,
        },
        mapping,
        kind: match spec.kind {
            api::Kind::Hosted => Kind::Hosted,
            api::Kind::PullThrough => Kind::PullThrough,
        },
        priority: spec.priority,
        prefer: match spec.prefer {
            api::Prefer::Mirror => Prefer::Mirror,
            api::Prefer::Upstream => Prefer::Upstream,
        },
        namespaces,
        sources,
        health,
        freshness,
        sweep_rate: u32::try_from(spec.sweep.requests_per_second)
            .ok()
            .filter(|rate| *rate > 0),
        tags,
        copying,
        read_secret: connection.probe_secret.clone(),
        pull_secret: spec.pull_secret.is_some(),
        exclude_owners: spec
            .exclude_owners
            .as_deref()
            .map_or_else(OwnerPattern::built_in, owners),
        rescue: match spec.rescue.policy {
            api::RescuePolicy::Enforce => RescuePolicy::Enforce,
            api::RescuePolicy::Audit => RescuePolicy::Audit,
            api::RescuePolicy::Off => RescuePolicy::Off,
        },
        hang_after,
        delete_pods: spec.rescue.delete_pods.unwrap_or(false),
        runs_in,
    };
    Ok((mirror, connection))
}

/// Returns what an ImageMirror that is not taken may have put in its registry for namespaces of its own, read from
/// whatever can be read of it: an earlier form may have done so. None if that is nothing, or if not even its registry can
/// be read.
pub fn closed(name: &str, spec: &Value) -> Option<Closed> {
    let registry: MirrorRegistry = spec["registry"].as_str()?.parse().ok()?;
    let usual = api::default_repository();
    let template = match &spec["repository"] {
        Value::Null => Some(&*usual),
        text => text.as_str(),
    };
    let template: Option<Template> = template.and_then(|text| text.parse().ok());
    let is_hosted = spec["kind"] == "Hosted";
    let is_for_everybody = |source: &Value| match source["access"].as_str() {
        _ if !source.is_object() => false,
        // Into a Hosted one only what everybody gets is copied then.
        Some("Public") => is_hosted || source["credentials"].is_null(),
        _ => source["access"].is_null() && source["credentials"].is_null(),
    };
    let prefixes = |source: &Value| {
        let prefix = normalise_prefix(source["prefix"].as_str()?).ok()?;
        Some(also_meant(&prefix).into_iter().chain([prefix]))
    };
    let sources = spec["sources"].as_array().and_then(|sources| {
        let kept = sources.iter().filter(|source| !is_for_everybody(source));
        let prefixes: Option<Vec<_>> = kept.map(prefixes).collect();
        Some(prefixes?.into_iter().flatten().collect::<Vec<String>>())
    });
    let prefixes = sources.filter(|_| template.is_some());
    if prefixes.as_ref().is_some_and(Vec::is_empty) {
        return None;
    }
    Some(Closed {
        name: name.to_owned(),
        mapping: Mapping {
            registry,
            template: template.or_else(|| usual.parse().ok())?,
        },
        prefixes,
    })
}

/// Returns every Secret that a resource names, with the path of the field that does.
pub fn secret_references(spec: &ImageMirrorSpec) -> Vec<(String, &str)> {
    let endpoint = spec
        .endpoint
        .as_ref()
        .and_then(|endpoint| endpoint.credentials.as_ref());
    let mut references = vec![
        ("spec.endpoint.credentials".to_owned(), endpoint),
        ("spec.pullSecret".to_owned(), spec.pull_secret.as_ref()),
        (
            "spec.copy.credentials".to_owned(),
            spec.copy.as_ref().and_then(|copy| copy.credentials.as_ref()),
        ),
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

    /// Returns a value, or notes why there is none.
    fn take<T, E: Error>(&mut self, field: impl Into<String>, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.add(field, chain(&error))).ok()
    }
}

fn mapping(spec: &ImageMirrorSpec, faults: &mut Faults) -> Option<Mapping> {
    let registry = faults.take("spec.registry", spec.registry.parse());
    let template: Option<Template> = faults.take("spec.repository", spec.repository.parse());
    let together = template
        .as_ref()
        .is_some_and(|template| !template.keeps_registries_apart());
    if together && spec.sources.len() != 1 {
        faults.add("spec.repository", rules::TEMPLATE_NEEDS_REGISTRY.message);
    }
    Some(Mapping {
        registry: registry?,
        template: template?,
    })
}

/// Returns the namespace of a Service that a host or URL names: `mirror.NAMESPACE.svc…`.
fn namespace_of(url: &str) -> Option<String> {
    let host = url
        .rsplit("//")
        .next()
        .unwrap_or(url)
        .split(':')
        .next()
        .unwrap_or_default();
    let mut labels = host.split('.').skip(1);
    let namespace = labels.next()?;
    (labels.next() == Some("svc")).then(|| namespace.to_lowercase())
}

/// Returns how the mirror is reached; nothing if neither an endpoint nor the registry tells.
fn connection(spec: &ImageMirrorSpec, faults: &mut Faults) -> Option<Connection> {
    let endpoint = spec.endpoint.clone().unwrap_or_default();
    if let Some(rule) = endpoint.url.as_deref().and_then(broken_by_url) {
        faults.add("spec.endpoint.url", rule.message);
    }
    if let Some(rule) = endpoint.ca_bundle.as_deref().and_then(broken_by_bundle) {
        faults.add("spec.endpoint.caBundle", rule.message);
    }
    if endpoint.trust.is_some() && endpoint.ca_bundle.is_none() {
        faults.add("spec.endpoint", rules::TRUST_NEEDS_BUNDLE.message);
    }
    let bundle = endpoint.ca_bundle.map(String::into_bytes);
    let own_url = || {
        let registry: MirrorRegistry = spec.registry.parse().ok()?;
        Some(format!("https://{}", registry.host().to_ascii_lowercase()))
    };
    Some(Connection {
        endpoint: match endpoint.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => own_url()?,
        },
        ca_bundle: bundle,
        trust: match endpoint.trust {
            None | Some(api::Trust::Bundle) => Trust::Bundle,
            Some(api::Trust::BundleAndSystem) => Trust::BundleAndSystem,
        },
        probe_secret: endpoint
            .credentials
            .map(|credentials| credentials.secret_ref.name),
        copy_secret: spec
            .copy
            .as_ref()
            .and_then(|copy| Some(copy.credentials.as_ref()?.secret_ref.name.clone())),
        pull_secret: spec
            .pull_secret
            .as_ref()
            .map(|credentials| credentials.secret_ref.name.clone()),
        source_secrets: BTreeMap::new(),
    })
}

/// Returns the first of the rules of endpoints that a URL breaks: it is to be `http[s]://host[:port]`, with or
/// without a slash at the end.
fn broken_by_url(url: &str) -> Option<&'static Rule> {
    let [scheme, user, query, path, dot, host] = &rules::ENDPOINT_URL;
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest else { return Some(scheme) };
    let (authority, tail) = rest
        .find(['/', '?', '#'])
        .map_or((rest, ""), |end| rest.split_at(end));
    let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
    let broken = [
        (user, authority.contains('@')),
        (query, tail.contains(['?', '#'])),
        (path, !matches!(tail, "" | "/")),
        (dot, name.ends_with('.')),
        (host, !is_host(authority)),
    ];
    broken
        .into_iter()
        .find_map(|(rule, broken)| broken.then_some(rule))
}

/// Returns the first of the rules of bundles that this one breaks.
fn broken_by_bundle(pem: &str) -> Option<&'static Rule> {
    let [key, certificates] = &rules::CA_BUNDLE;
    if pem.contains("PRIVATE KEY-----") {
        return Some(key);
    }
    (!pem.contains("-----BEGIN CERTIFICATE-----")).then_some(certificates)
}

/// Returns an error and its causes in one line: they are ours, and none says another's text.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn health(spec: &api::Health, faults: &mut Faults) -> HealthSettings {
    HealthSettings {
        interval: faults.duration("spec.health.interval", &spec.interval, &rules::INTERVAL),
        timeout: faults.duration("spec.health.timeout", &spec.timeout, &rules::TIMEOUT),
        failure_threshold: faults.count("spec.health.failureThreshold", spec.failure_threshold),
        success_threshold: faults.count("spec.health.successThreshold", spec.success_threshold),
        stale_after: faults.duration("spec.health.staleAfter", &spec.stale_after, &rules::STALE_AFTER),
    }
}

fn freshness(spec: &api::FreshnessLimits, faults: &mut Faults) -> Freshness {
    Freshness {
        tag: faults.duration("spec.freshness.tag", &spec.tag, &rules::FRESHNESS),
        digest: faults.duration("spec.freshness.digest", &spec.digest, &rules::FRESHNESS),
        missing: faults.duration("spec.freshness.missing", &spec.missing, &rules::FRESHNESS),
    }
}

fn tags(spec: &api::TagSettings, faults: &mut Faults) -> Tags {
    Tags {
        pin: match spec.pin {
            api::Pin::None => Pin::None,
            api::Pin::Digest => Pin::Digest,
            api::Pin::DigestOnly => Pin::DigestOnly,
        },
        refresh: faults.duration("spec.tags.refresh", &spec.refresh, &rules::FRESHNESS),
        drift: match spec.drift {
            api::Drift::Sync => Drift::Sync,
            api::Drift::Warn => Drift::Warn,
            api::Drift::Keep => Drift::Keep,
        },
    }
}

/// Returns how the mirror is filled, if it is.
fn copying(spec: &ImageMirrorSpec, faults: &mut Faults) -> Option<Copying> {
    let copy = spec.copy.as_ref()?;
    let mut platforms = Platforms::NONE;
    for (index, name) in copy.platforms.iter().enumerate() {
        match Platforms::written(name) {
            Ok(platform) => platforms = platforms.or(platform),
            Err(fault) => faults.add(format!("spec.copy.platforms[{index}]"), fault),
        }
    }
    let mut size = |field: &str, size: &api::Size| {
        size.parse().unwrap_or_else(|| {
            let message = format!("{:?} is not a size: write 500Mi or 20Gi", size.0);
            faults.add(format!("spec.copy.{field}"), message);
            0
        })
    };
    let max_size = copy.max_image_size.as_ref();
    let max_size = max_size.map(|most| size("maxImageSize", most));
    let max_per_day = copy.max_bytes_per_day.as_ref();
    let max_per_day = max_per_day.map(|most| size("maxBytesPerDay", most));
    if copy.policy == api::CopyPolicy::Off {
        return None;
    }
    if spec.kind != api::Kind::Hosted {
        faults.add("spec.copy.policy", rules::COPY_NEEDS_HOSTED.message);
    }
    Some(Copying {
        platforms: if copy.platforms.is_empty() {
            Platforms::ALL
        } else {
            platforms
        },
        referrers: copy.referrers,
        max_size,
        max_per_day,
    })
}

fn owners(owners: &[api::Owner]) -> Vec<OwnerPattern> {
    let pattern = |owner: &api::Owner| OwnerPattern {
        group: owner.group.clone(),
        kind: owner.kind.clone(),
    };
    owners.iter().map(pattern).collect()
}

/// Whether a selector has no requirements at all, be they valid or not.
fn selects_all(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Returns the sources, and the names of their Secrets by prefix.
fn sources(spec: &ImageMirrorSpec, faults: &mut Faults) -> (Vec<Source>, BTreeMap<String, String>) {
    let mut secrets = BTreeMap::new();
    let registry: Option<MirrorRegistry> = spec.registry.parse().ok();
    let parsed: Vec<_> = spec
        .sources
        .iter()
        .map(|source| normalise_prefix(&source.prefix))
        .collect();
    let prefixes = parsed.iter().zip(&spec.sources);
    let prefixes: Vec<&str> = prefixes
        .map(|(parsed, source)| parsed.as_deref().unwrap_or(&source.prefix))
        .collect();
    let mut sources: Vec<Source> = Vec::new();
    for (index, source) in spec.sources.iter().enumerate() {
        let field = format!("spec.sources[{index}]");
        let is_prefix = faults
            .take(format!("{field}.prefix"), parsed[index].as_ref())
            .is_some();
        let prefix = prefixes[index];
        if let Some(first) = prefixes[..index].iter().position(|other| *other == prefix) {
            // Two names of Docker Hub, which were two registries to earlier versions.
            if differ_in_spelling(source, &spec.sources[first]) {
                continue;
            }
            faults.add(
                format!("{field}.prefix"),
                format!("{prefix} is there already, as sources[{first}]"),
            );
        } else if is_prefix && registry.as_ref().is_some_and(|registry| registry.holds(prefix)) {
            faults.add(
                format!("{field}.prefix"),
                format!(
                    "{prefix} is in the mirror itself, whose images stay as they are: name the registry that it \
                     mirrors"
                ),
            );
        }
        let meant = [Some(prefix.to_owned()), also_meant(prefix)];
        for (index, glob) in source.exclude.iter().enumerate() {
            let field = format!("{field}.exclude[{index}]");
            if faults.take(field.as_str(), check_glob(glob)).is_some()
                && is_prefix
                // One list for all sources of a mirror is fine.
                && !meant.iter().flatten().chain(parsed.iter().flatten()).any(|prefix| may_match_below(glob, prefix))
            {
                faults.add(
                    field,
                    format!("{glob} excludes nothing, since nothing like it lies below {prefix}"),
                );
            }
        }
        let with_credentials = source.credentials.is_some();
        if let Some(credentials) = &source.credentials {
            secrets.insert(prefix.to_owned(), credentials.secret_ref.name.clone());
        }
        sources.push(Source {
            prefix: prefix.to_owned(),
            exclude: source.exclude.clone(),
            access: match source.access {
                Some(api::Access::Private) => Access::Private,
                Some(api::Access::Public) => Access::Public,
                None => default_access(with_credentials),
            },
            with_credentials,
        });
    }
    for index in 0..sources.len() {
        if let Some(prefix) = also_meant(&sources[index].prefix)
            && !sources.iter().any(|other| covers(&other.prefix, &prefix))
        {
            let source = sources[index].clone();
            if let Some(secret) = secrets.get(&source.prefix).cloned() {
                secrets.insert(prefix.clone(), secret);
            }
            sources.push(Source { prefix, ..source });
        }
    }
    (sources, secrets)
}

/// Whether two sources of one meaning differ in how their prefixes are written, and in nothing else.
fn differ_in_spelling(source: &api::Source, other: &api::Source) -> bool {
    let as_written = api::Source {
        prefix: source.prefix.clone(),
        ..other.clone()
    };
    other.prefix != source.prefix && as_written == *source
}

/// Whether what one prefix names is named by another one too.
fn covers(prefix: &str, other: &str) -> bool {
    other
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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
                let field = format!("spec.namespaceSelector.matchExpressions[{index}].{field}");
                faults.0.push(if field.ends_with("operator") {
                    Fault::unknown(field, message)
                } else {
                    Fault::new(field, message)
                });
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Checks what is kept for nobody: the prefixes, `everything` or nothing at all.
    #[track_caller]
    fn check(more: &Value, expected: Option<&[&str]>) {
        let mut spec = json!({
            "registry": "mirror.test/path", "kind": "Hosted", "mode": "Sometimes",
            "sources": [{"prefix": "GHCR.io/acme", "credentials": {"secretRef": {"name": "acme"}}}],
        });
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let closed = closed("acme", &spec);
        let prefixes = closed.as_ref().map(|closed| {
            let prefixes = closed.prefixes.as_ref();
            prefixes.map_or_else(
                || vec!["everything"],
                |prefixes| prefixes.iter().map(String::as_str).collect(),
            )
        });
        assert_eq!(prefixes.as_deref(), expected, "{spec}");
    }

    #[test]
    fn of_what_is_not_taken_everything_is_closed_that_may_not_be_for_everybody() {
        check(&json!({}), Some(&["ghcr.io/acme"]));
        check(
            &json!({"sources": [{"prefix": "ghcr.io", "access": "Private"}]}),
            Some(&["ghcr.io"]),
        );
        let hub = json!([{"prefix": "docker.io/redis", "access": "Secret"}, {"prefix": "quay.io"}]);
        check(
            &json!({"sources": hub}),
            Some(&["docker.io/library/redis", "docker.io/redis"]),
        );
        // What is for everybody closes nothing, unless a login may have brought it that reads more.
        check(
            &json!({"sources": [{"prefix": "ghcr.io"}, {"prefix": "quay.io", "access": "Public"}]}),
            None,
        );
        let paid =
            json!([{"prefix": "docker.io", "access": "Public", "credentials": {"secretRef": {"name": "a"}}}]);
        check(&json!({"sources": paid}), None);
        check(
            &json!({"sources": paid, "kind": "PullThrough"}),
            Some(&["docker.io"]),
        );
        check(&json!({"sources": paid, "kind": "Other"}), Some(&["docker.io"]));
        // Where it cannot be told what.
        let everything: Option<&[&str]> = Some(&["everything"]);
        check(&json!({"sources": "ghcr.io/acme"}), everything);
        check(&json!({"sources": ["ghcr.io/acme"]}), everything);
        check(
            &json!({"sources": [{"prefix": 1, "access": "Private"}]}),
            everything,
        );
        check(
            &json!({"sources": [{"prefix": "ghcr.io/*", "access": "Private"}]}),
            everything,
        );
        check(&json!({"repository": "{name}"}), everything);
        check(&json!({"repository": "{repository}"}), Some(&["ghcr.io/acme"]));
        check(&json!({"registry": "no registry"}), None);
        check(&json!({"registry": null}), None);
    }
}
