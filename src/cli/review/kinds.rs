//! What creates Pods: where templates stand in the kinds that have one.
//!
//! Nothing that could create Pods is passed over in silence: what is of no known kind, and yet holds what
//! looks like a Pod, is counted by its kind.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::edit::Path;

/// A kind whose objects create Pods. In the path, `*` is each entry of a list or mapping.
struct Kind {
    /// API groups, the empty one is the core's.
    groups: &'static [&'static str],
    name: &'static str,
    shape: Shape,
    path: &'static str,
}

/// What stands at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A Pod or a template of Pods: metadata and spec.
    Template,
    /// Tekton's steps and sidecars, whose Pods have the annotations of the object itself.
    Steps,
    /// A list of objects.
    Objects,
}

/// Its containers need no name.
const KNATIVE: &str = "serving.knative.dev";

macro_rules! kinds {
    ($($groups:tt $shape:ident { $($name:ident $path:literal)* })*) => {
        &[$($(Kind { groups: &$groups, name: stringify!($name), shape: Shape::$shape, path: $path },)*)*]
    };
}

const KINDS: &[Kind] = kinds! {
    [""] Template { Pod "" PodTemplate "/template" ReplicationController "/spec/template" }
    ["apps", "extensions"] Template {
        Deployment "/spec/template" ReplicaSet "/spec/template" StatefulSet "/spec/template"
        DaemonSet "/spec/template"
    }
    ["batch"] Template { Job "/spec/template" CronJob "/spec/jobTemplate/spec/template" }
    ["argoproj.io"] Template { Rollout "/spec/template" }
    [KNATIVE] Template { Service "/spec/template" Configuration "/spec/template" Revision "" }
    ["apps.openshift.io", ""] Template { DeploymentConfig "/spec/template" }
    ["template.openshift.io", ""] Objects { Template "/objects" }
    ["tekton.dev"] Steps { Task "/spec" ClusterTask "/spec" TaskRun "/spec/taskSpec" }
    ["apps.kruise.io"] Template {
        CloneSet "/spec/template" StatefulSet "/spec/template" DaemonSet "/spec/template"
        BroadcastJob "/spec/template"
    }
    ["keda.sh"] Template { ScaledJob "/spec/jobTargetRef/template" }
    ["batch.volcano.sh"] Template { Job "/spec/tasks/*/template" }
    ["jobset.x-k8s.io"] Template { JobSet "/spec/replicatedJobs/*/template/spec/template" }
    ["leaderworkerset.x-k8s.io"] Template {
        LeaderWorkerSet "/spec/leaderWorkerTemplate/leaderTemplate"
        LeaderWorkerSet "/spec/leaderWorkerTemplate/workerTemplate"
    }
    ["agones.dev"] Template { Fleet "/spec/template/spec/template" GameServer "/spec/template" }
    ["ray.io"] Template {
        RayCluster "/spec/headGroupSpec/template" RayCluster "/spec/workerGroupSpecs/*/template"
    }
};

/// What was found in documents.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) templates: Vec<Template>,
    /// Kinds that nobody looked into although they hold what looks like a Pod: how many of each.
    pub(super) others: BTreeMap<String, usize>,
    /// A document says nothing of what it is.
    pub(super) is_kindless: bool,
}

/// A Pod, or a template of Pods, within a document.
#[derive(Debug)]
pub(super) struct Template {
    /// What has its metadata.
    pub(super) pod: Path,
    /// For each container of `object` whose image stands elsewhere than there, where.
    steps: Option<Vec<Path>>,
    pub(super) namespace: Option<String>,
    /// As a Pod, for admission.
    pub(super) object: Value,
}

