//! Checks documents against the schemas of their kinds, as an API server would, but with every
//! fault at once and in words for people.
//!
//! Patterns and CEL rules are not looked at: what they say is said better by the code that parses
//! those values ([`super::mirror`]).

use kube::Resource as _;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{Fault, v1alpha1::ImageMirror};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Returns the schema of ImageMirror documents: that of the resource definition, and of metadata.
pub fn image_mirror() -> Value {
    let plural = ImageMirror::plural(&());
    let crd = super::crds()
        .into_iter()
        .find(|crd| crd.spec.names.plural == plural);
    let mut versions = crd.into_iter().flat_map(|crd| crd.spec.versions);
    let schema = versions.find_map(|version| version.schema?.open_api_v3_schema);
    let mut schema = serde_json::to_value(schema).expect("a schema is a tree of maps, lists and scalars");
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = of::<ObjectMeta>();
    schema
}

/// Returns the schema of a built-in type, without references.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Decodes a document, with the defaults of its schema.
///
/// Returns all faults that the schema finds, and the value, so that whoever understands it can tell
/// its other faults as well: what is wrong is replaced by something of the right type. Only without
/// faults may the value be used.
pub fn decode<T: DeserializeOwned>(schema: &Value, mut document: Value) -> (Option<T>, Vec<Fault>) {
    let mut faults = Vec::new();
    check(schema, &mut document, "", &mut faults);
    complete(schema, &mut document);
    match serde_json::from_value(document) {
        Ok(value) => (Some(value), faults),
        Err(error) => {
            faults.push(Fault::new("", error.to_string()));
            (None, faults)
        }
    }
}

/// Returns every field, and every value of an enumeration, that a definition has and an installed one
/// of the same name lacks: an API server drops or refuses them. What else the installed one has, as a
/// newer one would, is no lack.
pub fn lacking(definition: &Value, installed: &Value) -> Vec<String> {
    let versions = |definition: &Value| -> Vec<Value> {
        definition["spec"]["versions"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let installed = versions(installed);
    let mut found = Vec::new();
    for version in versions(definition) {
        let same = installed.iter().find(|other| other["name"] == version["name"]);
        match same.filter(|other| other["served"] != false) {
            Some(other) => {
                let of = |version: &Value| version["schema"]["openAPIV3Schema"].clone();
                add_lacking(&of(&version), &of(other), "", &mut found);
            }
            None => found.push(version["name"].as_str().unwrap_or_default().to_owned()),
        }
    }
    found
}

fn add_lacking(own: &Value, installed: &Value, path: &str, found: &mut Vec<String>) {
    if installed["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, field) in properties(own) {
        let path = join(path, name);
        match installed["properties"].get(name) {
            Some(installed) => add_lacking(field, installed, &path, found),
            None => found.push(path),
        }
    }
    if let (Some(own), Some(installed)) = (own["enum"].as_array(), installed["enum"].as_array()) {
        for value in own.iter().filter(|value| !installed.contains(value)) {
            found.push(format!("{path}: {}", value.as_str().unwrap_or_default()));
        }
    }
    for inner in ["items", "additionalProperties"] {
        if own[inner].is_object() {
            add_lacking(&own[inner], &installed[inner], path, found);
        }
    }
}

/// Adds the faults that were found in the value of [`decode`], but for those that only follow from
/// what was replaced.
pub fn add_faults(faults: &mut Vec<Fault>, found: Vec<Fault>) {
    let holds = |outer: &str, inner: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let told: Vec<String> = faults.iter().map(|fault| fault.field.clone()).collect();
    faults.extend(found.into_iter().filter(|fault| {
        let follows = |told: &String| holds(told, &fault.field) || holds(&fault.field, told);
        !told.iter().any(follows)
    }));
}

/// Fills in the defaults of a schema.
pub(crate) fn complete(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, schema) in properties(schema) {
                if let (None, Some(default)) = (fields.get(name), schema.get("default")) {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(value) = fields.get_mut(name) {
                    complete(schema, value);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                complete(&schema["items"], item);
            }
        }
        _ => {}
    }
}

/// Notes the faults of a value, and returns whether it can be decoded; below it, everything can.
fn check(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<Fault>) -> bool {
    if value.is_null() && is_nullable(schema) {
        return true;
    }
    let mut fault = |message: String| faults.push(Fault::new(path, message));
    if let Some(message) = wrong_type(schema["type"].as_str().unwrap_or_default(), value) {
        fault(message);
        return false;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        let message = format!("{value} is not one of {}", names.join(", "));
        faults.push(Fault::unknown(path, message));
        return false;
    }
    match value {
        Value::String(text) => check_length(schema, "Length", text.chars().count(), &mut fault),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
                fault(format!("must be at least {least}, not {number}"));
            }
            if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
                fault(format!("must be at most {most}, not {number}"));
            }
        }
        Value::Array(items) => {
            check_length(schema, "Items", items.len(), &mut fault);
            for (index, item) in items.iter_mut().enumerate() {
                if !check(&schema["items"], item, &format!("{path}[{index}]"), faults) {
                    *item = placeholder(&schema["items"]);
                }
            }
        }
        Value::Object(fields) => check_fields(schema, fields, path, faults),
        Value::Null | Value::Bool(_) => {}
    }
    true
}

