//! ImageMirrors as an API server has them: their definition may be newer than this program, before the
//! end of an upgrade or after a rollback, and it fills in its defaults everywhere.
//!
//! What may keep a mirror from an image or a namespace must be understood, or the document is not taken.
//! What Kagami does to images or Pods is not done at all by a setting that is understood in part. The
//! rest tunes, and is at its default where it is not understood. Whoever adds a field to the definition
//! relies on that: one that restricts belongs below a part of the first kind.
//!
//! Files are not read like this: people write them, and a slip of the pen must be told, not tolerated.

use kube::Resource as _;
use serde_json::{Value, json};

use super::{Fault, mirror::mirror, schema, v1alpha1::ImageMirror};

/// Parts of a spec that say which images of whom a mirror may serve, or how it is reached and named.
const RESTRICTING: [&str; 9] = [
    "sources",
    "namespaceSelector",
    "registry",
    "repository",
    "endpoint",
    "kind",
    "mode",
    "prefer",
    "pullSecret",
];

/// Parts of a spec that say what Kagami does to images or Pods: those that this program has, earlier ones
/// had or later ones will have.
const CAPABILITIES: [&str; 4] = ["copy", "retention", "rescue", "tags"];

/// Below `tags`: how old a proof may be. That is a bound and no capability, so it stays in force.
const BOUND: &str = "refresh";

/// What this program does because of something that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consequence {
    /// It counts for nothing.
    Ignored,
    /// The part of the spec that it belongs to is not carried out.
    CapabilityOff,
    /// The document is not put in force.
    NotTaken,
}

impl Consequence {
    /// Returns the consequence as a condition's reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ignored => "Ignored",
            Self::CapabilityOff => "CapabilityOff",
            Self::NotTaken => "NotTaken",
        }
    }

    /// Returns the consequence of a fault at this path.
    fn of(field: &str) -> Self {
        match part(field) {
            Some(part) if RESTRICTING.contains(&part) => Self::NotTaken,
            Some(part) if CAPABILITIES.contains(&part) => Self::CapabilityOff,
            Some(_) => Self::Ignored,
            None => Self::NotTaken,
        }
    }
}

/// A field or value of a resource that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Its path, as in [`Fault::field`].
    pub field: String,
    pub consequence: Consequence,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, consequence } = self;
        match consequence {
            Consequence::Ignored => write!(formatter, "{field} is ignored"),
            Consequence::CapabilityOff => {
                let part = part(field).unwrap_or_default();
                write!(formatter, "spec.{part} is off because of {field}")
            }
            Consequence::NotTaken => write!(formatter, "the resource is not taken because of {field}"),
        }
    }
}

/// What was made of a resource.
#[derive(Clone, Debug)]
pub struct Reading<T> {
    /// What is put in force, or why nothing is.
    pub taken: Result<T, Vec<Fault>>,
    /// What is not known of the resource, whether it is taken or not.
    pub unknown: Vec<Unknown>,
}

/// Reads the settings of an ImageMirror, the status left out, with the schema of
/// [`schema::image_mirror`]. What is taken is a resource that [`mirror()`] takes.
///
/// Everybody who reads ImageMirrors reads them like this, so that all agree.
pub fn read(schema: &Value, name: &str, spec: &Value) -> Reading<ImageMirror> {
    let mut unknown = Vec::new();
    let faults = match decode(schema, name, spec) {
        Ok(resource) => {
            return Reading {
                taken: Ok(resource),
                unknown,
            };
        }
        Err(faults) => faults,
    };
    let mut understood = spec.clone();
    // From the end, so that the places of list entries stay true.
    for fault in faults.iter().rev() {
        let consequence = Consequence::of(&fault.field);
        match consequence {
            Consequence::NotTaken if !fault.is_unknown => continue,
            Consequence::NotTaken => {}
            Consequence::CapabilityOff => switch_off(&mut understood, &fault.field),
            Consequence::Ignored => leave_out(&mut understood, &fault.field),
        }
        unknown.push(Unknown {
            field: fault.field.clone(),
            consequence,
        });
    }
    unknown.reverse();
    Reading {
        taken: decode(schema, name, &understood),
        unknown,
    }
}