impl Template {
    /// Returns where a value of the Pod stands in the document, by its JSON pointer there.
    pub(super) fn place(&self, pointer: &str) -> Option<Path> {
        let parts: Vec<String> = pointer
            .split('/')
            .skip(1)
            .map(|part| part.replace("~1", "/").replace("~0", "~"))
            .collect();
        match &self.steps {
            None => Some(self.pod.iter().cloned().chain(parts).collect()),
            Some(steps) => {
                let [_, list, index, field] = parts.as_slice() else {
                    return None;
                };
                let step = steps.get(index.parse::<usize>().ok()?)?;
                (list == "containers").then(|| step.iter().chain([field]).cloned().collect())
            }
        }
    }
}

/// What an object has from what holds it.
#[derive(Clone, Copy, Default)]
struct Inherited<'a> {
    api_version: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
}

impl Found {
    /// Looks into a document; what it finds comes after what was found before.
    pub(super) fn look(&mut self, document: &Value) {
        self.object(document, &[], Inherited::default());
    }

    fn object(&mut self, object: &Value, path: &[String], inherited: Inherited<'_>) {
        if let Some(items) = object.as_array() {
            return self.items(items, path, inherited);
        }
        let kind = object["kind"].as_str().or(inherited.kind);
        let api_version = object["apiVersion"].as_str().or(inherited.api_version);
        let namespace = object["metadata"]["namespace"].as_str().or(inherited.namespace);
        let below = Inherited {
            namespace,
            ..Inherited::default()
        };
        // A list's items may come without their type.
        if let Some(kind) = kind.and_then(|kind| kind.strip_suffix("List"))
            && let Some(items) = object
                .get("items")
                .filter(|items| items.is_array() || items.is_null())
        {
            let mut below = below;
            if !kind.is_empty() {
                below.kind = Some(kind);
                below.api_version = api_version;
            }
            let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
            return self.items(items, &joined(path, "items"), below);
        }
        // So do those that were taken out of one.
        let kind = kind.or_else(|| object["spec"]["containers"].is_array().then_some("Pod"));
        let known: Vec<&Kind> = KINDS.iter().filter(|known| known.is(kind, api_version)).collect();
        for known in &known {
            let mut places = Vec::new();
            expand(object, known.path, path, &mut places);
            for (place, value) in places {
                match known.shape {
                    Shape::Objects => {
                        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                        self.items(items, &place, below);
                    }
                    Shape::Template if value.is_object() => {
                        let mut pod = named(value, object);
                        if known.groups.contains(&KNATIVE) {
                            name_containers(&mut pod);
                        }
                        self.templates.push(Template {
                            object: pod,
                            pod: place,
                            steps: None,
                            namespace: namespace.map(ToOwned::to_owned),
                        });
                    }
                    Shape::Steps if value["stepTemplate"]["image"].is_null() => {
                        self.templates.push(steps(value, &place, object, path, namespace));
                    }
                    Shape::Steps => self.other(kind, api_version),
                    Shape::Template => {}
                }
            }
        }
        if !known.is_empty() {
            return;
        }
        if holds_pod(object) {
            self.other(kind, api_version);
        } else if kind.is_none() {
            self.is_kindless = true;
        }
    }

    fn items(&mut self, items: &[Value], path: &[String], inherited: Inherited<'_>) {
        for (index, item) in items.iter().enumerate() {
            self.object(item, &joined(path, &index.to_string()), inherited);
        }
    }

    fn other(&mut self, kind: Option<&str>, api_version: Option<&str>) {
        let name = match (kind, api_version) {
            (None, _) => "object without a kind".to_owned(),
            (Some(kind), None) => kind.to_owned(),
            (Some(kind), Some(api_version)) => format!("{kind} ({api_version})"),
        };
        *self.others.entry(name).or_default() += 1;
    }
}

impl Kind {
    fn is(&self, kind: Option<&str>, api_version: Option<&str>) -> bool {
        // What names no version is taken for what is meant mostly.
        let group = api_version.map(|version| version.split_once('/').map_or("", |(group, _)| group));
        let is_ours = |group| self.groups.contains(&group);
        kind == Some(self.name)
            && group.map_or_else(|| self.groups.iter().any(|group| !group.contains('.')), is_ours)
    }
}