fn check_fields(schema: &Value, fields: &mut Map<String, Value>, path: &str, faults: &mut Vec<Fault>) {
    let known: Vec<&str> = properties(schema).map(|(name, _)| name.as_str()).collect();
    let mut wrong = Vec::new();
    for (name, value) in fields.iter_mut() {
        let path = join(path, name);
        let known_field = schema["properties"].get(name);
        let Some(field) = known_field.or_else(|| schema.get("additionalProperties")) else {
            // A schema without properties describes an object of any content.
            if !known.is_empty() {
                faults.push(Fault::unknown(path, unknown_field(name, &known)));
            }
            continue;
        };
        let absent = value.is_null() && !is_nullable(field);
        if !absent && check(field, value, &path, faults) {
            continue;
        }
        wrong.push((name.clone(), absent));
    }
    for (name, _) in &wrong {
        fields.shift_remove(name);
    }
    for name in required(schema) {
        if fields.contains_key(name) {
            continue;
        }
        if !wrong.iter().any(|(wrong, absent)| wrong == name && !absent) {
            faults.push(Fault::new(join(path, name), "is required"));
        }
        fields.insert(name.to_owned(), placeholder(&schema["properties"][name]));
    }
}

/// Returns a value that can be decoded in place of one that cannot.
fn placeholder(schema: &Value) -> Value {
    let first = || schema["enum"][0].clone();
    match schema["type"].as_str() {
        Some("string") if first().is_null() => "".into(),
        Some("string") => first(),
        Some("boolean") => false.into(),
        Some("integer" | "number") => 0.into(),
        Some("array") => json!([]),
        _ => {
            let fields = required(schema);
            let field = |name: &str| (name.to_owned(), placeholder(&schema["properties"][name]));
            fields.map(field).collect::<Map<_, _>>().into()
        }
    }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn is_nullable(schema: &Value) -> bool {
    schema["nullable"] == true
}

/// Returns the path of a field below another; names that are no plain words are put in brackets.
pub fn join(path: &str, name: &str) -> String {
    if name.contains(['.', '/', '[']) {
        format!("{path}[{name:?}]")
    } else if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn wrong_type(expected: &str, value: &Value) -> Option<String> {
    let (wanted, right) = match expected {
        "string" => ("text", value.is_string()),
        "boolean" => ("true or false", value.is_boolean()),
        "integer" => ("a whole number", value.is_i64() || value.is_u64()),
        "number" => ("a number", value.is_number()),
        "array" => ("a list", value.is_array()),
        "object" => ("a mapping", value.is_object()),
        _ => return None,
    };
    let hint = match (expected, value) {
        _ if right => return None,
        ("string", Value::Object(_) | Value::Array(_)) => {
            ": a value that begins with { or [ must be put in quotes"
        }
        ("string", Value::Bool(_) | Value::Number(_)) => ": put it in quotes",
        ("integer" | "number", Value::String(text)) if text.parse::<f64>().is_ok() => ": remove the quotes",
        ("boolean", Value::String(text)) if text == "true" || text == "false" => ": remove the quotes",
        _ => "",
    };
    let found = match value {
        Value::Null => "empty",
        Value::Bool(true) => "the boolean true",
        Value::Bool(false) => "the boolean false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    };
    let found = if (expected, value.is_f64()) == ("integer", true) {
        "a fraction"
    } else {
        found
    };
    Some(format!("must be {wanted}, not {found}{hint}"))
}

/// Checks the bounds on `Length` or `Items`.
fn check_length(schema: &Value, of: &str, count: usize, fault: &mut impl FnMut(String)) {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let what = if of == "Items" { "entries" } else { "characters" };
    if let Some(least) = schema[format!("min{of}")].as_u64().filter(|least| count < *least) {
        fault(if least == 1 {
            "must not be empty".to_owned()
        } else {
            format!("must have at least {least} {what}")
        });
    }
    if let Some(most) = schema[format!("max{of}")].as_u64().filter(|most| count > *most) {
        fault(format!("must have at most {most} {what}, not {count}"));
    }
}

fn unknown_field(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (distance(name, known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= 2.max(name.len() / 3) => {
            format!("unknown field: did you mean {known}?")
        }
        _ => format!("unknown field: the fields here are {}", known.join(", ")),
    }
}

/// Returns how many insertions, deletions and replacements of a character lead from one name to the
/// other, ignoring case (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, from) in from.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (index, to) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        let crd = super::super::crds().remove(0);
        serde_json::to_value(crd).unwrap()
    }

    /// Checks what an installed definition lacks that differs from this program's.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Value), expected: &[&str]) {
        let mut installed = definition();
        change(&mut installed["spec"]["versions"]);
        assert_eq!(lacking(&definition(), &installed), expected);
    }

    fn properties_of<'a>(versions: &'a mut Value, part: &str) -> &'a mut Map<String, Value> {
        let schema = &mut versions[0]["schema"]["openAPIV3Schema"];
        schema["properties"][part]["properties"].as_object_mut().unwrap()
    }

    #[test]
    fn an_older_definition_lacks_fields_and_values() {
        check(|_| (), &[]);
        let older = |versions: &mut Value| {
            drop(properties_of(versions, "spec").shift_remove("prefer"));
            let health = &mut properties_of(versions, "status")["health"];
            health["properties"]["state"]["enum"] = json!(["Healthy", "Unhealthy"]);
            let sources = &mut properties_of(versions, "spec")["sources"]["items"]["properties"];
            drop(sources.as_object_mut().unwrap().shift_remove("access"));
        };
        check(
            older,
            &[
                "spec.prefer",
                "spec.sources.access",
                "status.health.state: Unknown",
            ],
        );
        check(|versions| *versions = Value::Null, &["v1alpha1"]);
        check(|versions| versions[0]["served"] = false.into(), &["v1alpha1"]);
    }

    #[test]
    fn a_newer_definition_lacks_nothing() {
        let newer = |versions: &mut Value| {
            properties_of(versions, "spec").insert("future".to_owned(), json!({"type": "string"}));
            let later = versions[0].clone();
            let versions = versions.as_array_mut().unwrap();
            versions.insert(0, later);
            versions[0]["name"] = "v1beta1".into();
        };
        check(newer, &[]);
        // Whatever is in such an object stays.
        let open = |versions: &mut Value| {
            let part = &mut versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            *part = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        };
        check(open, &[]);
    }
}