/// Decodes a spec and checks everything.
fn decode(schema: &Value, name: &str, spec: &Value) -> Result<ImageMirror, Vec<Fault>> {
    let document = json!({
        "apiVersion": ImageMirror::api_version(&()),
        "kind": ImageMirror::kind(&()),
        "metadata": {"name": name},
        "spec": spec,
    });
    let (resource, mut faults) = schema::decode::<ImageMirror>(schema, document);
    let Some(resource) = resource else {
        return Err(faults);
    };
    schema::add_faults(&mut faults, mirror(&resource).err().unwrap_or_default());
    if faults.is_empty() {
        Ok(resource)
    } else {
        Err(faults)
    }
}

/// Returns the part of a spec that a path leads into; nothing for the spec as a whole.
fn part(field: &str) -> Option<&str> {
    let rest = field.strip_prefix("spec.")?;
    Some(&rest[..rest.find(['.', '[']).unwrap_or(rest.len())])
}

/// Takes out of a spec the capability that a path leads into.
fn switch_off(spec: &mut Value, field: &str) {
    let (Some(part), Some(spec)) = (part(field), spec.as_object_mut()) else {
        return;
    };
    match spec.get_mut(part) {
        Some(Value::Object(tags)) if part == "tags" => {
            tags.retain(|name, _| name == BOUND && field != "spec.tags.refresh");
            // Without a word about it, what the mirror has is replaced.
            tags.insert("drift".to_owned(), "Keep".into());
        }
        // Without a word about it, it is on.
        _ if part == "tags" => drop(spec.insert(part.to_owned(), json!({"drift": "Keep"}))),
        _ if part == "rescue" => drop(spec.insert(part.to_owned(), json!({"policy": "Off"}))),
        _ => drop(spec.swap_remove(part)),
    }
}

/// Takes out of a spec what a path leads to.
fn leave_out(spec: &mut Value, field: &str) {
    if let Some(path) = field.strip_prefix("spec.") {
        remove(spec, path);
    }
}

/// Removes what a path leads to, and what holds it where it is not there but required. Returns whether
/// anything was removed.
fn remove(value: &mut Value, path: &str) -> bool {
    let Some((step, rest)) = step(path) else {
        return false;
    };
    match (value, step) {
        (Value::Object(fields), Step::Field(name)) => {
            let Some(field) = fields.get_mut(&name) else {
                return false;
            };
            if rest.is_empty() || !remove(field, rest) {
                fields.swap_remove(&name);
            }
            true
        }
        (Value::Array(items), Step::Item(index)) => {
            let Some(item) = items.get_mut(index) else {
                return false;
            };
            if rest.is_empty() || !remove(item, rest) {
                items.remove(index);
            }
            true
        }
        _ => false,
    }
}

enum Step {
    Field(String),
    Item(usize),
}