fn joined(path: &[String], part: &str) -> Path {
    path.iter().cloned().chain([part.to_owned()]).collect()
}

/// Collects what a path with `*` leads to.
fn expand<'a>(value: &'a Value, rest: &str, path: &[String], into: &mut Vec<(Path, &'a Value)>) {
    let Some(rest) = rest.strip_prefix('/') else {
        into.push((path.to_vec(), value));
        return;
    };
    let (part, end) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    match value {
        Value::Array(items) if part == "*" => {
            for (index, item) in items.iter().enumerate() {
                expand(item, end, &joined(path, &index.to_string()), into);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                if part == "*" || part == name {
                    expand(field, end, &joined(path, name), into);
                }
            }
        }
        _ => {}
    }
}

/// Returns a template as a Pod: it may do without metadata, and a name it never has.
fn named(template: &Value, owner: &Value) -> Value {
    let mut pod = template.clone();
    let name = owner["metadata"]["name"].as_str().unwrap_or_default();
    let Some(fields) = pod.as_object_mut() else {
        return pod;
    };
    let metadata = fields.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = json!({});
    }
    // What is something else is told by whoever reads the Pod.
    if let Some(metadata) = metadata.as_object_mut() {
        let has_name = metadata.contains_key("name") || metadata.contains_key("generateName");
        if !has_name {
            metadata.insert("name".to_owned(), json!(name));
        }
    }
    pod
}

/// Names containers as Knative does that have no name.
fn name_containers(pod: &mut Value) {
    let containers = pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    for (index, container) in containers.into_iter().flatten().enumerate() {
        if let Some(fields) = container.as_object_mut()
            && fields
                .get("name")
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
        {
            let name = if index == 0 {
                "user-container".to_owned()
            } else {
                format!("user-container-{index}")
            };
            fields.insert("name".to_owned(), json!(name));
        }
    }
}

/// Returns the Pod that Tekton makes of steps and sidecars, as far as images are concerned.
fn steps(
    value: &Value,
    place: &[String],
    owner: &Value,
    path: &[String],
    namespace: Option<&str>,
) -> Template {
    let (mut containers, mut places) = (Vec::new(), Vec::new());
    for (list, prefix) in [("steps", "step"), ("sidecars", "sidecar")] {
        let items = value[list].as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let Some(image) = item["image"].as_str() else {
                continue;
            };
            let name = match item["name"].as_str() {
                Some(name) if !name.is_empty() => format!("{prefix}-{name}"),
                _ => format!("{prefix}-unnamed-{index}"),
            };
            containers.push(json!({
                "name": name, "image": image,
                "command": item["command"], "args": item["args"], "env": item["env"],
            }));
            places.push(joined(&joined(place, list), &index.to_string()));
        }
    }
    let metadata = match &owner["metadata"] {
        Value::Null => json!({}),
        metadata => metadata.clone(),
    };
    Template {
        pod: path.to_vec(),
        steps: Some(places),
        namespace: namespace.map(ToOwned::to_owned),
        object: json!({"metadata": metadata, "spec": {"containers": containers}}),
    }
}

/// Whether somewhere in an object images stand as they do in Pods: in containers, or in what other kinds
/// have for that.
fn holds_pod(value: &Value) -> bool {
    const LISTS: [&str; 5] = [
        "containers",
        "initContainers",
        "ephemeralContainers",
        "steps",
        "sidecars",
    ];
    const SINGLE: [&str; 3] = ["container", "script", "stepTemplate"];
    let has_image = |value: &Value| value["image"].is_string();
    let held = |(name, value): (&String, &Value)| match value {
        Value::Array(items) if LISTS.contains(&name.as_str()) => items.iter().any(has_image),
        Value::Object(_) if SINGLE.contains(&name.as_str()) => has_image(value),
        _ => false,
    };
    match value {
        Value::Object(fields) => fields.iter().any(held) || fields.values().any(holds_pod),
        Value::Array(items) => items.iter().any(holds_pod),
        _ => false,
    }
}