/// Returns the first step of a path, as [`schema::join`] writes them, and the rest.
fn step(path: &str) -> Option<(Step, &str)> {
    let (step, rest) = if let Some(quoted) = path.strip_prefix("[\"") {
        // Names in definitions have neither quotes nor backslashes.
        let (name, rest) = quoted.split_once("\"]")?;
        (Step::Field(name.to_owned()), rest)
    } else if let Some(index) = path.strip_prefix('[') {
        let (index, rest) = index.split_once(']')?;
        (Step::Item(index.parse().ok()?), rest)
    } else {
        let (name, rest) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
        (Step::Field(name.to_owned()), rest)
    };
    Some((step, rest.strip_prefix('.').unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::mirror::{Mirror, OwnerPattern};

    /// The fields that are added to the spec of a mirror, which has none of them.
    fn spec(fields: &Value) -> Value {
        let mut spec = json!({
            "registry": "mirror.example.com", "kind": "Hosted", "sources": [{"prefix": "docker.io"}],
            "tags": {"pin": "Digest", "refresh": "5m"},
        });
        for (name, value) in fields.as_object().unwrap() {
            spec[name] = value.clone();
        }
        spec
    }

    fn reading(fields: &Value) -> (Result<Mirror, String>, Vec<String>) {
        let Reading { taken, unknown } = read(&schema::image_mirror(), "main", &spec(fields));
        let text = |faults: Vec<Fault>| {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            faults.join("; ")
        };
        (
            taken.map(|resource| mirror(&resource).unwrap().0).map_err(text),
            unknown.iter().map(ToString::to_string).collect(),
        )
    }

    /// Checks that a mirror is in force as if it had other fields, and what is told.
    #[track_caller]
    fn check(fields: &Value, as_if: &Value, told: &[&str]) {
        let (expected, nothing) = reading(as_if);
        assert_eq!(nothing, Vec::<String>::new());
        assert_eq!(
            reading(fields),
            (expected, told.iter().map(|&told| told.to_owned()).collect())
        );
    }

    #[track_caller]
    fn check_not_taken(fields: &Value, field: &str) {
        let (mirror, told) = reading(fields);
        let why = mirror.unwrap_err();
        assert!(why.contains(field), "{why}");
        assert_eq!(told, [format!("the resource is not taken because of {field}")]);
    }

    #[test]
    fn what_may_restrict_must_be_understood() {
        check_not_taken(
            &json!({"sources": [{"prefix": "docker.io", "podSelector": {}}]}),
            "spec.sources[0].podSelector",
        );
        check_not_taken(
            &json!({"sources": [{"prefix": "docker.io", "access": "Secret"}]}),
            "spec.sources[0].access",
        );
        check_not_taken(
            &json!({"namespaceSelector": {"matchFields": []}}),
            "spec.namespaceSelector.matchFields",
        );
        check_not_taken(
            &json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
            "spec.namespaceSelector.matchExpressions[0].operator",
        );
        check_not_taken(
            &json!({"endpoint": {"proxy": "http://proxy"}}),
            "spec.endpoint.proxy",
        );
        check_not_taken(&json!({"kind": "Cluster"}), "spec.kind");
        check_not_taken(&json!({"mode": "Suggest"}), "spec.mode");
        check_not_taken(&json!({"prefer": "Nearest"}), "spec.prefer");
        let secret = json!({"secretRef": {"name": "pull", "namespace": "elsewhere"}});
        check_not_taken(
            &json!({"pullSecret": secret}),
            "spec.pullSecret.secretRef.namespace",
        );
    }

    #[test]
    fn a_plain_fault_is_not_unknown() {
        for fields in [
            json!({"registry": {"host": "mirror"}}),
            json!({"repository": "{registry}"}),
            json!({"sources": [{"prefix": "not a host"}]}),
            json!({"sources": []}),
        ] {
            let (mirror, told) = reading(&fields);
            assert!(mirror.is_err(), "{fields}");
            assert_eq!(told, Vec::<String>::new());
        }
        assert!(read(&schema::image_mirror(), "main", &Value::Null).taken.is_err());
    }

    #[test]
    fn a_capability_that_is_understood_in_part_is_off() {
        let off = json!({"tags": {"pin": "None", "refresh": "5m", "drift": "Keep"}});
        check(
            &json!({"tags": {"pin": "Digest", "refresh": "5m", "drift": "Follow"}}),
            &off,
            &["spec.tags is off because of spec.tags.drift"],
        );
        check(
            &json!({"tags": {"pin": "Digest", "refresh": "5m", "verify": "Cosign"}}),
            &off,
            &["spec.tags is off because of spec.tags.verify"],
        );
        check(
            &json!({"tags": {"pin": "Signature", "refresh": "5m"}}),
            &off,
            &["spec.tags is off because of spec.tags.pin"],
        );
        check(
            &json!({"tags": {"pin": "Digest", "refresh": "often"}}),
            &json!({"tags": {"drift": "Keep"}}),
            &["spec.tags is off because of spec.tags.refresh"],
        );
        check(
            &json!({"tags": "all"}),
            &json!({"tags": {"drift": "Keep"}}),
            &["spec.tags is off because of spec.tags"],
        );
        check(
            &json!({"copy": {"policy": "OnDemand", "later": 1}, "retention": {}}),
            &json!({}),
            &[
                "spec.copy is off because of spec.copy.later",
                "spec.retention is off because of spec.retention",
            ],
        );
        let off = json!({"rescue": {"policy": "Off"}});
        check(
            &json!({"rescue": {"policy": "Enforce", "deleteAll": true}}),
            &off,
            &["spec.rescue is off because of spec.rescue.deleteAll"],
        );
        check(
            &json!({"rescue": {"policy": "Sometimes"}}),
            &off,
            &["spec.rescue is off because of spec.rescue.policy"],
        );
        check(
            &json!({"rescue": {"hangAfter": "soon"}}),
            &off,
            &["spec.rescue is off because of spec.rescue.hangAfter"],
        );
        check(
            &json!({"rescue": "always"}),
            &off,
            &["spec.rescue is off because of spec.rescue"],
        );
        check(&json!({"rescue": {}}), &json!({}), &[]);
    }

    #[test]
    fn the_rest_is_ignored_and_at_its_default() {
        check(
            &json!({"health": {"interval": "5s", "mood": "good"}, "colour": "red"}),
            &json!({"health": {"interval": "5s"}}),
            &["spec.health.mood is ignored", "spec.colour is ignored"],
        );
        check(
            &json!({"health": {"interval": "soon", "failureThreshold": 0, "timeout": "2s"}}),
            &json!({"health": {"timeout": "2s"}}),
            &[
                "spec.health.failureThreshold is ignored",
                "spec.health.interval is ignored",
            ],
        );
        check(
            &json!({"freshness": 7, "sweep": {"requestsPerSecond": "all"}, "priority": 20_000}),
            &json!({}),
            &[
                "spec.freshness is ignored",
                "spec.sweep.requestsPerSecond is ignored",
                "spec.priority is ignored",
            ],
        );
        check(
            &json!({"priority": 5, "health": {"a.b/c[0]": 1}}),
            &json!({"priority": 5}),
            &["spec.health[\"a.b/c[0]\"] is ignored"],
        );
    }

    #[test]
    fn an_excluded_owner_stays_excluded_as_far_as_it_is_understood() {
        let owners = json!([
            {"group": "a.example.com", "kind": "A", "namespace": "blue"},
            {"kind": "B"},
            {"group": "c.example.com", "kind": 7},
            {"group": "d.example.com", "kind": "D"},
        ]);
        let (mirror, told) = reading(&json!({"excludeOwners": owners}));
        let owner = |group: &str, kind: &str| OwnerPattern {
            group: group.to_owned(),
            kind: kind.to_owned(),
        };
        let expected = [
            owner("a.example.com", "A"),
            owner("c.example.com", "*"),
            owner("d.example.com", "D"),
        ];
        assert_eq!(mirror.unwrap().exclude_owners, expected);
        assert_eq!(
            told,
            [
                "spec.excludeOwners[0].namespace is ignored",
                "spec.excludeOwners[1].group is ignored",
                "spec.excludeOwners[2].kind is ignored",
            ]
        );
    }

    #[test]
    fn one_that_is_not_taken_tells_everything_that_is_unknown() {
        let fields = json!({"mode": "Suggest", "health": {"mood": "good"}, "tags": {"drift": "Follow"}});
        let (mirror, told) = reading(&fields);
        assert!(mirror.unwrap_err().starts_with("spec.mode: "));
        assert_eq!(
            told,
            [
                "spec.tags is off because of spec.tags.drift",
                "the resource is not taken because of spec.mode",
                "spec.health.mood is ignored",
            ]
        );
    }
}
